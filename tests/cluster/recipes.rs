//! Recipes that change or go while a build of theirs runs.

use serde_json::json;
use slipway::{
    api::v1alpha1::{BuildPhase, OCIRecipe, OCIRecipeBuild},
    record::Reason,
};

use crate::{
    doors::Door,
    support::{Arena, image_script, kubectl, shell, with},
};

fn recipe(spec: &serde_json::Value) -> serde_json::Value {
    json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipe", "metadata": { "name": "app" }, "spec": spec })
}

fn build_of_recipe(name: &str) -> serde_json::Value {
    json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipeBuild", "metadata": { "name": name }, "spec": { "recipeRef": { "name": "app" } } })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipe_edited_in_mid_build_changes_the_next_build_only() {
    let Some(arena) = Arena::open("edited").await else {
        return;
    };
    let latch = Door::latch(&arena.client).await;
    arena
        .apply(&recipe(&shell(&format!("{}; exit 3", latch.wait_here()))))
        .await;
    latch.arrived(1).await;
    arena
        .patch::<OCIRecipe>(
            "app",
            json!({ "spec": { "source": { "inline": { "files": { "Containerfile": "exit 4" } } } } }),
        )
        .await;
    // The second build ends while the first is held: neither waits for the other.
    let second = arena.finished("app-2").await;
    latch.open();
    let first = arena.finished("app-1").await;
    for (status, code) in [(first, "code 3"), (second, "code 4")] {
        let failure = status.failure.unwrap();
        assert_eq!(failure.reason, Reason::BuildFailed);
        assert!(failure.message.contains(code), "{failure:?}");
        assert_eq!(status.platforms[0].attempt, 1);
    }
    assert_eq!(arena.history.count("app-"), 2);
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipe_deleted_in_mid_build_takes_its_builds_and_pods_along() {
    let Some(arena) = Arena::open("gone").await else {
        return;
    };
    let latch = Door::latch(&arena.client).await;
    arena.apply(&recipe(&shell(&latch.wait_here()))).await;
    latch.arrived(1).await;
    let delete = [
        "--namespace",
        &arena.namespace,
        "delete",
        "ocir",
        "app",
        "--cascade=foreground",
        "--timeout=60s",
    ];
    kubectl(&delete, None).await.unwrap();
    arena.no_pods().await;
    let builds = ["--namespace", &arena.namespace, "get", "ocib", "-o", "name"];
    assert_eq!(kubectl(&builds, None).await.unwrap(), "");
    assert_eq!(arena.history.count("app-"), 1);
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_made_by_hand_goes_on_with_its_snapshot_when_its_recipe_is_deleted() {
    let Some(arena) = Arena::open("orphan").await else {
        return;
    };
    let latch = Door::latch(&arena.client).await;
    let script = format!("{}; {}", latch.wait_here(), image_script(&[8]));
    arena
        .apply(&recipe(&with(shell(&script), &json!({ "trigger": "Manual" }))))
        .await;
    arena
        .create_object::<OCIRecipeBuild>(build_of_recipe("mine"))
        .await;
    latch.arrived(1).await;
    kubectl(&["--namespace", &arena.namespace, "delete", "ocir", "app"], None)
        .await
        .unwrap();
    latch.open();
    arena.fully_built("mine").await;
    // One that begins only now has nothing to build, says so, and goes on when there is.
    arena
        .create_object::<OCIRecipeBuild>(build_of_recipe("late"))
        .await;
    arena
        .build_until("late", "waiting for the recipe", |status| {
            status.phase == BuildPhase::DependencyWait
                && status.conditions.iter().any(|condition| {
                    condition.reason == "RecipeMissing" && condition.message.contains("create it")
                })
        })
        .await;
    arena
        .apply(&recipe(&with(
            shell(&image_script(&[8])),
            &json!({ "trigger": "Manual" }),
        )))
        .await;
    arena.fully_built("late").await;
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_builds_of_one_recipe_at_once_both_end() {
    let Some(arena) = Arena::open("twice").await else {
        return;
    };
    let latch = Door::latch(&arena.client).await;
    let script = format!("{}; {}", latch.wait_here(), image_script(&[8, 8]));
    arena
        .apply(&recipe(&with(shell(&script), &json!({ "trigger": "Manual" }))))
        .await;
    for name in ["one", "two"] {
        arena.create_object::<OCIRecipeBuild>(build_of_recipe(name)).await;
    }
    // Both are in the middle of it, and go on at the same moment.
    latch.arrived(2).await;
    latch.open();
    let (one, two) = (arena.fully_built("one").await, arena.fully_built("two").await);
    // The layers are random: each build has its own.
    assert_ne!(one.image.unwrap().digest, two.image.unwrap().digest);
    for (name, status) in [("one", &one.platforms[0]), ("two", &two.platforms[0])] {
        assert_eq!((status.attempt, status.layers.len()), (1, 2), "{name}");
        assert_eq!(arena.history.count(name), 1);
    }
    arena.close().await;
}
