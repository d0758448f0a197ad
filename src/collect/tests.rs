//! Collections from synthetic archives into a folder and into a repository in memory.

use std::{fs, path::Path, sync::Arc, time::Duration};

use rstest::rstest;
use serde_json::json;

use super::*;
use crate::{
    image::{
        Known, Manifest, Platform,
        archive::{
            Archive, ArchiveError, Limits,
            tests::{AMD64, Layout, Tar, bytes, config, descriptor, gzipped, layer},
        },
        media_type,
    },
    record::{ImageRecord, LayerOrigin, Reason},
    staging::{Store, memory::Memory},
};

fn noise(seed: u64, length: usize) -> String {
    let mut state = seed | 1;
    let mut text = String::with_capacity(length);
    while text.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        text.push_str(["alpha ", "beta ", "gamma ", "delta\n"][(state >> 62) as usize]);
    }
    text
}

fn layers() -> Vec<Vec<u8>> {
    vec![
        layer("base"),
        layer(&noise(1, 3_000_000)),
        layer(&noise(2, 700_000)),
    ]
}

/// A docker archive of plain layers, one section for each image; `stored` says which layers are there.
fn docker(images: &[&[Vec<u8>]], stored: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut tar = Tar::default();
    let mut sections = Vec::new();
    for (number, layers) in images.iter().enumerate() {
        let mut config = config(AMD64, layers);
        config["created_by"] = json!(number);
        let config = bytes(&config);
        let names: Vec<String> = (0..layers.len()).map(|n| format!("{number}/{n}.tar")).collect();
        sections.push(json!({
            "Config": format!("{number}.json"), "RepoTags": [format!("app:{number}")], "Layers": names
        }));
        tar = tar.file(&format!("{number}.json"), &config);
        for (n, layer) in layers.iter().enumerate().filter(|(n, _)| stored(*n)) {
            tar = tar.file(&format!("{number}/{n}.tar"), layer);
        }
    }
    tar.file("manifest.json", &bytes(&json!(sections))).end()
}

fn open(archive: &[u8]) -> Arc<Archive> {
    Arc::new(Archive::from_stream(archive, Limits::default()).unwrap())
}

fn platform() -> Platform {
    "linux/amd64".parse().unwrap()
}

/// Collects every image of an archive.
async fn collect<S: Store>(
    archive: &Arc<Archive>,
    store: S,
    options: Options,
    given: Known,
) -> Result<(S, Vec<Collected>), CollectError> {
    let patience = Patience::new(Duration::ZERO, Duration::ZERO);
    let mut collection = Collection::new(store, patience, options).with_given(given);
    let mut all = Vec::new();
    for image in archive.images() {
        let tags = Tags {
            pending: "pending".into(),
            image: format!("t-{}", image.config.digest.short()),
        };
        all.push(collection.collect(archive, image, &platform(), tags).await?);
    }
    Ok((collection.into_store(), all))
}

/// Collects into a folder and finishes it.
async fn fill(
    folder: &Path,
    archive: &[u8],
    options: Options,
    given: Known,
) -> Result<Vec<ImageRecord>, CollectError> {
    let archive = open(archive);
    let store = Folder::new(folder, &given).unwrap();
    let (store, all) = collect(&archive, store, options, given).await?;
    let records: Vec<_> = all
        .into_iter()
        .zip(archive.images())
        .map(|(collected, image)| (collected.image, image.tags.clone()))
        .collect();
    store.finish(&records).unwrap();
    Ok(records.into_iter().map(|(record, _)| record).collect())
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn threads(threads: usize) -> Options {
    Options {
        threads,
        ..Options::default()
    }
}

fn given(layer: &[u8], size: Option<u64>) -> Known {
    let line = json!({
        "diffID": Digest::of(layer), "digest": Digest::of(b"stored elsewhere"), "size": size,
        "mediaType": media_type::OCI_LAYER_GZIP, "source": "r.example/base",
    });
    Known::read(line.to_string().as_bytes()).unwrap()
}

#[tokio::test]
async fn one_thread_and_two_make_the_same_files_and_each_is_what_its_digest_says() {
    let archive = docker(&[&layers()], |_| true);
    let mut all = Vec::new();
    for count in [1, 2, 5] {
        let folder = tempfile::tempdir().unwrap();
        let records = fill(folder.path(), &archive, threads(count), Known::default())
            .await
            .unwrap();
        for layer in &records[0].layers {
            let file = fs::read(folder.path().join(format!("{}.tar.gz", layer.layer_id))).unwrap();
            assert_eq!(
                (Digest::of(&file), file.len() as u64),
                (layer.digest.clone(), layer.size)
            );
        }
        let files: Vec<(String, Vec<u8>)> = names(folder.path())
            .into_iter()
            .map(|name| (name.clone(), fs::read(folder.path().join(name)).unwrap()))
            .collect();
        all.push((records, files));
    }
    assert!(all[0] == all[1] && all[1] == all[2]);
}

#[tokio::test]
async fn the_folder_has_launchpads_files_and_manifest_json_names_what_is_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("buildlog.txt"), "not ours").unwrap();
    let records = fill(
        folder.path(),
        &docker(&[&layers()], |_| true),
        threads(2),
        Known::default(),
    )
    .await
    .unwrap();
    let config = format!("{}.json", records[0].config.digest.hex());
    let mut expected = vec![
        "0.tar.gz",
        "1.tar.gz",
        "2.tar.gz",
        "buildlog.txt",
        "digests.json",
        "manifest.json",
        &config,
    ];
    expected.sort_unstable();
    assert_eq!(names(folder.path()), expected);
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(folder.path().join(name)).unwrap()).unwrap()
    };
    let section = &read("manifest.json")[0];
    assert_eq!(section["Config"], config);
    assert_eq!(section["Layers"], json!(["0.tar.gz", "1.tar.gz", "2.tar.gz"]));
    let entry = &read("digests.json")[0][records[0].layers[1].diff_id.as_str()];
    assert_eq!((&entry["layer_id"], &entry["source"]), (&json!("1"), &json!("")));
    assert_eq!(entry["digest"], records[0].layers[1].digest.hex());
}

