//! What every reconciler shares: settings, stores, own writes, staging, metrics.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use kube::{
    Resource, ResourceExt as _,
    runtime::{
        events::{Event, Recorder},
        reflector::{ObjectRef, Store},
    },
};

use super::{
    error::{Class, backoff},
    metrics::Metrics,
    pod_parts::AgentRuntime,
    reports::Reports,
    staging::Staging,
};
use crate::{
    agent::plan::{Registries, RegistryLimits},
    api::v1alpha1::{
        BuildStrategy, ClusterBuildStrategy, OCIRecipe, OCIRecipeBuild, RegistryAccess, RegistryPolicy,
        RegistryPush, UserNamespaceUse,
    },
    controller::build::status::owned_by,
    kubernetes::{cluster::Cluster, own_writes::OwnWrites, pod::SeenPod, watches::key},
    registry::normal_origin,
};

/// How the gate gets into build containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum GateDelivery {
    /// Slipway's image is mounted as a volume.
    ImageVolume,
    /// An init container copies the binary.
    InitContainer,
}

/// Settings of the operator that do not change while it runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Slipway's own image, for the pods that it makes.
    pub image: String,
    /// `None` decides by the nodes' versions.
    pub gate: Option<GateDelivery>,
    /// Whether user namespaces are used where nodes offer them.
    pub user_namespaces: bool,
    /// Where agents report to, as pods reach it; without it their ends are known from the kubelet alone.
    pub operator_url: Option<String>,
}

/// Every cache.
pub struct Stores {
    /// Recipes.
    pub recipes: Store<OCIRecipe>,
    /// Builds.
    pub builds: Store<OCIRecipeBuild>,
    /// Pushes.
    pub pushes: Store<RegistryPush>,
    /// Strategies of namespaces.
    pub strategies: Store<BuildStrategy>,
    /// Strategies of the cluster.
    pub cluster_strategies: Store<ClusterBuildStrategy>,
    /// Registry policies.
    pub policies: Store<RegistryPolicy>,
    /// Slipway's own pods.
    pub pods: Store<Pod>,
    /// Nodes; `None` where the operator may see one namespace only.
    pub nodes: Option<Store<Node>>,
    /// What the kubelet says of volumes that it cannot mount, by pod UID.
    pub mount_troubles: MountTroubles,
}

/// The latest mount trouble of each pod.
#[derive(Clone, Default)]
pub struct MountTroubles {
    by_pod: Arc<Mutex<HashMap<String, (String, Instant)>>>,
}

impl MountTroubles {
    /// Keeps what an event says; an hour is longer than any build waits by default.
    pub fn note(&self, pod_uid: String, message: &str) {
        let message: String = message.chars().take(1024).collect();
        let mut by_pod = self.by_pod.lock().unwrap_or_else(PoisonError::into_inner);
        by_pod.retain(|_, (_, at)| at.elapsed() < Duration::from_secs(3600));
        by_pod.insert(pod_uid, (message, Instant::now()));
    }
}

impl Stores {
    /// What the kubelet last said of a pod's volumes.
    pub fn mount_trouble(&self, pod_uid: &str) -> Option<String> {
        let by_pod = self
            .mount_troubles
            .by_pod
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        by_pod.get(pod_uid).map(|(message, _)| message.clone())
    }
}

/// What every reconciler shares.
pub struct Context {
    /// The API server.
    pub cluster: Cluster,
    /// Settings.
    pub settings: Settings,
    /// Caches.
    pub stores: Stores,
    /// Own writes to recipes.
    pub own_recipes: OwnWrites<OCIRecipe>,
    /// Own writes to builds.
    pub own_builds: OwnWrites<OCIRecipeBuild>,
    /// Own writes to pushes.
    pub own_pushes: OwnWrites<RegistryPush>,
    /// Own writes to pods.
    pub own_pods: OwnWrites<Pod>,
    /// What agents reported themselves.
    pub reports: Reports,
    /// The staging registry.
    pub staging: Staging,
    /// Events.
    pub recorder: Recorder,
    /// Metrics.
    pub metrics: Metrics,
    /// Held from the look at other pushes to the written status of one that begins, so that no two begin to write
    /// one tag.
    pub push_beginnings: tokio::sync::Mutex<()>,
    failures: Mutex<HashMap<String, u32>>,
    seen_pods: Mutex<HashMap<String, Instant>>,
    begun_pods: Mutex<HashMap<String, Instant>>,
}

/// Longer than any pod may run, so that a deleted one is told from one that was never made.
const SEEN_PODS_KEPT: Duration = Duration::from_secs(25 * 3600);

