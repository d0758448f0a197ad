//! The commands that need no cluster as they are called: exit codes, texts, one JSON object, files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on says so by ending"
)]
#![allow(missing_docs, reason = "a test's name is its documentation")]

mod accept;
mod collect;
mod collect_progress;
mod docker;
mod inspect;
mod pipes;
mod plugin;
mod support;
