//! The builder pod: fetch, build and collect, started together, each waiting for its turn.
//!
//! The kubelet looks once a second, so containers that start one after another cost a second each. Here all
//! start at once; a gate from Slipway's own image holds the strategy's command until the source is there.
//! Pure: the same inputs give the same pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ImageVolumeSource, LocalObjectReference, Pod, PodSecurityContext, PodSpec,
    SecurityContext, Toleration, Volume, VolumeMount,
};
use kube::ResourceExt as _;

use super::pod_report::{BUILD, COLLECT, FETCH};
use crate::{
    agent::{
        gate::{CONTEXT_VARIABLE, SOURCE_DATE_EPOCH_VARIABLE},
        plan::{CollectPlan, FetchPlan, FetchSource, Registries, StagingTarget},
        workspace::MOUNT,
    },
    api::{
        ATTEMPT_LABEL, BUILD_LABEL, PLATFORM_LABEL, RECIPE_LABEL, ROLE_LABEL,
        v1alpha1::{
            BuildInputs, BuildStrategySpec, Emulation, LocalReference, OCIRecipeBuild, OCIRecipeSpec,
            PodToleration, RecipeSource, Seccomp, TaintEffect, TolerationOperator, UserNamespaceUse,
        },
    },
    controller::{
        context::GateDelivery,
        pod_parts::{
            AGENT_USER, AgentRuntime, agent, bare_pod, certificates, child_name, escaped, identity_volume,
            in_memory, mount, owned_by, resources, restricted, scratch, seccomp, secret, variable,
        },
    },
    image::Platform,
    record::BuildIdentity,
};

/// Where the gate is mounted in the build container.
const GATE_MOUNT: &str = "/slipway";
/// Where Slipway's image has its binary.
const BINARY: &str = "usr/bin/slipway";
/// Where a Secret is mounted in the fetch container.
const CREDENTIALS: &str = "/credentials";
/// The size at which the scratch volume is full where the recipe says none.
const SCRATCH: &str = "20Gi";

/// What the operator adds to what the build itself says.
#[derive(Clone, Debug)]
pub struct PodSettings {
    /// What the containers of Slipway's own image run with.
    pub agents: AgentRuntime,
    /// How the gate gets into the build container.
    pub gate: GateDelivery,
    /// Where this namespace's layers go.
    pub staging: StagingTarget,
    /// What the cluster's policies say of registries.
    pub registries: Registries,
}

/// The name of the pod of an attempt.
pub fn name(build: &OCIRecipeBuild, platform: &Platform, attempt: i32) -> String {
    let rest = format!("{}-{attempt}", platform.slug().replace(['_', '.'], "-"));
    child_name(&build.name_any(), &build.uid().unwrap_or_default(), &rest)
}

