//! OCIRecipeBuild: one run of a recipe, one pod per platform and attempt, one image or index out.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BuildStrategySpec, LocalReference, OCIRecipeSpec, PushRule, StrategyReference};
use crate::{
    agent::report::OwnError,
    image::{Digest, Platform},
    record::{Counters, Failure, LayerRecord, Revision},
};

/// One run of a recipe.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "slipway.dev",
    version = "v1alpha1",
    kind = "OCIRecipeBuild",
    plural = "ocirecipebuilds",
    shortname = "ocib",
    category = "slipway",
    namespaced,
    status = "OCIRecipeBuildStatus",
    derive = "PartialEq",
    doc = "One run of a recipe: one builder pod per platform and attempt, one image or index out.",
    printcolumn(name = "Recipe", type_ = "string", json_path = ".spec.recipeRef.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Succeeded')].reason"),
    printcolumn(name = "Platforms", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "Upload", type_ = "string", json_path = ".status.registryUploadStatus"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.image.digest", priority = "1"),
    printcolumn(name = "Commit", type_ = "string", json_path = ".status.revision.revision", priority = "1"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.failure.message", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 63")
        .message("metadata.name may have 63 characters at most, so that it fits into a label")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.recipeRef) || has(self.recipe)")
        .message("give recipeRef, the name of a recipe, or recipe, a whole one inline"),
    validation = Rule::new("!(has(self.recipeRef) && has(self.recipe))")
        .message("give recipeRef or recipe, not both"),
    validation = Rule::new("has(self.recipeRef) == has(oldSelf.recipeRef) && has(self.recipe) == has(oldSelf.recipe)")
        .message("what a build builds cannot change; make another build"),
    validation = Rule::new("!oldSelf.cancel || self.cancel")
        .message("a cancelled build stays cancelled; make another build")
        .field_path(".cancel")
)]
pub struct OCIRecipeBuildSpec {
    /// The recipe of this namespace that is built, as it is when the build begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("what a build builds cannot change; make another build"))]
    pub recipe_ref: Option<LocalReference>,
    /// A recipe of this build's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("what a build builds cannot change; make another build"))]
    pub recipe: Option<Box<OCIRecipeSpec>>,
    /// Ends the build; its pods are deleted.
    #[serde(default)]
    pub cancel: bool,
}

/// Where a build stands; the names are Launchpad's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum BuildPhase {
    /// Waiting for what it needs.
    #[default]
    NeedsBuilding,
    /// Pods are made or run.
    Building,
    /// An image was collected and its record is read.
    Gathering,
    /// The index is being written.
    Uploading,
    /// Staging serves the image and every blob.
    FullyBuilt,
    /// A platform could not be built.
    FailedToBuild,
    /// A recipe, strategy or Secret does not exist yet.
    DependencyWait,
    /// The image could not be stored.
    FailedToUpload,
    /// Pods are being deleted.
    Cancelling,
    /// Ended by `spec.cancel`.
    Cancelled,
    /// A newer build took its place.
    Superseded,
}

impl BuildPhase {
    /// Whether nothing more happens unless somebody asks.
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::FullyBuilt
                | Self::FailedToBuild
                | Self::FailedToUpload
                | Self::Cancelled
                | Self::Superseded
        )
    }

    /// The phase as a condition's reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NeedsBuilding => "NeedsBuilding",
            Self::Building => "Building",
            Self::Gathering => "Gathering",
            Self::Uploading => "Uploading",
            Self::FullyBuilt => "FullyBuilt",
            Self::FailedToBuild => "FailedToBuild",
            Self::DependencyWait => "DependencyWait",
            Self::FailedToUpload => "FailedToUpload",
            Self::Cancelling => "Cancelling",
            Self::Cancelled => "Cancelled",
            Self::Superseded => "Superseded",
        }
    }
}

/// What all pushes of a build came to; the names, and which of them sums up which, are Launchpad's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RegistryUploadStatus {
    /// There is no push rule, or every push is suspended.
    #[default]
    Unscheduled,
    /// No target serves the image yet, and some push goes on or waits for its next attempt.
    Pending,
    /// Every target serves the image.
    Uploaded,
    /// Some target does not serve the image and nothing more happens there by itself.
    FailedToUpload,
    /// A newer build has the tags of every target.
    Superseded,
    /// Some targets serve the image already, the others do not yet.
    Partial,
}

