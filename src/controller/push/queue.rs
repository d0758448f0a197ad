//! Registries that take a limited number of pushes at once: who is next, fairly between namespaces. Pure.
//!
//! Only targets that say that they are queued are in the queue: one that waits for its build, its time or another
//! push's tag keeps nobody waiting.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use kube::ResourceExt as _;

use super::plan::origin_of;
use crate::{
    api::v1alpha1::{RegistryPush, TargetState, TargetStatus, condition},
    record::Reason,
    registry::normal_origin,
};

/// The reason of a push whose next targets wait for other pushes to end.
pub const QUEUED: &str = "Queued";

/// The queue before one registry, as one push sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Pushes that the registry takes at once.
    pub at_once: usize,
    /// How many pushes of each namespace are under way there.
    pub under_way: BTreeMap<String, usize>,
    /// The others that wait.
    pub waiting: Vec<Ticket>,
}

/// One push that waits; the older one goes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    /// When it was created.
    pub created: Timestamp,
    /// Tells those apart that were created in one second.
    pub uid: String,
    /// Whose it is.
    pub namespace: String,
}

impl Queue {
    /// Whether this push has to wait: no place is free, or those that are go to others first.
    ///
    /// Each free place goes to the namespace that has the fewest pushes under way.
    pub fn holds(&self, own: &Ticket) -> bool {
        let mut places = self.under_way.clone();
        let mut waiting: BTreeSet<&Ticket> = self.waiting.iter().chain([own]).collect();
        let free = self.at_once.saturating_sub(places.values().sum());
        for _ in 0..free {
            let has = |ticket: &Ticket| places.get(&ticket.namespace).copied().unwrap_or(0);
            let Some(next) = waiting
                .iter()
                .copied()
                .min_by_key(|ticket| (has(ticket), *ticket))
            else {
                break;
            };
            if next == own {
                return false;
            }
            waiting.remove(next);
            *places.entry(next.namespace.clone()).or_default() += 1;
        }
        true
    }
}

/// The place of a push in every queue.
pub fn ticket(push: &RegistryPush) -> Ticket {
    Ticket {
        created: push.creation_timestamp().map_or(Timestamp::MIN, |time| time.0),
        uid: push.uid().unwrap_or_default(),
        namespace: push.namespace().unwrap_or_default(),
    }
}

/// The queues before the registries of a push, of those that take `at_once` pushes only, by their one spelling.
pub fn of(
    push: &RegistryPush,
    others: impl Iterator<Item = Arc<RegistryPush>>,
    at_once: &BTreeMap<String, usize>,
) -> BTreeMap<String, Queue> {
    let mut queues: BTreeMap<String, Queue> = origins(push)
        .into_iter()
        .filter_map(|origin| {
            let queue = Queue {
                at_once: *at_once.get(&origin)?,
                under_way: BTreeMap::new(),
                waiting: Vec::new(),
            };
            Some((origin, queue))
        })
        .collect();
    if queues.is_empty() {
        return queues;
    }
    for other in others.filter(|other| other.uid() != push.uid()) {
        let keeps_its_place = !lacks_a_secret(&other) || other.namespace() == push.namespace();
        for origin in origins_of(&other, |target| {
            target.state == TargetState::Pushing && keeps_its_place
        }) {
            if let Some(queue) = queues.get_mut(&origin) {
                *queue
                    .under_way
                    .entry(other.namespace().unwrap_or_default())
                    .or_default() += 1;
            }
        }
        // While an attempt of it runs, it cannot take a place.
        if !origins_of(&other, |target| target.state == TargetState::Pushing).is_empty() {
            continue;
        }
        for origin in origins_of(&other, is_queued) {
            if let Some(queue) = queues.get_mut(&origin) {
                queue.waiting.push(ticket(&other));
            }
        }
    }
    queues
}

/// Whether a push waits in a queue before a registry that another one pushes to.
pub fn waits_behind(waiting: &RegistryPush, other: &RegistryPush) -> bool {
    !origins_of(waiting, is_queued).is_disjoint(&origins(other))
}

fn is_queued(target: &TargetStatus) -> bool {
    target.state == TargetState::Pending && target.queued == Some(true)
}

/// A namespace's own mistake, which may last: others do not wait for it, its own pushes do.
fn lacks_a_secret(push: &RegistryPush) -> bool {
    let conditions = push.status.iter().flat_map(|status| &status.conditions);
    conditions
        .filter(|condition| condition.type_ == condition::READY)
        .any(|condition| condition.reason == Reason::SecretMissing.as_str())
}

/// The registries of some of a push's targets.
fn origins_of(push: &RegistryPush, which: impl Fn(&TargetStatus) -> bool) -> BTreeSet<String> {
    let targets = push.status.iter().flat_map(|status| &status.targets);
    targets
        .filter(|target| which(target))
        .map(|target| normal_origin(origin_of(&target.repository)))
        .collect()
}

