//! The operator: one reconciler per kind, each in the shape observe → decide (pure) → apply → status.
//!
//! No layer passes through here and no Secret is read here; pods do both.

pub mod build;
mod callers;
pub mod context;
mod error;
mod events;
mod metrics;
mod next;
mod pod_parts;
pub mod push;
pub mod recipe;
mod reports;
mod request;
mod serve;
mod staging;
mod staging_tokens;
mod triggers;

pub use context::{GateDelivery, Settings};
pub use error::Error;
pub use staging::StagingSettings;
pub use staging_tokens::SigningError;

use std::{
    fmt::Debug,
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use axum::Router;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use k8s_openapi::{
    ClusterResourceScope, NamespaceResourceScope,
    api::core::v1::{ContainerStatus, Event, Node, Pod, PodStatus},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{
        controller::{self, Action},
        events::{Recorder, Reporter},
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use tokio::sync::watch::Receiver;

use self::{
    callers::Callers,
    context::{Context, MountTroubles, Stores},
    metrics::{Controller, Metrics},
    reports::Reports,
    serve::Gates,
    staging::{Staging, StagingTokens},
    staging_tokens::{TokenIssuer, TokenSigner},
    triggers::{Queue, Queues},
};
use crate::{
    agent::identity::AUDIENCE,
    api::{MANAGED_BY, MANAGED_BY_LABEL, v1alpha1::RegistryPush},
    kubernetes::{
        cluster::Cluster,
        lease::{Leadership, LeaseLost},
        pod_identity::TokenVerifier,
        watches::{self, Change, Gate, listed, watch},
    },
    registry::RegistryError,
};

/// Passes of one kind at the same time. A pass waits for the API server and for staging, hardly for a core.
const CONCURRENCY: u16 = 16;

/// Objects of one page of a list. A page is decoded as a whole, and memory that was needed once stays with the
/// process.
const PAGE: u32 = 20;

/// What staging calls itself in its tokens.
const STAGING_SERVICE: &str = "slipway-staging";

/// The name of the lease, and of the reporter of events.
const NAME: &str = "slipway";

/// What the operator is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Settings of the reconcilers.
    pub settings: Settings,
    /// The staging registry.
    pub staging: StagingSettings,
    /// The folder with the key and certificate (`tls.key`, `tls.crt`) of staging's tokens, if it asks for them.
    pub staging_token_key: Option<PathBuf>,
    /// The operator's own namespace, where its lease is.
    pub namespace: String,
    /// The one namespace that is watched; all when absent.
    pub watch_namespace: Option<String>,
    /// This replica's name.
    pub identity: String,
    /// Where probes and metrics are served.
    pub listen: SocketAddr,
}

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// There is no way to the API server.
    #[error("cannot configure the connection to the API server: {0}")]
    Client(#[from] Box<kube::Error>),
    /// Another replica leads, or the API server is gone.
    #[error(transparent)]
    Lease(#[from] LeaseLost),
    /// The staging registry's client cannot be made.
    #[error("cannot configure the staging registry: {0}")]
    Staging(#[from] RegistryError),
    /// Tokens for staging cannot be signed.
    #[error("cannot sign tokens for staging: {0}")]
    Tokens(#[from] SigningError),
    /// Pods would not know whom to ask for a token.
    #[error("staging asks for tokens, but pods are not told where: set the operator's URL")]
    NoUrl,
    /// Probes cannot be served.
    #[error("cannot serve probes and metrics: {0}")]
    Serve(#[from] std::io::Error),
}

/// Runs until `stop` resolves, or the lease is lost.
///
/// # Errors
/// When something is missing without which there is nothing to do; the process then ends and is started again.
pub async fn run(
    client: Client,
    options: Options,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), Fatal> {
    let cluster = Cluster::new(client.clone());
    let metrics = Metrics::new(&cluster);
    let tokens = staging_tokens(&options)?;
    let staging = Staging::new(options.staging.clone(), tokens.clone())?;
    let (recipes, recipe_stream) = Queue::new();
    let (builds, build_stream) = Queue::new();
    let (pushes, push_stream) = Queue::new();
    let queues = Queues {
        recipes,
        builds,
        pushes,
    };
    let watched = start_watches(&client, &options, &queues);

    let (for_pods, reports) = for_pods(&client, &options, &watched.stores.pods, &queues, tokens);
    let gates = Gates::new(watched.gates.clone());
    let serving = tokio::spawn(serve::serve(options.listen, gates, metrics.clone(), for_pods));
    let leadership = Leadership::new(client.clone(), &options.namespace, NAME, &options.identity);
    let mut stop = std::pin::pin!(stop.fuse());
    tokio::select! {
        () = leadership.acquire() => tracing::info!(identity = options.identity, "leading"),
        () = &mut stop => return Ok(()),
    }
    // Renewed from now on, also while the first lists are still on their way.
    let keeper = leadership.clone();
    let mut lost = tokio::spawn(async move { keeper.keep().await });
    let all_listed = async {
        for (_, gate) in watched.gates {
            listed(gate).await;
        }
    };
    tokio::select! {
        () = all_listed => {}
        () = &mut stop => {
            leadership.release().await;
            return Ok(());
        }
        Ok(lost) = &mut lost => return Err(lost.into()),
    }
    metrics.lead();
    queues.open();

    let recorder = recorder(client, &options);
    let context = Arc::new(Context::new(
        cluster,
        options.settings,
        watched.stores,
        reports,
        staging,
        recorder,
        metrics,
    ));
    let (ending, ended) = tokio::sync::watch::channel(false);
    let (recipes, builds, pushes) = (
        context.stores.recipes.clone(),
        context.stores.builds.clone(),
        context.stores.pushes.clone(),
    );
    let reconcilers = [
        tokio::spawn(reconcile(
            Controller::Recipe,
            recipe::reconcile,
            &context,
            recipes,
            recipe_stream,
            ended.clone(),
        )),
        tokio::spawn(reconcile(
            Controller::Build,
            build::reconcile,
            &context,
            builds,
            build_stream,
            ended.clone(),
        )),
        tokio::spawn(reconcile(
            Controller::Push,
            push::reconcile,
            &context,
            pushes,
            push_stream,
            ended,
        )),
    ];
    let outcome = tokio::select! {
        () = &mut stop => Ok(()),
        // Others may begin in a moment: nothing is finished in peace.
        Ok(lost) = &mut lost => return Err(lost.into()),
        served = serving => match served {
            Ok(Err(error)) => Err(Fatal::Serve(error)),
            _ => Ok(()),
        },
    };
    // Passes that run end in peace; the lease is given back after the last write.
    ending.send_replace(true);
    for reconciler in reconcilers {
        let _ = reconciler.await;
    }
    lost.abort();
    leadership.release().await;
    outcome
}

fn recorder(client: Client, options: &Options) -> Recorder {
    let reporter = Reporter {
        controller: NAME.into(),
        instance: Some(options.identity.clone()),
    };
    Recorder::new(client, reporter)
}

/// What pods call: where they report, and where they get tokens for staging.
fn for_pods(
    client: &Client,
    options: &Options,
    pods: &Store<Pod>,
    queues: &Queues,
    tokens: Option<StagingTokens>,
) -> (Router, Reports) {
    let verifier = TokenVerifier::new(client.clone(), AUDIENCE);
    let callers = Arc::new(Callers::new(verifier, pods.clone()));
    let reports = Reports::new(Arc::clone(&callers), queues.clone());
    let mut routes = reports.routes();
    if let Some(tokens) = tokens {
        let issuer = TokenIssuer::new(tokens.signer, callers, &options.staging.prefix);
        routes = routes.merge(issuer.routes());
    }
    (routes, reports)
}

/// Staging asks for tokens where the operator has the key to sign them.
fn staging_tokens(options: &Options) -> Result<Option<StagingTokens>, Fatal> {
    let Some(folder) = &options.staging_token_key else {
        return Ok(None);
    };
    let url = options.settings.operator_url.as_deref().ok_or(Fatal::NoUrl)?;
    Ok(Some(StagingTokens {
        signer: TokenSigner::read(folder, STAGING_SERVICE, NAME)?,
        realm: format!("{}/token", url.trim_end_matches('/')),
    }))
}

/// Runs one reconciler until `ended`, and lets its running passes finish.
fn reconcile<K, Pass>(
    name: Controller,
    pass: impl Fn(Arc<K>, Arc<Context>) -> Pass + Send + Sync + 'static,
    context: &Arc<Context>,
    store: Store<K>,
    queue: impl Stream<Item = Result<ObjectRef<K>, std::convert::Infallible>> + Send + 'static,
    mut ended: Receiver<bool>,
) -> impl Future<Output = ()> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    Pass: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let context = Arc::clone(context);
    let everything: Vec<_> = store
        .state()
        .iter()
        .map(|object| Ok(ObjectRef::from_obj(&**object)))
        .collect();
    let queue = futures_util::stream::iter(everything)
        .chain(queue)
        .take_until(async move {
            let _ = ended.wait_for(|ended| *ended).await;
        });
    let failed = move |object: Arc<K>, error: &Error, context: Arc<Context>| {
        let wait = context.after_failure(&object.uid().unwrap_or_default(), error.class());
        context.metrics.failed(name, error.class());
        tracing::warn!(controller = ?name, object = object.name_any(), namespace = object.namespace(), %error, ?wait, "pass failed");
        Action::requeue(wait)
    };
    let pass = Arc::new(pass);
    let run = move |object: Arc<K>, context: Arc<Context>| {
        let pass = Arc::clone(&pass);
        async move {
            let uid = object.uid().unwrap_or_default();
            let action = pass(object, Arc::clone(&context)).await?;
            context.after_success(&uid);
            Ok(action)
        }
        .boxed()
    };
    let config = controller::Config::default().concurrency(CONCURRENCY);
    let passes = controller::applier(run, failed, context, store, queue, config);
    // Failures are told by the policy above; an object that is gone needs no pass.
    passes.for_each(|_| async {})
}

struct Watched {
    stores: Stores,
    gates: Vec<(&'static str, Receiver<Gate>)>,
}

/// Starts every watch; each change asks the reconcilers that care.
fn start_watches(client: &Client, options: &Options, queues: &Queues) -> Watched {
    let scope = options.watch_namespace.as_deref();
    let mut gates = Vec::new();
    let mut gate = |name, receiver| gates.push((name, receiver));

    // Known only once the watch is made, and filled before it tells of anything.
    let all_pushes: Arc<OnceLock<Store<RegistryPush>>> = Arc::default();
    let (pushes, receiver, task) = watch(namespaced(client, scope), config(), |_| {}, {
        let (queues, all) = (queues.clone(), Arc::clone(&all_pushes));
        move |change: Change<_>| {
            let all = all.get().map(Store::state).unwrap_or_default();
            queues.push_changed(change.object(), &all);
        }
    });
    all_pushes.get_or_init(|| pushes.clone());
    gate("registrypushes", receiver);
    tokio::spawn(task);

    let (builds, receiver, task) = watch(namespaced(client, scope), config(), build::kept::trim, {
        let (queues, pushes) = (queues.clone(), pushes.clone());
        move |change: Change<_>| queues.build_changed(change.object(), &pushes.state())
    });
    gate("ocirecipebuilds", receiver);
    tokio::spawn(task);

    let (recipes, receiver, task) = watch(namespaced(client, scope), config(), |_| {}, {
        let (queues, builds) = (queues.clone(), builds.clone());
        move |change: Change<_>| {
            queues.recipes.ask(ObjectRef::from_obj(change.object()));
            queues.dependency_changed(&builds.state());
        }
    });
    gate("ocirecipes", receiver);
    tokio::spawn(task);

    let dependency = |queues: &Queues| {
        let (queues, builds) = (queues.clone(), builds.clone());
        move || queues.dependency_changed(&builds.state())
    };
    let changed = dependency(queues);
    let (strategies, receiver, task) = watch(namespaced(client, scope), config(), |_| {}, move |_| changed());
    gate("buildstrategies", receiver);
    tokio::spawn(task);

    let changed = dependency(queues);
    let (cluster_strategies, receiver, task) =
        watch(cluster_wide(client), config(), |_| {}, move |_| changed());
    gate("clusterbuildstrategies", receiver);
    tokio::spawn(task);

    let (policies, receiver, task) = watch(cluster_wide(client), config(), |_| {}, {
        let (queues, pushes) = (queues.clone(), pushes.clone());
        move |_| queues.policy_changed(&pushes.state())
    });
    gate("registrypolicies", receiver);
    tokio::spawn(task);

    let own = config().labels(&format!("{MANAGED_BY_LABEL}={MANAGED_BY}"));
    let (pods, receiver, task) = watch(namespaced(client, scope), own, trim_pod, {
        let queues = queues.clone();
        move |change: Change<_>| queues.pod_changed(change.object())
    });
    gate("pods", receiver);
    tokio::spawn(task);

    let mount_troubles = watch_mounts(client, scope, queues, &pods);

    // Nodes are the cluster's: an operator that may see one namespace only does without.
    let nodes = scope.is_none().then(|| {
        let (nodes, receiver, task) = watch(cluster_wide(client), config(), trim_node, |_| {});
        gate("nodes", receiver);
        tokio::spawn(task);
        nodes
    });

    let stores = Stores {
        recipes,
        builds,
        pushes,
        strategies,
        cluster_strategies,
        policies,
        pods,
        nodes,
        mount_troubles,
    };
    Watched { stores, gates }
}

/// The kubelet tells of a Secret that is missing in events only.
fn watch_mounts(client: &Client, scope: Option<&str>, queues: &Queues, pods: &Store<Pod>) -> MountTroubles {
    let troubles = MountTroubles::default();
    let config = config().fields("reason=FailedMount,involvedObject.kind=Pod");
    let (_, _, task) = watch(namespaced::<Event>(client, scope), config, |_| {}, {
        let (troubles, queues, pods) = (troubles.clone(), queues.clone(), pods.clone());
        move |change| {
            let event: &Event = change.object();
            let about = &event.involved_object;
            let key = watches::key(
                about.namespace.as_deref().unwrap_or_default(),
                about.name.as_deref().unwrap_or_default(),
            );
            // The event's author may write any UID into it; the pod's own is what counts.
            let Some((uid, pod)) = pods.get(&key).and_then(|pod| Some((pod.uid()?, pod))) else {
                return;
            };
            if about.uid.as_ref() == Some(&uid) {
                troubles.note(uid, event.message.as_deref().unwrap_or_default());
            }
            queues.pod_changed(&pod);
        }
    });
    tokio::spawn(task);
    troubles
}

fn config() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

fn namespaced<K>(client: &Client, namespace: Option<&str>) -> Api<DeserializeGuard<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn cluster_wide<K>(client: &Client) -> Api<DeserializeGuard<K>>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone,
{
    Api::all(client.clone())
}

/// Decisions read who owns a pod and where its containers stand.
fn trim_pod(pod: &mut Pod) {
    pod.spec = None;
    pod.metadata.annotations = None;
    let Some(status) = pod.status.take() else { return };
    let states = |all: Option<Vec<ContainerStatus>>| {
        let state = |container: ContainerStatus| ContainerStatus {
            name: container.name,
            state: container.state,
            ..ContainerStatus::default()
        };
        all.map(|all| all.into_iter().map(state).collect())
    };
    pod.status = Some(PodStatus {
        phase: status.phase,
        reason: status.reason,
        message: status.message,
        conditions: status
            .conditions
            .map(|all| all.into_iter().filter(|one| one.status == "False").collect()),
        init_container_statuses: states(status.init_container_statuses),
        container_statuses: states(status.container_statuses),
        ..PodStatus::default()
    });
}

fn trim_node(node: &mut Node) {
    node.spec = None;
    node.annotations_mut().clear();
    if let Some(status) = &mut node.status {
        status.images = None;
        status.conditions = None;
    }
}
