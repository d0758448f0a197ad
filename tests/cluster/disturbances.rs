//! The operator is killed, staging goes away: every build converges, and no attempt has two pods.

use serde_json::json;
use slipway::api::v1alpha1::OCIRecipeBuild;

use crate::support::{Arena, REGISTRY, buildah, kubectl, pods_gone, shell, with};

async fn kill_the_operator() {
    let system = ["--namespace", "slipway-system"];
    let pods = [
        &system[..],
        &[
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/component=controller",
            "-o",
            "name",
        ],
    ]
    .concat();
    let pods = kubectl(&pods, None).await.unwrap();
    for pod in pods.lines() {
        // Without grace the kubelet sends SIGKILL: nothing is finished in peace.
        kubectl(
            &[&system[..], &["delete", pod, "--grace-period=0", "--force"]].concat(),
            None,
        )
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_in_each_phase_finishes_every_build_with_one_pod_each() {
    let Some(arena) = Arena::alone("killed").await else {
        return;
    };
    let target = format!("{REGISTRY}/{}/app", arena.namespace);
    let recipe = with(
        buildah("FROM scratch\nCOPY hello.txt /\n"),
        &json!({ "pushRules": [{ "repository": target }] }),
    );

    arena.build("starting", recipe.clone()).await;
    kill_the_operator().await;
    arena.uploaded("starting").await;

    arena
        .build("building", with(shell("sleep 4; false"), &json!({})))
        .await;
    arena.building("building").await;
    kill_the_operator().await;
    arena.finished("building").await;

    arena.build("pushing", recipe).await;
    arena
        .build_until("pushing", "fully built", |status| status.image.is_some())
        .await;
    kill_the_operator().await;
    arena.uploaded("pushing").await;

    for build in ["starting", "building", "pushing"] {
        let pods = arena.pods().await;
        let mine: Vec<_> = pods
            .iter()
            .filter(|pod| {
                pod.metadata
                    .labels
                    .as_ref()
                    .unwrap()
                    .get("slipway.dev/build")
                    .is_some_and(|b| b == build)
            })
            .collect();
        assert_eq!(mine.len(), 1, "{build}: one pod for one attempt");
    }
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn staging_that_is_down_in_mid_collect_delays_the_build_and_costs_nothing_else() {
    let Some(arena) = Arena::alone("staging").await else {
        return;
    };
    // Enough random bytes that collecting takes a moment.
    let script = "FROM scratch\nCOPY hello.txt /\n";
    let scale = async |replicas: &str| {
        kubectl(
            &[
                "--namespace",
                "slipway-system",
                "scale",
                "deployment/slipway-staging",
                replicas,
            ],
            None,
        )
        .await
        .unwrap();
    };
    scale("--replicas=0").await;
    pods_gone("slipway-system", &["-l", "app.kubernetes.io/component=staging"]).await;
    arena.build("patient", buildah(script)).await;
    arena.building("patient").await;
    // The build container has ended when the collector is the only one that runs: it waits for staging now.
    arena_waits_for_collect(&arena).await;
    scale("--replicas=1").await;
    let status = arena.fully_built("patient").await;
    assert_eq!(status.platforms[0].attempt, 1);
    arena.close().await;
}

async fn arena_waits_for_collect(arena: &Arena) {
    let build = arena.api::<OCIRecipeBuild>().get("patient").await.unwrap();
    let pod = build.status.unwrap().platforms[0].pod.clone().unwrap();
    let ended =
        r#"--for=jsonpath={.status.containerStatuses[?(@.name=="build")].state.terminated.exitCode}=0"#;
    kubectl(
        &[
            "--namespace",
            &arena.namespace,
            "wait",
            &format!("pod/{pod}"),
            ended,
            "--timeout=60s",
        ],
        None,
    )
    .await
    .unwrap();
}
