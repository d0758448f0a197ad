//! stub
use crate::image::Digest;
use bytes::Bytes;
use std::collections::BTreeSet;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct RegistryError;
#[derive(Default)]
pub struct ClientOptions {
    pub plain_http: BTreeSet<String>,
    pub x: u8,
}
#[derive(Clone)]
pub struct Client;
pub struct Credentials;
pub struct Repository;
impl Credentials {
    pub fn anonymous() -> Self {
        Self
    }
}
pub struct Reference {
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}
impl std::str::FromStr for Reference {
    type Err = RegistryError;
    fn from_str(_: &str) -> Result<Self, RegistryError> {
        todo!()
    }
}
impl Client {
    pub fn new(_: ClientOptions, _: Credentials) -> Result<Self, RegistryError> {
        todo!()
    }
    pub fn repository(&self, _: &str, _: &str) -> Repository {
        todo!()
    }
}
impl Repository {
    pub async fn head_manifest(&self, _: &str) -> Result<Option<(Digest, u64)>, RegistryError> {
        todo!()
    }
    pub async fn put_manifest(&self, _: &str, _: &str, _: &Bytes) -> Result<Digest, RegistryError> {
        todo!()
    }
}
