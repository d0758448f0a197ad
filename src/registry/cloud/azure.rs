//! Azure: a federated token for one of the directory, and that for a refresh token of the registry.
//!
//! Sources: Microsoft, "Microsoft identity platform and the OAuth 2.0 client credentials flow" (federated
//! credential), "Microsoft Entra Workload ID" (variables of a pod); Azure Container Registry, "AAD-OAuth"
//! (`/oauth2/exchange`).

use std::time::Duration;

use serde::Deserialize;

use super::{Exchange, origins, seconds};
use crate::registry::{
    credentials::{Proof, Secret},
    error::RegistryError,
};

/// What is read of the environment.
pub(super) const VARIABLES: &[&str] = &[
    "AZURE_CLIENT_ID",
    "AZURE_TENANT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_AUTHORITY_HOST",
];

#[derive(Deserialize)]
struct DirectoryToken {
    access_token: Secret,
}

#[derive(Deserialize)]
struct RegistryToken {
    refresh_token: Secret,
}

pub(super) async fn login(exchange: &Exchange<'_>) -> Result<(Proof, Duration), RegistryError> {
    let tenant = exchange.wanted("AZURE_TENANT_ID")?;
    let is_tenant = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    if !tenant.chars().all(is_tenant) {
        return Err(exchange.missing("AZURE_TENANT_ID is no name of a tenant"));
    }
    let assertion = exchange
        .read(exchange.wanted("AZURE_FEDERATED_TOKEN_FILE")?)
        .await?;
    let authority = exchange
        .variable("AZURE_AUTHORITY_HOST")
        .unwrap_or(origins::AZURE_AUTHORITY);
    let url = exchange.url(&format!(
        "{}/{tenant}/oauth2/v2.0/token",
        authority.trim_end_matches('/')
    ))?;
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", exchange.wanted("AZURE_CLIENT_ID")?),
        ("scope", origins::AZURE_SCOPE),
        (
            "client_assertion_type",
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        ),
        ("client_assertion", &assertion),
    ];
    let request = exchange.http(&url)?.post(url.clone()).form(&form);
    let directory: DirectoryToken = exchange.ask_json(request, &url).await?;
    let mut url = exchange.registry_url.clone();
    url.set_path("/oauth2/exchange");
    url.set_query(None);
    let form = [
        ("grant_type", "access_token"),
        ("service", exchange.registry),
        ("tenant", tenant),
        ("access_token", directory.access_token.reveal()),
    ];
    let request = exchange.registry_http()?.post(url.clone()).form(&form);
    let registry: RegistryToken = exchange.ask_json(request, &url).await?;
    // It lives three hours; no answer says so.
    Ok((Proof::IdentityToken(registry.refresh_token), seconds(3 * 3600)))
}
