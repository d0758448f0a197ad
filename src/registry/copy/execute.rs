//! The copy itself.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::{StreamExt, TryStreamExt, future::BoxFuture, stream};

use super::{
    BlobCounters, BlobState, CopyError, Image, Listener, Progress, TagPolicy,
    plan::{self, DEPTH_LIMIT, Document, Node},
};
use crate::{
    image::{Descriptor, Digest, Platform},
    registry::{
        client::Repository,
        error::RegistryError,
        manifest::RawManifest,
        source::RepositoryBlob,
        upload::{Meter, Mount, Uploaded},
    },
};

/// Targets at a time, and blobs at a time for each: enough to hide latency, few enough that a pod with a small
/// memory limit holds the buffers of all connections.
const TARGETS: usize = 4;
const BLOBS: usize = 4;

/// Where an image goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// The repository, with the identity that may write there.
    pub repository: Repository,
    /// Written last, one by one.
    pub tags: Vec<String>,
    /// What happens to a tag that points elsewhere.
    pub policy: TagPolicy,
}

/// How one target ended.
#[derive(Debug)]
pub struct Outcome {
    /// Where each tag pointed to before, in the target's order; empty where that was not learned.
    pub previous: Vec<Option<Digest>>,
    /// What became of the blobs.
    pub blobs: BlobCounters,
    /// Whether everything is there and verified.
    pub result: Result<(), CopyError>,
}

/// Reads an image's documents from its source and checks them; nothing is written.
///
/// A tag is resolved once. With platforms, an index is reduced to them; a plain image is taken as it is.
///
/// # Errors
/// When the source has no such image or does not answer, and when the image is not valid.
pub async fn read_image(
    source: &Repository,
    reference: &str,
    platforms: &[Platform],
) -> Result<Image, CopyError> {
    let missing = || CopyError::SourceMissing {
        reference: format!("{}/{} {reference}", source.registry(), source.name()),
    };
    let mut root = source.manifest(reference).await?.ok_or_else(missing)?;
    if let Document::Index(index) = plan::read_document(&root)? {
        root = plan::only_platforms(&root, &index, platforms)?;
    }
    let mut nodes = Vec::new();
    let mut seen = HashSet::new();
    gather(source, root.clone(), 0, &mut nodes, &mut seen).await?;
    Image::new(nodes, root)
}

/// Adds a document after all that it names.
fn gather<'a>(
    source: &'a Repository,
    raw: RawManifest,
    depth: usize,
    nodes: &'a mut Vec<Node>,
    seen: &'a mut HashSet<Digest>,
) -> BoxFuture<'a, Result<(), CopyError>> {
    Box::pin(async move {
        if !seen.insert(raw.digest.clone()) {
            return Ok(());
        }
        let blobs = match plan::read_document(&raw)? {
            Document::Image(manifest) => plan::blobs_of(*manifest),
            Document::Index(index) => {
                if depth == DEPTH_LIMIT {
                    return Err(CopyError::Limit {
                        what: "levels of indexes",
                        limit: DEPTH_LIMIT,
                    });
                }
                let children = stream::iter(index.manifests)
                    .map(|child| read_child(source, child))
                    .buffered(BLOBS)
                    .try_collect::<Vec<_>>()
                    .await?;
                for child in children {
                    gather(source, child, depth + 1, nodes, seen).await?;
                }
                Vec::new()
            }
        };
        nodes.push(Node { raw, blobs });
        Ok(())
    })
}

async fn read_child(source: &Repository, child: Descriptor) -> Result<RawManifest, CopyError> {
    let raw = source
        .manifest(child.digest.as_str())
        .await?
        .ok_or_else(|| CopyError::SourceMissing {
            reference: format!("{}/{} {}", source.registry(), source.name(), child.digest),
        })?;
    if raw.bytes.len() as u64 != child.size {
        return Err(CopyError::Manifest {
            digest: raw.digest,
            problem: format!("it has {} bytes, the index says {}", raw.bytes.len(), child.size),
        });
    }
    Ok(raw)
}

