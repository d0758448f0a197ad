//! The command line: thin; each command parses its flags and calls one room.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::{Layer as _, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

/// `eprintln!` for commands. That nobody reads any more is no reason to stop in the middle of a push.
macro_rules! complain {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

mod accept;
mod agent;
mod collect;
mod controller;
pub mod crds;
pub mod docs;
mod inspect;
mod kubectl;
mod limits;
mod outcome;
mod registry;

/// Turns recipes into container images and gets them, provably intact, into registries.
///
/// Installed as `kubectl-slipway` it is a kubectl plugin: `kubectl slipway build web`. There `push` is `schedule-push`.
#[derive(Debug, Parser)]
#[command(name = "slipway", version, propagate_version = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

impl Arguments {
    /// What was typed, the program's name first; ends the process on a usage error, with code 2.
    ///
    /// Who works through kubectl means the cluster's pushes, so under the plugin's name `push` schedules one.
    pub fn from_words(words: impl Iterator<Item = OsString>) -> Self {
        let mut words: Vec<OsString> = words.collect();
        if let [program, command, ..] = words.as_mut_slice()
            && Path::new(program)
                .file_name()
                .is_some_and(|name| name == "kubectl-slipway")
            && command == "push"
        {
            *command = "schedule-push".into();
        }
        Self::parse_from(words)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Kubectl(kubectl::KubectlCommand),
    /// Take in an upload in Launchpad's layout: every layer known, or there and what its digest says.
    ///
    /// Exit codes: 0 accepted, 1 refused, 2 usage, 3 the machine's own trouble.
    Accept(accept::AcceptArguments),
    /// Show what an image archive holds: images, platforms, layers, tags, attestations, warnings.
    ///
    /// Layers are not read. Exit codes: 0 readable, 1 refused, 2 usage, 3 the machine's own trouble.
    Inspect(inspect::InspectArguments),
    /// Bring the layers of an image archive, proven and compressed once, into a folder or a staging registry.
    ///
    /// Exit codes: 0 done, 1 refused, 2 usage, 3 the machine, the network or the registry.
    Collect(Box<collect::CollectArguments>),
    #[command(flatten)]
    Registry(registry::RegistryCommand),
    /// Run the operator.
    Controller(Box<controller::ControllerArguments>),
    /// Print the custom resource definitions.
    Crds {
        /// Write one file each into this folder instead.
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Write the generated part of the reference documentation into a folder.
    #[command(hide = true)]
    Docs {
        /// The folder.
        output: PathBuf,
    },
    /// What the pods run.
    #[command(hide = true, subcommand)]
    Agent(agent::AgentCommand),
    /// What stands in front of a strategy's command.
    #[command(hide = true)]
    Gate {
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Runs one command.
///
/// # Errors
/// Whatever ends the command early; the message is for people.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Accept(arguments) => accept::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Crds { output } => crds::run(output.as_deref()).map(|()| ExitCode::SUCCESS),
        Command::Docs { output } => docs::run(&output, &Arguments::command()).map(|()| ExitCode::SUCCESS),
        // Without a runtime: the gate waits in front of a stranger's command for as long as that runs.
        Command::Gate { command } => Ok(agent::gate(command)),
        Command::Collect(arguments) => {
            let runtime = runtime(false)?;
            let result = runtime.block_on(interruptible(collect::run(*arguments)));
            // A read of standard input that nobody ends would be waited for.
            runtime.shutdown_background();
            result
        }
        Command::Agent(command) => runtime(true)?.block_on(agent::run(command)),
        Command::Controller(arguments) => runtime(true)?
            .block_on(controller::run(*arguments))
            .map(|()| ExitCode::SUCCESS),
        Command::Kubectl(command) => {
            Ok(runtime(false)?
                .block_on(kubectl::run(command))
                .unwrap_or_else(|error| {
                    complain!("slipway: {error:#}");
                    ExitCode::from(3)
                }))
        }
        Command::Registry(command) => {
            // Where nobody asked for a log, the command's own words are all there is.
            let log = std::env::var_os("SLIPWAY_LOG").is_some();
            Ok(runtime(log)?
                .block_on(registry::run(command))
                .unwrap_or_else(|error| {
                    complain!("slipway: {error:#}");
                    ExitCode::from(2)
                }))
        }
    }
}

/// Ends the work where it stands on a signal, so that what it holds is cleared away.
async fn interruptible(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        ended = work => ended,
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    }
}

fn runtime(log: bool) -> std::io::Result<tokio::runtime::Runtime> {
    if log {
        let filter = std::env::var("SLIPWAY_LOG")
            .ok()
            .and_then(|text| text.parse().ok());
        let lines = tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(std::io::stderr);
        tracing_subscriber::registry()
            .with(lines.with_filter(filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO))))
            .init();
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
