//! The operator is killed, staging goes away: every build converges, and no attempt has two pods.

use std::time::Duration;

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Pod, Service},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    runtime::wait::await_condition,
};
use serde_json::{Value, json};
use slipway::api::v1alpha1::{BuildPhase, OCIRecipe, OCIRecipeBuild, condition};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::{
    doors::Door,
    processes::Process,
    support::{Arena, LIMIT, REGISTRY, REGISTRY_ADDRESS, image_script, inline, kubectl, run, shell, with},
};

const SYSTEM: &str = "slipway-system";

async fn system_pods(client: &Client, component: &str) -> Vec<Pod> {
    let selector = ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
    let pods = Api::<Pod>::namespaced(client.clone(), SYSTEM);
    pods.list(&selector).await.unwrap().items
}

/// Kills the leading operator's process with SIGKILL and returns without waiting for the next one.
async fn kill_the_operator(client: &Client) -> Dead {
    let leases = Api::<Lease>::namespaced(client.clone(), SYSTEM);
    let holder = |lease: Option<&Lease>| lease.and_then(|lease| lease.spec.as_ref()?.holder_identity.clone());
    let led = await_condition(leases.clone(), "slipway", move |lease: Option<&Lease>| {
        holder(lease).is_some()
    });
    let lease = tokio::time::timeout(LIMIT, led)
        .await
        .expect("nobody leads")
        .unwrap();
    let holder = holder(lease.as_ref()).unwrap();
    let pods = system_pods(client, "controller").await;
    let leader = pods.iter().find(|pod| pod.name_any() == holder).unwrap();
    let container = leader.spec.as_ref().unwrap().containers[0].name.clone();
    let process = Process::find(leader, &container, "controller").expect("the operator runs on this node");
    process.kill();
    Dead {
        leases,
        at: jiff::Timestamp::now(),
    }
}

struct Dead {
    leases: Api<Lease>,
    at: jiff::Timestamp,
}

impl Dead {
    /// Waits until a process that began later holds the lease.
    async fn lives_again(&self) {
        let at = self.at;
        let led = await_condition(self.leases.clone(), "slipway", move |lease: Option<&Lease>| {
            let spec = lease.and_then(|lease| lease.spec.as_ref());
            spec.and_then(|spec| spec.renew_time.as_ref())
                .is_some_and(|renewed| renewed.0 > at)
        });
        tokio::time::timeout(LIMIT, led)
            .await
            .expect("nobody leads again")
            .unwrap();
    }
}

