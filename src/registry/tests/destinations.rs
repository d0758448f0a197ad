//! Where requests go: never where a registry has no right to send them.

use bytes::Bytes;
use http::Method;
use rstest::rstest;

use super::describe;
use crate::{
    image::Digest,
    record::Reason,
    registry::{
        BytesSource, Client, ClientOptions, Credentials, RegistryError,
        testing::{Fault, FaultRegistry},
    },
};

#[rstest]
#[case::repository("a/../b", "registry")]
#[case::query("a?x", "registry")]
#[case::empty("", "registry")]
#[case::registry("a", "registry/v1")]
#[case::user_information("a", "user@registry.io")]
#[tokio::test]
async fn names_that_are_none_are_never_asked_for(#[case] repository: &str, #[case] registry: &str) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::new(ClientOptions::default(), Credentials::anonymous()).unwrap();
    let repository = client.repository(&format!("{registry}:5000"), repository);
    let error = repository.head_blob(&Digest::of(b"x")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Name(_)));
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unavailable() {
    let registry = FaultRegistry::start().await;
    let mut options = registry.options();
    options.plain_http.insert("127.0.0.1:1".into());
    let client = Client::new(options, Credentials::anonymous()).unwrap();
    let repository = client.repository("127.0.0.1:1", "a");
    let error = repository.head_blob(&Digest::of(b"x")).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RegistryUnavailable);
    assert!(error.to_string().contains("refused"), "{error}");
}

#[rstest]
#[case::missing(None, Reason::RegistryUnavailable)]
#[case::other_scheme(Some("javascript:alert(1)"), Reason::OriginForbidden)]
#[case::user_information(Some("http://u:p@127.0.0.1/x"), Reason::OriginForbidden)]
#[case::no_url(Some("http://[::bad"), Reason::OriginForbidden)]
#[case::elsewhere(Some("http://127.0.0.1:1/x"), Reason::OriginForbidden)]
#[tokio::test]
async fn a_location_that_leads_astray_ends_the_upload(
    #[case] location: Option<&str>,
    #[case] reason: Reason,
) {
    let registry = FaultRegistry::start().await;
    let location = location.map(str::to_owned);
    registry.fault(1, Method::POST, "uploads", Fault::Header("location", location));
    let source = BytesSource(Bytes::from_static(b"hello"));
    let error = registry
        .anonymous("a")
        .upload_blob(&describe(b"hello"), &source)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), reason);
}

#[rstest]
#[case::absolute("http://{host}/v2/a/blobs/uploads/{id}?_state=a%3Db%2Fc")]
#[case::network_path("//{host}/v2/a/blobs/uploads/{id}?_state=a%3Db%2Fc")]
#[case::relative("{id}?_state=a%3Db%2Fc")]
#[tokio::test]
async fn a_location_may_be_written_in_every_form(#[case] form: &str) {
    let registry = FaultRegistry::start().await;
    // The first name that the registry gives.
    let location = form
        .replace("{host}", &registry.host())
        .replace("{id}", "upload-1");
    registry.fault(
        1,
        Method::POST,
        "uploads",
        Fault::Header("location", Some(location)),
    );
    let source = BytesSource(Bytes::from_static(b"hello"));
    registry
        .anonymous("a")
        .upload_blob(&describe(b"hello"), &source)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_foreign_upload_that_is_allowed_sees_no_credential() {
    let registry = FaultRegistry::behind(crate::registry::testing::Door::Basic).await;
    let store = FaultRegistry::start().await;
    store.fault(
        1,
        Method::PUT,
        "/bucket",
        Fault::Answer(201, vec![], String::new()),
    );
    let location = format!("http://{}/bucket?signature=x", store.host());
    registry.fault(
        1,
        Method::POST,
        "uploads",
        Fault::Answer(202, vec![("location", location)], String::new()),
    );
    let mut options = registry.options();
    options.foreign_uploads = true;
    let client = Client::new(options, registry.credentials()).unwrap();
    let repository = client.repository(&registry.host(), "a");
    let source = BytesSource(Bytes::from_static(b"hello"));
    let digest = describe(b"hello");
    // The store does not tell the registry, so that the proof fails and the registry gets it after all.
    repository.send_blob(&digest, &source, None, None).await.unwrap();
    let seen = store.log();
    assert_eq!(seen.len(), 1);
    assert_eq!(
        seen[0].query,
        format!("signature=x&digest=sha256%3A{}", digest.digest.hex())
    );
    assert!(seen[0].headers.get("authorization").is_none());
    assert_eq!(seen[0].body, 5);
}

#[tokio::test]
async fn a_redirected_read_leaves_the_credential_behind() {
    let registry = FaultRegistry::behind(crate::registry::testing::Door::Basic).await;
    let store = FaultRegistry::start().await;
    let digest = store.put_blob("bucket", b"hello");
    let location = format!("http://{}/v2/bucket/blobs/{digest}", store.host());
    registry.fault(
        2,
        Method::GET,
        "blobs",
        Fault::Answer(307, vec![("location", location)], String::new()),
    );
    let repository = registry.repository("a");
    // The registry learns who asks.
    assert_eq!(repository.head_blob(&digest).await.unwrap(), None);
    assert_eq!(
        repository.blob_bytes(&describe(b"hello"), 9).await.unwrap(),
        "hello"
    );
    assert!(
        store
            .log()
            .iter()
            .all(|seen| seen.headers.get("authorization").is_none())
    );
    let known = |seen: &crate::registry::testing::Seen| seen.headers.contains_key("authorization");
    assert!(
        registry
            .log()
            .iter()
            .any(|seen| seen.method == Method::GET && known(seen))
    );
}

#[tokio::test]
async fn redirects_end() {
    let registry = FaultRegistry::start().await;
    let round = vec![("location", "/v2/a/blobs/again".to_owned())];
    registry.fault(
        99,
        Method::HEAD,
        "blobs",
        Fault::Answer(302, round, String::new()),
    );
    let error = registry
        .anonymous("a")
        .head_blob(&Digest::of(b"x"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::OriginForbidden);
    assert_eq!(registry.log().len(), 6);
}

#[rstest]
#[case::metadata("http://169.254.169.254/latest/meta-data")]
#[case::mapped("http://[::ffff:169.254.169.254]/")]
#[case::no_address("http://0.0.0.0/")]
#[case::link("http://[fe80::1]/")]
#[tokio::test]
async fn a_registry_cannot_send_the_client_to_the_addresses_of_the_cloud(#[case] url: &str) {
    let registry = FaultRegistry::start().await;
    let elsewhere = vec![("location", url.to_owned())];
    registry.fault(
        1,
        Method::GET,
        "/blobs/",
        Fault::Answer(307, elsewhere, String::new()),
    );
    let error = registry
        .repository("a")
        .blob_bytes(&describe(b"hello"), 5)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::OriginForbidden, "{error}");
}
