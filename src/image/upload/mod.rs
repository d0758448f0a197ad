//! Taking in what a builder uploads in Launchpad's layout: a folder in whose subfolders files lie.
//!
//! ```text
//! the first subfolder with a digests.json → its claims → every layer known, or there as <layer_id>.tar.gz
//!     strict          manifest.json, configs, each layer's digest and diff ID proven in one pass
//!     presence only   nothing is believed, and nothing proven
//! → kept, all or nothing: the layers with their digests, every *.json without one
//! ```
//!
//! Source: Launchpad's `OCIRecipeUpload`. What it decides is decided before anything is kept, so that a
//! refusal leaves nothing behind, and a success is never found incomplete later. Where builds and registries
//! come in does not live here.

pub mod digests;
mod error;
mod keep;
mod sections;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    io::Read as _,
    path::Path,
};

use super::{
    Digest, Known, Platform,
    archive::{
        ArchiveError, Content, Limits,
        folder::{EntryKind, Folder},
    },
};
use crate::record::{Counters, LayerRecord};
pub use error::UploadError;
use keep::Keep;

/// Folders in folders that are looked through.
const DEPTH_LIMIT: usize = 8;

/// How much of an upload is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every file's content is what its names say.
    Strict,
    /// Every file is there; digests may be any text.
    PresenceOnly,
}

/// How an upload is taken in.
#[derive(Debug)]
pub struct Options<'a> {
    /// How much is proven.
    pub mode: Mode,
    /// Layers that need no file.
    pub known: &'a Known,
    /// Where to keep what is accepted: a folder that does not exist yet.
    pub keep: Option<&'a Path>,
    /// Bounds on what is read.
    pub limits: Limits,
}

/// An upload that is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The subfolder that counts, relative to the upload.
    pub folder: String,
    /// The images, proven; none where only presence was asked for.
    pub images: Vec<UploadedImage>,
    /// What is kept, layers first.
    pub files: Vec<UploadedFile>,
    /// Oddities that were accepted.
    pub warnings: Vec<String>,
    /// What it cost.
    pub counters: Counters,
}

/// One image of an upload, proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadedImage {
    /// What the config says; `None` when it names no platform.
    pub platform: Option<Platform>,
    /// The config.
    pub config: Digest,
    /// Base first.
    pub layers: Vec<LayerRecord>,
    /// Tags or full names that `manifest.json` gives to the image.
    pub tags: Vec<String>,
}

/// One file of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadedFile {
    /// Its name in the subfolder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// A layer's digest as it was proven, or as it is claimed where only presence was asked for.
    pub digest: Option<String>,
    /// Whether it is had elsewhere, so that it was not read here.
    pub known: bool,
}

