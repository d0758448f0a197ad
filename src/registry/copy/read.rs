//! Reading an image at its source, and everything that refers to it.

use std::collections::HashSet;

use futures_util::{StreamExt, TryStreamExt, future::BoxFuture, stream};

use super::{
    CopyError, Image,
    plan::{self, DEPTH_LIMIT, Document, Node, Referrer},
};
use crate::{
    image::{Descriptor, Digest, Platform},
    registry::{
        client::Repository,
        manifest::RawManifest,
        referrers::{fallback_tag, subject_of},
        source::ImageSource,
    },
};

/// Documents that are read at a time.
const READS: usize = 8;
/// A signature of an SBOM is about a referrer; what is about that again is an attack.
const REFERRER_DEPTH: usize = 2;
/// Referrers of one image and its children together.
const REFERRERS_LIMIT: usize = 1024;
/// What cosign puts behind `sha256-…` when it keeps something under a tag.
const COSIGN_TAGS: [&str; 3] = ["sig", "att", "sbom"];

/// Reads an image's documents from its source and checks them; nothing is written.
///
/// A tag is resolved once; a file needs no reference, as its root was chosen when it was opened. With
/// platforms, an index is reduced to them; a plain image is taken as it is.
///
/// # Errors
/// When the source has no such image or does not answer, and when the image is not valid.
pub async fn read_image(
    source: &ImageSource,
    reference: &str,
    platforms: &[Platform],
) -> Result<Image, CopyError> {
    let mut root = match source {
        ImageSource::Repository(repository) => {
            repository
                .manifest(reference)
                .await?
                .ok_or_else(|| CopyError::SourceMissing {
                    reference: format!("{} {reference}", source.name()),
                })?
        }
        ImageSource::Local(image) => image.root().clone(),
    };
    if let Document::Index(index) = plan::read_document(&root)? {
        root = plan::only_platforms(&root, &index, platforms)?;
    }
    let mut nodes = Vec::new();
    gather(source, root.clone(), 0, &mut nodes, &mut HashSet::new()).await?;
    Image::new(nodes, root)
}

/// Adds to an image what refers to it and to its children at its source.
///
/// Both places are looked at: the lists of the specification, and the tags that cosign used before there were
/// lists.
///
/// # Errors
/// When the source does not answer well, or a referrer is not valid.
pub async fn read_referrers(source: &Repository, image: Image) -> Result<Image, CopyError> {
    read_referrers_except(source, image, &[]).await
}

/// [`read_referrers`] without the listed ones of these artifact types, nor what refers to those.
///
/// # Errors
/// As of [`read_referrers`].
pub async fn read_referrers_except(
    source: &Repository,
    image: Image,
    artifact_types: &[&str],
) -> Result<Image, CopyError> {
    let mut found: Vec<Referrer> = Vec::new();
    let mut seen: HashSet<Digest> = image.nodes.iter().map(|node| node.raw.digest.clone()).collect();
    let mut subjects: Vec<Digest> = seen.iter().cloned().collect();
    for _ in 0..REFERRER_DEPTH {
        let round: Vec<Vec<(Digest, RawManifest, Option<String>)>> = stream::iter(&subjects)
            .map(|subject| about(source, subject, artifact_types))
            .buffered(READS)
            .try_collect()
            .await?;
        subjects.clear();
        for (subject, raw, tag) in round.into_iter().flatten() {
            // One manifest under cosign's tags of two subjects would be two referrers; in a list it is one.
            if tag.is_none() && !seen.insert(raw.digest.clone()) {
                continue;
            }
            subjects.push(raw.digest.clone());
            let mut nodes = Vec::new();
            let source = ImageSource::from(source.clone());
            gather(&source, raw.clone(), 1, &mut nodes, &mut HashSet::new()).await?;
            found.push(Referrer {
                subject,
                raw,
                nodes,
                tag,
            });
            if found.len() > REFERRERS_LIMIT {
                return Err(CopyError::Limit {
                    what: "referrers",
                    limit: REFERRERS_LIMIT,
                });
            }
        }
    }
    image.with_referrers(found)
}

/// What refers to one manifest, with the tag where it is kept under one.
async fn about(
    source: &Repository,
    subject: &Digest,
    left_out: &[&str],
) -> Result<Vec<(Digest, RawManifest, Option<String>)>, CopyError> {
    let listed = async {
        let listed = source.referrers(subject).await?;
        let source = ImageSource::from(source.clone());
        let is_wanted = |entry: &Descriptor| {
            let artifact_type = entry.artifact_type.as_deref();
            artifact_type.is_none_or(|artifact_type| !left_out.contains(&artifact_type))
        };
        stream::iter(listed.entries.into_iter().filter(is_wanted))
            .map(|entry| async {
                let raw = read_child(&source, entry).await?;
                if subject_of(&raw).as_ref() != Some(subject) {
                    return Err(CopyError::Manifest {
                        digest: raw.digest,
                        problem: format!("it is listed as a referrer of {subject} and does not name it"),
                    });
                }
                Ok((subject.clone(), raw, None))
            })
            .buffered(READS)
            .try_collect::<Vec<_>>()
            .await
    };
    let tagged = async {
        let found: Vec<Option<(Digest, RawManifest, Option<String>)>> = stream::iter(COSIGN_TAGS)
            .map(|kind| async move {
                let tag = format!("{}.{kind}", fallback_tag(subject));
                let raw = source.manifest(&tag).await?;
                Ok::<_, CopyError>(raw.map(|raw| (subject.clone(), raw, Some(tag))))
            })
            .buffered(COSIGN_TAGS.len())
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect::<Vec<_>>())
    };
    let (mut listed, tagged) = futures_util::try_join!(listed, tagged)?;
    listed.extend(tagged);
    Ok(listed)
}

/// Adds a document after all that it names.
fn gather<'a>(
    source: &'a ImageSource,
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
                    .buffered(READS)
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

async fn read_child(source: &ImageSource, child: Descriptor) -> Result<RawManifest, CopyError> {
    let found = match source {
        ImageSource::Repository(repository) => repository.manifest(child.digest.as_str()).await?,
        ImageSource::Local(image) => image
            .manifest(&child.digest)
            .map_err(|error| CopyError::Manifest {
                digest: child.digest.clone(),
                problem: error.to_string(),
            })?,
    };
    let raw = found.ok_or_else(|| CopyError::SourceMissing {
        reference: format!("{} {}", source.name(), child.digest),
    })?;
    if raw.bytes.len() as u64 != child.size {
        return Err(CopyError::Manifest {
            digest: raw.digest,
            problem: format!("it has {} bytes, the index says {}", raw.bytes.len(), child.size),
        });
    }
    Ok(raw)
}
