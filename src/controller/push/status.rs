//! What a push's status says: its targets, its conditions, and the events that tell of a change.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{ResourceExt as _, runtime::events::Event};

use super::tags::BuildFacts;
use crate::{
    agent::report::{BlobCounters, ReferrerCounters, RefusedPart, TargetReport},
    api::v1alpha1::{
        PushTargetSpec, RegistryPush, RegistryPushStatus, TagStatus, TargetState, TargetStatus,
        condition::{self, Conditions, Status},
    },
    controller::events,
    image::{Digest, Platform},
    record::Reason,
};

/// The reason of a push whose attempt comes on.
pub const PUSHING: &str = "Pushing";

/// A target to which nothing was pushed yet.
pub fn pending(target: &PushTargetSpec) -> TargetStatus {
    TargetStatus {
        repository: target.repository.clone(),
        state: TargetState::Pending,
        plain_http: false,
        attempts: 0,
        next_attempt_at: None,
        queued: None,
        tags: Vec::new(),
        digest: None,
        pushed_at: None,
        receipt: None,
        published: Vec::new(),
        blobs: BlobCounters::default(),
        referrers: ReferrerCounters::default(),
        requests: Vec::new(),
        requests_omitted: 0,
        failure: None,
        error_summary: None,
        errors: Vec::new(),
    }
}

/// A tag that was not written yet.
pub fn tag(name: String) -> TagStatus {
    TagStatus {
        name,
        previous: None,
        drifted_to: None,
        superseded_by: None,
    }
}

/// The same target when somebody asks for it again; what was sent was sent.
pub fn ask_again(status: &mut TargetStatus) {
    status.state = TargetState::Pending;
    status.attempts = 0;
    status.next_attempt_at = None;
    status.failure = None;
    status.error_summary = None;
    status.errors = Vec::new();
    status.receipt = None;
    for tag in &mut status.tags {
        tag.drifted_to = None;
    }
}

/// What failed, in Launchpad's words where it has any, else in the failure's own.
///
/// Source: Launchpad, reference 1.7, "Texts".
pub fn error_summary(
    push: &RegistryPush,
    build: Option<&BuildFacts>,
    repository: &str,
    report: &TargetReport,
) -> String {
    let (origin, image) = repository.split_once('/').unwrap_or((repository, ""));
    let (recipe, run) = build.map_or_else(
        || (push.name_any(), push.name_any()),
        |build| (build.recipe.clone(), build.name.clone()),
    );
    let mut text = match &report.refused {
        Some(RefusedPart::Blob(digest)) => format!("Upload of {digest} for {image} failed"),
        Some(RefusedPart::Manifest) => {
            format!("Failed to upload manifest for {recipe} ({origin}) in {run}")
        }
        Some(RefusedPart::Index) => format!("Failed to upload manifest of manifests for {recipe} ({origin})"),
        None => report
            .failure
            .as_ref()
            .map_or_else(String::new, |failure| failure.message.clone()),
    };
    text.truncate(text.floor_char_boundary(2048));
    text
}

/// The tags that a target's attempts write.
pub fn written_tags(status: &TargetStatus) -> Vec<&str> {
    let tags = status.tags.iter().filter(|tag| tag.superseded_by.is_none());
    tags.map(|tag| tag.name.as_str()).collect()
}

/// What a target comes to by an attempt that succeeds there.
#[derive(Clone, Copy, Debug)]
pub enum Success<'a> {
    /// The requests that would write are known.
    Planned,
    /// The tags have this platform, ahead of the whole image.
    Published(&'a Platform),
    /// The tags point to the whole image.
    Pushed,
}

