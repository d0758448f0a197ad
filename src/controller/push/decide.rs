//! What happens next to a push: pure, one step at a time.
//!
//! Source: Launchpad's registry upload job: one failing target never stops the others; what the registry
//! refuses is not tried again by itself, what it could not answer is.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    after::{self, DueReceipt},
    attempt::{Attempt, attempt, earliest, is_ending, live, retry_or_fail, trouble},
    begin::Held,
    observe::{Observed, Source},
    plan,
    pod::name,
    status::{self, Success},
};
use crate::{
    agent::{
        plan::{PushMode, PushPlan},
        report::PushReport,
    },
    api::v1alpha1::{RegistryPushStatus, TargetState, TargetStatus, condition},
    controller::{build::image::json_digest, next::Next, request},
    kubernetes::pod::SeenPod,
    record::{Failure, Reason},
};

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
    /// Write a receipt into staging.
    PutReceipt(Box<DueReceipt>),
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
    /// Whether an attempt begins that did not go on before: nobody else may begin until the status is written.
    pub begins: bool,
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
        begins: false,
    };
    let failure = Failure::new(
        Reason::PodRefused,
        format!("The cluster refused the push's pod: {message}"),
    );
    if condition::is_true(&pass.status.conditions, condition::FINISHED) {
        // It was to look at the tags of a push that ended well.
        pass.ended = true;
        pass.check_failed(failure);
    } else {
        pass.finish(Some(failure));
    }
    pass.end()
}

/// The reason of a push that waits for its build.
pub(super) const WAITING_FOR_SOURCE: &str = "WaitingForSource";

/// One pass over a push.
pub(super) struct Pass<'a> {
    pub(super) seen: &'a Observed,
    pub(super) now: Timestamp,
    pub(super) status: RegistryPushStatus,
    pub(super) step: Step,
    pub(super) next: Next,
    pub(super) waiting: Option<(&'static str, String)>,
    pub(super) ended: bool,
    pub(super) begins: bool,
}

