//! The operator on a real API server with a real kubelet, real builder pods and real registries.
//!
//! Needs KUBECONFIG and the images of `make images`; without a cluster each test says that it is skipped.
//! `make test-cluster` provides both.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on says so by ending"
)]
#![allow(missing_docs, reason = "a test's name is its documentation")]

mod builds;
mod certificates;
mod deleted;
mod disturbances;
mod doors;
mod failures;
mod history;
mod interrupted;
mod operator;
mod own_registry;
mod platforms;
mod processes;
mod pushes;
mod recipes;
mod staging;
mod support;
mod turns;
