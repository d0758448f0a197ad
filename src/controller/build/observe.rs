//! Everything that a build's decision looks at: reads only.

use std::{collections::BTreeMap, sync::Arc};

use kube::ResourceExt as _;

use super::{image, pod_report, status};
use crate::{
    api::v1alpha1::{
        BuildStrategySpec, OCIRecipeBuild, OCIRecipeSpec, PlatformState, PushRule, RegistryPush,
        StrategyKind, UserNamespaceUse,
    },
    controller::{context::Context, request, staging::StagingError},
    image::{Digest, Platform},
    kubernetes::{pod::SeenPod, watches::key},
    record::BuildRecord,
    registry::normal_origin,
};

/// What a pass sees.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The build itself.
    pub build: Arc<OCIRecipeBuild>,
    /// Its recipe, inline or referred to; needed until the snapshot is taken.
    pub recipe: Option<SeenRecipe>,
    /// The recipe's strategy; needed until the snapshot is taken.
    pub strategy: Option<BuildStrategySpec>,
    /// `Used` when nodes offer user namespaces, else why not.
    pub user_namespaces: UserNamespaceUse,
    /// By platform.
    pub platforms: BTreeMap<Platform, SeenPlatform>,
    /// Whether staging serves the image's root.
    pub root: StagedRoot,
    /// Origins that a source may not come from.
    pub forbidden: Vec<String>,
    /// The pushes that this build owns.
    pub pushes: Vec<Arc<RegistryPush>>,
    /// The push rules that its recipe has now, where an upload was asked for.
    pub current_rules: Vec<PushRule>,
    /// `registry/repository` of the namespace in staging.
    pub staging_repository: String,
}

/// A recipe as it is now.
#[derive(Clone, Debug)]
pub struct SeenRecipe {
    /// Its specification.
    pub spec: OCIRecipeSpec,
    /// Its generation, when it is an object of its own.
    pub generation: Option<i64>,
}

/// One platform as it is now.
#[derive(Clone, Debug, Default)]
pub struct SeenPlatform {
    /// The pod of the latest attempt.
    pub pod: Option<SeenPod>,
    /// Whether this process has seen that pod: if it is gone now, somebody deleted it.
    pub pod_was_seen: bool,
    /// The record that the pod reported.
    pub record: StagedRecord,
    /// What the kubelet says of a volume that it cannot mount.
    pub mount_trouble: Option<String>,
}

/// A record in staging.
#[derive(Clone, Debug, Default)]
pub enum StagedRecord {
    /// None was reported.
    #[default]
    None,
    /// Read by its digest, and proven to be this attempt's.
    Read(Digest, Box<BuildRecord>),
    /// Staging does not answer.
    Unavailable(String),
    /// It is not what the digest says, or not this attempt's.
    Invalid(String),
}

/// The image's root in staging.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StagedRoot {
    /// Not all platforms are built yet.
    #[default]
    NotAsked,
    /// Staging serves it.
    Present,
    /// Staging does not have it.
    Absent,
    /// Staging does not answer.
    Unavailable(String),
}

/// Reads everything once.
pub async fn observe(build: Arc<OCIRecipeBuild>, context: &Context) -> Observed {
    let namespace = build.namespace().unwrap_or_default();
    let unresolved = build.status.as_ref().is_none_or(|s| s.inputs.is_none());
    let recipe = unresolved.then(|| recipe(&build, &namespace, context)).flatten();
    let strategy = recipe
        .as_ref()
        .and_then(|recipe| strategy(recipe, &namespace, context));
    let mut platforms = BTreeMap::new();
    for entry in build.status.iter().flat_map(|status| &status.platforms) {
        let Some(name) = &entry.pod else { continue };
        let uid = build.uid().unwrap_or_default();
        let pod = if entry.state == PlatformState::Building {
            context.pod_of_attempt(&namespace, name, &uid).await
        } else {
            context
                .pod(&namespace, name)
                .filter(|pod| status::owned_by(&**pod, &uid))
                .map(|pod| context.seen_pod(&pod))
        };
        let pod_was_seen = context.was_pod_seen(name);
        let mount_trouble = pod
            .as_ref()
            .and_then(|pod| context.stores.mount_trouble(&pod.uid));
        let record = match &pod {
            Some(pod) if entry.state == PlatformState::Building => {
                record(&build, entry.platform.clone(), entry.attempt, pod, context).await
            }
            _ => StagedRecord::None,
        };
        platforms.insert(
            entry.platform.clone(),
            SeenPlatform {
                pod,
                pod_was_seen,
                record,
                mount_trouble,
            },
        );
    }
    let root = root(&build, &platforms, &namespace, context).await;
    let pushes = context.pushes_of(&build);
    let mut forbidden = context.denied_origins();
    forbidden.push(normal_origin(&context.staging.target(&namespace).registry));
    let current_rules = current_rules(&build, &namespace, context);
    Observed {
        current_rules,
        recipe,
        strategy,
        user_namespaces: context.user_namespaces(),
        platforms,
        root,
        pushes,
        forbidden,
        staging_repository: context.staging.repository_name(&namespace),
        build,
    }
}

