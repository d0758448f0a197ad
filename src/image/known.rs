//! Layers that somebody proved before and still has, as a file tells of them: JSON lines.
//!
//! ```text
//! {"diffID":"sha256:…","digest":"sha256:…","source":"","size":1234,"mediaType":"application/…tar+gzip"}
//! ```
//!
//! What the staging registry knows is not here but in `staging::KnownLayers`.

use std::{
    collections::HashMap,
    io::{self, BufRead, Read as _},
};

use serde::Deserialize;

use super::{
    Digest,
    json::{self, JsonError},
};

/// One line; digests, a repository and a media type fit many times.
const LINE_LIMIT: u64 = 16 * 1024;

/// Layers in one file, some 500 bytes of memory each.
const LAYERS_LIMIT: usize = 200_000;

/// A layer that is had elsewhere and proven.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownLayer {
    /// Digest of the uncompressed layer.
    #[serde(rename = "diffID")]
    pub diff_id: Digest,
    /// Digest of the layer as it is stored.
    pub digest: Digest,
    /// The repository that it came from; empty for a build's own.
    #[serde(default)]
    pub source: String,
    /// Its stored size in bytes.
    pub size: u64,
    /// How it is stored.
    pub media_type: String,
}

/// Known layers, by digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    by_digest: HashMap<Digest, KnownLayer>,
}

/// Why a file of known layers is not used.
#[derive(Debug, thiserror::Error)]
pub enum KnownError {
    /// A line is not strict JSON, or not of a layer.
    #[error("line {line}: {error}")]
    Line {
        /// Counted from one.
        line: usize,
        /// What is wrong with it.
        error: JsonError,
    },
    /// A line, or the file, is longer than any that is meant.
    #[error("line {line}: more than {limit} {what}")]
    TooLarge {
        /// Counted from one.
        line: usize,
        /// Too much of what.
        what: &'static str,
        /// How much is read.
        limit: u64,
    },
    /// Two lines contradict each other.
    #[error("line {line}: {digest} stands before with another diffID or size")]
    Contradiction {
        /// Counted from one.
        line: usize,
        /// The layer's digest.
        digest: Digest,
    },
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Known {
    /// Reads JSON lines; empty lines are skipped.
    ///
    /// # Errors
    /// [`KnownError`], with the number of the line.
    pub fn read(mut lines: impl BufRead) -> Result<Self, KnownError> {
        let mut known = Self::default();
        let mut text = Vec::new();
        for line in 1.. {
            text.clear();
            if (&mut lines).take(LINE_LIMIT).read_until(b'\n', &mut text)? == 0 {
                break;
            }
            if text.len() as u64 == LINE_LIMIT {
                return Err(too_large(line, "bytes in a line", LINE_LIMIT));
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            let layer = json::parse(&text).map_err(|error| KnownError::Line { line, error })?;
            known.add(line, layer)?;
        }
        Ok(known)
    }

    fn add(&mut self, line: usize, layer: KnownLayer) -> Result<(), KnownError> {
        let differs = |earlier: &KnownLayer| earlier.diff_id != layer.diff_id || earlier.size != layer.size;
        if self.by_digest.get(&layer.digest).is_some_and(differs) {
            return Err(KnownError::Contradiction {
                line,
                digest: layer.digest,
            });
        }
        self.by_digest.insert(layer.digest.clone(), layer);
        if self.by_digest.len() > LAYERS_LIMIT {
            return Err(too_large(line, "layers", LAYERS_LIMIT as u64));
        }
        Ok(())
    }

    /// The layer that is stored under a digest.
    pub fn by_digest(&self, digest: &Digest) -> Option<&KnownLayer> {
        self.by_digest.get(digest)
    }
}

fn too_large(line: usize, what: &'static str, limit: u64) -> KnownError {
    KnownError::TooLarge { line, what, limit }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn line(diff: &str, content: &str, size: u64) -> String {
        let (diff_id, digest) = (Digest::of(diff.as_bytes()), Digest::of(content.as_bytes()));
        format!(r#"{{"diffID":"{diff_id}","digest":"{digest}","source":"","size":{size},"mediaType":"x"}}"#)
    }

    #[test]
    fn lines_are_layers_by_their_digest() {
        let text = format!(
            "{}\n\n{}\n{}",
            line("a", "A", 1),
            line("b", "B", 2),
            line("a", "A", 1)
        );
        let known = Known::read(text.as_bytes()).unwrap();
        assert_eq!(
            known.by_digest(&Digest::of(b"B")).unwrap().diff_id,
            Digest::of(b"b")
        );
        assert_eq!(known.by_digest(&Digest::of(b"b")), None);
    }

    #[rstest]
    #[case::no_json("diffID", "line 1")]
    #[case::key_twice(r#"{"diffID":"a","diffID":"b"}"#, "line 1")]
    #[case::no_digest(&format!("{}\n{{}}", line("a", "A", 1)), "line 2")]
    #[case::contradiction(&format!("{}\n{}", line("a", "A", 1), line("b", "A", 1)), "line 2")]
    #[case::long(&"x".repeat(20_000), "line 1: more than")]
    fn a_bad_line_is_named(#[case] text: &str, #[case] expected: &str) {
        let error = Known::read(text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
