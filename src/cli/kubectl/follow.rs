//! Waiting for an end: a line a platform on a terminal, a line a change in a pipe.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::bail;
use futures_util::StreamExt as _;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kube::runtime::{WatchStreamExt as _, watcher};

use super::Session;
use crate::api::v1alpha1::{OCIRecipeBuild, PlatformState, RegistryPush, condition};

/// Follows a build to its end.
pub async fn build(session: &Session, name: &str) -> anyhow::Result<ExitCode> {
    let mut lines = Lines::new(session.is_interactive());
    let mut stream =
        std::pin::pin!(watcher::watch_object(session.api::<OCIRecipeBuild>(), name).default_backoff());
    while let Some(object) = stream.next().await {
        // The watch goes on by itself after a moment's trouble.
        let Ok(object) = object else { continue };
        let Some(build) = object else {
            bail!("build {name:?} was deleted")
        };
        let Some(status) = &build.status else { continue };
        for platform in &status.platforms {
            let text = match (platform.state, &platform.failure) {
                (PlatformState::Built, _) => format!("Built, {} layers", platform.layers.len()),
                (state, Some(failure)) => {
                    format!("{state:?}, attempt {}: {}", platform.attempt, failure.message)
                }
                (state, None) => format!("{state:?}, attempt {}", platform.attempt),
            };
            lines.show(
                &platform.platform.to_string(),
                &text,
                platform.state != PlatformState::Building,
            );
        }
        let upload = status.registry_upload_status;
        let condition = status.conditions.iter().find(|c| c.type_ == condition::SUCCEEDED);
        let message = condition.map_or("", |c| c.message.as_str());
        if condition::is_true(&status.conditions, condition::FINISHED) {
            lines.show(name, &format!("{}: {message}", status.phase.as_str()), true);
            session.print("", &build)?;
            let good = condition::is_true(&status.conditions, condition::SUCCEEDED);
            return Ok(if good {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        lines.show(
            name,
            &format!("{}, upload {upload:?}: {message}", status.phase.as_str()),
            false,
        );
    }
    bail!("the watch of build {name:?} ended")
}

/// Follows a push to its end.
pub async fn push(session: &Session, name: &str) -> anyhow::Result<ExitCode> {
    let mut lines = Lines::new(session.is_interactive());
    let mut stream =
        std::pin::pin!(watcher::watch_object(session.api::<RegistryPush>(), name).default_backoff());
    while let Some(object) = stream.next().await {
        // The watch goes on by itself after a moment's trouble.
        let Ok(object) = object else { continue };
        let Some(push) = object else {
            bail!("push {name:?} was deleted")
        };
        let Some(status) = &push.status else { continue };
        for target in &status.targets {
            let blobs = target.blobs;
            let text = format!(
                "{:?}: {} uploaded ({} bytes), {} mounted, {} existed",
                target.state, blobs.uploaded, blobs.bytes_uploaded, blobs.mounted, blobs.existed
            );
            lines.show(&target.repository, &text, false);
        }
        if condition::is_true(&status.conditions, condition::FINISHED) {
            let succeeded = status.conditions.iter().find(|c| c.type_ == condition::SUCCEEDED);
            lines.show(name, succeeded.map_or("", |c| c.message.as_str()), true);
            session.print("", &push)?;
            let good = condition::is_true(&status.conditions, condition::SUCCEEDED);
            return Ok(if good {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
    }
    bail!("the watch of push {name:?} ended")
}

/// The latest text of each subject; on standard error, so that standard output stays the document's.
struct Lines {
    bars: Option<MultiProgress>,
    shown: BTreeMap<String, (String, Option<ProgressBar>)>,
}

impl Lines {
    fn new(interactive: bool) -> Self {
        Self {
            bars: interactive.then(MultiProgress::new),
            shown: BTreeMap::new(),
        }
    }

    fn show(&mut self, subject: &str, text: &str, done: bool) {
        let bars = self.bars.as_ref();
        let (before, bar) = self.shown.entry(subject.to_owned()).or_insert_with(|| {
            let bar = bars.map(|bars| {
                let bar = bars.add(ProgressBar::new_spinner().with_prefix(subject.to_owned()));
                if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}  {wide_msg}  {elapsed}") {
                    bar.set_style(style);
                }
                bar.enable_steady_tick(Duration::from_millis(120));
                bar
            });
            (String::new(), bar)
        });
        if before == text {
            return;
        }
        text.clone_into(before);
        match bar {
            Some(bar) if done => bar.finish_with_message(text.to_owned()),
            Some(bar) => bar.set_message(text.to_owned()),
            None => complain!("{subject}: {text}"),
        }
    }
}
