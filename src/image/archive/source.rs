//! Where an archive comes from: a file, an OCI layout in a folder, or a stream that is spooled first.

use std::{
    fs::File,
    io::{self, Read, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Component, Path},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags};

use super::{
    ArchiveError, Limits, RATIO_FREE,
    content::Content,
    folder::{Folder, NO_SURPRISES},
    limits::Deadline,
    tar::TarIndex,
};
use crate::image::compress::{Compression, Decoder};

/// The members of an archive, by name.
#[derive(Debug)]
pub(super) enum Holder {
    Tar(TarIndex),
    Folder(Folder),
}

impl Holder {
    /// The content of a name; `None` when there is no such file.
    pub(super) fn find(&self, name: &str) -> Result<Option<Content>, ArchiveError> {
        match self {
            Self::Tar(index) => Ok(index.find(name)),
            Self::Folder(folder) => folder.find(name),
        }
    }
}

/// A path that was opened without following a link at its end.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) holder: Holder,
    snapshot: Option<Snapshot>,
    pub(super) warnings: Vec<String>,
}

/// What must stay the same while a file is read.
#[derive(Debug)]
struct Snapshot {
    file: Arc<File>,
    seen: (u64, i64, i64, i64, i64),
}

impl Snapshot {
    fn take(file: Arc<File>) -> io::Result<Self> {
        let seen = Self::look(&file)?;
        Ok(Self { file, seen })
    }

    fn look(file: &File) -> io::Result<(u64, i64, i64, i64, i64)> {
        let now = file.metadata()?;
        Ok((
            now.len(),
            now.mtime(),
            now.mtime_nsec(),
            now.ctime(),
            now.ctime_nsec(),
        ))
    }
}

impl Source {
    /// Opens a file or a folder.
    pub(super) fn open(path: &Path, limits: &Limits, deadline: Deadline) -> Result<Self, ArchiveError> {
        let file = rustix::fs::open(path, NO_SURPRISES, Mode::empty())
            .map_err(|error| missing(path, refusal(error)))?;
        Self::from_opened(path, file.into(), limits, deadline)
    }

    /// Opens what `relative` names below `root`, without following any link on the way.
    pub(super) fn open_below(
        root: &Path,
        relative: &Path,
        limits: &Limits,
        deadline: Deadline,
    ) -> Result<Self, ArchiveError> {
        let path = root.join(relative);
        let mut here = File::open(root).map_err(|error| missing(root, error.to_string()))?;
        for component in relative.components() {
            let component = match component {
                Component::CurDir => continue,
                Component::Normal(component) => component,
                _ => return Err(missing(&path, "it leaves the output folder".into())),
            };
            here = rustix::fs::openat(&here, component, NO_SURPRISES, Mode::empty())
                .map_err(|error| missing(&path, refusal(error)))?
                .into();
        }
        Self::from_opened(&path, here, limits, deadline)
    }

    fn from_opened(
        path: &Path,
        file: File,
        limits: &Limits,
        deadline: Deadline,
    ) -> Result<Self, ArchiveError> {
        let missing = |why| missing(path, why);
        let metadata = file.metadata().map_err(|error| missing(error.to_string()))?;
        if metadata.is_dir() {
            return Ok(Self {
                holder: Holder::Folder(Folder::new(file)),
                snapshot: None,
                warnings: Vec::new(),
            });
        }
        if !metadata.is_file() {
            return Err(missing("it is neither a file nor a folder".into()));
        }
        let file = Arc::new(file);
        let snapshot =
            Snapshot::take(file.clone()).map_err(|error| ArchiveError::io("the archive", error))?;
        Self::from_file(file, metadata.len(), Some(snapshot), limits, deadline)
    }

    /// Copies a stream to a file without a name, and opens that.
    pub(super) fn spool(
        stream: impl Read,
        limits: &Limits,
        deadline: Deadline,
    ) -> Result<Self, ArchiveError> {
        let (file, length) = spool(stream, limits, deadline)?;
        Self::from_file(Arc::new(file), length, None, limits, deadline)
    }

