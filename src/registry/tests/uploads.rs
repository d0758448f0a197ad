//! Blobs that are sent: once, mounted where that works, resumed where they broke.

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::Method;
use rstest::rstest;

use super::{content, describe};
use crate::{
    image::Digest,
    record::Reason,
    registry::{
        BlobSource, BytesSource, FileSource, Mount, RegistryError, RepositoryBlob, Uploaded,
        testing::{Fault, FaultRegistry},
    },
};

const BIG: usize = 3 << 20;

#[rstest]
#[case::usual(b"hello" as &[u8])]
#[case::nothing(b"")]
#[case::empty_object(b"{}")]
#[tokio::test]
async fn a_blob_is_sent_once_and_then_known(#[case] bytes: &'static [u8]) {
    let registry = FaultRegistry::start().await;
    let repository = registry.anonymous("a");
    let source = BytesSource(Bytes::from_static(bytes));
    let sent = Uploaded::Sent {
        bytes: bytes.len() as u64,
        resumed: 0,
    };
    assert_eq!(
        repository.upload_blob(&describe(bytes), &source).await.unwrap(),
        sent
    );
    assert_eq!(registry.blob("a", &Digest::of(bytes)).unwrap(), bytes);
    registry.forget_log();
    let again = repository.upload_blob(&describe(bytes), &source).await.unwrap();
    assert_eq!(again, Uploaded::Existed);
    assert_eq!(
        registry.requests(),
        [format!("HEAD /v2/a/blobs/{}", Digest::of(bytes))]
    );
}

#[tokio::test]
async fn a_blob_comes_from_a_file_or_from_another_registry_as_well() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let bytes = content(BIG);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let source = FileSource(file.path().to_owned());
    from.anonymous("a")
        .upload_blob(&describe(&bytes), &source)
        .await
        .unwrap();
    let source = RepositoryBlob {
        repository: from.anonymous("a"),
        descriptor: describe(&bytes),
    };
    to.anonymous("b")
        .upload_blob(&describe(&bytes), &source)
        .await
        .unwrap();
    assert_eq!(to.blob("b", &Digest::of(&bytes)).unwrap(), bytes);
}

#[tokio::test]
async fn every_source_opens_where_it_is_asked_to() {
    let registry = FaultRegistry::start().await;
    let bytes = content(1000);
    registry.put_blob("a", &bytes);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let remote = RepositoryBlob {
        repository: registry.anonymous("a"),
        descriptor: describe(&bytes),
    };
    for offset in [0, 1, 999, 1000] {
        let rest = bytes.slice(usize::try_from(offset).unwrap()..);
        assert_eq!(opened(&BytesSource(bytes.clone()), offset).await, rest);
        assert_eq!(opened(&FileSource(file.path().to_owned()), offset).await, rest);
        assert_eq!(opened(&remote, offset).await, rest);
    }
}

async fn opened(source: &impl BlobSource, offset: u64) -> Bytes {
    let parts: Vec<Bytes> = source.open(offset).await.unwrap().try_collect().await.unwrap();
    parts.concat().into()
}

#[tokio::test]
async fn an_upload_goes_on_where_the_connection_broke() {
    let registry = FaultRegistry::start().await;
    let bytes = content(BIG);
    registry.fault(1, Method::PUT, "uploads", Fault::BreakAfter(2 << 20));
    let uploaded = registry
        .anonymous("a")
        .upload_blob(&describe(&bytes), &BytesSource(bytes.clone()))
        .await
        .unwrap();
    assert!(matches!(uploaded, Uploaded::Sent { resumed: 1, .. }));
    assert_eq!(registry.blob("a", &Digest::of(&bytes)).unwrap(), bytes);
    // No byte that the registry had was sent again.
    assert_eq!(registry.received(), BIG as u64);
    assert_eq!(registry.count(&Method::POST, "uploads"), 1);
}

/// Breaks that leave so much each time.
fn break_often(registry: &FaultRegistry, times: usize) {
    registry.fault(times, Method::PUT, "uploads", Fault::BreakAfter(100_000));
}

