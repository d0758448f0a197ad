//! The gate in this process where that does, and in one of its own where signals are concerned: the test
//! program runs itself again with the one "test" [`as_a_process`].

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::ChildStdout,
};

use super::*;
use crate::agent::workspace::Vanished;

struct Pod {
    folder: tempfile::TempDir,
    workspace: Workspace,
}

impl Pod {
    /// A workspace in which the source is.
    fn fetched() -> Self {
        let pod = Self::new();
        pod.after_fetch(&StageOutcome::Done {
            revision: Some(Revision {
                revision: "c0ffee".into(),
                time: Some(1_700_000_000),
            }),
        });
        pod
    }

    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace::new(folder.path());
        fs::create_dir(workspace.source()).unwrap();
        fs::create_dir(workspace.output()).unwrap();
        Self { folder, workspace }
    }

    fn after_fetch(&self, outcome: &StageOutcome) {
        self.workspace
            .enter(Stage::Fetch)
            .unwrap()
            .leave(outcome)
            .unwrap();
    }

    fn args(&self, script: &str) -> GateArgs {
        GateArgs {
            workspace: self.workspace.clone(),
            command: ["/bin/sh", "-c", script].map(OsString::from).to_vec(),
            context: PathBuf::new(),
            secrets: Vec::new(),
            commit_time: false,
        }
    }

    fn outcome(&self) -> StageOutcome {
        self.workspace.wait_for_blocking(Stage::Build).unwrap()
    }

    fn failure(&self) -> Failure {
        match self.outcome() {
            StageOutcome::Failed(failure) => failure,
            done @ StageOutcome::Done { .. } => panic!("{done:?}"),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.workspace.log()).unwrap()
    }

    /// A named pipe from which a command may read until this test ends.
    fn patience(&self) -> (PathBuf, File) {
        let path = self.folder.path().join("patience");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        let held = File::options().read(true).write(true).open(&path).unwrap();
        (path, held)
    }

    /// The gate as a process whose command has printed `started`.
    fn start(&self, script: &str) -> (Child, BufReader<ChildStdout>) {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["agent::gate::tests::as_a_process", "--exact", "--nocapture"])
            .env("TEST_WORKSPACE", self.folder.path())
            .env("TEST_SCRIPT", script)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line.trim() != "started" {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "the gate ended");
        }
        (child, output)
    }
}

/// Nothing to prove on its own: it is the process that other tests start.
#[test]
fn as_a_process() {
    let Some(root) = env::var_os("TEST_WORKSPACE") else {
        return;
    };
    let workspace = Workspace::new(root);
    let command = ["/bin/sh", "-c", &env::var("TEST_SCRIPT").unwrap()].map(OsString::from);
    let code = run(&GateArgs::from_environment(workspace, command.to_vec()));
    std::process::exit(code.into());
}

#[test]
fn a_command_that_ends_well_is_done_and_its_output_can_be_read() {
    let pod = Pod::fetched();
    let script =
        "umask 077; mkdir ../output/oci; echo image > ../output/oci/index.json; echo built; echo note >&2";
    assert_eq!(run(&pod.args(script)), 0);
    assert_eq!(pod.outcome(), StageOutcome::Done { revision: None });
    assert_eq!(pod.log(), "built\nnote\n");
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = pod.workspace.output().join(name);
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("oci"), mode("oci/index.json")), (0o755, 0o644));
}

#[test]
fn a_command_that_ends_badly_hands_on_its_code_and_the_end_of_its_log() {
    let pod = Pod::fetched();
    assert_eq!(
        run(&pod.args("printf '\\033[31mno such package\\033[0m\\n'; exit 100")),
        100
    );
    let failure = pod.failure();
    assert_eq!(failure.reason, Reason::BuildFailed);
    assert!(failure.message.contains("code 100"), "{}", failure.message);
    assert_eq!(failure.log_snippet.as_deref(), Some("no such package\n"));
}

