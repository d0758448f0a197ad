//! What a registry did instead of what it was asked for.

use std::{fmt, time::Duration};

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{image::Digest, record::Reason};

/// How much of a registry's own words is kept.
const MESSAGE_LIMIT: usize = 1024;

/// What was being done; a closed list, so that it may be a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each name says what it is")]
pub enum Operation {
    GetToken,
    HeadBlob,
    GetBlob,
    MountBlob,
    StartUpload,
    SendBlob,
    AskUpload,
    CancelUpload,
    HeadManifest,
    GetManifest,
    PutManifest,
    ListTags,
    ListReferrers,
}

impl Operation {
    /// The operation in words, for messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GetToken => "getting a token",
            Self::HeadBlob => "looking for a blob",
            Self::GetBlob => "reading a blob",
            Self::MountBlob => "mounting a blob",
            Self::StartUpload => "starting an upload",
            Self::SendBlob => "sending a blob",
            Self::AskUpload => "asking how far an upload is",
            Self::CancelUpload => "cancelling an upload",
            Self::HeadManifest => "looking for a manifest",
            Self::GetManifest => "reading a manifest",
            Self::PutManifest => "writing a manifest",
            Self::ListTags => "listing tags",
            Self::ListReferrers => "listing referrers",
        }
    }
}

/// Where something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Scheme, host and port.
    pub origin: String,
    /// What was being done.
    pub operation: Operation,
    /// The repository and the tag, digest or nothing in it.
    pub subject: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} at {}",
            self.operation.as_str(),
            self.subject,
            self.origin
        )
    }
}

/// An answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// The registry's own code, `NAME_UNKNOWN` for example.
    pub code: Option<String>,
    /// The registry's own words, at most 1 KiB, without control characters.
    pub message: String,
    /// When it wants to be asked again.
    pub retry_after: Option<Duration>,
    /// Digests that the answer names, as `MANIFEST_BLOB_UNKNOWN` does.
    pub named: Vec<Digest>,
    /// The registry's own `errors` array; empty where its answer had none.
    pub errors: Vec<OwnError>,
}

/// One entry of a registry's own `errors` array, cut and cleaned.
///
/// Source: OCI distribution specification, "Error Codes".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OwnError {
    /// `DENIED` for example.
    #[schemars(length(max = 64))]
    pub code: String,
    /// In words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub message: String,
    /// What else it says, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub detail: Option<String>,
}

/// More entries than any registry sends.
const ERRORS_LIMIT: usize = 8;

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status.as_u16())?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

/// Everything that can go wrong between here and a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The client cannot be built as configured.
    #[error("the registry client cannot be set up: {0}")]
    Setup(String),
    /// A name that cannot be a part of a URL.
    #[error("{0:?} is not a registry, repository, tag or digest")]
    Name(String),
    /// No answer, or half of one.
    #[error("{at}: {problem}")]
    Unreachable {
        /// Where.
        at: Place,
        /// The transport's words.
        problem: String,
    },
    /// An answer that is no success.
    #[error("{at}: the registry answered {refusal}")]
    Answered {
        /// Where.
        at: Place,
        /// What.
        refusal: Box<Refusal>,
    },
    /// Not asked, because the registry wants to be left alone for longer than is waited here.
    #[error("{at}: not asked, the registry wants to be left alone for another {} s", retry_after.as_secs())]
    Resting {
        /// Where.
        at: Place,
        /// For how long.
        retry_after: Duration,
    },
    /// The answer breaks the protocol.
    #[error("{at}: {problem}")]
    Protocol {
        /// Where.
        at: Place,
        /// How.
        problem: String,
    },
    /// The registry sends the client, its data or its credentials somewhere that is not allowed.
    #[error("{at}: {problem}")]
    Untrusted {
        /// Where.
        at: Place,
        /// Whereto.
        problem: String,
    },
    /// Content does not hash to the digest that was asked for.
    #[error("{at}: the content is {found}, not {expected}")]
    DigestMismatch {
        /// Where.
        at: Place,
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// Content has another size than its descriptor says.
    #[error("{at}: the content has {found} bytes, its descriptor says {expected}")]
    SizeMismatch {
        /// Where.
        at: Place,
        /// The descriptor's size.
        expected: u64,
        /// The size that was seen, a lower bound where reading stopped there.
        found: u64,
    },
    /// The registry confirmed a blob and does not serve it, or not all of it.
    #[error("{at}: the registry confirmed {expected} bytes and serves {}", found.map_or("none".to_owned(), |found| found.to_string()))]
    Unproven {
        /// Where.
        at: Place,
        /// What was sent.
        expected: u64,
        /// What is served.
        found: Option<u64>,
    },
    /// A document passes the limit up to which it is read.
    #[error("{at}: more than {limit} bytes")]
    TooLarge {
        /// Where.
        at: Place,
        /// The limit.
        limit: u64,
    },
    /// The header and the document disagree about what the document is.
    #[error("{at}: sent as {header:?}, but it calls itself {body:?}")]
    MediaType {
        /// Where.
        at: Place,
        /// The `Content-Type`.
        header: String,
        /// The `mediaType`.
        body: String,
    },
    /// The content to upload cannot be read where it is.
    #[error("the content of {digest} cannot be read: {problem}")]
    Source {
        /// The content.
        digest: Digest,
        /// Why.
        problem: String,
        /// What it means where the source knows; a local file knows nothing.
        reason: Option<Reason>,
    },
}