impl Context {
    /// Puts it all together.
    pub fn new(
        cluster: Cluster,
        settings: Settings,
        stores: Stores,
        reports: Reports,
        staging: Staging,
        recorder: Recorder,
        metrics: Metrics,
    ) -> Self {
        Self {
            cluster,
            settings,
            stores,
            own_recipes: OwnWrites::default(),
            own_builds: OwnWrites::default(),
            own_pushes: OwnWrites::default(),
            own_pods: OwnWrites::default(),
            reports,
            staging,
            recorder,
            metrics,
            push_beginnings: tokio::sync::Mutex::default(),
            failures: Mutex::default(),
            seen_pods: Mutex::default(),
            begun_pods: Mutex::default(),
        }
    }

    /// Keeps in mind that a pod of this name, which holds its owner's UID and attempt, was there.
    pub fn pod_seen(&self, name: &str) {
        let mut seen = self.seen_pods.lock().unwrap_or_else(PoisonError::into_inner);
        seen.entry(name.to_owned()).or_insert_with(Instant::now);
        seen.retain(|_, at| at.elapsed() < SEEN_PODS_KEPT);
    }

    /// Whether a pod of this name was there while this process ran.
    pub fn was_pod_seen(&self, name: &str) -> bool {
        self.seen_pods
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(name)
    }

    /// Keeps in mind that this process began the attempt whose pod has this name.
    pub fn pod_begun(&self, name: &str) {
        let mut begun = self.begun_pods.lock().unwrap_or_else(PoisonError::into_inner);
        if !begun.contains_key(name) {
            begun.retain(|_, at| at.elapsed() < SEEN_PODS_KEPT);
            begun.insert(name.to_owned(), Instant::now());
        }
    }

    /// The pod of an attempt that goes on, and that its owner owns.
    ///
    /// One that is not there and whose attempt an earlier process began was deleted while no operator ran: made
    /// again, it would be a second pod of one attempt. The cache may be older than the pod, so the API server is
    /// asked, once, and its answer counts until the cache has caught up.
    pub async fn pod_of_attempt(&self, namespace: &str, name: &str, owner: &str) -> Option<SeenPod> {
        let known = |name: &str| {
            let begun = self.begun_pods.lock().unwrap_or_else(PoisonError::into_inner);
            begun.contains_key(name) || self.was_pod_seen(name)
        };
        let pod = match self.pod(namespace, name) {
            None if !known(name) => match self.cluster.get::<Pod>(namespace, name).await {
                Ok(Some(pod)) => Some(self.own_pods.remember(pod)),
                Ok(None) => {
                    self.pod_seen(name);
                    None
                }
                // Its name keeps it from being made twice while it is there.
                Err(error) => {
                    tracing::warn!(pod = name, %error, "whether the pod is there is not known");
                    None
                }
            },
            pod => pod,
        };
        let pod = pod.filter(|pod| owned_by(&**pod, owner))?;
        self.pod_seen(name);
        Some(self.seen_pod(&pod))
    }

