//! Several targets, several pushes: one read, one upload.

use std::sync::Arc;

use http::Method;
use tokio::sync::Semaphore;

use super::content;
use crate::{
    image::Descriptor,
    registry::{
        Client, ImageSource, Outcome, TagPolicy, Target, push_all, read_image,
        testing::{Fault, FaultRegistry},
    },
};

fn put_large(registry: &FaultRegistry) -> Descriptor {
    let (one, two, three) = (content(6 << 20), content((5 << 20) + 7), content(300_000));
    registry.put_image("src", &[&one, &two, &three])
}

fn target(registry: &FaultRegistry, repository: &str) -> Target {
    Target {
        repository: registry.repository(repository),
        tags: vec!["v1".to_owned()],
        policy: TagPolicy::Overwrite,
    }
}

async fn push(from: &FaultRegistry, root: &Descriptor, targets: &[Target]) -> Vec<Outcome> {
    let source: ImageSource = from.repository("src").into();
    let image = read_image(&source, root.digest.as_str(), &[]).await.unwrap();
    push_all(&image, &source, targets, None).await
}

#[tokio::test]
async fn three_targets_cost_one_read() {
    let from = FaultRegistry::start().await;
    let to = [
        FaultRegistry::start().await,
        FaultRegistry::start().await,
        FaultRegistry::start().await,
    ];
    let root = put_large(&from);
    let targets: Vec<_> = to.iter().map(|registry| target(registry, "a")).collect();
    for outcome in push(&from, &root, &targets).await {
        outcome.result.unwrap();
        assert_eq!(outcome.blobs.uploaded, 4);
    }
    assert_eq!(from.count(&Method::GET, "/blobs/"), 4);
    for registry in &to {
        assert_eq!(registry.tagged("a", "v1"), Some(root.digest.to_string()));
    }
}

#[tokio::test]
async fn a_target_that_has_a_blob_is_not_waited_for() {
    let from = FaultRegistry::start().await;
    let to = [FaultRegistry::start().await, FaultRegistry::start().await];
    let root = put_large(&from);
    push(&from, &root, &[target(&to[0], "a")])
        .await
        .remove(0)
        .result
        .unwrap();
    from.forget_log();
    let outcomes = push(&from, &root, &[target(&to[0], "a"), target(&to[1], "a")]).await;
    assert_eq!(outcomes[0].blobs.existed, 4);
    assert_eq!(outcomes[1].blobs.uploaded, 4);
    assert_eq!(from.count(&Method::GET, "/blobs/"), 4);
}

#[tokio::test]
async fn a_target_that_does_not_take_its_bytes_keeps_nobody_else() {
    let from = FaultRegistry::start().await;
    let to = [FaultRegistry::start().await, FaultRegistry::start().await];
    let root = put_large(&from);
    let gate = Arc::new(Semaphore::new(0));
    // The first target opens its uploads and then takes nothing until the other one is done.
    to[0].fault(99, Method::PUT, "uploads", Fault::Hold(Arc::clone(&gate)));
    let targets = [target(&to[0], "a"), target(&to[1], "a")];
    let others = async {
        while to[1].tagged("a", "v1").is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(to[0].tagged("a", "v1"), None);
        gate.add_permits(Semaphore::MAX_PERMITS);
    };
    let (outcomes, ()) = tokio::join!(push(&from, &root, &targets), others);
    for outcome in outcomes {
        outcome.result.unwrap();
        // Nothing that was sent is sent again.
        assert_eq!(outcome.blobs.resumed, 0);
    }
}

#[tokio::test]
async fn a_target_that_breaks_leaves_the_read_to_the_others() {
    let from = FaultRegistry::start().await;
    let to = [
        FaultRegistry::start().await,
        FaultRegistry::start().await,
        FaultRegistry::start().await,
    ];
    let root = put_large(&from);
    to[0].fault(
        99,
        Method::POST,
        "uploads",
        Fault::Answer(403, vec![], String::new()),
    );
    to[1].fault(2, Method::PUT, "uploads", Fault::BreakAfter(2 << 20));
    let targets: Vec<_> = to.iter().map(|registry| target(registry, "a")).collect();
    let outcomes = push(&from, &root, &targets).await;
    assert!(outcomes[0].result.is_err());
    assert!(outcomes[1].result.is_ok() && outcomes[2].result.is_ok());
    assert_eq!(outcomes[1].blobs.resumed, 2);
    // Two more for the rests of what broke.
    assert!(from.count(&Method::GET, "/blobs/") <= 4 + 2);
}

#[tokio::test]
async fn pushes_of_one_process_send_a_shared_layer_once() {
    let from = FaultRegistry::start().await;
    let to = FaultRegistry::start().await;
    let shared = content(400_000);
    let client = Client::new(to.options(), to.credentials()).unwrap();
    let pushes = (0..50_u8).map(|number| {
        let own = vec![number; 1000];
        let root = from.put_image("src", &[&shared, &own]);
        let (from, repository) = (&from, client.repository(&to.host(), "a"));
        async move {
            let source: ImageSource = from.repository("src").into();
            let image = read_image(&source, root.digest.as_str(), &[]).await.unwrap();
            let target = Target {
                repository,
                tags: vec![format!("v{number}")],
                policy: TagPolicy::Overwrite,
            };
            push_all(&image, &source, &[target], None)
                .await
                .remove(0)
                .result
                .unwrap();
        }
    });
    futures_util::future::join_all(pushes).await;
    // One layer of all, fifty of their own, and the configs, which are alike.
    assert_eq!(to.count(&Method::PUT, "uploads"), 1 + 50 + 1);
}

/// Nine layers of all and one of its own: what fifty images consist of is little more than what one does.
#[tokio::test]
async fn fifty_pushes_of_images_that_share_nine_layers_of_ten_send_what_is_unique_once() {
    const LAYER: usize = 100_000;
    let (from, to) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let layer = |seed: u64| {
        let mut bytes = vec![0; LAYER];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        bytes
    };
    let shared: Vec<Vec<u8>> = (0..9).map(layer).collect();
    let client = Client::new(to.options(), to.credentials()).unwrap();
    let pushes = (0..50).map(|number| {
        let own = layer(100 + number);
        let layers: Vec<&[u8]> = shared.iter().chain([&own]).map(Vec::as_slice).collect();
        let root = from.put_image("src", &layers);
        let (from, repository) = (&from, client.repository(&to.host(), "a"));
        async move {
            let source: ImageSource = from.repository("src").into();
            let image = read_image(&source, root.digest.as_str(), &[]).await.unwrap();
            let target = Target {
                repository,
                tags: vec![format!("v{number}")],
                policy: TagPolicy::Overwrite,
            };
            let outcome = push_all(&image, &source, &[target], None).await.remove(0);
            outcome.result.unwrap();
            (outcome.blobs.bytes_uploaded, image.bytes())
        }
    });
    let outcomes = futures_util::future::join_all(pushes).await;
    let config = outcomes[0].1 - 10 * LAYER as u64;
    let unique = (9 + 50) * LAYER as u64 + config;
    let received = to.received();
    assert!(
        received >= unique && received * 100 <= unique * 105,
        "{received} bytes were sent, {unique} are unique"
    );
    // The counters say the same as the wire.
    let counted: i64 = outcomes.iter().map(|(sent, _)| sent).sum();
    assert_eq!(u64::try_from(counted).unwrap(), received);
}