/// Brings an image to every target; what one refuses concerns no other. The outcomes are in the order of
/// the targets.
pub async fn push_all(
    image: &Image,
    source: &Repository,
    targets: &[Target],
    listener: Option<Listener>,
) -> Vec<Outcome> {
    stream::iter(targets.iter().enumerate())
        .map(|(index, target)| {
            let push = Push::new(image, source, target, index, listener.clone());
            async move { push.run().await }
        })
        .buffered(TARGETS)
        .collect()
        .await
}

/// One image on its way to one target.
struct Push<'a> {
    image: &'a Image,
    source: &'a Repository,
    repository: Repository,
    target: &'a Target,
    index: usize,
    listener: Option<Listener>,
    /// Cleared when the registry once said no.
    mounts: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    blobs: BlobCounters,
    /// Blobs and manifests that were seen with their sizes at the target during this push.
    proven: HashSet<Digest>,
}

impl<'a> Push<'a> {
    fn new(
        image: &'a Image,
        source: &'a Repository,
        target: &'a Target,
        index: usize,
        listener: Option<Listener>,
    ) -> Self {
        let same_registry = source.registry() == target.repository.registry();
        let mounts = same_registry && source.name() != target.repository.name();
        let sources: &[&str] = if mounts { &[source.name()] } else { &[] };
        Self {
            repository: target.repository.for_push(sources),
            image,
            source,
            target,
            index,
            listener,
            mounts: AtomicBool::new(mounts),
            state: Mutex::default(),
        }
    }

    async fn run(self) -> Outcome {
        self.tell(Progress::Started {
            target: self.index,
            blobs: self.image.blobs(),
            bytes: self.image.bytes(),
        });
        let mut previous = Vec::new();
        let result = self.steps(&mut previous).await;
        self.tell(Progress::Ended { target: self.index });
        Outcome {
            previous,
            blobs: self.state().blobs,
            result,
        }
    }

    async fn steps(&self, previous: &mut Vec<Option<Digest>>) -> Result<(), CopyError> {
        *previous = self.read_tags().await?;
        self.refuse_taken_tags(previous)?;
        let served = self.serves_root().await?;
        self.bring_blobs().await?;
        self.bring_manifests(served).await?;
        self.move_tags(previous).await?;
        self.verify(served).await
    }

    async fn read_tags(&self) -> Result<Vec<Option<Digest>>, CopyError> {
        stream::iter(&self.target.tags)
            .map(|tag| self.read_tag(tag))
            .buffered(BLOBS)
            .try_collect()
            .await
    }

    async fn read_tag(&self, tag: &str) -> Result<Option<Digest>, CopyError> {
        let found = self.repository.head_manifest(tag).await?;
        Ok(found.map(|(digest, _)| digest))
    }

    /// Says no before anything is sent for a tag that will not be moved.
    fn refuse_taken_tags(&self, previous: &[Option<Digest>]) -> Result<(), CopyError> {
        if self.target.policy != TagPolicy::Immutable {
            return Ok(());
        }
        for (tag, found) in self.target.tags.iter().zip(previous) {
            if let Some(found) = found.as_ref().filter(|found| *found != self.image.digest()) {
                return Err(taken(tag, Some(found), IMMUTABLE));
            }
        }
        Ok(())
    }

    /// Whether the target has the very bytes of the root.
    async fn serves_root(&self) -> Result<bool, CopyError> {
        let root = &self.image.root;
        let found = self.repository.manifest(root.digest.as_str()).await?;
        Ok(found.is_some_and(|found| found.bytes == root.bytes))
    }

    async fn bring_blobs(&self) -> Result<(), CopyError> {
        stream::iter(&self.image.blobs)
            .map(|blob| self.bring_blob(blob))
            .buffer_unordered(BLOBS)
            .try_collect()
            .await
    }

    async fn bring_blob(&self, blob: &Descriptor) -> Result<(), CopyError> {
        if self.repository.has_blob(blob).await? {
            self.count(blob, BlobState::Existed);
            return Ok(());
        }
        let mut pending = None;
        if self.mounts.load(Ordering::Relaxed) {
            match self
                .repository
                .mount_blob(&blob.digest, self.source.name())
                .await?
            {
                Mount::Mounted => {
                    self.count(blob, BlobState::Mounted);
                    return Ok(());
                }
                Mount::Upload(upload) => pending = Some(upload),
                Mount::Unavailable => self.mounts.store(false, Ordering::Relaxed),
            }
        }
        self.send_blob(blob, pending).await
    }

