//! A real cluster with the operator, a registry and a Git server, set up once a run; a namespace per test.

use std::{fmt::Debug, path::Path, process::Stdio, time::Duration};

use k8s_openapi::api::core::v1::{ContainerState, Namespace, Pod};
use kube::{
    Api, Client, Config, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::NamespaceResourceScope,
    runtime::wait::await_condition,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use slipway::api::v1alpha1::{
    BuildPhase, OCIRecipeBuild, OCIRecipeBuildStatus, RegistryPolicy, RegistryPush, RegistryUploadStatus,
    condition,
};
use tokio::{
    io::AsyncWriteExt as _,
    process::Command,
    sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use crate::{history::PodHistory, processes::Process};

/// The registry that images are pushed to, as pods name it.
pub const REGISTRY: &str = "registry.slipway-demo.svc.cluster.local:5000";
/// The same registry, as this machine reaches it.
pub const REGISTRY_ADDRESS: &str = "10.96.0.50:5000";

/// Says which test a cluster's object belongs to.
const TEST_LABEL: &str = "slipway.dev/test";

/// Longer than anything here takes on two busy cores.
pub const LIMIT: Duration = Duration::from_secs(240);

static READY: OnceCell<()> = OnceCell::const_new();
/// Tests that disturb the operator or staging run alone.
static PEACE: RwLock<()> = RwLock::const_new(());

/// A namespace of the cluster, removed when the test has ended well.
pub struct Arena {
    pub client: Client,
    pub namespace: String,
    /// What the pods of the namespace were.
    pub history: PodHistory,
    _peace: Peace,
}

enum Peace {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

impl Arena {
    /// A namespace for a test that disturbs nobody; `None` when there is no cluster, which is told.
    pub async fn open(name: &str) -> Option<Self> {
        let client = client().await?;
        let peace = Peace::Shared {
            _guard: PEACE.read().await,
        };
        Some(Self::create(client, name, peace).await)
    }

    /// A namespace for a test that stops what others need.
    pub async fn alone(name: &str) -> Option<Self> {
        let client = client().await?;
        let peace = Peace::Alone {
            _guard: PEACE.write().await,
        };
        Some(Self::create(client, name, peace).await)
    }

    async fn create(client: Client, name: &str, peace: Peace) -> Self {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let document = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "generateName": format!("t-{name}-") } });
        let created = namespaces
            .create(&PostParams::default(), &serde_json::from_value(document).unwrap())
            .await
            .unwrap();
        let namespace = created.name_any();
        let arena = Self {
            history: PodHistory::begin(Api::namespaced(client.clone(), &namespace)),
            client,
            namespace,
            _peace: peace,
        };
        // A strategy that runs the build file as a shell script, for builds that must go wrong.
        arena
            .apply(&json!({
                "apiVersion": "slipway.dev/v1alpha1", "kind": "BuildStrategy", "metadata": { "name": "shell" },
                "spec": { "image": "slipway.dev/builder-buildah:dev", "command": ["sh", "-eu", "$(buildFile)"] },
            }))
            .await;
        arena
    }

    /// Lets everybody speak to a registry without TLS until the test ends.
    pub async fn let_plain_http(&self, origin: &str) {
        self.let_plain_http_within(origin, &json!(null)).await;
    }

    /// The same within limits.
    pub async fn let_plain_http_within(&self, origin: &str, limits: &Value) {
        self.apply_policy(&json!({ "origin": origin, "plainHTTP": true, "limits": limits }))
            .await;
    }

    /// What is said of a registry until the test ends.
    pub async fn apply_policy(&self, spec: &Value) {
        let port = spec["origin"].as_str().unwrap().rsplit(':').next().unwrap();
        let name = format!("{}-{port}", self.namespace);
        self.apply(&json!({
            "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPolicy",
            "metadata": { "name": name, "labels": { TEST_LABEL: self.namespace } },
            "spec": spec,
        }))
        .await;
    }

    /// Looks whether any attempt had two pods, then removes the namespace without waiting for its end.
    pub async fn close(self) {
        self.history.assert_one_pod_per_attempt();
        let policies: Api<RegistryPolicy> = Api::all(self.client.clone());
        let own = ListParams::default().labels(&format!("{TEST_LABEL}={}", self.namespace));
        let _ = policies.delete_collection(&DeleteParams::default(), &own).await;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let _ = namespaces.delete(&self.namespace, &DeleteParams::default()).await;
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies any object with `kubectl`, as users do.
    pub async fn apply(&self, document: &Value) {
        let output = kubectl(
            &["apply", "--namespace", &self.namespace, "-f", "-"],
            Some(&document.to_string()),
        )
        .await;
        output.unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    }

    pub async fn create_object<K>(&self, document: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Serialize
            + DeserializeOwned
            + Debug,
    {
        let object: K = serde_json::from_value(document).unwrap();
        self.api::<K>()
            .create(&PostParams::default(), &object)
            .await
            .unwrap()
    }

    /// A build with a recipe of its own.
    pub async fn build(&self, name: &str, spec: Value) -> OCIRecipeBuild {
        self.create_object(json!({
            "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipeBuild",
            "metadata": { "name": name }, "spec": { "recipe": spec },
        }))
        .await
    }

    /// Waits until a build's status satisfies a condition; shows everything when it never does.
    pub async fn build_until(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&OCIRecipeBuildStatus) -> bool + Send + 'static,
    ) -> OCIRecipeBuildStatus {
        let wanted = await_condition(
            self.api::<OCIRecipeBuild>(),
            name,
            move |build: Option<&OCIRecipeBuild>| {
                build.and_then(|build| build.status.as_ref()).is_some_and(&holds)
            },
        );
        if let Ok(build) = tokio::time::timeout(LIMIT, wanted).await {
            return build.unwrap().and_then(|build| build.status).unwrap();
        }
        self.show_everything().await;
        panic!("build {name} in {}: never {what}", self.namespace);
    }

    pub async fn finished(&self, name: &str) -> OCIRecipeBuildStatus {
        self.build_until(name, "finished", |status| {
            condition::is_true(&status.conditions, condition::FINISHED)
        })
        .await
    }

    pub async fn fully_built(&self, name: &str) -> OCIRecipeBuildStatus {
        let status = self.finished(name).await;
        if status.phase != BuildPhase::FullyBuilt {
            self.show_everything().await;
            panic!(
                "build {name} in {} is {:?}: {:?}",
                self.namespace, status.phase, status.failure
            );
        }
        status
    }

    pub async fn uploaded(&self, name: &str) -> OCIRecipeBuildStatus {
        self.build_until(name, "uploaded", |status| {
            status.registry_upload_status == RegistryUploadStatus::Uploaded
        })
        .await
    }

    pub async fn push_until(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&RegistryPush) -> bool + Send + 'static,
    ) -> RegistryPush {
        let wanted = await_condition(
            self.api::<RegistryPush>(),
            name,
            move |push: Option<&RegistryPush>| push.is_some_and(&holds),
        );
        if let Ok(push) = tokio::time::timeout(LIMIT, wanted).await {
            return push.unwrap().unwrap();
        }
        self.show_everything().await;
        panic!("push {name} in {}: never {what}", self.namespace);
    }

    /// Waits until a build has named its pod, and gives the name.
    pub async fn pod_of(&self, build: &str) -> String {
        let status = self
            .build_until(build, "building", |status| {
                status.platforms.iter().any(|p| p.pod.is_some())
            })
            .await;
        status.platforms[0].pod.clone().unwrap()
    }

    /// Waits until the build container of a build's pod runs, and gives the pod's name.
    pub async fn building(&self, build: &str) -> String {
        let pod = self.pod_of(build).await;
        self.container_until(&pod, "build", |state| state.running.is_some())
            .await;
        pod
    }

    /// Waits until a container is in a state.
    pub async fn container_until(
        &self,
        pod: &str,
        container: &'static str,
        holds: impl Fn(&ContainerState) -> bool + Send + 'static,
    ) {
        let wanted = await_condition(self.api::<Pod>(), pod, move |pod: Option<&Pod>| {
            let statuses = pod
                .and_then(|p| p.status.as_ref())
                .and_then(|s| s.container_statuses.as_ref());
            let state = statuses
                .into_iter()
                .flatten()
                .find(|status| status.name == container)
                .and_then(|status| status.state.as_ref());
            state.is_some_and(&holds)
        });
        if tokio::time::timeout(LIMIT, wanted).await.is_err() {
            self.show_everything().await;
            panic!("container {container} of {pod} never was in the state that was waited for");
        }
    }

    /// Lets a build's collector sleep before it has anything to collect; the build must still be held.
    pub async fn stop_collector(&self, build: &str) -> Process {
        let pod = self.pod_of(build).await;
        self.container_until(&pod, "collect", |state| state.running.is_some())
            .await;
        let collector = Process::of(&self.api(), &pod, "collect", "collect").await;
        collector.stop();
        collector
    }

    /// Deletes a pod as a person does, without waiting for its end.
    pub async fn delete_pod(&self, pod: &str) {
        kubectl(
            &[
                "--namespace",
                &self.namespace,
                "delete",
                "pod",
                pod,
                "--wait=false",
            ],
            None,
        )
        .await
        .unwrap();
    }

    pub async fn pods(&self) -> Vec<Pod> {
        self.api::<Pod>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
    }

    /// Waits until no pod is left.
    pub async fn no_pods(&self) {
        pods_gone(&self.namespace, &["--all"]).await;
    }

    pub async fn patch<K>(&self, name: &str, patch: Value)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.api::<K>()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    async fn show_everything(&self) {
        for arguments in [
            &["get", "slipway,pods", "-o", "wide"][..],
            &["get", "ocib,rpush", "-o", "yaml"],
            &["describe", "pods"],
            &["get", "events", "--sort-by=.lastTimestamp"],
        ] {
            let mut all = vec!["--namespace", &self.namespace];
            all.extend(arguments);
            println!(
                "$ kubectl {}\n{}",
                all.join(" "),
                kubectl(&all, None).await.unwrap_or_else(|error| error)
            );
        }
        let log = kubectl(
            &[
                "--namespace",
                "slipway-system",
                "logs",
                "deployment/slipway",
                "--tail",
                "60",
            ],
            None,
        )
        .await;
        println!("{}", log.unwrap_or_else(|error| error));
    }
}

