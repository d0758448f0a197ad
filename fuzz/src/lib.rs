//! The two rooms that read strangers' bytes, compiled by themselves: to instrument the whole package, with its
//! clients of clusters and registries, takes minutes and finds nothing more.

#[path = "../../src/image/mod.rs"]
pub mod image;
#[path = "../../src/record/mod.rs"]
pub mod record;
