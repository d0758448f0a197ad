//! Layers that somebody proved before and still has, as a file tells of them: a `digests.json`, or JSON lines.
//!
//! ```text
//! {"diffID":"sha256:…","digest":"sha256:…","source":"","size":1234,"mediaType":"application/…tar+gzip"}
//! ```
//!
//! What the staging registry knows is not here but in `staging::KnownLayers`.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufRead, Read as _},
};

use serde::Deserialize;

use super::{
    Digest, DigestError,
    json::{self, JsonError},
    media_type,
};

/// One line; digests, a repository and a media type fit many times.
const LINE_LIMIT: u64 = 16 * 1024;

/// Layers in one file, some 500 bytes of memory each.
const LAYERS_LIMIT: usize = 200_000;

/// A layer that is had elsewhere and proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownLayer {
    /// Digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Digest of the layer as it is stored.
    pub digest: Digest,
    /// The repository that it came from; empty for a build's own, and when nobody says.
    pub source: String,
    /// Its stored size in bytes, where the file says it.
    pub size: Option<u64>,
    /// How it is stored.
    pub media_type: String,
}

/// Known layers. One that is stored in several forms is known by its diff ID in the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    layers: Vec<KnownLayer>,
    by_digest: HashMap<Digest, usize>,
    by_diff_id: HashMap<Digest, usize>,
}

/// Why a file of known layers is not used.
#[derive(Debug, thiserror::Error)]
pub enum KnownError {
    /// It is not strict JSON of one of the two shapes.
    #[error("{place}: {error}")]
    Json {
        /// Where in the file.
        place: String,
        /// What is wrong there.
        error: JsonError,
    },
    /// Something in it is no digest.
    #[error("{place}: {error}")]
    Digest {
        /// Where in the file.
        place: String,
        /// What is wrong there.
        error: DigestError,
    },
    /// It says something impossible.
    #[error("{place}: {why}")]
    Entry {
        /// Where in the file.
        place: String,
        /// What is wrong there.
        why: String,
    },
    /// A line, or the file, is longer than any that is meant.
    #[error("{place}: more than {limit} {what}")]
    TooLarge {
        /// Where in the file.
        place: String,
        /// Too much of what.
        what: &'static str,
        /// How much is read.
        limit: u64,
    },
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An entry of `digests.json`, or a line without its diff ID.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    digest: String,
    #[serde(default)]
    source: Option<String>,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Line {
    #[serde(rename = "diffID")]
    diff_id: String,
    #[serde(flatten)]
    entry: Entry,
}

impl Known {
    /// Reads a `digests.json` (a list of objects, diff ID to entry), or JSON lines, of which empty ones are
    /// skipped. Digests are written with their algorithm, or as the bare hex that Launchpad writes; `source`,
    /// `size` and `mediaType` may be missing, and the latter is then gzip's.
    ///
    /// # Errors
    /// [`KnownError`], which names the entry or the line.
    pub fn read(mut file: impl BufRead) -> Result<Self, KnownError> {
        let mut number = 1;
        while let Some(&byte) = file.fill_buf()?.first() {
            match byte {
                b'[' => return Self::read_digests(file),
                b'\n' => number += 1,
                _ if byte.is_ascii_whitespace() => {}
                _ => break,
            }
            file.consume(1);
        }
        Self::read_lines(file, number)
    }

    fn read_digests(file: impl BufRead) -> Result<Self, KnownError> {
        let place = || "digests.json".to_owned();
        let mut text = Vec::new();
        file.take(json::DOCUMENT_LIMIT + 1).read_to_end(&mut text)?;
        let sections: Vec<BTreeMap<String, Entry>> =
            json::parse(&text).map_err(|error| KnownError::Json {
                place: place(),
                error,
            })?;
        let mut known = Self::default();
        for (diff_id, entry) in sections.into_iter().flatten() {
            known.add(&format!("entry {diff_id:.80}"), &diff_id, entry)?;
        }
        Ok(known)
    }

