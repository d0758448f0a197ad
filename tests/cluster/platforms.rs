//! Images of several platforms: the index, one platform alone, and each one ahead of the others.

use serde_json::json;
use slipway::api::v1alpha1::{BuildPhase, OCIRecipeBuild, condition};

use crate::{
    doors::Door,
    support::{Arena, REGISTRY, REGISTRY_ADDRESS, SCRATCH, buildah, image_script, run, shell, with},
};

#[tokio::test(flavor = "multi_thread")]
async fn two_platforms_give_an_index_that_skopeo_and_crane_see_alike() {
    let Some(arena) = Arena::open("index").await else {
        return;
    };
    let target = format!("{REGISTRY}/{}/app", arena.namespace);
    let spec = with(
        buildah(SCRATCH),
        &json!({ "platforms": ["linux/amd64", "linux/arm64"], "emulation": "Allowed", "pushRules": [{ "repository": target }] }),
    );
    arena.build("both", spec).await;
    let status = arena.uploaded("both").await;
    let address = format!("{REGISTRY_ADDRESS}/{}/app:edge", arena.namespace);
    let raw = run(
        "skopeo",
        &[
            "inspect",
            "--raw",
            "--tls-verify=false",
            &format!("docker://{address}"),
        ],
        None,
    )
    .await
    .unwrap();
    assert_eq!(
        raw.trim(),
        run("crane", &["manifest", "--insecure", &address], None)
            .await
            .unwrap()
            .trim()
    );
    assert_eq!(
        slipway::image::Digest::of(raw.trim().as_bytes()),
        status.image.unwrap().digest
    );
    let index: slipway::image::Index = serde_json::from_str(&raw).unwrap();
    for (child, platform) in index.manifests.iter().zip(&status.platforms) {
        assert_eq!(Some(&child.digest), platform.manifest.as_ref());
        assert_eq!(
            child.platform.as_ref().unwrap().architecture,
            platform.platform.architecture
        );
        let reference = format!("{REGISTRY_ADDRESS}/{}/app@{}", arena.namespace, child.digest);
        let manifest: slipway::image::Manifest = serde_json::from_str(
            &run("crane", &["manifest", "--insecure", &reference], None)
                .await
                .unwrap(),
        )
        .unwrap();
        let sizes = |layers: &[slipway::image::Descriptor]| {
            layers
                .iter()
                .map(|l| (l.digest.clone(), l.size))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            sizes(&manifest.layers),
            platform
                .layers
                .iter()
                .map(|l| (l.digest.clone(), l.size))
                .collect::<Vec<_>>()
        );
    }
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_platform_is_published_as_soon_as_it_is_built() {
    let Some(arena) = Arena::open("asready").await else {
        return;
    };
    let target = format!("{REGISTRY}/{}/app", arena.namespace);
    let latch = Door::latch(&arena.client).await;
    let script = format!(
        "test $SLIPWAY_ARCH = amd64 || {}; {}",
        latch.wait_here(),
        image_script(&[64, 64])
    );
    let rules = json!([{ "repository": target, "publish": "AsReady" }]);
    let spec = with(
        shell(&script),
        &json!({ "platforms": ["linux/amd64", "linux/arm64"], "emulation": "Allowed", "pushRules": rules }),
    );
    arena.build("ahead", spec).await;
    latch.arrived(1).await;
    let first = arena
        .push_until("ahead-push-1", "published in part", |push| {
            let entry = push.status.as_ref().and_then(|status| status.targets.first());
            entry.is_some_and(|entry| entry.published.len() == 1)
        })
        .await;
    let first = first.status.unwrap();
    assert!(!condition::is_true(&first.conditions, condition::FINISHED));
    let building = arena
        .build_until("ahead", "building", |status| status.phase == BuildPhase::Building)
        .await;
    let at_tag = || async {
        let address = format!("{REGISTRY_ADDRESS}/{}/app:edge", arena.namespace);
        run("crane", &["digest", "--insecure", &address], None)
            .await
            .unwrap()
            .trim()
            .to_owned()
    };
    let amd64 = building.platforms[0].manifest.clone().unwrap();
    assert_eq!(at_tag().await, amd64.as_str());

    latch.open();
    let image = arena.uploaded("ahead").await.image.unwrap();
    assert_eq!(at_tag().await, image.digest.as_str());
    let done = arena
        .push_until("ahead-push-1", "finished", |push| {
            push.status
                .as_ref()
                .is_some_and(|status| condition::is_true(&status.conditions, condition::SUCCEEDED))
        })
        .await;
    let entry = &done.status.unwrap().targets[0];
    assert!(entry.published.is_empty());
    assert_eq!(entry.digest, Some(image.digest));
    // Of the first platform nothing was sent a second time: its config and two layers, and the same of the other.
    assert_eq!(
        (entry.blobs.uploaded, entry.blobs.existed),
        (6, 3),
        "{:?}",
        entry.blobs
    );
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_platform_is_retried_alone() {
    let Some(arena) = Arena::open("retry").await else {
        return;
    };
    // The second platform fails until the Secret-less marker is there; the first never runs again.
    let script = "test $SLIPWAY_ARCH = amd64 || exit 3; true";
    let spec = with(
        shell(script),
        &json!({ "platforms": ["linux/amd64", "linux/arm64"], "emulation": "Allowed" }),
    );
    arena.build("half", spec).await;
    arena.finished("half").await;
    arena
        .patch::<OCIRecipeBuild>(
            "half",
            json!({ "metadata": { "annotations": { "slipway.dev/requested-at": "1 linux/arm64" } } }),
        )
        .await;
    let status = arena
        .build_until("half", "retried", |s| {
            s.last_handled_request.as_deref() == Some("1 linux/arm64") && s.phase == BuildPhase::FailedToBuild
        })
        .await;
    let attempts: Vec<_> = status.platforms.iter().map(|p| p.attempt).collect();
    assert_eq!(attempts, [1, 2]);
    arena.close().await;
}
