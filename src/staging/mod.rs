//! stub
use crate::{image::Digest, record::BuildRecord, registry::*};
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub enum RecordError {
    Registry(RegistryError),
    Invalid,
}
pub async fn fetch_record(_: &Repository, _: &Digest) -> Result<BuildRecord, RecordError> {
    todo!()
}
