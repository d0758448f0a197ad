//! The two rooms that read strangers' bytes, compiled by themselves: to instrument the whole package, with its
//! clients of clusters and registries, takes minutes and finds nothing more.

#[path = "../../src/image/mod.rs"]
pub mod image;
#[path = "../../src/record/build_record.rs"]
mod build_record;
#[path = "../../src/record/failure.rs"]
mod failure;

/// The room without its receipts, which tell of registries.
pub mod record {
    pub use crate::{build_record::*, failure::*};
}
