//! What happens next to a build: pure, one step at a time.
//!
//! Source: Launchpad's build states; the status values and the summary of uploads are Launchpad's. A pod that
//! vanished before its record was known costs one attempt, after it costs nothing.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;

use super::{
    super::push,
    image,
    observe::{Observed, SeenPlatform, StagedRoot},
    platform::{self, PodEffect, STAGING_RETRY},
    pod,
    pod_report::BUILD,
    status, upload,
};
use crate::{
    agent::plan::PublishPolicy,
    api::v1alpha1::{
        BuildInputs, BuildPhase, BuildStrategySpec, OCIRecipeBuild, OCIRecipeBuildStatus, PlatformState,
        PlatformStatus, PushRule, Seccomp, StrategyKind, UserNamespaceNeed, UserNamespaceUse,
    },
    controller::{
        next::Next,
        request::{self, Request},
    },
    image::{Digest, Platform},
    kubernetes::pod::{Container, SeenPod},
    record::{Failure, Reason},
    registry::normal_origin,
};

/// As many rules may be added to a build as a recipe has.
const ADDED_RULES: usize = 16;

/// At most one external effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do but to publish the status.
    Nothing,
    /// Create the pod of this platform's attempt.
    CreatePod {
        /// Index into the status' platforms.
        platform: usize,
    },
    /// Delete a pod that has no more use.
    DeletePod {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// Write the index over all platforms to staging.
    PutIndex {
        /// Its bytes.
        bytes: Vec<u8>,
        /// Their digest.
        digest: Digest,
    },
    /// Create the push of a push rule.
    CreatePush {
        /// Index into the recipe's push rules.
        rule: usize,
    },
}

/// What a pass arrives at.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Published before the step is taken, so that the step's intent outlives a crash.
    pub status: OCIRecipeBuildStatus,
    /// The one effect.
    pub step: Step,
    /// When to look again without an event.
    pub next: Next,
}

impl Decision {
    /// Whether anything is written for it.
    pub fn acts_on(&self, build: &OCIRecipeBuild) -> bool {
        self.step != Step::Nothing || status::differs(build.status.as_ref(), &self.status)
    }
}

/// Decides one pass.
pub fn decide(seen: &Observed, now: Timestamp) -> Decision {
    let mut pass = Pass::begin(seen, now);
    pass.run();
    pass.end()
}

/// The status after the cluster refused the step, as invalid or by a rule of its own.
pub fn refused(seen: &Observed, decision: Decision, refusal: Failure, now: Timestamp) -> Decision {
    let mut pass = Pass {
        seen,
        now,
        status: decision.status,
        step: Step::Nothing,
        next: Next::Change,
        waiting: None,
    };
    if let Step::CreatePod { platform } = decision.step {
        if let Some(status) = pass.status.platforms.get_mut(platform) {
            platform::fail(status, refusal, now);
        }
        pass.conclude();
    } else if matches!(decision.step, Step::PutIndex { .. }) {
        pass.end_badly(BuildPhase::FailedToUpload, refusal);
    } else {
        pass.waiting = Some((Reason::InternalError.as_str(), refusal.message));
        pass.next = Next::After(Duration::from_secs(60));
    }
    pass.end()
}

struct Pass<'a> {
    seen: &'a Observed,
    now: Timestamp,
    status: OCIRecipeBuildStatus,
    step: Step,
    next: Next,
    /// What the build waits for: a reason and a sentence.
    waiting: Option<(&'static str, String)>,
}

impl<'a> Pass<'a> {
    fn begin(seen: &'a Observed, now: Timestamp) -> Self {
        let mut status = seen.build.status.clone().unwrap_or_default();
        status.observed_generation = seen.build.metadata.generation;
        Self {
            seen,
            now,
            status,
            step: Step::Nothing,
            next: Next::Change,
            waiting: None,
        }
    }

    fn run(&mut self) {
        self.answer_request();
        self.answer_upload_request();
        if self.status.phase.is_terminal() {
            self.clean_up();
            return self.push();
        }
        if self.seen.build.spec.cancel {
            return self.cancel();
        }
        if self.status.inputs.is_none() && !self.resolve() {
            return;
        }
        for index in 0..self.status.platforms.len() {
            self.platform(index);
        }
        self.conclude();
        if !self.status.phase.is_terminal() {
            self.push_ahead();
        }
    }

