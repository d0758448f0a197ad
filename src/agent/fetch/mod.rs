//! Brings the source of a build into the workspace and proves that what the recipe names is in it.
//!
//! The only stage of a build pod that holds the source's credentials; they leave it for one origin only and
//! never reach the workspace. Running anything of the source does not happen here.

mod artifact;
mod credentials;
mod diagnosis;
mod git;
mod git_command;
mod git_url;
mod layer;
mod tree;

use std::{fs, io, path::Path, time::Duration};

use super::{
    plan::{FetchPlan, FetchSource},
    report::StageOutcome,
    workspace::{Presence, Stage, Workspace, open_to_others},
};
use crate::record::{Failure, Reason, Revision};

/// How long to wait before a server that did not answer is asked again: four questions in ten seconds. What
/// lasts longer is the controller's to retry, in a new pod.
const ASK_AGAIN: &[Duration] = &[
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(6),
];

/// Does what the plan says and tells the other stages how that ended.
///
/// The outcome is the caller's to leave for the kubelet too.
pub async fn run(plan: FetchPlan, workspace: Workspace) -> StageOutcome {
    run_patiently(&plan, &workspace, ASK_AGAIN).await
}

async fn run_patiently(plan: &FetchPlan, workspace: &Workspace, delays: &[Duration]) -> StageOutcome {
    let presence = match workspace.enter(Stage::Fetch) {
        Ok(presence) => presence,
        Err(error) => return StageOutcome::Failed(unwritable(&error)),
    };
    let outcome = match fetch(plan, workspace, delays).await {
        Ok(revision) => StageOutcome::Done {
            revision: Some(revision),
        },
        Err(failure) => StageOutcome::Failed(failure),
    };
    leave(presence, outcome)
}

fn leave(presence: Presence, outcome: StageOutcome) -> StageOutcome {
    match presence.leave(&outcome) {
        Ok(()) => outcome,
        Err(error) => StageOutcome::Failed(unwritable(&error)),
    }
}

async fn fetch(plan: &FetchPlan, workspace: &Workspace, delays: &[Duration]) -> Result<Revision, Failure> {
    let source = workspace.source();
    empty_folder(&source).map_err(|error| unwritable(&error))?;
    workspace
        .shared_folder(&workspace.output(), Stage::Fetch)
        .map_err(|error| unwritable(&error))?;

    let credentials_dir = plan.credentials_dir.as_deref().map(Path::new);
    let revision = match &plan.source {
        FetchSource::Git {
            url,
            reference,
            submodules,
        } => {
            let wanted = git::Wanted::parse(url, reference.as_deref(), *submodules)?;
            git::fetch(&wanted, credentials_dir, &source, delays).await?
        }
        FetchSource::Artifact { reference } => {
            artifact::fetch(
                reference,
                plan.credentials_dir.as_deref(),
                &plan.registries,
                &source,
            )
            .await?
        }
        FetchSource::Inline { files } => tree::write_inline(files, &source)?,
    };

    tree::check_context(&source, &plan.context_dir, plan.build_file.as_deref())?;
    // The build runs as another user and may write into its source.
    open_to_others(&source, 0o666);
    Ok(revision)
}

/// An empty folder, whatever an earlier run left.
fn empty_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(path)
}

fn unwritable(error: &io::Error) -> Failure {
    Failure::new(
        Reason::FetchFailed,
        format!("the workspace cannot be written: {error}; if it is full, raise spec.resources.scratch"),
    )
}
#[cfg(test)]
mod git_server;
#[cfg(test)]
mod git_tests;
#[cfg(test)]
mod ssh_tests;
