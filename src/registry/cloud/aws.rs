//! Amazon: a web identity token for keys of an hour, and those for a password of twelve.
//!
//! Sources: AWS, `AssumeRoleWithWebIdentity` (STS API reference), "Container credential provider" (SDK reference),
//! `GetAuthorizationToken` (ECR API reference).

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::Deserialize;

use super::{
    Exchange, origins, password, seconds,
    signature::{Keys, Signed},
};
use crate::registry::{
    credentials::{Proof, Secret},
    error::RegistryError,
};

/// What is read of the environment.
pub(super) const VARIABLES: &[&str] = &[
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_REGION",
    "AWS_ENDPOINT_URL_STS",
    "AWS_ENDPOINT_URL_ECR",
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerKeys {
    access_key_id: String,
    secret_access_key: Secret,
    token: Secret,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authorizations {
    authorization_data: Vec<Authorization>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authorization {
    authorization_token: Secret,
    /// Seconds since the epoch.
    expires_at: Option<f64>,
}

/// What the API is asked with: everything by default.
const BODY: &str = "{}";

pub(super) async fn login(exchange: &Exchange<'_>) -> Result<(Proof, Duration), RegistryError> {
    let (region, domain) = match origins::ecr(exchange.registry) {
        Some(found) => found,
        // A name of the owner's own in front of a registry.
        None => (exchange.wanted("AWS_REGION")?.to_owned(), "amazonaws.com"),
    };
    let keys = match exchange.variable("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
        Some(uri) => container_keys(exchange, uri).await?,
        None => role_keys(exchange, &region, domain).await?,
    };
    let url = match exchange.variable("AWS_ENDPOINT_URL_ECR") {
        Some(told) => exchange.url(told)?,
        None => exchange.url(&origins::aws_ecr(&region, domain))?,
    };
    let signed = Signed {
        url: &url,
        region: &region,
        service: "ecr",
        headers: &[
            ("content-type", "application/x-amz-json-1.1"),
            (
                "x-amz-target",
                "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
            ),
        ],
        body: BODY,
        now: Timestamp::now(),
    };
    let mut request = exchange.http(&url)?.post(url.clone()).body(BODY);
    for (name, value) in signed.headers(&keys) {
        request = request.header(name, value);
    }
    let answer: Authorizations = exchange.ask_json(request, &url).await?;
    let wrong = || exchange.protocol(&url);
    let authorization = answer.authorization_data.into_iter().next().ok_or_else(wrong)?;
    let pair = STANDARD
        .decode(authorization.authorization_token.reveal())
        .map_err(|_| wrong())?;
    let pair = String::from_utf8(pair).map_err(|_| wrong())?;
    let (username, secret) = pair.split_once(':').ok_or_else(wrong)?;
    Ok((
        password(username, Secret::new(secret)),
        life(authorization.expires_at, Timestamp::now()),
    ))
}

/// Until the answer's time; an hour, the least that keys live, where there is none.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float that is out of range becomes the nearest one that is not"
)]
fn life(expires_at: Option<f64>, now: Timestamp) -> Duration {
    expires_at.map_or(seconds(3600), |at| {
        seconds((at as i64 - now.as_second()).max(0) as u64)
    })
}

/// Keys from the agent of the node, for pods with a pod identity.
async fn container_keys(exchange: &Exchange<'_>, uri: &str) -> Result<Keys, RegistryError> {
    let url = exchange.url(uri)?;
    let mut request = exchange.http(&url)?.get(url.clone());
    if let Some(path) = exchange.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        request = request.header(http::header::AUTHORIZATION, exchange.read(path).await?);
    }
    let keys: ContainerKeys = exchange.ask_json(request, &url).await?;
    Ok(Keys {
        id: keys.access_key_id,
        secret: keys.secret_access_key,
        session: keys.token,
    })
}

/// Keys of a role, for a token of the pod's service account.
async fn role_keys(exchange: &Exchange<'_>, region: &str, domain: &str) -> Result<Keys, RegistryError> {
    let role = exchange.wanted("AWS_ROLE_ARN")?;
    let token = exchange
        .read(exchange.wanted("AWS_WEB_IDENTITY_TOKEN_FILE")?)
        .await?;
    let url = match exchange.variable("AWS_ENDPOINT_URL_STS") {
        Some(told) => exchange.url(told)?,
        None => exchange.url(&origins::aws_sts(region, domain))?,
    };
    let form = [
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", "2011-06-15"),
        ("RoleArn", role),
        (
            "RoleSessionName",
            exchange.variable("AWS_ROLE_SESSION_NAME").unwrap_or("slipway"),
        ),
        ("WebIdentityToken", &token),
    ];
    let request = exchange.http(&url)?.post(url.clone()).form(&form);
    let body = exchange.ask(request, &url).await?;
    let text = String::from_utf8_lossy(&body);
    let value = |name: &str| element(&text, name).ok_or_else(|| exchange.protocol(&url));
    Ok(Keys {
        id: value("AccessKeyId")?.to_owned(),
        secret: Secret::new(value("SecretAccessKey")?),
        session: Secret::new(value("SessionToken")?),
    })
}

/// The text of an element. Keys and tokens are of base64's characters, so there is nothing to unescape.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim()).filter(|text| !text.is_empty() && !text.contains(['<', '&']))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::there("<a><K> x+/= </K></a>", Some("x+/="))]
    #[case::empty("<K></K>", None)]
    #[case::nested("<K><L>x</L></K>", None)]
    #[case::open("<K>x", None)]
    fn an_element_is_its_text(#[case] xml: &str, #[case] expected: Option<&str>) {
        assert_eq!(element(xml, "K"), expected);
    }

    #[rstest]
    #[case::hours(Some(43_200.0), 43_200)]
    #[case::past(Some(-5.0), 0)]
    #[case::nonsense(Some(f64::MAX), 86_400)]
    #[case::none(None, 3600)]
    fn a_password_lives_until_its_time(#[case] expires_at: Option<f64>, #[case] expected: u64) {
        let now = Timestamp::from_second(0).unwrap();
        assert_eq!(life(expires_at, now), Duration::from_secs(expected));
    }
}
