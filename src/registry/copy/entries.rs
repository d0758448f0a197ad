//! The entries of an index, as they are written: fields that nobody here knows are kept.
//!
//! Which of them stay beside an image's own is decided here; who asks, and what becomes of the index, is the
//! business of [`super::merge`] and [`super::publish`].

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};

use super::{
    CopyError, Image,
    plan::{ATTESTS, Document, Node, read_document},
};
use crate::{
    image::{Descriptor, Digest, Platform, media_type},
    registry::{
        manifest::RawManifest,
        source::{BlobSource as _, ImageSource, SourceBlob},
    },
};

/// A config is some KiB; a registry need not take a manifest of more.
const CONFIG_LIMIT: u64 = 4 << 20;

/// One entry, or an image that could be one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry(pub(super) Value);

impl Entry {
    /// What it points to.
    pub(super) fn digest(&self) -> Option<&str> {
        self.0["digest"].as_str()
    }

    /// The platform of an image; attestations and artifacts have none.
    pub(super) fn platform(&self) -> Option<Platform> {
        let text = |field: &str| self.0["platform"][field].as_str().map(str::to_owned);
        Some(Platform {
            os: text("os").filter(|os| os != "unknown")?,
            architecture: text("architecture")?,
            variant: text("variant"),
        })
    }

    /// The digest that an attestation is about.
    pub(super) fn attests(&self) -> Option<&str> {
        self.0["annotations"][ATTESTS].as_str()
    }

    /// Whether it belongs into an index of Docker's family.
    pub(super) fn is_docker(&self) -> bool {
        self.0["mediaType"].as_str().is_some_and(is_docker)
    }

    fn is_for_the_platform_of(&self, other: &Self) -> bool {
        // Images of Windows differ by it as well.
        let versions = [self, other].map(|entry| &entry.0["platform"]["os.version"]);
        let versions_match = versions.iter().any(|version| version.is_null()) || versions[0] == versions[1];
        match (self.platform(), other.platform()) {
            (Some(own), Some(other)) => versions_match && own.matches(&other),
            _ => false,
        }
    }
}

/// Those of an index that stay beside ours: of other platforms than ours, and attestations of what is there.
pub(super) fn staying(before: &[Entry], ours: &[Entry]) -> Vec<Entry> {
    let is_ours = |entry: &Entry| ours.iter().any(|our| our.digest() == entry.digest());
    let gives_way =
        |entry: &Entry| is_ours(entry) || ours.iter().any(|our| our.is_for_the_platform_of(entry));
    let stays = |entry: &&Entry| entry.attests().is_none() && !gives_way(entry);
    let images: Vec<&Entry> = before.iter().filter(stays).collect();
    let is_there = |digest: &str| {
        images
            .iter()
            .copied()
            .chain(ours)
            .any(|entry| entry.digest() == Some(digest))
    };
    let stays_beside = |entry: &&Entry| match entry.attests() {
        None => !gives_way(entry),
        Some(about) => !is_ours(entry) && is_there(about),
    };
    before.iter().filter(stays_beside).cloned().collect()
}

/// An index's own entries, or the one that an image's config describes.
///
/// # Errors
/// When the document, or the config, cannot be read.
pub(super) async fn entries(root: &RawManifest, source: &ImageSource) -> Result<Vec<Entry>, CopyError> {
    let config = match read_document(root)? {
        Document::Image(manifest) => manifest.config,
        Document::Index(_) => return listed(root),
    };
    let config: Value = serde_json::from_slice(&read_config(source, config).await?).unwrap_or_default();
    let mut platform = Map::new();
    for field in ["os", "architecture", "variant", "os.version", "os.features"] {
        let value = config.get(field);
        if let Some(value) = value.filter(|value| !value.is_null() && **value != json!("")) {
            platform.insert(field.to_owned(), value.clone());
        }
    }
    Ok(vec![Entry(json!({
        "mediaType": root.media_type,
        "digest": root.digest,
        "size": root.bytes.len(),
        "platform": platform,
    }))])
}

