//! One writer at a time: for a blob of a repository, and for a tag.
//!
//! Concurrent pushes in one process share layers and tags. Whoever comes second to a layer waits and then
//! finds it there; whoever comes second to a tag or a list sees what the first one wrote.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::OwnedMutexGuard;

/// Names that have a holder or somebody waiting are kept, others are swept out when there are this many.
const SWEEP: usize = 1024;

/// The turns of one process.
#[derive(Debug, Default)]
pub(super) struct Turns {
    named: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// A turn; it ends when this is dropped.
pub(super) type Turn = OwnedMutexGuard<()>;

impl Turns {
    /// Waits for one's turn at a name, an origin and a path for example.
    pub(super) async fn take(&self, name: String) -> Turn {
        self.queue(name).lock_owned().await
    }

    fn queue(&self, name: String) -> Arc<tokio::sync::Mutex<()>> {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() > SWEEP {
            named.retain(|_, queue| queue.strong_count() > 0);
        }
        if let Some(queue) = named.get(&name).and_then(Weak::upgrade) {
            return queue;
        }
        let queue = Arc::default();
        named.insert(name, Arc::downgrade(&queue));
        queue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_has_one_turn_at_a_time_and_is_forgotten_afterwards() {
        let turns = Turns::default();
        let first = turns.take("a".into()).await;
        assert!(turns.queue("a".into()).try_lock().is_err());
        drop(turns.take("b".into()).await);
        drop(first);
        drop(turns.take("a".into()).await);
        for number in 0..=SWEEP {
            drop(turns.take(number.to_string()).await);
        }
        assert!(turns.named.lock().unwrap().len() <= SWEEP + 1);
    }
}
