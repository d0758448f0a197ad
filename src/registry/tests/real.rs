//! The same against registries that we did not write, where they are to be had.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use bytes::Bytes;
use http::Method;
use rstest::rstest;
use serde_json::json;

use super::{
    content, describe,
    servers::{Real, Server},
};
use crate::{
    image::{Digest, media_type},
    registry::{
        BytesSource, Client, ClientOptions, Credentials, Mount, Secret, TagPolicy, Target, Uploaded,
        push_all, read_image,
        testing::{Fault, FaultRegistry},
    },
};

/// A certificate for 127.0.0.1 that signs itself, and its key.
fn certificate(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args([
            "-days",
            "2",
            "-subj",
            "/CN=test",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .stderr(Stdio::null())
        .status();
    made.is_ok_and(|status| status.success())
        .then_some((certificate, key))
}

#[rstest]
#[case::distribution_3(Server::Distribution3)]
#[case::distribution_2(Server::Distribution2)]
#[case::go_containerregistry(Server::GoContainerRegistry)]
#[tokio::test]
async fn a_real_registry_takes_and_gives_everything(#[case] server: Server) {
    let Some(real) = Real::start(server).await else {
        return;
    };
    let source = real.repository("src");
    // Blobs: known, empty, in pieces, mounted.
    for bytes in [content(5 << 20), Bytes::from_static(b"{}"), Bytes::new()] {
        let uploaded = source
            .upload_blob(&describe(&bytes), &BytesSource(bytes.clone()))
            .await
            .unwrap();
        assert!(matches!(uploaded, Uploaded::Sent { .. }));
        assert_eq!(
            source.blob_bytes(&describe(&bytes), 10 << 20).await.unwrap(),
            bytes
        );
    }
    let large = content(20 << 20);
    let mut upload = source.begin_upload().await.unwrap();
    upload.write(large.clone()).await.unwrap();
    upload.commit(&Digest::of(&large)).await.unwrap();
    let mount = real
        .repository("mounted")
        .mount_blob(&Digest::of(&large), "src")
        .await
        .unwrap();
    // One of them has every blob for all repositories, and mounts none.
    let mounts = server != Server::GoContainerRegistry;
    assert_eq!(matches!(mount, Mount::Mounted), mounts);
    // An image and its copies.
    let layer = |bytes: &Bytes| json!({"mediaType": media_type::OCI_LAYER, "digest": Digest::of(bytes), "size": bytes.len()});
    let document = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": media_type::OCI_CONFIG, "digest": Digest::of(b"{}"), "size": 2},
        "layers": [layer(&content(5 << 20)), layer(&large)],
    });
    let bytes = Bytes::from(document.to_string());
    source
        .put_manifest("v1", media_type::OCI_MANIFEST, &bytes)
        .await
        .unwrap();
    assert_eq!(source.tags().await.unwrap(), ["v1"]);
    let other = Real::start(server).await.unwrap();
    let source = source.into();
    let image = read_image(&source, "v1", &[]).await.unwrap();
    let targets = [real.repository("copy"), other.repository("copy")].map(|repository| Target {
        repository,
        tags: vec!["v1".to_owned(), "latest".to_owned()],
        policy: TagPolicy::Immutable,
    });
    let first = push_all(&image, &source, &targets, None).await;
    assert!(first.iter().all(|outcome| outcome.result.is_ok()), "{first:?}");
    let there = if mounts {
        first[0].blobs.mounted
    } else {
        first[0].blobs.existed
    };
    assert_eq!((there, first[1].blobs.uploaded), (3, 3), "{first:?}");
    let second = push_all(&image, &source, &targets, None).await;
    assert!(second.iter().all(|outcome| outcome.result.is_ok()), "{second:?}");
    assert!(
        second
            .iter()
            .all(|outcome| outcome.blobs.existed == 3 && outcome.blobs.bytes_uploaded == 0)
    );
}

