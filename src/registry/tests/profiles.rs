//! The ways of real registries: each takes an image of two platforms with a signature, and nobody says which
//! registry it is.
//!
//! What each does is in the issue trackers of its clients; none of it is known by host name here.

use http::Method;
use rstest::rstest;
use serde_json::json;

use super::content;
use crate::{
    image::{Digest, media_type},
    registry::{
        ImageSource, Outcome, TagPolicy, Target, push_all, read_image, read_referrers,
        testing::{Door, Fault, FaultRegistry},
    },
};

const ALWAYS: usize = usize::MAX;

fn no() -> Fault {
    Fault::Answer(405, vec![], String::new())
}

fn refusal(status: u16, code: &str) -> Fault {
    Fault::Answer(
        status,
        vec![],
        json!({"errors": [{"code": code, "message": code}]}).to_string(),
    )
}

/// A source image in the target's own registry, so that mounts are tried, and a signature of it.
async fn push(registry: &FaultRegistry, tags: &[&str]) -> (Digest, Outcome) {
    let from = registry.repository("library/base");
    registry.forget_log();
    let (one, two) = (content(700_000), content(9_000_000));
    let children: Vec<_> = [("amd64", &one), ("arm64", &two)]
        .into_iter()
        .map(|(architecture, layer)| {
            let image = registry.put_image("library/base", &[layer, b"", architecture.as_bytes()]);
            json!({"mediaType": image.media_type, "digest": image.digest, "size": image.size,
                   "platform": {"os": "linux", "architecture": architecture}})
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": children});
    let root = registry.put_manifest("library/base", media_type::OCI_INDEX, &index);
    let (empty, signature) = (Digest::of(b"{}"), Digest::of(b"signature"));
    registry.put_blob("library/base", b"{}");
    registry.put_blob("library/base", b"signature");
    let signed = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": "application/x",
        "config": {"mediaType": media_type::OCI_EMPTY, "digest": empty, "size": 2},
        "layers": [{"mediaType": "application/x", "digest": signature, "size": 9}],
        "subject": {"mediaType": root.media_type, "digest": root.digest, "size": root.size}});
    let signed = registry.put_manifest("library/base", media_type::OCI_MANIFEST, &signed);
    registry.tag(
        "library/base",
        &format!("{}.sig", crate::registry::referrers::fallback_tag(&root.digest)),
        &signed.digest,
    );
    let source = ImageSource::from(from.clone());
    let image = read_image(&source, root.digest.as_str(), &[]).await.unwrap();
    let image = read_referrers(&from, image).await.unwrap();
    let target = Target {
        repository: registry.repository("team/app"),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        policy: TagPolicy::Overwrite,
    };
    let outcome = push_all(&image, &source, &[target], None).await.remove(0);
    (root.digest, outcome)
}

fn tokens() -> Door {
    Door::Bearer {
        uses: ALWAYS,
        realm: None,
    }
}

async fn plain() -> FaultRegistry {
    FaultRegistry::start().await
}

/// No referrers API, tokens by scope, a mount needs its source's scope.
async fn hub() -> FaultRegistry {
    FaultRegistry::behind(tokens())
        .await
        .without(|features| features.referrers = false)
}

/// A mount of what no manifest there names is refused.
async fn ecr() -> FaultRegistry {
    let registry = FaultRegistry::behind(Door::Basic)
        .await
        .without(|features| features.referrers = false);
    registry.fault(ALWAYS, Method::POST, "mount", refusal(404, "BLOB_UNKNOWN"));
    registry
}

/// No uploads in pieces.
async fn gar() -> FaultRegistry {
    plain().await.without(|features| features.pieces = false)
}

/// A mount that is no mount opens an upload.
async fn acr() -> FaultRegistry {
    FaultRegistry::behind(tokens())
        .await
        .without(|features| features.mounts = false)
}

/// A mount is a bad request.
async fn quay() -> FaultRegistry {
    let registry = FaultRegistry::behind(tokens()).await;
    registry.fault(
        ALWAYS,
        Method::POST,
        "mount",
        Fault::Answer(400, vec![], String::new()),
    );
    registry
}

