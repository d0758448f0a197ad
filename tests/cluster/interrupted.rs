//! Pushes that are interrupted: the pusher is killed, the registry restarts, the Secret is rotated.

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::{Value, json};
use slipway::{
    api::v1alpha1::{RegistryPush, RegistryPushStatus, condition},
    image::Digest,
};

use crate::{
    doors::{Closes, Door},
    own_registry::OwnRegistry,
    processes::Process,
    support::{Arena, REGISTRY_ADDRESS, image_script, run, shell},
};

/// The requests that a push of one image sends, and what of the image was there when it was cut off.
const STAGES: [(&str, &str, Closes, Sent); 6] = [
    ("look", "/v2/", Closes::Before, Sent::Nothing),
    ("upload", "POST /v2/", Closes::Before, Sent::Nothing),
    ("blob", "_state=", Closes::After, Sent::Some),
    ("manifest", "/manifests/sha256:", Closes::Before, Sent::All),
    ("tag", "PUT ", Closes::Before, Sent::All),
    ("proof", "PUT ", Closes::After, Sent::All),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Nothing,
    Some,
    All,
}

fn push(name: &str, build: &str, target: &Value) -> Value {
    json!({
        "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPush", "metadata": { "name": name },
        "spec": { "source": { "buildRef": { "name": build } }, "targets": [target] },
    })
}

/// Two layers of two MiB.
async fn built(arena: &Arena) -> Digest {
    arena.build("app", shell(&image_script(&[2048, 2048]))).await;
    arena.fully_built("app").await.image.unwrap().digest
}

async fn pushed(arena: &Arena, name: &str) -> RegistryPushStatus {
    let succeeded = |push: &RegistryPush| {
        let status = push.status.as_ref();
        status.is_some_and(|status| condition::is_true(&status.conditions, condition::SUCCEEDED))
    };
    arena.push_until(name, "pushed", succeeded).await.status.unwrap()
}

async fn failed_once(arena: &Arena, name: &str) -> RegistryPushStatus {
    let failed = |push: &RegistryPush| {
        let mut targets = push.status.iter().flat_map(|status| &status.targets);
        targets.any(|target| target.attempts == 1 && target.failure.is_some())
    };
    arena
        .push_until(name, "failed once", failed)
        .await
        .status
        .unwrap()
}

async fn pusher(arena: &Arena, push: &str) -> Process {
    let pod = arena.push_until(push, "pushing", |push| {
        push.status.as_ref().is_some_and(|status| status.pod.is_some())
    });
    let pod = pod.await.status.unwrap().pod.unwrap();
    arena
        .container_until(&pod, "push", |state| state.running.is_some())
        .await;
    Process::of(&arena.api::<Pod>(), &pod, "push", "push").await
}

