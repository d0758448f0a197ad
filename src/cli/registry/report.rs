//! What came of a push, for people and as one JSON object.

use std::time::Duration;

use indicatif::HumanBytes;
use serde::Serialize;

use super::{Source, failure};
use crate::{
    cli::outcome,
    image::Digest,
    record::Failure,
    registry::{BlobCounters, Image, Outcome, Planned, Reference, ReferrerCounters, Survey},
};

/// Everything that a command found and did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    source: String,
    /// The digest at every target, once the source was read.
    digest: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    /// What refers to the image and goes with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    referrers: Vec<Digest>,
    pub(super) targets: Vec<TargetReport>,
    /// What stands against every target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Failure>,
}

/// How one target ended.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TargetReport {
    repository: String,
    pub(super) state: State,
    tags: Vec<TagReport>,
    blobs: BlobCounters,
    referrers: ReferrerCounters,
    /// What would be written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    requests: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Failure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u64>,
}

#[derive(Debug, Serialize)]
struct TagReport {
    name: String,
    /// Where it pointed to before.
    previous: Option<Digest>,
    /// Where it points to.
    digest: Option<Digest>,
}

/// One word for a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum State {
    /// Not reached.
    Untouched,
    /// Everything is there and verified; something was written.
    Pushed,
    /// Everything was there.
    Unchanged,
    /// Something would be written.
    Planned,
    /// It lacks something, or a tag points elsewhere.
    Drifted,
    /// See the error.
    Failed,
}

impl Report {
    pub(super) fn new(source: &Source, targets: &[(Reference, Vec<String>)]) -> Self {
        let target = |(reference, tags): &(Reference, Vec<String>)| TargetReport {
            repository: reference.to_string(),
            state: State::Untouched,
            tags: tags
                .iter()
                .map(|tag| TagReport {
                    name: tag.clone(),
                    previous: None,
                    digest: None,
                })
                .collect(),
            blobs: BlobCounters::default(),
            referrers: ReferrerCounters::default(),
            requests: Vec::new(),
            error: None,
            retry_after_seconds: None,
        };
        Self {
            source: source.text(),
            digest: None,
            media_type: None,
            referrers: Vec::new(),
            targets: targets.iter().map(target).collect(),
            error: None,
        }
    }

    /// The source was read.
    pub(super) fn read(&mut self, image: &Image) {
        self.digest = Some(image.digest().clone());
        self.media_type = Some(image.media_type().to_owned());
        self.referrers = image.referrers().cloned().collect();
    }

    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            outcome::print(&format!("{}\n", serde_json::to_string(self)?))?;
            return Ok(());
        }
        if let Some(digest) = &self.digest {
            outcome::print(&format!("{digest}\n"))?;
        }
        if let Some(error) = &self.error {
            complain!("slipway: {}", error.message);
        }
        for target in &self.targets {
            target.print()?;
        }
        Ok(())
    }
}

impl TargetReport {
    pub(super) fn fail(&mut self, failure: Failure, retry_after: Option<Duration>) {
        self.state = State::Failed;
        self.error = Some(failure);
        self.retry_after_seconds =
            retry_after.map(|time| time.as_secs() + u64::from(time.subsec_nanos() > 0));
    }

    pub(super) fn pushed(&mut self, outcome: Outcome, digest: &Digest) {
        self.blobs = outcome.blobs;
        self.referrers = outcome.referrers;
        self.remember(outcome.previous);
        match outcome.result {
            Ok(()) => {
                for tag in &mut self.tags {
                    tag.digest = Some(digest.clone());
                }
                let sent = outcome.blobs.uploaded > 0 || outcome.blobs.mounted > 0;
                self.state = if outcome.changed || sent {
                    State::Pushed
                } else {
                    State::Unchanged
                };
            }
            Err(error) => {
                let retry_after = error.retry_after();
                self.fail(failure(&error), retry_after);
            }
        }
    }

    pub(super) fn surveyed(&mut self, survey: &Survey, image: &Image, check: bool) {
        self.remember(survey.tags.clone());
        for tag in &mut self.tags {
            tag.digest.clone_from(&tag.previous);
        }
        self.requests = survey.writes.iter().map(ToString::to_string).collect();
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.blobs = BlobCounters {
            existed: signed(survey.existing.0),
            mounted: signed(count(survey, |write| matches!(write, Planned::Mount { .. }))),
            uploaded: signed(count(survey, |write| matches!(write, Planned::Blob { .. }))),
            resumed: 0,
            bytes_uploaded: bytes(survey.bytes()),
            bytes_saved: bytes(image.bytes() - survey.bytes()),
        };
        self.referrers.written = signed(count(survey, |write| matches!(write, Planned::Referrer { .. })));
        self.referrers.existed = signed(image.referrers().count()) - self.referrers.written;
        self.state = match (survey.writes.is_empty(), check) {
            (true, _) => State::Unchanged,
            (false, true) => State::Drifted,
            (false, false) => State::Planned,
        };
    }

    fn remember(&mut self, previous: Vec<Option<Digest>>) {
        for (tag, previous) in self.tags.iter_mut().zip(previous) {
            tag.previous = previous;
        }
    }

    fn print(&self) -> std::io::Result<()> {
        let blobs = &self.blobs;
        let names: Vec<&str> = self.tags.iter().map(|tag| tag.name.as_str()).collect();
        let tags = if names.is_empty() {
            String::new()
        } else {
            format!(", tags {}", names.join(", "))
        };
        let referrers = match (self.referrers.written, self.referrers.existed) {
            (0, 0) => String::new(),
            (written, existed) => format!(", referrers: {written} new, {existed} existed"),
        };
        let sizes = |bytes: i64| HumanBytes(bytes.unsigned_abs());
        match self.state {
            State::Untouched => {}
            State::Failed => {
                if let Some(error) = &self.error {
                    complain!("{}: {:?}: {}", self.repository, error.reason, error.message);
                }
            }
            state => {
                let line = format!(
                    "{}: {state:?}{tags}; blobs: {} sent ({}), {} mounted, {} existed ({} saved){referrers}\n",
                    self.repository,
                    blobs.uploaded,
                    sizes(blobs.bytes_uploaded),
                    blobs.mounted,
                    blobs.existed,
                    sizes(blobs.bytes_saved),
                );
                outcome::print(&line)?;
            }
        }
        for request in &self.requests {
            outcome::print(&format!("  {request}\n"))?;
        }
        Ok(())
    }
}

fn count(survey: &Survey, wanted: impl Fn(&Planned) -> bool) -> usize {
    survey.writes.iter().filter(|write| wanted(write)).count()
}
