//! `slipway push`, `copy`, `diff` and `tags`: images between registries and files, without a cluster.
//!
//! Flags, credentials and exit codes live here; what a push does is `registry`'s.

mod progress;
mod push;
mod report;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};

use super::outcome;
use crate::{
    agent::plan::RegistryLimits,
    api::v1alpha1::{RegistryAccess, RegistryPolicy, RegistryPolicySpec},
    image::{Digest, Platform},
    record::{Failure, FailureClass, Reason},
    registry::{
        Client, ClientOptions, CopyError, Credentials, Image, ImageSource, LocalImage, Reference, Repository,
        Secret, TagPolicy, Target, environment, normal_origin, provider_of, read_image, read_referrers,
    },
};

/// The commands.
#[derive(Debug, Subcommand)]
pub enum RegistryCommand {
    /// Bring an image to repositories: what they have is not sent, what broke is resumed, what is served is
    /// proven.
    ///
    /// Exit codes: 0 done; 1 refused or failed; 2 usage; 3 a registry or the network is not to be had, try again;
    /// 4 nothing to do, or with --check: a target differs.
    Push(Box<push::PushArguments>),
    /// Copy an image with everything that refers to it: signatures, SBOMs, attestations.
    ///
    /// The same as push with --referrers, to one target, under the source's tag unless the target has one.
    Copy(Box<push::CopyArguments>),
    /// Show what a copy from A to B would move, and write nothing.
    ///
    /// Exit code 4 when nothing would move.
    Diff(Box<push::DiffArguments>),
    /// List the tags of a repository.
    Tags(Box<TagsArguments>),
}

/// What `slipway tags` is told.
#[derive(Debug, Args)]
pub struct TagsArguments {
    /// host[:port]/repository.
    #[arg(value_parser = repository)]
    repository: Reference,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registries: RegistryFlags,
}

/// How registries are spoken to.
#[derive(Debug, Args)]
pub struct RegistryFlags {
    /// The docker configuration with the credentials; otherwise containers' auth.json or ~/.docker/config.json
    /// where they exist. Its credential helpers are asked.
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    authfile: Option<PathBuf>,
    /// A registry, host[:port], that is spoken to without TLS; may be given several times.
    #[arg(long, value_name = "HOST", value_parser = origin)]
    plain_http: Vec<String>,
    /// Certificates (PEM) that are trusted for one registry beside the system's; may be given several times.
    #[arg(long, value_name = "HOST=FILE", value_parser = host_and_files)]
    ca: Vec<(String, Vec<PathBuf>)>,
    /// The certificate (PEM) that is shown to one registry, and its private key, in one file or in two; may be given
    /// several times.
    #[arg(long, value_name = "HOST=FILE[,KEY]", value_parser = host_and_files)]
    client_cert: Vec<(String, Vec<PathBuf>)>,
    /// Log in to registries of Amazon, Google and Azure as the workload that this runs in, where the docker
    /// configuration has no login for them.
    #[arg(long)]
    cloud_identity: bool,
    /// A YAML file of RegistryPolicy resources: certificates, proxies, plain http, limits, and what is denied.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

/// Where an image comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// An image in a registry.
    Registry(Reference),
    /// An OCI layout or archive, and which of its images.
    Path(PathBuf, Option<Digest>),
}

impl Source {
    fn text(&self) -> String {
        match self {
            Self::Registry(reference) => reference.to_string(),
            Self::Path(path, None) => path.display().to_string(),
            Self::Path(path, Some(digest)) => format!("{}@{digest}", path.display()),
        }
    }
}

impl FromStr for Source {
    type Err = String;

    /// What starts like a path, or is there, is a path.
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, digest) = match text.rsplit_once('@') {
            Some((path, digest)) => (path, digest.parse().ok()),
            None => (text, None),
        };
        let is_path = |path: &str| path.starts_with(['/', '.']) || Path::new(path).exists();
        if is_path(text) && digest.is_none() {
            return Ok(Self::Path(text.into(), None));
        }
        if is_path(path) {
            return Ok(Self::Path(path.into(), digest));
        }
        text.parse()
            .map(Self::Registry)
            .map_err(|error: crate::registry::ReferenceError| {
                format!("{error}; there is no such file either")
            })
    }
}

