//! Signatures, SBOMs and attestations go with an image.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::{
    image::{Descriptor, Digest, Index, media_type},
    record::Reason,
    registry::{
        CopyError, Outcome, ReferrerCounters, Repository, TagPolicy, Target, push_all, read_image,
        read_referrers,
        referrers::{entry_of, fallback_tag},
        survey,
        testing::{Door, Fault, FaultRegistry},
    },
};

const SIGNATURE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// A manifest about another one; it is listed where clients keep the list, if they do.
async fn put_referrer(
    registry: &FaultRegistry,
    repository: &str,
    subject: &Descriptor,
    content: &[u8],
) -> Descriptor {
    registry.put_blob(repository, b"{}");
    registry.put_blob(repository, content);
    let document = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "artifactType": SIGNATURE,
        "config": {"mediaType": media_type::OCI_EMPTY, "digest": Digest::of(b"{}"), "size": 2},
        "layers": [{"mediaType": SIGNATURE, "digest": Digest::of(content), "size": content.len()}],
        "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
        "annotations": {"kind": "signature"},
    });
    let referrer = registry.put_manifest(repository, media_type::OCI_MANIFEST, &document);
    let seen = registry.anonymous(repository);
    if !seen.referrers(&subject.digest).await.unwrap().by_registry {
        let raw = seen.manifest(referrer.digest.as_str()).await.unwrap().unwrap();
        let entry = entry_of(&raw).unwrap();
        seen.list_referrers(&subject.digest, &[entry]).await.unwrap();
    }
    referrer
}

/// What cosign did before there were lists: a manifest under a tag.
fn put_tagged(
    registry: &FaultRegistry,
    repository: &str,
    subject: &Digest,
    kind: &str,
    layers: &[&[u8]],
) -> Digest {
    let found = registry.put_image(repository, layers).digest;
    registry.tag(repository, &format!("{}.{kind}", fallback_tag(subject)), &found);
    found
}

async fn push(from: &FaultRegistry, root: &Digest, to: Repository) -> Result<Outcome, CopyError> {
    let source = from.repository("src");
    let image = read_image(&source.clone().into(), root.as_str(), &[]).await?;
    let image = read_referrers(&source, image).await?;
    let target = Target {
        repository: to,
        tags: vec!["v1".to_owned()],
        policy: TagPolicy::Overwrite,
    };
    let mut outcomes = push_all(&image, &source.into(), &[target], None).await;
    Ok(outcomes.remove(0))
}

fn put_index(registry: &FaultRegistry, child: &Descriptor) -> Descriptor {
    let child = json!({"mediaType": child.media_type, "digest": child.digest, "size": child.size,
                       "platform": {"os": "linux", "architecture": "amd64"}});
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [child]});
    registry.put_manifest("src", media_type::OCI_INDEX, &index)
}

