//! What the strategy's command prints: to the container's log at once, and to a bounded file.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, PipeReader, Read as _, Write},
    os::fd::AsFd as _,
};

use rustix::event::{PollFd, PollFlags};

use super::redact::Redactor;

/// The most that is kept of a log. More is read by nobody, and fills the volume that the build needs.
pub const LOG_LIMIT: usize = 16 * 1024 * 1024;

/// How much of that is kept for the end, where the reason of a failure is.
const TAIL_LIMIT: usize = 64 * 1024;

/// A file that keeps the beginning and the end of what is written to it.
#[derive(Debug)]
pub struct BoundedLog<W> {
    file: W,
    head_limit: usize,
    tail_limit: usize,
    total: usize,
    tail: VecDeque<u8>,
}

impl<W: Write> BoundedLog<W> {
    /// A log of at most [`LOG_LIMIT`] bytes and one line.
    pub fn new(file: W) -> Self {
        Self::with_limits(file, LOG_LIMIT - TAIL_LIMIT, TAIL_LIMIT)
    }

    fn with_limits(file: W, head_limit: usize, tail_limit: usize) -> Self {
        Self {
            file,
            head_limit,
            tail_limit,
            total: 0,
            tail: VecDeque::new(),
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When the file cannot be written; the end is remembered all the same.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = self.head_limit.saturating_sub(self.total).min(bytes.len());
        self.total += bytes.len();
        self.tail
            .extend(&bytes[bytes.len().saturating_sub(self.tail_limit)..]);
        self.tail.drain(..self.tail.len().saturating_sub(self.tail_limit));
        self.file.write_all(&bytes[..room])
    }

    /// Writes the end, after a line that says how much is missing, and gives the end back.
    pub fn finish(mut self) -> Vec<u8> {
        let tail = Vec::from(self.tail);
        let after_head = self.total.saturating_sub(self.head_limit);
        let kept = after_head.min(tail.len());
        let missing = after_head - kept;
        if missing > 0 {
            let _ = write!(
                self.file,
                "\n[slipway: {missing} bytes of the log are left out here]\n"
            );
        }
        let _ = self.file.write_all(&tail[tail.len() - kept..]);
        tail
    }
}

/// Copies everything from `output` to `shown` and the log until `output` ends, or `ended` does and nothing
/// is left to read: a process that the command left behind may hold `output` open for ever.
pub fn tee(
    mut output: PipeReader,
    ended: &PipeReader,
    mut shown: File,
    mut log: BoundedLog<File>,
    mut redactor: Redactor,
) -> Vec<u8> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut waiting = [
            PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN),
        ];
        if rustix::event::poll(&mut waiting, None).is_err() {
            continue;
        }
        if waiting[0].revents().is_empty() {
            break;
        }
        let bytes = match output.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => redactor.push(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        show(&mut shown, &mut log, &bytes);
    }
    show(&mut shown, &mut log, &redactor.finish());
    log.finish()
}

/// A full disk or a reader that went away must not end a build.
fn show(shown: &mut File, log: &mut BoundedLog<File>, bytes: &[u8]) {
    let _ = shown.write_all(bytes);
    let _ = log.write(bytes);
}

/// The end of a log as a status may show it: valid text, no escape sequences, nothing that turns the
/// direction of writing.
pub fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                if characters.next_if_eq(&'[').is_some() {
                    // A control sequence ends with a byte from `@` to `~`.
                    for next in characters.by_ref() {
                        if ('@'..='~').contains(&next) {
                            break;
                        }
                    }
                }
            }
            // A progress bar that overwrites itself becomes lines.
            '\r' => {
                characters.next_if_eq(&'\n');
                shown.push('\n');
            }
            '\n' | '\t' => shown.push(character),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            _ if character.is_control() => {}
            _ => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::fits(&["abc"], "abc")]
    #[case::fills_head_and_tail(&["0123456789", "abcd"], "0123456789abcd")]
    #[case::cuts_the_middle(&["0123456789", "abcdefgh"], "0123456789\n[slipway: 4 bytes of the log are left out here]\nefgh")]
    #[case::in_one_piece(&["0123456789abcdefgh"], "0123456789\n[slipway: 4 bytes of the log are left out here]\nefgh")]
    fn a_log_keeps_its_beginning_and_its_end(#[case] pieces: &[&str], #[case] kept: &str) {
        let mut file = Vec::new();
        let mut log = BoundedLog::with_limits(&mut file, 10, 4);
        for piece in pieces {
            log.write(piece.as_bytes()).unwrap();
        }
        log.finish();
        assert_eq!(String::from_utf8(file).unwrap(), kept);
    }

    #[rstest]
    #[case::colours("\u{1b}[1;31merror\u{1b}[0m: bad", "error: bad")]
    #[case::progress("1%\r2%\r\ndone\n", "1%\n2%\ndone\n")]
    #[case::bells_and_directions("a\u{7}b\u{202e}c\u{0}", "abc")]
    fn a_snippet_is_plain_text(#[case] raw: &str, #[case] shown: &str) {
        assert_eq!(readable(raw.as_bytes()), shown);
    }

    #[test]
    fn a_snippet_that_begins_within_a_character_is_text() {
        assert_eq!(readable(&"ü!".as_bytes()[1..]), "\u{fffd}!");
    }
}
