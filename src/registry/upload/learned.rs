//! How large a request each origin takes.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// One PATCH of a session. Small enough to be held in memory several times over, large enough that a request
/// a piece does not show, and the most that one large registry takes.
pub(in crate::registry) const PIECE: usize = 4 << 20;
/// The most that is held for a registry that wants larger pieces.
pub(super) const PIECE_LIMIT: usize = 64 << 20;
/// Where a registry that refuses pieces for their size is given up.
pub(super) const PIECE_FLOOR: usize = 1 << 20;

/// What was learned of origins from their answers; nothing is known by name.
#[derive(Debug, Default)]
pub(in crate::registry) struct Learned {
    pieces: Mutex<HashMap<String, usize>>,
}

impl Learned {
    /// The size of pieces where whole blobs were too large.
    pub(super) fn piece(&self, origin: &str) -> Option<usize> {
        self.lock().get(origin).copied()
    }

    /// A request of so many bytes was too large; whether smaller ones may do.
    pub(super) fn too_large(&self, origin: &str, tried: u64) -> bool {
        if tried <= PIECE_FLOOR as u64 {
            return false;
        }
        let half = usize::try_from(tried / 2).unwrap_or(usize::MAX);
        let smaller = half.clamp(PIECE_FLOOR, PIECE);
        let mut pieces = self.lock();
        let piece = pieces.entry(origin.to_owned()).or_insert(smaller);
        *piece = smaller.min(*piece);
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, usize>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::a_layer(&[1 << 30], Some(PIECE))]
    #[case::twice(&[1 << 30, PIECE as u64], Some(PIECE / 2))]
    #[case::never_larger_again(&[PIECE as u64, 1 << 30], Some(PIECE / 2))]
    #[case::down_to_the_floor(&[PIECE as u64, 2 << 20, (1 << 20) + 2], Some(PIECE_FLOOR))]
    #[case::nothing_is_small_enough(&[PIECE_FLOOR as u64], None)]
    fn pieces_shrink_and_do_not_grow(#[case] tried: &[u64], #[case] expected: Option<usize>) {
        let learned = Learned::default();
        for tried in tried {
            learned.too_large("https://a", *tried);
        }
        assert_eq!(learned.piece("https://a"), expected);
        assert_eq!(learned.piece("https://b"), None);
    }
}
