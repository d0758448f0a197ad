//! One 512-byte header block of a tar archive.
//!
//! Source: POSIX.1-1988 (ustar) and the GNU tar manual, "Basic Tar Format". The older v7 form, which has no
//! magic and so cannot be told from noise, is refused.

use super::ArchiveError;

/// Headers, bodies and the end marker come in these.
pub(super) const BLOCK: usize = 512;

/// What an entry is, by its type flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    SymbolicLink,
    Folder,
    /// Extended header of the next entry.
    Pax,
    /// Extended header of everything that follows.
    PaxGlobal,
    /// Name of the next entry.
    GnuLongName,
    /// Link target of the next entry.
    GnuLongLink,
}

/// A header, its checksum proven, its names not yet judged.
#[derive(Debug)]
pub(super) struct Header {
    pub kind: Kind,
    pub size: u64,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
}

impl Header {
    /// Reads a block that is not all zeros; `at` is its offset, for messages.
    pub(super) fn parse(block: &[u8; BLOCK], at: u64) -> Result<Self, ArchiveError> {
        let place = || format!("entry at byte {at}");
        let malformed = |why: &str| ArchiveError::malformed(place(), why);

        let claimed = octal(&block[148..156]).ok_or_else(|| malformed("the header has no checksum"))?;
        if claimed != checksum(block) {
            return Err(malformed("the header's checksum is wrong"));
        }
        let is_posix = match &block[257..265] {
            b"ustar\x0000" => true,
            b"ustar  \0" => false,
            _ => {
                return Err(ArchiveError::Entry {
                    member: place(),
                    kind: "a header of the form before ustar".into(),
                });
            }
        };
        for (field, what) in [
            (&block[100..108], "mode"),
            (&block[108..116], "owner"),
            (&block[116..124], "group"),
            (&block[136..148], "time"),
        ] {
            // Not used here, but a reader that uses it would stop where this one goes on.
            if field[0] & 0x80 == 0 && octal(field).is_none() {
                return Err(malformed(&format!("the header's {what} is no number")));
            }
        }
        let size = number(&block[124..136]).ok_or_else(|| malformed("the header's size is no size"))?;
        let mut name = text(&block[..100]).to_vec();
        let prefix = text(&block[345..500]);
        if is_posix && !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        Ok(Self {
            kind: kind(block[156]).map_err(|kind| ArchiveError::Entry {
                member: place(),
                kind,
            })?,
            size,
            name,
            link: text(&block[157..257]).to_vec(),
        })
    }
}

fn kind(flag: u8) -> Result<Kind, String> {
    Ok(match flag {
        b'0' | 0 => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::SymbolicLink,
        b'5' => Kind::Folder,
        b'x' => Kind::Pax,
        b'g' => Kind::PaxGlobal,
        b'L' => Kind::GnuLongName,
        b'K' => Kind::GnuLongLink,
        b'3' | b'4' => return Err("a device".into()),
        b'6' => return Err("a named pipe".into()),
        b'S' => return Err("a sparse file".into()),
        other => return Err(format!("an entry of type {:?}", char::from(other))),
    })
}

/// Up to the first NUL, as every reader takes these fields.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The sum of all bytes, the checksum's own counted as spaces.
fn checksum(block: &[u8; BLOCK]) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    sum(&block[..148]) + 8 * u64::from(b' ') + sum(&block[156..])
}

/// Octal digits between optional spaces and NULs; nothing at all is zero.
fn octal(field: &[u8]) -> Option<u64> {
    let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits
        .iter()
        .position(|byte| !(b'0'..=b'7').contains(byte))
        .unwrap_or(digits.len());
    if digits[end..].iter().any(|byte| !matches!(byte, b' ' | 0)) {
        return None;
    }
    Some(
        digits[..end]
            .iter()
            .fold(0, |value, digit| value * 8 + u64::from(digit - b'0')),
    )
}

/// Octal, or GNU's base-256 form of a positive number below 2^53. A field without any digit is zero to some
/// readers and an error to others, so it is no number.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 == 0 {
        return octal(field).filter(|_| field.iter().any(u8::is_ascii_digit));
    }
    if field[0] != 0x80 {
        return None;
    }
    let value = field[1..].iter().try_fold(0_u64, |value, byte| {
        value.checked_mul(256)?.checked_add(u64::from(*byte))
    })?;
    (value < 1 << 53).then_some(value)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain(b"0000644\0", Some(0o644))]
    #[case::spaces(b"   644 \0", Some(0o644))]
    #[case::unterminated(b"77777777", Some(0o7777_7777))]
    #[case::nothing(b"\0\0\0\0\0\0\0\0", Some(0))]
    #[case::no_digit(b"0000648\0", None)]
    #[case::minus(b"-000644\0", None)]
    #[case::after_end(b"644\x001\0\0\0", None)]
    fn octal_fields(#[case] field: &[u8], #[case] expected: Option<u64>) {
        assert_eq!(octal(field), expected);
    }

    #[rstest]
    #[case::positive(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0], Some(2 << 32))]
    #[case::negative(&[0xff; 12], None)]
    #[case::two_to_53(&[0x80, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0], None)]
    #[case::two_to_63(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0], None)]
    #[case::no_digit(&[0; 12], None)]
    #[case::more_than_64_bits(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None)]
    fn base_256_sizes(#[case] field: &[u8], #[case] expected: Option<u64>) {
        assert_eq!(number(field), expected);
    }
}
