//! Logins of cloud providers, against servers that answer as the providers' documentation says, and refuse what
//! it does not describe.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::{
    image::Digest,
    registry::{
        Client, ClientOptions, Credentials, Environment, Provider, RegistryError,
        testing::wire::{Heard, Wire, answer},
    },
};

const SUBJECT: &str = "token.of.the.pod";

/// A folder with the token that the platform gives the pod.
fn pod() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, format!("{SUBJECT}\n")).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

/// A registry that wants exactly this, or a token for it.
fn registry(heard: &Heard, login: &str) -> String {
    if heard.header("authorization") == Some(login) {
        return answer(404, &[], "");
    }
    answer(401, &[("www-authenticate", r#"Basic realm="x""#)], "")
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn client(host: &str, provider: Provider, environment: Environment) -> Client {
    let options = ClientOptions {
        plain_http: [host.to_owned()].into(),
        ..ClientOptions::default()
    };
    let credentials = Credentials::anonymous().with_cloud_identity(host, provider, environment);
    Client::new(options, credentials).unwrap()
}

/// Asks twice; the second time there is a login already.
async fn ask(client: &Client, host: &str) -> Result<(), RegistryError> {
    for _ in 0..2 {
        client.repository(host, "a").head_blob(&Digest::of(b"x")).await?;
    }
    Ok(())
}

fn count(wire: &Wire, part: &str) -> usize {
    wire.heard()
        .iter()
        .filter(|heard| heard.line.contains(part))
        .count()
}

/// `POST /sts` and `POST /ecr`, and the agent of a node at `/agent`.
fn amazon(_: &str, heard: &Heard) -> String {
    let keys = ("AKID", "SECRET", "SESSION");
    match heard.line.as_str() {
        "POST /sts" => {
            let wanted = [
                ("Action", "AssumeRoleWithWebIdentity"),
                ("Version", "2011-06-15"),
                ("RoleArn", "arn:aws:iam::123456789012:role/push"),
                ("RoleSessionName", "slipway"),
                ("WebIdentityToken", SUBJECT),
            ];
            if !wanted
                .iter()
                .all(|(name, value)| heard.field(name).as_deref() == Some(*value))
            {
                return answer(400, &[], "<ErrorResponse/>");
            }
            let body = format!(
                "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
                 <AssumeRoleWithWebIdentityResult><Credentials><SessionToken>{}</SessionToken>\
                 <SecretAccessKey>{}</SecretAccessKey><Expiration>2030-10-24T23:00:23Z</Expiration>\
                 <AccessKeyId>{}</AccessKeyId></Credentials></AssumeRoleWithWebIdentityResult>\
                 </AssumeRoleWithWebIdentityResponse>",
                keys.2, keys.1, keys.0
            );
            answer(200, &[("content-type", "text/xml")], &body)
        }
        "GET /agent" if heard.header("authorization") == Some(SUBJECT) => {
            let body = json!({"AccessKeyId": keys.0, "SecretAccessKey": keys.1, "Token": keys.2,
                              "Expiration": "2030-10-24T23:00:23Z"});
            answer(200, &[], &body.to_string())
        }
        "POST /ecr" => {
            let signed = heard.header("authorization").unwrap_or_default();
            let as_documented = heard.header("content-type") == Some("application/x-amz-json-1.1")
                && heard.header("x-amz-target")
                    == Some("AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken")
                && heard.header("x-amz-security-token") == Some(keys.2)
                && heard.header("x-amz-date").is_some_and(|date| date.len() == 16)
                && heard.body == "{}"
                && signed.starts_with("AWS4-HMAC-SHA256 Credential=AKID/")
                && signed.contains("/eu-west-1/ecr/aws4_request, SignedHeaders=")
                // A header that is set twice would be sent twice, and its signature would not hold.
                && heard.headers.iter().filter(|line| line.starts_with("host: ")).count() == 1;
            if !as_documented {
                return answer(400, &[], r#"{"__type":"InvalidSignatureException"}"#);
            }
            let token = STANDARD.encode("AWS:twelve-hours");
            let body = json!({"authorizationData": [{"authorizationToken": token, "expiresAt": 1.893_456e9,
                              "proxyEndpoint": "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com"}]});
            answer(200, &[], &body.to_string())
        }
        _ => registry(heard, &basic("AWS", "twelve-hours")),
    }
}

#[tokio::test]
async fn amazon_s_registry_is_logged_in_to_by_a_role() {
    let (_folder, token) = pod();
    let wire = Wire::start(amazon).await;
    let variables = environment(&[
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/push"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ENDPOINT_URL_STS", &format!("http://{}/sts", wire.host)),
        ("AWS_ENDPOINT_URL_ECR", &format!("http://{}/ecr", wire.host)),
    ]);
    let client = client(&wire.host, Provider::Aws, variables);
    ask(&client, &wire.host).await.unwrap();
    assert_eq!((count(&wire, "/sts"), count(&wire, "/ecr")), (1, 1));
}

#[tokio::test]
async fn amazon_s_registry_is_logged_in_to_by_a_pod_identity() {
    let (_folder, token) = pod();
    let wire = Wire::start(amazon).await;
    let variables = environment(&[
        (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            &format!("http://{}/agent", wire.host),
        ),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ENDPOINT_URL_ECR", &format!("http://{}/ecr", wire.host)),
    ]);
    let client = client(&wire.host, Provider::Aws, variables);
    ask(&client, &wire.host).await.unwrap();
    assert_eq!((count(&wire, "/agent"), count(&wire, "/ecr")), (1, 1));
}

/// `POST /v1/token`, an account to be, and the metadata server. What is issued lives a moment where `short`.
fn google(heard: &Heard, life: u64) -> String {
    match heard.line.as_str() {
        "POST /v1/token" => {
            let wanted = [
                ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
                (
                    "audience",
                    "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
                ),
                ("scope", "https://www.googleapis.com/auth/cloud-platform"),
                (
                    "requested_token_type",
                    "urn:ietf:params:oauth:token-type:access_token",
                ),
                ("subject_token", SUBJECT),
                ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ];
            // The documentation wants no Authorization here.
            let good = heard.header("authorization").is_none()
                && wanted
                    .iter()
                    .all(|(name, value)| heard.field(name).as_deref() == Some(*value));
            if !good {
                return answer(400, &[], r#"{"error":"invalid_request"}"#);
            }
            let body = json!({"access_token": "federated", "token_type": "Bearer", "expires_in": life,
                              "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"});
            answer(200, &[], &body.to_string())
        }
        "POST /v1/projects/-/serviceAccounts/push@p.iam.gserviceaccount.com:generateAccessToken"
            if heard.header("authorization") == Some("Bearer federated")
                && heard.body == r#"{"scope":["https://www.googleapis.com/auth/cloud-platform"]}"# =>
        {
            let body = json!({"accessToken": "issued", "expireTime": "2030-01-01T00:00:00Z"});
            answer(200, &[], &body.to_string())
        }
        "GET /computeMetadata/v1/instance/service-accounts/default/token"
            if heard.header("metadata-flavor") == Some("Google") =>
        {
            let body = json!({"access_token": "issued", "expires_in": life, "token_type": "Bearer"});
            answer(200, &[], &body.to_string())
        }
        _ => registry(heard, &basic("oauth2accesstoken", "issued")),
    }
}

fn configuration(folder: &tempfile::TempDir, wire: &Wire, token: &str) -> String {
    let host = &wire.host;
    let document = json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("http://{host}/v1/token"),
        "service_account_impersonation_url":
            format!("http://{host}/v1/projects/-/serviceAccounts/push@p.iam.gserviceaccount.com:generateAccessToken"),
        "credential_source": {"file": token, "format": {"type": "text"}},
    });
    let path = folder.path().join("configuration.json");
    std::fs::write(&path, document.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn google_s_registry_is_logged_in_to_by_a_pool() {
    let (folder, token) = pod();
    let wire = Wire::start(|_, heard| google(heard, 3600)).await;
    let path = configuration(&folder, &wire, &token);
    let variables = environment(&[("GOOGLE_APPLICATION_CREDENTIALS", &path)]);
    let client = client(&wire.host, Provider::Google, variables);
    ask(&client, &wire.host).await.unwrap();
    assert_eq!(
        (count(&wire, "/v1/token"), count(&wire, "generateAccessToken")),
        (1, 1)
    );
}

#[tokio::test]
async fn google_s_registry_is_logged_in_to_by_the_machine_and_again_when_that_ends() {
    for (life, exchanges) in [(3600, 1), (0, 4)] {
        let wire = Wire::start(move |_, heard| google(heard, life)).await;
        let variables = environment(&[("GCE_METADATA_HOST", &wire.host)]);
        let client = client(&wire.host, Provider::Google, variables);
        ask(&client, &wire.host).await.unwrap();
        let asked = count(&wire, "/computeMetadata/");
        assert!(asked == exchanges || life == 0 && asked > 1, "{asked}");
    }
}

/// The directory at `/tenant`, and a registry with its two endpoints.
fn azure(own: &str, heard: &Heard) -> String {
    let has = |wanted: &[(&str, &str)]| {
        wanted
            .iter()
            .all(|(name, value)| heard.field(name).as_deref() == Some(*value))
    };
    let good = match heard.line.as_str() {
        "POST /tenant-1/oauth2/v2.0/token" => has(&[
            ("grant_type", "client_credentials"),
            ("client_id", "client-1"),
            ("scope", "https://containerregistry.azure.net/.default"),
            (
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            ),
            ("client_assertion", SUBJECT),
        ])
        .then_some(r#"{"token_type":"Bearer","expires_in":3599,"access_token":"of-the-directory"}"#),
        "POST /oauth2/exchange" => has(&[
            ("grant_type", "access_token"),
            ("service", own),
            ("tenant", "tenant-1"),
            ("access_token", "of-the-directory"),
        ])
        .then_some(r#"{"refresh_token":"of-the-registry"}"#),
        "POST /oauth2/token" => has(&[
            ("grant_type", "refresh_token"),
            ("service", own),
            ("scope", "repository:a:pull"),
            ("refresh_token", "of-the-registry"),
        ])
        .then_some(r#"{"access_token":"good"}"#),
        _ if heard.header("authorization") == Some("Bearer good") => return answer(404, &[], ""),
        _ => {
            let challenge = format!(r#"Bearer realm="http://{own}/oauth2/token",service="{own}""#);
            return answer(401, &[("www-authenticate", &challenge)], "");
        }
    };
    good.map_or_else(|| answer(400, &[], ""), |body| answer(200, &[], body))
}

#[tokio::test]
async fn azure_s_registry_is_logged_in_to_by_a_federated_token() {
    let (_folder, token) = pod();
    let wire = Wire::start(azure).await;
    let variables = environment(&[
        ("AZURE_TENANT_ID", "tenant-1"),
        ("AZURE_CLIENT_ID", "client-1"),
        ("AZURE_FEDERATED_TOKEN_FILE", &token),
        ("AZURE_AUTHORITY_HOST", &format!("http://{}/", wire.host)),
    ]);
    let client = client(&wire.host, Provider::Azure, variables);
    ask(&client, &wire.host).await.unwrap();
    assert_eq!((count(&wire, "/v2.0/token"), count(&wire, "/exchange")), (1, 1));
    // The pod's own token is the directory's business alone.
    let mut strangers = wire
        .heard()
        .into_iter()
        .filter(|heard| !heard.line.contains("/v2.0/token"));
    assert!(strangers.all(|heard| !heard.body.contains(SUBJECT)));
}

#[tokio::test]
async fn a_login_that_was_given_comes_before_the_cloud_s() {
    let wire = Wire::start(|_, heard| registry(heard, &basic("user", "given"))).await;
    let options = ClientOptions {
        plain_http: [wire.host.clone()].into(),
        ..ClientOptions::default()
    };
    let credentials = Credentials::anonymous()
        .with_cloud_identity(&wire.host, Provider::Aws, Environment::new())
        .with_password(&wire.host, "user", "given");
    let client = Client::new(options, credentials).unwrap();
    ask(&client, &wire.host).await.unwrap();
}

#[rstest::rstest]
#[case::amazon(Provider::Aws, &[("AWS_REGION", "r")], "AWS_ROLE_ARN")]
#[case::amazon_s_region(Provider::Aws, &[], "AWS_REGION")]
#[case::azure(Provider::Azure, &[], "AZURE_TENANT_ID")]
#[case::google_s_key(Provider::Google, &[("GOOGLE_APPLICATION_CREDENTIALS", "KEY")], "external_account")]
#[case::google_s_file(Provider::Google, &[("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file")], "/no/such/file")]
#[tokio::test]
async fn an_identity_that_is_not_there_is_named(
    #[case] provider: Provider,
    #[case] variables: &[(&str, &str)],
    #[case] named: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key.json");
    std::fs::write(&key, r#"{"type":"service_account","private_key":"secret-words"}"#).unwrap();
    let mut variables = environment(variables);
    for value in variables.values_mut().filter(|value| *value == "KEY") {
        key.to_str().unwrap().clone_into(value);
    }
    let wire = Wire::start(|_, heard| registry(heard, "nothing")).await;
    let error = ask(&client(&wire.host, provider, variables), &wire.host)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(named) && !error.contains("secret-words"),
        "{error}"
    );
}
