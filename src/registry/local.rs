//! Images that lie in files: OCI layouts and archives, as a source of pushes.
//!
//! An OCI layout is taken as it is, so that its digest and every signature stay good. An archive of
//! `docker save` has no manifest and often plain layers: those are compressed into files without names first,
//! and a manifest is made. How archives are read and what is refused is `image::archive`'s.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    num::NonZero,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::{manifest::RawManifest, source::ByteStream};
use crate::{
    image::{
        Descriptor, Digest, Index, Manifest, Platform,
        archive::{Archive, ArchiveError, ArchiveImage, ArchiveLayer, Content, ContentReader, Limits, layer},
        compress::{Compression, Method, Pool},
        json, media_type,
    },
    record::Reason,
};

/// One piece that is read from a file; large enough that the hand-over between threads does not show.
const PIECE: usize = 256 << 10;

/// An image in an OCI layout or an archive, open and checked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalImage {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: String,
    archive: Archive,
    root: RawManifest,
    /// What was made here and is not in the archive.
    made: HashMap<Digest, Made>,
}

#[derive(Clone, Debug)]
enum Made {
    Bytes(Bytes),
    Content(Content),
}

/// Why a path is no source of a push.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The archive or layout is refused.
    #[error("{path}: {error}")]
    Archive {
        /// The path as it was given.
        path: String,
        /// Why.
        error: ArchiveError,
    },
    /// It holds more than one thing that could be meant.
    #[error("{path} holds {count} images and no index over them: {names}; name one as {path}@DIGEST")]
    Several {
        /// The path as it was given.
        path: String,
        /// How many.
        count: usize,
        /// Digests and names.
        names: String,
    },
    /// Nothing in it has the digest that was asked for.
    #[error("{path} has no image {digest}; it has {names}")]
    NoSuchImage {
        /// The path as it was given.
        path: String,
        /// What was asked for.
        digest: Digest,
        /// Digests and names.
        names: String,
    },
}

impl LocalError {
    /// The stable reason that users, metrics and tests see.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Archive { error, .. } => error.reason(),
            Self::Several { .. } => Reason::ManyImages,
            Self::NoSuchImage { .. } => Reason::SourceMissing,
        }
    }
}

impl LocalImage {
    /// Opens what lies at a path; `wanted` names one of several images. Reads and compresses, so it blocks.
    ///
    /// Platforms choose among images that no index ties together; an index is reduced to them later, by
    /// [`super::read_image`].
    ///
    /// # Errors
    /// When there is no archive, more than one image could be meant, or a layer is not what it is called.
    pub fn open(path: &Path, wanted: Option<&Digest>, platforms: &[Platform]) -> Result<Self, LocalError> {
        let name = path.display().to_string();
        let refused = |error| LocalError::Archive {
            path: name.clone(),
            error,
        };
        let archive = Archive::open(path, Limits::default()).map_err(refused)?;
        let mut made = HashMap::new();
        let root = match layout_root(&name, &archive, wanted, platforms)? {
            Some(root) if path.is_dir() || !has_plain_layers(&archive).map_err(refused)? => root,
            // A digest of the layout's may be an index's, of which only the platform is left to choose.
            root => {
                let wanted = wanted.filter(|wanted| root.is_none() || of_digest(&archive, wanted).is_some());
                let image = meant(&name, &archive, wanted, platforms)?;
                make(&archive, image, &mut made).map_err(refused)?
            }
        };
        Ok(Self {
            inner: Arc::new(Inner {
                path: name,
                archive,
                root,
                made,
            }),
        })
    }

    /// The path as it was given.
    pub fn path(&self) -> &str {
        &self.inner.path
    }

    /// The image's root document.
    pub fn root(&self) -> &RawManifest {
        &self.inner.root
    }

    /// Oddities that were accepted.
    pub fn warnings(&self) -> &[String] {
        self.inner.archive.warnings()
    }

    /// A document, proven; `None` when it is not there.
    pub(super) fn manifest(&self, digest: &Digest) -> io::Result<Option<RawManifest>> {
        if *digest == self.inner.root.digest {
            return Ok(Some(self.inner.root.clone()));
        }
        document(&self.inner.archive, digest).map_err(io::Error::other)
    }

    /// A blob's bytes from `offset` on.
    pub(super) fn open_blob(&self, digest: &Digest, offset: u64) -> io::Result<ByteStream> {
        let content = match self.inner.made.get(digest) {
            Some(Made::Bytes(bytes)) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let rest = bytes.slice(start..);
                let parts = (!rest.is_empty()).then_some(Ok(rest));
                return Ok(stream::iter(parts).boxed());
            }
            Some(Made::Content(content)) => content.clone(),
            None => self
                .inner
                .archive
                .blob(digest)
                .map_err(io::Error::other)?
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is not in the archive"))?,
        };
        Ok(pieces(content.reader_at(offset)))
    }
}

