//! Why a pass failed, and how long until the next one.

use std::time::Duration;

use crate::{kubernetes::cluster::ClusterError, registry::RegistryError};

/// The first wait after a failed pass.
const FIRST: Duration = Duration::from_millis(500);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(300);

/// Why a pass failed. What a user can mend is in the object's status instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The API server made a pod without the user namespace that was asked for.
    #[error(
        "the API server dropped hostUsers: it offers no user namespaces, although a node says so; use Kubernetes 1.33 or later"
    )]
    UserNamespaceDropped,
    /// The staging registry refused or did not answer.
    #[error("staging: {0}")]
    Staging(#[from] RegistryError),
    /// A receipt could not be written there.
    #[error("a receipt: {0}")]
    Receipt(#[from] crate::staging::StagingError),
}

/// What kind of trouble it is: a metric's label, and the base of the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelValue)]
pub enum Class {
    /// The API server.
    Cluster,
    /// The API server refuses this very request.
    Refusal,
    /// The staging registry.
    Staging,
}

impl Error {
    /// The kind of trouble.
    pub fn class(&self) -> Class {
        match self {
            Self::UserNamespaceDropped => Class::Refusal,
            Self::Cluster(error) if error.is_refusal() => Class::Refusal,
            Self::Cluster(_) => Class::Cluster,
            Self::Staging(_) | Self::Receipt(_) => Class::Staging,
        }
    }
}

/// The wait before the next pass over an object whose last `failures` passes failed.
///
/// `spread` in 0..1 keeps a thousand objects from coming back at once.
pub fn backoff(class: Class, failures: u32, spread: f64) -> Duration {
    let first = match class {
        Class::Cluster | Class::Staging => FIRST,
        // The same request gets the same answer until somebody changes a rule.
        Class::Refusal => Duration::from_secs(30),
    };
    let wait = first
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(LONGEST);
    wait.mul_f64(0.75 + spread.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_minutes() {
        assert_eq!(backoff(Class::Cluster, 1, 0.5), FIRST);
        assert_eq!(backoff(Class::Cluster, 3, 0.5), FIRST * 4);
        assert_eq!(backoff(Class::Cluster, 60, 0.5), LONGEST);
        assert!(backoff(Class::Refusal, 1, 0.0) > Duration::from_secs(20));
    }
}
