//! Which objects are looked at again when another one changes.
//!
//! Each kind has one watch; its changes become requests in the queues of the reconcilers that care.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::stream::{self, Stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt as _, runtime::reflector::ObjectRef};
use tokio::sync::mpsc;

use super::push::{queue::waits_behind, rivals::share_a_repository};
use crate::{
    api::{
        BUILD_LABEL, PUSH_LABEL,
        v1alpha1::{BuildPhase, OCIRecipe, OCIRecipeBuild, RegistryPush, TargetState},
    },
    kubernetes::watches::key,
};

/// The entrance of one reconciler's queue. Unbounded, because the scheduler behind it keeps one entry an
/// object at most.
pub struct Queue<K: Resource<DynamicType = ()>> {
    sender: mpsc::UnboundedSender<ObjectRef<K>>,
    open: Arc<AtomicBool>,
}

impl<K: Resource<DynamicType = ()>> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            open: Arc::clone(&self.open),
        }
    }
}

impl<K: Resource<DynamicType = ()> + 'static> Queue<K> {
    /// A queue and the stream that a reconciler reads. The stream ends when `stop` does.
    pub fn new() -> (
        Self,
        impl Stream<Item = Result<ObjectRef<K>, std::convert::Infallible>> + Send,
    )
    where
        K: Send,
    {
        let (sender, receiver) = mpsc::unbounded_channel();
        let stream = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|reference| (Ok(reference), receiver))
        });
        (
            Self {
                sender,
                open: Arc::default(),
            },
            stream,
        )
    }

    /// From now on requests are kept. A replica that does not lead keeps none: nobody reads them there, and the
    /// one that begins to lead looks at everything.
    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    /// Whether requests are kept here.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// Asks for a look; nobody listens when the process ends.
    pub fn ask(&self, reference: ObjectRef<K>) {
        if self.is_open() {
            let _ = self.sender.send(reference);
        }
    }
}

/// All queues.
#[derive(Clone)]
pub struct Queues {
    /// Of the recipe reconciler.
    pub recipes: Queue<OCIRecipe>,
    /// Of the build reconciler.
    pub builds: Queue<OCIRecipeBuild>,
    /// Of the push reconciler.
    pub pushes: Queue<RegistryPush>,
}

impl Queues {
    /// From now on requests are kept.
    pub fn open(&self) {
        self.recipes.open();
        self.builds.open();
        self.pushes.open();
    }

    /// A pod changed: whose it is looks at it.
    pub fn pod_changed(&self, pod: &Pod) {
        let namespace = pod.namespace().unwrap_or_default();
        if let Some(build) = pod.labels().get(BUILD_LABEL) {
            self.builds.ask(key(&namespace, build));
        }
        if let Some(push) = pod.labels().get(PUSH_LABEL) {
            self.pushes.ask(key(&namespace, push));
        }
    }

    /// A build changed: itself, its recipe, and the pushes that wait for it.
    pub fn build_changed(&self, build: &OCIRecipeBuild, pushes: &[Arc<RegistryPush>]) {
        let namespace = build.namespace().unwrap_or_default();
        self.builds.ask(ObjectRef::from_obj(build));
        if let Some(recipe) = &build.spec.recipe_ref {
            self.recipes.ask(key(&namespace, &recipe.name));
        }
        let name = build.name_any();
        for push in pushes {
            let waits = push
                .spec
                .source
                .build_ref
                .as_ref()
                .is_some_and(|r| r.name == name);
            if waits && push.namespace().unwrap_or_default() == namespace {
                self.pushes.ask(ObjectRef::from_obj(&**push));
            }
        }
    }

    /// A push changed: itself, the build that made it, and the pushes that wait for their turn.
    pub fn push_changed(&self, push: &RegistryPush, pushes: &[Arc<RegistryPush>]) {
        self.pushes.ask(ObjectRef::from_obj(push));
        for other in pushes {
            let waits = other.status.as_ref().is_some_and(|status| {
                let mut targets = status.targets.iter();
                targets.any(|target| target.state == TargetState::Pending && target.next_attempt_at.is_none())
            });
            let behind = share_a_repository(push, other) || waits_behind(other, push);
            if waits && other.uid() != push.uid() && behind {
                self.pushes.ask(ObjectRef::from_obj(&**other));
            }
        }
        if let Some(build) = push
            .owner_references()
            .iter()
            .find(|owner| owner.kind == OCIRecipeBuild::kind(&()))
        {
            self.builds
                .ask(key(&push.namespace().unwrap_or_default(), &build.name));
        }
    }

    /// A recipe or strategy changed: the builds that have not begun.
    pub fn dependency_changed(&self, builds: &[Arc<OCIRecipeBuild>]) {
        for build in builds {
            let phase = build
                .status
                .as_ref()
                .map(|status| status.phase)
                .unwrap_or_default();
            if matches!(phase, BuildPhase::NeedsBuilding | BuildPhase::DependencyWait) {
                self.builds.ask(ObjectRef::from_obj(&**build));
            }
        }
    }

    /// A registry policy changed: pushes that wait for their next attempt need not wait for its time.
    pub fn policy_changed(&self, pushes: &[Arc<RegistryPush>]) {
        for push in pushes {
            self.pushes.ask(ObjectRef::from_obj(&**push));
        }
    }
}
