//! The records of a PAX extended header: `<length> <key>=<value>\n`.
//!
//! Source: POSIX.1-2001, pax, "Extended Header". Only what changes an entry's name, link or size is kept.

use std::collections::BTreeSet;

use super::ArchiveError;

/// What an extended header says of the next entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
}

impl Pax {
    /// Reads a header's body; `at` is its offset, for messages.
    pub(super) fn parse(body: &[u8], at: u64) -> Result<Self, ArchiveError> {
        let mut pax = Self::default();
        let mut seen = BTreeSet::new();
        for record in records(body, at) {
            let (key, value) = record?;
            if !seen.insert(key) {
                return Err(ArchiveError::ambiguous(
                    place(at),
                    format!("{key:?} stands twice"),
                ));
            }
            match key {
                "path" => pax.path = Some(value.to_vec()),
                "linkpath" => pax.link = Some(value.to_vec()),
                "size" => pax.size = Some(size(value, at)?),
                "hdrcharset" if value != b"ISO-IR 10646 2000 UTF-8" => {
                    return Err(ArchiveError::Entry {
                        member: place(at),
                        kind: "a name that is not UTF-8".into(),
                    });
                }
                _ if key.starts_with("GNU.sparse.") => {
                    return Err(ArchiveError::Entry {
                        member: place(at),
                        kind: "a sparse file".into(),
                    });
                }
                _ => {}
            }
        }
        Ok(pax)
    }

    /// Reads a header for all that follows, which may carry a comment and nothing else: readers differ on
    /// whether they apply it.
    pub(super) fn check_global(body: &[u8], at: u64) -> Result<(), ArchiveError> {
        for record in records(body, at) {
            let (key, _) = record?;
            if key != "comment" {
                return Err(ArchiveError::ambiguous(
                    place(at),
                    format!("a global header sets {key:?}"),
                ));
            }
        }
        Ok(())
    }
}

fn place(at: u64) -> String {
    format!("extended header at byte {at}")
}

/// The records one by one, ending after the first error.
fn records(body: &[u8], at: u64) -> impl Iterator<Item = Result<(&str, &[u8]), ArchiveError>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some((key, value, after)) = record(rest) else {
            rest = &[];
            return Some(Err(ArchiveError::malformed(
                place(at),
                "a record's length and its text disagree",
            )));
        };
        rest = after;
        Some(Ok((key, value)))
    })
}

fn record(rest: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    // Twenty digits hold any length.
    let space = rest.iter().take(20).position(|byte| *byte == b' ')?;
    let digits = &rest[..space];
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let length: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let line = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = line.iter().position(|byte| *byte == b'=')?;
    let key = std::str::from_utf8(&line[..equals]).ok()?;
    if key.is_empty() || key.contains('\0') {
        return None;
    }
    Some((key, &line[equals + 1..], &rest[length..]))
}

fn size(value: &[u8], at: u64) -> Result<u64, ArchiveError> {
    let parsed = std::str::from_utf8(value)
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse::<u64>().ok())
        .filter(|size| *size < 1 << 53);
    parsed.ok_or_else(|| ArchiveError::malformed(place(at), "the size is no size"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::record::Reason;

    #[test]
    fn what_changes_the_entry_is_kept_and_the_rest_passes() {
        let body = b"19 path=long/name\n\n12 size=123\n21 SCHILY.xattr.a=\xff\0\n";
        // The first record holds a newline in its value: lengths decide, not lines.
        let pax = Pax::parse(body, 0).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"long/name\n"[..]));
        assert_eq!(pax.size, Some(123));
    }

    #[rstest]
    #[case::too_short(b"11 size=123\n")]
    #[case::too_long(b"13 size=123\n")]
    #[case::no_number(b"xx size=123\n")]
    #[case::no_newline(b"12 size=1234")]
    #[case::no_key(b"8 =1234\n")]
    #[case::no_equals(b"7 size\n")]
    #[case::zero(b"0 size=123\n")]
    #[case::negative_size(b"11 size=-1\n")]
    #[case::empty_size(b"8 size=\n")]
    #[case::trailing(b"12 size=123\n\0")]
    fn malformed_records_are_refused(#[case] body: &[u8]) {
        assert_eq!(
            Pax::parse(body, 0).unwrap_err().reason(),
            Reason::ArchiveMalformed
        );
    }

    #[rstest]
    #[case::size_twice(b"12 size=123\n12 size=123\n", Reason::ArchiveAmbiguous)]
    #[case::sparse(b"22 GNU.sparse.major=1\n", Reason::UnsupportedEntry)]
    #[case::charset(b"21 hdrcharset=BINARY\n", Reason::UnsupportedEntry)]
    fn records_that_readers_differ_on_are_refused(#[case] body: &[u8], #[case] reason: Reason) {
        assert_eq!(Pax::parse(body, 0).unwrap_err().reason(), reason);
    }

    #[test]
    fn a_global_header_is_a_comment_or_nothing() {
        assert!(Pax::check_global(b"13 comment=a\n", 0).is_ok());
        let error = Pax::check_global(b"12 size=123\n", 0).unwrap_err();
        assert_eq!(error.reason(), Reason::ArchiveAmbiguous);
    }
}
