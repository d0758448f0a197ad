//! A collection into a real registry, where the machine has one.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use super::*;

/// The reference implementation's server, stopped when it is dropped.
struct Server {
    process: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// From the environment, or where `hack/` builds it.
fn binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("SLIPWAY_REGISTRY_BIN") {
        return Some(path.into());
    }
    let tools = PathBuf::from(std::env::var_os("HOME")?).join(".cache/slipway/tools");
    let found = fs::read_dir(tools)
        .ok()?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("registry-"))?;
    Some(found.path().join("registry")).filter(|path| path.exists())
}

impl Server {
    fn start() -> Option<Self> {
        let Some(binary) = binary() else {
            crate::testing::skip("registry", "there is none; set SLIPWAY_REGISTRY_BIN to one");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let configuration = folder.path().join("config.yml");
        let storage = folder.path().join("storage");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n",
            storage.display()
        );
        fs::write(&configuration, text).unwrap();
        let mut process = Command::new(binary)
            .arg("serve")
            .arg(&configuration)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Its log names the port once it listens.
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = log.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("listening on ")?;
            Some(rest.split([',', ' ', '"']).next()?.to_owned())
        });
        std::thread::spawn(move || log.for_each(drop));
        Some(Self {
            process,
            address: address.expect("the registry's log names its address"),
            _folder: folder,
        })
    }
}

fn pod(server: &Server) -> Pod {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut pod = Pod::new();
    pod.plan.staging.registry = server.address.clone();
    pod
}

async fn record(pod: &Pod) -> BuildRecord {
    let never = std::future::pending();
    match run(pod.plan.clone(), pod.workspace(), never).await.report {
        CollectReport::Recorded { digest } => {
            let repository = repository(&pod.plan.staging).unwrap();
            staging::fetch_record(&repository, &digest).await.unwrap()
        }
        CollectReport::Failed(failure) => panic!("{failure:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_registry_serves_what_was_collected_and_gets_no_layer_twice() {
    let Some(server) = Server::start() else {
        return;
    };
    let mut pod = pod(&server);
    pod.leave(&docker(&[true, true]));
    let first = Box::pin(record(&pod)).await;
    let image = first.image.unwrap();
    let repository = repository(&pod.plan.staging).unwrap();
    for layer in &image.layers {
        assert_eq!(
            repository.head_blob(&layer.digest).await.unwrap(),
            Some(layer.size)
        );
    }
    let pinned = Store::manifest(&repository, "build-0a1b2c3d-amd64-1")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(Digest::of(&pinned.bytes), image.manifest.digest);

    pod.plan.build.attempt = 2;
    let second = Box::pin(record(&pod)).await;
    assert_eq!(
        (second.counters.bytes_uploaded, second.counters.bytes_read),
        (0, 0)
    );
    assert_eq!(second.image.unwrap().manifest, image.manifest);
}
