//! Stands in front of the strategy's command in the build container: waits for the source, runs the
//! command, keeps its log and says how it ended.
//!
//! The image around it is a stranger's, so it needs nothing of it: no shell, no users, no name service. It
//! is threads and system calls rather than a runtime, because it is there for the whole build and has two
//! things to wait for. Whether the build left an archive is not asked here.

pub(super) mod log;
pub(super) mod redact;

use std::{
    env,
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStringExt as _, process::ExitStatusExt as _},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::{Handle, Signals},
};

use self::{
    log::{BoundedLog, readable, tee},
    redact::Redactor,
};
use super::{
    plan::PLAN_VARIABLE,
    report::StageOutcome,
    workspace::{Presence, Stage, Workspace, create_readable, open_to_others},
};
use crate::record::{Failure, Reason, Revision};

/// Names of environment variables, separated by commas, whose values no log may show.
pub const REDACT_VARIABLE: &str = "SLIPWAY_REDACT";

/// The folder in which the command runs, relative to the source.
pub const CONTEXT_VARIABLE: &str = "SLIPWAY_CONTEXT";

/// `commit` where `SOURCE_DATE_EPOCH` is the time of the commit that is built.
pub const SOURCE_DATE_EPOCH_VARIABLE: &str = "SLIPWAY_SOURCE_DATE_EPOCH";

/// How much of the log's end a failure shows.
const SNIPPET: usize = 4096;

/// How long the processes that the command left behind may take to die once they were killed.
const LEFT_BEHIND: Duration = Duration::from_secs(2);

/// What the gate needs to know.
#[derive(Clone, Debug)]
pub struct GateArgs {
    /// Where the stages meet.
    pub workspace: Workspace,
    /// The strategy's command and its arguments.
    pub command: Vec<OsString>,
    /// Where it runs, relative to the source.
    pub context: PathBuf,
    /// What no log may show.
    pub secrets: Vec<Vec<u8>>,
    /// Whether the command's `SOURCE_DATE_EPOCH` is the commit's time.
    pub commit_time: bool,
}

impl GateArgs {
    /// The arguments as the container's environment has them.
    pub fn from_environment(workspace: Workspace, command: Vec<OsString>) -> Self {
        Self {
            workspace,
            command,
            context: env::var_os(CONTEXT_VARIABLE).map_or_else(PathBuf::new, PathBuf::from),
            secrets: env::var(REDACT_VARIABLE)
                .unwrap_or_default()
                .split(',')
                .filter_map(|name| env::var_os(name.trim()))
                .map(OsString::into_vec)
                .collect(),
            commit_time: env::var_os(SOURCE_DATE_EPOCH_VARIABLE).is_some_and(|value| value == "commit"),
        }
    }
}

/// Runs the strategy's command once the source is there; returns the code that the container exits with.
///
/// That is the command's own code, 128 and the signal's number when a signal ended it, 127 and 126 when it
/// could not be found or started, and 1 when there was nothing to build. It does not return when a signal
/// asks to end before the command runs.
pub fn run(args: &GateArgs) -> u8 {
    let presence = match args.workspace.enter(Stage::Build) {
        Ok(presence) => presence,
        Err(error) => {
            eprintln!("slipway: the workspace cannot be written: {error}");
            return 1;
        }
    };
    let signals = SignalForwarding::start();
    let (outcome, code) = match args.workspace.wait_for_blocking(Stage::Fetch) {
        Ok(StageOutcome::Done { revision }) => build(args, revision.as_ref(), &signals),
        Ok(StageOutcome::Failed(failure)) => (StageOutcome::Failed(failure), 1),
        Err(vanished) => (StageOutcome::Failed(vanished.into()), 1),
    };
    end(args, presence, &outcome);
    code
}

/// Lets the collector, who is another user, read the output; then says how the build ended.
fn end(args: &GateArgs, presence: Presence, outcome: &StageOutcome) {
    open_to_others(&args.workspace.output(), 0o444);
    if let StageOutcome::Failed(failure) = outcome {
        eprintln!("slipway: {}", failure.message);
    }
    if let Err(error) = presence.leave(outcome) {
        eprintln!("slipway: the outcome cannot be written: {error}");
    }
}

fn build(args: &GateArgs, revision: Option<&Revision>, signals: &SignalForwarding) -> (StageOutcome, u8) {
    let command = args.command.first().cloned().unwrap_or_default();
    match run_command(args, revision, signals) {
        Ok((status, tail)) => verdict(status, &tail, signals.were_sent()),
        Err(error) => {
            let code = if error.kind() == io::ErrorKind::NotFound {
                127
            } else {
                126
            };
            let message = format!(
                "the strategy's command {} cannot be started in {}: {error}; correct the strategy's command or image",
                command.display(),
                args.workspace.source().join(&args.context).display(),
            );
            (
                StageOutcome::Failed(Failure::new(Reason::BuildFailed, message)),
                code,
            )
        }
    }
}

