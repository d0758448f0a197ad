//! `manifest.json`, the view that every `docker save` and its imitators have.
//!
//! Names differ by producer and decide nothing but where the bytes are, except that a name which is a digest
//! must tell the truth.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Deserialize;

use super::{
    ArchiveError, ArchiveImage, ArchiveLayer, Document, Limits,
    documents::{self, Documents, RawDescriptor},
    name, oci,
};
use crate::image::{Digest, media_type};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Section {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
    /// By diff ID. Docker fills it for every layer; only a type or `urls` makes a layer foreign.
    #[serde(default)]
    layer_sources: Option<BTreeMap<String, RawDescriptor>>,
}

/// Reads `manifest.json`; `None` when the archive has no such view.
pub(super) fn read(
    documents: &mut Documents<'_>,
    limits: &Limits,
) -> Result<Option<Vec<ArchiveImage>>, ArchiveError> {
    let Some(bytes) = documents.read("manifest.json")? else {
        return Ok(None);
    };
    let sections: Option<Vec<Section>> = documents::parse("manifest.json", &bytes)?;
    let sections = sections.unwrap_or_default();
    if sections.is_empty() {
        return Err(ArchiveError::manifest("manifest.json", "it lists no image"));
    }
    Limits::within("index entries", sections.len() as u64, limits.index_entries)?;
    let mut images: Vec<ArchiveImage> = Vec::new();
    for section in sections {
        let image = image(documents, limits, section)?;
        match images
            .iter_mut()
            .find(|known| known.config.digest == image.config.digest)
        {
            Some(known) => known.tags.extend(image.tags),
            None => images.push(image),
        }
    }
    Ok(Some(images))
}

fn image(
    documents: &mut Documents<'_>,
    limits: &Limits,
    section: Section,
) -> Result<ArchiveImage, ArchiveError> {
    let config_name = name::clean(section.config.as_bytes(), false)?;
    let Some(bytes) = documents.read(&config_name)? else {
        return Err(ArchiveError::manifest(
            config_name,
            "the config is not in the archive",
        ));
    };
    let digest = Digest::of(&bytes);
    if let Some(expected) = digest_in_name(&config_name) {
        documents::prove(&config_name, &bytes, &expected, None)?;
    }
    let config = documents.config(&config_name, &bytes)?;
    let names = section.layers.unwrap_or_default();
    Limits::within("layers in an image", names.len() as u64, limits.layers)?;
    if names.len() != config.diff_ids.len() {
        return Err(ArchiveError::manifest(
            "manifest.json",
            format!(
                "it lists {} layers and {config_name} {}",
                names.len(),
                config.diff_ids.len()
            ),
        ));
    }
    let sources = layer_sources(section.layer_sources.as_ref())?;
    let mut layers = Vec::with_capacity(names.len());
    for (diff_id, raw) in config.diff_ids.iter().zip(&names) {
        let source = sources.get(diff_id).copied();
        layers.push(layer(diff_id, raw, source, limits)?);
    }
    check_paths(&layers)?;
    name_layers(&mut layers);
    Ok(ArchiveImage {
        platform: config.platform,
        config: Document {
            bytes,
            digest,
            media_type: media_type::OCI_CONFIG.into(),
        },
        diff_ids: config.diff_ids,
        manifest: None,
        layers,
        tags: section.repo_tags.unwrap_or_default(),
    })
}

fn layer(
    diff_id: &Digest,
    raw: &str,
    source: Option<&RawDescriptor>,
    limits: &Limits,
) -> Result<ArchiveLayer, ArchiveError> {
    // Some tools save only the top layers and leave the names of the others empty.
    let member = if raw.is_empty() {
        String::new()
    } else {
        name::clean(raw.as_bytes(), false)?
    };
    let foreign = source.filter(|source| source.is_foreign());
    if let Some(source) = foreign {
        if !limits.foreign_layers {
            return Err(ArchiveError::ForeignLayer {
                digest: source.digest.clone(),
            });
        }
        return foreign_layer(diff_id, &member, source);
    }
    Ok(ArchiveLayer {
        diff_id: diff_id.clone(),
        digest: member
            .starts_with("blobs/")
            .then(|| digest_in_name(&member))
            .flatten(),
        layer_id: stem(&member),
        member,
        size: None,
        media_type: None,
        annotations: BTreeMap::new(),
        source: source
            .and_then(|source| source.annotations.as_ref())
            .map(oci::pulled_from)
            .unwrap_or_default(),
        foreign: None,
    })
}

