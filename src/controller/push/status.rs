//! What a push's status says: its targets, its conditions, and the events that tell of a change.

use kube::runtime::events::Event;

use crate::{
    agent::report::{BlobCounters, ReferrerCounters, TargetReport},
    api::v1alpha1::{
        PushTargetSpec, RegistryPushStatus, TargetState, TargetStatus,
        condition::{self, Conditions},
    },
    controller::events,
    image::Digest,
    record::Reason,
};

/// A target to which nothing was pushed yet.
pub fn pending(target: &PushTargetSpec) -> TargetStatus {
    TargetStatus {
        repository: target.repository.clone(),
        state: TargetState::Pending,
        plain_http: false,
        attempts: 0,
        next_attempt_at: None,
        tags: Vec::new(),
        blobs: BlobCounters::default(),
        referrers: ReferrerCounters::default(),
        requests: Vec::new(),
        requests_omitted: 0,
        failure: None,
    }
}

/// The same target when somebody asks for it again; what was sent was sent.
pub fn ask_again(status: &mut TargetStatus) {
    status.state = TargetState::Pending;
    status.attempts = 0;
    status.next_attempt_at = None;
    status.failure = None;
}

/// The tags that a target's attempts write.
pub fn written_tags(status: &TargetStatus) -> Vec<&str> {
    let tags = status.tags.iter().filter(|tag| tag.superseded_by.is_none());
    tags.map(|tag| tag.name.as_str()).collect()
}

/// Writes what an attempt reports into the target's entry; what follows from a failure is decided elsewhere.
pub fn take_report(status: &mut TargetStatus, report: &TargetReport, digest: Option<&Digest>, dry_run: bool) {
    status.attempts += 1;
    let (total, new) = (&mut status.blobs, &report.blobs);
    total.existed += new.existed;
    total.mounted += new.mounted;
    total.uploaded += new.uploaded;
    total.resumed += new.resumed;
    total.bytes_uploaded += new.bytes_uploaded;
    total.bytes_saved += new.bytes_saved;
    status.referrers = report.referrers;
    status.failure.clone_from(&report.failure);
    status.requests.clone_from(&report.requests);
    status.requests_omitted = report.requests_omitted;
    if report.failure.is_none() {
        status.state = if dry_run {
            TargetState::Planned
        } else {
            TargetState::Pushed
        };
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
            None => Conditions::running("Pushing", &format!("Attempt {} is running.", status.attempt)),
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
            Conditions::succeeded(reason, &message)
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
