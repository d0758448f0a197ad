//! Whole collections into a staging repository in memory.

mod real;

use std::{fs, os::unix::fs::symlink, time::Duration};

use rstest::rstest;

use super::*;
use crate::{
    image::{
        Digest, Manifest,
        archive::tests::{AMD64, Layout, Tar, bytes, config, gzipped, layer, oci},
        media_type,
    },
    record::{BuildIdentity, LayerOrigin},
    staging::{KnownLayers, memory::Memory},
};

const UID: &str = "0a1b2c3d";

/// A pod whose build has ended.
struct Pod {
    folder: tempfile::TempDir,
    plan: CollectPlan,
    store: Memory,
}

impl Pod {
    fn new() -> Self {
        let pod = Self {
            folder: tempfile::tempdir().unwrap(),
            plan: CollectPlan {
                build: BuildIdentity {
                    namespace: "team".into(),
                    name: "web-1".into(),
                    uid: UID.into(),
                    platform: "linux/amd64".parse().unwrap(),
                    attempt: 1,
                },
                archive: "image.tar".into(),
                staging: StagingTarget {
                    registry: "staging.invalid".into(),
                    repository: "slipway/team".into(),
                    plain_http: true,
                    realm: None,
                },
            },
            store: Memory::default(),
        };
        fs::create_dir(pod.workspace().output()).unwrap();
        pod.end(&StageOutcome::Done { revision: None });
        pod
    }

    fn with(archive: &[u8]) -> Self {
        let pod = Self::new();
        pod.leave(archive);
        pod
    }

    fn workspace(&self) -> Workspace {
        Workspace::new(self.folder.path())
    }

    fn end(&self, outcome: &StageOutcome) {
        self.workspace()
            .enter(Stage::Build)
            .unwrap()
            .leave(outcome)
            .unwrap();
    }

    fn leave(&self, archive: &[u8]) {
        fs::write(self.workspace().output().join("image.tar"), archive).unwrap();
    }

    async fn report(&self) -> CollectReport {
        self.ending(std::future::pending()).await.report
    }

    async fn ending(&self, stop: impl Future<Output = ()>) -> Ending {
        let patience = Patience::new(Duration::from_millis(200), Duration::from_millis(1));
        let (plan, store) = (self.plan.clone(), self.store.clone());
        run_with(plan, self.workspace(), store, patience, stop).await
    }

    async fn record(&self) -> BuildRecord {
        match self.report().await {
            CollectReport::Recorded { digest } => staging::fetch_record(&self.store, &digest).await.unwrap(),
            failed @ CollectReport::Failed(_) => panic!("{failed:?}"),
        }
    }

    async fn refusal(&self) -> Reason {
        let record = self.record().await;
        assert_eq!(record.image, None);
        let image_tags = self
            .store
            .tags()
            .into_iter()
            .filter(|tag| tag.starts_with("build-"));
        assert_eq!(image_tags.count(), 0, "nothing half-done is pinned");
        record.failure.unwrap().reason
    }

    async fn manifest(&self, reference: &str) -> (Digest, Manifest) {
        let stored = self.store.manifest(reference).await.unwrap().unwrap();
        (
            Digest::of(&stored.bytes),
            serde_json::from_slice(&stored.bytes).unwrap(),
        )
    }
}

fn layers() -> [Vec<u8>; 2] {
    [layer("base"), layer(&"top ".repeat(500_000))]
}

/// A docker archive of plain layers, of which some may be left out.
fn docker(stored: &[bool]) -> Vec<u8> {
    let config = bytes(&config(AMD64, &layers()));
    let manifest =
        serde_json::json!([{"Config": "c.json", "RepoTags": ["web:1"], "Layers": ["0.tar", "1.tar"]}]);
    let mut tar = Tar::default()
        .file("c.json", &config)
        .file("manifest.json", &bytes(&manifest));
    for (number, layer) in layers().iter().enumerate().filter(|(number, _)| stored[*number]) {
        tar = tar.file(&format!("{number}.tar"), layer);
    }
    tar.end()
}