    fn read_lines(mut lines: impl BufRead, first: usize) -> Result<Self, KnownError> {
        let mut known = Self::default();
        let mut text = Vec::new();
        for number in first.. {
            let place = format!("line {number}");
            text.clear();
            if (&mut lines).take(LINE_LIMIT).read_until(b'\n', &mut text)? == 0 {
                break;
            }
            if text.len() as u64 == LINE_LIMIT {
                return Err(too_large(&place, "bytes in a line", LINE_LIMIT));
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            let line: Line = json::parse(&text).map_err(|error| KnownError::Json {
                place: place.clone(),
                error,
            })?;
            known.add(&place, &line.diff_id, line.entry)?;
        }
        Ok(known)
    }

    fn add(&mut self, place: &str, diff_id: &str, entry: Entry) -> Result<(), KnownError> {
        let refused = |why: String| KnownError::Entry {
            place: place.to_owned(),
            why,
        };
        let digest = |text: &str| {
            either_spelling(text).map_err(|error| KnownError::Digest {
                place: place.to_owned(),
                error,
            })
        };
        let layer = KnownLayer {
            diff_id: digest(diff_id)?,
            digest: digest(&entry.digest)?,
            source: entry.source.unwrap_or_default(),
            size: entry.size,
            media_type: entry
                .media_type
                .unwrap_or_else(|| media_type::OCI_LAYER_GZIP.to_owned()),
        };
        if !media_type::is_layer(&layer.media_type) {
            return Err(refused(format!(
                "{:?} is no layer's media type",
                layer.media_type
            )));
        }
        if layer.source.len() > 255 || !layer.source.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refused("the source is no repository's name".into()));
        }
        let differs = |earlier: &KnownLayer| {
            let sizes = earlier.size.zip(layer.size);
            earlier.diff_id != layer.diff_id || sizes.is_some_and(|(one, other)| one != other)
        };
        match self.by_digest(&layer.digest) {
            Some(earlier) if differs(earlier) => {
                return Err(refused(format!(
                    "{} stands before with another diffID or size",
                    layer.digest
                )));
            }
            // What says more counts.
            Some(earlier) if earlier.size.is_some() || layer.size.is_none() => return Ok(()),
            _ => {}
        }
        if self.layers.len() == LAYERS_LIMIT {
            return Err(too_large(place, "layers", LAYERS_LIMIT as u64));
        }
        self.insert(layer);
        Ok(())
    }

    fn insert(&mut self, layer: KnownLayer) {
        let position = self.layers.len();
        let earlier = self.by_digest.insert(layer.digest.clone(), position);
        let first = self.by_diff_id.entry(layer.diff_id.clone()).or_insert(position);
        if earlier == Some(*first) {
            *first = position;
        }
        self.layers.push(layer);
    }

    /// The layer that is stored under a digest.
    pub fn by_digest(&self, digest: &Digest) -> Option<&KnownLayer> {
        self.layers.get(*self.by_digest.get(digest)?)
    }

    /// The stored form of the layer that decompresses to a diff ID.
    pub fn by_diff_id(&self, diff_id: &Digest) -> Option<&KnownLayer> {
        self.layers.get(*self.by_diff_id.get(diff_id)?)
    }

    /// Every layer.
    pub fn iter(&self) -> impl Iterator<Item = &KnownLayer> {
        self.by_digest
            .values()
            .filter_map(|&position| self.layers.get(position))
    }
}

fn too_large(place: &str, what: &'static str, limit: u64) -> KnownError {
    KnownError::TooLarge {
        place: place.to_owned(),
        what,
        limit,
    }
}

