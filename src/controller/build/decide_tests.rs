//! "Given this, exactly this step, then nothing."

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use rstest::rstest;
use serde_json::json;

use super::*;
use crate::{
    agent::report::CollectReport,
    api::REQUEST_ANNOTATION,
    api::v1alpha1::{OCIRecipeBuild, RegistryUploadStatus},
    controller::build::{
        kept,
        observe::{SeenRecipe, StagedRecord},
        pod_report::{BUILD, COLLECT, FETCH},
    },
    image::{Descriptor, media_type},
    kubernetes::pod::{Container, SeenPod},
    record::{BuildIdentity, BuildRecord, Counters, ImageRecord, LayerOrigin, LayerRecord},
};

#[path = "decide_push_tests.rs"]
mod pushes;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn build(platforms: &[&str]) -> OCIRecipeBuild {
    serde_json::from_value(json!({
        "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipeBuild",
        "metadata": { "name": "web-1", "namespace": "demo", "uid": "12345678-aaaa", "generation": 1 },
        "spec": { "recipe": {
            "source": { "inline": { "files": { "Containerfile": "FROM scratch" } } },
            "strategyRef": { "name": "buildah" }, "platforms": platforms,
            "pushRules": [{ "repository": "example.test/web" }],
        } },
    }))
    .unwrap()
}

fn observed(build: OCIRecipeBuild) -> Observed {
    let spec = (**build.spec.recipe.as_ref().unwrap()).clone();
    let strategy =
        serde_json::from_value(json!({ "image": "example.test/buildah", "command": ["true"] })).unwrap();
    Observed {
        build: Arc::new(build),
        recipe: Some(SeenRecipe {
            spec,
            generation: None,
        }),
        strategy: Some(strategy),
        user_namespaces: UserNamespaceUse::Used,
        platforms: BTreeMap::new(),
        root: StagedRoot::NotAsked,
        forbidden: vec!["staging.test".into()],
        pushes: Vec::new(),
        current_rules: Vec::new(),
        staging_repository: "staging.test/slipway/demo".into(),
    }
}

/// The same objects after the status was published and the world answered.
fn after(seen: &Observed, decision: &Decision) -> Observed {
    let mut build = (*seen.build).clone();
    build.status = Some(decision.status.clone());
    Observed {
        build: Arc::new(build),
        ..seen.clone()
    }
}

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

fn pod(containers: &[(&str, Container)]) -> SeenPod {
    SeenPod {
        name: "web-1-12345678-amd64-1".into(),
        uid: "pod".into(),
        containers: containers
            .iter()
            .map(|(name, state)| ((*name).to_owned(), state.clone()))
            .collect(),
        ..SeenPod::default()
    }
}

fn running() -> SeenPod {
    pod(&[(COLLECT, Container::Running)])
}

fn ended(report: &CollectReport) -> SeenPod {
    let message = serde_json::to_string(report).unwrap();
    SeenPod {
        ended: true,
        ..pod(&[(
            COLLECT,
            Container::Ended {
                code: 0,
                reason: "Completed".into(),
                message,
            },
        )])
    }
}

fn seeing(mut seen: Observed, name: &str, pod: Option<SeenPod>, record: StagedRecord) -> Observed {
    seen.platforms.insert(
        platform(name),
        SeenPlatform {
            pod_was_seen: true,
            pod,
            record,
            mount_trouble: None,
        },
    );
    seen
}

fn record(name: &str, failure: Option<Failure>) -> StagedRecord {
    let descriptor = |kind, text: &str| Descriptor::new(kind, Digest::of(text.as_bytes()), text.len() as u64);
    let image = failure.is_none().then(|| ImageRecord {
        platform: platform(name),
        manifest: descriptor(media_type::OCI_MANIFEST, name),
        config: descriptor(media_type::OCI_CONFIG, "config"),
        layers: vec![LayerRecord {
            diff_id: Digest::of(b"diff"),
            digest: Digest::of(b"layer"),
            size: 5,
            media_type: media_type::OCI_LAYER_GZIP.into(),
            source: String::new(),
            layer_id: "l".into(),
            origin: LayerOrigin::New,
        }],
    });
    StagedRecord::Read(
        Digest::of(b"record"),
        Box::new(BuildRecord {
            version: 1,
            build: BuildIdentity {
                namespace: "demo".into(),
                name: "web-1".into(),
                uid: "12345678-aaaa".into(),
                platform: platform(name),
                attempt: 1,
            },
            revision: None,
            image,
            failure,
            log: None,
            warnings: Vec::new(),
            counters: Counters::default(),
            compressor: None,
            finished_at: "2026-01-01T00:00:00Z".into(),
        }),
    )
}

