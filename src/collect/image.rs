//! One image on its way to a store: its layers, its config and its manifest.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    CollectError, Cost, Event, Options,
    layer::{Source, Stored},
    patience::Patience,
};
use crate::{
    image::{
        Descriptor, Digest, Known, Manifest, Platform,
        archive::{Archive, ArchiveImage, ArchiveLayer, Document},
        compress::Pool,
        media_type,
    },
    record::{Counters, ImageRecord, LayerOrigin, LayerRecord},
    staging::{KnownLayer, KnownLayers, Pending, StagingError, Store, put_blob, send_blob},
};

/// Layers that are worked on at a time, one for each thread: each is read and hashed on a thread of its own.
/// More of them would only take memory.
const LAYERS_AT_A_TIME: usize = 4;

/// A store may lose what it says that it has; everything is then sent whatever it says.
const ATTEMPTS: usize = 3;

/// Everything that one collection needs and learns; images that are collected one after another share layers.
pub struct Collection<S> {
    store: S,
    patience: Patience,
    options: Options,
    pool: Pool,
    given: Known,
    known: Option<KnownLayers>,
    counters: Counters,
}

/// The tags by which a store keeps an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags {
    /// Keeps its layers for as long as it is not whole; something has to take it over in the end.
    pub pending: String,
    /// Keeps the image.
    pub image: String,
}

/// An image that is in the store.
#[derive(Debug)]
pub struct Collected {
    /// What is there.
    pub image: ImageRecord,
    /// Encoder, version and level, when a layer was compressed here.
    pub compressor: Option<&'static str>,
    /// Known layers of which nobody says the size, and which were therefore read.
    pub warnings: Vec<String>,
}

/// A layer in the store, and why.
#[derive(Clone, Debug)]
struct Placed {
    stored: Stored,
    origin: LayerOrigin,
    source: String,
}

impl<S: Store> Collection<S> {
    /// Begins to collect into `store`.
    pub fn new(store: S, patience: Patience, options: Options) -> Self {
        Self {
            store,
            patience,
            pool: Pool::new(options.threads),
            options,
            given: Known::default(),
            known: None,
            counters: Counters::default(),
        }
    }

    /// Adds layers that somebody vouches for; the store is asked for them before they are relied on.
    #[must_use]
    pub fn with_given(mut self, given: Known) -> Self {
        self.given = given;
        self
    }

    /// Where everything goes.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The store again, once everything is in it.
    pub fn into_store(self) -> S {
        self.store
    }

