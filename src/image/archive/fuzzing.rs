//! What fuzzers run: one function for each kind of input, which panics where a promise is broken.
//!
//! Compiled only for `cargo fuzz` and for tests, which run the same functions over seeds and mutations of
//! them. The promises are about what is accepted, so each function ends early on a refusal.

use std::{
    fs::File,
    io::{Read, Write as _},
    sync::Arc,
};

use rustix::fs::MemfdFlags;

use super::{Archive, ArchiveError, Limits, layer, tar::TarIndex};
use crate::image::{
    Digest, Known,
    compress::{Compression, DecodeError, Decoder},
    json,
    upload::digests,
};

/// One kind of input.
pub type Target = fn(&[u8]);

/// Every kind by its name, which is also its target's in `fuzz/`.
pub const TARGETS: [(&str, Target); 9] = [
    ("tar", tar),
    ("tar_sealed", tar_sealed),
    ("docker", docker),
    ("oci", oci),
    ("two_views", two_views),
    ("json", json_document),
    ("gzip", gzip),
    ("zstd", zstd),
    ("digests", digests_json),
];

/// Small, so that an input that wants to be large is refused for that and soon.
fn limits() -> Limits {
    Limits {
        archive_bytes: 8 << 20,
        layer_bytes: 4 << 20,
        members: 10_000,
        ..Limits::default()
    }
}

/// Bytes as a tar archive.
///
/// # Panics
/// When a name is not clean, or the `tar` crate reads an accepted archive in another way.
#[allow(clippy::expect_used, reason = "a fuzzer reports what panics")]
pub fn tar(input: &[u8]) {
    let mut file = File::from(
        rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("the system has room for a file"),
    );
    file.write_all(input).expect("the system has room for a file");
    let Ok(index) = TarIndex::read(Arc::new(file), input.len() as u64, &limits()) else {
        return;
    };
    let mut names: Vec<&str> = index.names().collect();
    for name in &names {
        let is_clean = |part: &str| !part.is_empty() && part != "." && part != "..";
        assert!(name.is_empty() || name.split('/').all(is_clean), "{name:?}");
    }
    let mut archive = ::tar::Archive::new(input);
    for entry in archive.entries().expect("the other reader begins") {
        let mut entry = entry.expect("the other reader goes on");
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let path = entry.path_bytes().into_owned();
        let path = std::str::from_utf8(&path).expect("the other reader sees the same name");
        let name = path.strip_prefix("./").unwrap_or(path).trim_end_matches('/');
        let name = if name == "." { "" } else { name };
        let at = names.iter().position(|known| *known == name);
        if let Some(at) = at {
            names.swap_remove(at);
        }
        assert!(
            index.names().any(|known| known == name),
            "only the other reader sees {name:?}"
        );
        if kind.is_file() {
            let mut theirs = Vec::new();
            entry.read_to_end(&mut theirs).expect("the other reader reads on");
            let mut ours = Vec::new();
            let content = index.find(name).expect("a file is a file to both");
            content
                .reader()
                .read_to_end(&mut ours)
                .expect("the index knows where");
            assert_eq!(ours, theirs, "{name:?}");
        }
    }
    assert!(names.is_empty(), "the other reader does not see {names:?}");
}

