//! Writing blobs: mounted where that works, sent in one piece, resumed where the registry remembers, proven
//! at the end.
//!
//! Content whose digest is known is sent by POST and one PUT, which every registry takes; content whose digest
//! comes with its last byte is sent in pieces by an [`UploadSession`].

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::{
    Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE},
};
use reqwest::Url;
use tokio::time::sleep;

use super::{
    client::Repository,
    error::{Operation, RegistryError},
    source::{BlobSource, ByteStream, registry_error},
    transport::{Answer, Body, location},
};
use crate::image::{Descriptor, Digest, Hasher};

/// One PATCH of a session. Small enough to be held in memory several times over, large enough that a request
/// a piece does not show.
pub(super) const PIECE: usize = 4 << 20;
/// The most that is held for a registry that wants larger pieces.
const PIECE_LIMIT: usize = 64 << 20;
/// Where a registry that refuses pieces for their size is given up.
const PIECE_FLOOR: usize = 1 << 20;

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

/// One blob on its way.
struct Transfer<'a, S> {
    writer: &'a Repository,
    descriptor: &'a Descriptor,
    source: &'a S,
    meter: Option<Meter>,
    sent: u64,
    resumed: u32,
}

impl<S: BlobSource> Transfer<'_, S> {
    /// Sends until the registry confirms.
    async fn run(&mut self, pending: Option<PendingUpload>) -> Result<(), RegistryError> {
        let what = self.descriptor.digest.as_str();
        let backoff = self.writer.client.network.options.backoff;
        let mut location = pending.map(|pending| pending.location);
        let mut offset = 0;
        let mut failures = 0;
        let mut unauthorized = false;
        loop {
            let here = match location.take() {
                Some(here) => here,
                None => self.writer.start_upload(what).await?.0.location,
            };
            let feed = Feed::default();
            let result = self.put(&here, offset, &feed).await;
            let sent = feed.progress.load(Ordering::Relaxed);
            self.sent += sent;
            let Err(error) = result else {
                return Ok(());
            };
            if let Some(fault) = feed.take_fault() {
                self.writer.cancel_upload(&here, what).await;
                return Err(fault);
            }
            failures += 1;
            // A token may end while a layer is on its way; the new one gets one chance.
            let token_ended = error.status() == Some(StatusCode::UNAUTHORIZED) && !unauthorized;
            unauthorized |= token_ended;
            let lost_session = matches!(
                error.status(),
                Some(StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE)
            );
            let again = error.is_passing() || token_ended || lost_session;
            let patient = error.retry_after().is_none_or(|time| time <= backoff.patience);
            if !(again && patient && failures < backoff.attempts) {
                self.writer.cancel_upload(&here, what).await;
                return Err(error);
            }
            tracing::debug!(%error, sent, "the upload broke");
            if error.is_passing() {
                if error.retry_after().is_none() {
                    sleep(backoff.delay(failures)).await;
                }
                // The answer may be what was lost, not the blob.
                if self.writer.has_blob(self.descriptor).await? {
                    return Ok(());
                }
            }
            (location, offset) = match self.writer.ask_upload(&here, what).await {
                Some((next, reached)) if reached <= offset + sent && reached < self.descriptor.size => {
                    if reached > offset {
                        // What got through is progress, however often it breaks.
                        failures = 0;
                    }
                    self.resumed += 1;
                    (Some(next), reached)
                }
                _ => {
                    self.writer.cancel_upload(&here, what).await;
                    (None, 0)
                }
            };
        }
    }

    /// The rest from `offset` and the digest, in one request.
    async fn put(&self, location: &Url, offset: u64, feed: &Feed) -> Result<(), RegistryError> {
        let Descriptor { digest, size, .. } = self.descriptor;
        let length = size - offset;
        let mut call = self
            .writer
            .call_at(
                Operation::SendBlob,
                Method::PUT,
                self.writer.known_base()?,
                with_digest(location, digest),
                digest.as_str(),
            )
            .unrepeated()
            .header(CONTENT_TYPE, "application/octet-stream");
        if offset > 0 {
            call = call.header(CONTENT_RANGE, &format!("{offset}-{}", size - 1));
        }
        if length > 0 {
            let content = match self.source.open(offset).await {
                Ok(content) => content,
                Err(error) => {
                    feed.fail(source_error(digest, &error));
                    return Err(source_error(digest, &error));
                }
            };
            call = call.header(CONTENT_LENGTH, &length.to_string()).body(feed.body(
                content,
                self.descriptor,
                offset,
                self.meter.clone(),
            ));
        }
        let answer = call.send().await?;
        match answer.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(()),
            status if status.is_success() => {
                Err(answer.protocol("the upload was closed, but the answer is not 201"))
            }
            _ => Err(answer.refused().await),
        }
    }
}

/// The way of a blob's bytes into a request, and what is seen of them there.
#[derive(Default)]
struct Feed {
    progress: Arc<AtomicU64>,
    /// Why the content ended early: the source's fault, which the transport reports as its own.
    fault: Arc<Mutex<Option<RegistryError>>>,
}

