//! `slipway collect`: from an image archive to proven layers, in a folder or in a staging registry.

mod document;
mod progress;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use clap::{Args, builder::TypedValueParser as _};

use super::{
    limits::{self, LimitFlags},
    outcome::{self, Refusal, USAGE},
};
use crate::{
    collect::{CollectError, Collection, Folder, Options, Patience, Tags, blocking, visible},
    image::{
        Digest, Known, Platform,
        archive::{Archive, ArchiveError, ArchiveImage, Limits},
        compress::Method,
    },
    record::{Counters, ImageRecord},
    registry::{Client, ClientOptions, Credentials, Reference, Repository},
    staging::{StagingError, Store},
};
use document::Document;
use progress::Progress;

/// Flags of `slipway collect`.
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("target").required(true).args(["output", "staging"]))]
pub struct CollectArguments {
    /// An archive, the folder of an OCI layout, or - for standard input.
    source: PathBuf,
    /// Write layers, configs, digests.json and manifest.json into this folder.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Store the images in this repository, for example registry.example.com/team/app.
    #[arg(long, value_name = "REGISTRY/REPO", value_parser = repository)]
    staging: Option<Reference>,
    /// Only the image of this platform, for example linux/arm64.
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Layers that are stored already: a digests.json, or JSON lines {diffID, digest, source, size, mediaType}.
    #[arg(long, value_name = "FILE")]
    known: Option<PathBuf>,
    /// Read and prove known layers too.
    #[arg(long)]
    verify_known: bool,
    /// Refuse an archive of several images.
    #[arg(long)]
    single: bool,
    /// How layers are stored that come uncompressed.
    #[arg(long, value_name = "HOW", default_value = "gzip", value_parser = methods())]
    compression: Method,
    /// Accept layers that are to be had elsewhere only; they are named and never fetched.
    #[arg(long, conflicts_with = "output")]
    allow_foreign: bool,
    /// Speak to this registry without TLS.
    #[arg(long, value_name = "HOST[:PORT]")]
    plain_http: Vec<String>,
    /// Credentials, in docker's format.
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Threads that compress; as many as there are cores when absent. The result does not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: Option<u8>,
    #[command(flatten)]
    limits: LimitFlags,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn repository(text: &str) -> Result<Reference, String> {
    Reference::repository(text).map_err(|error| error.to_string())
}

fn methods() -> impl clap::builder::TypedValueParser<Value = Method> {
    clap::builder::PossibleValuesParser::new(Method::ALL.map(Method::as_str))
        .try_map(|text| text.parse::<Method>())
}

/// Runs the command: 0 done, 1 refused, 2 usage, 3 the machine, the network or the registry.
///
/// # Errors
/// When standard output is closed.
pub async fn run(arguments: CollectArguments) -> anyhow::Result<ExitCode> {
    let (json, known, credentials) = (
        arguments.json,
        outcome::known(arguments.known.as_deref()),
        credentials(arguments.authfile.as_deref()),
    );
    let (known, credentials) = match (known, credentials) {
        (Ok(known), Ok(credentials)) => (known, credentials),
        (Err(error), _) | (_, Err(error)) => {
            complain!("slipway: {error:#}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    match collect(arguments, known, credentials).await {
        Ok(document) => outcome::accepted(json, &document, &document),
        Err(error) => outcome::refused(
            json,
            &Refusal {
                reason: error.reason(),
                message: visible(&error.to_string()),
                member: error.member().map(visible),
                advice: limits::advice(error.reason()),
            },
        ),
    }
}

fn credentials(path: Option<&Path>) -> anyhow::Result<Credentials> {
    let Some(path) = path else {
        return Ok(Credentials::anonymous());
    };
    let json = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Credentials::from_docker_config(&json).with_context(|| path.display().to_string())
}

async fn collect(
    arguments: CollectArguments,
    given: Known,
    credentials: Credentials,
) -> Result<Document, CollectError> {
    let progress = Progress::new(arguments.json);
    let defaults = Options::default();
    let options = Options {
        method: arguments.compression,
        threads: arguments.threads.map_or(defaults.threads, usize::from),
        verify_known: arguments.verify_known,
        observer: progress.observer(),
    };
    let limits = Limits {
        foreign_layers: arguments.allow_foreign,
        ..arguments.limits.limits()
    };
    let source = arguments.source.clone();
    let archive = blocking(move || {
        if source.as_os_str() == "-" {
            Archive::from_stream(std::io::stdin().lock(), limits)
        } else {
            Archive::open(&source, limits)
        }
    })
    .await??;
    let archive = Arc::new(archive);
    let images = wanted(&archive, &arguments)?;
    let patience = Patience::default();
    if let Some(target) = &arguments.staging {
        let store = connect(target, arguments.plain_http, credentials)?;
        let collection = Collection::new(store, patience, options).with_given(given);
        let (_, document) = gather(collection, &archive, &images, arguments.platform.as_ref()).await?;
        return Ok(document);
    }
    let folder = arguments.output.unwrap_or_default();
    let writing = |error: std::io::Error| {
        CollectError::Staging(StagingError::Refused(format!(
            "{} cannot be written to: {error}",
            folder.display()
        )))
    };
    let store = Folder::new(&folder, &given).map_err(writing)?;
    let collection = Collection::new(store, patience, options).with_given(given);
    let (store, document) = gather(collection, &archive, &images, arguments.platform.as_ref()).await?;
    let records: Vec<(ImageRecord, Vec<String>)> = document
        .records
        .iter()
        .zip(&images)
        .map(|(record, image)| (record.clone(), image.tags.clone()))
        .collect();
    blocking(move || store.finish(&records)).await?.map_err(writing)?;
    Ok(document)
}

/// The images that are meant: one where one is asked for, else every one.
fn wanted(archive: &Archive, arguments: &CollectArguments) -> Result<Vec<ArchiveImage>, ArchiveError> {
    if arguments.single || arguments.platform.is_some() || archive.images().is_empty() {
        return archive
            .single(arguments.platform.as_ref())
            .map(|image| vec![image.clone()]);
    }
    Ok(archive.images().to_vec())
}

fn connect(
    target: &Reference,
    plain_http: Vec<String>,
    credentials: Credentials,
) -> Result<Repository, CollectError> {
    let options = ClientOptions {
        plain_http: plain_http.into_iter().collect::<BTreeSet<_>>(),
        ..ClientOptions::default()
    };
    let client = Client::new(options, credentials).map_err(StagingError::from)?;
    Ok(client.repository(&target.registry, &target.repository))
}

/// Collects one image after another; layers that they share are stored once.
async fn gather<S: Store>(
    mut collection: Collection<S>,
    archive: &Arc<Archive>,
    images: &[ArchiveImage],
    platform: Option<&Platform>,
) -> Result<(S, Document), CollectError> {
    let mut document = Document::new(archive);
    for image in images {
        let fallback = platform.cloned().unwrap_or_else(nowhere);
        let collected = collection
            .collect(archive, image, &fallback, keeping_tags(image))
            .await?;
        document.add(image, collected);
    }
    document.counters = collection.counters();
    Ok((collection.into_store(), document))
}

/// The tag that keeps an image, and its layers before it is whole, from garbage collection. It names the image
/// by what the archive has of it, since that is known from the beginning.
fn keeping_tags(image: &ArchiveImage) -> Tags {
    let digest = image
        .manifest
        .as_ref()
        .map_or(&image.config.digest, |manifest| &manifest.digest);
    let tag = format!("collected-{}", digest.hex());
    Tags {
        pending: tag.clone(),
        image: tag,
    }
}

/// What a record says of an image that names no platform.
fn nowhere() -> Platform {
    Platform {
        os: "unknown".into(),
        architecture: "unknown".into(),
        variant: None,
    }
}
