//! One layer on its way to a store.

use std::{io, sync::Arc};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{CollectError, Cost, Event, Options, blocking};
use crate::{
    image::{
        Descriptor, Digest,
        archive::{Archive, ArchiveError, ArchiveLayer, Content, layer},
        compress::{Compression, Method, Pool},
        media_type,
    },
    staging::{Store, Upload},
};

/// Pieces between the thread that computes and the task that sends, so that the one goes on while the other
/// waits for an answer. A piece is a compressed block, a quarter of a MiB as a rule.
const PIECES_IN_FLIGHT: usize = 16;

/// A layer that is in the store and proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub digest: Digest,
    pub size: u64,
    pub media_type: String,
    pub cost: Cost,
}

impl Stored {
    pub(super) fn descriptor(&self) -> Descriptor {
        Descriptor::new(self.media_type.clone(), self.digest.clone(), self.size)
    }
}

/// One layer of an archive, and what is needed to read it.
#[derive(Clone)]
pub(super) struct Source {
    archive: Arc<Archive>,
    layer: Arc<ArchiveLayer>,
    pool: Pool,
    method: Method,
    observer: super::Observer,
}

impl Source {
    pub(super) fn new(
        archive: &Arc<Archive>,
        layer: &Arc<ArchiveLayer>,
        pool: &Pool,
        options: &Options,
    ) -> Self {
        Self {
            archive: Arc::clone(archive),
            layer: Arc::clone(layer),
            pool: pool.clone(),
            method: options.method,
            observer: Arc::clone(&options.observer),
        }
    }

    /// Proves the layer and stores what the store does not have of it.
    ///
    /// May be called again after it failed: it reads the archive from the layer's beginning. With `anyway` the
    /// layer is sent even where the store says that it has it.
    pub(super) async fn store<S: Store>(&self, store: &S, anyway: bool) -> Result<Stored, CollectError> {
        let work = self.open().await?;
        let is_there = match &self.layer.digest {
            Some(digest) if work.compression != Compression::None && !anyway => {
                store.blob_size(digest).await? == Some(work.content.size())
            }
            _ => false,
        };
        if is_there {
            // The bytes are there; that they are this diff ID's has still to be proven.
            let mut stored = blocking(move || work.prove(|_| Ok(()))).await??;
            stored.cost.uploaded = 0;
            return Ok(stored);
        }
        send(store, work).await
    }

    /// Proves the archive's copy of a layer that is known.
    pub(super) async fn verify(&self) -> Result<Cost, CollectError> {
        let work = self.open().await?;
        let stored = blocking(move || work.prove(|_| Ok(()))).await??;
        Ok(Cost {
            uploaded: 0,
            ..stored.cost
        })
    }

    async fn open(&self) -> Result<Work, CollectError> {
        let source = self.clone();
        let work = blocking(move || {
            let Some(content) = source.archive.content(&source.layer)? else {
                return Err(source.archive.missing(&source.layer));
            };
            let compression = layer::compression_of(&source.layer, &content)?;
            Ok::<_, ArchiveError>(Work {
                source,
                content,
                compression,
            })
        })
        .await??;
        (self.observer)(Event::Begun {
            diff_id: &self.layer.diff_id,
            size: work.content.size(),
            read: work.content.progress(),
        });
        Ok(work)
    }
}

async fn send<S: Store>(store: &S, work: Work) -> Result<Stored, CollectError> {
    let mut upload = store.begin_upload().await?;
    let (sender, mut pieces) = mpsc::channel::<Bytes>(PIECES_IN_FLIGHT);
    let computing = tokio::task::spawn_blocking(move || {
        work.produce(|piece| {
            sender
                .blocking_send(piece)
                .map_err(|_| io::ErrorKind::BrokenPipe.into())
        })
    });
    let mut sent = Ok(());
    while let Some(piece) = pieces.recv().await {
        sent = upload.write(piece).await;
        if sent.is_err() {
            break;
        }
    }
    // Lets the thread end where sending failed.
    drop(pieces);
    let computed = computing
        .await
        .map_err(|error| CollectError::Internal(error.to_string()))?;
    sent?;
    let stored = computed?;
    upload.commit(&stored.digest).await?;
    Ok(stored)
}

/// What a thread needs to read one layer.
struct Work {
    source: Source,
    content: Content,
    compression: Compression,
}

impl Work {
    /// Reads the layer once and hands out the bytes that are to be stored.
    fn produce(&self, mut sink: impl FnMut(Bytes) -> io::Result<()>) -> Result<Stored, CollectError> {
        if self.compression == Compression::None {
            self.compress(sink)
        } else {
            self.prove(|bytes| sink(Bytes::copy_from_slice(bytes)))
        }
    }

    fn prove(&self, sink: impl FnMut(&[u8]) -> io::Result<()>) -> Result<Stored, CollectError> {
        let proven = layer::prove(
            &self.source.layer,
            &self.content,
            self.source.archive.limits(),
            sink,
        )
        .map_err(|error| self.blame(error))?;
        Ok(Stored {
            digest: proven.digest,
            size: proven.size,
            media_type: match proven.compression {
                Compression::Zstd => media_type::OCI_LAYER_ZSTD.into(),
                Compression::Gzip => media_type::OCI_LAYER_GZIP.into(),
                Compression::None => media_type::OCI_LAYER.into(),
            },
            cost: Cost {
                read: proven.size,
                hashed: proven.decompressed,
                compressed: 0,
                uploaded: proven.size,
            },
        })
    }

    fn compress(&self, mut sink: impl FnMut(Bytes) -> io::Result<()>) -> Result<Stored, CollectError> {
        let layer = &*self.source.layer;
        let limits = self.source.archive.limits();
        if self.content.size() > limits.layer_bytes {
            return Err(CollectError::Archive(ArchiveError::Limit {
                what: "bytes in a layer",
                limit: limits.layer_bytes,
            }));
        }
        if layer
            .digest
            .as_ref()
            .is_some_and(|digest| *digest != layer.diff_id)
        {
            // Told by two algorithms, or wrongly: one more pass says which.
            layer::prove(layer, &self.content, limits, |_| Ok(())).map_err(|error| self.blame(error))?;
        }
        let method = self.source.method;
        let compressed = self
            .source
            .pool
            .compress(method, self.content.reader(), layer.diff_id.hasher(), |piece| {
                sink(Bytes::from(piece))
            })
            .map_err(|error| self.blame(layer::read_error(&layer.member, error)))?;
        layer::check_size(layer, compressed.input_size).map_err(|error| self.blame(error))?;
        layer::check_diff_id(layer, compressed.input_digest).map_err(|error| self.blame(error))?;
        Ok(Stored {
            digest: compressed.digest,
            size: compressed.size,
            media_type: method.media_type().into(),
            cost: Cost {
                read: compressed.input_size,
                hashed: compressed.input_size,
                compressed: if method == Method::Keep {
                    0
                } else {
                    compressed.size
                },
                uploaded: compressed.size,
            },
        })
    }

    /// What is wrong in an archive that is written to is that it is written to.
    fn blame(&self, error: ArchiveError) -> CollectError {
        CollectError::Archive(self.source.archive.check_unchanged().err().unwrap_or(error))
    }
}