/// What happens to a tag that points elsewhere, as it is written on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// It is moved.
    #[value(name = "Overwrite")]
    Overwrite,
    /// It is moved only if it still is what was read when the push began.
    #[value(name = "IfUnchanged")]
    IfUnchanged,
    /// It is never moved; the same digest is success.
    #[value(name = "Immutable")]
    Immutable,
}

impl From<Policy> for TagPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Overwrite => Self::Overwrite,
            Policy::IfUnchanged => Self::IfUnchanged,
            Policy::Immutable => Self::Immutable,
        }
    }
}

fn repository(text: &str) -> Result<Reference, String> {
    Reference::repository(text).map_err(|error| error.to_string())
}

/// `host[:port]/repository[:tag]`.
fn target(text: &str) -> Result<Reference, String> {
    let reference: Reference = text
        .parse()
        .map_err(|error: crate::registry::ReferenceError| error.to_string())?;
    if reference.digest.is_some() {
        return Err(format!(
            "{text:?} has a digest, which is the image's own; write host/repository or host/repository:tag"
        ));
    }
    Ok(reference)
}

fn origin(text: &str) -> Result<String, String> {
    match Reference::repository(&format!("{text}/x")) {
        Ok(reference) if reference.registry == text => Ok(text.to_owned()),
        _ => Err(format!(
            "{text:?} is not host[:port]; write for example localhost:5000, without a scheme and a path"
        )),
    }
}

/// `HOST=FILE[,FILE]`.
fn host_and_files(text: &str) -> Result<(String, Vec<PathBuf>), String> {
    let (host, files) = text
        .split_once('=')
        .filter(|(_, files)| !files.is_empty())
        .ok_or_else(|| format!("{text:?} is not HOST=FILE; write for example registry.example.com=ca.pem"))?;
    Ok((origin(host)?, files.split(',').map(PathBuf::from).collect()))
}

/// The files one after the other.
fn read_all(files: &[PathBuf]) -> anyhow::Result<Vec<u8>> {
    let mut all = Vec::new();
    for path in files {
        let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        all.extend_from_slice(&content);
        all.push(b'\n');
    }
    Ok(all)
}

/// Exit codes.
pub(super) mod exit {
    /// Something was refused, or failed for good.
    pub const FAILED: u8 = 1;
    /// A registry, the network or a file is not to be had; trying again may help.
    pub const INFRASTRUCTURE: u8 = 3;
    /// Everything was there; or, where that was the question, it was not.
    pub const NOTHING: u8 = 4;
}

/// The exit code that a failure means.
fn code_of(class: FailureClass) -> u8 {
    match class {
        FailureClass::User | FailureClass::Policy => exit::FAILED,
        FailureClass::Infrastructure => exit::INFRASTRUCTURE,
    }
}

/// Runs one command.
///
/// # Errors
/// When flags name files that are of no use; what registries answer is in the exit code.
pub async fn run(command: RegistryCommand) -> anyhow::Result<ExitCode> {
    match command {
        RegistryCommand::Push(arguments) => push::push(*arguments).await,
        RegistryCommand::Copy(arguments) => push::copy(*arguments).await,
        RegistryCommand::Diff(arguments) => push::diff(*arguments).await,
        RegistryCommand::Tags(arguments) => {
            tags(&arguments.repository, arguments.json, &arguments.registries).await
        }
    }
}

