//! BuildStrategy and ClusterBuildStrategy: how a builder pod builds.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::LocalReference;

/// How a builder pod builds: image, command, and the archive that it leaves behind.
///
/// The command's arguments may hold `$(context)`, `$(buildFile)`, `$(output)`, `$(archive)`, `$(platform)`,
/// `$(os)`, `$(arch)`, `$(imageName)`; an argument that is `$(buildArgs)` becomes one copy of `buildArg`
/// for each build argument. The same values are in the environment, as `SLIPWAY_CONTEXT` and so on, for
/// commands that are scripts.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "slipway.dev",
    version = "v1alpha1",
    kind = "ClusterBuildStrategy",
    plural = "clusterbuildstrategies",
    shortname = "cbstrat",
    category = "slipway",
    derive = "PartialEq",
    doc = "How a builder pod builds, for every namespace.",
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image"),
    printcolumn(name = "UserNamespace", type_ = "string", json_path = ".spec.userNamespace"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct BuildStrategySpec {
    /// The builder's image.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// A Secret of type `kubernetes.io/dockerconfigjson` with which the node pulls that image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_secret_ref: Option<LocalReference>,
    /// The command, with its arguments.
    #[schemars(length(min = 1, max = 128), inner(length(max = 16384)))]
    pub command: Vec<String>,
    /// The arguments that one build argument becomes; `$(key)` and `$(value)` are filled in.
    #[serde(default = "build_arg")]
    #[schemars(length(max = 8), inner(length(max = 256)))]
    pub build_arg: Vec<String>,
    /// The archive's path below the output folder; a folder is an OCI layout.
    #[serde(default = "image_tar")]
    #[schemars(
        length(min = 1, max = 255),
        regex(pattern = r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$")
    )]
    #[x_kube(validation = Rule::new("!self.split('/').exists(p, p == '..')").message("the archive's path would escape the output folder"))]
    pub archive: String,
    /// Whether the recipe's build file must exist.
    #[serde(default = "yes")]
    pub needs_build_file: bool,
    /// More of the environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub env: Vec<StrategyVariable>,
    /// Empty folders of the container's own, on the node's disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub volumes: Vec<StrategyVolume>,
    /// Whether the pod runs in a user namespace, where root in the container is nobody on the node.
    #[serde(default)]
    pub user_namespace: UserNamespaceNeed,
    /// What the build container may do.
    #[serde(default)]
    pub security: StrategySecurity,
}

/// How a builder pod builds, for one namespace.
///
/// The specification is [`BuildStrategySpec`]'s.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "slipway.dev",
    version = "v1alpha1",
    kind = "BuildStrategy",
    plural = "buildstrategies",
    shortname = "bstrat",
    category = "slipway",
    namespaced,
    derive = "PartialEq",
    doc = "How a builder pod builds, for one namespace.",
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image"),
    printcolumn(name = "UserNamespace", type_ = "string", json_path = ".spec.userNamespace"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(transparent)]
pub struct NamespacedBuildStrategySpec(pub BuildStrategySpec);

fn build_arg() -> Vec<String> {
    vec!["--build-arg".into(), "$(key)=$(value)".into()]
}

fn image_tar() -> String {
    "image.tar".into()
}

fn yes() -> bool {
    true
}

/// A variable of a strategy's environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StrategyVariable {
    /// The name.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    #[x_kube(validation = Rule::new("!self.startsWith('SLIPWAY_') && !(self in ['LD_PRELOAD', 'LD_LIBRARY_PATH', 'LD_AUDIT'])").message("this variable is Slipway's own, or would change the gate in front of the command"))]
    pub name: String,
    /// The value.
    #[schemars(length(max = 4096))]
    pub value: String,
}

/// An empty folder of a strategy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StrategyVolume {
    /// Where it is mounted.
    #[schemars(length(min = 2, max = 255), regex(pattern = r"^/[A-Za-z0-9._/-]+$"))]
    #[x_kube(validation = Rule::new("!self.startsWith('/workspace') && !self.startsWith('/slipway') && !self.contains('//') && !self.split('/').exists(p, p == '..' || p == '.')").message("choose a folder outside of /workspace and /slipway"))]
    pub mount_path: String,
}

/// Whether a strategy's pods run in a user namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UserNamespaceNeed {
    /// Without one the build fails with `UserNamespacesMissing`.
    Required,
    /// Used where a node offers it.
    #[default]
    Preferred,
    /// Never used.
    Unwanted,
}

/// What a build container may do; more than nothing is meant for user namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.localhostProfile) || self.seccomp == 'Localhost'")
        .message("localhostProfile is read with seccomp: Localhost only")
)]
pub struct StrategySecurity {
    /// The user that the command runs as; the image's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub run_as_user: Option<i64>,
    /// Capabilities beside none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(length(max = 32), regex(pattern = r"^[A-Z_]+$")))]
    #[x_kube(validation = Rule::new("self.all(c, c in ['AUDIT_WRITE', 'CHOWN', 'DAC_OVERRIDE', 'FOWNER', 'FSETID', 'KILL', 'MKNOD', 'NET_BIND_SERVICE', 'NET_RAW', 'SETFCAP', 'SETGID', 'SETPCAP', 'SETUID', 'SYS_ADMIN', 'SYS_CHROOT'])").message("a capability beyond what containers have by default and SYS_ADMIN, which needs a user namespace"))]
    pub capabilities: Vec<String>,
    /// The seccomp profile.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// The profile's file on the node, with `seccomp: Localhost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub localhost_profile: Option<String>,
    /// Whether `/proc` is shown whole, which nested containers need; user namespaces only.
    #[serde(default)]
    pub unmasked_proc: bool,
    /// Whether set-user-ID programs work, which rootless builders need.
    #[serde(default)]
    pub allow_privilege_escalation: bool,
}

/// The seccomp profile of a build container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Seccomp {
    /// The container runtime's.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A file of the node's.
    Localhost,
}
