//! A build pod reduced to what its build decides from.

use crate::{
    agent::report::{self, CollectReport, StageOutcome},
    image::Digest,
    kubernetes::pod::{Container, SeenPod},
    record::{Failure, Reason, Revision},
};

/// The container that brings the source.
pub const FETCH: &str = "fetch";
/// The container that runs the strategy's command.
pub const BUILD: &str = "build";
/// The container that collects the image.
pub const COLLECT: &str = "collect";

/// Where a build pod stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildPod {
    /// Being scheduled, or pulling its images.
    Starting,
    /// Something is missing that may still come.
    Waiting(Reason, String),
    /// At work.
    Running,
    /// The record of a build that ended well or badly is in staging.
    Reported(Digest),
    /// Ended, or never to begin, without a record.
    Broken(Failure),
}

/// Reduces a pod. Containers decide, not the pod's phase, which lags them by a second.
pub fn reduce(pod: &SeenPod, mount_trouble: Option<&str>) -> BuildPod {
    if let Container::Ended {
        code,
        reason,
        message,
    } = pod.container(COLLECT)
    {
        return match report::read::<CollectReport>(message) {
            Some(CollectReport::Recorded { digest }) => BuildPod::Reported(digest),
            Some(CollectReport::Failed(failure)) => BuildPod::Broken(failure),
            None => BuildPod::Broken(node_failure(pod).unwrap_or_else(|| {
                let text = format!("The collector ended with code {code} ({reason}) and without a report; see kubectl logs {} -c {COLLECT}.", pod.name);
                Failure::new(Reason::BuildPodFailed, text)
            })),
        };
    }
    if let Some(failure) = node_failure(pod) {
        return BuildPod::Broken(failure);
    }
    if let Some((container, reason, message)) = pod.blocked() {
        return blocked(pod, container, reason, message);
    }
    if let Some(message) = &pod.unschedulable {
        return BuildPod::Waiting(
            Reason::Unschedulable,
            format!("No node can run the build's pod: {message}"),
        );
    }
    // One that never ran its first instruction told nobody: the others would wait for it until the deadline.
    for name in [FETCH, BUILD] {
        if let Container::Ended { reason, message, .. } = pod.container(name)
            && matches!(reason.as_str(), "StartError" | "ContainerCannotRun")
        {
            let text = format!(
                "Container {name:?} of pod {} could not be started: {message}",
                pod.name
            );
            return BuildPod::Broken(Failure::new(Reason::BuildPodFailed, text));
        }
    }
    if matches!(pod.container(COLLECT), Container::Running) {
        return BuildPod::Running;
    }
    match mount_trouble {
        Some(message) => BuildPod::Waiting(Reason::SecretMissing, message.to_owned()),
        None => BuildPod::Starting,
    }
}

/// Whether the builder, or its command, was killed for the memory that it used.
pub fn out_of_memory(pod: &SeenPod) -> bool {
    matches!(pod.container(BUILD), Container::Ended { reason, .. } if reason == "OOMKilled")
}

/// The source that was fetched, in the words of the container that fetched it.
///
/// The record has it too, but from the shared volume, in which the build may write what it likes.
pub fn fetched(pod: &SeenPod) -> Option<Revision> {
    match pod.container(FETCH) {
        Container::Ended { message, .. } => match report::read::<StageOutcome>(message)? {
            StageOutcome::Done { revision } => revision,
            StageOutcome::Failed(_) => None,
        },
        _ => None,
    }
}

fn node_failure(pod: &SeenPod) -> Option<Failure> {
    let message = pod.message.as_deref().unwrap_or_default();
    match pod.reason.as_deref() {
        Some("Evicted") => Some(Failure::new(
            Reason::BuildPodEvicted,
            format!("The node evicted the build's pod: {message}"),
        )),
        Some("DeadlineExceeded") => Some(Failure::new(
            Reason::DeadlineExceeded,
            "The build ran longer than spec.timeoutSeconds; raise it, or make the build faster.",
        )),
        Some(reason) if pod.ended => Some(Failure::new(
            Reason::BuildPodFailed,
            format!("The node ended the build's pod: {reason}: {message}"),
        )),
        None if pod.ended && !matches!(pod.container(COLLECT), Container::Ended { .. }) => {
            Some(Failure::new(
                Reason::BuildPodFailed,
                "The build's pod ended and nothing is known of its collector.",
            ))
        }
        _ => None,
    }
}

fn blocked(pod: &SeenPod, container: &str, reason: &str, message: &str) -> BuildPod {
    match reason {
        // The first failed pull may be a moment's trouble; the kubelet tries again before it says BackOff.
        "ErrImagePull" => BuildPod::Starting,
        "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" | "ImageInspectError" => {
            BuildPod::Broken(Failure::new(
                Reason::ImagePullFailed,
                format!("The image of container {container:?} cannot be pulled: {message}"),
            ))
        }
        _ => BuildPod::Broken(Failure::new(
            Reason::BuildPodFailed,
            format!(
                "Container {container:?} of pod {} cannot begin: {reason}: {message}",
                pod.name
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn pod(containers: &[(&str, Container)]) -> SeenPod {
        SeenPod {
            name: "p".into(),
            uid: "u".into(),
            containers: containers
                .iter()
                .map(|(name, state)| ((*name).to_owned(), state.clone()))
                .collect(),
            ..SeenPod::default()
        }
    }

    fn ended(message: &str) -> Container {
        Container::Ended {
            code: 0,
            reason: "Completed".into(),
            message: message.into(),
        }
    }

    fn recorded() -> String {
        serde_json::to_string(&CollectReport::Recorded {
            digest: Digest::of(b"record"),
        })
        .unwrap()
    }

    #[test]
    fn a_report_counts_even_when_the_node_ended_the_pod_afterwards() {
        let mut seen = pod(&[(COLLECT, ended(&recorded()))]);
        seen.reason = Some("Evicted".into());
        seen.ended = true;
        assert_eq!(reduce(&seen, None), BuildPod::Reported(Digest::of(b"record")));
    }

    #[test]
    fn a_collector_that_ends_without_a_report_is_broken_although_its_code_is_0() {
        let BuildPod::Broken(failure) = reduce(&pod(&[(COLLECT, ended(""))]), None) else {
            panic!("not broken")
        };
        assert_eq!(failure.reason, Reason::BuildPodFailed);
    }

    #[rstest]
    #[case::first_pull("ErrImagePull", None)]
    #[case::gave_up("ImagePullBackOff", Some(Reason::ImagePullFailed))]
    #[case::bad_name("InvalidImageName", Some(Reason::ImagePullFailed))]
    #[case::anything_else("CreateContainerError", Some(Reason::BuildPodFailed))]
    fn a_blocked_container_breaks_the_pod_unless_it_may_still_begin(
        #[case] word: &str,
        #[case] expected: Option<Reason>,
    ) {
        let seen = pod(&[(
            BUILD,
            Container::Blocked {
                reason: word.into(),
                message: String::new(),
            },
        )]);
        let reason = match reduce(&seen, None) {
            BuildPod::Broken(failure) => Some(failure.reason),
            _ => None,
        };
        assert_eq!(reason, expected);
    }

    #[test]
    fn a_missing_secret_is_a_wait_until_the_collector_runs() {
        let wait = reduce(&pod(&[]), Some("secret \"git\" not found"));
        assert!(matches!(wait, BuildPod::Waiting(Reason::SecretMissing, _)));
        assert_eq!(
            reduce(&pod(&[(COLLECT, Container::Running)]), Some("old news")),
            BuildPod::Running
        );
    }
}
