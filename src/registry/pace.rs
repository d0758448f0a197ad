//! How long to wait: between attempts, and while a registry wants to be left alone.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, header::RETRY_AFTER};
use jiff::Timestamp;
use tokio::time::Instant;

/// How a failed request is repeated before the failure is reported. Long waits are the caller's: a pod that
/// sleeps costs its memory, a queue entry costs nothing.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// How often a request is sent at most.
    pub attempts: u32,
    /// The wait after the first failure; it doubles, and each is shortened by up to half at random, so that
    /// many clients do not come back together.
    pub first: Duration,
    /// The longest `Retry-After` that is waited for here.
    pub patience: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            attempts: 4,
            // 0.25 + 0.5 + 1 s at most: a restarting proxy is bridged, an outage is the caller's matter.
            first: Duration::from_millis(250),
            patience: Duration::from_secs(5),
        }
    }
}

impl Backoff {
    /// The wait after the `failures`th failure in a row, counted from one.
    pub(super) fn delay(&self, failures: u32) -> Duration {
        let longest = self.first.saturating_mul(1 << failures.saturating_sub(1).min(6));
        longest.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// Which origins want to be left alone, and until when.
#[derive(Debug, Default)]
pub(super) struct Pace {
    resting: Mutex<HashMap<String, Instant>>,
}

impl Pace {
    /// Remembers a `Retry-After`.
    pub(super) fn rest(&self, origin: &str, time: Duration) {
        let until = Instant::now() + time;
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = resting.entry(origin.to_owned()).or_insert(until);
        *entry = until.max(*entry);
    }

    /// How long the origin still wants to be left alone.
    pub(super) fn remaining(&self, origin: &str) -> Option<Duration> {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        let until = *resting.get(origin)?;
        let remaining = until.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            resting.remove(origin);
            return None;
        }
        Some(remaining)
    }
}

/// `Retry-After` in either of its forms, at most a day.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    const DAY: u64 = 24 * 60 * 60;
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = if let Ok(seconds) = text.parse::<u64>() {
        seconds
    } else {
        let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
        u64::try_from(at.as_second() - now.as_second()).unwrap_or(0)
    };
    Some(Duration::from_secs(seconds.min(DAY)))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::seconds("120", Some(120))]
    #[case::date("Sun, 06 Nov 1994 08:50:37 GMT", Some(60))]
    #[case::past("Sun, 06 Nov 1994 08:00:00 GMT", Some(0))]
    #[case::for_ever("99999999999", Some(86_400))]
    #[case::nonsense("soon", None)]
    #[case::negative("-5", None)]
    fn retry_after_is_seconds_or_a_date(#[case] text: &str, #[case] expected: Option<u64>) {
        let now = "1994-11-06T08:49:37Z".parse().unwrap();
        let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
        assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs));
    }

    #[test]
    fn waits_double_and_stay_within_their_bounds() {
        let backoff = Backoff::default();
        for failures in 1..4 {
            let longest = backoff.first * (1 << (failures - 1));
            let delay = backoff.delay(failures);
            assert!(delay >= longest / 2 && delay <= longest);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_rests_for_as_long_as_it_said_and_others_do_not() {
        let pace = Pace::default();
        pace.rest("https://a", Duration::from_secs(10));
        pace.rest("https://a", Duration::from_secs(2));
        assert_eq!(pace.remaining("https://a"), Some(Duration::from_secs(10)));
        assert_eq!(pace.remaining("https://b"), None);
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(pace.remaining("https://a"), None);
    }
}
