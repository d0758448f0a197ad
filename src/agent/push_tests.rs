//! One image to several registries, by plan and report.

use http::Method;

use super::*;
use crate::agent::plan::Registries;
use crate::{
    image::{Descriptor, Digest},
    registry::{
        PublishPolicy, TagPolicy,
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
        publish: PublishPolicy::default(),
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
    assert!(requests[5].contains(signature.as_str()) && requests[6].starts_with("PUT manifests/v1 (new)"));
    assert_eq!(
        target.count(&Method::POST, "") + target.count(&Method::PUT, ""),
        0
    );
    run(plan(&from, "v1", vec![to(&target, None)])).await;
    assert!(run(planned).await.targets[0].requests.is_empty());
}

#[tokio::test]
async fn a_target_that_keeps_old_platforms_tells_its_own_digest_and_the_others_do_not() {
    let (from, target) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = from.put_image("src", &[b"layer"]);
    from.tag("src", "v1", &root.digest);
    let old = target.put_image("team/app", &[b"old"]);
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": [{"mediaType": old.media_type, "digest": old.digest, "size": old.size,
                       "platform": {"os": "linux", "architecture": "s390x"}}],
    });
    let index = target.put_manifest("team/app", media_type::OCI_INDEX, &index);
    target.tag("team/app", "v1", &index.digest);
    let mut keeping = to(&target, None);
    keeping.publish = PublishPolicy::KeepOld;
    let plain = PushTarget {
        repository: format!("{}/team/other", target.host()),
        ..to(&target, None)
    };
    let report = run(plan(&from, "v1", vec![keeping.clone(), plain])).await;
    let failures: Vec<_> = report.targets.iter().map(|target| &target.failure).collect();
    assert_eq!(failures, [&None, &None]);
    let merged = target.tagged("team/app", "v1");
    assert_eq!(report.targets[0].digest.as_ref().map(ToString::to_string), merged);
    assert_eq!(report.targets[1].digest, None);
    assert_eq!(target.tagged("team/other", "v1"), Some(root.digest.to_string()));
    keeping.publish = PublishPolicy::RefuseIfArchLost;
    let report = run(plan(&from, "v1", vec![keeping])).await;
    assert_eq!(
        report.targets[0].failure.as_ref().unwrap().reason,
        Reason::PlatformLost
    );
}

#[tokio::test]
async fn a_platform_that_somebody_else_adds_meanwhile_is_kept_too() {
    let (from, target) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = from.put_image("src", &[b"layer"]);
    from.tag("src", "v1", &root.digest);
    let entry = |name: &str| {
        let old = target.put_image("team/app", &[name.as_bytes()]);
        serde_json::json!({"mediaType": old.media_type, "digest": old.digest, "size": old.size,
                           "platform": {"os": "linux", "architecture": name}})
    };
    let index = |entries: &[&serde_json::Value]| {
        serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries,
        })
    };
    let (s390x, riscv64) = (entry("s390x"), entry("riscv64"));
    let both = target.put_manifest("team/app", media_type::OCI_INDEX, &index(&[&s390x, &riscv64]));
    target.tag("team/app", "v1", &both.digest);
    // The first look still sees one of them.
    let late_answer = || {
        let headers = vec![("Content-Type", media_type::OCI_INDEX.to_owned())];
        let answer = Fault::Answer(200, headers, index(&[&s390x]).to_string());
        target.fault(1, Method::GET, "manifests/v1", answer);
    };
    late_answer();
    let keeping = PushTarget {
        publish: PublishPolicy::KeepOld,
        ..to(&target, None)
    };
    let report = run(plan(&from, "v1", vec![keeping.clone()])).await;
    assert_eq!(report.targets[0].failure, None);
    // The second try finds there the layer that the first one brought; only the configuration was there before.
    let blobs = report.targets[0].blobs;
    assert_eq!((blobs.uploaded, blobs.existed), (1, 1));
    let served = target
        .repository("team/app")
        .manifest("v1")
        .await
        .unwrap()
        .unwrap();
    let served: serde_json::Value = serde_json::from_slice(&served.bytes).unwrap();
    let architecture = |entry: &serde_json::Value| entry["platform"]["architecture"].clone();
    let architectures: Vec<_> = served["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(architecture)
        .collect();
    assert_eq!(architectures, ["amd64", "s390x", "riscv64"]);

    // Whoever wants the tag unchanged is told instead.
    target.tag("team/app", "v1", &both.digest);
    late_answer();
    let unchanged = PushTarget {
        tag_policy: TagPolicy::IfUnchanged,
        ..keeping
    };
    let report = run(plan(&from, "v1", vec![unchanged])).await;
    assert_eq!(
        report.targets[0].failure.as_ref().unwrap().reason,
        Reason::TagImmutable
    );
    assert_eq!(target.tagged("team/app", "v1"), Some(both.digest.to_string()));
}

#[tokio::test]
async fn a_refusal_says_which_part_and_keeps_the_registry_s_own_errors() {
    let (from, target) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = from.put_image("src", &[b"layer"]);
    from.tag("src", "v1", &root.digest);
    let body = r#"{"errors":[{"code":"DENIED","message":"no","detail":{"a":1}},{"code":"QUOTA"}]}"#;
    let answer = |part: &str, method: Method| {
        let fault = Fault::Answer(403, Vec::new(), body.to_owned());
        target.fault(1, method, part, fault);
    };
    answer("manifests", Method::PUT);
    let report = run(plan(&from, "v1", vec![to(&target, None)])).await;
    let entry = &report.targets[0];
    assert_eq!(entry.refused, Some(RefusedPart::Manifest));
    let codes: Vec<_> = entry.errors.iter().map(|own| own.code.as_str()).collect();
    assert_eq!(codes, ["DENIED", "QUOTA"]);
    assert_eq!(entry.errors[0].detail.as_deref(), Some(r#"{"a":1}"#));
}

#[tokio::test]
async fn a_check_asks_where_the_tags_point_to_and_nothing_else() {
    let (from, target) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = from.put_image("src", &[b"layer"]);
    from.tag("src", "v1", &root.digest);
    let mut plan = plan(&from, "v1", vec![to(&target, None)]);
    run(plan.clone()).await;
    from.forget_log();
    target.forget_log();
    plan.mode = PushMode::Check;
    plan.targets[0].tags.push("gone".into());
    let report = run(plan).await;
    assert_eq!(report.targets[0].previous, [Some(root.digest), None]);
    assert!(from.log().is_empty());
    assert_eq!(target.log().len(), 2);
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
