//! The strict way: `manifest.json` and the configs say what the images are, and every layer is proven.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;

use super::{
    Accepted, Intake, Progress, UploadError, UploadedFile, UploadedImage,
    digests::{self, Claim, Identity},
    keep::Keep,
};
use crate::{
    image::{
        Digest, KnownLayer,
        archive::{
            ArchiveError, ArchiveLayer, Content, Limits, documents,
            layer::{self, Proven},
        },
        compress::Compression,
        media_type,
    },
    record::{LayerOrigin, LayerRecord},
};

/// The file's name.
pub(super) const NAME: &str = "manifest.json";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Section {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Proves every image of an upload, and keeps what is proven while it is read.
pub(super) fn prove(
    intake: &Intake<'_>,
    keep: &mut Option<Keep>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Accepted, UploadError> {
    let sections: Option<Vec<Section>> = documents::parse(NAME, intake.document(NAME).unwrap_or_default())?;
    let sections = sections.unwrap_or_default();
    if sections.is_empty() || sections.len() != intake.claims.len() {
        return Err(ArchiveError::manifest(
            NAME,
            format!(
                "it lists {} images and {} {}",
                sections.len(),
                digests::NAME,
                intake.claims.len()
            ),
        )
        .into());
    }
    let planned = sections
        .into_iter()
        .zip(&intake.claims)
        .map(|(section, claims)| plan(intake, section, claims))
        .collect::<Result<Vec<_>, _>>()?;
    let mut prover = Prover {
        intake,
        keep,
        progress,
        accepted: Accepted::default(),
        layers: HashMap::new(),
    };
    for (image, layers) in planned {
        prover.image(image, &layers)?;
    }
    Ok(prover.accepted)
}

/// An image without its layers, and what is claimed of each of them, base first.
type Planned<'a> = (UploadedImage, Vec<(&'a Claim, Identity)>);

/// Compares one image's documents with each other; answers its layers, base first.
fn plan<'a>(intake: &Intake<'_>, section: Section, claims: &'a [Claim]) -> Result<Planned<'a>, ArchiveError> {
    let name = &section.config;
    let Some(bytes) = intake.document(name) else {
        return Err(ArchiveError::manifest(
            NAME,
            format!("its config {name:?} is none of the *.json files beside it"),
        ));
    };
    let config = documents::config(name, bytes)?;
    let digest = config_digest(name, bytes)?;
    let named = section.layers.unwrap_or_default().len();
    if named != config.diff_ids.len() {
        let counted = config.diff_ids.len();
        return Err(ArchiveError::manifest(
            NAME,
            format!("it lists {named} layers and {name} {counted}"),
        ));
    }
    Limits::within("layers in an image", named as u64, intake.options.limits.layers)?;
    let mut by_diff_id = BTreeMap::new();
    for claim in claims {
        let identity = claim.identity()?;
        by_diff_id.insert(identity.diff_id.clone(), (claim, identity));
    }
    let wanted: BTreeSet<&Digest> = config.diff_ids.iter().collect();
    if let Some(extra) = by_diff_id.keys().find(|diff_id| !wanted.contains(diff_id)) {
        return Err(ArchiveError::manifest(
            digests::NAME,
            format!("it has the layer {extra}, which {name} has not"),
        ));
    }
    let layers = config
        .diff_ids
        .iter()
        .map(|diff_id| {
            by_diff_id.get(diff_id).cloned().ok_or_else(|| {
                ArchiveError::manifest(
                    digests::NAME,
                    format!("it does not have the layer {diff_id} of {name}"),
                )
            })
        })
        .collect::<Result<_, _>>()?;
    let image = UploadedImage {
        platform: config.platform,
        config: digest,
        layers: Vec::new(),
        tags: section.repo_tags.unwrap_or_default(),
    };
    Ok((image, layers))
}

/// A config's digest; a name that is a digest must be this one.
fn config_digest(name: &str, bytes: &[u8]) -> Result<Digest, ArchiveError> {
    let stem = name.strip_suffix(".json").unwrap_or(name);
    if let Ok(expected) = format!("sha256:{stem}").parse() {
        documents::prove(name, bytes, &expected, None)?;
    }
    Ok(Digest::of(bytes))
}

struct Prover<'a, 'p> {
    intake: &'a Intake<'a>,
    keep: &'p mut Option<Keep>,
    progress: &'p mut dyn FnMut(Progress<'_>),
    accepted: Accepted,
    /// What was proven, by diff ID and digest: a layer may stand in several images.
    layers: HashMap<(Digest, Digest), LayerRecord>,
}

