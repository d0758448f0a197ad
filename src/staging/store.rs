//! What is needed of the staging registry, and no more: collection can so be proven against a registry
//! that fails on purpose.

use std::future::Future;

use bytes::Bytes;

use crate::{
    image::{Descriptor, Digest},
    record::Reason,
};

/// Why staging could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// It does not answer, or with an error of its own; worth trying again.
    #[error("staging does not answer: {0}")]
    Unavailable(String),
    /// It answers that it will not.
    #[error("staging refused: {0}")]
    Refused(String),
    /// It says that a manifest names content that it does not have.
    #[error("staging lost content that it had: {0}")]
    ContentLost(String),
    /// What it has is not what it should be.
    #[error("{what} in staging is not usable: {why}")]
    Invalid {
        /// What was read.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

impl StagingError {
    /// The stable reason that users, metrics and tests see.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unavailable(_) | Self::Refused(_) | Self::ContentLost(_) => Reason::StagingUnavailable,
            Self::Invalid { .. } => Reason::RecordInvalid,
        }
    }

    /// Whether the same request may succeed in a moment.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    pub(super) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid {
            what: what.into(),
            why: why.into(),
        }
    }
}

/// A manifest as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredManifest {
    /// Its bytes, proven where it was asked for by digest.
    pub bytes: Bytes,
    /// The type that it was stored with.
    pub media_type: String,
}

/// One repository of the staging registry.
pub trait Store: Send + Sync {
    /// An upload that has begun.
    type Upload: Upload;

    /// The size of a blob that is there.
    fn blob_size(&self, digest: &Digest) -> impl Future<Output = Result<Option<u64>, StagingError>> + Send;

    /// A small blob whole, proven by its size and digest.
    fn blob(&self, descriptor: &Descriptor) -> impl Future<Output = Result<Bytes, StagingError>> + Send;

    /// Begins to store a blob whose digest is known only at the end.
    fn begin_upload(&self) -> impl Future<Output = Result<Self::Upload, StagingError>> + Send;

    /// The manifest of a tag or digest, if there is one.
    fn manifest(
        &self,
        reference: &str,
    ) -> impl Future<Output = Result<Option<StoredManifest>, StagingError>> + Send;

    /// Stores a manifest under a tag or its own digest.
    fn put_manifest(
        &self,
        reference: &str,
        bytes: Bytes,
        media_type: &str,
    ) -> impl Future<Output = Result<(), StagingError>> + Send;
}

/// A blob on its way; dropping it gives it up.
pub trait Upload: Send {
    /// Sends the next bytes.
    fn write(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), StagingError>> + Send;

    /// Ends the blob, which must hash to `digest`.
    fn commit(self, digest: &Digest) -> impl Future<Output = Result<(), StagingError>> + Send;
}

/// Stores a small blob unless it is there.
///
/// # Errors
/// Those of the store.
pub async fn put_blob<S: Store>(store: &S, digest: &Digest, bytes: Bytes) -> Result<(), StagingError> {
    if store.blob_size(digest).await? == Some(bytes.len() as u64) {
        return Ok(());
    }
    send_blob(store, digest, bytes).await
}

/// Stores a small blob.
///
/// # Errors
/// Those of the store.
pub async fn send_blob<S: Store>(store: &S, digest: &Digest, bytes: Bytes) -> Result<(), StagingError> {
    let mut upload = store.begin_upload().await?;
    upload.write(bytes).await?;
    upload.commit(digest).await
}
