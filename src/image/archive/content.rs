//! A piece of an open file, read by position.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::limits::Deadline;

/// Bytes of a file that stays open; cloning is cheap and readers do not disturb each other.
#[derive(Clone, Debug)]
pub struct Content {
    file: Arc<File>,
    offset: u64,
    size: u64,
    progress: Arc<AtomicU64>,
    deadline: Option<Deadline>,
}

impl Content {
    pub(super) fn new(file: Arc<File>, offset: u64, size: u64) -> Self {
        Self {
            file,
            offset,
            size,
            progress: Arc::default(),
            deadline: None,
        }
    }

    /// The same bytes, for as long as there is time.
    pub(super) fn until(self, deadline: Deadline) -> Self {
        Self {
            deadline: Some(deadline),
            ..self
        }
    }

    /// All of a file.
    ///
    /// # Errors
    /// When the file's size cannot be read.
    pub fn of_file(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self::new(Arc::new(file), 0, size))
    }

    /// How many bytes there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How far the reader that is furthest has come, for those who watch.
    pub fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.progress)
    }

    /// Reads from the beginning.
    pub fn reader(&self) -> ContentReader {
        self.reader_at(0)
    }

    /// Reads from `offset`, or nothing if that is behind the end.
    pub fn reader_at(&self, offset: u64) -> ContentReader {
        ContentReader {
            content: self.clone(),
            position: offset.min(self.size),
        }
    }
}

/// Reads a [`Content`]; an end before its size is an error, since the file was longer when it was opened.
#[derive(Debug)]
pub struct ContentReader {
    content: Content,
    position: u64,
}

impl Read for ContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.content.size - self.position;
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        if let Some(deadline) = &self.content.deadline {
            deadline.check()?;
        }
        let read = self
            .content
            .file
            .read_at(&mut buffer[..wanted], self.content.offset + self.position)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += read as u64;
        self.content.progress.fetch_max(self.position, Ordering::Relaxed);
        Ok(read)
    }
}