impl Feed {
    fn fail(&self, error: RegistryError) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn take_fault(&self) -> Option<RegistryError> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The body of a request. When all bytes pass, they are hashed, and the last part is held back if the
    /// whole is not what it should be: a registry that does not look is not given the chance to keep it.
    fn body(&self, content: ByteStream, descriptor: &Descriptor, offset: u64, meter: Option<Meter>) -> Body {
        let passage = Passage {
            content,
            digest: descriptor.digest.clone(),
            left: descriptor.size - offset,
            hasher: (offset == 0).then(|| descriptor.digest.hasher()),
            feed: Self {
                progress: Arc::clone(&self.progress),
                fault: Arc::clone(&self.fault),
            },
            meter,
        };
        let parts = stream::try_unfold(passage, |mut passage| async move {
            match passage.next().await {
                Ok(part) => Ok(part.map(|part| (part, passage))),
                Err(error) => {
                    let text = error.to_string();
                    passage.feed.fail(error);
                    Err(std::io::Error::other(text))
                }
            }
        });
        Body::Once {
            stream: Mutex::new(Some(reqwest::Body::wrap_stream(parts))),
            progress: Arc::clone(&self.progress),
        }
    }
}

struct Passage {
    content: ByteStream,
    digest: Digest,
    left: u64,
    hasher: Option<Hasher>,
    feed: Feed,
    meter: Option<Meter>,
}

impl Passage {
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if self.left == 0 {
            return Ok(None);
        }
        let wrong_size = |left: u64| RegistryError::Source {
            digest: self.digest.clone(),
            problem: format!("it does not have the descriptor's size; {left} bytes are missing"),
            reason: Some(crate::record::Reason::SizeMismatch),
        };
        let part = match self.content.next().await {
            None => return Err(wrong_size(self.left)),
            Some(Err(error)) => return Err(source_error(&self.digest, &error)),
            Some(Ok(part)) => part,
        };
        let length = part.len() as u64;
        if length > self.left {
            return Err(wrong_size(0));
        }
        self.left -= length;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&part);
        }
        if self.left == 0
            && let Some(found) = self.hasher.take().map(Hasher::finish)
            && found != self.digest
        {
            return Err(RegistryError::Source {
                digest: self.digest.clone(),
                problem: format!("it is {found}"),
                reason: Some(crate::record::Reason::DigestMismatch),
            });
        }
        self.feed.progress.fetch_add(length, Ordering::Relaxed);
        if let Some(meter) = &self.meter {
            meter(length);
        }
        Ok(Some(part))
    }
}

fn source_error(digest: &Digest, error: &std::io::Error) -> RegistryError {
    RegistryError::Source {
        digest: digest.clone(),
        problem: super::error::clean(&error.to_string(), 1024),
        reason: registry_error(error).map(RegistryError::reason),
    }
}

impl Repository {
    /// Opens an upload of content whose digest will be known at its end.
    ///
    /// # Errors
    /// When the registry refuses.
    pub async fn begin_upload(&self) -> Result<UploadSession, RegistryError> {
        let writer = self.writing();
        let (pending, least) = writer.start_upload("").await?;
        Ok(UploadSession {
            writer,
            location: pending.location,
            confirmed: 0,
            buffer: BytesMut::with_capacity(PIECE + (1 << 20)),
            piece: PIECE.max(least.unwrap_or(0)).min(PIECE_LIMIT),
        })
    }
}

/// An upload in pieces. At most one piece and the last [`Self::write`] are in memory.
#[derive(Debug)]
pub struct UploadSession {
    writer: Repository,
    location: Url,
    /// Bytes that the registry said it has.
    confirmed: u64,
    buffer: BytesMut,
    piece: usize,
}

