//! Connections: one pool for where registries were said to be, others for where registries send the client.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

use super::{
    addresses::{Denied, Reach, Reached, Resolver},
    client::ClientOptions,
    credentials::Secret,
    error::RegistryError,
    pace::Pace,
    reference::normal_origin,
    transport::chain,
    turns::Turns,
    upload::Learned,
};

/// Connections that are kept for the next request: as many as a push has requests at a time, for its source and
/// its target.
const IDLE_CONNECTIONS: usize = 64;

/// The connections and the pace that all identities share.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) options: ClientOptions,
    /// For registries where they were said to be.
    common: Route,
    /// For where registries send the client; built when the first one does.
    foreign: Mutex<HashMap<Way, Arc<Route>>>,
    /// For what neither a registry nor a stranger names, such as a node's own token service.
    told: OnceLock<Route>,
    /// For registries with roots, a certificate or a proxy of their own, by their one spelling.
    special: HashMap<String, (Special, reqwest::Client)>,
    /// The environment's.
    proxies: Proxies,
    pub(super) reached: Reached,
    pub(super) pace: Pace,
    pub(super) turns: Turns,
    pub(super) learned: Learned,
}

impl Network {
    pub(super) fn new(options: ClientOptions) -> Result<Self, RegistryError> {
        Ok(Self {
            special: special_clients(&options)?,
            common: Route::new(&options, Reach::Loopback, Special::default())?,
            foreign: Mutex::default(),
            told: OnceLock::new(),
            proxies: Proxies(Matcher::from_env()),
            pace: Pace::new(&options.budgets),
            options,
            reached: Reached::default(),
            turns: Turns::default(),
            learned: Learned::default(),
        })
    }

    /// The connections for a URL that concerns a registry, if it may lead there.
    pub(super) fn http(&self, url: &Url, home: &Url) -> Result<reqwest::Client, RouteError> {
        let is_own = url.origin() == home.origin();
        if is_own && let Some((_, client)) = self.special.get(&origin_of(home)) {
            return Ok(client.clone());
        }
        let foreign;
        let route = if is_own {
            &self.common
        } else {
            foreign = self.foreign_route(url, home).map_err(RouteError::Setup)?;
            &*foreign
        };
        route.resolver.check_literal(url).map_err(RouteError::Denied)?;
        let client = route.client(url, self.proxies.intercept(url), &self.options);
        client.cloned().map_err(RouteError::Setup)
    }

    /// The connections to where a registry sends the client: with the roots that were given for that place, through
    /// the registry's proxy or else that place's, and with nobody's certificate.
    fn foreign_route(&self, url: &Url, home: &Url) -> Result<Arc<Route>, RegistryError> {
        let (there, here) = (origin_of(url), origin_of(home));
        let roots = self.special.get(&there).map(|(special, _)| &special.roots);
        let proxied = |origin: String| {
            let proxy = self.special.get(&origin)?.0.proxy.as_ref()?;
            Some((origin, proxy.clone()))
        };
        let (proxy_of, proxy) = proxied(here).or_else(|| proxied(there.clone())).unzip();
        let nearest = match &proxy {
            // Behind a proxy that was given, where a name leads is the proxy's to decide.
            Some(_) => Reach::Public,
            None => {
                let nearest = self.reached.of(&home.origin().ascii_serialization());
                nearest.min(Reach::Loopback)
            }
        };
        let way = Way {
            nearest,
            roots_of: roots.filter(|roots| !roots.is_empty()).map(|_| there),
            proxy_of,
        };
        let mut foreign = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(route) = foreign.get(&way) {
            return Ok(Arc::clone(route));
        }
        let special = Special {
            roots: roots.cloned().unwrap_or_default(),
            identity: None,
            proxy,
        };
        let route = Arc::new(Route::new(&self.options, nearest, special)?);
        foreign.insert(way, Arc::clone(&route));
        Ok(route)
    }

