//! `slipway inspect`.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use crate::support::{code, document, slipway};

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