#[rstest]
#[case::that_was_there(true)]
#[case::that_was_made(false)]
#[tokio::test]
async fn a_refusal_leaves_nothing_in_a_folder(#[case] exists: bool) {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("out");
    if exists {
        fs::create_dir(&folder).unwrap();
    }
    let error = fill(
        &folder,
        &docker(&[&layers()], |n| n != 2),
        threads(2),
        Known::default(),
    )
    .await
    .unwrap_err();
    assert_eq!(error.reason(), Reason::LayerMissing);
    assert_eq!(folder.exists(), exists);
    if exists {
        assert_eq!(names(&folder), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_given_layer_is_not_read_and_may_be_missing() {
    let folder = tempfile::tempdir().unwrap();
    let known = given(&layers()[1], Some(77));
    let records = fill(
        folder.path(),
        &docker(&[&layers()], |n| n != 1),
        threads(2),
        known,
    )
    .await
    .unwrap();
    let layer = &records[0].layers[1];
    assert_eq!((layer.origin, layer.size), (LayerOrigin::Base, 77));
    assert_eq!(layer.source, "r.example/base");
    assert!(!folder.path().join("1.tar.gz").exists());
    assert!(folder.path().join("2.tar.gz").exists());
}

#[rstest]
#[case::its_copy_is_good(None, None)]
#[case::its_copy_is_another(Some(true), Some(Reason::DigestMismatch))]
#[case::its_copy_is_missing(Some(false), Some(Reason::LayerMissing))]
#[tokio::test]
async fn a_known_layer_is_proven_where_that_is_asked_for(
    #[case] damage: Option<bool>,
    #[case] expected: Option<Reason>,
) {
    let mut layers = layers();
    let known = given(&layers[1], Some(77));
    let config = bytes(&config(AMD64, &layers));
    if damage == Some(true) {
        layers[1] = layer("other");
    }
    let mut tar = Tar::default().file("c.json", &config).file(
        "manifest.json",
        br#"[{"Config":"c.json","Layers":["0.tar","1.tar","2.tar"]}]"#,
    );
    for (n, layer) in layers.iter().enumerate() {
        if n != 1 || damage != Some(false) {
            tar = tar.file(&format!("{n}.tar"), layer);
        }
    }
    let archive = tar.end();
    let verifying = Options {
        verify_known: true,
        ..threads(2)
    };
    let folder = tempfile::tempdir().unwrap();
    let result = fill(folder.path(), &archive, verifying, known.clone()).await;
    assert_eq!(result.err().map(|error| error.reason()), expected);
    // Without being asked nobody looks.
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), &archive, threads(2), known).await.unwrap();
}

#[tokio::test]
async fn a_given_layer_without_a_size_is_read_in_a_folder_and_looked_up_in_a_registry() {
    let archive = open(&docker(&[&layers()], |_| true));
    let known = given(&layers()[1], None);
    let folder = tempfile::tempdir().unwrap();
    let store = Folder::new(folder.path(), &known).unwrap();
    let (_, all) = collect(&archive, store, threads(2), known.clone()).await.unwrap();
    assert_eq!(all[0].image.layers[1].origin, LayerOrigin::New);
    assert_eq!(all[0].warnings.len(), 1);

    let store = Memory::default();
    let stored = bytes::Bytes::from_static(b"stored elsewhere");
    crate::staging::send_blob(&store, &Digest::of(&stored), stored)
        .await
        .unwrap();
    let (_, all) = collect(&archive, store, threads(2), known).await.unwrap();
    let layer = &all[0].image.layers[1];
    assert_eq!((layer.origin, layer.size), (LayerOrigin::Base, 16));
    assert!(all[0].warnings.is_empty());
}

#[tokio::test]
async fn what_is_stored_is_kept_at_once() {
    // One layer after the other, and the last one is missing.
    let archive = open(&docker(&[&layers()], |n| n != 0));
    let store = Memory::default();
    let error = collect(&archive, store.clone(), threads(1), Known::default())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::LayerMissing);
    let kept = store.manifest("pending").await.unwrap().unwrap();
    let kept: Manifest = serde_json::from_slice(&kept.bytes).unwrap();
    assert_eq!(kept.layers.len(), 2);
    assert!(kept.layers.iter().all(|layer| store.has(&layer.digest)));
}

