//! Fetching over ssh from OpenSSH's server, where the machine has it.

use std::{
    fs,
    os::fd::OwnedFd,
    process::{Command, Stdio},
};

use tokio::net::TcpListener;

use super::*;

const SERVER: &str = "/usr/sbin/sshd";

/// A server that lets one key in, as the user who runs the tests.
struct SshServer {
    folder: tempfile::TempDir,
    port: u16,
}

impl SshServer {
    /// `None`, and why, where there is no server program.
    async fn start() -> Option<Self> {
        if !Path::new(SERVER).exists() || !rustix::process::geteuid().is_root() {
            crate::testing::skip(
                "ssh",
                &format!("it needs root and {SERVER}, of the package openssh-server"),
            );
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["host", "right", "wrong"] {
            let key = folder.path().join(name);
            run(
                "ssh-keygen",
                &["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()],
            );
        }
        let path = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nPasswordAuthentication no\nUsePAM no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n",
            path("host"),
            path("right.pub"),
        );
        fs::write(path("config"), config).unwrap();
        // Where the server puts its unprivileged half.
        fs::create_dir_all("/run/sshd").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = path("config");
        // One server process a connection, so that no port is guessed.
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let connection = connection.into_std().unwrap();
                connection.set_nonblocking(false).unwrap();
                let socket = OwnedFd::from(connection);
                let mut server = Command::new(SERVER)
                    .args(["-i", "-e", "-f", &config])
                    .stdin(socket.try_clone().unwrap())
                    .stdout(socket)
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                tokio::task::spawn_blocking(move || server.wait());
            }
        });
        Some(Self { folder, port })
    }

    /// A repository with one commit.
    fn repository(&self) -> String {
        let path = self.folder.path().join("demo").display().to_string();
        run("git", &["init", "--quiet", "--initial-branch=main", &path]);
        let commit = [
            "-C",
            &path,
            "-c",
            "user.name=T",
            "-c",
            "user.email=t@e",
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            "x",
        ];
        run("git", &commit);
        format!("ssh://root@127.0.0.1:{}{path}", self.port)
    }

    fn known_hosts(&self, key: &str) -> String {
        let public = fs::read_to_string(self.folder.path().join(key).with_extension("pub")).unwrap();
        format!("[127.0.0.1]:{} {public}", self.port)
    }

    /// Fetches with this private key, believing these host keys.
    async fn fetch(&self, key: &str, known_hosts: Option<String>) -> Result<Revision, Failure> {
        let url = self.repository();
        let secret = tempfile::tempdir().unwrap();
        fs::copy(self.folder.path().join(key), secret.path().join("ssh-privatekey")).unwrap();
        if let Some(known_hosts) = known_hosts {
            fs::write(secret.path().join("known_hosts"), known_hosts).unwrap();
        }
        let tree = tempfile::tempdir().unwrap();
        let wanted = git::Wanted::parse(&url, None, false).unwrap();
        git::fetch(&wanted, Some(secret.path()), tree.path(), &[]).await
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

#[tokio::test]
async fn the_right_key_opens_a_known_host() {
    let Some(server) = SshServer::start().await else {
        return;
    };
    let fetched = server.fetch("right", Some(server.known_hosts("host"))).await;
    assert_eq!(fetched.unwrap().revision.len(), 40);
}

#[tokio::test]
async fn without_known_hosts_the_host_is_believed() {
    let Some(server) = SshServer::start().await else {
        return;
    };
    assert!(server.fetch("right", None).await.is_ok());
}

#[tokio::test]
async fn a_wrong_key_is_refused() {
    let Some(server) = SshServer::start().await else {
        return;
    };
    let failure = server
        .fetch("wrong", Some(server.known_hosts("host")))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, Reason::GitAuthenticationFailed);
    assert!(failure.message.contains("refused"), "{}", failure.message);
}

#[tokio::test]
async fn another_host_key_than_the_known_one_ends_the_fetch() {
    let Some(server) = SshServer::start().await else {
        return;
    };
    let failure = server
        .fetch("right", Some(server.known_hosts("wrong")))
        .await
        .unwrap_err();
    assert_eq!(failure.reason, Reason::GitAuthenticationFailed);
    assert!(failure.message.contains("host key"), "{}", failure.message);
}
