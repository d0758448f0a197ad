//! A registry of a test's own, which may be down, restart, or want a password.

use serde_json::{Value, json};

use crate::support::{Arena, kubectl, pods_gone};

/// One Deployment with its Service in the test's namespace.
pub struct OwnRegistry {
    /// `host:port` as pods reach it.
    pub origin: String,
    /// `host:port` as this machine reaches it.
    pub address: String,
}

impl OwnRegistry {
    /// One that does not run yet; any push may go there without TLS.
    pub async fn that_is_down(arena: &Arena) -> Self {
        let registry = Self::apply(arena).await;
        registry.scale(arena, 0).await;
        pods_gone(&arena.namespace, &["-l", "app=registry"]).await;
        arena.let_plain_http(&registry.origin).await;
        registry
    }

    /// One that runs.
    pub async fn start(arena: &Arena) -> Self {
        let registry = Self::apply(arena).await;
        rolled_out(arena).await;
        registry
    }

    async fn apply(arena: &Arena) -> Self {
        let services =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/hack/demo/services.yaml")).unwrap();
        let own: Vec<String> = services
            .split("\n---\n")
            .filter(|document| document.contains("name: registry,"))
            .map(|document| {
                document
                    .replace("slipway-demo", &arena.namespace)
                    .replace("  clusterIP: 10.96.0.50\n", "")
            })
            .collect();
        kubectl(&["apply", "-f", "-"], Some(&own.join("\n---\n")))
            .await
            .unwrap();
        let wanted = ["get", "service/registry", "-o", "jsonpath={.spec.clusterIP}"];
        let address = in_namespace(arena, &wanted).await;
        Self {
            origin: format!("registry.{}.svc.cluster.local:5000", arena.namespace),
            address: format!("{}:5000", address.trim()),
        }
    }

    /// Begins to run so many.
    pub async fn scale(&self, arena: &Arena, replicas: u32) {
        let replicas = format!("--replicas={replicas}");
        in_namespace(arena, &["scale", "deployment/registry", &replicas]).await;
    }

    /// From now on it knows one user, `robot`, with this password, and what it stored is gone.
    pub async fn wants(&self, arena: &Arena, password: &str) {
        let (_, line) = PASSWORDS.iter().find(|(known, _)| *known == password).unwrap();
        let name = format!("htpasswd-{password}");
        arena
            .apply(&json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "htpasswd": line },
            }))
            .await;
        let variable = |name: &str, value: &str| json!({ "name": name, "value": value });
        let patch = json!({ "spec": { "template": { "spec": {
            "volumes": [{ "name": "auth", "configMap": { "name": name } }],
            "containers": [{
                "name": "registry",
                "env": [
                    variable("REGISTRY_AUTH", "htpasswd"),
                    variable("REGISTRY_AUTH_HTPASSWD_REALM", "test"),
                    variable("REGISTRY_AUTH_HTPASSWD_PATH", "/auth/htpasswd"),
                ],
                "volumeMounts": [{ "name": "auth", "mountPath": "/auth" }],
                // Whoever asks without the password is refused.
                "readinessProbe": { "httpGet": null, "tcpSocket": { "port": 5000 } },
            }],
        } } } });
        self.patch(arena, &patch).await;
    }

    /// From now on it speaks TLS with the certificate of this Secret, and only to clients that show the same.
    pub async fn shows_certificates(&self, arena: &Arena, secret: &str) {
        let variable = |name: &str, value: &str| json!({ "name": name, "value": value });
        let patch = json!({ "spec": { "template": { "spec": {
            "volumes": [{ "name": "tls", "secret": { "secretName": secret } }],
            "containers": [{
                "name": "registry",
                "env": [
                    variable("REGISTRY_HTTP_TLS_CERTIFICATE", "/tls/tls.crt"),
                    variable("REGISTRY_HTTP_TLS_KEY", "/tls/tls.key"),
                    variable("REGISTRY_HTTP_TLS_CLIENTCAS", "[/tls/tls.crt]"),
                ],
                "volumeMounts": [{ "name": "tls", "mountPath": "/tls" }],
                "readinessProbe": { "httpGet": null, "tcpSocket": { "port": 5000 } },
            }],
        } } } });
        self.patch(arena, &patch).await;
    }

    async fn patch(&self, arena: &Arena, patch: &Value) {
        in_namespace(
            arena,
            &["patch", "deployment/registry", "--patch", &patch.to_string()],
        )
        .await;
        rolled_out(arena).await;
    }
}

/// Passwords and their lines in an htpasswd file, with few rounds.
const PASSWORDS: [(&str, &str); 2] = [
    (
        "first",
        "robot:$2b$05$abcdefghijklmnopqrstuu3rQZA.e/048YzLTJ55aycWHfqo0a49W\n",
    ),
    (
        "second",
        "robot:$2b$05$abcdefghijklmnopqrstuuKbPhTOR7Pvo59BRa0eQ090CMHpax.C6\n",
    ),
];

async fn rolled_out(arena: &Arena) {
    in_namespace(
        arena,
        &["rollout", "status", "deployment/registry", "--timeout=120s"],
    )
    .await;
}

async fn in_namespace(arena: &Arena, arguments: &[&str]) -> String {
    let namespace = ["--namespace", arena.namespace.as_str()];
    kubectl(&[&namespace[..], arguments].concat(), None)
        .await
        .unwrap()
}