/// The pod that builds one platform.
pub fn pod(
    build: &OCIRecipeBuild,
    inputs: &BuildInputs,
    platform: &Platform,
    attempt: i32,
    settings: &PodSettings,
) -> Pod {
    let (recipe, strategy) = (&inputs.recipe, &inputs.strategy);
    let recipe_name = build
        .spec
        .recipe_ref
        .as_ref()
        .map_or_else(|| build.name_any(), |r| r.name.clone());
    let labels = [
        (ROLE_LABEL, "build"),
        (BUILD_LABEL, &build.name_any()),
        (RECIPE_LABEL, &recipe_name),
        (PLATFORM_LABEL, &platform.slug()),
        (ATTEMPT_LABEL, &attempt.to_string()),
    ];
    let credentials = credentials(&recipe.source);
    let mut volumes = vec![
        scratch(
            "workspace",
            Some(recipe.resources.scratch.as_deref().unwrap_or(SCRATCH)),
        ),
        // A folder each: what fetch keeps of its credentials is no business of the build's, and stays in memory. Without
        // any it need not: every mount of a node makes the next one slower.
        if credentials.is_some() {
            in_memory("fetch-tmp", "64Mi")
        } else {
            scratch("fetch-tmp", Some("64Mi"))
        },
        scratch("build-tmp", Some("1Gi")),
        // A compressed archive is unpacked there before it is read.
        scratch(
            "collect-tmp",
            Some(recipe.resources.scratch.as_deref().unwrap_or(SCRATCH)),
        ),
        gate_volume(settings),
    ];
    volumes.extend(identity_volume(&settings.agents, recipe.timeout_seconds));
    volumes.extend(credentials.map(|reference| secret("credentials", reference)));
    volumes.extend(certificates(&source_registries(recipe, settings)).0);
    let mut metadata = owned_by(build, name(build, platform, attempt), &labels);
    metadata.annotations = Some(BTreeMap::from([(
        "kubectl.kubernetes.io/default-container".to_owned(),
        BUILD.to_owned(),
    )]));
    Pod {
        metadata,
        spec: Some(PodSpec {
            active_deadline_seconds: Some(recipe.timeout_seconds),
            containers: vec![
                fetch(recipe, strategy, settings, credentials.is_some()),
                self::build(recipe, strategy, &recipe_name, platform, settings),
                collect(build, strategy, platform, attempt, settings),
            ],
            init_containers: copied_gate(settings).map(|container| vec![container]),
            host_users: (inputs.user_namespace == UserNamespaceUse::Used).then_some(false),
            image_pull_secrets: strategy
                .image_pull_secret_ref
                .as_ref()
                .map(|r| vec![LocalObjectReference { name: r.name.clone() }]),
            node_selector: Some(node_selector(recipe, platform)),
            security_context: Some(PodSecurityContext {
                fs_group: Some(AGENT_USER),
                ..PodSecurityContext::default()
            }),
            tolerations: Some(recipe.tolerations.iter().map(toleration).collect()),
            volumes: Some(volumes),
            ..bare_pod(None)
        }),
        status: None,
    }
}

fn credentials(source: &RecipeSource) -> Option<&LocalReference> {
    let git = source.git.as_ref().and_then(|git| git.credentials_ref.as_ref());
    git.or_else(|| {
        source
            .artifact
            .as_ref()
            .and_then(|artifact| artifact.credentials_ref.as_ref())
    })
}

fn fetch(
    recipe: &OCIRecipeSpec,
    strategy: &BuildStrategySpec,
    settings: &PodSettings,
    credentials: bool,
) -> Container {
    let source = match &recipe.source {
        RecipeSource { git: Some(git), .. } => FetchSource::Git {
            url: git.url.clone(),
            reference: git.reference.clone(),
            submodules: git.submodules,
        },
        RecipeSource {
            artifact: Some(artifact),
            ..
        } => FetchSource::Artifact {
            reference: artifact.reference.clone(),
        },
        RecipeSource { inline, .. } => FetchSource::Inline {
            files: inline
                .as_ref()
                .map(|inline| inline.files.clone())
                .unwrap_or_default(),
        },
    };
    let plan = FetchPlan {
        source,
        context_dir: recipe.context_dir.clone(),
        build_file: strategy.needs_build_file.then(|| recipe.build_file.clone()),
        credentials_dir: credentials.then(|| CREDENTIALS.to_owned()),
        registries: source_registries(recipe, settings),
    };
    let mut mounts = vec![mount("workspace", MOUNT, false)];
    if credentials {
        mounts.push(mount("credentials", CREDENTIALS, true));
    }
    mounts.extend(certificates(&plan.registries).1);
    agent(
        FETCH,
        "fetch-tmp",
        "1Gi",
        &settings.agents,
        &["agent", "fetch"],
        &plan,
        mounts,
    )
}

/// What policies say of the registry that an artifact comes from.
fn source_registries(recipe: &OCIRecipeSpec, settings: &PodSettings) -> Registries {
    let artifact = recipe.source.artifact.as_ref();
    let origin = artifact.and_then(|artifact| artifact.reference.split('/').next());
    settings.registries.of(&origin.into_iter().collect::<Vec<_>>())
}

