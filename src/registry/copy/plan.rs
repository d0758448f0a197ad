//! What an image consists of: pure reading of its documents.

use std::collections::{BTreeMap, btree_map::Entry};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::CopyError;
use crate::{
    image::{Descriptor, Digest, Index, Manifest, Platform, media_type},
    registry::manifest::RawManifest,
};

/// An index of indexes is in use, anything deeper is an attack.
pub(super) const DEPTH_LIMIT: usize = 2;
/// Images of one index. Every platform that Go knows, with an attestation each, is below that.
pub(super) const CHILDREN_LIMIT: usize = 128;
/// Blobs of one image.
const BLOBS_LIMIT: usize = 4096;

/// The annotation by which an attestation in an index says which of its neighbours it is about.
pub(super) const ATTESTS: &str = "vnd.docker.reference.digest";

/// A document of an image.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Document {
    /// An image manifest, or an artifact's.
    Image(Box<Manifest>),
    /// An index or manifest list.
    Index(Index),
}

/// One manifest of an image and the blobs that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) raw: RawManifest,
    pub(super) blobs: Vec<Descriptor>,
}

/// Something that refers to the image or to one of its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Referrer {
    /// What it is about.
    pub(super) subject: Digest,
    pub(super) raw: RawManifest,
    /// Its documents, children before parents; usually just itself.
    pub(super) nodes: Vec<Node>,
    /// The tag that it is kept under, where it is not in a list.
    pub(super) tag: Option<String>,
}

/// Everything that a copy has to bring, read and checked.
#[derive(Clone, Debug)]
pub struct Image {
    /// Children before parents, the root last.
    pub(super) nodes: Vec<Node>,
    pub(super) root: RawManifest,
    /// Each once; the largest first, so that the last one to end is a small one.
    pub(super) blobs: Vec<Descriptor>,
    /// What goes with it; their blobs are among `blobs`.
    pub(super) referrers: Vec<Referrer>,
}

impl Image {
    /// Puts an image together from its documents, children before parents.
    pub(super) fn new(nodes: Vec<Node>, root: RawManifest) -> Result<Self, CopyError> {
        Self {
            nodes,
            root,
            blobs: Vec::new(),
            referrers: Vec::new(),
        }
        .with_blobs()
    }

    /// The same image with what refers to it.
    pub(super) fn with_referrers(self, referrers: Vec<Referrer>) -> Result<Self, CopyError> {
        Self { referrers, ..self }.with_blobs()
    }

    /// Every document, those of referrers last.
    pub(super) fn all_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes
            .iter()
            .chain(self.referrers.iter().flat_map(|referrer| &referrer.nodes))
    }

    fn with_blobs(mut self) -> Result<Self, CopyError> {
        let mut unique: BTreeMap<&Digest, &Descriptor> = BTreeMap::new();
        for node in self.all_nodes() {
            for blob in &node.blobs {
                match unique.entry(&blob.digest) {
                    Entry::Vacant(entry) => {
                        entry.insert(blob);
                    }
                    Entry::Occupied(entry) if entry.get().size != blob.size => {
                        return Err(CopyError::Manifest {
                            digest: node.raw.digest.clone(),
                            problem: format!("{} has two sizes in one image", blob.digest),
                        });
                    }
                    Entry::Occupied(_) => {}
                }
            }
        }
        if unique.len() > BLOBS_LIMIT {
            return Err(CopyError::Limit {
                what: "blobs",
                limit: BLOBS_LIMIT,
            });
        }
        let mut blobs: Vec<Descriptor> = unique.into_values().cloned().collect();
        blobs.sort_by_key(|blob| std::cmp::Reverse(blob.size));
        self.blobs = blobs;
        Ok(self)
    }

    /// The manifests that refer to it, in the order in which they were found.
    pub fn referrers(&self) -> impl Iterator<Item = &Digest> {
        self.referrers.iter().map(|referrer| &referrer.raw.digest)
    }

    /// The type of its root document.
    pub fn media_type(&self) -> &str {
        &self.root.media_type
    }

    /// The digest that the image will have at its targets.
    pub fn digest(&self) -> &Digest {
        &self.root.digest
    }

    /// The sum of its blobs' sizes.
    pub fn bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size).sum()
    }

    /// How many different blobs it has.
    pub fn blobs(&self) -> usize {
        self.blobs.len()
    }
}

#[derive(Deserialize)]
struct Shape {
    config: Option<Value>,
    layers: Option<Value>,
    manifests: Option<Value>,
}

