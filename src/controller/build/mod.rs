//! Builds: from a recipe and a strategy to an image in staging and its pushes.

pub mod decide;
pub mod image;
pub mod kept;
pub mod observe;
mod platform;
pub mod pod;
pub mod pod_report;
pub mod status;
mod upload;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt as _, runtime::controller::Action};

use self::decide::{Decision, Step, decide};
use super::{
    context::{Context, about},
    error::Error,
    metrics::{Controller, Outcome},
    push,
};
use crate::{
    api::v1alpha1::{OCIRecipeBuild, OCIRecipeBuildStatus, PlatformState, PlatformStatus},
    kubernetes::{
        cluster::{ClusterError, Created},
        watches::key,
    },
    record::{Failure, Reason},
};

/// Moves one build a single step toward its recipe's image.
///
/// # Errors
/// When the API server or staging does not do what it was asked; what a user can mend is in the status.
pub async fn reconcile(build: Arc<OCIRecipeBuild>, context: Arc<Context>) -> Result<Action, Error> {
    let Some(build) = context.own_builds.newest(
        &key(&build.namespace().unwrap_or_default(), &build.name_any()),
        Some(build),
    ) else {
        return Ok(Action::await_change());
    };
    if build.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let mut observed = observe::observe(build, &context).await;
    let mut decision = decide(&observed, Timestamp::now());
    if kept::is_trimmed(&observed.build) && decision.acts_on(&observed.build) {
        let (namespace, name) = (
            observed.build.namespace().unwrap_or_default(),
            observed.build.name_any(),
        );
        let Some(whole) = context.cluster.get::<OCIRecipeBuild>(&namespace, &name).await? else {
            return Ok(Action::await_change());
        };
        observed = observe::observe(context.own_builds.remember(whole), &context).await;
        decision = decide(&observed, Timestamp::now());
    }
    let building = |entry: &&PlatformStatus| entry.state == PlatformState::Building;
    let begun = decision.status.platforms.iter().filter(building);
    for pod in begun.filter_map(|entry| entry.pod.as_ref()) {
        context.pod_begun(pod);
    }
    let build = publish(&observed.build, &decision.status, &context).await?;
    if let Err(error) = apply(&build, &decision, &context).await {
        let refusal = match &error {
            Error::Cluster(refusal) if refusal.is_refusal() => Failure::new(
                Reason::PodRefused,
                format!("The cluster refused the build's pod: {}", refusal_text(refusal)),
            ),
            Error::Staging(refusal) if !refusal.is_passing() => Failure::new(
                Reason::StagingUnavailable,
                format!("Staging refused the index: {refusal}. If it lost images, request the build again."),
            ),
            Error::UserNamespaceDropped => Failure::new(Reason::UserNamespacesMissing, error.to_string()),
            _ => return Err(error),
        };
        decision = decide::refused(&observed, decision, refusal, Timestamp::now());
        publish(&build, &decision.status, &context).await?;
    }
    let acted = decision.acts_on(&observed.build);
    context.metrics.passed(
        Controller::Build,
        if acted { Outcome::Acted } else { Outcome::Idle },
    );
    Ok(decision.next.into())
}

/// Writes the status if it differs, tells of the change, and keeps the answer as an own write.
async fn publish(
    build: &Arc<OCIRecipeBuild>,
    status: &OCIRecipeBuildStatus,
    context: &Context,
) -> Result<Arc<OCIRecipeBuild>, Error> {
    if !status::differs(build.status.as_ref(), status) {
        return Ok(Arc::clone(build));
    }
    let written = context
        .own_builds
        .remember(context.cluster.apply_status(&**build, status).await?);
    context
        .publish_events(&about(&**build), status::events(build.status.as_ref(), status))
        .await;
    let ended = |s: &OCIRecipeBuildStatus| s.phase.is_terminal();
    if ended(status) && !build.status.as_ref().is_some_and(ended) {
        let reason = status
            .failure
            .as_ref()
            .map_or("FullyBuilt", |failure| failure.reason.as_str());
        let seconds = status.started_at.as_ref().zip(status.finished_at.as_ref());
        let seconds = seconds.map(|(start, end)| end.0.duration_since(start.0).as_secs_f64());
        context.metrics.ended(Controller::Build, reason, seconds);
    }
    Ok(written)
}

/// Takes the one step.
async fn apply(build: &OCIRecipeBuild, decision: &Decision, context: &Context) -> Result<(), Error> {
    let namespace = build.namespace().unwrap_or_default();
    match &decision.step {
        Step::Nothing => {}
        Step::CreatePod { platform } => {
            let (Some(inputs), Some(entry)) =
                (&decision.status.inputs, decision.status.platforms.get(*platform))
            else {
                return Ok(());
            };
            let settings = pod::PodSettings {
                agents: context.agents(),
                gate: context.gate(),
                staging: context.staging.target(&namespace),
                registries: context.registries(),
            };
            let wanted = pod::pod(build, inputs, &entry.platform, entry.attempt, &settings);
            // The name has the build's UID and the attempt in it: one that exists is this attempt's.
            let (Created::New(pod) | Created::Exists(pod)) =
                context.cluster.create(&namespace, &wanted).await?;
            let isolated = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.host_users) == Some(false);
            if isolated(&wanted) && !isolated(&pod) {
                // An API server that does not know the field drops it, and root would be the node's.
                context
                    .cluster
                    .delete::<Pod>(&namespace, &pod.name_any(), &pod.uid().unwrap_or_default())
                    .await?;
                return Err(Error::UserNamespaceDropped);
            }
            context.own_pods.remember(pod);
        }
        Step::DeletePod { name, uid } => {
            context.cluster.delete::<Pod>(&namespace, name, uid).await?;
        }
        Step::PutIndex { bytes, .. } => {
            let tag = format!("build-{}", build.uid().unwrap_or_default());
            context.staging.put_index(&namespace, &tag, bytes.clone()).await?;
        }
        Step::CreatePush { rule } => {
            let Some(wanted) = push::of_rule(build, &decision.status, *rule) else {
                return Ok(());
            };
            match context.cluster.create(&namespace, &wanted).await? {
                Created::New(push) => {
                    context.own_pushes.remember(push);
                }
                Created::Exists(push) if status::owned_by(&push, &build.uid().unwrap_or_default()) => {
                    context.own_pushes.remember(push);
                }
                Created::Exists(push) => {
                    tracing::warn!(
                        push = push.name_any(),
                        "a push of this name belongs to somebody else; waiting for it to go"
                    );
                }
            }
        }
    }
    Ok(())
}

fn refusal_text(error: &ClusterError) -> String {
    match error {
        ClusterError::Api { source, .. } => match source.as_ref() {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        },
        ClusterError::Timeout { .. } => error.to_string(),
    }
}