#[tokio::test]
async fn a_line_that_breaks_often_is_given_little_at_a_time() {
    let registry = FaultRegistry::start().await;
    let bytes = content(3 * BIG);
    break_often(&registry, 2);
    registry.fault(2, Method::PATCH, "uploads", Fault::BreakAfter(1_000_000));
    let uploaded = registry
        .anonymous("a")
        .upload_blob(&describe(&bytes), &BytesSource(bytes.clone()))
        .await
        .unwrap();
    assert!(
        matches!(uploaded, Uploaded::Sent { resumed: 4, .. }),
        "{uploaded:?}"
    );
    assert_eq!(registry.blob("a", &Digest::of(&bytes)).unwrap(), bytes);
    assert_eq!(registry.received(), 3 * BIG as u64);
    let largest = registry.log().iter().map(|seen| seen.body).max();
    assert!(largest <= Some(2 << 20), "{largest:?}");
}

#[rstest]
#[case::elsewhere(Fault::Header("location", Some("http://other.invalid/x".into())), Reason::OriginForbidden)]
#[case::denied(Fault::Answer(403, vec![], String::new()), Reason::PushDenied)]
#[tokio::test]
async fn a_refusal_that_is_not_about_the_part_ends_the_upload(
    #[case] fault: Fault,
    #[case] expected: Reason,
) {
    let registry = FaultRegistry::start().await;
    let bytes = content(3 * BIG);
    break_often(&registry, 2);
    registry.fault(9, Method::PATCH, "uploads", fault);
    let error = registry
        .anonymous("a")
        .upload_blob(&describe(&bytes), &BytesSource(bytes.clone()))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), expected);
    assert_eq!(registry.count(&Method::PATCH, "uploads"), 1);
    // Those that broke, and none after the refusal.
    assert_eq!(registry.count(&Method::PUT, "uploads"), 2);
}

#[rstest]
#[case::not_offered(None)]
#[case::unknown(Some(Fault::Answer(404, vec![], String::new())))]
#[case::too_small(Some(Fault::Answer(400, vec![], String::new())))]
#[case::another_part(Some(Fault::Header("range", Some("0-99".into()))))]
#[tokio::test]
async fn a_registry_that_takes_no_part_gets_the_whole(#[case] fault: Option<Fault>) {
    let registry = FaultRegistry::start().await;
    let registry = registry.without(|features| features.pieces = fault.is_some());
    if let Some(fault) = fault {
        registry.fault(9, Method::PATCH, "uploads", fault);
    }
    let repository = registry.anonymous("a");
    let bytes = content(3 * BIG);
    break_often(&registry, 2);
    repository
        .upload_blob(&describe(&bytes), &BytesSource(bytes.clone()))
        .await
        .unwrap();
    assert_eq!(registry.blob("a", &Digest::of(&bytes)).unwrap(), bytes);
    assert_eq!(registry.count(&Method::PATCH, "uploads"), 1);
    // What was confirmed before is not sent again, only what was refused.
    let sent = registry.received();
    assert!(sent <= (3 * BIG + (2 << 20)) as u64, "{sent}");
    assert_eq!(registry.count(&Method::POST, "uploads"), 1);
    // The next one is not asked about.
    let more = content(3 * BIG + 1);
    break_often(&registry, 1);
    repository
        .upload_blob(&describe(&more), &BytesSource(more.clone()))
        .await
        .unwrap();
    assert_eq!(registry.count(&Method::PATCH, "uploads"), 1);
}

#[tokio::test]
async fn an_upload_that_the_registry_forgot_starts_again() {
    let registry = FaultRegistry::start().await;
    let bytes = content(BIG);
    registry.fault(1, Method::PUT, "uploads", Fault::BreakAfter(2 << 20));
    registry.fault(
        1,
        Method::GET,
        "uploads",
        Fault::Answer(404, vec![], String::new()),
    );
    let uploaded = registry
        .anonymous("a")
        .upload_blob(&describe(&bytes), &BytesSource(bytes.clone()))
        .await
        .unwrap();
    assert!(matches!(uploaded, Uploaded::Sent { resumed: 0, .. }));
    assert_eq!(registry.blob("a", &Digest::of(&bytes)).unwrap(), bytes);
    assert_eq!(registry.count(&Method::POST, "uploads"), 2);
    assert_eq!(registry.count(&Method::DELETE, "uploads"), 1);
}

