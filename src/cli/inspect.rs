//! `slipway inspect`: what an archive holds, without reading its layers.

use std::{fmt, path::PathBuf, process::ExitCode};

use clap::Args;
use serde::Serialize;

use super::{
    limits::{self, LimitFlags},
    outcome::{self, Refusal, printable},
};
use crate::image::{
    Digest, Platform,
    archive::{Absent, Archive, ArchiveError, ArchiveImage, ArchiveLayer, Attachment, AttachmentKind, layer},
};

/// Flags of `slipway inspect`.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// An archive, the folder of an OCI layout, or - for standard input.
    source: PathBuf,
    #[command(flatten)]
    limits: LimitFlags,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command: 0 readable, 1 refused, 2 usage, 3 the machine's own trouble.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(arguments: &InspectArguments) -> anyhow::Result<ExitCode> {
    match read(arguments) {
        Ok(document) => {
            let text = Text {
                document: &document,
                pretty: outcome::is_pretty(),
            };
            outcome::accepted(arguments.json, &document, text)
        }
        Err(error) => outcome::refused(
            arguments.json,
            &Refusal {
                reason: error.reason(),
                message: error.to_string(),
                member: error.member().map(str::to_owned),
                advice: limits::advice(error.reason()),
            },
        ),
    }
}

fn read(arguments: &InspectArguments) -> Result<Document, ArchiveError> {
    let limits = arguments.limits.limits();
    let archive = if arguments.source.as_os_str() == "-" {
        Archive::from_stream(std::io::stdin().lock(), limits)?
    } else {
        Archive::open(&arguments.source, limits)?
    };
    let document = Document {
        images: archive
            .images()
            .iter()
            .map(|image| describe(&archive, image))
            .collect::<Result<_, _>>()?,
        attestations: archive.attachments().iter().map(attachment).collect(),
        absent: archive.absent().iter().map(absent).collect(),
        warnings: archive.warnings().to_vec(),
    };
    archive.check_unchanged()?;
    Ok(document)
}

#[derive(Serialize)]
struct Document {
    images: Vec<ImageDocument>,
    /// Attestations and other manifests that are no images.
    attestations: Vec<AttachmentDocument>,
    /// Images that are named and not there.
    absent: Vec<AbsentDocument>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageDocument {
    platform: Option<Platform>,
    config_digest: Digest,
    manifest_digest: Option<Digest>,
    media_type: Option<String>,
    tags: Vec<String>,
    layers: Vec<LayerDocument>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LayerDocument {
    #[serde(rename = "diffID")]
    diff_id: Digest,
    /// What the archive says; the bytes were not read.
    digest: Option<Digest>,
    /// Stored size; `None` when the layer is not in the archive.
    size: Option<u64>,
    media_type: Option<String>,
    compression: Option<String>,
    member: String,
    source: String,
    #[serde(rename = "layerID")]
    layer_id: String,
}

#[derive(Serialize)]
struct AttachmentDocument {
    kind: &'static str,
    digest: Digest,
    subject: Option<Digest>,
}

#[derive(Serialize)]
struct AbsentDocument {
    digest: Digest,
    platform: Option<Platform>,
}

fn describe(archive: &Archive, image: &ArchiveImage) -> Result<ImageDocument, ArchiveError> {
    let mut tags: Vec<String> = Vec::new();
    for tag in &image.tags {
        if !tags.contains(tag) {
            tags.push(tag.clone());
        }
    }
    let layers = image.layers.iter().map(|layer| describe_layer(archive, layer));
    Ok(ImageDocument {
        platform: image.platform.clone(),
        config_digest: image.config.digest.clone(),
        manifest_digest: image.manifest.as_ref().map(|manifest| manifest.digest.clone()),
        media_type: image
            .manifest
            .as_ref()
            .map(|manifest| manifest.media_type.clone()),
        tags,
        layers: layers.collect::<Result<_, _>>()?,
    })
}

fn describe_layer(archive: &Archive, described: &ArchiveLayer) -> Result<LayerDocument, ArchiveError> {
    let content = archive.content(described)?;
    let compression = match &content {
        Some(content) => Some(layer::compression_of(described, content)?),
        None => None,
    };
    Ok(LayerDocument {
        diff_id: described.diff_id.clone(),
        digest: described.digest.clone(),
        size: content.map(|content| content.size()),
        media_type: described.media_type.clone(),
        compression: compression.map(|compression| compression.to_string()),
        member: described.member.clone(),
        source: described.source.clone(),
        layer_id: described.layer_id.clone(),
    })
}

fn attachment(attachment: &Attachment) -> AttachmentDocument {
    AttachmentDocument {
        kind: match attachment.kind {
            AttachmentKind::Attestation => "attestation",
            AttachmentKind::Artifact => "artifact",
        },
        digest: attachment.digest.clone(),
        subject: attachment.subject.clone(),
    }
}

fn absent(absent: &Absent) -> AbsentDocument {
    AbsentDocument {
        digest: absent.digest.clone(),
        platform: absent.platform.clone(),
    }
}

/// The document for people: on a terminal with short digests and headings, in a pipe with whole digests.
struct Text<'a> {
    document: &'a Document,
    pretty: bool,
}

impl Text<'_> {
    fn digest<'d>(&self, digest: &'d Digest) -> &'d str {
        if self.pretty {
            digest.short()
        } else {
            digest.as_str()
        }
    }

    fn heading(&self, f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
        if self.pretty {
            writeln!(f, "\x1b[1m{}\x1b[0m", printable(text))
        } else {
            writeln!(f, "{}", printable(text))
        }
    }

    fn image(&self, f: &mut fmt::Formatter<'_>, image: &ImageDocument) -> fmt::Result {
        let total: u64 = image.layers.iter().filter_map(|layer| layer.size).sum();
        let heading = format!(
            "image {}, {} layers, {}",
            platform(image.platform.as_ref()),
            image.layers.len(),
            outcome::size(total)
        );
        self.heading(f, &heading)?;
        for tag in &image.tags {
            writeln!(f, "  tag       {}", printable(tag))?;
        }
        if let Some(manifest) = &image.manifest_digest {
            writeln!(f, "  manifest  {}", self.digest(manifest))?;
        }
        writeln!(f, "  config    {}", self.digest(&image.config_digest))?;
        for layer in &image.layers {
            let stored = match (layer.size, &layer.compression) {
                (Some(size), Some(compression)) => format!("{:>11}  {compression:<9}", outcome::size(size)),
                _ => "not in the archive    ".into(),
            };
            let source = printable(&layer.source);
            let line = format!("  layer     {}  {stored}  {source}", self.digest(&layer.diff_id));
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for image in &self.document.images {
            self.image(f, image)?;
        }
        for attachment in &self.document.attestations {
            let about = attachment
                .subject
                .as_ref()
                .map(|subject| format!(" about {}", self.digest(subject)));
            let text = format!(
                "{} {}{}",
                attachment.kind,
                self.digest(&attachment.digest),
                about.unwrap_or_default()
            );
            self.heading(f, &text)?;
        }
        for absent in &self.document.absent {
            let text = format!(
                "not in the archive: {} for {}",
                self.digest(&absent.digest),
                platform(absent.platform.as_ref())
            );
            self.heading(f, &text)?;
        }
        for warning in &self.document.warnings {
            writeln!(f, "warning: {}", printable(warning))?;
        }
        Ok(())
    }
}

fn platform(platform: Option<&Platform>) -> String {
    platform.map_or("without a platform".into(), ToString::to_string)
}
