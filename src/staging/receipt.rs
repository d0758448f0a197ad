//! Receipts in staging: one artifact for every target that got a build's image.
//!
//! A record is fixed by its digest, so what happens later stands beside it: under a tag that begins with the
//! build's UID, as the record's does, and with the same subject, the image.

use bytes::Bytes;

use super::{
    StagingError, Store,
    artifact::{self, File},
};
use crate::{
    image::{Descriptor, Digest, media_type},
    record::Receipt,
};

/// The beginning of the tags of a build's receipts.
pub fn receipt_tags(build_uid: &str) -> String {
    format!("receipt-{build_uid}-")
}

/// Stores a receipt under a tag and answers its manifest's digest; the same receipt twice is one.
///
/// # Errors
/// When staging cannot be used.
pub async fn store_receipt<S: Store>(
    store: &S,
    tag: &str,
    receipt: &Receipt,
    image_media_type: &str,
) -> Result<Digest, StagingError> {
    let bytes = serde_json::to_vec(receipt).map_err(|error| StagingError::invalid(tag, error.to_string()))?;
    let file = File {
        title: "receipt.json",
        media_type: media_type::SLIPWAY_RECEIPT,
        bytes: Bytes::from(bytes),
    };
    // An image that staging no longer has is still named in the receipt.
    let image = store.manifest(receipt.image.as_str()).await?;
    let subject =
        image.map(|image| Descriptor::new(image_media_type, receipt.image.clone(), image.bytes.len() as u64));
    artifact::put(store, tag, media_type::SLIPWAY_RECEIPT, &[file], subject).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::{Party, RECEIPT_VERSION, ReceiptTag},
        registry::{BlobCounters, ReferrerCounters},
        staging::memory::Memory,
    };

    fn party(name: &str) -> Party {
        Party {
            namespace: "demo".into(),
            name: name.into(),
            uid: name.into(),
        }
    }

    #[tokio::test]
    async fn a_receipt_stands_beside_the_build_s_record_and_refers_to_the_image() {
        let store = Memory::default();
        let image = Bytes::from_static(b"{}");
        let digest = Digest::of(&image);
        store
            .put_manifest(digest.as_str(), image, media_type::OCI_INDEX)
            .await
            .unwrap();
        let receipt = Receipt {
            version: RECEIPT_VERSION,
            build: party("b"),
            records: vec![Digest::of(b"record")],
            image: digest.clone(),
            push: party("p"),
            repository: "example.test/a".into(),
            digest: digest.clone(),
            tags: vec![ReceiptTag {
                name: "edge".into(),
                previous: None,
            }],
            blobs: BlobCounters::default(),
            referrers: ReferrerCounters::default(),
            attempts: 1,
            pushed_at: "2026-01-01T00:00:00Z".into(),
        };
        let tag = format!("{}p-1", receipt_tags("b"));
        let stored = store_receipt(&store, &tag, &receipt, media_type::OCI_INDEX)
            .await
            .unwrap();
        let again = store_receipt(&store, &tag, &receipt, media_type::OCI_INDEX).await;
        assert_eq!(again.unwrap(), stored);
        assert_eq!(store.tags(), ["receipt-b-p-1"]);
        let manifest = artifact::manifest(&store, &tag, media_type::SLIPWAY_RECEIPT)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(manifest.subject.as_ref().unwrap().digest, digest);
        let bytes = artifact::file(&store, &manifest, media_type::SLIPWAY_RECEIPT, 1 << 16)
            .await
            .unwrap();
        assert_eq!(serde_json::from_slice::<Receipt>(&bytes).unwrap(), receipt);
    }
}
