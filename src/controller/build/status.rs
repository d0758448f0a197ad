//! What a build's status says: its entries, its conditions, and the events that tell of a change.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    ResourceExt as _,
    runtime::events::{Event, EventType},
};

use super::pod_report::explained;
use crate::{
    api::v1alpha1::{
        BuildPhase, OCIRecipeBuildStatus, PlatformState, PlatformStatus, RegistryUploadStatus,
        condition::{self, Conditions},
    },
    controller::events,
    image::Platform,
    kubernetes::pod::SeenPod,
    record::{BuildRecord, Failure, Reason},
};

/// A platform on which no attempt has begun.
pub fn pending(platform: Platform) -> PlatformStatus {
    PlatformStatus {
        platform,
        state: PlatformState::Pending,
        attempt: 0,
        infrastructure_failures: 0,
        pod: None,
        manifest: None,
        manifest_size: None,
        manifest_media_type: None,
        config: None,
        layers: Vec::new(),
        counters: None,
        record: None,
        failure: None,
        started_at: None,
        finished_at: None,
    }
}

/// Writes what a record says into the platform's entry.
pub fn take_record(status: &mut PlatformStatus, record: &BuildRecord, pod: Option<&SeenPod>, now: Timestamp) {
    status.finished_at = Some(Time(now));
    status.counters = Some(record.counters);
    if let Some(image) = &record.image {
        status.state = PlatformState::Built;
        status.failure = None;
        status.manifest = Some(image.manifest.digest.clone());
        status.manifest_size = Some(image.manifest.size);
        status.manifest_media_type = Some(image.manifest.media_type.clone());
        status.config = Some(image.config.digest.clone());
        status.layers.clone_from(&image.layers);
        return;
    }
    let mut failure = record.failure.clone().unwrap_or_else(|| {
        Failure::new(
            Reason::RecordInvalid,
            "The record has neither an image nor a failure.",
        )
    });
    if let Some(pod) = pod {
        failure = explained(failure, pod);
    }
    status.state = PlatformState::Failed;
    status.failure = Some(failure);
}

/// The conditions of a status; `waiting` is what a running build waits for.
pub fn conditions(status: &OCIRecipeBuildStatus, waiting: Option<&(&'static str, String)>) -> Conditions {
    let phase = status.phase.as_str();
    match (status.phase, &status.failure) {
        (BuildPhase::FullyBuilt, _) => {
            let image = status.image.as_ref().map_or("", |image| image.reference.as_str());
            Conditions::succeeded(phase, &format!("Staging serves {image}."))
        }
        (phase, Some(failure)) if phase.is_terminal() => {
            Conditions::failed(failure.reason.as_str(), &failure.message)
        }
        _ => match waiting {
            Some((reason, message)) => Conditions::running(reason, message),
            None => {
                let retried = status
                    .platforms
                    .iter()
                    .filter(|p| p.state == PlatformState::Building)
                    .find_map(|p| p.failure.as_ref());
                let text = retried.map_or_else(
                    || {
                        format!(
                            "{} of {} platforms are built.",
                            built(status),
                            status.platforms.len()
                        )
                    },
                    |failure| format!("Trying again after: {}", failure.message),
                );
                Conditions::running(phase, &text)
            }
        },
    }
}

fn built(status: &OCIRecipeBuildStatus) -> usize {
    status
        .platforms
        .iter()
        .filter(|p| p.state == PlatformState::Built)
        .count()
}

/// The events that tell of the way from one status to the next; none per layer, none per look.
pub fn events(before: Option<&OCIRecipeBuildStatus>, after: &OCIRecipeBuildStatus) -> Vec<Event> {
    let mut list = Vec::new();
    let phase_before = before.map_or(BuildPhase::NeedsBuilding, |status| status.phase);
    for platform in &after.platforms {
        let attempt_before = before
            .and_then(|status| status.platforms.iter().find(|p| p.platform == platform.platform))
            .map_or(0, |p| p.attempt);
        if platform.attempt > attempt_before && platform.attempt > 1 {
            let cause = platform
                .failure
                .as_ref()
                .map_or("it was requested", |f| f.message.as_str());
            list.push(events::warning(
                "Retrying",
                &format!(
                    "{}: attempt {} begins: {cause}",
                    platform.platform, platform.attempt
                ),
            ));
        }
    }
    if after.phase != phase_before {
        let condition = after.conditions.iter().find(|c| c.type_ == condition::SUCCEEDED);
        let (reason, message) = condition.map_or(("", ""), |c| (c.reason.as_str(), c.message.as_str()));
        match after.phase {
            BuildPhase::FullyBuilt => list.push(events::normal("FullyBuilt", message)),
            phase if phase.is_terminal() => list.push(events::warning(reason, message)),
            BuildPhase::DependencyWait => list.push(Event {
                type_: EventType::Warning,
                ..events::normal(reason, message)
            }),
            _ => {}
        }
    }
    if let Some(refusal) = &after.upload_refusal
        && before.is_none_or(|b| b.last_handled_upload_request != after.last_handled_upload_request)
    {
        list.push(events::warning(refusal.reason.as_str(), &refusal.message));
    }
    if before.map(|b| b.registry_upload_status) != Some(after.registry_upload_status) {
        match after.registry_upload_status {
            RegistryUploadStatus::Uploaded => {
                list.push(events::normal("Uploaded", "Every target serves the image."));
            }
            RegistryUploadStatus::Superseded => {
                let text = "Every tag is left to a newer build.";
                list.push(events::normal(Reason::Superseded.as_str(), text));
            }
            RegistryUploadStatus::FailedToUpload => {
                let text = format!(
                    "Not every target serves the image; see kubectl describe rpush {}.",
                    after.pushes.join(" ")
                );
                list.push(events::warning("FailedToUpload", &text));
            }
            _ => {}
        }
    }
    list
}

/// Whether two statuses differ in more than times.
pub fn differs(before: Option<&OCIRecipeBuildStatus>, after: &OCIRecipeBuildStatus) -> bool {
    before != Some(after)
}

/// Whether an object is owned by the object of this UID.
pub fn owned_by<K: kube::Resource>(object: &K, uid: &str) -> bool {
    object.owner_references().iter().any(|owner| owner.uid == uid)
}
