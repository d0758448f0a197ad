//! What a layer of an artifact becomes in the source tree: a file with the layer's title, or a tar's members.
//!
//! Extraction is the purpose here, into a folder of the build's own, and stays in it. Images are never
//! extracted; nothing of this is used for them.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use tar::{Archive, EntryType};

use super::tree::relative;
use crate::record::{Failure, Reason};

/// The name of the file that a layer is.
const TITLE: &str = "org.opencontainers.image.title";

/// Said by ORAS of a folder that it packed as a tar; the title is the folder's name then.
const UNPACK: &str = "io.deis.oras.content.unpack";

/// What a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// One file, by its path in the source.
    File(PathBuf),
    /// A tar, compressed or not.
    Archive,
}

impl Content {
    /// Reads it from a layer's descriptor. A title decides before the media type does, because ORAS gives
    /// every file the media type of a tar unless it is told otherwise.
    ///
    /// # Errors
    /// When it is neither, or the title leads out of the source.
    pub fn of(media_type: &str, annotations: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let is_folder = annotations.get(UNPACK).is_some_and(|value| value == "true");
        if let Some(title) = annotations.get(TITLE).filter(|_| !is_folder) {
            let path = relative(title)?;
            if path.as_os_str().is_empty() {
                return Err(Failure::new(Reason::PathInvalid, "a layer's title names no file"));
            }
            return Ok(Self::File(path));
        }
        let is_tar = media_type
            .split(['.', '+', '/', '-'])
            .any(|part| matches!(part, "tar" | "tgz"));
        if is_tar {
            Ok(Self::Archive)
        } else {
            Err(Failure::new(
                Reason::UnsupportedMediaType,
                format!("a layer of type {media_type} has no title and is no tar; push it with a title"),
            ))
        }
    }

    /// Writes the layer into the folder `source`.
    ///
    /// # Errors
    /// When a member leads out of the folder, is of a kind that no source needs, or cannot be written.
    pub fn place(&self, bytes: impl Read, source: &Path) -> Result<(), Failure> {
        match self {
            Self::File(path) => write_file(bytes, source, path),
            Self::Archive => unpack(bytes, source),
        }
    }
}

fn write_file(mut bytes: impl Read, source: &Path, path: &Path) -> Result<(), Failure> {
    let target = source.join(path);
    let mut write = || -> io::Result<()> {
        let folder = target.parent().unwrap_or(source);
        fs::create_dir_all(folder)?;
        // An earlier layer may have left a link on the way.
        if !fs::canonicalize(folder)?.starts_with(fs::canonicalize(source)?) {
            return Err(io::Error::other("leads out of the source by a link"));
        }
        let mut file = fs::File::create_new(&target)?;
        io::copy(&mut bytes, &mut file).map(drop)
    };
    write().map_err(|error| {
        let message = format!("the layer {} cannot be written: {error}", path.display());
        Failure::new(Reason::PathInvalid, message)
    })
}

fn unpack(bytes: impl Read, source: &Path) -> Result<(), Failure> {
    let malformed = |error: io::Error| {
        let message = format!("a layer cannot be read as a tar: {error}");
        Failure::new(Reason::ArchiveMalformed, message)
    };
    let mut archive = Archive::new(decompressed(bytes).map_err(malformed)?);
    for member in archive.entries().map_err(malformed)? {
        let mut member = member.map_err(malformed)?;
        let name = member.path().map_err(malformed)?.display().to_string();
        match member.header().entry_type() {
            EntryType::XGlobalHeader => continue,
            EntryType::Regular
            | EntryType::Continuous
            | EntryType::Directory
            | EntryType::Symlink
            | EntryType::Link => {}
            kind => {
                return Err(Failure::new(
                    Reason::UnsupportedEntry,
                    format!("{name} is of the kind {kind:?}, which no source needs"),
                ));
            }
        }
        relative(&name)?;
        // Refuses to write through a link that leads outside, and to link to what is outside.
        let written = member.unpack_in(source);
        if !written.map_err(|error| escaping(&name, &error.to_string()))? {
            return Err(escaping(&name, "leads out of the source"));
        }
    }
    Ok(())
}

fn escaping(name: &str, what: &str) -> Failure {
    Failure::new(
        Reason::PathInvalid,
        format!("the member {name} cannot be unpacked: {what}"),
    )
}

