//! A pod reduced to what decisions need.
//!
//! "Exited with 0" and "reported" are different facts; a container's termination message is kept apart from
//! its exit code for that reason.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

/// What is known of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenPod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Whether somebody has asked for its deletion.
    pub deleting: bool,
    /// Whether the pod as a whole has ended.
    pub ended: bool,
    /// Whether the end of a container is known from itself, and the kubelet has not shown it yet. Other
    /// containers may have ended too by then.
    pub ahead: bool,
    /// Why the node ended the pod as a whole: `Evicted`, `DeadlineExceeded`, …
    pub reason: Option<String>,
    /// The node's words on it.
    pub message: Option<String>,
    /// The scheduler's words when no node will have the pod.
    pub unschedulable: Option<String>,
    /// By container name.
    pub containers: BTreeMap<String, Container>,
}

/// Where one container stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Container {
    /// Not begun, nothing is wrong.
    #[default]
    Waiting,
    /// Not begun, for a reason that a person must hear of: `ImagePullBackOff`, `CreateContainerError`, …
    Blocked {
        /// The kubelet's word.
        reason: String,
        /// The kubelet's message.
        message: String,
    },
    /// Begun.
    Running,
    /// Ended.
    Ended {
        /// Exit code.
        code: i32,
        /// The kubelet's word, `OOMKilled` for example.
        reason: String,
        /// The termination message.
        message: String,
    },
}

impl SeenPod {
    /// The container of this name.
    pub fn container(&self, name: &str) -> &Container {
        self.containers.get(name).unwrap_or(&Container::Waiting)
    }

    /// Whether a container still runs or may begin. The pod's phase says so a second later.
    pub fn is_live(&self) -> bool {
        let all_ended = !self.containers.is_empty()
            && self
                .containers
                .values()
                .all(|c| matches!(c, Container::Ended { .. }));
        !self.ended && !all_ended
    }

    /// Whether any container has run.
    pub fn has_begun(&self) -> bool {
        self.containers
            .values()
            .any(|c| matches!(c, Container::Running | Container::Ended { .. }))
    }

    /// The first container that cannot begin.
    pub fn blocked(&self) -> Option<(&str, &str, &str)> {
        self.containers
            .iter()
            .find_map(|(name, container)| match container {
                Container::Blocked { reason, message } => {
                    Some((name.as_str(), reason.as_str(), message.as_str()))
                }
                _ => None,
            })
    }
}

impl From<&Pod> for SeenPod {
    fn from(pod: &Pod) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let containers = status
            .init_container_statuses
            .iter()
            .chain(status.container_statuses.iter())
            .flatten();
        Self {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            ahead: false,
            ended: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            unschedulable: status
                .conditions
                .iter()
                .flatten()
                .find(|c| c.type_ == "PodScheduled" && c.status == "False")
                .map(|c| c.message.clone().unwrap_or_default()),
            containers: containers.map(|c| (c.name.clone(), reduce(c))).collect(),
            reason: status.reason,
            message: status.message,
        }
    }
}

fn reduce(status: &ContainerStatus) -> Container {
    let Some(state) = &status.state else {
        return Container::Waiting;
    };
    if let Some(ended) = &state.terminated {
        return Container::Ended {
            code: ended.exit_code,
            reason: ended.reason.clone().unwrap_or_default(),
            message: ended.message.clone().unwrap_or_default(),
        };
    }
    if state.running.is_some() {
        return Container::Running;
    }
    match state
        .waiting
        .as_ref()
        .and_then(|w| w.reason.as_deref().map(|r| (r, w.message.as_deref())))
    {
        None | Some(("ContainerCreating" | "PodInitializing", _)) => Container::Waiting,
        Some((reason, message)) => Container::Blocked {
            reason: reason.to_owned(),
            message: message.unwrap_or_default().to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(status: &serde_json::Value) -> SeenPod {
        let pod: Pod =
            serde_json::from_value(json!({ "metadata": { "name": "p", "uid": "u" }, "status": status }))
                .unwrap();
        SeenPod::from(&pod)
    }

    #[test]
    fn a_container_that_pulls_its_image_is_waiting_and_one_that_cannot_is_blocked() {
        let pod = seen(&json!({ "phase": "Pending", "containerStatuses": [
            { "name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0,
              "state": { "waiting": { "reason": "ContainerCreating" } } },
            { "name": "b", "image": "", "imageID": "", "ready": false, "restartCount": 0,
              "state": { "waiting": { "reason": "ImagePullBackOff", "message": "no such image" } } },
        ]}));
        assert_eq!(pod.container("a"), &Container::Waiting);
        assert_eq!(pod.blocked(), Some(("b", "ImagePullBackOff", "no such image")));
    }

    #[test]
    fn the_scheduler_and_the_node_are_heard() {
        let pod = seen(
            &json!({ "phase": "Failed", "reason": "Evicted", "message": "disk",
            "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes" }] }),
        );
        assert!(pod.ended);
        assert_eq!(pod.reason.as_deref(), Some("Evicted"));
        assert_eq!(pod.unschedulable.as_deref(), Some("0/1 nodes"));
    }
}
