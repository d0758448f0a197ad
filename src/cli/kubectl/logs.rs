//! The log of a build, from its pod.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use futures_util::{AsyncBufReadExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{api::LogParams, runtime::wait::await_condition};

use super::Session;
use crate::{
    api::v1alpha1::{OCIRecipeBuild, PlatformStatus, condition},
    cli::outcome,
    image::Platform,
};

/// Prints the log of one container of one platform's pod.
pub async fn print(
    session: &Session,
    build: &str,
    platform: Option<&str>,
    container: &str,
    follow: bool,
) -> anyhow::Result<ExitCode> {
    let wanted: Option<Platform> = platform.map(str::parse).transpose()?;
    let builds = session.api::<OCIRecipeBuild>();
    let mut found = builds
        .get(build)
        .await
        .with_context(|| format!("there is no build {build:?}"))?;
    if follow && pod_of(&found, wanted.as_ref()).is_none() {
        let begun = await_condition(builds.clone(), build, |build: Option<&OCIRecipeBuild>| {
            build.is_none_or(|build| pod_of(build, wanted.as_ref()).is_some() || has_ended(build))
        });
        found = begun
            .await?
            .with_context(|| format!("build {build:?} was deleted"))?;
    }
    let Some((entry, pod)) = pod_of(&found, wanted.as_ref()) else {
        bail!("build {build:?} has no pod yet; try --follow");
    };
    let pods = session.api::<Pod>();
    if follow {
        let started = await_condition(pods.clone(), pod, |pod: Option<&Pod>| {
            pod.is_some_and(|pod| has_begun(pod, container))
        });
        // A pod that never begins ends its build.
        let ended = await_condition(builds, build, |build: Option<&OCIRecipeBuild>| {
            build.is_none_or(has_ended)
        });
        tokio::select! {
            started = started => { started?; }
            ended = ended => { ended?; }
        }
    }
    let parameters = LogParams {
        container: Some(container.to_owned()),
        follow,
        ..LogParams::default()
    };
    let stream = match pods.log_stream(pod, &parameters).await {
        Ok(stream) => stream,
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let end = entry
                .failure
                .as_ref()
                .and_then(|failure| failure.log_snippet.as_deref())
                .unwrap_or_default();
            outcome::print(end)?;
            let record = entry.record.as_ref().map_or_else(String::new, |digest| {
                format!(" The whole log is in the record {digest} in staging.")
            });
            bail!("the pod {pod} is gone; above is what the status keeps of its log.{record}");
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read the log of {pod}")),
    };
    let mut lines = stream.lines();
    while let Some(line) = lines.try_next().await? {
        if !outcome::print(&format!("{line}\n"))? {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn pod_of<'a>(build: &'a OCIRecipeBuild, wanted: Option<&Platform>) -> Option<(&'a PlatformStatus, &'a str)> {
    let mut entries = build.status.iter().flat_map(|status| &status.platforms);
    let entry = entries.find(|entry| wanted.is_none_or(|wanted| wanted.matches(&entry.platform)))?;
    entry.pod.as_deref().map(|pod| (entry, pod))
}

fn has_begun(pod: &Pod, container: &str) -> bool {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    let state = statuses
        .into_iter()
        .flatten()
        .find(|status| status.name == container)
        .and_then(|status| status.state.as_ref());
    state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
}

fn has_ended(build: &OCIRecipeBuild) -> bool {
    build
        .status
        .as_ref()
        .is_some_and(|status| condition::is_true(&status.conditions, condition::FINISHED))
}
