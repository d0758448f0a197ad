//! The staging registry as the controller sees it: small documents only, never a layer.

use std::collections::BTreeSet;

use bytes::Bytes;
use jiff::Timestamp;

use super::{push::after::DueReceipt, staging_tokens::TokenSigner};
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
    tokens: Option<StagingTokens>,
}

/// How a staging registry that asks for tokens gets them.
#[derive(Clone)]
pub struct StagingTokens {
    /// Signs what it believes.
    pub signer: TokenSigner,
    /// Where pods ask for tokens.
    pub realm: String,
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
    pub fn new(settings: StagingSettings, tokens: Option<StagingTokens>) -> Result<Self, RegistryError> {
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
            tokens,
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
            realm: self.tokens.as_ref().map(|tokens| tokens.realm.clone()),
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

    /// Stores a receipt.
    ///
    /// # Errors
    /// When staging refuses or does not answer.
    pub async fn put_receipt(
        &self,
        namespace: &str,
        due: &DueReceipt,
    ) -> Result<Digest, staging::StagingError> {
        let repository = self.repository(namespace);
        staging::store_receipt(&repository, &due.tag, &due.receipt, &due.image_media_type).await
    }

    /// With a token of its own where staging asks for one: signing takes a millisecond and needs nobody.
    fn repository(&self, namespace: &str) -> Repository {
        let (registry, path) = (&self.settings.registry, self.path(namespace));
        let token = self
            .tokens
            .as_ref()
            .and_then(|tokens| tokens.signer.own(&path, Timestamp::now()));
        match token {
            Some(token) => {
                let credentials = Credentials::anonymous().with_access_token(registry, &token);
                self.client
                    .with_credentials(credentials)
                    .repository(registry, &path)
            }
            None => self.client.repository(registry, &path),
        }
    }

    fn path(&self, namespace: &str) -> String {
        format!("{}/{namespace}", self.settings.prefix)
    }
}
