//! `collect`: from the archive that a build left to proven layers, a manifest and a record in staging.
//!
//! ```text
//! wait for the build → open the archive → choose the image → collect it → record → report
//! ```
//!
//! The volume belongs to an untrusted build, which may still write to it: only what was hashed on its way
//! to staging counts. How an image gets there is `collect`'s story.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::{
    gate::log::{LOG_LIMIT, readable},
    identity,
    plan::{CollectPlan, StagingTarget},
    report::{CollectReport, StageOutcome},
    workspace::{Stage, Workspace},
};
use crate::{
    collect::{CollectError, Collected, Collection, Event, Options, Patience, Tags, blocking, visible},
    image::{
        archive::{Archive, Limits},
        launchpad,
    },
    record::{BuildRecord, Counters, Failure, RECORD_VERSION, Reason, Revision},
    registry::{Client, ClientOptions, Credentials, Repository},
    staging::{self, Attachments, Store},
};

/// Warnings are for people: so many, so long.
const WARNINGS_LIMIT: usize = 32;
const WARNING_LIMIT: usize = 256;

/// How long a build that was asked to end has to say how it ended, and how long the record of that may take.
/// Together less than the grace that the pod has.
const LAST_WORDS: Duration = Duration::from_secs(1);
const LAST_RECORD: Duration = Duration::from_secs(3);

/// How much of a log's end a failure shows.
const SNIPPET: u64 = 4096;

/// How a collection ended.
#[derive(Debug)]
pub struct Ending {
    /// What to leave for the controller.
    pub report: CollectReport,
    /// Whether it was asked to end before there was an image or a failure.
    pub asked_to_end: bool,
}

/// Waits for the build, collects what it left and says under which digest the record is.
///
/// Once `stop` resolves there are seconds left: what there is of the log is stored, and no image.
pub async fn run(plan: CollectPlan, workspace: Workspace, stop: impl Future<Output = ()>) -> Ending {
    match repository(&plan.staging) {
        // On the heap: everything that collecting holds is in it.
        Ok(store) => Box::pin(run_with(plan, workspace, store, Patience::default(), stop)).await,
        Err(failure) => Ending {
            report: CollectReport::Failed(failure),
            asked_to_end: false,
        },
    }
}

fn repository(target: &StagingTarget) -> Result<Repository, Failure> {
    let plain_http = if target.plain_http {
        BTreeSet::from([target.registry.clone()])
    } else {
        BTreeSet::new()
    };
    let options = ClientOptions {
        plain_http,
        ..ClientOptions::default()
    };
    let credentials = match &target.realm {
        Some(realm) => identity::credentials(&target.registry, realm)?,
        None => Credentials::anonymous(),
    };
    let client = Client::new(options, credentials)
        .map_err(|error| Failure::new(Reason::InternalError, error.to_string()))?;
    Ok(client.repository(&target.registry, &target.repository))
}

/// [`run`] with any staging, for the log's and the record's sake whatever happens.
async fn run_with<S: Store>(
    plan: CollectPlan,
    workspace: Workspace,
    store: S,
    patience: Patience,
    stop: impl Future<Output = ()>,
) -> Ending {
    let mut record = BuildRecord {
        version: RECORD_VERSION,
        build: plan.build.clone(),
        revision: None,
        image: None,
        failure: None,
        log: None,
        warnings: Vec::new(),
        counters: Counters::default(),
        compressor: None,
        finished_at: String::new(),
    };
    let mut attachments = Attachments::default();
    let mut collection = Collection::new(store, patience, options());
    let work = async {
        record.revision = built(&workspace).await?;
        let collected = collect(&mut collection, &plan, &workspace).await;
        collected.map_err(|error| {
            tracing::error!(reason = error.reason().as_str(), %error, "nothing was collected");
            Failure::from(&error)
        })
    };
    let mut stop = std::pin::pin!(stop);
    let ended = tokio::select! {
        ended = work => Some(ended),
        () = &mut stop => None,
    };
    let mut asked_to_end = ended.is_none();
    match ended {
        Some(Ok(collected)) => finish(&mut record, &mut attachments, collected),
        Some(Err(failure)) => record.failure = Some(failure),
        None => record.failure = Some(last_words(&workspace).await),
    }
    record.counters = collection.counters();
    record.finished_at = jiff::Timestamp::now().to_string();
    attachments.log = read_log(&workspace);
    let failure = record.failure.clone();
    let too_late = async {
        if !asked_to_end {
            stop.await;
        }
        tokio::time::sleep(LAST_RECORD).await;
    };
    let report = tokio::select! {
        report = store_record(&collection, record, attachments) => report,
        () = too_late => {
            asked_to_end = true;
            let text = "the pod was asked to end while its record was stored";
            CollectReport::Failed(failure.unwrap_or_else(|| Failure::new(Reason::BuildPodFailed, text)))
        }
    };
    Ending {
        report: report.fitted(),
        asked_to_end,
    }
}

