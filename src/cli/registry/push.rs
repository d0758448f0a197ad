//! `slipway push`, `slipway copy` and `slipway diff`.

use std::{io::IsTerminal as _, process::ExitCode};

use anyhow::bail;
use clap::Args;
use futures_util::join;

use super::{
    Policy, RegistryFlags, Session, Source, exit, failure,
    progress::Display,
    report::{Report, State, TargetReport},
    target,
};
use crate::{
    image::{Digest, Platform},
    record::Failure,
    registry::{
        Image, ImageSource, Proof, PushOptions, Reference, TagPolicy, Target, approach, push_all_with,
        push_merged, survey,
    },
};

/// What `slipway push` is told.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct PushArguments {
    /// registry/repository:tag or @digest, the path of an OCI layout folder, or the path of an archive. Of several
    /// images at a path, one is meant by PATH@DIGEST.
    source: Source,
    /// host[:port]/repository, with or without :tag; may be given several times.
    #[arg(required = true, value_parser = target, value_name = "TARGET")]
    targets: Vec<Reference>,
    /// A tag to write at every target; may be given several times.
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Of an index, only the images for this platform, os/architecture[/variant]; may be given several times.
    #[arg(long, value_name = "PLATFORM")]
    platform: Vec<Platform>,
    /// Put the image into the index that the target's one tag holds: its platforms replace the same ones there, others
    /// stay. Without an index there, one is made.
    #[arg(long, conflicts_with_all = ["dry_run", "check"])]
    merge: bool,
    /// Bring signatures, SBOMs and attestations along.
    #[arg(long)]
    referrers: bool,
    /// List the requests that would write, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Say whether the targets have the image and their tags point to it, and write nothing.
    #[arg(long, conflicts_with = "dry_run")]
    check: bool,
    /// Ask the target for every blob of an image that its tag points to already, not only for the manifests: finds
    /// what the registry lost, and costs a request a blob.
    #[arg(long)]
    verify: bool,
    /// What happens to a tag that points elsewhere.
    #[arg(long, value_enum, default_value_t = Policy::Overwrite, value_name = "POLICY")]
    tag_policy: Policy,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registries: RegistryFlags,
}

/// What `slipway copy` is told.
#[derive(Debug, Args)]
pub struct CopyArguments {
    /// As of push.
    source: Source,
    /// host[:port]/repository, with or without :tag.
    #[arg(value_parser = target)]
    target: Reference,
    /// As of push.
    #[arg(long, value_name = "PLATFORM")]
    platform: Vec<Platform>,
    /// As of push.
    #[arg(long)]
    verify: bool,
    /// What happens to a tag that points elsewhere.
    #[arg(long, value_enum, default_value_t = Policy::Overwrite, value_name = "POLICY")]
    tag_policy: Policy,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registries: RegistryFlags,
}

/// What `slipway diff` is told.
#[derive(Debug, Args)]
pub struct DiffArguments {
    /// Where the image is: as the source of push.
    a: Source,
    /// host[:port]/repository, with or without :tag.
    #[arg(value_parser = target)]
    b: Reference,
    /// As of push.
    #[arg(long, value_name = "PLATFORM")]
    platform: Vec<Platform>,
    /// Look at signatures, SBOMs and attestations too.
    #[arg(long)]
    referrers: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registries: RegistryFlags,
}

/// What is done with the targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Write,
    /// A list of what would be written.
    Plan,
    /// Whether anything would be.
    Check,
}

/// One run, whatever the command was called.
struct Job {
    source: Source,
    /// Each with its tags.
    targets: Vec<(Reference, Vec<String>)>,
    platforms: Vec<Platform>,
    referrers: bool,
    mode: Mode,
    policy: TagPolicy,
    proof: Proof,
    merge: bool,
    json: bool,
}

