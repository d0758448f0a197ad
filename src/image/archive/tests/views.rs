//! Every producer's layout is read to the same image.

use rstest::rstest;
use serde_json::json;

use super::*;
use crate::image::{Platform, archive::AttachmentKind};

pub(super) fn layers() -> Vec<Vec<u8>> {
    vec![layer("base"), layer("top")]
}

pub(super) fn config_bytes() -> Vec<u8> {
    bytes(&config(AMD64, &layers()))
}

pub(super) fn hex(content: &[u8]) -> String {
    Digest::of(content).hex().to_owned()
}

/// Docker up to 24: a folder a layer, `manifest.json` behind them, a repeated layer as a link.
pub(super) fn save_legacy() -> Vec<u8> {
    let [base, top] = [layer("base"), layer("top")];
    let config = config(AMD64, &[base.clone(), top.clone(), base.clone()]);
    let name = format!("{}.json", hex(&bytes(&config)));
    let manifest = json!([{"Config": name, "RepoTags": ["app:1"],
        "Layers": ["aaa/layer.tar", "bbb/layer.tar", "ccc/layer.tar"]}]);
    Tar::default()
        .folder("aaa/")
        .file("aaa/VERSION", b"1.0")
        .file("aaa/layer.tar", &base)
        .folder("bbb/")
        .file("bbb/layer.tar", &top)
        .folder("ccc/")
        .symlink("ccc/layer.tar", "../aaa/layer.tar")
        .file(&name, &bytes(&config))
        .file("manifest.json", &bytes(&manifest))
        .file("repositories", b"{}")
        .end()
}

/// Docker from 25 on: both views over the same blobs, `LayerSources` for ordinary layers.
pub(super) fn save_v25() -> Layout {
    let mut layout = Layout::default();
    layout.image(AMD64, &layers(), media_type::OCI_LAYER, <[u8]>::to_vec);
    layout
}

pub(super) fn docker_view(layout: &Layout, layers: &[Vec<u8>], config: &[u8]) -> Vec<u8> {
    let blob = |content: &[u8]| format!("blobs/sha256/{}", hex(content));
    let sources: serde_json::Map<_, _> = layers
        .iter()
        .map(|layer| {
            (
                Digest::of(layer).to_string(),
                descriptor(media_type::OCI_LAYER, layer),
            )
        })
        .collect();
    let manifest = json!([{"Config": blob(config), "RepoTags": ["app:1"],
        "Layers": layers.iter().map(|layer| blob(layer)).collect::<Vec<_>>(), "LayerSources": sources}]);
    layout.tar().file("manifest.json", &bytes(&manifest)).end()
}

/// podman and skopeo: layers at the root by diff ID, links from folders to them, no folder entries.
pub(super) fn save_podman() -> Vec<u8> {
    let config = config_bytes();
    let mut tar = Tar::default();
    for layer in layers() {
        let name = format!("{}.tar", hex(&layer));
        tar = tar.file(&name, &layer).symlink(
            &format!("{}/layer.tar", hex(b"id")[..8].to_owned() + &hex(&layer)),
            &format!("../{name}"),
        );
    }
    let names: Vec<String> = layers()
        .iter()
        .map(|layer| format!("{}.tar", hex(layer)))
        .collect();
    let manifest = json!([{"Config": format!("{}.json", hex(&config)), "RepoTags": null, "Layers": names}]);
    tar.file(&format!("{}.json", hex(&config)), &config)
        .file("manifest.json", &bytes(&manifest))
        .end()
}

/// crane and kaniko: a colon in the config's name, gzip layers by their own digest.
pub(super) fn save_crane() -> Vec<u8> {
    let config = config_bytes();
    let names: Vec<_> = layers()
        .iter()
        .map(|layer| format!("{}.tar.gz", hex(&gzipped(layer))))
        .collect();
    let manifest = json!([{"Config": format!("sha256:{}", hex(&config)), "Layers": names}]);
    let mut tar = Tar::default().file(&format!("sha256:{}", hex(&config)), &config);
    for (name, layer) in names.iter().zip(layers()) {
        tar = tar.file(name, &gzipped(&layer));
    }
    tar.file("manifest.json", &bytes(&manifest)).end()
}

/// `BuildKit`: an index in the index, an attestation beside the image.
pub(super) fn oci_buildkit() -> Vec<u8> {
    let mut layout = Layout::default();
    layout.image(AMD64, &layers(), media_type::OCI_LAYER_ZSTD, zstded);
    let mut image = layout.index.remove(0);
    image["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let statement = br#"{"_type":"https://in-toto.io/Statement/v0.1"}"#;
    let attestation = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(media_type::OCI_CONFIG, layout.blob(bytes(&json!({
            "architecture": "unknown", "os": "unknown",
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(statement)]}})))),
        "layers": [descriptor("application/vnd.in-toto+json", layout.blob(&statement[..]))],
    });
    let mut entry = layout.manifest(&attestation, media_type::OCI_MANIFEST);
    entry["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    entry["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": image["digest"]});
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [image, entry]});
    let mut named = layout.manifest(&index, media_type::OCI_INDEX);
    named["annotations"] = json!({"io.containerd.image.name": "docker.io/library/app:1",
        "org.opencontainers.image.ref.name": "1"});
    layout.index = vec![named.clone(), named];
    layout.tar().end()
}

