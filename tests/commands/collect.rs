//! `slipway collect`: every flag, the JSON, exit codes.

use std::{fs, io::Read as _, path::Path};

use rstest::rstest;
use serde_json::{Value, json};
use slipway::image::Digest;

use crate::support::{
    Image, Registry, code, docker_archive, document, layer, names, noise, sha256sum, slipway, slipway_fed,
    tar, text,
};

fn layers() -> Vec<Vec<u8>> {
    vec![
        layer("etc/base", b"base"),
        layer("usr/large", &noise(1, 3_000_000)),
        layer("usr/small", &noise(2, 200_000)),
    ]
}

/// A folder with `image.tar`.
fn folder(archive: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("image.tar"), archive).unwrap();
    folder
}

fn one_image() -> tempfile::TempDir {
    folder(&docker_archive(&[Image::amd64(&layers())], |_, _| true))
}

/// The document of a collection that has to go well.
fn collected(arguments: &[&str], folder: &Path) -> Value {
    let arguments = [&["collect", "--json"], arguments].concat();
    let output = slipway(&arguments, folder);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    document(&output)
}

/// The exit code, reason and document of one that has to be refused.
fn refused(arguments: &[&str], folder: &Path) -> (i32, String, Value) {
    let arguments = [&["collect", "--json"], arguments].concat();
    let output = slipway(&arguments, folder);
    let document = document(&output);
    assert_eq!(document["outcome"], "Refused");
    (
        code(&output),
        document["reason"].as_str().unwrap().to_owned(),
        document,
    )
}