#[tokio::test]
async fn plain_layers_are_compressed_once_and_the_second_collection_reads_nothing() {
    let mut pod = Pod::with(&docker(&[true, true]));
    let first = pod.record().await;
    let image = first.image.unwrap();
    let plain: usize = layers().iter().map(Vec::len).sum();
    assert_eq!(first.counters.bytes_read, plain as u64);
    assert_eq!(first.counters.layers_uploaded, 2);
    assert_eq!(
        first.compressor.as_deref(),
        Some(crate::image::compress::Method::Gzip.compressor().unwrap())
    );
    assert!(image.layers.iter().all(|layer| layer.origin == LayerOrigin::New));

    pod.plan.build.attempt = 2;
    // Known layers need not even be in the archive.
    pod.leave(&docker(&[false, true]));
    let second = pod.record().await;
    let again = second.image.unwrap();
    assert_eq!(
        (second.counters.bytes_read, second.counters.bytes_uploaded),
        (0, 0)
    );
    assert_eq!(second.counters.layers_reused, 2);
    assert!(
        again
            .layers
            .iter()
            .all(|layer| layer.origin == LayerOrigin::Known)
    );
    assert_eq!(again.manifest, image.manifest);
    assert_eq!(second.compressor, None);
    assert_eq!(
        pod.store.tags(),
        [
            "build-0a1b2c3d-amd64-1",
            "build-0a1b2c3d-amd64-2",
            "record-0a1b2c3d-amd64-1",
            "record-0a1b2c3d-amd64-2",
            "slipway-layers"
        ]
    );
}

#[tokio::test]
async fn what_came_compressed_is_kept_with_its_manifest_byte_for_byte() {
    let layout = oci();
    let pod = Pod::with(&layout.tar().end());
    let record = pod.record().await;
    let image = record.image.unwrap();
    assert_eq!(
        image.manifest.digest,
        layout.index[0]["digest"].as_str().unwrap().parse().unwrap()
    );
    assert_eq!(image.layers[0].digest, Digest::of(&gzipped(&layer("hello"))));
    assert_eq!((record.counters.bytes_compressed, record.compressor), (0, None));
    let (digest, _) = pod.manifest("build-0a1b2c3d-amd64-1").await;
    assert_eq!(digest, image.manifest.digest);
}

#[tokio::test]
async fn plain_layers_of_a_layout_get_a_new_manifest_with_the_same_config() {
    let mut layout = Layout::default();
    layout.image(AMD64, &layers(), media_type::OCI_LAYER, <[u8]>::to_vec);
    let pod = Pod::with(&layout.tar().end());
    let image = pod.record().await.image.unwrap();
    let (_, manifest) = pod.manifest(image.manifest.digest.as_str()).await;
    assert_eq!(
        manifest.config.digest,
        Digest::of(&bytes(&config(AMD64, &layers())))
    );
    assert_eq!(manifest.layers.len(), 2);
    for (described, layer) in manifest.layers.iter().zip(&image.layers) {
        assert_eq!(described.media_type, media_type::OCI_LAYER_GZIP);
        assert_eq!((&described.digest, described.size), (&layer.digest, layer.size));
    }
}

#[tokio::test]
async fn a_known_layer_is_used_in_the_form_that_was_proven_first() {
    // Stored by us from a plain layer; then the same layer comes compressed by somebody else.
    let plain = [layer("hello")];
    let mut layout = Layout::default();
    layout.image(AMD64, &plain, media_type::OCI_LAYER, <[u8]>::to_vec);
    let mut pod = Pod::with(&layout.tar().end());
    let first = pod.record().await.image.unwrap();
    pod.plan.build.attempt = 2;
    pod.leave(&oci().tar().end());
    let second = pod.record().await;
    assert_eq!(second.counters.bytes_read, 0);
    assert_eq!(second.image.unwrap().layers[0].digest, first.layers[0].digest);
}

#[tokio::test]
async fn without_its_index_staging_is_asked_by_digest_and_every_byte_proven_again() {
    let pod = Pod::with(&oci().tar().end());
    pod.record().await;
    pod.store.forget_manifest("slipway-layers");
    let before = pod.store.uploaded();
    let record = pod.record().await;
    assert_eq!(record.counters.bytes_uploaded, 0);
    assert!(record.counters.bytes_read > 0);
    let small = 8 * 1024;
    assert!(
        pod.store.uploaded() - before < small,
        "only the record and the index"
    );
}

