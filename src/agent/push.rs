//! The pusher: gets one image to its targets and reports on each.
//!
//! Reads the credentials that are mounted for the source and for each target, and nothing else of the pod.
//! Long waits are not its business: a registry that wants to be left alone is reported, and the controller
//! comes back when it said.

use futures_util::future::join_all;

use super::{
    certificates::{Unreadable, client_options},
    docker_config::credentials,
    identity,
    plan::{PushMode, PushPlan, PushSource, PushTarget},
    report::{MESSAGE_LIMIT, PushReport, RefusedPart, TargetReport},
};
use crate::{
    image::{Digest, media_type},
    record::{Failure, Reason},
    registry::{
        BlobCounters, Client, ClientOptions, CopyError, Credentials, Image, ImageSource, Listener, Operation,
        Outcome, OwnError, PushOptions, Reference, ReferrerCounters, RegistryError, Repository, Survey,
        Target, for_target, push_again, push_all_with, read_image, read_referrers_except, survey,
    },
};

/// Requests of a dry run that are listed for each target; an image of sixteen platforms has about as many.
const REQUESTS_LISTED: usize = 512;
/// Slipway's own: a record holds the build's log, a receipt says where else the image is; both are their
/// namespace's alone.
const STAY_IN_STAGING: &[&str] = &[media_type::SLIPWAY_RECORD, media_type::SLIPWAY_RECEIPT];
/// What refers to an image and is named in a report.
const REFERRERS_NAMED: usize = 64;

/// Pushes as planned.
pub async fn run(plan: PushPlan) -> PushReport {
    run_watched(plan, None).await
}

/// [`run`] for somebody who watches.
pub async fn run_watched(plan: PushPlan, listener: Option<Listener>) -> PushReport {
    let mut report = PushReport {
        digest: None,
        failure: None,
        referrers: Vec::new(),
        targets: plan.targets.iter().map(|_| untouched()).collect(),
    };
    let (options, unreadable) = client_options(&plan.registries);
    push(&plan, options, &unreadable, listener, &mut report).await;
    report
}

async fn push(
    plan: &PushPlan,
    options: ClientOptions,
    unreadable: &Unreadable,
    listener: Option<Listener>,
    report: &mut PushReport,
) {
    if plan.mode == PushMode::Check {
        return check(plan, options, unreadable, report).await;
    }
    if let Err(failure) = unreadable.check(&plan.source.registry) {
        report.failure = Some(failure);
        return;
    }
    let (source, image) = match read_source(plan, options).await {
        Ok(found) => found,
        Err((failure, retry_after)) => {
            for target in &mut report.targets {
                target.retry_after_seconds = retry_after;
            }
            report.failure = Some(failure);
            return;
        }
    };
    report.digest = Some(image.digest().clone());
    report.referrers = image.referrers().take(REFERRERS_NAMED).cloned().collect();
    let mut ready = Vec::new();
    let mut positions = Vec::new();
    for (position, planned) in plan.targets.iter().enumerate() {
        match target(source.client(), planned, unreadable) {
            Ok(target) => {
                ready.push(target);
                positions.push(position);
            }
            Err(failure) => report.targets[position].failure = Some(failure),
        }
    }
    let source = &source.into();
    let groups = groups(plan, source, &image, ready.iter().zip(&positions), report).await;
    match plan.mode {
        PushMode::Write => {
            let pushes = groups.iter().map(|group| {
                let options = PushOptions {
                    listener: listener.clone(),
                    tags: group.found.clone(),
                    ..PushOptions::default()
                };
                async move { push_all_with(&group.image, source, &group.targets, &options).await }
            });
            let outcomes = join_all(pushes).await;
            for (group, outcomes) in groups.iter().zip(outcomes) {
                for (position, outcome) in group.positions.iter().zip(outcomes) {
                    let (target, publish) = (&ready[*position], plan.targets[positions[*position]].publish);
                    let again = push_again(&image, source, target, publish, &outcome).await;
                    report.targets[positions[*position]] = match again {
                        Ok(None) => of_image(reported(outcome, &group.image), &group.image, &image),
                        Ok(Some((own, outcome))) => of_image(reported(outcome, &own), &own, &image),
                        Err(error) => failed(&error),
                    };
                }
            }
        }
        PushMode::DryRun => {
            for group in &groups {
                for (position, target) in group.positions.iter().zip(&group.targets) {
                    let found = surveyed(survey(&group.image, source, target).await);
                    report.targets[positions[*position]] = of_image(found, &group.image, &image);
                }
            }
        }
        PushMode::Check => {}
    }
}

/// Targets that get the same image, which are read for together.
struct Group {
    image: Image,
    targets: Vec<Target>,
    /// Which of the targets that are ready.
    positions: Vec<usize>,
    /// Where the tags of each pointed to, as far as the image depends on it.
    found: Vec<Vec<Option<Digest>>>,
}

impl Group {
    fn of(image: Image) -> Self {
        Self {
            image,
            targets: Vec::new(),
            positions: Vec::new(),
            found: Vec::new(),
        }
    }
}

