//! A staging repository in memory that counts, and fails when it is told to.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;

use super::{StagingError, Store, StoredManifest, Upload};
use crate::image::{Descriptor, Digest};

#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    blobs: Mutex<HashMap<Digest, Bytes>>,
    manifests: Mutex<BTreeMap<String, StoredManifest>>,
    uploaded: AtomicUsize,
    puts: AtomicUsize,
    /// Requests that succeed before the outage begins.
    before_outage: AtomicUsize,
    /// Requests that fail before the next one succeeds.
    outage: AtomicUsize,
    /// Said to be there, and not there.
    pretended: Mutex<HashMap<Digest, u64>>,
}

impl Memory {
    /// Lets `requests` fail, after `before` good ones.
    pub fn fail_after(&self, before: usize, requests: usize) {
        self.state.before_outage.store(before, Ordering::SeqCst);
        self.state.outage.store(requests, Ordering::SeqCst);
    }

    /// Loses a blob and goes on saying that it is there, until it is stored again.
    pub fn pretend_blob(&self, digest: &Digest) {
        let lost = self.state.blobs.lock().unwrap().remove(digest).unwrap();
        let mut pretended = self.state.pretended.lock().unwrap();
        pretended.insert(digest.clone(), lost.len() as u64);
    }

    /// Bytes of all blobs that were committed.
    pub fn uploaded(&self) -> usize {
        self.state.uploaded.load(Ordering::SeqCst)
    }

    /// Manifests that were put.
    pub fn puts(&self) -> usize {
        self.state.puts.load(Ordering::SeqCst)
    }

    pub fn tags(&self) -> Vec<String> {
        let manifests = self.state.manifests.lock().unwrap();
        manifests
            .keys()
            .filter(|key| !key.contains(':'))
            .cloned()
            .collect()
    }

    pub fn has(&self, digest: &Digest) -> bool {
        self.state.blobs.lock().unwrap().contains_key(digest)
    }

    pub fn forget_blob(&self, digest: &Digest) {
        self.state.blobs.lock().unwrap().remove(digest);
    }

    pub fn forget_manifest(&self, reference: &str) {
        self.state.manifests.lock().unwrap().remove(reference);
    }

    fn available(&self) -> Result<(), StagingError> {
        let count_down = |counter: &AtomicUsize| {
            counter
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                .is_ok()
        };
        if !count_down(&self.state.before_outage) && count_down(&self.state.outage) {
            return Err(StagingError::Unavailable("on purpose".into()));
        }
        Ok(())
    }
}

impl Store for Memory {
    type Upload = MemoryUpload;

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StagingError> {
        self.available()?;
        Ok(self
            .state
            .blobs
            .lock()
            .unwrap()
            .get(digest)
            .map(|blob| blob.len() as u64))
    }

    async fn blob(&self, descriptor: &Descriptor) -> Result<Bytes, StagingError> {
        self.available()?;
        let blob = self.state.blobs.lock().unwrap().get(&descriptor.digest).cloned();
        blob.filter(|blob| blob.len() as u64 == descriptor.size)
            .ok_or_else(|| StagingError::invalid(descriptor.digest.as_str(), "no such blob"))
    }

    async fn begin_upload(&self) -> Result<MemoryUpload, StagingError> {
        self.available()?;
        Ok(MemoryUpload {
            memory: self.clone(),
            bytes: Vec::new(),
        })
    }

    async fn manifest(&self, reference: &str) -> Result<Option<StoredManifest>, StagingError> {
        self.available()?;
        Ok(self.state.manifests.lock().unwrap().get(reference).cloned())
    }

    async fn put_manifest(
        &self,
        reference: &str,
        bytes: Bytes,
        media_type: &str,
    ) -> Result<(), StagingError> {
        self.available()?;
        let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let layers = document["layers"].as_array().into_iter().flatten();
        // Foreign layers have addresses, and are nowhere in a registry.
        let here = layers.filter(|layer| layer["urls"].is_null());
        for named in here.chain(document.get("config")) {
            let digest: Digest = named["digest"].as_str().unwrap().parse().unwrap();
            if !self.state.blobs.lock().unwrap().contains_key(&digest) {
                return Err(StagingError::ContentLost(digest.to_string()));
            }
        }
        self.state.puts.fetch_add(1, Ordering::SeqCst);
        let stored = StoredManifest {
            bytes,
            media_type: media_type.into(),
        };
        self.state
            .manifests
            .lock()
            .unwrap()
            .insert(reference.into(), stored);
        Ok(())
    }
}

pub(crate) struct MemoryUpload {
    memory: Memory,
    bytes: Vec<u8>,
}

impl Upload for MemoryUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StagingError> {
        self.memory.available()?;
        self.bytes.extend(bytes);
        Ok(())
    }

    async fn commit(self, digest: &Digest) -> Result<(), StagingError> {
        self.memory.available()?;
        let mut hasher = digest.hasher();
        hasher.update(&self.bytes);
        assert_eq!(hasher.finish(), *digest, "committed under another's digest");
        self.memory
            .state
            .uploaded
            .fetch_add(self.bytes.len(), Ordering::SeqCst);
        let bytes = Bytes::from(self.bytes);
        self.memory
            .state
            .blobs
            .lock()
            .unwrap()
            .insert(digest.clone(), bytes);
        Ok(())
    }
}
