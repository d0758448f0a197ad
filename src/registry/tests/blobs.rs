//! Blobs that are read: sizes, proof, and a read that goes on where it broke.

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::Method;

use super::{content, describe};
use crate::{
    image::Digest,
    record::Reason,
    registry::{
        Client, ClientOptions, Credentials, RegistryError, Timeouts,
        testing::{Fault, FaultRegistry},
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

#[tokio::test]
async fn bytes_that_come_one_by_one_are_waited_for_longer_than_silence() {
    let registry = FaultRegistry::start().await;
    let bytes = content(15 << 10);
    registry.put_blob("a", &bytes);
    let drip = Fault::Drip(std::time::Duration::from_millis(100));
    registry.fault(1, Method::GET, "/blobs/", drip);
    let options = ClientOptions {
        timeouts: Timeouts {
            idle: std::time::Duration::from_secs(1),
            ..Timeouts::default()
        },
        ..registry.options()
    };
    let client = Client::new(options, Credentials::anonymous()).unwrap();
    let repository = client.repository(&registry.host(), "a");
    let read = repository.blob_bytes(&describe(&bytes), 1 << 20).await;
    assert_eq!(read.unwrap(), bytes);
    // All of it by the one answer, which took longer than anything may be silent.
    assert_eq!(registry.count(&Method::GET, "/blobs/"), 1);
}
