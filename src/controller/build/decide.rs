//! What happens next to a build: pure, one step at a time.
//!
//! Source: Launchpad's build states; the status values and the summary of uploads are Launchpad's. A pod that
//! vanished before its record was known costs one attempt, after it costs nothing.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;

use super::{
    image,
    observe::{Observed, SeenPlatform, StagedRecord, StagedRoot},
    pod,
    pod_report::{BuildPod, fetched, reduce},
    status,
};
use crate::{
    api::{
        REQUEST_ANNOTATION,
        v1alpha1::{
            BuildInputs, BuildPhase, BuildStrategySpec, OCIRecipeBuildStatus, PlatformState, PlatformStatus,
            Seccomp, StrategyKind, UserNamespaceNeed, UserNamespaceUse,
        },
    },
    controller::{next::Next, request::Request},
    image::{Digest, Platform},
    kubernetes::pod::SeenPod,
    record::{Failure, FailureClass, Reason},
};

/// Attempts that the cluster may spoil before a platform fails.
const INFRASTRUCTURE_ATTEMPTS: i32 = 3;

/// How soon staging is asked again when it did not answer.
const STAGING_RETRY: Duration = Duration::from_secs(2);

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

/// Decides one pass.
pub fn decide(seen: &Observed, now: Timestamp) -> Decision {
    let mut pass = Pass::begin(seen, now);
    pass.run();
    pass.end()
}

