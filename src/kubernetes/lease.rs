//! Leader election by a Lease: one process acts, the others wait.
//!
//! [`evaluate`] decides and is pure; [`lead`] talks to the API server. A process that loses the lease ends,
//! because pausing every watch and pod in flight is harder to get right than starting again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

/// How long a silent leader keeps the lease.
const DURATION: Duration = Duration::from_secs(20);
/// How often the leader renews and the others look.
const PERIOD: Duration = Duration::from_secs(4);
/// How long one renewal may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long before others may begin a leader that cannot renew has stopped.
const MARGIN: Duration = Duration::from_secs(1);

/// What to do about the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is free, or its holder has been silent too long.
    Acquire,
    /// It is ours.
    Renew,
    /// Somebody else leads.
    Wait,
}

/// Why the process must not lead any longer.
#[derive(Debug, thiserror::Error)]
#[error("the lease {name} is lost: {cause}")]
pub struct LeaseLost {
    name: String,
    cause: String,
}

/// Source: `client-go` leader election; the holder's clock is compared with ours, so clocks may differ by less
/// than the lease's duration.
pub fn evaluate(spec: &LeaseSpec, me: &str, now: Timestamp) -> Claim {
    match spec.holder_identity.as_deref() {
        Some(holder) if holder == me => Claim::Renew,
        None | Some("") => Claim::Acquire,
        Some(_) => {
            let seconds = i64::from(spec.lease_duration_seconds.unwrap_or(0));
            let renewed = spec
                .renew_time
                .as_ref()
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0);
            let ends = renewed
                .checked_add(SignedDuration::from_secs(seconds))
                .unwrap_or(Timestamp::MAX);
            if ends <= now { Claim::Acquire } else { Claim::Wait }
        }
    }
}

/// The lease of one operator.
#[derive(Clone)]
pub struct Leadership {
    api: Api<Lease>,
    name: String,
    me: String,
}

impl Leadership {
    /// `me` must be unique among the replicas, a pod's name for example.
    pub fn new(client: Client, namespace: &str, name: &str, me: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            me: me.to_owned(),
        }
    }

    /// Returns once this process leads.
    pub async fn acquire(&self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => tracing::debug!(lease = self.name, "another replica leads"),
                Err(error) => tracing::warn!(lease = self.name, %error, "cannot read or write the lease"),
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Keeps the lease; returns only when it is lost.
    pub async fn keep(&self) -> LeaseLost {
        let mut renewed = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(PERIOD).await;
            let begun = tokio::time::Instant::now();
            let cause = match tokio::time::timeout(PATIENCE, self.attempt()).await {
                Ok(Ok(true)) => {
                    renewed = begun;
                    continue;
                }
                Ok(Ok(false)) => return self.lost("another replica holds it"),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the API server does not answer".to_owned(),
            };
            tracing::warn!(lease = self.name, cause, "the lease was not renewed");
            // Another try that fails would end after others may begin.
            if renewed.elapsed() + PERIOD + PATIENCE + MARGIN >= DURATION {
                return self.lost(&cause);
            }
        }
    }

    /// Gives the lease back, so that another replica need not wait for its end.
    pub async fn release(&self) {
        let Ok(Ok(Some(mut lease))) = tokio::time::timeout(PATIENCE, self.api.get_opt(&self.name)).await
        else {
            return;
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.me) {
            spec.holder_identity = None;
            let _ = tokio::time::timeout(
                PERIOD,
                self.api.replace(&self.name, &PostParams::default(), &lease),
            )
            .await;
        }
    }

    fn lost(&self, cause: &str) -> LeaseLost {
        LeaseLost {
            name: self.name.clone(),
            cause: cause.to_owned(),
        }
    }

    /// Whether this process leads after one look, and one write where one is due.
    async fn attempt(&self) -> Result<bool, kube::Error> {
        let now = Timestamp::now();
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.held(None, now)),
            };
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        match evaluate(&spec, &self.me, now) {
            Claim::Wait => Ok(false),
            claim => {
                lease.spec = Some(self.held((claim == Claim::Renew).then_some(&spec), now));
                // The resource version in `lease` makes a race lose with 409.
                won(self.api.replace(&self.name, &PostParams::default(), &lease).await)
            }
        }
    }

    fn held(&self, before: Option<&LeaseSpec>, now: Timestamp) -> LeaseSpec {
        let transitions = before.map_or(0, |spec| spec.lease_transitions.unwrap_or(0));
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: before
                .and_then(|spec| spec.acquire_time.clone())
                .or(Some(MicroTime(now))),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(transitions + i32::from(before.is_none())),
            ..LeaseSpec::default()
        }
    }
}

fn won(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn spec(holder: Option<&str>, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: holder.map(Into::into),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            ..LeaseSpec::default()
        }
    }

    #[rstest]
    #[case::ours(spec(Some("me"), 0), Claim::Renew)]
    #[case::released(spec(None, 100), Claim::Acquire)]
    #[case::fresh(spec(Some("other"), 90), Claim::Wait)]
    #[case::silent(spec(Some("other"), 85), Claim::Acquire)]
    fn a_lease_is_taken_only_when_its_holder_is_silent(#[case] spec: LeaseSpec, #[case] expected: Claim) {
        assert_eq!(
            evaluate(&spec, "me", Timestamp::from_second(100).unwrap()),
            expected
        );
    }
}
