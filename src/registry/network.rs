//! Connections: one pool for where registries were said to be, others for where registries send the client.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
};

use reqwest::Url;

use super::{
    addresses::{Denied, Reach, Reached, Resolver},
    client::ClientOptions,
    error::RegistryError,
    pace::Pace,
    transport::chain,
    turns::Turns,
    upload::Learned,
};

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
    pub(super) reached: Reached,
    pub(super) pace: Pace,
    pub(super) turns: Turns,
    pub(super) learned: Learned,
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
        Ok(&route.client)
    }
}

/// Why there is no way to a URL.
pub(super) enum RouteError {
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
