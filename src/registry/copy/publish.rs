//! What becomes of the platforms that a tag has already: replaced, kept, or a reason to refuse.
//!
//! Only the root is made anew, and only where something is kept; what is kept lies in the target's repository, so
//! nothing of it is sent. The bytes of our own image are never touched.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    CopyError, Image, Target,
    plan::{ATTESTS, Document, Node, read_document},
};
use crate::{
    image::{Descriptor, DescriptorPlatform, Digest, Index, Platform, json as documents, media_type},
    registry::{client::Repository, manifest::RawManifest},
};

/// What is published under a tag that points to other platforms already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PublishPolicy {
    /// The whole image, once every platform is built, and nothing else: the digest is the image's.
    #[default]
    WhenComplete,
    /// Each platform as soon as it is built, beside those that the tag has; in the end the whole image, and nothing
    /// else. Of an image that is whole already this is `WhenComplete`.
    AsReady,
    /// The whole image, and beside it the platforms that the tag has and the image lacks, as in Launchpad's lists.
    KeepOld,
    /// The whole image, unless the tag has a platform that it lacks.
    RefuseIfArchLost,
}

/// The image as it goes to one target.
///
/// # Errors
/// When the target does not answer well, and when a platform would be lost that is not to be, or would have to be
/// kept in an index of another family.
pub async fn for_target(
    image: &Image,
    source: &Repository,
    target: &Target,
    policy: PublishPolicy,
) -> Result<Image, CopyError> {
    if matches!(policy, PublishPolicy::WhenComplete | PublishPolicy::AsReady) {
        return Ok(image.clone());
    }
    let ours = entries(source, &image.root).await?;
    let mut kept: Vec<Entry> = Vec::new();
    for tag in &target.tags {
        let Some(old) = target.repository.manifest(tag).await? else {
            continue;
        };
        if old.digest == *image.digest() {
            continue;
        }
        let old = entries(&target.repository, &old).await?;
        let lost = lost(&old, &ours, &kept);
        match (policy, lost.first()) {
            (PublishPolicy::RefuseIfArchLost, Some(first)) => {
                return Err(CopyError::PlatformLost {
                    tag: tag.clone(),
                    platform: first
                        .platform
                        .as_ref()
                        .map_or_else(String::new, Platform::to_string),
                });
            }
            _ => kept.extend(lost),
        }
    }
    if kept.is_empty() {
        return Ok(image.clone());
    }
    with_kept(image, &ours, kept)
}

/// One entry of an index, or an image that could be one.
#[derive(Clone, Debug)]
struct Entry {
    /// Of an image; what is none has none.
    platform: Option<Platform>,
    digest: Digest,
    /// The digest that an attestation is about.
    attests: Option<String>,
    media_type: String,
    /// As it stands in its index: fields that nobody here knows are kept.
    written: Value,
}

/// The platforms of a tag that are neither ours nor kept already, and the attestations about them; others would
/// dangle.
fn lost(old: &[Entry], ours: &[Entry], kept: &[Entry]) -> Vec<Entry> {
    let there = |platform: &Platform| {
        let mut known = ours
            .iter()
            .chain(kept)
            .filter_map(|entry| entry.platform.as_ref());
        known.any(|known| known.matches(platform))
    };
    let images: Vec<&Entry> = old
        .iter()
        .filter(|entry| entry.platform.as_ref().is_some_and(|platform| !there(platform)))
        .collect();
    let about = |digest: &String| images.iter().any(|image| image.digest.as_str() == digest);
    let attestations = old
        .iter()
        .filter(|entry| entry.attests.as_ref().is_some_and(about));
    images.iter().copied().chain(attestations).cloned().collect()
}

async fn entries(repository: &Repository, raw: &RawManifest) -> Result<Vec<Entry>, CopyError> {
    match read_document(raw)? {
        Document::Index(index) => Ok(entries_of(raw, index)),
        Document::Image(manifest) => {
            let config = repository
                .blob_bytes(&manifest.config, documents::DOCUMENT_LIMIT)
                .await?;
            // An artifact's config names no machine.
            let platform: Option<DescriptorPlatform> = serde_json::from_slice(&config).ok();
            let written = json!({
                "mediaType": raw.media_type,
                "digest": raw.digest,
                "size": raw.bytes.len(),
                "platform": platform,
            });
            Ok(vec![Entry {
                platform: platform.map(known),
                digest: raw.digest.clone(),
                attests: None,
                media_type: raw.media_type.clone(),
                written,
            }])
        }
    }
}

fn entries_of(raw: &RawManifest, index: Index) -> Vec<Entry> {
    let document: Value = serde_json::from_slice(&raw.bytes).unwrap_or_default();
    let written = |position: usize| document["manifests"][position].clone();
    let entry = |(position, child): (usize, Descriptor)| Entry {
        platform: child
            .platform
            .filter(|platform| platform.os != "unknown")
            .map(known),
        digest: child.digest,
        attests: child.annotations.get(ATTESTS).cloned(),
        media_type: child.media_type,
        written: written(position),
    };
    index.manifests.into_iter().enumerate().map(entry).collect()
}

fn known(platform: DescriptorPlatform) -> Platform {
    Platform {
        os: platform.os,
        architecture: platform.architecture,
        variant: platform.variant,
    }
}

/// The image under a root that has the kept entries too.
fn with_kept(image: &Image, ours: &[Entry], kept: Vec<Entry>) -> Result<Image, CopyError> {
    let docker = is_docker(image.media_type());
    if let Some(other) = kept.iter().find(|entry| is_docker(&entry.media_type) != docker) {
        return Err(CopyError::Families {
            digest: other.digest.clone(),
        });
    }
    let is_index = matches!(
        image.media_type(),
        media_type::OCI_INDEX | media_type::DOCKER_LIST
    );
    let media_type = if docker {
        media_type::DOCKER_LIST
    } else {
        media_type::OCI_INDEX
    };
    let mut document: Value = if is_index {
        serde_json::from_slice(&image.root.bytes).unwrap_or_default()
    } else {
        let entries: Vec<&Value> = ours.iter().map(|entry| &entry.written).collect();
        json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries })
    };
    if let Some(manifests) = document["manifests"].as_array_mut() {
        manifests.extend(kept.into_iter().map(|entry| entry.written));
    }
    let bytes = Bytes::from(document.to_string());
    let root = RawManifest {
        digest: Digest::of(&bytes),
        media_type: media_type.to_owned(),
        bytes,
    };
    // Our own index is nowhere at the target then, and neither is what refers to it.
    let replaced = is_index.then(|| image.root.digest.clone());
    let mut nodes: Vec<Node> = image
        .nodes
        .iter()
        .filter(|node| Some(&node.raw.digest) != replaced.as_ref())
        .cloned()
        .collect();
    nodes.push(Node {
        raw: root.clone(),
        blobs: Vec::new(),
    });
    let referrers = image
        .referrers
        .iter()
        .filter(|referrer| Some(&referrer.subject) != replaced.as_ref());
    Image::new(nodes, root)?.with_referrers(referrers.cloned().collect())
}

fn is_docker(media_type: &str) -> bool {
    matches!(media_type, media_type::DOCKER_MANIFEST | media_type::DOCKER_LIST)
}
