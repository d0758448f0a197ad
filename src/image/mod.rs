//! What an image is: digests, descriptors, manifests, layers, and every archive layout that holds them.
//!
//! Knows nothing of Kubernetes and nothing of registries; bytes come in as readers and go out as readers.

pub mod archive;
pub mod compress;
mod descriptor;
mod digest;
pub mod json;
mod known;
pub mod launchpad;
mod platform;
pub mod upload;

pub use descriptor::{Descriptor, DescriptorPlatform, ImageConfig, Index, Manifest, RootFs, media_type};
pub use digest::{Digest, DigestError, Hasher};
pub use known::{Known, KnownError, KnownLayer};
pub use platform::{Platform, PlatformError};
