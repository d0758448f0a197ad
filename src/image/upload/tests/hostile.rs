//! Uploads that lie, or that want to reach out of their folder.

use std::os::unix::fs::symlink;

use super::*;
use Reason::{
    DigestInvalid, DigestMismatch, DigestsMissing, JsonInvalid, LayerMissing, LimitExceeded, LinkInvalid,
    ManifestInvalid, MediaTypeAmbiguous, PathInvalid, SizeMismatch, UnsupportedEntry,
};

/// What a document of an upload is changed to, and why the upload is refused then.
#[rstest]
#[case::nothing_odd(|_: &mut Upload| (), None)]
#[case::unknown_keys(|u: &mut Upload| u.claim(0)["annotations"] = json!({"a": "b"}), None)]
#[case::all_optional_keys(|u: &mut Upload| {
    let blob = gzipped(&layers()[0]);
    u.claim(0)["mediaType"] = json!(media_type::DOCKER_LAYER_GZIP);
    u.claim(0)["size"] = json!(blob.len());
    u.claim(0)["blob"] = json!(Digest::of(&blob));
}, None)]
#[case::no_source(|u: &mut Upload| { u.claim(0).as_object_mut().unwrap().remove("source"); }, None)]
#[case::prefix_twice(|u: &mut Upload| {
    let digest = u.claim(0)["digest"].as_str().unwrap().to_owned();
    u.claim(0)["digest"] = json!(format!("sha256:{digest}"));
}, Some(DigestInvalid))]
#[case::no_digest(|u: &mut Upload| u.claim(0)["digest"] = json!("digest_1"), Some(DigestInvalid))]
#[case::digest_is_a_path(|u: &mut Upload| u.claim(0)["digest"] = json!("sha256:../../etc/passwd"), Some(DigestInvalid))]
#[case::upper_case(|u: &mut Upload| u.claim(1)["digest"] = json!(Digest::of(b"x").hex().to_uppercase()), Some(DigestInvalid))]
#[case::other_digest(|u: &mut Upload| u.claim(0)["digest"] = json!(Digest::of(b"x").hex()), Some(DigestMismatch))]
#[case::two_digests(|u: &mut Upload| u.claim(0)["blob"] = json!(Digest::of(b"x")), Some(ManifestInvalid))]
#[case::other_size(|u: &mut Upload| u.claim(0)["size"] = json!(1), Some(SizeMismatch))]
#[case::other_type(|u: &mut Upload| u.claim(0)["mediaType"] = json!(media_type::OCI_LAYER_ZSTD), Some(MediaTypeAmbiguous))]
#[case::negative_size(|u: &mut Upload| u.claim(0)["size"] = json!(-1), Some(JsonInvalid))]
#[case::layer_id_climbs(|u: &mut Upload| u.claim(0)["layer_id"] = json!("../../etc/passwd"), Some(PathInvalid))]
#[case::layer_id_is_absolute(|u: &mut Upload| u.claim(0)["layer_id"] = json!("/etc/passwd"), Some(PathInvalid))]
#[case::layer_id_is_a_path(|u: &mut Upload| u.claim(0)["layer_id"] = json!("a/layer"), Some(PathInvalid))]
#[case::layer_id_is_hidden(|u: &mut Upload| u.claim(0)["layer_id"] = json!(".layer"), Some(PathInvalid))]
#[case::layer_id_is_an_option(|u: &mut Upload| u.claim(0)["layer_id"] = json!("-rf"), Some(PathInvalid))]
#[case::layer_id_is_empty(|u: &mut Upload| u.claim(0)["layer_id"] = json!(""), Some(PathInvalid))]
#[case::layer_id_has_a_nul(|u: &mut Upload| u.claim(0)["layer_id"] = json!("a\0b"), Some(PathInvalid))]
#[case::layer_id_has_colours(|u: &mut Upload| u.claim(0)["layer_id"] = json!("a\x1b[31m"), Some(PathInvalid))]
#[case::layer_id_is_long(|u: &mut Upload| u.claim(0)["layer_id"] = json!("a".repeat(201)), Some(PathInvalid))]
#[case::layer_id_twice(|u: &mut Upload| u.claim(0)["layer_id"] = json!("layer_2"), Some(ManifestInvalid))]
#[case::layer_id_is_a_number(|u: &mut Upload| u.claim(0)["layer_id"] = json!(1), Some(ManifestInvalid))]
#[case::long_source(|u: &mut Upload| u.claim(0)["source"] = json!("a".repeat(513)), Some(LimitExceeded))]
#[case::no_images(|u: &mut Upload| u.digests = json!([]), Some(ManifestInvalid))]
#[case::an_object(|u: &mut Upload| u.digests = u.digests[0].clone(), Some(ManifestInvalid))]
#[case::layer_left_out(|u: &mut Upload| u.digests = json!([{}]), Some(ManifestInvalid))]
#[case::layer_added(|u: &mut Upload| {
    let extra = gzipped(&layer("extra"));
    u.write("extra.tar.gz", &extra);
    u.digests[0][Digest::of(b"extra").as_str()] = entry(&extra, "extra", "");
}, Some(ManifestInvalid))]
#[case::diff_id_is_none(|u: &mut Upload| {
    let claims = u.digests[0].as_object_mut().unwrap();
    let claim = claims.remove(Digest::of(&layers()[0]).as_str()).unwrap();
    claims.insert("diff_id_1".into(), claim);
}, Some(DigestInvalid))]
#[case::one_image_too_many(|u: &mut Upload| u.digests = json!([u.digests[0], {}]), Some(ManifestInvalid))]
#[case::manifest_null(|u: &mut Upload| u.manifest = json!(null), Some(ManifestInvalid))]
#[case::manifest_empty(|u: &mut Upload| u.manifest = json!([]), Some(ManifestInvalid))]
#[case::fewer_layers(|u: &mut Upload| u.manifest[0]["Layers"] = json!(["a"]), Some(ManifestInvalid))]
#[case::config_absent(|u: &mut Upload| u.manifest[0]["Config"] = json!("other.json"), Some(ManifestInvalid))]
#[case::config_climbs(|u: &mut Upload| u.manifest[0]["Config"] = json!("../../etc/passwd"), Some(ManifestInvalid))]
#[case::config_absolute(|u: &mut Upload| u.manifest[0]["Config"] = json!("/etc/passwd.json"), Some(ManifestInvalid))]
#[case::config_of_another_name(|u: &mut Upload| {
    let name = format!("{}.json", Digest::of(b"x").hex());
    u.write(&name, &bytes(&config(AMD64, &layers())));
    u.manifest[0]["Config"] = json!(name);
}, Some(DigestMismatch))]
#[case::config_of_other_layers(|u: &mut Upload| {
    u.write("c.json", &bytes(&config(AMD64, &[layer("a"), layer("b")])));
    u.manifest[0]["Config"] = json!("c.json");
}, Some(ManifestInvalid))]
fn documents(#[case] spoil: fn(&mut Upload), #[case] refused: Option<Reason>) {
    assert_eq!(Upload::new().with(spoil).reason(), refused);
}