#[rstest]
#[case::lists_on_both_sides(true, true)]
#[case::tags_on_both_sides(false, false)]
#[case::from_list_to_tag(true, false)]
#[case::from_tag_to_list(false, true)]
#[tokio::test]
async fn referrers_of_an_index_and_of_its_children_arrive_and_are_listed(
    #[case] from_api: bool,
    #[case] to_api: bool,
) {
    let from = FaultRegistry::start()
        .await
        .without(|features| features.referrers = from_api);
    let to = FaultRegistry::start()
        .await
        .without(|features| features.referrers = to_api);
    let child = from.put_image("src", &[b"layer"]);
    let root = put_index(&from, &child);
    let of_root = put_referrer(&from, "src", &root, b"signature of the index").await;
    let of_child = put_referrer(&from, "src", &child, b"SBOM of the child").await;
    let of_sbom = put_referrer(&from, "src", &of_child, b"signature of the SBOM").await;
    let attestation = put_tagged(&from, "src", &root.digest, "att", &[b"attested"]);
    let outcome = push(&from, &root.digest, to.repository("team/app"))
        .await
        .unwrap();
    outcome.result.unwrap();
    assert_eq!(
        outcome.referrers,
        ReferrerCounters {
            existed: 0,
            written: 4
        }
    );
    let there = to.anonymous("team/app");
    for (subject, expected) in [(&root, &of_root), (&child, &of_child), (&of_child, &of_sbom)] {
        let found = there.referrers(&subject.digest).await.unwrap();
        assert_eq!(found.by_registry, to_api);
        assert_eq!(found.entries.len(), 1);
        assert_eq!(found.entries[0].digest, expected.digest);
        assert_eq!(found.entries[0].artifact_type.as_deref(), Some(SIGNATURE));
        assert_eq!(found.entries[0].annotations["kind"], "signature");
    }
    let tag = format!("{}.att", fallback_tag(&root.digest));
    assert_eq!(to.tagged("team/app", &tag), Some(attestation.to_string()));
    // Who sees the tag finds the signature.
    let written = to.requests();
    let position = |part: &str| {
        written
            .iter()
            .position(|line| line.starts_with("PUT") && line.ends_with(part))
    };
    assert!(position("manifests/v1") > position(of_root.digest.as_str()));
    // Again: nothing is written.
    to.forget_log();
    let again = push(&from, &root.digest, to.repository("team/app"))
        .await
        .unwrap();
    again.result.unwrap();
    assert_eq!(
        again.referrers,
        ReferrerCounters {
            existed: 4,
            written: 0
        }
    );
    assert!(!again.changed);
    assert!(
        to.log()
            .iter()
            .all(|seen| matches!(seen.method, Method::GET | Method::HEAD))
    );
}

#[tokio::test]
async fn a_survey_names_the_referrers_that_are_missing() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = from.put_image("src", &[b"layer"]);
    put_referrer(&from, "src", &root, b"signature").await;
    let source = from.repository("src");
    let image = read_image(&source.clone().into(), root.digest.as_str(), &[])
        .await
        .unwrap();
    let image = read_referrers(&source, image).await.unwrap();
    let target = Target {
        repository: to.repository("a"),
        tags: vec!["v1".into()],
        policy: TagPolicy::IfUnchanged,
    };
    let source = source.into();
    let found = survey(&image, &source, &target).await.unwrap();
    // Four blobs, as the referrer's config is none of the image's; two manifests and a tag.
    assert_eq!(found.writes.len(), 4 + 2 + 1, "{found:?}");
    assert!(
        to.log()
            .iter()
            .all(|seen| matches!(seen.method, Method::GET | Method::HEAD))
    );
    push_all(&image, &source, std::slice::from_ref(&target), None)
        .await
        .remove(0)
        .result
        .unwrap();
    let found = survey(&image, &source, &target).await.unwrap();
    assert!(found.writes.is_empty(), "{found:?}");
}

