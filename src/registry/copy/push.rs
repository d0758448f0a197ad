//! An image on its way to its targets: the order of the steps, and the blobs.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{StreamExt, TryStreamExt, stream, try_join};
use tokio::sync::Semaphore;

use super::{
    BlobCounters, BlobSource, BlobState, CopyError, Image, Listener, Progress, ReferrerCounters, TagPolicy,
    share::Meeting,
};
use crate::{
    image::{Descriptor, Digest},
    registry::{
        client::Repository,
        error::RegistryError,
        source::{ByteStream, ImageSource, SourceBlob},
        upload::{Meter, Mount, PendingUpload, Uploaded},
    },
};

/// Targets at a time.
const TARGETS: usize = 8;
/// Requests at a time for each target: where every answer takes 80 ms, sixty layers still go in two rounds.
pub(super) const REQUESTS: usize = 32;
/// Large blobs that are sent at a time for each target. A connection holds up to half a MiB of buffers, and a pod has a
/// small memory limit.
const LARGE_BLOBS: usize = 8;
/// From here on a blob's bytes take longer than its requests. Smaller ones wait for no large one: at another target
/// they may have come first, and that one would wait here to share the read.
const LARGE: u64 = 4 << 20;

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

/// How much of what a target already has is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// Every blob and manifest.
    #[default]
    Whole,
    /// Where a tag points to the image already: the very bytes of its root, and the manifests that an index
    /// names. A registry takes a manifest only when it has the blobs, so those are not asked for; what a registry
    /// lost since then is not noticed.
    Root,
}

/// How images are pushed.
#[derive(Clone, Default)]
pub struct PushOptions {
    /// Hears of progress.
    pub listener: Option<Listener>,
    /// How much of what is there is looked at.
    pub proof: Proof,
    /// Where each target's tags point to, as [`approach`] found; empty where it was not called.
    pub tags: Vec<Vec<Option<Digest>>>,
}

/// How one target ended.
#[derive(Debug)]
pub struct Outcome {
    /// Where each tag pointed to before, in the target's order; empty where that was not learned.
    pub previous: Vec<Option<Digest>>,
    /// What became of the blobs.
    pub blobs: BlobCounters,
    /// What became of what refers to the image.
    pub referrers: ReferrerCounters,
    /// Whether any manifest or tag was written.
    pub changed: bool,
    /// Whether everything is there and verified.
    pub result: Result<(), CopyError>,
}

impl Outcome {
    /// The same, with what an earlier push to the target had done: what it brought, this one found there.
    pub(super) fn after(self, earlier: &Self) -> Self {
        Self {
            blobs: self.blobs.after(earlier.blobs),
            referrers: self.referrers.after(earlier.referrers),
            changed: self.changed || earlier.changed,
            ..self
        }
    }
}

/// Brings an image to every target; what one refuses concerns no other. The outcomes are in the order of
/// the targets.
///
/// A blob that several targets lack is read once, as long as they keep pace with each other.
pub async fn push_all(
    image: &Image,
    source: &ImageSource,
    targets: &[Target],
    listener: Option<Listener>,
) -> Vec<Outcome> {
    let options = PushOptions {
        listener,
        ..PushOptions::default()
    };
    push_all_with(image, source, targets, &options).await
}

/// [`push_all`] with what is optional.
pub async fn push_all_with(
    image: &Image,
    source: &ImageSource,
    targets: &[Target],
    options: &PushOptions,
) -> Vec<Outcome> {
    // Targets beyond those that go at a time come too late for everybody else.
    let meeting = Meeting::new(targets.len().min(TARGETS));
    stream::iter(targets.iter().enumerate())
        .map(|(index, target)| {
            let meeting = if index < TARGETS {
                Arc::clone(&meeting)
            } else {
                Meeting::new(1)
            };
            let push = Push::new(image, source, target, index, meeting, options);
            async move { push.run().await }
        })
        .buffered(TARGETS)
        .collect()
        .await
}

/// [`push_all_with`] to one target.
pub(super) async fn push_to(
    image: &Image,
    source: &ImageSource,
    target: &Target,
    options: &PushOptions,
) -> Outcome {
    let push = Push::new(image, source, target, 0, Meeting::new(1), options);
    Box::pin(push.run()).await
}

/// Asks every target where its tags point to, while the image is still being read: connections and tokens are
/// there then when the push begins. Whatever stands against it, the push finds out; it has no tags of that target
/// here.
///
/// With the repository that the image comes from, one token serves its mounts as well.
pub async fn approach(source: Option<&Repository>, targets: &[Target]) -> Vec<Vec<Option<Digest>>> {
    stream::iter(targets)
        .map(|target| async move {
            let from = source.and_then(|source| mount_name(source, &target.repository));
            let sources: Vec<&str> = from.iter().map(String::as_str).collect();
            let repository = target.repository.for_push(&sources);
            read_tags(&repository, &target.tags).await.unwrap_or_default()
        })
        .buffered(TARGETS)
        .collect()
        .await
}

