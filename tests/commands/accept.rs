//! `slipway accept`.

use std::fs;

use crate::support::{code, document, slipway};

/// What Launchpad's own tests of uploads put into a folder, without one file.
fn seed(without: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("upload/1/ubuntu");
    fs::create_dir_all(&inner).unwrap();
    let digests = r#"[{"diff_id_1": {"digest": "digest_1", "source": "test/base_1", "layer_id": "layer_1"},
        "diff_id_2": {"digest": "digest_2", "source": "", "layer_id": "layer_2"}}]"#;
    for (name, content) in [
        ("layer_1.tar.gz", "layer_1"),
        ("layer_2.tar.gz", "layer_2"),
        ("digests.json", digests),
        ("manifest.json", "manifest"),
    ] {
        if name != without {
            fs::write(inner.join(name), content).unwrap();
        }
    }
    folder
}

const PRESENCE: [&str; 3] = ["accept", "upload", "--presence-only"];

#[test]
fn the_three_cases_of_the_seed() {
    let good = seed("none");
    assert_eq!(code(&slipway(&PRESENCE, good.path())), 0);
    for (without, message, reason) in [
        (
            "digests.json",
            "Build did not produce a digests.json.",
            "DigestsMissing",
        ),
        ("layer_2.tar.gz", "Missing layer file: layer_2.", "LayerMissing"),
    ] {
        let folder = seed(without);
        let output = slipway(&PRESENCE, folder.path());
        assert_eq!(code(&output), 1);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text, format!("slipway: {message}\nreason: {reason}\n"));
        let output = slipway(&[&PRESENCE[..], &["--json"]].concat(), folder.path());
        let document = document(&output);
        assert_eq!((code(&output), &document["outcome"]), (1, &"Refused".into()));
        assert_eq!(
            (&document["message"], &document["reason"]),
            (&message.into(), &reason.into())
        );
    }
}

#[test]
fn what_is_accepted_is_kept_and_what_is_there_is_not_overwritten() {
    let folder = seed("none");
    let keep = [&PRESENCE[..], &["--output", "kept", "--json"]].concat();
    let output = slipway(&keep, folder.path());
    assert_eq!(code(&output), 0);
    assert_eq!(document(&output)["files"].as_array().unwrap().len(), 4);
    assert_eq!(fs::read_dir(folder.path().join("kept")).unwrap().count(), 4);
    let again = slipway(&keep, folder.path());
    assert_eq!((code(&again), &document(&again)["member"]), (3, &"kept".into()));
}

#[test]
fn a_wrong_command_line_is_told_from_a_wrong_upload() {
    let folder = seed("none");
    assert_eq!(code(&slipway(&["accept"], folder.path())), 2);
    assert_eq!(
        code(&slipway(&["accept", "upload", "--known", "none"], folder.path())),
        2
    );
    fs::write(folder.path().join("known"), "{}").unwrap();
    let output = slipway(&["accept", "upload", "--known", "known"], folder.path());
    assert_eq!(code(&output), 2);
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("known: line 1")
    );
    assert_eq!(code(&slipway(&["accept", "upload"], folder.path())), 1, "strict");
    assert_eq!(code(&slipway(&["accept", "nowhere"], folder.path())), 1);
}