#[tokio::test]
async fn a_list_that_others_write_keeps_what_they_wrote() {
    let to = FaultRegistry::start()
        .await
        .without(|features| features.referrers = false);
    let subject = to.put_image("a", &[b"layer"]);
    for number in 0..16_usize {
        to.adopt_manifest("a", &Digest::of(&number.to_le_bytes()));
    }
    let entry =
        |number: usize| Descriptor::new(media_type::OCI_MANIFEST, Digest::of(&number.to_le_bytes()), 7);
    // Sixteen clients that know nothing of each other; the registry says when one of them was late.
    let writers = (0..16).map(|number| {
        let repository = to.anonymous("a");
        let subject = subject.digest.clone();
        tokio::spawn(async move { repository.list_referrers(&subject, &[entry(number)]).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap().unwrap();
    }
    let found = to.anonymous("a").referrers(&subject.digest).await.unwrap();
    assert_eq!(found.entries.len(), 16);
}

/// Where there are no entity tags, a late writer overwrites what it has not read. A push notices before it ends.
#[tokio::test]
async fn a_list_that_was_overwritten_during_the_push_is_mended() {
    let from = FaultRegistry::start().await;
    let to = FaultRegistry::start().await.without(|features| {
        features.referrers = false;
        features.etags = false;
    });
    let root = from.put_image("src", &[b"layer"]);
    put_referrer(&from, "src", &root, b"signature").await;
    let list = fallback_tag(&root.digest);
    let gate = Arc::new(Semaphore::new(0));
    to.fault(1, Method::PUT, "/manifests/v1", Fault::Hold(Arc::clone(&gate)));
    let late_writer = async {
        // The list is read, written, and read twice: nothing but the tag is still to come.
        while to.count(&Method::GET, &format!("/manifests/{list}")) < 4 {
            tokio::task::yield_now().await;
        }
        let theirs =
            json!({"mediaType": media_type::OCI_MANIFEST, "digest": Digest::of(b"theirs"), "size": 7});
        to.adopt_manifest("a", &Digest::of(b"theirs"));
        let late = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [theirs]});
        let late = to.put_manifest("a", media_type::OCI_INDEX, &late);
        to.tag("a", &list, &late.digest);
        gate.add_permits(1);
    };
    let (pushed, ()) =
        futures_util::future::join(push(&from, &root.digest, to.repository("a")), late_writer).await;
    pushed.unwrap().result.unwrap();
    let found = to.anonymous("a").referrers(&root.digest).await.unwrap();
    assert_eq!(found.entries.len(), 2);
}

#[tokio::test]
async fn writers_of_one_process_take_turns_also_where_there_are_no_entity_tags() {
    let to = FaultRegistry::start().await.without(|features| {
        features.referrers = false;
        features.etags = false;
    });
    let subject = to.put_image("a", &[b"layer"]);
    let repository = to.anonymous("a");
    for number in 0..16_usize {
        to.adopt_manifest("a", &Digest::of(&number.to_le_bytes()));
    }
    let entry =
        |number: usize| Descriptor::new(media_type::OCI_MANIFEST, Digest::of(&number.to_le_bytes()), 7);
    let writers = (0..16).map(|number| {
        let (repository, subject) = (repository.clone(), subject.digest.clone());
        tokio::spawn(async move {
            repository
                .list_referrers(&subject, &[entry(number)])
                .await
                .unwrap();
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(
        repository.referrers(&subject.digest).await.unwrap().entries.len(),
        16
    );
}

#[tokio::test]
async fn a_list_is_added_to_and_not_written_anew() {
    let to = FaultRegistry::start()
        .await
        .without(|features| features.referrers = false);
    let subject = to.put_image("a", &[b"layer"]);
    let theirs = json!({"mediaType": media_type::OCI_MANIFEST, "digest": Digest::of(b"theirs"), "size": 7, "data": "kept"});
    let list = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [theirs]});
    to.put_manifest("a", media_type::OCI_MANIFEST, &json!({"schemaVersion": 2}));
    let kept = to.put_manifest("a", media_type::OCI_INDEX, &list);
    let tag = fallback_tag(&subject.digest);
    to.tag("a", &tag, &kept.digest);
    // The registry of this test looks for children; theirs is there.
    to.adopt_manifest("a", &Digest::of(b"theirs"));
    let ours = put_referrer(&to, "a", &subject, b"ours").await;
    let raw = to.anonymous("a").manifest(&tag).await.unwrap().unwrap();
    let document: Value = serde_json::from_slice(&raw.bytes).unwrap();
    assert_eq!(document["manifests"][0]["data"], "kept");
    let index: Index = serde_json::from_slice(&raw.bytes).unwrap();
    assert_eq!(index.manifests[1].digest, ours.digest);
}

#[tokio::test]
async fn something_else_under_the_list_s_tag_is_named_and_left() {
    let (from, to) = (
        FaultRegistry::start().await,
        FaultRegistry::start()
            .await
            .without(|features| features.referrers = false),
    );
    let root = from.put_image("src", &[b"layer"]);
    put_referrer(&from, "src", &root, b"signature").await;
    let image = to.put_image("a", &[b"somebody's"]);
    let tag = fallback_tag(&root.digest);
    to.tag("a", &tag, &image.digest);
    let outcome = push(&from, &root.digest, to.repository("a")).await.unwrap();
    let error = outcome.result.unwrap_err().to_string();
    assert!(
        error.contains(&tag) && error.contains("list of referrers"),
        "{error}"
    );
    assert_eq!(to.tagged("a", &tag), Some(image.digest.to_string()));
    assert_eq!(to.tagged("a", "v1"), None);
}

#[rstest]
#[case::the_target_has_more(&[b"one" as &[u8]], &[b"one" as &[u8], b"two"], Ok(1))]
#[case::the_source_has_more(&[b"one" as &[u8], b"two"], &[b"one" as &[u8]], Ok(0))]
#[case::each_has_its_own(&[b"one" as &[u8]], &[b"two" as &[u8]], Err(Reason::TagImmutable))]
#[tokio::test]
async fn signatures_under_cosign_s_tag_are_never_lost(
    #[case] ours: &'static [&'static [u8]],
    #[case] theirs: &'static [&'static [u8]],
    #[case] existed: Result<i64, Reason>,
) {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let root = from.put_image("src", &[b"layer"]);
    put_tagged(&from, "src", &root.digest, "sig", ours);
    let before = put_tagged(&to, "a", &root.digest, "sig", theirs);
    let outcome = push(&from, &root.digest, to.repository("a")).await.unwrap();
    let found = outcome.result.map(|()| outcome.referrers.existed);
    assert_eq!(found.map_err(|error| error.reason()), existed);
    let tag = format!("{}.sig", fallback_tag(&root.digest));
    assert_eq!(to.tagged("a", &tag) == Some(before.to_string()), existed != Ok(0));
}

#[rstest]
#[case::wrong_type(Fault::Header("content-type", Some("application/json".into())), "application/json")]
#[case::no_index(Fault::Says(b"[]".to_vec()), "no index")]
#[case::next_page_elsewhere(Fault::Header("link", Some("<http://elsewhere.test/v2/x>; rel=\"next\"".into())), "elsewhere.test")]
#[tokio::test]
async fn a_list_that_is_none_is_an_error_and_not_an_empty_list(#[case] fault: Fault, #[case] named: &str) {
    let registry = FaultRegistry::start().await;
    let subject = registry.put_image("a", &[b"layer"]);
    put_referrer(&registry, "a", &subject, b"signature").await;
    registry.fault(1, Method::GET, "referrers", fault);
    let error = registry
        .anonymous("a")
        .referrers(&subject.digest)
        .await
        .unwrap_err();
    assert!(error.to_string().contains(named), "{error}");
}

#[tokio::test]
async fn a_referrer_that_is_about_something_else_is_refused() {
    let from = FaultRegistry::start().await;
    let (root, other) = (
        from.put_image("src", &[b"layer"]),
        from.put_image("src", &[b"other", b"x"]),
    );
    let signature = put_referrer(&from, "src", &other, b"signature").await;
    let entry =
        json!({"mediaType": signature.media_type, "digest": signature.digest, "size": signature.size});
    let list = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry]});
    from.fault(
        1,
        Method::GET,
        "referrers",
        Fault::Says(list.to_string().into_bytes()),
    );
    let source = from.repository("src");
    let image = read_image(&source.clone().into(), root.digest.as_str(), &[])
        .await
        .unwrap();
    let error = read_referrers(&source, image).await.unwrap_err();
    assert_eq!(error.reason(), Reason::ManifestInvalid);
}

#[tokio::test]
async fn one_token_is_good_for_everything_that_goes_with_an_image() {
    let from = FaultRegistry::start().await;
    let to = FaultRegistry::behind(Door::Bearer {
        uses: usize::MAX,
        realm: None,
    })
    .await;
    let root = from.put_image("src", &[b"layer"]);
    put_referrer(&from, "src", &root, b"signature").await;
    push(&from, &root.digest, to.repository("a"))
        .await
        .unwrap()
        .result
        .unwrap();
    assert_eq!(to.count(&Method::GET, "/token"), 1);
}

#[test]
fn an_entry_says_what_the_manifest_says() {
    let document = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": "application/x", "digest": Digest::of(b"{}"), "size": 2}, "layers": [],
        "annotations": {"a": "b"}});
    let bytes = Bytes::from(document.to_string());
    let raw = crate::registry::RawManifest {
        digest: Digest::of(&bytes),
        media_type: media_type::OCI_MANIFEST.to_owned(),
        bytes,
    };
    let entry = entry_of(&raw).unwrap();
    // Without an artifact type the config's type stands for it.
    assert_eq!(entry.artifact_type.as_deref(), Some("application/x"));
    assert_eq!(entry.annotations["a"], "b");
}
