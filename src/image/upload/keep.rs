//! Where accepted files go: a folder that appears whole, or not at all.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::UploadError;
use crate::image::archive::{Content, layer::read_error};

/// A folder under construction, beside the one that it becomes; dropping it removes it.
pub(super) struct Keep {
    folder: TempDir,
    target: PathBuf,
}

impl Keep {
    /// Begins beside `target`, which must not exist.
    pub(super) fn begin(target: &Path) -> Result<Self, UploadError> {
        let failed = |error| failed(target, error);
        if target.symlink_metadata().is_ok() {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = tempfile::Builder::new()
            .prefix(".slipway-upload-")
            .tempdir_in(parent.unwrap_or(Path::new(".")))
            .map_err(failed)?;
        Ok(Self {
            folder,
            target: target.to_owned(),
        })
    }

    /// A new file.
    pub(super) fn create(&self, name: &str) -> Result<File, UploadError> {
        File::create_new(self.folder.path().join(name)).map_err(|error| self.failed(error))
    }

    /// Keeps bytes that are in memory.
    pub(super) fn document(&self, name: &str, bytes: &[u8]) -> Result<(), UploadError> {
        let mut file = self.create(name)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|error| self.failed(error))
    }

    /// Keeps a file as it is.
    pub(super) fn copy(
        &self,
        name: &str,
        content: &Content,
        mut passed: impl FnMut(u64),
    ) -> Result<(), UploadError> {
        let mut file = self.create(name)?;
        let (mut reader, mut buffer) = (content.reader(), vec![0; 256 * 1024]);
        loop {
            let read = reader
                .read(&mut buffer)
                .map_err(|error| read_error(name, error))?;
            if read == 0 {
                return file.sync_all().map_err(|error| self.failed(error));
            }
            file.write_all(&buffer[..read])
                .map_err(|error| self.failed(error))?;
            passed(read as u64);
        }
    }

    /// Gives the folder its name.
    pub(super) fn commit(self) -> Result<(), UploadError> {
        let Self { folder, target } = self;
        // What a crash leaves is the whole folder under its name, or one that nobody looks for.
        File::open(folder.path())
            .and_then(|opened| opened.sync_all())
            .and_then(|()| std::fs::rename(folder.path(), &target))
            .map_err(|error| failed(&target, error))?;
        let _ = folder.keep();
        Ok(())
    }

    pub(super) fn failed(&self, error: io::Error) -> UploadError {
        failed(&self.target, error)
    }
}

fn failed(target: &Path, error: io::Error) -> UploadError {
    UploadError::Keep {
        path: target.display().to_string(),
        error,
    }
}
