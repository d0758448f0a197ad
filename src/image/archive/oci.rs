//! The OCI image layout: `index.json`, indexes in indexes, manifests.
//!
//! Source: OCI image specification, "Image Layout". Attestations and artifacts are recognised and set aside.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use super::{
    Absent, ArchiveError, ArchiveImage, ArchiveLayer, Attachment, AttachmentKind, Document, Limits,
    documents::{self, Documents, RawDescriptor, RawManifest},
};
use crate::image::{Digest, media_type};

/// What an OCI layout holds.
#[derive(Debug, Default)]
pub(super) struct OciView {
    pub images: Vec<ArchiveImage>,
    pub absent: Vec<Absent>,
    pub attachments: Vec<Attachment>,
    pub warnings: Vec<String>,
}

/// The annotation by which `BuildKit` marks attestations in an index.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// The annotation by which an attestation names its image.
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

/// Annotations that give an entry of `index.json` a name, the most complete first.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// containerd's annotation of the repository a layer came from; the registry follows the prefix.
const DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source.";

/// Reads `index.json` and everything below; `None` when the archive has no such view.
pub(super) fn read(documents: &mut Documents<'_>, limits: &Limits) -> Result<Option<OciView>, ArchiveError> {
    let Some(bytes) = documents.read("index.json")? else {
        return Ok(None);
    };
    let root = documents::manifest("index.json", &bytes, None)?;
    if root.config.is_some() || root.layers.is_some() {
        return Err(ArchiveError::manifest("index.json", "it is no index"));
    }
    let mut walk = Walk {
        documents,
        limits,
        view: OciView::default(),
        visited: HashMap::new(),
        entries: 0,
    };
    walk.index("index.json", &root, 0, None)?;
    Ok(Some(walk.view))
}

struct Walk<'a, 'd> {
    documents: &'a mut Documents<'d>,
    limits: &'a Limits,
    view: OciView,
    /// What was read already, and which images it led to.
    visited: HashMap<Digest, Range<usize>>,
    entries: u64,
}

