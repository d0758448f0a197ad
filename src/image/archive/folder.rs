//! A folder that a stranger filled: every component is opened by itself and without following links, so that
//! nothing outside can be reached whatever is put there while it is read.

use std::{
    fs::File,
    io,
    path::{Component, Path},
    sync::Arc,
};

use rustix::{
    fs::{Dir, FileType, Mode, OFlags},
    io::Errno,
};

use super::{ArchiveError, content::Content};

/// Links are not followed, and a named pipe is not waited on.
pub(super) const NO_SURPRISES: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// A folder, open.
#[derive(Clone, Debug)]
pub(in crate::image) struct Folder {
    root: Arc<File>,
}

/// What a folder's entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::image) enum EntryKind {
    File,
    Folder,
    /// A link, a pipe, a device.
    Other,
}

impl Folder {
    pub(super) fn new(file: File) -> Self {
        Self { root: Arc::new(file) }
    }

    /// Opens a folder, without following a link at the path's end.
    pub(in crate::image) fn open(path: &Path) -> Result<Self, ArchiveError> {
        let missing = |why: String| ArchiveError::Missing {
            path: path.display().to_string(),
            why,
        };
        let opened = rustix::fs::open(path, NO_SURPRISES | OFlags::DIRECTORY, Mode::empty());
        opened.map(|file| Self::new(file.into())).map_err(|error| {
            missing(match error {
                Errno::NOTDIR | Errno::LOOP if path.is_symlink() => {
                    "it is a symbolic link; name the folder that it leads to".into()
                }
                Errno::NOTDIR => "it is not a folder".into(),
                error => io::Error::from(error).to_string(),
            })
        })
    }

    /// The content of a name; `None` when there is no such file.
    pub(in crate::image) fn find(&self, name: &str) -> Result<Option<Content>, ArchiveError> {
        let mut here = self.root.clone();
        for component in Path::new(name).components() {
            let Component::Normal(component) = component else {
                return Err(ArchiveError::Path {
                    name: name.chars().take(80).collect(),
                    why: "it leaves the folder",
                });
            };
            here = match rustix::fs::openat(&*here, component, NO_SURPRISES, Mode::empty()) {
                Ok(next) => Arc::new(File::from(next)),
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                Err(Errno::LOOP) => {
                    let target = rustix::fs::readlinkat(&*here, component, Vec::new());
                    return Err(ArchiveError::Link {
                        name: name.into(),
                        target: target.map_or_else(|_| "?".into(), |to| to.to_string_lossy().into_owned()),
                        why: "is a symbolic link, and none is followed in a folder",
                    });
                }
                // A socket cannot be opened.
                Err(Errno::NXIO) => return Err(special(name)),
                Err(error) => return Err(ArchiveError::io(name, error.into())),
            };
        }
        let metadata = here.metadata().map_err(|error| ArchiveError::io(name, error))?;
        if metadata.is_dir() {
            return Ok(None);
        }
        if !metadata.is_file() {
            return Err(special(name));
        }
        Ok(Some(Content::new(here, 0, metadata.len())))
    }

    /// The folder's entries by name, in the order of their names; `limit` bounds how many there are.
    ///
    /// Names that are not UTF-8 are left out: no document can name them.
    pub(in crate::image) fn entries(&self, limit: u64) -> Result<Vec<(String, EntryKind)>, ArchiveError> {
        let failed = |error: Errno| ArchiveError::io("the folder", error.into());
        let mut entries = Vec::new();
        let mut dir = Dir::read_from(&*self.root).map_err(failed)?;
        let mut seen = 0;
        while let Some(entry) = dir.read() {
            let entry = entry.map_err(failed)?;
            seen += 1;
            // The folder itself and its parent are entries too.
            super::Limits::within("entries in a folder", seen, limit.saturating_add(2))?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            let kind = match entry.file_type() {
                _ if matches!(name, "." | "..") => continue,
                FileType::RegularFile => EntryKind::File,
                FileType::Directory => EntryKind::Folder,
                FileType::Unknown => self.kind_of(name).map_err(failed)?,
                _ => EntryKind::Other,
            };
            entries.push((name.to_owned(), kind));
        }
        entries.sort();
        Ok(entries)
    }

    /// Some file systems keep kinds only with the files.
    fn kind_of(&self, name: &str) -> Result<EntryKind, Errno> {
        let status = rustix::fs::statat(&*self.root, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Folder,
            _ => EntryKind::Other,
        })
    }

    /// A folder in this one; `None` when it is not there any more, or not a folder.
    pub(in crate::image) fn subfolder(&self, name: &str) -> Result<Option<Self>, ArchiveError> {
        match rustix::fs::openat(&*self.root, name, NO_SURPRISES | OFlags::DIRECTORY, Mode::empty()) {
            Ok(next) => Ok(Some(Self::new(next.into()))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(ArchiveError::io(name, error.into())),
        }
    }
}

fn special(name: &str) -> ArchiveError {
    ArchiveError::Entry {
        member: name.into(),
        kind: "a pipe, a socket or a device".into(),
    }
}
