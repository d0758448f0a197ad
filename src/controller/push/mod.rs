//! Pushes: one image to its targets, each attempt a pod of its own.

pub mod after;
mod attempt;
mod begin;
pub mod decide;
pub mod observe;
mod plan;
pub mod pod;
pub mod queue;
pub mod rivals;
pub mod status;
mod tags;

use std::sync::Arc;

use jiff::Timestamp;
use kube::{ResourceExt as _, runtime::controller::Action};

use self::decide::{Step, decide};
use super::{
    context::{Context, about},
    error::Error,
    metrics::{Controller, Outcome},
    next::Next,
    pod_parts,
};
use crate::{
    api::{
        BUILD_LABEL, RECIPE_LABEL,
        v1alpha1::{
            LocalReference, OCIRecipeBuild, OCIRecipeBuildStatus, PushSourceReference, PushTargetSpec,
            RegistryPush, RegistryPushSpec, RegistryPushStatus, condition,
        },
    },
    image::Digest,
    kubernetes::{cluster::ClusterError, watches::key},
};

/// Moves one push a single step toward its targets.
///
/// # Errors
/// When the API server does not do what it was asked; what a user can mend is in the status.
pub async fn reconcile(push: Arc<RegistryPush>, context: Arc<Context>) -> Result<Action, Error> {
    let key = key(&push.namespace().unwrap_or_default(), &push.name_any());
    let Some(push) = context
        .own_pushes
        .newest(&key, Some(push))
        .filter(|push| push.metadata.deletion_timestamp.is_none())
    else {
        return Ok(Action::await_change());
    };
    let mut observed = observe::observe(push, &context).await;
    let mut decision = decide(&observed, Timestamp::now());
    let mut beginning = None;
    if decision.begins {
        // Nobody else begins between this look at the others and the written status.
        beginning = Some(context.push_beginnings.lock().await);
        observed = observe::observe(observed.push, &context).await;
        decision = decide(&observed, Timestamp::now());
    }
    if let Some(pod) = &decision.status.pod {
        context.pod_begun(pod);
    }
    let push = publish(&observed.push, &decision.status, &context).await?;
    drop(beginning);
    match apply(&push, &decision, &context).await {
        Ok(Applied::Nothing) => {}
        Ok(Applied::Receipt { target, digest }) => {
            // The effect comes before the status: written twice, it is the same receipt.
            if let Some(entry) = decision.status.targets.get_mut(target) {
                entry.receipt = Some(digest);
            }
            publish(&push, &decision.status, &context).await?;
            decision.next = Next::Now;
        }
        Err(error) => {
            let Error::Cluster(ClusterError::Api { source, .. }) = &error else {
                return Err(error);
            };
            let kube::Error::Api(answer) = source.as_ref() else {
                return Err(error);
            };
            if !matches!(answer.code, 400 | 403 | 413 | 422) {
                return Err(error);
            }
            decision = decide::refused(&observed, decision, &answer.message, Timestamp::now());
            publish(&push, &decision.status, &context).await?;
        }
    }
    let acted = decision.step != Step::Nothing || observed.push.status.as_ref() != Some(&decision.status);
    context.metrics.passed(
        Controller::Push,
        if acted { Outcome::Acted } else { Outcome::Idle },
    );
    Ok(decision.next.into())
}

async fn publish(
    push: &Arc<RegistryPush>,
    status: &RegistryPushStatus,
    context: &Context,
) -> Result<Arc<RegistryPush>, Error> {
    if push.status.as_ref() == Some(status) {
        return Ok(Arc::clone(push));
    }
    let written = context
        .own_pushes
        .remember(context.cluster.apply_status(&**push, status).await?);
    context
        .publish_events(&about(&**push), status::events(push.status.as_ref(), status))
        .await;
    let ended = |s: &RegistryPushStatus| condition::is_true(&s.conditions, condition::FINISHED);
    if ended(status) && !push.status.as_ref().is_some_and(ended) {
        let failure = status
            .failure
            .as_ref()
            .or_else(|| status.targets.iter().find_map(|t| t.failure.as_ref()));
        context.metrics.ended(
            Controller::Push,
            failure.map_or("Uploaded", |failure| failure.reason.as_str()),
            None,
        );
    }
    Ok(written)
}

/// What a step left to be written down.
enum Applied {
    Nothing,
    Receipt { target: usize, digest: Digest },
}

async fn apply(
    push: &RegistryPush,
    decision: &decide::Decision,
    context: &Context,
) -> Result<Applied, Error> {
    let namespace = push.namespace().unwrap_or_default();
    match &decision.step {
        Step::Nothing => {}
        Step::CreatePod { plan } => {
            let wanted = pod::pod(push, plan, decision.status.attempt, &context.agents());
            match context.cluster.create(&namespace, &wanted).await? {
                crate::kubernetes::cluster::Created::New(pod)
                | crate::kubernetes::cluster::Created::Exists(pod) => {
                    context.own_pods.remember(pod);
                }
            }
        }
        Step::PutReceipt(due) => {
            let digest = context.staging.put_receipt(&namespace, due).await?;
            return Ok(Applied::Receipt {
                target: due.target,
                digest,
            });
        }
        Step::DeletePod { name, uid } => {
            context
                .cluster
                .delete::<k8s_openapi::api::core::v1::Pod>(&namespace, name, uid)
                .await?;
        }
    }
    Ok(Applied::Nothing)
}

/// The name of the push that a build makes for one of its recipe's rules.
///
/// `<build>-push-<n>` where that fits; a longer one is cut and has the build's UID in it.
pub fn name_of_rule(build: &OCIRecipeBuild, rule: usize) -> String {
    let name = format!("{}-push-{}", build.name_any(), rule + 1);
    if name.len() <= 63 && !name.contains('.') {
        return name;
    }
    pod_parts::child_name(
        &build.name_any(),
        &build.uid().unwrap_or_default(),
        &format!("push-{}", rule + 1),
    )
}

/// The push that a build makes for one of its recipe's rules.
pub fn of_rule(build: &OCIRecipeBuild, status: &OCIRecipeBuildStatus, rule: usize) -> Option<RegistryPush> {
    let push_rule = status.push_rules().nth(rule)?;
    let recipe = build
        .spec
        .recipe_ref
        .as_ref()
        .map_or_else(|| build.name_any(), |r| r.name.clone());
    let build_name = build.name_any();
    let labels = [
        (BUILD_LABEL, build_name.as_str()),
        (RECIPE_LABEL, recipe.as_str()),
    ];
    let spec = RegistryPushSpec {
        source: PushSourceReference {
            build_ref: Some(LocalReference {
                name: build.name_any(),
            }),
            reference: None,
            credentials_ref: None,
        },
        targets: vec![PushTargetSpec {
            repository: push_rule.repository.clone(),
            tags: push_rule.tags.clone(),
            risk: push_rule.risk,
            credentials_ref: push_rule.credentials_ref.clone(),
            tag_policy: push_rule.tag_policy,
            publish: push_rule.publish,
        }],
        platforms: Vec::new(),
        dry_run: false,
        check_every_seconds: push_rule.check_every_seconds,
        suspend: false,
        cancel: false,
    };
    let name = name_of_rule(build, rule);
    Some(RegistryPush {
        metadata: pod_parts::owned_by(build, name, &labels),
        spec,
        status: None,
    })
}