    /// How long its outages are waited for.
    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// What everything took by now.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Brings one image of an archive to the store, where `tags` keep it. An image that names no platform is
    /// taken for one of `platform`.
    ///
    /// # Errors
    /// What is wrong with the archive, or with the store.
    pub async fn collect(
        &mut self,
        archive: &Arc<Archive>,
        image: &ArchiveImage,
        platform: &Platform,
        tags: Tags,
    ) -> Result<Collected, CollectError> {
        let pending = Pending::under(tags.pending);
        let mut known = match self.known.take() {
            Some(known) => known,
            None => self.patience.insist(|| KnownLayers::load(&self.store)).await?,
        };
        let mut attempt = 1;
        let (record, placed) = loop {
            let placed = self
                .place_layers(archive, image, &known, &pending, attempt > 1)
                .await?;
            // This image is read no more after this.
            archive.check_unchanged()?;
            match self
                .store_image(image, &placed, platform, &tags.image, attempt > 1)
                .await
            {
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
            if placed.origin != LayerOrigin::Foreign {
                known.learn(diff_id.clone(), placed.known());
            }
        }
        // The image is there whether or not it will be found faster next time.
        if let Err(error) = self.patience.insist(|| known.store(&self.store)).await {
            tracing::warn!(%error, "the index of known layers was not written");
        }
        self.known = Some(known);
        let compressed = placed.values().any(|placed| placed.stored.cost.compressed > 0);
        Ok(Collected {
            warnings: self.warnings(&record),
            image: record,
            compressor: self.options.method.compressor().filter(|_| compressed),
        })
    }

    fn warnings(&self, record: &ImageRecord) -> Vec<String> {
        let is_unused = |layer: &&LayerRecord| {
            layer.origin == LayerOrigin::New
                && self
                    .given
                    .by_diff_id(&layer.diff_id)
                    .is_some_and(|given| given.size.is_none())
        };
        let without_size = record.layers.iter().filter(is_unused);
        without_size
            .map(|layer| {
                format!(
                    "layer {} is given as known, but without its size, and was read",
                    layer.diff_id
                )
            })
            .collect()
    }

    /// Every layer once, however often it stands in the image; large ones first, so that no thread is left
    /// alone with one at the end.
    async fn place_layers(
        &mut self,
        archive: &Arc<Archive>,
        image: &ArchiveImage,
        known: &KnownLayers,
        pending: &Pending,
        anyway: bool,
    ) -> Result<HashMap<Digest, Placed>, CollectError> {
        let mut layers: Vec<(u64, Arc<ArchiveLayer>)> = Vec::new();
        for layer in &image.layers {
            if !layers.iter().any(|(_, seen)| seen.diff_id == layer.diff_id) {
                layers.push((archive.size_hint(layer), Arc::new(layer.clone())));
            }
        }
        layers.sort_by_key(|(size, _)| Reverse(*size));
        let this = &*self;
        let placed: Vec<(Digest, Placed)> = stream::iter(layers)
            .map(|(_, layer)| async move {
                let placed = this.place(archive, &layer, known, pending, anyway).await?;
                Ok::<_, CollectError>((layer.diff_id.clone(), placed))
            })
            .buffer_unordered(self.pool.threads().min(LAYERS_AT_A_TIME))
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
        known: &KnownLayers,
        pending: &Pending,
        anyway: bool,
    ) -> Result<Placed, CollectError> {
        let source = Source::new(archive, layer, &self.pool, &self.options);
        let placed = if let Some(foreign) = foreign(layer) {
            foreign
        } else if let Some(mut placed) = self.reuse(layer, known, anyway).await? {
            if self.options.verify_known {
                placed.stored.cost = source.verify().await?;
            }
            placed
        } else {
            let stored = self.patience.insist(|| source.store(&self.store, anyway)).await?;
            if stored.cost.uploaded > 0 {
                // Whoever lost a layer for all that says so when the image's manifest names it.
                if let Err(error) = pending.keep(&self.store, stored.descriptor()).await {
                    tracing::warn!(%error, digest = stored.digest.short(), "the layer is not kept yet");
                }
            }
            Placed {
                origin: origin(stored.cost.uploaded > 0, &layer.source),
                source: layer.source.clone(),
                stored,
            }
        };
        (self.options.observer)(Event::Placed {
            layer: &placed.record(layer),
            cost: placed.stored.cost,
        });
        Ok(placed)
    }

    /// The stored form of a known layer, if the store still has it. With `anyway` nobody's word counts.
    async fn reuse(
        &self,
        layer: &ArchiveLayer,
        known: &KnownLayers,
        anyway: bool,
    ) -> Result<Option<Placed>, CollectError> {
        let given = || self.given.by_diff_id(&layer.diff_id).filter(|_| !anyway);
        let (digest, expected, media_type, source) = match known.get(&layer.diff_id) {
            Some(known) => (&known.digest, Some(known.size), &known.media_type, &known.source),
            None => match given() {
                Some(given) => (&given.digest, given.size, &given.media_type, &given.source),
                None => return Ok(None),
            },
        };
        let found = self.patience.insist(|| self.store.blob_size(digest)).await?;
        let size = found.filter(|found| expected.is_none_or(|size| size == *found));
        Ok(size.map(|size| Placed {
            stored: Stored {
                digest: digest.clone(),
                size,
                media_type: media_type.clone(),
                cost: Cost::default(),
            },
            origin: origin(false, source),
            source: source.clone(),
        }))
    }

    /// Config, then manifest by digest, then the tag that keeps it.
    async fn store_image(
        &self,
        image: &ArchiveImage,
        placed: &HashMap<Digest, Placed>,
        platform: &Platform,
        tag: &str,
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
        for reference in [manifest.digest.as_str(), tag] {
            self.patience
                .insist(|| {
                    self.store
                        .put_manifest(reference, bytes.clone(), &manifest.media_type)
                })
                .await?;
        }
        Ok(ImageRecord {
            platform: image.platform.clone().unwrap_or_else(|| platform.clone()),
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

/// A layer that stays where it is, as its descriptor has it.
fn foreign(layer: &ArchiveLayer) -> Option<Placed> {
    layer.foreign.as_ref()?;
    Some(Placed {
        stored: Stored {
            digest: layer.digest.clone()?,
            size: layer.size?,
            media_type: layer.media_type.clone()?,
            cost: Cost::default(),
        },
        origin: LayerOrigin::Foreign,
        source: layer.source.clone(),
    })
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
    if placed.origin == LayerOrigin::Foreign {
        return;
    }
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
                urls: layer.foreign.clone().unwrap_or_default(),
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
