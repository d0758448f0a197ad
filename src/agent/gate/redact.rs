//! Takes secrets out of a stream of bytes, wherever the stream happens to be cut.

use std::fmt::Write as _;

use base64::Engine as _;

/// What stands where a secret stood.
const MASK: &[u8] = b"***";

/// Shorter values are left: to mask every `no` or `123` of a log hides nothing and spoils all of it.
const SHORTEST: usize = 4;

/// A line of a secret with several, a private key for example, is a secret of its own from this length.
const SHORTEST_LINE: usize = 8;

/// A host with user information is shorter than this, so no more is held back to see whether it is one.
const LONGEST_AUTHORITY: usize = 1024;

/// Replaces secrets and the user information of URLs.
///
/// A secret is found as it is, base64 encoded on its own, and percent encoded; not when a tool encodes it
/// together with something else.
#[derive(Debug)]
pub struct Redactor {
    /// Longest first, so that a secret within a secret does not leave the rest.
    secrets: Vec<Vec<u8>>,
    /// Whether some secret begins with a byte.
    begins: [bool; 256],
    /// The end of what was taken, as long as it may be the beginning of something to replace.
    held: Vec<u8>,
}

/// What is at one place of the stream.
enum Found {
    /// Nothing to replace.
    Plain,
    /// So many bytes to replace with a mask.
    Secret(usize),
    /// `://`, then so many bytes to replace with a mask.
    UserInfo(usize),
    /// More bytes are needed to tell.
    Undecided,
}

impl Redactor {
    /// A redactor for these values.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut secrets: Vec<Vec<u8>> = values.into_iter().flat_map(forms).collect();
        secrets.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        secrets.dedup();
        let mut begins = [false; 256];
        for secret in &secrets {
            begins[usize::from(secret[0])] = true;
        }
        Self {
            secrets,
            begins,
            held: Vec::new(),
        }
    }

    /// Takes the next bytes and gives back what can be shown already.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        self.advance(false)
    }

    /// Gives back the rest.
    pub fn finish(&mut self) -> Vec<u8> {
        self.advance(true)
    }

    fn advance(&mut self, at_end: bool) -> Vec<u8> {
        let bytes = std::mem::take(&mut self.held);
        let mut shown = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            match self.look(&bytes[at..], at_end) {
                Found::Plain => {
                    shown.push(bytes[at]);
                    at += 1;
                }
                Found::Secret(length) => {
                    shown.extend_from_slice(MASK);
                    at += length;
                }
                Found::UserInfo(length) => {
                    shown.extend_from_slice(b"://");
                    shown.extend_from_slice(MASK);
                    at += 3 + length;
                }
                Found::Undecided => {
                    self.held = bytes[at..].to_vec();
                    break;
                }
            }
        }
        shown
    }

    fn look(&self, rest: &[u8], at_end: bool) -> Found {
        if self.begins[usize::from(rest[0])] {
            for secret in &self.secrets {
                if rest.starts_with(secret) {
                    return Found::Secret(secret.len());
                }
                if !at_end && secret.starts_with(rest) {
                    return Found::Undecided;
                }
            }
        }
        if rest[0] == b':' {
            return look_for_user_info(rest, at_end);
        }
        Found::Plain
    }
}

fn look_for_user_info(rest: &[u8], at_end: bool) -> Found {
    let Some(authority) = rest.strip_prefix(b"://") else {
        return if !at_end && b"://".starts_with(rest) {
            Found::Undecided
        } else {
            Found::Plain
        };
    };
    let end = authority.iter().take(LONGEST_AUTHORITY).position(|b| {
        b.is_ascii_whitespace()
            || b.is_ascii_control()
            || matches!(b, b'/' | b'?' | b'#' | b'"' | b'\'' | b'<' | b'>')
    });
    if end.is_none() && authority.len() < LONGEST_AUTHORITY && !at_end {
        return Found::Undecided;
    }
    let authority = &authority[..end.unwrap_or_else(|| authority.len().min(LONGEST_AUTHORITY))];
    match authority.iter().rposition(|b| *b == b'@') {
        Some(length) => Found::UserInfo(length),
        None => Found::Plain,
    }
}

/// How a value may appear.
fn forms(value: &[u8]) -> Vec<Vec<u8>> {
    let trimmed = value.trim_ascii();
    let mut forms = vec![value.to_vec(), trimmed.to_vec()];
    forms.extend(
        trimmed
            .split(|b| *b == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|line| line.len() >= SHORTEST_LINE)
            .map(<[u8]>::to_vec),
    );
    forms.push(
        base64::engine::general_purpose::STANDARD
            .encode(trimmed)
            .into_bytes(),
    );
    forms.push(percent_encoded(trimmed).into_bytes());
    forms.retain(|form| form.len() >= SHORTEST);
    if trimmed.len() < SHORTEST {
        forms.clear();
    }
    forms
}

/// Every byte that could end a part of a URL as `%` and two digits.
pub fn percent_encoded(value: &[u8]) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const SECRETS: [&[u8]; 4] = [b"hunter2hunter2", b"hunter2", b"p@ss/word", b"no"];

    fn redacted(pieces: &[&[u8]]) -> String {
        let mut redactor = Redactor::new(SECRETS);
        let mut shown: Vec<u8> = pieces.iter().flat_map(|piece| redactor.push(piece)).collect();
        shown.extend(redactor.finish());
        String::from_utf8(shown).unwrap()
    }

    #[rstest]
    #[case::plain("nothing to see, no", "nothing to see, no")]
    #[case::secret("pw=hunter2!", "pw=***!")]
    #[case::the_longer_of_two("hunter2hunter2", "***")]
    #[case::twice("hunter2 hunter2\n", "*** ***\n")]
    #[case::at_the_end_only_begun("hunter", "hunter")]
    #[case::percent_encoded("q=p%40ss%2Fword", "q=***")]
    #[case::base64("aHVudGVyMg==", "***")]
    #[case::user_info("from https://me:tok@example.org/x", "from https://***@example.org/x")]
    #[case::user_info_at_the_end("https://tok@host", "https://***@host")]
    #[case::no_user_info("https://example.org/@scope/x", "https://example.org/@scope/x")]
    fn what_is_shown(#[case] input: &str, #[case] shown: &str) {
        assert_eq!(redacted(&[input.as_bytes()]), shown);
        let bytes: Vec<&[u8]> = input.as_bytes().chunks(1).collect();
        assert_eq!(redacted(&bytes), shown, "byte by byte");
    }

    #[test]
    fn a_line_without_anything_suspicious_is_shown_at_once() {
        assert_eq!(Redactor::new(SECRETS).push(b"Step 1/3 "), b"Step 1/3 ");
    }

    proptest! {
        #[test]
        fn no_cut_lets_a_secret_through(before in "[hu:/ n]{0,9}", after in "[a-z:/@ 2]{0,9}", cut in 0usize..40) {
            let text = format!("{before}hunter2{after}");
            let cut = cut.min(text.len());
            let shown = redacted(&[&text.as_bytes()[..cut], &text.as_bytes()[cut..]]);
            prop_assert!(!shown.contains("hunter2"), "{shown}");
            prop_assert_eq!(shown, redacted(&[text.as_bytes()]));
        }
    }
}