#[test]
fn a_command_that_is_killed_counts_from_128() {
    let pod = Pod::fetched();
    assert_eq!(run(&pod.args("kill -9 $$")), 137);
    assert!(pod.failure().message.contains("signal 9"));
}

#[test]
fn a_command_that_does_not_exist_is_127() {
    let pod = Pod::fetched();
    let mut args = pod.args("");
    args.command = vec!["/no/such/builder".into()];
    assert_eq!(run(&args), 127);
    assert!(pod.failure().message.contains("/no/such/builder"));
}

#[test]
fn without_a_source_the_command_does_not_run() {
    let pod = Pod::new();
    let failed = StageOutcome::Failed(Failure::new(Reason::GitRefNotFound, "no such branch"));
    pod.after_fetch(&failed);
    assert_eq!(run(&pod.args("touch ../output/ran")), 1);
    assert_eq!(pod.outcome(), failed);
    assert!(!pod.workspace.output().join("ran").exists());
}

#[test]
fn a_fetch_that_was_killed_fails_the_build() {
    let pod = Pod::new();
    drop(pod.workspace.enter(Stage::Fetch).unwrap());
    assert_eq!(run(&pod.args("touch ../output/ran")), 1);
    assert_eq!(pod.failure().reason, Reason::FetchFailed);
    assert!(!pod.workspace.output().join("ran").exists());
}

#[test]
fn secrets_are_in_no_log() {
    let pod = Pod::fetched();
    let mut args = pod.args("printf hun; printf 'ter2 https://me:token@host/x\\n'; exit 1");
    args.secrets = vec![b"hunter2".to_vec()];
    run(&args);
    assert_eq!(pod.log(), "*** https://***@host/x\n");
    assert_eq!(
        pod.failure().log_snippet.as_deref(),
        Some("*** https://***@host/x\n")
    );
}

#[test]
fn the_command_runs_in_the_context_with_the_commits_time() {
    let pod = Pod::fetched();
    fs::create_dir_all(pod.workspace.source().join("a/b")).unwrap();
    let mut args = pod.args("pwd; echo $SOURCE_DATE_EPOCH");
    args.context = Path::new("a/b").into();
    args.commit_time = true;
    run(&args);
    assert!(pod.log().ends_with("/source/a/b\n1700000000\n"), "{}", pod.log());
}

#[test]
fn a_process_that_the_command_left_behind_does_not_hold_the_gate() {
    let pod = Pod::fetched();
    let (patience, _held) = pod.patience();
    assert_eq!(
        run(&pod.args(&format!("read line < {} & echo done", patience.display()))),
        0
    );
    assert_eq!(pod.log(), "done\n");
}

#[test]
fn a_signal_reaches_the_command() {
    let pod = Pod::fetched();
    let script = "sleep 60 & trap 'kill $!; echo asked; exit 7' TERM; echo started; wait";
    let (mut gate, _output) = pod.start(script);
    rustix::process::kill_process(Pid::from_child(&gate), Signal::TERM).unwrap();
    assert_eq!(gate.wait().unwrap().code(), Some(7));
    assert_eq!(pod.log(), "started\nasked\n");
    let failure = pod.failure();
    assert!(failure.message.contains("code 7"));
    // Not the build's fault: the pod's status has the cause.
    assert_eq!(failure.reason, Reason::BuildPodFailed);
    assert_eq!(failure.log_snippet.as_deref(), Some("started\nasked\n"));
}

#[test]
fn a_gate_that_is_killed_has_vanished_though_its_command_lives_on() {
    let pod = Pod::fetched();
    let (patience, _held) = pod.patience();
    let (mut gate, _output) = pod.start(&format!("echo started; read line < {}", patience.display()));
    gate.kill().unwrap();
    let waited = pod.workspace.wait_for_blocking(Stage::Build);
    assert_eq!(waited, Err(Vanished { stage: Stage::Build }));
    gate.wait().unwrap();
}
