//! The pushes that a build makes of its recipe's rules.

use super::*;

#[test]
fn every_push_rule_gets_its_push_and_a_deleted_one_is_not_made_again() {
    let mut document = build(&["linux/amd64"]);
    let rules = ["a", "b"].map(|name| json!({ "repository": format!("example.test/{name}") }));
    document.spec.recipe.as_mut().unwrap().push_rules = serde_json::from_value(json!(rules)).unwrap();
    let first = observed(document);
    let first = after(&first, &decide(&first, NOW));
    let report = CollectReport::Recorded {
        digest: Digest::of(b"record"),
    };
    let mut seen = seeing(
        first,
        "linux/amd64",
        Some(ended(&report)),
        record("linux/amd64", None),
    );
    seen.root = StagedRoot::Present;
    for rule in 0..2 {
        let decision = decide(&seen, NOW);
        assert_eq!(decision.step, Step::CreatePush { rule });
        // A crash between the status and the effect: the same step is decided again.
        assert_eq!(
            decide(&after(&seen, &decision), NOW).step,
            Step::CreatePush { rule }
        );
        let push = push::of_rule(&seen.build, &decision.status, rule).unwrap();
        seen = after(&seen, &decision);
        seen.pushes.push(Arc::new(push));
    }
    let settled = decide(&seen, NOW);
    assert_eq!(
        (settled.step.clone(), settled.status.pushes.len()),
        (Step::Nothing, 2)
    );
    let mut deleted = after(&seen, &settled);
    deleted.pushes.pop();
    assert_eq!(decide(&deleted, NOW).step, Step::Nothing);
}

#[rstest::rstest]
#[case::as_ready("AsReady", true)]
#[case::when_complete("WhenComplete", false)]
fn a_rule_that_publishes_as_ready_gets_its_push_with_the_first_platform(
    #[case] publish: &str,
    #[case] made: bool,
) {
    let mut document = build(&["linux/amd64", "linux/arm64"]);
    let rules = json!([{ "repository": "example.test/web", "publish": publish }]);
    document.spec.recipe.as_mut().unwrap().push_rules = serde_json::from_value(rules).unwrap();
    let mut seen = observed(document);
    for name in ["linux/amd64", "linux/arm64"] {
        seen = seeing(
            after(&seen, &decide(&seen, NOW)),
            name,
            Some(running()),
            StagedRecord::None,
        );
    }
    seen = after(&seen, &decide(&seen, NOW));
    assert_eq!(decide(&seen, NOW).step, Step::Nothing);
    let report = CollectReport::Recorded {
        digest: Digest::of(b"record"),
    };
    let mut seen = seeing(
        seen,
        "linux/amd64",
        Some(ended(&report)),
        record("linux/amd64", None),
    );
    let decision = decide(&seen, NOW);
    assert_eq!(decision.status.phase, BuildPhase::Building);
    assert_eq!(decision.step == Step::CreatePush { rule: 0 }, made);
    if made {
        let push = push::of_rule(&seen.build, &decision.status, 0).unwrap();
        seen.pushes = vec![Arc::new(push)];
        let listed = decide(&after(&seen, &decision), NOW);
        assert_eq!((listed.step, listed.status.pushes.len()), (Step::Nothing, 1));
    }
}

#[test]
fn a_rule_that_the_recipe_got_later_is_pushed_alone_when_an_upload_is_asked_for() {
    let mut seen = observed(build(&["linux/amd64"]));
    let mut done = (*seen.build).clone();
    let mut status = OCIRecipeBuildStatus {
        phase: BuildPhase::FullyBuilt,
        ..decide(&seen, NOW).status
    };
    status.inputs.as_mut().unwrap().recipe.push_rules =
        serde_json::from_value(json!([{ "repository": "one.test/a" }])).unwrap();
    status.pushes = vec!["web-1-push-1".into()];
    done.status = Some(status.clone());
    let mut first = push::of_rule(&done, &status, 0).unwrap();
    first.status = Some(
        serde_json::from_value(json!({ "targets": [{ "repository": "one.test/a", "state": "Pushed" }] }))
            .unwrap(),
    );
    seen.pushes = vec![Arc::new(first)];
    let ask = |seen: &Observed, build: &OCIRecipeBuild, rules: &[&str]| {
        let mut build = build.clone();
        build.metadata.annotations =
            Some([(crate::api::UPLOAD_ANNOTATION.to_owned(), rules.len().to_string())].into());
        let rules: Vec<_> = rules.iter().map(|rule| json!({ "repository": rule })).collect();
        let seen = Observed {
            build: Arc::new(build),
            current_rules: serde_json::from_value(json!(rules)).unwrap(),
            ..seen.clone()
        };
        decide(&seen, NOW)
    };
    let refused = ask(&seen, &done, &["one.test/a"]);
    assert_eq!(refused.step, Step::Nothing);
    assert_eq!(
        refused.status.upload_refusal.unwrap().reason,
        Reason::AlreadyUploaded
    );

    let accepted = ask(&seen, &done, &["one.test/a", "two.test/b"]);
    assert_eq!(accepted.status.upload_refusal, None);
    assert_eq!(accepted.step, Step::CreatePush { rule: 1 });
    let second = push::of_rule(&done, &accepted.status, 1).unwrap();
    assert_eq!(second.name_any(), "web-1-push-2");
    assert_eq!(second.spec.targets[0].repository, "two.test/b");
    assert_eq!(
        accepted.status.registry_upload_status,
        RegistryUploadStatus::Partial
    );
}
