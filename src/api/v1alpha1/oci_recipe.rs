//! OCIRecipe: what to build, for which platforms, when, and where to push.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    LocalReference, NodeSelector, PodToleration, Resources, Risk,
    registry_push::{MOVES_ONCE, MOVES_ONCE_MESSAGE, TAG_VARIABLES, TAG_VARIABLES_MESSAGE},
    text_map,
};
use crate::agent::plan::{PublishPolicy, TagPolicy};

/// What to build, for which platforms, when, and where to push.
///
/// Source: Launchpad's OCIRecipe; defaults are Launchpad's where it has any.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "slipway.dev",
    version = "v1alpha1",
    kind = "OCIRecipe",
    plural = "ocirecipes",
    shortname = "ocir",
    category = "slipway",
    namespaced,
    status = "OCIRecipeStatus",
    derive = "PartialEq",
    doc = "What to build, for which platforms, when, and where to push.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Latest", type_ = "string", json_path = ".status.latestBuild.name"),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.latestImage.digest", priority = "1"),
    printcolumn(name = "Strategy", type_ = "string", json_path = ".spec.strategyRef.name", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 52")
        .message("metadata.name may have 52 characters at most, so that the names of its builds and pods still fit")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.source.inline) && self.contextDir != '.' && !self.source.inline.files.exists(f, f.startsWith(self.contextDir + '/')))")
        .message("contextDir names a folder in which no inline file lies")
        .field_path(".contextDir"),
    validation = Rule::new("!has(self.pushRules) || self.pushRules.all(r, self.pushRules.exists_one(s, s.repository == r.repository))")
        .message("two push rules name the same repository; give one rule both lists of tags")
        .field_path(".pushRules")
)]
pub struct OCIRecipeSpec {
    /// Where the source comes from: exactly one of `git`, `artifact` and `inline`.
    pub source: RecipeSource,
    /// The folder of the source that is the build's context.
    #[serde(default = "here")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('/') && !self.split('/').exists(p, p == '..')")
            .message("Path would escape target directory: write a relative path without '..'")
    )]
    pub context_dir: String,
    /// The build file, relative to the context.
    #[serde(default = "containerfile")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('/') && !self.split('/').exists(p, p == '..')")
            .message("Path would escape target directory: write a relative path without '..'")
    )]
    pub build_file: String,
    /// Build arguments; values reach the builder unchanged.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "text_map::<64, 4096>")]
    #[x_kube(
        validation = Rule::new("self.all(k, k.matches('^[A-Za-z_][A-Za-z0-9_.-]{0,127}$'))")
            .message("a build argument's name begins with a letter or '_' and has letters, digits, '_', '.' and '-' only")
    )]
    pub build_args: BTreeMap<String, String>,
    /// `os/architecture[/variant]`; one pod each.
    #[serde(default = "amd64")]
    #[schemars(
        length(min = 1, max = 16),
        inner(length(max = 64), regex(pattern = r"^[a-z0-9_.]+/[a-z0-9_.]+(/[a-z0-9_.]+)?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub platforms: Vec<String>,
    /// Whether a platform may be built on nodes of another architecture.
    #[serde(default)]
    pub emulation: Emulation,
    /// How the image is built.
    pub strategy_ref: StrategyReference,
    /// The image's name; the recipe's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 255),
        regex(pattern = r"^[a-z0-9]+([._/-]+[a-z0-9]+)*$")
    )]
    pub image_name: Option<String>,
    /// Where to push once every platform is built; one RegistryPush each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub push_rules: Vec<PushRule>,
    /// When the recipe is built by itself.
    #[serde(default)]
    pub trigger: Trigger,
    /// Stops new builds; those that run go on.
    #[serde(default)]
    pub suspend: bool,
    /// How long one platform's pod may run, in seconds.
    #[serde(default = "one_hour")]
    #[schemars(range(min = 10, max = 86400))]
    pub timeout_seconds: i64,
    /// `SOURCE_DATE_EPOCH` of the build, in seconds since 1970; the commit's time when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 253_402_300_799_i64))]
    pub source_date_epoch: Option<i64>,
    /// What the build container may use.
    #[serde(default)]
    pub resources: Resources,
    /// Labels that the pods' nodes must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "text_map::<16, 63>")]
    #[x_kube(validation = Rule::new("!self.exists(k, k.startsWith('node-role.kubernetes.io/'))").message("builds run on worker nodes; leave node-role.kubernetes.io out"))]
    pub node_selector: NodeSelector,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<PodToleration>,
}

fn here() -> String {
    ".".into()
}

fn containerfile() -> String {
    "Containerfile".into()
}

fn amd64() -> Vec<String> {
    vec!["linux/amd64".into()]
}

fn one_hour() -> i64 {
    3600
}

/// Where a recipe's source comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.git) ? 1 : 0) + (has(self.artifact) ? 1 : 0) + (has(self.inline) ? 1 : 0) == 1")
        .message("give exactly one of source.git, source.artifact and source.inline")
)]
pub struct RecipeSource {
    /// A Git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSource>,
    /// An OCI artifact whose layers are files or tar archives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<ArtifactSource>,
    /// A few small files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<InlineSource>,
}

