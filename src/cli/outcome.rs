//! How commands without a cluster end: one JSON object or text for people, and an exit code.

use std::{
    fmt,
    fs::File,
    io::{BufReader, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    image::Known,
    record::{Counters, FailureClass, Reason},
};

/// The command line is wrong, or a file that it names.
pub const USAGE: u8 = 2;

/// The fields that every document has, and a command's own.
#[derive(Serialize)]
struct AcceptedDocument<'a, T> {
    outcome: &'static str,
    reason: Option<Reason>,
    message: Option<&'a str>,
    member: Option<&'a str>,
    #[serde(flatten)]
    document: &'a T,
}

/// Ends a command well: the object, or the text.
///
/// # Errors
/// When standard output cannot be written.
pub fn accepted(json: bool, document: &impl Serialize, text: impl fmt::Display) -> anyhow::Result<ExitCode> {
    if json {
        let document = AcceptedDocument {
            outcome: "Accepted",
            reason: None,
            message: None,
            member: None,
            document,
        };
        print(&format!("{}\n", serde_json::to_string_pretty(&document)?))?;
    } else {
        print(&text.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints, and says whether anybody still reads: `head` leaves when it has enough, which is no failure.
///
/// # Errors
/// When standard output cannot be written.
pub fn print(text: &str) -> std::io::Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// The layers that `--known` names; none without it.
///
/// # Errors
/// When the file cannot be read; names the file and the line.
pub fn known(path: Option<&Path>) -> anyhow::Result<Known> {
    let Some(path) = path else {
        return Ok(Known::default());
    };
    let file = File::open(path).with_context(|| format!("--known {}", path.display()))?;
    Known::read(BufReader::new(file)).with_context(|| format!("--known {}", path.display()))
}

/// Why something was refused.
#[derive(Debug)]
pub struct Refusal {
    /// The stable reason.
    pub reason: Reason,
    /// The cause, then what to do.
    pub message: String,
    /// The file or member that it is about.
    pub member: Option<String>,
    /// What to do, where the message does not say it.
    pub advice: Option<&'static str>,
}

#[derive(Serialize)]
struct RefusalDocument<'a> {
    outcome: &'static str,
    reason: Reason,
    message: &'a str,
    member: Option<&'a str>,
    images: [(); 0],
    warnings: [(); 0],
    counters: Counters,
}

/// Ends a command badly: 1 where the input is to blame, 3 where the machine is.
///
/// # Errors
/// When standard output cannot be written.
pub fn refused(json: bool, refusal: &Refusal) -> anyhow::Result<ExitCode> {
    if json {
        let document = RefusalDocument {
            outcome: "Refused",
            reason: refusal.reason,
            message: &refusal.message,
            member: refusal.member.as_deref(),
            images: [],
            warnings: [],
            counters: Counters::default(),
        };
        print(&format!("{}\n", serde_json::to_string_pretty(&document)?))?;
    } else {
        complain!("slipway: {}", printable(&refusal.message));
        complain!("reason: {}", refusal.reason.as_str());
        if let Some(advice) = refusal.advice {
            complain!("hint: {advice}");
        }
    }
    Ok(ExitCode::from(match refusal.reason.class() {
        FailureClass::Infrastructure => 3,
        FailureClass::User | FailureClass::Policy => 1,
    }))
}

/// A text of a stranger's as it may stand on a terminal: what would move the cursor, change colours or turn
/// the direction of writing is replaced.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|char| {
            let turns =
                matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if char.is_control() || turns {
                '\u{fffd}'
            } else {
                char
            }
        })
        .collect()
}

/// Whether standard output is looked at by a person.
pub fn is_pretty() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// A size as people read it.
pub fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_wrote_cannot_steer_a_terminal() {
        assert_eq!(
            printable("a\x1b[2J\r\nb\u{202e}c é"),
            "a\u{fffd}[2J\u{fffd}\u{fffd}b\u{fffd}c é"
        );
    }
}