fn begun() -> Observed {
    let seen = observed(build(&["linux/amd64"]));
    let first = decide(&seen, NOW);
    after(&seen, &first)
}

#[test]
fn the_first_pass_takes_a_snapshot_names_the_pod_and_creates_it() {
    let decision = decide(&observed(build(&["linux/amd64"])), NOW);
    assert_eq!(decision.step, Step::CreatePod { platform: 0 });
    assert_eq!(decision.status.phase, BuildPhase::Building);
    assert_eq!(
        decision.status.platforms[0].pod.as_deref(),
        Some("web-1-12345678-amd64-1")
    );
    assert!(decision.status.inputs.is_some());
}

#[test]
fn a_running_pod_causes_nothing() {
    let seen = seeing(begun(), "linux/amd64", Some(running()), StagedRecord::None);
    let decision = decide(&seen, NOW);
    assert_eq!(decision.step, Step::Nothing);
    assert_eq!(Some(&decision.status), seen.build.status.as_ref(), "no write");
}

#[rstest]
#[case::recipe(true, "RecipeMissing")]
#[case::strategy(false, "StrategyMissing")]
fn a_missing_dependency_is_a_wait_that_any_order_of_apply_ends(#[case] recipe: bool, #[case] reason: &str) {
    let mut seen = observed(build(&["linux/amd64"]));
    let complete = seen.clone();
    if recipe {
        seen.recipe = None;
    } else {
        seen.strategy = None;
    }
    let waiting = decide(&seen, NOW);
    assert_eq!(
        (waiting.step.clone(), waiting.status.phase),
        (Step::Nothing, BuildPhase::DependencyWait)
    );
    assert!(waiting.status.conditions.iter().any(|c| c.reason == reason));
    assert_eq!(
        decide(&after(&complete, &waiting), NOW).step,
        Step::CreatePod { platform: 0 }
    );
}

#[test]
fn a_strategy_that_needs_a_user_namespace_fails_where_no_node_offers_one() {
    let mut seen = observed(build(&["linux/amd64"]));
    seen.strategy.as_mut().unwrap().user_namespace = UserNamespaceNeed::Required;
    seen.user_namespaces = UserNamespaceUse::NoNodeOffersIt;
    let decision = decide(&seen, NOW);
    assert_eq!(
        decision.status.failure.unwrap().reason,
        Reason::UserNamespacesMissing
    );
    assert_eq!(decision.step, Step::Nothing);
}

#[rstest]
#[case::tenants_own(StrategyKind::BuildStrategy, true)]
#[case::administrators(StrategyKind::ClusterBuildStrategy, false)]
fn a_tenants_strategy_with_power_over_the_node_needs_a_user_namespace_whatever_it_says(
    #[case] kind: StrategyKind,
    #[case] fails: bool,
) {
    let mut seen = observed(build(&["linux/amd64"]));
    seen.user_namespaces = UserNamespaceUse::NoNodeOffersIt;
    seen.recipe.as_mut().unwrap().spec.strategy_ref.kind = kind;
    let strategy = seen.strategy.as_mut().unwrap();
    strategy.user_namespace = UserNamespaceNeed::Unwanted;
    strategy.security.capabilities = vec!["SYS_ADMIN".into()];
    let failure = decide(&seen, NOW).status.failure.map(|failure| failure.reason);
    assert_eq!(failure, fails.then_some(Reason::UserNamespacesMissing));
}

