//! What `slipway collect` prints: one JSON object, or a text for people.

use std::fmt;

use serde::Serialize;

use super::{ArchiveImage, Counters, Digest, ImageRecord, Platform, outcome};
use crate::{
    collect::{Collected, visible},
    image::archive::Archive,
    record::LayerRecord,
};

/// The result of a collection that went well.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    images: Vec<Image>,
    warnings: Vec<String>,
    pub(super) counters: Counters,
    /// Encoder, version and level, when a layer was compressed.
    compressor: Option<&'static str>,
    #[serde(skip)]
    pub(super) records: Vec<ImageRecord>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    platform: Option<Platform>,
    tags: Vec<String>,
    config_digest: Digest,
    manifest_digest: Digest,
    layers: Vec<LayerRecord>,
}

impl Document {
    pub(super) fn new(archive: &Archive) -> Self {
        Self {
            images: Vec::new(),
            warnings: archive
                .warnings()
                .iter()
                .map(|warning| visible(warning))
                .collect(),
            counters: Counters::default(),
            compressor: None,
            records: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, image: &ArchiveImage, collected: Collected) {
        self.images.push(Image {
            platform: image.platform.clone(),
            tags: image.tags.clone(),
            config_digest: collected.image.config.digest.clone(),
            manifest_digest: collected.image.manifest.digest.clone(),
            layers: collected.image.layers.clone(),
        });
        self.warnings.extend(collected.warnings);
        self.compressor = self.compressor.or(collected.compressor);
        self.records.push(collected.image);
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for image in &self.images {
            match &image.platform {
                Some(platform) => write!(f, "{platform}")?,
                None => f.write_str("no platform")?,
            }
            writeln!(
                f,
                "  {} layers  manifest {}",
                image.layers.len(),
                image.manifest_digest
            )?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        let counters = self.counters;
        writeln!(
            f,
            "read {}, stored {} in {} layers, reused {} in {}",
            outcome::size(counters.bytes_read),
            outcome::size(counters.bytes_uploaded),
            counters.layers_uploaded,
            outcome::size(counters.bytes_reused),
            counters.layers_reused
        )
    }
}
