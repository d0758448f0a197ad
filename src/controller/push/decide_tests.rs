//! "Given this, exactly this step, then nothing."

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::*;
use crate::{
    agent::{plan::Registries, report::TargetReport},
    api::v1alpha1::RegistryPush,
    image::Digest,
    registry::BlobCounters,
};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn observed(targets: &[&str]) -> Observed {
    let targets: Vec<_> = targets
        .iter()
        .map(|repository| json!({ "repository": repository, "tags": ["edge"] }))
        .collect();
    let push: RegistryPush = serde_json::from_value(json!({
        "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPush",
        "metadata": { "name": "p", "namespace": "demo", "uid": "12345678-aaaa", "generation": 1 },
        "spec": { "source": { "reference": "example.test/a:b" }, "targets": targets },
    }))
    .unwrap();
    let source = PushSource {
        registry: "example.test".into(),
        repository: "a".into(),
        reference: "b".into(),
        digest: None,
        credentials_dir: None,
        realm: None,
    };
    Observed {
        push: Arc::new(push),
        source: Source::Ready(source),
        pod: None,
        pod_was_seen: false,
        mount_trouble: None,
        registries: Registries::default(),
        forbidden: vec!["denied.test".into()],
    }
}

fn after(seen: &Observed, decision: &Decision) -> Observed {
    let mut push = (*seen.push).clone();
    push.status = Some(decision.status.clone());
    Observed {
        push: Arc::new(push),
        ..seen.clone()
    }
}

fn edited(seen: &Observed, edit: impl Fn(&mut RegistryPush)) -> Observed {
    let mut push = (*seen.push).clone();
    push.metadata.generation = push.metadata.generation.map(|generation| generation + 1);
    edit(&mut push);
    Observed {
        push: Arc::new(push),
        ..seen.clone()
    }
}

/// The pod of the running attempt ended with a report: one entry a target, its failure or none.
fn reported(seen: &Observed, targets: Vec<Option<Failure>>) -> Observed {
    let targets = targets.into_iter().map(|failure| TargetReport {
        failure,
        retry_after_seconds: None,
        blobs: BlobCounters::default(),
        previous: vec![None],
    });
    let report = PushReport {
        digest: Some(Digest::of(b"root")),
        failure: None,
        targets: targets.collect(),
    };
    let message = serde_json::to_string(&report).unwrap();
    let ended = Container::Ended {
        code: 0,
        reason: "Completed".into(),
        message,
    };
    let pod = SeenPod {
        name: seen.push.status.as_ref().unwrap().pod.clone().unwrap(),
        uid: "pod".into(),
        containers: [(PUSH.to_owned(), ended)].into(),
        ..SeenPod::default()
    };
    Observed {
        pod: Some(pod),
        pod_was_seen: true,
        ..seen.clone()
    }
}

fn down() -> Failure {
    Failure::new(Reason::RegistryUnavailable, "down")
}

fn uploaded() -> Observed {
    let seen = observed(&["one.test/a"]);
    let seen = after(&seen, &decide(&seen, NOW));
    let done = reported(&seen, vec![None]);
    Observed {
        pod: None,
        ..after(&done, &decide(&done, NOW))
    }
}

#[test]
fn a_report_without_failures_is_the_end_and_causes_no_more_writes() {
    let seen = uploaded();
    let status = seen.push.status.as_ref().unwrap();
    assert!(condition::is_true(&status.conditions, condition::SUCCEEDED));
    let later = decide(&seen, NOW + SignedDuration::from_hours(1));
    assert_eq!(
        (Some(&later.status), later.step, later.next),
        (seen.push.status.as_ref(), Step::Nothing, Next::Done)
    );
}

#[test]
fn only_targets_that_failed_for_now_are_pushed_to_again_and_only_at_their_time() {
    let seen = observed(&["one.test/a", "two.test/a"]);
    let seen = after(&seen, &decide(&seen, NOW));
    let failed = reported(&seen, vec![None, Some(down())]);
    let waiting = decide(&failed, NOW);
    assert_eq!(waiting.step, Step::Nothing);
    let seen = Observed {
        pod: None,
        ..after(&failed, &waiting)
    };
    assert_eq!(decide(&seen, NOW).step, Step::Nothing, "not yet");
    let Step::CreatePod { plan } = decide(&seen, NOW + SignedDuration::from_secs(6)).step else {
        panic!("no pod")
    };
    let repositories: Vec<_> = plan
        .targets
        .iter()
        .map(|target| target.repository.as_str())
        .collect();
    assert_eq!(repositories, ["two.test/a"]);
}

#[test]
fn what_the_registry_refuses_is_not_tried_again_by_itself_but_on_request() {
    let seen = observed(&["one.test/a"]);
    let seen = after(&seen, &decide(&seen, NOW));
    let denied = reported(&seen, vec![Some(Failure::new(Reason::PushDenied, "no"))]);
    let ended = decide(&denied, NOW);
    assert!(condition::is_true(&ended.status.conditions, condition::FINISHED));
    let seen = Observed {
        pod: None,
        ..after(&denied, &ended)
    };
    let mut push = (*seen.push).clone();
    push.metadata.annotations =
        Some([(crate::api::REQUEST_ANNOTATION.to_owned(), "again".to_owned())].into());
    let asked = decide(
        &Observed {
            push: Arc::new(push),
            ..seen
        },
        NOW,
    );
    assert!(matches!(asked.step, Step::CreatePod { .. }));
    assert_eq!(
        (asked.status.attempt, asked.status.attempts_before_request),
        (2, 1)
    );
}

#[test]
fn suspending_or_cancelling_what_is_uploaded_changes_nothing() {
    for edit in [
        |push: &mut RegistryPush| push.spec.suspend = true,
        |push: &mut RegistryPush| push.spec.cancel = true,
    ] {
        let decision = decide(&edited(&uploaded(), edit), NOW);
        assert_eq!(decision.status.targets[0].state, TargetState::Pushed);
        assert!(condition::is_true(
            &decision.status.conditions,
            condition::SUCCEEDED
        ));
    }
}

#[test]
fn another_target_is_pushed_to_when_the_specification_names_it() {
    let other = edited(&uploaded(), |push| {
        push.spec.targets[0].repository = "two.test/a".into();
    });
    assert!(matches!(decide(&other, NOW).step, Step::CreatePod { .. }));
}

#[test]
fn a_forbidden_origin_fails_in_any_spelling_and_does_not_stop_the_others() {
    let decision = decide(&observed(&["Denied.test:443/a", "one.test/a"]), NOW);
    assert_eq!(
        decision.status.targets[0].failure.as_ref().unwrap().reason,
        Reason::OriginForbidden
    );
    let Step::CreatePod { plan } = decision.step else {
        panic!("no pod")
    };
    assert_eq!(plan.targets.len(), 1);
}

#[test]
fn a_policy_that_changes_how_a_registry_is_spoken_to_ends_the_wait() {
    let seen = observed(&["one.test/a"]);
    let seen = after(&seen, &decide(&seen, NOW));
    let failed = reported(&seen, vec![Some(down())]);
    let mut waiting = Observed {
        pod: None,
        ..after(&failed, &decide(&failed, NOW))
    };
    assert_eq!(decide(&waiting, NOW).step, Step::Nothing);
    waiting.registries.plain_http = vec!["one.test".into()];
    assert!(matches!(decide(&waiting, NOW).step, Step::CreatePod { .. }));
}
