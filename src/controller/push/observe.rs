//! Everything that a push's decision looks at: reads only.

use std::{collections::BTreeMap, sync::Arc};

use kube::ResourceExt as _;

use super::{
    pod,
    queue::{self, Queue},
    rivals::{self, Rival},
    tags::{BuildFacts, Facts},
};
use crate::{
    agent::plan::{PublishPolicy, PushSource, Registries, StagingTarget},
    api::v1alpha1::{BuildPhase, OCIRecipeBuild, PlatformState, RegistryPush, condition},
    controller::build::status::owned_by,
    controller::{context::Context, request},
    image::{Digest, Platform},
    kubernetes::pod::SeenPod,
    registry::normal_origin,
};

/// Where a Secret for the source is mounted in the push pod.
pub const SOURCE_CREDENTIALS: &str = "/credentials/source";

/// What a pass sees.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The push itself.
    pub push: Arc<RegistryPush>,
    /// What is pushed.
    pub source: Source,
    /// Platforms that can be pushed before the whole image can; of a build with several.
    pub portions: Vec<Portion>,
    /// What tags may name, as far as it is known.
    pub facts: Facts,
    /// The pod of the latest attempt.
    pub pod: Option<SeenPod>,
    /// Whether this process has seen that pod.
    pub pod_was_seen: bool,
    /// What the kubelet says of a volume that it cannot mount.
    pub mount_trouble: Option<String>,
    /// What the cluster's policies say of registries, staging included.
    pub registries: Registries,
    /// Origins that are neither read from nor pushed to: those that policies deny, and staging, which only
    /// builds write to and only `buildRef` reads.
    pub forbidden: Vec<String>,
    /// The build whose image is pushed, if it is one's.
    pub build: Option<Arc<OCIRecipeBuild>>,
    /// The upload request that the build which made it has accepted.
    pub upload_request: Option<String>,
    /// Other pushes that name a repository of this one's; none once it has ended.
    pub rivals: Vec<Rival>,
    /// The queues before its registries, by origin in its one spelling; none once it has ended.
    pub queues: BTreeMap<String, Queue>,
}

/// What a push pushes, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// It can be read from here.
    Ready(Box<PushSource>),
    /// The build is not there, or not ended yet.
    Waiting(String),
    /// The build has ended and has no image.
    NotBuilt(String),
    /// It cannot be there.
    Missing(String),
    /// It may not be read from there.
    Forbidden(String),
}

/// A platform that is built, of an image that need not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portion {
    /// `os/architecture[/variant]`.
    pub platform: Platform,
    /// Its image.
    pub from: PushSource,
}

/// Reads everything once.
pub async fn observe(push: Arc<RegistryPush>, context: &Context) -> Observed {
    let namespace = push.namespace().unwrap_or_default();
    let uid = push.uid().unwrap_or_default();
    let name = push.status.as_ref().and_then(|status| status.pod.clone());
    let pod = match &name {
        Some(name) => context.pod_of_attempt(&namespace, name, &uid).await,
        // Its report was taken; the next attempt still waits for its end.
        None => {
            let attempt = push.status.as_ref().map_or(0, |status| status.attempt);
            context
                .pod(&namespace, &pod::name(&push, attempt))
                .filter(|pod| owned_by(&**pod, &uid))
                .map(|pod| context.seen_pod(&pod))
        }
    };
    let target = context.staging.target(&namespace);
    let mut forbidden = context.denied_origins();
    forbidden.push(normal_origin(&target.registry));
    let mut registries = context.registries();
    let from_staging = push.spec.source.build_ref.is_some();
    if from_staging && target.plain_http && !registries.plain_http.contains(&target.registry) {
        registries.plain_http.push(target.registry.clone());
    }
    let upload_request = upload_request(&push, context);
    let ended = push.status.as_ref().is_some_and(|status| {
        status.observed_generation == push.metadata.generation
            && condition::is_true(&status.conditions, condition::FINISHED)
            && status.last_handled_request.as_deref() == request::of(&*push)
            && (upload_request.is_none() || status.last_handled_upload_request == upload_request)
    });
    let build = |push: &RegistryPush| {
        let name = push.spec.source.build_ref.as_ref()?.name.clone();
        context.build(&push.namespace().unwrap_or_default(), &name)
    };
    let (rivals, queues) = if ended {
        (Vec::new(), BTreeMap::new())
    } else {
        (
            rivals::of(&push, context.all_pushes(), build),
            queue::of(&push, context.all_pushes(), &registries.pushes_at_once()),
        )
    };
    let own_build = build(&push);
    Observed {
        source: source(&push, own_build.as_deref(), &target, &forbidden),
        portions: own_build
            .as_deref()
            .map_or_else(Vec::new, |build| portions(&push, build, &target)),
        facts: facts(&push, own_build.as_deref()),
        build: own_build,
        pod_was_seen: name.is_some_and(|name| context.was_pod_seen(&name)),
        mount_trouble: pod
            .as_ref()
            .and_then(|pod| context.stores.mount_trouble(&pod.uid)),
        pod,
        registries,
        forbidden,
        upload_request,
        rivals,
        queues,
        push,
    }
}

