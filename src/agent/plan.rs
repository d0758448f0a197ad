//! What the controller asks of an agent: the contract between `controller::*::build` and the pods.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{
    image::{Digest, Platform},
    record::BuildIdentity,
    registry::{Budget, ClientOptions, normal_origin},
};

pub use crate::registry::{PublishPolicy, TagPolicy};

/// The environment variable that holds a plan.
pub const PLAN_VARIABLE: &str = "SLIPWAY_PLAN";

/// What `fetch` brings into the workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchPlan {
    /// Where from.
    pub source: FetchSource,
    /// The folder of the source that is the build's context; must exist, must not leave the tree.
    pub context_dir: String,
    /// The build file, relative to the context; must exist. Absent where the strategy needs none.
    pub build_file: Option<String>,
    /// The folder at which the Secret with the credentials is mounted: `username` and `password`,
    /// `ssh-privatekey` and `known_hosts`, or `.dockerconfigjson`.
    pub credentials_dir: Option<String>,
    /// What the cluster's policies say of registries, for artifacts.
    #[serde(default)]
    pub registries: Registries,
}

/// What the cluster's policies say of registries, by `host[:port]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registries {
    /// Those that may be spoken to without TLS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plain_http: Vec<String>,
    /// Certificates in PEM that are trusted beside the public ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub roots: BTreeMap<String, String>,
    /// The Secrets with the certificates that pushes show to them, each mounted at its [`certificate_folder`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub certificates: BTreeMap<String, String>,
    /// The proxies through which pushes speak to them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub proxies: BTreeMap<String, String>,
    /// What pushes may ask of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, RegistryLimits>,
}

/// Where a pusher finds the certificate and the key for a registry: `tls.crt` and `tls.key`.
pub fn certificate_folder(host: &str) -> String {
    // A path of a mount has no colon.
    format!("/certificates/{}", host.replace(':', "_"))
}

/// What all pushes to a registry together may ask of it.
///
/// Each push that is under way has an equal part, so that no push has to know of the others: the sums hold however
/// many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.requestsPerSecond) || self.requestsPerSecond >= self.pushesAtOnce")
        .message("requestsPerSecond is shared by pushesAtOnce pushes, and each needs at least one"),
    validation = Rule::new("!has(self.bytesPerSecond) || self.bytesPerSecond >= self.pushesAtOnce * 1048576")
        .message("bytesPerSecond is shared by pushesAtOnce pushes, and each needs at least 1048576 (1 MiB)")
)]
pub struct RegistryLimits {
    /// Pushes that go there at once. Others have the reason `Queued`; a place that becomes free goes to the
    /// namespace that has the fewest, and there to the oldest push.
    #[schemars(range(min = 1, max = 1000))]
    pub pushes_at_once: i32,
    /// Requests per second; each push makes its part of them, and after a pause those of one second at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests_per_second: Option<i32>,
    /// Bytes per second of layers that are sent there; each push sends its part of them. Whoever reads an image there
    /// keeps to such a part as well, however many read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_048_576, max = 1_000_000_000_000_i64))]
    pub bytes_per_second: Option<i64>,
}

impl RegistryLimits {
    /// What the API server would refuse, for whoever reads limits from elsewhere.
    pub fn problem(self) -> Option<&'static str> {
        let pushes = i64::from(self.pushes_at_once);
        if !(1..=1000).contains(&pushes) {
            return Some("limits.pushesAtOnce is not from 1 to 1000");
        }
        if self
            .requests_per_second
            .is_some_and(|requests| i64::from(requests) < pushes)
        {
            return Some("limits.requestsPerSecond is less than one for each of pushesAtOnce");
        }
        if self.bytes_per_second.is_some_and(|bytes| bytes < pushes << 20) {
            return Some("limits.bytesPerSecond is less than 1048576 (1 MiB) for each of pushesAtOnce");
        }
        None
    }

    /// What two policies for one registry allow together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let least = |one: Option<i32>, other: Option<i32>| one.into_iter().chain(other).min();
        let bytes = [self.bytes_per_second, other.bytes_per_second];
        Self {
            pushes_at_once: self.pushes_at_once.min(other.pushes_at_once),
            requests_per_second: least(self.requests_per_second, other.requests_per_second),
            bytes_per_second: bytes.into_iter().flatten().min(),
        }
    }

    /// What one push may ask of it.
    pub fn part(self) -> Budget {
        let pushes = f64::from(self.pushes_at_once.max(1));
        // A rate needs no more than the 53 bits that a float has.
        #[expect(clippy::cast_precision_loss)]
        let bytes = self.bytes_per_second.map(|bytes| bytes as f64 / pushes);
        Budget {
            requests_per_second: self
                .requests_per_second
                .map(|requests| f64::from(requests) / pushes),
            bytes_per_second: bytes,
        }
    }
}