pub(super) async fn push(arguments: PushArguments) -> anyhow::Result<ExitCode> {
    let mut targets: Vec<(Reference, Vec<String>)> = Vec::new();
    for reference in arguments.targets {
        let tags = reference.tag.iter().chain(&arguments.tag).cloned().collect();
        add(&mut targets, reference, tags)?;
    }
    if arguments.merge
        && let Some((reference, tags)) = targets.iter().find(|(_, tags)| tags.len() != 1)
    {
        bail!(
            "--merge needs exactly one tag for each target; {reference} has {}",
            tags.len()
        );
    }
    let job = Job {
        source: arguments.source,
        targets,
        platforms: arguments.platform,
        referrers: arguments.referrers,
        mode: match (arguments.dry_run, arguments.check) {
            (true, _) => Mode::Plan,
            (false, true) => Mode::Check,
            (false, false) => Mode::Write,
        },
        policy: arguments.tag_policy.into(),
        proof: proof(arguments.verify),
        merge: arguments.merge,
        json: arguments.json,
    };
    job.run(&arguments.registries).await
}

pub(super) async fn copy(arguments: CopyArguments) -> anyhow::Result<ExitCode> {
    let mut targets = Vec::new();
    let tags = default_tags(&arguments.source, &arguments.target);
    add(&mut targets, arguments.target, tags)?;
    let job = Job {
        source: arguments.source,
        targets,
        platforms: arguments.platform,
        referrers: true,
        mode: Mode::Write,
        policy: arguments.tag_policy.into(),
        proof: proof(arguments.verify),
        merge: false,
        json: arguments.json,
    };
    job.run(&arguments.registries).await
}

pub(super) async fn diff(arguments: DiffArguments) -> anyhow::Result<ExitCode> {
    let mut targets = Vec::new();
    let tags = default_tags(&arguments.a, &arguments.b);
    add(&mut targets, arguments.b, tags)?;
    let job = Job {
        source: arguments.a,
        targets,
        platforms: arguments.platform,
        referrers: arguments.referrers,
        mode: Mode::Plan,
        policy: TagPolicy::Overwrite,
        proof: Proof::Whole,
        merge: false,
        json: arguments.json,
    };
    job.run(&arguments.registries).await
}

/// A display of these targets, and options that tell it.
fn watched(targets: &[Target], options: PushOptions) -> (Display, PushOptions) {
    let names = targets.iter().map(|target| {
        let repository = &target.repository;
        format!("{}/{}", repository.registry(), repository.name())
    });
    let display = Display::new(names.collect(), std::io::stderr().is_terminal());
    let listener = Some(display.listener());
    (display, PushOptions { listener, ..options })
}

fn proof(whole: bool) -> Proof {
    if whole { Proof::Whole } else { Proof::Root }
}

/// The target's own tag, else the source's.
fn default_tags(source: &Source, target: &Reference) -> Vec<String> {
    let of_source = match source {
        Source::Registry(reference) => reference.tag.clone(),
        Source::Path(..) => None,
    };
    target.tag.clone().or(of_source).into_iter().collect()
}

/// Adds a target; one repository that is named twice is one target with the tags of both.
fn add(
    targets: &mut Vec<(Reference, Vec<String>)>,
    reference: Reference,
    tags: Vec<String>,
) -> anyhow::Result<()> {
    let repository = Reference {
        tag: None,
        ..reference
    };
    for tag in &tags {
        repository.with_tag(tag)?;
    }
    let position = targets.iter().position(|(seen, _)| *seen == repository);
    let known = match position {
        Some(position) => &mut targets[position].1,
        None => {
            targets.push((repository, Vec::new()));
            match targets.last_mut() {
                Some((_, tags)) => tags,
                None => bail!("no target"),
            }
        }
    };
    for tag in tags {
        if !known.contains(&tag) {
            known.push(tag);
        }
    }
    Ok(())
}