/// By its first bytes: media types are often not true of the compression.
fn decompressed<'a>(bytes: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut bytes = BufReader::new(bytes);
    let magic = bytes.fill_buf()?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(flate2::bufread::MultiGzDecoder::new(bytes)))
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Ok(Box::new(zstd::Decoder::with_buffer(bytes)?))
    } else {
        Ok(Box::new(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use rstest::rstest;
    use tar::Header;

    use super::*;

    #[rstest]
    #[case::file("application/vnd.oci.image.layer.v1.tar", &[(TITLE, "a/b.txt")], Some(Content::File("a/b.txt".into())))]
    #[case::folder("application/vnd.oci.image.layer.v1.tar+gzip", &[(TITLE, "app"), (UNPACK, "true")], Some(Content::Archive))]
    #[case::flux("application/vnd.cncf.flux.content.v1.tar+gzip", &[], Some(Content::Archive))]
    #[case::nothing_known("application/octet-stream", &[], None)]
    #[case::title_outside("text/plain", &[(TITLE, "../x")], None)]
    fn what_a_layer_is(
        #[case] media_type: &str,
        #[case] annotations: &[(&str, &str)],
        #[case] content: Option<Content>,
    ) {
        let annotations = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(Content::of(media_type, &annotations).ok(), content);
    }

    /// A tar of members by kind, name and target or content. Names are written as they are.
    fn archive(members: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, text) in members {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            let body: &[u8] = if kind.is_file() {
                text.as_bytes()
            } else {
                header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
                b""
            };
            header.set_size(body.len() as u64);
            header.set_cksum();
            builder.append(&header, body).unwrap();
        }
        builder.into_inner().unwrap()
    }

    const FILE: EntryType = EntryType::Regular;

    #[test]
    fn a_tar_is_unpacked_however_it_is_compressed() {
        let plain = archive(&[
            (FILE, "app/Containerfile", "FROM scratch"),
            (EntryType::Symlink, "link", "app"),
        ]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        for bytes in [
            gzip.finish().unwrap(),
            zstd::encode_all(&plain[..], 1).unwrap(),
            plain,
        ] {
            let source = tempfile::tempdir().unwrap();
            Content::Archive.place(&bytes[..], source.path()).unwrap();
            let text = fs::read_to_string(source.path().join("link/Containerfile")).unwrap();
            assert_eq!(text, "FROM scratch");
        }
    }

    #[rstest]
    #[case::upwards(&[(FILE, "../escaped", "x")], Reason::PathInvalid)]
    #[case::absolute(&[(FILE, "/escaped", "x")], Reason::PathInvalid)]
    #[case::through_a_link(&[(EntryType::Symlink, "up", ".."), (FILE, "up/escaped", "x")], Reason::PathInvalid)]
    #[case::link_to_outside(&[(EntryType::Link, "passwd", "../outside")], Reason::PathInvalid)]
    #[case::device(&[(EntryType::Char, "null", "")], Reason::UnsupportedEntry)]
    #[case::pipe(&[(EntryType::Fifo, "pipe", "")], Reason::UnsupportedEntry)]
    fn a_tar_stays_in_the_source(#[case] members: &[(EntryType, &str, &str)], #[case] reason: Reason) {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        fs::write(folder.path().join("outside"), "").unwrap();
        let refused = Content::Archive
            .place(&archive(members)[..], &source)
            .unwrap_err();
        assert_eq!(refused.reason, reason, "{}", refused.message);
        assert!(!folder.path().join("escaped").exists());
    }

    #[test]
    fn a_file_is_not_written_through_a_link_of_an_earlier_layer() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        let link = archive(&[(EntryType::Symlink, "up", "..")]);
        Content::Archive.place(&link[..], &source).unwrap();
        assert!(
            Content::File("up/escaped".into())
                .place(&b"x"[..], &source)
                .is_err()
        );
        assert!(!folder.path().join("escaped").exists());
    }

    #[test]
    fn a_broken_archive_says_so() {
        let source = tempfile::tempdir().unwrap();
        let refused = Content::Archive.place(&[7; 600][..], source.path()).unwrap_err();
        assert_eq!(refused.reason, Reason::ArchiveMalformed);
    }
}
