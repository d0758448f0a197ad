//! The pusher: gets one image to its targets and reports on each.
//!
//! Reads the credentials that are mounted for the source and for each target, and nothing else of the pod.
//! Long waits are not its business: a registry that wants to be left alone is reported, and the controller
//! comes back when it said.

use super::{
    docker_config::credentials,
    identity,
    plan::{PushMode, PushPlan, PushSource, PushTarget},
    report::{MESSAGE_LIMIT, PushReport, TargetReport},
};
use crate::{
    image::media_type,
    record::{Failure, Reason},
    registry::{
        BlobCounters, Client, ClientOptions, CopyError, Image, Listener, Outcome, Reference,
        ReferrerCounters, RegistryError, Repository, Survey, Target, push_all, read_image,
        read_referrers_except, survey,
    },
};

/// Requests of a dry run that are listed for each target; an image of sixteen platforms has about as many.
const REQUESTS_LISTED: usize = 512;
/// Slipway's own: a record holds the build's log, and is its namespace's alone.
const STAY_IN_STAGING: &[&str] = &[media_type::SLIPWAY_RECORD];
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
    let options = plan.registries.options();
    push(&plan, options, listener, &mut report).await;
    report
}

async fn push(plan: &PushPlan, options: ClientOptions, listener: Option<Listener>, report: &mut PushReport) {
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
        match target(source.client(), planned) {
            Ok(target) => {
                ready.push(target);
                positions.push(position);
            }
            Err(failure) => report.targets[position].failure = Some(failure),
        }
    }
    let source = source.into();
    match plan.mode {
        PushMode::Write => {
            let outcomes = push_all(&image, &source, &ready, listener).await;
            for (position, outcome) in positions.into_iter().zip(outcomes) {
                report.targets[position] = reported(outcome);
            }
        }
        PushMode::DryRun => {
            for (position, target) in positions.into_iter().zip(&ready) {
                report.targets[position] = surveyed(survey(&image, &source, target).await);
            }
        }
    }
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

fn target(client: &Client, planned: &PushTarget) -> Result<Target, Failure> {
    let invalid =
        |error: crate::registry::ReferenceError| Failure::new(Reason::TargetInvalid, error.to_string());
    let reference = Reference::repository(&planned.repository).map_err(invalid)?;
    for tag in &planned.tags {
        reference.with_tag(tag).map_err(invalid)?;
    }
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
        retry_after_seconds: None,
        blobs: BlobCounters::default(),
        referrers: ReferrerCounters::default(),
        requests: Vec::new(),
        requests_omitted: 0,
        previous: Vec::new(),
    }
}

fn reported(outcome: Outcome) -> TargetReport {
    let error = outcome.result.err();
    TargetReport {
        retry_after_seconds: error.as_ref().and_then(seconds),
        failure: error.map(|error| Failure::new(error.reason(), error.to_string())),
        blobs: outcome.blobs,
        referrers: outcome.referrers,
        previous: outcome.previous,
        ..untouched()
    }
}