impl Job {
    async fn run(self, flags: &RegistryFlags) -> anyhow::Result<ExitCode> {
        let mut registries: Vec<&str> = self
            .targets
            .iter()
            .map(|(target, _)| target.registry.as_str())
            .collect();
        if let Source::Registry(reference) = &self.source {
            registries.push(&reference.registry);
        }
        registries.sort_unstable();
        registries.dedup();
        let session = Session::open(flags, &registries).await?;
        let report = self.work(&session).await;
        report.print(self.json)?;
        Ok(ExitCode::from(self.code(&report)))
    }

    async fn work(&self, session: &Session) -> Report {
        let mut report = Report::new(&self.source, &self.targets);
        let mut ready = Vec::new();
        let mut positions = Vec::new();
        for (position, (reference, tags)) in self.targets.iter().enumerate() {
            match session.target(reference, tags.clone(), self.policy) {
                Ok(target) => {
                    ready.push(target);
                    positions.push(position);
                }
                Err(failure) => report.targets[position].fail(failure, None),
            }
        }
        let (read, tags) = join!(
            session.read(&self.source, &self.platforms, self.referrers),
            self.approach(session, &ready)
        );
        let (source, image) = match read {
            Ok(read) => read,
            Err(failure) => {
                report.error = Some(failure);
                return report;
            }
        };
        report.read(&image);
        if self.mode == Mode::Write {
            let options = PushOptions {
                listener: None,
                proof: self.proof,
                tags,
            };
            if self.merge {
                for (position, target) in positions.into_iter().zip(&ready) {
                    let (display, options) = watched(std::slice::from_ref(target), options.clone());
                    match push_merged(&image, &source, target, &options).await {
                        Ok((digest, outcome)) => report.targets[position].pushed(outcome, &digest),
                        Err(error) => report.targets[position].fail(failure(&error), error.retry_after()),
                    }
                    display.finish();
                }
                return report;
            }
            let (display, options) = watched(&ready, options);
            let outcomes = push_all_with(&image, &source, &ready, &options).await;
            display.finish();
            for (position, outcome) in positions.into_iter().zip(outcomes) {
                report.targets[position].pushed(outcome, image.digest());
            }
        } else {
            for (position, target) in positions.into_iter().zip(&ready) {
                self.look(&image, &source, target, &mut report.targets[position])
                    .await;
            }
        }
        report
    }

    /// Looks at the targets' tags while the source is read.
    async fn approach(&self, session: &Session, targets: &[Target]) -> Vec<Vec<Option<Digest>>> {
        if self.mode != Mode::Write {
            return Vec::new();
        }
        let source = match &self.source {
            Source::Registry(reference) => Some(session.repository(reference)),
            Source::Path(..) => None,
        };
        approach(source.as_ref(), targets).await
    }

    /// Asks a target what it lacks.
    async fn look(&self, image: &Image, source: &ImageSource, target: &Target, report: &mut TargetReport) {
        match survey(image, source, target).await {
            Ok(survey) => report.surveyed(&survey, image, self.mode == Mode::Check),
            Err(error) => {
                let retry_after = error.retry_after();
                report.fail(failure(&error), retry_after);
            }
        }
    }

    fn code(&self, report: &Report) -> u8 {
        let failures = || {
            let of_targets = report.targets.iter().filter_map(|target| target.error.as_ref());
            report.error.iter().chain(of_targets)
        };
        // What waiting does not mend comes first.
        let code = |failure: &Failure| super::code_of(failure.class);
        if let Some(worst) = failures().map(code).min() {
            return worst;
        }
        let every = |state: State| report.targets.iter().all(|target| target.state == state);
        match self.mode {
            Mode::Check if every(State::Unchanged) => 0,
            Mode::Write | Mode::Plan if !every(State::Unchanged) => 0,
            // Differs where it should not, or there is nothing to do.
            Mode::Check | Mode::Write | Mode::Plan => exit::NOTHING,
        }
    }
}
