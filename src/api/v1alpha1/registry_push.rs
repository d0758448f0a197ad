//! RegistryPush: get one image to one or more targets; retriable without a rebuild.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::LocalReference;
use crate::{
    agent::{plan::TagPolicy, report::BlobCounters},
    image::Digest,
    record::Failure,
};

/// Get one image, a build's or any in a registry, to one or more targets.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "slipway.dev",
    version = "v1alpha1",
    kind = "RegistryPush",
    plural = "registrypushes",
    shortname = "rpush",
    category = "slipway",
    namespaced,
    status = "RegistryPushStatus",
    derive = "PartialEq",
    doc = "Get one image, a build's or any in a registry, to one or more targets; retriable without a rebuild.",
    printcolumn(name = "Build", type_ = "string", json_path = ".spec.source.buildRef.name"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.targets[0].repository"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Succeeded')].reason"),
    printcolumn(name = "Done", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.digest", priority = "1"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Succeeded')].message", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 63")
        .message("metadata.name may have 63 characters at most, so that it fits into a label")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.targets.all(t, self.targets.exists_one(u, u.repository == t.repository))")
        .message("two targets name the same repository; give one target both lists of tags")
        .field_path(".targets")
)]
pub struct RegistryPushSpec {
    /// What is pushed.
    pub source: PushSourceReference,
    /// Where to; each stands or falls alone.
    #[schemars(length(min = 1, max = 8))]
    pub targets: Vec<PushTargetSpec>,
    /// The platforms of an index that are pushed; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(
            length(max = 64),
            regex(pattern = r"^[a-z0-9_.]+/[a-z0-9_.]+(/[a-z0-9_.]+)?$")
        )
    )]
    pub platforms: Vec<String>,
    /// Stops new attempts.
    #[serde(default)]
    pub suspend: bool,
    /// Ends the push; what is at the targets stays.
    #[serde(default)]
    pub cancel: bool,
}

/// What a push pushes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.buildRef) != has(self.reference)")
        .message("give exactly one of source.buildRef and source.reference"),
    validation = Rule::new("!has(self.credentialsRef) || has(self.reference)")
        .message("credentialsRef belongs to source.reference; a build's image needs none")
)]
pub struct PushSourceReference {
    /// A build of this namespace; the push waits until it is `FullyBuilt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_ref: Option<LocalReference>,
    /// `registry/repository@digest` or `registry/repository:tag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 3, max = 512),
        regex(
            pattern = r"^[A-Za-z0-9.-]+(:[0-9]+)?/[a-z0-9._/-]+((:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})|(@sha(256|512):[0-9a-f]+))$"
        )
    )]
    pub reference: Option<String>,
    /// A Secret of type `kubernetes.io/dockerconfigjson` for `reference`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<LocalReference>,
}

/// One place that an image is pushed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PushTargetSpec {
    /// `host[:port]/repository`, without a tag.
    #[schemars(
        length(min = 3, max = 255),
        regex(pattern = r"^[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)+$")
    )]
    pub repository: String,
    /// Written last, one by one; none pushes by digest only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        inner(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"))
    )]
    pub tags: Vec<String>,
    /// A Secret of type `kubernetes.io/dockerconfigjson`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<LocalReference>,
    /// What happens to a tag that exists.
    #[serde(default)]
    pub tag_policy: TagPolicy,
}

/// What became of a push.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistryPushStatus {
    /// The generation that this status tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Succeeded, Finished, Reconciling, Stalled.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
    /// Targets done of all targets, `1/2`.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub progress: String,
    /// The image's digest, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 256))]
    pub digest: Option<Digest>,
    /// One entry a target, in the specification's order.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["repository".into()]))]
    #[schemars(length(max = 8))]
    pub targets: Vec<TargetStatus>,
    /// Pods made so far, the running one included.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub attempt: i32,
    /// Attempts made before the specification, or a request, last asked for the push.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub attempts_before_request: i32,
    /// Digest of what is pushed where; a change of it begins anew, one of `suspend` does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 256))]
    pub wanted: Option<Digest>,
    /// The pod of the latest attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pod: Option<String>,
    /// When the next attempt begins, when one is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Time>,
    /// Why nothing was pushed, when it concerns every target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// When the first attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the push ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// The value of the request annotation that was last answered with a new attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_handled_request: Option<String>,
}

/// What became of one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    /// `host[:port]/repository`.
    #[schemars(length(max = 255))]
    pub repository: String,
    /// Where it stands.
    pub state: TargetState,
    /// Whether the latest attempt spoke to it without TLS; a policy that changes this ends a wait.
    #[serde(rename = "plainHTTP", default)]
    pub plain_http: bool,
    /// Attempts that ended, well or badly.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub attempts: i32,
    /// The tags that were written and what they pointed to before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub tags: Vec<TagStatus>,
    /// What became of the blobs, over all attempts.
    #[serde(default)]
    pub blobs: BlobCounters,
    /// Why the latest attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// Where one target stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TargetState {
    /// Being pushed, or waiting for the next attempt.
    #[default]
    Pending,
    /// The target serves the image and each tag points to it.
    Pushed,
    /// The latest attempt failed and none follows by itself.
    Failed,
}

/// One tag that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagStatus {
    /// The tag.
    #[schemars(length(max = 128))]
    pub name: String,
    /// What it pointed to before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 256))]
    pub previous: Option<Digest>,
}
