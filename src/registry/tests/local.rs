//! Pushes from files.

use std::{fs, path::Path};

use serde_json::json;

use crate::{
    image::{Digest, Platform, media_type},
    record::Reason,
    registry::{
        ImageSource, LocalError, LocalImage, Outcome, TagPolicy, Target, push_all, read_image,
        testing::FaultRegistry,
    },
};

/// A tar archive of one small file, as layers are.
fn tar(name: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(name.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append_data(&mut header, name, name.as_bytes()).unwrap();
    builder.into_inner().unwrap()
}

fn config(architecture: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    json!({"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
}

fn put(folder: &Path, media_type: &str, bytes: &[u8]) -> serde_json::Value {
    let digest = Digest::of(bytes);
    fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    fs::write(folder.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}

/// One image of a layout with plain layers.
fn put_image(folder: &Path, architecture: &str, layers: &[Vec<u8>]) -> serde_json::Value {
    let config = config(architecture, layers);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": put(folder, media_type::OCI_CONFIG, &config),
        "layers": layers.iter().map(|layer| put(folder, media_type::OCI_LAYER, layer)).collect::<Vec<_>>(),
    });
    let mut entry = put(folder, media_type::OCI_MANIFEST, manifest.to_string().as_bytes());
    entry["platform"] = json!({"os": "linux", "architecture": architecture});
    entry
}

fn finish(folder: &Path, entries: &[serde_json::Value]) {
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = json!({"schemaVersion": 2, "manifests": entries});
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
}

async fn push(image: LocalImage, to: &FaultRegistry, platforms: &[Platform]) -> (Digest, Outcome) {
    let reference = image.root().digest.to_string();
    let source = ImageSource::from(image);
    let image = read_image(&source, &reference, platforms).await.unwrap();
    let target = Target {
        repository: to.repository("team/app"),
        tags: vec!["v1".to_owned()],
        policy: TagPolicy::Overwrite,
    };
    let outcome = push_all(&image, &source, &[target], None).await.remove(0);
    (image.digest().clone(), outcome)
}

#[tokio::test]
async fn a_layout_is_pushed_as_it_is_with_its_index() {
    let to = FaultRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let children =
        ["amd64", "arm64"].map(|architecture| put_image(folder.path(), architecture, &[tar(architecture)]));
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": children});
    let entry = put(folder.path(), media_type::OCI_INDEX, index.to_string().as_bytes());
    finish(folder.path(), &[entry]);
    let image = LocalImage::open(folder.path(), None, &[]).unwrap();
    let (digest, outcome) = push(image, &to, &[]).await;
    outcome.result.unwrap();
    assert_eq!(digest, Digest::of(index.to_string().as_bytes()));
    assert_eq!(to.tagged("team/app", "v1"), Some(digest.to_string()));
    let image = LocalImage::open(folder.path(), None, &[]).unwrap();
    let (digest, outcome) = push(image, &to, &["linux/arm64".parse().unwrap()]).await;
    outcome.result.unwrap();
    assert_ne!(digest, Digest::of(index.to_string().as_bytes()));
}

#[tokio::test]
async fn of_several_images_one_has_to_be_named() {
    let to = FaultRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let entries =
        ["amd64", "arm64"].map(|architecture| put_image(folder.path(), architecture, &[tar(architecture)]));
    finish(folder.path(), &entries);
    let error = LocalImage::open(folder.path(), None, &[]).unwrap_err();
    assert!(matches!(error, LocalError::Several { count: 2, .. }));
    assert_eq!(error.reason(), Reason::ManyImages);
    let wanted: Digest = entries[1]["digest"].as_str().unwrap().parse().unwrap();
    assert!(error.to_string().contains(wanted.as_str()));
    let image = LocalImage::open(folder.path(), Some(&wanted), &[]).unwrap();
    let (digest, outcome) = push(image, &to, &[]).await;
    outcome.result.unwrap();
    assert_eq!(digest, wanted);
    let image = LocalImage::open(folder.path(), None, &["linux/arm64".parse().unwrap()]).unwrap();
    assert_eq!(image.root().digest, wanted);
    let error = LocalImage::open(folder.path(), Some(&Digest::of(b"x")), &[]).unwrap_err();
    assert_eq!(error.reason(), Reason::SourceMissing);
}

/// A docker archive of two images, as `docker save` and `slipway collect` write them.
#[tokio::test]
async fn of_several_images_without_an_index_one_is_named_by_its_config() {
    let to = FaultRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let configs = ["one", "two"].map(|name| {
        fs::write(folder.path().join(format!("{name}.tar")), tar(name)).unwrap();
        let config = config("amd64", &[tar(name)]);
        fs::write(folder.path().join(format!("{name}.json")), &config).unwrap();
        Digest::of(&config)
    });
    let section = |name: &str| {
        json!({"Config": format!("{name}.json"), "RepoTags": [format!("app:{name}")],
            "Layers": [format!("{name}.tar")]})
    };
    let manifest = json!([section("one"), section("two")]);
    fs::write(folder.path().join("manifest.json"), manifest.to_string()).unwrap();
    let error = LocalImage::open(folder.path(), None, &[]).unwrap_err();
    assert!(matches!(error, LocalError::Several { count: 2, .. }), "{error}");
    assert!(error.to_string().contains("app:two"), "{error}");
    let image = LocalImage::open(folder.path(), Some(&configs[1]), &[]).unwrap();
    let (digest, outcome) = push(image, &to, &[]).await;
    outcome.result.unwrap();
    let there = to
        .anonymous("team/app")
        .manifest(digest.as_str())
        .await
        .unwrap()
        .unwrap();
    let manifest: crate::image::Manifest = serde_json::from_slice(&there.bytes).unwrap();
    assert_eq!(manifest.config.digest, configs[1]);
    let error = LocalImage::open(folder.path(), Some(&Digest::of(b"x")), &[]).unwrap_err();
    assert_eq!(error.reason(), Reason::SourceMissing);
}

#[tokio::test]
async fn plain_layers_of_an_archive_are_compressed() {
    let to = FaultRegistry::start().await;
    let layers = [tar("one"), tar("two"), tar("one")];
    let config = config("amd64", &layers);
    let names = ["a.tar", "b.tar", "c.tar"];
    let manifest = json!([{"Config": "config.json", "RepoTags": ["x:1"], "Layers": names}]);
    let mut builder = tar::Builder::new(Vec::new());
    let files = names.iter().copied().zip(layers.iter().map(Vec::as_slice));
    for (name, bytes) in files.chain([
        ("config.json", config.as_slice()),
        ("manifest.json", manifest.to_string().as_bytes()),
    ]) {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        builder.append_data(&mut header, name, bytes).unwrap();
    }
    let archive = tempfile::NamedTempFile::new().unwrap();
    fs::write(archive.path(), builder.into_inner().unwrap()).unwrap();
    let image = LocalImage::open(archive.path(), None, &[]).unwrap();
    let (digest, outcome) = push(image, &to, &[]).await;
    outcome.result.unwrap();
    // Two different layers and the config.
    assert_eq!(outcome.blobs.uploaded, 3);
    let there = to
        .anonymous("team/app")
        .manifest(digest.as_str())
        .await
        .unwrap()
        .unwrap();
    let manifest: crate::image::Manifest = serde_json::from_slice(&there.bytes).unwrap();
    assert_eq!(manifest.config.digest, Digest::of(&config));
    assert_eq!(manifest.layers.len(), 3);
    assert_eq!(manifest.layers[0], manifest.layers[2]);
    assert!(
        manifest
            .layers
            .iter()
            .all(|layer| layer.media_type == media_type::OCI_LAYER_GZIP)
    );
    // The same archive is the same image again.
    let image = LocalImage::open(archive.path(), None, &[]).unwrap();
    let (again, outcome) = push(image, &to, &[]).await;
    outcome.result.unwrap();
    assert_eq!((again, outcome.blobs.existed), (digest, 3));
}

#[tokio::test]
async fn content_that_is_not_what_its_name_says_never_arrives() {
    let to = FaultRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let layer = tar("layer");
    let entry = put_image(folder.path(), "amd64", std::slice::from_ref(&layer));
    finish(folder.path(), &[entry]);
    let path = folder.path().join("blobs/sha256").join(Digest::of(&layer).hex());
    let mut other = layer.clone();
    let last = other.len() - 1;
    other[last] ^= 1;
    fs::write(path, other).unwrap();
    let image = LocalImage::open(folder.path(), None, &[]).unwrap();
    let (_, outcome) = push(image, &to, &[]).await;
    assert_eq!(outcome.result.unwrap_err().reason(), Reason::DigestMismatch);
    assert!(to.blob("team/app", &Digest::of(&layer)).is_none());
    assert_eq!(to.tagged("team/app", "v1"), None);
}