/// Writes what an attempt reports into the target's entry; what follows from a failure is decided elsewhere.
pub fn take_report(
    status: &mut TargetStatus,
    report: &TargetReport,
    digest: Option<&Digest>,
    success: Success<'_>,
    now: Timestamp,
) {
    status.attempts += 1;
    let digest = report.digest.as_ref().or(digest);
    let (total, new) = (&mut status.blobs, &report.blobs);
    total.existed += new.existed;
    total.mounted += new.mounted;
    total.uploaded += new.uploaded;
    total.resumed += new.resumed;
    total.bytes_uploaded += new.bytes_uploaded;
    total.bytes_saved += new.bytes_saved;
    status.referrers = report.referrers;
    status.failure.clone_from(&report.failure);
    status.errors.clone_from(&report.errors);
    status.error_summary = None;
    status.requests.clone_from(&report.requests);
    status.requests_omitted = report.requests_omitted;
    // What was there before the image is what was there before its first platform.
    let first = status.published.is_empty();
    match (&report.failure, success) {
        (None, Success::Planned) => status.state = TargetState::Planned,
        (None, Success::Published(platform)) => {
            status.state = TargetState::Pending;
            status.attempts = 0;
            status.published.push(platform.clone());
        }
        (None, Success::Pushed) => {
            status.state = TargetState::Pushed;
            status.digest = digest.cloned();
            status.pushed_at = Some(Time(now));
            status.published = Vec::new();
        }
        (Some(_), _) => {}
    }
    if !first {
        return;
    }
    let written = status.tags.iter_mut().filter(|tag| tag.superseded_by.is_none());
    for (tag, previous) in written.zip(&report.previous) {
        // An attempt that failed after it wrote a tag finds its own image there the next time.
        let other = previous.as_ref().filter(|found| Some(*found) != digest);
        if let (None, Some(other)) = (&tag.previous, other) {
            tag.previous = Some(other.clone());
        }
    }
}

