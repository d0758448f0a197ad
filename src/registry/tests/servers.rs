//! Registries that we did not write, as processes of a test.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::json;

use crate::{
    registry::{Client, ClientOptions, Credentials, Repository},
    testing::{skip, tool},
};

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// The project's own, which `hack/cluster/build-tools` makes.
    Distribution3,
    /// The last of the second series, which Debian has; `hack/from-debian registry` unpacks it.
    Distribution2,
    /// What crane serves; it knows neither sessions that go on nor repositories apart.
    GoContainerRegistry,
}

impl Server {
    fn binary(self) -> Option<PathBuf> {
        match self {
            Self::Distribution3 => std::env::var_os("SLIPWAY_REGISTRY_BIN")
                .map(PathBuf::from)
                .or_else(|| tool("registry")),
            Self::Distribution2 => tool("docker-registry"),
            Self::GoContainerRegistry => tool("crane"),
        }
    }

    fn command(self, binary: &Path, folder: &Path, host: &str, tls: &serde_json::Value) -> Command {
        let mut command = Command::new(binary);
        if self == Self::GoContainerRegistry {
            command.args(["registry", "serve", "--address", host]);
            return command;
        }
        let configuration = folder.join("config.yml");
        let text = json!({
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": folder.join("data")}},
            "http": {"addr": host, "tls": tls},
        });
        std::fs::write(&configuration, text.to_string()).unwrap();
        command
            .arg("serve")
            .arg(&configuration)
            .env("OTEL_TRACES_EXPORTER", "none");
        command
    }
}

/// A running registry; it ends with the test.
pub(super) struct Real {
    process: Child,
    pub(super) host: String,
    _folder: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Real {
    pub(super) async fn start(server: Server) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(server, folder, &json!({})).await
    }

    pub(super) async fn start_in(
        server: Server,
        folder: tempfile::TempDir,
        tls: &serde_json::Value,
    ) -> Option<Self> {
        let Some(binary) = server.binary() else {
            skip(&format!("{server:?}"), "neither the tools folder nor PATH has it");
            return None;
        };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let host = format!("127.0.0.1:{port}");
        let process = server
            .command(&binary, folder.path(), &host, tls)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let real = Self {
            process,
            host,
            _folder: folder,
        };
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(&real.host).await.is_ok() {
                return Some(real);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("the registry does not answer");
    }

    pub(super) fn repository(&self, name: &str) -> Repository {
        let options = ClientOptions {
            plain_http: [self.host.clone()].into(),
            ..ClientOptions::default()
        };
        Client::new(options, Credentials::anonymous())
            .unwrap()
            .repository(&self.host, name)
    }
}
