//! `digests.json`: for each image a list from diff ID to the file that holds the layer.
//!
//! Source: Launchpad's builders. A locally built layer's digest is bare hex, a pulled layer's has its
//! algorithm in front; both are one digest here. Keys that are not known are ignored.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use crate::image::{
    Digest,
    archive::{ArchiveError, Limits, documents},
};

/// The file's name.
pub(super) const NAME: &str = "digests.json";

/// A layer as `digests.json` has it, in the words of its author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The key: what the layer decompresses to.
    pub diff_id: String,
    /// What its file hashes to.
    pub digest: String,
    /// The repository that it was pulled from; empty for a local one.
    pub source: String,
    /// The stem of its file, legal in a file name.
    pub layer_id: String,
    /// The file's size, where it is said.
    pub size: Option<u64>,
    /// The file's media type, where it is said.
    pub media_type: Option<String>,
    /// The digest a second time, where it is said.
    pub blob: Option<String>,
}

/// Digests that are digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What the layer decompresses to.
    pub diff_id: Digest,
    /// What its file hashes to.
    pub digest: Digest,
}

impl Claim {
    /// The claim's digests, in one spelling.
    ///
    /// # Errors
    /// [`ArchiveError::Digest`]; [`ArchiveError::Manifest`] where the digest is said twice with two values.
    pub fn identity(&self) -> Result<Identity, ArchiveError> {
        let digest = self.digest()?;
        if let Some(blob) = &self.blob
            && documents::digest(NAME, blob)? != digest
        {
            return Err(ArchiveError::manifest(
                NAME,
                format!(
                    "layer {:?} has the digest {digest} and the blob {blob}",
                    self.layer_id
                ),
            ));
        }
        Ok(Identity {
            diff_id: documents::digest(NAME, &self.diff_id)?,
            digest,
        })
    }

    /// What the layer's file hashes to, in either spelling.
    ///
    /// # Errors
    /// [`ArchiveError::Digest`].
    pub fn digest(&self) -> Result<Digest, ArchiveError> {
        let text = &self.digest;
        let is_bare = !text.contains(':');
        let algorithm = match text.len() {
            64 if is_bare => Some("sha256"),
            128 if is_bare => Some("sha512"),
            _ => None,
        };
        let bare = algorithm.and_then(|algorithm| format!("{algorithm}:{text}").parse().ok());
        bare.map_or_else(|| documents::digest(NAME, text), Ok)
    }

    /// The name of the layer's file.
    pub fn file(&self) -> String {
        file_name(&self.layer_id)
    }
}

/// Reads `digests.json`: one list of layers for each image, in the order in which they stand.
///
/// # Errors
/// What is wrong with it.
pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Vec<Vec<Claim>>, ArchiveError> {
    let objects: Vec<Ordered> = documents::parse(NAME, bytes)?;
    Limits::within(
        "images in digests.json",
        objects.len() as u64,
        limits.index_entries,
    )?;
    objects
        .into_iter()
        .map(|Ordered(entries)| {
            Limits::within("layers in an image", entries.len() as u64, limits.layers)?;
            entries
                .into_iter()
                .map(|(diff_id, entry)| claim(diff_id, entry))
                .collect()
        })
        .collect()
}

/// The name of a layer's file.
pub(super) fn file_name(layer_id: &str) -> String {
    format!("{layer_id}.tar.gz")
}

/// Texts that are kept as they are written.
const TEXT_LIMIT: usize = 512;

fn claim(diff_id: String, entry: RawEntry) -> Result<Claim, ArchiveError> {
    for text in [
        &diff_id,
        &entry.digest,
        entry.source.as_ref().unwrap_or(&entry.digest),
    ] {
        Limits::within(
            "bytes in a text of digests.json",
            text.len() as u64,
            TEXT_LIMIT as u64,
        )?;
    }
    check_layer_id(&entry.layer_id)?;
    Ok(Claim {
        diff_id,
        digest: entry.digest,
        source: entry.source.unwrap_or_default(),
        layer_id: entry.layer_id,
        size: entry.size,
        media_type: entry.media_type,
        blob: entry.blob,
    })
}

/// A layer's name becomes a file's, so it may not be a path, hidden, an option or an escape sequence.
fn check_layer_id(layer_id: &str) -> Result<(), ArchiveError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let begins_plain = layer_id
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins_plain && layer_id.len() <= 200 && layer_id.bytes().all(is_plain) {
        return Ok(());
    }
    Err(ArchiveError::Path {
        name: layer_id.chars().take(80).collect(),
        why: "a layer_id has up to 200 letters, digits, dots, dashes and underscores, and begins with a letter or a digit",
    })
}

#[derive(Deserialize)]
struct RawEntry {
    digest: String,
    #[serde(default)]
    source: Option<String>,
    layer_id: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default, rename = "mediaType")]
    media_type: Option<String>,
    #[serde(default)]
    blob: Option<String>,
}

/// An object whose order is kept, because the first missing layer is the one that is named.
struct Ordered(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Ordered;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from diff ID to layer")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
