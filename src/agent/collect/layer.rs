//! One layer on its way to staging.

use std::{io, num::NonZero, sync::Arc};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{CollectError, blocking};
use crate::{
    image::{
        Digest,
        archive::{Archive, ArchiveError, ArchiveLayer, Content, layer},
        compress::{self, Compression},
        media_type,
    },
    staging::{Store, Upload},
};

/// Pieces between the thread that computes and the task that sends, so that the one goes on while the other
/// waits for an answer. A piece is a compressed block, a quarter of a MiB as a rule.
const PIECES_IN_FLIGHT: usize = 8;

/// A layer that is in staging and proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub digest: Digest,
    pub size: u64,
    pub media_type: String,
    pub cost: Cost,
}

/// What storing a layer took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub read: u64,
    pub hashed: u64,
    pub compressed: u64,
    pub uploaded: u64,
}

/// Proves a layer of the archive and stores what staging does not have of it.
///
/// May be called again after it failed: it reads the archive from the layer's beginning. With `anyway` the
/// layer is sent even where staging says that it has it.
pub(super) async fn store<S: Store>(
    store: &S,
    archive: &Arc<Archive>,
    layer: &Arc<ArchiveLayer>,
    anyway: bool,
) -> Result<Stored, CollectError> {
    let content = {
        let (archive, layer) = (archive.clone(), layer.clone());
        blocking(move || archive.content(&layer)).await??
    };
    let Some(content) = content else {
        let (archive, layer) = (archive.clone(), layer.clone());
        return Err(blocking(move || archive.missing(&layer)).await?.into());
    };
    let compression = {
        let (layer, content) = (layer.clone(), content.clone());
        blocking(move || layer::compression_of(&layer, &content)).await??
    };
    let is_there = match &layer.digest {
        Some(digest) if compression != Compression::None && !anyway => {
            store.blob_size(digest).await? == Some(content.size())
        }
        _ => false,
    };
    let work = Work {
        archive: archive.clone(),
        layer: layer.clone(),
        content,
        compression,
    };
    if is_there {
        // The bytes are there; that they are this diff ID's has still to be proven.
        return blocking(move || work.prove(|_| Ok(()))).await?.map(|mut stored| {
            stored.cost.uploaded = 0;
            stored
        });
    }
    send(store, work).await
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
    archive: Arc<Archive>,
    layer: Arc<ArchiveLayer>,
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
        let proven = layer::prove(&self.layer, &self.content, self.archive.limits(), sink)
            .map_err(|error| self.blame(error))?;
        Ok(Stored {
            digest: proven.digest,
            size: proven.size,
            media_type: match proven.compression {
                Compression::Zstd => media_type::OCI_LAYER_ZSTD.into(),
                _ => media_type::OCI_LAYER_GZIP.into(),
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
        let limit = self.archive.limits().layer_bytes;
        if self.content.size() > limit {
            return Err(CollectError::Archive(ArchiveError::Limit {
                what: "bytes in a layer",
                limit,
            }));
        }
        if self
            .layer
            .digest
            .as_ref()
            .is_some_and(|digest| *digest != self.layer.diff_id)
        {
            // Told by two algorithms, or wrongly: one more pass says which.
            layer::prove(&self.layer, &self.content, self.archive.limits(), |_| Ok(()))
                .map_err(|error| self.blame(error))?;
        }
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let compressed = compress::gzip(
            self.content.reader(),
            self.layer.diff_id.hasher(),
            threads,
            |piece| sink(Bytes::from(piece)),
        )
        .map_err(|error| self.blame(layer::read_error(&self.layer.member, error)))?;
        layer::check_size(&self.layer, compressed.input_size).map_err(|error| self.blame(error))?;
        layer::check_diff_id(&self.layer, compressed.input_digest).map_err(|error| self.blame(error))?;
        Ok(Stored {
            digest: compressed.digest,
            size: compressed.size,
            media_type: media_type::OCI_LAYER_GZIP.into(),
            cost: Cost {
                read: compressed.input_size,
                hashed: compressed.input_size,
                compressed: compressed.size,
                uploaded: compressed.size,
            },
        })
    }

    /// What is wrong in an archive that is written to is that it is written to.
    fn blame(&self, error: ArchiveError) -> CollectError {
        CollectError::Archive(self.archive.check_unchanged().err().unwrap_or(error))
    }
}