impl Registries {
    /// What is said of these origins only: a plan has to fit into a variable, and a pod gets no Secret that it has
    /// no use for.
    #[must_use]
    pub fn of(&self, origins: &[&str]) -> Self {
        let wanted = |host: &str| {
            origins
                .iter()
                .any(|origin| normal_origin(origin) == normal_origin(host))
        };
        Self {
            plain_http: self.plain_http.clone(),
            roots: only(&self.roots, wanted),
            certificates: only(&self.certificates, wanted),
            proxies: only(&self.proxies, wanted),
            limits: only(&self.limits, wanted),
        }
    }

    /// How many pushes go to a registry at once where that is limited, by origin in its one spelling.
    pub fn pushes_at_once(&self) -> BTreeMap<String, usize> {
        let limits = self.limits.iter();
        limits
            .map(|(host, limits)| {
                (
                    normal_origin(host),
                    usize::try_from(limits.pushes_at_once).unwrap_or(1),
                )
            })
            .collect()
    }

    /// A client's options that follow from the policies, but for certificates that are in files.
    pub fn options(&self) -> ClientOptions {
        ClientOptions {
            plain_http: self.plain_http.iter().cloned().collect(),
            extra_roots: self
                .roots
                .iter()
                .map(|(host, pem)| (host.clone(), pem.clone().into_bytes()))
                .collect(),
            proxies: self
                .proxies
                .iter()
                .map(|(host, proxy)| (host.clone(), proxy.clone()))
                .collect(),
            budgets: self
                .limits
                .iter()
                .map(|(host, limits)| (host.clone(), limits.part()))
                .collect(),
            ..ClientOptions::default()
        }
    }
}

fn only<T: Clone>(all: &BTreeMap<String, T>, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, T> {
    let wanted = all.iter().filter(|(host, _)| wanted(host));
    wanted.map(|(host, said)| (host.clone(), said.clone())).collect()
}

/// Where a source comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FetchSource {
    /// A Git repository over https, http or ssh.
    #[serde(rename_all = "camelCase")]
    Git {
        /// The repository's URL, without user information.
        url: String,
        /// A branch, a tag, a full `refs/…` name or a commit; the default branch when absent.
        reference: Option<String>,
        /// Whether submodules are fetched, recursively.
        submodules: bool,
    },
    /// An OCI artifact whose layers are files or tar archives.
    Artifact {
        /// `registry/repository@digest` or `:tag`.
        reference: String,
    },
    /// Files by relative path.
    Inline {
        /// Text by path.
        files: BTreeMap<String, String>,
    },
}

/// Where staging is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StagingTarget {
    /// `host[:port]`.
    pub registry: String,
    /// The repository that this namespace owns.
    pub repository: String,
    /// Whether it is spoken to without TLS.
    pub plain_http: bool,
    /// The token server that it trusts, and that the pod may show its own token to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub realm: Option<String>,
}

/// What `collect` does once the build has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CollectPlan {
    /// Whose image this is.
    pub build: BuildIdentity,
    /// The archive's path below the workspace's output folder, for example `image.tar` or `.`; a folder is
    /// an OCI layout.
    pub archive: String,
    /// Where to.
    pub staging: StagingTarget,
}

/// What `push` does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PushPlan {
    /// What is done with the targets.
    #[serde(default)]
    pub mode: PushMode,
    /// The image, in staging or anywhere.
    pub source: PushSource,
    /// Where to; each stands or falls alone.
    pub targets: Vec<PushTarget>,
    /// What the cluster's policies say of registries.
    #[serde(default)]
    pub registries: Registries,
    /// The platforms of an index that are pushed; all when empty.
    #[serde(default)]
    pub platforms: Vec<Platform>,
}

/// What a pusher does with its targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PushMode {
    /// Brings the image.
    #[default]
    Write,
    /// Lists the requests that would write.
    DryRun,
    /// Asks where the tags point to; reads no source.
    Check,
}

/// The image that is pushed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PushSource {
    /// `host[:port]`.
    pub registry: String,
    /// The repository.
    pub repository: String,
    /// A digest, or a tag that is resolved once at the start.
    pub reference: String,
    /// What the reference must resolve to, when that is known.
    pub digest: Option<Digest>,
    /// The folder at which a Secret with `.dockerconfigjson` for the source is mounted.
    pub credentials_dir: Option<String>,
    /// The token server of staging, where the image is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub realm: Option<String>,
}

/// One place that an image is pushed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PushTarget {
    /// `host[:port]/repository`.
    pub repository: String,
    /// Written last, one by one.
    pub tags: Vec<String>,
    /// The folder at which the Secret with `.dockerconfigjson` is mounted.
    pub credentials_dir: Option<String>,
    /// What happens to a tag that points elsewhere.
    #[serde(default)]
    pub tag_policy: TagPolicy,
    /// What happens to the platforms that a tag has already.
    #[serde(default)]
    pub publish: PublishPolicy,
}
