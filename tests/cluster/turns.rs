//! Many pushes at once: what several images have in common is brought by one of them.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::json;
use slipway::api::v1alpha1::{RegistryPush, condition};

use crate::{
    doors::Door,
    support::{Arena, shell, with},
};

const PUSHES: usize = 10;

/// Ten layers of 1.25 MiB, of which nine are the same in every image, and none is smaller when it is compressed.
const SCRIPT: &str = r#"
cd /tmp
perl -e 'srand(7); print pack("N", rand(2**32)) for 1..2949120' | split -b 1310720 - data
head -c 1310720 /dev/urandom > datazz
ids= names=
for data in data*; do
  touch -d @0 $data
  tar --owner 0 --group 0 --numeric-owner -cf layer-$data $data
  ids="$ids${ids:+,}\"sha256:$(sha256sum < layer-$data | cut -d' ' -f1)\""
  names="$names${names:+,}\"layer-$data\""
done
echo "{\"architecture\":\"$SLIPWAY_ARCH\",\"os\":\"linux\",\"config\":{},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[$ids]}}" > config.json
echo "[{\"Config\":\"config.json\",\"RepoTags\":[\"test:1\"],\"Layers\":[$names]}]" > manifest.json
tar -cf "$SLIPWAY_ARCHIVE" manifest.json config.json layer-*
"#;

fn is_queued(push: &RegistryPush) -> bool {
    let mut conditions = push.status.iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| condition.type_ == condition::READY && condition.reason == "Queued")
}

fn succeeded(push: &RegistryPush) -> bool {
    let status = push.status.as_ref();
    status.is_some_and(|status| condition::is_true(&status.conditions, condition::SUCCEEDED))
}

fn waits_for_layers(push: &RegistryPush) -> bool {
    let mut conditions = push.status.iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| condition.message.ends_with("is bringing layers that both have."))
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_that_begin_together_bring_each_layer_once() {
    let Some(arena) = Arena::open("turns").await else {
        return;
    };
    // The first push stands before the registry until all others have begun, or wait.
    let registry = Door::to_service(&arena.client, "slipway-demo", "registry").await;
    arena.let_plain_http(&registry.address).await;
    let repository = format!("{}/{}/app", registry.address, arena.namespace);
    let builds: Vec<String> = (1..=PUSHES).map(|number| format!("app-{number}")).collect();
    join_all(
        builds
            .iter()
            .map(|build| arena.build(build, with(shell(SCRIPT), &json!({})))),
    )
    .await;
    // Of each blob of all images together, its size.
    let mut unique = BTreeMap::new();
    for status in join_all(builds.iter().map(|build| arena.fully_built(build))).await {
        let layers = &status.platforms[0].layers;
        assert_eq!(layers.len(), 10);
        unique.extend(layers.iter().map(|layer| (layer.digest.clone(), layer.size)));
    }
    assert_eq!(unique.len(), 9 + PUSHES);

    let push = |build: &String| {
        json!({
            "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPush", "metadata": { "name": build },
            "spec": {
                "source": { "buildRef": { "name": build } },
                "targets": [{ "repository": repository, "tags": [build] }],
            },
        })
    };
    let pushes: Vec<_> = builds.iter().map(push).collect();
    arena
        .apply(&json!({ "apiVersion": "v1", "kind": "List", "items": pushes }))
        .await;
    registry.arrived(1).await;
    let under_way = |push: &RegistryPush| {
        let status = push.status.as_ref();
        status.is_some_and(|status| status.pod.is_some() || waits_for_layers(push))
    };
    let begun = join_all(
        builds
            .iter()
            .map(|build| arena.push_until(build, "under way", under_way)),
    )
    .await;
    let waiting = begun.iter().filter(|push| waits_for_layers(push)).count();
    assert_eq!(waiting, PUSHES - 1);
    registry.open();
    let ended = join_all(
        builds
            .iter()
            .map(|build| arena.push_until(build, "pushed", succeeded)),
    )
    .await;
    let sent: i64 = ended
        .iter()
        .map(|push| push.status.as_ref().unwrap().targets[0].blobs.bytes_uploaded)
        .sum();
    let layers: i64 = unique.values().map(|size| i64::try_from(*size).unwrap()).sum();
    println!("{PUSHES} pushes sent {sent} bytes, their layers are {layers}");
    // Configs are sent too; they are less than a thousandth.
    assert!(
        (layers..layers + layers / 100).contains(&sent),
        "{sent} of {layers}"
    );
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_takes_one_push_at_a_time_has_a_queue() {
    let Some(arena) = Arena::open("queue").await else {
        return;
    };
    let registry = Door::to_service(&arena.client, "slipway-demo", "registry").await;
    let limits = json!({ "pushesAtOnce": 1, "requestsPerSecond": 200, "bytesPerSecond": 52_428_800 });
    arena.let_plain_http_within(&registry.address, &limits).await;
    arena.build("app", with(shell(SCRIPT), &json!({}))).await;
    arena.fully_built("app").await;
    let names = ["one", "two", "three"];
    let push = |name: &&str| {
        json!({
            "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPush", "metadata": { "name": name },
            "spec": {
                "source": { "buildRef": { "name": "app" } },
                "targets": [{
                    "repository": format!("{}/{}/{name}", registry.address, arena.namespace), "tags": ["1"],
                }],
            },
        })
    };
    let pushes: Vec<_> = names.iter().map(push).collect();
    arena
        .apply(&json!({ "apiVersion": "v1", "kind": "List", "items": pushes }))
        .await;
    registry.arrived(1).await;
    let settled = |push: &RegistryPush| {
        let status = push.status.as_ref();
        status.is_some_and(|status| status.pod.is_some()) || is_queued(push)
    };
    let begun = join_all(names.map(|name| arena.push_until(name, "under way or queued", settled))).await;
    assert_eq!(begun.iter().filter(|push| is_queued(push)).count(), 2);
    registry.open();
    join_all(names.map(|name| arena.push_until(name, "pushed", succeeded))).await;
    arena.close().await;
}
