//! The staging registry as the controller sees it: small documents only, never a layer.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{
    agent::plan::StagingTarget,
    image::{Digest, media_type},
    record::BuildRecord,
    registry::{Client, ClientOptions, Credentials, RegistryError, Repository},
    staging,
};

/// Where staging is.
#[derive(Clone, Debug)]
pub struct StagingSettings {
    /// `host[:port]`, as pods reach it.
    pub registry: String,
    /// The first part of every repository.
    pub prefix: String,
    /// Whether it is spoken to without TLS.
    pub plain_http: bool,
}

/// A client of the staging registry.
#[derive(Clone)]
pub struct Staging {
    settings: StagingSettings,
    client: Client,
}

/// Why a record could not be had.
#[derive(Debug)]
pub enum StagingError {
    /// Staging does not answer; it may later.
    Unavailable(String),
    /// It answered, and what it has is wrong.
    Invalid(String),
}

impl Staging {
    /// A client for these settings.
    ///
    /// # Errors
    /// When the TLS roots of this machine cannot be read.
    pub fn new(settings: StagingSettings) -> Result<Self, RegistryError> {
        let plain_http = if settings.plain_http {
            BTreeSet::from([settings.registry.clone()])
        } else {
            BTreeSet::new()
        };
        let options = ClientOptions {
            plain_http,
            ..ClientOptions::default()
        };
        Ok(Self {
            client: Client::new(options, Credentials::anonymous())?,
            settings,
        })
    }

    /// `registry/repository` of a namespace.
    pub fn repository_name(&self, namespace: &str) -> String {
        format!("{}/{}", self.settings.registry, self.path(namespace))
    }

    /// What a pod is told about staging.
    pub fn target(&self, namespace: &str) -> StagingTarget {
        StagingTarget {
            registry: self.settings.registry.clone(),
            repository: self.path(namespace),
            plain_http: self.settings.plain_http,
        }
    }

    /// A record, proven by its digest.
    ///
    /// # Errors
    /// When staging does not answer, or what it has is no record.
    pub async fn record(&self, namespace: &str, digest: &Digest) -> Result<BuildRecord, StagingError> {
        staging::fetch_record(&self.repository(namespace), digest)
            .await
            .map_err(|error| match error {
                staging::StagingError::Invalid { .. } => StagingError::Invalid(error.to_string()),
                error => StagingError::Unavailable(error.to_string()),
            })
    }

    /// Whether staging serves a manifest.
    ///
    /// # Errors
    /// When staging does not answer.
    pub async fn serves(&self, namespace: &str, digest: &Digest) -> Result<bool, RegistryError> {
        let found = self.repository(namespace).head_manifest(digest.as_str()).await?;
        Ok(found.is_some())
    }

    /// Writes an index under a tag that keeps it from being collected as garbage.
    ///
    /// One request, which makes it known by its digest too: were there two, a process that dies in between
    /// would leave an index that is there and that nothing keeps.
    ///
    /// # Errors
    /// When staging refuses or does not answer.
    pub async fn put_index(&self, namespace: &str, tag: &str, bytes: Vec<u8>) -> Result<(), RegistryError> {
        self.repository(namespace)
            .put_manifest(tag, media_type::OCI_INDEX, &Bytes::from(bytes))
            .await?;
        Ok(())
    }

    fn repository(&self, namespace: &str) -> Repository {
        self.client
            .repository(&self.settings.registry, &self.path(namespace))
    }

    fn path(&self, namespace: &str) -> String {
        format!("{}/{namespace}", self.settings.prefix)
    }
}
