//! What the client does against a registry that misbehaves on demand.

mod auth;
mod blobs;
mod budgets;
mod clouds;
mod conformance;
mod copies;
mod destinations;
mod local;
mod manifests;
mod matrix;
mod pieces;
mod profiles;
mod proxies;
mod publish;
mod real;
mod referrers;
mod rows;
mod servers;
mod sharing;
mod signed;
mod trace;
mod uploads;

use bytes::Bytes;

use crate::image::{Descriptor, Digest};

/// Bytes that no two offsets of which look alike.
fn content(size: usize) -> Bytes {
    (0..size)
        .map(|position| (position.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0])
        .collect()
}

fn describe(bytes: &[u8]) -> Descriptor {
    Descriptor::new("application/octet-stream", Digest::of(bytes), bytes.len() as u64)
}
