//! Builds that end well.

use serde_json::json;
use slipway::{api::v1alpha1::OCIRecipe, record::LayerOrigin};

use crate::support::{Arena, REGISTRY, REGISTRY_ADDRESS, SCRATCH, buildah, kubectl, run, with};

#[tokio::test(flavor = "multi_thread")]
async fn an_applied_recipe_becomes_an_image_at_its_target_with_every_digest_in_the_status() {
    let Some(arena) = Arena::open("recipe").await else {
        return;
    };
    let target = format!("{REGISTRY}/{}/app", arena.namespace);
    let spec = with(
        buildah(SCRATCH),
        &json!({ "pushRules": [{ "repository": target, "tags": ["edge", "{recipe}"] }] }),
    );
    arena.apply(&json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipe", "metadata": { "name": "app" }, "spec": spec })).await;
    let status = arena.uploaded("app-1").await;
    let image = status.image.unwrap();

    let address = format!("docker://{REGISTRY_ADDRESS}/{}/app", arena.namespace);
    for tag in ["edge", "app"] {
        let digest = run(
            "skopeo",
            &[
                "inspect",
                "--tls-verify=false",
                "--format",
                "{{.Digest}}",
                &format!("{address}:{tag}"),
            ],
            None,
        )
        .await
        .unwrap();
        assert_eq!(digest.trim(), image.digest.as_str());
    }
    let raw = run(
        "skopeo",
        &[
            "inspect",
            "--raw",
            "--tls-verify=false",
            &format!("{address}:edge"),
        ],
        None,
    )
    .await
    .unwrap();
    let manifest: slipway::image::Manifest = serde_json::from_str(&raw).unwrap();
    let platform = &status.platforms[0];
    assert_eq!(platform.config.as_ref(), Some(&manifest.config.digest));
    let layers: Vec<_> = platform
        .layers
        .iter()
        .map(|layer| (layer.digest.clone(), layer.size))
        .collect();
    assert_eq!(
        layers,
        manifest
            .layers
            .iter()
            .map(|layer| (layer.digest.clone(), layer.size))
            .collect::<Vec<_>>()
    );
    assert!(
        platform
            .layers
            .iter()
            .all(|layer| layer.origin == LayerOrigin::New)
    );
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_build_of_an_unchanged_recipe_uploads_no_layer_to_staging_or_target() {
    let Some(arena) = Arena::open("again").await else {
        return;
    };
    let target = format!("{REGISTRY}/{}/app", arena.namespace);
    let spec = with(
        buildah(SCRATCH),
        &json!({ "pushRules": [{ "repository": target }], "sourceDateEpoch": 1_700_000_000 }),
    );
    arena.apply(&json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipe", "metadata": { "name": "app" }, "spec": spec })).await;
    let first = arena.uploaded("app-1").await;
    arena
        .patch::<OCIRecipe>(
            "app",
            json!({ "metadata": { "annotations": { "slipway.dev/requested-at": "again" } } }),
        )
        .await;
    let second = arena.uploaded("app-2").await;
    let counters = second.platforms[0].counters.unwrap();
    assert_eq!((counters.layers_uploaded, counters.bytes_uploaded), (0, 0));
    assert_eq!(counters.layers_reused, first.platforms[0].layers.len() as u64);
    assert!(
        second.platforms[0]
            .layers
            .iter()
            .all(|layer| layer.origin != LayerOrigin::New)
    );
    let push = arena
        .push_until("app-2-push-1", "finished", |push| {
            push.status.as_ref().is_some_and(|s| s.finished_at.is_some())
        })
        .await;
    let blobs = push.status.unwrap().targets[0].blobs;
    let layers = second.platforms[0]
        .layers
        .iter()
        .map(|layer| i64::try_from(layer.size).unwrap())
        .sum::<i64>();
    assert!(
        blobs.bytes_uploaded < layers.max(1) + 4096 && blobs.existed >= 1,
        "{blobs:?}"
    );
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_recipe_is_built_again_and_a_suspended_one_is_not() {
    let Some(arena) = Arena::open("changed").await else {
        return;
    };
    let document = json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipe", "metadata": { "name": "app" }, "spec": buildah(SCRATCH) });
    arena.apply(&document).await;
    arena.fully_built("app-1").await;
    arena
        .patch::<OCIRecipe>("app", json!({ "spec": { "buildArgs": { "VERSION": "2" } } }))
        .await;
    arena.fully_built("app-2").await;
    arena
        .patch::<OCIRecipe>(
            "app",
            json!({ "spec": { "suspend": true, "buildArgs": { "VERSION": "3" } } }),
        )
        .await;
    kubectl(
        &[
            "--namespace",
            &arena.namespace,
            "wait",
            "ocir/app",
            "--for=jsonpath={.status.observedGeneration}=3",
            "--timeout=30s",
        ],
        None,
    )
    .await
    .unwrap();
    let builds = kubectl(
        &["--namespace", &arena.namespace, "get", "ocib", "-o", "name"],
        None,
    )
    .await
    .unwrap();
    assert_eq!(builds.lines().count(), 2, "{builds}");
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_source_with_build_arguments_and_packages_from_the_network_is_built_by_each_strategy() {
    let Some(arena) = Arena::open("git").await else {
        return;
    };
    for strategy in ["buildah", "buildkit"] {
        let spec = json!({
            "source": { "git": { "url": "http://git.slipway-demo.svc.cluster.local/app.git" } },
            "buildArgs": { "BASE": format!("{REGISTRY}/base/debian:12") },
            "strategyRef": { "name": strategy },
        });
        arena.build(strategy, spec).await;
    }
    for strategy in ["buildah", "buildkit"] {
        let status = arena.fully_built(strategy).await;
        assert_eq!(
            status.revision.unwrap().revision.len(),
            40,
            "{strategy}: a commit"
        );
        assert!(status.platforms[0].layers.len() >= 2, "{strategy}");
    }
    arena.close().await;
}