    /// A request on a build that ended badly starts its failed platforms anew.
    fn answer_request(&mut self) {
        let Some(text) = request::of(&*self.seen.build) else {
            return;
        };
        if self.status.last_handled_request.as_deref() == Some(text) {
            return;
        }
        let began = self.seen.build.status.is_some();
        if began && !self.status.phase.is_terminal() {
            return; // answered when the running attempts have ended
        }
        self.status.last_handled_request = Some(text.to_owned());
        let retriable = matches!(
            self.status.phase,
            BuildPhase::FailedToBuild | BuildPhase::FailedToUpload | BuildPhase::Cancelled
        );
        if !began || !retriable || self.seen.build.spec.cancel {
            return;
        }
        let request = Request::parse(text);
        // What staging lost has to be built again.
        let lost = self.status.phase == BuildPhase::FailedToUpload;
        for platform in &mut self.status.platforms {
            if (lost || platform.state != PlatformState::Built) && request.names(&platform.platform) {
                *platform = PlatformStatus {
                    attempt: platform.attempt,
                    ..status::pending(platform.platform.clone())
                };
            }
        }
        self.status.phase = BuildPhase::NeedsBuilding;
        self.status.failure = None;
        self.status.finished_at = None;
    }

    /// A request for an upload starts failed pushes anew, which see it themselves, and takes in the rules that the
    /// recipe got since.
    fn answer_upload_request(&mut self) {
        let Some(text) = request::of_upload(&*self.seen.build) else {
            return;
        };
        if self.status.last_handled_upload_request.as_deref() == Some(text) {
            return;
        }
        self.status.last_handled_upload_request = Some(text.to_owned());
        let is_known = |rule: &&PushRule| {
            let mut known = self.status.push_rules();
            known.any(|known| known.repository == rule.repository)
        };
        let added: Vec<PushRule> = self
            .seen
            .current_rules
            .iter()
            .filter(|rule| !is_known(rule))
            .cloned()
            .collect();
        self.status.upload_refusal = upload::refusal(&self.status, added.len(), &self.seen.pushes);
        if self.status.upload_refusal.is_none() {
            self.status.added_push_rules.extend(added);
            self.status.added_push_rules.truncate(ADDED_RULES);
        }
    }

    /// Takes the snapshot of everything that decides the result; false while something is missing.
    fn resolve(&mut self) -> bool {
        let Some(recipe) = &self.seen.recipe else {
            let name = self
                .seen
                .build
                .spec
                .recipe_ref
                .as_ref()
                .map_or("", |r| r.name.as_str());
            return self.depend(
                Reason::RecipeMissing,
                format!("Waiting for OCIRecipe {name:?}: create it, the build goes on by itself."),
            );
        };
        let reference = &recipe.spec.strategy_ref;
        let Some(strategy) = &self.seen.strategy else {
            let text = format!(
                "Waiting for {:?} {:?}: create it, the build goes on by itself.",
                reference.kind, reference.name
            );
            return self.depend(Reason::StrategyMissing, text);
        };
        let artifact = recipe.spec.source.artifact.as_ref();
        let origin = artifact.map(|artifact| artifact.reference.split('/').next().unwrap_or_default());
        if let Some(origin) = origin.filter(|origin| self.seen.forbidden.contains(&normal_origin(origin))) {
            let text = format!(
                "{origin} may not be read from: a RegistryPolicy denies it, or it is Slipway's own staging."
            );
            self.end_badly(
                BuildPhase::FailedToBuild,
                Failure::new(Reason::OriginForbidden, text),
            );
            return false;
        }
        let platforms: Result<Vec<Platform>, _> = recipe.spec.platforms.iter().map(|p| p.parse()).collect();
        let platforms = match platforms {
            Ok(platforms) => platforms,
            Err(error) => {
                self.end_badly(
                    BuildPhase::FailedToBuild,
                    Failure::new(Reason::SpecInvalid, format!("spec.platforms: {error}")),
                );
                return false;
            }
        };
        let user_namespace = match (need(strategy, reference.kind), self.seen.user_namespaces) {
            (UserNamespaceNeed::Unwanted, _) => UserNamespaceUse::NotWanted,
            (_, UserNamespaceUse::Used) => UserNamespaceUse::Used,
            (UserNamespaceNeed::Preferred, absent) => absent,
            (UserNamespaceNeed::Required, absent) => {
                let why = if absent == UserNamespaceUse::SwitchedOff {
                    "the operator has them switched off"
                } else {
                    "no node offers one"
                };
                let text = format!(
                    "Strategy {:?} needs a user namespace and {why}; choose another strategy, or a node with Linux 6.3 and containerd 2.",
                    reference.name
                );
                self.end_badly(
                    BuildPhase::FailedToBuild,
                    Failure::new(Reason::UserNamespacesMissing, text),
                );
                return false;
            }
        };
        self.status.platforms = platforms.into_iter().map(status::pending).collect();
        self.status.inputs = Some(BuildInputs {
            recipe_generation: recipe.generation,
            recipe_digest: image::json_digest(&recipe.spec),
            recipe: Box::new(recipe.spec.clone()),
            strategy_ref: reference.clone(),
            strategy: Box::new(strategy.clone()),
            user_namespace,
        });
        self.status.started_at = Some(Time(self.now));
        true
    }

