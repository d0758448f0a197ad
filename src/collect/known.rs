//! Layers that somebody vouches for, from a file: where they are stored is the store's own business.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::image::{
    Digest,
    json::{self, JsonError},
    media_type,
};

/// A layer of which is said that it was proven and stored before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenLayer {
    /// Digest of the layer as it is stored.
    pub digest: Digest,
    /// Its stored size in bytes, where the file says it.
    pub size: Option<u64>,
    /// How it is stored.
    pub media_type: String,
    /// The repository that it came from; empty when nobody says.
    pub source: String,
}

/// Given layers by diff ID.
pub type GivenLayers = BTreeMap<Digest, GivenLayer>;

/// Why a file of known layers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GivenLayersError {
    /// It is not JSON of one of the two shapes.
    #[error("{place}: {error}")]
    Json {
        /// Where in the file.
        place: String,
        /// What is wrong there.
        error: JsonError,
    },
    /// It says something impossible.
    #[error("{place}: {why}")]
    Entry {
        /// Where in the file.
        place: String,
        /// What is wrong there.
        why: String,
    },
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

/// Reads a `digests.json` (a list of objects, diff ID to entry), or lines of
/// `{"diffID", "digest", "source", "size", "mediaType"}`. Digests are written with or without `sha256:`.
///
/// # Errors
/// [`GivenLayersError`], which names the entry or the line.
pub fn parse(text: &[u8]) -> Result<GivenLayers, GivenLayersError> {
    let mut layers = GivenLayers::new();
    if text.trim_ascii_start().first() == Some(&b'[') {
        let sections: Vec<BTreeMap<String, Entry>> =
            json::parse(text).map_err(|error| GivenLayersError::Json {
                place: "digests.json".into(),
                error,
            })?;
        for (diff_id, entry) in sections.into_iter().flatten() {
            add(&mut layers, &format!("entry {diff_id:.80}"), &diff_id, entry)?;
        }
        return Ok(layers);
    }
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let place = format!("line {number}");
        let line: Line = json::parse(line).map_err(|error| GivenLayersError::Json {
            place: place.clone(),
            error,
        })?;
        add(&mut layers, &place, &line.diff_id, line.entry)?;
    }
    Ok(layers)
}

fn add(layers: &mut GivenLayers, place: &str, diff_id: &str, entry: Entry) -> Result<(), GivenLayersError> {
    let refused = |why: String| GivenLayersError::Entry {
        place: place.to_owned(),
        why,
    };
    let media_type = entry
        .media_type
        .unwrap_or_else(|| media_type::OCI_LAYER_GZIP.to_owned());
    if !media_type::is_layer(&media_type) {
        return Err(refused(format!("{media_type:?} is no layer's media type")));
    }
    let source = entry.source.unwrap_or_default();
    if source.len() > 255 || !source.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(refused("the source is no repository's name".into()));
    }
    let layer = GivenLayer {
        digest: either_spelling(&entry.digest).map_err(|error| refused(error.to_string()))?,
        size: entry.size,
        media_type,
        source,
    };
    let diff_id = either_spelling(diff_id).map_err(|error| refused(error.to_string()))?;
    match layers.insert(diff_id, layer.clone()) {
        Some(earlier) if earlier.digest != layer.digest => Err(refused(format!(
            "the layer is {} here and {} before; name it once",
            layer.digest, earlier.digest
        ))),
        _ => Ok(()),
    }
}

/// A digest with its algorithm, or the bare hex digits that Launchpad writes.
fn either_spelling(text: &str) -> Result<Digest, crate::image::DigestError> {
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

    #[test]
    fn both_shapes_and_both_spellings_say_the_same() {
        let (a, b) = (hex("a"), hex("b"));
        let lines =
            format!("{{\"diffID\":\"sha256:{a}\",\"digest\":\"{b}\",\"source\":\"r.io/x\",\"size\":7}}\n\n");
        let file = format!(
            "[{{\"sha256:{a}\":{{\"digest\":\"sha256:{b}\",\"source\":\"r.io/x\",\"size\":7,\"layer_id\":\"l\"}}}}]"
        );
        let given = parse(lines.as_bytes()).unwrap();
        assert_eq!(given, parse(file.as_bytes()).unwrap());
        let layer = &given[&Digest::of(b"a")];
        assert_eq!((&layer.digest, layer.size), (&Digest::of(b"b"), Some(7)));
        assert_eq!(layer.media_type, media_type::OCI_LAYER_GZIP);
    }

    #[rstest]
    #[case::no_digest(r#"{"diffID":"sha256:00","digest":"x"}"#, "line 1")]
    #[case::twice_with_another(&format!("{0}\n{1}", line("a", "b"), line("a", "c")), "line 2")]
    #[case::twice_in_one_object(r#"{"diffID":"a","diffID":"b","digest":"c"}"#, "line 1")]
    #[case::no_layer(&line("a", "b").replace('}', r#","mediaType":"text/html"}"#), "line 1")]
    #[case::no_repository(&line("a", "b").replace('}', r#","source":"a b"}"#), "line 1")]
    fn anything_else_is_refused_with_its_place(#[case] text: &str, #[case] place: &str) {
        let error = parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(place), "{error}");
    }

    #[test]
    fn the_same_twice_is_no_matter() {
        let text = format!("{0}\n{0}", line("a", "b"));
        assert_eq!(parse(text.as_bytes()).unwrap().len(), 1);
    }

    fn line(diff_id: &str, digest: &str) -> String {
        format!(
            "{{\"diffID\":\"sha256:{}\",\"digest\":\"{}\"}}",
            hex(diff_id),
            hex(digest)
        )
    }
}
