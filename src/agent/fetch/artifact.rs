//! An OCI artifact as a source.
//!
//! What becomes of its layers is in [`super::layer`]. Reading them from a registry does not live here yet.

use std::path::Path;

use crate::record::{Failure, Reason, Revision};

/// Brings the artifact's files into the folder `source`.
///
/// # Errors
/// Always, so far.
#[expect(clippy::unused_async, reason = "reading from a registry will wait")]
pub async fn fetch(
    reference: &str,
    _credentials_dir: Option<&Path>,
    _plain_http: &[String],
    _source: &Path,
) -> Result<Revision, Failure> {
    Err(Failure::new(
        Reason::SpecInvalid,
        format!("{reference}: this version reads no source from an artifact; use spec.source.git or inline"),
    ))
}