#[tokio::test]
async fn a_layer_that_staging_lost_is_stored_again() {
    let pod = Pod::with(&docker(&[true, true]));
    let image = pod.record().await.image.unwrap();
    pod.store.forget_blob(&image.layers[1].digest);
    let record = pod.record().await;
    assert_eq!(record.counters.layers_uploaded, 1);
    assert_eq!(record.image.unwrap().layers[1].digest, image.layers[1].digest);
}

#[rstest]
#[case::compressed_here(docker(&[true, true]))]
#[case::came_compressed(oci().tar().end())]
#[tokio::test]
async fn what_staging_only_says_that_it_has_is_stored_again(#[case] archive: Vec<u8>) {
    let pod = Pod::with(&archive);
    let image = pod.record().await.image.unwrap();
    pod.store.pretend_blob(&image.layers[0].digest);
    pod.store.pretend_blob(&image.config.digest);
    assert_eq!(pod.record().await.failure, None);
    assert!(pod.store.has(&image.layers[0].digest));
    let known = KnownLayers::load(&pod.store).await.unwrap();
    assert_eq!(
        known.get(&image.layers[0].diff_id).unwrap().digest,
        image.layers[0].digest
    );
}

#[rstest]
#[case::at_the_start(0)]
#[case::later(7)]
#[tokio::test]
async fn an_outage_is_waited_for(#[case] after: usize) {
    let pod = Pod::with(&docker(&[true, true]));
    pod.store.fail_after(after, 4);
    assert!(pod.record().await.image.is_some());
}

#[tokio::test]
async fn an_outage_that_does_not_end_is_reported_without_a_record() {
    let pod = Pod::with(&docker(&[true, true]));
    pod.store.fail_after(5, usize::MAX);
    match pod.report().await {
        CollectReport::Failed(failure) => assert_eq!(failure.reason, Reason::StagingUnavailable),
        recorded @ CollectReport::Recorded { .. } => panic!("{recorded:?}"),
    }
}

#[tokio::test]
async fn a_failed_build_is_recorded_with_its_log() {
    let pod = Pod::new();
    fs::write(pod.workspace().log(), "no such package\n").unwrap();
    pod.end(&StageOutcome::Failed(
        Failure::new(Reason::BuildFailed, "exit code 1").with_log("no such package"),
    ));
    let record = pod.record().await;
    let failure = record.failure.unwrap();
    assert_eq!(
        (failure.reason, failure.log_snippet.as_deref()),
        (Reason::BuildFailed, Some("no such package"))
    );
    let log = pod.store.blob(&record.log.unwrap()).await.unwrap();
    assert_eq!(&log[..], b"no such package\n");
}

#[tokio::test]
async fn a_build_that_was_killed_is_recorded() {
    let pod = Pod::new();
    drop(pod.workspace().enter(Stage::Build).unwrap());
    assert_eq!(pod.refusal().await, Reason::BuildPodFailed);
}

#[tokio::test]
async fn a_collection_that_is_asked_to_end_records_the_log_and_no_image() {
    let pod = Pod::with(&docker(&[true, true]));
    // The build runs still, and says nothing more.
    let _running = pod.workspace().enter(Stage::Build).unwrap();
    fs::write(pod.workspace().log(), "step 1\nstep 2\n").unwrap();
    let ending = pod.ending(std::future::ready(())).await;
    assert!(ending.asked_to_end);
    let CollectReport::Recorded { digest } = ending.report else {
        panic!("{ending:?}")
    };
    let record = staging::fetch_record(&pod.store, &digest).await.unwrap();
    let failure = record.failure.unwrap();
    assert_eq!(failure.reason, Reason::BuildPodFailed);
    assert_eq!(failure.log_snippet.as_deref(), Some("step 1\nstep 2\n"));
    assert!(record.image.is_none() && record.log.is_some());
}

#[tokio::test]
async fn a_collection_that_is_asked_to_end_while_staging_is_away_reports_the_log_itself() {
    let pod = Pod::new();
    let failure = Failure::new(Reason::BuildPodFailed, "asked").with_log(&"\n".repeat(4096));
    pod.end(&StageOutcome::Failed(failure));
    pod.store.fail_after(0, usize::MAX);
    // The build has said how it ended, so either may be first.
    let ending = pod.ending(std::future::ready(())).await;
    let text = serde_json::to_string(&ending.report).unwrap();
    assert!(text.len() <= crate::agent::report::MESSAGE_LIMIT);
    let CollectReport::Failed(failure) = ending.report else {
        panic!("{ending:?}")
    };
    assert_eq!(failure.reason, Reason::BuildPodFailed);
    assert!(failure.log_snippet.is_some_and(|log| log.len() >= 1024));
}

