//! One request to a registry: credentials, redirects, repeats, and the bounds on what comes back.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION},
};
use jiff::Timestamp;
use reqwest::{Response, Url};
use tokio::time::{Instant, sleep, timeout};

use super::{
    addresses::{Denied, Reach, Reached, Resolver, denial},
    auth::{self, Challenge, Token, TokenKey, Tokens},
    client::{ClientOptions, Repository},
    credentials::{Credentials, Login, Proof},
    error::{Operation, Place, Refusal, RegistryError, is_passing},
    pace::{Pace, retry_after},
    turns::Turns,
    upload::Learned,
};

/// More redirects than any registry needs.
const REDIRECTS: u32 = 5;
/// A token server's answer; Azure's are the longest seen, some KiB.
const TOKEN_LIMIT: u64 = 1 << 20;
/// The part of a refusal's body that is looked at.
const REFUSAL_LIMIT: u64 = 16 << 10;

/// The connections and the pace that all identities share.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) options: ClientOptions,
    /// For registries where they were said to be.
    common: Route,
    /// For where registries send the client, by how near that may be; built when the first one does.
    foreign: [OnceLock<Route>; 3],
    /// For hosts with roots of their own.
    special: HashMap<String, reqwest::Client>,
    reached: Reached,
    pace: Pace,
    pub(super) turns: Turns,
    pub(super) learned: Learned,
}

/// Whom we are, and what follows from it.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) credentials: Credentials,
    pub(super) tokens: Tokens,
}

impl Network {
    pub(super) fn new(options: ClientOptions) -> Result<Self, RegistryError> {
        let mut roots: BTreeMap<&str, Vec<reqwest::Certificate>> = BTreeMap::new();
        for (host, pem) in &options.extra_roots {
            let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(|error| {
                RegistryError::Setup(format!("the CA certificates of {host}: {}", chain(&error)))
            })?;
            roots.entry(host).or_default().extend(certificates);
        }
        let special = roots
            .into_iter()
            .map(|(host, roots)| {
                // Who has certificates for a host has said where it is.
                let resolver = Resolver::new(Reach::Link, &options.plain_http);
                Ok((host.to_owned(), http_client(&options, roots, resolver)?))
            })
            .collect::<Result<_, RegistryError>>()?;
        Ok(Self {
            common: Route::new(&options, Reach::Loopback)?,
            foreign: Default::default(),
            special,
            options,
            reached: Reached::default(),
            pace: Pace::default(),
            turns: Turns::default(),
            learned: Learned::default(),
        })
    }

    /// The connections for a URL that concerns a registry, if it may lead there.
    fn http(&self, url: &Url, home: &Url) -> Result<&reqwest::Client, RouteError> {
        if let Some(special) = self.special.get(&host_and_port(url)) {
            return Ok(special);
        }
        let route = if url.origin() == home.origin() {
            &self.common
        } else {
            let nearest = self.reached.of(&home.origin().ascii_serialization());
            let nearest = nearest.min(Reach::Loopback);
            let slot = &self.foreign[nearest as usize];
            match slot.get() {
                Some(route) => route,
                None => {
                    let route = Route::new(&self.options, nearest).map_err(RouteError::Setup)?;
                    slot.get_or_init(|| route)
                }
            }
        };
        route.resolver.check_literal(url).map_err(RouteError::Denied)?;
        Ok(&route.client)
    }
}

/// Why there is no way to a URL.
enum RouteError {
    Setup(RegistryError),
    Denied(Denied),
}

/// Connections that lead no nearer than allowed.
#[derive(Debug)]
struct Route {
    client: reqwest::Client,
    resolver: Resolver,
}

impl Route {
    fn new(options: &ClientOptions, nearest: Reach) -> Result<Self, RegistryError> {
        let resolver = Resolver::new(nearest, &options.plain_http);
        Ok(Self {
            client: http_client(options, Vec::new(), resolver.clone())?,
            resolver,
        })
    }
}

