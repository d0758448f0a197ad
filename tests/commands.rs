//! `slipway accept` and `slipway inspect` as they are called: exit codes, texts, one JSON object.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on says so by ending"
)]
#![allow(missing_docs, reason = "a test's name is its documentation")]

#[path = "commands/pipes.rs"]
mod pipes;

use std::{
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn slipway(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_slipway"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

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

/// A docker archive of one image without layers.
fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in [
        (
            "c.json",
            r#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#,
        ),
        (
            "manifest.json",
            r#"[{"Config":"c.json","RepoTags":["app:1\u001b[31m"],"Layers":[]}]"#,
        ),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn an_archive_is_shown_from_a_file_and_from_a_stream() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("image.tar"), archive()).unwrap();
    let output = slipway(&["inspect", "image.tar"], folder.path());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("image linux/amd64, 0 layers"), "{text}");
    assert!(
        !text.contains('\x1b'),
        "what a stranger wrote does not steer a terminal"
    );

    let mut command = Command::new(env!("CARGO_BIN_EXE_slipway"))
        .args(["inspect", "--json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    command.stdin.take().unwrap().write_all(&archive()).unwrap();
    let output = command.wait_with_output().unwrap();
    let image = &document(&output)["images"][0];
    assert_eq!(image["platform"], "linux/amd64");
    assert_eq!(image["tags"][0], "app:1\u{1b}[31m");
}

#[test]
fn no_archive_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("text"), "text").unwrap();
    for (source, reason) in [
        ("none", "ArchiveMissing"),
        ("text", "ArchiveMalformed"),
        (".", "ArchiveMalformed"),
    ] {
        let output = slipway(&["inspect", source, "--json"], folder.path());
        assert_eq!((code(&output), &document(&output)["reason"]), (1, &reason.into()));
    }
    assert_eq!(code(&slipway(&["inspect"], folder.path())), 2);
}

#[test]
fn as_a_plugin_of_kubectl_push_means_the_clusters() {
    for (name, says) in [
        ("slipway", "Bring an image to repositories"),
        ("/usr/local/bin/kubectl-slipway", "Have the cluster push"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_slipway"))
            .arg0(name)
            .args(["push", "--help"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(says), "{name}: {text}");
    }
}
