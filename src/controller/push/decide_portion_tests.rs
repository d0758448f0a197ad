//! `publish: AsReady`: each platform is published as soon as it is built.

use rstest::rstest;

use super::*;
use crate::image::Platform;

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

fn portion(text: &str) -> Portion {
    let Source::Ready(from) = observed(&[]).source else {
        panic!("no source")
    };
    let digest = Digest::of(text.as_bytes());
    Portion {
        platform: platform(text),
        from: PushSource {
            reference: digest.to_string(),
            digest: Some(digest),
            ..*from
        },
    }
}

fn building() -> Source {
    Source::Waiting("Waiting for build \"web-7\", which is Building.".into())
}

/// Two targets, of which the first publishes as ready, and a build that goes on.
fn seen(portions: &[&str]) -> Observed {
    let mut seen = observed(&["one.test/a", "two.test/a"]);
    let push = Arc::make_mut(&mut seen.push);
    push.spec.targets[0].publish = PublishPolicy::AsReady;
    push.spec.source = serde_json::from_value(json!({ "buildRef": { "name": "web-7" } })).unwrap();
    with(&seen, portions, building())
}

fn with(seen: &Observed, portions: &[&str], source: Source) -> Observed {
    Observed {
        portions: portions.iter().copied().map(portion).collect(),
        source,
        ..seen.clone()
    }
}

fn plan_of(decision: &Decision) -> PushPlan {
    match &decision.step {
        Step::CreatePod { plan } => (**plan).clone(),
        other => panic!("no pod: {other:?}"),
    }
}

/// The attempt began, and ended like this.
fn attempted(seen: &Observed, failure: Option<Failure>) -> Observed {
    let begun = after(seen, &decide(seen, NOW));
    let ended = reported(&begun, vec![failure]);
    Observed {
        pod: None,
        pod_was_seen: false,
        ..after(&ended, &decide(&ended, NOW))
    }
}

fn waits_for(seen: &Observed) -> (String, String) {
    let decision = decide(seen, NOW);
    assert_eq!(decision.step, Step::Nothing);
    let ready = decision.status.conditions;
    let ready = ready.iter().find(|c| c.type_ == condition::READY).unwrap();
    (ready.reason.clone(), ready.message.clone())
}

#[test]
fn a_platform_is_published_beside_the_others_and_the_whole_image_takes_their_place() {
    let seen = seen(&["linux/amd64"]);
    let first = decide(&seen, NOW);
    let plan = plan_of(&first);
    assert_eq!(planned(&first), ["one.test/a"]);
    assert_eq!(plan.targets[0].publish, PublishPolicy::KeepOld);
    assert_eq!(plan.source.digest, Some(Digest::of(b"linux/amd64")));
    assert_eq!(first.status.portion, Some(platform("linux/amd64")));

    let published = attempted(&seen, None);
    let entry = &targets(&published)[0];
    assert_eq!(
        (entry.state, entry.attempts, &entry.digest),
        (TargetState::Pending, 0, &None)
    );
    assert_eq!(entry.published, [platform("linux/amd64")]);
    assert_eq!(published.push.status.as_ref().unwrap().digest, None);
    assert_eq!(waits_for(&published).0, "WaitingForSource");

    let more = with(&published, &["linux/amd64", "linux/arm64"], building());
    assert_eq!(
        plan_of(&decide(&more, NOW)).source.digest,
        Some(Digest::of(b"linux/arm64"))
    );

    let Source::Ready(whole) = observed(&[]).source else {
        panic!("no source")
    };
    let whole = with(
        &attempted(&more, None),
        &["linux/amd64", "linux/arm64"],
        Source::Ready(whole),
    );
    let last = decide(&whole, NOW);
    assert_eq!(planned(&last), ["one.test/a", "two.test/a"]);
    assert_eq!(plan_of(&last).targets[0].publish, PublishPolicy::AsReady);
    let begun = after(&whole, &last);
    let done = decide(&reported(&begun, vec![None, None]), NOW).status;
    assert!(condition::is_true(&done.conditions, condition::SUCCEEDED));
    assert_eq!(
        (done.targets[0].state, done.targets[0].published.len()),
        (TargetState::Pushed, 0)
    );
}

#[test]
fn what_a_tag_pointed_to_is_what_was_there_before_the_first_platform() {
    let seen = seen(&["linux/amd64"]);
    let first = attempted(&seen, None);
    let mut more = with(&first, &["linux/amd64", "linux/arm64"], building());
    more = after(&more, &decide(&more, NOW));
    let mut ended = reported(&more, vec![None]);
    let Some(Container::Ended { message, .. }) =
        ended.pod.as_mut().and_then(|pod| pod.containers.get_mut(PUSH))
    else {
        panic!("no report")
    };
    let mut report: PushReport = report::read(message).unwrap();
    report.targets[0].previous = vec![Some(Digest::of(b"the first platform"))];
    *message = serde_json::to_string(&report).unwrap();
    assert_eq!(decide(&ended, NOW).status.targets[0].tags[0].previous, None);
}

