//! What git's complaint means. Git has one exit code for everything, so its words (of the C locale) decide.

use crate::agent::gate::{log::readable, redact::Redactor};

/// How much of a complaint a message repeats; the kubelet keeps 4 KiB of everything together.
const COMPLAINT: usize = 900;

/// What went wrong, as far as somebody has to do something else about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is no such branch, tag or commit.
    NoReference,
    /// Credentials are wanted, or were refused.
    Unauthorized,
    /// The host key is not the one that is known.
    UnknownHost,
    /// There is no such repository.
    NoRepository,
    /// The server gives branches and tags, but no commit by its digits.
    CommitRefused,
    /// The server gives only whole histories.
    ShallowRefused,
    /// The repository names its objects by another hash.
    OtherHash,
    /// A transport that is not allowed here: a submodule's.
    TransportForbidden,
    /// The server's certificate is not trusted.
    Untrusted,
    /// Anything else; a network that may recover.
    Unreachable,
}

/// A command of git that failed.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// What it means.
    pub problem: Problem,
    /// The end of what git said, without secrets.
    pub complaint: String,
}

impl Trouble {
    /// Reads what git said.
    pub fn of(stderr: &[u8], secrets: &[&[u8]]) -> Self {
        let mut redactor = Redactor::new(secrets.iter().copied());
        let mut shown = redactor.push(stderr);
        shown.extend(redactor.finish());
        let text = readable(&shown[shown.len().saturating_sub(COMPLAINT)..]);
        Self {
            problem: diagnose(&String::from_utf8_lossy(stderr)),
            complaint: text.trim().to_owned(),
        }
    }
}

/// The first that matches; what a server says itself comes before what git concludes.
const SYMPTOMS: &[(Problem, &[&str])] = &[
    (Problem::TransportForbidden, &["' not allowed"]),
    (Problem::OtherHash, &["mismatched algorithms"]),
    (Problem::ShallowRefused, &["does not support shallow"]),
    (
        Problem::CommitRefused,
        &[
            "unadvertised object",
            "did not contain",
            "Server does not allow request",
        ],
    ),
    (Problem::UnknownHost, &["Host key verification failed"]),
    (
        Problem::Untrusted,
        &[
            "certificate verif",
            "SSL certificate",
            "unable to get local issuer",
        ],
    ),
    (
        Problem::Unauthorized,
        &[
            "Authentication failed",
            "could not read Username",
            "could not read Password",
            "Permission denied (",
            "returned error: 401",
            "returned error: 403",
            "Too many authentication failures",
        ],
    ),
    (
        Problem::NoReference,
        &[
            "couldn't find remote ref",
            "not our ref",
            "reference is not a tree",
            "unable to read tree",
            "is not a commit",
        ],
    ),
    (
        Problem::NoRepository,
        &[
            "epository not found",
            "' not found",
            "returned error: 404",
            "does not appear to be a git repository",
            "could not be found",
        ],
    ),
];

fn diagnose(complaint: &str) -> Problem {
    SYMPTOMS
        .iter()
        .find(|(_, words)| words.iter().any(|words| complaint.contains(words)))
        .map_or(Problem::Unreachable, |(problem, _)| *problem)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("fatal: couldn't find remote ref nope", Problem::NoReference)]
    #[case("fatal: remote error: upload-pack: not our ref 1234", Problem::NoReference)]
    #[case("fatal: Authentication failed for 'https://h/r/'", Problem::Unauthorized)]
    #[case(
        "fatal: could not read Username for 'https://h': terminal prompts disabled",
        Problem::Unauthorized
    )]
    #[case("git@h: Permission denied (publickey).", Problem::Unauthorized)]
    #[case(
        "ERROR: Repository not found.\nfatal: Could not read from remote repository.",
        Problem::NoRepository
    )]
    #[case("fatal: repository 'https://h/r/' not found", Problem::NoRepository)]
    #[case("fatal: transport 'file' not allowed", Problem::TransportForbidden)]
    #[case(
        "error: Server does not allow request for unadvertised object 12",
        Problem::CommitRefused
    )]
    #[case(
        "fatal: unable to access 'https://h/': Could not resolve host: h",
        Problem::Unreachable
    )]
    #[case("The requested URL returned error: 503", Problem::Unreachable)]
    #[case("server certificate verification failed. CAfile: none", Problem::Untrusted)]
    fn what_git_says_means(#[case] complaint: &str, #[case] problem: Problem) {
        assert_eq!(diagnose(complaint), problem);
    }

    #[test]
    fn a_complaint_is_short_and_has_no_secret() {
        let stderr = format!("{}fatal: https://me:t0ken@h hunter2\n", "x".repeat(5000));
        let complaint = Trouble::of(stderr.as_bytes(), &[b"hunter2"]).complaint;
        assert!(complaint.len() <= COMPLAINT);
        assert!(complaint.ends_with("fatal: https://***@h ***"), "{complaint}");
    }
}