impl Prover<'_, '_> {
    fn image(&mut self, mut image: UploadedImage, layers: &[(&Claim, Identity)]) -> Result<(), UploadError> {
        if image.platform.is_none() {
            self.accepted
                .warnings
                .push(format!("the config {} names no platform", image.config));
        }
        for (claim, identity) in layers {
            let key = (identity.diff_id.clone(), identity.digest.clone());
            let record = match self.layers.get(&key) {
                Some(record) => record.clone(),
                None => {
                    let record = self.layer(claim, identity)?;
                    self.layers.insert(key, record.clone());
                    record
                }
            };
            image.layers.push(record);
        }
        self.accepted.images.push(image);
        Ok(())
    }

    fn layer(&mut self, claim: &Claim, identity: &Identity) -> Result<LayerRecord, UploadError> {
        let known = self.intake.known(claim);
        let record = if let Some((known, size)) = known {
            check_known(claim, identity, known, size)?;
            (self.progress)(Progress::Known(claim));
            self.accepted.counters.layers_reused += 1;
            self.accepted.counters.bytes_reused += size;
            record(claim, identity, size, &known.media_type, LayerOrigin::Known)
        } else {
            let content = self.intake.file(claim)?;
            (self.progress)(Progress::Layer(claim, content.size()));
            let proven = self.read(claim, identity, &content)?;
            (self.progress)(Progress::Done);
            self.accepted.counters.bytes_read += proven.size;
            self.accepted.counters.bytes_hashed += proven.decompressed;
            let media_type = described(claim, proven.compression)?;
            record(claim, identity, proven.size, media_type, LayerOrigin::New)
        };
        self.accepted.files.push(UploadedFile {
            name: claim.file(),
            size: record.size,
            digest: Some(record.digest.to_string()),
            known: known.is_some(),
        });
        Ok(record)
    }

    /// One pass over a layer; what is kept is what was hashed.
    fn read(&mut self, claim: &Claim, identity: &Identity, content: &Content) -> Result<Proven, UploadError> {
        let layer = ArchiveLayer {
            foreign: None,
            diff_id: identity.diff_id.clone(),
            member: claim.file(),
            digest: Some(identity.digest.clone()),
            size: claim.size,
            media_type: None,
            annotations: BTreeMap::new(),
            source: claim.source.clone(),
            layer_id: claim.layer_id.clone(),
        };
        let mut file = match self.keep {
            Some(keep) => Some(keep.create(&layer.member)?),
            None => None,
        };
        let mut trouble = None;
        let limits = &self.intake.options.limits;
        let proven = layer::prove(&layer, content, limits, |bytes| {
            (self.progress)(Progress::Bytes(bytes.len() as u64));
            let Some(file) = &mut file else {
                return Ok(());
            };
            std::io::Write::write_all(file, bytes).map_err(|error| {
                let kind = error.kind();
                trouble = Some(error);
                kind.into()
            })
        });
        if let (Some(error), Some(keep)) = (trouble, &self.keep) {
            return Err(keep.failed(error));
        }
        let proven = proven?;
        if let (Some(file), Some(keep)) = (file, &self.keep) {
            file.sync_all().map_err(|error| keep.failed(error))?;
        }
        Ok(proven)
    }
}

/// A known layer was proven under one diff ID, and is not taken for another's.
fn check_known(
    claim: &Claim,
    identity: &Identity,
    known: &KnownLayer,
    size: u64,
) -> Result<(), ArchiveError> {
    if known.diff_id != identity.diff_id {
        return Err(ArchiveError::DigestMismatch {
            member: format!("{} (known), decompressed,", claim.file()),
            expected: identity.diff_id.clone(),
            found: known.diff_id.clone(),
        });
    }
    match claim.size {
        Some(expected) if expected != size => Err(ArchiveError::SizeMismatch {
            member: claim.file(),
            expected,
            found: size,
        }),
        _ => Ok(()),
    }
}

/// The layer's media type: what was found, and what is claimed where it agrees with that.
fn described(claim: &Claim, found: Compression) -> Result<&str, ArchiveError> {
    let of_found: &[&'static str] = match found {
        Compression::None => &[media_type::OCI_LAYER, media_type::DOCKER_LAYER],
        Compression::Gzip => &[media_type::OCI_LAYER_GZIP, media_type::DOCKER_LAYER_GZIP],
        Compression::Zstd => &[media_type::OCI_LAYER_ZSTD],
    };
    match &claim.media_type {
        None => Ok(of_found[0]),
        Some(claimed) if of_found.contains(&claimed.as_str()) => Ok(claimed),
        Some(claimed) => Err(ArchiveError::MediaTypeAmbiguous {
            member: claim.file(),
            why: format!("digests.json says {claimed:?} and its content is {found}"),
        }),
    }
}

fn record(
    claim: &Claim,
    identity: &Identity,
    size: u64,
    media_type: &str,
    origin: LayerOrigin,
) -> LayerRecord {
    LayerRecord {
        diff_id: identity.diff_id.clone(),
        digest: identity.digest.clone(),
        size,
        media_type: media_type.into(),
        source: claim.source.clone(),
        layer_id: claim.layer_id.clone(),
        origin,
    }
}
