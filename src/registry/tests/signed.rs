//! What cosign says of a signed image before and after it was pushed, between registries that we did not write.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use bytes::Bytes;
use rstest::rstest;
use serde_json::json;

use super::{
    content, describe,
    servers::{Real, Server},
};
use crate::{
    image::{Digest, media_type},
    registry::{BytesSource, TagPolicy, Target, push_all, read_image, read_referrers},
    testing::{skip, tool},
};

/// Cosign with a key of its own and without any service.
struct Cosign {
    binary: PathBuf,
    folder: tempfile::TempDir,
}

impl Cosign {
    fn new() -> Option<Self> {
        let cosign = Self {
            binary: tool("cosign")?,
            folder: tempfile::tempdir().unwrap(),
        };
        let made = cosign.run(&["generate-key-pair"]);
        assert!(made.status.success(), "{}", words(&made));
        std::fs::write(cosign.folder.path().join("predicate.json"), r#"{"tested":true}"#).unwrap();
        Some(cosign)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(&self.binary)
            .args(arguments)
            .current_dir(self.folder.path())
            .env("COSIGN_PASSWORD", "")
            .env("HOME", self.folder.path())
            .output()
            .unwrap()
    }

    fn sign(&self, image: &str, bundle: &str) {
        let key = [
            "--key",
            "cosign.key",
            "--allow-http-registry",
            "--use-signing-config=false",
            "-y",
        ];
        let bundle = format!("--new-bundle-format={bundle}");
        let signed = self.run(&[&["sign", "--tlog-upload=false", &bundle], &key[..], &[image]].concat());
        assert!(signed.status.success(), "{}", words(&signed));
        let predicate = [
            "attest",
            "--tlog-upload=false",
            &bundle,
            "--type",
            "custom",
            "--predicate",
            "predicate.json",
        ];
        let attested = self.run(&[&predicate[..], &key[..], &[image]].concat());
        assert!(attested.status.success(), "{}", words(&attested));
    }

    /// What cosign says of the signature and of the attestation.
    fn verify(&self, image: &str) -> [Output; 2] {
        let key = [
            "--key",
            "cosign.pub",
            "--insecure-ignore-tlog",
            "--allow-http-registry",
        ];
        [&["verify"][..], &["verify-attestation", "--type", "custom"]]
            .map(|command| self.run(&[command, &key[..], &[image]].concat()))
    }
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `crane copy` and `skopeo copy`, as far as they are there.
fn copy(from: &str, to: &str) -> Vec<(&'static str, String)> {
    let run = |program: &Path, arguments: &[&str]| {
        let copied = Command::new(program).args(arguments).output().unwrap();
        assert!(copied.status.success(), "{}", words(&copied));
    };
    let mut copies = Vec::new();
    if let Some(crane) = tool("crane") {
        let to = format!("{to}/crane:v1");
        run(&crane, &["copy", "--insecure", from, &to]);
        copies.push(("crane copy", to));
    }
    if let Some(skopeo) = tool("skopeo") {
        let to = format!("{to}/skopeo:v1");
        let (from, into) = (format!("docker://{from}"), format!("docker://{to}"));
        run(
            &skopeo,
            &[
                "copy",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
                &from,
                &into,
            ],
        );
        copies.push(("skopeo copy", to));
    }
    copies
}

#[rstest]
#[case::bundles_in_lists("true")]
#[case::manifests_under_tags("false")]
#[tokio::test]
async fn cosign_verifies_at_the_second_registry_what_was_signed_at_the_first(
    #[case] bundle: &str,
    #[values(Server::Distribution3, Server::Distribution2, Server::GoContainerRegistry)] server: Server,
) {
    let Some(cosign) = Cosign::new() else {
        skip(
            "cosign",
            "there is none; hack/cluster/build-tools cosign builds it",
        );
        return;
    };
    let (Some(first), Some(second)) = (
        Real::start(Server::Distribution3).await,
        Real::start(server).await,
    ) else {
        return;
    };
    let source = first.repository("team/app");
    let (config, layer) = (
        Bytes::from_static(br#"{"os":"linux","architecture":"amd64"}"#),
        content(100_000),
    );
    for bytes in [&config, &layer] {
        source
            .upload_blob(&describe(bytes), &BytesSource(bytes.clone()))
            .await
            .unwrap();
    }
    let describe = |media_type: &str, bytes: &Bytes| json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()});
    let document = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": describe(media_type::OCI_CONFIG, &config),
        "layers": [describe(media_type::OCI_LAYER_GZIP, &layer)],
    });
    let bytes = Bytes::from(document.to_string());
    let root = source
        .put_manifest("v1", media_type::OCI_MANIFEST, &bytes)
        .await
        .unwrap();
    cosign.sign(&format!("{}/team/app@{root}", first.host), bundle);

    let image = read_image(&source.clone().into(), "v1", &[]).await.unwrap();
    let image = read_referrers(&source, image).await.unwrap();
    let target = Target {
        repository: second.repository("copied/app"),
        tags: vec!["v1".to_owned()],
        policy: TagPolicy::Overwrite,
    };
    let outcome = push_all(&image, &source.into(), &[target], None).await.remove(0);
    outcome.result.unwrap();
    assert_eq!(outcome.referrers.written, 2);
    for verified in cosign.verify(&format!("{}/copied/app:v1", second.host)) {
        println!("{}", words(&verified));
        assert!(verified.status.success(), "{}", words(&verified));
    }
    // What others copy is the image alone.
    for (name, image) in copy(&format!("{}/team/app:v1", first.host), &second.host) {
        for verified in cosign.verify(&image) {
            assert!(!verified.status.success(), "{name}: {}", words(&verified));
            println!("{name}: {}", words(&verified));
        }
    }
}
