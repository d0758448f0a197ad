//! The record of a build: everything needed to understand it after its pod, its object and its namespace
//! are gone. It exists for failed builds too.
//!
//! Kept as an OCI artifact in staging (media type [`crate::image::media_type::SLIPWAY_RECORD`]). Signing and
//! provenance do not live here yet.

mod build_record;
mod failure;
mod receipt;

pub use build_record::{
    BuildIdentity, BuildRecord, Counters, ImageRecord, LayerOrigin, LayerRecord, RECORD_VERSION, Revision,
};
pub use failure::{Failure, FailureClass, Reason};
pub use receipt::{Party, RECEIPT_VERSION, Receipt, ReceiptTag};