#[tokio::test]
async fn a_certificate_is_trusted_for_the_registry_that_it_was_given_for() {
    let folder = tempfile::tempdir().unwrap();
    let Some((certificate, key)) = certificate(folder.path()) else {
        crate::testing::skip("certificates", "there is no `openssl` that makes one");
        return;
    };
    let pem = std::fs::read(&certificate).unwrap();
    let tls = json!({"certificate": certificate, "key": key});
    let Some(real) = Real::start_in(Server::Distribution3, folder, &tls).await else {
        return;
    };
    let found = |extra_roots| {
        let options = ClientOptions {
            extra_roots,
            ..ClientOptions::default()
        };
        let client = Client::new(options, Credentials::anonymous()).unwrap();
        let repository = client.repository(&real.host, "a");
        async move { repository.head_blob(&Digest::of(b"x")).await }
    };
    assert_eq!(found(vec![(real.host.clone(), pem.clone())]).await.unwrap(), None);
    for roots in [vec![], vec![("127.0.0.1:1".to_owned(), pem)]] {
        let error = found(roots).await.unwrap_err();
        assert_eq!(error.reason(), crate::record::Reason::RegistryUnavailable);
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}

/// A registry that knows its clients by the certificate that it shows itself, that certificate, and the same with its
/// key.
async fn that_wants_certificates() -> Option<(Real, String, String)> {
    let folder = tempfile::tempdir().unwrap();
    let Some((certificate, key)) = certificate(folder.path()) else {
        crate::testing::skip("certificates", "there is no `openssl` that makes one");
        return None;
    };
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let (pem, pair) = (read(&certificate), read(&certificate) + &read(&key));
    let tls = json!({"certificate": certificate, "key": key, "clientcas": [certificate]});
    let real = Real::start_in(Server::Distribution3, folder, &tls).await?;
    Some((real, pem, pair))
}

#[tokio::test]
async fn a_registry_that_wants_a_certificate_is_shown_the_one_that_was_given_for_it() {
    let Some((real, pem, pair)) = that_wants_certificates().await else {
        return;
    };
    let found = |client_certificates| {
        let options = ClientOptions {
            extra_roots: vec![(real.host.clone(), pem.clone().into_bytes())],
            client_certificates,
            ..ClientOptions::default()
        };
        let client = Client::new(options, Credentials::anonymous()).unwrap();
        let repository = client.repository(&real.host, "a");
        async move { repository.head_blob(&Digest::of(b"x")).await }
    };
    let given = vec![(real.host.clone(), Secret::new(pair.clone()))];
    assert_eq!(found(given).await.unwrap(), None);
    for others in [vec![], vec![("127.0.0.1:1".to_owned(), Secret::new(pair))]] {
        let error = found(others).await.unwrap_err();
        assert_eq!(error.reason(), crate::record::Reason::RegistryUnavailable);
    }
}

#[tokio::test]
async fn a_certificate_is_not_shown_where_another_registry_sends_the_client() {
    let Some((real, pem, pair)) = that_wants_certificates().await else {
        return;
    };
    let layer = content(1000);
    let other = FaultRegistry::start().await;
    let options = ClientOptions {
        extra_roots: vec![(real.host.clone(), pem.into_bytes())],
        client_certificates: vec![(real.host.clone(), Secret::new(pair))],
        ..other.options()
    };
    let client = Client::new(options, Credentials::anonymous()).unwrap();
    let own = client.repository(&real.host, "a");
    own.upload_blob(&describe(&layer), &BytesSource(layer.clone()))
        .await
        .unwrap();
    let there = format!("https://{}/v2/a/blobs/{}", real.host, Digest::of(&layer));
    let lure = Fault::Answer(307, vec![("location", there)], String::new());
    other.fault(9, Method::GET, "/blobs/", lure);
    let lured = client.repository(&other.host(), "a");
    let error = lured.blob_bytes(&describe(&layer), 1000).await.unwrap_err();
    assert_eq!(error.reason(), crate::record::Reason::RegistryUnavailable);
    assert!(other.count(&Method::GET, "/blobs/") > 0);
    // Who wants it by its own name gets it.
    assert_eq!(own.blob_bytes(&describe(&layer), 1000).await.unwrap(), layer);
}

#[test]
fn a_client_certificate_without_a_key_is_refused_and_not_quoted() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    for pem in [
        "secret-words",
        "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
    ] {
        let options = ClientOptions {
            client_certificates: vec![("r.test".to_owned(), Secret::new(pem))],
            ..ClientOptions::default()
        };
        let shown = format!("{options:?}");
        let error = Client::new(options, Credentials::anonymous())
            .unwrap_err()
            .to_string();
        assert!(error.contains("r.test"), "{error}");
        for text in [shown, error] {
            assert!(
                !text.contains("secret-words") && !text.contains("c2VjcmV0"),
                "{text}"
            );
        }
    }
}

/// As of the fault registry, by the counters: what a real one was sent.
#[rstest]
#[case::distribution_3(Server::Distribution3)]
#[case::distribution_2(Server::Distribution2)]
#[case::go_containerregistry(Server::GoContainerRegistry)]
#[tokio::test]
async fn fifty_pushes_to_a_real_registry_send_what_is_unique_once(#[case] server: Server) {
    const LAYER: usize = 100_000;
    let Some(real) = Real::start(server).await else {
        return;
    };
    let from = FaultRegistry::start().await;
    let layer = |seed: u64| {
        let mut bytes = vec![0; LAYER];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        bytes
    };
    let shared: Vec<Vec<u8>> = (0..9).map(layer).collect();
    let to = real.repository("fifty");
    let pushes = (0..50).map(|number| {
        let own = layer(100 + number);
        let layers: Vec<&[u8]> = shared.iter().chain([&own]).map(Vec::as_slice).collect();
        let root = from.put_image("src", &layers);
        let (source, repository) = (from.repository("src").into(), to.clone());
        async move {
            let image = read_image(&source, root.digest.as_str(), &[]).await.unwrap();
            let target = Target {
                repository,
                tags: vec![format!("v{number}")],
                policy: TagPolicy::Overwrite,
            };
            let outcome = push_all(&image, &source, &[target], None).await.remove(0);
            outcome.result.unwrap();
            outcome.blobs.bytes_uploaded
        }
    });
    let sent: i64 = futures_util::future::join_all(pushes).await.into_iter().sum();
    let layers = i64::try_from((9 + 50) * LAYER).unwrap();
    assert!(sent >= layers && sent * 100 <= layers * 105, "{sent} of {layers}");
    println!("50 pushes to {server:?}: {sent} bytes were sent; the layers have {layers} that are unique");
}