fn diff_ids(document: &Value, image: usize) -> Vec<String> {
    let layers = document["images"][image]["layers"].as_array().unwrap();
    layers
        .iter()
        .map(|layer| layer["diffID"].as_str().unwrap().to_owned())
        .collect()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn the_document_has_every_field_and_the_files_are_what_it_says() {
    let folder = one_image();
    let document = collected(&["image.tar", "--output", "out"], folder.path());
    assert_eq!(
        keys(&document),
        [
            "compressor",
            "counters",
            "images",
            "member",
            "message",
            "outcome",
            "reason",
            "warnings"
        ]
    );
    assert_eq!(document["outcome"], "Accepted");
    for field in ["reason", "message", "member"] {
        assert_eq!(document[field], Value::Null);
    }
    assert_eq!(
        keys(&document["counters"]),
        [
            "bytesCompressed",
            "bytesHashed",
            "bytesRead",
            "bytesReused",
            "bytesUploaded",
            "layersReused",
            "layersUploaded"
        ]
    );
    let image = &document["images"][0];
    assert_eq!(
        keys(image),
        ["configDigest", "layers", "manifestDigest", "platform", "tags"]
    );
    assert_eq!(
        (&image["platform"], &image["tags"]),
        (&json!("linux/amd64"), &json!(["app:0"]))
    );
    let expected: Vec<Digest> = layers().iter().map(|layer| Digest::of(layer)).collect();
    assert_eq!(json!(diff_ids(&document, 0)), json!(expected));

    let out = folder.path().join("out");
    let digests: Value = serde_json::from_slice(&fs::read(out.join("digests.json")).unwrap()).unwrap();
    let mut stored = 0;
    for layer in image["layers"].as_array().unwrap() {
        assert_eq!(
            keys(layer),
            [
                "diffID",
                "digest",
                "layerID",
                "mediaType",
                "origin",
                "size",
                "source"
            ]
        );
        let file = out.join(format!("{}.tar.gz", layer["layerID"].as_str().unwrap()));
        assert_eq!(layer["digest"], sha256sum(&file));
        assert_eq!(layer["size"], fs::metadata(&file).unwrap().len());
        stored += fs::metadata(&file).unwrap().len();
        assert_eq!((&layer["origin"], &layer["source"]), (&json!("New"), &json!("")));
        let entry = &digests[0][layer["diffID"].as_str().unwrap()];
        let hex = layer["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        assert_eq!(
            (&entry["digest"], &entry["layer_id"]),
            (&json!(hex), &layer["layerID"])
        );
    }
    let config = image["configDigest"]
        .as_str()
        .unwrap()
        .strip_prefix("sha256:")
        .unwrap();
    assert_eq!(
        sha256sum(&out.join(format!("{config}.json"))),
        image["configDigest"].as_str().unwrap()
    );
    let counters = &document["counters"];
    let plain: usize = layers().iter().map(Vec::len).sum();
    assert_eq!(
        (&counters["bytesRead"], &counters["bytesHashed"]),
        (&json!(plain), &json!(plain))
    );
    assert_eq!(
        (&counters["bytesCompressed"], &counters["bytesUploaded"]),
        (&json!(stored), &json!(stored))
    );
    assert_eq!(
        (&counters["layersUploaded"], &counters["layersReused"]),
        (&json!(3), &json!(0))
    );
}

#[test]
fn one_thread_and_two_a_file_and_a_stream_make_the_same_folder() {
    let archive = docker_archive(&[Image::amd64(&layers())], |_, _| true);
    let folder = folder(&archive);
    let mut documents = Vec::new();
    for (out, threads) in [("one", "1"), ("two", "2"), ("again", "2")] {
        documents.push(collected(
            &["image.tar", "--output", out, "--threads", threads],
            folder.path(),
        ));
    }
    let output = slipway_fed(
        &["collect", "-", "--output", "stream", "--json"],
        folder.path(),
        &archive,
    );
    documents.push(document(&output));
    let contents = |out: &str| -> Vec<(String, String)> {
        let out = folder.path().join(out);
        names(&out)
            .into_iter()
            .map(|name| (sha256sum(&out.join(&name)), name))
            .collect()
    };
    for (document, out) in documents.iter().zip(["one", "two", "again", "stream"]) {
        assert_eq!(*document, documents[0], "{out}");
        assert_eq!(contents(out), contents("one"), "{out}");
    }
}

#[rstest]
#[case::gzip("gzip", "application/vnd.oci.image.layer.v1.tar+gzip", b"\x1f\x8b")]
#[case::gzip_small("gzip-small", "application/vnd.oci.image.layer.v1.tar+gzip", b"\x1f\x8b")]
#[case::zstd("zstd", "application/vnd.oci.image.layer.v1.tar+zstd", b"\x28\xb5")]
#[case::keep("keep", "application/vnd.oci.image.layer.v1.tar", b"et")]
fn plain_layers_are_stored_as_asked(#[case] how: &str, #[case] media_type: &str, #[case] magic: &[u8]) {
    let folder = one_image();
    let document = collected(
        &["image.tar", "--output", "out", "--compression", how],
        folder.path(),
    );
    assert_eq!(document["compressor"].is_null(), how == "keep");
    for (layer, plain) in document["images"][0]["layers"]
        .as_array()
        .unwrap()
        .iter()
        .zip(layers())
    {
        assert_eq!(layer["mediaType"], media_type);
        let file = folder
            .path()
            .join("out")
            .join(format!("{}.tar.gz", layer["layerID"].as_str().unwrap()));
        let stored = fs::read(&file).unwrap();
        assert_eq!(layer["digest"], sha256sum(&file));
        let mut again = Vec::new();
        match how {
            "zstd" => again = zstd::decode_all(&stored[..]).unwrap(),
            "keep" => again.clone_from(&stored),
            _ => drop(
                flate2::read::MultiGzDecoder::new(&stored[..])
                    .read_to_end(&mut again)
                    .unwrap(),
            ),
        }
        assert!(again == plain);
        assert!(how == "keep" || stored.starts_with(magic));
    }
    let accepted = slipway(&["accept", "."], folder.path());
    assert_eq!(code(&accepted), 0, "{how}: {}", text(&accepted.stderr));
}

/// Two images of one base, for two architectures.
fn two_images() -> tempfile::TempDir {
    let base = layer("etc/base", b"base");
    let (one, two) = ([base.clone(), layer("one", b"1")], [base, layer("two", b"2")]);
    let images = [
        Image::amd64(&one),
        Image {
            platform: ("linux", "arm64"),
            layers: &two,
        },
    ];
    folder(&docker_archive(&images, |_, _| true))
}

#[test]
fn every_image_is_collected_unless_one_is_asked_for() {
    let folder = two_images();
    let all = collected(&["image.tar", "--output", "all"], folder.path());
    assert_eq!(all["images"].as_array().unwrap().len(), 2);
    assert_eq!(
        (
            &all["counters"]["layersUploaded"],
            &all["counters"]["layersReused"]
        ),
        (&json!(3), &json!(1))
    );
    for name in ["digests.json", "manifest.json"] {
        let file = fs::read(folder.path().join("all").join(name)).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&file)
                .unwrap()
                .as_array()
                .unwrap()
                .len(),
            2
        );
    }

    let arm = ["image.tar", "--output", "arm", "--platform", "linux/arm64"];
    let document = collected(&arm, folder.path());
    assert_eq!(diff_ids(&document, 0), diff_ids(&all, 1));
    assert_eq!(document["images"].as_array().unwrap().len(), 1);

    let none = ["image.tar", "--output", "none", "--platform", "linux/s390x"];
    let (code, reason, document) = refused(&none, folder.path());
    assert_eq!((code, &reason[..]), (1, "PlatformMissing"));
    let message = document["message"].as_str().unwrap();
    assert!(
        message.contains("linux/s390x") && message.contains("linux/arm64"),
        "{message}"
    );

    let (code, reason, _) = refused(&["image.tar", "--output", "none", "--single"], folder.path());
    assert_eq!((code, &reason[..]), (1, "ManyImages"));
    assert!(!folder.path().join("none").exists());
    collected(&["image.tar", "--output", "one", "--single"], one_image().path());
}

