//! What happens next to a push: pure, one step at a time.
//!
//! Source: Launchpad's registry upload job: one failing target never stops the others; what the registry
//! refuses is not tried again by itself, what it could not answer is.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    observe::{Observed, Source},
    pod::{PUSH, name, target_credentials},
    status,
};
use crate::{
    agent::{
        plan::{PushPlan, PushSource, PushTarget},
        report::{self, PushReport},
    },
    api::v1alpha1::{RegistryPushStatus, TargetState, condition},
    controller::{build::image::json_digest, next::Next, request},
    kubernetes::pod::{Container, SeenPod},
    record::{Failure, Reason},
    registry::normal_origin,
};

/// Attempts before a target that cannot be reached fails: about two hours with the waits below.
const ATTEMPTS: i32 = 30;
/// The first wait between attempts; it doubles.
const FIRST_WAIT: i64 = 5;
/// The longest wait between attempts, so that a registry that came back is noticed.
const LONGEST_WAIT: i64 = 300;

/// At most one external effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do but to publish the status.
    Nothing,
    /// Create the pod of the attempt that the status names.
    CreatePod {
        /// What it does.
        plan: Box<PushPlan>,
    },
    /// Delete a pod that has no more use.
    DeletePod {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
}

/// What a pass arrives at.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Published before the step is taken.
    pub status: RegistryPushStatus,
    /// The one effect.
    pub step: Step,
    /// When to look again without an event.
    pub next: Next,
}

/// Decides one pass.
pub fn decide(seen: &Observed, now: Timestamp) -> Decision {
    let mut pass = Pass::begin(seen, now);
    pass.run();
    pass.end()
}

/// The status after the API server refused the step.
pub fn refused(seen: &Observed, decision: Decision, message: &str, now: Timestamp) -> Decision {
    let mut pass = Pass {
        seen,
        now,
        status: decision.status,
        step: Step::Nothing,
        next: Next::Change,
        waiting: None,
        ended: false,
    };
    pass.finish(Some(Failure::new(
        Reason::PodRefused,
        format!("The cluster refused the push's pod: {message}"),
    )));
    pass.end()
}

struct Pass<'a> {
    seen: &'a Observed,
    now: Timestamp,
    status: RegistryPushStatus,
    step: Step,
    next: Next,
    waiting: Option<(&'static str, String)>,
    ended: bool,
}

impl<'a> Pass<'a> {
    fn begin(seen: &'a Observed, now: Timestamp) -> Self {
        let mut status = seen.push.status.clone().unwrap_or_default();
        let generation = seen.push.metadata.generation;
        let spec = &seen.push.spec;
        let wanted = json_digest(&(&spec.source, &spec.targets, &spec.platforms));
        let differs = status.wanted.as_ref() != Some(&wanted);
        // The pod of an older specification ends first: its report would be taken for the new one's.
        let outdated = differs && live(seen).is_some();
        let changed = differs && !outdated;
        let ended = !changed && condition::is_true(&status.conditions, condition::FINISHED);
        if changed {
            // What is at a target stays there; the new specification is pushed whole, which costs a look.
            status.targets = seen.push.spec.targets.iter().map(status::pending).collect();
            status.failure = None;
            status.finished_at = None;
            status.next_attempt_at = None;
            status.pod = None;
            status.attempts_before_request = status.attempt;
            status.wanted = Some(wanted);
        }
        if !outdated {
            status.observed_generation = generation;
        }
        Self {
            seen,
            now,
            status,
            step: Step::Nothing,
            next: Next::Change,
            waiting: None,
            ended,
        }
    }

    fn run(&mut self) {
        self.answer_request();
        let live = live(self.seen);
        if let Some(pod) =
            live.filter(|_| self.status.observed_generation != self.seen.push.metadata.generation)
        {
            return self.delete(pod);
        }
        if self.ended {
            self.next = Next::Done;
            return;
        }
        if self.seen.push.spec.cancel {
            return match live {
                Some(pod) => self.delete(pod),
                None => self.finish(Some(Failure::new(
                    Reason::Cancelled,
                    "The push was cancelled by spec.cancel; what is at the targets stays.",
                ))),
            };
        }
        // The status names the pod of the running attempt until its report was taken.
        if self.status.pod.is_some() {
            return self.attempt_under_way();
        }
        self.next_attempt();
    }

    /// A request on a push that ended starts its failed targets anew; on a waiting one it ends the wait.
    fn answer_request(&mut self) {
        let Some(text) = request::of(&*self.seen.push) else {
            return;
        };
        if self.status.last_handled_request.as_deref() == Some(text) {
            return;
        }
        self.status.last_handled_request = Some(text.to_owned());
        self.status.attempts_before_request = self.status.attempt;
        self.status.next_attempt_at = None;
        if self.ended {
            for (entry, target) in self.status.targets.iter_mut().zip(&self.seen.push.spec.targets) {
                if entry.state != TargetState::Pushed {
                    *entry = status::pending(target);
                }
            }
            self.status.failure = None;
            self.status.finished_at = None;
            self.ended = self.status.targets.iter().all(|t| t.state == TargetState::Pushed);
        }
    }

