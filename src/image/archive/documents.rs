//! The documents of an archive as strangers write them: every field optional until it is needed.

use std::{collections::BTreeMap, io::Read as _};

use base64::Engine as _;
use serde::Deserialize;

use super::{ArchiveError, Document, Limits, content::Content, source::Holder};
use crate::image::{Digest, DigestError, Hasher, Platform, json, media_type};

/// One annotation's value; longer ones are data that belongs in a blob.
const ANNOTATION_LIMIT: usize = 64 * 1024;

/// Annotations or labels of one thing.
const ANNOTATIONS_LIMIT: usize = 4096;

/// Keys that only Slipway writes, so that nobody can claim what it proved.
const RESERVED_PREFIXES: [&str; 2] = ["slipway.dev/", "dev.slipway."];

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawDescriptor {
    #[serde(default)]
    pub media_type: Option<String>,
    pub digest: String,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<RawPlatform>,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub urls: Option<Vec<String>>,
    #[serde(default)]
    pub data: Option<String>,
    #[serde(default)]
    pub artifact_type: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct RawPlatform {
    #[serde(default)]
    pub architecture: Option<String>,
    #[serde(default)]
    pub os: Option<String>,
    #[serde(default)]
    pub variant: Option<String>,
}

/// A manifest or an index: which one is decided by its type and its shape together.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawManifest {
    #[serde(default)]
    pub schema_version: Option<u64>,
    #[serde(default)]
    pub media_type: Option<String>,
    #[serde(default)]
    pub artifact_type: Option<String>,
    #[serde(default)]
    pub config: Option<RawDescriptor>,
    #[serde(default)]
    pub layers: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    pub manifests: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    pub subject: Option<RawDescriptor>,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct RawConfig {
    #[serde(flatten)]
    platform: RawPlatform,
    #[serde(default)]
    rootfs: Option<RawRootFs>,
    #[serde(default)]
    history: Option<Vec<RawHistory>>,
    #[serde(default)]
    config: Option<RawRunConfig>,
}

#[derive(Debug, Deserialize)]
struct RawRootFs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct RawHistory {
    #[serde(default)]
    empty_layer: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct RawRunConfig {
    #[serde(default, rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
}

/// What of an image's config decides anything.
pub(in crate::image) struct Config {
    pub platform: Option<Platform>,
    pub diff_ids: Vec<Digest>,
    /// Whether its history tells of fewer layers than there are.
    pub history_is_short: bool,
}

impl RawPlatform {
    /// The platform, when both of its parts are there.
    pub(super) fn platform(&self) -> Option<Platform> {
        let part = |part: &Option<String>| part.clone().filter(|text| !text.is_empty());
        let platform = Platform {
            os: part(&self.os)?,
            architecture: part(&self.architecture)?,
            variant: part(&self.variant),
        };
        // Through the parser, so that a platform from an archive is as bounded as any other.
        platform.to_string().parse().ok()
    }
}

impl RawDescriptor {
    /// The digest, once everything else that a descriptor may lie about was looked at.
    pub(super) fn check(&self, member: &str) -> Result<Digest, ArchiveError> {
        let digest = digest(member, &self.digest)?;
        check_annotations(member, self.annotations.as_ref())?;
        if let Some(data) = &self.data {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(data)
                .map_err(|_| ArchiveError::manifest(member, "inline data is not base64"))?;
            prove(member, &bytes, &digest, None)?;
        }
        Ok(digest)
    }
}

impl RawDescriptor {
    /// Whether it is of a layer that is to be had elsewhere only.
    pub(super) fn is_foreign(&self) -> bool {
        let media_type = self.media_type.as_deref().unwrap_or_default();
        let has_urls = self.urls.as_ref().is_some_and(|urls| !urls.is_empty());
        has_urls || media_type.contains(".foreign.") || media_type.contains(".nondistributable.")
    }
}

/// Reads documents and counts what they cost.
pub(super) struct Documents<'a> {
    holder: &'a Holder,
    limits: &'a Limits,
    bytes: u64,
    /// Oddities that were accepted.
    pub warnings: Vec<String>,
}

impl<'a> Documents<'a> {
    pub(super) fn new(holder: &'a Holder, limits: &'a Limits) -> Self {
        Self {
            holder,
            limits,
            bytes: 0,
            warnings: Vec::new(),
        }
    }

    /// The whole content of a name; `None` when there is no such file.
    pub(super) fn read(&mut self, name: &str) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some(content) = self.holder.find(name)? else {
            return Ok(None);
        };
        self.read_content(name, &content).map(Some)
    }

    fn read_content(&mut self, name: &str, content: &Content) -> Result<Vec<u8>, ArchiveError> {
        Limits::within(
            "bytes in a JSON document",
            content.size(),
            self.limits.document_bytes,
        )?;
        self.bytes += content.size();
        Limits::within("bytes of JSON", self.bytes, self.limits.documents_bytes)?;
        let mut bytes = Vec::new();
        content
            .reader()
            .read_to_end(&mut bytes)
            .map_err(|error| super::layer::read_error(name, error))?;
        Ok(bytes)
    }

    /// Parses a config, and warns of what is odd.
    pub(super) fn config(&mut self, member: &str, bytes: &[u8]) -> Result<Config, ArchiveError> {
        let config = config(member, bytes)?;
        if config.history_is_short {
            self.warnings
                .push(format!("{member}: its history tells of fewer layers than it has"));
        }
        Ok(config)
    }

    /// The blob that a descriptor names, proven; `None` when the archive does not have it.
    pub(super) fn blob(
        &mut self,
        descriptor: &RawDescriptor,
        digest: &Digest,
        media_type: &str,
    ) -> Result<Option<Document>, ArchiveError> {
        let name = blob_name(digest);
        let Some(content) = self.holder.find(&name)? else {
            return Ok(None);
        };
        if content.size() != descriptor.size {
            return Err(ArchiveError::SizeMismatch {
                member: name,
                expected: descriptor.size,
                found: content.size(),
            });
        }
        let bytes = self.read_content(&name, &content)?;
        prove(&name, &bytes, digest, Some(descriptor.size))?;
        Ok(Some(Document {
            bytes,
            digest: digest.clone(),
            media_type: media_type.into(),
        }))
    }
}

