//! The push pod: one container of Slipway's own image, with the tenant's Secrets mounted.
//!
//! The kubelet reads those Secrets; the operator has no permission to. Pure.

use k8s_openapi::api::core::v1::{Pod, PodSecurityContext, PodSpec};
use kube::ResourceExt as _;

use super::observe::SOURCE_CREDENTIALS;
use crate::{
    agent::plan::PushPlan,
    api::{ATTEMPT_LABEL, PUSH_LABEL, ROLE_LABEL, v1alpha1::RegistryPush},
    controller::pod_parts::{
        AGENT_USER, AgentRuntime, agent, bare_pod, certificates, child_name, identity_volume, mount,
        owned_by, scratch, secret,
    },
};

/// The container that pushes.
pub const PUSH: &str = "push";

/// A push that takes more than an hour is tried again rather than waited for.
const DEADLINE: i64 = 3600;
/// Where policies slow a push down, large images take as long as they take; that nothing moves at all is seen by
/// the pusher itself.
const SLOW_DEADLINE: i64 = 24 * 3600;

/// The name of the pod of an attempt.
pub fn name(push: &RegistryPush, attempt: i32) -> String {
    child_name(
        &push.name_any(),
        &push.uid().unwrap_or_default(),
        &attempt.to_string(),
    )
}

/// Where the Secret of a target is mounted.
pub fn target_credentials(target: usize) -> String {
    format!("/credentials/{target}")
}

/// The pod of one attempt.
pub fn pod(push: &RegistryPush, plan: &PushPlan, attempt: i32, agents: &AgentRuntime) -> Pod {
    let mut volumes = vec![scratch("tmp", Some("64Mi"))];
    let limits = &mut plan.registries.limits.values();
    let is_slow =
        limits.any(|limits| limits.requests_per_second.is_some() || limits.bytes_per_second.is_some());
    let deadline = if is_slow { SLOW_DEADLINE } else { DEADLINE };
    volumes.extend(identity_volume(agents, deadline));
    let mut mounts = Vec::new();
    if let Some(reference) = &push.spec.source.credentials_ref {
        volumes.push(secret("source", reference));
        mounts.push(mount("source", SOURCE_CREDENTIALS, true));
    }
    for (index, target) in push.spec.targets.iter().enumerate() {
        let path = target_credentials(index);
        // Only the Secrets of targets that this attempt pushes to.
        let planned = plan
            .targets
            .iter()
            .any(|planned| planned.credentials_dir.as_ref() == Some(&path));
        if let Some(reference) = target.credentials_ref.as_ref().filter(|_| planned) {
            volumes.push(secret(&format!("target-{index}"), reference));
            mounts.push(mount(&format!("target-{index}"), &path, true));
        }
    }
    let (certificates, certificate_mounts) = certificates(&plan.registries);
    volumes.extend(certificates);
    mounts.extend(certificate_mounts);
    let labels = [
        (ROLE_LABEL, "push"),
        (PUSH_LABEL, &push.name_any()),
        (ATTEMPT_LABEL, &attempt.to_string()),
    ];
    Pod {
        metadata: owned_by(push, name(push, attempt), &labels),
        spec: Some(PodSpec {
            active_deadline_seconds: Some(deadline),
            containers: vec![agent(
                PUSH,
                "tmp",
                "512Mi",
                agents,
                &["agent", "push"],
                plan,
                mounts,
            )],
            security_context: Some(PodSecurityContext {
                fs_group: Some(AGENT_USER),
                ..PodSecurityContext::default()
            }),
            volumes: Some(volumes),
            ..bare_pod(None)
        }),
        status: None,
    }
}
