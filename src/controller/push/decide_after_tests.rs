//! A target that serves the image: its receipt, and the looks at its tags.

use super::*;

pub(super) fn built() -> Arc<crate::api::v1alpha1::OCIRecipeBuild> {
    let (image, record) = (Digest::of(b"root"), Digest::of(b"record"));
    Arc::new(
        serde_json::from_value(json!({
            "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipeBuild",
            "metadata": { "name": "web-7", "namespace": "demo", "uid": "b-uid" },
            "spec": { "recipeRef": { "name": "web" } },
            "status": {
                "phase": "FullyBuilt",
                "platforms": [{ "platform": "linux/amd64", "state": "Built", "record": record }],
                "image": { "reference": "s/a@b", "digest": image, "mediaType": "x", "layerBytes": 1 },
            },
        }))
        .unwrap(),
    )
}

#[test]
fn a_target_that_serves_a_build_s_image_gets_one_receipt_while_others_still_wait() {
    let mut seen = observed(&["one.test/a", "two.test/a"]);
    seen.build = Some(built());
    let seen = after(&seen, &decide(&seen, NOW));
    let reported = reported(&seen, vec![None, Some(down())]);
    let decision = decide(&reported, NOW);
    let Step::PutReceipt(due) = &decision.step else {
        panic!("no receipt")
    };
    assert_eq!((due.target, due.tag.as_str()), (0, "receipt-b-uid-12345678-0-0"));
    assert_eq!(due.receipt.records, [Digest::of(b"record")]);
    assert_eq!(due.receipt.tags[0].name, "edge");
    let mut written = after(&reported, &decision);
    let mut push = (*written.push).clone();
    push.status.as_mut().unwrap().targets[0].receipt = Some(Digest::of(b"receipt"));
    written.push = Arc::new(push);
    written.pod = None;
    assert_eq!(decide(&written, NOW).step, Step::Nothing);
}

/// An uploaded push whose tags are looked at every minute, and the pass at which that is due.
fn checking() -> (Observed, Decision) {
    let seen = edited(&uploaded(), |push| push.spec.check_every_seconds = Some(60));
    let waiting = decide(&seen, in_seconds(1));
    assert_eq!(waiting.step, Step::Nothing);
    assert!(matches!(waiting.next, Next::After(_)));
    let seen = after(&seen, &waiting);
    let due = decide(&seen, in_seconds(60));
    (after(&seen, &due), due)
}

fn looked(seen: &Observed, found: Option<&[u8]>) -> Decision {
    let mut reported = reported(seen, vec![None]);
    let Some(Container::Ended { message, .. }) =
        reported.pod.as_mut().and_then(|pod| pod.containers.get_mut(PUSH))
    else {
        panic!("no report")
    };
    let mut report: PushReport = report::read(message).unwrap();
    report.digest = None;
    report.targets[0].previous = vec![found.map(Digest::of)];
    *message = serde_json::to_string(&report).unwrap();
    decide(&reported, in_seconds(61))
}

#[test]
fn a_push_that_ended_looks_at_its_tags_when_it_is_asked_to_and_not_in_between() {
    let (seen, due) = checking();
    let Step::CreatePod { plan } = &due.step else {
        panic!("no pod")
    };
    assert_eq!(
        (plan.mode, plan.targets[0].tags.as_slice()),
        (PushMode::Check, &["edge".to_owned()][..])
    );
    assert!(condition::is_true(&due.status.conditions, condition::SUCCEEDED));
    let same = looked(&seen, Some(b"root"));
    assert_eq!((&same.step, same.status.pod.as_ref()), (&Step::Nothing, None));
    assert!(condition::is_true(&same.status.conditions, condition::READY));
    assert!(
        same.status
            .conditions
            .iter()
            .any(|c| c.type_ == condition::DRIFTED && c.status == "False")
    );
    let seen = Observed {
        pod: None,
        ..after(&seen, &same)
    };
    assert_eq!(decide(&seen, in_seconds(120)).step, Step::Nothing);
    assert!(matches!(
        decide(&seen, in_seconds(121)).step,
        Step::CreatePod { .. }
    ));
}

#[rstest::rstest]
#[case::moved(Some(&b"other"[..]), "points to sha256:")]
#[case::gone(None, "points to nothing")]
fn a_tag_that_was_moved_is_told_and_set_again_on_request(#[case] found: Option<&[u8]>, #[case] says: &str) {
    let (seen, _) = checking();
    let drifted = looked(&seen, found);
    let conditions = &drifted.status.conditions;
    assert!(condition::is_true(conditions, condition::DRIFTED));
    assert!(condition::is_true(conditions, condition::SUCCEEDED));
    let ready = conditions.iter().find(|c| c.type_ == condition::READY).unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "TagMoved")
    );
    assert!(
        ready.message.contains("one.test/a:edge") && ready.message.contains(says),
        "{}",
        ready.message
    );
    let seen = Observed {
        pod: None,
        ..after(&seen, &drifted)
    };
    let asked = edited(&seen, |push| {
        push.metadata.annotations =
            Some([(crate::api::REQUEST_ANNOTATION.to_owned(), "again".to_owned())].into());
    });
    let Step::CreatePod { plan } = decide(&asked, in_seconds(62)).step else {
        panic!("no pod")
    };
    assert_eq!(plan.mode, PushMode::Write);
}

#[test]
fn a_look_that_tells_nothing_changes_nothing_but_says_so() {
    let (seen, _) = checking();
    let lost = Observed {
        pod_was_seen: true,
        ..seen
    };
    let decision = decide(&lost, in_seconds(61));
    let conditions = &decision.status.conditions;
    assert!(condition::is_true(conditions, condition::READY));
    let drifted = conditions.iter().find(|c| c.type_ == condition::DRIFTED).unwrap();
    assert_eq!(
        (drifted.status.as_str(), drifted.reason.as_str()),
        ("Unknown", "PushPodFailed")
    );
    assert_eq!(decision.status.targets[0].state, TargetState::Pushed);
}