async fn served(image: &str, credentials: Option<&str>) -> String {
    let image = format!("docker://{image}");
    let mut arguments = vec!["inspect", "--tls-verify=false", "--format", "{{.Digest}}"];
    arguments.extend(
        credentials
            .iter()
            .flat_map(|credentials| ["--creds", credentials]),
    );
    arguments.push(&image);
    run("skopeo", &arguments, None).await.unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pusher_that_is_killed_at_any_stage_is_followed_by_one_that_sends_what_is_missing() {
    let Some(arena) = Arena::open("killed").await else {
        return;
    };
    let digest = built(&arena).await;
    let stage = async |(stage, words, closes, sent): (&str, &str, Closes, Sent)| {
        let words = match stage {
            "manifest" => format!("PUT /v2/{}/manifest/manifests/sha256:", arena.namespace),
            "tag" | "proof" => format!("PUT /v2/{}/{stage}/manifests/v1 ", arena.namespace),
            _ => words.to_owned(),
        };
        let door = Door::that_closes(&arena.client, ["slipway-demo", "registry"], (&words, closes)).await;
        arena.let_plain_http(&door.address).await;
        let target =
            json!({ "repository": format!("{}/{}/{stage}", door.address, arena.namespace), "tags": ["v1"] });
        arena.apply(&push(stage, "app", &target)).await;
        door.arrived(1).await;
        pusher(&arena, stage).await.kill();
        let failed = failed_once(&arena, stage).await;
        assert!(failed.targets[0].next_attempt_at.is_some(), "{stage}: {failed:?}");
        door.open();
        let target = pushed(&arena, stage).await.targets.remove(0);
        assert_eq!(target.attempts, 2, "{stage}");
        let blobs = target.blobs;
        match sent {
            Sent::Nothing => assert_eq!(blobs.uploaded, 3, "{stage}: {blobs:?}"),
            Sent::Some => assert!((1..=3).contains(&blobs.uploaded), "{stage}: {blobs:?}"),
            Sent::All => assert_eq!(blobs.bytes_uploaded, 0, "{stage}: {blobs:?}"),
        }
        let image = format!("{REGISTRY_ADDRESS}/{}/{stage}:v1", arena.namespace);
        assert_eq!(served(&image, None).await, digest.as_str(), "{stage}");
    };
    join_all(STAGES.map(stage)).await;
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_restarts_in_the_middle_of_a_blob_gets_it_whole() {
    let Some(arena) = Arena::open("restart").await else {
        return;
    };
    let digest = built(&arena).await;
    let registry = OwnRegistry::start(&arena).await;
    let service = [arena.namespace.as_str(), "registry"];
    let door = Door::that_closes(&arena.client, service, ("_state=", Closes::After)).await;
    arena.let_plain_http(&door.address).await;
    let target = json!({ "repository": format!("{}/app", door.address), "tags": ["v1"] });
    arena.apply(&push("byhand", "app", &target)).await;
    door.arrived(1).await;
    let pods: Api<Pod> = arena.api();
    let running = pods
        .list(&ListParams::default().labels("app=registry"))
        .await
        .unwrap();
    let pod = running.items[0].name_any();
    Process::of(&pods, &pod, "registry", "serve").await.kill();
    door.open();
    let status = pushed(&arena, "byhand").await;
    let again = pods.get(&pod).await.unwrap();
    let restarts = again.status.unwrap().container_statuses.unwrap()[0].restart_count;
    assert_eq!(restarts, 1);
    // What it had confirmed without being heard is found there.
    let blobs = status.targets[0].blobs;
    assert!(
        blobs.uploaded >= 1 && blobs.uploaded + blobs.existed >= 3,
        "{status:?}"
    );
    assert_eq!(
        served(&format!("{}/app:v1", registry.address), None).await,
        digest.as_str()
    );
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_rotated_in_the_middle_of_a_push_counts_in_the_next_attempt() {
    let Some(arena) = Arena::open("rotated").await else {
        return;
    };
    let digest = built(&arena).await;
    let registry = OwnRegistry::start(&arena).await;
    registry.wants(&arena, "first").await;
    let service = [arena.namespace.as_str(), "registry"];
    let door = Door::that_closes(&arena.client, service, ("PUT /v2/app/manifests/", Closes::Before)).await;
    arena.let_plain_http(&door.address).await;
    let secret = |password: &str| {
        let login = json!({ "auths": { &door.address: { "username": "robot", "password": password } } });
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "login" },
            "type": "kubernetes.io/dockerconfigjson", "stringData": { ".dockerconfigjson": login.to_string() },
        })
    };
    arena.apply(&secret("first")).await;
    let target = json!({
        "repository": format!("{}/app", door.address), "tags": ["v1"], "credentialsRef": { "name": "login" },
    });
    arena.apply(&push("byhand", "app", &target)).await;
    door.arrived(1).await;
    registry.wants(&arena, "second").await;
    arena.apply(&secret("second")).await;
    door.open();
    // The pusher still has the first one.
    let failed = failed_once(&arena, "byhand").await.targets.remove(0);
    let reason = failed.failure.map(|failure| failure.reason);
    assert_eq!(reason, Some(slipway::record::Reason::PushUnauthorized));
    pushed(&arena, "byhand").await;
    let image = format!("{}/app:v1", registry.address);
    assert_eq!(served(&image, Some("robot:second")).await, digest.as_str());

    // A password that is wrong for good is tried twice, and then waits for somebody.
    registry.wants(&arena, "first").await;
    let mut wrong = push("wrong", "app", &target);
    wrong["spec"]["targets"][0]["tags"] = json!(["v2"]);
    arena.apply(&wrong).await;
    let finished = |push: &RegistryPush| {
        let status = push.status.as_ref();
        status.is_some_and(|status| condition::is_true(&status.conditions, condition::FINISHED))
    };
    let status = arena
        .push_until("wrong", "failed", finished)
        .await
        .status
        .unwrap();
    let (attempts, reason) = (
        status.targets[0].attempts,
        status.targets[0].failure.as_ref().unwrap().reason,
    );
    assert_eq!((attempts, reason), (2, slipway::record::Reason::PushUnauthorized));
    arena.close().await;
}
