//! A repository of a real registry as staging.

use bytes::Bytes;

use super::{StagingError, Store, StoredManifest, Upload};
use crate::{
    image::{Descriptor, Digest},
    record::Reason,
    registry::{RegistryError, Repository, UploadSession},
};

impl Store for Repository {
    type Upload = UploadSession;

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StagingError> {
        Ok(self.head_blob(digest).await?)
    }

    async fn blob(&self, descriptor: &Descriptor) -> Result<Bytes, StagingError> {
        Ok(self.blob_bytes(descriptor, descriptor.size).await?)
    }

    async fn begin_upload(&self) -> Result<UploadSession, StagingError> {
        Ok(Repository::begin_upload(self).await?)
    }

    async fn manifest(&self, reference: &str) -> Result<Option<StoredManifest>, StagingError> {
        let found = Repository::manifest(self, reference).await?;
        Ok(found.map(|manifest| StoredManifest {
            bytes: manifest.bytes,
            media_type: manifest.media_type,
        }))
    }

    async fn put_manifest(
        &self,
        reference: &str,
        bytes: Bytes,
        media_type: &str,
    ) -> Result<(), StagingError> {
        match Repository::put_manifest(self, reference, media_type, &bytes).await {
            Ok(_) => Ok(()),
            Err(error) if names_lost_content(&error) => Err(StagingError::ContentLost(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a manifest was refused because a blob of it is not there.
///
/// Source: OCI distribution specification, "Error Codes"; the second is what older registries send.
fn names_lost_content(error: &RegistryError) -> bool {
    matches!(error.code(), Some("MANIFEST_BLOB_UNKNOWN" | "BLOB_UNKNOWN"))
}

impl Upload for UploadSession {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StagingError> {
        Ok(Self::write(self, bytes).await?)
    }

    async fn commit(self, digest: &Digest) -> Result<(), StagingError> {
        Ok(Self::commit(self, digest).await?)
    }
}

impl From<RegistryError> for StagingError {
    fn from(error: RegistryError) -> Self {
        let text = error.to_string();
        match error.reason() {
            _ if error.is_passing() => Self::Unavailable(text),
            // A session that was lost with the registry's memory; another one may do.
            _ if error.status() == Some(http::StatusCode::NOT_FOUND)
                && error.code() != Some("NAME_UNKNOWN") =>
            {
                Self::Unavailable(text)
            }
            Reason::VerificationFailed => Self::Unavailable(text),
            Reason::DigestMismatch
            | Reason::SizeMismatch
            | Reason::LimitExceeded
            | Reason::MediaTypeAmbiguous => Self::invalid("content", text),
            _ => Self::Refused(text),
        }
    }
}
