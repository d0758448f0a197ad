//! Artifacts: small files in a manifest, each with a title.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{StagingError, Store, put_blob};
use crate::image::{Descriptor, Digest, Manifest, media_type};

/// One file of an artifact.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub title: &'static str,
    pub media_type: &'static str,
    pub bytes: Bytes,
}

/// The annotation that gives a layer of an artifact its file name.
const TITLE: &str = "org.opencontainers.image.title";

/// The content of the empty config that every artifact has.
const EMPTY: &[u8] = b"{}";

impl File {
    pub(super) fn descriptor(&self) -> Descriptor {
        let mut descriptor =
            Descriptor::new(self.media_type, Digest::of(&self.bytes), self.bytes.len() as u64);
        descriptor.annotations = BTreeMap::from([(TITLE.to_owned(), self.title.to_owned())]);
        descriptor
    }
}

/// Stores an artifact under a tag and answers its manifest's digest.
pub(super) async fn put<S: Store>(
    store: &S,
    tag: &str,
    artifact_type: &str,
    files: &[File],
    subject: Option<Descriptor>,
) -> Result<Digest, StagingError> {
    let (config, bytes) = empty_config();
    put_blob(store, &config.digest, bytes).await?;
    for file in files {
        put_blob(store, &Digest::of(&file.bytes), file.bytes.clone()).await?;
    }
    let bytes = encode(
        artifact_type,
        files.iter().map(File::descriptor).collect(),
        subject,
    )?;
    let digest = Digest::of(&bytes);
    let bytes = Bytes::from(bytes);
    store
        .put_manifest(digest.as_str(), bytes.clone(), media_type::OCI_MANIFEST)
        .await?;
    store.put_manifest(tag, bytes, media_type::OCI_MANIFEST).await?;
    Ok(digest)
}

/// The config that every artifact has.
pub(super) fn empty_config() -> (Descriptor, Bytes) {
    let config = Descriptor::new(media_type::OCI_EMPTY, Digest::of(EMPTY), EMPTY.len() as u64);
    (config, Bytes::from_static(EMPTY))
}

/// The manifest of an artifact.
pub(super) fn encode(
    artifact_type: &str,
    layers: Vec<Descriptor>,
    subject: Option<Descriptor>,
) -> Result<Vec<u8>, StagingError> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST.into(),
        artifact_type: Some(artifact_type.into()),
        config: empty_config().0,
        layers,
        subject,
        annotations: BTreeMap::new(),
    };
    serde_json::to_vec(&manifest).map_err(|error| StagingError::invalid(artifact_type, error.to_string()))
}

/// Reads the manifest of an artifact of this type; `None` when there is nothing under the reference.
pub(super) async fn manifest<S: Store>(
    store: &S,
    reference: &str,
    artifact_type: &str,
) -> Result<Option<Manifest>, StagingError> {
    let Some(stored) = store.manifest(reference).await? else {
        return Ok(None);
    };
    let manifest: Manifest = crate::image::json::parse(&stored.bytes)
        .map_err(|error| StagingError::invalid(reference, error.to_string()))?;
    if manifest.artifact_type.as_deref() != Some(artifact_type) {
        return Err(StagingError::invalid(reference, "it is another kind of artifact"));
    }
    Ok(Some(manifest))
}

/// Reads the one file of this type of an artifact.
pub(super) async fn file<S: Store>(
    store: &S,
    manifest: &Manifest,
    media_type: &str,
    limit: u64,
) -> Result<Bytes, StagingError> {
    let mut files = manifest
        .layers
        .iter()
        .filter(|layer| layer.media_type == media_type);
    let (Some(file), None) = (files.next(), files.next()) else {
        return Err(StagingError::invalid(
            media_type,
            "the artifact does not hold exactly one",
        ));
    };
    if file.size > limit {
        return Err(StagingError::invalid(
            file.digest.as_str(),
            format!("it is larger than {limit} bytes"),
        ));
    }
    store.blob(file).await
}
