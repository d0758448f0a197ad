//! The scratch volume that fetch, build and collect share, and how each waits for its turn.
//!
//! The protocol, one folder (`.slipway`) and two files a stage:
//!
//! ```text
//! fetch, gate   create a lock file, lock it exclusively, rename it to <stage>.lock     = "I run"
//!               … work …
//!               write <stage>.json beside, rename it into place                        = "I ended by myself"
//!               exit; the kernel drops the lock                                        = "I am gone"
//! who waits     looks for <stage>.lock, asks for a shared lock, reads <stage>.json     none: it was killed
//! ```
//!
//! A lock belongs to the open file, so it is held already when the name appears: nobody can see the name of
//! a running stage and get its lock. The kernel drops the lock of a process that dies, so a container that
//! was killed is noticed at once and without the API server. Descriptors are close-on-exec (as all of
//! `std` are), so the strategy's command does not inherit the lock.
//!
//! The build runs as it likes in this volume and may forge everything in it: whoever reads here opens
//! without following links, reads a bounded number of bytes, and believes an outcome only for what it costs
//! the build itself. What has to be true about the source is in `fetch`'s termination message.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags};

use super::report::StageOutcome;
use crate::record::{Failure, Reason};

/// Where every container of a build pod mounts the scratch volume.
pub const MOUNT: &str = "/workspace";

/// How often a stage that has not started yet is looked for. One `open` in ten milliseconds for the second
/// that containers take to start; inotify would have to watch two folders, and its instances are few.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// An outcome is at most a message and a log's end; whatever is longer was not written by a stage.
const OUTCOME_LIMIT: u64 = 64 * 1024;

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

/// A stage ended without saying how: its container was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {} container was killed before it could say how it ended", stage.as_str())]
pub struct Vanished {
    /// Which.
    pub stage: Stage,
}

/// Held by a stage while it runs; dropping it, or dying, tells those who wait.
#[derive(Debug)]
pub struct Presence {
    workspace: Workspace,
    stage: Stage,
    _lock: File,
}

impl From<Vanished> for Failure {
    fn from(vanished: Vanished) -> Self {
        let reason = match vanished.stage {
            Stage::Fetch => Reason::FetchFailed,
            Stage::Build => Reason::BuildPodFailed,
        };
        Self::new(
            reason,
            format!("{vanished}; its container's status has the cause"),
        )
    }
}