/// Reads a document as what its media type says, if it can be read as nothing else.
pub(super) fn read_document(raw: &RawManifest) -> Result<Document, CopyError> {
    let invalid = |error: serde_json::Error| CopyError::Manifest {
        digest: raw.digest.clone(),
        problem: crate::registry::error::clean(&error.to_string(), 200),
    };
    let shape: Shape = serde_json::from_slice(&raw.bytes).map_err(invalid)?;
    let image = shape.config.is_some() || shape.layers.is_some();
    if image && shape.manifests.is_some() {
        return Err(CopyError::Ambiguous {
            digest: raw.digest.clone(),
        });
    }
    match raw.media_type.as_str() {
        media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => serde_json::from_slice(&raw.bytes)
            .map(|manifest| Document::Image(Box::new(manifest)))
            .map_err(invalid),
        media_type::OCI_INDEX | media_type::DOCKER_LIST => {
            let index: Index = serde_json::from_slice(&raw.bytes).map_err(invalid)?;
            if index.manifests.len() > CHILDREN_LIMIT {
                return Err(CopyError::Limit {
                    what: "images in one index",
                    limit: CHILDREN_LIMIT,
                });
            }
            Ok(Document::Index(index))
        }
        other => Err(CopyError::MediaType {
            digest: raw.digest.clone(),
            media_type: other.to_owned(),
        }),
    }
}

/// The blobs of an image manifest, its config among them.
pub(super) fn blobs_of(manifest: Manifest) -> Vec<Descriptor> {
    let mut blobs = vec![manifest.config];
    blobs.extend(manifest.layers);
    blobs
}

/// An index of only these platforms, and of the attestations about them.
///
/// The index itself when all of it is wanted: its bytes are its identity.
pub(super) fn only_platforms(
    raw: &RawManifest,
    index: &Index,
    platforms: &[Platform],
) -> Result<RawManifest, CopyError> {
    let keep = chosen(index, platforms)?;
    if keep.len() == index.manifests.len() {
        return Ok(raw.clone());
    }
    let invalid = || CopyError::Manifest {
        digest: raw.digest.clone(),
        problem: "it has no list of manifests".to_owned(),
    };
    // Written anew from the document rather than from our types, which know only some of its fields.
    let mut document: Value = serde_json::from_slice(&raw.bytes).map_err(|_| invalid())?;
    let children = document
        .get_mut("manifests")
        .and_then(Value::as_array_mut)
        .ok_or_else(invalid)?;
    *children = keep
        .iter()
        .filter_map(|position| children.get(*position).cloned())
        .collect();
    let bytes = Bytes::from(document.to_string());
    Ok(RawManifest {
        digest: Digest::of(&bytes),
        media_type: raw.media_type.clone(),
        bytes,
    })
}