    fn depend(&mut self, reason: Reason, message: String) -> bool {
        self.status.phase = BuildPhase::DependencyWait;
        self.waiting = Some((reason.as_str(), message));
        false
    }

    fn platform(&mut self, index: usize) {
        let entry = &mut self.status.platforms[index];
        let absent = SeenPlatform::default();
        let seen = self.seen.platforms.get(&entry.platform).unwrap_or(&absent);
        let need = platform::decide(entry, seen, self.now);
        if need.revision.is_some() {
            self.status.revision = need.revision;
        }
        if let Some((reason, text)) = need.waiting {
            self.waiting = Some((reason.as_str(), text));
        }
        if let Some(wait) = need.look_again {
            self.next = Next::After(wait);
        }
        match need.effect {
            // Its intent is in the status; the next pass takes it.
            Some(_) if self.step != Step::Nothing => self.next = Next::Now,
            Some(PodEffect::Create) => self.step = Step::CreatePod { platform: index },
            Some(PodEffect::Delete { name, uid }) => self.step = Step::DeletePod { name, uid },
            None => {}
        }
    }

    /// Draws the build's phase from its platforms'.
    fn conclude(&mut self) {
        let platforms = &self.status.platforms;
        let moving = |p: &PlatformStatus| matches!(p.state, PlatformState::Pending | PlatformState::Building);
        if platforms.iter().any(moving) {
            self.status.phase = if self
                .waiting
                .as_ref()
                .is_some_and(|(reason, _)| *reason == Reason::SecretMissing.as_str())
            {
                BuildPhase::DependencyWait
            } else {
                BuildPhase::Building
            };
            return;
        }
        if let Some(failed) = platforms.iter().find(|p| p.state == PlatformState::Failed) {
            let mut failure = failed
                .failure
                .clone()
                .unwrap_or_else(|| Failure::new(Reason::InternalError, "A platform failed."));
            if platforms.len() > 1 {
                failure = failure.about(&failed.platform.to_string());
            }
            return self.end_badly(BuildPhase::FailedToBuild, failure);
        }
        self.assemble();
    }

    /// All platforms are built: prove that staging serves the root, or write the index.
    fn assemble(&mut self) {
        let Some(root) = image::root(&self.status.platforms) else {
            return self.end_badly(
                BuildPhase::FailedToBuild,
                Failure::new(Reason::InternalError, "A built platform has no manifest."),
            );
        };
        match (&self.seen.root, root.index) {
            (StagedRoot::Present, _) => {
                self.status.phase = BuildPhase::FullyBuilt;
                self.status.failure = None;
                self.status.finished_at = Some(Time(self.now));
                self.status.image = Some(image::built(
                    &root.descriptor,
                    &self.seen.staging_repository,
                    &self.status.platforms,
                ));
                // The pushes begin in the same pass: a pass more would be a write more.
                self.push();
            }
            (StagedRoot::Absent, Some(bytes)) => {
                self.status.phase = BuildPhase::Uploading;
                self.step = Step::PutIndex {
                    digest: root.descriptor.digest,
                    bytes,
                };
                self.next = Next::Now;
            }
            (StagedRoot::Absent, None) => {
                let text = format!(
                    "Staging reported {} stored and does not serve it; see whether its volume was lost, then request the build again.",
                    root.descriptor.digest
                );
                self.end_badly(
                    BuildPhase::FailedToUpload,
                    Failure::new(Reason::StagingUnavailable, text),
                );
            }
            (StagedRoot::NotAsked, _) => {
                self.status.phase = BuildPhase::Uploading;
                self.next = Next::Now;
            }
            (StagedRoot::Unavailable(error), _) => {
                self.status.phase = BuildPhase::Uploading;
                self.waiting = Some((
                    Reason::StagingUnavailable.as_str(),
                    format!("Waiting for the staging registry: {error}"),
                ));
                self.next = Next::After(STAGING_RETRY);
            }
        }
    }

    fn cancel(&mut self) {
        let pods = || self.seen.platforms.values().filter_map(|p| p.pod.as_ref());
        if pods().any(SeenPod::is_live) {
            self.status.phase = BuildPhase::Cancelling;
            if let Some(PodEffect::Delete { name, uid }) = pods().find_map(platform::deletion) {
                self.step = Step::DeletePod { name, uid };
                self.next = Next::Now;
            }
            return;
        }
        for platform in &mut self.status.platforms {
            if platform.state != PlatformState::Built {
                platform.state = PlatformState::Cancelled;
                platform.finished_at.get_or_insert(Time(self.now));
            }
        }
        self.end_badly(
            BuildPhase::Cancelled,
            Failure::new(Reason::Cancelled, "The build was cancelled by spec.cancel."),
        );
    }