async fn client() -> Option<Client> {
    if std::env::var_os("KUBECONFIG").is_none() {
        println!("SKIPPED: KUBECONFIG is not set; run `make test-cluster`");
        return None;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    READY
        .get_or_init(|| async {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("hack/demo/run");
            run(script.to_str().unwrap(), &["install"], None).await.unwrap_or_else(|error| panic!("set-up failed: {error}"));
            let policy = json!({
                "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPolicy", "metadata": { "name": "demo-registry" },
                "spec": { "origin": REGISTRY, "plainHTTP": true },
            });
            kubectl(&["apply", "-f", "-"], Some(&policy.to_string())).await.unwrap();
        })
        .await;
    // Longer than any watch lasts; without it a request whose answer never comes holds the suite for ever.
    let mut config = Config::infer().await.unwrap();
    config.read_timeout = Some(LIMIT + Duration::from_secs(60));
    Some(Client::try_from(config).unwrap())
}

/// Waits until the pods that `which` selects are gone; none at all is fine.
pub async fn pods_gone(namespace: &str, which: &[&str]) {
    let wait = [
        &[
            "--namespace",
            namespace,
            "wait",
            "pods",
            "--for=delete",
            "--timeout=60s",
        ],
        which,
    ]
    .concat();
    if let Err(error) = kubectl(&wait, None).await {
        assert!(error.contains("no matching resources found"), "{error}");
    }
}

/// `FROM scratch` needs no base image, and a stage with a command proves that RUN works.
pub const SCRATCH: &str = "FROM scratch\nCOPY hello.txt /hello.txt\nCMD [\"/hello\"]\n";

/// A recipe whose source is one file.
pub fn inline(build_file: &str, strategy: &Value) -> Value {
    json!({
        "source": { "inline": { "files": { "Containerfile": build_file, "hello.txt": "hello\n" } } },
        "strategyRef": strategy,
    })
}

/// A recipe that buildah builds.
pub fn buildah(build_file: &str) -> Value {
    inline(build_file, &json!({ "name": "buildah" }))
}

/// A recipe that a shell script builds, or does not.
pub fn shell(script: &str) -> Value {
    inline(script, &json!({ "kind": "BuildStrategy", "name": "shell" }))
}

/// A shell script that leaves an image with a layer of random bytes for each size, in KiB.
pub fn image_script(layers: &[u32]) -> String {
    let sizes: Vec<String> = layers.iter().map(ToString::to_string).collect();
    IMAGE_SCRIPT.replace("SIZES", &sizes.join(" "))
}

const IMAGE_SCRIPT: &str = r#"
cd /tmp
count=0 ids= names=
for size in SIZES; do
  head -c ${size}k /dev/urandom > data
  tar -cf layer$count data
  ids="$ids${ids:+,}\"sha256:$(sha256sum < layer$count | cut -d' ' -f1)\""
  names="$names${names:+,}\"layer$count\""
  count=$((count + 1))
done
echo "{\"architecture\":\"$SLIPWAY_ARCH\",\"os\":\"linux\",\"config\":{},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[$ids]}}" > config.json
echo "[{\"Config\":\"config.json\",\"RepoTags\":[\"test:1\"],\"Layers\":[$names]}]" > manifest.json
tar -cf "$SLIPWAY_ARCHIVE" manifest.json config.json layer*
"#;

/// The same recipe with more fields.
pub fn with(mut spec: Value, extra: &Value) -> Value {
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

/// Runs `kubectl`; its standard output, or everything that it said.
pub async fn kubectl(arguments: &[&str], input: Option<&str>) -> Result<String, String> {
    run("kubectl", arguments, input).await
}

/// Runs a program; its standard output, or everything that it said. One that does not end is killed.
pub async fn run(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String, String> {
    let name = format!("{program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    if let Some(input) = input {
        stdin.write_all(input.as_bytes()).await.unwrap();
    }
    drop(stdin);
    let Ok(output) = tokio::time::timeout(LIMIT, child.wait_with_output()).await else {
        return Err(format!("{name}: did not end within {} s", LIMIT.as_secs()));
    };
    let output = output.unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    if output.status.success() {
        Ok(out)
    } else {
        Err(format!("{name}: {}\n{out}{err}", output.status))
    }
}
