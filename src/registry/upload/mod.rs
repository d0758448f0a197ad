//! Writing blobs: mounted where that works, sent in one piece, resumed where the registry remembers, proven
//! at the end.
//!
//! Content whose digest is known is sent by POST and one PUT, which every registry takes: that is `transfer`.
//! Content whose digest comes with its last byte, and content that a registry does not take in one request, is
//! sent in pieces: that is `session`.

mod feed;
mod learned;
mod session;
mod transfer;

use std::sync::Arc;

use http::{
    Method, StatusCode,
    header::{LOCATION, RANGE},
};
use reqwest::Url;

use super::{
    answer::{Answer, location},
    client::Repository,
    error::{Operation, RegistryError},
    source::BlobSource,
};
use crate::image::{Descriptor, Digest};
pub(super) use learned::Learned;
#[cfg(test)]
pub(super) use learned::PIECE;
pub use session::UploadSession;
use transfer::Transfer;

/// Whether a request's body was too large for the registry, or for a proxy in front of it. One registry says
/// so with 416, as if it were about the range.
fn is_too_large(error: &RegistryError) -> bool {
    matches!(
        error.status(),
        Some(StatusCode::PAYLOAD_TOO_LARGE | StatusCode::RANGE_NOT_SATISFIABLE)
    )
}

/// What became of a blob that was to be at a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// It was there.
    Existed,
    /// It was sent, and its size was read back.
    Sent {
        /// Bytes sent, what was sent twice counted twice.
        bytes: u64,
        /// How often the upload went on from where it broke.
        resumed: u32,
    },
}

/// What became of a wish to mount.
#[derive(Debug)]
pub enum Mount {
    /// The blob is there.
    Mounted,
    /// The registry opened an upload instead, which is to be used rather than another.
    Upload(PendingUpload),
    /// Not from this repository.
    Unavailable,
}

/// An upload that was opened and not yet used.
#[derive(Debug)]
pub struct PendingUpload {
    location: Url,
}

/// Called with the length of every part that is handed to the connection.
pub(super) type Meter = Arc<dyn Fn(u64) + Send + Sync>;

impl Repository {
    /// Sees to it that the repository has a blob.
    ///
    /// # Errors
    /// When the source cannot be read or is not what the descriptor says, or the registry refuses.
    pub async fn upload_blob(
        &self,
        descriptor: &Descriptor,
        source: &impl BlobSource,
    ) -> Result<Uploaded, RegistryError> {
        let writer = self.writing();
        if writer.has_blob(descriptor).await? {
            return Ok(Uploaded::Existed);
        }
        writer.send_blob(descriptor, source, None, None).await
    }

