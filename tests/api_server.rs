//! What a real API server accepts and refuses. Needs KUBECONFIG; without one each test says that it is skipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on says so by ending"
)]
#![allow(missing_docs, reason = "a test's name is its documentation")]

use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
    runtime::wait::{await_condition, conditions::is_crd_established},
};
use rstest::rstest;
use serde::Deserialize as _;
use serde_json::{Value, json};
use slipway::api::v1alpha1::{self, OCIRecipe, OCIRecipeBuild};

const NAMESPACE: &str = "slipway-admission";

/// A client of the API server, with the definitions of this tree and the tests' namespace in place.
async fn api_server() -> Option<Client> {
    if std::env::var_os("KUBECONFIG").is_none() {
        println!("SKIPPED: KUBECONFIG is not set; run `make test-cluster`");
        return None;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_default().await.unwrap();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let manager = PatchParams::apply("slipway-tests").force();
    for definition in v1alpha1::definitions() {
        let name = definition.metadata.name.clone().unwrap();
        // Those that the chart installed are the chart's; `tests/generated.rs` compares them with these.
        if definitions.get_opt(&name).await.unwrap().is_none() {
            definitions
                .patch(&name, &manager, &Patch::Apply(&definition))
                .await
                .unwrap();
        }
        await_condition(definitions.clone(), &name, is_crd_established())
            .await
            .unwrap();
    }
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    Api::<Namespace>::all(client.clone())
        .patch(NAMESPACE, &manager, &Patch::Apply(namespace))
        .await
        .unwrap();
    Some(client)
}

fn recipe(spec: &Value) -> Value {
    let mut document = json!({
        "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipe", "metadata": { "name": "web" },
        "spec": {
            "source": { "inline": { "files": { "Containerfile": "FROM scratch" } } },
            "strategyRef": { "name": "buildah" },
        },
    });
    merge(&mut document["spec"], spec);
    document
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().unwrap() {
        into[key] = value.clone();
    }
}

/// What the API server says to an object, without keeping it: `Ok`, or its message.
async fn ask(client: &Client, document: &Value) -> Result<(), String> {
    let kind = document["kind"].as_str().unwrap();
    let plural = match kind {
        "RegistryPush" => "registrypushes",
        "RegistryPolicy" => "registrypolicies",
        "BuildStrategy" => "buildstrategies",
        "ClusterBuildStrategy" => "clusterbuildstrategies",
        "OCIRecipeBuild" => "ocirecipebuilds",
        "Secret" => "secrets",
        _ => "ocirecipes",
    };
    let (group, version) = document["apiVersion"]
        .as_str()
        .unwrap()
        .split_once('/')
        .unwrap_or(("", "v1"));
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
    let mut object: DynamicObject = serde_json::from_value(document.clone()).unwrap();
    object.metadata.namespace = None;
    let api: Api<DynamicObject> = match kind {
        "RegistryPolicy" | "ClusterBuildStrategy" => Api::all_with(client.clone(), &resource),
        _ => Api::namespaced_with(client.clone(), NAMESPACE, &resource),
    };
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match api.create(&dry, &object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => panic!("the API server did not answer: {error}"),
    }
}

#[rstest]
#[case::two_sources(json!({ "source": { "git": { "url": "https://example.test/a" }, "inline": { "files": { "a": "b" } } } }), "give exactly one of source.git, source.artifact and source.inline")]
#[case::no_source(json!({ "source": {} }), "give exactly one of source.git")]
#[case::escaping_context(json!({ "contextDir": "../other" }), "Path would escape target directory")]
#[case::absolute_build_file(json!({ "buildFile": "/etc/passwd" }), "Path would escape target directory")]
#[case::escaping_inline_file(json!({ "source": { "inline": { "files": { "a/../../b": "" } } } }), "Path would escape target directory")]
#[case::password_in_url(json!({ "source": { "git": { "url": "https://me:secret@example.test/a" } } }), "put it into a Secret")]
#[case::file_url(json!({ "source": { "git": { "url": "file:///etc/passwd" } } }), "spec.source.git.url")]
#[case::option_as_reference(json!({ "source": { "git": { "url": "https://example.test/a", "ref": "--upload-pack=x" } } }), "spec.source.git.ref")]
#[case::unknown_platform_form(json!({ "platforms": ["amd64"] }), "spec.platforms[0]")]
#[case::platform_twice(json!({ "platforms": ["linux/amd64", "linux/amd64"] }), "Duplicate value")]
#[case::build_argument_name(json!({ "buildArgs": { "A=B": "c" } }), "a build argument's name begins with")]
#[case::tag_in_repository(json!({ "pushRules": [{ "repository": "example.test/a:edge" }] }), "spec.pushRules[0].repository")]
#[case::unknown_variable(json!({ "pushRules": [{ "repository": "example.test/a", "tags": ["{colour}"] }] }), "tags may name {ref}")]
#[case::same_rule_twice(json!({ "pushRules": [{ "repository": "example.test/a" }, { "repository": "example.test/a" }] }), "two push rules name the same repository")]
#[case::timeout(json!({ "timeoutSeconds": 1 }), "spec.timeoutSeconds")]
#[case::unknown_trigger(json!({ "trigger": "Sometimes" }), "spec.trigger")]
#[case::control_plane_label(json!({ "nodeSelector": { "node-role.kubernetes.io/control-plane": "" } }), "builds run on worker nodes")]
#[case::control_plane_taint(json!({ "tolerations": [{ "key": "node-role.kubernetes.io/control-plane", "operator": "Exists" }] }), "builds run on worker nodes")]
#[case::every_taint(json!({ "tolerations": [{ "operator": "Exists" }] }), "spec.tolerations[0].key")]
#[case::memory(json!({ "resources": { "memory": "lots" } }), "spec.resources.memory")]
#[tokio::test]
async fn a_recipe_that_cannot_be_built_is_refused_with_the_field_and_what_to_do(
    #[case] spec: Value,
    #[case] expected: &str,
) {
    let Some(client) = api_server().await else { return };
    let message = ask(&client, &recipe(&spec)).await.expect_err("accepted");
    assert!(message.contains(expected), "{message}");
}

#[tokio::test]
async fn a_name_that_leaves_no_room_for_pods_is_refused() {
    let Some(client) = api_server().await else { return };
    let mut document = recipe(&json!({}));
    document["metadata"]["name"] = json!("a".repeat(53));
    assert!(
        ask(&client, &document)
            .await
            .expect_err("accepted")
            .contains("52 characters at most")
    );
}

#[rstest]
#[case::neither(json!({}), "give recipeRef")]
#[case::both(json!({ "recipeRef": { "name": "web" }, "recipe": recipe(&json!({}))["spec"] }), "not both")]
#[tokio::test]
async fn a_build_names_a_recipe_or_carries_one(#[case] spec: Value, #[case] expected: &str) {
    let Some(client) = api_server().await else { return };
    let document = json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipeBuild", "metadata": { "name": "b" }, "spec": spec });
    let message = ask(&client, &document).await.expect_err("accepted");
    assert!(message.contains(expected), "{message}");
}

#[rstest]
#[case::no_source(json!({ "source": {}, "targets": [{ "repository": "example.test/a" }] }), "give exactly one of source.buildRef and source.reference")]
#[case::no_target(json!({ "source": { "buildRef": { "name": "b" } }, "targets": [] }), "spec.targets")]
#[case::same_target_twice(json!({ "source": { "buildRef": { "name": "b" } }, "targets": [{ "repository": "example.test/a" }, { "repository": "example.test/a" }] }), "two targets name the same repository")]
#[case::credentials_of_a_build(json!({ "source": { "buildRef": { "name": "b" }, "credentialsRef": { "name": "s" } }, "targets": [{ "repository": "example.test/a" }] }), "credentialsRef belongs to source.reference")]
#[case::a_tag_that_moves_and_must_not(json!({ "source": { "buildRef": { "name": "b" } }, "targets": [{ "repository": "example.test/a", "publish": "AsReady", "tagPolicy": "Immutable" }] }), "publish: AsReady moves a tag with each platform")]
#[case::bad_tag(json!({ "source": { "buildRef": { "name": "b" } }, "targets": [{ "repository": "example.test/a", "tags": ["a/b"] }] }), "spec.targets[0].tags[0]")]
#[case::unknown_variable(json!({ "source": { "buildRef": { "name": "b" } }, "targets": [{ "repository": "example.test/a", "tags": ["{colour}"] }] }), "tags may name {ref}")]
#[case::open_variable(json!({ "source": { "buildRef": { "name": "b" } }, "targets": [{ "repository": "example.test/a", "tags": ["{ref"] }] }), "tags may name {ref}")]
#[case::variable_of_a_build(json!({ "source": { "reference": "example.test/b:1" }, "targets": [{ "repository": "example.test/a", "tags": ["{commit}"] }] }), "source.reference knows no build")]
#[case::platform_without_one(json!({ "source": { "reference": "example.test/b:1" }, "targets": [{ "repository": "example.test/a", "tags": ["{platform}"] }] }), "give exactly one in platforms")]
#[case::unknown_publish_policy(json!({ "source": { "buildRef": { "name": "b" } }, "targets": [{ "repository": "example.test/a", "publish": "Never" }] }), "spec.targets[0].publish")]
#[case::check_interval(json!({ "source": { "buildRef": { "name": "b" } }, "checkEverySeconds": 1, "targets": [{ "repository": "example.test/a" }] }), "spec.checkEverySeconds")]
#[case::unknown_risk(json!({ "source": { "buildRef": { "name": "b" } }, "targets": [{ "repository": "example.test/a", "risk": "Bold" }] }), "spec.targets[0].risk")]
#[case::platform_twice(json!({ "source": { "buildRef": { "name": "b" } }, "platforms": ["linux/amd64", "linux/amd64"], "targets": [{ "repository": "example.test/a" }] }), "Duplicate value")]
#[tokio::test]
async fn a_push_that_cannot_be_done_is_refused(#[case] spec: Value, #[case] expected: &str) {
    let Some(client) = api_server().await else { return };
    let document = json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPush", "metadata": { "name": "p" }, "spec": spec });
    let message = ask(&client, &document).await.expect_err("accepted");
    assert!(message.contains(expected), "{message}");
}

#[rstest]
#[case::every_variable(json!({ "source": { "buildRef": { "name": "b" } }, "targets": [{ "repository": "example.test/a", "risk": "Stable", "tags": ["{ref}_{risk}", "{commit}", "{shortCommit}", "{recipe}-{build}", "{date}", "{platform}"] }] }))]
#[case::of_a_reference(json!({ "source": { "reference": "example.test/b:1" }, "platforms": ["linux/amd64"], "dryRun": true, "targets": [{ "repository": "example.test/a", "tags": ["{date}-{platform}", "{risk}"] }] }))]
#[tokio::test]
async fn a_push_with_templates_is_accepted(#[case] spec: Value) {
    let Some(client) = api_server().await else { return };
    let document = json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPush", "metadata": { "name": "p" }, "spec": spec });
    ask(&client, &document).await.unwrap();
}

#[rstest]
#[case::no_push_at_all(json!({ "pushesAtOnce": 0 }), "spec.limits.pushesAtOnce")]
#[case::without_a_number_of_pushes(json!({ "requestsPerSecond": 10 }), "spec.limits.pushesAtOnce")]
#[case::less_than_a_request(json!({ "pushesAtOnce": 4, "requestsPerSecond": 3 }), "each needs at least one")]
#[case::less_than_a_mebibyte(json!({ "pushesAtOnce": 4, "bytesPerSecond": 4_194_303 }), "1048576 (1 MiB)")]
#[tokio::test]
async fn limits_that_let_no_push_come_on_are_refused(#[case] limits: Value, #[case] expected: &str) {
    let Some(client) = api_server().await else { return };
    let document = json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPolicy", "metadata": { "name": "p" }, "spec": { "origin": "example.test", "limits": limits } });
    let message = ask(&client, &document).await.expect_err("accepted");
    assert!(message.contains(expected), "{message}");
}

#[rstest]
#[case::certificate_without_tls(json!({ "plainHTTP": true, "clientCertificateRef": { "name": "a" } }), "no use with plainHTTP")]
#[case::certificate_without_a_name(json!({ "clientCertificateRef": { "name": "" } }), "spec.clientCertificateRef.name")]
#[case::certificate_that_a_proxy_would_see(json!({ "proxy": "https://proxy.test", "clientCertificateRef": { "name": "a" } }), "use an http:// proxy")]
#[case::proxy_with_a_password(json!({ "proxy": "http://me:secret@proxy.test" }), "spec.proxy")]
#[case::proxy_of_another_kind(json!({ "proxy": "socks5://proxy.test" }), "spec.proxy")]
#[tokio::test]
async fn a_policy_that_says_how_a_registry_is_reached_is_checked(
    #[case] extra: Value,
    #[case] expected: &str,
) {
    let Some(client) = api_server().await else { return };
    let mut document = json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPolicy", "metadata": { "name": "p" }, "spec": { "origin": "example.test" } });
    merge(&mut document["spec"], &extra);
    let message = ask(&client, &document).await.expect_err("accepted");
    assert!(message.contains(expected), "{message}");
}

#[rstest]
#[case::capability(json!({ "security": { "capabilities": ["SYS_MODULE"] } }), "a capability beyond")]
#[case::own_variable(json!({ "env": [{ "name": "SLIPWAY_PLAN", "value": "x" }] }), "this variable is Slipway's own")]
#[case::volume_over_the_gate(json!({ "volumes": [{ "mountPath": "/slipway/usr" }] }), "outside of /workspace and /slipway")]
#[case::escaping_archive(json!({ "archive": "../image.tar" }), "escape the output folder")]
#[case::profile_without_localhost(json!({ "security": { "localhostProfile": "a.json" } }), "seccomp: Localhost only")]
#[tokio::test]
async fn a_strategy_that_would_break_out_is_refused(
    #[case] extra: Value,
    #[case] expected: &str,
    #[values("BuildStrategy", "ClusterBuildStrategy")] kind: &str,
) {
    let Some(client) = api_server().await else { return };
    let mut document = json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": kind, "metadata": { "name": "s" }, "spec": { "image": "example.test/a", "command": ["true"] } });
    merge(&mut document["spec"], &extra);
    let message = ask(&client, &document).await.expect_err("accepted");
    assert!(message.contains(expected), "{message}");
}

#[tokio::test]
async fn what_a_build_builds_cannot_change_but_it_can_be_cancelled_once_and_for_all() {
    let Some(client) = api_server().await else { return };
    let builds: Api<OCIRecipeBuild> = Api::namespaced(client, NAMESPACE);
    let mut spec = json!({ "recipe": recipe(&json!({}))["spec"] });
    // No strategy of this name exists, so no operator that happens to run does anything with it.
    spec["recipe"]["strategyRef"]["name"] = json!("none-such");
    let document = json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipeBuild", "metadata": { "generateName": "fixed-" }, "spec": spec });
    let created = builds
        .create(&PostParams::default(), &serde_json::from_value(document).unwrap())
        .await
        .unwrap();
    let name = created.meta().name.clone().unwrap();
    let patch = async |patch: Value| {
        builds
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
    };
    let changed = patch(json!({ "spec": { "recipe": { "buildFile": "Other" } } }))
        .await
        .expect_err("accepted");
    assert!(changed.to_string().contains("make another build"), "{changed}");
    patch(json!({ "spec": { "cancel": true } })).await.unwrap();
    let revived = patch(json!({ "spec": { "cancel": false } }))
        .await
        .expect_err("accepted");
    assert!(
        revived.to_string().contains("a cancelled build stays cancelled"),
        "{revived}"
    );
    builds
        .delete(&name, &kube::api::DeleteParams::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn defaults_come_from_the_schema() {
    let Some(client) = api_server().await else { return };
    let recipes: Api<OCIRecipe> = Api::namespaced(client, NAMESPACE);
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let created = recipes
        .create(&dry, &serde_json::from_value(recipe(&json!({}))).unwrap())
        .await
        .unwrap();
    assert_eq!(
        (
            created.spec.context_dir.as_str(),
            created.spec.build_file.as_str()
        ),
        (".", "Containerfile")
    );
    assert_eq!(
        (created.spec.platforms, created.spec.timeout_seconds),
        (vec!["linux/amd64".to_owned()], 3600)
    );
}

#[tokio::test]
async fn every_example_is_accepted() {
    let Some(client) = api_server().await else { return };
    let mut examples = 0;
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["examples", "examples/strategies"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for document in text.split("\n---") {
                let Ok(value) = serde_saphyr::from_str::<Value>(document) else {
                    panic!("{}: not YAML", path.display())
                };
                if value.is_null() {
                    continue;
                }
                let value = Value::deserialize(value).unwrap();
                ask(&client, &value)
                    .await
                    .unwrap_or_else(|message| panic!("{}: {message}", path.display()));
                examples += 1;
            }
        }
    }
    assert!(examples >= 8, "only {examples} examples were found");
}