impl<'a> Pass<'a> {
    fn begin(seen: &'a Observed, now: Timestamp) -> Self {
        let mut status = seen.push.status.clone().unwrap_or_default();
        let generation = seen.push.metadata.generation;
        let spec = &seen.push.spec;
        let wanted = json_digest(&(&spec.source, &spec.targets, &spec.platforms, spec.dry_run));
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
            status.pod = None;
            status.portion = None;
            status.checked_at = None;
            status.check_failure = None;
            status.digest = None;
            status.referrers = Vec::new();
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
            begins: false,
        }
    }

    fn run(&mut self) {
        self.push();
        if self.step == Step::Nothing
            && let Some(due) = after::due_receipt(self.seen, &self.status)
        {
            self.step = Step::PutReceipt(Box::new(due));
        }
    }

    fn push(&mut self) {
        self.answer_request();
        let live = live(self.seen);
        if let Some(pod) =
            live.filter(|_| self.status.observed_generation != self.seen.push.metadata.generation)
        {
            return self.delete(pod);
        }
        if self.ended && self.goes_on_with_its_build() {
            // The next pass sees the others again, which a push that ended does not look at.
            self.ask_again();
            self.next = Next::Now;
            self.waiting = Some((WAITING_FOR_SOURCE, "The build was requested again.".into()));
            return;
        }
        if self.ended {
            return self.look_at_tags();
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

    /// A request on a push that ended starts its failed targets anew; on a waiting one it ends the waits.
    fn answer_request(&mut self) {
        let own = request::of(&*self.seen.push);
        let of_build = self.seen.upload_request.as_deref();
        let status = &mut self.status;
        let is_new = |now: Option<&str>, last: Option<&str>| now.is_some() && now != last;
        if !is_new(own, status.last_handled_request.as_deref())
            && !is_new(of_build, status.last_handled_upload_request.as_deref())
        {
            return;
        }
        if let Some(text) = own {
            status.last_handled_request = Some(text.to_owned());
        }
        if let Some(text) = of_build {
            status.last_handled_upload_request = Some(text.to_owned());
        }
        self.ask_again();
    }

    /// Whether the push ended only because its build had no image, and that has changed.
    fn goes_on_with_its_build(&self) -> bool {
        let failure = self.status.failure.as_ref();
        failure.is_some_and(|failure| failure.reason == Reason::NothingToUpload)
            && self.seen.build.is_some()
            && !matches!(self.seen.source, Source::NotBuilt(_))
            && !self.seen.push.spec.cancel
    }

    fn ask_again(&mut self) {
        for entry in &mut self.status.targets {
            let again = match entry.state {
                TargetState::Failed | TargetState::Superseded => self.ended,
                TargetState::Pending => true,
                TargetState::Pushed => self.ended && entry.tags.iter().any(|tag| tag.drifted_to.is_some()),
                TargetState::Pushing | TargetState::Planned => false,
            };
            if again {
                status::ask_again(entry);
            }
        }
        if self.ended {
            self.status.failure = None;
            let nothing_left = self.in_state(TargetState::Pending).is_empty();
            self.ended = nothing_left;
            if !nothing_left {
                self.status.finished_at = None;
            }
        }
    }

    fn attempt_under_way(&mut self) {
        match attempt(self.seen) {
            Attempt::NotBegun => self.create(),
            Attempt::Reported(report) => self.take(&report),
            Attempt::Lost(failure) => self.attempt_failed(&failure, None),
            Attempt::Runs => self.waiting = trouble(self.seen),
        }
    }

    fn take(&mut self, report: &PushReport) {
        let portion = self.status.portion.take();
        if report.digest.is_some() && portion.is_none() {
            self.status.digest.clone_from(&report.digest);
            self.status.referrers.clone_from(&report.referrers);
        }
        if let Some(failure) = &report.failure {
            let asked = report
                .targets
                .iter()
                .filter_map(|target| target.retry_after_seconds);
            return self.attempt_failed(failure, asked.max());
        }
        let pushing = self.in_state(TargetState::Pushing);
        let success = match &portion {
            _ if self.seen.push.spec.dry_run => Success::Planned,
            Some(platform) => Success::Published(platform),
            None => Success::Pushed,
        };
        for (index, of_target) in pushing.into_iter().zip(&report.targets) {
            let entry = &mut self.status.targets[index];
            let refused = |failure: &Failure| failure.reason == Reason::PushUnauthorized;
            let refused_before = entry.failure.as_ref().is_some_and(refused);
            status::take_report(entry, of_target, report.digest.as_ref(), success, self.now);
            if let Some(failure) = &of_target.failure {
                let (push, build) = (&self.seen.push, self.seen.facts.build.as_ref());
                entry.error_summary = Some(status::error_summary(push, build, &entry.repository, of_target));
                let has_secret = push.spec.targets[index].credentials_ref.is_some();
                // A Secret that was rotated while an attempt ran counts in the next one's pod, and what a portion
                // cannot do the whole image can.
                let again = portion.is_some() || (has_secret && refused(failure) && !refused_before);
                let failure = Failure {
                    retryable: failure.retryable || again,
                    ..failure.clone()
                };
                retry_or_fail(entry, &failure, of_target.retry_after_seconds, self.now);
            }
        }
        self.status.pod = None;
        self.status.failure = None;
        self.go_on();
    }

    /// A failure that concerns every target of the attempt.
    fn attempt_failed(&mut self, failure: &Failure, asked: Option<u64>) {
        self.status.pod = None;
        self.status.portion = None;
        for index in self.in_state(TargetState::Pushing) {
            let entry = &mut self.status.targets[index];
            entry.attempts += 1;
            retry_or_fail(entry, failure, asked, self.now);
        }
        if !failure.retryable || self.in_state(TargetState::Pending).is_empty() {
            return self.finish(Some(failure.clone()));
        }
        self.status.failure = Some(failure.clone());
        self.go_on();
    }

    /// After an attempt: done, or the next one at its time.
    fn go_on(&mut self) {
        if self.in_state(TargetState::Pending).is_empty() {
            self.finish(None);
        } else {
            self.wait(None);
        }
    }

    pub(super) fn begin_attempt(&mut self) {
        self.status.attempt += 1;
        self.status.pod = Some(name(&self.seen.push, self.status.attempt));
        self.status.started_at.get_or_insert(Time(self.now));
        self.begins = true;
    }

    pub(super) fn create(&mut self) {
        let from = match (&self.status.portion, &self.seen.source) {
            (Some(platform), _) => {
                let mut portions = self.seen.portions.iter();
                portions
                    .find(|portion| portion.platform == *platform)
                    .map(|portion| &portion.from)
            }
            (None, Source::Ready(from)) => Some(&**from),
            (None, _) => None,
        };
        let Some(from) = from else {
            // The checks of a push that ended well go on when its source is back.
            if !self.ended {
                self.give_back();
            }
            return;
        };
        let (targets, mode) = if self.ended {
            (after::checked(&self.status), PushMode::Check)
        } else if self.seen.push.spec.dry_run {
            (self.in_state(TargetState::Pushing), PushMode::DryRun)
        } else {
            (self.in_state(TargetState::Pushing), PushMode::Write)
        };
        let plan = plan::plan(self.seen, mode, &self.status, from, &targets);
        self.step = Step::CreatePod { plan: Box::new(plan) };
    }

    /// The source went away between the written status and the pod: the attempt was none.
    fn give_back(&mut self) {
        self.status.pod = None;
        self.status.portion = None;
        for index in self.in_state(TargetState::Pushing) {
            self.status.targets[index].state = TargetState::Pending;
        }
        self.next = Next::Now;
    }

    /// A push that ended well looks at its tags now and then, in a pod that has the Secrets.
    fn look_at_tags(&mut self) {
        self.next = Next::Done;
        if self.status.pod.is_some() {
            match attempt(self.seen) {
                Attempt::NotBegun => return self.create(),
                Attempt::Runs => {
                    self.next = Next::Change;
                    return;
                }
                Attempt::Reported(report) => {
                    self.status.pod = None;
                    after::take_check(&mut self.status, &report, self.now);
                }
                Attempt::Lost(failure) => self.check_failed(failure),
            }
        }
        let Some(at) = after::next_check(&self.seen.push, &self.status) else {
            return;
        };
        if at > self.now {
            let wait = at.duration_since(self.now).unsigned_abs();
            self.next = Next::After(wait + Duration::from_millis(10));
        } else if matches!(self.seen.source, Source::Ready(_)) {
            self.next = Next::Change;
            if is_ending(self.seen) {
                return;
            }
            self.begin_attempt();
            self.create();
        }
    }

    fn check_failed(&mut self, failure: Failure) {
        self.status.pod = None;
        self.status.checked_at = Some(Time(self.now));
        self.status.check_failure = Some(failure);
    }

    pub(super) fn in_state(&self, state: TargetState) -> Vec<usize> {
        let all = self.status.targets.iter().enumerate();
        all.filter(|(_, target)| target.state == state)
            .map(|(index, _)| index)
            .collect()
    }

    fn pending(&self) -> impl Iterator<Item = &TargetStatus> {
        self.status
            .targets
            .iter()
            .filter(|target| target.state == TargetState::Pending)
    }

    /// Nothing is due: until a time, or until somebody else has written a tag.
    pub(super) fn wait(&mut self, busy: Option<Held>) {
        let failing = self.pending().find(|target| target.failure.is_some());
        let at = earliest(&self.status.targets);
        let is_busy = busy.is_some();
        self.waiting = match (busy, failing, &at) {
            (None, Some(target), Some(at)) => {
                let failure = target.failure.as_ref();
                let (reason, message) = failure.map_or(("Waiting", ""), |f| (f.reason.as_str(), &f.message));
                let time = at.0.strftime("%Y-%m-%dT%H:%M:%SZ");
                Some((
                    reason,
                    format!(
                        "The next attempt begins at {time}: {}: {message}",
                        target.repository
                    ),
                ))
            }
            (Some((reason, why)), ..) => Some((reason, format!("Waiting for its turn: {why}"))),
            _ => Some(("Waiting", "Waiting for its turn.".to_owned())),
        };
        if let Some(at) = at {
            let wait = at.0.duration_since(self.now);
            self.next = if wait.is_positive() {
                Next::After(wait.unsigned_abs() + Duration::from_millis(10))
            } else {
                Next::Now
            };
        } else if !is_busy {
            self.next = Next::Now;
        }
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

    pub(super) fn finish(&mut self, failure: Option<Failure>) {
        self.ended = true;
        self.begins = false;
        self.waiting = None;
        self.status.pod = None;
        self.status.portion = None;
        self.status.finished_at = Some(Time(self.now));
        if failure.is_some() {
            for entry in &mut self.status.targets {
                if matches!(entry.state, TargetState::Pending | TargetState::Pushing) {
                    entry.state = TargetState::Failed;
                    entry.next_attempt_at = None;
                }
            }
        }
        self.status.failure = failure;
        self.next = Next::Done;
    }

    fn end(mut self) -> Decision {
        let done = self.status.targets.iter().filter(|target| {
            matches!(
                target.state,
                TargetState::Pushed | TargetState::Planned | TargetState::Superseded
            )
        });
        self.status.progress = format!("{}/{}", done.count(), self.status.targets.len());
        self.status.next_attempt_at = earliest(&self.status.targets);
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
            begins: self.begins,
        }
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
