//! Which layers a repository of staging has, by what they decompress to.
//!
//! A registry can be asked for a digest, not for a diff ID, and the digest of a layer that is not compressed
//! yet is not known before it is. So each repository keeps a small index of its own. It is a cache: an entry
//! is used only after the registry said that it still has the blob, and losing the index costs one upload.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    StagingError, Store,
    artifact::{self, File},
};
use crate::image::{Digest, json, media_type};

/// The tag of the index in its repository.
const TAG: &str = "slipway-layers";

/// What the index is, as an artifact and as a file.
const MEDIA_TYPE: &str = "application/vnd.slipway.layers.v1+json";

/// Some 300 bytes each, so that the index stays below the 4 MiB of any JSON document; the longest unused
/// entries make room.
const ENTRIES_LIMIT: usize = 10_000;

/// A layer that was proven when it was stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownLayer {
    /// Digest of the layer as it is stored.
    pub digest: Digest,
    /// Its stored size in bytes.
    pub size: u64,
    /// How it is stored.
    pub media_type: String,
    /// The repository that it came from; empty for a build's own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// When a build last used it, seconds since 1970.
    #[serde(default)]
    pub used: u64,
}

impl KnownLayer {
    /// Whether this is what a collector writes. The index is read from a registry, and what is in it goes into
    /// manifests and statuses.
    fn is_plausible(&self) -> bool {
        media_type::is_layer(&self.media_type)
            && self.source.len() <= 255
            && self.source.bytes().all(|byte| byte.is_ascii_graphic())
    }
}

/// The index, as it was when it was read and with what was learned since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownLayers {
    entries: BTreeMap<Digest, KnownLayer>,
    learned: BTreeMap<Digest, KnownLayer>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    layers: BTreeMap<Digest, KnownLayer>,
}

impl KnownLayers {
    /// Reads a repository's index. A missing or damaged one is an empty one.
    ///
    /// # Errors
    /// When staging cannot be asked.
    pub async fn load<S: Store>(store: &S) -> Result<Self, StagingError> {
        match Self::read(store).await {
            Ok(entries) => Ok(Self {
                entries,
                learned: BTreeMap::new(),
            }),
            Err(error @ StagingError::Invalid { .. }) => {
                tracing::warn!(%error, "the index of known layers is begun anew");
                Ok(Self::default())
            }
            Err(error) => Err(error),
        }
    }

    async fn read<S: Store>(store: &S) -> Result<BTreeMap<Digest, KnownLayer>, StagingError> {
        let Some(manifest) = artifact::manifest(store, TAG, MEDIA_TYPE).await? else {
            return Ok(BTreeMap::new());
        };
        let bytes = artifact::file(store, &manifest, MEDIA_TYPE, json::DOCUMENT_LIMIT).await?;
        let document: Document =
            json::parse(&bytes).map_err(|error| StagingError::invalid(TAG, error.to_string()))?;
        Ok(document
            .layers
            .into_iter()
            .filter(|(_, layer)| layer.is_plausible())
            .collect())
    }

    /// What is known of a layer. Ask staging for the blob before relying on it.
    pub fn get(&self, diff_id: &Digest) -> Option<&KnownLayer> {
        self.learned.get(diff_id).or_else(|| self.entries.get(diff_id))
    }

    /// Remembers a layer that staging has.
    pub fn learn(&mut self, diff_id: Digest, mut layer: KnownLayer) {
        layer.used = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs());
        self.learned.insert(diff_id, layer);
    }

    /// Adds what was learned to the repository's index, as it is by now.
    ///
    /// Two builds that end in the same moment may lose one's additions, which costs one upload later.
    ///
    /// # Errors
    /// When staging cannot be used.
    pub async fn store<S: Store>(&self, store: &S) -> Result<(), StagingError> {
        let says_more = |(diff_id, layer): (&Digest, &KnownLayer)| {
            self.entries
                .get(diff_id)
                .is_none_or(|known| known.digest != layer.digest)
        };
        if !self.learned.iter().any(says_more) {
            return Ok(());
        }
        let mut merged = Self::load(store).await?.entries;
        merged.extend(self.learned.clone());
        while merged.len() > ENTRIES_LIMIT {
            let oldest = merged.iter().min_by_key(|(_, layer)| layer.used);
            let Some(oldest) = oldest.map(|(diff_id, _)| diff_id.clone()) else {
                break;
            };
            merged.remove(&oldest);
        }
        let bytes = serde_json::to_vec(&Document { layers: merged })
            .map_err(|error| StagingError::invalid(TAG, error.to_string()))?;
        let file = File {
            title: "layers.json",
            media_type: MEDIA_TYPE,
            bytes: Bytes::from(bytes),
        };
        artifact::put(store, TAG, MEDIA_TYPE, &[file], None)
            .await
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::staging::memory::Memory;

    fn layer(content: &str) -> KnownLayer {
        KnownLayer {
            digest: Digest::of(content.as_bytes()),
            size: 7,
            media_type: media_type::OCI_LAYER_GZIP.into(),
            source: String::new(),
            used: 0,
        }
    }

    #[tokio::test]
    async fn what_two_builds_learn_is_merged() {
        let store = Memory::default();
        let diff = |text: &str| Digest::of(text.as_bytes());
        let mut one = KnownLayers::load(&store).await.unwrap();
        let mut two = one.clone();
        one.learn(diff("a"), layer("A"));
        two.learn(diff("b"), layer("B"));
        one.store(&store).await.unwrap();
        two.store(&store).await.unwrap();
        let known = KnownLayers::load(&store).await.unwrap();
        assert_eq!(known.get(&diff("a")).unwrap().digest, layer("A").digest);
        assert_eq!(known.get(&diff("b")).unwrap().digest, layer("B").digest);
        assert_eq!(known.get(&diff("c")), None);
    }

    #[tokio::test]
    async fn a_damaged_index_is_an_empty_one_and_nothing_new_writes_nothing() {
        let store = Memory::default();
        let bytes = Bytes::from_static(b"{}");
        store.put_manifest(TAG, bytes, "x").await.unwrap();
        let known = KnownLayers::load(&store).await.unwrap();
        assert_eq!(known, KnownLayers::default());
        let before = store.puts();
        known.store(&store).await.unwrap();
        assert_eq!(store.puts(), before);
    }
}