/// What is known of a build that was asked to end, by itself or by its log.
async fn last_words(workspace: &Workspace) -> Failure {
    let outcome = tokio::time::timeout(LAST_WORDS, workspace.wait_for(Stage::Build)).await;
    if let Ok(Ok(StageOutcome::Failed(failure))) = outcome {
        return failure;
    }
    let text = "the pod was asked to end before its build was done";
    Failure::new(Reason::BuildPodFailed, text).with_log(&log_end(workspace).unwrap_or_default())
}

async fn store_record<S: Store>(
    collection: &Collection<S>,
    record: BuildRecord,
    attachments: Attachments,
) -> CollectReport {
    let failure = record.failure.clone();
    let stored = collection
        .patience()
        .insist(|| staging::store_record(collection.store(), record.clone(), attachments.clone()))
        .await;
    match stored {
        Ok(digest) => CollectReport::Recorded { digest },
        // What the build did wrong says more than that it could not be recorded.
        Err(error) => {
            tracing::error!(%error, "the record could not be stored");
            CollectReport::Failed(
                failure.unwrap_or_else(|| Failure::new(Reason::StagingUnavailable, error.to_string())),
            )
        }
    }
}

/// Waits for the build's end.
async fn built(workspace: &Workspace) -> Result<Option<Revision>, Failure> {
    match workspace.wait_for(Stage::Build).await {
        Ok(StageOutcome::Done { revision }) => Ok(revision),
        Ok(StageOutcome::Failed(failure)) => Err(failure),
        // Why it was killed is in the container's state, which only the controller sees.
        Err(vanished) => Err(Failure::new(Reason::BuildPodFailed, vanished.to_string())),
    }
}

async fn collect<S: Store>(
    collection: &mut Collection<S>,
    plan: &CollectPlan,
    workspace: &Workspace,
) -> Result<Gathered, CollectError> {
    let (root, output) = (workspace.root().to_owned(), workspace.output());
    let below = output
        .strip_prefix(&root)
        .unwrap_or(Path::new("output"))
        .join(&plan.archive);
    let archive = blocking(move || Archive::open_below(&root, &below, Limits::default())).await??;
    let archive = Arc::new(archive);
    let image = archive.single(Some(&plan.build.platform))?;
    let tags = Tags {
        // Whatever becomes of the attempt, its record takes this one over.
        pending: staging::record_tag(&plan.build),
        image: staging::image_tag(&plan.build),
    };
    let collected = collection
        .collect(&archive, image, &plan.build.platform, tags)
        .await?;
    Ok(Gathered {
        collected,
        tags: image.tags.clone(),
        warnings: archive.warnings().to_vec(),
    })
}

/// An image in staging, and what its archive says beside.
struct Gathered {
    collected: Collected,
    tags: Vec<String>,
    warnings: Vec<String>,
}

fn options() -> Options {
    Options {
        observer: Arc::new(|event| {
            if let Event::Placed { layer, cost } = event {
                tracing::info!(
                    diff_id = layer.diff_id.short(),
                    digest = layer.digest.short(),
                    origin = ?layer.origin,
                    bytes = layer.size,
                    read = cost.read,
                    uploaded = cost.uploaded,
                    "layer"
                );
            }
        }),
        ..Options::default()
    }
}

fn finish(record: &mut BuildRecord, attachments: &mut Attachments, gathered: Gathered) {
    let Gathered {
        collected,
        tags,
        warnings,
    } = gathered;
    attachments.digests = launchpad::digests_json(&[&collected.image]).ok().map(Bytes::from);
    attachments.manifest = launchpad::manifest_json(&[(&collected.image, &tags)])
        .ok()
        .map(Bytes::from);
    record.compressor = collected.compressor.map(str::to_owned);
    record.warnings = warnings
        .iter()
        .take(WARNINGS_LIMIT)
        .map(|warning| visible(warning).chars().take(WARNING_LIMIT).collect())
        .collect();
    record.image = Some(collected.image);
}

/// The end of the log as far as the gate has written it.
fn log_end(workspace: &Workspace) -> Option<String> {
    let mut file = workspace.open_control(&workspace.log()).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(SNIPPET))).ok()?;
    let mut end = Vec::new();
    file.take(SNIPPET).read_to_end(&mut end).ok()?;
    Some(readable(&end))
}

/// The log as the gate left it, secrets redacted there.
fn read_log(workspace: &Workspace) -> Option<Bytes> {
    let mut log = Vec::new();
    let file = workspace.open_control(&workspace.log()).ok()?;
    // The build can write to the file too, so its size is bounded once more.
    file.take(LOG_LIMIT as u64 + 4096).read_to_end(&mut log).ok()?;
    (!log.is_empty()).then(|| Bytes::from(log))
}
