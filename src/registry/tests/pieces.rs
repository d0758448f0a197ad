//! Blobs that are sent in pieces: of unknown digest, or too large for one request.

use bytes::Bytes;
use http::Method;
use rstest::rstest;

use super::{content, describe};
use crate::{
    image::Digest,
    registry::{
        BytesSource, RegistryError, Uploaded,
        testing::{Fault, FaultRegistry},
        upload::PIECE,
    },
};

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