/// Where a layout keeps a blob.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// Parses a manifest or an index, and refuses one that could be taken for the other.
pub(super) fn manifest(
    member: &str,
    bytes: &[u8],
    described: Option<&str>,
) -> Result<RawManifest, ArchiveError> {
    let raw: RawManifest = parse(member, bytes)?;
    let ambiguous = |why: String| ArchiveError::MediaTypeAmbiguous {
        member: member.into(),
        why,
    };
    if let (Some(described), Some(own)) = (described, raw.media_type.as_deref())
        && described != own
    {
        return Err(ambiguous(format!(
            "its descriptor says {described} and it says {own}"
        )));
    }
    let has_manifest = raw.config.is_some() || raw.layers.is_some();
    if has_manifest && raw.manifests.is_some() {
        return Err(ambiguous("it can be read as a manifest and as an index".into()));
    }
    let is_index = described.or(raw.media_type.as_deref()).map(is_index_type);
    if is_index == Some(true) && has_manifest || is_index == Some(false) && raw.manifests.is_some() {
        return Err(ambiguous("its media type and its fields disagree".into()));
    }
    if raw.schema_version != Some(2) {
        return Err(ArchiveError::manifest(member, "schemaVersion is not 2"));
    }
    check_annotations(member, raw.annotations.as_ref())?;
    Ok(raw)
}

/// Parses a config and compares its own parts.
pub(in crate::image) fn config(member: &str, bytes: &[u8]) -> Result<Config, ArchiveError> {
    let raw: RawConfig = parse(member, bytes)?;
    let texts = raw.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
    let diff_ids = texts
        .iter()
        .map(|text| digest(member, text))
        .collect::<Result<Vec<_>, _>>()?;
    let history = raw.history.unwrap_or_default();
    let with_layer = history
        .iter()
        .filter(|entry| entry.empty_layer != Some(true))
        .count();
    if with_layer > diff_ids.len() {
        return Err(ArchiveError::manifest(
            member,
            format!(
                "its history tells of {with_layer} layers and it has {}",
                diff_ids.len()
            ),
        ));
    }
    // On a base without history, buildah writes only its own steps.
    let history_is_short = !history.is_empty() && with_layer < diff_ids.len();
    check_annotations(member, raw.config.and_then(|config| config.labels).as_ref())?;
    Ok(Config {
        platform: raw.platform.platform(),
        diff_ids,
        history_is_short,
    })
}

/// Reads strict JSON of a member.
pub(in crate::image) fn parse<'de, T: Deserialize<'de>>(
    member: &str,
    bytes: &'de [u8],
) -> Result<T, ArchiveError> {
    // Whoever read it was bounded.
    json::parse_of_any_size(bytes).map_err(|error| ArchiveError::Json {
        member: member.into(),
        error,
    })
}

pub(in crate::image) fn digest(member: &str, text: &str) -> Result<Digest, ArchiveError> {
    text.parse().map_err(|error: DigestError| ArchiveError::Digest {
        member: member.into(),
        error,
    })
}

pub(super) fn is_index_type(media_type: &str) -> bool {
    matches!(media_type, media_type::OCI_INDEX | media_type::DOCKER_LIST)
}

/// Compares bytes in memory with the digest and size that name them.
pub(in crate::image) fn prove(
    member: &str,
    bytes: &[u8],
    expected: &Digest,
    size: Option<u64>,
) -> Result<(), ArchiveError> {
    if let Some(expected) = size.filter(|size| *size != bytes.len() as u64) {
        return Err(ArchiveError::SizeMismatch {
            member: member.into(),
            expected,
            found: bytes.len() as u64,
        });
    }
    let mut hasher: Hasher = expected.hasher();
    hasher.update(bytes);
    let found = hasher.finish();
    if found == *expected {
        return Ok(());
    }
    Err(ArchiveError::DigestMismatch {
        member: member.into(),
        expected: expected.clone(),
        found,
    })
}

fn check_annotations(
    member: &str,
    annotations: Option<&BTreeMap<String, String>>,
) -> Result<(), ArchiveError> {
    let Some(annotations) = annotations else {
        return Ok(());
    };
    Limits::within("annotations", annotations.len() as u64, ANNOTATIONS_LIMIT as u64)?;
    for (key, value) in annotations {
        Limits::within(
            "bytes in an annotation",
            value.len() as u64,
            ANNOTATION_LIMIT as u64,
        )?;
        if RESERVED_PREFIXES.iter().any(|prefix| key.starts_with(prefix)) {
            return Err(ArchiveError::ReservedKey {
                member: member.into(),
                key: key.chars().take(80).collect(),
            });
        }
    }
    Ok(())
}
