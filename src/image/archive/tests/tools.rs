//! What real tools make of one image is read to that image again, and what they refuse is refused.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::*;

/// Whether a tool is here; says so where not, since the test then proves nothing.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: {tool} is not installed");
    }
    found
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn copy(from: &str, to: &str) {
    run(Command::new("skopeo").args(["copy", "--insecure-policy", "--quiet", from, to]));
}

fn layers() -> Vec<Vec<u8>> {
    vec![layer("base"), layer("top")]
}

fn layout(folder: &Path) -> PathBuf {
    let mut layout = Layout::default();
    layout.image(AMD64, &layers(), media_type::OCI_LAYER_GZIP, gzipped);
    let root = folder.join("layout");
    std::fs::create_dir_all(root.join("blobs/sha256")).unwrap();
    std::fs::write(root.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(root.join("index.json"), bytes(&layout.root())).unwrap();
    for blob in &layout.blobs {
        std::fs::write(root.join("blobs/sha256").join(Digest::of(blob).hex()), blob).unwrap();
    }
    root
}

/// Reads the archive and proves that it holds the two layers.
fn check(path: &Path) {
    let archive = Archive::open(path, Limits::default()).unwrap();
    let image = archive.single(Some(&"linux/amd64".parse().unwrap())).unwrap();
    assert_eq!(
        image.diff_ids,
        layers().iter().map(|layer| Digest::of(layer)).collect::<Vec<_>>()
    );
    for layer in &image.layers {
        let content = archive.content(layer).unwrap().unwrap();
        super::super::layer::prove(layer, &content, archive.limits(), |_| Ok(())).unwrap();
    }
}

#[test]
fn skopeo_writes_what_is_read_here() {
    if !has("skopeo") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = format!("oci:{}", layout(folder.path()).display());
    for (transport, suffix) in [("oci-archive", ""), ("docker-archive", ":app:1"), ("oci", "")] {
        let path = folder.path().join(transport);
        copy(&source, &format!("{transport}:{}{suffix}", path.display()));
        check(&path);
    }
}

#[test]
fn buildah_writes_what_is_read_here() {
    if !has("buildah") || !has("skopeo") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // By way of an archive: buildah takes a path with upper-case letters for a malformed name.
    let archive = format!("docker-archive:{}", folder.path().join("source").display());
    copy(
        &format!("oci:{}", layout(folder.path()).display()),
        &format!("{archive}:app:1"),
    );
    let buildah = |arguments: &[&str]| {
        let mut command = Command::new("buildah");
        command
            .env("BUILDAH_ISOLATION", "chroot")
            .args(["--storage-driver", "vfs"])
            .arg("--root")
            .arg(folder.path().join("root"))
            .arg("--runroot")
            .arg(folder.path().join("run"))
            .args(arguments);
        command
    };
    let Ok(pulled) = buildah(&["pull", "--quiet", &archive]).output() else {
        return;
    };
    if !pulled.status.success() {
        eprintln!(
            "skipped: buildah cannot work here: {}",
            String::from_utf8_lossy(&pulled.stderr)
        );
        return;
    }
    let image = String::from_utf8(pulled.stdout).unwrap().trim().to_owned();
    for transport in ["oci-archive", "docker-archive", "oci"] {
        let path = folder.path().join(format!("buildah-{transport}"));
        run(&mut buildah(&[
            "push",
            "--quiet",
            &image,
            &format!("{transport}:{}:app:1", path.display()),
        ]));
        check(&path);
    }
}
