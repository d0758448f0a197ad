//! An upload in pieces.

use bytes::{Bytes, BytesMut};
use http::{
    Method, StatusCode,
    header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION},
};
use reqwest::Url;
use tokio::time::sleep;

use super::{
    is_too_large,
    learned::{PIECE, PIECE_LIMIT},
    range_end, with_digest,
};
use crate::{
    image::{Descriptor, Digest},
    registry::{
        client::Repository,
        error::{Operation, RegistryError},
        transport::Body,
    },
};

impl Repository {
    /// Opens an upload of content whose digest will be known at its end.
    ///
    /// # Errors
    /// When the registry refuses.
    pub async fn begin_upload(&self) -> Result<UploadSession, RegistryError> {
        let writer = self.writing();
        let (pending, least) = writer.start_upload("").await?;
        let learned = writer.client.network.learned.piece(&writer.origin);
        let piece = learned.unwrap_or(PIECE).max(least.unwrap_or(0)).min(PIECE_LIMIT);
        Ok(UploadSession {
            writer,
            location: pending.location,
            confirmed: 0,
            buffer: BytesMut::with_capacity(piece + (1 << 20)),
            piece,
            resumed: 0,
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
    /// How often it went on after a break.
    pub(super) resumed: u32,
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
        let size = self.confirmed + self.buffer.len() as u64;
        self.finish(digest).await?;
        let whole = Descriptor::new("application/octet-stream", digest.clone(), size);
        self.writer.prove(&whole).await
    }

    /// Sends what is left, and names the whole.
    pub(super) async fn finish(&mut self, digest: &Digest) -> Result<(), RegistryError> {
        let backoff = self.writer.client.network.options.backoff;
        let size = self.confirmed + self.buffer.len() as u64;
        let whole = Descriptor::new("application/octet-stream", digest.clone(), size);
        let mut rest = self.buffer.split().freeze();
        let mut failures = 0;
        loop {
            let Err(error) = self.close(digest, &rest).await else {
                return Ok(());
            };
            failures += 1;
            if !(error.is_passing() && failures < backoff.attempts) {
                return Err(error);
            }
            if error.retry_after().is_none() {
                sleep(backoff.delay(failures)).await;
            }
            if self.writer.has_blob(&whole).await? {
                return Ok(());
            }
            rest = self.pick_up(rest, error).await?;
        }
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
            let network = &self.writer.client.network;
            if is_too_large(&error) && network.learned.too_large(&self.writer.origin, piece.len() as u64) {
                self.piece = network.learned.piece(&self.writer.origin).unwrap_or(self.piece);
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
                self.resumed += 1;
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
    ) -> Result<crate::registry::transport::Call<'_>, RegistryError> {
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
