//! What the next attempt is about: which targets have their time and their turn, and whether they get the whole
//! image or a portion of it. Pure.

use super::{
    attempt::{earliest, fail, is_ending},
    decide::{Pass, WAITING_FOR_SOURCE},
    observe::{Portion, Source},
    plan::{is_plain, origin_of},
    queue::{self, Queue},
    rivals, status, tags,
};
use crate::{
    agent::plan::PublishPolicy,
    api::v1alpha1::{PlatformState, PlatformStatus, TargetState},
    controller::next::Next,
    record::{Failure, Reason},
    registry::normal_origin,
};

/// Why a target waits though its time has come: the reason and the message of a condition.
pub(super) type Held = (&'static str, String);

impl Pass<'_> {
    pub(super) fn next_attempt(&mut self) {
        for entry in &mut self.status.targets {
            entry.queued = None;
        }
        let ready = matches!(self.seen.source, Source::Ready(_));
        let portions = if ready || self.whole_follows() || self.seen.push.spec.dry_run {
            &[][..]
        } else {
            &self.seen.portions
        };
        if ready || !portions.is_empty() {
            self.name_tags();
        }
        if self.seen.push.spec.suspend {
            self.waiting = Some((
                "Suspended",
                "No attempt begins while spec.suspend is true.".into(),
            ));
            return;
        }
        match &self.seen.source {
            // What is built need not wait for the rest.
            Source::Waiting(_) if !portions.is_empty() => {}
            Source::Waiting(text) => {
                self.waiting = Some((WAITING_FOR_SOURCE, text.clone()));
                return;
            }
            Source::NotBuilt(text) => {
                return self.finish(Some(Failure::new(Reason::NothingToUpload, text.clone())));
            }
            Source::Forbidden(text) => {
                return self.finish(Some(Failure::new(Reason::OriginForbidden, text.clone())));
            }
            Source::Missing(text) => {
                return self.finish(Some(Failure::new(Reason::SourceMissing, text.clone())));
            }
            Source::Ready(from) => {
                self.status.digest = from.digest.clone().or(self.status.digest.take());
            }
        }
        self.refuse_forbidden_origins();
        self.leave_tags_to_newer_builds();
        if self.in_state(TargetState::Pending).is_empty() {
            return self.finish(None);
        }
        let whole = ready.then_some(None);
        let candidates = whole.into_iter().chain(portions.iter().map(Some));
        let mut busy = None;
        let mut found = None;
        for portion in candidates {
            let (due, held) = self.due(portion);
            for (index, why) in held {
                // Its time has come; it is somebody else's end that wakes it now.
                self.status.targets[index].next_attempt_at = None;
                self.status.targets[index].queued = (why.0 == queue::QUEUED).then_some(true);
                if busy.as_ref().is_none_or(|(reason, _)| *reason != queue::QUEUED) {
                    busy = Some(why);
                }
            }
            if !due.is_empty() {
                found = Some((portion, due));
                break;
            }
        }
        let Some((portion, due)) = found else {
            return match &self.seen.source {
                Source::Waiting(text) if busy.is_none() && earliest(&self.status.targets).is_none() => {
                    self.waiting = Some((WAITING_FOR_SOURCE, text.clone()));
                }
                _ => {
                    self.wait(busy);
                    // This was the look at what is due: another one at once would find the same.
                    if self.next == Next::Now {
                        self.next = Next::Change;
                    }
                }
            };
        };
        if is_ending(self.seen) {
            self.waiting = Some(("Waiting", "Waiting for the last attempt's pod to end.".into()));
            return;
        }
        for index in due {
            let entry = &mut self.status.targets[index];
            entry.state = TargetState::Pushing;
            entry.next_attempt_at = None;
            entry.plain_http = is_plain(self.seen, &entry.repository);
        }
        self.status.portion = portion.map(|portion| portion.platform.clone());
        self.begin_attempt();
        self.create();
    }

    /// The pending targets whose turn it is to get the image, or a portion of it, and why others wait, by a
    /// condition's reason and message.
    fn due(&self, portion: Option<&Portion>) -> (Vec<usize>, Vec<(usize, Held)>) {
        let (mut due, mut held) = (Vec::new(), Vec::new());
        let own = queue::ticket(&self.seen.push);
        for index in self.in_state(TargetState::Pending) {
            let entry = &self.status.targets[index];
            let later = entry.next_attempt_at.as_ref().is_some_and(|at| at.0 > self.now);
            if later && entry.plain_http == is_plain(self.seen, &entry.repository) {
                continue;
            }
            if portion
                .is_some_and(|portion| !self.is_ahead(index) || entry.published.contains(&portion.platform))
            {
                continue;
            }
            let (others, repository) = (&self.seen.rivals, &entry.repository);
            if let Some(rival) = rivals::writer(others, repository, &status::written_tags(entry)) {
                held.push((
                    index,
                    (
                        "Waiting",
                        format!("{repository}: {} is writing a tag of it.", rival.name),
                    ),
                ));
            } else if let Some(rival) = rivals::bringer(others, repository) {
                held.push((
                    index,
                    (
                        "Waiting",
                        format!("{repository}: {} is bringing layers that both have.", rival.name),
                    ),
                ));
            } else if let Some(queue) = self.queue_of(repository).filter(|queue| queue.holds(&own)) {
                let text = format!(
                    "{repository}: its RegistryPolicy lets {} pushes go there at once, and others are before this one.",
                    queue.at_once
                );
                held.push((index, (queue::QUEUED, text)));
            } else {
                due.push(index);
            }
        }
        (due, held)
    }

    fn queue_of(&self, repository: &str) -> Option<&Queue> {
        self.seen.queues.get(&normal_origin(origin_of(repository)))
    }

    /// Whether nothing but its index is missing of the build's image: a portion would only delay it.
    fn whole_follows(&self) -> bool {
        let status = self.seen.build.as_ref().and_then(|build| build.status.as_ref());
        let built = |platform: &PlatformStatus| platform.state == PlatformState::Built;
        status.is_some_and(|status| status.platforms.iter().all(built))
    }

    /// Whether a target gets each platform as soon as it is built.
    fn is_ahead(&self, target: usize) -> bool {
        let target = self.seen.push.spec.targets.get(target);
        target.is_some_and(|target| target.publish == PublishPolicy::AsReady)
    }

    /// Fills in the templates of targets that have no tags yet; once filled they stay, whatever the day.
    fn name_tags(&mut self) {
        let mut facts = self.seen.facts.clone();
        if facts.date.is_empty() {
            let began = self.status.started_at.as_ref().map_or(self.now, |time| time.0);
            facts.date = began.strftime("%Y%m%d").to_string();
        }
        let specs = &self.seen.push.spec.targets;
        let whole = matches!(self.seen.source, Source::Ready(_));
        for (index, (entry, target)) in self.status.targets.iter_mut().zip(specs).enumerate() {
            let early = !whole && target.publish != PublishPolicy::AsReady;
            if entry.state != TargetState::Pending || !entry.tags.is_empty() || early {
                continue;
            }
            match tags::of_target(target, index, &facts) {
                Ok(names) => entry.tags = names.into_iter().map(status::tag).collect(),
                Err(failure) => fail(entry, failure),
            }
        }
    }

    fn refuse_forbidden_origins(&mut self) {
        for index in self.in_state(TargetState::Pending) {
            let entry = &mut self.status.targets[index];
            let origin = origin_of(&entry.repository);
            if self.seen.forbidden.contains(&normal_origin(origin)) {
                let text = format!(
                    "{origin} may not be pushed to: a RegistryPolicy denies it, or it is Slipway's own staging."
                );
                fail(entry, Failure::new(Reason::OriginForbidden, text));
            }
        }
    }

    /// Source: Launchpad, reference 1.8: an older build sends nothing, and that is no failure.
    fn leave_tags_to_newer_builds(&mut self) {
        for index in self.in_state(TargetState::Pending) {
            let entry = &mut self.status.targets[index];
            for tag in &mut entry.tags {
                tag.superseded_by = rivals::newer_build(&self.seen.rivals, &entry.repository, &tag.name);
            }
            if !entry.tags.is_empty() && entry.tags.iter().all(|tag| tag.superseded_by.is_some()) {
                entry.state = TargetState::Superseded;
                entry.failure = None;
                entry.next_attempt_at = None;
            }
        }
    }
}
