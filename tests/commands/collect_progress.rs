//! `slipway collect` while it runs: what it shows on a pipe and on a terminal, and what a signal leaves behind.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rstest::rstest;
use rustix::process::Signal;

use crate::support::{Image, code, command, docker_archive, layer, names, noise, run, signal, slipway, text};

fn archive(large: usize) -> Vec<u8> {
    let layers = [layer("etc/base", b"base"), layer("usr/large", &noise(1, large))];
    docker_archive(&[Image::amd64(&layers)], |_, _| true)
}

#[test]
fn a_pipe_gets_a_line_for_each_layer_and_no_bar() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("image.tar"), archive(300_000)).unwrap();
    let output = slipway(&["collect", "image.tar", "--output", "out"], folder.path());
    assert_eq!(code(&output), 0);
    let lines: Vec<&str> = text(&output.stderr).lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines
            .iter()
            .all(|line| line.starts_with("layer ") && line.contains(" New ")),
        "{lines:?}"
    );
    assert!(!output.stderr.contains(&0x1b) && !output.stdout.contains(&0x1b));
    let summary = text(&output.stdout);
    assert!(
        summary.starts_with("linux/amd64  2 layers  manifest sha256:"),
        "{summary}"
    );
    // Whoever reads JSON reads no lines.
    let output = slipway(
        &["collect", "image.tar", "--output", "out", "--json"],
        folder.path(),
    );
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_terminal_gets_a_bar_for_each_layer() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("image.tar"), archive(300_000)).unwrap();
    let line = format!("{} collect image.tar --output out", env!("CARGO_BIN_EXE_slipway"));
    let shown = run(Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .current_dir(folder.path()));
    assert!(shown.contains("\x1b["), "{shown:?}");
    assert!(shown.matches(['█', '░']).count() > 20, "{shown:?}");
    assert!(!shown.contains("layer "), "lines are for pipes: {shown:?}");
    assert!(shown.contains("manifest sha256:"), "{shown:?}");
}

#[rstest]
#[case::interrupt(Signal::INT, 130)]
#[case::terminate(Signal::TERM, 143)]
fn a_signal_ends_it_and_nothing_is_left(
    #[case] which: Signal,
    #[case] expected: i32,
    #[values(true, false)] exists: bool,
) {
    let folder = tempfile::tempdir().unwrap();
    let (archive_file, out, temporary) = (
        folder.path().join("image.tar"),
        folder.path().join("out"),
        folder.path().join("tmp"),
    );
    fs::write(&archive_file, archive(64_000_000)).unwrap();
    fs::create_dir(&temporary).unwrap();
    if exists {
        fs::create_dir(&out).unwrap();
        fs::write(out.join("buildlog.txt"), "not ours").unwrap();
    }
    // The smallest compression there is takes its time.
    let arguments = [
        "collect",
        "image.tar",
        "--output",
        "out",
        "--compression",
        "gzip-small",
        "--threads",
        "1",
    ];
    let mut process = command(&arguments, folder.path())
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_a_file_in_work(&out);
    signal(&process, which);
    let status = process.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(expected), None));
    assert_eq!(out.exists(), exists);
    if exists {
        assert_eq!(names(&out), ["buildlog.txt"]);
    }
    assert_eq!(names(&temporary), Vec::<String>::new());
}

/// Until a layer is being written.
fn wait_for_a_file_in_work(out: &Path) {
    let begun = Instant::now();
    let is_written = || {
        let folders = fs::read_dir(out).into_iter().flatten().flatten();
        folders
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(".slipway-"))
            .any(|entry| fs::read_dir(entry.path()).is_ok_and(|mut files| files.next().is_some()))
    };
    while !is_written() {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing is written");
        std::thread::sleep(Duration::from_millis(2));
    }
}
