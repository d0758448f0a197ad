//! Blobs: read with proof, sent once, mounted, resumed, in pieces.

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::Method;
use rstest::rstest;

use super::{content, describe};
use crate::{
    image::Digest,
    record::Reason,
    registry::{
        BlobSource, BytesSource, Client, ClientOptions, Credentials, FileSource, Mount, RegistryError,
        RepositoryBlob, Uploaded,
        testing::{Fault, FaultRegistry},
        upload::PIECE,
    },
};

const BIG: usize = 3 << 20;

async fn read(
    repository: &crate::registry::Repository,
    bytes: &[u8],
    offset: u64,
) -> Result<Bytes, RegistryError> {
    let parts: Vec<Bytes> = repository
        .open_blob(&describe(bytes), offset)
        .await?
        .try_collect()
        .await?;
    Ok(parts.concat().into())
}

#[tokio::test]
async fn a_blob_s_size_is_what_head_says() {
    let registry = FaultRegistry::start().await;
    let repository = registry.anonymous("team/app");
    let digest = registry.put_blob("team/app", b"hello");
    assert_eq!(repository.head_blob(&digest).await.unwrap(), Some(5));
    assert_eq!(repository.head_blob(&Digest::of(b"x")).await.unwrap(), None);
}

#[tokio::test]
async fn a_size_is_also_known_from_a_read_of_one_byte() {
    let registry = FaultRegistry::start().await;
    let digest = registry.put_blob("a", b"hello");
    let found = registry.anonymous("a").size_by_range(&digest).await.unwrap();
    assert_eq!(found, Some(5));
}

#[tokio::test]
async fn a_small_blob_is_proven() {
    let registry = FaultRegistry::start().await;
    let repository = registry.anonymous("a");
    let blob = describe(b"hello");
    registry.put_blob("a", b"hello");
    assert_eq!(repository.blob_bytes(&blob, 100).await.unwrap(), "hello");
    assert!(matches!(
        repository.blob_bytes(&blob, 4).await,
        Err(RegistryError::TooLarge { limit: 4, .. })
    ));
    registry.fault(1, Method::GET, "/blobs/", Fault::Says(b"jello".to_vec()));
    let error = repository.blob_bytes(&blob, 100).await.unwrap_err();
    assert_eq!(error.reason(), Reason::DigestMismatch);
    registry.fault(1, Method::GET, "/blobs/", Fault::Says(b"hello, world".to_vec()));
    let error = repository.blob_bytes(&blob, 100).await.unwrap_err();
    assert_eq!(error.reason(), Reason::SizeMismatch);
}

#[tokio::test]
async fn a_read_goes_on_where_it_broke() {
    let registry = FaultRegistry::start().await;
    let bytes = content(BIG);
    registry.put_blob("a", &bytes);
    registry.fault(2, Method::GET, "/blobs/", Fault::CutAnswer(1 << 20));
    assert_eq!(read(&registry.anonymous("a"), &bytes, 0).await.unwrap(), bytes);
    let ranges: Vec<_> = registry
        .log()
        .iter()
        .map(|seen| {
            seen.headers
                .get("range")
                .map(|range| range.to_str().unwrap().to_owned())
        })
        .collect();
    assert_eq!(ranges.len(), 3);
    assert!(ranges[0].is_none() && ranges[1..].iter().all(Option::is_some));
}

#[tokio::test]
async fn a_read_from_an_offset_reads_past_what_a_registry_without_ranges_sends() {
    let registry = FaultRegistry::start().await;
    let bytes = content(BIG);
    registry.put_blob("a", &bytes);
    let repository = registry.anonymous("a");
    registry.fault(1, Method::GET, "/blobs/", Fault::NoRanges);
    assert_eq!(
        read(&repository, &bytes, 1 << 20).await.unwrap(),
        bytes.slice(1 << 20..)
    );
    let other_part = Fault::Header("content-range", Some("bytes 0-1/2".into()));
    registry.fault(1, Method::GET, "/blobs/", other_part);
    assert!(matches!(
        read(&repository, &bytes, 1000).await,
        Err(RegistryError::Protocol { .. })
    ));
    assert_eq!(
        read(&repository, &bytes, 1000).await.unwrap(),
        bytes.slice(1000..)
    );
    assert_eq!(read(&repository, &bytes, BIG as u64).await.unwrap(), "");
}

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

#[tokio::test]
async fn content_of_unknown_digest_is_sent_in_pieces() {
    let registry = FaultRegistry::start().await;
    let bytes = content(2 * PIECE + (1 << 20));
    let mut upload = registry.anonymous("a").begin_upload().await.unwrap();
    for part in bytes.chunks(100_000) {
        upload.write(Bytes::copy_from_slice(part)).await.unwrap();
    }
    upload.commit(&Digest::of(&bytes)).await.unwrap();
    assert_eq!(registry.blob("a", &Digest::of(&bytes)).unwrap(), bytes);
    assert_eq!(registry.count(&Method::PATCH, "uploads"), 2);
    assert_eq!(registry.received(), bytes.len() as u64);
}

#[rstest]
#[case::small(b"hello" as &[u8])]
#[case::nothing(b"")]
#[tokio::test]
async fn a_small_content_of_unknown_digest_needs_no_piece(#[case] bytes: &'static [u8]) {
    let registry = FaultRegistry::start().await;
    let mut upload = registry.anonymous("a").begin_upload().await.unwrap();
    upload.write(Bytes::from_static(bytes)).await.unwrap();
    upload.commit(&Digest::of(bytes)).await.unwrap();
    assert_eq!(registry.blob("a", &Digest::of(bytes)).unwrap(), bytes);
    assert_eq!(registry.count(&Method::PATCH, "uploads"), 0);
}