/// The image as it is for most, and beside it what the publish policy makes of it for some.
async fn groups<'a>(
    plan: &PushPlan,
    source: &ImageSource,
    image: &Image,
    ready: impl Iterator<Item = (&'a Target, &'a usize)>,
    report: &mut PushReport,
) -> Vec<Group> {
    let mut groups = vec![Group::of(image.clone())];
    for (position, (target, planned)) in ready.enumerate() {
        let publish = plan.targets[*planned].publish;
        let (made, target) = match for_target(image, source, target.clone(), publish).await {
            Ok(made) => made,
            Err(error) => {
                report.targets[*planned] = failed(&error);
                continue;
            }
        };
        let is_whole = made.image.digest() == image.digest();
        if !is_whole {
            groups.push(Group::of(made.image));
        }
        let last = groups.len() - 1;
        let group = &mut groups[if is_whole { 0 } else { last }];
        group.targets.push(target);
        group.positions.push(position);
        group.found.push(made.found);
    }
    groups
}

/// A report on a target that got its own image rather than the one that most get.
fn of_image(report: TargetReport, own: &Image, image: &Image) -> TargetReport {
    let digest = own.digest();
    TargetReport {
        digest: (digest != image.digest()).then(|| digest.clone()),
        ..report
    }
}

fn failed(error: &CopyError) -> TargetReport {
    TargetReport {
        retry_after_seconds: seconds(error),
        failure: Some(Failure::new(error.reason(), error.to_string())),
        errors: own_errors(error),
        ..untouched()
    }
}

/// Asks each target where its tags point to; the source is not read.
async fn check(plan: &PushPlan, options: ClientOptions, unreadable: &Unreadable, report: &mut PushReport) {
    let client = match Client::new(options, Credentials::anonymous()) {
        Ok(client) => client,
        Err(error) => {
            report.failure = Some(Failure::new(error.reason(), error.to_string()));
            return;
        }
    };
    for (planned, report) in plan.targets.iter().zip(&mut report.targets) {
        match target(&client, planned, unreadable) {
            Ok(target) => match tags_of(&target).await {
                Ok(found) => report.previous = found,
                Err(error) => report.failure = Some(Failure::new(error.reason(), error.to_string())),
            },
            Err(failure) => report.failure = Some(failure),
        }
    }
}

async fn tags_of(target: &Target) -> Result<Vec<Option<Digest>>, RegistryError> {
    let mut found = Vec::new();
    for tag in &target.tags {
        let answer = target.repository.head_manifest(tag).await?;
        found.push(answer.map(|(digest, _)| digest));
    }
    Ok(found)
}

/// The source's repository and the image in it, or what stands against every target.
async fn read_source(
    plan: &PushPlan,
    options: ClientOptions,
) -> Result<(Repository, Image), (Failure, Option<u64>)> {
    let PushSource {
        registry,
        repository,
        reference,
        digest,
        credentials_dir,
        realm,
    } = &plan.source;
    let at_once = |failure| (failure, None);
    let credentials = match realm {
        Some(realm) => identity::credentials(registry, realm),
        None => credentials(credentials_dir.as_deref()),
    }
    .map_err(at_once)?;
    let client = Client::new(options, credentials)
        .map_err(|error| at_once(Failure::new(error.reason(), error.to_string())))?;
    let source = client.repository(registry, repository);
    let read = async {
        if let Some(expected) = digest.as_ref().filter(|digest| digest.as_str() != reference) {
            let found = source.head_manifest(reference).await?.map(|(found, _)| found);
            if let Some(found) = found.filter(|found| found != expected) {
                return Err(CopyError::Verification {
                    what: format!("{reference}, which was to be {expected},"),
                    found: found.to_string(),
                });
            }
        }
        // From here on the digest: a tag may move at any time.
        let reference = digest
            .as_ref()
            .map_or(reference.as_str(), |digest| digest.as_str());
        let image = read_image(&source.clone().into(), reference, &plan.platforms).await?;
        read_referrers_except(&source, image, STAY_IN_STAGING).await
    };
    match read.await {
        Ok(image) => Ok((source, image)),
        Err(error) => Err((
            Failure::new(source_reason(&error), format!("the source: {error}")),
            seconds(&error),
        )),
    }
}

/// A registry without the repository has no image to push.
fn source_reason(error: &CopyError) -> Reason {
    match error {
        CopyError::Registry(RegistryError::Name(_)) => Reason::SourceMissing,
        error => match error.reason() {
            Reason::RepositoryNotFound => Reason::SourceMissing,
            reason => reason,
        },
    }
}

fn target(client: &Client, planned: &PushTarget, unreadable: &Unreadable) -> Result<Target, Failure> {
    let invalid =
        |error: crate::registry::ReferenceError| Failure::new(Reason::TargetInvalid, error.to_string());
    let reference = Reference::repository(&planned.repository).map_err(invalid)?;
    for tag in &planned.tags {
        reference.with_tag(tag).map_err(invalid)?;
    }
    unreadable.check(&reference.registry)?;
    let credentials = credentials(planned.credentials_dir.as_deref())?;
    Ok(Target {
        repository: client
            .with_credentials(credentials)
            .repository(&reference.registry, &reference.repository),
        tags: planned.tags.clone(),
        policy: planned.tag_policy,
    })
}

