//! A proxy that was given for a registry: everything that concerns the registry goes through it, and nothing else.

use super::describe;
use crate::{
    record::Reason,
    registry::{
        Client, ClientOptions, Credentials,
        testing::wire::{Wire, answer},
    },
};

/// A name that nobody but the proxy can resolve.
const REGISTRY: &str = "registry.invalid";

fn client(proxy: &str) -> Client {
    let options = ClientOptions {
        plain_http: [REGISTRY.to_owned()].into(),
        proxies: vec![(REGISTRY.to_owned(), format!("http://{proxy}"))],
        ..ClientOptions::default()
    };
    Client::new(options, Credentials::anonymous()).unwrap()
}

#[tokio::test]
async fn a_registry_its_token_server_and_its_storage_are_asked_through_its_proxy() {
    let proxy = Wire::start(|_, heard| {
        let (_, url) = heard.line.split_once(' ').unwrap();
        if url.starts_with("http://auth.invalid/token?") {
            return answer(200, &[], r#"{"token":"t"}"#);
        }
        if url.starts_with("http://storage.invalid/") {
            return answer(200, &[], "hello");
        }
        if heard.header("authorization").is_none() {
            let challenge = r#"Bearer realm="http://auth.invalid/token",service="s""#;
            return answer(401, &[("www-authenticate", challenge)], "");
        }
        answer(307, &[("location", "http://storage.invalid/blob")], "")
    })
    .await;
    let repository = client(&proxy.host).repository(REGISTRY, "a");
    let read = repository.blob_bytes(&describe(b"hello"), 5).await.unwrap();
    assert_eq!(read, "hello");
    let hosts: Vec<String> = proxy
        .heard()
        .iter()
        .map(|heard| {
            assert_eq!(heard.header("proxy-authorization"), None);
            let (_, rest) = heard.line.split_once("http://").unwrap();
            rest.split('/').next().unwrap_or_default().to_owned()
        })
        .collect();
    assert_eq!(hosts, [REGISTRY, "auth.invalid", REGISTRY, "storage.invalid"]);
}

#[tokio::test]
async fn a_registry_behind_a_proxy_cannot_send_the_client_to_the_addresses_of_the_cloud() {
    let proxy = Wire::start(|_, _| answer(307, &[("location", "http://169.254.169.254/latest")], "")).await;
    let repository = client(&proxy.host).repository(REGISTRY, "a");
    let error = repository.blob_bytes(&describe(b"hello"), 5).await.unwrap_err();
    assert_eq!(error.reason(), Reason::OriginForbidden);
    assert_eq!(proxy.heard().len(), 1);
}

#[tokio::test]
async fn a_proxy_that_is_down_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = listener.local_addr().unwrap().to_string();
    drop(listener);
    let options = ClientOptions {
        backoff: crate::registry::Backoff {
            first: std::time::Duration::from_millis(1),
            ..crate::registry::Backoff::default()
        },
        ..client(&gone).network.options.clone()
    };
    let client = Client::new(options, Credentials::anonymous()).unwrap();
    let repository = client.repository(REGISTRY, "a");
    let error = repository
        .head_blob(&describe(b"hello").digest)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::RegistryUnavailable);
    assert!(error.is_passing());
    assert!(
        error.to_string().contains(&format!("the proxy {gone}")),
        "{error}"
    );
}

#[test]
fn a_proxy_that_is_none_is_refused_by_its_registry() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    for proxy in ["proxy.test:3128", "socks5://proxy.test", "http://"] {
        let options = ClientOptions {
            proxies: vec![(REGISTRY.to_owned(), proxy.to_owned())],
            ..ClientOptions::default()
        };
        let error = Client::new(options, Credentials::anonymous())
            .unwrap_err()
            .to_string();
        assert!(error.contains(REGISTRY), "{error}");
    }
}