impl Walk<'_, '_> {
    fn index(
        &mut self,
        member: &str,
        index: &RawManifest,
        depth: usize,
        inherited: Option<&str>,
    ) -> Result<(), ArchiveError> {
        // Null in some archives of `docker save`; the other view decides then.
        for entry in index.manifests.iter().flatten() {
            self.entries += 1;
            Limits::within("index entries", self.entries, self.limits.index_entries)?;
            let digest = entry.check(member)?;
            let annotations = entry.annotations.as_ref();
            let name = NAMES
                .iter()
                .find_map(|key| annotations?.get(*key))
                .map(String::as_str)
                .or(inherited);
            self.entry(entry, &digest, depth, name)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        entry: &RawDescriptor,
        digest: &Digest,
        depth: usize,
        name: Option<&str>,
    ) -> Result<(), ArchiveError> {
        if let Some(images) = self.visited.get(digest) {
            // One image or index with several names, as docker, containerd and BuildKit write it.
            for image in &mut self.view.images[images.clone()] {
                image.tags.extend(name.map(str::to_owned));
            }
            return Ok(());
        }
        let first = self.view.images.len();
        self.visited.insert(digest.clone(), first..first);
        self.content(entry, digest, depth, name)?;
        self.visited.insert(digest.clone(), first..self.view.images.len());
        Ok(())
    }

    fn content(
        &mut self,
        entry: &RawDescriptor,
        digest: &Digest,
        depth: usize,
        name: Option<&str>,
    ) -> Result<(), ArchiveError> {
        let member = documents::blob_name(digest);
        let described = entry
            .media_type
            .as_deref()
            .filter(|described| !described.is_empty());
        if let Some(described) = described {
            check_manifest_type(&member, described)?;
        }
        let Some(document) = self
            .documents
            .blob(entry, digest, described.unwrap_or_default())?
        else {
            if !is_attestation(entry) {
                self.view.absent.push(Absent {
                    digest: digest.clone(),
                    platform: entry.platform.as_ref().and_then(documents::RawPlatform::platform),
                });
            }
            return Ok(());
        };
        let raw = documents::manifest(&member, &document.bytes, described)?;
        let own = described.or(raw.media_type.as_deref());
        if let Some(own) = own {
            check_manifest_type(&member, own)?;
        }
        if raw.manifests.is_some() || own.is_some_and(documents::is_index_type) {
            Limits::within(
                "indexes in each other",
                depth as u64 + 1,
                self.limits.index_depth as u64,
            )?;
            return self.index(&member, &raw, depth + 1, name);
        }
        let media_type = own.unwrap_or(media_type::OCI_MANIFEST).to_owned();
        let document = Document {
            media_type,
            ..document
        };
        self.manifest(&member, entry, &raw, document, name)
    }

    fn manifest(
        &mut self,
        member: &str,
        entry: &RawDescriptor,
        raw: &RawManifest,
        document: Document,
        name: Option<&str>,
    ) -> Result<(), ArchiveError> {
        if let Some(kind) = attachment_kind(entry, raw) {
            let subject = match &raw.subject {
                Some(subject) => Some(subject.check(member)?),
                None => entry
                    .annotations
                    .as_ref()
                    .and_then(|annotations| annotations.get(REFERENCE_DIGEST))
                    .and_then(|digest| digest.parse().ok()),
            };
            self.view.attachments.push(Attachment {
                digest: document.digest,
                subject,
                kind,
            });
            return Ok(());
        }
        let Some(config) = &raw.config else {
            return Err(ArchiveError::manifest(member, "it names no config"));
        };
        let config_digest = config.check(member)?;
        let config_type = config.media_type.as_deref().unwrap_or_default();
        let config_name = documents::blob_name(&config_digest);
        let Some(config) = self.documents.blob(config, &config_digest, config_type)? else {
            return Err(ArchiveError::manifest(
                config_name,
                format!("the config of manifest {} is not in the archive", document.digest),
            ));
        };
        let parsed = self.documents.config(&config_name, &config.bytes)?;
        let raw_layers = raw.layers.as_deref().unwrap_or_default();
        Limits::within("layers in an image", raw_layers.len() as u64, self.limits.layers)?;
        let descriptors = raw_layers
            .iter()
            .map(|layer| Ok((layer, layer_digest(member, layer, self.limits)?)))
            .collect::<Result<Vec<_>, ArchiveError>>()?;
        if descriptors.len() != parsed.diff_ids.len() && !descriptors.is_empty() {
            return Err(ArchiveError::manifest(
                member,
                format!(
                    "it names {} layers and its config {}",
                    descriptors.len(),
                    parsed.diff_ids.len()
                ),
            ));
        }
        if mixes_families(&document.media_type, raw_layers) {
            self.view.warnings.push(format!(
                "{member} mixes OCI's and Docker's media types, which some registries and tools refuse; \
                 an image that BuildKit builds does not"
            ));
        }
        let described = entry.platform.as_ref().and_then(documents::RawPlatform::platform);
        if let (Some(described), Some(own)) = (&described, &parsed.platform)
            && !described.matches(own)
        {
            self.view.warnings.push(format!(
                "{member} is described as {described} and its config says {own}"
            ));
        }
        let layers = parsed
            .diff_ids
            .iter()
            .zip(descriptors)
            .map(|(diff_id, (layer, digest))| archive_layer(diff_id, layer, digest))
            .collect();
        self.view.images.push(ArchiveImage {
            platform: parsed.platform.or(described),
            config,
            diff_ids: parsed.diff_ids,
            manifest: Some(document),
            layers,
            tags: name.map(str::to_owned).into_iter().collect(),
        });
        Ok(())
    }
}

fn archive_layer(diff_id: &Digest, layer: &RawDescriptor, digest: Digest) -> ArchiveLayer {
    let annotations: BTreeMap<_, _> = layer.annotations.clone().unwrap_or_default();
    ArchiveLayer {
        diff_id: diff_id.clone(),
        member: documents::blob_name(&digest),
        layer_id: digest.hex().to_owned(),
        digest: Some(digest),
        size: Some(layer.size),
        media_type: layer.media_type.clone(),
        source: pulled_from(&annotations),
        foreign: layer.is_foreign().then(|| layer.urls.clone().unwrap_or_default()),
        annotations,
    }
}

/// Whether a manifest of one family has layers of the other, as Docker 29 without `BuildKit` writes.
fn mixes_families(manifest: &str, layers: &[RawDescriptor]) -> bool {
    let is_docker = |media_type: &str| media_type.starts_with("application/vnd.docker.");
    let types = layers.iter().filter_map(|layer| layer.media_type.as_deref());
    types.map(is_docker).any(|docker| docker != is_docker(manifest))
}

/// The repository that containerd says a layer was pulled from.
pub(super) fn pulled_from(annotations: &BTreeMap<String, String>) -> String {
    annotations
        .iter()
        .find_map(|(key, repositories)| {
            let registry = key.strip_prefix(DISTRIBUTION_SOURCE)?;
            // Several repositories may be listed; any of them serves it.
            let repository = repositories.split(',').next()?;
            let name = format!("{registry}/{repository}");
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:".contains(&byte);
            (name.len() <= 255 && name.bytes().all(is_plain)).then_some(name)
        })
        .unwrap_or_default()
}

/// A layer's digest, once its type is known to be one that is read here.
fn layer_digest(member: &str, layer: &RawDescriptor, limits: &Limits) -> Result<Digest, ArchiveError> {
    let digest = layer.check(member)?;
    let media_type = layer.media_type.as_deref().unwrap_or_default();
    if layer.is_foreign() {
        if limits.foreign_layers {
            return Ok(digest);
        }
        return Err(ArchiveError::ForeignLayer {
            digest: digest.to_string(),
        });
    }
    match media_type {
        media_type::OCI_LAYER
        | media_type::OCI_LAYER_GZIP
        | media_type::OCI_LAYER_ZSTD
        | media_type::DOCKER_LAYER
        | media_type::DOCKER_LAYER_GZIP => Ok(digest),
        other => Err(unsupported(member, other)),
    }
}

fn check_manifest_type(member: &str, media_type: &str) -> Result<(), ArchiveError> {
    match media_type {
        media_type::OCI_MANIFEST
        | media_type::OCI_INDEX
        | media_type::DOCKER_MANIFEST
        | media_type::DOCKER_LIST => Ok(()),
        other => Err(unsupported(member, other)),
    }
}

fn unsupported(member: &str, media_type: &str) -> ArchiveError {
    ArchiveError::UnsupportedMediaType {
        member: member.into(),
        media_type: media_type.chars().take(120).collect(),
    }
}

fn is_attestation(entry: &RawDescriptor) -> bool {
    let marked = entry
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key(REFERENCE_TYPE));
    let nowhere = entry.platform.as_ref().is_some_and(|platform| {
        platform.os.as_deref() == Some("unknown") && platform.architecture.as_deref() == Some("unknown")
    });
    marked || nowhere
}

/// What a manifest is that is no image's.
fn attachment_kind(entry: &RawDescriptor, raw: &RawManifest) -> Option<AttachmentKind> {
    let layers = raw.layers.as_deref().unwrap_or_default();
    let in_toto = layers.iter().any(|layer| {
        layer
            .media_type
            .as_deref()
            .is_some_and(|media_type| media_type.starts_with("application/vnd.in-toto"))
    });
    if in_toto || is_attestation(entry) {
        return Some(AttachmentKind::Attestation);
    }
    let config_type = raw
        .config
        .as_ref()
        .and_then(|config| config.media_type.as_deref());
    let is_image = matches!(
        config_type,
        Some(media_type::OCI_CONFIG | media_type::DOCKER_CONFIG)
    );
    // crane gives the entry of an image its config's type as an artifact type.
    let is_other = |artifact: &Option<String>| artifact.is_some() && artifact.as_deref() != config_type;
    let is_artifact = is_other(&raw.artifact_type) || is_other(&entry.artifact_type) || !is_image;
    (is_artifact && raw.config.is_some()).then_some(AttachmentKind::Artifact)
}