#[test]
fn a_record_with_an_image_and_a_root_that_staging_serves_is_fully_built_and_pushed() {
    let report = CollectReport::Recorded {
        digest: Digest::of(b"record"),
    };
    let mut seen = seeing(
        begun(),
        "linux/amd64",
        Some(ended(&report)),
        record("linux/amd64", None),
    );
    seen.root = StagedRoot::Present;
    let decision = decide(&seen, NOW);
    assert_eq!(decision.status.phase, BuildPhase::FullyBuilt);
    assert_eq!(decision.step, Step::CreatePush { rule: 0 });
    assert_eq!(decision.status.image.unwrap().digest, Digest::of(b"linux/amd64"));
}

#[test]
fn fully_built_is_never_said_before_staging_serves_the_root() {
    let report = CollectReport::Recorded {
        digest: Digest::of(b"record"),
    };
    for root in [
        StagedRoot::NotAsked,
        StagedRoot::Absent,
        StagedRoot::Unavailable("down".into()),
    ] {
        let mut seen = seeing(
            begun(),
            "linux/amd64",
            Some(ended(&report)),
            record("linux/amd64", None),
        );
        seen.root = root;
        assert_ne!(decide(&seen, NOW).status.phase, BuildPhase::FullyBuilt);
    }
}

#[test]
fn two_platforms_have_two_pods_one_after_the_other_and_then_an_index() {
    let seen = observed(build(&["linux/amd64", "linux/arm64"]));
    let first = decide(&seen, NOW);
    assert_eq!(
        (&first.step, first.next),
        (&Step::CreatePod { platform: 0 }, Next::Now)
    );
    let seen = seeing(
        after(&seen, &first),
        "linux/amd64",
        Some(running()),
        StagedRecord::None,
    );
    let second = decide(&seen, NOW);
    assert_eq!(second.step, Step::CreatePod { platform: 1 });

    let report = CollectReport::Recorded {
        digest: Digest::of(b"record"),
    };
    let seen = after(&seen, &second);
    let seen = seeing(
        seen,
        "linux/amd64",
        Some(ended(&report)),
        record("linux/amd64", None),
    );
    let mut seen = seeing(
        seen,
        "linux/arm64",
        Some(ended(&report)),
        record("linux/arm64", None),
    );
    seen.root = StagedRoot::Absent;
    let Step::PutIndex { bytes, digest } = decide(&seen, NOW).step else {
        panic!("no index")
    };
    assert_eq!(Digest::of(&bytes), digest);
    let index: crate::image::Index = serde_json::from_slice(&bytes).unwrap();
    let architectures: Vec<_> = index
        .manifests
        .iter()
        .map(|m| m.platform.clone().unwrap().architecture)
        .collect();
    assert_eq!(architectures, ["amd64", "arm64"]);
}

#[test]
fn a_pod_that_somebody_deleted_costs_an_attempt_and_the_third_time_the_build() {
    let mut seen = begun();
    for attempt in 2..=3 {
        let gone = decide(
            &seeing(seen.clone(), "linux/amd64", None, StagedRecord::None),
            NOW,
        );
        assert_eq!(gone.step, Step::CreatePod { platform: 0 });
        assert_eq!(gone.status.platforms[0].attempt, attempt);
        seen = after(&seen, &gone);
    }
    let decision = decide(&seeing(seen, "linux/amd64", None, StagedRecord::None), NOW);
    assert_eq!(decision.status.failure.unwrap().reason, Reason::BuildPodDeleted);
}

#[test]
fn a_pod_that_was_never_seen_is_created_under_the_same_name_and_attempt() {
    let seen = begun();
    let again = decide(&seen, NOW);
    assert_eq!(again.step, Step::CreatePod { platform: 0 });
    assert_eq!(Some(&again.status), seen.build.status.as_ref());
}