    /// Whether a HEAD says that the blob is there in full. A registry that does not answer the question is
    /// taken for one that has not.
    pub(super) async fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, RegistryError> {
        match self.head_blob(&descriptor.digest).await {
            Ok(size) => Ok(size == Some(descriptor.size)),
            Err(error) if cannot_look(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a blob of another repository of the same registry this one's too.
    ///
    /// # Errors
    /// Only when the registry leads astray: whatever else stands against it, the blob can still be sent.
    pub async fn mount_blob(&self, digest: &Digest, from: &str) -> Result<Mount, RegistryError> {
        let writer = if self.for_writing {
            self.clone()
        } else {
            self.for_push(&[from])
        };
        let mut call = writer.call(
            Operation::MountBlob,
            Method::POST,
            "blobs/uploads/",
            digest.as_str(),
        )?;
        call.url
            .query_pairs_mut()
            .append_pair("mount", digest.as_str())
            .append_pair("from", from);
        // Not repeated: the upload that follows is the second try.
        match call.unrepeated().send().await {
            Ok(answer) if answer.status() == StatusCode::CREATED => Ok(Mount::Mounted),
            Ok(answer)
                if answer.status() == StatusCode::ACCEPTED && answer.headers().contains_key(LOCATION) =>
            {
                Ok(Mount::Upload(PendingUpload {
                    location: writer.upload_location(&answer)?,
                }))
            }
            Ok(answer) => {
                tracing::debug!(status = %answer.status(), from, "no mount");
                Ok(Mount::Unavailable)
            }
            Err(error @ RegistryError::Untrusted { .. }) => Err(error),
            Err(error) => {
                tracing::debug!(%error, from, "no mount");
                Ok(Mount::Unavailable)
            }
        }
    }

    /// Sends a blob without asking whether it is there.
    ///
    /// # Errors
    /// As [`Self::upload_blob`].
    pub(super) async fn send_blob(
        &self,
        descriptor: &Descriptor,
        source: &impl BlobSource,
        pending: Option<PendingUpload>,
        meter: Option<Meter>,
    ) -> Result<Uploaded, RegistryError> {
        let writer = self.writing();
        let mut transfer = Transfer {
            writer: &writer,
            descriptor,
            source,
            meter,
            sent: 0,
            resumed: 0,
        };
        transfer.run(pending).await?;
        if let Err(error) = writer.prove(descriptor).await {
            tracing::warn!(%error, "the blob is sent once more");
            // It may have kept the last part only.
            let learned = &writer.client.network.learned;
            learned.takes_no_parts(&writer.origin);
            transfer.run(None).await?;
            writer.prove(descriptor).await?;
        }
        Ok(Uploaded::Sent {
            bytes: transfer.sent,
            resumed: transfer.resumed,
        })
    }

    /// Compares what a registry confirmed with what it serves: some have kept only the last piece.
    pub(super) async fn prove(&self, descriptor: &Descriptor) -> Result<(), RegistryError> {
        match self.head_blob(&descriptor.digest).await {
            Ok(Some(size)) if size == descriptor.size => Ok(()),
            Ok(found) => Err(RegistryError::Unproven {
                at: self.place(Operation::HeadBlob, descriptor.digest.as_str()),
                expected: descriptor.size,
                found,
            }),
            Err(error) if cannot_look(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Opens an upload.
    async fn start_upload(&self, what: &str) -> Result<(PendingUpload, Option<usize>), RegistryError> {
        let answer = self
            .call(Operation::StartUpload, Method::POST, "blobs/uploads/", what)?
            .send()
            .await?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(if answer.status().is_success() {
                answer.protocol("an upload was started, but the answer is not 202")
            } else {
                answer.refused().await
            });
        }
        let location = self.upload_location(&answer)?;
        let least = answer
            .text("oci-chunk-min-length")
            .and_then(|text| text.trim().parse().ok());
        Ok((PendingUpload { location }, least))
    }

    /// Where an upload goes on, if that is somewhere it may go.
    fn upload_location(&self, answer: &Answer) -> Result<Url, RegistryError> {
        if !answer.headers().contains_key(LOCATION) {
            return Err(answer.protocol("the answer has no Location, so the upload cannot go on"));
        }
        let home = self.known_base()?;
        let untrusted = |problem| RegistryError::Untrusted {
            at: answer.at.clone(),
            problem,
        };
        let url = location(&answer.url, answer.headers()).map_err(untrusted)?;
        if url.origin() == home.origin() {
            return Ok(url);
        }
        if home.scheme() == "https" && url.scheme() == "http" {
            return Err(untrusted(
                "the registry sends the upload to http, although it speaks https".to_owned(),
            ));
        }
        if !self.client.network.options.foreign_uploads {
            return Err(untrusted(format!(
                "the registry sends the upload to {}, which is not the registry",
                url.origin().ascii_serialization()
            )));
        }
        Ok(url)
    }

    /// How many bytes of an upload the registry has, and where it goes on; `None` when that cannot be known.
    /// `0-0` means one byte or none.
    async fn ask_upload(&self, location: &Url, what: &str) -> Option<(Url, u64)> {
        let home = self.known_base().ok()?;
        let answer = self
            .call_at(Operation::AskUpload, Method::GET, home, location.clone(), what)
            .send()
            .await
            .ok()?;
        if !matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::ACCEPTED) {
            return None;
        }
        let last = range_end(&answer).filter(|last| *last > 0)?;
        let next = if answer.headers().contains_key(LOCATION) {
            self.upload_location(&answer).ok()?
        } else {
            location.clone()
        };
        Some((next, last.checked_add(1)?))
    }

    /// Closes an upload that turned out not to be needed.
    pub(super) async fn give_up(&self, pending: PendingUpload, digest: &Digest) {
        self.cancel_upload(&pending.location, digest.as_str()).await;
    }

    /// Tells the registry that nothing more comes; it is only polite, so nothing follows from the answer.
    async fn cancel_upload(&self, location: &Url, what: &str) {
        if let Ok(home) = self.known_base() {
            let call = self.call_at(
                Operation::CancelUpload,
                Method::DELETE,
                home,
                location.clone(),
                what,
            );
            let _ = call.unrepeated().send().await;
        }
    }
}

/// Whether a HEAD failed for reasons that say nothing about the blob.
fn cannot_look(error: &RegistryError) -> bool {
    matches!(
        error.status(),
        Some(StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED)
    )
}

/// The last byte's position of `Range: 0-last`; some write `bytes=` before it.
fn range_end(answer: &Answer) -> Option<u64> {
    let text = answer.text(RANGE)?.trim();
    let (first, last) = text.strip_prefix("bytes=").unwrap_or(text).split_once('-')?;
    (first == "0").then(|| last.parse().ok()).flatten()
}

fn with_digest(location: &Url, digest: &Digest) -> Url {
    let mut url = location.clone();
    url.query_pairs_mut().append_pair("digest", digest.as_str());
    url
}