    async fn send_blob(
        &self,
        blob: &Descriptor,
        pending: Option<crate::registry::upload::PendingUpload>,
    ) -> Result<(), CopyError> {
        let source = RepositoryBlob {
            repository: self.source.clone(),
            descriptor: blob.clone(),
        };
        let result = self
            .repository
            .send_blob(blob, &source, pending, self.meter(blob))
            .await;
        match result {
            Ok(Uploaded::Sent { bytes, resumed }) => {
                let mut state = self.state();
                state.blobs.bytes_uploaded += signed(bytes);
                state.blobs.resumed += i64::from(resumed);
                drop(state);
                self.count(blob, BlobState::Uploaded);
                Ok(())
            }
            Ok(Uploaded::Existed) => {
                self.count(blob, BlobState::Existed);
                Ok(())
            }
            Err(RegistryError::Source { digest, .. }) if !blob.urls.is_empty() => {
                Err(CopyError::Foreign { digest })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what the target lacks, leaves before branches.
    async fn bring_manifests(&self, served: bool) -> Result<(), CopyError> {
        for node in &self.image.nodes {
            let raw = &node.raw;
            let there = if raw.digest == self.image.root.digest {
                served
            } else {
                let found = self.repository.head_manifest(raw.digest.as_str()).await?;
                found.is_some_and(|(_, size)| size == raw.bytes.len() as u64)
            };
            if there {
                self.state().proven.insert(raw.digest.clone());
            } else {
                self.write_manifest(node).await?;
                self.tell(Progress::Manifest {
                    target: self.index,
                    digest: raw.digest.clone(),
                });
            }
        }
        Ok(())
    }

    /// Writes a manifest; where the registry misses blobs that it said it had, they are sent after all, once.
    async fn write_manifest(&self, node: &Node) -> Result<(), CopyError> {
        let RawManifest {
            bytes,
            media_type,
            digest,
        } = &node.raw;
        let put = || self.repository.put_manifest(digest.as_str(), media_type, bytes);
        let named = match put().await {
            Ok(_) => return Ok(()),
            Err(RegistryError::Answered { refusal, .. }) if misses_blobs(refusal.code.as_deref()) => {
                refusal.named
            }
            Err(error) => return Err(error.into()),
        };
        let is_named = |blob: &&Descriptor| named.contains(&blob.digest);
        let all = !node.blobs.iter().any(|blob| is_named(&blob));
        for blob in node.blobs.iter().filter(|blob| all || is_named(blob)) {
            tracing::warn!(digest = %blob.digest, "the registry said that it had the blob, and misses it");
            self.forget(blob);
            self.send_blob(blob, None).await?;
        }
        put().await?;
        Ok(())
    }

    async fn move_tags(&self, previous: &[Option<Digest>]) -> Result<(), CopyError> {
        let RawManifest {
            bytes,
            media_type,
            digest,
        } = &self.image.root;
        for (tag, previous) in self.target.tags.iter().zip(previous) {
            let mut now = previous.clone();
            if self.target.policy != TagPolicy::Overwrite && now.as_ref() != Some(digest) {
                // A long push lies between then and now.
                now = self.read_tag(tag).await?;
                if now != *previous && now.as_ref() != Some(digest) {
                    return Err(taken(tag, now.as_ref(), CHANGED));
                }
            }
            if now.as_ref() != Some(digest) {
                self.repository
                    .put_manifest(tag, media_type, bytes)
                    .await
                    .map_err(|error| refused_tag(tag, previous.as_ref(), error))?;
            }
            self.tell(Progress::Tagged {
                target: self.index,
                tag: tag.clone(),
            });
        }
        Ok(())
    }

    /// Reads back what this push has not yet seen at the target.
    async fn verify(&self, served: bool) -> Result<(), CopyError> {
        let root = &self.image.root;
        if !served {
            self.verify_root(root.digest.as_str()).await?;
        }
        for tag in &self.target.tags {
            self.verify_root(tag).await?;
        }
        for node in &self.image.nodes {
            self.verify_child(&node.raw).await?;
        }
        stream::iter(&self.image.blobs)
            .map(|blob| self.verify_blob(blob))
            .buffer_unordered(BLOBS)
            .try_collect()
            .await
    }

    async fn verify_root(&self, reference: &str) -> Result<(), CopyError> {
        let found = self.repository.manifest(reference).await?;
        match found {
            Some(found) if found.bytes == self.image.root.bytes => Ok(()),
            found => Err(CopyError::Verification {
                what: reference.to_owned(),
                found: found.map_or_else(|| "nothing".to_owned(), |found| found.digest.to_string()),
            }),
        }
    }

    async fn verify_child(&self, raw: &RawManifest) -> Result<(), CopyError> {
        if raw.digest == self.image.root.digest || self.state().proven.contains(&raw.digest) {
            return Ok(());
        }
        match self.repository.head_manifest(raw.digest.as_str()).await? {
            Some((_, size)) if size == raw.bytes.len() as u64 => Ok(()),
            found => Err(CopyError::Verification {
                what: format!("the manifest {}", raw.digest),
                found: found.map_or_else(|| "nothing".to_owned(), |(_, size)| format!("{size} bytes")),
            }),
        }
    }

    async fn verify_blob(&self, blob: &Descriptor) -> Result<(), CopyError> {
        if !self.state().proven.contains(&blob.digest) {
            self.repository.prove(blob).await?;
        }
        Ok(())
    }

    fn count(&self, blob: &Descriptor, became: BlobState) {
        {
            let mut state = self.state();
            let saved = signed(blob.size);
            match became {
                BlobState::Existed => {
                    state.blobs.existed += 1;
                    state.blobs.bytes_saved += saved;
                }
                BlobState::Mounted => {
                    state.blobs.mounted += 1;
                    state.blobs.bytes_saved += saved;
                }
                BlobState::Uploaded => state.blobs.uploaded += 1,
                BlobState::Sending(_) => {}
            }
            // Of a mounted blob only the registry's word is known yet.
            if became != BlobState::Mounted {
                state.proven.insert(blob.digest.clone());
            }
        }
        self.tell_blob(blob, became);
    }

    /// Takes back what [`Self::count`] counted for a blob that turned out to be missing.
    fn forget(&self, blob: &Descriptor) {
        let mut state = self.state();
        if state.proven.remove(&blob.digest) && state.blobs.existed > 0 {
            state.blobs.existed -= 1;
            state.blobs.bytes_saved -= signed(blob.size);
        }
    }

    fn meter(&self, blob: &Descriptor) -> Option<Meter> {
        let listener = self.listener.clone()?;
        let (target, digest) = (self.index, blob.digest.clone());
        Some(Arc::new(move |bytes| {
            listener(Progress::Blob {
                target,
                digest: digest.clone(),
                state: BlobState::Sending(bytes),
            });
        }))
    }

    fn tell_blob(&self, blob: &Descriptor, state: BlobState) {
        self.tell(Progress::Blob {
            target: self.index,
            digest: blob.digest.clone(),
            state,
        });
    }

    fn tell(&self, progress: Progress) {
        if let Some(listener) = &self.listener {
            listener(progress);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const IMMUTABLE: &str = "the policy says that it is never moved";
const CHANGED: &str = "somebody moved it during this push, and the policy says that it is not moved then";
const REGISTRY_SAYS: &str = "the registry does not let it be moved";

fn taken(tag: &str, found: Option<&Digest>, rule: &'static str) -> CopyError {
    CopyError::TagTaken {
        tag: tag.to_owned(),
        found: found.map_or_else(|| "nothing".to_owned(), Digest::to_string),
        rule,
    }
}

/// Registries have no common way of saying that a tag is immutable; some use 412, most the word.
fn refused_tag(tag: &str, previous: Option<&Digest>, error: RegistryError) -> CopyError {
    if let RegistryError::Answered { refusal, .. } = &error
        && previous.is_some()
        && refusal.status.is_client_error()
        && (refusal.status == http::StatusCode::PRECONDITION_FAILED
            || refusal.message.to_ascii_lowercase().contains("immutable"))
    {
        return taken(tag, previous, REGISTRY_SAYS);
    }
    error.into()
}

fn misses_blobs(code: Option<&str>) -> bool {
    matches!(code, Some("MANIFEST_BLOB_UNKNOWN" | "BLOB_UNKNOWN"))
}

fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
