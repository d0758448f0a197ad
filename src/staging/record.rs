//! Records of builds in staging, and the tags that keep them and their images.

use bytes::Bytes;

use super::{
    StagingError, Store,
    artifact::{self, File},
};
use crate::{
    image::{Descriptor, Digest, json, media_type},
    record::{BuildIdentity, BuildRecord, RECORD_VERSION},
};

/// The log's type in a record.
const LOG: &str = "text/plain";

/// The type of Launchpad's files in a record.
const JSON: &str = "application/json";

/// What is stored beside a record.
#[derive(Clone, Debug, Default)]
pub struct Attachments {
    /// The build's log.
    pub log: Option<Bytes>,
    /// Launchpad's `digests.json`.
    pub digests: Option<Bytes>,
    /// Launchpad's `manifest.json`.
    pub manifest: Option<Bytes>,
}

/// The tag that keeps the image of one attempt from garbage collection.
pub fn image_tag(build: &BuildIdentity) -> String {
    format!("build-{}-{}-{}", build.uid, build.platform.slug(), build.attempt)
}

/// The tag of the record of one attempt.
pub fn record_tag(build: &BuildIdentity) -> String {
    format!("record-{}-{}-{}", build.uid, build.platform.slug(), build.attempt)
}

/// Stores a record and what belongs to it; answers the digest by which a controller fetches it.
///
/// The record's `log` is set here.
///
/// # Errors
/// When staging cannot be used.
pub async fn store_record<S: Store>(
    store: &S,
    mut record: BuildRecord,
    attachments: Attachments,
) -> Result<Digest, StagingError> {
    let attachment = |title, media_type, bytes: Option<Bytes>| {
        bytes.map(|bytes| File {
            title,
            media_type,
            bytes,
        })
    };
    let log = attachment("build.log", LOG, attachments.log);
    record.log = log.as_ref().map(File::descriptor);
    let tag = record_tag(&record.build);
    let bytes =
        serde_json::to_vec(&record).map_err(|error| StagingError::invalid(&tag, error.to_string()))?;
    let record_file = attachment(
        "record.json",
        media_type::SLIPWAY_RECORD,
        Some(Bytes::from(bytes)),
    );
    let files: Vec<File> = [
        record_file,
        log,
        attachment("digests.json", JSON, attachments.digests),
        attachment("manifest.json", JSON, attachments.manifest),
    ]
    .into_iter()
    .flatten()
    .collect();
    let subject = record.image.map(|image| Descriptor {
        annotations: std::collections::BTreeMap::new(),
        ..image.manifest
    });
    artifact::put(store, &tag, media_type::SLIPWAY_RECORD, &files, subject).await
}

/// Fetches a record by the digest that its collector reported.
///
/// Whose record it is has still to be compared: a report comes from a pod that a build shared.
///
/// # Errors
/// [`StagingError::Invalid`] when it is not there, not whole or from a newer Slipway.
pub async fn fetch_record<S: Store>(store: &S, digest: &Digest) -> Result<BuildRecord, StagingError> {
    let what = digest.as_str();
    let manifest = artifact::manifest(store, what, media_type::SLIPWAY_RECORD)
        .await?
        .ok_or_else(|| StagingError::invalid(what, "there is no such record"))?;
    let bytes = artifact::file(store, &manifest, media_type::SLIPWAY_RECORD, json::DOCUMENT_LIMIT).await?;
    let record: BuildRecord =
        json::parse(&bytes).map_err(|error| StagingError::invalid(what, error.to_string()))?;
    if record.version > RECORD_VERSION {
        return Err(StagingError::invalid(
            what,
            format!(
                "its version is {} and this is a reader of {RECORD_VERSION}",
                record.version
            ),
        ));
    }
    Ok(record)
}