    fn from_file(
        file: Arc<File>,
        length: u64,
        snapshot: Option<Snapshot>,
        limits: &Limits,
        deadline: Deadline,
    ) -> Result<Self, ArchiveError> {
        Limits::within("bytes in the archive", length, limits.archive_bytes)?;
        let whole = Content::new(file.clone(), 0, length);
        let mut start = Vec::new();
        whole
            .reader()
            .take(512)
            .read_to_end(&mut start)
            .map_err(|error| ArchiveError::io("the archive", error))?;
        let index = match Compression::sniff(&start) {
            _ if start.is_empty() => {
                return Err(ArchiveError::malformed("the archive", "it is empty"));
            }
            Compression::None => {
                if let Some(format) = foreign_format(&start) {
                    return Err(ArchiveError::Compression {
                        member: "the archive".into(),
                        format,
                    });
                }
                TarIndex::read(file, length, limits)?
            }
            compression => {
                let decoder = Decoder::new(compression, whole.reader(), limits.ratio, RATIO_FREE);
                let (spooled, length) = spool(decoder, limits, deadline)?;
                TarIndex::read(Arc::new(spooled), length, limits)?
            }
        };
        let mut index = index;
        let source = Self {
            warnings: std::mem::take(&mut index.warnings),
            holder: Holder::Tar(index),
            snapshot,
        };
        source.check_unchanged()?;
        Ok(source)
    }

    /// Says whether the file is still the one that was indexed.
    pub(super) fn check_unchanged(&self) -> Result<(), ArchiveError> {
        let Some(snapshot) = &self.snapshot else {
            return Ok(());
        };
        match Snapshot::look(&snapshot.file) {
            Ok(seen) if seen == snapshot.seen => Ok(()),
            Ok(_) => Err(ArchiveError::Changed {
                what: "the archive".into(),
            }),
            Err(error) => Err(ArchiveError::io("the archive", error)),
        }
    }
}

fn missing(path: &Path, why: String) -> ArchiveError {
    ArchiveError::Missing {
        path: path.display().to_string(),
        why,
    }
}

fn refusal(error: rustix::io::Errno) -> String {
    match error {
        rustix::io::Errno::LOOP => "it is, or is behind, a symbolic link".into(),
        error => io::Error::from(error).to_string(),
    }
}

/// Compressions and containers that people try, by their first bytes.
fn foreign_format(start: &[u8]) -> Option<&'static str> {
    [
        (&b"\xfd7zXZ\0"[..], "xz"),
        (b"BZh", "bzip2"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"PK\x03\x04", "zip"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
    ]
    .into_iter()
    .find_map(|(magic, name)| start.starts_with(magic).then_some(name))
}

fn spool(mut stream: impl Read, limits: &Limits, deadline: Deadline) -> Result<(File, u64), ArchiveError> {
    let io_error = |error| ArchiveError::io("the spool file", error);
    let mut file = unnamed_file().map_err(io_error)?;
    let mut buffer = vec![0; 256 * 1024];
    let mut length = 0;
    loop {
        let read = deadline
            .check()
            .and_then(|()| stream.read(&mut buffer))
            .map_err(|error| super::layer::read_error("the archive", error))?;
        if read == 0 {
            return Ok((file, length));
        }
        length += read as u64;
        Limits::within("bytes in the archive", length, limits.archive_bytes)?;
        file.write_all(&buffer[..read]).map_err(io_error)?;
    }
}

/// A file that goes away by itself.
fn unnamed_file() -> io::Result<File> {
    let folder = std::env::temp_dir();
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(&folder, flags, Mode::RUSR | Mode::WUSR) {
        return Ok(File::from(file));
    }
    // Some network and overlay file systems cannot; there a name exists for a moment.
    let path = folder.join(format!(".slipway-spool-{}", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
