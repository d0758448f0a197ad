//! What policies say of registries.

use super::*;
use crate::{
    agent::plan::RegistryLimits,
    controller::{
        pod_parts::AgentRuntime,
        push::{pod, queue},
    },
};

#[test]
fn a_target_before_whose_registry_is_a_queue_waits_and_says_so_and_the_others_do_not() {
    let mut seen = observed(&["one.test/a", "two.test/a"]);
    let full = queue::Queue {
        at_once: 4,
        under_way: BTreeMap::from([("other".into(), 4)]),
        waiting: Vec::new(),
    };
    seen.queues.insert("one.test".into(), full);
    let first = decide(&seen, NOW);
    assert_eq!(planned(&first), ["two.test/a"]);
    let seen = ended_with(&after(&seen, &first), vec![None]);
    let held = decide(&seen, NOW);
    assert_eq!((&held.step, held.next), (&Step::Nothing, Next::Change));
    let ready = held
        .status
        .conditions
        .iter()
        .find(|c| c.type_ == condition::READY);
    let ready = ready.unwrap();
    assert_eq!(ready.reason, queue::QUEUED);
    assert_eq!(
        ready.message,
        "Waiting for its turn: one.test/a: its RegistryPolicy lets 4 pushes go there at once, and others are before \
         this one."
    );
    let queued = |decision: &Decision| -> Vec<Option<bool>> {
        let targets = decision.status.targets.iter();
        targets.map(|target| target.queued).collect()
    };
    assert_eq!(queued(&held), [Some(true), None]);
    let suspended = edited(&after(&seen, &held), |push| push.spec.suspend = true);
    assert_eq!(queued(&decide(&suspended, NOW)), [None, None]);
    let mut free = after(&seen, &held);
    free.queues.clear();
    let begun = decide(&free, NOW);
    assert_eq!(planned(&begun), ["one.test/a"]);
    assert_eq!(queued(&begun), [None, None]);
}

/// What each mount of an attempt's pod is for, with the plan's certificates, and the seconds that it may take.
fn mounted(seen: &Observed, decision: &Decision) -> (Vec<String>, Option<i64>) {
    let Step::CreatePod { plan } = &decision.step else {
        panic!("no pod");
    };
    let agents = AgentRuntime {
        image: "slipway.test/slipway:1".into(),
        operator_url: None,
    };
    let spec = pod::pod(&seen.push, plan, 1, &agents).spec.unwrap();
    let secrets = spec.volumes.unwrap().into_iter().filter_map(|volume| {
        let secret = volume.secret?.secret_name?;
        let mounts = spec.containers[0].volume_mounts.as_ref().unwrap();
        let mount = mounts.iter().find(|mount| mount.name == volume.name).unwrap();
        Some(format!("{secret} at {}", mount.mount_path))
    });
    (secrets.collect(), spec.active_deadline_seconds)
}

#[test]
fn a_pod_gets_the_certificates_of_the_registries_that_it_speaks_to() {
    let mut seen = observed(&["One.test:5000/a", "two.test/a", "denied.test/a"]);
    seen.registries.certificates = [
        ("one.test:5000", "client-1"),
        ("two.test", "client-2"),
        ("denied.test", "client-3"),
        ("example.test", "client-4"),
        ("five.test", "client-5"),
    ]
    .map(|(host, secret)| (host.to_owned(), secret.to_owned()))
    .into();
    let first = decide(&seen, NOW);
    assert_eq!(planned(&first), ["One.test:5000/a", "two.test/a"]);
    let expected = [
        "client-4 at /certificates/example.test",
        "client-1 at /certificates/one.test_5000",
        "client-2 at /certificates/two.test",
    ];
    assert_eq!(mounted(&seen, &first).0, expected);
    // The next attempt is about one of them.
    let seen = ended_with(&after(&seen, &first), vec![Some(down()), None]);
    let again = decide(&seen, in_seconds(60));
    assert_eq!(planned(&again), ["One.test:5000/a"]);
    assert_eq!(mounted(&seen, &again).0, expected[..2]);
}

#[test]
fn a_push_that_is_slowed_down_has_longer() {
    let mut seen = observed(&["one.test/a"]);
    assert_eq!(mounted(&seen, &decide(&seen, NOW)).1, Some(3600));
    let limits = RegistryLimits {
        pushes_at_once: 1,
        requests_per_second: None,
        bytes_per_second: Some(1 << 20),
    };
    seen.registries.limits.insert("one.test".into(), limits);
    assert_eq!(mounted(&seen, &decide(&seen, NOW)).1, Some(24 * 3600));
}

#[test]
fn of_two_policies_for_one_registry_the_least_counts() {
    let limits = |pushes_at_once, requests_per_second, bytes_per_second| RegistryLimits {
        pushes_at_once,
        requests_per_second,
        bytes_per_second,
    };
    assert_eq!(
        limits(4, None, Some(8 << 20)).and(limits(2, Some(40), Some(100 << 20))),
        limits(2, Some(40), Some(8 << 20))
    );
}