impl Stage {
    /// The stage's container.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Build => "build",
        }
    }
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

    /// Written by the stage when it ended by itself: a JSON [`StageOutcome`].
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

    /// Says that `stage` runs, for as long as what is returned lives.
    ///
    /// What an earlier run left in the same workspace is replaced.
    ///
    /// # Errors
    /// When the workspace cannot be written.
    pub fn enter(&self, stage: Stage) -> io::Result<Presence> {
        self.shared_folder(&self.control(), stage)?;
        let unnamed = self.lock(stage).with_extension("lock.new");
        let lock = create_readable(&unnamed)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        // In this order: who waits on the old lock looks, finding no outcome, whether a new one took its name.
        match fs::remove_file(self.outcome(stage)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(&unnamed, self.lock(stage))?;
        Ok(Presence {
            workspace: self.clone(),
            stage,
            _lock: lock,
        })
    }

    /// Waits until `stage` has started and ended.
    ///
    /// Waits for ever where the stage's container never starts; the pod's deadline ends that. The thread
    /// that waits holds up neither the runtime nor the process's exit.
    ///
    /// # Errors
    /// When the stage was killed.
    pub async fn wait_for(&self, stage: Stage) -> Result<StageOutcome, Vanished> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let workspace = self.clone();
        // Not `spawn_blocking`: a runtime that shuts down would wait for this wait.
        std::thread::spawn(move || {
            let _ = sender.send(workspace.wait_for_blocking(stage));
        });
        receiver.await.unwrap_or(Err(Vanished { stage }))
    }

    /// [`wait_for`](Self::wait_for) on the calling thread.
    ///
    /// # Errors
    /// When the stage was killed.
    pub fn wait_for_blocking(&self, stage: Stage) -> Result<StageOutcome, Vanished> {
        loop {
            let Ok(lock) = self.open_control(&self.lock(stage)) else {
                std::thread::sleep(LOOK_AGAIN);
                continue;
            };
            // Shared, so that several can wait; `EINTR` and the like only ask to try again.
            if rustix::fs::flock(&lock, FlockOperation::LockShared).is_err() {
                std::thread::sleep(LOOK_AGAIN);
                continue;
            }
            if let Some(outcome) = self.read_outcome(stage) {
                return Ok(outcome);
            }
            if self.is_current(&lock, stage) {
                return Err(Vanished { stage });
            }
        }
    }

    /// Opens a file of the control folder for reading, whatever the build may have put there instead.
    ///
    /// # Errors
    /// When there is no such file, or it is a link, a folder, a pipe or a device.
    pub fn open_control(&self, path: &Path) -> io::Result<File> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let folder = rustix::fs::open(
            self.control(),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let file = File::from(rustix::fs::openat(
            folder,
            name,
            // Without NONBLOCK a named pipe would be waited on.
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )?);
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }

    /// What `stage` said about its end, if it did, with its texts bounded again.
    fn read_outcome(&self, stage: Stage) -> Option<StageOutcome> {
        let mut text = Vec::new();
        self.open_control(&self.outcome(stage))
            .ok()?
            .take(OUTCOME_LIMIT)
            .read_to_end(&mut text)
            .ok()?;
        match serde_json::from_slice(&text).ok()? {
            StageOutcome::Failed(failure) => Some(StageOutcome::Failed(
                Failure::new(failure.reason, failure.message)
                    .with_log(failure.log_snippet.as_deref().unwrap_or_default()),
            )),
            done @ StageOutcome::Done { .. } => Some(done),
        }
    }

    /// Whether the lock that was waited for still has the stage's name.
    fn is_current(&self, lock: &File, stage: Stage) -> bool {
        match (lock.metadata(), fs::symlink_metadata(self.lock(stage))) {
            (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
            _ => true,
        }
    }

    /// Makes a folder in which every user of the pod may write, unless it is there.
    ///
    /// Fetch and gate start together as different users and either may be first, so the folder gets its
    /// name only once it has its mode.
    ///
    /// # Errors
    /// When the workspace cannot be written.
    pub fn shared_folder(&self, path: &Path, stage: Stage) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        let unnamed = self.root.join(format!(".new-{}", stage.as_str()));
        fs::create_dir_all(&unnamed)?;
        fs::set_permissions(&unnamed, Permissions::from_mode(0o777))?;
        match rustix::fs::renameat_with(CWD, &unnamed, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::EXIST) => fs::remove_dir(&unnamed),
            Err(error) => Err(error.into()),
        }
    }
}

impl Presence {
    /// Says how the stage ended, and that it did.
    ///
    /// # Errors
    /// When the workspace cannot be written; those who wait then see a stage that was killed.
    pub fn leave(self, outcome: &StageOutcome) -> io::Result<()> {
        let path = self.workspace.outcome(self.stage);
        let unnamed = path.with_extension("json.new");
        let mut file = create_readable(&unnamed)?;
        file.write_all(&serde_json::to_vec(outcome)?)?;
        fs::rename(&unnamed, &path)
    }
}

