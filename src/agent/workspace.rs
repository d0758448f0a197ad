//! The scratch volume that fetch, build and collect share, and how each waits for its turn.
//!
//! A container holds an exclusive lock on its own lock file while it runs and leaves an outcome file when it
//! ended well. The kernel drops the lock of a process that dies, so a container that was killed is noticed at
//! once and without the API server.

use std::path::{Path, PathBuf};

/// Where every container of a build pod mounts the scratch volume.
pub const MOUNT: &str = "/workspace";

/// The paths in a workspace.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
}

/// A container whose end others wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Brings the source.
    Fetch,
    /// Runs the strategy's command.
    Build,
}

impl Workspace {
    /// The workspace at `root`, [`MOUNT`] in a pod.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The fetched source tree.
    pub fn source(&self) -> PathBuf {
        self.root.join("source")
    }

    /// The folder in which the builder leaves its archive.
    pub fn output(&self) -> PathBuf {
        self.root.join("output")
    }

    /// Standard output and error of the strategy's command, bounded.
    pub fn log(&self) -> PathBuf {
        self.control().join("build.log")
    }

    /// Locked by the stage while it runs.
    pub fn lock(&self, stage: Stage) -> PathBuf {
        self.control().join(match stage {
            Stage::Fetch => "fetch.lock",
            Stage::Build => "build.lock",
        })
    }

    /// Written by the stage when it ended by itself: a JSON [`super::report::StageOutcome`].
    pub fn outcome(&self, stage: Stage) -> PathBuf {
        self.control().join(match stage {
            Stage::Fetch => "fetch.json",
            Stage::Build => "build.json",
        })
    }

    /// The folder of locks, outcomes and the log.
    pub fn control(&self) -> PathBuf {
        self.root.join(".slipway")
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
}
