//! The shape of a build record.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::image::{Descriptor, Digest, Platform};
use crate::record::Failure;

/// The version that is written; a reader refuses higher ones.
pub const RECORD_VERSION: u32 = 1;

/// What one attempt to build one platform came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Whose record this is; a controller refuses one that is not its own.
    pub build: BuildIdentity,
    /// Which source was built, as far as it is known.
    pub revision: Option<Revision>,
    /// The image; absent when the build failed.
    pub image: Option<ImageRecord>,
    /// Why there is no image.
    pub failure: Option<Failure>,
    /// The build's log in staging.
    pub log: Option<Descriptor>,
    /// Oddities that were accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What the collection cost.
    pub counters: Counters,
    /// Encoder name, version and level of the layers that were compressed here.
    pub compressor: Option<String>,
    /// When collection ended, RFC 3339.
    pub finished_at: String,
}

/// One attempt to build one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildIdentity {
    /// The build's namespace.
    pub namespace: String,
    /// The build's name.
    pub name: String,
    /// The build's UID.
    pub uid: String,
    /// The platform.
    pub platform: Platform,
    /// Counted from one.
    pub attempt: u32,
}

/// The source that was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// The commit of a Git source, the digest of an artifact or of inline files.
    #[schemars(length(max = 256))]
    pub revision: String,
    /// Seconds since 1970 of the commit; `SOURCE_DATE_EPOCH` of the build where the recipe says none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<i64>,
}

/// An image of one platform in staging.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRecord {
    /// The platform that the image's config names.
    pub platform: Platform,
    /// The manifest.
    pub manifest: Descriptor,
    /// The config.
    pub config: Descriptor,
    /// Base first.
    pub layers: Vec<LayerRecord>,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LayerRecord {
    /// Digest of the uncompressed layer.
    #[serde(rename = "diffID")]
    #[schemars(with = "String", length(max = 256))]
    pub diff_id: Digest,
    /// Digest of the layer as it is stored.
    #[schemars(with = "String", length(max = 256))]
    pub digest: Digest,
    /// Stored size in bytes.
    #[schemars(with = "i64", range(min = 0))]
    pub size: u64,
    /// How the layer is stored.
    #[serde(rename = "mediaType")]
    #[schemars(length(max = 255))]
    pub media_type: String,
    /// The repository that a base layer came from; empty for the build's own.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub source: String,
    /// The stem of the layer's file in Launchpad's layout.
    #[serde(rename = "layerID")]
    #[schemars(length(max = 256))]
    pub layer_id: String,
    /// Why the layer is in staging.
    pub origin: LayerOrigin,
}

/// Why a layer is in staging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum LayerOrigin {
    /// This build stored it.
    New,
    /// It was proven and stored before.
    Known,
    /// It came with a base image and was stored before.
    Base,
    /// It is to be had elsewhere only, where the manifest says.
    Foreign,
}

/// What a collection read, computed and sent, in bytes and in layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Bytes read from the archive.
    #[schemars(with = "i64", range(min = 0))]
    pub bytes_read: u64,
    /// Uncompressed bytes hashed.
    #[schemars(with = "i64", range(min = 0))]
    pub bytes_hashed: u64,
    /// Bytes that compression made.
    #[schemars(with = "i64", range(min = 0))]
    pub bytes_compressed: u64,
    /// Layer bytes sent to staging.
    #[schemars(with = "i64", range(min = 0))]
    pub bytes_uploaded: u64,
    /// Layer bytes that staging had already.
    #[schemars(with = "i64", range(min = 0))]
    pub bytes_reused: u64,
    /// Layers sent to staging.
    #[schemars(with = "i64", range(min = 0))]
    pub layers_uploaded: u64,
    /// Layers that staging had already.
    #[schemars(with = "i64", range(min = 0))]
    pub layers_reused: u64,
}
