//! What is left to do for a target that was pushed: its receipt, and a look now and then at its tags. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;

use super::{observe::Observed, status};
use crate::{
    agent::report::PushReport,
    api::v1alpha1::{RegistryPush, RegistryPushStatus, TargetState},
    record::{Party, RECEIPT_VERSION, Receipt, ReceiptTag},
    staging::receipt_tags,
};

/// A receipt that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueReceipt {
    /// The position of its target.
    pub target: usize,
    /// Its tag in staging.
    pub tag: String,
    /// The type of the build's image.
    pub image_media_type: String,
    /// What it says.
    pub receipt: Receipt,
}

/// The next receipt to write: of a build's image, for a target that serves it.
pub fn due_receipt(seen: &Observed, status: &RegistryPushStatus) -> Option<DueReceipt> {
    let build = seen.build.as_ref()?;
    let built = build.status.as_ref()?;
    let image = built.image.as_ref()?;
    let mut pushed = status.targets.iter().enumerate();
    let (target, entry) =
        pushed.find(|(_, target)| target.state == TargetState::Pushed && target.receipt.is_none())?;
    let push = &seen.push;
    let build_uid = build.uid().unwrap_or_default();
    let push_uid = push.uid().unwrap_or_default();
    let (digest, at) = (entry.digest.clone()?, entry.pushed_at.as_ref()?);
    let written = entry.tags.iter().filter(|tag| tag.superseded_by.is_none());
    Some(DueReceipt {
        target,
        tag: format!(
            "{}{}-{target}-{}",
            receipt_tags(&build_uid),
            push_uid.get(..8).unwrap_or(&push_uid),
            at.0.as_second()
        ),
        image_media_type: image.media_type.clone(),
        receipt: Receipt {
            version: RECEIPT_VERSION,
            build: party(&**build),
            records: built
                .platforms
                .iter()
                .filter_map(|one| one.record.clone())
                .collect(),
            image: image.digest.clone(),
            push: party(&**push),
            repository: entry.repository.clone(),
            digest,
            tags: written
                .map(|tag| ReceiptTag {
                    name: tag.name.clone(),
                    previous: tag.previous.clone(),
                })
                .collect(),
            blobs: entry.blobs,
            referrers: entry.referrers,
            attempts: entry.attempts,
            pushed_at: at.0.to_string(),
        },
    })
}

fn party<K: kube::Resource>(object: &K) -> Party {
    Party {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
    }
}

/// The targets whose tags are looked at.
pub fn checked(status: &RegistryPushStatus) -> Vec<usize> {
    let targets = status.targets.iter().enumerate();
    targets
        .filter(|(_, target)| target.state == TargetState::Pushed && !status::written_tags(target).is_empty())
        .map(|(index, _)| index)
        .collect()
}

/// When the tags are looked at next; `None` where nobody asked for that.
pub fn next_check(push: &RegistryPush, status: &RegistryPushStatus) -> Option<Timestamp> {
    let interval = push.spec.check_every_seconds.filter(|_| !push.spec.suspend)?;
    let last = status.checked_at.as_ref().or(status.finished_at.as_ref())?;
    (!checked(status).is_empty())
        .then(|| last.0.checked_add(SignedDuration::from_secs(interval)).ok())
        .flatten()
}

/// Writes what a look at the tags found.
pub fn take_check(status: &mut RegistryPushStatus, report: &PushReport, now: Timestamp) {
    status.checked_at = Some(Time(now));
    status.check_failure.clone_from(&report.failure);
    for (index, of_target) in checked(status).into_iter().zip(&report.targets) {
        let target = &mut status.targets[index];
        if let Some(failure) = &of_target.failure {
            let failure = failure.clone().about(&target.repository);
            status.check_failure.get_or_insert(failure);
            continue;
        }
        let pushed = target.digest.clone();
        let written = target.tags.iter_mut().filter(|tag| tag.superseded_by.is_none());
        for (tag, found) in written.zip(&of_target.previous) {
            tag.drifted_to = (*found != pushed).then(|| {
                found
                    .as_ref()
                    .map_or_else(|| "nothing".to_owned(), ToString::to_string)
            });
        }
    }
}
