//! One read of a blob for several targets.
//!
//! Targets go through an image's blobs in one order. Each says of each blob whether it wants it, and when all
//! have, the source is read once for those that do. Nobody is waited for longer than a moment: a target that
//! comes late, breaks, or takes its bytes more slowly than the others reads for itself from where it is.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use super::BlobSource;
use crate::{
    image::Digest,
    registry::source::{ByteStream, SourceBlob},
};

/// How long a target that is ready waits for the others to say what they want: about as long as a large layer of
/// theirs may still take, as a second read of it costs more.
const GRACE: Duration = Duration::from_secs(4);
/// How long, all in all, one target may keep others waiting that have taken everything they were given; or half of
/// the time that the read took so far, where that is longer, as targets that are alike wait for each other in turn. Never
/// so long at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pieces between the reader and each target. Targets hold the same memory, so this bounds a blob's.
const PIECES: usize = 16;
/// The largest piece.
const PIECE: usize = 64 << 10;

/// Where the targets of one push meet.
#[derive(Debug)]
pub(super) struct Meeting {
    targets: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rounds: HashMap<Digest, Round>,
    /// Targets that are done with, well or badly.
    gone: HashSet<usize>,
    /// Targets that others waited for in vain; they are not waited for until they are heard of again.
    late: HashSet<usize>,
}

#[derive(Debug, Default)]
struct Round {
    /// Targets that said what they want.
    heard: HashSet<usize>,
    waiting: Vec<(usize, oneshot::Sender<Option<mpsc::Receiver<Bytes>>>)>,
    /// Whether the read began; who comes now is late.
    begun: bool,
}

impl Meeting {
    pub(super) fn new(targets: usize) -> Arc<Self> {
        Arc::new(Self {
            targets,
            state: Mutex::default(),
        })
    }

    /// A target has the blob, or gave it up.
    pub(super) fn settle(&self, target: usize, blob: &SourceBlob) {
        if self.targets == 1 {
            return;
        }
        let mut state = self.lock();
        state.late.remove(&target);
        let round = state.rounds.entry(blob.descriptor.digest.clone()).or_default();
        round.heard.insert(target);
        self.begin_if_complete(&mut state, blob);
    }

    /// A target is done with everything; nobody waits for it any more.
    pub(super) fn leave(&self, target: usize, source: impl Fn(&Digest) -> Option<SourceBlob>) {
        let mut state = self.lock();
        state.gone.insert(target);
        let open: Vec<Digest> = state.rounds.keys().cloned().collect();
        for digest in open {
            if let Some(blob) = source(&digest) {
                self.begin_if_complete(&mut state, &blob);
            }
        }
    }

    /// The blob from its beginning, for one target.
    pub(super) async fn join(self: &Arc<Self>, target: usize, blob: &SourceBlob) -> io::Result<ByteStream> {
        if self.targets == 1 {
            return blob.open(0).await;
        }
        let receiver = {
            let mut state = self.lock();
            state.late.remove(&target);
            let round = state.rounds.entry(blob.descriptor.digest.clone()).or_default();
            if round.begun {
                tracing::debug!(taker = target, digest = %blob.descriptor.digest, "comes too late to share a read");
                None
            } else {
                let (sender, receiver) = oneshot::channel();
                round.heard.insert(target);
                round.waiting.push((target, sender));
                self.begin_if_complete(&mut state, blob);
                Some(receiver)
            }
        };
        let Some(mut receiver) = receiver else {
            return blob.open(0).await;
        };
        let met = match timeout(GRACE, &mut receiver).await {
            Ok(met) => met,
            Err(_) => {
                self.begin_without_the_late(blob);
                receiver.await
            }
        };
        match met {
            Ok(Some(pieces)) => Ok(taken(pieces, blob.clone())),
            // Nobody else wants it.
            Ok(None) | Err(_) => blob.open(0).await,
        }
    }

    fn begin_without_the_late(&self, blob: &SourceBlob) {
        let mut state = self.lock();
        let State { rounds, gone, late } = &mut *state;
        if let Some(round) = rounds.get(&blob.descriptor.digest) {
            late.extend(
                (0..self.targets).filter(|target| !round.heard.contains(target) && !gone.contains(target)),
            );
        }
        self.begin_if_complete(&mut state, blob);
    }

