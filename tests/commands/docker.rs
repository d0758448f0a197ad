//! Archives that Docker itself built and saved, brought all the way: read, collected into Launchpad's layout,
//! accepted, pushed, pulled and run.
//!
//! The engines are `hack/cluster/build-tools dockerd` (29, with both of its image stores) and `hack/from-debian docker`
//! (20.10, the layout of all versions before 25). A test whose engine is not there says that it is skipped.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    Registry, Server, code, document, run, skip, slipway, slipway_fed, tar, text, tool, tools,
};

/// Looks for its arguments and says that it runs.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <sys/stat.h>
int main(int count, char **arguments) {
  struct stat found;
  for (int n = 1; n < count; n++) printf("%s %s\n", arguments[n], stat(arguments[n], &found) ? "missing" : "there");
  puts("it runs");
  return 0;
}
"#;

struct Engine {
    socket: PathBuf,
    _server: Server,
    folder: tempfile::TempDir,
}

/// Which layout `docker save` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saves {
    /// Folders with `layer.tar`, up to version 24.
    Legacy,
    /// An OCI layout with plain layers.
    GraphDriver,
    /// What containerd has, compressed.
    Containerd,
}

impl Saves {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Legacy => &["--storage-driver", "vfs"],
            Self::GraphDriver => &[
                "--storage-driver",
                "vfs",
                "--feature",
                "containerd-snapshotter=false",
            ],
            Self::Containerd => &[
                "--storage-driver",
                "native",
                "--feature",
                "containerd-snapshotter=true",
            ],
        }
    }

    /// Debian's engine says its version; one that was built as a library does not.
    fn engine(self) -> Option<PathBuf> {
        let is_old = |dockerd: &PathBuf| {
            let version = run(Command::new(dockerd).arg("--version"));
            let number = version
                .strip_prefix("Docker version ")
                .and_then(|rest| rest.split('.').next());
            number
                .and_then(|number| number.parse::<u32>().ok())
                .is_some_and(|number| number < 25)
        };
        tools("dockerd")
            .into_iter()
            .find(|dockerd| is_old(dockerd) == (self == Self::Legacy))
    }
}

