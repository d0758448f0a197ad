//! The tools side by side: how each is called, and what a call costs.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tool {
    Slipway,
    Skopeo,
    Crane,
    Regctl,
}

/// One image to one place.
pub struct Job {
    from: (String, String),
    to: (String, String),
}

impl Job {
    pub fn copy(from: &str, source: &str, to: &str, target: &str) -> Self {
        Self {
            from: (from.to_owned(), source.to_owned()),
            to: (to.to_owned(), target.to_owned()),
        }
    }
}

/// What it took.
pub struct Measured {
    pub wall: f64,
    cpu: f64,
    /// Of all processes that ran at a time.
    peak: u64,
    pub sent: u64,
    pub read: u64,
    pub requests: usize,
    pub ok: bool,
}

impl Measured {
    pub const HEADER: &str = "| tool | wall s | to the best of the others | CPU s | peak MiB | sent MiB | read MiB | requests |\n|---|---|---|---|---|---|---|---|";

    pub fn line(&self, tool: Tool, best: f64) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let ratio = if self.ok {
            format!("{:.2}", self.wall / best)
        } else {
            "failed".to_owned()
        };
        format!(
            "| {tool:?} | {:.2} | {ratio} | {:.2} | {:.0} | {:.1} | {:.1} | {} |",
            self.wall,
            self.cpu,
            mib(self.peak),
            mib(self.sent),
            mib(self.read),
            self.requests
        )
    }
}

pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What is measured: the image's binary, else the one that was built with this.
pub fn slipway() -> PathBuf {
    std::env::var_os("SLIPWAY_BIN").map_or_else(|| env!("CARGO_BIN_EXE_slipway").into(), PathBuf::from)
}

/// A program on the path, or of `hack/cluster/build-tools`.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

impl Tool {
    pub fn all() -> Vec<Self> {
        let others = [
            (Self::Skopeo, "skopeo"),
            (Self::Crane, "crane"),
            (Self::Regctl, "regctl"),
        ];
        let there = others.into_iter().filter(|(_, name)| program(name).is_some());
        std::iter::once(Self::Slipway)
            .chain(there.map(|(tool, _)| tool))
            .collect()
    }

    /// Slipway takes several targets at once, the others are started once for each, at the same time.
    fn commands(self, jobs: &[Job], home: &std::path::Path) -> Vec<Command> {
        let name = |(host, image): &(String, String)| format!("{host}/{image}");
        if self == Self::Slipway {
            let mut command = Command::new(slipway());
            command.arg("push").arg(name(&jobs[0].from));
            command.args(["--plain-http", &jobs[0].from.0]);
            for job in jobs {
                command.arg(name(&job.to)).args(["--plain-http", &job.to.0]);
            }
            return vec![command];
        }
        jobs.iter()
            .map(|job| {
                let (from, to) = (name(&job.from), name(&job.to));
                let mut command;
                match self {
                    Self::Skopeo => {
                        command = Command::new("skopeo");
                        command.args([
                            "copy",
                            "--quiet",
                            "--src-tls-verify=false",
                            "--dest-tls-verify=false",
                        ]);
                        command
                            .arg(format!("docker://{from}"))
                            .arg(format!("docker://{to}"));
                    }
                    Self::Crane => {
                        command = Command::new("crane");
                        command.args(["copy", "--insecure", &from, &to]);
                    }
                    _ => {
                        // One file for all that run at a time.
                        let named = jobs.iter().flat_map(|job| [&job.from.0, &job.to.0]);
                        let hosts: serde_json::Map<_, _> = named
                            .map(|host| (host.clone(), json!({"tls": "disabled"})))
                            .collect();
                        let hosts = json!({"hosts": hosts});
                        let file = home.join("regctl.json");
                        std::fs::write(&file, hosts.to_string()).unwrap();
                        command = Command::new("regctl");
                        command
                            .env("REGCTL_CONFIG", file)
                            .args(["image", "copy", &from, &to]);
                    }
                }
                command
            })
            .collect()
    }

    pub async fn run(self, jobs: &[Job]) -> Measured {
        let home = tempfile::tempdir().unwrap();
        let mut commands = self.commands(jobs, home.path());
        for command in &mut commands {
            command
                .env("HOME", home.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            if std::env::var_os("BENCH_VERBOSE").is_none() {
                command.stderr(Stdio::null());
            }
        }
        let started = Instant::now();
        let mut running: Vec<Running> = commands
            .iter_mut()
            .map(|command| Running::new(command.spawn().unwrap()))
            .collect();
        let mut peak = 0;
        // Every one is looked at, also when the first one still runs.
        while running
            .iter_mut()
            .map(Running::look)
            .filter(|ended| !ended)
            .count()
            > 0
        {
            peak = peak.max(running.iter().map(|process| process.peak).sum());
            // Also gives the proxies their turn.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Measured {
            wall: started.elapsed().as_secs_f64(),
            cpu: running.iter().map(|process| process.cpu).sum(),
            peak,
            sent: 0,
            read: 0,
            requests: 0,
            ok: running
                .iter_mut()
                // Slipway's code for an image that is there already.
                .all(|process| matches!(process.child.wait().unwrap().code(), Some(0 | 4))),
        }
    }
}

struct Running {
    child: Child,
    peak: u64,
    cpu: f64,
    ended: bool,
}

impl Running {
    fn new(child: Child) -> Self {
        Self {
            child,
            peak: 0,
            cpu: 0.0,
            ended: false,
        }
    }

    /// Reads what the kernel counts while there is something to read; whether it ended.
    fn look(&mut self) -> bool {
        let folder = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = std::fs::read_to_string(folder.join("status")).unwrap_or_default();
        let highest = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(kib) = highest.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok()) {
            self.peak = self.peak.max(kib << 10);
        }
        // A process that ended keeps its times until it is waited for.
        let stat = std::fs::read_to_string(folder.join("stat")).unwrap_or_default();
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .collect();
        if let (Some(user), Some(system)) = (fields.get(11), fields.get(12)) {
            // The kernel's unit is a hundredth of a second everywhere that Linux runs today.
            self.cpu = (user.parse::<f64>().unwrap() + system.parse::<f64>().unwrap()) / 100.0;
        }
        self.ended = fields.first() == Some(&"Z") || fields.is_empty();
        self.ended
    }
}
