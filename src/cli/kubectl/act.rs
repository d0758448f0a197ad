//! Commands that ask for something.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use kube::{
    ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use serde_json::json;

use super::{Session, follow};
use crate::api::{
    REQUEST_ANNOTATION, UPLOAD_ANNOTATION,
    v1alpha1::{
        BuildPhase, LocalReference, OCIRecipe, OCIRecipeBuild, PushSourceReference, PushTargetSpec,
        RegistryPush, RegistryPushSpec, Risk,
    },
};

/// Asks a recipe for a build and tells its name.
pub async fn build(session: &Session, recipe: &str, wait: bool) -> anyhow::Result<ExitCode> {
    let recipes = session.api::<OCIRecipe>();
    let request = jiff::Timestamp::now().to_string();
    let asked = request_patch(&request);
    let patched = recipes
        .patch(recipe, &PatchParams::default(), &Patch::Merge(&asked))
        .await;
    let patched = patched.with_context(|| format!("cannot ask recipe {recipe:?}"))?;
    if patched.spec.suspend {
        let note = format!("{recipe} is suspended: the build begins once spec.suspend is false");
        session.print(&format!("{note}\n"), &json!({ "build": null, "message": note }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let answered = await_condition(recipes, recipe, |recipe: Option<&OCIRecipe>| {
        let handled = recipe
            .and_then(|r| r.status.as_ref())
            .and_then(|s| s.last_handled_request.as_deref());
        handled == Some(request.as_str())
    });
    let answered = tokio::time::timeout(std::time::Duration::from_secs(30), answered).await;
    let answered = answered.context("no answer within 30 s; does the operator run?")??;
    let name = answered
        .and_then(|r| r.status)
        .and_then(|s| s.latest_build)
        .map(|build| build.name)
        .unwrap_or_default();
    if wait {
        return follow::build(session, &name).await;
    }
    session.print(&format!("{name}\n"), &json!({ "build": name }))?;
    Ok(ExitCode::SUCCESS)
}

/// Ends a build.
pub async fn cancel(session: &Session, build: &str) -> anyhow::Result<ExitCode> {
    let patch = json!({ "spec": { "cancel": true } });
    let builds = session.api::<OCIRecipeBuild>();
    builds
        .patch(build, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .with_context(|| format!("cannot cancel {build:?}"))?;
    session.print(
        &format!("{build}: cancel was asked for\n"),
        &json!({ "build": build, "cancel": true }),
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Tries again what failed.
pub async fn retry(session: &Session, name: &str, platforms: &[String]) -> anyhow::Result<ExitCode> {
    let mut request = jiff::Timestamp::now().to_string();
    if !platforms.is_empty() {
        for platform in platforms {
            platform.parse::<crate::image::Platform>()?;
        }
        request = format!("{request} {}", platforms.join(","));
    }
    let patch = request_patch(&request);
    let parameters = PatchParams::default();
    let builds = session.api::<OCIRecipeBuild>();
    let kind = if let Some(build) = builds.get_opt(name).await? {
        let status = build.status.unwrap_or_default();
        if status.phase == BuildPhase::FullyBuilt || build.spec.cancel {
            bail!(
                "build {name:?} is {}: there is nothing to try again; make another build",
                status.phase.as_str()
            );
        }
        builds.patch(name, &parameters, &Patch::Merge(&patch)).await?;
        "build"
    } else {
        let pushes = session.api::<RegistryPush>();
        let patched = pushes.patch(name, &parameters, &Patch::Merge(&patch)).await;
        patched.with_context(|| format!("there is no build or push {name:?}"))?;
        "push"
    };
    session.print(
        &format!("{kind} {name}: another attempt was asked for\n"),
        &json!({ kind: name, "request": request }),
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Asks a finished build to push its image, and tells the refusal.
pub async fn schedule_upload(session: &Session, name: &str) -> anyhow::Result<ExitCode> {
    let builds = session.api::<OCIRecipeBuild>();
    let request = jiff::Timestamp::now().to_string();
    let patch = json!({ "metadata": { "annotations": { UPLOAD_ANNOTATION: request } } });
    builds
        .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .with_context(|| format!("cannot ask build {name:?}"))?;
    let answered = await_condition(builds, name, |build: Option<&OCIRecipeBuild>| {
        let handled = build
            .and_then(|build| build.status.as_ref())
            .and_then(|status| status.last_handled_upload_request.as_deref());
        handled == Some(request.as_str())
    });
    let answered = tokio::time::timeout(std::time::Duration::from_secs(30), answered).await;
    let answered = answered.context("no answer within 30 s; does the operator run?")??;
    let refusal = answered
        .and_then(|build| build.status)
        .and_then(|status| status.upload_refusal);
    let (text, code) = match &refusal {
        Some(refusal) => (refusal.message.clone(), ExitCode::FAILURE),
        None => (format!("{name}: an upload was asked for"), ExitCode::SUCCESS),
    };
    session.print(
        &format!("{text}\n"),
        &json!({ "build": name, "refusal": refusal }),
    )?;
    Ok(code)
}

/// Makes a push.
pub async fn push(
    session: &Session,
    source: &str,
    target: &str,
    tags: Vec<String>,
    secret: Option<String>,
    wait: bool,
) -> anyhow::Result<ExitCode> {
    let is_reference = source.contains('/');
    let base = if is_reference {
        "push".to_owned()
    } else {
        source.chars().take(50).collect()
    };
    let push = RegistryPush {
        metadata: ObjectMeta {
            generate_name: Some(format!("{base}-to-")),
            ..ObjectMeta::default()
        },
        spec: RegistryPushSpec {
            source: PushSourceReference {
                build_ref: (!is_reference).then(|| LocalReference {
                    name: source.to_owned(),
                }),
                reference: is_reference.then(|| source.to_owned()),
                credentials_ref: None,
            },
            targets: vec![PushTargetSpec {
                repository: target.to_owned(),
                tags,
                risk: Risk::default(),
                credentials_ref: secret.map(|name| LocalReference { name }),
                tag_policy: crate::agent::plan::TagPolicy::default(),
                publish: crate::agent::plan::PublishPolicy::default(),
            }],
            platforms: Vec::new(),
            dry_run: false,
            check_every_seconds: None,
            suspend: false,
            cancel: false,
        },
        status: None,
    };
    let created = session
        .api::<RegistryPush>()
        .create(&PostParams::default(), &push)
        .await
        .context("the push was refused")?;
    let name = created.name_any();
    if wait {
        return follow::push(session, &name).await;
    }
    session.print(&format!("{name}\n"), &json!({ "push": name }))?;
    Ok(ExitCode::SUCCESS)
}

fn request_patch(request: &str) -> serde_json::Value {
    json!({ "metadata": { "annotations": { REQUEST_ANNOTATION: request } } })
}
