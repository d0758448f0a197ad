//! A blob whose digest is known, in one request that goes on where it broke.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt, stream, try_join};
use http::{
    Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE},
};
use reqwest::Url;
use tokio::time::sleep;

use super::{Meter, PendingUpload, is_too_large, with_digest};
use crate::{
    image::{Descriptor, Digest, Hasher},
    registry::{
        client::Repository,
        error::{Operation, RegistryError},
        pace::Spent,
        source::{BlobSource, ByteStream, registry_error},
        transport::Body,
    },
};

/// One blob on its way.
pub(super) struct Transfer<'a, S> {
    pub(super) writer: &'a Repository,
    pub(super) descriptor: &'a Descriptor,
    pub(super) source: &'a S,
    pub(super) meter: Option<Meter>,
    pub(super) sent: u64,
    pub(super) resumed: u32,
}

impl<S: BlobSource> Transfer<'_, S> {
    /// Sends until the registry confirms.
    pub(super) async fn run(&mut self, pending: Option<PendingUpload>) -> Result<(), RegistryError> {
        let what = self.descriptor.digest.as_str();
        let network = &self.writer.client.network;
        let backoff = network.options.backoff;
        let mut location = pending.map(|pending| pending.location);
        let is_larger = |piece: usize| self.descriptor.size > piece as u64;
        if network.learned.piece(&self.writer.origin).is_some_and(is_larger) {
            if let Some(unused) = location {
                self.writer.cancel_upload(&unused, what).await;
            }
            return self.run_in_pieces().await;
        }
        let mut offset = 0;
        let mut failures = 0;
        let mut unauthorized = false;
        loop {
            let open = async {
                match location.take() {
                    Some(here) => Ok(here),
                    None => Ok(self.writer.start_upload(what).await?.0.location),
                }
            };
            // Both are somewhere else, so neither waits for the other.
            let (here, content) = try_join!(open, self.content(offset))?;
            let pace = network.pace.of(&self.writer.origin);
            let content = content.map(|content| content.map(|content| throttled(content, pace)));
            let feed = Feed::default();
            let result = self.put(&here, offset, content, &feed).await;
            let sent = feed.progress.load(Ordering::Relaxed);
            self.sent += sent;
            let Err(error) = result else {
                return Ok(());
            };
            if let Some(fault) = feed.take_fault() {
                self.writer.cancel_upload(&here, what).await;
                return Err(fault);
            }
            if offset == 0
                && is_too_large(&error)
                && network
                    .learned
                    .too_large(&self.writer.origin, self.descriptor.size)
            {
                self.writer.cancel_upload(&here, what).await;
                return self.run_in_pieces().await;
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

    /// For a registry, or a proxy in front of it, that does not take the blob in one request.
    async fn run_in_pieces(&mut self) -> Result<(), RegistryError> {
        let backoff = self.writer.client.network.options.backoff;
        let mut failures = 0;
        loop {
            let Err(error) = self.send_pieces().await else {
                return Ok(());
            };
            failures += 1;
            let lost_session = error.status() == Some(StatusCode::NOT_FOUND);
            if !(error.is_passing() || lost_session) || failures >= backoff.attempts {
                return Err(error);
            }
            tracing::debug!(%error, "the upload in pieces starts again");
        }
    }

    async fn send_pieces(&mut self) -> Result<(), RegistryError> {
        let digest = &self.descriptor.digest;
        let mut session = self.writer.begin_upload().await?;
        let content = self.source.open(0).await;
        let content = content.map_err(|error| source_error(digest, &error))?;
        let feed = Feed::default();
        let mut passage = feed.passage(content, self.descriptor, 0, self.meter.clone());
        let result = loop {
            match passage.next().await {
                Ok(Some(part)) => {
                    self.sent += part.len() as u64;
                    if let Err(error) = session.write(part).await {
                        break Err(error);
                    }
                }
                Ok(None) => break session.finish(digest).await,
                Err(error) => break Err(error),
            }
        };
        self.resumed += session.resumed;
        if result.is_err() {
            session.cancel().await;
        }
        result
    }

    /// The rest from `offset`, if there is any. That it cannot be had is found out when it is to be sent.
    async fn content(&self, offset: u64) -> Result<Option<io::Result<ByteStream>>, RegistryError> {
        Ok(if offset < self.descriptor.size {
            Some(self.source.open(offset).await)
        } else {
            None
        })
    }

    /// The rest from `offset` and the digest, in one request.
    async fn put(
        &self,
        location: &Url,
        offset: u64,
        content: Option<io::Result<ByteStream>>,
        feed: &Feed,
    ) -> Result<(), RegistryError> {
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
        if let Some(content) = content {
            let content = match content {
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

    fn passage(
        &self,
        content: ByteStream,
        descriptor: &Descriptor,
        offset: u64,
        meter: Option<Meter>,
    ) -> Passage {
        Passage {
            content,
            digest: descriptor.digest.clone(),
            left: descriptor.size - offset,
            hasher: (offset == 0).then(|| descriptor.digest.hasher()),
            feed: Self {
                progress: Arc::clone(&self.progress),
                fault: Arc::clone(&self.fault),
            },
            meter,
        }
    }

    /// The body of a request. When all bytes pass, they are hashed, and the last part is held back if the
    /// whole is not what it should be: a registry that does not look is not given the chance to keep it.
    fn body(&self, content: ByteStream, descriptor: &Descriptor, offset: u64, meter: Option<Meter>) -> Body {
        let passage = self.passage(content, descriptor, offset, meter);
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

/// The same, no faster than the registry's budget has it.
fn throttled(content: ByteStream, budget: Option<Arc<Spent>>) -> ByteStream {
    let Some(budget) = budget else { return content };
    Box::pin(content.then(move |part| {
        let budget = Arc::clone(&budget);
        async move {
            if let Ok(part) = &part {
                budget.bytes(part.len()).await;
            }
            part
        }
    }))
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
        problem: crate::registry::error::clean(&error.to_string(), 1024),
        reason: registry_error(error).map(RegistryError::reason),
    }
}