/// The same with right checksums, so that what mutates gets behind them.
///
/// # Panics
/// As [`tar`].
pub fn tar_sealed(input: &[u8]) {
    let mut sealed = input.to_vec();
    let mut at = 0;
    while let Some(block) = sealed.get_mut(at..at + 512) {
        if block.iter().all(|byte| *byte == 0) {
            break;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = std::str::from_utf8(&block[124..135])
            .ok()
            .and_then(|text| usize::from_str_radix(text, 8).ok())
            .unwrap_or(0);
        at += 512 + size.min(1 << 24).next_multiple_of(512);
    }
    tar(&sealed);
}

/// Members without `index.json`, see [`assemble`].
///
/// # Panics
/// When what is accepted does not hold what it promises.
pub fn docker(input: &[u8]) {
    view(&assemble(input, |name| name != "index.json"));
}

/// Members without `manifest.json`, see [`assemble`].
///
/// # Panics
/// As [`docker`].
pub fn oci(input: &[u8]) {
    view(&assemble(input, |name| name != "manifest.json"));
}

/// Members of both views, see [`assemble`].
///
/// # Panics
/// As [`docker`].
pub fn two_views(input: &[u8]) {
    view(&assemble(input, |_| true));
}

/// Ends a member in the input of [`assemble`]: a byte that no JSON has.
const END: u8 = 0xff;

/// Makes an archive of an input's members, `name\nbody` each.
///
/// In a body `%n` becomes the digest of the member before it that is number `n`, and `#n` its size; the name
/// `@` is that of a blob of this content. So a mutated document leads to documents that are there.
fn assemble(input: &[u8], keep: fn(&str) -> bool) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut made: Vec<(String, usize)> = Vec::new();
    for member in input.split(|byte| *byte == END).take(10) {
        let line = member
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(member.len());
        let body = filled(&member[member.len().min(line + 1)..], &made);
        let digest = Digest::of(&body);
        let name = match &member[..line] {
            b"@" => format!("blobs/sha256/{}", digest.hex()),
            name => String::from_utf8_lossy(&name[..name.len().min(100)]).into_owned(),
        };
        made.push((digest.to_string(), body.len()));
        if !keep(&name) {
            continue;
        }
        let mut header = ::tar::Header::new_ustar();
        let raw = header.as_old_mut();
        let length = name.len().min(100);
        raw.name[..length].copy_from_slice(&name.as_bytes()[..length]);
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive.extend(header.as_bytes());
        archive.extend(&body);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.extend([0; 1024]);
    archive
}

fn filled(body: &[u8], made: &[(String, usize)]) -> Vec<u8> {
    let mut filled = Vec::with_capacity(body.len());
    let mut bytes = body.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let member = bytes
            .peek()
            .and_then(|digit| made.get(usize::from(digit.wrapping_sub(b'0'))));
        match (byte, member) {
            (b'%', Some((digest, _))) => filled.extend(digest.as_bytes()),
            (b'#', Some((_, size))) => filled.extend(size.to_string().as_bytes()),
            _ => {
                filled.push(byte);
                continue;
            }
        }
        bytes.next();
    }
    filled
}

/// Opens an archive and proves every layer of it.
fn view(archive: &[u8]) {
    let Ok(archive) = Archive::from_stream(archive, limits()) else {
        return;
    };
    for image in archive.images() {
        assert_eq!(Digest::of(&image.config.bytes), image.config.digest);
        assert_eq!(image.layers.len(), image.diff_ids.len());
        for (described, diff_id) in image.layers.iter().zip(&image.diff_ids) {
            assert_eq!(described.diff_id, *diff_id);
            assert!(!described.layer_id.is_empty() && !described.layer_id.contains('/'));
            let _ = prove(&archive, described);
        }
    }
    let _ = archive.single(None);
}

fn prove(archive: &Archive, described: &super::ArchiveLayer) -> Result<(), ArchiveError> {
    let Some(content) = archive.content(described)? else {
        return Err(archive.missing(described));
    };
    let mut stored = described.digest.as_ref().unwrap_or(&described.diff_id).hasher();
    let is_named = described.digest.is_some();
    let proven = layer::prove(described, &content, archive.limits(), |bytes| {
        stored.update(bytes);
        Ok(())
    })?;
    assert_eq!(stored.length(), proven.size, "every stored byte was handed on");
    assert!(!is_named || stored.finish() == proven.digest);
    Ok(())
}

/// A JSON document.
///
/// # Panics
/// When an accepted document is none, or changes what it says when it is written again.
#[allow(clippy::expect_used, reason = "a fuzzer reports what panics")]
pub fn json_document(input: &[u8]) {
    if json::check(input).is_err() {
        return;
    }
    let value: serde_json::Value = serde_json::from_slice(input).expect("JSON to everybody");
    let again = serde_json::to_vec(&value).expect("what was read can be written");
    json::check(&again).expect("what is strict stays strict");
    let second: serde_json::Value = serde_json::from_slice(&again).expect("JSON to everybody");
    assert!(is_same(&second, &value), "{second} is not {value}");
}

