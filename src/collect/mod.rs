//! From an image archive to proven layers in staging or in a folder.
//!
//! ```text
//! for each layer, by its diff ID:
//!     known, and the store has it   → reuse, read nothing (or prove it, where that is asked for)
//!     compressed                    → prove, store as it is
//!     plain                         → prove, compress once, store
//!     each stored layer is kept by a tag at once
//! → config → manifest, kept by a tag → known layers
//! ```
//!
//! Only what was hashed on its way to the store counts, and no layer is kept in memory. Where the archive
//! comes from, and who is told of the result, is decided elsewhere: in a pod by `agent::collect`, on a command
//! line by `cli::collect`.

mod error;
mod folder;
mod image;
mod layer;
mod patience;
#[cfg(test)]
mod tests;

pub use error::{CollectError, visible};
pub use folder::Folder;
pub use image::{Collected, Collection, Tags};
pub use patience::Patience;

use std::{
    num::NonZero,
    sync::{Arc, atomic::AtomicU64},
};

use crate::{
    image::{Digest, compress::Method},
    record::LayerRecord,
};

/// How a collection is done.
#[derive(Clone)]
pub struct Options {
    /// How plain layers are stored.
    pub method: Method,
    /// Threads that compress. The result does not depend on it.
    pub threads: usize,
    /// Read and prove known layers all the same.
    pub verify_known: bool,
    /// Who is told how it goes.
    pub observer: Observer,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            method: Method::default(),
            threads: std::thread::available_parallelism().map_or(1, NonZero::get),
            verify_known: false,
            observer: Arc::new(|_| ()),
        }
    }
}

/// Is told how a collection goes.
pub type Observer = Arc<dyn Fn(Event<'_>) + Send + Sync>;

/// What an [`Observer`] is told.
#[derive(Debug)]
pub enum Event<'a> {
    /// A layer is read.
    Begun {
        /// Which one.
        diff_id: &'a Digest,
        /// How many bytes of the archive it has.
        size: u64,
        /// How many of them were read by now.
        read: Arc<AtomicU64>,
    },
    /// A layer is where it should be.
    Placed {
        /// What is stored, and why.
        layer: &'a LayerRecord,
        /// What it took.
        cost: Cost,
    },
}

/// What storing a layer took, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Read from the archive.
    pub read: u64,
    /// Hashed, uncompressed.
    pub hashed: u64,
    /// Made by compression.
    pub compressed: u64,
    /// Sent to the store.
    pub uploaded: u64,
}

/// Runs what reads and computes away from the threads that wait.
///
/// # Errors
/// [`CollectError::Internal`] when the work panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CollectError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| CollectError::Internal(error.to_string()))
}
