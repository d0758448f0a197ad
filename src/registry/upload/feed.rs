//! The way of a blob's bytes into requests, and what is seen of them there.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::Meter;
use crate::{
    image::{Descriptor, Digest, Hasher},
    registry::{
        error::RegistryError,
        pace::Spent,
        source::{ByteStream, registry_error},
        transport::Body,
    },
};

/// A blob's bytes from some offset on, for one request after the other.
#[derive(Clone)]
pub(super) struct Feed {
    passage: Arc<tokio::sync::Mutex<Passage>>,
    progress: Arc<AtomicU64>,
    /// Why the content ended early: the source's fault, which the transport reports as its own.
    fault: Arc<Mutex<Option<RegistryError>>>,
}

impl Feed {
    /// What a source has from `offset` on, no faster than the registry's budget has it.
    pub(super) fn new(
        content: ByteStream,
        descriptor: &Descriptor,
        offset: u64,
        budget: Option<Arc<Spent>>,
        meter: Option<Meter>,
    ) -> Self {
        Self {
            passage: Arc::new(tokio::sync::Mutex::new(Passage {
                content: throttled(content, budget),
                rest: Bytes::new(),
                digest: descriptor.digest.clone(),
                left: descriptor.size - offset,
                hasher: (offset == 0).then(|| descriptor.digest.hasher()),
                meter,
            })),
            progress: Arc::default(),
            fault: Arc::default(),
        }
    }

    /// Bytes that were handed to the connection.
    pub(super) fn sent(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    pub(super) fn take_fault(&self) -> Option<RegistryError> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The next part; `None` after the last one.
    ///
    /// # Errors
    /// When the source cannot be read or is not what the descriptor says.
    pub(super) async fn next(&self, most: u64) -> Result<Option<Bytes>, RegistryError> {
        let part = self.passage.lock().await.next(most).await?;
        if let Some(part) = &part {
            self.progress.fetch_add(part.len() as u64, Ordering::Relaxed);
        }
        Ok(part)
    }

    /// The next so many bytes as the body of a request. When all bytes of the blob pass, they are hashed, and the
    /// last part is held back if the whole is not what it should be: a registry that does not look is not given
    /// the chance to keep it.
    pub(super) fn body(&self, length: u64) -> Body {
        let parts = stream::try_unfold((self.clone(), length), |(feed, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            match feed.next(left).await {
                Ok(part) => Ok(part.map(|part| {
                    let left = left - part.len() as u64;
                    (part, (feed, left))
                })),
                Err(error) => {
                    let text = error.to_string();
                    *feed.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    Err(io::Error::other(text))
                }
            }
        });
        Body::Once {
            stream: Mutex::new(Some(reqwest::Body::wrap_stream(parts))),
            progress: Arc::clone(&self.progress),
        }
    }
}

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
    /// Read and not yet passed on: it belongs to the next request.
    rest: Bytes,
    digest: Digest,
    left: u64,
    hasher: Option<Hasher>,
    meter: Option<Meter>,
}

impl Passage {
    async fn next(&mut self, most: u64) -> Result<Option<Bytes>, RegistryError> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.rest.is_empty() {
            self.rest = match self.content.next().await {
                None => return Err(self.wrong_size(self.left)),
                Some(Err(error)) => return Err(source_error(&self.digest, &error)),
                Some(Ok(part)) => part,
            };
            if self.rest.len() as u64 > self.left {
                return Err(self.wrong_size(0));
            }
        }
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(self.rest.len());
        let part = self.rest.split_to(length);
        self.left -= length as u64;
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
        if let Some(meter) = &self.meter {
            meter(length as u64);
        }
        Ok(Some(part))
    }

    fn wrong_size(&self, left: u64) -> RegistryError {
        RegistryError::Source {
            digest: self.digest.clone(),
            problem: format!("it does not have the descriptor's size; {left} bytes are missing"),
            reason: Some(crate::record::Reason::SizeMismatch),
        }
    }
}

pub(super) fn source_error(digest: &Digest, error: &io::Error) -> RegistryError {
    RegistryError::Source {
        digest: digest.clone(),
        problem: crate::registry::error::clean(&error.to_string(), 1024),
        reason: registry_error(error).map(RegistryError::reason),
    }
}
