//! Receipts: where an image of a build was pushed to, kept beside the build's records.

use serde::{Deserialize, Serialize};

use crate::{
    image::Digest,
    registry::{BlobCounters, ReferrerCounters},
};

/// The version that is written.
pub const RECEIPT_VERSION: u32 = 1;

/// One target that serves an image, as its pusher read it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// [`RECEIPT_VERSION`].
    pub version: u32,
    /// Namespace, name and UID of the build.
    pub build: Party,
    /// The build's records, one a platform.
    pub records: Vec<Digest>,
    /// The image that the build made; what a target got may be some platforms of it.
    pub image: Digest,
    /// Namespace, name and UID of the push.
    pub push: Party,
    /// `host[:port]/repository`.
    pub repository: String,
    /// What was pushed there.
    pub digest: Digest,
    /// The tags that point to it, and what they pointed to before.
    pub tags: Vec<ReceiptTag>,
    /// What became of the blobs, over all attempts.
    pub blobs: BlobCounters,
    /// What became of signatures, SBOMs and attestations.
    pub referrers: ReferrerCounters,
    /// Attempts that it took.
    pub attempts: i32,
    /// When the target was read back, RFC 3339.
    pub pushed_at: String,
}

/// An object, by what tells it apart from every other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Party {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// A tag that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptTag {
    /// The tag.
    pub name: String,
    /// What it pointed to before, where that was another image.
    pub previous: Option<Digest>,
}
