//! Whole images on their way.

use std::sync::{Arc, Mutex};

use http::Method;
use rstest::rstest;
use serde_json::json;

use super::content;
use crate::{
    image::{Descriptor, Digest, media_type},
    record::Reason,
    registry::{
        BlobCounters, CopyError, Listener, Outcome, Progress, Proof, PushOptions, TagPolicy, Target,
        approach, push_all, push_all_with, push_merged, read_image,
        testing::{Door, Fault, FaultRegistry},
    },
};

fn target(registry: &FaultRegistry, repository: &str, tags: &[&str], policy: TagPolicy) -> Target {
    Target {
        repository: registry.repository(repository),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        policy,
    }
}

fn overwriting(registry: &FaultRegistry) -> Target {
    target(registry, "team/app", &["v1"], TagPolicy::Overwrite)
}

async fn push(from: &FaultRegistry, root: &Digest, target: Target) -> Outcome {
    push_to(from, root, &[target]).await.remove(0)
}

async fn push_to(from: &FaultRegistry, root: &Digest, targets: &[Target]) -> Vec<Outcome> {
    let source = from.repository("src").into();
    let image = read_image(&source, root.as_str(), &[]).await.unwrap();
    push_all(&image, &source, targets, None).await
}

fn reason(outcome: &Outcome) -> Option<Reason> {
    outcome.result.as_ref().err().map(CopyError::reason)
}

/// Two platforms that share a layer.
fn put_index(registry: &FaultRegistry) -> Descriptor {
    let (one, two, shared) = (content(300_000), content(200_000), content(100_000));
    let amd64 = registry.put_image("src", &[&shared, &one]);
    let arm64 = registry.put_image("src", &[&shared, &two, b"more"]);
    let child = |descriptor: &Descriptor, architecture: &str| {
        json!({"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size,
               "platform": {"os": "linux", "architecture": architecture}})
    };
    registry.put_manifest(
        "src",
        media_type::OCI_INDEX,
        &json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
                "manifests": [child(&amd64, "amd64"), child(&arm64, "arm64")]}),
    )
}

#[tokio::test]
async fn a_first_push_sends_each_blob_once_and_serves_the_same_bytes() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let layer = content(1 << 20);
    let root = from.put_image("src", &[&layer, &layer, b"second"]);
    let outcome = push(&from, &root.digest, overwriting(&to)).await;
    outcome.result.unwrap();
    assert_eq!(outcome.previous, [None]);
    assert_eq!(outcome.blobs.uploaded, 3);
    assert_eq!(to.count(&Method::PUT, "uploads"), 3);
    assert_eq!(
        outcome.blobs.bytes_uploaded,
        i64::try_from(to.received()).unwrap()
    );
    let (sent, stored) = (from.repository("src"), to.repository("team/app"));
    let sent = sent.manifest(root.digest.as_str()).await.unwrap().unwrap();
    assert_eq!(stored.manifest("v1").await.unwrap().unwrap(), sent);
}

#[tokio::test]
async fn a_second_push_asks_and_writes_nothing() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = put_index(&from);
    push(&from, &root.digest, overwriting(&to)).await.result.unwrap();
    from.forget_log();
    to.forget_log();
    let outcome = push(&from, &root.digest, overwriting(&to)).await;
    outcome.result.unwrap();
    assert_eq!(outcome.previous, [Some(root.digest)]);
    let expected = BlobCounters {
        existed: 6,
        bytes_saved: outcome.blobs.bytes_saved,
        ..BlobCounters::default()
    };
    assert_eq!(outcome.blobs, expected);
    assert!(
        to.log()
            .iter()
            .all(|seen| matches!(seen.method, Method::GET | Method::HEAD))
    );
    assert_eq!(from.count(&Method::GET, "/blobs/"), 0);
    // One tag read, the root, two children, six blobs.
    assert_eq!(to.log().len(), 1 + 1 + 2 + 6);
}