    fn attempt_under_way(&mut self) {
        let Some(pod) = &self.seen.pod else {
            if self.seen.pod_was_seen {
                return self.attempt_failed(deleted(), 0);
            }
            return self.create();
        };
        if let Container::Ended {
            code,
            reason,
            message,
        } = pod.container(PUSH)
        {
            return match report::read::<PushReport>(message) {
                Some(report) => self.take(&report),
                None if pod.deleting => self.attempt_failed(deleted(), 0),
                None => {
                    let text = format!(
                        "The push's pod ended with code {code} ({reason}) and without a report; see kubectl logs {}.",
                        pod.name
                    );
                    self.attempt_failed(Failure::new(Reason::PushPodFailed, text), 0);
                }
            };
        }
        if pod.ended {
            let text = format!(
                "The node ended the push's pod: {} {}",
                pod.reason.as_deref().unwrap_or("unknown"),
                pod.message.as_deref().unwrap_or_default()
            );
            return self.attempt_failed(Failure::new(Reason::PushPodFailed, text), 0);
        }
        self.waiting = match (
            pod.blocked(),
            &pod.unschedulable,
            &self.seen.mount_trouble,
            pod.container(PUSH),
        ) {
            (Some((_, reason, message)), ..) => Some((
                Reason::ImagePullFailed.as_str(),
                format!("Slipway's own image cannot be used on the node: {reason}: {message}"),
            )),
            (None, Some(message), ..) => Some((
                Reason::Unschedulable.as_str(),
                format!("No node can run the push's pod: {message}"),
            )),
            (None, None, Some(message), Container::Waiting) => {
                Some((Reason::SecretMissing.as_str(), message.clone()))
            }
            _ => None,
        };
    }

    fn take(&mut self, report: &PushReport) {
        if report.digest.is_some() {
            self.status.digest.clone_from(&report.digest);
        }
        let asked = report
            .targets
            .iter()
            .filter_map(|target| target.retry_after_seconds)
            .max()
            .unwrap_or(0);
        if let Some(failure) = &report.failure {
            return self.attempt_failed(failure.clone(), asked);
        }
        let last = self.attempts() >= ATTEMPTS;
        let planned = self.planned();
        for (index, entry_report) in planned.into_iter().zip(&report.targets) {
            status::take_report(
                &mut self.status.targets[index],
                &self.seen.push.spec.targets[index],
                entry_report,
                last,
            );
        }
        self.status.pod = None;
        self.status.failure = None;
        self.settle(i64::try_from(asked).unwrap_or(LONGEST_WAIT));
    }

    /// Attempts since the specification, or a request, last asked for the push.
    fn attempts(&self) -> i32 {
        self.status.attempt - self.status.attempts_before_request
    }

    /// A failure that concerns every target of the attempt.
    fn attempt_failed(&mut self, failure: Failure, asked: u64) {
        self.status.pod = None;
        if !failure.retryable || self.attempts() >= ATTEMPTS {
            return self.finish(Some(failure));
        }
        self.status.failure = Some(failure);
        self.settle(i64::try_from(asked).unwrap_or(LONGEST_WAIT));
    }

    /// After an attempt: done, or the next one at its time.
    fn settle(&mut self, asked: i64) {
        if self
            .status
            .targets
            .iter()
            .all(|t| t.state != TargetState::Pending)
        {
            return self.finish(None);
        }
        let doublings = u32::try_from(self.attempts() - 1).unwrap_or(0).min(10);
        let wait = (FIRST_WAIT << doublings)
            .min(LONGEST_WAIT)
            .max(asked.min(24 * 3600));
        let at = self
            .now
            .checked_add(SignedDuration::from_secs(wait))
            .unwrap_or(self.now);
        self.status.next_attempt_at = Some(Time(at));
        self.wait_until(at);
    }

    fn next_attempt(&mut self) {
        if self.seen.push.spec.suspend {
            self.waiting = Some((
                "Suspended",
                "No attempt begins while spec.suspend is true.".into(),
            ));
            return;
        }
        let due = self.status.next_attempt_at.as_ref().map(|time| time.0);
        if let Some(at) = due.filter(|at| *at > self.now && !self.policies_changed()) {
            return self.wait_until(at);
        }
        match &self.seen.source {
            Source::Waiting(text) => {
                self.waiting = Some(("WaitingForSource", text.clone()));
                return;
            }
            Source::Forbidden(text) => {
                return self.finish(Some(Failure::new(Reason::OriginForbidden, text.clone())));
            }
            Source::Missing(text) => {
                return self.finish(Some(Failure::new(Reason::SourceMissing, text.clone())));
            }
            Source::Ready(source) => self.status.digest = source.digest.clone().or(self.status.digest.take()),
        }
        for entry in self
            .status
            .targets
            .iter_mut()
            .filter(|t| t.state == TargetState::Pending)
        {
            let origin = origin_of(&entry.repository);
            if self.seen.forbidden.contains(&normal_origin(origin)) {
                entry.state = TargetState::Failed;
                let text = format!(
                    "{origin} may not be pushed to: a RegistryPolicy denies it, or it is Slipway's own staging."
                );
                entry.failure = Some(Failure::new(Reason::OriginForbidden, text));
            }
        }
        if self.planned().is_empty() {
            return self.finish(None);
        }
        for entry in &mut self.status.targets {
            entry.plain_http = is_plain(self.seen, &entry.repository);
        }
        self.status.attempt += 1;
        self.status.pod = Some(name(&self.seen.push, self.status.attempt));
        self.status.next_attempt_at = None;
        self.status.started_at.get_or_insert(Time(self.now));
        self.create();
    }