/// Reads ahead of whoever takes the pieces by one, on a thread that may block.
fn pieces(reader: ContentReader) -> ByteStream {
    stream::try_unfold(reader, |mut reader| async move {
        tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let read = reader.read(&mut piece)?;
            piece.truncate(read);
            Ok((read > 0).then(|| (Bytes::from(piece), reader)))
        })
        .await
        .map_err(io::Error::other)?
    })
    .boxed()
}

/// What tells manifests from indexes.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Typed {
    #[serde(default)]
    media_type: String,
    manifests: Option<serde_json::Value>,
}

/// A manifest of a layout, proven by its digest.
fn document(archive: &Archive, digest: &Digest) -> Result<Option<RawManifest>, ArchiveError> {
    let Some(content) = archive.blob(digest)? else {
        return Ok(None);
    };
    let bytes = small(digest.as_str(), &content)?;
    let mut hasher = digest.hasher();
    hasher.update(&bytes);
    let found = hasher.finish();
    if found != *digest {
        return Err(ArchiveError::DigestMismatch {
            member: digest.to_string(),
            expected: digest.clone(),
            found,
        });
    }
    let typed: Typed = json::parse(&bytes).map_err(|error| ArchiveError::Json {
        member: digest.to_string(),
        error,
    })?;
    let media_type = match (typed.media_type.as_str(), typed.manifests) {
        ("", Some(_)) => media_type::OCI_INDEX.to_owned(),
        ("", None) => media_type::OCI_MANIFEST.to_owned(),
        _ => typed.media_type,
    };
    Ok(Some(RawManifest {
        bytes: bytes.into(),
        media_type,
        digest: digest.clone(),
    }))
}

fn small(member: &str, content: &Content) -> Result<Vec<u8>, ArchiveError> {
    if content.size() > json::DOCUMENT_LIMIT {
        return Err(ArchiveError::Limit {
            what: "bytes in a document",
            limit: json::DOCUMENT_LIMIT,
        });
    }
    let mut bytes = Vec::new();
    content
        .reader()
        .read_to_end(&mut bytes)
        .map_err(|error| ArchiveError::Io {
            what: member.to_owned(),
            error,
        })?;
    Ok(bytes)
}

/// The document that `index.json` leads to; `None` where there is no such list, or nothing of it is there.
fn layout_root(
    path: &str,
    archive: &Archive,
    wanted: Option<&Digest>,
    platforms: &[Platform],
) -> Result<Option<RawManifest>, LocalError> {
    let refused = |error| LocalError::Archive {
        path: path.to_owned(),
        error,
    };
    let Some(content) = archive.layout_index().map_err(refused)? else {
        return Ok(None);
    };
    let bytes = small("index.json", &content).map_err(refused)?;
    // `docker save` of some versions writes null for the list; the other view decides then.
    let Ok(index) = json::parse::<Index>(&bytes) else {
        return Ok(None);
    };
    let mut roots: Vec<&Descriptor> = Vec::new();
    for entry in &index.manifests {
        // One image under several names is one image.
        if !roots.iter().any(|seen| seen.digest == entry.digest) {
            roots.push(entry);
        }
    }
    let names = || {
        let name = |entry: &Descriptor| match entry.annotations.get("org.opencontainers.image.ref.name") {
            Some(name) => format!("{} ({})", entry.digest, super::error::clean(name, 100)),
            None => entry.digest.to_string(),
        };
        let names: Vec<String> = roots.iter().take(20).map(|entry| name(entry)).collect();
        names.join(", ")
    };
    let chosen = match (wanted, &roots[..]) {
        (Some(wanted), _) => roots
            .iter()
            .copied()
            .find(|entry| entry.digest == *wanted)
            .ok_or_else(|| LocalError::NoSuchImage {
                path: path.to_owned(),
                digest: wanted.clone(),
                names: names(),
            })?,
        (None, [only]) => only,
        (None, _) if platforms.len() == 1 => {
            let image = archive.single(platforms.first()).map_err(refused)?;
            return Ok(image.manifest.clone().map(|document| RawManifest {
                bytes: document.bytes.into(),
                media_type: document.media_type,
                digest: document.digest,
            }));
        }
        (None, []) => return Ok(None),
        (None, several) => {
            return Err(LocalError::Several {
                path: path.to_owned(),
                count: several.len(),
                names: names(),
            });
        }
    };
    document(archive, &chosen.digest).map_err(refused)
}

/// The image of an archive whose manifest or config has this digest.
fn of_digest<'a>(archive: &'a Archive, wanted: &Digest) -> Option<&'a ArchiveImage> {
    archive.images().iter().find(|image| {
        let manifest = image.manifest.as_ref();
        image.config.digest == *wanted || manifest.is_some_and(|manifest| manifest.digest == *wanted)
    })
}