#[tokio::test]
async fn an_index_comes_after_its_children_and_tags_come_last() {
    let from = FaultRegistry::start().await;
    let to = FaultRegistry::start()
        .await
        .without(|features| features.tag_parameter = false);
    let root = put_index(&from);
    let outcome = push(
        &from,
        &root.digest,
        target(&to, "a", &["v1", "v2"], TagPolicy::Overwrite),
    )
    .await;
    outcome.result.unwrap();
    // The layer that both platforms have, one each, one more, and two configs.
    assert_eq!(outcome.blobs.uploaded, 6);
    let written: Vec<String> = to
        .log()
        .iter()
        .filter(|seen| seen.method == Method::PUT && seen.path.contains("/manifests/"))
        .map(|seen| seen.path.rsplit_once('/').unwrap().1.to_owned())
        .collect();
    assert_eq!(written.len(), 5);
    assert_eq!(written[2], root.digest.as_str());
    assert_eq!(written[3..], ["v1", "v2"]);
    let requests = to.requests();
    let last_blob = requests
        .iter()
        .rposition(|line| line.starts_with("PUT") && line.contains("uploads"));
    let first_manifest = requests
        .iter()
        .position(|line| line.starts_with("PUT") && line.contains("manifests"));
    assert!(last_blob < first_manifest);
}

#[tokio::test]
async fn chosen_platforms_make_an_index_of_their_own() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = put_index(&from);
    let source = from.repository("src").into();
    let image = read_image(&source, root.digest.as_str(), &["linux/amd64".parse().unwrap()])
        .await
        .unwrap();
    assert_ne!(*image.digest(), root.digest);
    let outcome = push_all(&image, &source, &[overwriting(&to)], None)
        .await
        .remove(0);
    outcome.result.unwrap();
    assert_eq!(outcome.blobs.uploaded, 3);
    assert_eq!(to.tagged("team/app", "v1"), Some(image.digest().to_string()));
}

#[tokio::test]
async fn blobs_of_the_same_registry_are_mounted() {
    let registry = FaultRegistry::behind(Door::Bearer {
        uses: 1000,
        realm: None,
    })
    .await;
    let root = registry.put_image("src", &[&content(1 << 20), b"second"]);
    let outcome = push(&registry, &root.digest, overwriting(&registry)).await;
    outcome.result.unwrap();
    assert_eq!(outcome.blobs.mounted, 3);
    assert_eq!(outcome.blobs.bytes_uploaded, 0);
    assert_eq!(registry.received(), 0);
    assert_eq!(registry.count(&Method::POST, "mount"), 3);
}

#[tokio::test]
async fn a_registry_that_refused_one_mount_is_not_asked_for_another() {
    let registry = FaultRegistry::start().await;
    let root = registry.put_image(
        "src",
        &[b"one", b"two", b"three", b"four", b"five", b"six", b"seven"],
    );
    registry.fault(
        99,
        Method::POST,
        "mount",
        Fault::Answer(403, vec![], String::new()),
    );
    let outcome = push(&registry, &root.digest, overwriting(&registry)).await;
    outcome.result.unwrap();
    assert_eq!(outcome.blobs.uploaded, 8);
    assert_eq!(registry.count(&Method::POST, "mount"), 1);
}

#[tokio::test]
async fn a_push_goes_on_where_the_connection_broke() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let layer = content(4 << 20);
    let root = from.put_image("src", &[&layer]);
    to.fault(1, Method::PUT, "uploads", Fault::BreakAfter(3 << 20));
    from.fault(1, Method::GET, "/blobs/", Fault::CutAnswer(1 << 20));
    let outcome = push(&from, &root.digest, overwriting(&to)).await;
    outcome.result.unwrap();
    assert_eq!(outcome.blobs.resumed, 1);
    assert!(to.received() < (layer.len() as u64 + 100) * 105 / 100);
}

#[tokio::test]
async fn blobs_that_a_registry_only_said_it_had_are_sent_after_all() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = from.put_image("src", &[b"layer"]);
    push(&from, &root.digest, overwriting(&to)).await.result.unwrap();
    let lost = Digest::of(b"layer");
    to.remove_blob("team/app", &lost);
    let again = from.put_image("src", &[b"layer", b"other"]);
    let stale = vec![("content-length", "5".to_owned())];
    to.fault(
        1,
        Method::HEAD,
        lost.as_str(),
        Fault::Answer(200, stale, String::new()),
    );
    let outcome = push(&from, &again.digest, overwriting(&to)).await;
    outcome.result.unwrap();
    assert!(to.blob("team/app", &lost).is_some());
    assert_eq!(outcome.blobs.uploaded, 3);
    assert_eq!(outcome.previous, [Some(root.digest)]);
}