#[rstest]
#[case::docker_up_to_24(save_legacy(), 3)]
#[case::docker_25(docker_view(&save_v25(), &layers(), &config_bytes()), 2)]
#[case::podman(save_podman(), 2)]
#[case::crane(save_crane(), 2)]
#[case::buildkit(oci_buildkit(), 2)]
#[case::gzip_around(gzipped(&save_podman()), 2)]
#[case::zstd_around(zstded(&oci_buildkit()), 2)]
fn genuine_layouts_are_read(#[case] archive: Vec<u8>, #[case] count: usize) {
    let archive = verify(&archive).unwrap();
    let image = archive.single(Some(&"linux/amd64".parse().unwrap())).unwrap();
    assert_eq!(image.layers.len(), count);
    assert_eq!(image.layers[0].diff_id, Digest::of(&layer("base")));
    assert_eq!(archive.warnings(), &[] as &[String]);
}

/// Docker 29 without `BuildKit`, on containerd's store.
#[rstest]
#[case::of_both_families(media_type::DOCKER_LAYER_GZIP, 1)]
#[case::of_one_family(media_type::OCI_LAYER_GZIP, 0)]
fn a_manifest_of_two_families_is_read_and_said(#[case] media_type: &str, #[case] warnings: usize) {
    let mut layout = Layout::default();
    layout.image(AMD64, &layers(), media_type, gzipped);
    let archive = verify(&layout.tar().end()).unwrap();
    assert_eq!(archive.images()[0].layers.len(), 2);
    assert_eq!(archive.warnings().len(), warnings, "{:?}", archive.warnings());
}

#[test]
fn an_attestation_is_set_aside_with_its_subject() {
    let archive = verify(&oci_buildkit()).unwrap();
    assert_eq!(archive.images().len(), 1);
    let [attestation] = archive.attachments() else {
        panic!("{:?}", archive.attachments());
    };
    assert_eq!(attestation.kind, AttachmentKind::Attestation);
    let manifest = archive.images()[0].manifest.as_ref().unwrap();
    assert_eq!(attestation.subject.as_ref(), Some(&manifest.digest));
    assert_eq!(
        archive.images()[0].tags,
        ["docker.io/library/app:1", "docker.io/library/app:1"]
    );
}

#[test]
fn launchpads_layer_names_are_kept() {
    let ids = |archive: &[u8]| -> Vec<String> {
        let archive = open(archive).unwrap();
        archive.images()[0]
            .layers
            .iter()
            .map(|layer| layer.layer_id.clone())
            .collect()
    };
    assert_eq!(ids(&save_legacy()), ["aaa", "bbb", "ccc"]);
    assert_eq!(ids(&save_podman()), [hex(&layer("base")), hex(&layer("top"))]);
    assert_eq!(
        ids(&save_crane()),
        [hex(&gzipped(&layer("base"))), hex(&gzipped(&layer("top")))]
    );
}

#[test]
fn a_layout_in_a_folder_is_read_and_its_links_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let layout = oci();
    std::fs::create_dir_all(root.join("blobs/sha256")).unwrap();
    std::fs::write(root.join("index.json"), bytes(&layout.root())).unwrap();
    for blob in &layout.blobs {
        std::fs::write(root.join("blobs/sha256").join(hex(blob)), blob).unwrap();
    }
    let archive = Archive::open(root, Limits::default()).unwrap();
    let layer = &archive.images()[0].layers[0];
    assert!(archive.content(layer).unwrap().is_some());

    let moved = tempfile::tempdir().unwrap();
    let path = root.join(&layer.member);
    std::fs::rename(&path, moved.path().join("layer")).unwrap();
    std::os::unix::fs::symlink(moved.path().join("layer"), &path).unwrap();
    assert_eq!(archive.content(layer).unwrap_err().reason(), Reason::LinkInvalid);
}

#[test]
fn a_path_that_is_no_archive_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("image.tar"), folder.path().join("link"));
    std::fs::write(&file, save_podman()).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let reason = |path: &std::path::Path| Archive::open(path, Limits::default()).err().map(|e| e.reason());
    assert_eq!(reason(&file), None);
    assert_eq!(reason(&link), Some(Reason::ArchiveMissing));
    assert_eq!(reason(&folder.path().join("none")), Some(Reason::ArchiveMissing));
    assert_eq!(
        reason(std::path::Path::new("/dev/null")),
        Some(Reason::ArchiveMissing)
    );
}

