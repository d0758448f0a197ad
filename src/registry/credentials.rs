//! Credentials from a docker configuration, and which of them belongs to a repository.

use std::{collections::BTreeMap, fmt, sync::Arc};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use reqwest::Url;
use serde::Deserialize;

use super::cloud::{CloudLogin, Environment, Provider};

/// Docker pads, some other writers do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A text that no log line, error or document shows.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that sends it.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// How one login proves itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// A user and a password.
    Password {
        /// Sent as it is written.
        username: String,
        /// Sent to the registry or its token server only.
        password: Secret,
    },
    /// A refresh token, exchanged for access tokens by the OAuth 2 form.
    IdentityToken(Secret),
    /// An access token, which only the registry itself is shown.
    AccessToken(Secret),
}

/// One login of a configuration.
#[derive(Clone, Debug)]
pub(super) struct Login {
    /// Tells the logins of one configuration apart, for the token cache.
    pub(super) id: usize,
    pub(super) proof: Proof,
    /// A token server that may see the proof although nothing vouches for it but whoever gave the login.
    pub(super) realm: Option<Url>,
}

/// The logins that a push or a pull may use, by registry and path.
///
/// The default has none: everything is asked anonymously.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// By `host[:port][/path]`.
    logins: BTreeMap<String, Login>,
    /// By `host[:port]`, for where there is no login.
    clouds: BTreeMap<String, Arc<CloudLogin>>,
}

/// Why a docker configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// It is not the JSON that `docker login` writes. The parser's words are left out, as they may quote it.
    #[error(
        "the docker configuration is not valid JSON (line {line}); recreate the Secret with `kubectl create secret docker-registry`"
    )]
    Malformed {
        /// Where the parser stopped.
        line: usize,
    },
    /// A program that keeps credentials did not give them.
    #[error("the credential helper {name:?} has no login for {registry}: {problem}")]
    Helper {
        /// The helper's name, without `docker-credential-`.
        name: String,
        /// The registry that it was asked for.
        registry: String,
        /// What went wrong.
        problem: String,
    },
    /// One entry is unusable.
    #[error(
        "the docker configuration's entry for {registry} has an `auth` that is not base64 of user:password"
    )]
    Auth {
        /// The entry's key.
        registry: String,
    },
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerLogin>,
}

#[derive(Deserialize)]
struct DockerLogin {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
}

impl Credentials {
    /// No login at all.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Reads a `config.json` or the `.dockerconfigjson` of a Secret.
    ///
    /// Keys may have a scheme, a path, or Docker's `/v1/` and `/v2/` endings. Credential helpers are programs
    /// of the machine that wrote the file and are passed over.
    ///
    /// # Errors
    /// When the text is not such a document; the message never quotes it.
    pub fn from_docker_config(json: &[u8]) -> Result<Self, CredentialsError> {
        let config: DockerConfig = serde_json::from_slice(json)
            .map_err(|error| CredentialsError::Malformed { line: error.line() })?;
        let mut logins = BTreeMap::new();
        for (id, (key, login)) in config.auths.into_iter().enumerate() {
            if let Some(proof) = proof(&key, login)? {
                logins.insert(
                    normal_key(&key),
                    Login {
                        id,
                        proof,
                        realm: None,
                    },
                );
            }
        }
        Ok(Self {
            logins,
            clouds: BTreeMap::new(),
        })
    }

    /// The workload's own identity for one registry, exchanged for a login when the registry asks for one. A
    /// login that was given comes first.
    #[must_use]
    pub fn with_cloud_identity(
        mut self,
        registry: &str,
        provider: Provider,
        environment: Environment,
    ) -> Self {
        let login = CloudLogin::new(provider, registry, environment);
        self.clouds.insert(normal_key(registry), Arc::new(login));
        self
    }

    /// One login for one registry, or for one path of it.
    #[must_use]
    pub fn with_password(self, registry: &str, username: &str, password: &str) -> Self {
        let proof = Proof::Password {
            username: username.to_owned(),
            password: Secret::new(password),
        };
        self.with(registry, proof, None)
    }

    /// A password for one registry, shown to this token server and to nobody else.
    ///
    /// A registry that is spoken to without TLS may name any realm; this one was told by somebody who knows.
    #[must_use]
    pub fn with_password_for_realm(self, registry: &str, username: &str, password: &str, realm: Url) -> Self {
        let proof = Proof::Password {
            username: username.to_owned(),
            password: Secret::new(password),
        };
        self.with(registry, proof, Some(realm))
    }

    /// An access token for one registry, sent as it is.
    #[must_use]
    pub fn with_access_token(self, registry: &str, token: &str) -> Self {
        self.with(registry, Proof::AccessToken(Secret::new(token)), None)
    }

    fn with(mut self, registry: &str, proof: Proof, realm: Option<Url>) -> Self {
        let login = Login {
            id: self.next_id(),
            proof,
            realm,
        };
        self.logins.insert(normal_key(registry), login);
        self
    }

    /// A refresh token for one registry, exchanged for access tokens by the OAuth 2 form.
    #[must_use]
    pub fn with_identity_token(self, registry: &str, token: Secret) -> Self {
        self.with(registry, Proof::IdentityToken(token), None)
    }

    /// Whether any login applies to a repository.
    pub fn covers(&self, host: &str, repository: &str) -> bool {
        self.for_repository(host, repository).is_some()
    }