impl Engine {
    /// In a network and mounts of its own, so that it changes nobody's.
    fn start(saves: Saves) -> Option<Self> {
        let Some(dockerd) = saves.engine() else {
            skip("dockerd", &format!("there is none that saves {saves:?}"));
            return None;
        };
        let (containerd, runc) = (tool("containerd")?, tool("runc")?);
        if !rustix::process::geteuid().is_root() {
            skip("dockerd", "it needs root");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let socket = at("socket");
        let mut path =
            std::env::join_paths([containerd, runc].iter().filter_map(|tool| tool.parent())).unwrap();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = Command::new("unshare");
        command
            .args(["--net", "--mount"])
            .arg(dockerd)
            .args(saves.flags())
            .args([
                "--bridge",
                "none",
                "--iptables=false",
                "--ip6tables=false",
                "--userland-proxy=false",
            ])
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .env("TMPDIR", folder.path())
            .env("PATH", path);
        let server = Server::start("dockerd", &mut command, "API listen on")?;
        Some(Self {
            socket,
            _server: server,
            folder,
        })
    }

    fn request(&self, arguments: &[&str], path: &str, body: &[u8]) -> Vec<u8> {
        let mut child = Command::new("curl")
            .args(["--silent", "--show-error", "--fail-with-body", "--unix-socket"])
            .arg(&self.socket)
            .args(arguments)
            .arg(format!("http://docker{path}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(body).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{path}: {} {}",
            String::from_utf8_lossy(&output.stdout),
            text(&output.stderr)
        );
        output.stdout
    }

    fn build(&self, tags: &str, context: &[(&str, &[u8])]) {
        let post = [
            "--request",
            "POST",
            "--header",
            "Content-Type: application/x-tar",
            "--data-binary",
            "@-",
        ];
        let answer = self.request(&post, &format!("/build?{tags}"), &tar(context));
        let answer = text(&answer);
        assert!(answer.contains("Successfully built"), "{answer}");
    }

    fn save(&self, path: &str, name: &str) -> PathBuf {
        let file = self.folder.path().join(name);
        fs::write(&file, self.request(&[], path, b"")).unwrap();
        file
    }

    fn load(&self, archive: &Path) -> String {
        let post = [
            "--request",
            "POST",
            "--header",
            "Content-Type: application/x-tar",
            "--data-binary",
            "@-",
        ];
        let answer = self.request(&post, "/images/load", &fs::read(archive).unwrap());
        text(&answer).to_owned()
    }
}

/// An engine with two images, of two layers and of three, the first with two tags; and the program in them.
fn engine_with_images(saves: Saves) -> Option<Engine> {
    let engine = Engine::start(saves)?;
    let program = engine.folder.path().join("program");
    fs::write(program.with_extension("c"), PROGRAM).unwrap();
    let compiled = Command::new("cc")
        .args(["-static", "-Os", "-s", "-o"])
        .args([&program, &program.with_extension("c")])
        .output();
    if !compiled.is_ok_and(|output| output.status.success()) {
        skip("cc", "it makes no static program here");
        return None;
    }
    let program = fs::read(program).unwrap();
    let base: [(&str, &[u8]); 3] = [
        (
            "Dockerfile",
            b"FROM scratch\nCOPY program /program\nCOPY one /etc/one\nCMD [\"/program\"]\n",
        ),
        ("program", &program),
        ("one", b"1"),
    ];
    engine.build("t=app:1&t=registry.example.com/team/app:2", &base);
    let second: [(&str, &[u8]); 2] = [("Dockerfile", b"FROM app:1\nCOPY two /etc/two\n"), ("two", b"2")];
    engine.build("t=app:3", &second);
    Some(engine)
}

fn layers(document: &Value, image: usize, field: &str) -> Vec<String> {
    let layers = document["images"][image]["layers"].as_array().unwrap();
    layers
        .iter()
        .map(|layer| layer[field].as_str().unwrap().to_owned())
        .collect()
}

fn accepted(arguments: &[&str], folder: &Path) -> Value {
    let output = slipway(arguments, folder);
    assert_eq!(code(&output), 0, "{arguments:?}: {}", text(&output.stderr));
    document(&output)
}

/// Pulls an image and runs the program in it.
fn pull_and_run(folder: &Path, image: &str) -> String {
    let buildah = |arguments: &[&str]| {
        run(Command::new("buildah")
            .env("BUILDAH_ISOLATION", "chroot")
            .args(["--storage-driver", "vfs", "--root"])
            .arg(folder.join("buildah"))
            .arg("--runroot")
            .arg(folder.join("buildah-run"))
            .args(arguments))
    };
    let container = buildah(&["from", "--quiet", "--tls-verify=false", image]);
    let printed = buildah(&["run", container.trim(), "--", "/program", "/etc/one", "/etc/two"]);
    buildah(&["rm", container.trim()]);
    printed
}

/// The same with crane, which takes manifests that mix OCI's and Docker's media types; buildah does not.
fn export_and_run(folder: &Path, image: &str) -> Option<String> {
    let crane = tool("crane")?;
    let (archive, root) = (folder.join("export.tar"), folder.join("export"));
    let _ = fs::remove_dir_all(&root);
    fs::create_dir(&root).unwrap();
    run(Command::new(crane)
        .args(["export", "--insecure", image])
        .arg(&archive));
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&root));
    let mut program = Command::new("chroot");
    program.arg(&root).args(["/program", "/etc/one", "/etc/two"]);
    Some(run(&mut program))
}

/// The whole way of what an engine saves.
fn walk(saves: Saves) {
    let Some(engine) = engine_with_images(saves) else {
        return;
    };
    let (Some(registry), Some(_), Some(_)) = (Registry::start(), tool("buildah"), tool("skopeo")) else {
        return;
    };
    let folder = engine.folder.path();
    engine.save("/images/app:1/get", "by-tag.tar");
    let id: Value = serde_json::from_slice(&engine.request(&[], "/images/app:1/json", b"")).unwrap();
    let id = id["Id"].as_str().unwrap().to_owned();
    let tags = "names=app:1&names=registry.example.com/team/app:2";
    let by_tags = engine.save(&format!("/images/get?{tags}"), "by-tags.tar");
    let by_id = engine.save(&format!("/images/{id}/get"), "by-id.tar");
    let several = engine.save("/images/get?names=app:1&names=app:3", "several.tar");

    let expected = one_image(folder, saves, &id, [&by_tags, &by_id]);
    from_launchpads_folder(folder, saves, &registry, &expected);
    into_staging(folder, saves, &registry, &expected, &several);
    one_of_several(folder, &registry);

    // And the engine reads what was written for Launchpad.
    let back = folder.join("back.tar");
    run(Command::new("tar")
        .arg("-cf")
        .arg(&back)
        .arg("-C")
        .arg(folder.join("upload/1"))
        .arg("."));
    let answer = engine.load(&back);
    assert!(answer.contains("Loaded image"), "{answer}");
}

