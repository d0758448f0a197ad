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

/// `digests.json`, a section for each image.
///
/// # Errors
/// None in practice: there is nothing in it that JSON cannot hold.
pub fn digests_json(images: &[&ImageRecord]) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&images.iter().map(|image| entries(image)).collect::<Vec<_>>())
}

fn entries(image: &ImageRecord) -> BTreeMap<&Digest, LayerEntry<'_>> {
    image
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
        .collect()
}

/// `manifest.json`, a section for each image with its tags.
///
/// # Errors
/// None in practice: there is nothing in it that JSON cannot hold.
pub fn manifest_json(images: &[(&ImageRecord, &[String])]) -> serde_json::Result<Vec<u8>> {
    let sections: Vec<Section<'_>> = images
        .iter()
        .map(|(image, tags)| Section {
            config: config_file(image),
            repo_tags: (!tags.is_empty()).then_some(*tags),
            layers: image
                .layers
                .iter()
                .map(|layer| layer_file(&layer.layer_id))
                .collect(),
        })
        .collect();
    serde_json::to_vec(&sections)
}

/// The file of an image's config.
pub fn config_file(image: &ImageRecord) -> String {
    format!("{}.json", image.config.digest.hex())
}

/// The file of a layer, whatever it is compressed with.
pub fn layer_file(layer_id: &str) -> String {
    format!("{layer_id}.tar.gz")
}