    fn next_id(&self) -> usize {
        let ids = self.logins.values().map(|login| login.id);
        ids.max().map_or(0, |highest| highest + 1)
    }

    /// How a login for a registry is exchanged where none was given for the repository.
    pub(super) fn cloud(&self, host: &str, repository: &str) -> Option<&CloudLogin> {
        if self.covers(host, repository) {
            return None;
        }
        self.clouds.get(normal_host(host)).map(AsRef::as_ref)
    }

    /// The login with the longest path that leads to the repository.
    pub(super) fn for_repository(&self, host: &str, repository: &str) -> Option<&Login> {
        let host = normal_host(host);
        let mut path = repository;
        loop {
            if let Some(login) = self.logins.get(&format!("{host}/{path}")) {
                return Some(login);
            }
            match path.rsplit_once('/') {
                Some((parent, _)) => path = parent,
                None => return self.logins.get(host),
            }
        }
    }
}

fn proof(key: &str, login: DockerLogin) -> Result<Option<Proof>, CredentialsError> {
    let filled = |secret: Option<Secret>| secret.filter(|secret| !secret.reveal().is_empty());
    if let Some(token) = filled(login.identitytoken) {
        return Ok(Some(Proof::IdentityToken(token)));
    }
    if let Some(auth) = filled(login.auth) {
        let wrong = || CredentialsError::Auth {
            registry: key.to_owned(),
        };
        let text = BASE64.decode(auth.reveal().trim()).map_err(|_| wrong())?;
        let text = String::from_utf8(text).map_err(|_| wrong())?;
        let (username, password) = text.split_once(':').ok_or_else(wrong)?;
        return Ok(Some(Proof::Password {
            username: username.to_owned(),
            password: Secret::new(password.trim_end_matches('\0')),
        }));
    }
    Ok(match (login.username, filled(login.password)) {
        (Some(username), Some(password)) => Some(Proof::Password { username, password }),
        _ => None,
    })
}

/// `https://index.docker.io/v1/` and its like, as `host[:port][/path]`.
fn normal_key(key: &str) -> String {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key)
        .trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key);
    match key.split_once('/') {
        Some((host, path)) => format!("{}/{path}", normal_host(host)),
        None => normal_host(key).to_owned(),
    }
}

/// Docker's registry has three names.
fn normal_host(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn config() -> Credentials {
        // dXNlcjpwYXNz is user:pass.
        Credentials::from_docker_config(
            br#"{"auths":{
                "https://index.docker.io/v1/": {"auth": "aHViOnA="},
                "r.io": {"auth": "dXNlcjpwYTpzcw=="},
                "r.io/team": {"username": "team", "password": "p"},
                "r.io/team/app": {"auth": "YXBwOnA"},
                "azure.io": {"auth": "MDA6", "identitytoken": "refresh"},
                "http://localhost:5000": {"username": "local", "password": "p"},
                "empty.io": {}
            }, "credsStore": "desktop", "credHelpers": {"x.io": "y"}}"#,
        )
        .unwrap()
    }

    #[rstest]
    #[case::host("r.io", "other", Some("user"))]
    #[case::path("r.io", "team", Some("team"))]
    #[case::below_a_path("r.io", "team/x/y", Some("team"))]
    #[case::longest_path("r.io", "team/app/x", Some("app"))]
    #[case::not_a_part_of_a_name("r.io", "teams", Some("user"))]
    #[case::hub("docker.io", "library/alpine", Some("hub"))]
    #[case::hub_by_its_other_name("registry-1.docker.io", "library/alpine", Some("hub"))]
    #[case::port("localhost:5000", "a", Some("local"))]
    #[case::other_port("localhost:5001", "a", None)]
    #[case::other_host("evil.r.io", "team", None)]
    #[case::empty_entry("empty.io", "a", None)]
    #[case::helper_only("x.io", "a", None)]
    fn the_longest_path_wins(#[case] host: &str, #[case] repository: &str, #[case] expected: Option<&str>) {
        let credentials = config();
        let user = credentials
            .for_repository(host, repository)
            .map(|login| match &login.proof {
                Proof::Password { username, .. } => username.as_str(),
                Proof::IdentityToken(_) | Proof::AccessToken(_) => "token",
            });
        assert_eq!(user, expected);
    }

    #[test]
    fn a_password_may_contain_colons_and_an_identity_token_comes_first() {
        let credentials = config();
        assert_eq!(
            credentials.for_repository("r.io", "x").unwrap().proof,
            Proof::Password {
                username: "user".into(),
                password: Secret::new("pa:ss"),
            }
        );
        assert_eq!(
            credentials.for_repository("azure.io", "x").unwrap().proof,
            Proof::IdentityToken(Secret::new("refresh"))
        );
    }

    #[rstest]
    #[case::not_json(b"secret" as &[u8])]
    #[case::not_base64(br#"{"auths":{"r.io":{"auth":"secret-but-not-base64"}}}"#)]
    #[case::no_colon(br#"{"auths":{"r.io":{"auth":"c2VjcmV0"}}}"#)]
    fn an_error_does_not_quote_the_document(#[case] json: &[u8]) {
        let error = Credentials::from_docker_config(json).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret-"));
        assert!(!format!("{error:?}").contains("c2Vj"));
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert!(!format!("{:?}", config()).contains("pa:ss"));
        assert!(!format!("{:?}", config()).contains("refresh"));
    }
}