    /// The connections to an endpoint that this machine's owner named; it may be anywhere.
    pub(super) fn endpoint(&self, url: &Url) -> Result<&reqwest::Client, RegistryError> {
        let route = match self.told.get() {
            Some(route) => route,
            None => {
                let route = Route::new(&self.options, Reach::Link, Special::default())?;
                self.told.get_or_init(|| route)
            }
        };
        route.client(url, self.proxies.intercept(url), &self.options)
    }

    /// Remembers how near a registry is. Behind a proxy nobody knows: the address is the proxy's.
    pub(super) fn learn_reach(&self, home: &Url, address: Option<std::net::SocketAddr>) {
        if self.proxy_of(home).is_none() {
            self.reached.learn(&home.origin().ascii_serialization(), address);
        }
    }

    /// The proxy on the way to a registry, for messages: without a password that it may be given with.
    pub(super) fn proxy_of(&self, home: &Url) -> Option<String> {
        match self.special.get(&origin_of(home)) {
            Some((
                Special {
                    proxy: Some(proxy), ..
                },
                _,
            )) => Some(origin_of(&proxy.url)),
            _ => self.proxies.of(home),
        }
    }
}

/// Why there is no way to a URL.
pub(super) enum RouteError {
    Setup(RegistryError),
    Denied(Denied),
}

/// The environment's proxies, as the HTTP client reads them.
struct Proxies(Matcher);

impl Proxies {
    fn intercept(&self, url: &Url) -> bool {
        self.of(url).is_some()
    }

    fn of(&self, url: &Url) -> Option<String> {
        let proxy = self.0.intercept(&url.as_str().parse().ok()?)?;
        let uri = proxy.uri();
        let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
        Some(uri.host().unwrap_or_default().to_owned() + &port)
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A proxy's URL may hold a password.
        f.write_str("Proxies")
    }
}

/// A proxy that was given for one registry.
#[derive(Clone, Debug)]
struct Proxy {
    url: Url,
    rule: reqwest::Proxy,
}

impl Proxy {
    fn new(host: &str, text: &str) -> Result<Self, RegistryError> {
        let setup = |problem: String| RegistryError::Setup(format!("the proxy for {host}: {problem}"));
        let url = Url::parse(text).map_err(|error| setup(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(setup(format!("{text:?} is not http:// or https:// and a host")));
        }
        let rule = reqwest::Proxy::all(url.clone()).map_err(|error| setup(chain(&error)))?;
        Ok(Self { url, rule })
    }
}

/// How a place is reached that a registry names.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Way {
    nearest: Reach,
    roots_of: Option<String>,
    proxy_of: Option<String>,
}

/// Connections that lead no nearer than allowed.
#[derive(Debug)]
struct Route {
    resolver: Resolver,
    special: Special,
    /// For plain http, which needs no roots.
    plain: reqwest::Client,
    /// Built when the first TLS connection is needed: the system's roots take longer to read than a small image
    /// takes to copy.
    tls: OnceLock<reqwest::Client>,
}

impl Route {
    fn new(options: &ClientOptions, nearest: Reach, special: Special) -> Result<Self, RegistryError> {
        let resolver = Resolver::new(nearest, &options.plain_http);
        Ok(Self {
            plain: http_client(options, resolver.clone(), None)
                .tls_certs_only([])
                .build()
                .map_err(setup)?,
            tls: OnceLock::new(),
            resolver,
            special,
        })
    }

    fn client(
        &self,
        url: &Url,
        proxied: bool,
        options: &ClientOptions,
    ) -> Result<&reqwest::Client, RegistryError> {
        // A proxy may want TLS itself.
        if url.scheme() == "http" && !proxied && self.special.proxy.is_none() {
            return Ok(&self.plain);
        }
        if let Some(client) = self.tls.get() {
            return Ok(client);
        }
        // A proxy that was given may be anywhere.
        let resolver = match &self.special.proxy {
            Some(_) => &Resolver::new(Reach::Link, &options.plain_http),
            None => &self.resolver,
        };
        let client = tls_client(options, resolver, &self.special)?;
        Ok(self.tls.get_or_init(|| client))
    }
}

