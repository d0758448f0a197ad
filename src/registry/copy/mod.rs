//! The copy of an image from one repository to others.
//!
//! [`read_image`] resolves and checks the whole tree before anything is written. [`push_all`] then brings it
//! to each target: blobs, manifests from the leaves up, tags last, and a look at what is served. A copy that
//! is repeated asks and writes nothing.
//!
//! [`read_referrers`] adds signatures, SBOMs and attestations; [`survey`] says what a push would do.

mod entries;
mod manifests;
mod merge;
mod plan;
mod publish;
mod push;
mod read;
mod rewrite;
mod share;
mod survey;

use std::{sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use merge::push_merged;
pub use plan::Image;
pub use publish::{PublishPolicy, for_target, push_again};
pub use push::{Outcome, Proof, PushOptions, Target, approach, push_all, push_all_with};
pub use read::{read_image, read_referrers, read_referrers_except};
pub use rewrite::Made;
pub use survey::{Planned, Survey, survey};

use super::{error::RegistryError, source::BlobSource};
use crate::{image::Digest, record::Reason};

/// What happens to a tag that exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TagPolicy {
    /// It is moved.
    #[default]
    Overwrite,
    /// It is moved only if it still is what was read when the push began.
    IfUnchanged,
    /// It is never moved; the same digest is success.
    Immutable,
}

/// What became of an image's blobs at one target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlobCounters {
    /// The target had them.
    pub existed: i64,
    /// Mounted from another repository of the target.
    pub mounted: i64,
    /// Sent.
    pub uploaded: i64,
    /// Uploads that went on from where they broke.
    pub resumed: i64,
    /// Bytes sent.
    pub bytes_uploaded: i64,
    /// Bytes that did not have to be sent.
    pub bytes_saved: i64,
}

impl BlobCounters {
    /// The sums of two pushes of the same blobs to a target: what the earlier one brought is counted as brought.
    fn after(self, earlier: Self) -> Self {
        Self {
            existed: (self.existed - earlier.uploaded - earlier.mounted).max(0),
            mounted: self.mounted + earlier.mounted,
            uploaded: self.uploaded + earlier.uploaded,
            resumed: self.resumed + earlier.resumed,
            bytes_uploaded: self.bytes_uploaded + earlier.bytes_uploaded,
            bytes_saved: (self.bytes_saved - earlier.bytes_uploaded).max(0),
        }
    }
}

/// What became of what refers to an image, at one target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReferrerCounters {
    /// The target listed them already.
    pub existed: i64,
    /// Written and listed.
    pub written: i64,
}

impl ReferrerCounters {
    fn after(self, earlier: Self) -> Self {
        Self {
            existed: (self.existed - earlier.written).max(0),
            written: self.written + earlier.written,
        }
    }
}

/// What happens while images are pushed, for whoever watches. Targets are counted from zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A target's turn has come.
    Started {
        /// The target.
        target: usize,
        /// How many blobs the image has.
        blobs: usize,
        /// Their sizes' sum.
        bytes: u64,
    },
    /// A blob moved on.
    Blob {
        /// The target.
        target: usize,
        /// The blob.
        digest: Digest,
        /// How far.
        state: BlobState,
    },
    /// A manifest is written.
    Manifest {
        /// The target.
        target: usize,
        /// The manifest.
        digest: Digest,
    },
    /// A tag points to the image.
    Tagged {
        /// The target.
        target: usize,
        /// The tag.
        tag: String,
    },
    /// The target is done with, well or badly.
    Ended {
        /// The target.
        target: usize,
    },
}

/// How far a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobState {
    /// The target has it.
    Existed,
    /// It was mounted.
    Mounted,
    /// So many more bytes are on their way; what is sent again is counted again.
    Sending(u64),
    /// It was sent and confirmed.
    Uploaded,
}

/// Hears of progress; called from many tasks and never awaited.
pub type Listener = Arc<dyn Fn(Progress) + Send + Sync>;

