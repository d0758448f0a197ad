//! Content digests: parsed before they may touch a path, a URL or a map key.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

/// A content digest: `sha256:` and 64 lower-case hex digits, or `sha512:` and 128.
///
/// Source: OCI image specification, "Digests". Other registered algorithms are refused, because nothing
/// here could prove them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    text: String,
}

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a digest: expected sha256:<64 lower-case hex digits> or sha512:<128>")]
pub struct DigestError {
    text: String,
}

impl Digest {
    /// The sha256 digest of bytes that are in memory.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::sha256();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm's registered name, `sha256` or `sha512`.
    pub fn algorithm(&self) -> &str {
        self.text.split_once(':').map_or("", |(algorithm, _)| algorithm)
    }

    /// The lower-case hex digits after the colon.
    pub fn hex(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The whole text, `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first twelve hex digits, for people.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }

    /// A hasher of this digest's own algorithm, to prove bytes against it.
    pub fn hasher(&self) -> Hasher {
        if self.algorithm() == "sha512" {
            Hasher::sha512()
        } else {
            Hasher::sha256()
        }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let is_lower_hex = |hex: &str| {
            hex.bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let valid = match text.split_once(':') {
            Some(("sha256", hex)) => hex.len() == 64 && is_lower_hex(hex),
            Some(("sha512", hex)) => hex.len() == 128 && is_lower_hex(hex),
            _ => false,
        };
        if valid {
            Ok(Self {
                text: text.to_owned(),
            })
        } else {
            Err(DigestError {
                text: text.chars().take(160).collect(),
            })
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Hashes bytes as they pass by and ends in a [`Digest`].
#[derive(Clone, Debug)]
pub struct Hasher {
    state: State,
    length: u64,
}

#[derive(Clone, Debug)]
enum State {
    Sha256(Box<Sha256>),
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// The algorithm that everything made here is named by.
    pub fn sha256() -> Self {
        Self {
            state: State::Sha256(Box::default()),
            length: 0,
        }
    }

    /// Only for content that somebody else named by sha512.
    pub fn sha512() -> Self {
        Self {
            state: State::Sha512(Box::default()),
            length: 0,
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        match &mut self.state {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// Bytes taken so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Digest {
        let text = match self.state {
            State::Sha256(hasher) => format!("sha256:{}", hex(&hasher.finalize())),
            State::Sha512(hasher) => format!("sha512:{}", hex(&hasher.finalize())),
        };
        Digest { text }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_empty_input_has_its_well_known_digest() {
        assert_eq!(Digest::of(b"").as_str(), EMPTY);
        assert_eq!(Hasher::sha512().finish().hex().len(), 128);
    }

    #[rstest]
    #[case::upper_case("sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855")]
    #[case::bare_hex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")]
    #[case::short("sha256:e3b0")]
    #[case::unknown_algorithm("md5:d41d8cd98f00b204e9800998ecf8427e")]
    #[case::path("sha256:../../../../etc/passwd")]
    #[case::empty("")]
    fn anything_else_is_refused(#[case] text: &str) {
        assert!(text.parse::<Digest>().is_err());
    }
}