/// One image, however it is named.
fn one_image(folder: &Path, saves: Saves, id: &str, [by_tags, by_id]: [&Path; 2]) -> Value {
    let expected = accepted(
        &["collect", "by-tag.tar", "--output", "upload/1", "--json"],
        folder,
    );
    // Its own builder gives an OCI manifest layers of Docker's types.
    let warnings = usize::from(saves == Saves::Containerd);
    assert_eq!(
        expected["warnings"].as_array().unwrap().len(),
        warnings,
        "{expected}"
    );
    assert_eq!(expected["images"].as_array().unwrap().len(), 1);
    assert_eq!(expected["images"][0]["platform"], "linux/amd64");
    let image = &expected["images"][0];
    let identity = if saves == Saves::Containerd {
        "manifestDigest"
    } else {
        "configDigest"
    };
    assert_eq!(image[identity], id, "what the engine calls the image");
    for (archive, count) in [(by_tags, 2), (by_id, 0)] {
        let document = accepted(&["inspect", archive.to_str().unwrap(), "--json"], folder);
        assert_eq!(layers(&document, 0, "diffID"), layers(&expected, 0, "diffID"));
        let tags = document["images"][0]["tags"].as_array().unwrap();
        let names = ["app:1", "registry.example.com/team/app:2"];
        assert_eq!(
            names.iter().filter(|name| tags.contains(&json!(name))).count(),
            count,
            "{tags:?}"
        );
        assert!(count > 0 || tags.is_empty(), "{tags:?}");
    }
    expected
}

/// Launchpad's folder is accepted, and the image that is pushed from it pulls and runs.
fn from_launchpads_folder(folder: &Path, saves: Saves, registry: &Registry, expected: &Value) {
    let image = &expected["images"][0];
    let upload = accepted(&["accept", "upload", "--json"], folder);
    assert_eq!(layers(&upload, 0, "digest"), layers(expected, 0, "digest"));
    let target = registry.repository("app");
    let tagged = format!("{target}:1");
    let push = [
        "push",
        "upload/1",
        &tagged,
        "--plain-http",
        &registry.address,
        "--json",
    ];
    accepted(&push, folder);
    let inspected = run(Command::new("skopeo")
        .args(["inspect", "--tls-verify=false"])
        .arg(format!("docker://{tagged}")));
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["Layers"], json!(layers(expected, 0, "digest")));
    // The folder has no manifest: what containerd wrote is kept by staging only.
    if saves != Saves::Containerd {
        assert_eq!(inspected["Digest"], image["manifestDigest"]);
    }
    assert_eq!(
        pull_and_run(folder, &tagged),
        "/etc/one there\n/etc/two missing\nit runs\n"
    );
}

/// Several images: one after the other into staging, and each runs from there.
fn into_staging(folder: &Path, saves: Saves, registry: &Registry, expected: &Value, several: &Path) {
    let target = registry.repository("app");
    let fed = slipway_fed(
        &[
            "collect",
            "-",
            "--staging",
            &target,
            "--plain-http",
            &registry.address,
            "--json",
        ],
        folder,
        &fs::read(several).unwrap(),
    );
    assert_eq!(code(&fed), 0, "{}", text(&fed.stderr));
    let staged = document(&fed);
    assert_eq!(staged["images"].as_array().unwrap().len(), 2);
    assert_eq!(layers(&staged, 0, "digest"), layers(expected, 0, "digest"));
    let outputs = ["/etc/two missing", "/etc/two there"];
    for (image, output) in staged["images"].as_array().unwrap().iter().zip(outputs) {
        let name = format!("{target}@{}", image["manifestDigest"].as_str().unwrap());
        let printed = if saves == Saves::Containerd {
            export_and_run(folder, &name)
        } else {
            Some(pull_and_run(folder, &name))
        };
        if let Some(printed) = printed {
            assert_eq!(printed, format!("/etc/one there\n{output}\nit runs\n"));
        }
    }
    let single = slipway(
        &["collect", "several.tar", "--output", "none", "--single", "--json"],
        folder,
    );
    assert_eq!(
        (code(&single), &document(&single)["reason"]),
        (1, &json!("ManyImages"))
    );
}

/// Of several images in Launchpad's layout, one is named by its config.
fn one_of_several(folder: &Path, registry: &Registry) {
    let target = registry.repository("app");
    let both = accepted(
        &["collect", "several.tar", "--output", "several/1", "--json"],
        folder,
    );
    accepted(&["accept", "several", "--json"], folder);
    let second = format!(
        "several/1@{}",
        both["images"][1]["configDigest"].as_str().unwrap()
    );
    let tagged = format!("{target}:3");
    accepted(
        &[
            "push",
            &second,
            &tagged,
            "--plain-http",
            &registry.address,
            "--json",
        ],
        folder,
    );
    assert_eq!(
        pull_and_run(folder, &tagged),
        "/etc/one there\n/etc/two there\nit runs\n"
    );
}

#[test]
fn docker_20_archives_become_images_that_run() {
    walk(Saves::Legacy);
}

#[test]
fn docker_29_archives_of_the_graph_driver_become_images_that_run() {
    walk(Saves::GraphDriver);
}

#[test]
fn docker_29_archives_of_containerd_become_images_that_run() {
    walk(Saves::Containerd);
}
