//! The parts that build pods and push pods share.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, EmptyDirVolumeSource, EnvVar, PodSpec, ProjectedVolumeSource,
        ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext,
        ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::OwnerReference},
};
use kube::{Resource, ResourceExt, api::ObjectMeta};
use serde::Serialize;

use crate::{
    agent::{
        identity::{self, OPERATOR_VARIABLE},
        plan::{PLAN_VARIABLE, Registries, certificate_folder},
    },
    api::{MANAGED_BY, MANAGED_BY_LABEL, v1alpha1::LocalReference},
};

/// The user of Slipway's own image.
pub const AGENT_USER: i64 = 65532;

/// Agents take turns with the build, so what they ask for comes on top of what is used.
const AGENT_REQUESTS: &[(&str, &str)] = &[("cpu", "10m"), ("memory", "32Mi")];

/// The volume with the token of Slipway's own containers.
const IDENTITY: &str = "identity";

/// The kubelet asks for a token before the deadline begins to run; ten minutes are the API server's minimum too.
const TOKEN_SPARE: i64 = 600;

/// What every container of Slipway's own runs with: Pod Security "restricted" and a read-only root.
pub fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".into()]),
            add: None,
        }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        run_as_user: Some(AGENT_USER),
        run_as_group: Some(AGENT_USER),
        seccomp_profile: Some(seccomp("RuntimeDefault", None)),
        ..SecurityContext::default()
    }
}

/// A seccomp profile.
pub fn seccomp(kind: &str, file: Option<&str>) -> SeccompProfile {
    SeccompProfile {
        type_: kind.to_owned(),
        localhost_profile: file.map(ToOwned::to_owned),
    }
}

/// What the containers of Slipway's own image run with.
#[derive(Clone, Debug)]
pub struct AgentRuntime {
    /// The image.
    pub image: String,
    /// Where they report to.
    pub operator_url: Option<String>,
}

/// A container of Slipway's own image that runs one agent on one plan, with the volume that is its `/tmp` and
/// the memory that a hostile server or archive may make it use.
pub fn agent(
    name: &str,
    tmp: &str,
    memory: &str,
    runtime: &AgentRuntime,
    arguments: &[&str],
    plan: &impl Serialize,
    mounts: Vec<VolumeMount>,
) -> Container {
    let mut mounts = mounts;
    mounts.push(mount(tmp, "/tmp", false));
    let mut env = vec![variable(
        PLAN_VARIABLE,
        escaped(&serde_json::to_string(plan).unwrap_or_default()),
    )];
    if let Some(url) = &runtime.operator_url {
        env.push(variable(OPERATOR_VARIABLE, escaped(url)));
        mounts.push(mount(IDENTITY, identity::MOUNT, true));
    }
    Container {
        name: name.to_owned(),
        image: Some(runtime.image.clone()),
        image_pull_policy: Some("IfNotPresent".into()),
        args: Some(arguments.iter().map(|a| (*a).to_owned()).collect()),
        env: Some(env),
        resources: Some(resources(AGENT_REQUESTS, &[("memory", memory)])),
        security_context: Some(restricted()),
        termination_message_policy: Some("File".into()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// What every pod of Slipway's has: no token, no service links, never restarted.
pub fn bare_pod(service_account: Option<String>) -> PodSpec {
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        restart_policy: Some("Never".into()),
        // A builder that ignores SIGTERM must not hold a cancelled build for half a minute.
        termination_grace_period_seconds: Some(5),
        service_account_name: service_account,
        ..PodSpec::default()
    }
}

/// The metadata of an object that `owner` owns.
pub fn owned_by<K: Resource<DynamicType = ()>>(
    owner: &K,
    name: String,
    labels: &[(&str, &str)],
) -> ObjectMeta {
    let all: BTreeMap<String, String> = labels
        .iter()
        .copied()
        .chain([(MANAGED_BY_LABEL, MANAGED_BY)])
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    ObjectMeta {
        name: Some(name),
        namespace: owner.namespace(),
        labels: Some(all),
        owner_references: Some(vec![OwnerReference {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            name: owner.name_any(),
            uid: owner.uid().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: None,
        }]),
        ..ObjectMeta::default()
    }
}

/// `<owner's name, cut>-<8 digits of its UID>-<rest>`: the same for ever, and never another object's.
pub fn child_name(owner: &str, uid: &str, rest: &str) -> String {
    let uid: String = uid.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    let tail = format!("-{uid}-{rest}");
    let mut end = owner.len().min(63_usize.saturating_sub(tail.len()));
    while !owner.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{tail}", owner[..end].replace('.', "-").trim_end_matches('-'))
}

/// A mount.
pub fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

/// An empty folder on the node's disk, with the size at which the node ends the pod.
pub fn scratch(name: &str, limit: Option<&str>) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: limit.map(|l| Quantity(l.to_owned())),
            medium: None,
        }),
        ..Volume::default()
    }
}

