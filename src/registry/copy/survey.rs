//! What a push would do: every question is asked, nothing is written.

use std::fmt;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    CopyError, Image, TagPolicy, Target,
    manifests::taken,
    push::{REQUESTS, mount_source, read_tags},
};
use crate::{
    image::{Descriptor, Digest},
    registry::{client::Repository, source::ImageSource},
};

/// What stands between a target and an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Where each tag points to now, in the target's order.
    pub tags: Vec<Option<Digest>>,
    /// The requests that would write, in the order of a push; none when everything is there.
    pub writes: Vec<Planned>,
    /// How many blobs are there already, and their sizes' sum.
    pub existing: (usize, u64),
}

/// One thing that a push would write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planned {
    /// A blob that is mounted, or sent where the registry does not mount.
    Mount {
        /// The blob.
        digest: Digest,
        /// Its size.
        size: u64,
        /// The repository that has it.
        from: String,
    },
    /// A blob that is sent.
    Blob {
        /// The blob.
        digest: Digest,
        /// Its size.
        size: u64,
    },
    /// A manifest, by digest.
    Manifest {
        /// The manifest.
        digest: Digest,
        /// Its size.
        size: u64,
    },
    /// Something that refers to the image.
    Referrer {
        /// Its manifest.
        digest: Digest,
        /// What it is about.
        subject: Digest,
    },
    /// A tag.
    Tag {
        /// The tag.
        tag: String,
        /// Where it points to now.
        now: Option<Digest>,
    },
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { digest, size, from } => {
                write!(
                    f,
                    "POST blobs/uploads/?mount={digest}&from={from} ({size} bytes not sent)"
                )
            }
            Self::Blob { digest, size } => {
                write!(f, "POST blobs/uploads/, PUT digest={digest} ({size} bytes)")
            }
            Self::Manifest { digest, size } => write!(f, "PUT manifests/{digest} ({size} bytes)"),
            Self::Referrer { digest, subject } => write!(f, "PUT manifests/{digest} (refers to {subject})"),
            Self::Tag { tag, now: None } => write!(f, "PUT manifests/{tag} (new)"),
            Self::Tag { tag, now: Some(now) } => write!(f, "PUT manifests/{tag} (now {now})"),
        }
    }
}

impl Survey {
    /// Bytes that would be sent.
    pub fn bytes(&self) -> u64 {
        let size = |write: &Planned| match write {
            Planned::Blob { size, .. } => *size,
            _ => 0,
        };
        self.writes.iter().map(size).sum()
    }
}

/// Asks a target what it lacks of an image.
///
/// # Errors
/// When the target does not answer well, or its policy refuses the push.
pub async fn survey(image: &Image, source: &ImageSource, target: &Target) -> Result<Survey, CopyError> {
    let repository = &target.repository;
    let tags = read_tags(repository, &target.tags).await?;
    for (tag, now) in target.tags.iter().zip(&tags) {
        if let Some(now) = now
            && now != image.digest()
            && target.policy == TagPolicy::Immutable
        {
            return Err(taken(tag, Some(now), super::manifests::IMMUTABLE));
        }
    }
    let there: Vec<bool> = stream::iter(&image.blobs)
        .map(|blob| async move { Ok::<_, CopyError>(repository.has_blob(blob).await?) })
        .buffered(REQUESTS)
        .try_collect()
        .await?;
    let lists = |present: bool| {
        let of_kind = image.blobs.iter().zip(&there);
        of_kind
            .filter(move |(_, there)| **there == present)
            .map(|(blob, _)| blob)
            .collect::<Vec<&Descriptor>>()
    };
    let existing = lists(true);
    let from = mount_source(source, repository);
    let mut writes: Vec<Planned> = lists(false)
        .into_iter()
        .map(|blob| blob_write(blob, from.as_ref()))
        .collect();
    let missing: Vec<Option<Planned>> = stream::iter(&image.nodes)
        .map(|node| async move {
            let (digest, size) = (&node.raw.digest, node.raw.bytes.len() as u64);
            let found = repository.head_manifest(digest.as_str()).await?;
            let write = Planned::Manifest {
                digest: digest.clone(),
                size,
            };
            Ok::<_, CopyError>((found.map(|(_, size)| size) != Some(size)).then_some(write))
        })
        .buffered(REQUESTS)
        .try_collect()
        .await?;
    writes.extend(missing.into_iter().flatten());
    writes.extend(referrer_writes(image, repository).await?);
    for (tag, now) in target.tags.iter().zip(&tags) {
        if now.as_ref() != Some(image.digest()) {
            writes.push(Planned::Tag {
                tag: tag.clone(),
                now: now.clone(),
            });
        }
    }
    Ok(Survey {
        existing: (existing.len(), existing.iter().map(|blob| blob.size).sum()),
        tags,
        writes,
    })
}

fn blob_write(blob: &Descriptor, from: Option<&String>) -> Planned {
    let (digest, size) = (blob.digest.clone(), blob.size);
    match from {
        Some(from) => Planned::Mount {
            digest,
            size,
            from: from.clone(),
        },
        None => Planned::Blob { digest, size },
    }
}

async fn referrer_writes(image: &Image, repository: &Repository) -> Result<Vec<Planned>, CopyError> {
    let missing: Vec<Option<Planned>> = stream::iter(&image.referrers)
        .map(|referrer| async move {
            let digest = &referrer.raw.digest;
            let there = match &referrer.tag {
                Some(tag) => {
                    repository
                        .head_manifest(tag)
                        .await?
                        .map(|(digest, _)| digest)
                        .as_ref()
                        == Some(digest)
                }
                None => {
                    let listed = repository.referrers(&referrer.subject).await?;
                    listed.entries.iter().any(|entry| entry.digest == *digest)
                }
            };
            Ok::<_, CopyError>((!there).then(|| Planned::Referrer {
                digest: digest.clone(),
                subject: referrer.subject.clone(),
            }))
        })
        .buffered(REQUESTS)
        .try_collect()
        .await?;
    Ok(missing.into_iter().flatten().collect())
}
