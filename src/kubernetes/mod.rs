//! Kubernetes mechanics that no kind owns: calls with a time limit, server-side apply, own writes, the
//! leader's lease, watches, pods reduced to a few words and their proven identity.
//!
//! Nothing here knows what a build is.

pub mod cluster;
pub mod lease;
pub mod own_writes;
pub mod pod;
pub mod pod_identity;
pub mod watches;