#[test]
fn a_record_of_a_failure_ends_the_build_with_its_reason() {
    let failure = Failure::new(Reason::BuildFailed, "exit 7").with_log("boom");
    let report = CollectReport::Recorded {
        digest: Digest::of(b"record"),
    };
    let decision = decide(
        &seeing(
            begun(),
            "linux/amd64",
            Some(ended(&report)),
            record("linux/amd64", Some(failure.clone())),
        ),
        NOW,
    );
    assert_eq!(decision.status.phase, BuildPhase::FailedToBuild);
    assert_eq!(decision.status.failure, Some(failure));
    assert_eq!(decision.status.platforms[0].infrastructure_failures, 0);
}

#[test]
fn a_record_of_the_clusters_failure_costs_one_attempt_of_three() {
    let report = CollectReport::Recorded {
        digest: Digest::of(b"record"),
    };
    let mut seen = begun();
    for attempt in 1..=3 {
        let failure = Failure::new(Reason::FetchFailed, "no route to host");
        let ended = seeing(
            seen.clone(),
            "linux/amd64",
            Some(ended(&report)),
            record("linux/amd64", Some(failure)),
        );
        let decision = decide(&ended, NOW);
        let platform = &decision.status.platforms[0];
        assert_eq!(platform.infrastructure_failures, attempt);
        assert_eq!(platform.failure.as_ref().unwrap().reason, Reason::FetchFailed);
        if attempt < 3 {
            assert_eq!(decision.step, Step::CreatePod { platform: 0 });
            assert_eq!(platform.attempt, attempt + 1);
        } else {
            assert_eq!(decision.status.phase, BuildPhase::FailedToBuild);
        }
        seen = after(&seen, &decision);
    }
}

#[test]
fn a_deadline_keeps_the_end_of_the_log_and_is_not_tried_again() {
    let report = CollectReport::Recorded {
        digest: Digest::of(b"record"),
    };
    let pod = SeenPod {
        reason: Some("DeadlineExceeded".into()),
        ..ended(&report)
    };
    let failure = Failure::new(Reason::BuildPodFailed, "asked to end").with_log("step 1");
    let decision = decide(
        &seeing(
            begun(),
            "linux/amd64",
            Some(pod),
            record("linux/amd64", Some(failure)),
        ),
        NOW,
    );
    let failure = decision.status.failure.unwrap();
    assert_eq!(failure.reason, Reason::DeadlineExceeded);
    assert_eq!(failure.log_snippet.as_deref(), Some("step 1"));
    assert_eq!(
        (decision.step, decision.status.platforms[0].attempt),
        (Step::Nothing, 1)
    );
}

#[test]
fn a_killed_builder_is_out_of_memory_only_when_the_kubelet_says_so() {
    let failure = Failure::new(Reason::BuildFailed, "exit 137");
    let mut pod = ended(&CollectReport::Recorded {
        digest: Digest::of(b"record"),
    });
    pod.containers.insert(
        BUILD.into(),
        Container::Ended {
            code: 137,
            reason: "OOMKilled".into(),
            message: String::new(),
        },
    );
    let decision = decide(
        &seeing(
            begun(),
            "linux/amd64",
            Some(pod),
            record("linux/amd64", Some(failure)),
        ),
        NOW,
    );
    assert_eq!(decision.status.failure.unwrap().reason, Reason::OutOfMemoryKilled);
}

/// A pod whose containers said themselves that they are done, before the kubelet did.
fn ahead(done: &[&str], still: &[&str]) -> SeenPod {
    let end = Container::Ended {
        code: 0,
        reason: "Reported".into(),
        message: "{\"done\":{\"revision\":null}}".into(),
    };
    let ended = done.iter().map(|name| (*name, end.clone()));
    let running = still.iter().map(|name| (*name, Container::Running));
    SeenPod {
        ahead: true,
        ..pod(&ended.chain(running).collect::<Vec<_>>())
    }
}

#[test]
fn a_record_that_is_known_before_the_kubelet_shows_it_ends_the_build_and_leaves_the_pod_alone() {
    let early = ahead(&[FETCH, COLLECT], &[BUILD]);
    let mut seen = seeing(begun(), "linux/amd64", Some(early), record("linux/amd64", None));
    seen.root = StagedRoot::Present;
    let decision = decide(&seen, NOW);
    assert_eq!(decision.status.phase, BuildPhase::FullyBuilt);
    let mut later = after(&seen, &decision);
    let status = Arc::make_mut(&mut later.build).status.as_mut().unwrap();
    status.pushes = vec!["web-1-push-1".into()];
    assert_eq!(
        decide(&later, NOW).step,
        Step::Nothing,
        "its builder may have ended too"
    );
}