#[tokio::test]
async fn several_images_have_a_section_each_share_layers_and_no_names() {
    let (base, one, two) = (layer("base"), layer("one"), layer("two"));
    let folder = tempfile::tempdir().unwrap();
    let archive = docker(&[&[base.clone(), one], &[base, two]], |_| true);
    let records = fill(folder.path(), &archive, threads(2), Known::default())
        .await
        .unwrap();
    let read = |name: &str| -> Vec<serde_json::Value> {
        serde_json::from_slice(&fs::read(folder.path().join(name)).unwrap()).unwrap()
    };
    assert_eq!((read("manifest.json").len(), read("digests.json").len()), (2, 2));
    // The second image calls another layer "1"; it is named by its diff ID.
    let second = &records[1].layers[1];
    assert_eq!(
        read("manifest.json")[1]["Layers"],
        json!(["0.tar.gz", format!("{}.tar.gz", second.diff_id.hex())])
    );
    let file = fs::read(folder.path().join(format!("{}.tar.gz", second.diff_id.hex()))).unwrap();
    assert_eq!(Digest::of(&file), second.digest);
    assert_eq!(records[1].layers[0].origin, LayerOrigin::Known);
}

#[rstest]
#[case::gzip(Method::Gzip, media_type::OCI_LAYER_GZIP)]
#[case::gzip_small(Method::GzipSmall, media_type::OCI_LAYER_GZIP)]
#[case::zstd(Method::Zstd, media_type::OCI_LAYER_ZSTD)]
#[case::keep(Method::Keep, media_type::OCI_LAYER)]
#[tokio::test]
async fn plain_layers_are_stored_as_asked_and_read_again(#[case] method: Method, #[case] expected: &str) {
    let options = Options { method, ..threads(2) };
    let archive = open(&docker(&[&layers()], |_| true));
    let (store, all) = collect(&archive, Memory::default(), options, Known::default())
        .await
        .unwrap();
    assert_eq!(all[0].compressor, method.compressor());
    for (layer, plain) in all[0].image.layers.iter().zip(layers()) {
        assert_eq!(layer.media_type, expected);
        let descriptor = crate::image::Descriptor::new(expected, layer.digest.clone(), layer.size);
        let stored = store.blob(&descriptor).await.unwrap();
        let mut again = Vec::new();
        let compression = crate::image::compress::Compression::sniff(&stored);
        std::io::Read::read_to_end(
            &mut crate::image::compress::Decoder::new(compression, &stored[..], 2000, 0),
            &mut again,
        )
        .unwrap();
        assert!(again == plain);
    }
}

/// A layout whose second layer is a foreign one that is not in it.
fn with_foreign() -> Vec<u8> {
    let (here, elsewhere) = (layer("here"), layer("elsewhere"));
    let mut layout = Layout::default();
    let config = bytes(&config(AMD64, &[here.clone(), elsewhere.clone()]));
    let config = descriptor(media_type::OCI_CONFIG, layout.blob(config));
    let first = descriptor(media_type::OCI_LAYER, layout.blob(here));
    let mut second = descriptor(
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        &gzipped(&elsewhere),
    );
    second["urls"] = json!(["https://example.com/layer"]);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": [first, second],
    });
    let entry = layout.manifest(&manifest, media_type::OCI_MANIFEST);
    layout.index.push(entry);
    layout.tar().end()
}