/// A layer as its entry in `LayerSources` describes it, which is all that there is of it.
fn foreign_layer(
    diff_id: &Digest,
    member: &str,
    source: &RawDescriptor,
) -> Result<ArchiveLayer, ArchiveError> {
    Ok(ArchiveLayer {
        diff_id: diff_id.clone(),
        digest: Some(source.check("manifest.json")?),
        layer_id: stem(member),
        member: member.to_owned(),
        size: Some(source.size),
        media_type: source.media_type.clone(),
        annotations: source.annotations.clone().unwrap_or_default(),
        source: String::new(),
        foreign: Some(source.urls.clone().unwrap_or_default()),
    })
}

fn layer_sources(
    raw: Option<&BTreeMap<String, RawDescriptor>>,
) -> Result<HashMap<Digest, &RawDescriptor>, ArchiveError> {
    raw.into_iter()
        .flatten()
        .map(|(diff_id, source)| {
            source.check("manifest.json")?;
            Ok((documents::digest("manifest.json", diff_id)?, source))
        })
        .collect()
}

/// One file cannot be two different layers; one layer may stand twice.
fn check_paths(layers: &[ArchiveLayer]) -> Result<(), ArchiveError> {
    let mut seen: HashMap<&str, &Digest> = HashMap::new();
    for layer in layers.iter().filter(|layer| !layer.member.is_empty()) {
        if seen
            .insert(&layer.member, &layer.diff_id)
            .is_some_and(|earlier| *earlier != layer.diff_id)
        {
            return Err(ArchiveError::manifest(
                "manifest.json",
                format!("{} stands for two different layers", layer.member),
            ));
        }
    }
    Ok(())
}

/// The digest that a name of one of the known patterns contains.
fn digest_in_name(name: &str) -> Option<Digest> {
    let base = name.rsplit('/').next()?;
    let stem = base.strip_suffix(".json").unwrap_or(base);
    let algorithm = name.strip_prefix("blobs/").and_then(|rest| rest.split_once('/'));
    match algorithm {
        Some((algorithm, hex)) => format!("{algorithm}:{hex}").parse().ok(),
        None if stem.contains(':') => stem.parse().ok(),
        None => format!("sha256:{stem}").parse().ok(),
    }
}

/// Launchpad's name of a layer: the folder of `layer.tar`, else the file without its endings.
fn stem(member: &str) -> String {
    let (folder, base) = member.rsplit_once('/').unwrap_or(("", member));
    let stem = if base == "layer.tar" {
        folder.rsplit('/').next().unwrap_or_default()
    } else {
        let base = base.strip_suffix(".gz").unwrap_or(base);
        base.strip_suffix(".tar").unwrap_or(base)
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let stem = stem.strip_prefix("sha256:").unwrap_or(stem);
    if stem.len() <= 128 && !stem.starts_with('.') && stem.bytes().all(is_plain) {
        stem.to_owned()
    } else {
        String::new()
    }
}

/// Gives a layer without a usable name, or with another layer's, its diff ID's.
fn name_layers(layers: &mut [ArchiveLayer]) {
    let mut taken: HashMap<String, Digest> = HashMap::new();
    let mut clashing = HashSet::new();
    for layer in layers.iter() {
        if taken
            .insert(layer.layer_id.clone(), layer.diff_id.clone())
            .is_some_and(|earlier| earlier != layer.diff_id)
        {
            clashing.insert(layer.layer_id.clone());
        }
    }
    for layer in layers {
        if layer.layer_id.is_empty() || clashing.contains(&layer.layer_id) {
            layer.layer_id = layer.diff_id.hex().to_owned();
        }
    }
}