#[rstest]
#[case::overwrite(TagPolicy::Overwrite, None)]
#[case::unchanged(TagPolicy::IfUnchanged, None)]
#[case::immutable(TagPolicy::Immutable, Some(Reason::TagImmutable))]
#[tokio::test]
async fn a_tag_that_exists_is_treated_by_policy(#[case] policy: TagPolicy, #[case] expected: Option<Reason>) {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let old = to.put_image("a", &[b"old"]);
    to.tag("a", "v1", &old.digest);
    let root = from.put_image("src", &[b"new", b"newer"]);
    let outcome = push(&from, &root.digest, target(&to, "a", &["v1", "v2"], policy)).await;
    assert_eq!(reason(&outcome), expected);
    assert_eq!(outcome.previous, [Some(old.digest.clone()), None]);
    if expected.is_some() {
        assert_eq!(to.tagged("a", "v1"), Some(old.digest.to_string()));
        assert_eq!(to.count(&Method::POST, "uploads"), 0);
    } else {
        assert_eq!(to.tagged("a", "v1"), Some(root.digest.to_string()));
        assert_eq!(to.tagged("a", "v2"), Some(root.digest.to_string()));
    }
}

#[tokio::test]
async fn an_immutable_tag_of_the_same_digest_is_success() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = from.put_image("src", &[b"new"]);
    for _ in 0..2 {
        let outcome = push(
            &from,
            &root.digest,
            target(&to, "a", &["v1"], TagPolicy::Immutable),
        )
        .await;
        outcome.result.unwrap();
    }
    assert_eq!(to.count(&Method::PUT, "manifests/v1"), 1);
}

#[tokio::test]
async fn a_tag_that_moved_during_the_push_stays_where_it_is() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let theirs = to.put_image("a", &[b"theirs"]);
    let root = from.put_image("src", &[b"ours"]);
    to.tag("a", "v1", &theirs.digest);
    // The first look still sees nothing.
    to.fault(
        1,
        Method::HEAD,
        "manifests/v1",
        Fault::Answer(404, vec![], String::new()),
    );
    let outcome = push(
        &from,
        &root.digest,
        target(&to, "a", &["v1"], TagPolicy::IfUnchanged),
    )
    .await;
    assert_eq!(reason(&outcome), Some(Reason::TagImmutable));
    assert_eq!(to.tagged("a", "v1"), Some(theirs.digest.to_string()));
}

#[tokio::test]
async fn a_registry_s_own_immutability_is_understood() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let old = to.put_image("a", &[b"old"]);
    to.tag("a", "v1", &old.digest);
    let root = from.put_image("src", &[b"ours"]);
    let body = r#"{"errors":[{"code":"TAG_INVALID","message":"The image tag is immutable"}]}"#.to_owned();
    to.fault(9, Method::PUT, "manifests/v1", Fault::Answer(400, vec![], body));
    let outcome = push(
        &from,
        &root.digest,
        target(&to, "a", &["v1"], TagPolicy::Overwrite),
    )
    .await;
    assert_eq!(reason(&outcome), Some(Reason::TagImmutable));
}

#[tokio::test]
async fn a_target_that_fails_does_not_stop_the_others() {
    let from = FaultRegistry::start().await;
    let (good, bad, slow) = (
        FaultRegistry::start().await,
        FaultRegistry::start().await,
        FaultRegistry::start().await,
    );
    let root = from.put_image("src", &[&content(1 << 20)]);
    bad.fault(
        99,
        Method::POST,
        "uploads",
        Fault::Answer(403, vec![], String::new()),
    );
    let after = vec![("retry-after", "3600".to_owned())];
    slow.fault(
        99,
        Method::HEAD,
        "manifests",
        Fault::Answer(429, after, String::new()),
    );
    let targets = [overwriting(&bad), overwriting(&good), overwriting(&slow)];
    let outcomes = push_to(&from, &root.digest, &targets).await;
    let reasons: Vec<_> = outcomes.iter().map(reason).collect();
    assert_eq!(
        reasons,
        [Some(Reason::PushDenied), None, Some(Reason::RateLimited)]
    );
    assert!(good.tagged("team/app", "v1").is_some());
    let retry_after = outcomes[2].result.as_ref().unwrap_err().retry_after();
    assert_eq!(retry_after.map(|time| time.as_secs()), Some(3600));
}

