//! `kubectl slipway …`: what people do with builds. Everything here could be done with `kubectl` alone.

mod act;
mod follow;
mod logs;
mod show;

use std::{io::IsTerminal as _, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use kube::{Api, Client, Config, Resource, config::KubeConfigOptions, core::NamespaceResourceScope};
use serde::Serialize;

use super::outcome;
/// The commands.
#[derive(Debug, Subcommand)]
pub enum KubectlCommand {
    /// Ask a recipe for a build.
    Build {
        /// The recipe.
        recipe: String,
        /// Wait for the build's end, and show how far it is.
        #[arg(long, short)]
        wait: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Print the log of a build.
    Logs {
        /// The build.
        build: String,
        /// Go on until the build ends.
        #[arg(long, short)]
        follow: bool,
        /// Of several platforms, this one.
        #[arg(long)]
        platform: Option<String>,
        /// Which step: fetch, build or collect.
        #[arg(long, short, default_value = "build")]
        container: String,
        #[command(flatten)]
        common: Common,
    },
    /// Show the recipes, builds and pushes of a namespace, or one build.
    Status {
        /// The build; all when absent.
        build: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// End a build.
    Cancel {
        /// The build.
        build: String,
        #[command(flatten)]
        common: Common,
    },
    /// Try again what failed, of a build or of a push; nothing that is done is done again.
    Retry {
        /// The build or push.
        name: String,
        /// Of a build, this platform only.
        #[arg(long)]
        platform: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Have the cluster push a build's image, or any image, to a repository.
    SchedulePush {
        /// A build, or registry/repository:tag or @digest.
        source: String,
        /// host[:port]/repository.
        target: String,
        /// A tag to write; may be given several times.
        #[arg(long)]
        tag: Vec<String>,
        /// The Secret with the target's credentials.
        #[arg(long)]
        secret: Option<String>,
        /// Wait for the push's end.
        #[arg(long, short)]
        wait: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Ask a finished build to push its image: failed pushes go on, and rules that its recipe got since are pushed.
    ScheduleUpload {
        /// The build.
        build: String,
        #[command(flatten)]
        common: Common,
    },
    /// Tell everything about one build.
    Describe {
        /// The build.
        build: String,
        /// With a line a layer.
        #[arg(long)]
        layers: bool,
        #[command(flatten)]
        common: Common,
    },
}

/// Flags of every command.
#[derive(Debug, Args)]
pub struct Common {
    /// The namespace; the context's when absent.
    #[arg(long, short)]
    namespace: Option<String>,
    /// The context of the kubeconfig.
    #[arg(long)]
    context: Option<String>,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

/// A connection, and how to print.
struct Session {
    client: Client,
    namespace: String,
    output: Output,
}

impl Session {
    async fn open(common: Common) -> anyhow::Result<Self> {
        let options = KubeConfigOptions {
            context: common.context,
            ..KubeConfigOptions::default()
        };
        let config = match options.context {
            Some(_) => Config::from_kubeconfig(&options)
                .await
                .context("cannot read the kubeconfig")?,
            None => Config::infer()
                .await
                .context("cannot find a cluster; set KUBECONFIG")?,
        };
        let namespace = common
            .namespace
            .unwrap_or_else(|| config.default_namespace.clone());
        Ok(Self {
            client: Client::try_from(config)?,
            namespace,
            output: common.output,
        })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Prints text for people, or the document.
    fn print(&self, text: &str, document: &impl Serialize) -> anyhow::Result<()> {
        match self.output {
            Output::Text => outcome::print(text)?,
            Output::Json => outcome::print(&format!("{}\n", serde_json::to_string_pretty(document)?))?,
        };
        Ok(())
    }

    /// Whether progress may redraw lines.
    fn is_interactive(&self) -> bool {
        self.output == Output::Text && std::io::stderr().is_terminal()
    }
}

/// Runs one command. Exit codes: 0 done, 1 the build or push failed, 2 usage, 3 the cluster is not to be had.
///
/// # Errors
/// Whatever ends the command early.
pub async fn run(command: KubectlCommand) -> anyhow::Result<ExitCode> {
    match command {
        KubectlCommand::Build { recipe, wait, common } => {
            act::build(&Session::open(common).await?, &recipe, wait).await
        }
        KubectlCommand::Logs {
            build,
            follow,
            platform,
            container,
            common,
        } => {
            let session = Session::open(common).await?;
            // Large, because it waits for several things at once.
            Box::pin(logs::print(
                &session,
                &build,
                platform.as_deref(),
                &container,
                follow,
            ))
            .await
        }
        KubectlCommand::Status { build, common } => {
            show::status(&Session::open(common).await?, build.as_deref()).await
        }
        KubectlCommand::Cancel { build, common } => act::cancel(&Session::open(common).await?, &build).await,
        KubectlCommand::Retry {
            name,
            platform,
            common,
        } => act::retry(&Session::open(common).await?, &name, &platform).await,
        KubectlCommand::SchedulePush {
            source,
            target,
            tag,
            secret,
            wait,
            common,
        } => {
            if target.contains('@') {
                bail!("the target {target:?} is a repository, without a digest; give tags with --tag");
            }
            act::push(&Session::open(common).await?, &source, &target, tag, secret, wait).await
        }
        KubectlCommand::ScheduleUpload { build, common } => {
            act::schedule_upload(&Session::open(common).await?, &build).await
        }
        KubectlCommand::Describe {
            build,
            layers,
            common,
        } => show::describe(&Session::open(common).await?, &build, layers).await,
    }
}
