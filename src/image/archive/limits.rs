//! How much of anything an archive may hold.

use super::ArchiveError;

/// Bounds on what is read. The defaults are several times what the largest known images need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the archive, decompressed when it is compressed as a whole.
    pub archive_bytes: u64,
    /// Members of the archive.
    pub members: u64,
    /// Bytes of all member names together: what the index keeps in memory.
    pub name_bytes: u64,
    /// Bytes of one JSON document; registries refuse manifests above 4 MiB.
    pub document_bytes: u64,
    /// Bytes of all JSON documents together.
    pub documents_bytes: u64,
    /// Indexes below `index.json`; `BuildKit` nests one.
    pub index_depth: usize,
    /// Entries of all indexes together.
    pub index_entries: u64,
    /// Layers of one image; the kernel mounts at most 500.
    pub layers: u64,
    /// Decompressed bytes of one layer.
    pub layer_bytes: u64,
    /// Decompressed bytes per compressed byte, after the first [`RATIO_FREE`].
    pub ratio: u64,
    /// Links from a name to its content.
    pub link_hops: usize,
    /// Names that stand twice with equal content: each is read twice to know that.
    pub duplicates: u64,
}

/// Decompressed bytes that may have any ratio: a small layer of zeros is harmless.
pub const RATIO_FREE: u64 = 10 << 20;

impl Default for Limits {
    fn default() -> Self {
        Self {
            archive_bytes: 64 << 30,
            members: 200_000,
            name_bytes: 16 << 20,
            document_bytes: 4 << 20,
            documents_bytes: 32 << 20,
            index_depth: 3,
            index_entries: 1024,
            layers: 512,
            layer_bytes: 32 << 30,
            ratio: 200,
            link_hops: 8,
            duplicates: 64,
        }
    }
}

impl Limits {
    /// Refuses more than `limit` of `what`.
    pub(crate) fn within(what: &'static str, found: u64, limit: u64) -> Result<(), ArchiveError> {
        if found > limit {
            return Err(ArchiveError::Limit { what, limit });
        }
        Ok(())
    }
}