/// An empty folder in the node's memory.
pub fn in_memory(name: &str, limit: &str) -> Volume {
    let mut volume = scratch(name, Some(limit));
    if let Some(folder) = &mut volume.empty_dir {
        folder.medium = Some("Memory".into());
    }
    volume
}

/// The token by which Slipway's own containers show whose pod they are in; no API server takes it. It is read
/// once, so it outlives the pod, which runs for `deadline` seconds at most.
pub fn identity_volume(runtime: &AgentRuntime, deadline: i64) -> Option<Volume> {
    runtime.operator_url.as_ref().map(|_| Volume {
        name: IDENTITY.to_owned(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(0o440),
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(ServiceAccountTokenProjection {
                    audience: Some(identity::AUDIENCE.to_owned()),
                    expiration_seconds: Some(deadline + TOKEN_SPARE),
                    path: identity::TOKEN_FILE.to_owned(),
                }),
                ..VolumeProjection::default()
            }]),
        }),
        ..Volume::default()
    })
}

/// A Secret that the kubelet, not the operator, reads.
pub fn secret(volume: &str, reference: &LocalReference) -> Volume {
    Volume {
        name: volume.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(reference.name.clone()),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// The Secrets with the certificates that a pod shows to registries, and where they are mounted.
pub fn certificates(registries: &Registries) -> (Vec<Volume>, Vec<VolumeMount>) {
    let parts = registries
        .certificates
        .iter()
        .enumerate()
        .map(|(index, (host, name))| {
            let volume = format!("certificate-{index}");
            let reference = LocalReference { name: name.clone() };
            (
                secret(&volume, &reference),
                mount(&volume, &certificate_folder(host), true),
            )
        });
    parts.unzip()
}

/// Requests and limits.
pub fn resources(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> ResourceRequirements {
    let map = |list: &[(&str, &str)]| {
        let map: BTreeMap<String, Quantity> = list
            .iter()
            .map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned())))
            .collect();
        (!map.is_empty()).then_some(map)
    };
    ResourceRequirements {
        requests: map(requests),
        limits: map(limits),
        claims: None,
    }
}

/// A variable of a container.
pub fn variable(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: Some(value.into()),
        value_from: None,
    }
}

/// Text that Kubernetes must not expand: `$(…)` in a user's value is the user's. It reads `$$` as `$`.
pub fn escaped(text: &str) -> String {
    text.replace('$', "$$")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_name_fits_and_stays_apart_from_others() {
        let long = "a".repeat(63);
        let name = child_name(&long, "12345678-9abc-def0", "arm-v7-1");
        assert!(name.len() <= 63 && name.ends_with("-12345678-arm-v7-1"));
        assert_eq!(
            child_name("web.1", "abcdef01-0000", "amd64-2"),
            "web-1-abcdef01-amd64-2"
        );
    }
}
