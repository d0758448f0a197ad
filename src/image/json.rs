//! JSON that somebody else wrote, read strictly.
//!
//! Two readers that disagree on one document see two different images, so whatever readers are known to
//! disagree on is refused here: a key twice, bytes after the document, numbers that a double cannot hold.

use std::{cell::Cell, collections::HashSet, fmt};

use serde::{
    Deserialize,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};

/// The size of one document. Registries refuse manifests above 4 MiB.
pub const DOCUMENT_LIMIT: u64 = 4 * 1024 * 1024;

/// How deep arrays and objects nest. Image documents need seven.
const DEPTH_LIMIT: usize = 32;

/// Values in one document: each costs memory beyond its bytes.
const VALUE_LIMIT: usize = 100_000;

/// The largest integer that every reader of JSON keeps exactly, 2^53 - 1.
const INTEGER_LIMIT: u64 = (1 << 53) - 1;

/// Why a document is refused.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// It is not JSON, or it is JSON that readers disagree on.
    #[error("not strict JSON: {0}")]
    Invalid(serde_json::Error),
    /// It is larger than any image's.
    #[error("more than {limit} {what}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much is accepted.
        limit: u64,
    },
    /// It is good JSON of another shape.
    #[error("unexpected content: {0}")]
    Shape(serde_json::Error),
}

/// Reads one document.
///
/// # Errors
/// [`JsonError`], whose first applicable variant is returned.
pub fn parse<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, JsonError> {
    check(bytes)?;
    serde_json::from_slice(bytes).map_err(JsonError::Shape)
}

/// [`parse`] of a document whose size was bounded by whoever read it.
///
/// # Errors
/// As [`parse`].
pub fn parse_of_any_size<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, JsonError> {
    check_values(bytes)?;
    serde_json::from_slice(bytes).map_err(JsonError::Shape)
}

/// Looks at every value of a document once and keeps none.
///
/// # Errors
/// [`JsonError::Invalid`] and [`JsonError::TooLarge`].
pub fn check(bytes: &[u8]) -> Result<(), JsonError> {
    if bytes.len() as u64 > DOCUMENT_LIMIT {
        return Err(JsonError::TooLarge {
            what: "bytes",
            limit: DOCUMENT_LIMIT,
        });
    }
    check_values(bytes)
}

fn check_values(bytes: &[u8]) -> Result<(), JsonError> {
    let values = Cell::new(0);
    let mut document = serde_json::Deserializer::from_slice(bytes);
    let result = Value {
        depth: 0,
        is_size: false,
        values: &values,
    }
    .deserialize(&mut document)
    .and_then(|()| document.end());
    if values.get() > VALUE_LIMIT {
        return Err(JsonError::TooLarge {
            what: "values",
            limit: VALUE_LIMIT as u64,
        });
    }
    result.map_err(JsonError::Invalid)
}

/// One value, on its way through the checks.
#[derive(Clone, Copy)]
struct Value<'a> {
    depth: usize,
    /// Whether its key is `size`, which is never negative.
    is_size: bool,
    values: &'a Cell<usize>,
}

impl Value<'_> {
    fn inner<E: de::Error>(self, is_size: bool) -> Result<Self, E> {
        if self.depth == DEPTH_LIMIT {
            return Err(E::custom(format_args!("nested deeper than {DEPTH_LIMIT}")));
        }
        Ok(Self {
            depth: self.depth + 1,
            is_size,
            values: self.values,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.values.set(self.values.get() + 1);
        if self.values.get() > VALUE_LIMIT {
            return Err(de::Error::custom("too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<(), E> {
        if self.is_size {
            return Err(E::custom(format_args!("{number} is not a size")));
        }
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<(), E> {
        if number > INTEGER_LIMIT {
            return Err(E::custom(format_args!("{number} is not exact everywhere")));
        }
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<(), E> {
        if number < 0 && self.is_size {
            return Err(E::custom(format_args!("{number} is not a size")));
        }
        self.visit_u64(number.unsigned_abs())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = self.inner(false)?;
        while items.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        // Compared after unescaping: "\u0061" and "a" are one key.
        let mut keys = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            entries.next_value_seed(self.inner(key == "size")?)?;
            if let Some(twice) = keys.replace(key) {
                return Err(de::Error::custom(format_args!("key {twice:?} stands twice")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::key_twice(r#"{"a":1,"b":{"c":1,"c":2}}"#)]
    #[case::key_twice_escaped(r#"{"a":1,"\u0061":2}"#)]
    #[case::trailing(r"{} x")]
    #[case::two_documents(r"{}{}")]
    #[case::byte_order_mark("\u{feff}{}")]
    #[case::not_a_number(r#"{"a":NaN}"#)]
    #[case::overflow(r#"{"a":1e400}"#)]
    #[case::negative_size(r#"{"size":-1}"#)]
    #[case::huge_size(r#"{"size":9007199254740992}"#)]
    #[case::fractional_size(r#"{"size":1.5}"#)]
    #[case::empty("")]
    fn what_readers_disagree_on_is_refused(#[case] text: &str) {
        assert!(matches!(check(text.as_bytes()), Err(JsonError::Invalid(_))));
    }

    #[test]
    fn utf16_and_bad_utf8_are_refused() {
        let utf16: Vec<u8> = "{\"a\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(matches!(check(&utf16), Err(JsonError::Invalid(_))));
        assert!(matches!(check(b"{\"a\":\"\xff\"}"), Err(JsonError::Invalid(_))));
    }

    #[rstest]
    #[case::limit(32, true)]
    #[case::one_more(33, false)]
    #[case::a_thousand(1000, false)]
    fn depth_is_bounded(#[case] depth: usize, #[case] accepted: bool) {
        let text = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(check(text.as_bytes()).is_ok(), accepted);
    }

    #[test]
    fn size_and_number_of_values_are_bounded() {
        let long = format!("\"{}\"", "x".repeat(5 << 20));
        assert!(matches!(check(long.as_bytes()), Err(JsonError::TooLarge { .. })));
        let many = format!("[{}0]", "0,".repeat(100_000));
        assert!(matches!(check(many.as_bytes()), Err(JsonError::TooLarge { .. })));
    }

    #[test]
    fn unknown_fields_and_ordinary_numbers_pass() {
        #[derive(Deserialize)]
        struct Only {
            a: u8,
        }
        let only: Only = parse(br#"{"x":[null,true,-3,0.5],"a":7}"#).unwrap();
        assert_eq!(only.a, 7);
        assert!(matches!(parse::<Only>(br#"{"a":"7"}"#), Err(JsonError::Shape(_))));
    }
}