/// What a file of an upload is changed to.
#[rstest]
#[case::other_content(|u: &Upload| u.write("layer_1.tar.gz", &gzipped(&layer("other"))), DigestMismatch)]
#[case::no_layer_at_all(|u: &Upload| u.write("layer_1.tar.gz", b"layer_1"), MediaTypeAmbiguous)]
#[case::empty(|u: &Upload| u.write("layer_1.tar.gz", b""), DigestMismatch)]
#[case::digests_without_list(|u: &Upload| u.write("digests.json", b"{}"), ManifestInvalid)]
#[case::digests_twice(|u: &Upload| u.write("digests.json", br#"[{"a":1,"a":2}]"#), JsonInvalid)]
#[case::digests_trailing(|u: &Upload| u.write("digests.json", b"[] []"), JsonInvalid)]
#[case::digests_huge(|u: &Upload| u.write("digests.json", &vec![b' '; 5 << 20]), LimitExceeded)]
#[case::manifest_no_json(|u: &Upload| u.write("manifest.json", b"manifest"), JsonInvalid)]
#[case::json_total(|u: &Upload| (0..9).for_each(|n| u.write(&format!("{n}.json"), &vec![b' '; 4 << 20])), LimitExceeded)]
#[case::json_with_colours(|u: &Upload| u.write("a\x1b[31m.json", b"{}"), PathInvalid)]
fn files(#[case] spoil: fn(&Upload), #[case] refused: Reason) {
    let upload = Upload::new();
    spoil(&upload);
    assert_eq!(upload.reason(), Some(refused));
}