/// What became of a build.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct OCIRecipeBuildStatus {
    /// The generation that this status tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the build stands.
    #[serde(default)]
    pub phase: BuildPhase,
    /// Platforms done of platforms asked for, `1/2`.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub progress: String,
    /// Ready, Succeeded, Finished, Reconciling, Stalled.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
    /// Everything that decides the result, as it was when the build began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<BuildInputs>,
    /// The source that was built, once it was fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    /// One entry a platform.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["platform".into()]))]
    #[schemars(length(max = 16))]
    pub platforms: Vec<PlatformStatus>,
    /// The image or index, once all platforms are built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<BuiltImage>,
    /// What all pushes came to.
    #[serde(default)]
    pub registry_upload_status: RegistryUploadStatus,
    /// Why targets failed, joined by " / ".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub registry_upload_error_summary: Option<String>,
    /// The registries' own errors, one entry for every target that failed, in the rules' order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub registry_upload_errors: Vec<UploadErrors>,
    /// Rules that the recipe got after this build began, and that an upload request had pushed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub added_push_rules: Vec<PushRule>,
    /// The upload request that was last answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_handled_upload_request: Option<String>,
    /// Why that was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_refusal: Option<Failure>,
    /// The pushes that this build made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 253)))]
    pub pushes: Vec<String>,
    /// Why the build failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// When the first pod was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the build ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// The value of the request annotation that was last answered with new attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_handled_request: Option<String>,
}

/// What one target's registry said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UploadErrors {
    /// The push.
    #[schemars(length(max = 253))]
    pub push: String,
    /// `host[:port]/repository`.
    #[schemars(length(max = 255))]
    pub repository: String,
    /// Its own errors; none where it did not answer with any.
    #[schemars(length(max = 8))]
    pub errors: Vec<OwnError>,
}

impl OCIRecipeBuildStatus {
    /// Its push rules: those of its snapshot, then those that were added.
    pub fn push_rules(&self) -> impl Iterator<Item = &PushRule> {
        let own = self.inputs.iter().flat_map(|inputs| &inputs.recipe.push_rules);
        own.chain(&self.added_push_rules)
    }
}

/// Everything that decides a build's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildInputs {
    /// The generation of the recipe, when it is an object of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe_generation: Option<i64>,
    /// sha256 of the recipe's specification in JSON.
    #[schemars(with = "String", length(max = 256))]
    pub recipe_digest: Digest,
    /// The recipe's specification.
    #[schemars(schema_with = "any_object")]
    pub recipe: Box<OCIRecipeSpec>,
    /// The strategy that was resolved.
    pub strategy_ref: StrategyReference,
    /// The strategy's specification.
    #[schemars(schema_with = "any_object")]
    pub strategy: Box<BuildStrategySpec>,
    /// Whether the pods run in a user namespace, and why not where they do not.
    pub user_namespace: UserNamespaceUse,
}

/// Whether a build's pods run in a user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum UserNamespaceUse {
    /// They do.
    Used,
    /// The strategy does not want one.
    NotWanted,
    /// No node offers one; root in the build container is root of the node's kernel.
    NoNodeOffersIt,
    /// Switched off for the whole operator.
    SwitchedOff,
}

/// A snapshot was validated when it was a specification; a second copy of its schema helps nobody.
fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// What became of one platform of a build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlatformStatus {
    /// `os/architecture[/variant]`.
    #[schemars(with = "String", length(max = 100))]
    pub platform: Platform,
    /// Where it stands.
    pub state: PlatformState,
    /// Attempts begun, this one included.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub attempt: i32,
    /// Attempts that the cluster, not the build, made fail since the last request.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub infrastructure_failures: i32,
    /// The pod of the latest attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pod: Option<String>,
    /// The image's manifest in staging.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 256))]
    pub manifest: Option<Digest>,
    /// Size of the manifest in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i64>", range(min = 0))]
    pub manifest_size: Option<u64>,
    /// Media type of the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub manifest_media_type: Option<String>,
    /// The image's config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 256))]
    pub config: Option<Digest>,
    /// The layers, base first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub layers: Vec<LayerRecord>,
    /// What the collection cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
    /// The record's manifest in staging.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 256))]
    pub record: Option<Digest>,
    /// Why the latest attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// When the latest attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
}

/// Where one platform stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PlatformState {
    /// No attempt has begun.
    #[default]
    Pending,
    /// A pod is asked for or runs.
    Building,
    /// The image is in staging.
    Built,
    /// The latest attempt failed and none follows by itself.
    Failed,
    /// Ended by `spec.cancel`.
    Cancelled,
}

/// The image that a build made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuiltImage {
    /// `registry/repository@digest` in staging.
    #[schemars(length(max = 512))]
    pub reference: String,
    /// Digest of the manifest, or of the index over several platforms.
    #[schemars(with = "String", length(max = 256))]
    pub digest: Digest,
    /// Its media type.
    #[schemars(length(max = 255))]
    pub media_type: String,
    /// Bytes of all distinct layers.
    #[schemars(with = "i64", range(min = 0))]
    pub layer_bytes: u64,
}
