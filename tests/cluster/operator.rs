//! The installation itself: permissions, probes, metrics, the plugin.

use crate::support::{Arena, buildah, kubectl, run, shell};

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_has_no_verb_on_secrets_and_no_wildcard() {
    let Some(arena) = Arena::open("rbac").await else {
        return;
    };
    let account = "--as=system:serviceaccount:slipway-system:slipway";
    for namespace in ["default", "slipway-system", &arena.namespace] {
        let list = kubectl(
            &["auth", "can-i", "--list", account, "--namespace", namespace],
            None,
        )
        .await
        .unwrap();
        for line in list.lines().skip(1) {
            let columns: Vec<&str> = line.split_whitespace().collect();
            assert!(
                !columns
                    .first()
                    .is_some_and(|resource| resource.starts_with("secrets") || *resource == "*.*"),
                "{line}"
            );
            assert!(!line.contains("[*]") || line.contains("[/"), "a wildcard: {line}");
        }
    }
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_pod_has_no_token_and_runs_in_a_user_namespace() {
    let Some(arena) = Arena::open("pod").await else {
        return;
    };
    arena
        .build("look", buildah("FROM scratch\nCOPY hello.txt /\n"))
        .await;
    arena.fully_built("look").await;
    let pods = arena.pods().await;
    let spec = pods[0].spec.as_ref().unwrap();
    assert_eq!(
        (spec.automount_service_account_token, spec.host_users),
        (Some(false), Some(false))
    );
    for container in &spec.containers {
        let security = container.security_context.as_ref().unwrap();
        assert_eq!(
            security.capabilities.as_ref().unwrap().drop.as_deref(),
            Some(&["ALL".to_owned()][..]),
            "{}",
            container.name
        );
        // Slipway's own containers have a token that no API server takes; the build has none at all.
        for mount in container.volume_mounts.iter().flatten() {
            assert!(!mount.mount_path.contains("serviceaccount"), "{}", container.name);
            assert!(
                container.name != "build" || mount.name != "identity",
                "the build shows itself as Slipway"
            );
        }
    }
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_builds_describes_and_tells_failure_by_its_exit_code() {
    let Some(arena) = Arena::open("plugin").await else {
        return;
    };
    let slipway = env!("CARGO_BIN_EXE_slipway");
    let namespace = arena.namespace.as_str();
    let manual = crate::support::with(
        buildah("FROM scratch\nCOPY hello.txt /\n"),
        &serde_json::json!({ "trigger": "Manual" }),
    );
    for (name, spec) in [
        ("good", manual.clone()),
        (
            "bad",
            crate::support::with(
                shell("echo no; exit 9"),
                &serde_json::json!({ "trigger": "Manual" }),
            ),
        ),
    ] {
        arena.apply(&serde_json::json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipe", "metadata": { "name": name }, "spec": spec })).await;
    }
    run(
        slipway,
        &["build", "good", "--wait", "--namespace", namespace],
        None,
    )
    .await
    .unwrap();
    let text = run(
        slipway,
        &["describe", "good-1", "--layers", "--namespace", namespace],
        None,
    )
    .await
    .unwrap();
    assert!(text.contains("FullyBuilt") && text.contains("sha256:"), "{text}");
    let document = run(
        slipway,
        &["status", "--output", "json", "--namespace", namespace],
        None,
    )
    .await
    .unwrap();
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["builds"][0]["status"]["phase"], "FullyBuilt");
    let failed = run(
        slipway,
        &["build", "bad", "--wait", "--namespace", namespace],
        None,
    )
    .await
    .unwrap_err();
    assert!(
        failed.contains("exit status: 1") && failed.contains("BuildFailed") || failed.contains("code 9"),
        "{failed}"
    );
    let log = run(slipway, &["logs", "bad-1", "--namespace", namespace], None)
        .await
        .unwrap();
    assert!(log.lines().any(|line| line == "no"), "{log}");
    let missing = run(slipway, &["describe", "none", "--namespace", namespace], None)
        .await
        .unwrap_err();
    assert!(
        missing.contains("exit status: 3") && missing.contains("there is no build"),
        "{missing}"
    );
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_answer() {
    let Some(arena) = Arena::open("metrics").await else {
        return;
    };
    let pod = kubectl(
        &[
            "--namespace",
            "slipway-system",
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/component=controller",
            "-o",
            "jsonpath={.items[0].status.podIP}",
        ],
        None,
    )
    .await
    .unwrap();
    assert_eq!(
        run("curl", &["-fsS", &format!("http://{pod}:8080/readyz")], None)
            .await
            .unwrap(),
        "ok\n"
    );
    let metrics = run("curl", &["-fsS", &format!("http://{pod}:8080/metrics")], None)
        .await
        .unwrap();
    assert!(
        metrics.contains("slipway_leading 1") && metrics.contains("slipway_api_writes_total"),
        "{metrics}"
    );
    arena.close().await;
}
