//! Image archives of every producer, indexed and never extracted.
//!
//! ```text
//! source    a file, a folder, a stream; gzip or zstd around it   → members by name
//! tar       header, pax, name: the strict index                  →   "
//! oci       index.json, indexes, manifests                       → images
//! docker    manifest.json of every docker save                   → images
//! choose    which of the two views is believed, and what both say
//! layer     one pass over a layer that proves it
//! ```
//!
//! Manifests and configs are proven when an archive is opened, layers when they are read. What is known
//! already is not read at all; that decision does not live here, nor does compression of plain layers.

use std::{collections::BTreeMap, io::Read, path::Path};

mod choose;
mod content;
mod docker;
pub(super) mod documents;
mod error;
pub(super) mod folder;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod header;
pub mod layer;
mod limits;
mod name;
mod oci;
mod pax;
mod source;
mod tar;
#[cfg(test)]
pub(crate) mod tests;

pub use content::{Content, ContentReader};
pub use error::ArchiveError;
pub use limits::{LIMIT_NAMES, Limits, RATIO_FREE};

use super::{Digest, Platform};
use limits::Deadline;
use source::Source;

/// An image archive, open.
#[derive(Debug)]
pub struct Archive {
    source: Source,
    limits: Limits,
    deadline: Deadline,
    images: Vec<ArchiveImage>,
    absent: Vec<Absent>,
    attachments: Vec<Attachment>,
    warnings: Vec<String>,
}

/// One image of one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveImage {
    /// What the config says; `None` when it names no platform.
    pub platform: Option<Platform>,
    /// The config, proven.
    pub config: Document,
    /// The layers' identities, from the config.
    pub diff_ids: Vec<Digest>,
    /// The manifest as its producer wrote it; `None` where the archive has none.
    pub manifest: Option<Document>,
    /// Base first, one for each diff ID of the config.
    pub layers: Vec<ArchiveLayer>,
    /// Tags or full names that the archive gives to the image.
    pub tags: Vec<String>,
}

/// A small document that was read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its bytes, as they are.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// What it is.
    pub media_type: String,
}

/// A layer as an archive describes it; nothing of it is proven yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveLayer {
    /// What the config says that it decompresses to.
    pub diff_id: Digest,
    /// The name under which the archive keeps it, if it does.
    pub member: String,
    /// The digest that a manifest or the name gives it.
    pub digest: Option<Digest>,
    /// The size that a manifest gives it.
    pub size: Option<u64>,
    /// The type that a manifest gives it.
    pub media_type: Option<String>,
    /// The manifest's annotations of it.
    pub annotations: BTreeMap<String, String>,
    /// The repository that it was pulled from; empty when nobody says.
    pub source: String,
    /// The stem of its file in Launchpad's layout.
    pub layer_id: String,
    /// The addresses of a foreign layer, which nothing here reads; `None` for every other layer.
    pub foreign: Option<Vec<String>>,
}

/// An image that the archive names and does not hold, as `docker save` does with other platforms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// Its manifest.
    pub digest: Digest,
    /// Its platform as the index has it.
    pub platform: Option<Platform>,
}

/// Something that is no image: an attestation, a signature, an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its manifest.
    pub digest: Digest,
    /// The manifest that it is about.
    pub subject: Option<Digest>,
    /// What it is.
    pub kind: AttachmentKind,
}

/// What an [`Attachment`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachmentKind {
    /// Provenance or an SBOM, as `BuildKit` attaches them.
    Attestation,
    /// Anything else with a manifest.
    Artifact,
}

impl Archive {
    /// Opens a file or a folder, without following a link at the path's end.
    ///
    /// # Errors
    /// Why there is no archive, or none that every reader would read alike.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, ArchiveError> {
        let deadline = limits.deadline();
        Self::from_source(Source::open(path, &limits, deadline)?, limits, deadline)
    }

    /// Opens what `relative` names below `root`, without following any link below `root`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_below(root: &Path, relative: &Path, limits: Limits) -> Result<Self, ArchiveError> {
        let deadline = limits.deadline();
        let source = Source::open_below(root, relative, &limits, deadline)?;
        Self::from_source(source, limits, deadline)
    }

    /// Reads a stream to its end first.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_stream(stream: impl Read, limits: Limits) -> Result<Self, ArchiveError> {
        let deadline = limits.deadline();
        Self::from_source(Source::spool(stream, &limits, deadline)?, limits, deadline)
    }

    fn from_source(source: Source, limits: Limits, deadline: Deadline) -> Result<Self, ArchiveError> {
        let views = choose::views(&source.holder, &limits);
        // What does not fit together may only have been written to meanwhile.
        source.check_unchanged()?;
        let chosen = views?;
        let mut warnings = source.warnings.clone();
        warnings.extend(chosen.warnings);
        Ok(Self {
            source,
            limits,
            deadline,
            images: chosen.images,
            absent: chosen.absent,
            attachments: chosen.attachments,
            warnings,
        })
    }

    /// Every image, each once however many names it has.
    pub fn images(&self) -> &[ArchiveImage] {
        &self.images
    }

    /// Images that are named and not there.
    pub fn absent(&self) -> &[Absent] {
        &self.absent
    }

    /// What is not an image.
    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// Oddities that were accepted.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The bounds that the archive was opened with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The one image that fits `wanted`, or the only one.
    ///
    /// # Errors
    /// [`ArchiveError::NoImage`], [`ArchiveError::PlatformMissing`] and [`ArchiveError::ManyImages`].
    pub fn single(&self, wanted: Option<&Platform>) -> Result<&ArchiveImage, ArchiveError> {
        choose::single(&self.images, &self.absent, wanted)
    }

    /// The stored bytes of a layer; `None` when the archive does not have them.
    ///
    /// # Errors
    /// When an OCI layout's folder cannot be read.
    pub fn content(&self, layer: &ArchiveLayer) -> Result<Option<Content>, ArchiveError> {
        let content = self.source.holder.find(&layer.member)?;
        Ok(content.map(|content| content.until(self.deadline)))
    }

    /// About how many bytes of the archive a layer has; none when it is not there, or not easily found.
    pub fn size_hint(&self, layer: &ArchiveLayer) -> u64 {
        layer.size.unwrap_or_else(|| match &self.source.holder {
            source::Holder::Tar(index) => index.find(&layer.member).map_or(0, |content| content.size()),
            source::Holder::Folder(_) => 0,
        })
    }

    /// The list of an OCI layout, `index.json`; `None` when the archive is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn layout_index(&self) -> Result<Option<Content>, ArchiveError> {
        self.source.holder.find("index.json")
    }

    /// What an OCI layout keeps under a digest, not proven; `None` when that is nothing.
    ///
    /// # Errors
    /// When an OCI layout's folder cannot be read.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Content>, ArchiveError> {
        self.source.holder.find(&documents::blob_name(digest))
    }

    /// Why [`content`](Self::content) has nothing for a layer.
    pub fn missing(&self, layer: &ArchiveLayer) -> ArchiveError {
        let of_same_size = match (&self.source.holder, layer.size) {
            (source::Holder::Tar(index), Some(size)) => index.of_size(name::parent(&layer.member), size),
            _ => Vec::new(),
        };
        layer::missing(layer, of_same_size)
    }

    /// Says whether the archive still is what was opened.
    ///
    /// # Errors
    /// [`ArchiveError::Changed`].
    pub fn check_unchanged(&self) -> Result<(), ArchiveError> {
        self.source.check_unchanged()
    }
}