/// The status after the API server refused the step, as invalid or by a rule of the cluster's.
pub fn refused(seen: &Observed, decision: Decision, message: &str, now: Timestamp) -> Decision {
    let mut pass = Pass {
        seen,
        now,
        status: decision.status,
        step: Step::Nothing,
        next: Next::Change,
        waiting: None,
    };
    if let Step::CreatePod { platform } = decision.step {
        let failure = Failure::new(
            Reason::PodRefused,
            format!("The cluster refused the build's pod: {message}"),
        );
        if let Some(status) = pass.status.platforms.get_mut(platform) {
            fail(status, failure, now);
        }
        pass.conclude();
    } else {
        pass.waiting = Some((
            Reason::InternalError.as_str(),
            format!("The cluster refused an object: {message}"),
        ));
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
    }

    /// A request on a build that ended badly starts its failed platforms anew.
    fn answer_request(&mut self) {
        let Some(text) = self.seen.build.annotations().get(REQUEST_ANNOTATION) else {
            return;
        };
        if self.status.last_handled_request.as_ref() == Some(text) {
            return;
        }
        let began = self.seen.build.status.is_some();
        if began && !self.status.phase.is_terminal() {
            return; // answered when the running attempts have ended
        }
        self.status.last_handled_request = Some(text.clone());
        let retriable = matches!(
            self.status.phase,
            BuildPhase::FailedToBuild | BuildPhase::FailedToUpload | BuildPhase::Cancelled
        );
        if !began || !retriable || self.seen.build.spec.cancel {
            return;
        }
        let request = Request::parse(text);
        for platform in &mut self.status.platforms {
            if platform.state != PlatformState::Built && request.names(&platform.platform) {
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
        let status = &mut self.status.platforms[index];
        let absent = SeenPlatform::default();
        let seen = self.seen.platforms.get(&status.platform).unwrap_or(&absent);
        let step = next_of_platform(
            status,
            seen,
            index,
            &mut self.waiting,
            &mut self.status.revision,
            self.now,
        );
        if let Some(wait) = step.retry {
            self.next = Next::After(wait);
        }
        if self.step == Step::Nothing {
            self.step = step.step;
        } else if step.step != Step::Nothing {
            // Its intent is in the status; the next pass, which the first step causes, takes it.
            self.next = Next::Now;
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
                failure.message = format!("{}: {}", failed.platform, failure.message);
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
        let live = self
            .seen
            .platforms
            .values()
            .filter_map(|p| p.pod.as_ref())
            .find(|pod| pod.is_live());
        if let Some(pod) = live {
            self.status.phase = BuildPhase::Cancelling;
            if !pod.deleting {
                self.step = Step::DeletePod {
                    name: pod.name.clone(),
                    uid: pod.uid.clone(),
                };
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
            seen.pod
                .as_ref()
                .filter(|pod| !built && pod.is_live() && !pod.deleting)
        });
        if let Some(pod) = useless {
            self.step = Step::DeletePod {
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            };
        }
    }

    fn push(&mut self) {
        let Some(inputs) = self
            .status
            .inputs
            .as_ref()
            .filter(|_| self.status.phase == BuildPhase::FullyBuilt)
        else {
            return;
        };
        let rules = inputs.recipe.push_rules.len();
        let names: Vec<String> = (0..rules)
            .map(|rule| status::push_name(&self.seen.build.name_any(), rule))
            .collect();
        let missing = (0..rules).find(|rule| {
            !self
                .seen
                .pushes
                .iter()
                .any(|push| push.name_any() == names[*rule])
        });
        // A push that was made and is gone was deleted by somebody, who did not want it.
        let missing = missing.filter(|rule| {
            !self.status.pushes.contains(&names[*rule])
                || self
                    .seen
                    .build
                    .status
                    .as_ref()
                    .is_none_or(|s| !s.pushes.contains(&names[*rule]))
        });
        self.status.registry_upload_status = status::summary(rules, &self.seen.pushes);
        self.status.pushes = names;
        if let (Some(rule), Step::Nothing) = (missing, &self.step) {
            self.step = Step::CreatePush { rule };
            self.next = Next::Now;
        }
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
        || security.seccomp == Seccomp::Unconfined
        || security.unmasked_proc
        || security.allow_privilege_escalation;
    match kind {
        StrategyKind::BuildStrategy if strong => UserNamespaceNeed::Required,
        _ => strategy.user_namespace,
    }
}

struct PlatformStep {
    step: Step,
    retry: Option<Duration>,
}

fn next_of_platform(
    status: &mut PlatformStatus,
    seen: &SeenPlatform,
    index: usize,
    waiting: &mut Option<(&'static str, String)>,
    revision: &mut Option<crate::record::Revision>,
    now: Timestamp,
) -> PlatformStep {
    let nothing = PlatformStep {
        step: Step::Nothing,
        retry: None,
    };
    let act = |step| PlatformStep { step, retry: None };
    match status.state {
        PlatformState::Built | PlatformState::Cancelled => nothing,
        PlatformState::Failed => match &seen.pod {
            Some(pod) if pod.is_live() && !pod.deleting => act(Step::DeletePod {
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            }),
            _ => nothing,
        },
        PlatformState::Pending => match &seen.pod {
            // The pod of an earlier attempt must be gone before the next one begins.
            Some(pod) if pod.is_live() && !pod.deleting => act(Step::DeletePod {
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            }),
            Some(pod) if pod.is_live() => nothing,
            _ => {
                begin_attempt(status, now);
                act(Step::CreatePod { platform: index })
            }
        },
        PlatformState::Building => match (&seen.record, &seen.pod) {
            (StagedRecord::Read(record), pod) => {
                if let Some(fetched) = pod.as_ref().and_then(fetched) {
                    *revision = Some(fetched);
                }
                status::take_record(status, record, pod.as_ref(), now);
                nothing
            }
            (StagedRecord::Unavailable(error), _) => {
                *waiting = Some((
                    Reason::StagingUnavailable.as_str(),
                    format!("Waiting for the staging registry: {error}"),
                ));
                PlatformStep {
                    step: Step::Nothing,
                    retry: Some(STAGING_RETRY),
                }
            }
            (StagedRecord::Invalid(error), _) => spoil(
                status,
                Failure::new(Reason::RecordInvalid, error.clone()),
                index,
                seen,
                now,
            ),
            (StagedRecord::None, None) if seen.pod_was_seen => {
                let text = "The build's pod was deleted before its result was known.";
                spoil(
                    status,
                    Failure::new(Reason::BuildPodDeleted, text),
                    index,
                    seen,
                    now,
                )
            }
            (StagedRecord::None, None) => act(Step::CreatePod { platform: index }),
            (StagedRecord::None, Some(pod)) => {
                match reduce(pod, seen.mount_trouble.as_deref()) {
                    BuildPod::Waiting(reason, message) => {
                        *waiting = Some((reason.as_str(), message));
                        nothing
                    }
                    BuildPod::Starting | BuildPod::Running => nothing,
                    // The record is read when the next pass observes.
                    BuildPod::Reported(_) => PlatformStep {
                        step: Step::Nothing,
                        retry: Some(Duration::ZERO),
                    },
                    BuildPod::Broken(failure) if failure.class == FailureClass::Infrastructure => {
                        spoil(status, failure, index, seen, now)
                    }
                    BuildPod::Broken(failure) => {
                        fail(status, failure, now);
                        match &seen.pod {
                            Some(pod) if pod.is_live() && !pod.deleting => act(Step::DeletePod {
                                name: pod.name.clone(),
                                uid: pod.uid.clone(),
                            }),
                            _ => nothing,
                        }
                    }
                }
            }
        },
    }
}

fn begin_attempt(status: &mut PlatformStatus, now: Timestamp) {
    status.state = PlatformState::Building;
    status.attempt += 1;
    status.started_at = Some(Time(now));
    status.finished_at = None;
}

fn fail(status: &mut PlatformStatus, failure: Failure, now: Timestamp) {
    status.state = PlatformState::Failed;
    status.failure = Some(failure);
    status.finished_at = Some(Time(now));
}

/// An attempt that the cluster spoiled: another one follows while any are left.
fn spoil(
    status: &mut PlatformStatus,
    failure: Failure,
    index: usize,
    seen: &SeenPlatform,
    now: Timestamp,
) -> PlatformStep {
    status.infrastructure_failures += 1;
    if status.infrastructure_failures >= INFRASTRUCTURE_ATTEMPTS {
        let mut failure = failure;
        failure.message = format!(
            "{} Given up after {} such attempts; request the build again when the cause is mended.",
            failure.message, INFRASTRUCTURE_ATTEMPTS
        );
        fail(status, failure, now);
        return PlatformStep {
            step: Step::Nothing,
            retry: Some(Duration::ZERO),
        };
    }
    status.failure = Some(failure);
    status.state = PlatformState::Pending;
    let absent = SeenPlatform {
        pod: seen.pod.clone().filter(SeenPod::is_live),
        ..SeenPlatform::default()
    };
    next_of_platform(status, &absent, index, &mut None, &mut None, now)
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
