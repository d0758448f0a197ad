//! One pass over a layer: what is stored is handed on while it is proven.

use std::io::{self, Read as _};

use super::{ArchiveError, ArchiveLayer, Limits, RATIO_FREE, content::Content};
use crate::image::{
    Digest, Hasher,
    compress::{Compression, DecodeError, Decoder},
    media_type,
};

/// What a pass over a layer proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Digest of the bytes as they are in the archive.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
    /// How many they decompress to.
    pub decompressed: u64,
    /// How they are compressed.
    pub compression: Compression,
}

/// How a layer is stored, by its first bytes, after that was compared with what its descriptor says.
///
/// # Errors
/// [`ArchiveError::MediaTypeAmbiguous`], and [`ArchiveError::Compression`] for what is not read here.
pub fn compression_of(layer: &ArchiveLayer, content: &Content) -> Result<Compression, ArchiveError> {
    let mut start = Vec::new();
    content
        .reader()
        .take(512)
        .read_to_end(&mut start)
        .map_err(|error| read_error(&layer.member, error))?;
    let found = Compression::sniff(&start);
    if found == Compression::None && !looks_like_tar(&start) {
        return Err(ArchiveError::MediaTypeAmbiguous {
            member: layer.member.clone(),
            why: "the layer is no tar archive, no gzip stream and no zstd stream".into(),
        });
    }
    let described = match layer.media_type.as_deref() {
        None => return Ok(found),
        Some(media_type::OCI_LAYER | media_type::DOCKER_LAYER) => Compression::None,
        Some(media_type::OCI_LAYER_GZIP | media_type::DOCKER_LAYER_GZIP) => Compression::Gzip,
        Some(_) => Compression::Zstd,
    };
    if described != found {
        return Err(ArchiveError::MediaTypeAmbiguous {
            member: layer.member.clone(),
            why: format!("its descriptor says {described} and its content {found}"),
        });
    }
    Ok(found)
}

/// Reads a layer once, hands every stored byte to `sink`, and proves size, digest and diff ID.
///
/// Nothing may be believed of what `sink` was given before this returns well.
///
/// # Errors
/// What is wrong with the layer; an error of `sink` comes back as [`ArchiveError::Io`].
pub fn prove(
    layer: &ArchiveLayer,
    content: &Content,
    limits: &Limits,
    mut sink: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<Proven, ArchiveError> {
    let compression = compression_of(layer, content)?;
    let algorithm = layer.digest.as_ref().map_or("sha256", Digest::algorithm);
    // What is stored plain has one digest, unless it is named by two algorithms.
    let mut stored = (compression != Compression::None || algorithm != layer.diff_id.algorithm())
        .then(|| layer.digest.as_ref().map_or_else(Hasher::sha256, Digest::hasher));
    let tee = Tee {
        inner: content.reader(),
        hasher: stored.as_mut(),
        sink: &mut sink,
    };
    let mut decoder = Decoder::new(compression, tee, limits.ratio, RATIO_FREE);
    let mut diff = layer.diff_id.hasher();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = decoder
            .read(&mut buffer)
            .map_err(|error| read_error(&layer.member, error))?;
        if read == 0 {
            break;
        }
        if diff.length() == 0 && compression != Compression::None && !looks_like_tar(&buffer[..read.min(512)])
        {
            return Err(ArchiveError::MediaTypeAmbiguous {
                member: layer.member.clone(),
                why: "what it decompresses to is no tar archive".into(),
            });
        }
        diff.update(&buffer[..read]);
        Limits::within("bytes in a layer", diff.length(), limits.layer_bytes)?;
    }
    drop(decoder);
    let decompressed = diff.length();
    let diff = diff.finish();
    let (digest, size) = stored.map_or_else(
        || (diff.clone(), decompressed),
        |stored| {
            let size = stored.length();
            (stored.finish(), size)
        },
    );
    check(layer, &digest, size)?;
    check_diff_id(layer, diff)?;
    Ok(Proven {
        digest,
        size,
        decompressed,
        compression,
    })
}