    fn begin_if_complete(&self, state: &mut State, blob: &SourceBlob) {
        let State { rounds, gone, late } = state;
        let Some(round) = rounds.get_mut(&blob.descriptor.digest) else {
            return;
        };
        let complete = (0..self.targets)
            .all(|target| round.heard.contains(&target) || gone.contains(&target) || late.contains(&target));
        if round.begun || round.waiting.is_empty() || !complete {
            return;
        }
        round.begun = true;
        let waiting: Vec<_> = round.waiting.drain(..).collect();
        if let [_] = waiting[..] {
            for (_, sender) in waiting {
                let _ = sender.send(None);
            }
            return;
        }
        let mut takers = Vec::new();
        for (_, sender) in waiting {
            let (pieces, receiver) = mpsc::channel(PIECES);
            if sender.send(Some(receiver)).is_ok() {
                takers.push(Taker {
                    pieces,
                    held_up: Duration::ZERO,
                });
            }
        }
        tokio::spawn(read_once(blob.clone(), takers));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Taker {
    pieces: mpsc::Sender<Bytes>,
    /// How long it kept hungry others waiting.
    held_up: Duration,
}

/// Reads a blob once. It ends early where the source fails; each target then hears why from its own read.
async fn read_once(blob: SourceBlob, mut takers: Vec<Taker>) {
    let Ok(mut content) = blob.open(0).await else {
        return;
    };
    let begun = Instant::now();
    while let Some(Ok(mut part)) = content.next().await {
        while !part.is_empty() {
            let piece = part.split_to(part.len().min(PIECE));
            let patience = PATIENCE.max(begun.elapsed() / 2);
            give(&mut takers, &piece, patience).await;
            if takers.is_empty() {
                return;
            }
        }
    }
}

/// Gives a piece to everybody, and parts with who is gone or holds up the others.
async fn give(takers: &mut Vec<Taker>, piece: &Bytes, patience: Duration) {
    let mut index = 0;
    while index < takers.len() {
        if takers[index].pieces.try_send(piece.clone()).is_ok() {
            index += 1;
            continue;
        }
        let hungry = takers
            .iter()
            .enumerate()
            .any(|(other, taker)| other != index && taker.pieces.capacity() == PIECES);
        let since = Instant::now();
        let left = patience.saturating_sub(takers[index].held_up);
        let sent = if hungry {
            matches!(
                timeout(left.min(PATIENCE), takers[index].pieces.send(piece.clone())).await,
                Ok(Ok(()))
            )
        } else {
            // Nobody waits yet; look again when somebody may.
            match timeout(PATIENCE / 8, takers[index].pieces.reserve()).await {
                Ok(Ok(permit)) => {
                    permit.send(piece.clone());
                    true
                }
                Ok(Err(_)) => false,
                Err(_) => continue,
            }
        };
        if hungry {
            takers[index].held_up += since.elapsed();
        }
        if sent {
            index += 1;
        } else {
            tracing::debug!(held_up = ?takers[index].held_up, "reads on alone");
            takers.swap_remove(index);
        }
    }
}

/// What one target takes of a shared read; where that ends before the blob does, it goes on by itself.
fn taken(pieces: mpsc::Receiver<Bytes>, blob: SourceBlob) -> ByteStream {
    enum Way {
        Shared(mpsc::Receiver<Bytes>),
        Alone(ByteStream),
    }
    stream::try_unfold((Way::Shared(pieces), 0, blob), |(way, offset, blob)| async move {
        let mut alone = match way {
            Way::Shared(mut pieces) => match pieces.recv().await {
                Some(piece) => {
                    let offset = offset + piece.len() as u64;
                    return Ok(Some((piece, (Way::Shared(pieces), offset, blob))));
                }
                None if offset >= blob.descriptor.size => return Ok(None),
                None => blob.open(offset).await?,
            },
            Way::Alone(alone) => alone,
        };
        match alone.next().await {
            None => Ok(None),
            Some(piece) => {
                let piece = piece?;
                let offset = offset + piece.len() as u64;
                Ok(Some((piece, (Way::Alone(alone), offset, blob))))
            }
        }
    })
    .boxed()
}
