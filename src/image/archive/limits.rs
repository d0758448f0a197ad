//! How much of anything an archive may hold.

use std::{
    io,
    time::{Duration, Instant},
};

use super::ArchiveError;
use crate::image::compress::DecodeError;

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
    /// Seconds from opening the archive to its last byte.
    pub seconds: u64,
    /// Whether layers that are to be had elsewhere only are accepted, by their description.
    pub foreign_layers: bool,
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
            seconds: 6 * 60 * 60,
            foreign_layers: false,
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

/// Bounds that can be set by name, each with what it bounds.
pub const LIMIT_NAMES: [(&str, &str); 13] = [
    (
        "archive-bytes",
        "the archive, decompressed when it is compressed as a whole",
    ),
    ("members", "members of the archive"),
    ("name-bytes", "all names of members together"),
    ("document-bytes", "one JSON document"),
    ("documents-bytes", "all JSON documents together"),
    ("index-depth", "indexes in each other"),
    ("index-entries", "entries of all indexes together"),
    ("layers", "layers of one image"),
    ("layer-bytes", "one layer, decompressed"),
    ("ratio", "decompressed bytes for each compressed one"),
    ("link-hops", "links from a name to its content"),
    ("duplicates", "names that stand twice with equal content"),
    ("seconds", "seconds until the last byte is read"),
];

impl Limits {
    /// The bound of a name of [`LIMIT_NAMES`].
    pub fn get(&self, name: &str) -> Option<u64> {
        // A copy, so that one list serves both ways.
        let mut copy = *self;
        copy.place(name).map(|place| match place {
            Place::Wide(value) => *value,
            Place::Narrow(value) => *value as u64,
        })
    }

    /// Sets the bound of a name of [`LIMIT_NAMES`]; says whether there is one.
    pub fn set(&mut self, name: &str, value: u64) -> bool {
        match self.place(name) {
            Some(Place::Wide(place)) => *place = value,
            Some(Place::Narrow(place)) => *place = usize::try_from(value).unwrap_or(usize::MAX),
            None => return false,
        }
        true
    }

    fn place(&mut self, name: &str) -> Option<Place<'_>> {
        Some(match name {
            "archive-bytes" => Place::Wide(&mut self.archive_bytes),
            "members" => Place::Wide(&mut self.members),
            "name-bytes" => Place::Wide(&mut self.name_bytes),
            "document-bytes" => Place::Wide(&mut self.document_bytes),
            "documents-bytes" => Place::Wide(&mut self.documents_bytes),
            "index-depth" => Place::Narrow(&mut self.index_depth),
            "index-entries" => Place::Wide(&mut self.index_entries),
            "layers" => Place::Wide(&mut self.layers),
            "layer-bytes" => Place::Wide(&mut self.layer_bytes),
            "ratio" => Place::Wide(&mut self.ratio),
            "link-hops" => Place::Narrow(&mut self.link_hops),
            "duplicates" => Place::Wide(&mut self.duplicates),
            "seconds" => Place::Wide(&mut self.seconds),
            _ => return None,
        })
    }

    /// When the time is up of an archive that is opened now.
    pub(super) fn deadline(&self) -> Deadline {
        Deadline {
            at: Instant::now().checked_add(Duration::from_secs(self.seconds)),
            seconds: self.seconds,
        }
    }
}

enum Place<'a> {
    Wide(&'a mut u64),
    Narrow(&'a mut usize),
}

/// When an archive has to have been read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    /// `None` for a time that no clock can tell.
    at: Option<Instant>,
    seconds: u64,
}

impl Deadline {
    /// Refuses to go on after it.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.at.is_some_and(|at| Instant::now() > at) {
            return Err(DecodeError::Limit {
                what: "seconds of reading",
                limit: self.seconds,
            }
            .into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_has_a_name_that_sets_it_and_no_other() {
        let default = Limits::default();
        for (name, _) in LIMIT_NAMES {
            let mut limits = default;
            assert!(limits.set(name, 7), "{name}");
            for (other, _) in LIMIT_NAMES {
                let expected = if other == name {
                    Some(7)
                } else {
                    default.get(other)
                };
                assert_eq!(limits.get(other), expected, "{other} after {name}");
            }
        }
        assert!(!Limits::default().set("nothing", 7));
    }
}