/// The image for which a manifest is made: the one that is named, or the only one that fits.
fn meant<'a>(
    path: &str,
    archive: &'a Archive,
    wanted: Option<&Digest>,
    platforms: &[Platform],
) -> Result<&'a ArchiveImage, LocalError> {
    let names = || {
        let name = |image: &ArchiveImage| match image.tags.first() {
            Some(tag) => format!("{} ({})", image.config.digest, super::error::clean(tag, 100)),
            None => image.config.digest.to_string(),
        };
        let names: Vec<String> = archive.images().iter().take(20).map(name).collect();
        names.join(", ")
    };
    if let Some(wanted) = wanted {
        return of_digest(archive, wanted).ok_or_else(|| LocalError::NoSuchImage {
            path: path.to_owned(),
            digest: wanted.clone(),
            names: names(),
        });
    }
    let platform = platforms.first().filter(|_| platforms.len() == 1);
    archive.single(platform).map_err(|error| match error {
        ArchiveError::ManyImages { count } => LocalError::Several {
            path: path.to_owned(),
            count,
            names: names(),
        },
        error => LocalError::Archive {
            path: path.to_owned(),
            error,
        },
    })
}

/// Whether any layer is stored as a plain tar: legal in a registry, and several times as large as need be.
fn has_plain_layers(archive: &Archive) -> Result<bool, ArchiveError> {
    for layer in archive.images().iter().flat_map(|image| &image.layers) {
        if let Some(content) = archive.content(layer)?
            && layer::compression_of(layer, &content)? == Compression::None
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A manifest for an image whose archive has none that fits, its plain layers compressed.
fn make(
    archive: &Archive,
    image: &ArchiveImage,
    made: &mut HashMap<Digest, Made>,
) -> Result<RawManifest, ArchiveError> {
    let mut known: HashMap<&Digest, Descriptor> = HashMap::new();
    let mut layers = Vec::new();
    for layer in &image.layers {
        let descriptor = match known.get(&layer.diff_id) {
            Some(descriptor) => descriptor.clone(),
            None => place(archive, layer, made)?,
        };
        known.insert(&layer.diff_id, descriptor.clone());
        layers.push(Descriptor {
            annotations: layer.annotations.clone(),
            ..descriptor
        });
    }
    let config = &image.config;
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST.to_owned(),
        artifact_type: None,
        config: Descriptor::new(
            media_type::OCI_CONFIG,
            config.digest.clone(),
            config.bytes.len() as u64,
        ),
        layers,
        subject: None,
        annotations: std::collections::BTreeMap::new(),
    };
    made.insert(
        config.digest.clone(),
        Made::Bytes(Bytes::copy_from_slice(&config.bytes)),
    );
    archive.check_unchanged()?;
    let bytes = serde_json::to_vec(&manifest).map_err(|error| ArchiveError::Manifest {
        member: "the new manifest".to_owned(),
        why: error.to_string(),
    })?;
    Ok(RawManifest {
        digest: Digest::of(&bytes),
        media_type: manifest.media_type,
        bytes: bytes.into(),
    })
}

/// Proves a layer, and compresses it where it is plain.
fn place(
    archive: &Archive,
    layer: &ArchiveLayer,
    made: &mut HashMap<Digest, Made>,
) -> Result<Descriptor, ArchiveError> {
    let content = archive.content(layer)?.ok_or_else(|| archive.missing(layer))?;
    let compression = layer::compression_of(layer, &content)?;
    if compression != Compression::None {
        let proven = layer::prove(layer, &content, archive.limits(), |_| Ok(()))?;
        let media_type = match compression {
            Compression::Zstd => media_type::OCI_LAYER_ZSTD,
            _ => media_type::OCI_LAYER_GZIP,
        };
        made.insert(proven.digest.clone(), Made::Content(content));
        return Ok(Descriptor::new(media_type, proven.digest, proven.size));
    }
    let io_error = |error| ArchiveError::Io {
        what: layer.member.clone(),
        error,
    };
    let mut file = tempfile::tempfile().map_err(io_error)?;
    let pool = Pool::new(std::thread::available_parallelism().map_or(1, NonZero::get));
    let compressed = pool
        .compress(Method::Gzip, content.reader(), layer.diff_id.hasher(), |piece| {
            file.write_all(&piece)
        })
        .map_err(io_error)?;
    layer::check_diff_id(layer, compressed.input_digest)?;
    let content = Content::of_file(file).map_err(io_error)?;
    made.insert(compressed.digest.clone(), Made::Content(content));
    Ok(Descriptor::new(
        media_type::OCI_LAYER_GZIP,
        compressed.digest,
        compressed.size,
    ))
}