fn build(
    recipe: &OCIRecipeSpec,
    strategy: &BuildStrategySpec,
    recipe_name: &str,
    platform: &Platform,
    settings: &PodSettings,
) -> Container {
    let facts = facts(recipe, strategy, recipe_name, platform);
    let mut command = vec![format!("{GATE_MOUNT}/{BINARY}"), "gate".into(), "--".into()];
    for argument in &strategy.command {
        if argument == "$(buildArgs)" {
            let filled = |(key, value): (&String, &String)| -> Vec<String> {
                strategy
                    .build_arg
                    .iter()
                    .map(|a| escaped(&a.replace("$(key)", key).replace("$(value)", value)))
                    .collect()
            };
            command.extend(recipe.build_args.iter().flat_map(filled));
        } else {
            command.push(filled_in(argument, &facts));
        }
    }
    let mut env: Vec<_> = facts
        .iter()
        .map(|fact| variable(fact.variable, escaped(&fact.value)))
        .collect();
    env.push(variable(CONTEXT_VARIABLE, escaped(&recipe.context_dir)));
    env.push(variable(
        "SLIPWAY_PLAIN_HTTP",
        settings.registries.plain_http.join(","),
    ));
    match recipe.source_date_epoch {
        Some(seconds) => env.push(variable("SOURCE_DATE_EPOCH", seconds.to_string())),
        None => env.push(variable(SOURCE_DATE_EPOCH_VARIABLE, "commit")),
    }
    env.extend(strategy.env.iter().map(|v| variable(&v.name, escaped(&v.value))));
    let mut mounts = vec![
        mount("workspace", MOUNT, false),
        mount("slipway", GATE_MOUNT, true),
        mount("build-tmp", "/tmp", false),
    ];
    mounts.extend(
        strategy
            .volumes
            .iter()
            .enumerate()
            .map(|(index, volume)| VolumeMount {
                // On the one volume whose size is limited.
                sub_path: Some(format!(".volumes/{index}")),
                ..mount("workspace", &volume.mount_path, false)
            }),
    );
    let memory = recipe.resources.memory.as_deref();
    // Nothing is requested that the recipe does not ask for: a guess would keep builds off a node that has room.
    let mut requests: Vec<_> = recipe
        .resources
        .cpu
        .as_deref()
        .map(|cpu| ("cpu", cpu))
        .into_iter()
        .collect();
    requests.extend(memory.map(|m| ("memory", m)));
    Container {
        name: BUILD.into(),
        image: Some(strategy.image.clone()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(command),
        env: Some(env),
        resources: Some(resources(
            &requests,
            &memory.map(|m| ("memory", m)).into_iter().collect::<Vec<_>>(),
        )),
        security_context: Some(build_security(strategy)),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn collect(
    build: &OCIRecipeBuild,
    strategy: &BuildStrategySpec,
    platform: &Platform,
    attempt: i32,
    settings: &PodSettings,
) -> Container {
    let plan = CollectPlan {
        build: BuildIdentity {
            namespace: build.namespace().unwrap_or_default(),
            name: build.name_any(),
            uid: build.uid().unwrap_or_default(),
            platform: platform.clone(),
            attempt: u32::try_from(attempt).unwrap_or_default(),
        },
        archive: strategy.archive.clone(),
        staging: settings.staging.clone(),
    };
    // Read-only: whatever the builder left is read here and changed nowhere.
    agent(
        COLLECT,
        "collect-tmp",
        "512Mi",
        &settings.agents,
        &["agent", "collect"],
        &plan,
        vec![mount("workspace", MOUNT, true)],
    )
}

/// One fact about the build, as a placeholder in arguments and as a variable.
struct Fact {
    placeholder: &'static str,
    variable: &'static str,
    value: String,
}

fn facts(
    recipe: &OCIRecipeSpec,
    strategy: &BuildStrategySpec,
    recipe_name: &str,
    platform: &Platform,
) -> Vec<Fact> {
    let fact = |placeholder, variable, value: String| Fact {
        placeholder,
        variable,
        value,
    };
    let context = if recipe.context_dir == "." {
        format!("{MOUNT}/source")
    } else {
        format!("{MOUNT}/source/{}", recipe.context_dir)
    };
    vec![
        fact("$(context)", "SLIPWAY_CONTEXT_PATH", context.clone()),
        fact(
            "$(buildFile)",
            "SLIPWAY_BUILD_FILE",
            format!("{context}/{}", recipe.build_file),
        ),
        fact("$(output)", "SLIPWAY_OUTPUT", format!("{MOUNT}/output")),
        fact(
            "$(archive)",
            "SLIPWAY_ARCHIVE",
            format!("{MOUNT}/output/{}", strategy.archive),
        ),
        fact("$(platform)", "SLIPWAY_PLATFORM", platform.to_string()),
        fact("$(os)", "SLIPWAY_OS", platform.os.clone()),
        fact("$(arch)", "SLIPWAY_ARCH", platform.architecture.clone()),
        fact(
            "$(imageName)",
            "SLIPWAY_IMAGE_NAME",
            recipe
                .image_name
                .clone()
                .unwrap_or_else(|| recipe_name.to_owned()),
        ),
    ]
}

/// Fills the placeholders into one argument; neither a value nor a script's `$(…)` is expanded again.
fn filled_in(argument: &str, facts: &[Fact]) -> String {
    let mut out = String::new();
    let mut rest = argument;
    while let Some(at) = rest.find("$(") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        match facts.iter().find(|fact| rest.starts_with(fact.placeholder)) {
            Some(fact) => {
                out.push_str(&fact.value);
                rest = &rest[fact.placeholder.len()..];
            }
            None => {
                out.push_str("$(");
                rest = &rest[2..];
            }
        }
    }
    out.push_str(rest);
    escaped(&out)
}

fn build_security(strategy: &BuildStrategySpec) -> SecurityContext {
    let security = &strategy.security;
    let profile = match security.seccomp {
        Seccomp::RuntimeDefault => seccomp("RuntimeDefault", None),
        Seccomp::Unconfined => seccomp("Unconfined", None),
        Seccomp::Localhost => seccomp("Localhost", security.localhost_profile.as_deref()),
    };
    SecurityContext {
        allow_privilege_escalation: Some(security.allow_privilege_escalation),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".into()]),
            add: (!security.capabilities.is_empty()).then(|| security.capabilities.clone()),
        }),
        proc_mount: security.unmasked_proc.then(|| "Unmasked".to_owned()),
        run_as_user: security.run_as_user,
        seccomp_profile: Some(profile),
        ..SecurityContext::default()
    }
}