/// How far an acceptance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// A layer's file is read from here on; so many bytes.
    Layer(&'a digests::Claim, u64),
    /// So many more bytes of it were read.
    Bytes(u64),
    /// It was read to its end, and is good.
    Done,
    /// A layer that is known is not read.
    Known(&'a digests::Claim),
}

/// Takes an upload in, or says why not.
///
/// # Errors
/// The first thing that is wrong; nothing is kept then.
pub fn accept(
    upload: &Path,
    options: &Options<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Accepted, UploadError> {
    let root = Folder::open(upload)?;
    let Some((name, folder)) = find(&root, &options.limits)? else {
        return Err(UploadError::NoDigests {
            at_top: matches!(root.find(digests::NAME), Ok(Some(_))),
        });
    };
    let intake = Intake::open(&folder, options)?;
    let mut keep = options.keep.map(Keep::begin).transpose()?;
    let mut accepted = match options.mode {
        Mode::Strict => sections::prove(&intake, &mut keep, progress)?,
        Mode::PresenceOnly => intake.believe(&mut keep, progress)?,
    };
    accepted.folder = name;
    for document in &intake.documents {
        if let Some(keep) = &mut keep {
            keep.document(&document.name, &document.bytes)?;
        }
        accepted.files.push(UploadedFile {
            name: document.name.clone(),
            size: document.bytes.len() as u64,
            digest: None,
            known: false,
        });
    }
    keep.map(Keep::commit).transpose()?;
    Ok(accepted)
}

/// The first subfolder that has a `digests.json`: outer before inner, then by name.
fn find(root: &Folder, limits: &Limits) -> Result<Option<(String, Folder)>, UploadError> {
    let mut entries = limits.members;
    let mut waiting = vec![(String::new(), root.clone(), 0)];
    while let Some((path, folder, depth)) = waiting.pop() {
        let listed = folder.entries(entries)?;
        entries -= listed.len() as u64;
        // A link of that name counts, so that it is refused and not passed over.
        let has_digests = listed
            .iter()
            .any(|(name, kind)| name == digests::NAME && *kind != EntryKind::Folder);
        if depth > 0 && has_digests {
            return Ok(Some((path, folder)));
        }
        let subfolders = listed.into_iter().filter(|(_, kind)| *kind == EntryKind::Folder);
        for (name, _) in subfolders.rev() {
            Limits::within("folders in each other", depth + 1, DEPTH_LIMIT as u64)?;
            if let Some(subfolder) = folder.subfolder(&name)? {
                let path = if path.is_empty() {
                    name
                } else {
                    format!("{path}/{name}")
                };
                waiting.push((path, subfolder, depth + 1));
            }
        }
    }
    Ok(None)
}

/// A subfolder whose small files were read, and whose layers are all to be had.
struct Intake<'a> {
    options: &'a Options<'a>,
    /// For each image its layers, as claimed.
    claims: Vec<Vec<digests::Claim>>,
    /// The folder with the files of the layers. They are not all kept open: there may be more than a process
    /// may have.
    folder: &'a Folder,
    /// Every `*.json`.
    documents: Vec<JsonFile>,
}

struct JsonFile {
    name: String,
    bytes: Vec<u8>,
}

impl<'a> Intake<'a> {
    fn open(folder: &'a Folder, options: &'a Options<'a>) -> Result<Self, UploadError> {
        let limits = &options.limits;
        let documents = read_documents(folder, limits)?;
        let mut intake = Self {
            options,
            claims: Vec::new(),
            folder,
            documents,
        };
        let Some(bytes) = intake.document(digests::NAME) else {
            return Err(UploadError::NoDigests { at_top: false });
        };
        intake.claims = digests::parse(bytes, limits)?;
        intake.check_layer_ids()?;
        let mut total = 0;
        for claim in intake.claims.iter().flatten() {
            if intake.known(claim).is_none() {
                total += intake.file(claim)?.size();
                Limits::within("bytes in the upload", total, limits.archive_bytes)?;
            }
        }
        if intake.document(sections::NAME).is_none() {
            return Err(UploadError::NoManifest);
        }
        Ok(intake)
    }

    /// One file cannot be two different layers.
    fn check_layer_ids(&self) -> Result<(), ArchiveError> {
        let mut seen = HashMap::new();
        for claim in self.claims.iter().flatten() {
            let identity = (&claim.diff_id, &claim.digest);
            if seen
                .insert(&claim.layer_id, identity)
                .is_some_and(|earlier| earlier != identity)
            {
                return Err(ArchiveError::manifest(
                    digests::NAME,
                    format!("{} stands for two different layers", claim.file()),
                ));
            }
        }
        Ok(())
    }

    fn document(&self, name: &str) -> Option<&[u8]> {
        let document = self.documents.iter().find(|document| document.name == name)?;
        Some(&document.bytes)
    }

    /// The layer's file, open.
    fn file(&self, claim: &digests::Claim) -> Result<Content, UploadError> {
        self.folder
            .find(&claim.file())?
            .ok_or_else(|| UploadError::LayerFile {
                layer_id: claim.layer_id.clone(),
            })
    }

    /// The layer and its size, where it is had elsewhere under the claimed digest. One whose size nobody says
    /// has to be there, so that it is found out.
    fn known(&self, claim: &digests::Claim) -> Option<(&'a super::KnownLayer, u64)> {
        let known = self.options.known.by_digest(&claim.digest().ok()?)?;
        Some((known, known.size.or(claim.size)?))
    }

    /// Takes every file as it is.
    fn believe(
        &self,
        keep: &mut Option<Keep>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Accepted, UploadError> {
        if self.claims.is_empty() || self.claims.iter().any(Vec::is_empty) {
            return Err(UploadError::NoLayer);
        }
        let mut accepted = Accepted::default();
        let mut taken = HashSet::new();
        for claim in self.claims.iter().flatten() {
            if !taken.insert(&claim.layer_id) {
                continue;
            }
            let known = self.known(claim);
            let size = if let Some((_, size)) = known {
                progress(Progress::Known(claim));
                accepted.counters.layers_reused += 1;
                accepted.counters.bytes_reused += size;
                size
            } else {
                let content = self.file(claim)?;
                if let Some(keep) = keep {
                    progress(Progress::Layer(claim, content.size()));
                    accepted.counters.bytes_read += content.size();
                    keep.copy(&claim.file(), &content, |bytes| progress(Progress::Bytes(bytes)))?;
                    progress(Progress::Done);
                }
                content.size()
            };
            accepted.files.push(UploadedFile {
                name: claim.file(),
                size,
                digest: Some(claim.digest.clone()),
                known: known.is_some(),
            });
        }
        Ok(accepted)
    }
}

/// Every `*.json` of the folder, whole.
fn read_documents(folder: &Folder, limits: &Limits) -> Result<Vec<JsonFile>, ArchiveError> {
    let mut documents = Vec::new();
    let mut total = 0;
    for (name, kind) in folder.entries(limits.members)? {
        let is_json = Path::new(&name)
            .extension()
            .is_some_and(|ending| ending == "json");
        if kind == EntryKind::Folder || !is_json {
            continue;
        }
        let Some(content) = folder.find(&name)? else {
            return Err(ArchiveError::Changed { what: name });
        };
        documents.push(read_document(name, &content, &mut total, limits)?);
    }
    Ok(documents)
}

fn read_document(
    name: String,
    content: &Content,
    total: &mut u64,
    limits: &Limits,
) -> Result<JsonFile, ArchiveError> {
    if name.chars().any(|char| char.is_control() || char == '\\') {
        return Err(ArchiveError::Path {
            name,
            why: "it has a backslash or a control character",
        });
    }
    Limits::within("bytes in a JSON document", content.size(), limits.document_bytes)?;
    *total += content.size();
    Limits::within("bytes of JSON", *total, limits.documents_bytes)?;
    let mut bytes = Vec::new();
    content
        .reader()
        .read_to_end(&mut bytes)
        .map_err(|error| super::archive::layer::read_error(&name, error))?;
    Ok(JsonFile { name, bytes })
}
