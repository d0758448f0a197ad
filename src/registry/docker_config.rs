//! The docker configuration of a person's machine: logins, and the programs that keep them elsewhere.
//!
//! Only a command line starts these programs. A Secret's configuration is read by
//! [`Credentials::from_docker_config`] alone, which passes over them.

use std::{collections::BTreeMap, process::Stdio, time::Duration};

use serde::Deserialize;
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

use super::credentials::{Credentials, CredentialsError, Secret};

/// A helper may ask a person to unlock something.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Helpers {
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    secret: Secret,
}

impl Credentials {
    /// Reads a `config.json` and asks the credential helpers that it names for these registries.
    ///
    /// # Errors
    /// When the text is no such document, or a helper cannot be started, fails, or talks nonsense. A helper that
    /// has nothing for a registry is no error.
    pub async fn from_docker_config_with_helpers(
        json: &[u8],
        registries: &[&str],
    ) -> Result<Self, CredentialsError> {
        let mut credentials = Self::from_docker_config(json)?;
        let helpers: Helpers = serde_json::from_slice(json)
            .map_err(|error| CredentialsError::Malformed { line: error.line() })?;
        for registry in registries {
            let own = helpers.cred_helpers.get(*registry);
            let Some(name) = own.or(helpers.creds_store.as_ref()) else {
                continue;
            };
            // An entry of the document itself is newer than what a store for everything has.
            if own.is_none() && credentials.covers(registry, "") {
                continue;
            }
            if let Some(answer) = ask(name, registry).await? {
                credentials = match answer.username.as_str() {
                    "<token>" => credentials.with_identity_token(registry, answer.secret),
                    username => credentials.with_password(registry, username, answer.secret.reveal()),
                };
            }
        }
        Ok(credentials)
    }
}

async fn ask(name: &str, registry: &str) -> Result<Option<Answer>, CredentialsError> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(is_word) {
        return Err(CredentialsError::Helper {
            name: super::error::clean(name, 100),
            registry: registry.to_owned(),
            problem: "that is no name of a helper".to_owned(),
        });
    }
    ask_program(&format!("docker-credential-{name}"), name, registry).await
}

/// Source: docker-credential-helpers, "Development": `get` reads a registry's name and prints a login.
async fn ask_program(program: &str, name: &str, registry: &str) -> Result<Option<Answer>, CredentialsError> {
    let failed = |problem: String| CredentialsError::Helper {
        name: name.to_owned(),
        registry: registry.to_owned(),
        problem: super::error::clean(&problem, 300),
    };
    let server = match registry {
        "docker.io" => "https://index.docker.io/v1/",
        other => other,
    };
    let work = async {
        let mut child = Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(server.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = timeout(PATIENCE, work)
        .await
        .map_err(|_| failed(format!("no answer within {} s", PATIENCE.as_secs())))?
        .map_err(|error| failed(format!("{program}: {error}")))?;
    if !output.status.success() {
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(said));
    }
    // What a helper prints is a secret, so no message quotes it.
    serde_json::from_slice(&output.stdout)
        .map(Some)
        .map_err(|_| failed("its answer is no login".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, sync::LazyLock};

    use rstest::rstest;

    use super::*;

    /// A helper that knows `good.test` and `token.test`.
    const SCRIPT: &str = r#"#!/bin/sh
read -r server || true
case $server in
good.test) echo '{"Username":"user","Secret":"pass"}' ;;
token.test) echo '{"Username":"<token>","Secret":"refresh"}' ;;
gone.test) echo 'credentials not found in native keychain'; exit 1 ;;
odd.test) echo secret-words ;;
*) echo 'it is locked'; exit 2 ;;
esac
"#;

    static HELPER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("helper");
        std::fs::write(&path, SCRIPT).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        folder
    });

    async fn found(registry: &str) -> Result<bool, CredentialsError> {
        // A name is looked up on the path; a whole path stands for it here, as tests share their environment.
        let answer = ask_program(HELPER.path().join("helper").to_str().unwrap(), "test", registry).await?;
        Ok(answer.is_some())
    }

    #[rstest]
    #[case::login("good.test", Some(true))]
    #[case::token("token.test", Some(true))]
    #[case::nothing_there("gone.test", Some(false))]
    #[case::locked("locked.test", None)]
    #[case::nonsense("odd.test", None)]
    #[tokio::test]
    async fn a_helper_gives_a_login_none_or_an_error(#[case] registry: &str, #[case] expected: Option<bool>) {
        let answer = found(registry).await;
        if let Err(error) = &answer {
            let text = error.to_string();
            assert!(
                text.contains(registry) && !text.contains("secret-words"),
                "{text}"
            );
        }
        assert_eq!(answer.ok(), expected);
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_or_no_name_is_named() {
        for name in ["no-such-helper", "../../bin/sh", ""] {
            let json = format!(r#"{{"credHelpers":{{"a.test":"{name}"}}}}"#);
            let error = Credentials::from_docker_config_with_helpers(json.as_bytes(), &["a.test"])
                .await
                .unwrap_err();
            assert!(error.to_string().contains("a.test"), "{error}");
        }
        let json = br#"{"credHelpers":{"b.test":"no-such-helper"}}"#;
        let credentials = Credentials::from_docker_config_with_helpers(json, &["a.test"]).await;
        assert!(!credentials.unwrap().covers("a.test", "x"));
    }
}
