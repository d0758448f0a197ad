//! Metrics; every label comes from a closed list, never from an object's name.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::error::Class;
use crate::kubernetes::cluster::Cluster;

/// The reconcilers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs, reason = "the names are the kinds'")]
pub enum Controller {
    Recipe,
    Build,
    Push,
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// A status or an object was written.
    Acted,
    /// Nothing was to be done.
    Idle,
    /// An error ended it.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PassLabels {
    controller: Controller,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    controller: Controller,
    class: Class,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    controller: Controller,
    reason: &'static str,
}

/// All metrics of the controller.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    passes: Family<PassLabels, Counter>,
    errors: Family<ErrorLabels, Counter>,
    ends: Family<EndLabels, Counter>,
    build_seconds: Histogram,
    leading: Gauge,
}

impl Metrics {
    /// Metrics, with the API server's counters beside them.
    pub fn new(cluster: &Cluster) -> Self {
        let mut registry = Registry::with_prefix("slipway");
        let metrics = Self {
            registry: Arc::default(),
            passes: Family::default(),
            errors: Family::default(),
            ends: Family::default(),
            // A build without work takes 2 s, a large one an hour.
            build_seconds: Histogram::new([
                1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0,
            ]),
            leading: Gauge::default(),
        };
        registry.register(
            "reconciles",
            "Passes by controller and outcome",
            metrics.passes.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Failed passes by controller and class",
            metrics.errors.clone(),
        );
        registry.register(
            "finished",
            "Builds and pushes by the reason of their end",
            metrics.ends.clone(),
        );
        registry.register(
            "build_duration_seconds",
            "Seconds from the first attempt to the end",
            metrics.build_seconds.clone(),
        );
        registry.register("leading", "1 while this replica leads", metrics.leading.clone());
        registry.register("api_writes", "Writes to the API server", cluster.writes());
        *metrics.registry.lock().unwrap_or_else(PoisonError::into_inner) = registry;
        metrics
    }

    /// A pass has ended.
    pub fn passed(&self, controller: Controller, outcome: Outcome) {
        self.passes
            .get_or_create(&PassLabels { controller, outcome })
            .inc();
    }

    /// A pass has failed.
    pub fn failed(&self, controller: Controller, class: Class) {
        self.errors
            .get_or_create(&ErrorLabels { controller, class })
            .inc();
        self.passed(controller, Outcome::Failed);
    }

    /// A build or push has ended for this reason.
    pub fn ended(&self, controller: Controller, reason: &'static str, seconds: Option<f64>) {
        self.ends.get_or_create(&EndLabels { controller, reason }).inc();
        if let Some(seconds) = seconds {
            self.build_seconds.observe(seconds);
        }
    }

    /// This replica leads.
    pub fn lead(&self) {
        self.leading.set(1);
    }

    /// All metrics in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}
