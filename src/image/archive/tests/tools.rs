//! What real tools make of one image is read to that image again.
//!
//! A tool that is not here, or cannot work here, is said to be skipped; the test then proves nothing. Docker's own
//! archives are read in `tests/commands/docker.rs`, all the way to a running container.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
};

use super::*;
use crate::{
    image::archive::AttachmentKind,
    testing::{self, skip},
};

/// A tool; says so where it is not there.
pub(super) fn find(tool: &str) -> Option<PathBuf> {
    let found = testing::tool(tool);
    if found.is_none() {
        skip(tool, "it is not installed");
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
    layout.write(&root);
    root
}

/// The image as the archive that every tool reads.
fn docker_archive(folder: &Path) -> PathBuf {
    let archive = folder.join("source");
    copy(
        &format!("oci:{}", layout(folder).display()),
        &format!("docker-archive:{}:app:1", archive.display()),
    );
    archive
}

/// Reads the archive and proves every layer of its image.
fn read(path: &Path) -> Archive {
    let archive =
        Archive::open(path, Limits::default()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let image = archive.single(Some(&"linux/amd64".parse().unwrap())).unwrap();
    for layer in &image.layers {
        let content = archive.content(layer).unwrap().unwrap();
        super::super::layer::prove(layer, &content, archive.limits(), |_| Ok(())).unwrap();
    }
    archive
}

/// Reads the archive and proves that it holds the two layers.
fn check(path: &Path) {
    let archive = read(path);
    let image = archive.single(None).unwrap();
    assert_eq!(
        image.diff_ids,
        layers().iter().map(|layer| Digest::of(layer)).collect::<Vec<_>>()
    );
}

#[test]
fn skopeo_writes_what_is_read_here() {
    if find("skopeo").is_none() {
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
    if find("buildah").is_none() || find("skopeo").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // By way of an archive: buildah takes a path with upper-case letters for a malformed name.
    let archive = format!("docker-archive:{}", docker_archive(folder.path()).display());
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
    let pulled = buildah(&["pull", "--quiet", &archive]).output().unwrap();
    if !pulled.status.success() {
        skip("buildah", &String::from_utf8_lossy(&pulled.stderr));
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

#[test]
fn umoci_writes_what_is_read_here() {
    let Some(umoci) = find("umoci") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (root, file) = (folder.path().join("layout"), folder.path().join("file"));
    std::fs::write(&file, b"content").unwrap();
    let image = format!("{}:1", root.display());
    run(Command::new(&umoci).args(["init", "--layout"]).arg(&root));
    run(Command::new(&umoci).args(["new", "--image", &image]));
    for name in ["/etc/one", "/etc/two"] {
        run(Command::new(&umoci)
            .args(["insert", "--image", &image])
            .arg(&file)
            .arg(name));
    }
    let archive = Archive::open(&root, Limits::default()).unwrap();
    let image = archive.single(None).unwrap();
    assert_eq!((image.layers.len(), &image.tags[..]), (2, &["1".to_owned()][..]));
    for layer in &image.layers {
        let content = archive.content(layer).unwrap().unwrap();
        super::super::layer::prove(layer, &content, archive.limits(), |_| Ok(())).unwrap();
    }
}

/// A server that ends with the test.
struct Server {
    process: Child,
    /// What its log said when it was ready.
    ready: String,
}

impl Server {
    /// Starts a server and waits for the line of its log that has this text; without one it is skipped.
    fn start(tool: &str, command: &mut Command, ready: &str) -> Option<Self> {
        let mut process = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let (line, last) = wait_for(&mut log, ready);
        // Nobody reads a log that fills up; it would stop the server.
        std::thread::spawn(move || log.lines().for_each(drop));
        let Some(ready) = line else {
            let _ = process.wait();
            skip(tool, &format!("it does not start here: {last}"));
            return None;
        };
        Some(Self { process, ready })
    }
}

fn wait_for(log: &mut BufReader<ChildStderr>, ready: &str) -> (Option<String>, String) {
    let mut last = String::new();
    for line in log.lines().map_while(Result::ok) {
        if line.contains(ready) {
            return (Some(line), last);
        }
        last = line;
    }
    (None, last)
}

impl Drop for Server {
    fn drop(&mut self) {
        // Politely, because it has children of its own.
        if let Ok(pid) = i32::try_from(self.process.id())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.process.wait();
    }
}

#[test]
fn crane_writes_what_is_read_here() {
    let Some(crane) = find("crane") else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut registry = Command::new(&crane);
    registry.args(["registry", "serve", "--address", "127.0.0.1:0"]);
    let Some(registry) = Server::start("crane", &mut registry, "serving on port") else {
        return;
    };
    let port = registry.ready.rsplit(' ').next().unwrap();
    let image = format!("127.0.0.1:{port}/app:1");
    run(Command::new(&crane)
        .arg("push")
        .arg(layout(folder.path()))
        .arg(&image));
    for format in ["tarball", "legacy", "oci"] {
        let path = folder.path().join(format);
        run(Command::new(&crane)
            .args(["pull", "--format", format, &image])
            .arg(&path));
        check(&path);
    }
}

/// `PATH` with the folders of these tools in front.
fn path_with(tools: &[&Path]) -> std::ffi::OsString {
    let folders = tools.iter().filter_map(|tool| tool.parent()).map(Path::to_owned);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all: Vec<_> = folders.chain(std::env::split_paths(&path)).collect();
    std::env::join_paths(all).unwrap()
}

#[test]
fn buildkit_writes_what_is_read_here() {
    let (Some(buildkitd), Some(buildctl), Some(runc)) = (find("buildkitd"), find("buildctl"), find("runc"))
    else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        return skip("buildkitd", "it needs root");
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix://{}", folder.path().join("socket").display());
    let mut daemon = Command::new(&buildkitd);
    daemon
        .args([
            "--addr",
            &socket,
            "--oci-worker-snapshotter",
            "native",
            "--oci-worker-net",
            "host",
        ])
        .args(["--containerd-worker=false", "--oci-worker=true"])
        .arg("--root")
        .arg(folder.path().join("root"))
        .env("PATH", path_with(&[&runc]));
    let Some(_daemon) = Server::start("buildkitd", &mut daemon, "running server on") else {
        return;
    };
    let context = folder.path().join("context");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(
        context.join("Dockerfile"),
        "FROM scratch\nCOPY one /one\nCOPY two /two\n",
    )
    .unwrap();
    std::fs::write(context.join("one"), "1").unwrap();
    std::fs::write(context.join("two"), "2").unwrap();
    let build = |output: &str, options: &[&str]| {
        let path = folder.path().join(format!("image-{}", fastrand::u64(..)));
        run(Command::new(&buildctl)
            .args(["--addr", &socket, "build", "--frontend", "dockerfile.v0"])
            .args(["--opt", "platform=linux/amd64"])
            .args(options)
            .arg(format!("--local=context={}", context.display()))
            .arg(format!("--local=dockerfile={}", context.display()))
            .arg(format!("--output={output},dest={}", path.display())));
        let archive = read(&path);
        assert_eq!(archive.single(None).unwrap().layers.len(), 2, "{output}");
        archive
    };
    build("type=docker,name=app:1", &[]);
    build("type=oci", &[]);
    build("type=oci,tar=false", &[]);
    build("type=oci,compression=zstd,force-compression=true", &[]);
    build("type=oci,compression=uncompressed,force-compression=true", &[]);
    build(
        "type=docker,compression=estargz,oci-mediatypes=true,force-compression=true",
        &[],
    );
    let attested = build("type=oci", &["--opt", "attest:provenance=mode=min"]);
    assert_eq!(attested.attachments()[0].kind, AttachmentKind::Attestation);
}
