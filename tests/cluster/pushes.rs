//! Pushes: by hand, to several targets, to a registry that is down, without a Secret, forbidden, asked for later.

use serde_json::json;
use slipway::{
    api::v1alpha1::{OCIRecipe, OCIRecipeBuild, RegistryPush, RegistryUploadStatus, TargetState, condition},
    record::Reason,
};

use crate::{
    own_registry::OwnRegistry,
    support::{Arena, REGISTRY, REGISTRY_ADDRESS, buildah, kubectl, run},
};

fn finished(push: &RegistryPush) -> bool {
    push.status
        .as_ref()
        .is_some_and(|status| condition::is_true(&status.conditions, condition::FINISHED))
}

fn push(source: &serde_json::Value, target: &serde_json::Value) -> serde_json::Value {
    json!({
        "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPush", "metadata": { "name": "byhand" },
        "spec": { "source": source, "targets": [target] },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_applied_by_hand_stands_alone() {
    let Some(arena) = Arena::open("byhand").await else {
        return;
    };
    let source = json!({ "reference": format!("{REGISTRY}/base/debian:12") });
    let repository = format!("{REGISTRY}/{}/copy", arena.namespace);
    arena
        .apply(&push(
            &source,
            &json!({ "repository": repository, "tags": ["v1", "latest"] }),
        ))
        .await;
    let done = arena.push_until("byhand", "finished", finished).await;
    let status = done.status.unwrap();
    assert_eq!(
        status.targets[0].state,
        TargetState::Pushed,
        "{:?}",
        status.targets
    );
    // The same registry has the layers already: they are mounted, not sent.
    assert!(
        status.targets[0].blobs.mounted >= 1,
        "{:?}",
        status.targets[0].blobs
    );
    let seen = served(&format!("{REGISTRY_ADDRESS}/{}/copy:latest", arena.namespace)).await;
    assert_eq!(
        Some(seen.as_str()),
        status.digest.as_ref().map(slipway::image::Digest::as_str)
    );
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_does_not_exist_fails_at_once() {
    let Some(arena) = Arena::open("nosource").await else {
        return;
    };
    let source = json!({ "reference": format!("{REGISTRY}/no/such:image") });
    arena
        .apply(&push(
            &source,
            &json!({ "repository": format!("{REGISTRY}/{}/copy", arena.namespace) }),
        ))
        .await;
    let status = arena
        .push_until("byhand", "finished", finished)
        .await
        .status
        .unwrap();
    assert_eq!(status.failure.unwrap().reason, Reason::SourceMissing);
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_is_a_wait_that_ends_when_it_appears() {
    let Some(arena) = Arena::open("nosecret").await else {
        return;
    };
    let source = json!({ "reference": format!("{REGISTRY}/base/debian:12") });
    let target = json!({ "repository": format!("{REGISTRY}/{}/copy", arena.namespace), "credentialsRef": { "name": "later" } });
    arena.apply(&push(&source, &target)).await;
    arena
        .push_until("byhand", "waiting for the Secret", |push| {
            push.status.as_ref().is_some_and(|s| {
                s.conditions
                    .iter()
                    .any(|c| c.reason == "SecretMissing" && c.message.contains("later"))
            })
        })
        .await;
    arena
        .apply(&json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson", "metadata": { "name": "later" }, "stringData": { ".dockerconfigjson": "{\"auths\":{}}" } }))
        .await;
    let status = arena
        .push_until("byhand", "finished", finished)
        .await
        .status
        .unwrap();
    assert_eq!(status.targets[0].state, TargetState::Pushed);
    arena.close().await;
}

/// What another tool says that a tag points to.
async fn served(image: &str) -> String {
    let address = format!("docker://{image}");
    let arguments = [
        "inspect",
        "--tls-verify=false",
        "--format",
        "{{.Digest}}",
        &address,
    ];
    run("skopeo", &arguments, None).await.unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_targets_the_one_that_is_down_waits_and_completes_by_itself() {
    let Some(arena) = Arena::open("three").await else {
        return;
    };
    let registry = OwnRegistry::that_is_down(&arena).await;
    arena
        .build("app", buildah("FROM scratch\nCOPY hello.txt /\n"))
        .await;
    let built = arena.fully_built("app").await;
    let digest = built.image.unwrap().digest;
    let targets = [
        format!("{REGISTRY}/{}/one", arena.namespace),
        format!("{REGISTRY}/{}/two", arena.namespace),
        format!("{}/three", registry.origin),
    ];
    let listed: Vec<_> = targets
        .iter()
        .map(|repository| json!({ "repository": repository, "tags": ["v1", "{build}-{risk}"] }))
        .collect();
    let document = json!({
        "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPush", "metadata": { "name": "byhand" },
        "spec": { "source": { "buildRef": { "name": "app" } }, "targets": listed },
    });
    arena.apply(&document).await;
    let waiting = arena
        .push_until("byhand", "two done and one waiting", |push| {
            push.status.as_ref().is_some_and(|status| {
                let states: Vec<_> = status.targets.iter().map(|target| target.state).collect();
                states == [TargetState::Pushed, TargetState::Pushed, TargetState::Pending]
            })
        })
        .await
        .status
        .unwrap();
    assert_eq!(waiting.progress, "2/3");
    let down = &waiting.targets[2];
    assert_eq!(down.failure.as_ref().unwrap().reason, Reason::RegistryUnavailable);
    assert!(down.next_attempt_at.is_some() && down.attempts >= 1, "{down:?}");

    registry.scale(&arena, 1).await;
    let push = arena.push_until("byhand", "finished", finished).await;
    let status = push.status.unwrap();
    assert!(
        condition::is_true(&status.conditions, condition::SUCCEEDED),
        "{:?}",
        status.conditions
    );
    // Those that were done were not pushed to again, and the one that waited got every blob once.
    for (before, after) in waiting.targets.iter().zip(&status.targets).take(2) {
        assert_eq!((before.attempts, before.blobs), (after.attempts, after.blobs));
    }
    let (first, third) = (status.targets[0].blobs, status.targets[2].blobs);
    assert_eq!(third.uploaded, first.existed + first.mounted + first.uploaded);
    assert_eq!((third.existed, third.mounted, third.resumed), (0, 0, 0));
    assert!(status.targets[2].attempts >= 2);
    let images = [
        format!("{REGISTRY_ADDRESS}/{}/one", arena.namespace),
        format!("{REGISTRY_ADDRESS}/{}/two", arena.namespace),
        format!("{}/three", registry.address),
    ];
    for image in images {
        for tag in ["v1", "app-edge"] {
            assert_eq!(
                served(&format!("{image}:{tag}")).await,
                digest.as_str(),
                "{image}:{tag}"
            );
        }
    }
    assert_eq!(status.digest, Some(digest));
    let receipted = arena
        .push_until("byhand", "receipted", |push| {
            let targets = push.status.iter().flat_map(|status| &status.targets);
            targets.filter(|target| target.receipt.is_some()).count() == 3
        })
        .await;
    assert!(
        receipted.status.unwrap().referrers.is_empty(),
        "records stay in staging"
    );
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_lists_the_requests_and_the_same_push_then_sends_them() {
    let Some(arena) = Arena::open("dryrun").await else {
        return;
    };
    let source = json!({ "reference": format!("{REGISTRY}/base/debian:12") });
    let target = json!({ "repository": format!("{REGISTRY}/{}/copy", arena.namespace), "tags": ["v1"] });
    let mut document = push(&source, &target);
    document["spec"]["dryRun"] = json!(true);
    arena.apply(&document).await;
    let status = arena
        .push_until("byhand", "planned", finished)
        .await
        .status
        .unwrap();
    let planned = &status.targets[0];
    assert_eq!(planned.state, TargetState::Planned, "{planned:?}");
    assert!(planned.requests.len() >= 4, "{:?}", planned.requests);
    assert!(
        planned
            .requests
            .last()
            .unwrap()
            .starts_with("PUT manifests/v1 (new)")
    );
    arena
        .patch::<RegistryPush>("byhand", json!({ "spec": { "dryRun": false } }))
        .await;
    arena
        .push_until("byhand", "pushed", |push| {
            finished(push) && push.status.as_ref().unwrap().targets[0].state == TargetState::Pushed
        })
        .await;
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_somebody_moves_is_noticed_and_set_again_on_request() {
    let Some(arena) = Arena::open("drift").await else {
        return;
    };
    let source = json!({ "reference": format!("{REGISTRY}/base/debian:12") });
    let target = json!({ "repository": format!("{REGISTRY}/{}/copy", arena.namespace), "tags": ["v1"] });
    let mut document = push(&source, &target);
    document["spec"]["checkEverySeconds"] = json!(60);
    arena.apply(&document).await;
    let pushed = arena
        .push_until("byhand", "finished", finished)
        .await
        .status
        .unwrap();
    let digest = pushed.digest.unwrap();
    // Another image under the same tag.
    arena
        .build("other", buildah("FROM scratch\nCOPY hello.txt /\n"))
        .await;
    arena.fully_built("other").await;
    let mut mover = push(&json!({ "buildRef": { "name": "other" } }), &target);
    mover["metadata"]["name"] = json!("mover");
    arena.apply(&mover).await;
    arena.push_until("mover", "finished", finished).await;
    let drifted = arena
        .push_until("byhand", "drifted", |push| {
            let status = push.status.as_ref();
            status.is_some_and(|status| condition::is_true(&status.conditions, condition::DRIFTED))
        })
        .await
        .status
        .unwrap();
    let ready = drifted
        .conditions
        .iter()
        .find(|c| c.type_ == condition::READY)
        .unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "TagMoved")
    );
    assert!(condition::is_true(&drifted.conditions, condition::SUCCEEDED));
    let request = json!({ "metadata": { "annotations": { "slipway.dev/requested-at": "again" } } });
    arena.patch::<RegistryPush>("byhand", request).await;
    arena
        .push_until("byhand", "set again", |push| {
            let status = push.status.as_ref().unwrap();
            let tag = &status.targets[0].tags[0];
            finished(push)
                && tag.drifted_to.is_none()
                && status.last_handled_request.as_deref() == Some("again")
        })
        .await;
    let image = format!("{REGISTRY_ADDRESS}/{}/copy:v1", arena.namespace);
    assert_eq!(served(&image).await, digest.as_str());
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_the_recipe_gets_later_is_pushed_alone_when_an_upload_is_asked_for() {
    let Some(arena) = Arena::open("later").await else {
        return;
    };
    let rule = |name: &str| json!({ "repository": format!("{REGISTRY}/{}/{name}", arena.namespace) });
    let mut spec = buildah("FROM scratch\nCOPY hello.txt /\n");
    spec["trigger"] = json!("Manual");
    spec["pushRules"] = json!([rule("one")]);
    arena
        .apply(&json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipe", "metadata": { "name": "app" }, "spec": spec }))
        .await;
    arena
        .apply(&json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipeBuild", "metadata": { "name": "run" }, "spec": { "recipeRef": { "name": "app" } } }))
        .await;
    arena.uploaded("run").await;
    let ask =
        |text: &str| json!({ "metadata": { "annotations": { "slipway.dev/upload-requested-at": text } } });
    arena.patch::<OCIRecipeBuild>("run", ask("1")).await;
    let refused = arena
        .build_until("run", "refused", |status| {
            status.last_handled_upload_request.as_deref() == Some("1")
        })
        .await;
    assert_eq!(refused.upload_refusal.unwrap().reason, Reason::AlreadyUploaded);
    arena
        .patch::<OCIRecipe>(
            "app",
            json!({ "spec": { "pushRules": [rule("one"), rule("two")] } }),
        )
        .await;
    // The operator may hear of the recipe later than of the request, and a refused request asks for nothing more.
    let mut asked = 1;
    let accepted = loop {
        asked += 1;
        let text = asked.to_string();
        arena.patch::<OCIRecipeBuild>("run", ask(&text)).await;
        let answered = arena
            .build_until("run", "answered", move |status| {
                status.last_handled_upload_request.as_deref() == Some(&text)
            })
            .await;
        if answered.upload_refusal.is_none() || asked > 20 {
            break answered;
        }
    };
    assert_eq!(accepted.upload_refusal, None);
    let status = arena
        .build_until("run", "both uploaded", |status| {
            status.pushes.len() == 2 && status.registry_upload_status == RegistryUploadStatus::Uploaded
        })
        .await;
    let first = arena.api::<RegistryPush>().get(&status.pushes[0]).await.unwrap();
    assert_eq!(
        first.status.unwrap().attempt,
        1,
        "the first rule was not pushed again"
    );
    let image = format!("{REGISTRY_ADDRESS}/{}/two:edge", arena.namespace);
    assert_eq!(served(&image).await, status.image.unwrap().digest.as_str());
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_down_is_pushed_to_when_it_comes_back_without_a_rebuild() {
    let Some(arena) = Arena::open("outage").await else {
        return;
    };
    let registry = OwnRegistry::that_is_down(&arena).await;
    let mut spec = buildah("FROM scratch\nCOPY hello.txt /\n");
    spec["pushRules"] = json!([{ "repository": format!("{}/app", registry.origin) }]);
    arena.build("app", spec).await;
    arena.fully_built("app").await;
    arena
        .push_until("app-push-1", "waiting for the registry", |push| {
            push.status.as_ref().is_some_and(|s| {
                s.targets[0]
                    .failure
                    .as_ref()
                    .is_some_and(|f| f.reason == Reason::RegistryUnavailable)
            })
        })
        .await;
    registry.scale(&arena, 1).await;
    let status = arena.uploaded("app").await;
    assert_eq!(status.platforms[0].attempt, 1, "nothing was built again");
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_denies_an_origin_is_obeyed() {
    let Some(arena) = Arena::open("denied").await else {
        return;
    };
    let origin = format!("{}.example.test", arena.namespace);
    let policy = json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPolicy", "metadata": { "name": arena.namespace }, "spec": { "origin": origin, "access": "Denied" } });
    kubectl(&["apply", "-f", "-"], Some(&policy.to_string()))
        .await
        .unwrap();
    let source = json!({ "reference": format!("{REGISTRY}/base/debian:12") });
    arena
        .apply(&push(&source, &json!({ "repository": format!("{origin}/a/b") })))
        .await;
    let status = arena
        .push_until("byhand", "finished", finished)
        .await
        .status
        .unwrap();
    assert_eq!(
        status.targets[0].failure.as_ref().unwrap().reason,
        Reason::OriginForbidden
    );
    assert!(arena.pods().await.is_empty(), "no pod was made");
    kubectl(&["delete", "rpol", &arena.namespace], None)
        .await
        .unwrap();
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn staging_is_neither_a_source_nor_a_target_that_anybody_may_name() {
    let Some(arena) = Arena::open("reserved").await else {
        return;
    };
    let staging = "slipway-staging.slipway-system.svc.cluster.local:5000/slipway/others";
    let (theirs, ours) = (
        format!("{staging}:slipway-layers"),
        format!("{REGISTRY}/base/debian:12"),
    );
    let own = format!("{REGISTRY}/{}/copy", arena.namespace);
    for (name, source, target) in [
        ("steal", theirs.as_str(), own.as_str()),
        ("plant", ours.as_str(), staging),
    ] {
        let mut document = push(&json!({ "reference": source }), &json!({ "repository": target }));
        document["metadata"]["name"] = json!(name);
        arena.apply(&document).await;
        let status = arena.push_until(name, "finished", finished).await.status.unwrap();
        let failure = status.failure.or(status.targets[0].failure.clone()).unwrap();
        assert_eq!(failure.reason, Reason::OriginForbidden, "{name}");
    }
    assert!(arena.pods().await.is_empty(), "no pod was made");
    arena.close().await;
}
