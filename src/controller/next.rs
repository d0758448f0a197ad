//! When an object is looked at again.

use std::time::Duration;

use kube::runtime::controller::Action;

use crate::kubernetes::watches::RESYNC;

/// When an object is looked at again without an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At once: a step was taken and the next one is due.
    Now,
    /// After this time.
    After(Duration),
    /// On the next event; a slow look all the same repairs what a lost event left.
    Change,
    /// On the next event only: it has ended.
    Done,
}

impl From<Next> for Action {
    fn from(next: Next) -> Self {
        match next {
            Next::Now => Self::requeue(Duration::ZERO),
            Next::After(wait) => Self::requeue(wait),
            Next::Change => Self::requeue(RESYNC),
            Next::Done => Self::await_change(),
        }
    }
}