/// Whether two documents say the same. Fractions, which no image document has, are read to within a bit or two.
fn is_same(one: &serde_json::Value, other: &serde_json::Value) -> bool {
    use serde_json::Value;
    match (one, other) {
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .all(|(key, value)| other.get(key).is_some_and(|other| is_same(value, other)))
        }
        (Value::Number(one), Value::Number(other)) if one.is_f64() && other.is_f64() => {
            let (one, other) = (
                one.as_f64().unwrap_or_default(),
                other.as_f64().unwrap_or_default(),
            );
            (one - other).abs() <= one.abs() * 4.0 * f64::EPSILON
        }
        _ => one == other,
    }
}

/// A gzip stream.
///
/// # Panics
/// When the size of reads matters, or an accepted stream decompresses to something else elsewhere.
#[allow(clippy::expect_used, reason = "a fuzzer reports what panics")]
pub fn gzip(input: &[u8]) {
    let Some(ours) = decompress(Compression::Gzip, input) else {
        return;
    };
    let end = input
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    // A stream may end in zeros of its own; then all of it is needed.
    let theirs = [&input[..end], input].into_iter().find_map(|stream| {
        let mut theirs = Vec::new();
        let mut decoder = flate2::read::MultiGzDecoder::new(stream);
        decoder.read_to_end(&mut theirs).ok().filter(|_| theirs == ours)
    });
    assert!(
        theirs.is_some() || input[end..].len() > 1,
        "another decoder reads another stream"
    );
}

/// A zstd stream.
///
/// # Panics
/// As [`gzip`].
pub fn zstd(input: &[u8]) {
    if let Some(ours) = decompress(Compression::Zstd, input) {
        let theirs = ::zstd::decode_all(input).ok();
        assert!(theirs == Some(ours), "another decoder reads another stream");
    }
}

/// What a stream decompresses to, read whole and in odd pieces.
fn decompress(compression: Compression, input: &[u8]) -> Option<Vec<u8>> {
    let whole = run(compression, input, 64 * 1024);
    let pieces = run(compression, Pieces { left: input, next: 0 }, 777);
    match (whole, pieces) {
        // How much was read ahead decides when a ratio is passed.
        (Run::Limited, _) | (_, Run::Limited) | (Run::Refused, Run::Refused) => None,
        (Run::Good(whole), Run::Good(pieces)) if whole == pieces => Some(whole),
        _ => panic!("the size of reads changes the result"),
    }
}

enum Run {
    Good(Vec<u8>),
    Refused,
    Limited,
}

fn run(compression: Compression, input: impl Read, piece: usize) -> Run {
    let mut decoder = Decoder::new(compression, input, 200, 1 << 20);
    let (mut output, mut buffer) = (Vec::new(), vec![0; piece]);
    loop {
        match decoder.read(&mut buffer) {
            Ok(0) => return Run::Good(output),
            Ok(_) if output.len() > 4 << 20 => return Run::Limited,
            Ok(read) => output.extend(&buffer[..read]),
            Err(error) => {
                let cause = error.get_ref().and_then(|inner| inner.downcast_ref());
                return match cause {
                    Some(DecodeError::Limit { .. }) => Run::Limited,
                    _ => Run::Refused,
                };
            }
        }
    }
}

/// Hands out bytes a few at a time.
pub(super) struct Pieces<'a> {
    pub left: &'a [u8],
    pub next: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        const SIZES: [usize; 7] = [1, 2, 511, 3, 512, 7, 4096];
        let size = SIZES[self.next % SIZES.len()].min(buffer.len());
        self.next += 1;
        self.left.read(&mut buffer[..size])
    }
}

/// `digests.json`, or lines of known layers.
///
/// # Panics
/// When an accepted name of a layer is not one of a file.
pub fn digests_json(input: &[u8]) {
    let _ = Known::read(input);
    let Ok(images) = digests::parse(input, &limits()) else {
        return;
    };
    for claim in images.iter().flatten() {
        let file = claim.file();
        assert!(
            !file.contains(['/', '\0', '\n', '\x1b']) && !file.starts_with('.'),
            "{file:?}"
        );
        if let Ok(identity) = claim.identity() {
            let hex = claim.digest.rsplit(':').next();
            assert_eq!(hex, Some(identity.digest.hex()));
        }
    }
}