#[test]
fn an_archive_that_is_written_to_has_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.tar");
    std::fs::write(&path, save_podman()).unwrap();
    let archive = Archive::open(&path, Limits::default()).unwrap();
    archive.check_unchanged().unwrap();
    std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(b"more")
        .unwrap();
    assert_eq!(
        archive.check_unchanged().unwrap_err().reason(),
        Reason::ArchiveChanged
    );
}

/// Wanted platform, platforms in the archive, outcome.
#[rstest]
#[case::only_one(None, &["amd64"], None)]
#[case::two_and_no_wish(None, &["amd64", "arm64"], Some(Reason::ManyImages))]
#[case::wish(Some("linux/arm64/v8"), &["amd64", "arm64"], None)]
#[case::wish_not_there(Some("linux/s390x"), &["amd64", "arm64"], Some(Reason::PlatformMissing))]
#[case::other_only(Some("linux/arm64"), &["amd64"], Some(Reason::PlatformMissing))]
#[case::none_at_all(Some("linux/arm64"), &[], Some(Reason::NoImage))]
fn the_image_that_is_meant(
    #[case] wanted: Option<&str>,
    #[case] architectures: &[&str],
    #[case] refused: Option<Reason>,
) {
    let mut layout = Layout::default();
    for architecture in architectures {
        layout.image(
            ("linux", architecture),
            &[layer(architecture)],
            media_type::OCI_LAYER,
            <[u8]>::to_vec,
        );
    }
    let archive = open(&layout.tar().end()).unwrap();
    let wanted: Option<Platform> = wanted.map(|text| text.parse().unwrap());
    let found = archive.single(wanted.as_ref());
    assert_eq!(found.err().map(|error| error.reason()), refused);
}

#[test]
fn images_of_other_platforms_may_be_absent() {
    let mut layout = oci();
    let mut other = descriptor(media_type::OCI_MANIFEST, b"not there");
    other["platform"] = json!({"os": "linux", "architecture": "arm64"});
    layout.index.push(other);
    let archive = verify(&layout.tar().end()).unwrap();
    assert!(archive.single(Some(&"linux/amd64".parse().unwrap())).is_ok());
    let error = archive.single(Some(&"linux/arm64".parse().unwrap())).unwrap_err();
    assert_eq!(error.reason(), Reason::ManifestInvalid);
}

#[rstest]
#[case::index_lists_nothing(|layout: &mut Layout| layout.index.clear(), None)]
#[case::layers_left_out(|layout: &mut Layout| remanifest(layout, Vec::clear), None)]
#[case::other_order(|layout: &mut Layout| remanifest(layout, |layers| layers.reverse()), None)]
#[case::other_layer(|layout: &mut Layout| {
    let other = layer("other");
    let other = descriptor(media_type::OCI_LAYER, layout.blob(other));
    remanifest(layout, |layers| layers[1] = other);
}, Some(Reason::ArchiveAmbiguous))]
#[case::other_image(|layout: &mut Layout| {
    layout.index.clear();
    layout.image(AMD64, &[layer("other")], media_type::OCI_LAYER, <[u8]>::to_vec);
}, Some(Reason::ArchiveAmbiguous))]
fn two_views_are_compared(#[case] spoil: fn(&mut Layout), #[case] refused: Option<Reason>) {
    let mut layout = save_v25();
    spoil(&mut layout);
    let result = verify(&docker_view(&layout, &layers(), &config_bytes()));
    assert_eq!(result.as_ref().err().map(ArchiveError::reason), refused);
    if let Ok(archive) = result {
        assert_eq!(archive.warnings().len(), 1, "accepted with a warning");
        assert_eq!(archive.images()[0].layers.len(), 2);
    }
}

/// Replaces the layers of the layout's only manifest.
pub(super) fn remanifest(layout: &mut Layout, change: impl FnOnce(&mut Vec<Value>)) {
    let digest = layout.index[0]["digest"].clone();
    let old = layout
        .blobs
        .iter()
        .find(|blob| digest == Digest::of(blob).as_str())
        .unwrap();
    let mut manifest: Value = serde_json::from_slice(old).unwrap();
    change(manifest["layers"].as_array_mut().unwrap());
    layout.index = vec![layout.manifest(&manifest, media_type::OCI_MANIFEST)];
}

#[test]
fn layers_that_only_the_config_names_are_kept_as_missing() {
    let config = config_bytes();
    let manifest = json!([{"Config": "c.json", "Layers": ["", "top.tar"]}]);
    let archive = Tar::default()
        .file("c.json", &config)
        .file("top.tar", &layer("top"))
        .file("manifest.json", &bytes(&manifest))
        .end();
    let archive = open(&archive).unwrap();
    let image = &archive.images()[0];
    assert!(archive.content(&image.layers[0]).unwrap().is_none());
    assert_eq!(image.layers[0].layer_id, image.layers[0].diff_id.hex());
    assert!(archive.content(&image.layers[1]).unwrap().is_some());
}