/// What a dry run found out of one target.
fn surveyed(survey: Result<Survey, CopyError>) -> TargetReport {
    let survey = match survey {
        Ok(survey) => survey,
        Err(error) => {
            return TargetReport {
                retry_after_seconds: seconds(&error),
                failure: Some(Failure::new(error.reason(), error.to_string())),
                ..untouched()
            };
        }
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
mod tests {
    use http::Method;

    use super::*;
    use crate::agent::plan::Registries;
    use crate::{
        image::{Descriptor, Digest},
        registry::{
            TagPolicy,
            testing::{Door, Fault, FaultRegistry, PASSWORD, USER},
        },
    };

    fn secret(registry: &FaultRegistry, name: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let json = serde_json::json!({"auths": {registry.host(): {"username": USER, "password": PASSWORD}}});
        std::fs::write(folder.path().join(name), json.to_string()).unwrap();
        folder
    }

    fn plan(from: &FaultRegistry, reference: &str, targets: Vec<PushTarget>) -> PushPlan {
        let host = |target: &PushTarget| target.repository.split('/').next().unwrap_or_default().to_owned();
        PushPlan {
            mode: PushMode::Write,
            registries: Registries {
                plain_http: targets.iter().map(host).chain([from.host()]).collect(),
                ..Registries::default()
            },
            source: PushSource {
                registry: from.host(),
                repository: "src".into(),
                reference: reference.into(),
                digest: None,
                credentials_dir: None,
                realm: None,
            },
            targets,
            platforms: Vec::new(),
        }
    }

    fn to(registry: &FaultRegistry, credentials: Option<&tempfile::TempDir>) -> PushTarget {
        PushTarget {
            repository: format!("{}/team/app", registry.host()),
            tags: vec!["v1".into()],
            credentials_dir: credentials.map(|folder| folder.path().to_string_lossy().into_owned()),
            tag_policy: TagPolicy::default(),
        }
    }

    #[tokio::test]
    async fn each_target_is_pushed_to_with_its_own_secret_and_reported_in_order() {
        let from = FaultRegistry::start().await;
        let (one, two) = (
            FaultRegistry::behind(Door::Basic).await,
            FaultRegistry::behind(Door::Basic).await,
        );
        let root = from.put_image("src", &[b"layer"]);
        from.tag("src", "v1", &root.digest);
        let secrets = [secret(&one, ".dockerconfigjson"), secret(&two, "config.json")];
        let invalid = PushTarget {
            repository: "no-registry".into(),
            ..to(&one, None)
        };
        let targets = vec![
            to(&one, Some(&secrets[0])),
            invalid,
            to(&two, None),
            to(&two, Some(&secrets[1])),
        ];
        let report = run(plan(&from, "v1", targets)).await;
        assert_eq!(report.digest, Some(root.digest.clone()));
        assert_eq!(report.failure, None);
        let reasons: Vec<_> = report
            .targets
            .iter()
            .map(|target| target.failure.as_ref().map(|failure| failure.reason))
            .collect();
        assert_eq!(
            reasons,
            [
                None,
                Some(Reason::TargetInvalid),
                Some(Reason::PushUnauthorized),
                None
            ]
        );
        assert_eq!(report.targets[0].previous, [None]);
        assert_eq!(two.tagged("team/app", "v1"), Some(root.digest.to_string()));
    }

    /// A manifest that refers to another one.
    fn refer(registry: &FaultRegistry, subject: &Descriptor, artifact_type: &str) -> Digest {
        let config = registry.put_blob("src", b"{}");
        let document = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": {"mediaType": media_type::OCI_EMPTY, "digest": config, "size": 2},
            "layers": [],
            "subject": subject,
        });
        registry
            .put_manifest("src", media_type::OCI_MANIFEST, &document)
            .digest
    }

    #[tokio::test]
    async fn what_refers_to_the_image_goes_with_it_and_records_of_builds_stay() {
        let (from, target) = (FaultRegistry::start().await, FaultRegistry::start().await);
        let root = from.put_image("src", &[b"layer"]);
        from.tag("src", "v1", &root.digest);
        let signature = refer(&from, &root, "application/vnd.dev.cosign.artifact.sig.v1+json");
        let record = refer(&from, &root, media_type::SLIPWAY_RECORD);
        let report = run(plan(&from, "v1", vec![to(&target, None)])).await;
        assert_eq!(report.targets[0].failure, None);
        assert_eq!(report.referrers, std::slice::from_ref(&signature));
        let counters = report.targets[0].referrers;
        assert_eq!((counters.written, counters.existed), (1, 0));
        let wrote = |digest: &Digest| target.count(&Method::PUT, digest.as_str());
        assert_eq!((wrote(&signature), wrote(&record)), (1, 0));
        let again = run(plan(&from, "v1", vec![to(&target, None)])).await;
        let counters = again.targets[0].referrers;
        assert_eq!((counters.written, counters.existed), (0, 1));
    }

    #[tokio::test]
    async fn a_dry_run_lists_every_request_that_would_write_and_writes_nothing() {
        let (from, target) = (FaultRegistry::start().await, FaultRegistry::start().await);
        let root = from.put_image("src", &[b"one", b"two"]);
        from.tag("src", "v1", &root.digest);
        let signature = refer(&from, &root, "application/vnd.dev.cosign.artifact.sig.v1+json");
        let mut planned = plan(&from, "v1", vec![to(&target, None)]);
        planned.mode = PushMode::DryRun;
        let report = run(planned.clone()).await;
        let requests = &report.targets[0].requests;
        // Two layers, two configs, the manifest, what refers to it, the tag.
        assert_eq!(requests.len(), 7, "{requests:#?}");
        assert!(
            requests[5].contains(signature.as_str()) && requests[6].starts_with("PUT manifests/v1 (new)")
        );
        assert_eq!(
            target.count(&Method::POST, "") + target.count(&Method::PUT, ""),
            0
        );
        run(plan(&from, "v1", vec![to(&target, None)])).await;
        assert!(run(planned).await.targets[0].requests.is_empty());
    }

    #[tokio::test]
    async fn a_source_that_cannot_be_read_concerns_every_target() {
        let (from, target) = (FaultRegistry::start().await, FaultRegistry::start().await);
        let report = run(plan(&from, "v1", vec![to(&target, None)])).await;
        assert_eq!(report.failure.unwrap().reason, Reason::SourceMissing);
        assert_eq!(report.targets.len(), 1);
        assert!(target.log().is_empty());
        let after = vec![("retry-after", "60".to_owned())];
        from.fault(
            9,
            Method::GET,
            "manifests",
            Fault::Answer(503, after, String::new()),
        );
        let report = run(plan(&from, "v1", vec![to(&target, None)])).await;
        assert_eq!(report.targets[0].retry_after_seconds, Some(60));
    }

    #[tokio::test]
    async fn a_tag_that_no_longer_is_what_was_planned_is_not_pushed() {
        let (from, target) = (FaultRegistry::start().await, FaultRegistry::start().await);
        let root = from.put_image("src", &[b"layer"]);
        from.tag("src", "v1", &root.digest);
        let mut plan = plan(&from, "v1", vec![to(&target, None)]);
        plan.source.digest = Some(Digest::of(b"another"));
        let report = run(plan).await;
        assert_eq!(report.failure.unwrap().reason, Reason::VerificationFailed);
        assert!(target.log().is_empty());
    }

    #[tokio::test]
    async fn a_secret_without_a_configuration_is_named() {
        let (from, target) = (FaultRegistry::start().await, FaultRegistry::start().await);
        let root = from.put_image("src", &[b"layer"]);
        let empty = tempfile::tempdir().unwrap();
        let report = run(plan(&from, root.digest.as_str(), vec![to(&target, Some(&empty))])).await;
        let failure = report.targets[0].failure.clone().unwrap();
        assert_eq!(failure.reason, Reason::SecretMissing);
        assert!(failure.message.contains(".dockerconfigjson"));
    }

    #[test]
    fn a_report_fits_into_a_termination_message() {
        let target = || TargetReport {
            failure: Some(Failure::new(Reason::PushRefused, "ü".repeat(1000))),
            retry_after_seconds: Some(1),
            previous: vec![Some(Digest::of(b"x")); 3],
            ..untouched()
        };
        let mut report = PushReport {
            digest: Some(Digest::of(b"x")),
            failure: None,
            referrers: vec![Digest::of(b"signature"); 64],
            targets: (0..5).map(|_| target()).collect(),
        };
        fit(&mut report);
        assert!(serde_json::to_vec(&report).unwrap().len() <= MESSAGE_LIMIT);
        assert!(report.targets.iter().all(|target| target.previous.len() == 3));
        assert!(!report.targets[0].failure.as_ref().unwrap().message.is_empty());
        assert!(report.referrers.is_empty());
        report.targets[0].previous = vec![Some(Digest::of(b"x")); 60];
        fit(&mut report);
        assert!(serde_json::to_vec(&report).unwrap().len() <= MESSAGE_LIMIT);
        assert!(report.targets[0].previous.is_empty() && !report.targets[1].previous.is_empty());
    }

    #[test]
    fn of_a_long_list_of_requests_the_kubelet_keeps_the_beginning_and_the_count() {
        let report = PushReport {
            digest: None,
            failure: None,
            referrers: Vec::new(),
            targets: vec![TargetReport {
                requests: (0..100)
                    .map(|number| format!("PUT manifests/{number:064}"))
                    .collect(),
                ..untouched()
            }],
        };
        let fitted = fitted(report);
        assert!(serde_json::to_vec(&fitted).unwrap().len() <= MESSAGE_LIMIT);
        let target = &fitted.targets[0];
        assert!(target.requests.len() > 30);
        assert_eq!(count(target.requests.len()) + target.requests_omitted, 100);
    }
}