#[rstest]
#[case::broken_first_piece(Method::PATCH, Fault::BreakAfter(3 << 20), 1)]
#[case::lost_answer_of_a_piece(Method::PATCH, Fault::LoseAnswer, 1)]
#[case::error_for_a_piece(Method::PATCH, Fault::Answer(502, vec![], String::new()), 2)]
#[case::broken_last_piece(Method::PUT, Fault::BreakAfter(1 << 20), 1)]
#[case::lost_confirmation(Method::PUT, Fault::LoseAnswer, 1)]
#[case::error_at_the_end(Method::PUT, Fault::Answer(503, vec![], String::new()), 1)]
#[tokio::test]
async fn pieces_survive(#[case] method: Method, #[case] fault: Fault, #[case] times: usize) {
    let registry = FaultRegistry::start().await;
    let bytes = content(2 * PIECE + (2 << 20));
    registry.fault(times, method, "uploads", fault);
    let mut upload = registry.anonymous("a").begin_upload().await.unwrap();
    upload.write(bytes.clone()).await.unwrap();
    upload.commit(&Digest::of(&bytes)).await.unwrap();
    assert_eq!(registry.blob("a", &Digest::of(&bytes)).unwrap(), bytes);
}

#[tokio::test]
async fn pieces_that_are_too_large_become_smaller() {
    let registry = FaultRegistry::start().await;
    let bytes = content(PIECE + (1 << 20));
    let refused = Fault::Answer(413, vec![], "Request Entity Too Large".into());
    registry.fault(2, Method::PATCH, "uploads", refused);
    let mut upload = registry.anonymous("a").begin_upload().await.unwrap();
    upload.write(bytes.clone()).await.unwrap();
    upload.commit(&Digest::of(&bytes)).await.unwrap();
    assert_eq!(registry.blob("a", &Digest::of(&bytes)).unwrap(), bytes);
    let largest = registry
        .log()
        .iter()
        .filter(|seen| seen.status == 202)
        .map(|seen| seen.body)
        .max();
    assert_eq!(largest, Some(PIECE as u64 / 4));
}

#[tokio::test]
async fn a_registry_that_counts_from_the_piece_s_beginning_is_understood() {
    let registry = FaultRegistry::start().await;
    let bytes = content(2 * PIECE + (1 << 20));
    let mut upload = registry.anonymous("a").begin_upload().await.unwrap();
    upload.write(bytes.slice(..PIECE)).await.unwrap();
    let relative = format!("0-{}", PIECE - 1);
    registry.fault(
        1,
        Method::PATCH,
        "uploads",
        Fault::Header("range", Some(relative)),
    );
    upload.write(bytes.slice(PIECE..)).await.unwrap();
    upload.commit(&Digest::of(&bytes)).await.unwrap();
    assert_eq!(registry.blob("a", &Digest::of(&bytes)).unwrap(), bytes);
}

#[tokio::test]
async fn a_registry_that_has_more_than_was_sent_is_not_believed() {
    let registry = FaultRegistry::start().await;
    let mut upload = registry.anonymous("a").begin_upload().await.unwrap();
    registry.fault(
        1,
        Method::PATCH,
        "uploads",
        Fault::Header("range", Some("0-99999999".into())),
    );
    let error = upload.write(content(PIECE)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Protocol { .. }));
}

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

#[tokio::test]
async fn a_blob_that_is_too_large_for_one_request_goes_in_pieces() {
    let registry = FaultRegistry::start()
        .await
        .without(|features| features.largest_body = 2 << 20);
    let repository = registry.anonymous("a");
    let bytes = content(5 << 20);
    let source = BytesSource(bytes.clone());
    let sent = repository.upload_blob(&describe(&bytes), &source).await.unwrap();
    assert!(matches!(sent, Uploaded::Sent { .. }));
    assert_eq!(registry.blob("a", &Digest::of(&bytes)).unwrap(), bytes);
    // What was learned of the origin spares the next blob the detour.
    registry.forget_log();
    let bytes = content((5 << 20) + 1);
    let source = BytesSource(bytes.clone());
    repository.upload_blob(&describe(&bytes), &source).await.unwrap();
    assert_eq!(registry.received(), bytes.len() as u64);
    assert!(registry.log().iter().all(|seen| seen.status != 413));
}

#[tokio::test]
async fn a_registry_that_wants_large_pieces_gets_them() {
    let registry = FaultRegistry::start().await;
    let least = (PIECE + (1 << 20)).to_string();
    registry.fault(
        1,
        Method::POST,
        "uploads",
        Fault::Header("oci-chunk-min-length", Some(least)),
    );
    let bytes = content(2 * PIECE + (3 << 20));
    let mut upload = registry.anonymous("a").begin_upload().await.unwrap();
    upload.write(bytes.clone()).await.unwrap();
    upload.commit(&Digest::of(&bytes)).await.unwrap();
    let pieces: Vec<u64> = registry
        .log()
        .iter()
        .filter(|seen| seen.method == Method::PATCH)
        .map(|seen| seen.body)
        .collect();
    assert_eq!(pieces, [(PIECE + (1 << 20)) as u64; 2]);
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
    let error = read(&registry.repository("a"), b"hello", 0).await.unwrap_err();
    assert_eq!(error.reason(), Reason::OriginForbidden, "{error}");
}