/// A command that fails after its pod was asked to end is no failure of the build's own.
fn verdict(status: ExitStatus, tail: &[u8], asked_to_end: bool) -> (StageOutcome, u8) {
    if status.success() {
        return (StageOutcome::Done { revision: None }, 0);
    }
    let (how, code) = if let Some(code) = status.code() {
        (format!("ended with code {code}"), code)
    } else {
        let signal = status.signal().unwrap_or_default();
        (format!("was ended by signal {signal}"), 128 + signal)
    };
    let (reason, message) = if asked_to_end {
        (
            Reason::BuildPodFailed,
            format!("the pod was asked to end, and the strategy's command {how}"),
        )
    } else {
        (
            Reason::BuildFailed,
            format!("the strategy's command {how}; the end of its log says why"),
        )
    };
    let snippet = readable(&tail[tail.len().saturating_sub(SNIPPET)..]);
    let failure = Failure::new(reason, message).with_log(&snippet);
    (StageOutcome::Failed(failure), u8::try_from(code).unwrap_or(1))
}

/// Runs the command to its end; gives back the end of its log too.
fn run_command(
    args: &GateArgs,
    revision: Option<&Revision>,
    signals: &SignalForwarding,
) -> io::Result<(ExitStatus, Vec<u8>)> {
    let (program, arguments) = args.command.split_first().ok_or(io::ErrorKind::NotFound)?;
    let log = BoundedLog::new(create_readable(&args.workspace.log())?);
    let redactor = Redactor::new(args.secrets.iter().map(Vec::as_slice));
    let shown = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    // One pipe for both streams: only so their lines stay in the order in which they were written.
    let (output, input) = io::pipe()?;
    let (ended, running) = io::pipe()?;

    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(args.workspace.source().join(&args.context))
        .env_remove(PLAN_VARIABLE)
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input);
    if let (true, Some(time)) = (args.commit_time, revision.and_then(|r| r.time)) {
        command.env("SOURCE_DATE_EPOCH", time.to_string());
    }
    let child = command.spawn()?;
    // The command holds the writing ends; the log would never end.
    drop(command);
    signals.forward_to(&child);
    let copying = thread::spawn(move || tee(output, &ended, shown, log, redactor));

    let status = wait(child)?;
    signals.stop_forwarding();
    drop(running);
    let tail = copying.join().unwrap_or_default();
    Ok((status, tail))
}

/// Waits for the command. In a container the gate is process 1 and inherits every process that the command
/// forgot, so it waits for those as well, and in the end kills them: nothing may write to the output any
/// more once the outcome is known.
fn wait(mut child: Child) -> io::Result<ExitStatus> {
    if !rustix::process::getpid().is_init() {
        return child.wait();
    }
    let awaited = Pid::from_child(&child);
    let status = loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == awaited => break ExitStatus::from_raw(status.as_raw()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    // Group 1 is "everything but process 1 that may be signalled" to the kernel.
    let _ = rustix::process::kill_process_group(Pid::INIT, Signal::KILL);
    let killed = Instant::now();
    // Who may not be killed from here dies with process 1.
    while killed.elapsed() < LEFT_BEHIND {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Err(rustix::io::Errno::CHILD) => break,
            Ok(None) => thread::sleep(Duration::from_millis(1)),
            Ok(Some(_)) | Err(_) => {}
        }
    }
    Ok(status)
}

/// Hands the signals that ask the container to end to the command.
struct SignalForwarding {
    receiver: Arc<Mutex<Receiver>>,
    sent: Arc<AtomicBool>,
    handle: Option<Handle>,
}

/// Whom a signal concerns.
enum Receiver {
    /// There is no command yet, or it cannot be reached: the gate itself ends.
    Gate,
    /// The command, by a descriptor that names no other process once it is gone.
    Command(OwnedFd),
    /// The command ended and what is left to do takes a moment.
    Nobody,
}

impl SignalForwarding {
    /// Process 1 has no default actions: without a handler a signal would be lost.
    fn start() -> Self {
        let receiver = Arc::new(Mutex::new(Receiver::Gate));
        let sent = Arc::new(AtomicBool::new(false));
        let handle = match Signals::new([SIGTERM, SIGINT, SIGHUP]) {
            Ok(mut signals) => {
                let (handle, receiver, sent) = (signals.handle(), receiver.clone(), sent.clone());
                thread::spawn(move || {
                    for signal in signals.forever() {
                        // Before it is delivered: the command may end of it at once.
                        sent.store(true, Ordering::SeqCst);
                        deliver(&receiver, signal);
                    }
                });
                Some(handle)
            }
            Err(error) => {
                eprintln!("slipway: signals are not forwarded: {error}");
                None
            }
        };
        Self {
            receiver,
            sent,
            handle,
        }
    }

    fn forward_to(&self, child: &Child) {
        if let Ok(descriptor) = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty()) {
            *locked(&self.receiver) = Receiver::Command(descriptor);
        }
    }

    /// Whether somebody asked the container to end.
    fn were_sent(&self) -> bool {
        self.sent.load(Ordering::SeqCst)
    }

    fn stop_forwarding(&self) {
        *locked(&self.receiver) = Receiver::Nobody;
    }
}

impl Drop for SignalForwarding {
    fn drop(&mut self) {
        if let Some(handle) = &self.handle {
            handle.close();
        }
    }
}

fn deliver(receiver: &Mutex<Receiver>, number: i32) {
    match &*locked(receiver) {
        Receiver::Gate => std::process::exit(128 + number),
        Receiver::Command(descriptor) => {
            if let Some(signal) = Signal::from_named_raw(number) {
                let _ = rustix::process::pidfd_send_signal(descriptor, signal);
            }
        }
        Receiver::Nobody => {}
    }
}

fn locked(receiver: &Mutex<Receiver>) -> MutexGuard<'_, Receiver> {
    receiver.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
