//! Uploads as builders leave them, and as nobody should.

mod hostile;
mod seed;

use std::{
    fs,
    path::{Path, PathBuf},
};

use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::{
    image::{
        archive::tests::{AMD64, bytes, config, gzipped, layer, zstded},
        media_type,
    },
    record::{LayerOrigin, Reason},
};

/// An upload of one image of two layers, to be spoiled.
struct Upload {
    root: tempfile::TempDir,
    digests: Value,
    manifest: Value,
}

fn layers() -> [Vec<u8>; 2] {
    [layer("base"), layer("top")]
}

fn entry(stored: &[u8], layer_id: &str, source: &str) -> Value {
    json!({"digest": Digest::of(stored).hex(), "source": source, "layer_id": layer_id})
}

impl Upload {
    fn new() -> Self {
        let [base, top] = layers();
        let (base_gz, top_gz) = (gzipped(&base), gzipped(&top));
        let config = bytes(&config(AMD64, &[base.clone(), top.clone()]));
        let config_name = format!("{}.json", Digest::of(&config).hex());
        let mut pulled = entry(&base_gz, "layer_1", "library/debian");
        pulled["digest"] = json!(Digest::of(&base_gz));
        let mut upload = Self {
            root: tempfile::tempdir().unwrap(),
            digests: json!([{Digest::of(&base).as_str(): pulled,
                Digest::of(&top).as_str(): entry(&top_gz, "layer_2", "")}]),
            manifest: json!([{"Config": config_name, "RepoTags": ["app:1"],
                "Layers": ["aaa/layer.tar", "bbb/layer.tar"]}]),
        };
        fs::create_dir(upload.folder()).unwrap();
        upload.write("layer_1.tar.gz", &base_gz);
        upload.write("layer_2.tar.gz", &top_gz);
        upload.write(&config_name, &config);
        upload.save();
        upload
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("ubuntu")
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.folder().join(name), content).unwrap();
    }

    fn save(&mut self) {
        self.write("digests.json", &bytes(&self.digests));
        self.write("manifest.json", &bytes(&self.manifest));
    }

    /// The upload with other documents.
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self.save();
        self
    }

    /// The claim of one of the two layers.
    fn claim(&mut self, layer: usize) -> &mut Value {
        let diff_id = Digest::of(&layers()[layer]);
        &mut self.digests[0][diff_id.as_str()]
    }

    fn accept(&self, mode: Mode) -> Result<Accepted, UploadError> {
        self.accept_with(mode, &Known::default(), None)
    }

    fn accept_with(&self, mode: Mode, known: &Known, keep: Option<&Path>) -> Result<Accepted, UploadError> {
        let options = Options {
            mode,
            known,
            keep,
            limits: Limits::default(),
        };
        accept(self.root.path(), &options, &mut |_| ())
    }

    fn reason(&self) -> Option<Reason> {
        self.accept(Mode::Strict).err().map(|error| error.reason())
    }
}

fn known(diff: &[u8], stored: &[u8]) -> Known {
    let line = json!({"diffID": Digest::of(diff), "digest": Digest::of(stored), "source": "",
        "size": stored.len(), "mediaType": media_type::OCI_LAYER_GZIP});
    Known::read(line.to_string().as_bytes()).unwrap()
}

#[test]
fn an_upload_is_proven_in_both_spellings_of_a_digest() {
    let accepted = Upload::new().accept(Mode::Strict).unwrap();
    assert_eq!(accepted.folder, "ubuntu");
    let [image] = &accepted.images[..] else {
        panic!("{accepted:?}");
    };
    assert_eq!(image.platform, Some("linux/amd64".parse().unwrap()));
    assert_eq!(image.tags, ["app:1"]);
    let [base, top] = &image.layers[..] else {
        panic!("{image:?}");
    };
    assert_eq!(base.diff_id, Digest::of(&layers()[0]));
    assert_eq!(base.source, "library/debian");
    assert_eq!(top.digest, Digest::of(&gzipped(&layers()[1])));
    assert_eq!(top.origin, LayerOrigin::New);
    assert_eq!(top.media_type, media_type::OCI_LAYER_GZIP);
    assert_eq!(accepted.warnings, &[] as &[String]);
}

#[test]
fn every_json_file_is_kept_without_a_digest_and_every_layer_with_one() {
    let upload = Upload::new();
    upload.write("notes.json", b"not even JSON");
    upload.write("left-over.txt", b"");
    let kept = upload.root.path().join("kept");
    let accepted = upload
        .accept_with(Mode::Strict, &Known::default(), Some(&kept))
        .unwrap();
    let names = |has_digest: bool| -> Vec<&str> {
        let files = accepted.files.iter();
        files
            .filter(|file| file.digest.is_some() == has_digest)
            .map(|file| file.name.as_str())
            .collect()
    };
    assert_eq!(names(true), ["layer_1.tar.gz", "layer_2.tar.gz"]);
    assert_eq!(names(false).len(), 4, "{:?}", names(false));
    for file in &accepted.files {
        let stored = fs::read(kept.join(&file.name)).unwrap();
        assert_eq!(stored, fs::read(upload.folder().join(&file.name)).unwrap());
    }
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 6);
}

#[test]
fn a_refusal_leaves_nothing_behind() {
    let upload = Upload::new();
    let target = tempfile::tempdir().unwrap();
    let kept = target.path().join("kept");
    // The second layer is bad, after the first was read and kept.
    upload.write("layer_2.tar.gz", &gzipped(&layer("other")));
    let refused = upload.accept_with(Mode::Strict, &Known::default(), Some(&kept));
    assert_eq!(refused.unwrap_err().reason(), Reason::DigestMismatch);
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
}