#[rstest]
#[case::how_the_builder_died(&[FETCH, COLLECT], &[BUILD], true, true)]
#[case::the_builder_is_known_to_have_ended(&[FETCH, BUILD, COLLECT], &[], true, false)]
#[case::what_was_fetched(&[COLLECT], &[FETCH, BUILD], false, true)]
fn what_only_the_kubelet_knows_is_waited_for(
    #[case] done: &[&str],
    #[case] still: &[&str],
    #[case] failed: bool,
    #[case] waits: bool,
) {
    let failure = failed.then(|| Failure::new(Reason::BuildFailed, "exit 1"));
    let seen = seeing(
        begun(),
        "linux/amd64",
        Some(ahead(done, still)),
        record("linux/amd64", failure),
    );
    let decision = decide(&seen, NOW);
    assert_eq!(decision.status.phase == BuildPhase::Building, waits);
    assert_eq!(
        decision.status.platforms[0].state == PlatformState::Building,
        waits
    );
}

#[test]
fn a_retry_waits_until_the_kubelet_shows_the_end_of_the_pod_before() {
    let mut status = decide(&observed(build(&["linux/amd64"])), NOW).status;
    status.phase = BuildPhase::FailedToBuild;
    status.platforms[0].state = PlatformState::Failed;
    let mut build = build(&["linux/amd64"]);
    build.status = Some(status);
    build.metadata.annotations = Some([(REQUEST_ANNOTATION.to_owned(), "again".to_owned())].into());
    let seen = observed(build);
    let pod = |ahead| SeenPod {
        ahead,
        ..ended(&CollectReport::Recorded {
            digest: Digest::of(b"record"),
        })
    };
    let early = seeing(seen, "linux/amd64", Some(pod(true)), StagedRecord::None);
    let waiting = decide(&early, NOW);
    assert_eq!(waiting.step, Step::Nothing);
    let later = seeing(
        after(&early, &waiting),
        "linux/amd64",
        Some(pod(false)),
        StagedRecord::None,
    );
    let decision = decide(&later, NOW);
    assert_eq!(decision.step, Step::CreatePod { platform: 0 });
    assert_eq!(decision.status.platforms[0].attempt, 2);
}

#[test]
fn what_the_cache_keeps_of_a_finished_build_is_enough_to_see_that_nothing_is_to_be_done() {
    let failure = Some(Failure::new(Reason::BuildFailed, "exit 1"));
    let seen = seeing(
        begun(),
        "linux/amd64",
        Some(ended(&CollectReport::Recorded {
            digest: Digest::of(b"record"),
        })),
        record("linux/amd64", failure),
    );
    let decision = decide(&seen, NOW);
    let mut finished = after(&seen, &decision);
    let build = Arc::make_mut(&mut finished.build);
    kept::trim(build);
    assert!(kept::is_trimmed(build));
    assert!(!decide(&finished, NOW).acts_on(&finished.build));
    let build = Arc::make_mut(&mut finished.build);
    build
        .annotations_mut()
        .insert(REQUEST_ANNOTATION.into(), "again".into());
    assert!(decide(&finished, NOW).acts_on(&finished.build));
    let mut running = (*begun().build).clone();
    kept::trim(&mut running);
    assert!(!kept::is_trimmed(&running));
}

