//! One image on its way to staging: its layers, its config and its manifest.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    CollectError,
    layer::{self, Cost, Stored},
    patience::Patience,
};
use crate::{
    image::{
        Descriptor, Digest, Manifest,
        archive::{Archive, ArchiveImage, ArchiveLayer, Document},
        compress, media_type,
    },
    record::{BuildIdentity, Counters, ImageRecord, LayerOrigin, LayerRecord},
    staging::{self, KnownLayer, KnownLayers, StagingError, Store, put_blob, send_blob},
};

/// Layers that are worked on at a time: one waits for staging while another keeps the cores busy.
const LAYERS_AT_A_TIME: usize = 2;

/// Staging may lose what it says that it has; everything is then sent whatever it says.
const ATTEMPTS: usize = 3;

/// Everything that one collection needs and learns.
pub(super) struct Collection<S> {
    store: S,
    pub(super) patience: Patience,
    counters: Counters,
}

/// An image that is in staging.
#[derive(Debug)]
pub(super) struct Collected {
    pub image: ImageRecord,
    pub tags: Vec<String>,
    pub warnings: Vec<String>,
    /// Set when a layer was compressed here.
    pub compressor: Option<&'static str>,
}

/// A layer in staging, and why.
#[derive(Clone, Debug)]
struct Placed {
    stored: Stored,
    origin: LayerOrigin,
    source: String,
}

impl<S: Store> Collection<S> {
    pub(super) fn new(store: S, patience: Patience) -> Self {
        Self {
            store,
            patience,
            counters: Counters::default(),
        }
    }

    pub(super) fn store(&self) -> &S {
        &self.store
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    /// Brings the archive's image for this build's platform to staging.
    pub(super) async fn collect(
        &mut self,
        archive: Archive,
        build: &BuildIdentity,
    ) -> Result<Collected, CollectError> {
        let archive = Arc::new(archive);
        let image = archive.single(Some(&build.platform))?.clone();
        let mut known = self.patience.insist(|| KnownLayers::load(&self.store)).await?;
        let mut attempt = 1;
        let (record, placed) = loop {
            let placed = self.place_layers(&archive, &image, &known, attempt > 1).await?;
            // The archive is read no more after this.
            archive.check_unchanged()?;
            match self.store_image(&image, &placed, build, attempt > 1).await {
                Ok(record) => break (record, placed),
                Err(error @ StagingError::ContentLost(_)) if attempt < ATTEMPTS => {
                    tracing::warn!(%error, "the layers are stored again");
                    known = KnownLayers::default();
                    attempt += 1;
                }
                Err(error) => return Err(error.into()),
            }
        };
        for (diff_id, placed) in &placed {
            known.learn(diff_id.clone(), placed.known());
        }
        // The image is there whether or not it will be found faster next time.
        if let Err(error) = self.patience.insist(|| known.store(&self.store)).await {
            tracing::warn!(%error, "the index of known layers was not written");
        }
        let compressed = placed.values().any(|placed| placed.stored.cost.compressed > 0);
        Ok(Collected {
            image: record,
            tags: image.tags,
            warnings: archive.warnings().to_vec(),
            compressor: compressed.then_some(compress::COMPRESSOR),
        })
    }

    /// Every layer once, however often it stands in the image.
    async fn place_layers(
        &mut self,
        archive: &Arc<Archive>,
        image: &ArchiveImage,
        known: &KnownLayers,
        anyway: bool,
    ) -> Result<HashMap<Digest, Placed>, CollectError> {
        let mut layers: Vec<Arc<ArchiveLayer>> = Vec::new();
        for layer in &image.layers {
            if !layers.iter().any(|seen| seen.diff_id == layer.diff_id) {
                layers.push(Arc::new(layer.clone()));
            }
        }
        let this = &*self;
        let placed: Vec<(Digest, Placed)> = stream::iter(layers)
            .map(|layer| async move {
                let placed = this
                    .place(archive, &layer, known.get(&layer.diff_id), anyway)
                    .await?;
                Ok::<_, CollectError>((layer.diff_id.clone(), placed))
            })
            .buffered(LAYERS_AT_A_TIME)
            .try_collect()
            .await?;
        for (_, placed) in &placed {
            count(&mut self.counters, placed);
        }
        Ok(placed.into_iter().collect())
    }

    async fn place(
        &self,
        archive: &Arc<Archive>,
        layer: &Arc<ArchiveLayer>,
        known: Option<&KnownLayer>,
        anyway: bool,
    ) -> Result<Placed, CollectError> {
        let placed = if let Some(placed) = self.reuse(known).await? {
            placed
        } else {
            let stored = self
                .patience
                .insist(|| layer::store(&self.store, archive, layer, anyway))
                .await?;
            Placed {
                origin: origin(stored.cost.uploaded > 0, &layer.source),
                source: layer.source.clone(),
                stored,
            }
        };
        tracing::info!(
            diff_id = layer.diff_id.short(),
            digest = placed.stored.digest.short(),
            origin = ?placed.origin,
            bytes = placed.stored.size,
            read = placed.stored.cost.read,
            uploaded = placed.stored.cost.uploaded,
            "layer"
        );
        Ok(placed)
    }

    /// The stored form of a known layer, if staging still has it.
    async fn reuse(&self, known: Option<&KnownLayer>) -> Result<Option<Placed>, CollectError> {
        let Some(known) = known else {
            return Ok(None);
        };
        let size = self
            .patience
            .insist(|| self.store.blob_size(&known.digest))
            .await?;
        Ok((size == Some(known.size)).then(|| Placed {
            stored: Stored {
                digest: known.digest.clone(),
                size: known.size,
                media_type: known.media_type.clone(),
                cost: Cost::default(),
            },
            origin: origin(false, &known.source),
            source: known.source.clone(),
        }))
    }

    /// Config, then manifest by digest, then the tag that keeps it.
    async fn store_image(
        &self,
        image: &ArchiveImage,
        placed: &HashMap<Digest, Placed>,
        build: &BuildIdentity,
        anyway: bool,
    ) -> Result<ImageRecord, StagingError> {
        let layers: Vec<(&ArchiveLayer, &Placed)> = image
            .layers
            .iter()
            .filter_map(|layer| Some((layer, placed.get(&layer.diff_id)?)))
            .collect();
        let manifest = manifest(image, &layers)?;
        let (config, bytes) = (&image.config, Bytes::from(manifest.bytes.clone()));
        self.patience
            .insist(async || {
                let bytes = Bytes::from(config.bytes.clone());
                if anyway {
                    send_blob(&self.store, &config.digest, bytes).await
                } else {
                    put_blob(&self.store, &config.digest, bytes).await
                }
            })
            .await?;
        for reference in [manifest.digest.to_string(), staging::image_tag(build)] {
            self.patience
                .insist(|| {
                    self.store
                        .put_manifest(&reference, bytes.clone(), &manifest.media_type)
                })
                .await?;
        }
        Ok(ImageRecord {
            platform: image.platform.clone().unwrap_or_else(|| build.platform.clone()),
            manifest: Descriptor::new(manifest.media_type, manifest.digest, manifest.bytes.len() as u64),
            config: Descriptor::new(
                config.media_type.clone(),
                config.digest.clone(),
                config.bytes.len() as u64,
            ),
            layers: layers
                .into_iter()
                .map(|(layer, placed)| placed.record(layer))
                .collect(),
        })
    }
}

impl Placed {
    fn known(&self) -> KnownLayer {
        KnownLayer {
            digest: self.stored.digest.clone(),
            size: self.stored.size,
            media_type: self.stored.media_type.clone(),
            source: self.source.clone(),
            used: 0,
        }
    }