/// The conditions of a status; `waiting` is what a push that goes on waits for.
pub fn conditions(
    status: &RegistryPushStatus,
    ended: bool,
    waiting: Option<&(&'static str, String)>,
) -> Conditions {
    if !ended {
        return match waiting {
            Some((reason, message)) => Conditions::running(reason, message),
            None => Conditions::running(PUSHING, &format!("Attempt {} is running.", status.attempt)),
        };
    }
    let failed: Vec<&TargetStatus> = status
        .targets
        .iter()
        .filter(|t| t.state == TargetState::Failed)
        .collect();
    if let Some(failure) = &status.failure {
        return Conditions::failed(failure.reason.as_str(), &failure.message);
    }
    match failed
        .first()
        .and_then(|target| target.failure.as_ref().map(|failure| (target, failure)))
    {
        Some((target, failure)) => {
            let others = if failed.len() > 1 {
                format!(" ({} more failed)", failed.len() - 1)
            } else {
                String::new()
            };
            Conditions::failed(
                failure.reason.as_str(),
                &format!("{}: {}{others}", target.repository, failure.message),
            )
        }
        None => {
            let (reason, message) = good_end(status);
            with_drift(status, Conditions::succeeded(reason, &message))
        }
    }
}

/// What the latest look at the tags adds.
fn with_drift(status: &RegistryPushStatus, conditions: Conditions) -> Conditions {
    let Some(at) = &status.checked_at else {
        return conditions;
    };
    let moved: Vec<String> = status
        .targets
        .iter()
        .flat_map(|target| {
            let drifted = target
                .tags
                .iter()
                .filter_map(|tag| Some((tag, tag.drifted_to.as_ref()?)));
            drifted.map(|(tag, to)| format!("{}:{} points to {to}", target.repository, tag.name))
        })
        .collect();
    if !moved.is_empty() {
        let text = format!(
            "{}; request the push to set it again, or correct who writes there.",
            moved.join(", ")
        );
        let reason = Reason::TagMoved.as_str();
        return conditions
            .replace(condition::READY, Status::False, reason, &text)
            .with(condition::DRIFTED, Status::True, reason, &text);
    }
    match &status.check_failure {
        Some(failure) => conditions.with(
            condition::DRIFTED,
            Status::Unknown,
            failure.reason.as_str(),
            &failure.message,
        ),
        None => {
            let text = format!(
                "At {} every tag pointed to what was pushed.",
                at.0.strftime("%Y-%m-%dT%H:%M:%SZ")
            );
            conditions.with(condition::DRIFTED, Status::False, "Unchanged", &text)
        }
    }
}

fn good_end(status: &RegistryPushStatus) -> (&'static str, String) {
    let digest = status.digest.as_ref().map_or("", |digest| digest.as_str());
    let count = |state: TargetState| status.targets.iter().filter(|t| t.state == state).count();
    let (planned, left) = (count(TargetState::Planned), count(TargetState::Superseded));
    if planned > 0 {
        let requests = status.targets.iter();
        let requests: i64 = requests
            .map(|target| i64::try_from(target.requests.len()).unwrap_or(0) + target.requests_omitted)
            .sum();
        let text =
            format!("A push of {digest} would send {requests} requests that write; see status.targets.");
        return ("Planned", text);
    }
    if left == status.targets.len() {
        let mut tags = status.targets.iter().flat_map(|target| &target.tags);
        let newer = tags.find_map(|tag| tag.superseded_by.as_deref());
        let text = format!(
            "Nothing was sent: the tags are left to the newer build {}.",
            newer.unwrap_or("")
        );
        return (Reason::Superseded.as_str(), text);
    }
    let pushed = count(TargetState::Pushed);
    let text = if left == 0 {
        format!("All {pushed} targets serve {digest}.")
    } else {
        format!("{pushed} targets serve {digest}; {left} are left to a newer build.")
    };
    ("Uploaded", text)
}

/// The events that tell of the way from one status to the next.
pub fn events(before: Option<&RegistryPushStatus>, after: &RegistryPushStatus) -> Vec<Event> {
    let mut list = Vec::new();
    for target in &after.targets {
        let known = before.and_then(|b| b.targets.iter().find(|t| t.repository == target.repository));
        if known.is_some_and(|k| k.attempts == target.attempts && k.state == target.state) {
            continue;
        }
        match (target.state, &target.failure) {
            (TargetState::Pushed, _) => {
                let blobs = &target.blobs;
                list.push(events::normal(
                    "Pushed",
                    &format!(
                        "{}: {} blobs uploaded ({} bytes), {} mounted, {} were there.",
                        target.repository, blobs.uploaded, blobs.bytes_uploaded, blobs.mounted, blobs.existed
                    ),
                ));
            }
            (TargetState::Pending, None) => {
                let known = known.map_or(0, |known| known.published.len());
                list.extend(
                    target
                        .published
                        .get(known..)
                        .into_iter()
                        .flatten()
                        .map(|platform| {
                            let text = format!(
                                "{}: {platform} is there, ahead of the whole image.",
                                target.repository
                            );
                            events::normal("Published", &text)
                        }),
                );
            }
            (TargetState::Pending, Some(failure)) if target.attempts > 0 => list.push(events::warning(
                "Retrying",
                &format!(
                    "{}: attempt {} failed: {} {}",
                    target.repository,
                    target.attempts,
                    failure.reason.as_str(),
                    failure.message
                ),
            )),
            (TargetState::Failed, Some(failure)) => {
                list.push(events::warning(
                    failure.reason.as_str(),
                    &format!("{}: {}", target.repository, failure.message),
                ));
            }
            (TargetState::Superseded, _) => list.push(events::normal(
                Reason::Superseded.as_str(),
                &format!("{}: its tags are left to a newer build.", target.repository),
            )),
            _ => {}
        }
    }
    let drifted = |s: &RegistryPushStatus| condition::is_true(&s.conditions, condition::DRIFTED);
    if drifted(after) && !before.is_some_and(drifted) {
        let said = after.conditions.iter().find(|c| c.type_ == condition::DRIFTED);
        list.extend(said.map(|c| events::warning(&c.reason, &c.message)));
    }
    let finished = |s: &RegistryPushStatus| condition::is_true(&s.conditions, condition::FINISHED);
    if let Some(failure) = after
        .failure
        .as_ref()
        .filter(|_| finished(after) && !before.is_some_and(finished))
    {
        list.push(events::warning(failure.reason.as_str(), &failure.message));
    }
    list
}
