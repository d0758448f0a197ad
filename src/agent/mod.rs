//! What runs inside pods: `fetch`, `gate` (in front of the strategy's command), `collect` and `push`.
//!
//! Each takes one plan, a JSON document in `SLIPWAY_PLAN`, and leaves one report in the container's
//! termination message; `identity` says the same to the operator at once. Nothing here talks to the API server.

mod certificates;
pub mod collect;
mod docker_config;
pub mod fetch;
pub mod gate;
pub mod identity;
pub mod plan;
pub mod push;
pub mod report;
pub mod workspace;
