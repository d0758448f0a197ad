//! `slipway accept`: takes in an upload in Launchpad's layout.

use std::{
    fmt::{self, Write as _},
    io::IsTerminal as _,
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{
    limits::{self, LimitFlags},
    outcome::{self, Refusal, printable},
};
use crate::{
    image::{
        Digest, Platform,
        upload::{self, Accepted, Mode, Options, Progress, UploadError},
    },
    record::{Counters, LayerRecord},
};

/// Flags of `slipway accept`.
#[derive(Debug, Args)]
pub struct AcceptArguments {
    /// The folder; in one of its subfolders lie digests.json, manifest.json, configs and layers.
    upload_dir: PathBuf,
    /// Layers that need no file: a digests.json, or JSON lines {diffID, digest, source, size, mediaType}.
    #[arg(long, value_name = "FILE")]
    known: Option<PathBuf>,
    /// Ask only whether every file is there, and prove nothing.
    #[arg(long)]
    presence_only: bool,
    /// Keep what is accepted in this folder, which must not exist; after a refusal it does not.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    limits: LimitFlags,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command: 0 accepted, 1 refused, 2 usage, 3 the machine's own trouble.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(arguments: &AcceptArguments) -> anyhow::Result<ExitCode> {
    let known = match outcome::known(arguments.known.as_deref()) {
        Ok(known) => known,
        Err(error) => {
            complain!("slipway: {error:#}");
            return Ok(ExitCode::from(outcome::USAGE));
        }
    };
    let options = Options {
        mode: if arguments.presence_only {
            Mode::PresenceOnly
        } else {
            Mode::Strict
        },
        known: &known,
        keep: arguments.output.as_deref(),
        limits: arguments.limits.limits(),
    };
    let mut view = View::new();
    match upload::accept(&arguments.upload_dir, &options, &mut |progress| {
        view.show(progress);
    }) {
        Ok(accepted) => outcome::accepted(arguments.json, &document(&accepted), Text(&accepted)),
        Err(error) => {
            view.clear();
            outcome::refused(arguments.json, &refusal(&error))
        }
    }
}

fn refusal(error: &UploadError) -> Refusal {
    Refusal {
        reason: error.reason(),
        message: error.to_string(),
        member: error.member(),
        advice: error.advice().or(limits::advice(error.reason())),
    }
}

#[derive(Serialize)]
struct Document<'a> {
    folder: &'a str,
    images: Vec<ImageDocument<'a>>,
    files: Vec<FileDocument<'a>>,
    warnings: &'a [String],
    counters: Counters,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageDocument<'a> {
    platform: Option<&'a Platform>,
    config_digest: &'a Digest,
    /// An upload has none.
    manifest_digest: Option<&'a Digest>,
    tags: &'a [String],
    layers: &'a [LayerRecord],
}

#[derive(Serialize)]
struct FileDocument<'a> {
    name: &'a str,
    size: u64,
    digest: Option<&'a str>,
    known: bool,
}

fn document(accepted: &Accepted) -> Document<'_> {
    let images = accepted.images.iter().map(|image| ImageDocument {
        platform: image.platform.as_ref(),
        config_digest: &image.config,
        manifest_digest: None,
        tags: &image.tags,
        layers: &image.layers,
    });
    let files = accepted.files.iter().map(|file| FileDocument {
        name: &file.name,
        size: file.size,
        digest: file.digest.as_deref(),
        known: file.known,
    });
    Document {
        folder: &accepted.folder,
        images: images.collect(),
        files: files.collect(),
        warnings: &accepted.warnings,
        counters: accepted.counters,
    }
}

/// What was accepted, for people: a line a file, its digest last.
struct Text<'a>(&'a Accepted);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = String::new();
        writeln!(lines, "accepted {}", self.0.folder)?;
        for image in &self.0.images {
            let platform = image
                .platform
                .as_ref()
                .map_or("no platform".into(), Platform::to_string);
            writeln!(
                lines,
                "image {platform} {} layers, config {}",
                image.layers.len(),
                image.config
            )?;
        }
        for file in &self.0.files {
            let digest = file.digest.as_deref().unwrap_or("-");
            let known = if file.known { "  known" } else { "" };
            writeln!(
                lines,
                "file {}  {}  {digest}{known}",
                file.name,
                outcome::size(file.size)
            )?;
        }
        for warning in &self.0.warnings {
            writeln!(lines, "warning: {warning}")?;
        }
        lines
            .lines()
            .try_for_each(|line| writeln!(f, "{}", printable(line)))
    }
}

/// A bar a layer on a terminal, a line a layer elsewhere.
struct View {
    is_terminal: bool,
    bar: Option<ProgressBar>,
}

impl View {
    fn new() -> Self {
        Self {
            is_terminal: std::io::stderr().is_terminal(),
            bar: None,
        }
    }

    fn show(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Layer(claim, size) if self.is_terminal => {
                let bar = ProgressBar::new(size);
                let style = ProgressStyle::with_template(
                    "{prefix:24!} {bar:30} {bytes:>10}/{total_bytes} {binary_bytes_per_sec}",
                );
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.set_prefix(claim.layer_id.clone());
                self.bar = Some(bar);
            }
            Progress::Layer(claim, size) => complain!("layer {} {}", claim.layer_id, outcome::size(size)),
            Progress::Known(claim) => complain!("layer {} known", claim.layer_id),
            Progress::Bytes(bytes) => self.bar.iter().for_each(|bar| bar.inc(bytes)),
            Progress::Done => self.clear(),
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}
