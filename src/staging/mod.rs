//! The staging registry: what it has already, and what a build leaves in it.
//!
//! One repository a namespace. It holds the images of its builds, pinned by a tag each, the records of all
//! attempts, and a small index of known layers. Which of them may be deleted is decided elsewhere.

mod artifact;
mod known;
#[cfg(test)]
pub(crate) mod memory;
mod pending;
mod receipt;
mod record;
mod repository;
mod store;

pub use known::{KnownLayer, KnownLayers};
pub use pending::Pending;
pub use receipt::{receipt_tags, store_receipt};
pub use record::{Attachments, fetch_record, image_tag, record_tag, store_record};
pub use store::{StagingError, Store, StoredManifest, Upload, put_blob, send_blob};
