//! Conditions: their types, their constructors, and the merge that moves a time only when a status moves.
//!
//! Source: Kubernetes API conventions and kstatus. `Reconciling` and `Stalled` are there only while true;
//! `Finished` turns True at any end, so that `kubectl wait --for=condition=Finished` always returns.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Everything that was asked for is there.
pub const READY: &str = "Ready";
/// A run has ended, well or badly.
pub const FINISHED: &str = "Finished";
/// A run has ended well (True), badly (False), or not yet (Unknown).
pub const SUCCEEDED: &str = "Succeeded";
/// Work is going on.
pub const RECONCILING: &str = "Reconciling";
/// Nothing more will happen until somebody changes something.
pub const STALLED: &str = "Stalled";
/// What was pushed is no longer what is there.
pub const DRIFTED: &str = "Drifted";

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are Kubernetes' own")]
pub enum Status {
    True,
    False,
    Unknown,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// The conditions that a pass arrived at, without times.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    list: Vec<(&'static str, Status, String, String)>,
}

impl Conditions {
    /// What a run that still goes on shows.
    pub fn running(reason: &str, message: &str) -> Self {
        Self::default()
            .with(READY, Status::False, reason, message)
            .with(SUCCEEDED, Status::Unknown, reason, message)
            .with(FINISHED, Status::False, reason, message)
            .with(RECONCILING, Status::True, reason, message)
    }

    /// What a run that ended well shows.
    pub fn succeeded(reason: &str, message: &str) -> Self {
        Self::default()
            .with(READY, Status::True, reason, message)
            .with(SUCCEEDED, Status::True, reason, message)
            .with(FINISHED, Status::True, reason, message)
    }

    /// What a run that ended badly shows.
    pub fn failed(reason: &str, message: &str) -> Self {
        Self::default()
            .with(READY, Status::False, reason, message)
            .with(SUCCEEDED, Status::False, reason, message)
            .with(FINISHED, Status::True, reason, message)
            .with(STALLED, Status::True, reason, message)
    }

    /// Adds one condition.
    #[must_use]
    pub fn with(mut self, kind: &'static str, status: Status, reason: &str, message: &str) -> Self {
        self.list
            .push((kind, status, reason.to_owned(), message.to_owned()));
        self
    }

    /// The same, with another status for one condition.
    #[must_use]
    pub fn replace(mut self, kind: &'static str, status: Status, reason: &str, message: &str) -> Self {
        self.list.retain(|(other, ..)| *other != kind);
        self.with(kind, status, reason, message)
    }

    /// The conditions to publish: one whose status did not change keeps the time of its last change.
    pub fn merge(self, before: &[Condition], generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
        self.list
            .into_iter()
            .map(|(kind, status, reason, message)| {
                let same = before
                    .iter()
                    .find(|c| c.type_ == kind && c.status == status.as_str());
                Condition {
                    type_: kind.to_owned(),
                    status: status.as_str().to_owned(),
                    reason,
                    message,
                    observed_generation: generation,
                    last_transition_time: same.map_or(Time(now), |c| c.last_transition_time.clone()),
                }
            })
            .collect()
    }
}

/// Whether a condition of this type is True.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    conditions.iter().any(|c| c.type_ == kind && c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_time_moves_only_with_its_status() {
        let before = Conditions::running("Building", "one").merge(&[], Some(1), at(1));
        let same = Conditions::running("Building", "two").merge(&before, Some(1), at(2));
        assert!(
            same.iter()
                .all(|c| c.last_transition_time.0 == at(1) && c.message == "two")
        );

        let ended = Conditions::succeeded("FullyBuilt", "three").merge(&same, Some(1), at(3));
        assert!(ended.iter().all(|c| c.last_transition_time.0 == at(3)));
        assert!(is_true(&ended, FINISHED) && !is_true(&ended, RECONCILING));
    }

    #[test]
    fn every_end_is_finished() {
        for ended in [Conditions::succeeded("A", ""), Conditions::failed("B", "")] {
            assert!(is_true(&ended.merge(&[], None, at(1)), FINISHED));
        }
    }
}