    fn record(&self, layer: &ArchiveLayer) -> LayerRecord {
        LayerRecord {
            diff_id: layer.diff_id.clone(),
            digest: self.stored.digest.clone(),
            size: self.stored.size,
            media_type: self.stored.media_type.clone(),
            source: self.source.clone(),
            layer_id: layer.layer_id.clone(),
            origin: self.origin,
        }
    }
}

fn origin(is_new: bool, source: &str) -> LayerOrigin {
    match (is_new, source) {
        (true, _) => LayerOrigin::New,
        (false, "") => LayerOrigin::Known,
        (false, _) => LayerOrigin::Base,
    }
}

fn count(counters: &mut Counters, placed: &Placed) {
    let Stored { size, cost, .. } = placed.stored;
    counters.bytes_read += cost.read;
    counters.bytes_hashed += cost.hashed;
    counters.bytes_compressed += cost.compressed;
    counters.bytes_uploaded += cost.uploaded;
    if cost.uploaded > 0 {
        counters.layers_uploaded += 1;
    } else {
        counters.layers_reused += 1;
        counters.bytes_reused += size;
    }
}

/// The producer's own manifest where every layer is stored as it describes it; else one that says how they
/// are stored here, with the producer's annotations.
fn manifest(image: &ArchiveImage, layers: &[(&ArchiveLayer, &Placed)]) -> Result<Document, StagingError> {
    let is_verbatim =
        |(layer, placed): &(&ArchiveLayer, &Placed)| layer.digest.as_ref() == Some(&placed.stored.digest);
    if let Some(document) = &image.manifest
        && layers.iter().all(is_verbatim)
    {
        return Ok(document.clone());
    }
    let original: Option<Manifest> = image
        .manifest
        .as_ref()
        .and_then(|document| serde_json::from_slice(&document.bytes).ok());
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST.into(),
        artifact_type: None,
        config: Descriptor::new(
            media_type::OCI_CONFIG,
            image.config.digest.clone(),
            image.config.bytes.len() as u64,
        ),
        layers: layers
            .iter()
            .map(|(layer, placed)| Descriptor {
                annotations: layer.annotations.clone(),
                ..Descriptor::new(
                    placed.stored.media_type.clone(),
                    placed.stored.digest.clone(),
                    placed.stored.size,
                )
            })
            .collect(),
        subject: None,
        annotations: original.map(|original| original.annotations).unwrap_or_default(),
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|error| StagingError::Invalid {
        what: "the new manifest".into(),
        why: error.to_string(),
    })?;
    Ok(Document {
        digest: Digest::of(&bytes),
        media_type: media_type::OCI_MANIFEST.into(),
        bytes,
    })
}
