//! A blob whose digest is known, in one request that goes on where it broke; in several where the line to the registry
//! breaks so often that what is on its way each time adds up.

use futures_util::join;
use http::{
    Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION},
};
use reqwest::Url;
use tokio::time::sleep;

use super::{
    Meter, PendingUpload,
    feed::{Feed, source_error},
    is_too_large, range_end, with_digest,
};
use crate::{
    image::Descriptor,
    registry::{
        client::Repository,
        error::{Operation, RegistryError},
        source::BlobSource,
        transport::Call,
    },
};

/// Where an upload is.
struct Course {
    here: Url,
    offset: u64,
    /// Whether the request under way is for a part of what is left.
    part: bool,
}

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
        let lines = &network.learned;
        let mut offset = 0;
        let mut failures = 0;
        let mut unauthorized = false;
        let mut whole = false;
        loop {
            let open = async {
                match location.take() {
                    Some(here) => Ok(here),
                    None => Ok(self.writer.start_upload(what).await?.0.location),
                }
            };
            // Both are somewhere else, so neither waits for the other.
            let (here, feed) = join!(open, self.feed(offset));
            let mut course = Course {
                here: here?,
                offset,
                part: false,
            };
            let feed = match feed {
                Ok(feed) => feed,
                Err(fault) => {
                    self.writer.cancel_upload(&course.here, what).await;
                    return Err(fault);
                }
            };
            let result = self.send(&mut course, feed.as_ref(), whole).await;
            let sent = feed.as_ref().map_or(0, Feed::sent);
            self.sent += sent;
            let here = course.here;
            if let Some(fault) = feed.as_ref().and_then(Feed::take_fault) {
                self.writer.cancel_upload(&here, what).await;
                return Err(fault);
            }
            let broke = matches!(result, Err(RegistryError::Unreachable { .. }));
            lines.carried(&self.writer.origin, sent, broke);
            let Err(error) = result else {
                return Ok(());
            };
            if offset == 0
                && !course.part
                && is_too_large(&error)
                && lines.too_large(&self.writer.origin, self.descriptor.size)
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
            // Of a session that took parts before, a 404 says that it is gone.
            let strode = course.offset > offset && error.status() == Some(StatusCode::NOT_FOUND);
            let refuses_parts = course.part && !strode && is_about_the_part(&error);
            if refuses_parts {
                lines.takes_no_parts(&self.writer.origin);
                whole = true;
            }
            let again = error.is_passing() || token_ended || lost_session || refuses_parts;
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
            let most = offset + sent;
            let reached;
            (location, reached) = self.resume(here, most).await;
            if reached > offset {
                // What got through is progress, however often it breaks.
                failures = 0;
            }
            offset = reached;
        }
    }

    /// Where an upload goes on that broke after at most `most` bytes; from the beginning where that is not known.
    async fn resume(&mut self, here: Url, most: u64) -> (Option<Url>, u64) {
        let what = self.descriptor.digest.as_str();
        match self.writer.ask_upload(&here, what).await {
            Some((next, reached)) if reached <= most && reached < self.descriptor.size => {
                self.resumed += 1;
                (Some(next), reached)
            }
            _ => {
                self.writer.cancel_upload(&here, what).await;
                (None, 0)
            }
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
        let Some(feed) = self.feed(0).await? else {
            return session.finish(digest).await;
        };
        let result = loop {
            match feed.next(u64::MAX).await {
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

    /// The rest from `offset`, if there is any.
    async fn feed(&self, offset: u64) -> Result<Option<Feed>, RegistryError> {
        if offset >= self.descriptor.size {
            return Ok(None);
        }
        let content = self.source.open(offset).await;
        let content = content.map_err(|error| source_error(&self.descriptor.digest, &error))?;
        let budget = self.writer.client.network.pace.of(&self.writer.origin);
        let meter = self.meter.clone();
        Ok(Some(Feed::new(content, self.descriptor, offset, budget, meter)))
    }

    /// Everything that is left.
    async fn send(&self, course: &mut Course, feed: Option<&Feed>, whole: bool) -> Result<(), RegistryError> {
        if let Some(feed) = feed.filter(|_| !whole) {
            let learned = &self.writer.client.network.learned;
            while let Some(stride) = learned.stride(&self.writer.origin)
                && self.descriptor.size - course.offset > stride
            {
                course.part = true;
                course.here = self.patch(&course.here, course.offset, stride, feed).await?;
                course.offset += stride;
            }
        }
        course.part = false;
        self.put(&course.here, course.offset, feed).await
    }

    /// The next `length` bytes, which the registry confirms; where the upload goes on.
    async fn patch(
        &self,
        location: &Url,
        offset: u64,
        length: u64,
        feed: &Feed,
    ) -> Result<Url, RegistryError> {
        let end = offset + length - 1;
        let call = self
            .call(Method::PATCH, location.clone())?
            .header(CONTENT_RANGE, &format!("{offset}-{end}"))
            .header(CONTENT_LENGTH, &length.to_string())
            .body(feed.body(length));
        let answer = call.send().await?;
        if !matches!(answer.status(), StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Err(answer.refused().await);
        }
        if range_end(&answer) != Some(end) {
            return Err(
                answer.protocol("the registry took a part and says that it has another part of the blob")
            );
        }
        if answer.headers().contains_key(LOCATION) {
            self.writer.upload_location(&answer)
        } else {
            Ok(location.clone())
        }
    }

    /// The rest from `offset` and the digest, in one request.
    async fn put(&self, location: &Url, offset: u64, feed: Option<&Feed>) -> Result<(), RegistryError> {
        let Descriptor { digest, size, .. } = self.descriptor;
        let mut call = self.call(Method::PUT, with_digest(location, digest))?;
        if offset > 0 {
            call = call.header(CONTENT_RANGE, &format!("{offset}-{}", size - 1));
        }
        if let Some(feed) = feed {
            let length = size - offset;
            call = call
                .header(CONTENT_LENGTH, &length.to_string())
                .body(feed.body(length));
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

    fn call(&self, method: Method, url: Url) -> Result<Call<'_>, RegistryError> {
        let home = self.writer.known_base()?;
        let what = self.descriptor.digest.as_str();
        let call = self.writer.call_at(Operation::SendBlob, method, home, url, what);
        Ok(call.unrepeated().header(CONTENT_TYPE, "application/octet-stream"))
    }
}

/// Whether the registry minds that it was sent a part. Who we are and where it sends us is another matter.
fn is_about_the_part(error: &RegistryError) -> bool {
    match error.status() {
        Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => false,
        Some(_) => !error.is_passing(),
        None => matches!(error, RegistryError::Protocol { .. }),
    }
}