/// A request of more than 4 MiB is too large.
async fn ghcr() -> FaultRegistry {
    let registry = plain().await.without(|features| {
        features.referrers = false;
        features.largest_body = 4 << 20;
    });
    registry.fault(ALWAYS, Method::POST, "mount", refusal(404, "BLOB_UNKNOWN"));
    registry
}

/// A mount from a project that is not there is unauthorized.
async fn harbor() -> FaultRegistry {
    let registry = plain().await;
    registry.fault(ALWAYS, Method::POST, "mount", refusal(401, "UNAUTHORIZED"));
    registry
}

/// Tokens for one scope only, and random refusals while one asks whether a blob is there.
async fn gitlab() -> FaultRegistry {
    let registry = FaultRegistry::behind(tokens()).await;
    registry.fault(
        1,
        Method::HEAD,
        "/blobs/",
        Fault::Answer(404, vec![], String::new()),
    );
    registry.fault(
        1,
        Method::GET,
        "pull%2Cpush&scope=",
        Fault::Answer(403, vec![], String::new()),
    );
    registry
}

/// HEAD says no sizes, and the digest of a manifest is not sent.
async fn artifactory() -> FaultRegistry {
    let registry = plain().await.without(|features| features.sizes = false);
    registry.fault(
        ALWAYS,
        Method::PUT,
        "manifests",
        Fault::Header("docker-content-digest", None),
    );
    registry
}

/// Knows nothing of what came after Docker's registry.
async fn nexus() -> FaultRegistry {
    let registry = plain().await.without(|features| {
        features.referrers = false;
        features.tag_parameter = false;
        features.etags = false;
    });
    registry.fault(ALWAYS, Method::POST, "mount", no());
    registry
}

/// The confirmation of the largest blob gets lost behind a proxy that gave up.
async fn proxied() -> FaultRegistry {
    let registry = plain().await;
    registry.fault(ALWAYS, Method::POST, "mount", no());
    registry.fault(2, Method::PUT, "uploads", Fault::LoseAnswer);
    registry
}

/// Several tags with one manifest are a bad request.
async fn strict() -> FaultRegistry {
    let registry = plain().await;
    registry.fault(ALWAYS, Method::PUT, "tag=", refusal(400, "UNSUPPORTED"));
    registry
}

/// Busy for a moment.
async fn busy() -> FaultRegistry {
    let registry = plain().await;
    let later = vec![("retry-after", "0".to_owned())];
    registry.fault(
        3,
        Method::POST,
        "uploads",
        Fault::Answer(429, later, String::new()),
    );
    registry.fault(
        2,
        Method::PUT,
        "manifests",
        Fault::Answer(503, vec![], String::new()),
    );
    registry
}

#[rstest]
#[case::plain(plain())]
#[case::hub(hub())]
#[case::ecr(ecr())]
#[case::gar(gar())]
#[case::acr(acr())]
#[case::quay(quay())]
#[case::ghcr(ghcr())]
#[case::harbor(harbor())]
#[case::gitlab(gitlab())]
#[case::artifactory(artifactory())]
#[case::nexus(nexus())]
#[case::proxied(proxied())]
#[case::strict(strict())]
#[case::busy(busy())]
#[tokio::test]
async fn every_registry_takes_an_image_and_its_signature(
    #[future]
    #[case]
    registry: FaultRegistry,
) {
    let registry = registry.await;
    let (root, outcome) = push(&registry, &["v1", "latest"]).await;
    outcome.result.unwrap();
    for tag in ["v1", "latest"] {
        assert_eq!(registry.tagged("team/app", tag), Some(root.to_string()));
    }
    assert!(outcome.referrers.written >= 1);
    // Nothing is left open, and a second push writes nothing.
    let (_, again) = push(&registry, &["v1", "latest"]).await;
    again.result.unwrap();
    let writes = registry
        .requests()
        .into_iter()
        .filter(|line| !line.starts_with("GET") && !line.starts_with("HEAD"));
    assert_eq!(writes.collect::<Vec<_>>(), Vec::<String>::new());
}
