//! Slipway turns recipes into container images and gets them, provably intact, into registries.
//!
//! ```text
//! image, registry, record   libraries: no Kubernetes, usable from a command line
//! staging                   what the staging registry already has, and what is kept there
//! collect                   from an archive to proven layers, in staging or in a folder
//! agent                     what runs inside pods: fetch, gate, collect, push
//! api                       the custom resources
//! kubernetes, controller    the operator: observe → decide (pure) → build (pure) → apply → status
//! cli                       thin: parse, dispatch, print
//! ```

pub mod agent;
pub mod api;
pub mod cli;
pub mod collect;
pub mod controller;
pub mod image;
pub mod kubernetes;
pub mod record;
pub mod registry;
pub mod staging;
#[cfg(test)]
mod testing;
