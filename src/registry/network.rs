//! Connections: one pool for where registries were said to be, others for where registries send the client.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, OnceLock},
};

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

use super::{
    addresses::{Denied, Reach, Reached, Resolver},
    client::ClientOptions,
    credentials::Secret,
    error::RegistryError,
    pace::Pace,
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
    /// For where registries send the client, by how near that may be; built when the first one does.
    foreign: [OnceLock<Route>; 3],
    /// For what neither a registry nor a stranger names, such as a node's own token service.
    told: OnceLock<Route>,
    /// For hosts with roots or a certificate of their own.
    special: HashMap<String, reqwest::Client>,
    proxies: Proxies,
    pub(super) reached: Reached,
    pub(super) pace: Pace,
    pub(super) turns: Turns,
    pub(super) learned: Learned,
}

impl Network {
    pub(super) fn new(options: ClientOptions) -> Result<Self, RegistryError> {
        let special = special_clients(&options)?;
        Ok(Self {
            common: Route::new(&options, Reach::Loopback)?,
            foreign: Default::default(),
            told: OnceLock::new(),
            special,
            proxies: Proxies(Matcher::from_env()),
            pace: Pace::new(&options.budgets),
            options,
            reached: Reached::default(),
            turns: Turns::default(),
            learned: Learned::default(),
        })
    }

    /// The connections for a URL that concerns a registry, if it may lead there.
    pub(super) fn http(&self, url: &Url, home: &Url) -> Result<&reqwest::Client, RouteError> {
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
        let proxied = self.proxies.intercept(url);
        route
            .client(url, proxied, &self.options)
            .map_err(RouteError::Setup)
    }

    /// The connections to an endpoint that this machine's owner named; it may be anywhere.
    pub(super) fn endpoint(&self, url: &Url) -> Result<&reqwest::Client, RegistryError> {
        let route = match self.told.get() {
            Some(route) => route,
            None => {
                let route = Route::new(&self.options, Reach::Link)?;
                self.told.get_or_init(|| route)
            }
        };
        route.client(url, self.proxies.intercept(url), &self.options)
    }

    /// Remembers how near a registry is. Behind a proxy nobody knows: the address is the proxy's.
    pub(super) fn learn_reach(&self, home: &Url, address: Option<std::net::SocketAddr>) {
        if !self.proxies.intercept(home) {
            self.reached.learn(&home.origin().ascii_serialization(), address);
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
        url.as_str()
            .parse()
            .is_ok_and(|uri| self.0.intercept(&uri).is_some())
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A proxy's URL may hold a password.
        f.write_str("Proxies")
    }
}

/// Connections that lead no nearer than allowed.
#[derive(Debug)]
struct Route {
    resolver: Resolver,
    /// For plain http, which needs no roots.
    plain: reqwest::Client,
    /// Built when the first TLS connection is needed: the system's roots take longer to read than a small image
    /// takes to copy.
    tls: OnceLock<reqwest::Client>,
}

impl Route {
    fn new(options: &ClientOptions, nearest: Reach) -> Result<Self, RegistryError> {
        let resolver = Resolver::new(nearest, &options.plain_http);
        Ok(Self {
            plain: http_client(options, resolver.clone())
                .tls_certs_only([])
                .build()
                .map_err(setup)?,
            tls: OnceLock::new(),
            resolver,
        })
    }

    fn client(
        &self,
        url: &Url,
        proxied: bool,
        options: &ClientOptions,
    ) -> Result<&reqwest::Client, RegistryError> {
        // A proxy may want TLS itself.
        if url.scheme() == "http" && !proxied {
            return Ok(&self.plain);
        }
        if let Some(client) = self.tls.get() {
            return Ok(client);
        }
        let client = tls_client(options, &self.resolver, &[], None)?;
        Ok(self.tls.get_or_init(|| client))
    }
}

/// What was given for one host.
#[derive(Default)]
struct Special {
    roots: Vec<reqwest::Certificate>,
    identity: Option<reqwest::Identity>,
}

fn special_clients(options: &ClientOptions) -> Result<HashMap<String, reqwest::Client>, RegistryError> {
    let mut by_host: BTreeMap<&str, Special> = BTreeMap::new();
    for (host, pem) in &options.extra_roots {
        let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(|error| {
            RegistryError::Setup(format!("the CA certificates of {host}: {}", chain(&error)))
        })?;
        by_host.entry(host).or_default().roots.extend(certificates);
    }
    for (host, pem) in &options.client_certificates {
        by_host.entry(host).or_default().identity = Some(identity(host, pem)?);
    }
    by_host
        .into_iter()
        .map(|(host, special)| {
            // Who has certificates for a host has said where it is.
            let resolver = Resolver::new(Reach::Link, &options.plain_http);
            let client = tls_client(options, &resolver, &special.roots, special.identity.as_ref())?;
            Ok((host.to_owned(), client))
        })
        .collect()
}

/// The parser's words are left out, as they may quote the key.
fn identity(host: &str, pem: &Secret) -> Result<reqwest::Identity, RegistryError> {
    reqwest::Identity::from_pem(pem.reveal().as_bytes()).map_err(|_| {
        RegistryError::Setup(format!(
            "the client certificate for {host} is not PEM with a certificate and its private key, unencrypted"
        ))
    })
}

/// One connection pool. The rule on addresses is its resolver, because only the address that is connected to
/// says where a name leads.
fn http_client(options: &ClientOptions, resolver: Resolver) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("slipway/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(options.timeouts.connect)
        .dns_resolver(Arc::new(resolver))
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
}

/// The same with the system's roots and others.
fn tls_client(
    options: &ClientOptions,
    resolver: &Resolver,
    roots: &[reqwest::Certificate],
    identity: Option<&reqwest::Identity>,
) -> Result<reqwest::Client, RegistryError> {
    let builder = || {
        let builder = http_client(options, resolver.clone());
        match identity.cloned() {
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

fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}
