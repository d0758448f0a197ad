//! How a collection is watched: a bar for each layer on a terminal, a line for each elsewhere.

use std::{
    collections::HashMap,
    io::IsTerminal as _,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{Digest, outcome};
use crate::collect::{Event, Observer};

/// Often enough to look smooth.
const REFRESH: Duration = Duration::from_millis(100);

/// Bars or lines on standard error, so that standard output has the result alone.
pub(super) struct Progress {
    observer: Observer,
}

/// Bars that move, each with the count that it follows.
type Moving = Mutex<HashMap<Digest, (ProgressBar, Arc<AtomicU64>)>>;

impl Progress {
    /// Whoever wants JSON reads no lines, but may look at bars.
    pub(super) fn new(json: bool) -> Self {
        let observer: Observer = if std::io::stderr().is_terminal() {
            bars()
        } else if json {
            Arc::new(|_| ())
        } else {
            Arc::new(|event| {
                if let Event::Placed { layer, .. } = event {
                    complain!(
                        "layer {} {:?} {} {}",
                        layer.diff_id.short(),
                        layer.origin,
                        layer.digest.short(),
                        outcome::size(layer.size)
                    );
                }
            })
        };
        Self { observer }
    }

    pub(super) fn observer(&self) -> Observer {
        Arc::clone(&self.observer)
    }
}

fn bars() -> Observer {
    let all = MultiProgress::new();
    let style =
        ProgressStyle::with_template("{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    let moving = Arc::<Moving>::default();
    follow(Arc::downgrade(&moving));
    Arc::new(move |event| {
        let mut bars = moving.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Begun { diff_id, size, read } => {
                let bar = all.add(ProgressBar::new(size).with_style(style.clone()));
                bar.set_prefix(diff_id.short().to_owned());
                if let Some((earlier, _)) = bars.insert(diff_id.clone(), (bar, read)) {
                    // The layer is sent once more.
                    earlier.finish_and_clear();
                }
            }
            Event::Placed { layer, .. } => {
                let text = format!("{:?} {}", layer.origin, outcome::size(layer.size));
                match bars.remove(&layer.diff_id) {
                    Some((bar, _)) => {
                        bar.set_position(bar.length().unwrap_or_default());
                        bar.finish_with_message(text);
                    }
                    None => {
                        // Nothing printed is lost when this fails.
                        let _ = all.println(format!("{} {text}", layer.diff_id.short()));
                    }
                }
            }
        }
    })
}

/// Moves the bars for as long as somebody holds them.
fn follow(moving: Weak<Moving>) {
    tokio::spawn(async move {
        while let Some(moving) = moving.upgrade() {
            for (bar, read) in moving.lock().unwrap_or_else(PoisonError::into_inner).values() {
                bar.set_position(read.load(Ordering::Relaxed));
            }
            drop(moving);
            tokio::time::sleep(REFRESH).await;
        }
    });
}
