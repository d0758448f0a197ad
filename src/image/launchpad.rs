//! The two files by which Launchpad's builders hand an image over.
//!
//! `manifest.json` names the files beside it, base first; `digests.json` tells for each diff ID which file
//! that is, its digest as bare hex, and where the layer was pulled from. Readers ignore the keys that are
//! added here.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Digest;
use crate::record::ImageRecord;

#[derive(Serialize)]
struct LayerEntry<'a> {
    digest: &'a str,
    source: &'a str,
    layer_id: &'a str,
    #[serde(rename = "mediaType")]
    media_type: &'a str,
    size: u64,
    /// The digest with its algorithm.
    blob: &'a Digest,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Section<'a> {
    config: String,
    repo_tags: Option<&'a [String]>,
    layers: Vec<String>,
}

/// `digests.json` of one image.
///
/// # Errors
/// None in practice: there is nothing in it that JSON cannot hold.
pub fn digests_json(image: &ImageRecord) -> serde_json::Result<Vec<u8>> {
    let entries: BTreeMap<&Digest, LayerEntry<'_>> = image
        .layers
        .iter()
        .map(|layer| {
            let entry = LayerEntry {
                digest: layer.digest.hex(),
                source: &layer.source,
                layer_id: &layer.layer_id,
                media_type: &layer.media_type,
                size: layer.size,
                blob: &layer.digest,
            };
            (&layer.diff_id, entry)
        })
        .collect();
    serde_json::to_vec(&[entries])
}

/// `manifest.json` of one image.
///
/// # Errors
/// None in practice: there is nothing in it that JSON cannot hold.
pub fn manifest_json(image: &ImageRecord, tags: &[String]) -> serde_json::Result<Vec<u8>> {
    let section = Section {
        config: format!("{}.json", image.config.digest.hex()),
        repo_tags: (!tags.is_empty()).then_some(tags),
        layers: image
            .layers
            .iter()
            .map(|layer| format!("{}.tar.gz", layer.layer_id))
            .collect(),
    };
    serde_json::to_vec(&[section])
}
