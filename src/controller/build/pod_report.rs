//! A build pod reduced to what its build decides from.

use crate::{
    agent::report::{self, ASKED_TO_END, CollectReport, StageOutcome},
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
        // It was asked to end; who ended the pod, and why, is in the pod's status a moment later.
        if *code == ASKED_TO_END && node_failure(pod).is_none() && !pod.ended {
            return BuildPod::Running;
        }
        return match report::read::<CollectReport>(message) {
            Some(CollectReport::Recorded { digest }) => BuildPod::Reported(digest),
            Some(CollectReport::Failed(failure)) => BuildPod::Broken(explained(failure, pod)),
            None => BuildPod::Broken(node_failure(pod).unwrap_or_else(|| {
                let text = format!("The collector ended with code {code} ({reason}) and without a report; see kubectl logs {} -c {COLLECT}.", pod.name);
                Failure::new(Reason::BuildPodFailed, text)
            })),
        };
    }
    if let Some(failure) = node_failure(pod) {
        // The collector has seconds left, in which it stores what there is of the log.
        if !pod.ended && matches!(pod.container(COLLECT), Container::Running) {
            return BuildPod::Running;
        }
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

/// A failure as the pod's own processes saw it, in the words of who ended them where somebody did.
pub fn explained(failure: Failure, pod: &SeenPod) -> Failure {
    let cause = match failure.reason {
        Reason::BuildFailed | Reason::BuildPodFailed if out_of_memory(pod) => Some(Failure::new(
            Reason::OutOfMemoryKilled,
            "The builder used more memory than its limit and was killed; raise spec.resources.memory.",
        )),
        Reason::FetchFailed | Reason::BuildPodFailed => node_failure(pod),
        _ => None,
    };
    match cause {
        Some(cause) => Failure {
            log_snippet: failure.log_snippet,
            ..cause
        },
        None => failure,
    }
}

/// The failure of a pod that somebody else took away.
pub fn deleted() -> Failure {
    Failure::new(
        Reason::BuildPodDeleted,
        "The build's pod was deleted before its result was known.",
    )
}

/// Whether the builder, or its command, was killed for the memory that it used.
fn out_of_memory(pod: &SeenPod) -> bool {
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
        _ if pod.deleting => Some(deleted()),
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

    fn asked_to_end() -> Container {
        Container::Ended {
            code: ASKED_TO_END,
            reason: "Error".into(),
            message: recorded(),
        }
    }

    fn as_the_node_says(reason: &str) -> SeenPod {
        SeenPod {
            reason: Some(reason.into()),
            ..SeenPod::default()
        }
    }

    fn being_deleted() -> SeenPod {
        SeenPod {
            deleting: true,
            ..SeenPod::default()
        }
    }

    /// The kubelet tells of the containers' ends and of its own reason in any order, or together.
    #[rstest]
    #[case::deadline_first(as_the_node_says("DeadlineExceeded"), Container::Running, BuildPod::Running)]
    #[case::collector_first(SeenPod::default(), asked_to_end(), BuildPod::Running)]
    #[case::both(
        as_the_node_says("DeadlineExceeded"),
        asked_to_end(),
        BuildPod::Reported(Digest::of(b"record"))
    )]
    #[case::nobody_says_why(SeenPod { ended: true, ..SeenPod::default() }, asked_to_end(), BuildPod::Reported(Digest::of(b"record")))]
    #[case::deletion_first(being_deleted(), Container::Running, BuildPod::Running)]
    #[case::deleted(being_deleted(), asked_to_end(), BuildPod::Reported(Digest::of(b"record")))]
    fn a_collector_that_was_asked_to_end_is_believed_once_it_is_known_why(
        #[case] mut seen: SeenPod,
        #[case] collect: Container,
        #[case] expected: BuildPod,
    ) {
        seen.containers.insert(COLLECT.into(), collect);
        assert_eq!(reduce(&seen, None), expected);
    }

    #[rstest]
    #[case::deadline(as_the_node_says("DeadlineExceeded"), Some(Reason::DeadlineExceeded))]
    #[case::evicted(as_the_node_says("Evicted"), Some(Reason::BuildPodEvicted))]
    #[case::deleted(being_deleted(), Some(Reason::BuildPodDeleted))]
    #[case::late(SeenPod { deleting: true, ..as_the_node_says("DeadlineExceeded") }, Some(Reason::DeadlineExceeded))]
    #[case::nobody(SeenPod::default(), None)]
    fn a_failure_of_a_pod_that_was_ended_is_explained_by_who_ended_it(
        #[case] seen: SeenPod,
        #[case] expected: Option<Reason>,
    ) {
        for own in [Reason::BuildPodFailed, Reason::FetchFailed] {
            let failure = explained(Failure::new(own, "asked to end").with_log("step 1"), &seen);
            assert_eq!(failure.reason, expected.unwrap_or(own));
            assert_eq!(failure.log_snippet.as_deref(), Some("step 1"));
        }
        let own = Failure::new(Reason::BuildFailed, "exit 7");
        assert_eq!(explained(own.clone(), &seen), own, "it had failed before");
    }

    #[test]
    fn a_pod_that_was_deleted_before_it_began_is_named_so() {
        assert_eq!(reduce(&being_deleted(), None), BuildPod::Broken(deleted()));
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