    fn end_badly(&mut self, phase: BuildPhase, failure: Failure) {
        self.status.phase = phase;
        self.status.failure = Some(failure);
        self.status.finished_at = Some(Time(self.now));
        self.waiting = None;
        self.clean_up();
    }

    /// A pod that still runs after its platform has ended is deleted.
    fn clean_up(&mut self) {
        if self.step != Step::Nothing {
            return;
        }
        let useless = self.seen.platforms.iter().find_map(|(platform, seen)| {
            let built = self
                .status
                .platforms
                .iter()
                .any(|p| p.platform == *platform && p.state == PlatformState::Built);
            // A builder may say that it is done and go on; its record is in, so nothing is lost with it.
            let goes_on = |pod: &SeenPod| !built || matches!(pod.container(BUILD), Container::Running);
            // What a container said of its own end says nothing of the others': the kubelet will.
            seen.pod
                .as_ref()
                .filter(|pod| !pod.ahead && goes_on(pod))
                .and_then(platform::deletion)
        });
        if let Some(PodEffect::Delete { name, uid }) = useless {
            self.step = Step::DeletePod { name, uid };
        }
    }

    /// The pushes of rules that publish each platform as soon as it is built begin before the image is whole.
    fn push_ahead(&mut self) {
        let built = |platform: &PlatformStatus| platform.state == PlatformState::Built;
        if self.status.platforms.len() > 1 && self.status.platforms.iter().any(built) {
            self.make_pushes(|rule| rule.publish == PublishPolicy::AsReady);
        }
    }

    /// Makes the push of one rule that has none, and lists those that there are.
    fn make_pushes(&mut self, is_due: impl Fn(&PushRule) -> bool) {
        let exists = |name: &String| self.seen.pushes.iter().any(|push| push.name_any() == *name);
        let rules = self.status.push_rules().enumerate();
        let (mut listed, mut missing) = (Vec::new(), None);
        for (position, rule) in rules {
            let name = push::name_of_rule(&self.seen.build, position);
            // One that was seen once and is gone was deleted by somebody who did not want it.
            if exists(&name) || self.status.pushes.contains(&name) {
                listed.push(name);
            } else if is_due(rule) {
                missing = missing.or(Some(position));
            }
        }
        self.status.pushes = listed;
        if let (Some(rule), Step::Nothing) = (missing, &self.step) {
            self.step = Step::CreatePush { rule };
            self.next = Next::Now;
        }
    }

    fn push(&mut self) {
        if self.status.phase != BuildPhase::FullyBuilt {
            return;
        }
        let rules = self.status.push_rules().count();
        let names: Vec<String> = (0..rules)
            .map(|rule| push::name_of_rule(&self.seen.build, rule))
            .collect();
        let summary = upload::summary(&names, &self.status.pushes, &self.seen.pushes);
        self.status.registry_upload_status = summary.status;
        self.status.registry_upload_error_summary = summary.error_summary;
        self.status.registry_upload_errors = summary.errors;
        self.make_pushes(|_| true);
    }

    fn end(mut self) -> Decision {
        for entry in self.status.platforms.iter_mut().filter(|entry| entry.attempt > 0) {
            entry.pod = Some(pod::name(&self.seen.build, &entry.platform, entry.attempt));
        }
        let done = self
            .status
            .platforms
            .iter()
            .filter(|p| p.state == PlatformState::Built)
            .count();
        self.status.progress = match self.status.platforms.len() {
            0 => String::new(),
            all => format!("{done}/{all}"),
        };
        let conditions = status::conditions(&self.status, self.waiting.as_ref());
        self.status.conditions = conditions.merge(
            self.seen
                .build
                .status
                .as_ref()
                .map_or(&[], |before| &before.conditions),
            self.seen.build.metadata.generation,
            self.now,
        );
        Decision {
            status: self.status,
            step: self.step,
            next: self.next,
        }
    }
}

/// Whether a strategy runs in a user namespace only.
///
/// A strategy of a namespace is its tenants' own: what would make it root of the node counts inside a user
/// namespace or not at all. The cluster's administrator may decide otherwise for a ClusterBuildStrategy.
fn need(strategy: &BuildStrategySpec, kind: StrategyKind) -> UserNamespaceNeed {
    let security = &strategy.security;
    let strong = security
        .capabilities
        .iter()
        .any(|capability| capability == "SYS_ADMIN" || capability == "MKNOD")
        || security.seccomp != Seccomp::RuntimeDefault
        || security.unmasked_proc
        || security.allow_privilege_escalation;
    match kind {
        StrategyKind::BuildStrategy if strong => UserNamespaceNeed::Required,
        _ => strategy.user_namespace,
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