impl RegistryError {
    /// The stable reason that users, metrics and tests see.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Setup(_) => Reason::InternalError,
            Self::Name(_) => Reason::TargetInvalid,
            Self::Unreachable { .. } | Self::Protocol { .. } => Reason::RegistryUnavailable,
            Self::Answered { at, refusal } => refusal.reason(at.operation),
            Self::Resting { .. } => Reason::RateLimited,
            Self::Untrusted { .. } => Reason::OriginForbidden,
            Self::DigestMismatch { .. } => Reason::DigestMismatch,
            Self::SizeMismatch { .. } => Reason::SizeMismatch,
            Self::Unproven { .. } => Reason::VerificationFailed,
            Self::TooLarge { .. } => Reason::LimitExceeded,
            Self::MediaType { .. } => Reason::MediaTypeAmbiguous,
            Self::Source { reason, .. } => reason.unwrap_or(Reason::InternalError),
        }
    }

    /// Whether the same request may succeed in a moment.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Resting { .. } => true,
            Self::Answered { refusal, .. } => is_passing(refusal.status),
            _ => false,
        }
    }

    /// When the registry wants to be asked again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Resting { retry_after, .. } => Some(*retry_after),
            Self::Answered { refusal, .. } => refusal.retry_after,
            _ => None,
        }
    }

    /// The HTTP status, if there was an answer.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Answered { refusal, .. } => Some(refusal.status),
            _ => None,
        }
    }

    /// The registry's own `errors`, if it sent any.
    pub fn own_errors(&self) -> &[OwnError] {
        match self {
            Self::Answered { refusal, .. } => &refusal.errors,
            _ => &[],
        }
    }

    /// The registry's own code, if it sent one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Answered { refusal, .. } => refusal.code.as_deref(),
            _ => None,
        }
    }
}

/// Whether a status says "later" rather than "no". 499 and 522 are what proxies in front of registries send
/// when one side of them gave up.
pub(super) fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 499 | 500 | 502 | 503 | 504 | 522)
}

impl Refusal {
    fn reason(&self, operation: Operation) -> Reason {
        match self.status.as_u16() {
            401 => Reason::PushUnauthorized,
            403 => Reason::PushDenied,
            404 if matches!(operation, Operation::GetBlob | Operation::GetManifest) => Reason::SourceMissing,
            404 if operation != Operation::PutManifest || self.code.as_deref() == Some("NAME_UNKNOWN") => {
                Reason::RepositoryNotFound
            }
            429 => Reason::RateLimited,
            _ if is_passing(self.status) || self.status.is_server_error() => Reason::RegistryUnavailable,
            _ => Reason::PushRefused,
        }
    }