#[test]
fn cancel_deletes_the_pod_waits_for_its_end_and_finishes() {
    let mut cancelled = (*begun().build).clone();
    cancelled.spec.cancel = true;
    let seen = Observed {
        build: Arc::new(cancelled),
        ..begun()
    };
    let deleting = decide(
        &seeing(seen.clone(), "linux/amd64", Some(running()), StagedRecord::None),
        NOW,
    );
    assert!(matches!(deleting.step, Step::DeletePod { .. }));
    assert_eq!(deleting.status.phase, BuildPhase::Cancelling);
    let waiting = SeenPod {
        deleting: true,
        ..running()
    };
    assert_eq!(
        decide(
            &seeing(seen.clone(), "linux/amd64", Some(waiting), StagedRecord::None),
            NOW
        )
        .step,
        Step::Nothing
    );
    let done = decide(&seeing(seen, "linux/amd64", None, StagedRecord::None), NOW);
    assert_eq!(done.status.phase, BuildPhase::Cancelled);
}

#[test]
fn a_request_retries_only_the_platform_that_it_names() {
    let seen = observed(build(&["linux/amd64", "linux/arm64"]));
    let mut status = decide(&seen, NOW).status;
    status.phase = BuildPhase::FailedToBuild;
    status.platforms[0].state = PlatformState::Built;
    status.platforms[1].state = PlatformState::Failed;
    let mut build = (*seen.build).clone();
    build.status = Some(status);
    build.metadata.annotations = Some([(REQUEST_ANNOTATION.to_owned(), "now linux/arm64".to_owned())].into());
    let decision = decide(
        &Observed {
            build: Arc::new(build),
            ..seen
        },
        NOW,
    );
    assert_eq!(decision.step, Step::CreatePod { platform: 1 });
    assert_eq!(decision.status.platforms[0].state, PlatformState::Built);
    assert_eq!(
        decision.status.last_handled_request.as_deref(),
        Some("now linux/arm64")
    );
}

#[test]
fn a_refused_pod_ends_the_build_with_the_clusters_words() {
    let seen = observed(build(&["linux/amd64"]));
    let decision = decide(&seen, NOW);
    let refused = refused(
        &seen,
        decision,
        Failure::new(Reason::PodRefused, "violates PodSecurity"),
        NOW,
    );
    let failure = refused.status.failure.unwrap();
    assert_eq!(failure.reason, Reason::PodRefused);
    assert!(failure.message.contains("violates PodSecurity"));
}

#[test]
fn a_finished_build_causes_no_write() {
    let report = CollectReport::Recorded {
        digest: Digest::of(b"record"),
    };
    let failure = Failure::new(Reason::BuildFailed, "exit 7");
    let seen = seeing(
        begun(),
        "linux/amd64",
        Some(ended(&report)),
        record("linux/amd64", Some(failure)),
    );
    let finished = after(&seen, &decide(&seen, NOW));
    let later = decide(&finished, NOW + jiff::SignedDuration::from_hours(1));
    assert_eq!(
        (Some(&later.status), later.step),
        (finished.build.status.as_ref(), Step::Nothing)
    );
}

#[test]
fn staging_that_refuses_the_index_ends_the_build_and_a_request_builds_what_was_lost() {
    let seen = observed(build(&["linux/amd64", "linux/arm64"]));
    let mut decision = decide(&seen, NOW);
    decision.step = Step::PutIndex {
        bytes: Vec::new(),
        digest: Digest::of(b""),
    };
    for platform in &mut decision.status.platforms {
        platform.state = PlatformState::Built;
    }
    let refused = refused(
        &seen,
        decision,
        Failure::new(Reason::StagingUnavailable, "unknown manifest"),
        NOW,
    );
    assert_eq!(refused.status.phase, BuildPhase::FailedToUpload);
    let mut again = after(&seen, &refused);
    let mut build = (*again.build).clone();
    build.metadata.annotations = Some([(REQUEST_ANNOTATION.to_owned(), "now".to_owned())].into());
    again.build = Arc::new(build);
    assert_eq!(decide(&again, NOW).step, Step::CreatePod { platform: 0 });
}

#[test]
fn a_long_message_stays_within_what_a_status_may_hold() {
    let failure = Failure::new(Reason::BuildPodFailed, "x".repeat(4000))
        .about("linux/amd64")
        .about("again");
    assert!(failure.message.len() <= 2048 && failure.message.starts_with("again: linux/amd64"));
}