/// What was given for one registry.
#[derive(Clone, Debug, Default)]
struct Special {
    roots: Vec<reqwest::Certificate>,
    identity: Option<reqwest::Identity>,
    proxy: Option<Proxy>,
}

fn special_clients(
    options: &ClientOptions,
) -> Result<HashMap<String, (Special, reqwest::Client)>, RegistryError> {
    let mut by_host: BTreeMap<String, Special> = BTreeMap::new();
    for (host, pem) in &options.extra_roots {
        let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(|error| {
            RegistryError::Setup(format!("the CA certificates of {host}: {}", chain(&error)))
        })?;
        let special = by_host.entry(normal_origin(host)).or_default();
        special.roots.extend(certificates);
    }
    for (host, pem) in &options.client_certificates {
        by_host.entry(normal_origin(host)).or_default().identity = Some(identity(host, pem)?);
    }
    for (host, proxy) in &options.proxies {
        by_host.entry(normal_origin(host)).or_default().proxy = Some(Proxy::new(host, proxy)?);
    }
    by_host
        .into_iter()
        .map(|(host, special)| {
            let tls_proxy = special.proxy.as_ref().is_some_and(|proxy| proxy.url.scheme() == "https");
            if tls_proxy && special.identity.is_some() {
                // The HTTP client would show it to the proxy as well.
                return Err(RegistryError::Setup(format!(
                    "the proxy for {host} speaks https, and would be shown the client certificate for {host}; use http"
                )));
            }
            // Who has certificates or a proxy for a host has said where it is.
            let resolver = Resolver::new(Reach::Link, &options.plain_http);
            let client = tls_client(options, &resolver, &special)?;
            Ok((host, (special, client)))
        })
        .collect()
}

/// Whether a client's certificate can be used.
///
/// # Errors
/// When it is not PEM with a certificate and its private key.
pub fn check_client_certificate(host: &str, pem: &Secret) -> Result<(), RegistryError> {
    identity(host, pem).map(drop)
}

/// The parser's words are left out, as they may quote the key.
fn identity(host: &str, pem: &Secret) -> Result<reqwest::Identity, RegistryError> {
    reqwest::Identity::from_pem(pem.reveal().as_bytes()).map_err(|_| {
        RegistryError::Setup(format!(
            "the client certificate for {host} is not PEM with a certificate and its private key, unencrypted"
        ))
    })
}

/// One connection pool, with the environment's proxies where no other was given. The rule on addresses is its resolver, because only the address that is connected to
/// says where a name leads.
fn http_client(options: &ClientOptions, resolver: Resolver, proxy: Option<&Proxy>) -> reqwest::ClientBuilder {
    let builder = match proxy {
        Some(proxy) => reqwest::Client::builder().proxy(proxy.rule.clone()),
        None => reqwest::Client::builder(),
    };
    builder
        .user_agent(concat!("slipway/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(options.timeouts.connect)
        .dns_resolver(Arc::new(resolver))
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
}

/// The same with the system's roots and what is special.
fn tls_client(
    options: &ClientOptions,
    resolver: &Resolver,
    special: &Special,
) -> Result<reqwest::Client, RegistryError> {
    let roots = &special.roots;
    let builder = || {
        let builder = http_client(options, resolver.clone(), special.proxy.as_ref());
        match special.identity.clone() {
            Some(identity) => builder.identity(identity),
            None => builder,
        }
    };
    let system = builder().tls_certs_merge(roots.iter().cloned()).build();
    // An image without /etc/ssl/certs has no roots at all: then only the given ones count, and with none of
    // them every TLS connection fails by itself.
    system
        .or_else(|error| {
            tracing::debug!(error = chain(&error), "no system certificates");
            builder().tls_certs_only(roots.iter().cloned()).build()
        })
        .map_err(setup)
}

#[allow(clippy::needless_pass_by_value, reason = "as map_err wants it")]
fn setup(error: reqwest::Error) -> RegistryError {
    RegistryError::Setup(chain(&error))
}

/// `host[:port]` in its one spelling.
fn origin_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let written = url
        .port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    normal_origin(&written)
}
