//! Talking to registries: references, credentials, the client, and the copy of an image from one to others.
//!
//! What a registry says is a claim. `Location`, redirects, token realms and `Link` decide nothing about
//! where a credential goes, a HEAD is a hint until a manifest is accepted, and every digest is recomputed.
//!
//! Knows nothing of Kubernetes, of plans and of reports; those are `agent::push`'s.

mod addresses;
mod answer;
mod auth;
mod blob;
mod client;
mod cloud;
mod copy;
mod credentials;
mod docker_config;
mod error;
mod local;
mod manifest;
mod network;
mod pace;
mod reference;
mod referrers;
mod source;
mod token_server;
mod transport;
mod turns;
mod upload;

pub use blob::BlobStream;
pub use client::{Client, ClientOptions, Repository, Timeouts};
pub use cloud::{Environment, Provider, environment, provider_of};
pub use copy::{
    BlobCounters, BlobState, CopyError, Image, Listener, Made, Outcome, Planned, Progress, Proof,
    PublishPolicy, PushOptions, ReferrerCounters, Survey, TagPolicy, Target, approach, for_target,
    push_again, push_all, push_all_with, push_merged, read_image, read_referrers, read_referrers_except,
    survey,
};
pub use credentials::{Credentials, CredentialsError, Secret};
pub use error::{Operation, OwnError, Place, RegistryError};
pub use local::{LocalError, LocalImage};
pub use manifest::RawManifest;
pub use network::check_client_certificate;
pub use pace::{Backoff, Budget};
pub use reference::{Reference, ReferenceError, normal_origin};
pub use referrers::Referrers;
pub use source::{BlobSource, ByteStream, BytesSource, FileSource, ImageSource, RepositoryBlob};
pub use upload::{Mount, PendingUpload, UploadSession, Uploaded};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
