//! What becomes of the platforms that a tag has already.

use http::Method;
use serde_json::{Value, json};

use crate::{
    image::{Descriptor, Digest, media_type},
    record::Reason,
    registry::{
        CopyError, PublishPolicy, TagPolicy, Target, for_target, push_all, read_image, testing::FaultRegistry,
    },
};

const ATTESTS: &str = "vnd.docker.reference.digest";

fn entry(image: &Descriptor, platform: &str) -> Value {
    let (os, architecture) = platform.split_once('/').unwrap();
    json!({"mediaType": image.media_type, "digest": image.digest, "size": image.size,
           "platform": {"os": os, "architecture": architecture}})
}

fn attestation(image: &Descriptor, about: &Descriptor) -> Value {
    let mut written = entry(image, "unknown/unknown");
    written["annotations"] = json!({ ATTESTS: about.digest });
    written
}

fn put_index(registry: &FaultRegistry, repository: &str, entries: &[Value]) -> Descriptor {
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries});
    registry.put_manifest(repository, media_type::OCI_INDEX, &index)
}

/// Publishes `root` of the source under `edge`, and tells the digest that the tag then has and what it lists.
async fn publish(
    from: &FaultRegistry,
    to: &FaultRegistry,
    root: &Digest,
    policy: PublishPolicy,
) -> Result<(String, Vec<String>), CopyError> {
    let source = from.repository("src");
    let image = read_image(&source.clone().into(), root.as_str(), &[]).await?;
    let target = Target {
        repository: to.repository("app"),
        tags: vec!["edge".to_owned()],
        policy: TagPolicy::Overwrite,
    };
    let source = source.into();
    let (made, target) = for_target(&image, &source, target, policy).await?;
    let outcomes = push_all(&made.image, &source, &[target], None).await;
    for outcome in outcomes {
        outcome.result?;
    }
    let digest = to.tagged("app", "edge").unwrap();
    let served = to.repository("app").manifest("edge").await?.unwrap();
    let document: Value = serde_json::from_slice(&served.bytes).unwrap();
    let listed = document["manifests"].as_array().cloned().unwrap_or_default();
    let names = listed.iter().map(|entry| {
        let platform = entry["platform"]["architecture"].as_str().unwrap();
        format!("{platform} {}", entry["digest"].as_str().unwrap())
    });
    Ok((digest, names.collect()))
}

/// A tag with amd64 and s390x, an attestation about each.
fn old(to: &FaultRegistry) -> [Descriptor; 4] {
    let [amd64, s390x, about_amd64, about_s390x] =
        [&b"old amd64"[..], b"old s390x", b"about amd64", b"about s390x"]
            .map(|layer| to.put_image("app", &[layer]));
    let index = put_index(
        to,
        "app",
        &[
            entry(&amd64, "linux/amd64"),
            entry(&s390x, "linux/s390x"),
            attestation(&about_amd64, &amd64),
            attestation(&about_s390x, &s390x),
        ],
    );
    to.tag("app", "edge", &index.digest);
    [amd64, s390x, about_amd64, about_s390x]
}

#[tokio::test]
async fn platforms_that_the_image_lacks_are_kept_with_what_attests_them_and_nothing_of_them_is_sent() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let [_, s390x, _, about_s390x] = old(&to);
    let (amd64, arm64) = (
        from.put_image("src", &[b"new amd64"]),
        from.put_image("src", &[b"new arm64"]),
    );
    let root = put_index(
        &from,
        "src",
        &[entry(&amd64, "linux/amd64"), entry(&arm64, "linux/arm64")],
    );
    let (digest, listed) = publish(&from, &to, &root.digest, PublishPolicy::KeepOld)
        .await
        .unwrap();
    assert_ne!(digest, root.digest.to_string());
    let expected = [
        format!("amd64 {}", amd64.digest),
        format!("arm64 {}", arm64.digest),
        format!("s390x {}", s390x.digest),
        format!("unknown {}", about_s390x.digest),
    ];
    assert_eq!(listed, expected);
    assert_eq!(to.count(&Method::PUT, s390x.digest.as_str()), 0);
    assert_eq!(to.count(&Method::PUT, root.digest.as_str()), 0);
    // Once more: nothing is lost, nothing changes.
    to.forget_log();
    let again = publish(&from, &to, &root.digest, PublishPolicy::KeepOld)
        .await
        .unwrap();
    assert_eq!(again, (digest, listed));
    assert_eq!(to.count(&Method::PUT, ""), 0);
}

#[tokio::test]
async fn a_plain_image_joins_the_platforms_that_are_there() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let [_, s390x, ..] = old(&to);
    let image = from.put_image("src", &[b"new"]);
    let (_, listed) = publish(&from, &to, &image.digest, PublishPolicy::KeepOld)
        .await
        .unwrap();
    assert_eq!(listed[0], format!("amd64 {}", image.digest));
    assert_eq!(listed[1], format!("s390x {}", s390x.digest));
}

#[tokio::test]
async fn where_nothing_is_lost_the_digest_is_the_image_s() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let plain = to.put_image("app", &[b"old"]);
    to.tag("app", "edge", &plain.digest);
    let image = from.put_image("src", &[b"new"]);
    for policy in [PublishPolicy::KeepOld, PublishPolicy::RefuseIfArchLost] {
        let (digest, _) = publish(&from, &to, &image.digest, policy).await.unwrap();
        assert_eq!(digest, image.digest.to_string());
    }
}

#[tokio::test]
async fn a_platform_that_would_be_lost_is_named_and_nothing_is_written() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    old(&to);
    let image = from.put_image("src", &[b"new"]);
    let error = publish(&from, &to, &image.digest, PublishPolicy::RefuseIfArchLost)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::PlatformLost);
    assert!(
        error.to_string().contains("linux/s390x") && error.to_string().contains("edge"),
        "{error}"
    );
    assert_eq!(to.count(&Method::PUT, "") + to.count(&Method::POST, ""), 0);
    let (digest, _) = publish(&from, &to, &image.digest, PublishPolicy::WhenComplete)
        .await
        .unwrap();
    assert_eq!(digest, image.digest.to_string());
}

#[tokio::test]
async fn families_are_never_mixed() {
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let s390x = to.put_image("app", &[b"old"]);
    let list = json!({"schemaVersion": 2, "mediaType": media_type::DOCKER_LIST, "manifests": [
        {"mediaType": media_type::DOCKER_MANIFEST, "digest": s390x.digest, "size": s390x.size,
         "platform": {"os": "linux", "architecture": "s390x"}}]});
    let list = to.put_manifest("app", media_type::DOCKER_LIST, &list);
    to.tag("app", "edge", &list.digest);
    let image = from.put_image("src", &[b"new"]);
    let error = publish(&from, &to, &image.digest, PublishPolicy::KeepOld)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::UnsupportedMediaType);
}