/// Where the known layers come from: JSON lines, or the `digests.json` of an earlier collection.
#[rstest]
#[case::lines(true)]
#[case::digests_json(false)]
fn a_known_layer_is_neither_read_nor_needed(#[case] lines: bool) {
    let folder = one_image();
    let first = collected(&["image.tar", "--output", "first"], folder.path());
    let known = if lines {
        let layer = &first["images"][0]["layers"][1];
        let mut line = layer.clone();
        line.as_object_mut()
            .unwrap()
            .retain(|key, _| !["layerID", "origin"].contains(&&key[..]));
        fs::write(folder.path().join("known"), format!("{line}\n")).unwrap();
        "known"
    } else {
        "first/digests.json"
    };
    let partial = docker_archive(&[Image::amd64(&layers())], |_, n| n != 1);
    fs::write(folder.path().join("partial.tar"), partial).unwrap();

    let document = collected(
        &["partial.tar", "--output", "out", "--known", known],
        folder.path(),
    );
    assert_eq!(
        document["images"][0]["layers"][1]["digest"],
        first["images"][0]["layers"][1]["digest"]
    );
    assert_eq!(document["images"][0]["layers"][1]["origin"], "Known");
    assert_eq!(
        document["images"][0]["manifestDigest"],
        first["images"][0]["manifestDigest"]
    );
    let reused = if lines { 1 } else { 3 };
    assert_eq!(document["counters"]["layersReused"], reused);
    assert!(!folder.path().join("out/layer-0-1.tar.gz").exists());
    // What is known needs no file in an upload either.
    let accept = ["accept", "out-upload", "--known", known];
    fs::create_dir(folder.path().join("out-upload")).unwrap();
    fs::rename(folder.path().join("out"), folder.path().join("out-upload/1")).unwrap();
    let accepted = slipway(&accept, folder.path());
    assert_eq!(code(&accepted), 0, "{}", text(&accepted.stderr));

    let verifying = ["partial.tar", "--output", "v", "--known", known, "--verify-known"];
    let (code, reason, _) = refused(&verifying, folder.path());
    assert_eq!(
        (code, &reason[..]),
        (1, "LayerMissing"),
        "a layer that is not there cannot be proven"
    );
    let verified = collected(
        &["image.tar", "--output", "v", "--known", known, "--verify-known"],
        folder.path(),
    );
    let plain: usize = layers().iter().map(Vec::len).sum();
    assert_eq!(
        verified["counters"]["bytesHashed"], plain,
        "known layers were hashed too"
    );
    assert_eq!(verified["counters"]["layersReused"], reused);
}

#[test]
fn a_known_layer_that_is_another_is_found_where_that_is_asked_for() {
    let mut layers = layers();
    let folder = one_image();
    collected(&["image.tar", "--output", "first"], folder.path());
    let archive = docker_archive(&[Image::amd64(&layers)], |_, n| n != 1);
    layers[1] = layer("usr/large", b"another");
    let mut files = vec![("layer-0-1/layer.tar".to_owned(), layers[1].clone())];
    let mut read = tar::Archive::new(&archive[..]);
    for entry in read.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.push((entry.path().unwrap().to_str().unwrap().to_owned(), content));
    }
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, content)| (&name[..], &content[..]))
        .collect();
    fs::write(folder.path().join("other.tar"), tar(&files)).unwrap();
    let known = ["other.tar", "--output", "out", "--known", "first/digests.json"];
    let (exit, reason, document) = refused(&[&known[..], &["--verify-known"]].concat(), folder.path());
    assert_eq!((exit, &reason[..]), (1, "DigestMismatch"));
    assert!(
        document["member"]
            .as_str()
            .unwrap()
            .contains("layer-0-1/layer.tar"),
        "{document}"
    );
    collected(&known, folder.path());
}

