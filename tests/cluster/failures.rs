//! Builds that end badly: each with a reason from the closed list and a message that says what to do.

use rstest::rstest;
use serde_json::{Value, json};
use slipway::{
    api::v1alpha1::{BuildPhase, OCIRecipeBuild, condition},
    record::{FailureClass, Reason},
};

use crate::support::{Arena, REGISTRY, buildah, inline, kubectl, shell, with};

fn git(extra: &Value) -> Value {
    let mut git = json!({ "url": "http://git.slipway-demo.svc.cluster.local/app.git" });
    for (key, value) in extra.as_object().unwrap() {
        git[key] = value.clone();
    }
    json!({ "source": { "git": git }, "strategyRef": { "name": "buildah" } })
}

#[rstest]
#[case::no_such_ref("ref", git(&json!({ "ref": "no-such-branch" })), Reason::GitRefNotFound, "no-such-branch")]
#[case::credentials("auth", git(&json!({ "url": "http://git.slipway-demo.svc.cluster.local/private/app.git", "credentialsRef": { "name": "wrong" } })), Reason::GitAuthenticationFailed, "credentials")]
#[case::no_repository("repo", git(&json!({ "url": "http://git.slipway-demo.svc.cluster.local/none.git" })), Reason::GitRepositoryNotFound, "none.git")]
#[case::no_build_file("file", with(buildah("FROM scratch"), &json!({ "buildFile": "Dockerfile" })), Reason::BuildFileMissing, "Dockerfile")]
#[case::command_fails(
    "fails",
    shell("echo step 1; echo token=s3cret https://me:hunter2@example.test/; exit 7"),
    Reason::BuildFailed,
    "7"
)]
#[case::no_archive("none", shell("true"), Reason::ArchiveMissing, "image.tar")]
#[case::empty_archive("empty", shell(": > $SLIPWAY_ARCHIVE"), Reason::ArchiveMalformed, "empty")]
#[case::not_an_image(
    "noimage",
    shell("tar -cf $SLIPWAY_ARCHIVE -C /etc hostname"),
    Reason::ArchiveMalformed,
    "no image archive"
)]
#[case::memory("memory", with(shell("head -c 600m /dev/zero | tail -c 500m > /dev/null"), &json!({ "resources": { "memory": "64Mi" } })), Reason::OutOfMemoryKilled, "resources.memory")]
#[case::deadline("deadline", with(shell("echo step 1; sleep 300"), &json!({ "timeoutSeconds": 10 })), Reason::DeadlineExceeded, "timeoutSeconds")]
#[case::deadline_ignored("stubborn", with(shell("trap '' TERM; echo step 1; while true; do sleep 1; done"), &json!({ "timeoutSeconds": 10 })), Reason::DeadlineExceeded, "timeoutSeconds")]
#[case::dockerfile("dockerfile", buildah(&format!("FROM {REGISTRY}/base/debian:12\nRUN echo step 1; fetch https://me:hunter2@example.test/\n")), Reason::BuildFailed, "log")]
#[case::builder_image("pull", inline("FROM scratch", &json!({ "kind": "BuildStrategy", "name": "unpullable" })), Reason::ImagePullFailed, "image")]
#[tokio::test(flavor = "multi_thread")]
async fn bad_input_ends_with_its_reason(
    #[case] name: &str,
    #[case] spec: Value,
    #[case] reason: Reason,
    #[case] says: &str,
) {
    let Some(arena) = Arena::open(name).await else {
        return;
    };
    arena
        .apply(&json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/basic-auth", "metadata": { "name": "wrong" }, "stringData": { "username": "demo", "password": "battery-staple" } }))
        .await;
    arena
        .apply(&json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "BuildStrategy", "metadata": { "name": "unpullable" }, "spec": { "image": "registry.slipway-demo.svc.cluster.local:5000/no/such:image", "command": ["true"] } }))
        .await;
    arena.build("bad", spec).await;
    let status = arena.finished("bad").await;
    let failure = status.failure.unwrap();
    assert_eq!(failure.reason, reason, "{failure:?}");
    assert!(failure.message.contains(says), "{failure:?}");
    assert_eq!(failure.class, FailureClass::User);
    assert_eq!(status.phase, BuildPhase::FailedToBuild);
    assert!(condition::is_true(&status.conditions, condition::STALLED));
    if matches!(reason, Reason::BuildFailed | Reason::DeadlineExceeded) {
        let log = failure.log_snippet.unwrap();
        assert!(log.contains("step 1") && !log.contains("hunter2"), "{log}");
    }
    // Whatever the build did, what is known of it outlives the pod.
    assert_eq!(
        status.platforms[0].record.is_some(),
        reason != Reason::ImagePullFailed
    );
    // One attempt: trying again changes nothing.
    assert_eq!(status.platforms[0].attempt, 1);
    assert_eq!(arena.history.count("bad"), 1);
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_images_in_one_archive_are_refused() {
    let Some(arena) = Arena::open("many").await else {
        return;
    };
    let script = "cd /tmp; for n in one two; do c=$(buildah --storage-driver vfs from scratch); buildah --storage-driver vfs config --label n=$n $c; \
                  buildah --storage-driver vfs commit -q $c oci:/tmp/layout:$n; done; tar -cf $SLIPWAY_ARCHIVE -C /tmp/layout .";
    let mut spec = shell(script);
    spec["strategyRef"] = json!({ "kind": "BuildStrategy", "name": "two" });
    let buildah = kubectl(&["get", "cbstrat", "buildah", "-o", "json"], None)
        .await
        .unwrap();
    let mut strategy: Value = serde_json::from_str(&buildah).unwrap();
    strategy["spec"]["command"] = json!(["sh", "-eu", "$(buildFile)"]);
    arena.apply(&json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "BuildStrategy", "metadata": { "name": "two" }, "spec": strategy["spec"] })).await;
    arena.build("many", spec).await;
    let failure = arena.finished("many").await.failure.unwrap();
    assert_eq!(failure.reason, Reason::ManyImages);
    assert!(failure.message.contains('2'), "{failure:?}");
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_strategy_is_waited_for_and_the_build_goes_on_by_itself() {
    let Some(arena) = Arena::open("strategy").await else {
        return;
    };
    arena
        .build(
            "patient",
            inline("true", &json!({ "kind": "BuildStrategy", "name": "later" })),
        )
        .await;
    arena
        .build_until("patient", "waiting", |status| {
            status.phase == BuildPhase::DependencyWait
                && status.conditions.iter().any(|c| c.reason == "StrategyMissing")
        })
        .await;
    arena
        .apply(&json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "BuildStrategy", "metadata": { "name": "later" }, "spec": { "image": "slipway.dev/builder-buildah:dev", "command": ["true"] } }))
        .await;
    assert_eq!(
        arena.finished("patient").await.failure.unwrap().reason,
        Reason::ArchiveMissing
    );
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_git_secret_is_waited_for() {
    let Some(arena) = Arena::open("secret").await else {
        return;
    };
    let url = "http://git.slipway-demo.svc.cluster.local/private/app.git";
    arena
        .build(
            "patient",
            git(&json!({ "url": url, "credentialsRef": { "name": "later" } })),
        )
        .await;
    arena
        .build_until("patient", "waiting for the Secret", |status| {
            status
                .conditions
                .iter()
                .any(|c| c.reason == "SecretMissing" && c.message.contains("later"))
        })
        .await;
    arena
        .apply(&json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/basic-auth", "metadata": { "name": "later" }, "stringData": { "username": "demo", "password": "correct-horse" } }))
        .await;
    // The private repository is empty: the credentials were right when that is what is wrong.
    let failure = arena.finished("patient").await.failure.unwrap();
    assert_ne!(failure.reason, Reason::GitAuthenticationFailed, "{failure:?}");
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_ends_a_running_build_and_wait_returns() {
    let Some(arena) = Arena::open("cancel").await else {
        return;
    };
    arena.build("long", shell("sleep 600")).await;
    arena.building("long").await;
    arena
        .patch::<OCIRecipeBuild>("long", json!({ "spec": { "cancel": true } }))
        .await;
    let waited = kubectl(
        &[
            "--namespace",
            &arena.namespace,
            "wait",
            "ocib/long",
            "--for=condition=Finished",
            "--timeout=60s",
        ],
        None,
    )
    .await;
    waited.unwrap();
    let status = arena.finished("long").await;
    assert_eq!(status.phase, BuildPhase::Cancelled);
    arena.no_pods().await;
    arena.close().await;
}