/// A digest with its algorithm, or the bare hex digits that Launchpad writes.
fn either_spelling(text: &str) -> Result<Digest, DigestError> {
    if text.len() == 64 && !text.contains(':') {
        format!("sha256:{text}").parse()
    } else {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn hex(text: &str) -> String {
        Digest::of(text.as_bytes()).hex().to_owned()
    }

    fn line(diff: &str, content: &str, more: &str) -> String {
        format!(
            r#"{{"diffID":"sha256:{}","digest":"{}"{more}}}"#,
            hex(diff),
            hex(content)
        )
    }

    fn sized(diff: &str, content: &str, size: u64) -> String {
        line(diff, content, &format!(r#","size":{size}"#))
    }

    fn read(text: &str) -> Known {
        Known::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn both_shapes_and_both_spellings_say_the_same() {
        let (a, b) = (hex("a"), hex("b"));
        let lines =
            format!("{{\"diffID\":\"sha256:{a}\",\"digest\":\"{b}\",\"source\":\"r.io/x\",\"size\":7}}\n\n");
        let file = format!(
            "\n [{{\"sha256:{a}\":{{\"digest\":\"sha256:{b}\",\"source\":\"r.io/x\",\"size\":7,\"layer_id\":\"l\"}}}}]"
        );
        let known = read(&lines);
        assert_eq!(known, read(&file));
        let layer = known.by_digest(&Digest::of(b"b")).unwrap();
        assert_eq!(known.by_diff_id(&Digest::of(b"a")), Some(layer));
        assert_eq!((layer.size, &layer.source[..]), (Some(7), "r.io/x"));
        assert_eq!(layer.media_type, media_type::OCI_LAYER_GZIP);
        assert_eq!(known.by_digest(&Digest::of(b"a")), None);
    }

    #[test]
    fn the_same_twice_is_no_matter_and_what_says_more_counts() {
        let text = [line("a", "A", ""), sized("a", "A", 1), line("a", "A", "")].join("\n");
        let known = read(&text);
        assert_eq!(known.iter().count(), 1);
        let layer = known.by_diff_id(&Digest::of(b"a")).unwrap();
        assert_eq!(layer.size, Some(1));
        assert_eq!(known.by_digest(&Digest::of(b"A")), Some(layer));
    }

    #[test]
    fn of_two_forms_of_one_layer_the_first_is_its_own() {
        let known = read(&[sized("a", "A", 1), sized("a", "B", 2)].join("\n"));
        let digest = |layer: Option<&KnownLayer>| layer.unwrap().digest.clone();
        assert_eq!(digest(known.by_diff_id(&Digest::of(b"a"))), Digest::of(b"A"));
        assert_eq!(digest(known.by_digest(&Digest::of(b"B"))), Digest::of(b"B"));
    }

    #[rstest]
    #[case::no_json("diffID", "line 1: not strict JSON")]
    #[case::after_empty_lines("\n\ndiffID", "line 3")]
    #[case::key_twice(r#"{"diffID":"a","diffID":"b","digest":"c"}"#, "line 1: not strict JSON")]
    #[case::no_digest(&format!("{}\n{{}}", line("a", "A", "")), "line 2: unexpected content")]
    #[case::bad_digest(r#"{"diffID":"sha256:00","digest":"x"}"#, "line 1: ")]
    #[case::two_diff_ids(&[sized("a", "A", 1), sized("b", "A", 1)].join("\n"), "line 2: sha256:")]
    #[case::two_sizes(&[sized("a", "A", 1), sized("a", "A", 2)].join("\n"), "line 2: sha256:")]
    #[case::no_layer(&line("a", "A", r#","mediaType":"text/html""#), "line 1: \"text/html\"")]
    #[case::no_repository(&line("a", "A", r#","source":"a b""#), "line 1: the source")]
    #[case::long(&"x".repeat(20_000), "line 1: more than")]
    #[case::list_of_something("[1]", "digests.json: unexpected content")]
    #[case::entry(r#"[{"x":{"digest":"y"}}]"#, "entry x: ")]
    fn what_is_wrong_is_named_with_its_place(#[case] text: &str, #[case] expected: &str) {
        let error = Known::read(text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
