//! `slipway agent …` and `slipway gate`: what the pods run. Hidden from help, because people never do.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Subcommand;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::{
    collect, fetch, gate, identity,
    plan::PLAN_VARIABLE,
    push,
    report::{self, CollectReport, StageOutcome},
    workspace::{MOUNT, Workspace},
};

/// The agents.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Bring the source.
    Fetch,
    /// Collect the image.
    Collect,
    /// Push an image.
    Push,
    /// Copy this binary to where the gate is looked for.
    InstallGate {
        /// The file to write.
        path: PathBuf,
    },
}

/// Runs one agent; the exit code only tells a person what the report tells the controller.
///
/// # Errors
/// When there is no plan, or the report cannot be left.
pub async fn run(command: AgentCommand) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = work(command) => ended,
        // The first process of a container ignores signals that it has no handler for.
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    }
}

async fn work(command: AgentCommand) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::new(MOUNT);
    let good = match command {
        AgentCommand::Fetch => {
            let outcome = fetch::run(plan()?, workspace).await;
            report::leave(&outcome)?;
            identity::tell("fetch", &outcome).await;
            matches!(outcome, StageOutcome::Done { .. })
        }
        AgentCommand::Collect => {
            let outcome = collect::run(plan()?, workspace).await;
            report::leave(&outcome)?;
            identity::tell("collect", &outcome).await;
            matches!(outcome, CollectReport::Recorded { .. })
        }
        AgentCommand::Push => {
            let outcome = push::run(plan()?).await;
            report::leave(&outcome)?;
            identity::tell("push", &outcome).await;
            outcome.failure.is_none() && outcome.targets.iter().all(|target| target.failure.is_none())
        }
        AgentCommand::InstallGate { path } => {
            install(&path).with_context(|| format!("cannot copy the gate to {}", path.display()))?;
            true
        }
    };
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Stands in front of a strategy's command.
pub fn gate(command: Vec<OsString>) -> ExitCode {
    ExitCode::from(gate::run(&gate::GateArgs::from_environment(
        Workspace::new(MOUNT),
        command,
    )))
}

fn plan<P: DeserializeOwned>() -> anyhow::Result<P> {
    let text = std::env::var(PLAN_VARIABLE)
        .with_context(|| format!("{PLAN_VARIABLE} is not set; the controller sets it"))?;
    serde_json::from_str(&text).with_context(|| format!("{PLAN_VARIABLE} is no plan of this version"))
}

fn install(path: &std::path::Path) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::copy("/proc/self/exe", path).map(|_| ())
}
