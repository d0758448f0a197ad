//! The builder pod as the API server gets it.

use serde_json::{Value, json};

use super::*;
use crate::{agent::plan::PLAN_VARIABLE, controller::build::image::json_digest};

fn build() -> OCIRecipeBuild {
    serde_json::from_value(json!({
        "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipeBuild",
        "metadata": { "name": "web-1", "namespace": "demo", "uid": "12345678-aaaa" },
        "spec": { "recipeRef": { "name": "web" } },
    }))
    .unwrap()
}

fn inputs(recipe: &Value, strategy: &Value) -> BuildInputs {
    let mut whole = json!({
        "source": { "git": { "url": "https://git.test/app", "ref": "main", "credentialsRef": { "name": "robot" } } },
        "strategyRef": { "name": "s" },
    });
    whole
        .as_object_mut()
        .unwrap()
        .extend(recipe.as_object().unwrap().clone());
    let mut how = json!({ "image": "builder.test/b:1", "command": ["sh", "-c", "echo $(date) $(platform)", "$(buildArgs)"] });
    how.as_object_mut()
        .unwrap()
        .extend(strategy.as_object().unwrap().clone());
    let recipe: OCIRecipeSpec = serde_json::from_value(whole).unwrap();
    BuildInputs {
        recipe_generation: Some(1),
        recipe_digest: json_digest(&recipe),
        strategy_ref: recipe.strategy_ref.clone(),
        recipe: Box::new(recipe),
        strategy: Box::new(serde_json::from_value(how).unwrap()),
        user_namespace: UserNamespaceUse::Used,
    }
}

fn made(recipe: &Value, strategy: &Value, gate: GateDelivery) -> Pod {
    let settings = PodSettings {
        agents: AgentRuntime {
            image: "slipway.test/slipway:1".into(),
            operator_url: Some("http://slipway.test:8080".into()),
        },
        gate,
        staging: StagingTarget {
            registry: "staging.test".into(),
            repository: "slipway/demo".into(),
            plain_http: false,
            realm: None,
        },
        registries: Registries::default(),
    };
    pod(
        &build(),
        &inputs(recipe, strategy),
        &"linux/arm64".parse().unwrap(),
        2,
        &settings,
    )
}

fn container<'a>(pod: &'a Pod, name: &str) -> &'a Container {
    pod.spec
        .as_ref()
        .unwrap()
        .containers
        .iter()
        .find(|container| container.name == name)
        .unwrap()
}

#[test]
fn the_secret_of_the_source_is_mounted_where_it_is_fetched_and_nowhere_else() {
    let pod = made(&json!({}), &json!({}), GateDelivery::ImageVolume);
    for (name, expected) in [(FETCH, true), (BUILD, false), (COLLECT, false)] {
        let mounts = container(&pod, name).volume_mounts.iter().flatten();
        assert_eq!(
            mounts.into_iter().any(|mount| mount.name == "credentials"),
            expected,
            "{name}"
        );
    }
}

#[test]
fn the_token_that_says_whose_pod_it_is_is_for_no_api_server_and_not_for_the_build() {
    let pod = made(&json!({}), &json!({}), GateDelivery::ImageVolume);
    for (name, expected) in [(FETCH, true), (BUILD, false), (COLLECT, true)] {
        let mounts = container(&pod, name).volume_mounts.iter().flatten();
        assert_eq!(
            mounts.into_iter().any(|mount| mount.name == "identity"),
            expected,
            "{name}"
        );
    }
    let volumes = pod.spec.as_ref().unwrap().volumes.as_ref().unwrap();
    let tokens: Vec<_> = volumes
        .iter()
        .filter_map(|volume| volume.projected.as_ref()?.sources.as_ref())
        .flatten()
        .filter_map(|source| source.service_account_token.as_ref())
        .collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].audience.as_deref(), Some("slipway"));
}

#[test]
fn no_two_containers_share_a_folder_but_the_workspace_and_collect_only_reads_it() {
    let pod = made(&json!({}), &json!({}), GateDelivery::ImageVolume);
    let mut seen = std::collections::BTreeSet::new();
    for container in &pod.spec.as_ref().unwrap().containers {
        for mount in container
            .volume_mounts
            .iter()
            .flatten()
            .filter(|mount| !["workspace", "identity"].contains(&mount.name.as_str()))
        {
            assert!(seen.insert(mount.name.clone()), "{} is mounted twice", mount.name);
        }
    }
    let workspace = |name| {
        container(&pod, name)
            .volume_mounts
            .iter()
            .flatten()
            .find(|m| m.name == "workspace")
            .unwrap()
            .read_only
    };
    assert_eq!((workspace(COLLECT), workspace(BUILD)), (Some(true), None));
}

#[test]
fn values_reach_the_command_unchanged_and_nothing_is_expanded_twice() {
    let odd = r#"a "b" 'c' $(platform) = $HOME"#;
    let pod = made(
        &json!({ "buildArgs": { "ODD": odd } }),
        &json!({}),
        GateDelivery::ImageVolume,
    );
    let command = container(&pod, BUILD).command.clone().unwrap();
    // What the kubelet makes of it: `$$` is `$`, and no unescaped `$(` is left.
    let read: Vec<String> = command
        .iter()
        .map(|argument| argument.replace("$$", "$"))
        .collect();
    assert_eq!(read[..3], ["/slipway/usr/bin/slipway", "gate", "--"]);
    assert_eq!(
        read[3..],
        [
            "sh",
            "-c",
            "echo $(date) linux/arm64",
            "--build-arg",
            &format!("ODD={odd}")
        ]
    );
    assert!(
        command
            .iter()
            .all(|argument| !argument.replace("$$", "").contains('$'))
    );
}

#[test]
fn a_pod_waits_for_a_node_of_its_platform_unless_emulation_is_allowed() {
    let selector = |recipe: &Value| {
        made(recipe, &json!({}), GateDelivery::ImageVolume)
            .spec
            .unwrap()
            .node_selector
            .unwrap()
    };
    assert_eq!(
        selector(&json!({})).get("kubernetes.io/arch").map(String::as_str),
        Some("arm64")
    );
    assert_eq!(
        selector(&json!({ "emulation": "Allowed" })).get("kubernetes.io/arch"),
        None
    );
}

#[test]
fn without_image_volumes_an_init_container_brings_the_gate() {
    let spec = made(&json!({}), &json!({}), GateDelivery::InitContainer)
        .spec
        .unwrap();
    assert_eq!(spec.init_containers.unwrap()[0].name, "gate");
    assert!(spec.volumes.unwrap().iter().all(|volume| volume.image.is_none()));
}

#[test]
fn the_pod_is_the_attempts_own_and_carries_no_token() {
    let pod = made(&json!({}), &json!({}), GateDelivery::ImageVolume);
    assert_eq!(pod.metadata.name.as_deref(), Some("web-1-12345678-arm64-2"));
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(
        (spec.automount_service_account_token, spec.host_users),
        (Some(false), Some(false))
    );
    let plan = container(&pod, COLLECT)
        .env
        .as_ref()
        .unwrap()
        .iter()
        .find(|v| v.name == PLAN_VARIABLE)
        .unwrap();
    let plan: CollectPlan = serde_json::from_str(&plan.value.clone().unwrap().replace("$$", "$")).unwrap();
    assert_eq!(
        (plan.build.attempt, plan.build.uid.as_str()),
        (2, "12345678-aaaa")
    );
}
