//! Pushes: by hand, to a registry that is down, without a Secret, forbidden.

use serde_json::json;
use slipway::{
    api::v1alpha1::{RegistryPush, TargetState, condition},
    record::Reason,
};

use crate::support::{Arena, REGISTRY, REGISTRY_ADDRESS, buildah, kubectl, pods_gone, run};

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
    let address = format!("docker://{REGISTRY_ADDRESS}/{}/copy:latest", arena.namespace);
    let seen = run(
        "skopeo",
        &[
            "inspect",
            "--tls-verify=false",
            "--format",
            "{{.Digest}}",
            &address,
        ],
        None,
    )
    .await
    .unwrap();
    assert_eq!(
        Some(seen.trim()),
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

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_down_is_pushed_to_when_it_comes_back_without_a_rebuild() {
    let Some(arena) = Arena::open("outage").await else {
        return;
    };
    let services =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/hack/demo/services.yaml")).unwrap();
    let own: Vec<String> = services
        .split("\n---\n")
        .filter(|document| document.contains("name: registry,"))
        .map(|document| {
            document
                .replace("slipway-demo", &arena.namespace)
                .replace("  clusterIP: 10.96.0.50\n", "")
        })
        .collect();
    kubectl(&["apply", "-f", "-"], Some(&own.join("\n---\n")))
        .await
        .unwrap();
    kubectl(
        &[
            "--namespace",
            &arena.namespace,
            "scale",
            "deployment/registry",
            "--replicas=0",
        ],
        None,
    )
    .await
    .unwrap();
    pods_gone(&arena.namespace, &["-l", "app=registry"]).await;
    let origin = format!("registry.{}.svc.cluster.local:5000", arena.namespace);
    let policy = json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPolicy", "metadata": { "name": arena.namespace }, "spec": { "origin": origin, "plainHTTP": true } });
    kubectl(&["apply", "-f", "-"], Some(&policy.to_string()))
        .await
        .unwrap();

    let mut spec = buildah("FROM scratch\nCOPY hello.txt /\n");
    spec["pushRules"] = json!([{ "repository": format!("{origin}/app") }]);
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
    kubectl(
        &[
            "--namespace",
            &arena.namespace,
            "scale",
            "deployment/registry",
            "--replicas=1",
        ],
        None,
    )
    .await
    .unwrap();
    let status = arena.uploaded("app").await;
    assert_eq!(status.platforms[0].attempt, 1, "nothing was built again");
    kubectl(&["delete", "rpol", &arena.namespace], None)
        .await
        .unwrap();
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
