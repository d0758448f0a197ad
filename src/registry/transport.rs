//! One request to a registry: credentials, redirects, repeats.
//!
//! Where connections lead is `network`'s, what comes back `answer`'s.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{AUTHORIZATION, CONTENT_LENGTH},
};
use reqwest::{Response, Url};
use tokio::time::{sleep, timeout};

use super::{
    addresses::denial,
    answer::{Answer, location},
    auth::{self, Challenge, TokenKey, Tokens},
    client::Repository,
    credentials::Credentials,
    error::{Place, RegistryError, is_passing},
    network::{Network, RouteError},
    token_server::TokenRequest,
};

/// More redirects than any registry needs.
const REDIRECTS: u32 = 5;

/// Whom we are, and what follows from it.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) credentials: Credentials,
    pub(super) tokens: Tokens,
}

/// What is sent.
pub(super) enum Body {
    Empty,
    Whole(Bytes),
    /// Can be sent once; `progress` grows while it is.
    Once {
        stream: Mutex<Option<reqwest::Body>>,
        progress: Arc<AtomicU64>,
    },
}

/// One request.
pub(super) struct Call<'a> {
    pub(super) repository: &'a Repository,
    /// The registry's own URL; its origin is the one that gets credentials.
    pub(super) home: Url,
    pub(super) at: Place,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    /// Whether the same request may be sent again when nothing is known of the first: not where the answer
    /// that was lost may have moved an upload on.
    pub(super) repeats: bool,
}