#[rstest]
#[case::one_byte_or_none("0-0")]
#[case::more_than_was_sent("0-99999999")]
#[case::nonsense("later")]
#[tokio::test]
async fn a_range_that_cannot_be_trusted_is_not(#[case] range: &str) {
    let registry = FaultRegistry::start().await;
    let bytes = content(BIG);
    registry.fault(1, Method::PUT, "uploads", Fault::BreakAfter(2 << 20));
    registry.fault(
        1,
        Method::GET,
        "uploads",
        Fault::Header("range", Some(range.into())),
    );
    let source = BytesSource(bytes.clone());
    registry
        .anonymous("a")
        .upload_blob(&describe(&bytes), &source)
        .await
        .unwrap();
    assert_eq!(registry.blob("a", &Digest::of(&bytes)).unwrap(), bytes);
    assert_eq!(registry.count(&Method::POST, "uploads"), 2);
}

#[tokio::test]
async fn an_upload_whose_confirmation_was_lost_is_not_sent_again() {
    let registry = FaultRegistry::start().await;
    let bytes = content(BIG);
    registry.fault(1, Method::PUT, "uploads", Fault::LoseAnswer);
    let source = BytesSource(bytes.clone());
    registry
        .anonymous("a")
        .upload_blob(&describe(&bytes), &source)
        .await
        .unwrap();
    assert_eq!(registry.received(), BIG as u64);
}

#[rstest]
#[case::too_many_requests(429)]
#[case::server_error(500)]
#[case::bad_gateway(502)]
#[case::unavailable(503)]
#[tokio::test]
async fn what_passes_is_waited_for(#[case] status: u16) {
    let registry = FaultRegistry::start().await;
    let answer = || Fault::Answer(status, vec![], "<html>".into());
    registry.fault(2, Method::HEAD, "blobs", answer());
    registry.fault(1, Method::POST, "uploads", answer());
    registry.fault(1, Method::PUT, "uploads", answer());
    let source = BytesSource(Bytes::from_static(b"hello"));
    registry
        .anonymous("a")
        .upload_blob(&describe(b"hello"), &source)
        .await
        .unwrap();
}

#[rstest]
#[case::bad_request(400, Reason::PushRefused)]
#[case::forbidden(403, Reason::PushDenied)]
#[case::no_repository(404, Reason::RepositoryNotFound)]
#[case::not_allowed(405, Reason::PushRefused)]
#[tokio::test]
async fn what_does_not_pass_is_reported_at_once(#[case] status: u16, #[case] reason: Reason) {
    let registry = FaultRegistry::start().await;
    registry.fault(
        9,
        Method::POST,
        "uploads",
        Fault::Answer(status, vec![], "no".into()),
    );
    let source = BytesSource(Bytes::from_static(b"hello"));
    let error = registry
        .anonymous("a")
        .upload_blob(&describe(b"hello"), &source)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), reason);
    assert_eq!(registry.count(&Method::POST, "uploads"), 1);
}

#[tokio::test]
async fn a_registry_that_always_fails_is_given_up() {
    let registry = FaultRegistry::start().await;
    registry.fault(
        99,
        Method::PUT,
        "uploads",
        Fault::Answer(500, vec![], String::new()),
    );
    let source = BytesSource(Bytes::from_static(b"hello"));
    let error = registry
        .anonymous("a")
        .upload_blob(&describe(b"hello"), &source)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::RegistryUnavailable);
    assert_eq!(registry.count(&Method::PUT, "uploads"), 4);
}

#[tokio::test]
async fn an_origin_that_wants_a_long_rest_is_not_asked_again() {
    let registry = FaultRegistry::start().await;
    let after = vec![("retry-after", "120".to_owned())];
    registry.fault(1, Method::HEAD, "blobs", Fault::Answer(429, after, String::new()));
    let repository = registry.anonymous("a");
    let error = repository.head_blob(&Digest::of(b"x")).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RateLimited);
    assert_eq!(error.retry_after().map(|time| time.as_secs()), Some(120));
    // Another repository of it is told so without a request.
    let other = repository.client().repository(&registry.host(), "b");
    let error = other.head_blob(&Digest::of(b"x")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Resting { .. }));
    assert!(error.retry_after().is_some_and(|time| time.as_secs() > 100));
    assert_eq!(registry.log().len(), 1);
}

#[tokio::test]
async fn a_registry_that_keeps_less_than_it_confirmed_is_found_out() {
    let registry = FaultRegistry::start().await;
    let blob = describe(b"hello");
    let lie = || Fault::Answer(200, vec![("content-length", "3".into())], String::new());
    registry.fault(
        1,
        Method::HEAD,
        "blobs",
        Fault::Answer(404, vec![], String::new()),
    );
    registry.fault(2, Method::HEAD, "blobs", lie());
    let source = BytesSource(Bytes::from_static(b"hello"));
    let error = registry
        .anonymous("a")
        .upload_blob(&blob, &source)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::VerificationFailed);
    assert_eq!(registry.count(&Method::PUT, "uploads"), 2);
}