/// Compares what was read with what the descriptor says.
///
/// # Errors
/// [`ArchiveError::DigestMismatch`] and [`ArchiveError::SizeMismatch`].
pub fn check(layer: &ArchiveLayer, digest: &Digest, size: u64) -> Result<(), ArchiveError> {
    match &layer.digest {
        Some(expected) if expected != digest => Err(ArchiveError::DigestMismatch {
            member: layer.member.clone(),
            expected: expected.clone(),
            found: digest.clone(),
        }),
        _ => check_size(layer, size),
    }
}

pub(crate) fn check_size(layer: &ArchiveLayer, size: u64) -> Result<(), ArchiveError> {
    match layer.size {
        Some(expected) if expected != size => Err(ArchiveError::SizeMismatch {
            member: layer.member.clone(),
            expected,
            found: size,
        }),
        _ => Ok(()),
    }
}

/// Compares a layer's decompressed content with the identity that the config gives it.
///
/// # Errors
/// [`ArchiveError::DigestMismatch`].
pub fn check_diff_id(layer: &ArchiveLayer, found: Digest) -> Result<(), ArchiveError> {
    if found == layer.diff_id {
        return Ok(());
    }
    Err(ArchiveError::DigestMismatch {
        member: format!("{}, decompressed,", layer.member),
        expected: layer.diff_id.clone(),
        found,
    })
}

/// Why a layer is not in the archive: a blob may be there under a name that is not its own.
pub(super) fn missing(layer: &ArchiveLayer, of_same_size: Vec<(String, Content)>) -> ArchiveError {
    let misnamed = of_same_size
        .into_iter()
        .take(MISNAMED_LIMIT)
        .find_map(|(member, content)| {
            let wanted = layer.digest.as_ref()?;
            let mut hasher = wanted.hasher();
            let mut tee = Tee {
                inner: content.reader(),
                hasher: Some(&mut hasher),
                sink: &mut |_: &[u8]| Ok(()),
            };
            io::copy(&mut tee, &mut io::sink()).ok()?;
            let found = hasher.finish();
            let hex = member.rsplit('/').next()?;
            let expected = format!("{}:{hex}", wanted.algorithm()).parse().ok()?;
            (found == *wanted).then_some(ArchiveError::DigestMismatch {
                member,
                expected,
                found,
            })
        });
    misnamed.unwrap_or_else(|| ArchiveError::LayerMissing {
        diff_id: layer.diff_id.clone(),
        member: if layer.member.is_empty() {
            "manifest.json leaves its name empty".into()
        } else {
            layer.member.clone()
        },
    })
}

/// Blobs that are read to find a missing one among them; only the message depends on it.
const MISNAMED_LIMIT: usize = 4;

/// Whether bytes may begin a tar archive: nothing, a zero block, or a header with a good checksum.
pub(super) fn looks_like_tar(start: &[u8]) -> bool {
    let Some(block) = start.first_chunk::<512>() else {
        return start.is_empty();
    };
    if block.iter().all(|byte| *byte == 0) {
        return true;
    }
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let expected = sum(&block[..148]) + 8 * 32 + sum(&block[156..]);
    let field = std::str::from_utf8(&block[148..156]).unwrap_or_default();
    u32::from_str_radix(field.trim_matches([' ', '\0']), 8) == Ok(expected)
}

/// Tells what a decoder or a bound says about the stream from what reading it met.
pub(crate) fn read_error(member: &str, error: io::Error) -> ArchiveError {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<DecodeError>())
    {
        Some(DecodeError::Corrupt(why)) => ArchiveError::malformed(member, why.clone()),
        Some(DecodeError::Limit { what, limit }) => ArchiveError::Limit { what, limit: *limit },
        Some(DecodeError::Dictionary) => ArchiveError::Compression {
            member: member.into(),
            format: "zstd and a dictionary",
        },
        None if error.kind() == io::ErrorKind::UnexpectedEof => ArchiveError::Changed { what: member.into() },
        None => ArchiveError::io(member, error),
    }
}

/// Hands every byte that passes to a hasher and to a sink.
struct Tee<'a, R, S> {
    inner: R,
    hasher: Option<&'a mut Hasher>,
    sink: &'a mut S,
}

impl<R: io::Read, S: FnMut(&[u8]) -> io::Result<()>> io::Read for Tee<'_, R, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if read > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buffer[..read]);
            }
            (self.sink)(&buffer[..read])?;
        }
        Ok(read)
    }
}
