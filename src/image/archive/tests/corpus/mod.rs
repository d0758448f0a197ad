//! The corpus: odd and hostile archives with the one outcome that is right for each.
//!
//! A hostile case has a harmless twin, built the same way without the defect, which must be accepted: a reader
//! that refuses everything fails here. Each archive is read by a process of its own, so that its memory, its
//! time and what it leaves behind are measured. `make corpus` prints the table.

#![allow(clippy::too_many_lines, reason = "tables are long")]

mod documents;
mod entries;
mod streams;
mod traps;

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use super::*;

/// One archive and what is to become of it.
pub(crate) struct Case {
    pub name: &'static str,
    pub archive: Given,
    /// The reason of the refusal; `None` for an archive that is accepted.
    pub refused: Option<Reason>,
    /// The archive without its defect.
    pub twin: Option<Given>,
    /// Whether one image for linux/amd64 is asked for.
    pub single: bool,
}

/// How an archive is handed over.
pub(crate) enum Given {
    /// As a file.
    Bytes(Vec<u8>),
    /// As a file that is longer once its index is read.
    Growing(Vec<u8>),
    /// As whatever this makes in an empty folder.
    Path(fn(&Path) -> PathBuf),
}

impl From<Vec<u8>> for Given {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

/// A case that is accepted.
fn good(name: &'static str, archive: impl Into<Given>) -> Case {
    Case {
        name,
        archive: archive.into(),
        refused: None,
        twin: None,
        single: false,
    }
}

/// A case that is refused, and its twin that is not.
fn bad(name: &'static str, reason: Reason, archive: impl Into<Given>, twin: impl Into<Given>) -> Case {
    Case {
        refused: Some(reason),
        twin: Some(twin.into()),
        ..good(name, archive)
    }
}

/// Makes a group's cases.
type Make = fn() -> Vec<Case>;

/// Every case, a group at a time: some archives are large.
pub(crate) fn groups() -> [(&'static str, Make); 6] {
    [
        ("tar", entries::cases),
        ("path", entries::paths),
        ("documents", documents::cases),
        ("streams", streams::cases),
        ("producers", traps::producers),
        ("traps", traps::cases),
    ]
}

/// A file of the name that says to a copy of this test that it is to read an archive and no more.
const READ_ONLY_THIS: &str = "SLIPWAY_CORPUS_ARCHIVE";

/// What a copy of this test is told about the archive.
const HOW: &str = "SLIPWAY_CORPUS_HOW";

/// More than this, or longer, and a case has failed whatever its outcome.
const MEMORY_LIMIT_KIB: u64 = 256 << 10;
const SECONDS_LIMIT: f64 = 10.0;

/// What a process of its own made of an archive.
struct Outcome {
    reason: Option<String>,
    message: String,
    peak_kib: u64,
    /// Seconds of a core, so that a busy machine changes nothing.
    seconds: f64,
}

#[test]
fn every_case_has_its_outcome() {
    if let Some(path) = std::env::var_os(READ_ONLY_THIS) {
        return read_one(Path::new(&path), &std::env::var(HOW).unwrap_or_default());
    }
    let mut table = Table::default();
    for (group, cases) in groups() {
        for case in cases() {
            table.count(group, &case, run(&case.archive, case.single));
            if let Some(twin) = &case.twin {
                table.count_twin(group, case.name, run(twin, case.single));
            }
        }
    }
    print!("{table}");
    assert!(table.wrong.is_empty(), "{:#?}", table.wrong);
}

#[test]
fn every_trap_has_a_case_and_the_documentation_names_them() {
    let page = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/docs/reference/archive-traps.md"
    ));
    let mut named: Vec<&str> = page.split('`').filter(|word| is_trap(word)).collect();
    named.sort_unstable();
    let mut cases: Vec<&str> = traps::cases().iter().map(|case| case.name).collect();
    cases.retain(|name| is_trap(name));
    cases.sort_unstable();
    assert_eq!(named, cases);
    for number in 1..=24 {
        let prefix = format!("T{number}-");
        assert!(cases.iter().any(|name| name.starts_with(&prefix)), "{prefix}");
    }
}

/// `T`, a number and a name.
fn is_trap(name: &str) -> bool {
    let number = name.strip_prefix('T').and_then(|rest| rest.split('-').next());
    number.is_some_and(|number| number.parse::<u8>().is_ok()) && name.contains('-')
}

/// The copy's part: reads, and says what came of it.
fn read_one(path: &Path, how: &str) {
    let outcome = read(path, how);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    let (reason, message) = match outcome {
        Ok(()) => (None, String::new()),
        Err(error) => (Some(error.reason().as_str()), error.to_string()),
    };
    let seconds = processor_seconds();
    let report = json!({"reason": reason, "message": message, "peakKib": peak_kib, "seconds": seconds});
    println!("\ncorpus: {report}");
}

