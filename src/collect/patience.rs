//! How long an outage of a store is waited for.

use std::{future::Future, sync::Mutex, time::Duration};

use crate::staging::StagingError;

/// All waiting of one collection together. A staging registry that restarts is back in seconds; a node that
/// has to be replaced takes two minutes.
const TOTAL: Duration = Duration::from_mins(3);

/// The first wait; each further one in a row is twice as long.
const FIRST: Duration = Duration::from_millis(500);

/// The longest single wait, so that the return is noticed.
const LONGEST: Duration = Duration::from_secs(15);

/// What is left of a collection's patience.
#[derive(Debug)]
pub struct Patience {
    left: Mutex<Duration>,
    first: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self::new(TOTAL, FIRST)
    }
}

/// An error that may be about staging being away for a moment.
pub(crate) trait Temporary: std::fmt::Display {
    fn is_temporary(&self) -> bool;
}

impl Temporary for StagingError {
    fn is_temporary(&self) -> bool {
        Self::is_temporary(self)
    }
}

impl Temporary for super::CollectError {
    fn is_temporary(&self) -> bool {
        matches!(self, Self::Staging(error) if error.is_temporary())
    }
}

impl Patience {
    /// Waits `total` in all, `first` at first.
    pub fn new(total: Duration, first: Duration) -> Self {
        Self {
            left: Mutex::new(total),
            first,
        }
    }

    /// Tries again for as long as there is patience left and the error may go away.
    pub(crate) async fn insist<T, E, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: Temporary,
    {
        let mut wait = self.first;
        loop {
            let error = match attempt().await {
                Err(error) if error.is_temporary() => error,
                other => return other,
            };
            if !self.take(wait) {
                return Err(error);
            }
            tracing::warn!(%error, wait_ms = wait.as_millis(), "staging is asked again");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST);
        }
    }

    fn take(&self, wait: Duration) -> bool {
        let Ok(mut left) = self.left.lock() else {
            return false;
        };
        match left.checked_sub(wait) {
            Some(rest) => {
                *left = rest;
                true
            }
            None => false,
        }
    }
}