fn upload_request(push: &RegistryPush, context: &Context) -> Option<String> {
    let namespace = push.namespace()?;
    let owners = push.owner_references().iter();
    let mut builds = owners.filter_map(|owner| {
        let build = context.build(&namespace, &owner.name)?;
        (build.uid().as_ref() == Some(&owner.uid)).then_some(build)
    });
    let status = builds.next()?.status.clone()?;
    status
        .last_handled_upload_request
        .filter(|_| status.upload_refusal.is_none())
}

fn source(
    push: &RegistryPush,
    build: Option<&OCIRecipeBuild>,
    staging: &StagingTarget,
    forbidden: &[String],
) -> Source {
    if let Some(reference) = &push.spec.source.reference {
        return reference_source(push, reference, forbidden);
    }
    let name = push
        .spec
        .source
        .build_ref
        .as_ref()
        .map_or("", |build| build.name.as_str());
    let Some(build) = build else {
        return Source::Waiting(format!(
            "Waiting for OCIRecipeBuild {name:?}: create it, the push goes on by itself."
        ));
    };
    let status = build.status.as_ref();
    match (
        status.map(|s| s.phase).unwrap_or_default(),
        status.and_then(|s| s.image.as_ref()),
    ) {
        (BuildPhase::FullyBuilt, Some(image)) => Source::Ready(Box::new(staged(staging, &image.digest))),
        (phase, _) if phase.is_terminal() => Source::NotBuilt(format!(
            "Build {name:?} ended as {} and has no image to push; request it again, the push goes on by itself.",
            phase.as_str()
        )),
        (phase, _) => Source::Waiting(format!(
            "Waiting for build {name:?}, which is {}.",
            phase.as_str()
        )),
    }
}

fn staged(staging: &StagingTarget, digest: &Digest) -> PushSource {
    PushSource {
        registry: staging.registry.clone(),
        repository: staging.repository.clone(),
        reference: digest.to_string(),
        digest: Some(digest.clone()),
        credentials_dir: None,
        realm: staging.realm.clone(),
    }
}

/// The built platforms that are of use to a target; the only platform of a build is the whole of it.
fn portions(push: &RegistryPush, build: &OCIRecipeBuild, staging: &StagingTarget) -> Vec<Portion> {
    let spec = &push.spec;
    let asked = spec
        .targets
        .iter()
        .any(|target| target.publish == PublishPolicy::AsReady);
    let platforms = build.status.as_ref().map_or(&[][..], |status| &status.platforms);
    if !asked || platforms.len() < 2 {
        return Vec::new();
    }
    let wanted: Vec<Platform> = spec.platforms.iter().filter_map(|one| one.parse().ok()).collect();
    let is_wanted = |platform: &Platform| wanted.is_empty() || wanted.iter().any(|one| one.matches(platform));
    platforms
        .iter()
        .filter(|one| one.state == PlatformState::Built && is_wanted(&one.platform))
        .filter_map(|one| {
            Some(Portion {
                platform: one.platform.clone(),
                from: staged(staging, one.manifest.as_ref()?),
            })
        })
        .collect()
}

fn reference_source(push: &RegistryPush, reference: &str, forbidden: &[String]) -> Source {
    match reference.parse::<crate::registry::Reference>() {
        Ok(reference) if forbidden.contains(&normal_origin(&reference.registry)) => {
            Source::Forbidden(format!(
                "{} may not be read from; a build's image is named by source.buildRef.",
                reference.registry
            ))
        }
        Ok(reference) => Source::Ready(Box::new(PushSource {
            registry: reference.registry,
            repository: reference.repository,
            reference: reference
                .digest
                .as_ref()
                .map(Digest::to_string)
                .or(reference.tag)
                .unwrap_or_default(),
            digest: reference.digest,
            credentials_dir: push
                .spec
                .source
                .credentials_ref
                .as_ref()
                .map(|_| SOURCE_CREDENTIALS.to_owned()),
            realm: None,
        })),
        Err(error) => Source::Missing(format!("spec.source.reference: {error}")),
    }
}

fn facts(push: &RegistryPush, build: Option<&OCIRecipeBuild>) -> Facts {
    let mut platforms = push.spec.platforms.clone();
    let Some(build) = build else {
        return Facts {
            platforms,
            ..Facts::default()
        };
    };
    let status = build.status.as_ref();
    let git = status
        .and_then(|status| status.inputs.as_ref())
        .and_then(|inputs| inputs.recipe.source.git.as_ref());
    let recipe = build.spec.recipe_ref.as_ref();
    if platforms.is_empty() {
        let built = status.into_iter().flat_map(|status| &status.platforms);
        platforms = built.map(|one| one.platform.to_string()).collect();
    }
    Facts {
        build: Some(BuildFacts {
            reference: git.and_then(|git| git.reference.clone()),
            commit: status
                .and_then(|status| status.revision.as_ref())
                .map(|revision| revision.revision.clone()),
            recipe: recipe.map_or_else(|| build.name_any(), |recipe| recipe.name.clone()),
            name: build.name_any(),
        }),
        date: status
            .and_then(|status| status.finished_at.as_ref())
            .map_or_else(String::new, |time| time.0.strftime("%Y%m%d").to_string()),
        platforms,
    }
}
