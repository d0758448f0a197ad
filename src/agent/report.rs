//! What an agent leaves in its container's termination message: the contract back to the controller.
//!
//! The kubelet keeps 4096 bytes, so a report names a record by digest rather than carrying it.

use std::io::Write as _;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    image::Digest,
    record::{Failure, Revision},
};

pub use crate::registry::{BlobCounters, OwnError, ReferrerCounters};

/// The kubelet's limit on one container's message.
pub const MESSAGE_LIMIT: usize = 4096;

/// The code of an agent that was asked to end before its work was done.
pub const ASKED_TO_END: i32 = 143;

/// Where the kubelet looks for a container's message.
pub const MESSAGE_PATH: &str = "/dev/termination-log";

/// How a stage of the build pod ended, in its container's message and in the workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StageOutcome {
    /// The stage did its work.
    #[serde(rename_all = "camelCase")]
    Done {
        /// Known once the source has been fetched.
        revision: Option<Revision>,
    },
    /// The stage did not.
    Failed(Failure),
}

/// What `collect` reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CollectReport {
    /// The record's manifest, in staging, of a build that ended well or badly.
    Recorded {
        /// Its digest.
        digest: Digest,
    },
    /// No record could be written.
    Failed(Failure),
}

impl CollectReport {
    /// The report, with as much of the log's end as the kubelet keeps.
    #[must_use]
    pub fn fitted(mut self) -> Self {
        let length = |report: &Self| serde_json::to_vec(report).map_or(0, |text| text.len());
        for log in [4096, 3072, 2048, 1024, 512, 0] {
            if length(&self) <= MESSAGE_LIMIT {
                break;
            }
            if let Self::Failed(failure) = &mut self {
                let snippet = failure.log_snippet.take().unwrap_or_default();
                *failure = failure.clone().with_log(end_of(&snippet, log));
            }
        }
        self
    }
}

/// What `push` reports: one entry a target, in the plan's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PushReport {
    /// The root manifest's digest, once the source was read.
    pub digest: Option<Digest>,
    /// A failure that concerns every target, an unreadable source for example.
    pub failure: Option<Failure>,
    /// What refers to the image and goes with it, as far as there is room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub referrers: Vec<Digest>,
    /// One entry a target.
    pub targets: Vec<TargetReport>,
}

/// A part of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RefusedPart {
    /// A layer or config.
    Blob(Digest),
    /// An image's manifest.
    Manifest,
    /// The index over several images, or a tag of it.
    Index,
}

/// How one target ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetReport {
    /// Absent when everything is there and verified.
    pub failure: Option<Failure>,
    /// What the tags point to, where that is not the image alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The earliest moment at which the registry wants to be asked again, in seconds from the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
    /// The registry's own errors, where it answered with any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<OwnError>,
    /// Which part of the image the registry refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedPart>,
    /// What became of the blobs.
    pub blobs: BlobCounters,
    /// What became of what refers to the image.
    #[serde(default)]
    pub referrers: ReferrerCounters,
    /// Of a dry run: the requests that would write.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<String>,
    /// Of a dry run: how many more there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub requests_omitted: i64,
    /// The digest that each tag pointed to before, in the plan's order; null where it did not exist.
    pub previous: Vec<Option<Digest>>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// What the operator accepts of an agent that reports itself: a dry run's list of requests is longer than what the
/// kubelet keeps.
pub const TOLD_LIMIT: usize = 1 << 20;

/// Leaves a report where the kubelet finds it, shortened where it must be.
///
/// # Errors
/// When the message file cannot be written.
pub fn leave<R: Serialize>(report: &R) -> std::io::Result<()> {
    let text = serde_json::to_vec(report)?;
    if let Ok(mut file) = std::fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(MESSAGE_PATH)
    {
        return file.write_all(&text);
    }
    // Outside a pod a person reads it.
    std::io::stdout().write_all(&text)
}

/// At most so many bytes of a text's end.
fn end_of(text: &str, limit: usize) -> &str {
    let mut start = text.len().saturating_sub(limit);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// Reads a termination message; `None` when it is no report.
pub fn read<R: DeserializeOwned>(message: &str) -> Option<R> {
    serde_json::from_str(message).ok()
}
