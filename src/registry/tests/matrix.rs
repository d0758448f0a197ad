//! The push part of the fault matrix, before registries that we did not write.
//!
//! What goes wrong is the fault registry's, what is kept is the real one's, and it is asked for it directly. Each
//! case either arrives, or fails for a reason and leaves no tag; then the push that follows arrives. Either way
//! no more bytes are sent than the image has and the case destroyed.

use std::{sync::Arc, time::Duration};

use http::Method;
use rstest::rstest;
use tokio::sync::Semaphore;

use super::{
    content, describe,
    servers::{Real, Server},
};
use crate::{
    image::Descriptor,
    record::{FailureClass, Reason},
    registry::{
        Client, ClientOptions, CopyError, ImageSource, Outcome, Repository, TagPolicy, Target, Timeouts,
        push_all, read_image,
        testing::{Door, Fault, FaultRegistry},
    },
};

const LARGE: usize = 3 << 20;
const SMALL: usize = 100_000;
const ALWAYS: usize = 1000;

/// How a push ends.
#[derive(Clone, Copy)]
enum Ends {
    Well,
    Badly(Reason),
}

/// One row.
struct Case {
    name: &'static str,
    faults: Vec<(usize, Method, &'static str, Fault)>,
    ends: Ends,
    /// Bytes that are sent and lost where the registry remembers what it got.
    lost: usize,
    door: Door,
    largest_body: u64,
    idle: Duration,
}

fn case(
    name: &'static str,
    ends: Ends,
    lost: usize,
    faults: Vec<(usize, Method, &'static str, Fault)>,
) -> Case {
    Case {
        name,
        faults,
        ends,
        lost,
        door: Door::Open,
        largest_body: u64::MAX,
        idle: Timeouts::default().idle,
    }
}

fn says(status: u16) -> Fault {
    Fault::Answer(status, vec![], String::new())
}

fn later(status: u16, seconds: &str) -> Fault {
    Fault::Answer(status, vec![("retry-after", seconds.to_owned())], String::new())
}

#[allow(clippy::too_many_lines, reason = "one table")]
fn cases() -> Vec<Case> {
    use Ends::{Badly, Well};
    let (post, put, get, head) = (Method::POST, Method::PUT, Method::GET, Method::HEAD);
    let all = LARGE + SMALL;
    let mut cases = vec![
        case("nothing", Well, 0, vec![]),
        Case {
            door: Door::Bearer {
                uses: 12,
                realm: None,
            },
            ..case("tokens that end after twelve requests", Well, 2 * all, vec![])
        },
        case(
            "401 always",
            Badly(Reason::PushUnauthorized),
            0,
            vec![(ALWAYS, post.clone(), "uploads", says(401))],
        ),
        case(
            "403 on upload",
            Badly(Reason::PushDenied),
            0,
            vec![(ALWAYS, post.clone(), "uploads", says(403))],
        ),
        case(
            "403 on the tag",
            Badly(Reason::PushDenied),
            0,
            vec![(ALWAYS, put.clone(), "manifests/v1", says(403))],
        ),
        case(
            "404, no such repository",
            Badly(Reason::RepositoryNotFound),
            0,
            vec![(ALWAYS, post.clone(), "uploads", says(404))],
        ),
        case(
            "429 with a short Retry-After",
            Well,
            0,
            vec![(2, post.clone(), "uploads", later(429, "0"))],
        ),
        case(
            "429 with a long Retry-After",
            Badly(Reason::RateLimited),
            0,
            vec![(1, post.clone(), "uploads", later(429, "3600"))],
        ),
        case(
            "503 with a long Retry-After",
            Badly(Reason::RegistryUnavailable),
            0,
            vec![(1, put.clone(), "manifests", later(503, "3600"))],
        ),
        case(
            "503 always",
            Badly(Reason::RegistryUnavailable),
            0,
            vec![(ALWAYS, post.clone(), "uploads", says(503))],
        ),
        case(
            "500 for questions",
            Well,
            0,
            vec![
                (2, head.clone(), "/blobs/", says(500)),
                (1, get.clone(), "manifests", says(500)),
            ],
        ),
        case(
            "502 instead of an upload",
            Well,
            0,
            vec![(2, post.clone(), "uploads", says(502))],
        ),
        case(
            "502 after commit",
            Well,
            0,
            vec![(3, put.clone(), "uploads", Fault::BadGateway)],
        ),
        case(
            "502 after the manifest",
            Well,
            0,
            vec![(2, put.clone(), "manifests", Fault::BadGateway)],
        ),
        case(
            "the answer to an opened upload lost",
            Well,
            0,
            vec![(2, post.clone(), "uploads", Fault::LoseAnswer)],
        ),
        case(
            "a confirmation lost",
            Well,
            0,
            vec![(3, put.clone(), "uploads", Fault::LoseAnswer)],
        ),
        case(
            "the manifest's confirmation lost",
            Well,
            0,
            vec![(2, put.clone(), "manifests", Fault::LoseAnswer)],
        ),
        case(
            "content refused at its end",
            Well,
            LARGE,
            vec![(1, put.clone(), "uploads", says(503))],
        ),
        case(
            "the session forgotten",
            Well,
            2 << 20,
            vec![
                (1, put.clone(), "uploads", Fault::BreakAfter(2 << 20)),
                (1, get.clone(), "uploads", says(404)),
            ],
        ),
        case(
            "a Range that is more than was sent",
            Well,
            2 << 20,
            vec![
                (1, put.clone(), "uploads", Fault::BreakAfter(2 << 20)),
                (
                    1,
                    get.clone(),
                    "uploads",
                    Fault::Header("range", Some("0-99999999".into())),
                ),
            ],
        ),
        case(
            "broken again and again",
            Well,
            0,
            vec![(3, put.clone(), "uploads", Fault::BreakAfter(400_000))],
        ),
        case(
            "answers cut off",
            Well,
            0,
            vec![(2, get.clone(), "manifests", Fault::CutAnswer(10))],
        ),
        case(
            "the manifest served is another",
            Badly(Reason::DigestMismatch),
            0,
            vec![(ALWAYS, get, "manifests", Fault::Says(b"{}".to_vec()))],
        ),
        case(
            "a tag that is confirmed and not written",
            Badly(Reason::VerificationFailed),
            0,
            vec![(ALWAYS, put.clone(), "manifests/v1", says(201))],
        ),
        Case {
            idle: Duration::from_secs(1),
            ..case(
                "nothing moves",
                Well,
                all,
                vec![(
                    1,
                    put.clone(),
                    "uploads",
                    Fault::Hold(Arc::new(Semaphore::new(0))),
                )],
            )
        },
        Case {
            idle: Duration::from_secs(1),
            ..case(
                "slow",
                Well,
                0,
                vec![
                    (1, put.clone(), "uploads", Fault::Drip(Duration::from_millis(30))),
                    (
                        1,
                        put.clone(),
                        "manifests",
                        Fault::Drip(Duration::from_millis(100)),
                    ),
                ],
            )
        },
        Case {
            largest_body: 1 << 20,
            ..case("no more than 1 MiB in one request", Well, 2 * LARGE, vec![])
        },
    ];
    for at in [0, 1, 65_536, 1 << 20, LARGE as u64 - 1] {
        cases.push(case(
            "the connection reset",
            Well,
            0,
            vec![(1, put.clone(), "uploads", Fault::BreakAfter(at))],
        ));
    }
    cases
}

impl Case {
    async fn link(&self, real: &Real) -> FaultRegistry {
        let link = FaultRegistry::before(&real.host, self.door.clone()).await;
        for (times, method, part, fault) in &self.faults {
            link.fault(*times, method.clone(), part, fault.clone());
        }
        link.without(|features| features.largest_body = self.largest_body)
    }

    async fn check(&self, server: Server, real: &Real, name: &str) {
        let from = FaultRegistry::start().await;
        let root = from.put_image("src", &[&content(LARGE), &content(SMALL)]);
        let link = self.link(real).await;
        let options = ClientOptions {
            timeouts: Timeouts {
                idle: self.idle,
                ..Timeouts::default()
            },
            ..link.options()
        };
        let client = Client::new(options, link.credentials()).unwrap();
        let outcome = push(&from, &root, client.repository(&link.host(), name)).await;
        let mut sent = link.received();
        match self.ends {
            Ends::Well => outcome.result.expect(self.name),
            Ends::Badly(reason) => {
                let error = outcome.result.unwrap_err();
                assert_eq!(error.reason(), reason, "{}: {error}", self.name);
                let direct = real.repository(name);
                if reason != Reason::DigestMismatch {
                    assert_eq!(
                        direct.head_manifest("v1").await.unwrap(),
                        None,
                        "a tag of a push that failed"
                    );
                }
                let link = FaultRegistry::before(&real.host, Door::Open).await;
                push(&from, &root, link.anonymous(name)).await.result.unwrap();
                sent += link.received();
            }
        }
        arrived(real, name, &root, &from).await;
        let lost = if server.goes_on() {
            self.lost
        } else {
            self.lost.max(2 * LARGE)
        };
        let most = (LARGE + SMALL + 1000 + lost) as u64;
        assert!(
            sent <= most,
            "{}: {sent} bytes were sent, {most} are enough",
            self.name
        );
    }
}

impl Server {
    /// Whether an upload that broke always goes on from there; distribution 2.8 does sometimes.
    fn goes_on(self) -> bool {
        self == Self::Distribution3
    }
}

async fn push(from: &FaultRegistry, root: &Descriptor, repository: Repository) -> Outcome {
    let source: ImageSource = from.repository("src").into();
    let image = read_image(&source, root.digest.as_str(), &[]).await.unwrap();
    let target = Target {
        repository,
        tags: vec!["v1".to_owned()],
        policy: TagPolicy::Overwrite,
    };
    push_all(&image, &source, &[target], None).await.remove(0)
}

/// Byte for byte, by the registry's own answers.
async fn arrived(real: &Real, name: &str, root: &Descriptor, from: &FaultRegistry) {
    let (there, here) = (real.repository(name), from.repository("src"));
    let expected = here.manifest(root.digest.as_str()).await.unwrap().unwrap();
    let found = there.manifest("v1").await.unwrap().expect("the tag");
    assert_eq!(found.bytes, expected.bytes);
    for layer in [content(LARGE), content(SMALL)] {
        assert_eq!(there.blob_bytes(&describe(&layer), 4 << 20).await.unwrap(), layer);
    }
}

#[rstest]
#[case::distribution_3(Server::Distribution3)]
#[case::distribution_2(Server::Distribution2)]
#[case::go_containerregistry(Server::GoContainerRegistry)]
#[tokio::test]
async fn every_fault_before_a_real_registry_ends_as_it_should(#[case] server: Server) {
    let mut passed = 0;
    for case in cases() {
        // One that keeps blobs for all repositories alike has to be a fresh one.
        let Some(real) = Real::start(server).await else {
            return;
        };
        println!("{server:?}: {}", case.name);
        case.check(server, &real, "team/app").await;
        passed += 1;
    }
    println!("{server:?}: {passed} faults");
}

/// Faults that pass, drawn by lot: whatever comes together, an answer of success is true, and a push that failed
/// is only behind.
#[rstest]
#[case::distribution_3(Server::Distribution3)]
#[case::distribution_2(Server::Distribution2)]
#[case::go_containerregistry(Server::GoContainerRegistry)]
#[tokio::test]
async fn faults_drawn_by_lot_before_a_real_registry_never_make_a_push_lie(#[case] server: Server) {
    const PUSHES: u64 = 24;
    let mut well = 0;
    for seed in 0..PUSHES {
        let Some(real) = Real::start(server).await else {
            return;
        };
        let mut lot = fastrand::Rng::with_seed(seed);
        let from = FaultRegistry::start().await;
        let root = from.put_image("src", &[&content(LARGE), &content(SMALL)]);
        let link = FaultRegistry::before(&real.host, Door::Open).await;
        let drawn: Vec<_> = (0..lot.usize(2..9)).map(|_| draw(&mut lot)).collect();
        println!("{server:?}, seed {seed}: {drawn:?}");
        for (times, method, part, fault) in drawn {
            link.fault(times, method, part, fault);
        }
        match push(&from, &root, link.anonymous("a")).await.result {
            Ok(()) => well += 1,
            Err(error) => {
                assert_eq!(error.reason().class(), FailureClass::Infrastructure, "{error}");
                let again = push(&from, &root, real.repository("a")).await;
                again.result.unwrap();
            }
        }
        arrived(&real, "a", &root, &from).await;
    }
    println!("{server:?}: {well} of {PUSHES} arrived at the first push, the others at the second");
}

fn draw(lot: &mut fastrand::Rng) -> (usize, Method, &'static str, Fault) {
    let places = [
        (Method::POST, "uploads"),
        (Method::PUT, "uploads"),
        (Method::PUT, "uploads"),
        (Method::PATCH, "uploads"),
        (Method::GET, "uploads"),
        (Method::HEAD, "blobs"),
        (Method::HEAD, "manifests"),
        (Method::GET, "manifests"),
        (Method::PUT, "manifests"),
    ];
    let (method, part) = places[lot.usize(..places.len())].clone();
    let fault = match lot.u8(..6) {
        0 => says([500, 502, 503, 504, 408][lot.usize(..5)]),
        1 => later(429, "0"),
        2 => Fault::BadGateway,
        3 => Fault::BreakAfter(lot.u64(..LARGE as u64)),
        4 if method == Method::GET => Fault::CutAnswer(lot.usize(..20)),
        _ => Fault::LoseAnswer,
    };
    (lot.usize(1..4), method, part, fault)
}

#[rstest]
#[case::distribution_3(Server::Distribution3)]
#[case::distribution_2(Server::Distribution2)]
// The other one takes manifests whose blobs it lacks, so nothing there overrides a lie.
#[tokio::test]
async fn a_real_registry_s_refusal_overrides_a_head_that_lies(#[case] server: Server) {
    let Some(real) = Real::start(server).await else {
        return;
    };
    let from = FaultRegistry::start().await;
    let root = from.put_image("src", &[&content(LARGE), &content(SMALL)]);
    let link = FaultRegistry::before(&real.host, Door::Open).await;
    for layer in [content(LARGE), content(SMALL)] {
        let Descriptor { digest, size, .. } = describe(&layer);
        let lie = Fault::Answer(200, vec![("content-length", size.to_string())], String::new());
        link.fault(1, Method::HEAD, digest.as_str(), lie);
    }
    let outcome = push(&from, &root, link.anonymous("a")).await;
    outcome.result.unwrap();
    assert_eq!((outcome.blobs.existed, outcome.blobs.uploaded), (0, 3));
    arrived(&real, "a", &root, &from).await;
}

#[rstest]
#[case::refused(says(403))]
#[case::not_found(says(404))]
#[case::broken(says(500))]
#[case::lost(Fault::LoseAnswer)]
#[tokio::test]
async fn a_mount_that_a_real_registry_does_not_make_is_an_upload(
    #[case] fault: Fault,
    #[values(Server::Distribution3, Server::Distribution2)] server: Server,
) {
    let Some(real) = Real::start(server).await else {
        return;
    };
    let from = FaultRegistry::start().await;
    let root = from.put_image("src", &[&content(LARGE), &content(SMALL)]);
    push(&from, &root, real.repository("src")).await.result.unwrap();
    let link = FaultRegistry::before(&real.host, Door::Open).await;
    link.fault(ALWAYS, Method::POST, "mount", fault);
    let source: ImageSource = link.anonymous("src").into();
    let image = read_image(&source, "v1", &[]).await.unwrap();
    let target = Target {
        repository: link.anonymous("a"),
        tags: vec!["v1".to_owned()],
        policy: TagPolicy::Overwrite,
    };
    let outcome = push_all(&image, &source, &[target], None).await.remove(0);
    outcome.result.unwrap();
    assert_eq!(outcome.blobs.mounted, 0);
    arrived(&real, "a", &root, &from).await;
}

#[rstest]
#[case::distribution_3(Server::Distribution3)]
#[case::distribution_2(Server::Distribution2)]
#[case::go_containerregistry(Server::GoContainerRegistry)]
#[tokio::test]
async fn a_tag_of_a_real_registry_that_moves_during_the_push_stays(#[case] server: Server) {
    let Some(real) = Real::start(server).await else {
        return;
    };
    let from = FaultRegistry::start().await;
    let (ours, theirs) = (
        from.put_image("src", &[&content(SMALL)]),
        from.put_image("src", &[&content(SMALL), b"theirs"]),
    );
    let link = FaultRegistry::before(&real.host, Door::Open).await;
    let gate = Arc::new(Semaphore::new(0));
    // The manifest waits, and meanwhile somebody else writes the tag.
    link.fault(1, Method::PUT, "manifests", Fault::Hold(Arc::clone(&gate)));
    let source: ImageSource = from.repository("src").into();
    let image = read_image(&source, ours.digest.as_str(), &[]).await.unwrap();
    let target = Target {
        repository: link.anonymous("a"),
        tags: vec!["v1".to_owned()],
        policy: TagPolicy::IfUnchanged,
    };
    let targets = [target];
    let first = async {
        let outcome = push_all(&image, &source, &targets, None).await.remove(0);
        outcome.result.as_ref().err().map(CopyError::reason)
    };
    let second = async {
        while link.count(&Method::HEAD, "manifests/v1") == 0 {
            tokio::task::yield_now().await;
        }
        push(&from, &theirs, real.repository("a")).await.result.unwrap();
        gate.add_permits(1);
    };
    let (reason, ()) = tokio::join!(first, second);
    assert_eq!(reason, Some(Reason::TagImmutable));
    let (found, _) = real.repository("a").head_manifest("v1").await.unwrap().unwrap();
    assert_eq!(found, theirs.digest);
}

#[tokio::test]
async fn one_real_registry_of_three_that_fails_does_not_stop_the_others() {
    let from = FaultRegistry::start().await;
    let root = from.put_image("src", &[&content(LARGE), &content(SMALL)]);
    let (mut real, mut links) = (Vec::new(), Vec::new());
    for server in [
        Server::Distribution3,
        Server::Distribution2,
        Server::GoContainerRegistry,
    ] {
        let Some(started) = Real::start(server).await else {
            return;
        };
        links.push(FaultRegistry::before(&started.host, Door::Open).await);
        real.push(started);
    }
    links[1].fault(ALWAYS, Method::PUT, "uploads", Fault::BreakAfter(1));
    let source: ImageSource = from.repository("src").into();
    let image = read_image(&source, root.digest.as_str(), &[]).await.unwrap();
    let targets: Vec<Target> = links
        .iter()
        .map(|link| Target {
            repository: link.anonymous("a"),
            tags: vec!["v1".to_owned()],
            policy: TagPolicy::Overwrite,
        })
        .collect();
    let outcomes = push_all(&image, &source, &targets, None).await;
    let ended: Vec<bool> = outcomes.iter().map(|outcome| outcome.result.is_ok()).collect();
    assert_eq!(ended, [true, false, true]);
    push(&from, &root, real[1].repository("a")).await.result.unwrap();
    for real in &real {
        arrived(real, "a", &root, &from).await;
    }
}