/// Why an image did not get where it was to be.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Between here and a registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The source has no such image.
    #[error("{reference} does not exist; build it, or correct the name")]
    SourceMissing {
        /// What was looked for.
        reference: String,
    },
    /// A document of the image is not valid.
    #[error("the manifest {digest} is not valid: {problem}")]
    Manifest {
        /// The document.
        digest: Digest,
        /// What is wrong.
        problem: String,
    },
    /// A document can be read as two kinds.
    #[error("{digest} is an image and an index at once; readers would disagree on what it holds")]
    Ambiguous {
        /// The document.
        digest: Digest,
    },
    /// Not an image and not an index.
    #[error("{digest} is of the type {media_type:?}, which is neither an image nor an index")]
    MediaType {
        /// The document.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
    /// None of the index's images is for a platform that was asked for.
    #[error("the index has no image for {wanted}; it has {found}")]
    PlatformMissing {
        /// What was asked for.
        wanted: String,
        /// What is there.
        found: String,
    },
    /// The image passes a documented limit.
    #[error("the image has more than {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// A tag must not be moved.
    #[error("the tag {tag} points to {found}; {rule}")]
    TagTaken {
        /// The tag.
        tag: String,
        /// Where it points to, as far as known.
        found: String,
        /// Why it stays there.
        rule: &'static str,
    },
    /// The target has signatures under cosign's tag that the source does not have.
    #[error(
        "the tag {tag} at the target holds {found}, with signatures that the source lacks, and would lose them; copy those first, or remove the tag"
    )]
    ReferrerTaken {
        /// The tag.
        tag: String,
        /// Where it points to.
        found: Digest,
    },
    /// An image cannot be put beside what a tag holds.
    #[error("{what} cannot be merged with: {problem}")]
    Unmergeable {
        /// What is there.
        what: String,
        /// Why not, and what to do.
        problem: String,
    },
    /// A tag has a platform that the image lacks.
    #[error(
        "the tag {tag} has an image for {platform}, which this one lacks; build that platform too, or publish with KeepOld or WhenComplete"
    )]
    PlatformLost {
        /// The tag.
        tag: String,
        /// The platform.
        platform: String,
    },
    /// An image of a tag cannot be kept beside this one.
    #[error(
        "{digest} cannot be kept: it and the new image are of Docker's and of OCI's types, which no index may mix; publish with WhenComplete"
    )]
    Families {
        /// The image.
        digest: Digest,
    },
    /// A layer is to be had elsewhere only.
    #[error(
        "the layer {digest} is not in the source but at URLs that are not followed; rebuild with its content included"
    )]
    Foreign {
        /// The layer.
        digest: Digest,
    },
    /// What is served is not what was pushed.
    #[error("{what} at the target is not what was pushed: {found}")]
    Verification {
        /// Which part.
        what: String,
        /// What is there.
        found: String,
    },
}

impl CopyError {
    /// The stable reason that users, metrics and tests see.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Registry(error) => error.reason(),
            Self::SourceMissing { .. } => Reason::SourceMissing,
            Self::Manifest { .. } => Reason::ManifestInvalid,
            Self::Ambiguous { .. } => Reason::MediaTypeAmbiguous,
            Self::MediaType { .. } | Self::Unmergeable { .. } | Self::Families { .. } => {
                Reason::UnsupportedMediaType
            }
            Self::PlatformLost { .. } => Reason::PlatformLost,
            Self::PlatformMissing { .. } => Reason::PlatformMissing,
            Self::Limit { .. } => Reason::LimitExceeded,
            Self::TagTaken { .. } | Self::ReferrerTaken { .. } => Reason::TagImmutable,
            Self::Foreign { .. } => Reason::ForeignLayer,
            Self::Verification { .. } => Reason::VerificationFailed,
        }
    }

    /// When the registry wants to be asked again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Registry(error) => error.retry_after(),
            _ => None,
        }
    }
}
