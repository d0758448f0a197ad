//! The operator on a real API server with a real kubelet, real builder pods and real registries.
//!
//! Needs KUBECONFIG and the images of `make images`; without a cluster each test says that it is skipped.
//! `make test-cluster` provides both.

mod builds;
mod disturbances;
mod failures;
mod operator;
mod pushes;
mod support;
