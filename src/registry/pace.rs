//! How long to wait: between attempts, and while a registry wants to be left alone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, header::RETRY_AFTER};
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};

use super::reference::normal_origin;

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

/// What may be asked of an origin.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Budget {
    /// Requests, those for tokens elsewhere not counted.
    pub requests_per_second: Option<f64>,
    /// Bytes that are sent in bodies.
    pub bytes_per_second: Option<f64>,
}

/// Which origins want to be left alone, and until when; and what of the budgets is spent.
#[derive(Debug, Default)]
pub(super) struct Pace {
    resting: Mutex<HashMap<String, Instant>>,
    /// By origin in its one spelling.
    spent: HashMap<String, Arc<Spent>>,
}

/// What is spent of a budget.
#[derive(Debug)]
pub(super) struct Spent {
    requests: Option<Rate>,
    bytes: Option<Rate>,
}

impl Spent {
    fn of(budget: &Budget) -> Self {
        Self {
            requests: budget.requests_per_second.map(Rate::new),
            bytes: budget.bytes_per_second.map(Rate::new),
        }
    }

    /// Waits until these may be sent, or more may be read.
    pub(super) async fn bytes(&self, bytes: usize) {
        if let Some(rate) = &self.bytes {
            rate.spend(bytes).await;
        }
    }
}

/// A rate that is kept on average; what was not used in the last second may be used at once.
#[derive(Debug)]
struct Rate {
    /// Seconds that one unit takes.
    each: f64,
    /// When all that was spent is paid.
    paid: Mutex<Instant>,
}

impl Rate {
    const SAVED: Duration = Duration::from_secs(1);

    fn new(per_second: f64) -> Self {
        let now = Instant::now();
        Self {
            each: 1.0 / per_second,
            paid: Mutex::new(now.checked_sub(Self::SAVED).unwrap_or(now)),
        }
    }

    async fn spend(&self, units: usize) {
        let until = self.reserve(units);
        sleep_until(until).await;
    }

    /// Takes the units and says when they may be used; whoever asks next comes after them.
    fn reserve(&self, units: usize) -> Instant {
        let now = Instant::now();
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = now.checked_sub(Self::SAVED).unwrap_or(now);
        *paid = (*paid).max(oldest) + Duration::from_secs_f64(f64::from(units) * self.each);
        *paid
    }
}

impl Pace {
    pub(super) fn new(budgets: &[(String, Budget)]) -> Self {
        let spent = budgets
            .iter()
            .map(|(host, budget)| (normal_origin(host), Arc::new(Spent::of(budget))));
        Self {
            spent: spent.collect(),
            ..Self::default()
        }
    }

    /// What is spent of an origin's budget, where it has one.
    pub(super) fn of(&self, origin: &str) -> Option<Arc<Spent>> {
        let host = origin.split_once("://").map_or(origin, |(_, host)| host);
        self.spent.get(&normal_origin(host)).cloned()
    }

    /// Waits until another request may be made, one with this many bytes.
    pub(super) async fn request(&self, origin: &str, bytes: usize) {
        if let Some(spent) = self.of(origin) {
            // On the heap, as every future of a push holds one of these.
            Box::pin(async move {
                if let Some(rate) = &spent.requests {
                    rate.spend(1).await;
                }
                spent.bytes(bytes).await;
            })
            .await;
        }
    }

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
    use futures_util::{StreamExt as _, stream::FuturesUnordered};
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
    async fn a_budget_is_kept_on_average_and_concerns_its_origin_only() {
        let budget = Budget {
            requests_per_second: Some(10.0),
            bytes_per_second: Some(1000.0),
        };
        let pace = Pace::new(&[("A:443".into(), budget)]);
        let start = Instant::now();
        let mut requests = FuturesUnordered::new();
        for _ in 0..40 {
            requests.push(pace.request("https://a", 50));
        }
        while requests.next().await.is_some() {}
        // Those of one second at once: 10 requests, or 1000 bytes.
        assert_eq!(start.elapsed().as_millis() / 100, 30);
        pace.of("https://a").unwrap().bytes(2000).await;
        assert_eq!(start.elapsed().as_millis() / 100, 40);
        let start = Instant::now();
        pace.request("https://b", 1 << 30).await;
        assert!(start.elapsed().is_zero());
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