    /// Reads the body of an answer that is no success; any text will do.
    pub(super) fn read(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Self {
        let errors = serde_json::from_slice::<ErrorBody>(body)
            .map(|body| body.errors)
            .unwrap_or_default();
        let text = String::from_utf8_lossy(body);
        let message = match errors.first() {
            Some(first) => first.message.clone().unwrap_or_default(),
            // A proxy's page of HTML helps nobody.
            None if text.trim_start().starts_with('<') => String::new(),
            None => text.clone().into_owned(),
        };
        let own = errors.iter().take(ERRORS_LIMIT).map(OwnError::from).collect();
        Self {
            status,
            code: errors.into_iter().next().map(|first| clean(&first.code, 64)),
            message: clean(&message, MESSAGE_LIMIT),
            retry_after,
            named: digests_in(&text),
            errors: own,
        }
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorItem>,
}

#[derive(Deserialize)]
struct ErrorItem {
    #[serde(default)]
    code: String,
    message: Option<String>,
    detail: Option<serde_json::Value>,
}

impl From<&ErrorItem> for OwnError {
    fn from(item: &ErrorItem) -> Self {
        let detail = item.detail.as_ref().filter(|detail| !detail.is_null());
        Self {
            code: clean(&item.code, 64),
            message: clean(item.message.as_deref().unwrap_or_default(), 512),
            detail: detail.map(|detail| clean(&detail.to_string(), 512)),
        }
    }
}

/// Keeps what may stand in a status and a log line: no control characters, no text direction marks.
pub(super) fn clean(text: &str, limit: usize) -> String {
    let mut kept = String::new();
    for c in text.trim().chars() {
        let c = match c {
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => continue,
            c if c.is_control() => ' ',
            c => c,
        };
        if kept.len() + c.len_utf8() > limit {
            break;
        }
        kept.push(c);
    }
    kept
}

/// Every digest in a text, each once.
fn digests_in(text: &str) -> Vec<Digest> {
    let mut found: Vec<Digest> = Vec::new();
    for (start, _) in text.match_indices("sha") {
        let end = text[start..]
            .find(|c: char| !c.is_ascii_alphanumeric() && c != ':')
            .map_or(text.len(), |length| start + length);
        if let Ok(digest) = text[start..end].parse::<Digest>()
            && !found.contains(&digest)
        {
            found.push(digest);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn answered(operation: Operation, status: u16, body: &str) -> RegistryError {
        RegistryError::Answered {
            at: Place {
                origin: "https://r.io".into(),
                operation,
                subject: "a".into(),
            },
            refusal: Box::new(Refusal::read(
                StatusCode::from_u16(status).unwrap(),
                None,
                body.as_bytes(),
            )),
        }
    }

    #[rstest]
    #[case::unauthorized(Operation::HeadBlob, 401, "", Reason::PushUnauthorized, false)]
    #[case::denied(Operation::StartUpload, 403, "", Reason::PushDenied, false)]
    #[case::no_repository(Operation::StartUpload, 404, "", Reason::RepositoryNotFound, false)]
    #[case::no_repository_by_code(
        Operation::PutManifest,
        404,
        r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#,
        Reason::RepositoryNotFound,
        false
    )]
    #[case::manifest_refused(Operation::PutManifest, 400, "", Reason::PushRefused, false)]
    #[case::too_large(Operation::PutManifest, 413, "", Reason::PushRefused, false)]
    #[case::timeout(Operation::HeadBlob, 408, "", Reason::RegistryUnavailable, true)]
    #[case::rate(Operation::HeadBlob, 429, "", Reason::RateLimited, true)]
    #[case::broken(Operation::HeadBlob, 500, "", Reason::RegistryUnavailable, true)]
    #[case::bad_gateway(Operation::HeadBlob, 502, "", Reason::RegistryUnavailable, true)]
    #[case::unavailable(Operation::HeadBlob, 503, "", Reason::RegistryUnavailable, true)]
    #[case::not_implemented(Operation::HeadBlob, 501, "", Reason::RegistryUnavailable, false)]
    fn a_status_decides_reason_and_retry(
        #[case] operation: Operation,
        #[case] status: u16,
        #[case] body: &str,
        #[case] reason: Reason,
        #[case] passing: bool,
    ) {
        let error = answered(operation, status, body);
        assert_eq!(error.reason(), reason);
        assert_eq!(error.is_passing(), passing);
    }

    #[test]
    fn a_registry_s_words_are_cut_and_cleaned() {
        let body = format!(
            r#"{{"errors":[{{"code":"DENIED","message":"no\u001b[31m\u202e {}"}}]}}"#,
            "ü".repeat(2000)
        );
        let error = answered(Operation::HeadBlob, 403, &body);
        let RegistryError::Answered { refusal, .. } = &error else {
            panic!()
        };
        assert_eq!(error.code(), Some("DENIED"));
        assert!(refusal.message.starts_with("no [31m ü") && refusal.message.len() <= 1024);
    }

    #[rstest]
    #[case::two(r#"{"errors":[{"code":"DENIED","message":"no","detail":{"a":1}},{"code":"UNKNOWN","detail":null}]}"#,
        &[("DENIED", "no", Some(r#"{"a":1}"#)), ("UNKNOWN", "", None)])]
    #[case::no_json("<html>", &[])]
    #[case::another_shape(r#"{"message":"no"}"#, &[])]
    fn a_registry_s_own_errors_are_kept_in_one_shape(
        #[case] body: &str,
        #[case] expected: &[(&str, &str, Option<&str>)],
    ) {
        let error = answered(Operation::PutManifest, 403, body);
        let seen: Vec<_> = error
            .own_errors()
            .iter()
            .map(|own| (own.code.as_str(), own.message.as_str(), own.detail.as_deref()))
            .collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn digests_in_an_answer_are_found_wherever_they_stand() {
        let digest = Digest::of(b"x");
        let body = format!(
            r#"{{"errors":[{{"code":"MANIFEST_BLOB_UNKNOWN","detail":{{"Digest":"{digest}"}}}},{{"code":"X","message":"{digest} sha256:zz"}}]}}"#
        );
        let error = answered(Operation::PutManifest, 400, &body);
        let RegistryError::Answered { refusal, .. } = &error else {
            panic!()
        };
        assert_eq!(refusal.named, [digest]);
    }
}