fn untouched() -> TargetReport {
    TargetReport {
        failure: None,
        digest: None,
        retry_after_seconds: None,
        errors: Vec::new(),
        refused: None,
        blobs: BlobCounters::default(),
        referrers: ReferrerCounters::default(),
        requests: Vec::new(),
        requests_omitted: 0,
        previous: Vec::new(),
    }
}

fn reported(outcome: Outcome, image: &Image) -> TargetReport {
    let error = outcome.result.err();
    TargetReport {
        errors: error.as_ref().map(own_errors).unwrap_or_default(),
        refused: error.as_ref().and_then(|error| refused_part(error, image)),
        retry_after_seconds: error.as_ref().and_then(seconds),
        failure: error.map(|error| Failure::new(error.reason(), error.to_string())),
        blobs: outcome.blobs,
        referrers: outcome.referrers,
        previous: outcome.previous,
        ..untouched()
    }
}

fn own_errors(error: &CopyError) -> Vec<OwnError> {
    match error {
        CopyError::Registry(error) => error.own_errors().to_vec(),
        _ => Vec::new(),
    }
}

/// What a registry that answered did not take.
fn refused_part(error: &CopyError, image: &Image) -> Option<RefusedPart> {
    let CopyError::Registry(RegistryError::Answered { at, .. }) = error else {
        return None;
    };
    let digest = || {
        at.subject
            .split([' ', '@'])
            .find_map(|word| word.parse::<Digest>().ok())
    };
    match at.operation {
        Operation::StartUpload | Operation::SendBlob | Operation::AskUpload | Operation::MountBlob => {
            digest().map(RefusedPart::Blob)
        }
        Operation::PutManifest => {
            // A tag, or the root by its digest; else one of its children, which is an image.
            let is_root = digest().is_none_or(|digest| digest == *image.digest());
            Some(if is_root && is_index(image) {
                RefusedPart::Index
            } else {
                RefusedPart::Manifest
            })
        }
        _ => None,
    }
}

fn is_index(image: &Image) -> bool {
    matches!(
        image.media_type(),
        media_type::OCI_INDEX | media_type::DOCKER_LIST
    )
}

/// What a dry run found out of one target.
fn surveyed(survey: Result<Survey, CopyError>) -> TargetReport {
    let survey = match survey {
        Ok(survey) => survey,
        Err(error) => return failed(&error),
    };
    let listed = survey.writes.iter().take(REQUESTS_LISTED);
    TargetReport {
        requests: listed.map(ToString::to_string).collect(),
        requests_omitted: count(survey.writes.len().saturating_sub(REQUESTS_LISTED)),
        previous: survey.tags,
        ..untouched()
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn seconds(error: &CopyError) -> Option<u64> {
    // Rounded up: a registry that is asked a moment too early says no again.
    error
        .retry_after()
        .map(|time| time.as_secs() + u64::from(time.subsec_nanos() > 0))
}

/// A report cut until the kubelet keeps all of it: lists first, then words, and where there are more tags than the
/// limit has room for, the digests that they pointed to.
#[must_use]
pub fn fitted(mut report: PushReport) -> PushReport {
    fit(&mut report);
    report
}

fn fit(report: &mut PushReport) {
    let too_long =
        |report: &PushReport| serde_json::to_vec(report).is_ok_and(|text| text.len() > MESSAGE_LIMIT);
    while too_long(report) {
        let listed = |target: &&mut TargetReport| target.requests.len();
        let Some(target) = report
            .targets
            .iter_mut()
            .max_by_key(listed)
            .filter(|target| !target.requests.is_empty())
        else {
            break;
        };
        target.requests.pop();
        target.requests_omitted += 1;
    }
    while too_long(report) && report.referrers.pop().is_some() {}
    while too_long(report) {
        let said = |target: &&mut TargetReport| target.errors.len();
        let most = report.targets.iter_mut().max_by_key(said);
        if most.and_then(|target| target.errors.pop()).is_none() {
            break;
        }
    }
    for limit in [1024, 512, 256, 128, 64, 0] {
        if !too_long(report) {
            return;
        }
        let failures = report
            .targets
            .iter_mut()
            .filter_map(|target| target.failure.as_mut())
            .chain(report.failure.as_mut());
        for failure in failures {
            shorten(&mut failure.message, limit);
        }
    }
    while too_long(report) {
        let longest = report
            .targets
            .iter_mut()
            .max_by_key(|target| target.previous.len());
        match longest {
            Some(target) if !target.previous.is_empty() => target.previous.clear(),
            _ => return,
        }
    }
}

fn shorten(text: &mut String, limit: usize) {
    if text.len() <= limit {
        return;
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    if end > 0 {
        text.push('…');
    }
}

#[cfg(test)]
#[path = "push_tests.rs"]
mod tests;