#[tokio::test]
async fn launchpads_files_are_in_the_record() {
    let pod = Pod::with(&docker(&[true, true]));
    let record = pod.record().await;
    let image = record.image.unwrap();
    let (_, artifact) = pod.manifest(&staging::record_tag(&record.build)).await;
    assert_eq!(
        artifact.subject.as_ref().map(|subject| &subject.digest),
        Some(&image.manifest.digest)
    );
    let mut files = std::collections::BTreeMap::new();
    for file in artifact.layers {
        let content = pod.store.blob(&file).await.unwrap();
        files.insert(
            file.annotations["org.opencontainers.image.title"].clone(),
            content,
        );
    }
    let read = |name: &str| serde_json::from_slice::<serde_json::Value>(&files[name]).unwrap();
    assert_eq!(
        files.keys().collect::<Vec<_>>(),
        ["digests.json", "manifest.json", "record.json"]
    );
    let entry = &read("digests.json")[0][image.layers[1].diff_id.as_str()];
    assert_eq!(entry["digest"], image.layers[1].digest.hex());
    assert_eq!((&entry["source"], &entry["layer_id"]), (&"".into(), &"1".into()));
    let section = &read("manifest.json")[0];
    assert_eq!(section["Layers"], serde_json::json!(["0.tar.gz", "1.tar.gz"]));
    assert_eq!(section["Config"], format!("{}.json", image.config.digest.hex()));
    assert_eq!(section["RepoTags"], serde_json::json!(["web:1"]));
}

#[tokio::test]
async fn an_archive_that_cannot_be_believed_is_refused_with_its_reason() {
    let mut wrong = layers();
    wrong.swap(0, 1);
    let config = bytes(&config(AMD64, &wrong));
    let manifest = br#"[{"Config":"c.json","Layers":["0.tar","1.tar"]}]"#;
    let swapped = Tar::default()
        .file("c.json", &config)
        .file("manifest.json", manifest)
        .file("0.tar", &layers()[0])
        .file("1.tar", &layers()[1])
        .end();
    let mut other = Layout::default();
    other.image(
        ("linux", "s390x"),
        &[layer("x")],
        media_type::OCI_LAYER,
        <[u8]>::to_vec,
    );
    for (archive, reason) in [
        (swapped, Reason::DigestMismatch),
        (docker(&[true, false]), Reason::LayerMissing),
        (other.tar().end(), Reason::PlatformMissing),
        (b"no tar at all".to_vec(), Reason::ArchiveMalformed),
    ] {
        assert_eq!(Pod::with(&archive).refusal().await, reason);
    }
}

#[tokio::test]
async fn the_archive_is_looked_for_in_the_output_folder_only() {
    let mut pod = Pod::new();
    assert_eq!(pod.refusal().await, Reason::ArchiveMissing);
    let outside = pod.folder.path().join("elsewhere");
    fs::write(&outside, docker(&[true, true])).unwrap();
    symlink(&outside, pod.workspace().output().join("image.tar")).unwrap();
    assert_eq!(pod.refusal().await, Reason::ArchiveMissing, "a link");
    pod.plan.archive = "../elsewhere".into();
    assert_eq!(pod.refusal().await, Reason::ArchiveMissing, "a path that climbs");
    fs::remove_dir_all(pod.workspace().output()).unwrap();
    symlink(pod.folder.path(), pod.workspace().output()).unwrap();
    pod.plan.archive = "elsewhere".into();
    assert_eq!(pod.refusal().await, Reason::ArchiveMissing, "a linked folder");
}

#[tokio::test]
async fn a_layout_in_a_folder_is_collected() {
    let mut pod = Pod::new();
    let output = pod.workspace().output();
    let layout = oci();
    fs::create_dir_all(output.join("blobs/sha256")).unwrap();
    fs::write(output.join("index.json"), bytes(&layout.root())).unwrap();
    for blob in &layout.blobs {
        fs::write(output.join("blobs/sha256").join(Digest::of(blob).hex()), blob).unwrap();
    }
    pod.plan.archive = ".".into();
    assert!(pod.record().await.image.is_some());
}