fn current_rules(build: &OCIRecipeBuild, namespace: &str, context: &Context) -> Vec<PushRule> {
    let handled = build
        .status
        .as_ref()
        .and_then(|status| status.last_handled_upload_request.as_deref());
    let asked = request::of_upload(build).filter(|request| Some(*request) != handled);
    let recipe = build.spec.recipe_ref.as_ref().filter(|_| asked.is_some());
    recipe
        .and_then(|recipe| context.stores.recipes.get(&key(namespace, &recipe.name)))
        .map(|recipe| recipe.spec.push_rules.clone())
        .unwrap_or_default()
}

fn recipe(build: &OCIRecipeBuild, namespace: &str, context: &Context) -> Option<SeenRecipe> {
    if let Some(spec) = &build.spec.recipe {
        return Some(SeenRecipe {
            spec: (**spec).clone(),
            generation: None,
        });
    }
    let name = &build.spec.recipe_ref.as_ref()?.name;
    let recipe = context.stores.recipes.get(&key(namespace, name))?;
    Some(SeenRecipe {
        spec: recipe.spec.clone(),
        generation: recipe.metadata.generation,
    })
}

fn strategy(recipe: &SeenRecipe, namespace: &str, context: &Context) -> Option<BuildStrategySpec> {
    let reference = &recipe.spec.strategy_ref;
    match reference.kind {
        StrategyKind::BuildStrategy => context
            .stores
            .strategies
            .get(&key(namespace, &reference.name))
            .map(|s| s.spec.0.clone()),
        StrategyKind::ClusterBuildStrategy => {
            let key = kube::runtime::reflector::ObjectRef::new(&reference.name);
            context
                .stores
                .cluster_strategies
                .get(&key)
                .map(|s| s.spec.clone())
        }
    }
}

async fn record(
    build: &OCIRecipeBuild,
    platform: Platform,
    attempt: i32,
    pod: &SeenPod,
    context: &Context,
) -> StagedRecord {
    let pod_report::BuildPod::Reported(digest) = pod_report::reduce(pod, None) else {
        return StagedRecord::None;
    };
    let namespace = build.namespace().unwrap_or_default();
    match context.staging.record(&namespace, &digest).await {
        Ok(record) => {
            let mine = record.build.uid == build.uid().unwrap_or_default()
                && record.build.platform == platform
                && i64::from(record.build.attempt) == i64::from(attempt);
            if mine {
                StagedRecord::Read(digest, Box::new(record))
            } else {
                StagedRecord::Invalid(format!("Record {digest} belongs to another attempt or build."))
            }
        }
        Err(StagingError::Unavailable(text)) => StagedRecord::Unavailable(text),
        Err(StagingError::Invalid(text)) => StagedRecord::Invalid(text),
    }
}

/// Asks staging for the root as soon as the platforms, with the records just read, are all built.
async fn root(
    build: &OCIRecipeBuild,
    platforms: &BTreeMap<Platform, SeenPlatform>,
    namespace: &str,
    context: &Context,
) -> StagedRoot {
    let Some(status) = build.status.as_ref().filter(|s| !s.phase.is_terminal()) else {
        return StagedRoot::NotAsked;
    };
    let mut after = status.platforms.clone();
    for one in &mut after {
        if let Some(StagedRecord::Read(_, record)) = platforms.get(&one.platform).map(|seen| &seen.record) {
            status::take_record(one, record, None, jiff::Timestamp::UNIX_EPOCH);
        }
    }
    let complete = !after.is_empty() && after.iter().all(|p| p.state == PlatformState::Built);
    let Some(root) = complete.then(|| image::root(&after)).flatten() else {
        return StagedRoot::NotAsked;
    };
    match context.staging.serves(namespace, &root.descriptor.digest).await {
        Ok(true) => StagedRoot::Present,
        Ok(false) => StagedRoot::Absent,
        Err(error) => StagedRoot::Unavailable(error.to_string()),
    }
}