#[tokio::test]
async fn a_target_that_serves_something_else_is_found_out() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let other = to.put_image("team/app", &[b"other", b"layers"]);
    let root = from.put_image("src", &[b"layer"]);
    // The tag is confirmed and not moved.
    let confirmed = vec![("docker-content-digest", root.digest.to_string())];
    to.tag("team/app", "v1", &other.digest);
    to.fault(
        1,
        Method::PUT,
        "manifests/v1",
        Fault::Answer(201, confirmed, String::new()),
    );
    let outcome = push(&from, &root.digest, overwriting(&to)).await;
    assert_eq!(reason(&outcome), Some(Reason::VerificationFailed));
}

#[tokio::test]
async fn a_mount_that_was_only_said_is_found_out() {
    let registry = FaultRegistry::start().await;
    let root = registry.put_image("src", &[b"layer"]);
    registry.fault(
        9,
        Method::POST,
        "mount",
        Fault::Answer(201, vec![], String::new()),
    );
    registry.fault(
        1,
        Method::PUT,
        "/manifests/",
        Fault::Answer(201, vec![], String::new()),
    );
    let outcome = push(
        &registry,
        &root.digest,
        target(&registry, "to", &[], TagPolicy::Overwrite),
    )
    .await;
    assert_eq!(reason(&outcome), Some(Reason::VerificationFailed));
}

#[tokio::test]
async fn a_source_that_is_missing_or_broken_is_reported_as_such() {
    let from = FaultRegistry::start().await;
    let source = from.repository("src").into();
    let error = read_image(&source, "v1", &[]).await.unwrap_err();
    assert_eq!(error.reason(), Reason::SourceMissing);
    let root = put_index(&from);
    let index = from
        .repository("src")
        .manifest(root.digest.as_str())
        .await
        .unwrap()
        .unwrap();
    let index: crate::image::Index = serde_json::from_slice(&index.bytes).unwrap();
    let child = index.manifests[0].digest.as_str();
    from.fault(1, Method::GET, child, Fault::Answer(404, vec![], String::new()));
    let error = read_image(&source, root.digest.as_str(), &[]).await.unwrap_err();
    assert_eq!(error.reason(), Reason::SourceMissing);
}

#[tokio::test]
async fn a_source_whose_layer_is_lost_or_changed_fails_the_target_with_the_cause() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = from.put_image("src", &[b"layer"]);
    let layer = Digest::of(b"layer");
    from.fault(9, Method::GET, layer.as_str(), Fault::Says(b"liar!".to_vec()));
    let outcome = push(&from, &root.digest, overwriting(&to)).await;
    assert_eq!(reason(&outcome), Some(Reason::DigestMismatch));
    let from = FaultRegistry::start().await;
    from.put_image("src", &[b"layer"]);
    from.remove_blob("src", &layer);
    let outcome = push(&from, &root.digest, overwriting(&to)).await;
    assert_eq!(reason(&outcome), Some(Reason::SourceMissing));
    assert!(to.tagged("team/app", "v1").is_none());
}

#[tokio::test]
async fn a_foreign_layer_is_named_and_its_urls_are_not_followed() {
    let (from, to, elsewhere) = (
        FaultRegistry::start().await,
        FaultRegistry::start().await,
        FaultRegistry::start().await,
    );
    let config = from.put_blob("src", b"{}");
    let url = format!("http://{}/layer", elsewhere.host());
    let root = from.put_manifest(
        "src",
        media_type::OCI_MANIFEST,
        &json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
                "config": {"mediaType": media_type::OCI_CONFIG, "digest": config, "size": 2},
                "layers": [{"mediaType": media_type::OCI_LAYER, "digest": Digest::of(b"far"), "size": 3, "urls": [url]}]}),
    );
    let outcome = push(&from, &root.digest, overwriting(&to)).await;
    assert_eq!(reason(&outcome), Some(Reason::ForeignLayer));
    assert!(elsewhere.log().is_empty());
}

