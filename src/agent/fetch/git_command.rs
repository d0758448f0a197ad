//! Runs `git` so that neither the repository, nor the recipe, nor the node can make it do anything else.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use super::{
    credentials::{Credentials, write_private},
    diagnosis::{Problem, Trouble},
    git_url::GitUrl,
};

/// Git's whole configuration but for credentials. There is no `protocol.file` and no `protocol.ext`, for the
/// repository or its submodules; hooks and filters of a source never run.
const CONFIGURATION: &str = "\
[core]
\thooksPath = /dev/null
\tfsmonitor = false
\tsymlinks = true
[protocol]
\tallow = never
[protocol \"https\"]
\tallow = always
[protocol \"http\"]
\tallow = always
[protocol \"ssh\"]
\tallow = always
[http]
\tfollowRedirects = initial
\tlowSpeedLimit = 1
\tlowSpeedTime = 60
[init]
\tdefaultBranch = main
[gc]
\tauto = 0
[maintenance]
\tauto = false
[advice]
\tdetachedHead = false
";

/// What of this process's environment git may see: where programs are, and how the network is reached.
const INHERITED: &[&str] = &[
    "PATH",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
];

/// Git in one work tree, with a home of its own that disappears with it.
pub struct Git {
    home: tempfile::TempDir,
    tree: PathBuf,
    credentials: Credentials,
}

impl Git {
    /// Git for `url`'s repository in the folder `tree`.
    ///
    /// # Errors
    /// When the private folder cannot be written.
    pub fn new(url: &GitUrl, credentials: Credentials, tree: &Path) -> io::Result<Self> {
        let home = tempfile::Builder::new().prefix("slipway-git-").tempdir()?;
        let secret_part = credentials.install(url, home.path())?;
        write_private(
            &home.path().join("config"),
            &format!("{CONFIGURATION}{secret_part}"),
        )?;
        Ok(Self {
            home,
            tree: fs::canonicalize(tree)?,
            credentials,
        })
    }

    /// Runs one command and gives back what it printed.
    ///
    /// # Errors
    /// What git complained about.
    pub async fn run(&self, arguments: &[&str]) -> Result<String, Trouble> {
        let output = self.command().args(arguments).output().await;
        match output {
            Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Ok(output) => Err(Trouble::of(&output.stderr, &self.credentials.secrets())),
            Err(error) => Err(Trouble {
                problem: Problem::Unreachable,
                complaint: format!("git cannot be started: {error}"),
            }),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("git");
        command
            .current_dir(&self.tree)
            .env_clear()
            .envs(
                INHERITED
                    .iter()
                    .filter_map(|name| Some((name, env::var_os(name)?))),
            )
            .env("LC_ALL", "C")
            .env("HOME", self.home.path())
            .env("TMPDIR", self.home.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", self.home.path().join("config"))
            // Stronger than any `protocol.*.allow`, which a repository's own configuration could say.
            .env("GIT_ALLOW_PROTOCOL", "https:http:ssh")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_LFS_SKIP_SMUDGE", "1")
            // A repository is only what is in the tree, never what happens to be above it.
            .env(
                "GIT_CEILING_DIRECTORIES",
                self.tree.parent().unwrap_or(&self.tree),
            )
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(bundle) = env::var_os("SSL_CERT_FILE") {
            command.env("GIT_SSL_CAINFO", bundle);
        }
        command
    }
}