impl UploadSession {
    /// Takes the next bytes and sends them when a piece is full.
    ///
    /// # Errors
    /// When the registry refuses a piece or lost the upload; the content has to be sent again from its start.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), RegistryError> {
        self.buffer.extend_from_slice(&bytes);
        while self.buffer.len() >= self.piece {
            let length = self.piece;
            let piece = self.buffer.split_to(length).freeze();
            self.send(piece).await?;
        }
        Ok(())
    }

    /// Sends what is left, names the whole, and reads its size back.
    ///
    /// # Errors
    /// When the registry refuses, or does not serve afterwards what it confirmed.
    pub async fn commit(mut self, digest: &Digest) -> Result<(), RegistryError> {
        let backoff = self.writer.client.network.options.backoff;
        let size = self.confirmed + self.buffer.len() as u64;
        let whole = Descriptor::new("application/octet-stream", digest.clone(), size);
        let mut rest = self.buffer.split().freeze();
        let mut failures = 0;
        loop {
            let Err(error) = self.close(digest, &rest).await else {
                break;
            };
            failures += 1;
            if !(error.is_passing() && failures < backoff.attempts) {
                return Err(error);
            }
            if error.retry_after().is_none() {
                sleep(backoff.delay(failures)).await;
            }
            if self.writer.has_blob(&whole).await? {
                break;
            }
            rest = self.pick_up(rest, error).await?;
        }
        self.writer.prove(&whole).await
    }

    /// Ends the upload without a result.
    pub async fn cancel(self) {
        self.writer.cancel_upload(&self.location, "").await;
    }

    async fn close(&self, digest: &Digest, rest: &Bytes) -> Result<(), RegistryError> {
        let mut call = self.call(
            Operation::SendBlob,
            Method::PUT,
            with_digest(&self.location, digest),
        )?;
        if self.confirmed > 0 && !rest.is_empty() {
            call = call.header(CONTENT_RANGE, &self.range_of(rest));
        }
        let answer = call.body(Body::Whole(rest.clone())).send().await?;
        match answer.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(()),
            status if status.is_success() => {
                Err(answer.protocol("the upload was closed, but the answer is not 201"))
            }
            _ => Err(answer.refused().await),
        }
    }

    /// Sends one piece, in as many requests as the registry makes of it.
    async fn send(&mut self, mut rest: Bytes) -> Result<(), RegistryError> {
        let backoff = self.writer.client.network.options.backoff;
        let mut failures = 0;
        while !rest.is_empty() {
            let piece = rest.slice(..rest.len().min(self.piece));
            let error = match self.patch(&piece).await {
                Ok(taken) => {
                    let _ = rest.split_to(taken);
                    failures = 0;
                    continue;
                }
                Err(error) => error,
            };
            failures += 1;
            let too_large = matches!(
                error.status(),
                Some(StatusCode::PAYLOAD_TOO_LARGE | StatusCode::RANGE_NOT_SATISFIABLE)
            );
            if too_large && self.piece > PIECE_FLOOR {
                self.piece = (self.piece / 2).max(PIECE_FLOOR);
            } else if !error.is_passing() || failures >= backoff.attempts {
                return Err(error);
            } else if error.retry_after().is_none() {
                sleep(backoff.delay(failures)).await;
            }
            rest = self.pick_up(rest, error).await?;
        }
        Ok(())
    }

    /// What of `rest` is still to be sent after a request whose effect is not known.
    async fn pick_up(&mut self, mut rest: Bytes, error: RegistryError) -> Result<Bytes, RegistryError> {
        match self.writer.ask_upload(&self.location, "").await {
            Some((location, reached))
                if (self.confirmed..=self.confirmed + rest.len() as u64).contains(&reached) =>
            {
                let taken = usize::try_from(reached - self.confirmed).unwrap_or(0);
                let _ = rest.split_to(taken);
                self.confirmed = reached;
                self.location = location;
                Ok(rest)
            }
            // Everything is still here, so another upload does as well.
            _ if self.confirmed == 0 => {
                self.writer.cancel_upload(&self.location, "").await;
                self.location = self.writer.start_upload("").await?.0.location;
                Ok(rest)
            }
            _ => Err(error),
        }
    }

    async fn patch(&mut self, piece: &Bytes) -> Result<usize, RegistryError> {
        let answer = self
            .call(Operation::SendBlob, Method::PATCH, self.location.clone())?
            .header(CONTENT_RANGE, &self.range_of(piece))
            .body(Body::Whole(piece.clone()))
            .send()
            .await?;
        if !matches!(answer.status(), StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Err(if answer.status().is_success() {
                answer.protocol("a piece was sent, but the answer is not 202")
            } else {
                answer.refused().await
            });
        }
        let length = piece.len() as u64;
        let reached = match range_end(&answer) {
            None => self.confirmed + length,
            // One registry counts from the piece's beginning.
            Some(last) if self.confirmed > 0 && last + 1 == length => self.confirmed + length,
            Some(0) if length > 1 => self.confirmed,
            Some(last) => last.saturating_add(1),
        };
        if reached < self.confirmed || reached > self.confirmed + length {
            return Err(answer.protocol(format!(
                "the registry says that it has {reached} bytes, but between {} and {} were sent",
                self.confirmed,
                self.confirmed + length
            )));
        }
        if reached == self.confirmed && length > 0 {
            return Err(answer.protocol("the registry took a piece and says that it has none of it"));
        }
        if answer.headers().contains_key(LOCATION) {
            self.location = self.writer.upload_location(&answer)?;
        }
        let taken = usize::try_from(reached - self.confirmed).unwrap_or(0);
        self.confirmed = reached;
        Ok(taken)
    }

    fn call(
        &self,
        operation: Operation,
        method: Method,
        url: Url,
    ) -> Result<super::transport::Call<'_>, RegistryError> {
        let call = self
            .writer
            .call_at(operation, method, self.writer.known_base()?, url, "");
        Ok(call.unrepeated().header(CONTENT_TYPE, "application/octet-stream"))
    }

    /// `first-last`, without a unit, unlike anywhere else in HTTP.
    fn range_of(&self, piece: &Bytes) -> String {
        format!(
            "{}-{}",
            self.confirmed,
            (self.confirmed + piece.len() as u64).saturating_sub(1)
        )
    }
}
