//! Manifests and tags.

use bytes::Bytes;
use http::Method;
use rstest::rstest;
use serde_json::json;

use crate::{
    image::{Digest, media_type},
    record::Reason,
    registry::{
        RegistryError,
        testing::{Fault, FaultRegistry},
    },
};

#[tokio::test]
async fn a_manifest_is_its_bytes() {
    let registry = FaultRegistry::start().await;
    let descriptor = registry.put_image("a", &[b"layer"]);
    registry.tag("a", "v1", &descriptor.digest);
    let repository = registry.anonymous("a");
    for reference in ["v1", descriptor.digest.as_str()] {
        let manifest = repository.manifest(reference).await.unwrap().unwrap();
        assert_eq!(manifest.digest, descriptor.digest);
        assert_eq!(manifest.media_type, media_type::OCI_MANIFEST);
        assert_eq!(Digest::of(&manifest.bytes), descriptor.digest);
        assert_eq!(
            repository.head_manifest(reference).await.unwrap(),
            Some((descriptor.digest.clone(), descriptor.size))
        );
    }
    assert_eq!(repository.manifest("v2").await.unwrap(), None);
    assert_eq!(repository.head_manifest("v2").await.unwrap(), None);
}

#[rstest]
#[case::other_content(Fault::Says(b"{\"schemaVersion\":2}".to_vec()), Reason::DigestMismatch)]
#[case::other_type(Fault::Header("content-type", Some(media_type::OCI_INDEX.into())), Reason::MediaTypeAmbiguous)]
#[tokio::test]
async fn a_registry_that_lies_is_found_out(#[case] fault: Fault, #[case] reason: Reason) {
    let registry = FaultRegistry::start().await;
    let descriptor = registry.put_image("a", &[b"layer"]);
    registry.tag("a", "v1", &descriptor.digest);
    registry.fault(2, Method::GET, "manifests", fault);
    let repository = registry.anonymous("a");
    for reference in ["v1", descriptor.digest.as_str()] {
        let error = repository.manifest(reference).await.unwrap_err();
        assert_eq!(error.reason(), reason);
    }
}

#[tokio::test]
async fn parameters_of_a_content_type_do_not_matter() {
    let registry = FaultRegistry::start().await;
    let descriptor = registry.put_image("a", &[b"layer"]);
    let with_parameter = format!("{}; charset=utf-8", media_type::OCI_MANIFEST);
    registry.fault(
        1,
        Method::GET,
        "manifests",
        Fault::Header("content-type", Some(with_parameter)),
    );
    let found = registry
        .anonymous("a")
        .manifest(descriptor.digest.as_str())
        .await
        .unwrap();
    assert_eq!(found.unwrap().media_type, media_type::OCI_MANIFEST);
}

#[tokio::test]
async fn a_head_that_says_no_digest_is_followed_by_a_get() {
    let registry = FaultRegistry::start().await;
    let descriptor = registry.put_image("a", &[b"layer"]);
    registry.tag("a", "v1", &descriptor.digest);
    registry.fault(
        1,
        Method::HEAD,
        "manifests",
        Fault::Header("docker-content-digest", None),
    );
    let found = registry.anonymous("a").head_manifest("v1").await.unwrap();
    assert_eq!(found, Some((descriptor.digest, descriptor.size)));
    assert_eq!(registry.count(&Method::GET, "manifests"), 1);
}

#[tokio::test]
async fn a_manifest_without_end_is_not_read_to_its_end() {
    let registry = FaultRegistry::start().await;
    registry.fault(
        1,
        Method::GET,
        "manifests",
        Fault::Answer(200, vec![], " ".repeat(5 << 20)),
    );
    let error = registry.anonymous("a").manifest("v1").await.unwrap_err();
    assert_eq!(error.reason(), Reason::LimitExceeded);
}

#[tokio::test]
async fn a_manifest_is_written_as_it_is() {
    let registry = FaultRegistry::start().await;
    let config = registry.put_blob("a", b"{}");
    let bytes = Bytes::from(format!(
        "{{ \"schemaVersion\":2, \"config\":{{\"mediaType\":\"x\",\"digest\":\"{config}\",\"size\":2}},\"layers\":[] }}"
    ));
    let repository = registry.anonymous("a");
    let digest = repository
        .put_manifest("v1", media_type::OCI_MANIFEST, &bytes)
        .await
        .unwrap();
    assert_eq!(digest, Digest::of(&bytes));
    assert_eq!(repository.manifest("v1").await.unwrap().unwrap().bytes, bytes);
    // A lost answer changes nothing.
    registry.fault(1, Method::PUT, "manifests", Fault::LoseAnswer);
    repository
        .put_manifest(digest.as_str(), media_type::OCI_MANIFEST, &bytes)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_manifest_that_is_refused_or_stored_otherwise_is_an_error() {
    let registry = FaultRegistry::start().await;
    let repository = registry.anonymous("a");
    let document = json!({"schemaVersion": 2, "layers": [{"digest": Digest::of(b"missing")}]});
    let bytes = Bytes::from(document.to_string());
    let error = repository
        .put_manifest("v1", media_type::OCI_MANIFEST, &bytes)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some("MANIFEST_BLOB_UNKNOWN"));
    let RegistryError::Answered { refusal, .. } = error else {
        panic!("an answer")
    };
    assert_eq!(refusal.named, [Digest::of(b"missing")]);
    let other = vec![("docker-content-digest", Digest::of(b"other").to_string())];
    registry.fault(
        1,
        Method::PUT,
        "manifests",
        Fault::Answer(201, other, String::new()),
    );
    let error = repository
        .put_manifest("v1", media_type::OCI_MANIFEST, &bytes)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::DigestMismatch);
    let large = Bytes::from(vec![b' '; (4 << 20) + 1]);
    let error = repository
        .put_manifest("v1", media_type::OCI_MANIFEST, &large)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::LimitExceeded);
}

#[tokio::test]
async fn all_pages_of_tags_are_read() {
    let registry = FaultRegistry::start().await;
    let digest = registry.put_image("a", &[b"layer"]).digest;
    for tag in ["a", "b", "c", "d", "e"] {
        registry.tag("a", tag, &digest);
    }
    let tags = registry.anonymous("a").tags().await.unwrap();
    assert_eq!(tags, ["a", "b", "c", "d", "e"]);
    registry.fault(1, Method::GET, "tags", Fault::Says(b"{\"tags\":null}".to_vec()));
    assert!(registry.anonymous("a").tags().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_next_page_elsewhere_is_not_asked_for() {
    let (registry, other) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let link = format!("<http://{}/v2/a/tags/list>; rel=\"next\"", other.host());
    let page = "{\"tags\":[\"a\"]}".to_owned();
    registry.fault(
        1,
        Method::GET,
        "tags",
        Fault::Answer(200, vec![("link", link)], page),
    );
    let error = registry.anonymous("a").tags().await.unwrap_err();
    assert_eq!(error.reason(), Reason::OriginForbidden);
    assert!(other.log().is_empty());
}

#[rstest]
#[case("../blobs/x")]
#[case("a/b")]
#[case("")]
#[case("sha256:zz")]
#[tokio::test]
async fn a_reference_that_is_neither_tag_nor_digest_is_never_asked_for(#[case] reference: &str) {
    let registry = FaultRegistry::start().await;
    let repository = registry.anonymous("a");
    assert!(matches!(
        repository.manifest(reference).await,
        Err(RegistryError::Name(_))
    ));
    assert!(registry.log().is_empty());
}
