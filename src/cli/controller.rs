//! `slipway controller`: the operator.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use kube::{Client, Config};

use crate::controller::{self, GateDelivery, Options, Settings, StagingSettings};

/// Flags of the operator; the chart sets them.
#[derive(Debug, Args)]
pub struct ControllerArguments {
    /// Slipway's own image, for the pods that it makes.
    #[arg(long, env = "SLIPWAY_IMAGE")]
    image: String,
    /// The staging registry, host[:port], as pods reach it.
    #[arg(long, env = "SLIPWAY_STAGING_REGISTRY")]
    staging_registry: String,
    /// The first part of every repository in staging; the namespace follows.
    #[arg(long, env = "SLIPWAY_STAGING_PREFIX", default_value = "slipway")]
    staging_prefix: String,
    /// Speak to the staging registry without TLS.
    #[arg(long, env = "SLIPWAY_STAGING_PLAIN_HTTP")]
    staging_plain_http: bool,
    /// A folder with tls.key and tls.crt: the operator signs staging's tokens with them, and pods get none without.
    #[arg(long, env = "SLIPWAY_STAGING_TOKEN_KEY")]
    staging_token_key: Option<PathBuf>,
    /// The operator's own namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "slipway-system")]
    namespace: String,
    /// Watch this namespace only.
    #[arg(long, env = "SLIPWAY_WATCH_NAMESPACE")]
    watch_namespace: Option<String>,
    /// This replica's name in the lease.
    #[arg(long, env = "POD_NAME", default_value = "slipway")]
    identity: String,
    /// The URL by which build and push pods reach what this serves; without it their ends are known a second or two
    /// later.
    #[arg(long, env = "SLIPWAY_OPERATOR_URL")]
    operator_url: Option<String>,
    /// Where probes, metrics and the reports of pods are served.
    #[arg(long, env = "SLIPWAY_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// How the gate gets into build containers; by the nodes' versions when absent.
    #[arg(long, env = "SLIPWAY_GATE", value_enum)]
    gate: Option<GateDelivery>,
    /// Never use user namespaces.
    #[arg(long, env = "SLIPWAY_NO_USER_NAMESPACES")]
    no_user_namespaces: bool,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the API server cannot be reached at all, or the lease is lost.
pub async fn run(arguments: ControllerArguments) -> anyhow::Result<()> {
    let mut config = Config::infer()
        .await
        .context("cannot find a cluster: neither in-cluster nor a kubeconfig")?;
    // Every pass has its own time limit and backoff; retries below it would hide both.
    config.default_retry = false;
    let client = Client::try_from(config).context("cannot make a client from the configuration")?;
    let options = Options {
        settings: Settings {
            image: arguments.image,
            gate: arguments.gate,
            user_namespaces: !arguments.no_user_namespaces,
            operator_url: arguments.operator_url.filter(|url| !url.is_empty()),
        },
        staging: StagingSettings {
            registry: arguments.staging_registry,
            prefix: arguments.staging_prefix,
            plain_http: arguments.staging_plain_http,
        },
        staging_token_key: arguments
            .staging_token_key
            .filter(|folder| !folder.as_os_str().is_empty()),
        namespace: arguments.namespace,
        watch_namespace: arguments
            .watch_namespace
            .filter(|namespace| !namespace.is_empty()),
        identity: arguments.identity,
        listen: arguments.listen,
    };
    controller::run(client, options, stopped()).await?;
    Ok(())
}

async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
