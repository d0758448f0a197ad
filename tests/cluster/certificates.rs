//! A registry that has a certificate of its own and knows its clients by theirs.

use std::path::Path;

use serde_json::json;
use slipway::{
    api::v1alpha1::{RegistryPush, condition},
    record::Reason,
};

use crate::{
    own_registry::OwnRegistry,
    support::{Arena, image_script, run, shell},
};

/// A certificate that signs itself, for servers and clients, and its key.
async fn certificate(folder: &Path, names: &str) -> (String, String) {
    let (certificate, key) = (folder.join("client.cert"), folder.join("client.key"));
    let subject = format!("subjectAltName={names}");
    let arguments = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=test",
        "-addext",
        &subject,
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-out",
        certificate.to_str().unwrap(),
        "-keyout",
        key.to_str().unwrap(),
    ];
    run("openssl", &arguments, None).await.unwrap();
    // skopeo's name for what it trusts.
    std::fs::copy(&certificate, folder.join("ca.crt")).unwrap();
    let read = |path| std::fs::read_to_string(path).unwrap();
    (read(certificate), read(key))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_certificates_is_pushed_to_with_the_secret_that_its_policy_names() {
    let Some(arena) = Arena::open("certificates").await else {
        return;
    };
    arena.build("app", shell(&image_script(&[16]))).await;
    let digest = arena.fully_built("app").await.image.unwrap().digest;
    let registry = OwnRegistry::start(&arena).await;
    let (host, address) = (
        registry.origin.trim_end_matches(":5000"),
        registry.address.trim_end_matches(":5000"),
    );
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = certificate(folder.path(), &format!("DNS:{host},IP:{address}")).await;
    let secret = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "type": "kubernetes.io/tls",
            "stringData": { "tls.crt": certificate, "tls.key": key },
        })
    };
    arena.apply(&secret("server")).await;
    registry.shows_certificates(&arena, "server").await;
    arena
        .apply_policy(&json!({
            "origin": registry.origin, "caBundle": certificate, "clientCertificateRef": { "name": "pusher" },
        }))
        .await;
    let push = json!({
        "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPush", "metadata": { "name": "byhand" },
        "spec": {
            "source": { "buildRef": { "name": "app" } },
            "targets": [{ "repository": format!("{}/app", registry.origin), "tags": ["v1"] }],
        },
    });
    arena.apply(&push).await;
    // The namespace has no such Secret yet.
    let waits = |push: &RegistryPush| {
        let status = push.status.as_ref();
        status.is_some_and(|status| {
            let ready = status
                .conditions
                .iter()
                .find(|found| found.type_ == condition::READY);
            ready.is_some_and(|ready| {
                ready.reason == Reason::SecretMissing.as_str() && ready.message.contains("pusher")
            })
        })
    };
    arena.push_until("byhand", "waiting for its Secret", waits).await;
    arena.apply(&secret("pusher")).await;
    let succeeded = |push: &RegistryPush| {
        let status = push.status.as_ref();
        status.is_some_and(|status| condition::is_true(&status.conditions, condition::SUCCEEDED))
    };
    arena.push_until("byhand", "pushed", succeeded).await;
    let image = format!("docker://{}/app:v1", registry.address);
    let folder = folder.path().to_str().unwrap();
    let served = run(
        "skopeo",
        &["inspect", "--cert-dir", folder, "--format", "{{.Digest}}", &image],
        None,
    )
    .await
    .unwrap();
    assert_eq!(served.trim(), digest.as_str());
    arena.close().await;
}