#[tokio::test]
async fn an_index_within_an_index_is_read_and_a_circle_of_them_cannot_be() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let mut root = put_index(&from);
    let wrap = |child: &Descriptor| {
        let document = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [
            {"mediaType": child.media_type, "digest": child.digest, "size": child.size}]});
        from.put_manifest("src", media_type::OCI_INDEX, &document)
    };
    root = wrap(&root);
    push(&from, &root.digest, overwriting(&to)).await.result.unwrap();
    root = wrap(&root);
    let error = read_image(&from.repository("src").into(), root.digest.as_str(), &[])
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::LimitExceeded);
}

#[tokio::test]
async fn who_watches_hears_of_every_byte() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = from.put_image("src", &[&content(1 << 20)]);
    let heard: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let listener: Listener = {
        let heard = Arc::clone(&heard);
        Arc::new(move |progress| heard.lock().unwrap().push(progress))
    };
    let source = from.repository("src").into();
    let image = read_image(&source, root.digest.as_str(), &[]).await.unwrap();
    push_all(&image, &source, &[overwriting(&to)], Some(listener)).await;
    let heard = heard.lock().unwrap();
    let sent: u64 = heard
        .iter()
        .map(|progress| match progress {
            Progress::Blob {
                state: crate::registry::BlobState::Sending(bytes),
                ..
            } => *bytes,
            _ => 0,
        })
        .sum();
    assert_eq!(sent, image.bytes());
    assert!(matches!(
        heard.first(),
        Some(Progress::Started {
            target: 0,
            blobs: 2,
            ..
        })
    ));
    assert_eq!(heard.last(), Some(&Progress::Ended { target: 0 }));
}

#[rstest]
#[case::offered(true, 1)]
#[case::not_offered(false, 4)]
#[tokio::test]
async fn several_tags_go_with_one_request_where_that_is_offered(
    #[case] offered: bool,
    #[case] writes: usize,
) {
    let from = FaultRegistry::start().await;
    let to = FaultRegistry::start()
        .await
        .without(|features| features.tag_parameter = offered);
    let root = from.put_image("src", &[b"layer"]);
    let tags = ["v1", "v1.2", "latest"];
    let outcome = push(&from, &root.digest, target(&to, "a", &tags, TagPolicy::Overwrite)).await;
    outcome.result.unwrap();
    assert_eq!(to.count(&Method::PUT, "manifests"), writes);
    for tag in tags {
        assert_eq!(to.tagged("a", tag), Some(root.digest.to_string()));
        // Read back, however it was written.
        assert_eq!(to.count(&Method::GET, &format!("manifests/{tag}?")), 1);
    }
}

/// A push as the command line does it.
async fn push_by_root(from: &FaultRegistry, root: &Digest, target: Target) -> Outcome {
    let source = from.repository("src").into();
    let image = read_image(&source, root.as_str(), &[]).await.unwrap();
    let options = PushOptions {
        proof: Proof::Root,
        tags: approach(source.repository(), std::slice::from_ref(&target)).await,
        ..PushOptions::default()
    };
    push_all_with(&image, &source, &[target], &options)
        .await
        .remove(0)
}

#[tokio::test]
async fn an_image_that_its_tag_points_to_costs_two_requests_at_the_target() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = from.put_image("src", &[b"one", b"two", b"three"]);
    push(&from, &root.digest, overwriting(&to)).await.result.unwrap();
    to.forget_log();
    let outcome = push_by_root(&from, &root.digest, overwriting(&to)).await;
    outcome.result.unwrap();
    assert!(!outcome.changed);
    assert_eq!(outcome.blobs.existed, 4);
    let by_digest = format!("GET /v2/team/app/manifests/{}", root.digest);
    assert_eq!(to.requests(), ["HEAD /v2/team/app/manifests/v1", &by_digest]);
}