/// One connection pool. The rule on addresses is its resolver, because only the address that is connected to
/// says where a name leads.
fn http_client(
    options: &ClientOptions,
    roots: Vec<reqwest::Certificate>,
    resolver: Resolver,
) -> Result<reqwest::Client, RegistryError> {
    let resolver = Arc::new(resolver);
    let builder = || {
        reqwest::Client::builder()
            .user_agent(concat!("slipway/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(options.timeouts.connect)
            .dns_resolver(Arc::clone(&resolver))
            .pool_max_idle_per_host(32)
    };
    let system = builder().tls_certs_merge(roots.clone()).build();
    // An image without /etc/ssl/certs has no roots at all: then only the given ones count, and with none of
    // them plain http still works and every TLS connection fails by itself.
    system
        .or_else(|error| {
            tracing::debug!(error = chain(&error), "no system certificates");
            builder().tls_certs_only(roots).build()
        })
        .map_err(|error| RegistryError::Setup(chain(&error)))
}

fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
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
        let login = identity
            .credentials
            .for_repository(&self.repository.registry, &self.repository.name);
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
            network.reached.learn(&self.at.origin, response.remote_addr());
        }
        Ok(response)
    }

    /// A connection that did not come about or broke.
    fn lost(&self, error: &reqwest::Error) -> RegistryError {
        match denial(error) {
            Some(denied) => self.untrusted(denied.to_string()),
            None => self.unreachable(chain(error)),
        }
    }

    fn no_route(&self, error: RouteError) -> RegistryError {
        match error {
            RouteError::Setup(error) => error,
            RouteError::Denied(denied) => self.untrusted(denied.to_string()),
        }
    }
}

