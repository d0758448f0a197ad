//! A client of registries, and one repository as seen through it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use http::{HeaderMap, Method};
use reqwest::Url;

use super::{
    auth::Tokens,
    credentials::{Credentials, Secret},
    error::{Operation, Place, RegistryError},
    network::Network,
    pace::{Backoff, Budget},
    reference::{Reference, normal_origin},
    transport::{Body, Call, Identity},
    turns::Turn,
};

/// What a client is allowed and how long it waits.
#[derive(Clone, Debug, Default)]
pub struct ClientOptions {
    /// Registries (`host[:port]`) that are spoken to without TLS.
    pub plain_http: BTreeSet<String>,
    /// Certificates (PEM, any number) that are trusted for one `host[:port]` beside the system's.
    pub extra_roots: Vec<(String, Vec<u8>)>,
    /// What is shown to one `host[:port]` that wants to know its clients by certificate: PEM with the certificate,
    /// those that vouch for it, and the unencrypted private key.
    pub client_certificates: Vec<(String, Secret)>,
    /// The proxy through which one `host[:port]` is spoken to, and whatever it sends the client to: `http://` or
    /// `https://`, a host, and a port where it is not the scheme's. The environment's do not count there.
    pub proxies: Vec<(String, String)>,
    /// Whether an upload may go where a registry sends it on another origin, an object store for example. It
    /// goes there without credentials.
    pub foreign_uploads: bool,
    /// How long is waited for what.
    pub timeouts: Timeouts,
    /// How failed requests are repeated.
    pub backoff: Backoff,
    /// What may be asked of one `host[:port]`.
    pub budgets: Vec<(String, Budget)>,
}

/// How long is waited for what. No exchange as a whole is bounded, as a layer may take hours.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until a connection stands.
    pub connect: Duration,
    /// Until the next byte moves, in either direction.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            // Some registries copy a whole layer before they confirm its last byte.
            idle: Duration::from_secs(90),
        }
    }
}

/// A client of any number of registries under one identity.
///
/// Cheap to clone. Clones share connections, tokens, and the knowledge of who wants to be left alone.
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) network: Arc<Network>,
    pub(super) identity: Arc<Identity>,
}

impl Client {
    /// A client with these credentials.
    ///
    /// # Errors
    /// When a CA certificate, a client's or a proxy cannot be read.
    pub fn new(options: ClientOptions, credentials: Credentials) -> Result<Self, RegistryError> {
        Ok(Self {
            network: Arc::new(Network::new(options)?),
            identity: identity(credentials),
        })
    }

    /// The same connections and pace under another identity; no token is shared.
    #[must_use]
    pub fn with_credentials(&self, credentials: Credentials) -> Self {
        Self {
            network: Arc::clone(&self.network),
            identity: identity(credentials),
        }
    }

    /// One repository. Nothing is asked yet; if the names are not names, every request says so.
    pub fn repository(&self, registry: &str, repository: &str) -> Repository {
        let base = self.base(registry, repository);
        Repository {
            client: self.clone(),
            origin: base
                .as_ref()
                .map(|url| url.origin().ascii_serialization())
                .unwrap_or_default(),
            base,
            registry: registry.to_owned(),
            name: repository.to_owned(),
            scopes: Arc::new([format!("repository:{repository}:pull")]),
            for_writing: false,
        }
    }

    /// `https://host[:port]/v2/repository/`.
    fn base(&self, registry: &str, repository: &str) -> Option<Url> {
        Reference::repository(&format!("{registry}/{repository}"))
            .ok()
            .filter(|reference| reference.registry == registry)?;
        let own = normal_origin(registry);
        let is_plain = |host: &String| host == registry || normal_origin(host) == own;
        let scheme = if self.network.options.plain_http.iter().any(is_plain) {
            "http"
        } else {
            "https"
        };
        // Docker's registry does not answer at the host that its images are named by.
        let host = match registry {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            host => host,
        };
        Url::parse(&format!("{scheme}://{host}/v2/{repository}/")).ok()
    }
}

fn identity(credentials: Credentials) -> Arc<Identity> {
    Arc::new(Identity {
        credentials,
        tokens: Tokens::default(),
    })
}

/// One repository of one registry.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(super) client: Client,
    /// `None` when the names are not names.
    pub(super) base: Option<Url>,
    pub(super) origin: String,
    /// As it is named, which is where credentials are looked up.
    pub(super) registry: String,
    pub(super) name: String,
    /// What tokens are asked for.
    pub(super) scopes: Arc<[String]>,
    pub(super) for_writing: bool,
}

impl Repository {
    /// The client that it is seen through.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// `host[:port]`, as it was named.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path within the registry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same repository, with tokens that also write here and read `sources` of the same registry, so
    /// that one token serves a whole push, mounts included.
    #[must_use]
    pub fn for_push(&self, sources: &[&str]) -> Self {
        // Some registries grant only the first scope that they are asked for: the target's.
        let mut scopes = vec![format!("repository:{}:pull,push", self.name)];
        for source in sources {
            let scope = format!("repository:{source}:pull");
            if *source != self.name && !scopes.contains(&scope) {
                scopes.push(scope);
            }
        }
        Self {
            scopes: scopes.into(),
            for_writing: true,
            ..self.clone()
        }
    }

    /// The repository itself if it may write, else one that may.
    pub(super) fn writing(&self) -> Self {
        if self.for_writing {
            self.clone()
        } else {
            self.for_push(&[])
        }
    }

    /// One's turn at a blob or tag of the repository, within this process.
    pub(super) async fn turn(&self, what: &str) -> Turn {
        let name = format!("{}/{}/{what}", self.origin, self.name);
        self.client.network.turns.take(name).await
    }

    /// What an operation concerns, for messages.
    pub(super) fn place(&self, operation: Operation, what: &str) -> Place {
        let subject = match what {
            "" => self.name.clone(),
            what if what.contains(':') => format!("{}@{what}", self.name),
            what => format!("{}:{what}", self.name),
        };
        Place {
            origin: self.origin.clone(),
            operation,
            subject,
        }
    }

    /// A request below the repository's URL.
    pub(super) fn call(
        &self,
        operation: Operation,
        method: Method,
        path: &str,
        what: &str,
    ) -> Result<Call<'_>, RegistryError> {
        let base = self.known_base()?;
        let url = base
            .join(path)
            .map_err(|_| RegistryError::Name(super::error::clean(what, 200)))?;
        Ok(self.call_at(operation, method, base, url, what))
    }

    /// A request to a URL that the registry named.
    pub(super) fn call_at(
        &self,
        operation: Operation,
        method: Method,
        home: Url,
        url: Url,
        what: &str,
    ) -> Call<'_> {
        Call {
            repository: self,
            home,
            at: self.place(operation, what),
            method,
            url,
            headers: HeaderMap::new(),
            body: Body::Empty,
            repeats: true,
        }
    }

    pub(super) fn known_base(&self) -> Result<Url, RegistryError> {
        self.base.clone().ok_or_else(|| {
            RegistryError::Name(super::error::clean(
                &format!("{}/{}", self.registry, self.name),
                300,
            ))
        })
    }
}