impl Call<'_> {
    pub(super) fn header(mut self, name: http::HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.append(name, value);
        }
        self
    }

    pub(super) fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    pub(super) fn unrepeated(mut self) -> Self {
        self.repeats = false;
        self
    }

    /// Whether the body is still there after it was sent.
    fn can_resend(&self) -> bool {
        !matches!(self.body, Body::Once { .. })
    }

    fn unreachable(&self, problem: String) -> RegistryError {
        RegistryError::Unreachable {
            at: self.at.clone(),
            problem,
        }
    }

    fn untrusted(&self, problem: String) -> RegistryError {
        RegistryError::Untrusted {
            at: self.at.clone(),
            problem,
        }
    }

    /// Sends, again where that may help, and returns any answer that does not say "later".
    ///
    /// # Errors
    /// When there is no answer, when it says "later" to the end, and when it leads astray.
    pub(super) async fn send(self) -> Result<Answer, RegistryError> {
        let network = Arc::clone(&self.repository.client.network);
        let backoff = network.options.backoff;
        let mut failures = 0;
        loop {
            self.wait_for_turn(&network).await?;
            // On the heap, as every future of a push holds one of these.
            let error = match Box::pin(self.follow(&network)).await {
                Ok(answer) if is_passing(answer.status()) => {
                    let error = answer.refused().await;
                    if let Some(time) = error.retry_after() {
                        network.pace.rest(&self.at.origin, time);
                    }
                    error
                }
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            failures += 1;
            let patient = error.retry_after().is_none_or(|time| time <= backoff.patience);
            if !(error.is_passing()
                && self.repeats
                && self.can_resend()
                && patient
                && failures < backoff.attempts)
            {
                return Err(error);
            }
            tracing::debug!(%error, failures, "the request is repeated");
            if error.retry_after().is_none() {
                sleep(backoff.delay(failures)).await;
            }
        }
    }

    /// Leaves a registry alone that asked for it.
    async fn wait_for_turn(&self, network: &Network) -> Result<(), RegistryError> {
        self.let_rest(network).await?;
        let whole = match &self.body {
            Body::Whole(bytes) => bytes.len(),
            // What is sent as it is read waits on its way.
            Body::Empty | Body::Once { .. } => 0,
        };
        network.pace.request(&self.at.origin, whole).await;
        // Another request may have been told meanwhile.
        self.let_rest(network).await
    }

    async fn let_rest(&self, network: &Network) -> Result<(), RegistryError> {
        while let Some(remaining) = network.pace.remaining(&self.at.origin) {
            if remaining > network.options.backoff.patience {
                return Err(RegistryError::Resting {
                    at: self.at.clone(),
                    retry_after: remaining,
                });
            }
            sleep(remaining).await;
        }
        Ok(())
    }

    /// Sends and follows redirects: with credentials on the registry's own origin only, without a body
    /// nowhere else, never from https to http.
    async fn follow(&self, network: &Network) -> Result<Answer, RegistryError> {
        let mut url = self.url.clone();
        for _ in 0..=REDIRECTS {
            let own = url.origin() == self.home.origin();
            let response = if own {
                self.authorized(network, &url).await?
            } else {
                self.once(network, &url, None).await?
            };
            let redirected = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !redirected {
                return Ok(Answer {
                    response,
                    at: self.at.clone(),
                    url,
                    idle: network.options.timeouts.idle,
                });
            }
            let next = location(&url, response.headers()).map_err(|problem| self.untrusted(problem))?;
            let reads = matches!(self.method, Method::GET | Method::HEAD);
            if next.origin() != url.origin() && !reads {
                return Err(self.untrusted(format!(
                    "the registry redirects what is written there to {}",
                    next.origin().ascii_serialization()
                )));
            }
            if next.scheme() == "http" && url.scheme() == "https" {
                return Err(self.untrusted("the registry redirects from https to http".to_owned()));
            }
            if !self.can_resend() {
                return Err(self.unreachable("redirected after the content was sent".to_owned()));
            }
            url = next;
        }
        Err(self.untrusted(format!("more than {REDIRECTS} redirects")))
    }

    /// Sends with whatever the registry is known to want, and once more when it turns out to want more.
    async fn authorized(&self, network: &Network, url: &Url) -> Result<Response, RegistryError> {
        let tokens = &self.repository.client.identity.tokens;
        let origin = &self.at.origin;
        let known = match tokens.challenge(origin) {
            Some(challenge) => self.answer_challenge(network, &challenge, None).await?,
            None => None,
        };
        let response = self.once(network, url, known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenge = auth::choose_challenge(response.headers(), &self.home)
            .map_err(|problem| self.untrusted(problem))?;
        let Some(challenge) = challenge else {
            return Ok(response);
        };
        tokens.learn(origin, challenge.clone());
        let renewed = self.answer_challenge(network, &challenge, known.as_ref()).await?;
        if renewed.is_none() || renewed == known || !self.can_resend() {
            return Ok(response);
        }
        drop(response);
        let response = self.once(network, url, renewed.as_ref()).await?;
        let several = self.repository.scopes.len() > 1;
        if response.status() != StatusCode::UNAUTHORIZED || !several || !tokens.narrow(origin) {
            return Ok(response);
        }
        // A token server that grants only the last of the scopes that it is asked for.
        drop(response);
        let narrowed = self
            .answer_challenge(network, &challenge, renewed.as_ref())
            .await?;
        self.once(network, url, narrowed.as_ref()).await
    }

    /// The `Authorization` that answers a challenge; `refused` is one that did not.
    async fn answer_challenge(
        &self,
        network: &Network,
        challenge: &Challenge,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let identity = &self.repository.client.identity;
        let (registry, name) = (&self.repository.registry, &self.repository.name);
        let exchanged = match identity.credentials.cloud(registry, name) {
            Some(cloud) => Some(Box::pin(cloud.login(network, &self.home)).await?),
            None => None,
        };
        let login = exchanged
            .as_ref()
            .or_else(|| identity.credentials.for_repository(registry, name));
        let Challenge::Bearer {
            realm,
            service,
            trusted,
        } = challenge
        else {
            return Ok(login.filter(|login| login.realm.is_none()).and_then(auth::basic));
        };
        if let Some(token) = login.and_then(auth::access_token) {
            return Ok(Some(token));
        }
        let login = login.filter(|login| match &login.realm {
            Some(told) => told == realm,
            None => *trusted,
        });
        let all = &self.repository.scopes;
        let scopes: Arc<[String]> = if identity.tokens.is_narrow(&self.at.origin) {
            all.iter().take(1).cloned().collect()
        } else {
            Arc::clone(all)
        };
        let slot = identity.tokens.slot(TokenKey {
            realm: realm.to_string(),
            service: service.clone(),
            login: login.map(|login| login.id),
            scopes: Arc::clone(&scopes),
        });
        let mut slot = slot.lock().await;
        if let Some(header) = auth::usable(slot.as_ref(), refused) {
            return Ok(Some(header));
        }
        let request = TokenRequest {
            call: self,
            network,
            realm,
            service: service.as_deref(),
            scopes: &scopes,
            login,
        };
        let token = request.fetch().await?;
        let header = token.header();
        *slot = Some(token);
        Ok(header)
    }

    /// One exchange and nothing else.
    async fn once(
        &self,
        network: &Network,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let mut request = network
            .http(url, &self.home)
            .map_err(|error| self.no_route(error))?
            .request(self.method.clone(), url.clone())
            .headers(self.headers.clone());
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let mut progress = None;
        request = match &self.body {
            // Registries and proxies exist that answer 411 to a write without a length.
            Body::Empty if matches!(self.method, Method::POST | Method::PUT | Method::PATCH) => {
                request.header(CONTENT_LENGTH, 0)
            }
            Body::Empty => request,
            Body::Whole(bytes) => request.header(CONTENT_LENGTH, bytes.len()).body(bytes.clone()),
            Body::Once {
                stream,
                progress: sent,
            } => {
                let body = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
                progress = Some(sent);
                request.body(body.ok_or_else(|| self.unreachable("the content was sent already".to_owned()))?)
            }
        };
        let response = moving(
            request.send(),
            progress.map(AsRef::as_ref),
            network.options.timeouts.idle,
        )
        .await
        .ok_or_else(|| self.unreachable(stalled(network.options.timeouts.idle)))?
        .map_err(|error| self.lost(&error.without_url()))?;
        if url.origin() == self.home.origin() {
            network.learn_reach(&self.home, response.remote_addr());
        }
        Ok(response)
    }

    /// A connection that did not come about or broke.
    pub(super) fn lost(&self, error: &reqwest::Error) -> RegistryError {
        match denial(error) {
            Some(denied) => self.untrusted(denied.to_string()),
            None => match self.repository.client.network.proxy_of(&self.home) {
                Some(proxy) if error.is_connect() => {
                    self.unreachable(format!("through the proxy {proxy}: {}", chain(error)))
                }
                _ => self.unreachable(chain(error)),
            },
        }
    }

    pub(super) fn no_route(&self, error: RouteError) -> RegistryError {
        match error {
            RouteError::Setup(error) => error,
            RouteError::Denied(denied) => self.untrusted(denied.to_string()),
        }
    }
}

/// Waits for an exchange as long as it moves: an upload may take hours, but not one idle minute.
pub(super) async fn moving<F: Future>(
    exchange: F,
    progress: Option<&AtomicU64>,
    idle: Duration,
) -> Option<F::Output> {
    let mut exchange = std::pin::pin!(exchange);
    let mut seen = 0;
    loop {
        if let Ok(output) = timeout(idle, &mut exchange).await {
            return Some(output);
        }
        let now = progress.map_or(0, |progress| progress.load(Ordering::Relaxed));
        if now == seen {
            return None;
        }
        seen = now;
    }
}

pub(super) fn stalled(idle: Duration) -> String {
    format!("nothing moved for {} s", idle.as_secs())
}

/// An error and its causes; reqwest's own text stops at "error sending request".
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    super::error::clean(&text, 1024)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn an_exchange_that_moves_may_take_hours() {
        let sent = AtomicU64::new(0);
        let upload = async {
            for _ in 0..200 {
                sleep(IDLE / 2).await;
                sent.fetch_add(1, Ordering::Relaxed);
            }
        };
        assert!(moving(upload, Some(&sent), IDLE).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_that_does_not_move_ends() {
        let sent = AtomicU64::new(0);
        let started = Instant::now();
        assert!(
            moving(std::future::pending::<()>(), Some(&sent), IDLE)
                .await
                .is_none()
        );
        assert_eq!(started.elapsed(), IDLE);
    }
}