fn gate_volume(settings: &PodSettings) -> Volume {
    match settings.gate {
        GateDelivery::ImageVolume => Volume {
            name: "slipway".into(),
            image: Some(ImageVolumeSource {
                reference: Some(settings.agents.image.clone()),
                pull_policy: Some("IfNotPresent".into()),
            }),
            ..Volume::default()
        },
        GateDelivery::InitContainer => scratch("slipway", None),
    }
}

/// On nodes without image volumes an init container copies the binary; that costs a look of the kubelet's.
fn copied_gate(settings: &PodSettings) -> Option<Container> {
    (settings.gate == GateDelivery::InitContainer).then(|| Container {
        name: "gate".into(),
        image: Some(settings.agents.image.clone()),
        image_pull_policy: Some("IfNotPresent".into()),
        args: Some(vec![
            "agent".into(),
            "install-gate".into(),
            format!("{GATE_MOUNT}/{BINARY}"),
        ]),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![mount("slipway", GATE_MOUNT, false)]),
        ..Container::default()
    })
}

fn node_selector(recipe: &OCIRecipeSpec, platform: &Platform) -> BTreeMap<String, String> {
    let mut selector = recipe.node_selector.clone();
    selector.insert("kubernetes.io/os".into(), platform.os.clone());
    if recipe.emulation == Emulation::Denied {
        selector.insert("kubernetes.io/arch".into(), platform.architecture.clone());
    }
    selector
}

fn toleration(toleration: &PodToleration) -> Toleration {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Toleration {
        key: some(&toleration.key),
        operator: Some(match toleration.operator {
            TolerationOperator::Exists => "Exists".into(),
            TolerationOperator::Equal => "Equal".into(),
        }),
        value: some(&toleration.value),
        effect: toleration.effect.map(|effect| match effect {
            TaintEffect::NoSchedule => "NoSchedule".into(),
            TaintEffect::PreferNoSchedule => "PreferNoSchedule".into(),
            TaintEffect::NoExecute => "NoExecute".into(),
        }),
        toleration_seconds: None,
    }
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