/// The entries of an index.
///
/// # Errors
/// When it is no JSON document.
pub(super) fn listed(index: &RawManifest) -> Result<Vec<Entry>, CopyError> {
    let mut document = document(index)?;
    Ok(match document["manifests"].take() {
        Value::Array(entries) => entries.into_iter().map(Entry).collect(),
        _ => Vec::new(),
    })
}

/// A manifest with all its fields.
///
/// # Errors
/// When it is no JSON document.
pub(super) fn document(raw: &RawManifest) -> Result<Value, CopyError> {
    serde_json::from_slice(&raw.bytes).map_err(|_| CopyError::Manifest {
        digest: raw.digest.clone(),
        problem: "it is no JSON document".to_owned(),
    })
}

/// The document with these entries.
///
/// # Errors
/// When it is beyond the limits of what is read, which hold for what is written.
pub(super) fn index(
    mut document: Value,
    entries: impl IntoIterator<Item = Entry>,
    media_type: &str,
) -> Result<RawManifest, CopyError> {
    document["manifests"] = entries.into_iter().map(|entry| entry.0).collect();
    let bytes = Bytes::from(document.to_string());
    let raw = RawManifest {
        digest: Digest::of(&bytes),
        media_type: media_type.to_owned(),
        bytes,
    };
    read_document(&raw)?;
    Ok(raw)
}

/// The type of an index that this image may be in.
pub(super) fn index_type(image: &Image) -> &'static str {
    if is_docker(image.media_type()) {
        media_type::DOCKER_LIST
    } else {
        media_type::OCI_INDEX
    }
}

impl Image {
    /// The image in another index than its own, which is nowhere then, and neither is what refers to it.
    pub(super) fn under(&self, root: RawManifest) -> Result<Self, CopyError> {
        let is_index = matches!(self.media_type(), media_type::OCI_INDEX | media_type::DOCKER_LIST);
        let gone = |digest: &Digest| is_index && digest == self.digest();
        let mut nodes = self.nodes.clone();
        nodes.retain(|node| !gone(&node.raw.digest));
        nodes.push(Node {
            raw: root.clone(),
            blobs: Vec::new(),
        });
        let mut referrers = self.referrers.clone();
        referrers.retain(|referrer| !gone(&referrer.subject));
        Self::new(nodes, root)?.with_referrers(referrers)
    }
}

async fn read_config(source: &ImageSource, config: Descriptor) -> Result<Bytes, CopyError> {
    if let ImageSource::Repository(repository) = source {
        // A registry that does not answer for now is no bad manifest.
        return Ok(repository.blob_bytes(&config, CONFIG_LIMIT).await?);
    }
    let (digest, size) = (config.digest.clone(), config.size);
    let broken = |problem: String| CopyError::Manifest {
        digest: digest.clone(),
        problem,
    };
    if size > CONFIG_LIMIT {
        return Err(broken(format!(
            "as a config it has more than {CONFIG_LIMIT} bytes"
        )));
    }
    let blob = SourceBlob {
        source: source.clone(),
        descriptor: config,
    };
    let mut content = blob.open(0).await.map_err(|error| broken(error.to_string()))?;
    let mut bytes = BytesMut::new();
    while let Some(part) = content.next().await {
        bytes.extend_from_slice(&part.map_err(|error| broken(error.to_string()))?);
        if bytes.len() as u64 > size {
            break;
        }
    }
    let mut hasher = digest.hasher();
    hasher.update(&bytes);
    if hasher.finish() != digest {
        return Err(broken("the config is not what its digest says".to_owned()));
    }
    Ok(bytes.freeze())
}

fn is_docker(media_type: &str) -> bool {
    matches!(media_type, media_type::DOCKER_MANIFEST | media_type::DOCKER_LIST)
}
