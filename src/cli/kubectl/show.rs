//! Commands that only look.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Context as _;
use kube::{ResourceExt as _, api::ListParams};
use serde_json::json;

use super::Session;
use crate::api::v1alpha1::{OCIRecipe, OCIRecipeBuild, RegistryPush, condition};

/// A table of everything, or the lines of one build.
pub async fn status(session: &Session, build: Option<&str>) -> anyhow::Result<ExitCode> {
    if let Some(name) = build {
        return describe(session, name, false).await;
    }
    let all = ListParams::default();
    let recipes = session
        .api::<OCIRecipe>()
        .list(&all)
        .await
        .context("cannot list recipes")?
        .items;
    let builds = session.api::<OCIRecipeBuild>().list(&all).await?.items;
    let pushes = session.api::<RegistryPush>().list(&all).await?.items;
    let mut rows = vec![["KIND", "NAME", "STATE", "PROGRESS", "MESSAGE"].map(str::to_owned)];
    for recipe in &recipes {
        let conditions = recipe.status.as_ref().map_or(&[][..], |s| &s.conditions);
        let (state, message) = told(conditions, condition::READY);
        rows.push(["recipe".into(), recipe.name_any(), state, String::new(), message]);
    }
    for build in &builds {
        let status = build.status.clone().unwrap_or_default();
        let (_, message) = told(&status.conditions, condition::SUCCEEDED);
        rows.push([
            "build".into(),
            build.name_any(),
            status.phase.as_str().into(),
            status.progress,
            message,
        ]);
    }
    for push in &pushes {
        let status = push.status.clone().unwrap_or_default();
        let (state, message) = told(&status.conditions, condition::SUCCEEDED);
        rows.push(["push".into(), push.name_any(), state, status.progress, message]);
    }
    session.print(
        &table(&rows),
        &json!({ "recipes": recipes, "builds": builds, "pushes": pushes }),
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Everything about one build.
pub async fn describe(session: &Session, name: &str, layers: bool) -> anyhow::Result<ExitCode> {
    let build = session
        .api::<OCIRecipeBuild>()
        .get(name)
        .await
        .with_context(|| format!("there is no build {name:?}"))?;
    let status = build.status.clone().unwrap_or_default();
    let mut text = String::new();
    writeln!(text, "Build:     {name}")?;
    writeln!(text, "Phase:     {}", status.phase.as_str())?;
    writeln!(text, "Upload:    {:?}", status.registry_upload_status)?;
    if let Some(revision) = &status.revision {
        writeln!(text, "Revision:  {}", revision.revision)?;
    }
    if let Some(image) = &status.image {
        writeln!(text, "Image:     {}", image.reference)?;
    }
    if let Some(failure) = &status.failure {
        writeln!(
            text,
            "Failure:   {} ({:?}): {}",
            failure.reason.as_str(),
            failure.class,
            failure.message
        )?;
        for line in failure.log_snippet.iter().flat_map(|log| log.lines()) {
            writeln!(text, "  | {line}")?;
        }
    }
    for platform in &status.platforms {
        writeln!(
            text,
            "\n{}: {:?}, attempt {}",
            platform.platform, platform.state, platform.attempt
        )?;
        if let Some(manifest) = &platform.manifest {
            writeln!(text, "  manifest {manifest}")?;
        }
        if let Some(counters) = &platform.counters {
            writeln!(
                text,
                "  {} layers uploaded ({} bytes), {} reused ({} bytes)",
                counters.layers_uploaded,
                counters.bytes_uploaded,
                counters.layers_reused,
                counters.bytes_reused
            )?;
        }
        if layers {
            let mut rows = vec![["  ORIGIN", "DIFF ID", "DIGEST", "SIZE", "MEDIA TYPE"].map(str::to_owned)];
            rows.extend(platform.layers.iter().map(|layer| {
                [
                    format!("  {:?}", layer.origin),
                    layer.diff_id.short().into(),
                    layer.digest.to_string(),
                    layer.size.to_string(),
                    layer.media_type.clone(),
                ]
            }));
            text.push_str(&table(&rows));
        }
    }
    session.print(&text, &build)?;
    Ok(ExitCode::SUCCESS)
}

fn told(
    conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition],
    kind: &str,
) -> (String, String) {
    let found = conditions.iter().find(|c| c.type_ == kind);
    found.map_or_else(
        || ("Unknown".into(), String::new()),
        |c| (c.reason.clone(), c.message.clone()),
    )
}

/// Columns of equal width; the last one runs free.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
