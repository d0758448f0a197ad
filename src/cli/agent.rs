//! `slipway agent …` and `slipway gate`: what the pods run. Hidden from help, because people never do.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

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
    // The first process of a container ignores signals that it has no handler for.
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async {
        let _ = terminate.recv().await;
    };
    match command {
        AgentCommand::Fetch => until(stop, fetch()).await,
        AgentCommand::Collect => collect(stop).await,
        AgentCommand::Push => until(stop, push()).await,
        AgentCommand::InstallGate { path } => until(stop, async { install_gate(&path) }).await,
    }
}

/// Runs what just ends when it is asked to.
async fn until(
    stop: impl Future<Output = ()>,
    work: impl Future<Output = anyhow::Result<bool>>,
) -> anyhow::Result<ExitCode> {
    tokio::select! {
        good = work => good.map(|good| if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        () = stop => Ok(asked_to_end()),
    }
}

fn asked_to_end() -> ExitCode {
    ExitCode::from(u8::try_from(report::ASKED_TO_END).unwrap_or(1))
}

async fn fetch() -> anyhow::Result<bool> {
    let outcome = fetch::run(plan()?, Workspace::new(MOUNT)).await;
    report::leave(&outcome)?;
    identity::tell("fetch", &outcome).await;
    Ok(matches!(outcome, StageOutcome::Done { .. }))
}

/// Stores what there is of the build's log before it ends, when it is asked to.
async fn collect(stop: impl Future<Output = ()>) -> anyhow::Result<ExitCode> {
    let ending = collect::run(plan()?, Workspace::new(MOUNT), stop).await;
    report::leave(&ending.report)?;
    // Who asked it to end, and why, only the kubelet and the API server know.
    if !ending.asked_to_end {
        identity::tell("collect", &ending.report).await;
    }
    Ok(match ending.report {
        _ if ending.asked_to_end => asked_to_end(),
        CollectReport::Recorded { .. } => ExitCode::SUCCESS,
        CollectReport::Failed(_) => ExitCode::FAILURE,
    })
}

async fn push() -> anyhow::Result<bool> {
    let outcome = push::run(plan()?).await;
    report::leave(&push::fitted(outcome.clone()))?;
    // Told whole: what the operator hears may be longer than what the kubelet keeps.
    identity::tell("push", &outcome).await;
    Ok(outcome.failure.is_none() && outcome.targets.iter().all(|target| target.failure.is_none()))
}

fn install_gate(path: &Path) -> anyhow::Result<bool> {
    install(path).with_context(|| format!("cannot copy the gate to {}", path.display()))?;
    Ok(true)
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

fn install(path: &Path) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::copy("/proc/self/exe", path).map(|_| ())
}
