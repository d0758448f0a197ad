//! Staging belongs to whom the operator says: one namespace's pods to one repository, and nobody else.

use serde_json::Value;

use crate::support::{Arena, buildah, kubectl, run, shell, with};

const SYSTEM: &str = "slipway-system";

/// The address of a Service of the chart's.
async fn address(service: &str) -> String {
    kubectl(
        &[
            "--namespace",
            SYSTEM,
            "get",
            "service",
            service,
            "-o",
            "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}",
        ],
        None,
    )
    .await
    .unwrap()
}

/// A token as the kubelet mounts one into `pod`; of no pod when there is none.
async fn kubelet_token(namespace: &str, pod: Option<&str>, audience: &str) -> String {
    let mut arguments = vec![
        "--namespace",
        namespace,
        "create",
        "token",
        "default",
        "--audience",
        audience,
    ];
    if let Some(pod) = pod {
        arguments.extend(["--bound-object-kind", "Pod", "--bound-object-name", pod]);
    }
    kubectl(&arguments, None).await.unwrap().trim().to_owned()
}

/// The status that curl gets, and the body.
async fn ask(arguments: &[&str]) -> (u16, String) {
    let mut all = vec!["-sS", "--max-time", "10", "-w", "\n%{http_code}"];
    all.extend(arguments);
    let said = run("curl", &all, None).await.unwrap();
    let (body, status) = said.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

/// What the operator answers to a pod's token.
async fn exchange(operator: &str, token: &str, repository: &str) -> (u16, String) {
    let url =
        format!("http://{operator}/token?service=slipway-staging&scope=repository:{repository}:pull,push");
    let (status, body) = ask(&["-u", &format!("pod:{token}"), &url]).await;
    let token = serde_json::from_str::<Value>(&body)
        .ok()
        .and_then(|answer| answer["token"].as_str().map(str::to_owned));
    (status, token.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_at_its_own_namespaces_repository_and_at_no_other() {
    let Some(arena) = Arena::open("tokens").await else {
        return;
    };
    let Some(other) = Arena::open("others").await else {
        return;
    };
    for arena in [&arena, &other] {
        arena
            .build("web", buildah("FROM scratch\nCOPY hello.txt /\n"))
            .await;
    }
    let pod = arena.fully_built("web").await.platforms[0].pod.clone().unwrap();
    other.fully_built("web").await;
    let (staging, operator) = (address("slipway-staging").await, address("slipway").await);
    let tags = |namespace: &str| format!("http://{staging}/v2/slipway/{namespace}/tags/list");

    let (anonymous, _) = ask(&[&tags(&arena.namespace)]).await;
    assert_eq!(anonymous, 401);

    let shown = kubelet_token(&arena.namespace, Some(&pod), "slipway").await;
    let (status, token) = exchange(&operator, &shown, &format!("slipway/{}", other.namespace)).await;
    assert_eq!(status, 200);
    let bearer = format!("Authorization: Bearer {token}");
    let (own, body) = ask(&["-H", &bearer, &tags(&arena.namespace)]).await;
    assert_eq!(own, 200, "{body}");
    let (theirs, body) = ask(&["-H", &bearer, &tags(&other.namespace)]).await;
    assert_eq!(theirs, 401, "{body}");
    let upload = format!("http://{staging}/v2/slipway/{}/blobs/uploads/", other.namespace);
    let (planted, body) = ask(&["-X", "POST", "-H", &bearer, &upload]).await;
    assert_eq!(planted, 401, "{body}");

    for (what, wrong) in [
        (
            "of no pod",
            kubelet_token(&arena.namespace, None, "slipway").await,
        ),
        (
            "for the API server",
            kubelet_token(&arena.namespace, Some(&pod), "https://kubernetes.default.svc").await,
        ),
        ("rubbish", "a.b.c".to_owned()),
    ] {
        let (status, token) = exchange(&operator, &wrong, "slipway/x").await;
        assert_eq!((status, token.as_str()), (401, ""), "{what}");
    }
    let report = format!("http://{operator}/reports/collect");
    let (forged, _) = ask(&[
        "-X",
        "POST",
        "-H",
        "Authorization: Bearer a.b.c",
        "-d",
        "{}",
        &report,
    ])
    .await;
    assert_eq!(forged, 401);
    other.close().await;
    arena.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builds_own_commands_find_no_token_and_no_way_into_staging() {
    let Some(arena) = Arena::open("intruder").await else {
        return;
    };
    // Fails if it finds a token, or if staging answers it with anything but 401.
    let script = format!(
        "for file in /var/run/secrets/*/token /var/run/secrets/*/*/token; do [ ! -e \"$file\" ] || exit 41; done\n\
         exec 3<>/dev/tcp/slipway-staging.{SYSTEM}.svc.cluster.local/5000\n\
         printf 'GET /v2/slipway/{}/tags/list HTTP/1.0\\r\\n\\r\\n' >&3\n\
         read -r _ status _ <&3; [ \"$status\" = 401 ] || exit 42\n\
         exit 7\n",
        arena.namespace
    );
    let script = format!("exec bash -euc '{}'\n", script.replace('\'', "'\\''"));
    arena
        .build("look", with(shell(&script), &serde_json::json!({})))
        .await;
    let status = arena.finished("look").await;
    let message = status.failure.unwrap().message;
    assert!(message.contains("code 7"), "{message}");
    arena.close().await;
}