#[test]
fn a_platform_that_could_not_be_published_is_tried_again_at_its_time_and_the_whole_image_all_the_same() {
    let failed = attempted(&seen(&["linux/amd64"]), Some(down()));
    assert!(targets(&failed)[0].published.is_empty());
    assert_eq!(waits_for(&failed).0, "RegistryUnavailable");
    let refused = attempted(
        &seen(&["linux/amd64"]),
        Some(Failure::new(Reason::PlatformLost, "no")),
    );
    assert_eq!(targets(&refused)[0].state, TargetState::Pending);
    let Source::Ready(whole) = observed(&[]).source else {
        panic!("no source")
    };
    let whole = decide(&with(&refused, &[], Source::Ready(whole)), in_seconds(5));
    assert_eq!(planned(&whole), ["one.test/a", "two.test/a"]);
    let again = decide(&failed, in_seconds(5));
    assert_eq!(plan_of(&again).source.digest, Some(Digest::of(b"linux/amd64")));
}

#[test]
fn where_only_the_index_is_missing_the_whole_image_is_waited_for() {
    let mut seen = seen(&["linux/amd64"]);
    seen.build = Some(after_the_push::built());
    assert_eq!(waits_for(&seen).0, "WaitingForSource");
}

#[test]
fn a_dry_run_and_a_target_that_waits_for_the_whole_get_no_portion() {
    let mut whole_only = seen(&["linux/amd64"]);
    Arc::make_mut(&mut whole_only.push).spec.targets[0].publish = PublishPolicy::WhenComplete;
    let dry_run = edited(&seen(&["linux/amd64"]), |push| push.spec.dry_run = true);
    for seen in [whole_only, dry_run] {
        let (reason, message) = waits_for(&seen);
        assert_eq!(reason, "WaitingForSource");
        assert!(message.contains("web-7"), "{message}");
        assert!(targets(&after(&seen, &decide(&seen, NOW)))[1].tags.is_empty());
    }
}

#[test]
fn an_attempt_that_began_with_a_portion_ends_with_it_whatever_was_built_since() {
    let seen = seen(&["linux/amd64"]);
    let begun = after(&seen, &decide(&seen, NOW));
    let Source::Ready(whole) = observed(&[]).source else {
        panic!("no source")
    };
    let whole = with(&begun, &["linux/amd64", "linux/arm64"], Source::Ready(whole));
    assert_eq!(
        plan_of(&decide(&whole, NOW)).source.digest,
        Some(Digest::of(b"linux/amd64"))
    );
    let told = decide(&reported(&whole, vec![None]), NOW).status;
    assert_eq!(
        (told.targets[0].state, &told.targets[0].digest),
        (TargetState::Pending, &None)
    );
}

#[test]
fn a_build_that_fails_ends_its_push_and_a_build_that_is_requested_again_goes_on_with_it() {
    let published = attempted(&seen(&["linux/amd64"]), None);
    let failed = with(
        &published,
        &["linux/amd64"],
        Source::NotBuilt("It failed.".into()),
    );
    let ended = decide(&failed, NOW);
    let failure = ended.status.failure.clone().unwrap();
    assert_eq!(failure.reason, Reason::NothingToUpload);
    assert_eq!(ended.status.targets[0].published, [platform("linux/amd64")]);
    let failed = after(&failed, &ended);
    assert_eq!(decide(&failed, NOW).status, ended.status);

    let mut again = with(&failed, &["linux/amd64"], building());
    assert_eq!(decide(&again, NOW).status, ended.status, "the build is gone");
    let mut build = after_the_push::built();
    let platforms = &mut Arc::make_mut(&mut build).status.as_mut().unwrap().platforms;
    platforms[0].state = crate::api::v1alpha1::PlatformState::Building;
    again.build = Some(build);
    let resumed = decide(&again, NOW);
    assert_eq!((&resumed.step, resumed.next), (&Step::Nothing, Next::Now));
    let again = after(&again, &resumed);
    assert_eq!(waits_for(&again).0, "WaitingForSource");
    let more = with(&again, &["linux/amd64", "linux/arm64"], building());
    assert_eq!(
        plan_of(&decide(&more, NOW)).source.digest,
        Some(Digest::of(b"linux/arm64"))
    );
}

#[rstest]
#[case::the_whole_image(seen(&[]), Source::Missing("gone".into()))]
#[case::a_platform(seen(&["linux/amd64"]), building())]
fn an_attempt_whose_source_goes_away_before_its_pod_is_made_was_none(
    #[case] seen: Observed,
    #[case] then: Source,
) {
    let source = if seen.portions.is_empty() {
        observed(&[]).source
    } else {
        building()
    };
    let seen = Observed { source, ..seen };
    let begun = after(&seen, &decide(&seen, NOW));
    assert!(
        targets(&begun)
            .iter()
            .any(|target| target.state == TargetState::Pushing)
    );
    let gone = with(&begun, &[], then);
    let decision = decide(&gone, NOW);
    assert_eq!(decision.step, Step::Nothing);
    assert_eq!(decision.next, Next::Now);
    assert_eq!((&decision.status.pod, &decision.status.portion), (&None, &None));
    let given_back = after(&gone, &decision);
    for target in targets(&given_back) {
        assert_eq!((target.state, target.attempts), (TargetState::Pending, 0));
    }
    // Nor does it begin again with nothing.
    assert_eq!(decide(&given_back, NOW).step, Step::Nothing);
}
