//! Where the bytes of an upload come from: something that can be opened again further on.

use std::{future::Future, io, path::PathBuf, pin::Pin};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::io::AsyncSeekExt as _;
use tokio_util::io::ReaderStream;

use super::{client::Repository, error::RegistryError, local::LocalImage};
use crate::image::Descriptor;

/// Bytes as they come.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, io::Error>> + Send>>;

/// Content that can be opened at any offset, and again; a break in the middle of an upload then costs what
/// was in flight, not the whole.
pub trait BlobSource: Send + Sync {
    /// The content from `offset` to its end.
    ///
    /// # Errors
    /// When it cannot be read. An error of the registry that it lies in travels inside the [`io::Error`].
    fn open(&self, offset: u64) -> impl Future<Output = Result<ByteStream, io::Error>> + Send;
}

/// Content in memory.
#[derive(Clone, Debug)]
pub struct BytesSource(pub Bytes);

impl BlobSource for BytesSource {
    async fn open(&self, offset: u64) -> Result<ByteStream, io::Error> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let rest = self.0.slice(start..);
        // No empty chunks: an empty content has none.
        let parts = (!rest.is_empty()).then_some(Ok(rest));
        Ok(stream::iter(parts).boxed())
    }
}

/// Content in a file.
#[derive(Clone, Debug)]
pub struct FileSource(pub PathBuf);

/// A read of a file: large enough that the system calls do not show beside hashing.
const FILE_READ: usize = 256 << 10;

impl BlobSource for FileSource {
    async fn open(&self, offset: u64) -> Result<ByteStream, io::Error> {
        let mut file = tokio::fs::File::open(&self.0).await?;
        file.seek(io::SeekFrom::Start(offset)).await?;
        Ok(ReaderStream::with_capacity(file, FILE_READ).boxed())
    }
}

/// Where an image comes from.
#[derive(Clone, Debug)]
pub enum ImageSource {
    /// A repository.
    Repository(Repository),
    /// An OCI layout or archive.
    Local(LocalImage),
}

impl From<Repository> for ImageSource {
    fn from(repository: Repository) -> Self {
        Self::Repository(repository)
    }
}

impl From<LocalImage> for ImageSource {
    fn from(image: LocalImage) -> Self {
        Self::Local(image)
    }
}

impl ImageSource {
    /// Its name, for messages.
    pub fn name(&self) -> String {
        match self {
            Self::Repository(repository) => format!("{}/{}", repository.registry(), repository.name()),
            Self::Local(image) => image.path().to_owned(),
        }
    }

    /// The repository, if it is one.
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Self::Repository(repository) => Some(repository),
            Self::Local(_) => None,
        }
    }
}

/// A blob of an image's source.
#[derive(Clone, Debug)]
pub(super) struct SourceBlob {
    pub(super) source: ImageSource,
    pub(super) descriptor: Descriptor,
}

impl BlobSource for SourceBlob {
    async fn open(&self, offset: u64) -> Result<ByteStream, io::Error> {
        match &self.source {
            ImageSource::Repository(repository) => {
                let blob = RepositoryBlob {
                    repository: repository.clone(),
                    descriptor: self.descriptor.clone(),
                };
                blob.open(offset).await
            }
            ImageSource::Local(image) => image.open_blob(&self.descriptor.digest, offset),
        }
    }
}

/// A blob of another repository.
#[derive(Clone, Debug)]
pub struct RepositoryBlob {
    /// Where it is.
    pub repository: Repository,
    /// What it is.
    pub descriptor: Descriptor,
}

impl BlobSource for RepositoryBlob {
    async fn open(&self, offset: u64) -> Result<ByteStream, io::Error> {
        let stream = self
            .repository
            .open_blob(&self.descriptor, offset)
            .await
            .map_err(io_error)?;
        Ok(stream.map(|part| part.map_err(io_error)).boxed())
    }
}

/// Puts an error where [`registry_error`] finds it again.
fn io_error(error: RegistryError) -> io::Error {
    io::Error::other(error)
}

/// The registry's error inside an error of [`BlobSource::open`].
pub(super) fn registry_error(error: &io::Error) -> Option<&RegistryError> {
    error.get_ref()?.downcast_ref()
}
