//! The command line: thin; each command parses its flags and calls one room.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

mod crds;

/// Turns recipes into container images and gets them, provably intact, into registries.
#[derive(Debug, Parser)]
#[command(name = "slipway", version, propagate_version = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the custom resource definitions.
    Crds {
        /// Write one file each into this folder instead.
        #[arg(long)]
        output: Option<PathBuf>,
    },
}

/// Runs one command.
///
/// # Errors
/// Whatever ends the command early; the message is for people.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Crds { output } => crds::run(output.as_deref()).map(|()| ExitCode::SUCCESS),
    }
}
