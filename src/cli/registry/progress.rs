//! How far a push is: a bar a blob on a terminal, a line an event elsewhere; always on standard error.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use crate::{
    image::Digest,
    registry::{BlobState, Listener, Progress},
};

/// What is shown.
#[derive(Clone)]
pub(super) struct Display {
    shared: Arc<Shared>,
}

struct Shared {
    targets: Vec<String>,
    bars: Option<MultiProgress>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    whole: HashMap<usize, ProgressBar>,
    blobs: HashMap<(usize, Digest), ProgressBar>,
    sent: HashMap<(usize, Digest), u64>,
}

impl Display {
    /// For targets of these names.
    pub(super) fn new(targets: Vec<String>, on_terminal: bool) -> Self {
        Self {
            shared: Arc::new(Shared {
                targets,
                bars: on_terminal.then(MultiProgress::new),
                state: Mutex::default(),
            }),
        }
    }

    pub(super) fn listener(&self) -> Listener {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |progress| shared.hear(progress))
    }

    pub(super) fn finish(&self) {
        if let Some(bars) = &self.shared.bars {
            let _ = bars.clear();
        }
    }
}

impl Shared {
    fn hear(&self, progress: Progress) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &self.bars {
            Some(bars) => self.draw(bars, &mut state, progress),
            None => self.tell(&mut state, progress),
        }
    }

    fn name(&self, target: usize) -> &str {
        self.targets.get(target).map_or("", String::as_str)
    }

    fn tell(&self, state: &mut State, progress: Progress) {
        match progress {
            Progress::Started { .. } | Progress::Ended { .. } => {}
            Progress::Blob {
                target,
                digest,
                state: BlobState::Sending(bytes),
            } => *state.sent.entry((target, digest)).or_default() += bytes,
            Progress::Blob {
                target,
                digest,
                state: became,
            } => {
                let name = self.name(target);
                let short = digest.short().to_owned();
                match (became, state.sent.remove(&(target, digest))) {
                    (BlobState::Existed, _) => complain!("{name}: blob {short} existed"),
                    (BlobState::Mounted, _) => complain!("{name}: blob {short} mounted"),
                    (_, sent) => {
                        let sent = HumanBytes(sent.unwrap_or_default());
                        complain!("{name}: blob {short} sent, {sent}");
                    }
                }
            }
            Progress::Manifest { target, digest } => {
                complain!("{}: manifest {} written", self.name(target), digest.short());
            }
            Progress::Tagged { target, tag } => complain!("{}: tag {tag}", self.name(target)),
        }
    }

    fn draw(&self, bars: &MultiProgress, state: &mut State, progress: Progress) {
        match progress {
            Progress::Started { target, blobs, .. } => {
                let bar = bars.add(ProgressBar::new(blobs as u64).with_prefix(self.name(target).to_owned()));
                if let Ok(style) = ProgressStyle::with_template("{prefix}  {pos}/{len} blobs  {wide_msg}") {
                    bar.set_style(style);
                }
                bar.tick();
                state.whole.insert(target, bar);
            }
            Progress::Blob {
                target,
                digest,
                state: BlobState::Sending(bytes),
            } => {
                let whole = state.whole.get(&target);
                let bar = state.blobs.entry((target, digest.clone())).or_insert_with(|| {
                    let bar = ProgressBar::no_length().with_prefix(digest.short().to_owned());
                    if let Ok(style) =
                        ProgressStyle::with_template("  {prefix}  {bytes}  {binary_bytes_per_sec}  {elapsed}")
                    {
                        bar.set_style(style);
                    }
                    match whole {
                        Some(whole) => bars.insert_after(whole, bar),
                        None => bars.add(bar),
                    }
                });
                bar.inc(bytes);
            }
            Progress::Blob { target, digest, .. } => {
                if let Some(bar) = state.blobs.remove(&(target, digest)) {
                    bar.finish_and_clear();
                    bars.remove(&bar);
                }
                if let Some(whole) = state.whole.get(&target) {
                    whole.inc(1);
                }
            }
            Progress::Manifest { target, digest } => {
                if let Some(whole) = state.whole.get(&target) {
                    whole.set_message(format!("manifest {}", digest.short()));
                }
            }
            Progress::Tagged { target, tag } => {
                if let Some(whole) = state.whole.get(&target) {
                    whole.set_message(format!("tag {tag}"));
                }
            }
            Progress::Ended { target } => {
                if let Some(whole) = state.whole.get(&target) {
                    whole.finish();
                }
            }
        }
    }
}