/// A Git repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GitSource {
    /// `https://`, `http://`, `ssh://` or `user@host:path`.
    #[schemars(
        length(min = 8, max = 2048),
        regex(
            pattern = r"^(https?://[^\s]+|ssh://[^\s]+|[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9.-]+:[^\s]+)$"
        )
    )]
    #[x_kube(
        validation = Rule::new("!self.matches('^https?://[^/]*@')")
            .message("the URL carries user information; put it into a Secret and name that in credentialsRef")
    )]
    pub url: String,
    /// A branch, a tag, a full `refs/…` name or a commit; the default branch when absent.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 255),
        regex(pattern = r"^[^-\s~^:?*\[\\][^\s~^:?*\[\\]*$")
    )]
    pub reference: Option<String>,
    /// A Secret of type `kubernetes.io/basic-auth` or `kubernetes.io/ssh-auth` (with `known_hosts`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<LocalReference>,
    /// Whether submodules are fetched, recursively.
    #[serde(default)]
    pub submodules: bool,
}

/// An OCI artifact as source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactSource {
    /// `registry/repository@digest` or `registry/repository:tag`.
    #[schemars(
        length(min = 3, max = 512),
        regex(
            pattern = r"^[A-Za-z0-9.-]+(:[0-9]+)?/[a-z0-9._/-]+((:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})|(@sha(256|512):[0-9a-f]+))$"
        )
    )]
    pub reference: String,
    /// A Secret of type `kubernetes.io/dockerconfigjson`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<LocalReference>,
}

/// Files in the recipe itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct InlineSource {
    /// Text by relative path; 48 KiB in all.
    #[schemars(schema_with = "text_map::<32, 49152>")]
    #[x_kube(
        validation = Rule::new("self.all(k, size(k) <= 255 && !k.startsWith('/') && !k.split('/').exists(p, p == '..' || p == ''))")
            .message("Path would escape target directory: inline files have relative paths without '..'"),
        validation = Rule::new("self.map(k, size(self[k])).sum() <= 49152")
            .message("inline files may have 48 KiB in all; put larger sources into Git or an artifact")
    )]
    pub files: BTreeMap<String, String>,
}

/// The strategy that builds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StrategyReference {
    /// The kind of strategy.
    #[serde(default)]
    pub kind: StrategyKind,
    /// The strategy's name.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// The two kinds of strategy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum StrategyKind {
    /// Of the recipe's namespace.
    BuildStrategy,
    /// For every namespace.
    #[default]
    ClusterBuildStrategy,
}

/// Whether a platform may be built on nodes of another architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Emulation {
    /// The pod runs on any node; commands of the image's own need the node's emulator.
    Allowed,
    /// The pod waits for a node of its platform.
    #[default]
    Denied,
}

/// When a recipe is built by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Trigger {
    /// When it is created and whenever its specification changes.
    #[default]
    OnChange,
    /// Only when somebody asks.
    Manual,
}

/// One place that the image is pushed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(MOVES_ONCE).message(MOVES_ONCE_MESSAGE))]
pub struct PushRule {
    /// `host[:port]/repository`, without a tag.
    #[schemars(
        length(min = 3, max = 255),
        regex(pattern = r"^[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)+$")
    )]
    pub repository: String,
    /// Tags; `{ref}`, `{commit}`, `{shortCommit}`, `{recipe}`, `{build}`, `{date}`, `{platform}` and `{risk}` are
    /// filled in. When empty, as in Launchpad: `{ref}_{risk}` for a ref like `v1.0-24.04`, else `{risk}`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        inner(
            length(min = 1, max = 128),
            regex(pattern = r"^[A-Za-z0-9_{][A-Za-z0-9_.{}-]*$")
        )
    )]
    #[x_kube(validation = Rule::new(TAG_VARIABLES).message(TAG_VARIABLES_MESSAGE))]
    pub tags: Vec<String>,
    /// What `{risk}` stands for.
    #[serde(default)]
    pub risk: Risk,
    /// A Secret of type `kubernetes.io/dockerconfigjson`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<LocalReference>,
    /// What happens to a tag that exists.
    #[serde(default)]
    pub tag_policy: TagPolicy,
    /// What happens to the platforms that a tag has already.
    #[serde(default)]
    pub publish: PublishPolicy,
    /// How often, in seconds, the tags are looked at once they are pushed; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 2_592_000))]
    pub check_every_seconds: Option<i64>,
}

/// What became of a recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct OCIRecipeStatus {
    /// The generation that this status tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready (the latest build is `FullyBuilt`), Reconciling, Stalled.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
    /// How many builds this recipe has made by itself; the next one's number is one more.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub build_number: i64,
    /// The generation that the latest build was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built_generation: Option<i64>,
    /// The value of the request annotation that was last answered with a build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_handled_request: Option<String>,
    /// The latest build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_build: Option<LatestBuild>,
    /// The latest image that was built whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_image: Option<LatestImage>,
}

/// The latest build of a recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatestBuild {
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<super::BuildPhase>,
}

/// The latest whole image of a recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatestImage {
    /// The build that made it.
    #[schemars(length(max = 253))]
    pub build: String,
    /// Digest of the manifest or index.
    #[schemars(length(max = 256))]
    pub digest: String,
}