#[test]
fn nothing_that_is_there_is_overwritten() {
    let upload = Upload::new();
    let target = tempfile::tempdir().unwrap();
    let refused = upload.accept_with(Mode::Strict, &Known::default(), Some(target.path()));
    assert_eq!(refused.unwrap_err().reason(), Reason::InternalError);
}

#[test]
fn a_known_layer_needs_no_file_and_is_taken_only_for_itself() {
    let [base, top] = layers();
    let upload = Upload::new();
    fs::remove_file(upload.folder().join("layer_1.tar.gz")).unwrap();
    let accepted = upload
        .accept_with(Mode::Strict, &known(&base, &gzipped(&base)), None)
        .unwrap();
    assert_eq!(accepted.images[0].layers[0].origin, LayerOrigin::Known);
    assert!(accepted.files[0].known);
    assert_eq!(
        (accepted.counters.layers_reused, accepted.counters.bytes_read),
        (1, gzipped(&top).len() as u64)
    );

    let lie = upload.accept_with(Mode::Strict, &known(&top, &gzipped(&base)), None);
    assert_eq!(lie.unwrap_err().reason(), Reason::DigestMismatch);
    let unknown = upload.accept(Mode::Strict).unwrap_err();
    assert_eq!(unknown.to_string(), "Missing layer file: layer_1.");
}

#[test]
fn only_the_first_missing_layer_is_named() {
    let upload = Upload::new().with(|upload| {
        // The order of the document counts, not that of the keys.
        let text = serde_json::to_string(&upload.digests[0]).unwrap();
        assert!(text.find("layer_1").unwrap() != text.find("layer_2").unwrap());
    });
    for layer in ["layer_1.tar.gz", "layer_2.tar.gz"] {
        fs::remove_file(upload.folder().join(layer)).unwrap();
    }
    let first = |text: &str| text.find("layer_1").unwrap() < text.find("layer_2").unwrap();
    let text = fs::read_to_string(upload.folder().join("digests.json")).unwrap();
    let expected = if first(&text) { "layer_1" } else { "layer_2" };
    assert_eq!(
        upload.accept(Mode::Strict).unwrap_err().to_string(),
        format!("Missing layer file: {expected}.")
    );
    let claims = upload.digests[0].as_object().unwrap();
    let reversed: Vec<String> = claims
        .iter()
        .rev()
        .map(|(key, value)| format!("\"{key}\":{value}"))
        .collect();
    upload.write("digests.json", format!("[{{{}}}]", reversed.join(",")).as_bytes());
    let other = if expected == "layer_1" {
        "layer_2"
    } else {
        "layer_1"
    };
    assert_eq!(
        upload.accept(Mode::Strict).unwrap_err().to_string(),
        format!("Missing layer file: {other}.")
    );
}

#[test]
fn one_layer_may_stand_in_several_images_and_several_times_in_one() {
    let [base, top] = layers();
    let upload = Upload::new().with(|upload| {
        let config = bytes(&config(AMD64, &[base.clone(), top.clone(), base.clone()]));
        upload.write("other.json", &config);
        let claims = upload.digests[0].clone();
        upload.digests.as_array_mut().unwrap().push(claims);
        let section = json!({"Config": "other.json", "Layers": ["a", "b", "a"]});
        upload.manifest.as_array_mut().unwrap().push(section);
    });
    let accepted = upload.accept(Mode::Strict).unwrap();
    let counts: Vec<usize> = accepted.images.iter().map(|image| image.layers.len()).collect();
    assert_eq!(counts, [2, 3]);
    assert_eq!(
        accepted.files.iter().filter(|file| file.digest.is_some()).count(),
        2
    );
}

#[rstest]
#[case::zstd(zstded(&layers()[1]), media_type::OCI_LAYER_ZSTD)]
#[case::plain(layers()[1].clone(), media_type::OCI_LAYER)]
fn the_name_of_a_file_does_not_decide_how_it_is_compressed(#[case] stored: Vec<u8>, #[case] expected: &str) {
    let upload = Upload::new().with(|upload| {
        upload.write("layer_2.tar.gz", &stored);
        *upload.claim(1) = entry(&stored, "layer_2", "");
    });
    let accepted = upload.accept(Mode::Strict).unwrap();
    assert_eq!(accepted.images[0].layers[1].media_type, expected);
}

#[test]
fn an_image_without_layers_is_whole_without_any() {
    let upload = Upload::new().with(|upload| {
        upload.write("empty.json", &bytes(&config(AMD64, &[])));
        upload.digests = json!([{}]);
        upload.manifest = json!([{"Config": "empty.json", "Layers": null}]);
    });
    let accepted = upload.accept(Mode::Strict).unwrap();
    assert_eq!(accepted.images[0].layers, []);
    // Without a config nobody knows that there should be none.
    let refused = upload.accept(Mode::PresenceOnly).unwrap_err();
    assert_eq!(refused.reason(), Reason::LayerMissing);
}

#[test]
fn the_outermost_and_then_the_first_folder_counts() {
    let upload = Upload::new();
    let move_to = |to: &str| {
        let target = upload.root.path().join(to);
        fs::create_dir_all(&target).unwrap();
        for file in fs::read_dir(upload.folder()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), target.join(file.file_name())).unwrap();
        }
    };
    move_to("inner/most");
    move_to("zulu");
    assert_eq!(upload.accept(Mode::Strict).unwrap().folder, "inner/most");
    fs::remove_file(upload.root.path().join("inner/most/digests.json")).unwrap();
    assert_eq!(upload.accept(Mode::Strict).unwrap().folder, "ubuntu");
}
