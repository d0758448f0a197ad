//! What happens next to one platform of a build: pure.
//!
//! The attempt, its pod and the record that the pod left decide; other platforms do not.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    observe::{SeenPlatform, StagedRecord},
    pod_report::{BUILD, BuildPod, FETCH, deleted, fetched, reduce},
    status,
};
use crate::{
    api::v1alpha1::{PlatformState, PlatformStatus},
    kubernetes::pod::{Container, SeenPod},
    record::{BuildRecord, Failure, FailureClass, Reason, Revision},
};

/// Attempts that the cluster may spoil before a platform fails.
const INFRASTRUCTURE_ATTEMPTS: i32 = 3;

/// How soon staging is asked again when it did not answer.
pub const STAGING_RETRY: Duration = Duration::from_secs(2);

/// What a platform needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// The one effect, if any.
    pub effect: Option<PodEffect>,
    /// When to look again without an event.
    pub look_again: Option<Duration>,
    /// What it waits for: a reason and a sentence.
    pub waiting: Option<(Reason, String)>,
    /// The source, once it is known.
    pub revision: Option<Revision>,
}

/// An effect on a platform's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodEffect {
    /// Create the pod of the attempt that the status names.
    Create,
    /// Delete a pod that has no more use.
    Delete {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
}

impl From<PodEffect> for Need {
    fn from(effect: PodEffect) -> Self {
        Self {
            effect: Some(effect),
            ..Self::default()
        }
    }
}

/// Decides, and writes what is decided into the platform's entry.
pub fn decide(status: &mut PlatformStatus, seen: &SeenPlatform, now: Timestamp) -> Need {
    match status.state {
        PlatformState::Built | PlatformState::Cancelled => Need::default(),
        PlatformState::Failed => seen
            .pod
            .as_ref()
            .and_then(deletion)
            .map(Need::from)
            .unwrap_or_default(),
        PlatformState::Pending => begin(status, seen, now),
        PlatformState::Building => building(status, seen, now),
    }
}

/// The deletion of a pod that still does something, unless it was asked for.
pub fn deletion(pod: &SeenPod) -> Option<PodEffect> {
    (pod.is_live() && !pod.deleting).then(|| PodEffect::Delete {
        name: pod.name.clone(),
        uid: pod.uid.clone(),
    })
}

/// Ends a platform badly.
pub fn fail(status: &mut PlatformStatus, failure: Failure, now: Timestamp) {
    status.state = PlatformState::Failed;
    status.failure = Some(failure);
    status.finished_at = Some(Time(now));
}

/// Begins the next attempt, once the pod of an earlier one does nothing more.
fn begin(status: &mut PlatformStatus, seen: &SeenPlatform, now: Timestamp) -> Need {
    // What its containers said of their ends is not their end: the kubelet's word is.
    if let Some(pod) = seen.pod.as_ref().filter(|pod| pod.is_live() || pod.ahead) {
        return deletion(pod).map(Need::from).unwrap_or_default();
    }
    status.state = PlatformState::Building;
    status.attempt += 1;
    status.started_at = Some(Time(now));
    status.finished_at = None;
    PodEffect::Create.into()
}

fn building(status: &mut PlatformStatus, seen: &SeenPlatform, now: Timestamp) -> Need {
    match (&seen.record, &seen.pod) {
        // The kubelet's event brings the next look.
        (StagedRecord::Read(_, record), Some(pod)) if waits_for_kubelet(pod, record) => Need::default(),
        (StagedRecord::Read(digest, record), pod) => {
            status::take_record(status, record, pod.as_ref(), now);
            status.record = Some(digest.clone());
            // The cluster's failures are tried again whether or not they could be recorded.
            let spoilt = status
                .failure
                .take_if(|failure| failure.class == FailureClass::Infrastructure);
            let need = spoilt.map_or_else(Need::default, |failure| spoil(status, failure, seen, now));
            Need {
                revision: pod.as_ref().and_then(fetched),
                ..need
            }
        }
        (StagedRecord::Unavailable(error), _) => Need {
            look_again: Some(STAGING_RETRY),
            waiting: Some((
                Reason::StagingUnavailable,
                format!("Waiting for the staging registry: {error}"),
            )),
            ..Need::default()
        },
        (StagedRecord::Invalid(error), _) => spoil(
            status,
            Failure::new(Reason::RecordInvalid, error.clone()),
            seen,
            now,
        ),
        (StagedRecord::None, None) if seen.pod_was_seen => spoil(status, deleted(), seen, now),
        (StagedRecord::None, None) => PodEffect::Create.into(),
        (StagedRecord::None, Some(pod)) => at_work(status, seen, pod, now),
    }
}

/// Whether only the kubelet knows what is still needed: how the builder of a failed build died, and, where its
/// own word was lost, what was fetched.
fn waits_for_kubelet(pod: &SeenPod, record: &BuildRecord) -> bool {
    let ended = |name| matches!(pod.container(name), Container::Ended { .. });
    pod.ahead && ((record.image.is_none() && !ended(BUILD)) || !ended(FETCH))
}

fn at_work(status: &mut PlatformStatus, seen: &SeenPlatform, pod: &SeenPod, now: Timestamp) -> Need {
    match reduce(pod, seen.mount_trouble.as_deref()) {
        BuildPod::Starting | BuildPod::Running => Need::default(),
        BuildPod::Waiting(reason, message) => Need {
            waiting: Some((reason, message)),
            ..Need::default()
        },
        // The record is read when the next pass observes.
        BuildPod::Reported(_) => Need {
            look_again: Some(Duration::ZERO),
            ..Need::default()
        },
        // The kubelet counted the wait for a Secret as running time; the build itself has not begun.
        BuildPod::Broken(failure)
            if failure.reason == Reason::DeadlineExceeded
                && seen.mount_trouble.is_some()
                && !pod.has_begun() =>
        {
            status.state = PlatformState::Pending;
            begin(status, seen, now)
        }
        BuildPod::Broken(failure) if failure.class == FailureClass::Infrastructure => {
            spoil(status, failure, seen, now)
        }
        BuildPod::Broken(failure) => {
            fail(status, failure, now);
            deletion(pod).map(Need::from).unwrap_or_default()
        }
    }
}

/// An attempt that the cluster spoiled: another one follows while any are left.
fn spoil(status: &mut PlatformStatus, failure: Failure, seen: &SeenPlatform, now: Timestamp) -> Need {
    status.infrastructure_failures += 1;
    if status.infrastructure_failures >= INFRASTRUCTURE_ATTEMPTS {
        let advice = format!(
            "given up after {INFRASTRUCTURE_ATTEMPTS} such attempts, request the build again when the cause is mended"
        );
        let failure = failure.about(&advice);
        fail(status, failure, now);
        return seen
            .pod
            .as_ref()
            .and_then(deletion)
            .map(Need::from)
            .unwrap_or_default();
    }
    status.failure = Some(failure);
    status.state = PlatformState::Pending;
    begin(status, seen, now)
}
