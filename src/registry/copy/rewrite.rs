//! A tag whose new content depends on what it holds: read, made, and written if it still holds that; else all again.

use super::{CopyError, Image, Outcome, PushOptions, TagPolicy, Target, push::push_to};
use crate::{image::Digest, registry::source::ImageSource};

/// How often it begins again because somebody else moved the tag.
const TRIES: usize = 8;

/// An image that was made of what a target's tags held.
#[derive(Clone)]
pub struct Made {
    /// The image.
    pub image: Image,
    /// Where each tag pointed to, in the target's order; empty where that did not matter.
    pub found: Vec<Option<Digest>>,
}

/// Pushes what is made of a target's tags under them.
///
/// # Errors
/// When it cannot be made, now or the next time; what became of the push is the outcome.
pub(super) async fn rewrite(
    source: &ImageSource,
    target: &Target,
    options: &PushOptions,
    make: impl AsyncFn() -> Result<Made, CopyError>,
) -> Result<(Image, Outcome), CopyError> {
    let target = if_unchanged(target.clone());
    let mut tries = 0;
    let mut last: Option<Outcome> = None;
    loop {
        tries += 1;
        let Made { image, found } = make().await?;
        let options = PushOptions {
            tags: vec![found],
            ..options.clone()
        };
        let mut outcome = push_to(&image, source, &target, &options).await;
        if let Some(earlier) = &last {
            outcome = outcome.after(earlier);
        }
        if !(target.policy == TagPolicy::IfUnchanged && moved_meanwhile(&outcome)) || tries == TRIES {
            return Ok((image, outcome));
        }
        tracing::debug!(
            repository = target.repository.name(),
            tries,
            "a tag moved meanwhile"
        );
        last = Some(outcome);
    }
}

/// The target, where what was made of its tags may overwrite nothing else.
pub(super) fn if_unchanged(mut target: Target) -> Target {
    if target.policy == TagPolicy::Overwrite {
        target.policy = TagPolicy::IfUnchanged;
    }
    target
}

/// Whether a tag was taken by somebody else. Where a registry knows no conditions, the look at what is served finds
/// some of what they prevent.
pub(super) fn moved_meanwhile(outcome: &Outcome) -> bool {
    matches!(
        outcome.result,
        Err(CopyError::TagTaken { .. } | CopyError::Verification { .. })
    )
}
