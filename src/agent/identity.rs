//! The operator as an agent sees it: whom it shows its pod's token to, and what it tells there.
//!
//! The token is for one audience, is bound to the pod, and is mounted into Slipway's own containers only.
//! Telling is a courtesy that saves the kubelet's second: the termination message says the same.

use std::{path::Path, time::Duration};

use serde::Serialize;

use crate::{
    record::{Failure, Reason},
    registry::Credentials,
};

/// The audience of the tokens by which pods show who they are.
pub const AUDIENCE: &str = "slipway";

/// The environment variable with the operator's URL.
pub const OPERATOR_VARIABLE: &str = "SLIPWAY_OPERATOR_URL";

/// Where the token is mounted.
pub const MOUNT: &str = "/var/run/secrets/slipway.dev";

/// The token's file there.
pub const TOKEN_FILE: &str = "token";

/// One try; the kubelet is not much slower than a second one of this length.
const PATIENCE: Duration = Duration::from_secs(1);

/// A replica that does not lead says so; the next connection may reach the one that does.
const TRIES: u32 = 3;

/// Why the operator could not be told.
#[derive(Debug, thiserror::Error)]
pub enum TellError {
    /// The token cannot be read.
    #[error("the pod's token cannot be read: {0}")]
    Token(#[from] std::io::Error),
    /// The operator cannot be reached.
    #[error("the operator cannot be reached: {0}")]
    Unreachable(#[from] reqwest::Error),
    /// It will not listen.
    #[error("the operator answers {status}: {text}")]
    Refused {
        /// The answer's status.
        status: u16,
        /// Its words.
        text: String,
    },
}

/// The pod's own credentials for a registry that trusts `realm`: the token that the kubelet mounted.
///
/// # Errors
/// When the token cannot be read, or the realm is no URL.
pub fn credentials(registry: &str, realm: &str) -> Result<Credentials, Failure> {
    let broken = |why: String| Failure::new(Reason::InternalError, why);
    let realm = realm
        .parse()
        .map_err(|error| broken(format!("{realm:?} is no token server's URL: {error}")))?;
    let token = std::fs::read_to_string(Path::new(MOUNT).join(TOKEN_FILE))
        .map_err(|error| broken(format!("the pod's token cannot be read: {error}")))?;
    Ok(Credentials::anonymous().with_password_for_realm(registry, "pod", token.trim(), realm))
}

/// Tells the operator what this container has left in its termination message.
pub async fn tell(container: &str, report: &impl Serialize) {
    let Ok(operator) = std::env::var(OPERATOR_VARIABLE) else {
        return;
    };
    let told = tell_to(&operator, &Path::new(MOUNT).join(TOKEN_FILE), container, report).await;
    if let Err(error) = told {
        tracing::warn!(%error, "the operator was not told; it will read the termination message");
    }
}

async fn tell_to(
    operator: &str,
    token: &Path,
    container: &str,
    report: &impl Serialize,
) -> Result<(), TellError> {
    let token = tokio::fs::read_to_string(token).await?;
    let url = format!("{}/reports/{container}", operator.trim_end_matches('/'));
    let body = serde_json::to_vec(report).map_err(std::io::Error::from)?;
    let mut tries = 0;
    loop {
        tries += 1;
        // A connection that is kept leads to the same replica again. Certificates are the system's where the URL
        // has TLS; no proxy is asked, as the operator is in the cluster.
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .pool_max_idle_per_host(0)
            .build()?;
        let answer = client
            .post(&url)
            .bearer_auth(token.trim())
            .body(body.clone())
            .send()
            .await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        if status != http::StatusCode::SERVICE_UNAVAILABLE || tries == TRIES {
            let text = answer.text().await.unwrap_or_default();
            return Err(TellError::Refused {
                status: status.as_u16(),
                text: text.trim().chars().take(256).collect(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use axum::{Router, http::HeaderMap, routing::post};

    use super::*;

    async fn operator(answers: Vec<u16>) -> (String, Arc<AtomicU32>) {
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        let answer = move |headers: HeaderMap, body: String| {
            let turn = count.fetch_add(1, Ordering::SeqCst) as usize;
            assert_eq!(headers["authorization"], "Bearer t0ken");
            assert_eq!(body, "\"done\"");
            let code = answers.get(turn).copied().unwrap_or(204);
            async move { axum::http::StatusCode::from_u16(code).unwrap() }
        };
        let router = Router::new().route("/reports/collect", post(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (url, asked)
    }

    async fn told(answers: Vec<u16>) -> (Result<(), TellError>, u32) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, "t0ken\n").unwrap();
        let (url, asked) = operator(answers).await;
        let told = tell_to(&url, &token, "collect", &"done").await;
        (told, asked.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn a_replica_that_does_not_lead_is_asked_again_and_one_that_refuses_is_not() {
        assert!(matches!(told(vec![204]).await, (Ok(()), 1)));
        assert!(matches!(told(vec![503, 503, 204]).await, (Ok(()), 3)));
        assert!(matches!(
            told(vec![503, 503, 503]).await,
            (Err(TellError::Refused { status: 503, .. }), 3)
        ));
        assert!(matches!(
            told(vec![401]).await,
            (Err(TellError::Refused { status: 401, .. }), 1)
        ));
    }

    #[tokio::test]
    async fn without_a_token_nobody_is_asked() {
        let missing = Path::new("/nonexistent/token");
        let told = tell_to("http://127.0.0.1:9", missing, "collect", &"done").await;
        assert!(matches!(told, Err(TellError::Token(_))));
    }
}