/// Where tags point to.
pub(super) async fn read_tags(
    repository: &Repository,
    tags: &[String],
) -> Result<Vec<Option<Digest>>, RegistryError> {
    stream::iter(tags)
        .map(|tag| async move {
            let found = repository.head_manifest(tag).await?;
            Ok(found.map(|(digest, _)| digest))
        })
        .buffered(REQUESTS)
        .try_collect()
        .await
}

/// One image on its way to one target.
pub(super) struct Push<'a> {
    pub(super) image: &'a Image,
    source: &'a ImageSource,
    pub(super) repository: Repository,
    pub(super) target: &'a Target,
    pub(super) index: usize,
    meeting: Arc<Meeting>,
    options: &'a PushOptions,
    /// The repository to mount from.
    mount_from: Option<String>,
    /// Whether the registry mounts from there. Unknown until the first try, which the other blobs wait for:
    /// sixteen refusals at once tell no more than one.
    mounts: tokio::sync::Mutex<Option<bool>>,
    large: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) blobs: BlobCounters,
    pub(super) referrers: ReferrerCounters,
    pub(super) changed: bool,
    /// The lists of referrers that clients keep, and what was put into them.
    pub(super) lists: Vec<(Digest, Vec<Descriptor>)>,
    /// Blobs and manifests that were seen with their sizes at the target during this push.
    pub(super) proven: HashSet<Digest>,
}

impl<'a> Push<'a> {
    fn new(
        image: &'a Image,
        source: &'a ImageSource,
        target: &'a Target,
        index: usize,
        meeting: Arc<Meeting>,
        options: &'a PushOptions,
    ) -> Self {
        let repository = &target.repository;
        let mount_from = mount_source(source, repository);
        let sources: Vec<&str> = mount_from.iter().map(String::as_str).collect();
        Self {
            repository: repository.for_push(&sources),
            image,
            source,
            target,
            index,
            meeting,
            options,
            mounts: tokio::sync::Mutex::default(),
            mount_from,
            large: Semaphore::new(LARGE_BLOBS),
            state: Mutex::default(),
        }
    }

    async fn run(self) -> Outcome {
        self.tell(Progress::Started {
            target: self.index,
            blobs: self.image.blobs(),
            bytes: self.image.bytes(),
        });
        let mut previous = self.options.tags.get(self.index).cloned().unwrap_or_default();
        let result = self.steps(&mut previous).await;
        self.meeting.leave(self.index, |digest| self.source_blob(digest));
        self.tell(Progress::Ended { target: self.index });
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        Outcome {
            previous,
            blobs: state.blobs,
            referrers: state.referrers,
            changed: state.changed,
            result,
        }
    }

    async fn steps(&self, previous: &mut Vec<Option<Digest>>) -> Result<(), CopyError> {
        let root_first = self.options.proof == Proof::Root;
        if previous.is_empty() && (self.target.policy == TagPolicy::Immutable || root_first) {
            *previous = read_tags(&self.repository, &self.target.tags).await?;
        }
        self.refuse_taken_tags(previous)?;
        let is_tagged = previous
            .iter()
            .flatten()
            .any(|found| found == self.image.digest());
        let served = if root_first && is_tagged {
            let served = self.serves_documents().await?;
            if served {
                self.believe();
            }
            self.bring_blobs(true).await?;
            served
        } else {
            // What has no tag yet has no blobs either, most likely.
            let is_new = !self.target.tags.is_empty() && previous.iter().all(Option::is_none);
            let look_first = !(is_new && previous.len() == self.target.tags.len());
            let tags = async {
                if previous.is_empty() {
                    *previous = read_tags(&self.repository, &self.target.tags).await?;
                }
                Ok(())
            };
            // Each answer takes a round trip, so everything that can be asked is asked at once.
            let ((), served, ()) = try_join!(tags, self.serves_root(), self.bring_blobs(look_first))?;
            served
        };
        let moved = self.bring_manifests(served, previous).await?;
        self.bring_referrers().await?;
        let written = self.move_tags(previous, &moved).await?;
        self.verify(served, &written).await
    }

    /// Takes the registry's word for the blobs of an image whose documents it serves.
    fn believe(&self) {
        for node in &self.image.nodes {
            self.state().proven.insert(node.raw.digest.clone());
            for blob in &node.blobs {
                // Several manifests may share it.
                if !self.is_proven(&blob.digest) {
                    self.count(blob, BlobState::Existed);
                }
            }
        }
    }

    pub(super) fn is_proven(&self, digest: &Digest) -> bool {
        self.state().proven.contains(digest)
    }