#[test]
fn a_staging_registry_gets_the_image_and_knows_its_layers_the_next_time() {
    let Some(registry) = Registry::start() else { return };
    let folder = two_images();
    let repository = registry.repository("team/app");
    let staging = [
        "image.tar",
        "--staging",
        &repository,
        "--plain-http",
        &registry.address,
    ];
    let first = collected(&staging, folder.path());
    assert_eq!(first["counters"]["layersUploaded"], 3);
    for image in first["images"].as_array().unwrap() {
        let digest = image["manifestDigest"].as_str().unwrap();
        let accept = "application/vnd.oci.image.manifest.v1+json";
        let manifest = registry.get(&format!("/v2/team/app/manifests/{digest}"), accept);
        assert_eq!(Digest::of(&manifest).as_str(), digest);
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        for (descriptor, layer) in manifest["layers"]
            .as_array()
            .unwrap()
            .iter()
            .zip(image["layers"].as_array().unwrap())
        {
            assert_eq!(descriptor["digest"], layer["digest"]);
            let blob = registry.get(
                &format!("/v2/team/app/blobs/{}", layer["digest"].as_str().unwrap()),
                "*/*",
            );
            assert_eq!(layer["digest"], Digest::of(&blob).as_str());
        }
    }
    let tags: Value = serde_json::from_slice(&registry.get("/v2/team/app/tags/list", "*/*")).unwrap();
    let tags = tags["tags"].as_array().unwrap();
    let kept = tags
        .iter()
        .filter(|tag| tag.as_str().unwrap().starts_with("collected-"));
    assert_eq!((kept.count(), tags.len()), (2, 3), "{tags:?}");

    let again = collected(&staging, folder.path());
    let counters = &again["counters"];
    assert_eq!(
        (&counters["bytesRead"], &counters["bytesUploaded"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(counters["layersReused"], 4);
    let digests = |document: &Value| document["images"][1]["manifestDigest"].clone();
    assert_eq!(digests(&again), digests(&first));
}

#[test]
fn exit_codes_tell_usage_from_a_bad_archive_from_trouble() {
    let folder = one_image();
    let exit = |arguments: &[&str]| {
        let arguments = [&["collect"], arguments].concat();
        let output = slipway(&arguments, folder.path());
        (code(&output), text(&output.stderr).to_owned())
    };
    for usage in [
        &["image.tar"][..],
        &["image.tar", "--output", "a", "--staging", "r.example/b"],
        &["image.tar", "--output", "a", "--compression", "rar"],
        &["image.tar", "--output", "a", "--threads", "0"],
        &["image.tar", "--output", "a", "--platform", "x"],
        &["image.tar", "--output", "a", "--known", "nowhere"],
        &["image.tar", "--output", "a", "--known", "image.tar"],
        &["image.tar", "--staging", "r.example/b", "--authfile", "nowhere"],
        &["image.tar", "--output", "a", "--limit", "nothing=1"],
        &["image.tar", "--output", "a", "--allow-foreign"],
    ] {
        assert_eq!(exit(usage).0, 2, "{usage:?}");
    }
    let (code, text) = exit(&["nowhere", "--output", "a"]);
    assert_eq!(
        (code, text.contains("reason: ArchiveMissing")),
        (1, true),
        "{text}"
    );
    let (code, text) = exit(&["image.tar", "--output", "a", "--limit", "members=2"]);
    assert_eq!(
        (code, text.contains("reason: LimitExceeded")),
        (1, true),
        "{text}"
    );
    assert!(!folder.path().join("a").exists());
    // A file where the folder should be.
    let (code, text) = exit(&["image.tar", "--output", "image.tar"]);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("image.tar cannot be written to"), "{text}");
    assert_eq!(exit(&["image.tar", "--output", "a"]).0, 0);
}

#[test]
fn a_registry_that_takes_nothing_is_trouble_and_says_so() {
    let readonly = "storage: {maintenance: {readonly: {enabled: true}}}";
    let Some(registry) = Registry::start_with(readonly) else {
        return;
    };
    let folder = one_image();
    let repository = registry.repository("team/app");
    // Credentials that nobody asks for do no harm.
    let config = json!({"auths": {&registry.address: {"auth": "bm86Ym9keQ=="}}});
    fs::write(folder.path().join("auth.json"), config.to_string()).unwrap();
    let staging = [
        "image.tar",
        "--staging",
        &repository,
        "--plain-http",
        &registry.address,
    ];
    let (code, reason, document) = refused(
        &[&staging[..], &["--authfile", "auth.json"]].concat(),
        folder.path(),
    );
    assert_eq!((code, &reason[..]), (3, "StagingUnavailable"));
    let message = document["message"].as_str().unwrap();
    assert!(message.contains("405"), "{message}");
}
