//! What is served over HTTP: probes, metrics, and where agents report to.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::sync::watch;

use super::metrics::Metrics;
use crate::kubernetes::watches::Gate;

/// A watch that goes on failing says so again and again, the first times within seconds; one that has been
/// silent for this long went on.
const FORGIVEN: Duration = Duration::from_secs(10);

/// The named gates that readiness waits for.
#[derive(Clone, Default)]
pub struct Gates {
    gates: Arc<Vec<(&'static str, watch::Receiver<Gate>)>>,
}

impl Gates {
    /// Waits for these.
    pub fn new(gates: Vec<(&'static str, watch::Receiver<Gate>)>) -> Self {
        Self {
            gates: Arc::new(gates),
        }
    }

    /// What is not ready yet, a line each.
    pub fn missing(&self) -> Vec<String> {
        self.gates
            .iter()
            .filter_map(|(name, gate)| match &*gate.borrow() {
                Gate::Ready => None,
                Gate::Starting => Some(format!("{name}: not listed yet")),
                // A watch that resumed says so only when there is something to tell.
                Gate::Failing {
                    since, listed: true, ..
                } if since.elapsed() > FORGIVEN => None,
                Gate::Failing { error, .. } => Some(format!("{name}: {error}")),
            })
            .collect()
    }
}

/// Serves until the process ends.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    address: SocketAddr,
    gates: Gates,
    metrics: Metrics,
    for_pods: Router,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(gates)
        .merge(Router::new().route("/metrics", get(text)).with_state(metrics))
        .merge(for_pods);
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, routes).await
}

async fn ready(State(gates): State<Gates>) -> (StatusCode, String) {
    let missing = gates.missing();
    if missing.is_empty() {
        (StatusCode::OK, "ok\n".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n")
    }
}

async fn text(State(metrics): State<Metrics>) -> ([(&'static str, &'static str); 1], String) {
    (
        [(
            "content-type",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        metrics.text(),
    )
}
