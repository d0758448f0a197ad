//! Reading blobs: sizes, small ones whole, large ones as a stream that survives a break.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{
    Method, StatusCode,
    header::{CONTENT_RANGE, RANGE},
};
use tokio::time::sleep;

use super::{
    answer::Answer,
    client::Repository,
    error::{Operation, RegistryError},
    pace::Spent,
};
use crate::image::{Descriptor, Digest};

/// A blob's bytes as they come.
pub type BlobStream = Pin<Box<dyn Stream<Item = Result<Bytes, RegistryError>> + Send>>;

impl Repository {
    /// The size of a blob; `None` when there is none. A hint: registries have been seen to say yes for blobs
    /// that they had collected as garbage.
    ///
    /// # Errors
    /// When the registry does not answer well.
    pub async fn head_blob(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        let answer = self
            .call(
                Operation::HeadBlob,
                Method::HEAD,
                &format!("blobs/{digest}"),
                digest.as_str(),
            )?
            .send()
            .await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(answer.refused().await),
        }
        match answer.length() {
            Some(size) => Ok(Some(size)),
            None => self.size_by_range(digest).await,
        }
    }

    /// A blob's size from the answer to a read of its first byte.
    pub(super) async fn size_by_range(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        let answer = self
            .call(
                Operation::HeadBlob,
                Method::GET,
                &format!("blobs/{digest}"),
                digest.as_str(),
            )?
            .header(RANGE, "bytes=0-0")
            .send()
            .await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            // Nothing has no first byte.
            StatusCode::RANGE_NOT_SATISFIABLE if answer.text(CONTENT_RANGE) == Some("bytes */0") => {
                Ok(Some(0))
            }
            StatusCode::PARTIAL_CONTENT => match content_range(&answer) {
                Some((_, _, size)) => Ok(size),
                None => Err(answer.protocol("a part without a Content-Range")),
            },
            StatusCode::OK => answer
                .length()
                .map(Some)
                .ok_or_else(|| answer.protocol("neither HEAD nor GET say the blob's size")),
            _ => Err(answer.refused().await),
        }
    }

    /// A small blob whole, proven by size and digest.
    ///
    /// # Errors
    /// When it is not there, is larger than `limit`, or is not what the descriptor says.
    pub async fn blob_bytes(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, RegistryError> {
        let at = self.place(Operation::GetBlob, descriptor.digest.as_str());
        if descriptor.size > limit {
            return Err(RegistryError::TooLarge { at, limit });
        }
        let mut stream = self.open_blob(descriptor, 0).await?;
        let mut bytes = bytes::BytesMut::new();
        while let Some(part) = stream.next().await {
            bytes.extend_from_slice(&part?);
        }
        let mut hasher = descriptor.digest.hasher();
        hasher.update(&bytes);
        let found = hasher.finish();
        if found != descriptor.digest {
            return Err(RegistryError::DigestMismatch {
                at,
                expected: descriptor.digest.clone(),
                found,
            });
        }
        Ok(bytes.freeze())
    }

    /// A blob from `offset` to its end, as a stream of exactly that many bytes.
    ///
    /// A break is mended by asking for the rest; what is not proven here is the digest, which whoever sees
    /// all bytes has to do.
    ///
    /// # Errors
    /// When the blob is not there, or the registry sends another part than was asked for.
    pub async fn open_blob(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream, RegistryError> {
        let mut reader = Reader {
            repository: self.clone(),
            descriptor: descriptor.clone(),
            offset,
            answer: None,
            skip: 0,
            failures: 0,
            budget: self.client.network.pace.of(&self.origin),
        };
        if offset < descriptor.size {
            reader.answer = Some(reader.ask().await?);
        }
        Ok(stream::try_unfold(reader, |mut reader| async move {
            let part = reader.part().await?;
            Ok(part.map(|part| (part, reader)))
        })
        .boxed())
    }
}

/// A read that goes on where it broke.
struct Reader {
    repository: Repository,
    descriptor: Descriptor,
    offset: u64,
    answer: Option<Answer>,
    /// Bytes of the answer that are known already.
    skip: u64,
    /// Since the last byte.
    failures: u32,
    /// What reading costs, where the registry has a budget.
    budget: Option<Arc<Spent>>,
}

impl Reader {
    async fn part(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let backoff = self.repository.client.network.options.backoff;
        while self.offset < self.descriptor.size {
            match self.next().await {
                Ok(part) => {
                    self.failures = 0;
                    let part_length = part.len();
                    self.offset += part_length as u64;
                    if self.offset > self.descriptor.size {
                        return Err(self.wrong_size(self.offset));
                    }
                    if let Some(budget) = self.budget.clone() {
                        Box::pin(async move { budget.bytes(part_length).await }).await;
                    }
                    return Ok(Some(part));
                }
                Err(error) if error.is_passing() && self.failures + 1 < backoff.attempts => {
                    self.failures += 1;
                    self.answer = None;
                    tracing::debug!(%error, offset = self.offset, "the read goes on where it broke");
                    sleep(backoff.delay(self.failures)).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn next(&mut self) -> Result<Bytes, RegistryError> {
        let mut answer = match self.answer.take() {
            Some(answer) => answer,
            None => self.ask().await?,
        };
        loop {
            // An end before the announced length is the transport's error; a clean end is the blob's.
            let Some(mut part) = answer.chunk().await? else {
                return Err(self.wrong_size(self.offset));
            };
            let known = usize::try_from(self.skip).unwrap_or(usize::MAX).min(part.len());
            self.skip -= known as u64;
            let part = part.split_off(known);
            if !part.is_empty() {
                self.answer = Some(answer);
                return Ok(part);
            }
        }
    }

    fn wrong_size(&self, found: u64) -> RegistryError {
        RegistryError::SizeMismatch {
            at: self
                .repository
                .place(Operation::GetBlob, self.descriptor.digest.as_str()),
            expected: self.descriptor.size,
            found,
        }
    }

    async fn ask(&mut self) -> Result<Answer, RegistryError> {
        let digest = self.descriptor.digest.clone();
        let mut call = self.repository.call(
            Operation::GetBlob,
            Method::GET,
            &format!("blobs/{digest}"),
            digest.as_str(),
        )?;
        if self.offset > 0 {
            call = call.header(RANGE, &format!("bytes={}-", self.offset));
        }
        let answer = call.send().await?;
        self.skip = 0;
        match answer.status() {
            StatusCode::OK => {
                if let Some(size) = answer.length()
                    && size != self.descriptor.size
                {
                    return Err(self.wrong_size(size));
                }
                // A registry that knows no ranges: what is known already is read past.
                self.skip = self.offset;
                Ok(answer)
            }
            StatusCode::PARTIAL_CONTENT => match content_range(&answer) {
                Some((start, end, size))
                    if start == self.offset
                        && end.checked_add(1) == Some(self.descriptor.size)
                        && size.is_none_or(|size| size == self.descriptor.size) =>
                {
                    Ok(answer)
                }
                _ => Err(answer.protocol("the answer is not the part that was asked for")),
            },
            _ => Err(answer.refused().await),
        }
    }
}

/// `Content-Range: bytes first-last/size`; the size may be `*`.
fn content_range(answer: &Answer) -> Option<(u64, u64, Option<u64>)> {
    parse_content_range(answer.text(CONTENT_RANGE)?)
}

fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let size = match size {
        "*" => None,
        size => Some(size.parse().ok()?),
    };
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last, size))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("bytes 0-0/7", Some((0, 0, Some(7))))]
    #[case("bytes 5-9/*", Some((5, 9, None)))]
    #[case("bytes 9-5/10", None)]
    #[case("bytes */10", None)]
    #[case("0-5/10", None)]
    #[case("bytes 0-18446744073709551616/1", None)]
    fn content_ranges(#[case] text: &str, #[case] expected: Option<(u64, u64, Option<u64>)>) {
        assert_eq!(parse_content_range(text), expected);
    }
}