    /// A pod, at least as new as what was written here.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let key = key(namespace, name);
        self.own_pods.newest(&key, self.stores.pods.get(&key))
    }

    /// A pod as decisions see it: what the kubelet shows, and what its agents have said since.
    pub fn seen_pod(&self, pod: &Pod) -> SeenPod {
        let mut seen = SeenPod::from(pod);
        self.reports.lay_over(&mut seen);
        seen
    }

    /// What the containers of Slipway's own image run with.
    pub fn agents(&self) -> AgentRuntime {
        AgentRuntime {
            image: self.settings.image.clone(),
            operator_url: self.settings.operator_url.clone(),
        }
    }

    /// A build, at least as new as what was written here.
    pub fn build(&self, namespace: &str, name: &str) -> Option<Arc<OCIRecipeBuild>> {
        let key = key(namespace, name);
        self.own_builds.newest(&key, self.stores.builds.get(&key))
    }

    /// Every push that is not being deleted, each at least as new as what was written here. Others may hang on
    /// somebody's finalizer, and their status changes no more: nobody waits for them.
    pub fn all_pushes(&self) -> impl Iterator<Item = Arc<RegistryPush>> {
        let pushes = self.stores.pushes.state().into_iter();
        pushes
            .filter_map(|push| {
                self.own_pushes
                    .newest(&ObjectRef::from_obj(&*push), Some(Arc::clone(&push)))
            })
            .filter(|push| push.metadata.deletion_timestamp.is_none())
    }

    /// The pushes that a build owns, by the names that its status gives.
    pub fn pushes_of(&self, build: &OCIRecipeBuild) -> Vec<Arc<RegistryPush>> {
        let uid = build.uid().unwrap_or_default();
        let rules = build
            .status
            .as_ref()
            .map_or(0, |status| status.push_rules().count());
        let namespace = build.namespace().unwrap_or_default();
        (0..rules)
            .filter_map(|rule| {
                let key = key(&namespace, &super::push::name_of_rule(build, rule));
                self.own_pushes.newest(&key, self.stores.pushes.get(&key))
            })
            .filter(|push| owned_by(&**push, &uid))
            .collect()
    }

    /// Whether nodes offer user namespaces, and why not.
    pub fn user_namespaces(&self) -> UserNamespaceUse {
        if !self.settings.user_namespaces {
            return UserNamespaceUse::SwitchedOff;
        }
        let Some(nodes) = &self.stores.nodes else {
            return UserNamespaceUse::Used;
        };
        let offers = |node: &Node| {
            let handlers = node.status.as_ref().and_then(|s| s.runtime_handlers.as_ref());
            handlers.into_iter().flatten().any(|handler| {
                handler
                    .features
                    .as_ref()
                    .and_then(|f| f.user_namespaces)
                    .unwrap_or(false)
                    && handler.name.as_deref().unwrap_or_default().is_empty()
            })
        };
        if nodes.state().iter().any(|node| offers(node)) {
            UserNamespaceUse::Used
        } else {
            UserNamespaceUse::NoNodeOffersIt
        }
    }

    /// How the gate gets into build containers: image volumes are on by default from Kubernetes 1.35.
    pub fn gate(&self) -> GateDelivery {
        if let Some(gate) = self.settings.gate {
            return gate;
        }
        let Some(nodes) = &self.stores.nodes else {
            return GateDelivery::InitContainer;
        };
        let nodes = nodes.state();
        let able = |node: &Arc<Node>| {
            let version = node
                .status
                .as_ref()
                .and_then(|s| s.node_info.as_ref())
                .map(|i| i.kubelet_version.as_str());
            version.and_then(minor).is_some_and(|minor| minor >= 35)
        };
        if !nodes.is_empty() && nodes.iter().all(able) {
            GateDelivery::ImageVolume
        } else {
            GateDelivery::InitContainer
        }
    }

    /// What policies say of registries.
    pub fn registries(&self) -> Registries {
        let mut policies = self.stores.policies.state();
        // Where several speak of one origin, the last by name counts, and of limits the least.
        policies.sort_by_key(|policy| policy.name_any());
        let mut limits: BTreeMap<String, RegistryLimits> = BTreeMap::new();
        for policy in &policies {
            if let Some(own) = policy.spec.limits {
                let limit = limits.entry(normal_origin(&policy.spec.origin)).or_insert(own);
                *limit = limit.and(own);
            }
        }
        let mut plain_http: Vec<String> = policies
            .iter()
            .filter(|p| p.spec.plain_http)
            .map(|p| p.spec.origin.clone())
            .collect();
        plain_http.sort();
        plain_http.dedup();
        let roots = policies
            .iter()
            .filter_map(|p| Some((p.spec.origin.clone(), p.spec.ca_bundle.clone()?)));
        Registries {
            plain_http,
            roots: roots.collect(),
            certificates: policies
                .iter()
                .filter_map(|p| {
                    let reference = p.spec.client_certificate_ref.as_ref()?;
                    Some((p.spec.origin.clone(), reference.name.clone()))
                })
                .collect(),
            proxies: policies
                .iter()
                .filter_map(|p| Some((p.spec.origin.clone(), p.spec.proxy.clone()?)))
                .collect(),
            limits,
        }
    }

    /// Origins that policies deny, in their one spelling.
    pub fn denied_origins(&self) -> Vec<String> {
        let policies = self.stores.policies.state();
        let denied = policies
            .iter()
            .filter(|policy| policy.spec.access == RegistryAccess::Denied);
        denied.map(|policy| normal_origin(&policy.spec.origin)).collect()
    }

    /// Publishes events; one that cannot be published is only logged.
    pub async fn publish_events(&self, about: &ObjectReference, events: Vec<Event>) {
        for event in events {
            let published =
                tokio::time::timeout(Duration::from_secs(5), self.recorder.publish(&event, about)).await;
            if !matches!(published, Ok(Ok(()))) {
                tracing::warn!(
                    name = about.name,
                    reason = event.reason,
                    "the event could not be published"
                );
            }
        }
    }

    /// The wait after a failed pass over the object of this UID.
    pub fn after_failure(&self, uid: &str, class: Class) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(uid.to_owned()).or_default();
        *count = count.saturating_add(1);
        // The UID is random, so it spreads the objects well enough.
        let spread = f64::from(uid.bytes().fold(0_u8, u8::wrapping_add)) / 255.0;
        backoff(class, *count, spread)
    }

    /// A pass over the object of this UID went well.
    pub fn after_success(&self, uid: &str) {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
    }
}

/// A reference to an object, for events.
pub fn about<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    object.object_ref(&())
}

/// The minor version in `v1.36.3`.
fn minor(version: &str) -> Option<u32> {
    version.trim_start_matches('v').split('.').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_version_has_its_minor_in_the_middle() {
        assert_eq!(minor("v1.36.3"), Some(36));
        assert_eq!(minor("v1.30.2-gke.1"), Some(30));
        assert_eq!(minor("unknown"), None);
    }
}
