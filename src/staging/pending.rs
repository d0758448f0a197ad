//! Layers of an image that is not whole yet: named by a manifest under a tag as soon as each is stored, so that
//! no garbage collection takes them before the image's own manifest names them.
//!
//! The tag is one that something else takes over at the end: the image, or the record of why there is none.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::{StagingError, Store, artifact, put_blob};
use crate::image::{Descriptor, media_type};

/// What the manifest is, as an artifact.
const TYPE: &str = "application/vnd.slipway.pending.v1";

/// The stored layers of one image.
#[derive(Debug)]
pub struct Pending {
    tag: String,
    layers: Mutex<Vec<Descriptor>>,
    /// How many of them the manifest names by now. One request at a time, so that none undoes another.
    named: tokio::sync::Mutex<usize>,
}

impl Pending {
    /// Layers that are to be kept by a tag.
    pub fn under(tag: String) -> Self {
        Self {
            tag,
            layers: Mutex::default(),
            named: tokio::sync::Mutex::new(0),
        }
    }

    /// Keeps one more layer, which the store has.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn keep<S: Store>(&self, store: &S, layer: Descriptor) -> Result<(), StagingError> {
        let position = {
            let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            layers.push(layer);
            layers.len()
        };
        let mut named = self.named.lock().await;
        // Whoever was before named every layer that there was.
        if *named >= position {
            return Ok(());
        }
        if *named == 0 {
            let (config, bytes) = artifact::empty_config();
            put_blob(store, &config.digest, bytes).await?;
        }
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let count = layers.len();
        let bytes = artifact::encode(TYPE, layers, None)?;
        store
            .put_manifest(&self.tag, Bytes::from(bytes), media_type::OCI_MANIFEST)
            .await?;
        *named = count;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        image::{Digest, Manifest},
        staging::{memory::Memory, send_blob},
    };

    #[tokio::test]
    async fn every_layer_is_named_and_together_they_take_few_requests() {
        let store = Memory::default();
        let pending = Pending::under("record-1".into());
        let mut layers = Vec::new();
        for number in 0..5_u8 {
            let bytes = Bytes::from(vec![number; 10]);
            let digest = Digest::of(&bytes);
            send_blob(&store, &digest, bytes).await.unwrap();
            layers.push(Descriptor::new(media_type::OCI_LAYER_GZIP, digest, 10));
        }
        let before = store.puts();
        let kept = layers.iter().map(|layer| pending.keep(&store, layer.clone()));
        for kept in futures_util::future::join_all(kept).await {
            kept.unwrap();
        }
        let puts = store.puts() - before;
        assert!((1..=5).contains(&puts), "{puts}");
        let stored = store.manifest("record-1").await.unwrap().unwrap();
        let manifest: Manifest = serde_json::from_slice(&stored.bytes).unwrap();
        assert_eq!(manifest.layers, layers);
        assert_eq!(manifest.artifact_type.as_deref(), Some(TYPE));
    }
}