/// The positions of the index entries that are wanted.
fn chosen(index: &Index, platforms: &[Platform]) -> Result<Vec<usize>, CopyError> {
    let platform_of = |child: &Descriptor| {
        child.platform.as_ref().map(|platform| Platform {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
        })
    };
    if platforms.is_empty() {
        return Ok((0..index.manifests.len()).collect());
    }
    for wanted in platforms {
        let mut there = index.manifests.iter().filter_map(platform_of);
        if !there.any(|found| wanted.matches(&found)) {
            let found: Vec<String> = index
                .manifests
                .iter()
                .filter_map(platform_of)
                .map(|platform| platform.to_string())
                .collect();
            return Err(CopyError::PlatformMissing {
                wanted: wanted.to_string(),
                found: crate::registry::error::clean(&found.join(", "), 500),
            });
        }
    }
    let is_wanted = |child: &Descriptor| {
        platform_of(child).is_some_and(|found| platforms.iter().any(|wanted| wanted.matches(&found)))
    };
    let images: Vec<&str> = index
        .manifests
        .iter()
        .filter(|child| is_wanted(child))
        .map(|child| child.digest.as_str())
        .collect();
    Ok(index
        .manifests
        .iter()
        .enumerate()
        .filter(|(_, child)| {
            let attested = child.annotations.get(ATTESTS);
            is_wanted(child) || attested.is_some_and(|digest| images.contains(&digest.as_str()))
        })
        .map(|(position, _)| position)
        .collect())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn raw(media_type: &str, document: &Value) -> RawManifest {
        let bytes = Bytes::from(document.to_string());
        RawManifest {
            digest: Digest::of(&bytes),
            media_type: media_type.to_owned(),
            bytes,
        }
    }

    fn child(name: &str, platform: &str) -> Value {
        let (os, architecture) = platform.split_once('/').unwrap();
        json!({"mediaType": media_type::OCI_MANIFEST, "digest": Digest::of(name.as_bytes()), "size": 7,
               "platform": {"os": os, "architecture": architecture}, "data": "kept"})
    }

    fn attestation(name: &str) -> Value {
        json!({"mediaType": media_type::OCI_MANIFEST, "digest": Digest::of(b"attestation"), "size": 7,
               "platform": {"os": "unknown", "architecture": "unknown"},
               "annotations": {ATTESTS: Digest::of(name.as_bytes())}})
    }

    fn index() -> RawManifest {
        raw(
            media_type::OCI_INDEX,
            &json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [
                child("a", "linux/amd64"), child("b", "linux/arm64"), attestation("a")]}),
        )
    }

    fn subset(platforms: &[&str]) -> Result<RawManifest, CopyError> {
        let raw = index();
        let Document::Index(index) = read_document(&raw).unwrap() else {
            panic!("an index")
        };
        let platforms: Vec<Platform> = platforms.iter().map(|text| text.parse().unwrap()).collect();
        only_platforms(&raw, &index, &platforms)
    }

    #[rstest]
    #[case::with_its_attestation(&["linux/amd64"], 2)]
    #[case::without_others(&["linux/arm64/v8"], 1)]
    fn a_subset_keeps_platforms_attestations_and_unknown_fields(
        #[case] platforms: &[&str],
        #[case] expected: usize,
    ) {
        let subset = subset(platforms).unwrap();
        let document: Value = serde_json::from_slice(&subset.bytes).unwrap();
        assert_eq!(document["manifests"].as_array().unwrap().len(), expected);
        assert_eq!(document["manifests"][0]["data"], "kept");
        assert_eq!(subset.digest, Digest::of(&subset.bytes));
    }

    #[test]
    fn all_platforms_are_the_index_itself() {
        assert_eq!(subset(&[]).unwrap(), index());
        assert_eq!(subset(&["linux/arm64", "linux/amd64"]).unwrap(), index());
    }

    #[test]
    fn a_platform_that_is_not_there_is_named_beside_those_that_are() {
        let error = subset(&["linux/s390x"]).unwrap_err();
        assert_eq!(error.reason(), crate::record::Reason::PlatformMissing);
        assert!(error.to_string().contains("linux/s390x") && error.to_string().contains("linux/arm64"));
    }

    #[rstest]
    #[case::both_kinds(media_type::OCI_MANIFEST, json!({"schemaVersion": 2, "config": {}, "layers": [], "manifests": []}), "MediaTypeAmbiguous")]
    #[case::unknown_type("application/json", json!({"schemaVersion": 2}), "UnsupportedMediaType")]
    #[case::no_config(media_type::OCI_MANIFEST, json!({"schemaVersion": 2, "layers": []}), "ManifestInvalid")]
    #[case::bad_digest(media_type::OCI_INDEX, json!({"schemaVersion": 2, "manifests": [{"digest": "sha256:../x", "size": 1}]}), "ManifestInvalid")]
    #[case::negative_size(media_type::OCI_INDEX, json!({"schemaVersion": 2, "manifests": [{"digest": Digest::of(b""), "size": -1}]}), "ManifestInvalid")]
    #[case::too_many(media_type::OCI_INDEX, json!({"schemaVersion": 2, "manifests": vec![child("a", "linux/amd64"); 129]}), "LimitExceeded")]
    fn a_document_that_is_none_is_refused(
        #[case] media_type: &str,
        #[case] document: Value,
        #[case] reason: &str,
    ) {
        let error = read_document(&raw(media_type, &document)).unwrap_err();
        assert_eq!(error.reason().as_str(), reason);
    }

    #[test]
    fn a_blob_has_one_size() {
        let blob = |size| Descriptor::new("x", Digest::of(b"x"), size);
        let root = raw("x", &json!({}));
        let node = |size| Node {
            raw: root.clone(),
            blobs: vec![blob(size)],
        };
        assert_eq!(
            Image::new(vec![node(1), node(1)], root.clone()).unwrap().blobs(),
            1
        );
        assert!(Image::new(vec![node(1), node(2)], root.clone()).is_err());
    }
}
