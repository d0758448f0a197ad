//! How large a request each origin takes, and each line to one carries.

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

/// What of a blob is sent at a time where the line breaks often. Each break loses what is on its way, up to a
/// window of some MiB; a stride bounds that, and costs a round trip.
const STRIDE: u64 = 2 << 20;
/// A line that carries less than this from one break to the next breaks often: a window of 4 MiB that is lost each
/// time would be a thirtieth of what is sent.
const OFTEN: u64 = 128 << 20;

/// What was learned of origins from their answers; nothing is known by name.
#[derive(Debug, Default)]
pub(in crate::registry) struct Learned {
    pieces: Mutex<HashMap<String, usize>>,
    lines: Mutex<HashMap<String, Line>>,
}

/// What became of uploads to one origin.
#[derive(Debug, Default)]
struct Line {
    sent: u64,
    breaks: u64,
    /// The registry takes no part of a blob.
    whole_only: bool,
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

    /// So many bytes of an upload were sent, and then it was done or the line broke.
    pub(super) fn carried(&self, origin: &str, bytes: u64, broke: bool) {
        let mut lines = self.lines();
        let line = lines.entry(origin.to_owned()).or_default();
        line.sent += bytes;
        line.breaks += u64::from(broke);
    }

    /// How much is sent at a time, if not everything. One break is an accident.
    pub(super) fn stride(&self, origin: &str) -> Option<u64> {
        let lines = self.lines();
        let line = lines.get(origin)?;
        let breaks_often = line.breaks > 1 && line.sent / line.breaks < OFTEN;
        (breaks_often && !line.whole_only).then_some(STRIDE)
    }

    /// The registry did not take a part of a blob.
    pub(super) fn takes_no_parts(&self, origin: &str) {
        self.lines().entry(origin.to_owned()).or_default().whole_only = true;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, usize>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, HashMap<String, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[rstest]
    #[case::never(&[(1 << 30, false)], None)]
    #[case::an_accident(&[(1 << 20, true)], None)]
    #[case::twice_in_little(&[(1 << 20, true), (1 << 20, true)], Some(STRIDE))]
    #[case::twice_in_much(&[(1 << 20, true), (1 << 20, true), (1 << 30, false)], None)]
    fn a_line_that_breaks_often_carries_little_at_a_time(
        #[case] carried: &[(u64, bool)],
        #[case] expected: Option<u64>,
    ) {
        let learned = Learned::default();
        for (bytes, broke) in carried {
            learned.carried("https://a", *bytes, *broke);
        }
        assert_eq!(learned.stride("https://a"), expected);
        assert_eq!(learned.stride("https://b"), None);
        learned.takes_no_parts("https://a");
        assert_eq!(learned.stride("https://a"), None);
    }
}
