//! Tokens for the staging registry, which asks the operator who may do what.
//!
//! A pod shows whose it is and gets a token for its namespace's repository: a build's pod may read and write
//! there, a push's pod may read. Nobody has a password, and no token lives longer than a few minutes.
//!
//! Source: distribution's token authentication specification.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    routing::get,
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jiff::Timestamp;
use kube::ResourceExt as _;
use ring::{
    rand::SystemRandom,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::callers::{Callers, Refusal};
use crate::api::ROLE_LABEL;

/// A registry looks at a token when a request begins, so an upload may outlive its own.
const LIFE: Duration = Duration::from_secs(300);

/// Clocks of two machines differ.
const SKEW: Duration = Duration::from_secs(30);

/// Why tokens cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} is no RSA key and certificate in PEM: {why}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
}

/// What a token allows in one repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grant {
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    actions: Vec<&'static str>,
}

impl Grant {
    fn new(repository: String, actions: &[&'static str]) -> Self {
        Self {
            kind: "repository",
            name: repository,
            actions: actions.to_vec(),
        }
    }
}

/// Signs tokens that the staging registry believes.
#[derive(Clone)]
pub struct TokenSigner {
    inner: Arc<Inner>,
}

struct Inner {
    key: RsaKeyPair,
    certificate: String,
    service: String,
    issuer: String,
    random: SystemRandom,
}

impl TokenSigner {
    /// Reads `tls.key` and `tls.crt` of a folder, the files of a TLS Secret.
    ///
    /// # Errors
    /// When they are not there, or no RSA pair in PEM.
    pub fn read(folder: &std::path::Path, service: &str, issuer: &str) -> Result<Self, SigningError> {
        let read = |name: &str| {
            let path = folder.join(name);
            let path_text = path.display().to_string();
            std::fs::read(&path)
                .map(|bytes| (bytes, path_text.clone()))
                .map_err(|source| SigningError::Read {
                    path: path_text,
                    source,
                })
        };
        let malformed = |path: &str, why: &dyn std::fmt::Display| SigningError::Malformed {
            path: path.to_owned(),
            why: why.to_string(),
        };
        let (key, path) = read("tls.key")?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| malformed(&path, &error))?;
        let key = match &key {
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()),
            _ => return Err(malformed(&path, &"its algorithm is another one")),
        }
        .map_err(|error| malformed(&path, &error))?;
        let (certificate, path) = read("tls.crt")?;
        let certificate =
            CertificateDer::from_pem_slice(&certificate).map_err(|error| malformed(&path, &error))?;
        Ok(Self {
            inner: Arc::new(Inner {
                key,
                certificate: STANDARD.encode(certificate.as_ref()),
                service: service.to_owned(),
                issuer: issuer.to_owned(),
                random: SystemRandom::new(),
            }),
        })
    }

    /// A token for the operator itself, which reads records and writes indexes anywhere in staging.
    pub fn own(&self, repository: &str, now: Timestamp) -> Option<String> {
        self.sign(
            "operator",
            &[Grant::new(repository.to_owned(), &["pull", "push"])],
            now,
        )
    }

    fn sign(&self, subject: &str, grants: &[Grant], now: Timestamp) -> Option<String> {
        let inner = &self.inner;
        let seconds = now.as_second();
        let life = i64::try_from(LIFE.as_secs()).unwrap_or(60);
        let skew = i64::try_from(SKEW.as_secs()).unwrap_or(0);
        let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [inner.certificate] });
        let claims = json!({
            "iss": inner.issuer, "sub": subject, "aud": inner.service,
            "nbf": seconds - skew, "iat": seconds, "exp": seconds + life, "access": grants,
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let mut signature = vec![0; inner.key.public().modulus_len()];
        inner
            .key
            .sign(
                &RSA_PKCS1_SHA256,
                &inner.random,
                signed.as_bytes(),
                &mut signature,
            )
            .ok()?;
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// Answers the registry's clients.
#[derive(Clone)]
pub struct TokenIssuer {
    signer: TokenSigner,
    callers: Arc<Callers>,
    prefix: String,
}

impl TokenIssuer {
    /// Issues tokens for repositories below `prefix`.
    pub fn new(signer: TokenSigner, callers: Arc<Callers>, prefix: &str) -> Self {
        Self {
            signer,
            callers,
            prefix: prefix.to_owned(),
        }
    }

    /// `GET /token?service=…&scope=…`, with the pod's token as the password of any user.
    pub fn routes(&self) -> Router {
        Router::new().route("/token", get(issue)).with_state(self.clone())
    }
}

#[derive(Deserialize)]
struct Asked {
    service: Option<String>,
}

#[derive(Serialize)]
struct Answer {
    token: String,
    expires_in: u64,
    issued_at: String,
}

async fn issue(
    State(issuer): State<TokenIssuer>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Result<Json<Answer>, Refusal> {
    if asked.service.as_deref() != Some(issuer.signer.inner.service.as_str()) {
        return Err((
            StatusCode::BAD_REQUEST,
            "this issues tokens for Slipway's staging only\n".into(),
        ));
    }
    let shown = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(password);
    let pod = issuer.callers.pod(shown.as_deref()).await?;
    let namespace = pod.namespace().unwrap_or_default();
    let role = pod.labels().get(ROLE_LABEL).map_or("", String::as_str);
    // What is asked for does not matter: a pod gets what it may have, and the registry sees whether that is enough.
    let grants = grants(&issuer.prefix, &namespace, role);
    let now = Timestamp::now();
    let token = issuer
        .signer
        .sign(&format!("{namespace}/{}", pod.name_any()), &grants, now)
        .ok_or((
            StatusCode::INTERNAL_SERVER_ERROR,
            "the token cannot be signed\n".to_owned(),
        ))?;
    Ok(Json(Answer {
        token,
        expires_in: LIFE.as_secs(),
        issued_at: now.to_string(),
    }))
}

/// What a pod of this role may do in staging.
fn grants(prefix: &str, namespace: &str, role: &str) -> Vec<Grant> {
    let actions: &[&'static str] = match role {
        "build" => &["pull", "push"],
        "push" => &["pull"],
        _ => return Vec::new(),
    };
    vec![Grant::new(format!("{prefix}/{namespace}"), actions)]
}

/// The password of `Basic …`.
fn password(header: &str) -> Option<String> {
    let pair = STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
    let pair = String::from_utf8(pair).ok()?;
    pair.split_once(':').map(|(_, password)| password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_gets_its_own_namespace_and_what_its_role_needs() {
        let own = |actions| vec![Grant::new("slipway/team".into(), actions)];
        assert_eq!(grants("slipway", "team", "build"), own(&["pull", "push"]));
        assert_eq!(grants("slipway", "team", "push"), own(&["pull"]));
        assert_eq!(grants("slipway", "team", ""), vec![]);
    }

    #[test]
    fn the_password_of_any_user_is_the_token() {
        assert_eq!(
            password(&format!("Basic {}", STANDARD.encode("pod:a.b.c"))).as_deref(),
            Some("a.b.c")
        );
        assert_eq!(password("Bearer a.b.c"), None);
        assert_eq!(password("Basic !"), None);
    }
}
