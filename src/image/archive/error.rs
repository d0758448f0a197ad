//! Why an archive is refused.

use crate::{
    image::{Digest, DigestError, Platform, json::JsonError},
    record::{Failure, Reason},
};

/// Why an archive, or a part of it, is refused. Messages say what to do where that is not obvious.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each field is shown by the message above it")]
pub enum ArchiveError {
    /// There is nothing to read.
    #[error("no archive at {path}: {why}")]
    Missing { path: String, why: String },
    /// The bytes are no tar archive, gzip stream or zstd stream.
    #[error("{member}: {why}")]
    Malformed { member: String, why: String },
    /// Readers would see different archives.
    #[error("{member}: {why}; every reader would have to guess")]
    Ambiguous { member: String, why: String },
    /// Somebody still writes.
    #[error("{what} changed while it was read; the build must have ended before its archive is collected")]
    Changed { what: String },
    /// A format that is not read here.
    #[error("{member} is compressed with {format}; use gzip, zstd or no compression")]
    Compression { member: String, format: &'static str },
    /// A device, a sparse file and the like.
    #[error("{member}: {kind} has no place in an image archive")]
    Entry { member: String, kind: String },
    /// A name that would mean different things to different readers.
    #[error("{name:?} is not a usable name: {why}")]
    Path { name: String, why: &'static str },
    /// A link that leads nowhere good.
    #[error("link {name:?} to {target:?} {why}")]
    Link {
        name: String,
        target: String,
        why: &'static str,
    },
    /// Too much of something.
    #[error("more than {limit} {what}")]
    Limit { what: &'static str, limit: u64 },
    /// A document that is not strict JSON.
    #[error("{member}: {error}")]
    Json { member: String, error: JsonError },
    /// A document that is no good manifest, index or config.
    #[error("{member}: {why}")]
    Manifest { member: String, why: String },
    /// Nothing in the archive is an image.
    #[error("the archive holds no image")]
    NoImage,
    /// More than one image, where one is wanted.
    #[error("the archive holds {count} images that fit; name one platform, or save one image")]
    ManyImages { count: usize },
    /// No image for the wanted machine.
    #[error("the archive holds no image for {wanted}, only for {found}")]
    PlatformMissing { wanted: Platform, found: String },
    /// A digest that is none.
    #[error("{member}: {error}")]
    Digest { member: String, error: DigestError },
    /// Content that is not what its name says.
    #[error("{member} is named {expected} and hashes to {found}")]
    DigestMismatch {
        member: String,
        expected: Digest,
        found: Digest,
    },
    /// Content of another length than its descriptor says.
    #[error("{member} is described with {expected} bytes and has {found}")]
    SizeMismatch {
        member: String,
        expected: u64,
        found: u64,
    },
    /// Type and content disagree.
    #[error("{member}: {why}")]
    MediaTypeAmbiguous { member: String, why: String },
    /// A type that is no image's.
    #[error("{member} has the media type {media_type:?}, which no image has")]
    UnsupportedMediaType { member: String, media_type: String },
    /// A layer that is only to be had elsewhere.
    #[error("layer {digest} is a foreign layer; rebuild with its content included")]
    ForeignLayer { digest: String },
    /// A layer without content.
    #[error("layer {diff_id} is named by the image but neither in the archive ({member}) nor known")]
    LayerMissing { diff_id: Digest, member: String },
    /// A key that only Slipway writes.
    #[error("{member}: the annotation {key:?} is reserved")]
    ReservedKey { member: String, key: String },
    /// The machine's own trouble.
    #[error("{what}: {error}")]
    Io {
        what: String,
        #[source]
        error: std::io::Error,
    },
}

impl ArchiveError {
    /// The stable reason that users, metrics and tests see.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Missing { .. } => Reason::ArchiveMissing,
            Self::Malformed { .. } => Reason::ArchiveMalformed,
            Self::Ambiguous { .. } => Reason::ArchiveAmbiguous,
            Self::Changed { .. } => Reason::ArchiveChanged,
            Self::Compression { .. } => Reason::UnsupportedCompression,
            Self::Entry { .. } => Reason::UnsupportedEntry,
            Self::Path { .. } => Reason::PathInvalid,
            Self::Link { .. } => Reason::LinkInvalid,
            Self::Limit { .. } => Reason::LimitExceeded,
            Self::Json { error, .. } => match error {
                JsonError::Invalid(_) => Reason::JsonInvalid,
                JsonError::TooLarge { .. } => Reason::LimitExceeded,
                JsonError::Shape(_) => Reason::ManifestInvalid,
            },
            Self::Manifest { .. } => Reason::ManifestInvalid,
            Self::NoImage => Reason::NoImage,
            Self::ManyImages { .. } => Reason::ManyImages,
            Self::PlatformMissing { .. } => Reason::PlatformMissing,
            Self::Digest { .. } => Reason::DigestInvalid,
            Self::DigestMismatch { .. } => Reason::DigestMismatch,
            Self::SizeMismatch { .. } => Reason::SizeMismatch,
            Self::MediaTypeAmbiguous { .. } => Reason::MediaTypeAmbiguous,
            Self::UnsupportedMediaType { .. } => Reason::UnsupportedMediaType,
            Self::ForeignLayer { .. } => Reason::ForeignLayer,
            Self::LayerMissing { .. } => Reason::LayerMissing,
            Self::ReservedKey { .. } => Reason::ReservedKey,
            Self::Io { .. } => Reason::InternalError,
        }
    }

    /// The member, file, name or path that it is about.
    pub fn member(&self) -> Option<&str> {
        match self {
            Self::Malformed { member, .. }
            | Self::Ambiguous { member, .. }
            | Self::Compression { member, .. }
            | Self::Entry { member, .. }
            | Self::Json { member, .. }
            | Self::Manifest { member, .. }
            | Self::Digest { member, .. }
            | Self::DigestMismatch { member, .. }
            | Self::SizeMismatch { member, .. }
            | Self::MediaTypeAmbiguous { member, .. }
            | Self::UnsupportedMediaType { member, .. }
            | Self::LayerMissing { member, .. }
            | Self::ReservedKey { member, .. }
            | Self::Missing { path: member, .. }
            | Self::Path { name: member, .. }
            | Self::Link { name: member, .. }
            | Self::Changed { what: member }
            | Self::Io { what: member, .. }
            | Self::ForeignLayer { digest: member } => Some(member),
            Self::Limit { .. } | Self::NoImage | Self::ManyImages { .. } | Self::PlatformMissing { .. } => {
                None
            }
        }
    }

    pub(crate) fn malformed(member: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Malformed {
            member: member.into(),
            why: why.into(),
        }
    }

    pub(crate) fn ambiguous(member: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Ambiguous {
            member: member.into(),
            why: why.into(),
        }
    }

    pub(crate) fn manifest(member: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Manifest {
            member: member.into(),
            why: why.into(),
        }
    }

    pub(crate) fn io(what: impl Into<String>, error: std::io::Error) -> Self {
        Self::Io {
            what: what.into(),
            error,
        }
    }
}

impl From<&ArchiveError> for Failure {
    fn from(error: &ArchiveError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}