#[rstest]
#[case::layer("layer_1.tar.gz")]
#[case::digests("digests.json")]
#[case::manifest("manifest.json")]
fn links_and_pipes_are_refused(#[case] name: &str) {
    let upload = Upload::new();
    let path = upload.folder().join(name);
    let moved = upload.root.path().join("moved");
    fs::rename(&path, &moved).unwrap();
    symlink(&moved, &path).unwrap();
    for mode in [Mode::Strict, Mode::PresenceOnly] {
        assert_eq!(upload.accept(mode).unwrap_err().reason(), LinkInvalid);
    }
    fs::remove_file(&path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    for mode in [Mode::Strict, Mode::PresenceOnly] {
        assert_eq!(upload.accept(mode).unwrap_err().reason(), UnsupportedEntry);
    }
    fs::remove_file(&path).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(
        upload.accept(Mode::Strict).unwrap_err().reason(),
        UnsupportedEntry
    );
}

#[test]
fn what_nobody_names_is_not_touched() {
    let upload = Upload::new();
    symlink("/etc", upload.folder().join("etc")).unwrap();
    symlink("/etc", upload.root.path().join("etc")).unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        upload.folder().join("pipe"),
        rustix::fs::Mode::RWXU,
    )
    .unwrap();
    assert_eq!(upload.reason(), None);
}

#[test]
fn a_linked_folder_does_not_count() {
    let upload = Upload::new();
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(upload.folder(), elsewhere.path().join("ubuntu")).unwrap();
    let known = Known::default();
    let options = Options {
        mode: Mode::Strict,
        known: &known,
        keep: None,
        limits: Limits::default(),
    };
    let error = accept(elsewhere.path(), &options, &mut |_| ()).unwrap_err();
    assert_eq!(error.reason(), DigestsMissing);
}

#[test]
fn files_in_the_upload_folder_itself_do_not_count() {
    let upload = Upload::new();
    for name in ["digests.json", "manifest.json"] {
        fs::rename(upload.folder().join(name), upload.root.path().join(name)).unwrap();
    }
    let error = upload.accept(Mode::Strict).unwrap_err();
    assert_eq!(error.to_string(), "Build did not produce a digests.json.");
    assert!(error.advice().unwrap().contains("below"));
}

#[test]
fn folders_and_files_are_bounded() {
    let upload = Upload::new();
    let deep = (0..9).fold(upload.root.path().to_owned(), |path, _| path.join("a"));
    fs::create_dir_all(deep).unwrap();
    assert_eq!(upload.reason(), Some(LimitExceeded));

    let upload = Upload::new();
    let known = Known::default();
    let options = Options {
        mode: Mode::Strict,
        known: &known,
        keep: None,
        limits: Limits {
            members: 4,
            ..Limits::default()
        },
    };
    let error = accept(upload.root.path(), &options, &mut |_| ()).unwrap_err();
    assert_eq!(error.reason(), LimitExceeded);
}

#[test]
fn a_layer_that_grows_without_end_is_left() {
    let upload = Upload::new().with(|upload| {
        let plain = crate::image::archive::tests::Tar::default()
            .file("zeros", &vec![0; 24 << 20])
            .end();
        let stored = gzipped(&plain);
        upload.write("layer_2.tar.gz", &stored);
        *upload.claim(1) = entry(&stored, "layer_2", "");
    });
    assert_eq!(upload.reason(), Some(LimitExceeded));
}

#[test]
fn an_upload_without_layers_is_not_whole() {
    let upload = Upload::new().with(|upload| upload.digests = json!([{}]));
    let error = upload.accept(Mode::PresenceOnly).unwrap_err();
    assert_eq!(error.reason(), LayerMissing);
}
