//! What became of an attempt, and when the next one is due. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{observe::Observed, pod::PUSH};
use crate::{
    agent::report::{self, PushReport},
    api::v1alpha1::{TargetState, TargetStatus},
    kubernetes::pod::{Container, SeenPod},
    record::{Failure, Reason},
};

/// The first wait between a target's attempts; it doubles.
const FIRST_WAIT: i64 = 5;
/// The longest wait between attempts, so that a registry that came back is noticed.
const LONGEST_WAIT: i64 = 300;
/// A registry that wants to be left alone for longer is asked after a day all the same.
const LONGEST_REST: i64 = 24 * 3600;

/// Attempts before a target fails for good.
fn attempts_allowed(reason: Reason) -> i32 {
    match reason {
        // A target that took everything and serves something else is given one whole push more.
        Reason::VerificationFailed => 2,
        // About two hours with the waits above.
        _ => 30,
    }
}

/// Where the running attempt stands.
pub enum Attempt {
    /// Its pod is still to be made.
    NotBegun,
    /// Its pod is there.
    Runs,
    /// It has said what it did.
    Reported(Box<PushReport>),
    /// It ended without a word.
    Lost(Failure),
}

/// Where the attempt stands that the status names.
pub fn attempt(seen: &Observed) -> Attempt {
    let lost = |text: String| Attempt::Lost(Failure::new(Reason::PushPodFailed, text));
    let deleted = || lost("The push's pod was deleted before it reported.".to_owned());
    let Some(pod) = &seen.pod else {
        return if seen.pod_was_seen {
            deleted()
        } else {
            Attempt::NotBegun
        };
    };
    if let Container::Ended {
        code,
        reason,
        message,
    } = pod.container(PUSH)
    {
        return match report::read::<PushReport>(message) {
            Some(report) => Attempt::Reported(Box::new(report)),
            None if pod.deleting => deleted(),
            None => lost(format!(
                "The push's pod ended with code {code} ({reason}) and without a report; see kubectl logs {}.",
                pod.name
            )),
        };
    }
    if pod.ended {
        return lost(format!(
            "The node ended the push's pod: {} {}",
            pod.reason.as_deref().unwrap_or("unknown"),
            pod.message.as_deref().unwrap_or_default()
        ));
    }
    Attempt::Runs
}

/// Why a pod does not begin, in words for a condition.
pub fn trouble(seen: &Observed) -> Option<(&'static str, String)> {
    let pod = seen.pod.as_ref()?;
    if let Some((_, reason, message)) = pod.blocked() {
        let text = format!("Slipway's own image cannot be used on the node: {reason}: {message}");
        return Some((Reason::ImagePullFailed.as_str(), text));
    }
    if let Some(message) = &pod.unschedulable {
        let text = format!("No node can run the push's pod: {message}");
        return Some((Reason::Unschedulable.as_str(), text));
    }
    let message = seen.mount_trouble.as_ref()?;
    (*pod.container(PUSH) == Container::Waiting).then(|| (Reason::SecretMissing.as_str(), message.clone()))
}

/// What cannot be mended by waiting, or was waited for long enough, fails; anything else has its time.
pub fn retry_or_fail(entry: &mut TargetStatus, failure: &Failure, asked: Option<u64>, now: Timestamp) {
    if !failure.retryable || entry.attempts >= attempts_allowed(failure.reason) {
        return fail(entry, failure.clone());
    }
    let doublings = u32::try_from(entry.attempts - 1).unwrap_or(0).min(10);
    let asked = asked.map_or(0, |seconds| i64::try_from(seconds).unwrap_or(LONGEST_REST));
    let wait = (FIRST_WAIT << doublings)
        .min(LONGEST_WAIT)
        .max(asked.min(LONGEST_REST));
    let at = now.checked_add(SignedDuration::from_secs(wait)).unwrap_or(now);
    entry.state = TargetState::Pending;
    entry.failure = Some(failure.clone());
    entry.next_attempt_at = Some(Time(at));
}

/// Nothing more happens there by itself.
pub fn fail(entry: &mut TargetStatus, failure: Failure) {
    entry.state = TargetState::Failed;
    entry.next_attempt_at = None;
    entry.failure = Some(failure);
}

/// The earliest time of a target that waits for one.
pub fn earliest(targets: &[TargetStatus]) -> Option<Time> {
    let waiting = targets
        .iter()
        .filter(|target| target.state == TargetState::Pending);
    waiting
        .filter_map(|target| target.next_attempt_at.clone())
        .min_by_key(|time| time.0)
}

/// The pod of the latest attempt while it runs.
pub fn live(seen: &Observed) -> Option<&SeenPod> {
    seen.pod
        .as_ref()
        .filter(|pod| !pod.ended && !matches!(pod.container(PUSH), Container::Ended { .. }))
}

/// Whether the latest attempt's pod has told of its end, and the kubelet has not: two pods of one push never run.
pub fn is_ending(seen: &Observed) -> bool {
    seen.pod.as_ref().is_some_and(|pod| pod.ahead && !pod.ended)
}