#[tokio::test]
async fn content_that_is_not_what_it_is_called_never_arrives_whole() {
    let registry = FaultRegistry::start().await;
    let bytes = content(BIG);
    let mut blob = describe(&bytes);
    blob.digest = Digest::of(b"something else");
    let source = BytesSource(bytes);
    let error = registry
        .anonymous("a")
        .upload_blob(&blob, &source)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::DigestMismatch);
    assert!(registry.blob("a", &blob.digest).is_none());
    assert_eq!(registry.count(&Method::DELETE, "uploads"), 1);
}

#[rstest]
#[case::shorter(4, Reason::SizeMismatch)]
#[case::longer(6, Reason::SizeMismatch)]
#[tokio::test]
async fn content_of_another_size_is_refused(#[case] size: u64, #[case] reason: Reason) {
    let registry = FaultRegistry::start().await;
    let mut blob = describe(b"hello");
    blob.size = size;
    let source = BytesSource(Bytes::from_static(b"hello"));
    let error = registry
        .anonymous("a")
        .upload_blob(&blob, &source)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), reason);
    assert_eq!(registry.count(&Method::PUT, "uploads"), 0);
}

#[tokio::test]
async fn a_mount_costs_one_request() {
    let registry = FaultRegistry::start().await;
    let digest = registry.put_blob("from", b"hello");
    let mount = registry
        .anonymous("to")
        .mount_blob(&digest, "from")
        .await
        .unwrap();
    assert!(matches!(mount, Mount::Mounted));
    assert!(registry.blob("to", &digest).is_some());
    assert_eq!(registry.log().len(), 1);
}

#[tokio::test]
async fn the_upload_that_a_registry_opens_instead_of_a_mount_is_used() {
    let registry = FaultRegistry::start().await;
    let repository = registry.anonymous("to");
    let blob = describe(b"hello");
    let Mount::Upload(pending) = repository.mount_blob(&blob.digest, "from").await.unwrap() else {
        panic!("an upload")
    };
    let source = BytesSource(Bytes::from_static(b"hello"));
    repository
        .send_blob(&blob, &source, Some(pending), None)
        .await
        .unwrap();
    assert_eq!(registry.count(&Method::POST, "uploads"), 1);
    assert!(registry.blob("to", &blob.digest).is_some());
}

#[rstest]
#[case(400)]
#[case(401)]
#[case(403)]
#[case(404)]
#[case(405)]
#[case(500)]
#[tokio::test]
async fn a_registry_that_does_not_mount_is_no_error(#[case] status: u16) {
    let registry = FaultRegistry::start().await;
    registry.fault(
        1,
        Method::POST,
        "mount",
        Fault::Answer(status, vec![], String::new()),
    );
    let mount = registry
        .anonymous("to")
        .mount_blob(&Digest::of(b"x"), "from")
        .await
        .unwrap();
    assert!(matches!(mount, Mount::Unavailable));
}

#[rstest]
#[case::forbidden(403)]
#[case::not_allowed(405)]
#[tokio::test]
async fn a_head_that_is_not_answered_is_no_reason_not_to_send(#[case] status: u16) {
    let registry = FaultRegistry::start().await;
    registry.fault(
        99,
        Method::HEAD,
        "/blobs/",
        Fault::Answer(status, vec![], String::new()),
    );
    let source = BytesSource(Bytes::from_static(b"hello"));
    let sent = registry
        .anonymous("a")
        .upload_blob(&describe(b"hello"), &source)
        .await;
    assert!(matches!(sent.unwrap(), Uploaded::Sent { bytes: 5, .. }));
}

#[tokio::test]
async fn an_upload_without_a_location_is_a_protocol_error() {
    let registry = FaultRegistry::start().await;
    registry.fault(1, Method::POST, "uploads", Fault::Header("location", None));
    let source = BytesSource(Bytes::from_static(b"hello"));
    let error = registry
        .anonymous("a")
        .upload_blob(&describe(b"hello"), &source)
        .await;
    assert!(matches!(error, Err(RegistryError::Protocol { .. })), "{error:?}");
}