/// What this process used so far.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // Behind the name, which may have spaces: state is field 3, user and system time are 14 and 15.
    let fields = stat.rsplit_once(')').unwrap().1;
    let ticks: u32 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u32>().unwrap())
        .sum();
    f64::from(ticks) / 100.0
}

fn read(path: &Path, how: &str) -> Result<(), ArchiveError> {
    let archive = Archive::open(path, Limits::default())?;
    if how.contains("growing") {
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(b"more").unwrap();
    }
    if archive.images().is_empty() {
        return Err(ArchiveError::NoImage);
    }
    if how.contains("single") {
        archive.single(Some(&"linux/amd64".parse().unwrap()))?;
    }
    for layer in archive.images().iter().flat_map(|image| &image.layers) {
        let Some(content) = archive.content(layer)? else {
            return Err(archive.missing(layer));
        };
        super::super::layer::prove(layer, &content, archive.limits(), |_| Ok(()))?;
    }
    archive.check_unchanged()
}

/// Reads an archive in a process of its own, which may write nothing that stays.
fn run(given: &Given, single: bool) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let path = folder.path().join("archive");
    let path = match given {
        Given::Bytes(bytes) | Given::Growing(bytes) => {
            std::fs::write(&path, bytes).unwrap();
            path
        }
        Given::Path(make) => make(folder.path()),
    };
    let growing = matches!(given, Given::Growing(_));
    let how = format!(
        "{} {}",
        if growing { "growing" } else { "" },
        if single { "single" } else { "" }
    );
    let name = concat!(module_path!(), "::every_case_has_its_outcome");
    let name = name.split_once("::").unwrap().1;
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads", "1"])
        .env(READ_ONLY_THIS, &path)
        .env(HOW, how)
        .env("TMPDIR", scratch.path())
        .output()
        .unwrap();
    assert_eq!(
        std::fs::read_dir(scratch.path()).unwrap().count(),
        0,
        "something was left behind"
    );
    let stdout = String::from_utf8_lossy(&output.stdout);
    let Some(report) = stdout.lines().find_map(|line| line.strip_prefix("corpus: ")) else {
        panic!("no outcome: {stdout}{}", String::from_utf8_lossy(&output.stderr));
    };
    let report: Value = serde_json::from_str(report).unwrap();
    Outcome {
        reason: report["reason"].as_str().map(str::to_owned),
        message: report["message"].as_str().unwrap_or_default().to_owned(),
        peak_kib: report["peakKib"].as_u64().unwrap(),
        seconds: report["seconds"].as_f64().unwrap(),
    }
}

/// What came of all cases.
#[derive(Default)]
struct Table {
    lines: Vec<String>,
    hostile: usize,
    benign: usize,
    twins: usize,
    accepted: usize,
    by_reason: BTreeMap<String, usize>,
    peak_kib: u64,
    seconds: f64,
    wrong: Vec<String>,
}

impl Table {
    fn count(&mut self, group: &str, case: &Case, outcome: Outcome) {
        if case.refused.is_some() {
            self.hostile += 1;
        } else {
            self.benign += 1;
        }
        self.add(group, case.name, case.refused.map(Reason::as_str), outcome);
    }

    fn count_twin(&mut self, group: &str, name: &str, outcome: Outcome) {
        self.twins += 1;
        self.add(group, &format!("{name}, harmless twin"), None, outcome);
    }

    fn add(&mut self, group: &str, name: &str, expected: Option<&str>, outcome: Outcome) {
        let found = outcome.reason.as_deref();
        if found != expected {
            self.wrong.push(format!(
                "{group} {name}: {expected:?} was expected, not {found:?} {}",
                outcome.message
            ));
        }
        if outcome.peak_kib > MEMORY_LIMIT_KIB || outcome.seconds > SECONDS_LIMIT {
            self.wrong.push(format!(
                "{group} {name}: {} KiB, {} s",
                outcome.peak_kib, outcome.seconds
            ));
        }
        self.lines.push(format!(
            "{group:<10} {name:<44} {:<22} {:>6} KiB  {}",
            found.unwrap_or("accepted"),
            outcome.peak_kib,
            outcome.message.escape_debug()
        ));
        match outcome.reason {
            None => self.accepted += 1,
            Some(reason) => *self.by_reason.entry(reason).or_default() += 1,
        }
        self.peak_kib = self.peak_kib.max(outcome.peak_kib);
        self.seconds = self.seconds.max(outcome.seconds);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f)?;
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        let refused: usize = self.by_reason.values().sum();
        writeln!(
            f,
            "\narchives {}: hostile {}, benign {}, harmless twins {}; accepted {}, refused {refused}, wrong {}",
            self.lines.len(),
            self.hostile,
            self.benign,
            self.twins,
            self.accepted,
            self.wrong.len()
        )?;
        for (reason, count) in &self.by_reason {
            writeln!(f, "  {reason:<24} {count}")?;
        }
        writeln!(
            f,
            "peak memory of a reading process {} KiB, most processor time {} s",
            self.peak_kib, self.seconds
        )
    }
}
