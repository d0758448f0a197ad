//! To be filled.

use std::path::Path;

use crate::record::{Failure, Reason, Revision};

pub async fn fetch(
    _reference: &str,
    _credentials_dir: Option<&Path>,
    _plain_http: &[String],
    _source: &Path,
) -> Result<Revision, Failure> {
    Err(Failure::new(
        Reason::ArtifactNotFound,
        "artifacts are not fetched yet",
    ))
}