    /// Whether a waiting target would be spoken to otherwise than in its latest attempt.
    fn policies_changed(&self) -> bool {
        let mut waiting = self
            .status
            .targets
            .iter()
            .filter(|t| t.state == TargetState::Pending);
        waiting.any(|target| target.plain_http != is_plain(self.seen, &target.repository))
    }

    fn create(&mut self) {
        let Source::Ready(source) = &self.seen.source else {
            return;
        };
        self.step = Step::CreatePod {
            plan: Box::new(self.plan(source)),
        };
    }

    fn plan(&self, source: &PushSource) -> PushPlan {
        let targets = self
            .seen
            .push
            .spec
            .targets
            .iter()
            .map(|target| origin_of(&target.repository));
        let origins: Vec<&str> = targets.chain([source.registry.as_str()]).collect();
        let targets = self.planned().into_iter().map(|index| {
            let target = &self.seen.push.spec.targets[index];
            PushTarget {
                repository: target.repository.clone(),
                tags: target.tags.clone(),
                credentials_dir: target.credentials_ref.as_ref().map(|_| target_credentials(index)),
                tag_policy: target.tag_policy,
            }
        });
        PushPlan {
            source: source.clone(),
            targets: targets.collect(),
            registries: self.seen.registries.with_roots_of(&origins),
            platforms: self
                .seen
                .push
                .spec
                .platforms
                .iter()
                .filter_map(|p| p.parse().ok())
                .collect(),
        }
    }

    /// The targets of the next or running attempt: those still pending. The order is the specification's.
    fn planned(&self) -> Vec<usize> {
        (0..self.status.targets.len())
            .filter(|index| self.status.targets[*index].state == TargetState::Pending)
            .collect()
    }

    fn wait_until(&mut self, at: Timestamp) {
        let failure = self.status.failure.as_ref().or_else(|| {
            self.status
                .targets
                .iter()
                .filter(|t| t.state == TargetState::Pending)
                .find_map(|t| t.failure.as_ref())
        });
        let (reason, message) = failure.map_or(("Waiting", ""), |f| (f.reason.as_str(), f.message.as_str()));
        self.waiting = Some((
            reason,
            format!(
                "The next attempt begins at {}: {message}",
                at.strftime("%Y-%m-%dT%H:%M:%SZ")
            ),
        ));
        let wait = at.duration_since(self.now).unsigned_abs();
        self.next = Next::After(wait + Duration::from_millis(10));
    }

    fn delete(&mut self, pod: &SeenPod) {
        self.waiting = Some(("Cancelling", "Waiting for the push's pod to end.".into()));
        if !pod.deleting {
            self.step = Step::DeletePod {
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            };
        }
    }

    fn finish(&mut self, failure: Option<Failure>) {
        self.ended = true;
        self.waiting = None;
        self.status.pod = None;
        self.status.next_attempt_at = None;
        self.status.finished_at = Some(Time(self.now));
        if failure.is_some() {
            for entry in self
                .status
                .targets
                .iter_mut()
                .filter(|t| t.state == TargetState::Pending)
            {
                entry.state = TargetState::Failed;
            }
        }
        self.status.failure = failure;
        self.next = Next::Done;
    }

    fn end(mut self) -> Decision {
        let done = self
            .status
            .targets
            .iter()
            .filter(|t| t.state == TargetState::Pushed)
            .count();
        self.status.progress = format!("{done}/{}", self.status.targets.len());
        self.status.conditions = status::conditions(&self.status, self.ended, self.waiting.as_ref()).merge(
            self.seen
                .push
                .status
                .as_ref()
                .map_or(&[], |before| &before.conditions),
            self.seen.push.metadata.generation,
            self.now,
        );
        Decision {
            status: self.status,
            step: self.step,
            next: self.next,
        }
    }
}

/// The failure of an attempt whose pod somebody took away.
fn deleted() -> Failure {
    Failure::new(
        Reason::PushPodFailed,
        "The push's pod was deleted before it reported.",
    )
}

/// Whether policies let this target be spoken to without TLS.
fn is_plain(seen: &Observed, repository: &str) -> bool {
    seen.registries
        .plain_http
        .iter()
        .any(|origin| origin == origin_of(repository))
}

fn origin_of(repository: &str) -> &str {
    repository.split('/').next().unwrap_or_default()
}

/// The pod of the latest attempt while it runs.
fn live(seen: &Observed) -> Option<&SeenPod> {
    seen.pod
        .as_ref()
        .filter(|pod| !pod.ended && !matches!(pod.container(PUSH), Container::Ended { .. }))
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
