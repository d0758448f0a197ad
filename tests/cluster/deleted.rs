//! Pods deleted by hand, as `kubectl delete pod` does it, in each phase: one attempt is lost and nothing else.

use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use serde_json::json;
use slipway::{
    api::v1alpha1::RegistryPush,
    record::{FailureClass, Reason},
};

use crate::{
    doors::Door,
    support::{Arena, image_script, shell, with},
};

/// Waits for the second attempt, and looks at what the status says of the first.
async fn second_attempt(arena: &Arena, build: &str, first: &str) {
    let status = arena
        .build_until(build, "trying again", |status| status.platforms[0].attempt == 2)
        .await;
    let failure = status.platforms[0].failure.as_ref().unwrap();
    assert_eq!(
        (failure.reason, failure.class),
        (Reason::BuildPodDeleted, FailureClass::Infrastructure),
        "{failure:?}"
    );
    assert!(failure.message.contains("was deleted"), "{failure:?}");
    assert_eq!(status.platforms[0].infrastructure_failures, 1);
    assert_ne!(status.platforms[0].pod.as_deref(), Some(first));
}

async fn ends_well_with_two_pods(arena: &Arena, build: &str) {
    let status = arena.fully_built(build).await;
    assert_eq!(status.platforms[0].attempt, 2);
    assert_eq!(arena.history.count(build), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_while_it_fetches_costs_one_attempt() {
    let Some(arena) = Arena::open("delfetch").await else {
        return;
    };
    let git = Door::to_service(&arena.client, "slipway-demo", "git").await;
    let spec = json!({
        "source": { "git": { "url": format!("http://{}/bench.git", git.address) } },
        "strategyRef": { "name": "buildah" },
    });
    arena.build("unlucky", spec).await;
    git.arrived(1).await;
    let pod = arena.pod_of("unlucky").await;
    arena.delete_pod(&pod).await;
    second_attempt(&arena, "unlucky", &pod).await;
    git.open();
    ends_well_with_two_pods(&arena, "unlucky").await;
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_while_it_builds_costs_one_attempt() {
    let Some(arena) = Arena::open("delbuild").await else {
        return;
    };
    let latch = Door::latch(&arena.client).await;
    let script = format!("{}; {}", latch.wait_here(), image_script(&[8]));
    arena.build("unlucky", shell(&script)).await;
    latch.arrived(1).await;
    let pod = arena.building("unlucky").await;
    arena.delete_pod(&pod).await;
    second_attempt(&arena, "unlucky", &pod).await;
    latch.arrived(2).await;
    latch.open();
    ends_well_with_two_pods(&arena, "unlucky").await;
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_without_grace_costs_one_attempt() {
    let Some(arena) = Arena::open("delforce").await else {
        return;
    };
    let latch = Door::latch(&arena.client).await;
    let script = format!("{}; {}", latch.wait_here(), image_script(&[8]));
    arena.build("unlucky", shell(&script)).await;
    latch.arrived(1).await;
    let pod = arena.building("unlucky").await;
    arena
        .api::<Pod>()
        .delete(&pod, &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    second_attempt(&arena, "unlucky", &pod).await;
    latch.open();
    ends_well_with_two_pods(&arena, "unlucky").await;
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_while_it_collects_costs_one_attempt() {
    let Some(arena) = Arena::open("delcollect").await else {
        return;
    };
    let latch = Door::latch(&arena.client).await;
    let script = format!("{}; {}", latch.wait_here(), image_script(&[8]));
    arena.build("unlucky", shell(&script)).await;
    latch.arrived(1).await;
    arena.stop_collector("unlucky").await;
    latch.open();
    let pod = arena.pod_of("unlucky").await;
    arena
        .container_until(&pod, "build", |state| state.terminated.is_some())
        .await;
    arena.delete_pod(&pod).await;
    second_attempt(&arena, "unlucky", &pod).await;
    ends_well_with_two_pods(&arena, "unlucky").await;
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_while_it_pushes_costs_one_attempt_and_no_build() {
    let Some(arena) = Arena::open("delpush").await else {
        return;
    };
    let registry = Door::to_service(&arena.client, "slipway-demo", "registry").await;
    arena.let_plain_http(&registry.address).await;
    let repository = format!("{}/{}/app", registry.address, arena.namespace);
    let spec = with(
        shell(&image_script(&[8])),
        &json!({ "pushRules": [{ "repository": repository }] }),
    );
    arena.build("unlucky", spec).await;
    registry.arrived(1).await;
    let pushing = |attempt: i32| {
        move |push: &RegistryPush| {
            let status = push.status.as_ref();
            status.is_some_and(|status| status.attempt == attempt && status.pod.is_some())
        }
    };
    let push = arena.push_until("unlucky-push-1", "pushing", pushing(1)).await;
    arena.delete_pod(&push.status.unwrap().pod.unwrap()).await;
    let waiting = arena
        .push_until("unlucky-push-1", "waiting for the next attempt", |push| {
            push.status
                .as_ref()
                .is_some_and(|status| status.next_attempt_at.is_some())
        })
        .await;
    let failure = waiting.status.unwrap().failure.unwrap();
    assert_eq!(failure.reason, Reason::PushPodFailed, "{failure:?}");
    assert!(failure.message.contains("was deleted"), "{failure:?}");
    registry.open();
    let status = arena.uploaded("unlucky").await;
    assert_eq!(status.platforms[0].attempt, 1, "nothing was built again");
    assert_eq!(arena.history.count("unlucky-push-1"), 2);
    arena.close().await;
}