fn recipe(spec: &Value) -> Value {
    json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipe", "metadata": { "name": "edited" }, "spec": spec })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_in_each_phase_finishes_every_build_with_one_pod_each() {
    let Some(arena) = Arena::alone("killed").await else {
        return;
    };
    let client = &arena.client;
    let image = image_script(&[8]);

    // One build held in each phase.
    let git = Door::to_service(client, "slipway-demo", "git").await;
    let fetching = json!({
        "source": { "git": { "url": format!("http://{}/bench.git", git.address) } },
        "strategyRef": { "name": "buildah" },
    });
    arena.build("fetching", fetching).await;
    let latch = Door::latch(client).await;
    let held = format!("{}; {image}", latch.wait_here());
    for name in ["building", "cancelled", "deleted"] {
        arena.build(name, shell(&held)).await;
    }
    arena.apply(&recipe(&shell(&held))).await;
    let early = Door::latch(client).await;
    let held_shortly = format!("{}; {image}", early.wait_here());
    arena.build("collecting", shell(&held_shortly)).await;
    let both = json!({ "platforms": ["linux/amd64", "linux/arm64"], "emulation": "Allowed" });
    arena.build("indexing", with(shell(&held_shortly), &both)).await;
    let registry = Door::to_service(client, "slipway-demo", "registry").await;
    arena.let_plain_http(&registry.address).await;
    let repository = format!("{}/{}/app", registry.address, arena.namespace);
    let target = json!({ "pushRules": [{ "repository": repository }] });
    arena.build("pushing", with(shell(&image), &target)).await;
    let later = json!({ "kind": "BuildStrategy", "name": "later" });
    arena.build("waiting", inline(&image, &later)).await;

    git.arrived(1).await;
    latch.arrived(4).await;
    early.arrived(3).await;
    registry.arrived(1).await;
    arena
        .build_until("waiting", "waiting", |status| {
            status.phase == BuildPhase::DependencyWait
        })
        .await;
    let collector = arena.stop_collector("collecting").await;
    early.open();
    let collecting = arena.pod_of("collecting").await;
    arena
        .container_until(&collecting, "build", |state| state.terminated.is_some())
        .await;
    // The operator writes the index in the pass that says so.
    arena
        .build_until("indexing", "assembling its index", |status| {
            matches!(status.phase, BuildPhase::Uploading | BuildPhase::FullyBuilt)
        })
        .await;
    arena.build("new", shell(&image)).await;
    let deleted = arena.building("deleted").await;
    let dead = kill_the_operator(client).await;

    // Nobody sees it go, and nobody may make it again.
    arena
        .api::<Pod>()
        .delete(&deleted, &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    while_nobody_looks(&arena, &image).await;
    collector.go_on();
    dead.lives_again().await;
    git.open();
    latch.open();
    registry.open();

    for name in [
        "fetching",
        "building",
        "collecting",
        "indexing",
        "pushing",
        "waiting",
        "new",
        "edited-1",
        "edited-2",
    ] {
        let status = arena.fully_built(name).await;
        // The operator may have died before it had made this one's pod, which costs an attempt without one.
        if name != "new" {
            for platform in &status.platforms {
                assert_eq!(platform.attempt, 1, "{name}");
            }
        }
        let pods = arena.history.names(&format!("{name}-"));
        let wanted = status.platforms.len() + usize::from(name == "pushing");
        assert_eq!(pods.len(), wanted, "{name}: one pod for one attempt: {pods:?}");
    }
    assert_eq!(arena.fully_built("deleted").await.platforms[0].attempt, 2);
    assert_eq!(arena.history.count("deleted"), 2);
    arena.uploaded("pushing").await;
    assert_eq!(arena.history.count("pushing-push-1"), 1, "one push, one pod");
    assert_eq!(arena.finished("cancelled").await.phase, BuildPhase::Cancelled);
    let builds = ["--namespace", &arena.namespace, "get", "ocib", "-o", "name"];
    let builds = kubectl(&builds, None).await.unwrap();
    assert!(!builds.contains("edited-3"), "{builds}");
    arena.close().await;
}

/// One build is cancelled, a recipe is edited, and what another build waits for appears.
async fn while_nobody_looks(arena: &Arena, image: &str) {
    arena
        .patch::<OCIRecipeBuild>("cancelled", json!({ "spec": { "cancel": true } }))
        .await;
    let files = json!({ "Containerfile": image, "hello.txt": "hello\n" });
    arena
        .patch::<OCIRecipe>(
            "edited",
            json!({ "spec": { "source": { "inline": { "files": files } } } }),
        )
        .await;
    arena
        .apply(&json!({
            "apiVersion": "slipway.dev/v1alpha1", "kind": "BuildStrategy", "metadata": { "name": "later" },
            "spec": { "image": "slipway.dev/builder-buildah:dev", "command": ["sh", "-eu", "$(buildFile)"] },
        }))
        .await;
}

/// Staging that nobody reaches, as long as this lives.
struct Outage;

impl Outage {
    const AWAY: &str = r#"{"spec":{"selector":{"slipway.dev/away":"true"}}}"#;
    const BACK: &str = r#"{"spec":{"selector":{"slipway.dev/away":null}}}"#;
    const SERVICE: &str = "slipway-staging";

    /// Nobody is led to it any more, and what had reached it is cut off. Its volume stays.
    async fn begin(client: &Client) -> Self {
        let services = Api::<Service>::namespaced(client.clone(), SYSTEM);
        let away: Value = serde_json::from_str(Self::AWAY).unwrap();
        let service = services
            .patch(Self::SERVICE, &PatchParams::default(), &Patch::Merge(away))
            .await
            .unwrap();
        let outage = Self;
        let spec = service.spec.unwrap();
        let address = format!("{}:{}", spec.cluster_ip.unwrap(), spec.ports.unwrap()[0].port);
        let unreachable = async {
            while tokio::net::TcpStream::connect(&address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LIMIT, unreachable)
            .await
            .expect("staging is reached still");
        let staging = system_pods(client, "staging").await;
        Process::find(&staging[0], "registry", "serve")
            .expect("staging runs on this node")
            .kill();
        outage
    }
}

impl Drop for Outage {
    /// Also when the test fails: other tests need it.
    fn drop(&mut self) {
        let patch = [
            "patch",
            "service",
            Self::SERVICE,
            "--type=merge",
            "--patch",
            Self::BACK,
        ];
        let status = std::process::Command::new("kubectl")
            .args(["--namespace", SYSTEM])
            .args(patch)
            .status();
        assert!(status.unwrap().success(), "staging stays away");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn staging_that_is_down_for_a_minute_in_mid_collect_delays_builds_and_costs_nothing_else() {
    let Some(arena) = Arena::alone("staging").await else {
        return;
    };
    let latch = Door::latch(&arena.client).await;
    // One small layer, and one that takes seconds to compress and send.
    let script = format!("{}; {}", latch.wait_here(), image_script(&[8, 100 * 1024]));
    arena.build("patient", shell(&script)).await;
    arena.build("unlucky", shell(&script)).await;
    latch.arrived(2).await;
    let other = arena.stop_collector("unlucky").await;
    latch.open();
    let pod = arena.pod_of("patient").await;
    first_layer(&arena, &pod).await;
    let collector = Process::of(&arena.api(), &pod, "collect", "collect").await;
    collector.stop();
    let outage = Outage::begin(&arena.client).await;
    collector.go_on();
    other.go_on();
    let minute = tokio::time::sleep(Duration::from_secs(60));

    // What begins meanwhile builds, and waits with its image.
    arena.build("late", shell(&image_script(&[8]))).await;
    // A pod that is deleted now loses its attempt and no more.
    let unlucky = arena.pod_of("unlucky").await;
    arena
        .container_until(&unlucky, "build", |state| state.terminated.is_some())
        .await;
    arena.delete_pod(&unlucky).await;
    arena
        .build_until("unlucky", "trying again", |status| {
            status.platforms[0].attempt == 2
        })
        .await;
    let late = arena.pod_of("late").await;
    arena
        .container_until(&late, "build", |state| state.terminated.is_some())
        .await;
    minute.await;
    for name in ["patient", "late", "unlucky"] {
        let build = arena.api::<OCIRecipeBuild>().get(name).await.unwrap();
        let status = build.status.unwrap();
        assert_eq!(status.phase, BuildPhase::Building, "{name}");
    }
    drop(outage);
    for (name, attempts) in [("patient", 1), ("late", 1), ("unlucky", 2)] {
        let status = arena.fully_built(name).await;
        let platform = &status.platforms[0];
        assert_eq!(platform.attempt, attempts, "{name}");
        assert_eq!(arena.history.count(name), usize::try_from(attempts).unwrap());
        // Every layer is there, and is what its digest says: a push reads them all, and crane what it made of them.
        arena
            .apply(&json!({
                "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPush", "metadata": { "name": name },
                "spec": {
                    "source": { "buildRef": { "name": name } },
                    "targets": [{ "repository": format!("{REGISTRY}/{}/{name}", arena.namespace), "tags": ["edge"] }],
                },
            }))
            .await;
        arena
            .push_until(name, "uploaded", |push| {
                let conditions = push.status.as_ref().map_or(&[][..], |status| &status.conditions);
                condition::is_true(conditions, condition::SUCCEEDED)
            })
            .await;
        let target = format!("{REGISTRY_ADDRESS}/{}/{name}:edge", arena.namespace);
        run("crane", &["validate", "--insecure", "--remote", &target], None)
            .await
            .unwrap();
    }
    arena.close().await;
}

/// Waits until a collector says that a layer is stored.
async fn first_layer(arena: &Arena, pod: &str) {
    arena
        .container_until(pod, "collect", |state| state.running.is_some())
        .await;
    let mut logs = tokio::process::Command::new("kubectl")
        .args([
            "--namespace",
            &arena.namespace,
            "logs",
            "--follow",
            pod,
            "-c",
            "collect",
        ])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(logs.stdout.take().unwrap()).lines();
    let stored = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("diff_id") {
                return;
            }
        }
        panic!("the collector ended without a layer");
    };
    tokio::time::timeout(LIMIT, stored)
        .await
        .expect("no layer was stored");
}
