//! "Given this, exactly this step, then nothing."

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::*;
use crate::{
    agent::{
        plan::{PublishPolicy, PushSource, Registries},
        report::{self, RefusedPart, TargetReport},
    },
    api::v1alpha1::RegistryPush,
    controller::push::{observe::Portion, pod::PUSH, rivals, tags},
    image::Digest,
    kubernetes::pod::Container,
    registry::{BlobCounters, ReferrerCounters},
};

#[path = "decide_after_tests.rs"]
mod after_the_push;
#[path = "decide_policy_tests.rs"]
mod policies;
#[path = "decide_portion_tests.rs"]
mod portions;

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
        source: Source::Ready(Box::new(source)),
        portions: Vec::new(),
        facts: tags::Facts::default(),
        pod: None,
        pod_was_seen: false,
        mount_trouble: None,
        registries: Registries::default(),
        forbidden: vec!["denied.test".into()],
        build: None,
        upload_request: None,
        rivals: Vec::new(),
        queues: BTreeMap::new(),
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
        digest: None,
        retry_after_seconds: None,
        errors: Vec::new(),
        refused: None,
        blobs: BlobCounters::default(),
        referrers: ReferrerCounters::default(),
        requests: Vec::new(),
        requests_omitted: 0,
        previous: vec![None],
    });
    let report = PushReport {
        digest: Some(Digest::of(b"root")),
        failure: None,
        referrers: Vec::new(),
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
    assert_eq!((asked.status.attempt, asked.status.targets[0].attempts), (2, 0));
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

fn targets(seen: &Observed) -> Vec<TargetStatus> {
    seen.push.status.as_ref().unwrap().targets.clone()
}

fn planned(decision: &Decision) -> Vec<String> {
    let Step::CreatePod { plan } = &decision.step else {
        return Vec::new();
    };
    plan.targets
        .iter()
        .map(|target| target.repository.clone())
        .collect()
}

/// The pass after the running attempt ended with these failures, in the order of its targets.
fn ended_with(seen: &Observed, failures: Vec<Option<Failure>>) -> Observed {
    let reported = reported(seen, failures);
    Observed {
        pod: None,
        ..after(&reported, &decide(&reported, NOW))
    }
}

fn in_seconds(seconds: i64) -> Timestamp {
    NOW + SignedDuration::from_secs(seconds)
}

#[test]
fn each_target_has_its_own_waits_and_its_own_time() {
    let seen = observed(&["one.test/a", "two.test/a", "three.test/a"]);
    let seen = after(&seen, &decide(&seen, NOW));
    let first = ended_with(&seen, vec![Some(down()), None, Some(down())]);
    let second = decide(&first, in_seconds(6));
    assert_eq!(planned(&second), ["one.test/a", "three.test/a"]);
    let second = after(&first, &second);
    // One fails again and waits twice as long; the other is done.
    let third = ended_with(&second, vec![Some(down()), None]);
    let states: Vec<_> = targets(&third).iter().map(|t| (t.state, t.attempts)).collect();
    assert_eq!(
        states,
        [
            (TargetState::Pending, 2),
            (TargetState::Pushed, 1),
            (TargetState::Pushed, 2)
        ]
    );
    let at = targets(&third)[0].next_attempt_at.clone();
    assert_eq!(at, Some(Time(in_seconds(10))));
    let status = third.push.status.as_ref().unwrap();
    assert_eq!((&status.next_attempt_at, status.progress.as_str()), (&at, "2/3"));
    assert!(planned(&decide(&third, in_seconds(9))).is_empty());
    assert_eq!(planned(&decide(&third, in_seconds(10))), ["one.test/a"]);
}

#[test]
fn a_registry_s_own_wish_counts_for_its_target_only() {
    let seen = observed(&["one.test/a", "two.test/a"]);
    let seen = after(&seen, &decide(&seen, NOW));
    let mut reported = reported(&seen, vec![Some(down()), Some(down())]);
    let Some(Container::Ended { message, .. }) =
        reported.pod.as_mut().and_then(|pod| pod.containers.get_mut(PUSH))
    else {
        panic!("no report")
    };
    let mut report: PushReport = report::read(message).unwrap();
    report.targets[1].retry_after_seconds = Some(3600);
    *message = serde_json::to_string(&report).unwrap();
    let waits: Vec<_> = decide(&reported, NOW)
        .status
        .targets
        .iter()
        .map(|target| target.next_attempt_at.clone())
        .collect();
    assert_eq!(waits, [Some(Time(in_seconds(5))), Some(Time(in_seconds(3600)))]);
}

#[rstest::rstest]
#[case::no_answer(Reason::RegistryUnavailable, 1, TargetState::Pending)]
#[case::no_answer_for_hours(Reason::RegistryUnavailable, 30, TargetState::Failed)]
#[case::served_something_else(Reason::VerificationFailed, 1, TargetState::Pending)]
#[case::served_something_else_twice(Reason::VerificationFailed, 2, TargetState::Failed)]
#[case::slow_down(Reason::RateLimited, 1, TargetState::Pending)]
#[case::refused(Reason::PushDenied, 1, TargetState::Failed)]
#[case::immutable(Reason::TagImmutable, 1, TargetState::Failed)]
fn whether_a_target_is_tried_again_depends_on_the_class_of_its_error(
    #[case] reason: Reason,
    #[case] attempts: i32,
    #[case] expected: TargetState,
) {
    let seen = observed(&["one.test/a"]);
    let mut seen = after(&seen, &decide(&seen, NOW));
    let mut push = (*seen.push).clone();
    push.status.as_mut().unwrap().targets[0].attempts = attempts - 1;
    seen.push = Arc::new(push);
    let ended = ended_with(&seen, vec![Some(Failure::new(reason, "no"))]);
    assert_eq!(targets(&ended)[0].state, expected);
}

#[rstest::rstest]
#[case::with_a_secret(true, 2)]
#[case::without(false, 1)]
fn a_registry_that_refuses_the_secret_is_asked_once_more_with_the_secret_as_it_is_then(
    #[case] secret: bool,
    #[case] attempts: i32,
) {
    let mut seen = observed(&["one.test/a"]);
    let name = secret.then(|| serde_json::from_value(json!({ "name": "login" })).unwrap());
    Arc::make_mut(&mut seen.push).spec.targets[0].credentials_ref = name;
    let refused = Failure::new(Reason::PushUnauthorized, "401");
    for attempt in 0..attempts {
        let begun = after(&seen, &decide(&seen, in_seconds(i64::from(attempt) * 60)));
        assert_eq!(targets(&begun)[0].state, TargetState::Pushing);
        seen = ended_with(&begun, vec![Some(refused.clone())]);
    }
    let target = &targets(&seen)[0];
    assert_eq!((target.state, target.attempts), (TargetState::Failed, attempts));
}

#[test]
fn a_pod_that_is_lost_costs_its_own_targets_an_attempt_and_no_other() {
    let seen = observed(&["one.test/a", "two.test/a"]);
    let seen = after(&seen, &decide(&seen, NOW));
    let seen = ended_with(&seen, vec![None, Some(down())]);
    let again = decide(&seen, in_seconds(6));
    let lost = Observed {
        pod_was_seen: true,
        ..after(&seen, &again)
    };
    let decision = decide(&lost, in_seconds(7));
    let entries: Vec<_> = decision
        .status
        .targets
        .iter()
        .map(|t| (t.state, t.attempts))
        .collect();
    assert_eq!(entries, [(TargetState::Pushed, 1), (TargetState::Pending, 2)]);
    let reason = decision.status.targets[1].failure.as_ref().unwrap().reason;
    assert_eq!(reason, Reason::PushPodFailed);
}

fn rival(newer_build: Option<&str>, writing: bool) -> rivals::Rival {
    rivals::Rival {
        name: "push \"q\"".into(),
        newer_build: newer_build.map(ToOwned::to_owned),
        comes_on: true,
        shared: std::collections::BTreeSet::new(),
        targets: vec![rivals::RivalTarget {
            repository: "one.test/a".into(),
            tags: vec!["edge".into()],
            writing,
            serves: false,
        }],
    }
}

#[test]
fn a_target_to_which_another_push_brings_the_same_layers_waits_for_them() {
    let mut seen = observed(&["one.test/a", "two.test/a"]);
    let mut other = rival(None, true);
    other.targets[0].tags = vec!["v1".into()];
    seen.rivals = vec![other.clone()];
    assert_eq!(planned(&decide(&seen, NOW)), ["one.test/a", "two.test/a"]);
    other.shared.insert(Digest::of(b"layer"));
    seen.rivals = vec![other];
    let first = decide(&seen, NOW);
    assert_eq!(planned(&first), ["two.test/a"]);
    let ended = ended_with(&after(&seen, &first), vec![None]);
    let waiting = decide(&ended, NOW);
    assert_eq!((&waiting.step, waiting.next), (&Step::Nothing, Next::Change));
    let ready = waiting
        .status
        .conditions
        .iter()
        .find(|c| c.type_ == condition::READY)
        .unwrap();
    assert_eq!(
        ready.message,
        "Waiting for its turn: one.test/a: push \"q\" is bringing layers that both have."
    );
}

#[test]
fn a_target_whose_time_has_come_and_whose_turn_has_not_waits_for_a_change() {
    let mut seen = observed(&["one.test/a"]);
    seen = ended_with(&after(&seen, &decide(&seen, NOW)), vec![Some(down())]);
    seen.rivals = vec![rival(None, true)];
    let held = decide(&seen, in_seconds(60));
    assert_eq!((&held.step, held.next), (&Step::Nothing, Next::Change));
    let seen = after(&seen, &held);
    assert_eq!(decide(&seen, in_seconds(61)).status, held.status);
    let free = Observed {
        rivals: Vec::new(),
        ..seen
    };
    assert_eq!(planned(&decide(&free, in_seconds(61))), ["one.test/a"]);
}

#[test]
fn a_target_whose_tag_is_being_written_waits_for_its_turn_and_the_others_do_not() {
    let mut seen = observed(&["one.test/a", "two.test/a"]);
    seen.rivals = vec![rival(None, true)];
    let decision = decide(&seen, NOW);
    assert!(decision.begins);
    assert_eq!(planned(&decision), ["two.test/a"]);
    let seen = after(&seen, &decision);
    let waiting = ended_with(&seen, vec![None]);
    let decision = decide(&waiting, NOW);
    assert_eq!((&decision.step, decision.next), (&Step::Nothing, Next::Change));
    let succeeded = decision
        .status
        .conditions
        .iter()
        .find(|c| c.type_ == condition::SUCCEEDED)
        .unwrap();
    assert!(
        succeeded.message.contains("one.test/a: push \"q\""),
        "{}",
        succeeded.message
    );
    let free = Observed {
        rivals: vec![rival(None, false)],
        ..waiting
    };
    assert_eq!(planned(&decide(&free, NOW)), ["one.test/a"]);
}

#[test]
fn tags_of_a_newer_build_are_left_to_it_and_where_none_is_left_nothing_is_sent() {
    let mut seen = observed(&["one.test/a", "two.test/a"]);
    seen.rivals = vec![rival(Some("web-8"), false)];
    let decision = decide(&seen, NOW);
    assert_eq!(planned(&decision), ["two.test/a"]);
    let first = &decision.status.targets[0];
    assert_eq!(first.state, TargetState::Superseded);
    assert_eq!(first.tags[0].superseded_by.as_deref(), Some("web-8"));

    let mut alone = observed(&["one.test/a"]);
    alone.rivals = vec![rival(Some("web-8"), true)];
    let decision = decide(&alone, NOW);
    assert_eq!((&decision.step, decision.next), (&Step::Nothing, Next::Done));
    let conditions = &decision.status.conditions;
    assert!(condition::is_true(conditions, condition::SUCCEEDED));
    assert!(
        conditions
            .iter()
            .any(|c| c.reason == "Superseded" && c.message.contains("web-8"))
    );
}

#[test]
fn a_newer_build_takes_one_tag_and_the_others_are_still_written() {
    let seen = edited(&observed(&["one.test/a"]), |push| {
        push.spec.targets[0].tags = vec!["edge".into(), "v1".into()];
    });
    let seen = Observed {
        rivals: vec![rival(Some("web-8"), false)],
        ..seen
    };
    let Step::CreatePod { plan } = decide(&seen, NOW).step else {
        panic!("no pod")
    };
    assert_eq!(plan.targets[0].tags, ["v1"]);
}

#[test]
fn a_dry_run_lists_and_a_changed_mind_pushes() {
    let dry = edited(&observed(&["one.test/a"]), |push| push.spec.dry_run = true);
    let decision = decide(&dry, NOW);
    let Step::CreatePod { plan } = &decision.step else {
        panic!("no pod")
    };
    assert_eq!(plan.mode, PushMode::DryRun);
    let planned = ended_with(&after(&dry, &decision), vec![None]);
    assert_eq!(targets(&planned)[0].state, TargetState::Planned);
    assert_eq!(decide(&planned, NOW).step, Step::Nothing);
    let meant = edited(&planned, |push| push.spec.dry_run = false);
    let Step::CreatePod { plan } = decide(&meant, NOW).step else {
        panic!("no pod")
    };
    assert_eq!(plan.mode, PushMode::Write);
}

#[test]
fn a_tag_that_cannot_be_made_fails_its_target_by_field_and_no_other() {
    let seen = edited(&observed(&["one.test/a", "two.test/a"]), |push| {
        push.spec.targets[0].tags = vec!["{platform}".into()];
        push.spec.targets[1].tags = vec!["{date}-{risk}".into()];
    });
    let decision = decide(&seen, NOW);
    let failure = decision.status.targets[0].failure.as_ref().unwrap();
    assert_eq!(failure.reason, Reason::TargetInvalid);
    assert!(
        failure.message.starts_with("spec.targets[0].tags[0]"),
        "{}",
        failure.message
    );
    let Step::CreatePod { plan } = &decision.step else {
        panic!("no pod")
    };
    assert_eq!(plan.targets[0].tags, ["19700101-edge"]);
    // The day goes on; the tag stays.
    let seen = ended_with(&after(&seen, &decision), vec![Some(down())]);
    let Step::CreatePod { plan } = decide(&seen, NOW + SignedDuration::from_hours(48)).step else {
        panic!("no pod")
    };
    assert_eq!(plan.targets[0].tags, ["19700101-edge"]);
}

#[test]
fn what_a_tag_pointed_to_before_is_kept_over_attempts() {
    let mut entry = status::pending(&observed(&["one.test/a"]).push.spec.targets[0]);
    entry.tags = vec![status::tag("edge".into())];
    let report = |previous: &[u8]| TargetReport {
        failure: None,
        digest: None,
        retry_after_seconds: None,
        errors: Vec::new(),
        refused: None,
        blobs: BlobCounters::default(),
        referrers: ReferrerCounters::default(),
        requests: Vec::new(),
        requests_omitted: 0,
        previous: vec![Some(Digest::of(previous))],
    };
    let ours = Digest::of(b"ours");
    status::take_report(&mut entry, &report(b"before"), Some(&ours), Success::Pushed, NOW);
    status::take_report(&mut entry, &report(b"ours"), Some(&ours), Success::Pushed, NOW);
    assert_eq!(entry.tags[0].previous, Some(Digest::of(b"before")));
}

#[test]
fn an_upload_request_of_its_build_starts_what_failed_and_only_once() {
    let seen = observed(&["one.test/a", "two.test/a"]);
    let seen = after(&seen, &decide(&seen, NOW));
    let failed = ended_with(&seen, vec![None, Some(Failure::new(Reason::PushDenied, "no"))]);
    let asked = Observed {
        upload_request: Some("now".into()),
        ..failed
    };
    let again = decide(&asked, NOW);
    assert_eq!(planned(&again), ["two.test/a"]);
    let denied = ended_with(
        &after(&asked, &again),
        vec![Some(Failure::new(Reason::PushDenied, "no"))],
    );
    assert_eq!(decide(&denied, NOW).step, Step::Nothing);
}

#[rstest::rstest]
#[case::blob(
    Some(RefusedPart::Blob(Digest::of(b"x"))),
    "Upload of sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881 for team/app failed"
)]
#[case::manifest(
    Some(RefusedPart::Manifest),
    "Failed to upload manifest for web (one.test) in web-7"
)]
#[case::index(
    Some(RefusedPart::Index),
    "Failed to upload manifest of manifests for web (one.test)"
)]
#[case::anything_else(None, "no answer")]
fn the_summary_of_an_error_says_what_launchpad_says(
    #[case] refused: Option<RefusedPart>,
    #[case] expected: &str,
) {
    let facts = tags::Facts {
        build: Some(tags::BuildFacts {
            recipe: "web".into(),
            name: "web-7".into(),
            ..tags::BuildFacts::default()
        }),
        ..tags::Facts::default()
    };
    let seen = observed(&["one.test/team/app"]);
    let report = TargetReport {
        failure: Some(Failure::new(Reason::RegistryUnavailable, "no answer")),
        digest: None,
        retry_after_seconds: None,
        errors: Vec::new(),
        refused,
        blobs: BlobCounters::default(),
        referrers: ReferrerCounters::default(),
        requests: Vec::new(),
        requests_omitted: 0,
        previous: Vec::new(),
    };
    let summary = status::error_summary(&seen.push, facts.build.as_ref(), "one.test/team/app", &report);
    assert_eq!(summary, expected);
}

#[test]
fn the_next_attempt_waits_until_the_kubelet_has_seen_the_last_pod_end() {
    let seen = observed(&["one.test/a"]);
    let seen = after(&seen, &decide(&seen, NOW));
    let mut told = reported(&seen, vec![None]);
    if let Some(pod) = &mut told.pod {
        pod.ahead = true;
    }
    let told = after(&told, &decide(&told, NOW));
    let mut again = edited(&told, |push| push.spec.targets[0].tags = vec!["next".into()]);
    assert_eq!(decide(&again, NOW).step, Step::Nothing);
    if let Some(pod) = &mut again.pod {
        pod.ahead = false;
    }
    assert!(matches!(decide(&again, NOW).step, Step::CreatePod { .. }));
}