/// Creates a file that every user of the pod may read, in place of whatever has the name.
pub(super) fn create_readable(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = File::options().write(true).create_new(true).open(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(file)
}

/// Adds `bits` (of 0o666) to everything below `root`, and lets folders and programs be entered and run.
///
/// The stages of a pod run as different users. Links are not followed, and what cannot be changed is left:
/// who needs it will say so with its name.
pub(super) fn open_to_others(root: &Path, bits: u32) {
    let mut waiting = vec![root.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let (kind, mode) = (
            rustix::fs::FileType::from_raw_mode(metadata.st_mode),
            metadata.st_mode & 0o7777,
        );
        let is_folder = kind.is_dir();
        if !is_folder && !kind.is_file() {
            continue;
        }
        let runs = if is_folder || mode & 0o111 != 0 { 0o111 } else { 0 };
        if mode | bits | runs != mode {
            let _ = fs::set_permissions(&path, Permissions::from_mode(mode | bits | runs));
        }
        if is_folder {
            waiting.extend(
                fs::read_dir(&path)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|e| e.path()),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn workspace() -> (tempfile::TempDir, Workspace) {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace::new(folder.path());
        (folder, workspace)
    }

    const DONE: StageOutcome = StageOutcome::Done { revision: None };

    #[tokio::test]
    async fn who_waits_before_the_start_learns_the_outcome() {
        let (_folder, workspace) = workspace();
        let waiting = tokio::spawn({
            let workspace = workspace.clone();
            async move { workspace.wait_for(Stage::Fetch).await }
        });
        let presence = workspace.enter(Stage::Fetch).unwrap();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        presence.leave(&DONE).unwrap();
        assert_eq!(waiting.await.unwrap(), Ok(DONE));
        assert_eq!(workspace.wait_for(Stage::Fetch).await, Ok(DONE), "asked again");
    }

    #[tokio::test]
    async fn a_stage_that_says_nothing_has_vanished() {
        let (_folder, workspace) = workspace();
        drop(workspace.enter(Stage::Build).unwrap());
        assert_eq!(
            workspace.wait_for(Stage::Build).await,
            Err(Vanished { stage: Stage::Build })
        );
    }

    #[tokio::test]
    async fn what_an_earlier_run_left_is_replaced() {
        let (_folder, workspace) = workspace();
        workspace.enter(Stage::Fetch).unwrap().leave(&DONE).unwrap();
        let old = workspace.open_control(&workspace.lock(Stage::Fetch)).unwrap();
        drop(workspace.enter(Stage::Fetch).unwrap());
        assert!(!workspace.is_current(&old, Stage::Fetch));
        assert!(workspace.wait_for(Stage::Fetch).await.is_err());
    }

    #[test]
    fn a_forged_outcome_is_bounded_and_its_class_is_not_believed() {
        let (_folder, workspace) = workspace();
        let presence = workspace.enter(Stage::Build).unwrap();
        let mut forged = Failure::new(Reason::BuildFailed, "");
        forged.retryable = true;
        forged.message = "x".repeat(5000);
        presence.leave(&StageOutcome::Failed(forged)).unwrap();
        match workspace.wait_for_blocking(Stage::Build) {
            Ok(StageOutcome::Failed(read)) => assert!(read.message.len() <= 2048 && !read.retryable),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_link_or_a_pipe_in_place_of_a_control_file_is_not_read() {
        let (folder, workspace) = workspace();
        workspace
            .shared_folder(&workspace.control(), Stage::Build)
            .unwrap();
        let secret = folder.path().join("secret");
        fs::write(&secret, "{}").unwrap();
        symlink(&secret, workspace.outcome(Stage::Build)).unwrap();
        assert!(workspace.open_control(&workspace.outcome(Stage::Build)).is_err());
        rustix::fs::mknodat(
            CWD,
            workspace.log(),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o666),
            0,
        )
        .unwrap();
        assert!(workspace.open_control(&workspace.log()).is_err());
        fs::rename(workspace.control(), folder.path().join("elsewhere")).unwrap();
        symlink(folder.path().join("elsewhere"), workspace.control()).unwrap();
        fs::write(folder.path().join("elsewhere/fetch.json"), "{}").unwrap();
        assert!(workspace.open_control(&workspace.outcome(Stage::Fetch)).is_err());
    }

    #[test]
    fn opening_to_others_follows_no_link() {
        let (folder, _) = workspace();
        let outside = tempfile::NamedTempFile::new().unwrap();
        let root = folder.path().join("output");
        fs::create_dir_all(root.join("a")).unwrap();
        fs::write(root.join("a/file"), "").unwrap();
        fs::write(root.join("a/tool"), "").unwrap();
        symlink(outside.path(), root.join("a/link")).unwrap();
        for (name, mode) in [("a/file", 0o600), ("a/tool", 0o700), ("a", 0o700)] {
            fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
        }
        open_to_others(&root, 0o444);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&root.join("a/file")), 0o644);
        assert_eq!(mode(&root.join("a/tool")), 0o755);
        assert_eq!(mode(&root.join("a")), 0o755);
        assert_eq!(mode(outside.path()), 0o600);
    }
}
