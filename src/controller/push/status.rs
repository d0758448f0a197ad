//! What a push's status says: its targets, its conditions, and the events that tell of a change.

use kube::runtime::events::Event;

use crate::{
    agent::report::{BlobCounters, TargetReport},
    api::v1alpha1::{
        PushTargetSpec, RegistryPushStatus, TagStatus, TargetState, TargetStatus,
        condition::{self, Conditions},
    },
    controller::events,
};

/// A target to which nothing was pushed yet.
pub fn pending(target: &PushTargetSpec) -> TargetStatus {
    TargetStatus {
        repository: target.repository.clone(),
        state: TargetState::Pending,
        plain_http: false,
        attempts: 0,
        tags: Vec::new(),
        blobs: BlobCounters::default(),
        failure: None,
    }
}

/// Writes what an attempt reports into the target's entry; `give_up` ends a target that failed.
pub fn take_report(
    status: &mut TargetStatus,
    target: &PushTargetSpec,
    report: &TargetReport,
    last_attempt: bool,
) {
    status.attempts += 1;
    let (total, new) = (&mut status.blobs, &report.blobs);
    total.existed += new.existed;
    total.mounted += new.mounted;
    total.uploaded += new.uploaded;
    total.resumed += new.resumed;
    total.bytes_uploaded += new.bytes_uploaded;
    total.bytes_saved += new.bytes_saved;
    status.failure.clone_from(&report.failure);
    status.state = match &report.failure {
        None => TargetState::Pushed,
        Some(failure) if failure.retryable && !last_attempt => TargetState::Pending,
        Some(_) => TargetState::Failed,
    };
    if report.failure.is_none() {
        status.tags = target
            .tags
            .iter()
            .enumerate()
            .map(|(index, tag)| TagStatus {
                name: tag.clone(),
                previous: report.previous.get(index).cloned().flatten(),
            })
            .collect();
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
        .filter(|t| t.state != TargetState::Pushed)
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
            let digest = status.digest.as_ref().map_or("", |digest| digest.as_str());
            Conditions::succeeded(
                "Uploaded",
                &format!("All {} targets serve {digest}.", status.targets.len()),
            )
        }
    }
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