/// What it names now, and what its status still speaks of.
fn origins(push: &RegistryPush) -> BTreeSet<String> {
    let spec = push.spec.targets.iter();
    spec.map(|target| normal_origin(origin_of(&target.repository)))
        .chain(origins_of(push, |_| true))
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn waits(namespace: &str, second: i64) -> Ticket {
        Ticket {
            created: Timestamp::from_second(second).unwrap(),
            uid: format!("{namespace}-{second}"),
            namespace: namespace.into(),
        }
    }

    #[rstest]
    #[case::nobody_else(2, &[], vec![], false)]
    #[case::no_place(2, &[("b", 2)], vec![], true)]
    #[case::more_than_there_are_places(1, &[("b", 2)], vec![], true)]
    #[case::an_older_one(2, &[("b", 1)], vec![waits("a", 1)], true)]
    #[case::a_younger_one(2, &[("b", 1)], vec![waits("a", 9)], false)]
    #[case::a_younger_one_of_who_has_less(2, &[("a", 1)], vec![waits("b", 9)], true)]
    #[case::an_older_one_of_who_has_more(2, &[("b", 1)], vec![waits("b", 1)], false)]
    #[case::one_of_many_of_another(3, &[("b", 1)], vec![waits("b", 1), waits("b", 2), waits("b", 3)], false)]
    #[case::a_place_for_each(2, &[], vec![waits("b", 1), waits("b", 2)], false)]
    fn a_free_place_goes_to_who_has_the_fewest_and_then_to_the_oldest(
        #[case] at_once: usize,
        #[case] under_way: &[(&str, usize)],
        #[case] waiting: Vec<Ticket>,
        #[case] holds: bool,
    ) {
        let queue = Queue {
            at_once,
            under_way: under_way
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect(),
            waiting,
        };
        assert_eq!(queue.holds(&waits("a", 5)), holds);
    }

    fn push(name: &str, reason: &str, targets: &[(&str, &str)]) -> Arc<RegistryPush> {
        push_of("a", name, reason, targets)
    }

    fn push_of(namespace: &str, name: &str, reason: &str, targets: &[(&str, &str)]) -> Arc<RegistryPush> {
        let entry = |(repository, state): &(&str, &str)| -> Value {
            let (state, queued) = match *state {
                "Queued" => ("Pending", Some(true)),
                state => (state, None),
            };
            json!({ "repository": repository, "state": state, "queued": queued, "tags": [], "attempts": 0 })
        };
        let spec: Vec<Value> = targets
            .iter()
            .map(|(name, _)| json!({ "repository": name }))
            .collect();
        Arc::new(
            serde_json::from_value(json!({
                "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPush",
                "metadata": { "name": name, "namespace": namespace, "uid": name,
                              "creationTimestamp": "2026-01-01T00:00:00Z" },
                "spec": { "source": { "reference": "example.test/a:b" }, "targets": spec },
                "status": {
                    "targets": targets.iter().map(entry).collect::<Vec<_>>(),
                    "conditions": [{ "type": "Ready", "status": "False", "reason": reason, "message": "",
                                     "lastTransitionTime": "2026-01-01T00:00:00Z" }],
                },
            }))
            .unwrap(),
        )
    }

    #[test]
    fn who_is_under_way_and_who_waits_is_read_from_what_they_say() {
        let own = push(
            "own",
            "Waiting",
            &[("one.test/a", "Pending"), ("two.test/a", "Pending")],
        );
        let others = [
            push(
                "runs",
                "Pushing",
                &[("ONE.test:443/b", "Pushing"), ("two.test/b", "Pushed")],
            ),
            push_of("b", "hangs", "SecretMissing", &[("one.test/c", "Pushing")]),
            push("queues", QUEUED, &[("one.test/d", "Queued")]),
            push("sleeps", "WaitingForSource", &[("one.test/e", "Pending")]),
            push(
                "elsewhere",
                QUEUED,
                &[("one.test/f", "Pending"), ("two.test/f", "Queued")],
            ),
            push("hangs-too", "SecretMissing", &[("one.test/g", "Pushing")]),
            push(
                "is-elsewhere",
                "Pushing",
                &[("two.test/i", "Pushing"), ("one.test/i", "Queued")],
            ),
            push_of("b", "has-no-node", "Unschedulable", &[("one.test/h", "Pushing")]),
        ];
        let at_once = BTreeMap::from([("one.test".to_owned(), 3)]);
        let queues = of(&own, others.iter().chain([&own]).cloned(), &at_once);
        let queue = Queue {
            at_once: 3,
            // Its own namespace's that hangs, but not another's; a cluster without nodes is everybody's.
            under_way: BTreeMap::from([("a".to_owned(), 2), ("b".to_owned(), 1)]),
            waiting: vec![ticket(&others[2])],
        };
        assert_eq!(queues, BTreeMap::from([("one.test".to_owned(), queue)]));
        assert!(waits_behind(&others[2], &others[0]));
        assert!(!waits_behind(&others[3], &others[0]));
    }
}