/// Waits for an exchange as long as it moves: an upload may take hours, but not one idle minute.
async fn moving<F: Future>(exchange: F, progress: Option<&AtomicU64>, idle: Duration) -> Option<F::Output> {
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

fn stalled(idle: Duration) -> String {
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

/// A `Location`, resolved against the URL that answered.
///
/// # Errors
/// A text that says why it is refused.
pub(super) fn location(base: &Url, headers: &HeaderMap) -> Result<Url, String> {
    let text = headers
        .get(LOCATION)
        .ok_or("the answer has no Location")?
        .to_str()
        .map_err(|_| "the answer's Location is no text")?;
    let url = base.join(text).map_err(|_| {
        format!(
            "the answer's Location {:?} is no URL",
            super::error::clean(text, 200)
        )
    })?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("the answer's Location has the scheme {:?}", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the answer's Location has user information".to_owned());
    }
    Ok(url)
}

/// An answer, its body not yet read.
#[derive(Debug)]
pub(super) struct Answer {
    response: Response,
    pub(super) at: Place,
    /// The URL that answered, after redirects.
    pub(super) url: Url,
    idle: Duration,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(super) fn text(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// The length that the header says; of a HEAD's answer the only one there is.
    pub(super) fn length(&self) -> Option<u64> {
        self.text(CONTENT_LENGTH)?.trim().parse().ok()
    }

    pub(super) fn protocol(&self, problem: impl Into<String>) -> RegistryError {
        RegistryError::Protocol {
            at: self.at.clone(),
            problem: problem.into(),
        }
    }

    /// The next part of the body.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let unreachable = |at: &Place, problem| RegistryError::Unreachable {
            at: at.clone(),
            problem,
        };
        match timeout(self.idle, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(unreachable(&self.at, chain(&error.without_url()))),
            Err(_) => Err(unreachable(&self.at, stalled(self.idle))),
        }
    }

    /// The whole body.
    pub(super) async fn bytes(mut self, limit: u64) -> Result<Bytes, RegistryError> {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(RegistryError::TooLarge { at: self.at, limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// The answer as the error that it is.
    pub(super) async fn refused(mut self) -> RegistryError {
        let mut body = BytesMut::new();
        while let Ok(Some(chunk)) = self.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > REFUSAL_LIMIT {
                break;
            }
        }
        let retry_after = retry_after(self.headers(), Timestamp::now());
        RegistryError::Answered {
            refusal: Box::new(Refusal::read(self.status(), retry_after, &body)),
            at: self.at,
        }
    }
}

/// One visit to a token server.
struct TokenRequest<'a> {
    call: &'a Call<'a>,
    network: &'a Network,
    realm: &'a Url,
    service: Option<&'a str>,
    scopes: &'a [String],
    login: Option<&'a Login>,
}

impl TokenRequest<'_> {
    /// A token for all scopes, or for the first alone where the server grants no other: what needs the
    /// others, a mount, has another way.
    async fn fetch(&self) -> Result<Token, RegistryError> {
        match self.fetch_scopes(self.scopes).await {
            Err(RegistryError::Answered { refusal, .. })
                if self.scopes.len() > 1
                    && refusal.status.is_client_error()
                    && !is_passing(refusal.status) =>
            {
                self.fetch_scopes(&self.scopes[..1]).await
            }
            result => result,
        }
    }

    async fn fetch_scopes(&self, scopes: &[String]) -> Result<Token, RegistryError> {
        let backoff = self.network.options.backoff;
        let mut failures = 0;
        loop {
            let result = self.ask(scopes).await;
            failures += 1;
            match result {
                Err(error)
                    if error.is_passing() && failures < backoff.attempts && error.retry_after().is_none() =>
                {
                    sleep(backoff.delay(failures)).await;
                }
                result => return result,
            }
        }
    }

    async fn ask(&self, scopes: &[String]) -> Result<Token, RegistryError> {
        if let Some(Proof::IdentityToken(token)) = self.login.map(|login| &login.proof) {
            let mut form = vec![
                ("grant_type", "refresh_token".to_owned()),
                ("client_id", "slipway".to_owned()),
                ("scope", scopes.join(" ")),
                ("refresh_token", token.reveal().to_owned()),
            ];
            form.extend(self.service.map(|service| ("service", service.to_owned())));
            let http = self.http(self.realm)?;
            match self.exchange(http.post(self.realm.clone()).form(&form)).await {
                // A token server of before OAuth 2; the refresh token is a password to it.
                Err(error)
                    if matches!(
                        error.status(),
                        Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)
                    ) => {}
                result => return result,
            }
        }
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = self.service {
                query.append_pair("service", service);
            }
            for scope in scopes {
                query.append_pair("scope", scope);
            }
        }
        let mut request = self.http(&url)?.get(url);
        if let Some(header) = self.login.and_then(auth::basic_or_token) {
            request = request.header(AUTHORIZATION, header);
        }
        self.exchange(request).await
    }

    fn http(&self, url: &Url) -> Result<&reqwest::Client, RegistryError> {
        let route = self.network.http(url, &self.call.home);
        route.map_err(|error| self.call.no_route(error))
    }

    async fn exchange(&self, request: reqwest::RequestBuilder) -> Result<Token, RegistryError> {
        let at = Place {
            origin: self.realm.origin().ascii_serialization(),
            operation: Operation::GetToken,
            subject: self.call.repository.name.clone(),
        };
        let idle = self.network.options.timeouts.idle;
        let unreachable = |problem| RegistryError::Unreachable {
            at: at.clone(),
            problem,
        };
        let response = moving(request.send(), None, idle)
            .await
            .ok_or_else(|| unreachable(stalled(idle)))?
            .map_err(|error| self.call.lost(&error.without_url()))?;
        let answer = Answer {
            response,
            at: at.clone(),
            url: self.realm.clone(),
            idle,
        };
        if answer.status() != StatusCode::OK {
            return Err(answer.refused().await);
        }
        let body = answer.bytes(TOKEN_LIMIT).await?;
        Token::read(&body, Instant::now()).ok_or_else(|| RegistryError::Protocol {
            at,
            problem: "the token server's answer has no token".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

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

    #[rstest]
    #[case::absolute("https://r.io/v2/x?a=%2F", Some("https://r.io/v2/x?a=%2F"))]
    #[case::path("/v2/x?_state=a%3Db", Some("https://r.io/v2/x?_state=a%3Db"))]
    #[case::relative("y", Some("https://r.io/v2/a/y"))]
    #[case::query("?y", Some("https://r.io/v2/a/?y"))]
    #[case::other_host("//other.io/y", Some("https://other.io/y"))]
    #[case::script("javascript:alert(1)", None)]
    #[case::file("file:///etc/passwd", None)]
    #[case::user_information("https://u:p@r.io/", None)]
    fn a_location_is_resolved_or_refused(#[case] text: &str, #[case] expected: Option<&str>) {
        let headers = HeaderMap::from_iter([(LOCATION, text.parse().unwrap())]);
        let base = "https://r.io/v2/a/".parse().unwrap();
        assert_eq!(location(&base, &headers).ok().as_ref().map(Url::as_str), expected);
    }
}
