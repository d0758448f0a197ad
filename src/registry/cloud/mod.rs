//! Logins at the registries of cloud providers as the workload that this runs in: no static secret anywhere.
//!
//! The platform gives a pod a token for one audience, and the provider exchanges it for a login of some hours.
//! Where the exchanges are done is in [`origins`] and in what the platform says in the environment; which of
//! them a registry wants is decided by whoever makes the credentials.

mod aws;
mod azure;
mod google;
pub(super) mod origins;
mod signature;

use std::{collections::BTreeMap, fmt, path::Path, time::Duration};

use bytes::Bytes;
use reqwest::{RequestBuilder, Url};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::{
    answer::Answer,
    credentials::{Login, Proof, Secret},
    error::{Operation, Place, RegistryError, clean},
    network::{Network, RouteError},
    transport::{chain, moving, stalled},
};
pub use origins::{Provider, provider_of};

/// A provider's answer; tokens are some KiB.
const ANSWER_LIMIT: u64 = 1 << 20;
/// The id of a login that was exchanged; those of a configuration are counted from zero.
const EXCHANGED: usize = usize::MAX;

/// What the platform says to a workload, by the names of its variables; see each provider for those that count.
pub type Environment = BTreeMap<String, String>;

/// What is read of the process's environment.
pub fn environment() -> Environment {
    let wanted = aws::VARIABLES
        .iter()
        .chain(google::VARIABLES)
        .chain(azure::VARIABLES);
    wanted
        .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
        .collect()
}

/// A login that is exchanged when it is first needed, and again before it ends.
pub(super) struct CloudLogin {
    provider: Provider,
    registry: String,
    environment: Environment,
    current: tokio::sync::Mutex<Option<Exchanged>>,
}

struct Exchanged {
    login: Login,
    renew_at: Instant,
}

impl fmt::Debug for CloudLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CloudLogin({:?} for {})", self.provider, self.registry)
    }
}

impl CloudLogin {
    pub(super) fn new(provider: Provider, registry: &str, environment: Environment) -> Self {
        Self {
            provider,
            registry: registry.to_owned(),
            environment,
            current: tokio::sync::Mutex::default(),
        }
    }

    /// The login as it is now. Whoever comes first exchanges, everybody else waits for the result.
    pub(super) async fn login(&self, network: &Network, registry: &Url) -> Result<Login, RegistryError> {
        let mut current = self.current.lock().await;
        if let Some(exchanged) = current.as_ref().filter(|found| Instant::now() < found.renew_at) {
            return Ok(exchanged.login.clone());
        }
        let exchange = Exchange {
            network,
            registry: &self.registry,
            registry_url: registry,
            environment: &self.environment,
        };
        let (proof, life) = match self.provider {
            Provider::Aws => aws::login(&exchange).await?,
            Provider::Google => google::login(&exchange).await?,
            Provider::Azure => azure::login(&exchange).await?,
        };
        let login = Login {
            id: EXCHANGED,
            proof,
            realm: None,
        };
        *current = Some(Exchanged {
            login: login.clone(),
            // Requests on their way need the rest.
            renew_at: Instant::now() + life.mul_f64(0.8),
        });
        Ok(login)
    }
}

/// One exchange for one registry.
struct Exchange<'a> {
    network: &'a Network,
    registry: &'a str,
    registry_url: &'a Url,
    environment: &'a Environment,
}

impl Exchange<'_> {
    fn variable(&self, name: &str) -> Option<&str> {
        let value = self.environment.get(name).map(|value| value.trim());
        value.filter(|value| !value.is_empty())
    }

    fn wanted(&self, name: &str) -> Result<&str, RegistryError> {
        self.variable(name).ok_or_else(|| {
            self.missing(&format!(
                "{name} is not set; give the pod a service account that the provider knows, or a login in a docker configuration"
            ))
        })
    }

    fn missing(&self, problem: &str) -> RegistryError {
        RegistryError::Setup(format!("no cloud identity for {}: {problem}", self.registry))
    }

    fn url(&self, text: &str) -> Result<Url, RegistryError> {
        Url::parse(text).map_err(|_| self.missing(&format!("{:?} is no URL", clean(text, 200))))
    }

    /// A token that the platform keeps in a file and renews there.
    async fn read(&self, path: &str) -> Result<String, RegistryError> {
        let text = tokio::fs::read_to_string(Path::new(path)).await;
        let text = text.map_err(|error| self.missing(&format!("{path}: {error}")))?;
        Ok(text.trim().to_owned())
    }

    /// The connections to an endpoint that the environment or the table of origins names.
    fn http(&self, url: &Url) -> Result<&reqwest::Client, RegistryError> {
        self.network.endpoint(url)
    }

    /// The connections to the registry itself, under the rules of every request there.
    fn registry_http(&self) -> Result<reqwest::Client, RegistryError> {
        let route = self.network.http(self.registry_url, self.registry_url);
        route.map_err(|error| match error {
            RouteError::Setup(error) => error,
            RouteError::Denied(denied) => self.missing(&denied.to_string()),
        })
    }

    fn place(&self, url: &Url) -> Place {
        Place {
            origin: url.origin().ascii_serialization(),
            operation: Operation::GetToken,
            subject: self.registry.to_owned(),
        }
    }

    async fn ask(&self, request: RequestBuilder, url: &Url) -> Result<Bytes, RegistryError> {
        let at = self.place(url);
        let idle = self.network.options.timeouts.idle;
        let unreachable = |problem| RegistryError::Unreachable {
            at: at.clone(),
            problem,
        };
        let response = moving(request.send(), None, idle)
            .await
            .ok_or_else(|| unreachable(stalled(idle)))?
            .map_err(|error| unreachable(chain(&error.without_url())))?;
        let answer = Answer {
            response,
            at: at.clone(),
            url: url.clone(),
            idle,
        };
        if answer.status() != http::StatusCode::OK {
            return Err(answer.refused().await);
        }
        answer.bytes(ANSWER_LIMIT).await
    }

    async fn ask_json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        url: &Url,
    ) -> Result<T, RegistryError> {
        let body = self.ask(request, url).await?;
        serde_json::from_slice(&body).map_err(|_| self.protocol(url))
    }

    /// The answer is left out of the message: it may hold half of a login.
    fn protocol(&self, url: &Url) -> RegistryError {
        RegistryError::Protocol {
            at: self.place(url),
            problem: "the answer is not the one that the provider's documentation describes".to_owned(),
        }
    }
}

fn password(username: &str, password: Secret) -> Proof {
    Proof::Password {
        username: username.to_owned(),
        password,
    }
}

/// A life of so many seconds, at most a day.
fn seconds(life: u64) -> Duration {
    Duration::from_secs(life.min(86_400))
}
