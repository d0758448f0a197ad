//! What the client does against a registry that misbehaves on demand.

mod auth;
mod blobs;
mod clouds;
mod conformance;
mod copies;
mod destinations;
mod local;
mod manifests;
mod pieces;
mod profiles;
mod publish;
mod real;
mod referrers;
mod rows;
mod servers;
mod sharing;
mod signed;
mod trace;
mod uploads;

use std::path::PathBuf;

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

/// A program that `hack/cluster/build-tools` built, else one on the `PATH`.
fn tool(name: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("SLIPWAY_CACHE")
        .or_else(|| {
            std::env::var_os("XDG_CACHE_HOME").map(|cache| PathBuf::from(cache).join("slipway").into())
        })
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/slipway").into()))?;
    let built = std::fs::read_dir(PathBuf::from(cache).join("tools"))
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        // Folders that are not whole yet start with a dot.
        .filter(|folder| !folder.file_name().to_string_lossy().starts_with('.'))
        .map(|folder| folder.path().join(name));
    let path = std::env::var_os("PATH")?;
    let installed = std::env::split_paths(&path).map(|folder| folder.join(name));
    built.chain(installed).find(|path| path.is_file())
}
