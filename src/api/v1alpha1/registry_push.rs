//! RegistryPush: get one image to one or more targets; retriable without a rebuild.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::LocalReference;
use crate::{
    agent::{
        plan::{PublishPolicy, TagPolicy},
        report::{BlobCounters, OwnError, ReferrerCounters},
    },
    image::{Digest, Platform},
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
        .field_path(".targets"),
    validation = Rule::new("has(self.source.buildRef) || self.targets.all(t, !has(t.tags) || t.tags.all(tag, tag.matches('^([^{]|[{](date|platform|risk)[}])*$')))")
        .message("source.reference knows no build: its tags may name {date}, {platform} and {risk}, and neither {ref}, {commit}, {shortCommit}, {recipe} nor {build}")
        .field_path(".targets"),
    validation = Rule::new("(has(self.platforms) && size(self.platforms) == 1) || has(self.source.buildRef) || self.targets.all(t, !has(t.tags) || !t.tags.exists(tag, tag.contains('{platform}')))")
        .message("a tag names {platform}; give exactly one in platforms")
        .field_path(".platforms")
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
        ),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub platforms: Vec<String>,
    /// Writes nothing: the requests that would write are listed in the status of each target.
    #[serde(default)]
    pub dry_run: bool,
    /// How often, in seconds, the tags of a push that ended well are looked at; the condition `Drifted` says
    /// whether they still point to what was pushed. Never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 2_592_000))]
    pub check_every_seconds: Option<i64>,
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
    /// A build of this namespace; the push waits until it is `FullyBuilt`, or with `publish: AsReady` until it has a
    /// platform.
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

/// A tag that platforms are added to moves more than once.
pub(super) const MOVES_ONCE: &str = "self.publish != 'AsReady' || self.tagPolicy != 'Immutable'";
/// What is said of others.
pub(super) const MOVES_ONCE_MESSAGE: &str = "publish: AsReady moves a tag with each platform, which tagPolicy: Immutable forbids; choose WhenComplete, or another tagPolicy";
/// Which variables tags may name.
pub(super) const TAG_VARIABLES: &str =
    "self.all(tag, tag.matches('^([^{}]|[{](ref|commit|shortCommit|recipe|build|date|platform|risk)[}])*$'))";
/// What is said of others.
pub(super) const TAG_VARIABLES_MESSAGE: &str = "tags may name {ref}, {commit}, {shortCommit}, {recipe}, {build}, {date}, {platform} and {risk} and no other variable";

/// How much a channel's users risk, in Launchpad's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Risk {
    /// `edge`.
    #[default]
    Edge,
    /// `beta`.
    Beta,
    /// `candidate`.
    Candidate,
    /// `stable`.
    Stable,
}

impl Risk {
    /// The word as it stands in a tag.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Beta => "beta",
            Self::Candidate => "candidate",
            Self::Stable => "stable",
        }
    }
}

/// One place that an image is pushed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(MOVES_ONCE).message(MOVES_ONCE_MESSAGE))]
pub struct PushTargetSpec {
    /// `host[:port]/repository`, without a tag.
    #[schemars(
        length(min = 3, max = 255),
        regex(pattern = r"^[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)+$")
    )]
    pub repository: String,
    /// Written last, one by one. `{ref}`, `{commit}`, `{shortCommit}`, `{recipe}`, `{build}`, `{date}`,
    /// `{platform}` and `{risk}` are filled in. When empty, a build's image gets Launchpad's tag, `{ref}_{risk}`
    /// for a ref like `v1.0-24.04`, else `{risk}`; any other image is pushed by digest only.
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
}

/// What became of a push.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistryPushStatus {
    /// The generation that this status tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Succeeded, Finished, Reconciling, Stalled, Drifted.
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
    /// The signatures, SBOMs and attestations that go with it, as far as they are listed here; each target counts
    /// all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 64), inner(length(max = 256)))]
    pub referrers: Vec<Digest>,
    /// One entry a target, in the specification's order.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["repository".into()]))]
    #[schemars(length(max = 8))]
    pub targets: Vec<TargetStatus>,
    /// Pods made so far, the running one included.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub attempt: i32,
    /// Digest of what is pushed where; a change of it begins anew, one of `suspend` does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 256))]
    pub wanted: Option<Digest>,
    /// The pod of the running attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pod: Option<String>,
    /// The platform that the running attempt is about, where it goes ahead of the whole image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 100))]
    pub portion: Option<Platform>,
    /// When the next attempt begins, the earliest of the targets'.
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
    /// When the tags were last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<Time>,
    /// Why that look told nothing, or not everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_failure: Option<Failure>,
    /// The value of the request annotation that was last answered with a new attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_handled_request: Option<String>,
    /// The upload request of its build that was last answered with a new attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_handled_upload_request: Option<String>,
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
    /// Attempts that ended, well or badly, since the specification or a request last asked for it.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub attempts: i32,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Time>,
    /// Whether it waits for one of the places that its RegistryPolicy's `pushesAtOnce` gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<bool>,
    /// Its tags, once the source is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub tags: Vec<TagStatus>,
    /// What its tags point to; the image's digest, once it is pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 256))]
    pub digest: Option<Digest>,
    /// When it was read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed_at: Option<Time>,
    /// The receipt's manifest in staging, beside the records of the build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 256))]
    pub receipt: Option<Digest>,
    /// With `publish: AsReady`: the platforms that its tags have of an image that is not there as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 16), inner(length(max = 100)))]
    pub published: Vec<Platform>,
    /// What became of the blobs, over all attempts.
    #[serde(default)]
    pub blobs: BlobCounters,
    /// What became of signatures, SBOMs and attestations in the latest attempt.
    #[serde(default)]
    pub referrers: ReferrerCounters,
    /// Of a dry run: the requests that would write, in the order of a push.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512), inner(length(max = 512)))]
    pub requests: Vec<String>,
    /// Of a dry run: how many more requests there are than are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub requests_omitted: i64,
    /// Why the latest attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The same in a line, in Launchpad's words where the registry refused a part of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub error_summary: Option<String>,
    /// The registry's own errors in the latest attempt; none where it did not answer with any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub errors: Vec<OwnError>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Where one target stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TargetState {
    /// Waiting for its turn, or for its next attempt.
    #[default]
    Pending,
    /// The running attempt is about it.
    Pushing,
    /// The target serves the image and each tag points to it.
    Pushed,
    /// A dry run has listed what a push would write.
    Planned,
    /// A newer build of the same recipe has every one of its tags.
    Superseded,
    /// The latest attempt failed and none follows by itself.
    Failed,
}

/// One tag of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagStatus {
    /// The tag.
    #[schemars(length(max = 128))]
    pub name: String,
    /// What it pointed to before this push wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 256))]
    pub previous: Option<Digest>,
    /// Where it pointed to when it was last looked at, if that was elsewhere than it was pushed to; `nothing` when
    /// it was gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub drifted_to: Option<String>,
    /// The newer build that the tag is left to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub superseded_by: Option<String>,
}
