//! Google: a token of a workload identity pool, or the machine's own from the metadata server.
//!
//! Sources: Google Cloud, "Configure Workload Identity Federation with Kubernetes" and "Method: token" of the
//! Security Token Service, "generateAccessToken" of the IAM credentials API, "Authenticate workloads" of GKE.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Exchange, origins, password, seconds};
use crate::registry::{
    credentials::{Proof, Secret},
    error::RegistryError,
};

/// What is read of the environment.
pub(super) const VARIABLES: &[&str] = &["GOOGLE_APPLICATION_CREDENTIALS", "GCE_METADATA_HOST"];

/// The user that a registry of Google's takes an access token from.
const USER: &str = "oauth2accesstoken";

/// A credential configuration of the kind that holds no secret.
#[derive(Deserialize)]
struct Configuration {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    audience: String,
    #[serde(default)]
    subject_token_type: String,
    #[serde(default)]
    token_url: String,
    service_account_impersonation_url: Option<String>,
    credential_source: Option<CredentialSource>,
}

#[derive(Deserialize)]
struct CredentialSource {
    file: Option<String>,
    format: Option<Format>,
}

#[derive(Deserialize)]
struct Format {
    #[serde(rename = "type")]
    kind: String,
    subject_token_field_name: Option<String>,
}

#[derive(Deserialize)]
struct AccessToken {
    access_token: Secret,
    expires_in: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Impersonated {
    access_token: Secret,
    expire_time: Timestamp,
}

pub(super) async fn login(exchange: &Exchange<'_>) -> Result<(Proof, Duration), RegistryError> {
    let (token, life) = match exchange.variable("GOOGLE_APPLICATION_CREDENTIALS") {
        Some(path) => federated(exchange, path).await?,
        None => of_the_machine(exchange).await?,
    };
    Ok((password(USER, token), life))
}

async fn of_the_machine(exchange: &Exchange<'_>) -> Result<(Secret, Duration), RegistryError> {
    let host = exchange
        .variable("GCE_METADATA_HOST")
        .unwrap_or(origins::GOOGLE_METADATA);
    let url = exchange.url(&format!(
        "http://{host}/computeMetadata/v1/instance/service-accounts/default/token"
    ))?;
    let request = exchange
        .http(&url)?
        .get(url.clone())
        .header("Metadata-Flavor", "Google");
    let token: AccessToken = exchange.ask_json(request, &url).await?;
    Ok((token.access_token, seconds(token.expires_in.unwrap_or(300))))
}

async fn federated(exchange: &Exchange<'_>, path: &str) -> Result<(Secret, Duration), RegistryError> {
    let text = exchange.read(path).await?;
    let configuration: Configuration = serde_json::from_str(&text)
        .map_err(|_| exchange.missing(&format!("{path} is no credential configuration")))?;
    if configuration.kind != "external_account" {
        return Err(exchange.missing(&format!(
            "{path} is of the type {:?}, which holds a secret; make one of the type external_account",
            crate::registry::error::clean(&configuration.kind, 60)
        )));
    }
    let subject = subject_token(exchange, path, configuration.credential_source).await?;
    let url = endpoint(exchange, &configuration.token_url)?;
    let form = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("audience", configuration.audience.as_str()),
        ("scope", origins::GOOGLE_SCOPE),
        (
            "requested_token_type",
            "urn:ietf:params:oauth:token-type:access_token",
        ),
        ("subject_token", &subject),
        ("subject_token_type", configuration.subject_token_type.as_str()),
    ];
    let request = exchange.http(&url)?.post(url.clone()).form(&form);
    let token: AccessToken = exchange.ask_json(request, &url).await?;
    let Some(account) = configuration.service_account_impersonation_url else {
        return Ok((token.access_token, seconds(token.expires_in.unwrap_or(300))));
    };
    let url = endpoint(exchange, &account)?;
    let request = exchange
        .http(&url)?
        .post(url.clone())
        .bearer_auth(token.access_token.reveal())
        .json(&json!({"scope": [origins::GOOGLE_SCOPE]}));
    let token: Impersonated = exchange.ask_json(request, &url).await?;
    let left = token.expire_time.as_second() - Timestamp::now().as_second();
    Ok((token.access_token, seconds(u64::try_from(left).unwrap_or(0))))
}

/// A token goes over TLS, or stays on this machine.
fn endpoint(exchange: &Exchange<'_>, text: &str) -> Result<Url, RegistryError> {
    let url = exchange.url(text)?;
    let is_here = url
        .host_str()
        .is_some_and(|host| host == "localhost" || host.starts_with("127."));
    if url.scheme() == "https" || is_here {
        return Ok(url);
    }
    Err(exchange.missing(&format!("{url} is not https")))
}

async fn subject_token(
    exchange: &Exchange<'_>,
    configuration: &str,
    source: Option<CredentialSource>,
) -> Result<String, RegistryError> {
    let unusable = |problem: &str| exchange.missing(&format!("{configuration}: {problem}"));
    let source = source.ok_or_else(|| unusable("it has no credential_source"))?;
    let path = source
        .file
        .ok_or_else(|| unusable("its credential_source has no file, which is the only kind that is read"))?;
    let text = exchange.read(&path).await?;
    let Some(format) = source.format.filter(|format| format.kind == "json") else {
        return Ok(text);
    };
    let field = format.subject_token_field_name.unwrap_or_default();
    let document: Value = serde_json::from_str(&text).map_err(|_| unusable("the token's file is no JSON"))?;
    let token = document.get(&field).and_then(Value::as_str);
    token
        .map(str::to_owned)
        .ok_or_else(|| unusable(&format!("the token's file has no {field:?}")))
}