async fn tags(reference: &Reference, json: bool, flags: &RegistryFlags) -> anyhow::Result<ExitCode> {
    let session = Session::open(flags, &[&reference.registry]).await?;
    let repository = session.repository(reference);
    match repository.tags().await {
        Ok(tags) if json => {
            let document = serde_json::json!({"repository": reference.to_string(), "tags": tags});
            outcome::print(&format!("{document}\n"))?;
        }
        Ok(tags) => {
            let lines: String = tags.into_iter().flat_map(|tag| [tag, "\n".to_owned()]).collect();
            outcome::print(&lines)?;
        }
        Err(error) => {
            let failure = Failure::new(error.reason(), error.to_string());
            if json {
                let document = serde_json::json!({"repository": reference.to_string(), "error": failure});
                outcome::print(&format!("{document}\n"))?;
            }
            complain!("slipway: {}", failure.message);
            return Ok(ExitCode::from(code_of(failure.class)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A client, and what the policies deny.
struct Session {
    client: Client,
    denied: BTreeSet<String>,
}

impl Session {
    /// For these registries.
    async fn open(flags: &RegistryFlags, registries: &[&str]) -> anyhow::Result<Self> {
        let mut options = ClientOptions {
            plain_http: flags.plain_http.iter().cloned().collect(),
            ..ClientOptions::default()
        };
        for (host, files) in &flags.ca {
            options.extra_roots.push((host.clone(), read_all(files)?));
        }
        for (host, files) in &flags.client_cert {
            let pem = String::from_utf8(read_all(files)?)
                .map_err(|_| anyhow::anyhow!("the client certificate for {host} is not PEM"))?;
            options.client_certificates.push((host.clone(), Secret::new(pem)));
        }
        let mut denied = BTreeSet::new();
        for policy in flags
            .policy
            .as_deref()
            .map(policies)
            .transpose()?
            .unwrap_or_default()
        {
            let hosts = registries
                .iter()
                .filter(|host| normal_origin(host) == normal_origin(&policy.origin));
            for host in hosts {
                if policy.plain_http {
                    options.plain_http.insert((*host).to_owned());
                }
                if let Some(bundle) = &policy.ca_bundle {
                    options
                        .extra_roots
                        .push(((*host).to_owned(), bundle.clone().into_bytes()));
                }
                if let Some(proxy) = &policy.proxy {
                    options.proxies.push(((*host).to_owned(), proxy.clone()));
                }
                if let Some(secret) = &policy.client_certificate_ref
                    && !flags
                        .client_cert
                        .iter()
                        .any(|(given, _)| normal_origin(given) == normal_origin(host))
                {
                    anyhow::bail!(
                        "the policy for {host} wants the certificate of a Secret {}; give it with --client-cert {host}=FILE",
                        secret.name
                    );
                }
                if let Some(limits) = policy.limits {
                    options.budgets.push(((*host).to_owned(), limits.part()));
                }
                if policy.access == RegistryAccess::Denied {
                    denied.insert((*host).to_owned());
                }
            }
        }
        let mut credentials = match authfile(flags) {
            None => Credentials::anonymous(),
            Some(path) => {
                let json = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                Credentials::from_docker_config_with_helpers(&json, registries)
                    .await
                    .with_context(|| path.display().to_string())?
            }
        };
        for registry in registries.iter().filter(|_| flags.cloud_identity) {
            if let Some(provider) = provider_of(registry) {
                credentials = credentials.with_cloud_identity(registry, provider, environment());
            }
        }
        Ok(Self {
            client: Client::new(options, credentials)?,
            denied,
        })
    }

    fn repository(&self, reference: &Reference) -> Repository {
        self.client.repository(&reference.registry, &reference.repository)
    }

    /// Opens a source and reads its image.
    async fn read(
        &self,
        source: &Source,
        platforms: &[Platform],
        referrers: bool,
    ) -> Result<(ImageSource, Image), Failure> {
        let (opened, reference) = match source {
            Source::Path(path, digest) => {
                let (path, digest, platforms) = (path.clone(), digest.clone(), platforms.to_vec());
                let opened =
                    tokio::task::spawn_blocking(move || LocalImage::open(&path, digest.as_ref(), &platforms));
                let image = opened
                    .await
                    .map_err(|error| Failure::new(Reason::InternalError, error.to_string()))?
                    .map_err(|error| Failure::new(error.reason(), error.to_string()))?;
                for warning in image.warnings() {
                    complain!("{}: {warning}", image.path());
                }
                let reference = image.root().digest.to_string();
                (ImageSource::from(image), reference)
            }
            Source::Registry(reference) => {
                self.allowed(&reference.registry)?;
                (self.repository(reference).into(), reference.selector().to_owned())
            }
        };
        let read = async {
            let image = read_image(&opened, &reference, platforms).await?;
            match opened.repository() {
                Some(repository) if referrers => read_referrers(repository, image).await,
                _ => Ok(image),
            }
        };
        match read.await {
            Ok(image) => Ok((opened, image)),
            Err(error) => Err(failure(&error).about("the source")),
        }
    }

    /// A target under a policy, if the registry may be written to.
    fn target(&self, reference: &Reference, tags: Vec<String>, policy: TagPolicy) -> Result<Target, Failure> {
        self.allowed(&reference.registry)?;
        Ok(Target {
            repository: self.repository(reference),
            tags,
            policy,
        })
    }

    fn allowed(&self, registry: &str) -> Result<(), Failure> {
        if self.denied.contains(registry) {
            return Err(Failure::new(
                Reason::OriginForbidden,
                format!("{registry} is denied by a RegistryPolicy"),
            ));
        }
        Ok(())
    }
}

fn failure(error: &CopyError) -> Failure {
    Failure::new(error.reason(), error.to_string())
}

/// The file that was named, else the first of the usual ones that is there.
fn authfile(flags: &RegistryFlags) -> Option<PathBuf> {
    if let Some(path) = &flags.authfile {
        return Some(path.clone());
    }
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let usual = [
        variable("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
        variable("DOCKER_CONFIG").map(|folder| folder.join("config.json")),
        variable("HOME").map(|folder| folder.join(".docker/config.json")),
    ];
    usual.into_iter().flatten().find(|path| path.is_file())
}

/// The policies of a file: whole resources, or their `spec` alone.
fn policies(path: &Path) -> anyhow::Result<Vec<RegistryPolicySpec>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut policies = Vec::new();
    // As kubectl reads it: documents between lines of three dashes.
    for document in text.split("\n---") {
        if document
            .lines()
            .all(|line| line.trim().is_empty() || line.starts_with(['#', '-']))
        {
            continue;
        }
        let policy: RegistryPolicySpec = match serde_saphyr::from_str::<RegistryPolicy>(document) {
            Ok(policy) => policy.spec,
            Err(whole) => serde_saphyr::from_str(document)
                .map_err(|_| anyhow::anyhow!("{}: {whole}", path.display()))?,
        };
        if let Some(problem) = policy.limits.and_then(RegistryLimits::problem) {
            anyhow::bail!("{}: the policy for {}: {problem}", path.display(), policy.origin);
        }
        policies.push(policy);
    }
    Ok(policies)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::reference("registry.test/team/app:v1", Some("registry.test/team/app:v1"))]
    #[case::path("/no/such/image.tar", Some("/no/such/image.tar"))]
    #[case::below("./image.tar", Some("./image.tar"))]
    #[case::one_of_several(
        "./layout@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        Some("./layout@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    )]
    #[case::there("Cargo.toml", Some("Cargo.toml"))]
    #[case::short_name("alpine", None)]
    fn a_source_is_a_path_or_a_full_name(#[case] text: &str, #[case] expected: Option<&str>) {
        let source = text.parse::<Source>().ok();
        assert_eq!(source.map(|source| source.text()).as_deref(), expected);
    }

    #[rstest]
    #[case("localhost:5000", true)]
    #[case("registry.test", true)]
    #[case("http://localhost:5000", false)]
    #[case("localhost:5000/team", false)]
    fn an_origin_has_no_scheme_and_no_path(#[case] text: &str, #[case] good: bool) {
        assert_eq!(origin(text).is_ok(), good);
    }

    #[test]
    fn policies_are_read_as_resources_or_as_specs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "# ours\n---\napiVersion: slipway.dev/v1alpha1\nkind: RegistryPolicy\nmetadata:\n  name: a\nspec:\n  \
                    origin: a.test\n  access: Denied\n---\norigin: b.test\nplainHTTP: true\n";
        std::fs::write(file.path(), text).unwrap();
        let found = policies(file.path()).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].origin.as_str(), found[0].access),
            ("a.test", RegistryAccess::Denied)
        );
        assert!(found[1].plain_http);
        std::fs::write(file.path(), "spec: 7\n").unwrap();
        assert!(policies(file.path()).is_err());
    }

    #[rstest]
    #[case::least("pushesAtOnce: 2, requestsPerSecond: 2, bytesPerSecond: 2097152", None)]
    #[case::no_push("pushesAtOnce: 0", Some("limits.pushesAtOnce"))]
    #[case::no_request("pushesAtOnce: 1, requestsPerSecond: 0", Some("limits.requestsPerSecond"))]
    #[case::fewer_than_nothing("pushesAtOnce: 1, bytesPerSecond: -1", Some("limits.bytesPerSecond"))]
    fn limits_that_the_api_server_would_refuse_are_refused(
        #[case] limits: &str,
        #[case] problem: Option<&str>,
    ) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("origin: a.test\nlimits: {{ {limits} }}\n")).unwrap();
        let found = policies(file.path()).map_err(|error| error.to_string());
        match problem {
            None => assert!(found.is_ok(), "{found:?}"),
            Some(problem) => {
                let error = found.unwrap_err();
                assert!(error.contains(problem) && error.contains("a.test"), "{error}");
            }
        }
    }
}
