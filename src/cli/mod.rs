//! The command line: thin; each command parses its flags and calls one room.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

mod agent;
mod controller;
pub mod crds;
pub mod docs;
mod kubectl;
mod registry;

/// Turns recipes into container images and gets them, provably intact, into registries.
///
/// Installed as `kubectl-slipway` it is a kubectl plugin: `kubectl slipway build web`.
#[derive(Debug, Parser)]
#[command(name = "slipway", version, propagate_version = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Kubectl(kubectl::KubectlCommand),
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
        Command::Crds { output } => crds::run(output.as_deref()).map(|()| ExitCode::SUCCESS),
        Command::Docs { output } => docs::run(&output, &Arguments::command()).map(|()| ExitCode::SUCCESS),
        // Without a runtime: the gate waits in front of a stranger's command for as long as that runs.
        Command::Gate { command } => Ok(agent::gate(command)),
        Command::Agent(command) => runtime(true)?.block_on(agent::run(command)),
        Command::Controller(arguments) => runtime(true)?
            .block_on(controller::run(*arguments))
            .map(|()| ExitCode::SUCCESS),
        Command::Kubectl(command) => {
            Ok(runtime(false)?
                .block_on(kubectl::run(command))
                .unwrap_or_else(|error| {
                    eprintln!("slipway: {error:#}");
                    ExitCode::from(3)
                }))
        }
        Command::Registry(command) => {
            // Where nobody asked for a log, the command's own words are all there is.
            let log = std::env::var_os("SLIPWAY_LOG").is_some();
            Ok(runtime(log)?
                .block_on(registry::run(command))
                .unwrap_or_else(|error| {
                    eprintln!("slipway: {error:#}");
                    ExitCode::from(2)
                }))
        }
    }
}

fn runtime(log: bool) -> std::io::Result<tokio::runtime::Runtime> {
    if log {
        let filter = tracing_subscriber::EnvFilter::try_from_env("SLIPWAY_LOG")
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
        tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
