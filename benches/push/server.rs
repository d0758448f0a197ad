//! A registry that is there for one measurement, and its log of requests.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::json;

pub struct Server {
    pub host: String,
    process: Child,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    pub async fn start(binary: &Path) -> Self {
        // In memory where that is to be had: the disk is not what is measured.
        let shared = PathBuf::from("/dev/shm");
        let place = if shared.is_dir() {
            shared
        } else {
            std::env::temp_dir()
        };
        let folder = tempfile::Builder::new()
            .prefix("bench-push")
            .tempdir_in(place)
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        drop(listener);
        let configuration = json!({
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": false}},
            "storage": {"filesystem": {"rootdirectory": folder.path().join("data")}, "delete": {"enabled": true}},
            "http": {"addr": host},
        });
        let path = folder.path().join("config.yml");
        std::fs::write(&path, configuration.to_string()).unwrap();
        let log = std::fs::File::create(folder.path().join("access.log")).unwrap();
        let process = Command::new(binary)
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self {
            host,
            process,
            folder,
        };
        while tokio::net::TcpStream::connect(&server.host).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }

    /// How many requests there were so far.
    pub fn requests(&self) -> usize {
        let log = std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains("HTTP/1.")).count()
    }
}