#[tokio::test]
async fn what_a_registry_lost_is_found_by_a_look_at_the_whole() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = from.put_image("src", &[b"one", b"two"]);
    push(&from, &root.digest, overwriting(&to)).await.result.unwrap();
    to.remove_blob("team/app", &Digest::of(b"one"));
    let outcome = push_by_root(&from, &root.digest, overwriting(&to)).await;
    assert_eq!((outcome.blobs.existed, outcome.blobs.uploaded), (3, 0));
    let outcome = push(&from, &root.digest, overwriting(&to)).await;
    assert_eq!((outcome.blobs.existed, outcome.blobs.uploaded), (2, 1));
}

#[rstest]
#[case::another_root(Method::GET, 0)]
#[case::a_child_that_is_gone(Method::HEAD, 1)]
#[tokio::test]
async fn a_tag_alone_proves_nothing(#[case] method: Method, #[case] child: usize) {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = put_index(&from);
    push(&from, &root.digest, overwriting(&to)).await.result.unwrap();
    let source = from.repository("src").into();
    let image = read_image(&source, root.digest.as_str(), &[]).await.unwrap();
    let gone = if child == 0 {
        root.digest.clone()
    } else {
        image.children().next().unwrap().clone()
    };
    to.forget_log();
    to.fault(
        1,
        method,
        gone.as_str(),
        Fault::Answer(404, vec![], String::new()),
    );
    let outcome = push_by_root(&from, &root.digest, overwriting(&to)).await;
    outcome.result.unwrap();
    // Every blob is asked for, and the root is written again.
    assert_eq!(to.count(&Method::HEAD, "/blobs/"), image.blobs());
    assert_eq!(to.count(&Method::PUT, "/manifests/"), 1);
}

#[tokio::test]
async fn a_new_tag_of_the_same_registry_is_mounted_without_a_question() {
    let registry = FaultRegistry::start().await;
    let root = registry.put_image("src", &[b"one", b"two"]);
    // One that is there already is mounted all the same.
    registry.put_blob("team/app", b"two");
    let outcome = push_by_root(&registry, &root.digest, overwriting(&registry)).await;
    outcome.result.unwrap();
    assert_eq!(outcome.blobs.mounted, 3);
    let log = registry.requests();
    let first_look = log
        .iter()
        .position(|line| line.starts_with("HEAD") && line.contains("/blobs/"));
    let last_mount = log.iter().rposition(|line| line.starts_with("POST"));
    assert!(first_look > last_mount, "{log:?}");
}

#[tokio::test]
async fn an_upload_that_is_opened_for_a_blob_that_is_there_is_closed() {
    let registry = FaultRegistry::start()
        .await
        .without(|features| features.mounts = false);
    let root = registry.put_image("src", &[b"one", b"two"]);
    registry.put_blob("team/app", b"two");
    let outcome = push_by_root(&registry, &root.digest, overwriting(&registry)).await;
    outcome.result.unwrap();
    assert_eq!((outcome.blobs.existed, outcome.blobs.uploaded), (1, 2));
    assert_eq!(registry.count(&Method::DELETE, "uploads"), 1);
}

/// Pushes of platforms that are built apart meet in one index, also when they meet at the same time.
#[tokio::test]
async fn merges_at_the_same_time_lose_no_platform() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let architectures = ["amd64", "arm64", "s390x"];
    let merges = architectures.map(|architecture| {
        let layer = architecture.as_bytes();
        let image = from.put_image_for("src", architecture, &[layer]);
        let (source, to) = (from.repository("src").into(), to.clone());
        async move {
            let image = read_image(&source, image.digest.as_str(), &[]).await.unwrap();
            let options = PushOptions::default();
            let merged = push_merged(&image, &source, &overwriting(&to), &options)
                .await
                .unwrap();
            merged.1.result.unwrap();
        }
    });
    futures_util::future::join_all(merges).await;
    let found = to.repository("team/app").manifest("v1").await.unwrap().unwrap();
    let index: serde_json::Value = serde_json::from_slice(&found.bytes).unwrap();
    let mut names: Vec<&str> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["platform"]["architecture"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, architectures);
}