    async fn bring_blobs(&self, look_first: bool) -> Result<(), CopyError> {
        let unproven = self
            .image
            .blobs
            .iter()
            .filter(|blob| !self.is_proven(&blob.digest));
        stream::iter(unproven)
            .map(|blob| self.bring_blob(blob, look_first))
            .buffer_unordered(REQUESTS)
            .try_collect()
            .await
    }

    /// Where blobs can be mounted and most likely are not there, the mount is the question: it costs no more than
    /// one that is answered with no.
    async fn bring_blob(&self, blob: &Descriptor, look_first: bool) -> Result<(), CopyError> {
        // Another push of this process may be sending it.
        let _turn = self.repository.turn(blob.digest.as_str()).await;
        let look_first = look_first || self.mount_from.is_none();
        if look_first && self.repository.has_blob(blob).await? {
            self.count(blob, BlobState::Existed);
            return Ok(());
        }
        let pending = match self.mount(&blob.digest).await? {
            Mount::Mounted => {
                self.count(blob, BlobState::Mounted);
                return Ok(());
            }
            Mount::Upload(pending) => Some(pending),
            Mount::Unavailable => None,
        };
        if !look_first && self.repository.has_blob(blob).await? {
            if let Some(unused) = pending {
                self.repository.give_up(unused, &blob.digest).await;
            }
            self.count(blob, BlobState::Existed);
            return Ok(());
        }
        self.send_blob(blob, pending).await
    }

    async fn mount(&self, digest: &Digest) -> Result<Mount, CopyError> {
        let Some(from) = &self.mount_from else {
            return Ok(Mount::Unavailable);
        };
        let mut known = self.mounts.lock().await;
        match *known {
            Some(false) => return Ok(Mount::Unavailable),
            Some(true) => drop(known),
            None => {
                let mount = self.repository.mount_blob(digest, from).await?;
                *known = Some(!matches!(mount, Mount::Unavailable));
                return Ok(mount);
            }
        }
        let mount = self.repository.mount_blob(digest, from).await?;
        if matches!(mount, Mount::Unavailable) {
            *self.mounts.lock().await = Some(false);
        }
        Ok(mount)
    }

    pub(super) async fn send_blob(
        &self,
        blob: &Descriptor,
        pending: Option<PendingUpload>,
    ) -> Result<(), CopyError> {
        let _place = if blob.size < LARGE {
            None
        } else {
            // The semaphore is never closed, so there is always a permit in the end.
            self.large.acquire().await.ok()
        };
        let source = SharedBlob {
            meeting: Arc::clone(&self.meeting),
            target: self.index,
            blob: SourceBlob {
                source: self.source.clone(),
                descriptor: blob.clone(),
            },
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
        if let Some(blob) = self.source_blob(&blob.digest) {
            self.meeting.settle(self.index, &blob);
        }
        self.tell(Progress::Blob {
            target: self.index,
            digest: blob.digest.clone(),
            state: became,
        });
    }

    /// Takes back what [`Self::count`] counted for a blob that turned out to be missing.
    pub(super) fn forget(&self, blob: &Descriptor) {
        let mut state = self.state();
        if state.proven.remove(&blob.digest) && state.blobs.existed > 0 {
            state.blobs.existed -= 1;
            state.blobs.bytes_saved -= signed(blob.size);
        }
    }

    fn source_blob(&self, digest: &Digest) -> Option<SourceBlob> {
        let descriptor = self.image.blobs.iter().find(|blob| blob.digest == *digest)?;
        Some(SourceBlob {
            source: self.source.clone(),
            descriptor: descriptor.clone(),
        })
    }

    fn meter(&self, blob: &Descriptor) -> Option<Meter> {
        let listener = self.options.listener.clone()?;
        let (target, digest) = (self.index, blob.digest.clone());
        Some(Arc::new(move |bytes| {
            listener(Progress::Blob {
                target,
                digest: digest.clone(),
                state: BlobState::Sending(bytes),
            });
        }))
    }

    pub(super) fn tell(&self, progress: Progress) {
        if let Some(listener) = &self.options.listener {
            listener(progress);
        }
    }

    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The repository that blobs of a source can be mounted from, if it is another one of the target's registry.
pub(super) fn mount_source(source: &ImageSource, target: &Repository) -> Option<String> {
    mount_name(source.repository()?, target)
}

fn mount_name(source: &Repository, target: &Repository) -> Option<String> {
    (source.registry() == target.registry() && source.name() != target.name())
        .then(|| source.name().to_owned())
}

/// A blob that other targets may want at the same time.
struct SharedBlob {
    meeting: Arc<Meeting>,
    target: usize,
    blob: SourceBlob,
}

impl BlobSource for SharedBlob {
    async fn open(&self, offset: u64) -> Result<ByteStream, std::io::Error> {
        if offset == 0 {
            self.meeting.join(self.target, &self.blob).await
        } else {
            self.blob.open(offset).await
        }
    }
}

fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