#[tokio::test]
async fn a_foreign_layer_is_refused_unless_allowed_and_then_named_and_never_fetched() {
    let refused = Archive::from_stream(&with_foreign()[..], Limits::default());
    assert_eq!(refused.unwrap_err().reason(), Reason::ForeignLayer);

    let limits = Limits {
        foreign_layers: true,
        ..Limits::default()
    };
    let archive = Arc::new(Archive::from_stream(&with_foreign()[..], limits).unwrap());
    let (store, all) = collect(&archive, Memory::default(), threads(2), Known::default())
        .await
        .unwrap();
    let image = &all[0].image;
    assert_eq!(image.layers[1].origin, LayerOrigin::Foreign);
    let stored = store
        .manifest(image.manifest.digest.as_str())
        .await
        .unwrap()
        .unwrap();
    let manifest: Manifest = serde_json::from_slice(&stored.bytes).unwrap();
    assert_eq!(manifest.layers[1].urls, ["https://example.com/layer"]);
    assert!(!store.has(&image.layers[1].digest));
    // The first layer came plain, so the manifest is a new one.
    assert_eq!(manifest.layers[0].media_type, media_type::OCI_LAYER_GZIP);
}

#[tokio::test]
async fn a_layer_that_docker_says_was_pulled_keeps_where_from() {
    let plain = layer("base");
    let config = bytes(&config(AMD64, std::slice::from_ref(&plain)));
    let mut source = descriptor(media_type::DOCKER_LAYER_GZIP, &gzipped(&plain));
    source["annotations"] = json!({"containerd.io/distribution.source.r.example": "team/base"});
    let manifest = json!([{
        "Config": "c.json", "Layers": ["0.tar"], "LayerSources": {Digest::of(&plain).to_string(): source},
    }]);
    let archive = Tar::default()
        .file("c.json", &config)
        .file("manifest.json", &bytes(&manifest))
        .file("0.tar", &plain)
        .end();
    let (_, all) = collect(&open(&archive), Memory::default(), threads(1), Known::default())
        .await
        .unwrap();
    assert_eq!(all[0].image.layers[0].source, "r.example/team/base");
}

#[tokio::test]
async fn time_and_documents_have_bounds_that_can_be_set() {
    let archive = docker(&[&layers()], |_| true);
    let no_time = Limits {
        seconds: 0,
        ..Limits::default()
    };
    let error = Archive::from_stream(&archive[..], no_time).unwrap_err();
    assert!(matches!(error, ArchiveError::Limit { limit: 0, .. }), "{error}");

    let mut large = config(AMD64, &[layer("x")]);
    large["comment"] = json!("x".repeat(5 << 20));
    let archive = Tar::default()
        .file("c.json", &bytes(&large))
        .file("manifest.json", br#"[{"Config":"c.json","Layers":["0.tar"]}]"#)
        .file("0.tar", &layer("x"))
        .end();
    let error = Archive::from_stream(&archive[..], Limits::default()).unwrap_err();
    assert_eq!(error.reason(), Reason::LimitExceeded);
    let mut limits = Limits::default();
    assert!(limits.set("document-bytes", 8 << 20));
    Archive::from_stream(&archive[..], limits).unwrap();
}

#[tokio::test]
async fn what_is_written_is_read_by_other_tools_to_the_same_layers() {
    let skopeo = |arguments: &[&str]| {
        std::process::Command::new("skopeo")
            .args(["--insecure-policy"])
            .args(arguments)
            .output()
    };
    if skopeo(&["--version"]).is_err() {
        println!("SKIPPED: skopeo is not installed");
        return;
    }
    for method in [Method::Gzip, Method::GzipSmall, Method::Zstd, Method::Keep] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let options = Options { method, ..threads(2) };
        fill(&out, &docker(&[&layers()], |_| true), options, Known::default())
            .await
            .unwrap();
        let (tar, read) = (folder.path().join("image.tar"), folder.path().join("read"));
        let mut archive = tar::Builder::new(fs::File::create(&tar).unwrap());
        archive.append_dir_all(".", &out).unwrap();
        archive.finish().unwrap();
        let copied = skopeo(&[
            "copy",
            "--dest-decompress",
            &format!("docker-archive:{}", tar.display()),
            &format!("dir:{}", read.display()),
        ])
        .unwrap();
        assert!(
            copied.status.success(),
            "{method}: {}",
            String::from_utf8_lossy(&copied.stderr)
        );
        for layer in layers() {
            let file = fs::read(read.join(Digest::of(&layer).hex())).unwrap();
            assert!(file == layer, "{method}");
        }
    }
}
