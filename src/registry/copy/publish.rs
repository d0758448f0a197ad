//! What becomes of the platforms that a tag has already: replaced, kept, or a reason to refuse.
//!
//! Only the root is made anew, and only where something is kept; what is kept lies in the target's repository, so
//! nothing of it is sent. The bytes of our own image are never touched.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    CopyError, Image, Outcome, PushOptions, TagPolicy, Target,
    entries::{Entry, document, entries, index, index_type, staying},
    rewrite::{Made, if_unchanged, moved_meanwhile, rewrite},
};
use crate::{image::media_type, registry::source::ImageSource};

/// What is published under a tag that points to other platforms already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PublishPolicy {
    /// The whole image, once every platform is built, and nothing else: the digest is the image's.
    #[default]
    WhenComplete,
    /// Each platform as soon as it is built, beside those that the tag has; in the end the whole image, and nothing
    /// else. Of an image that is whole already this is `WhenComplete`.
    AsReady,
    /// The whole image, and beside it the platforms that the tag has and the image lacks, as in Launchpad's lists.
    KeepOld,
    /// The whole image, unless the tag has a platform that it lacks.
    RefuseIfArchLost,
}

impl PublishPolicy {
    /// Whether what is published depends on what the tags hold.
    fn looks(self) -> bool {
        matches!(self, Self::KeepOld | Self::RefuseIfArchLost)
    }
}

/// The image as it goes to one target, and the target as it is written to: what depends on a tag's content takes the
/// place of that content and of nothing else.
///
/// # Errors
/// When the target does not answer well, and when a platform would be lost that is not to be, or would have to be
/// kept in an index of another family.
pub async fn for_target(
    image: &Image,
    source: &ImageSource,
    target: Target,
    policy: PublishPolicy,
) -> Result<(Made, Target), CopyError> {
    let made = made_for(image, source, &target, policy).await?;
    let target = if policy.looks() {
        if_unchanged(target)
    } else {
        target
    };
    Ok((made, target))
}

/// Another push to a target one of whose tags moved after [`for_target`] had looked; none where that is how it is
/// to end.
///
/// # Errors
/// As [`for_target`]; what became of the push is the outcome.
pub async fn push_again(
    image: &Image,
    source: &ImageSource,
    target: &Target,
    policy: PublishPolicy,
    outcome: &Outcome,
) -> Result<Option<(Image, Outcome)>, CopyError> {
    if !policy.looks() || target.policy != TagPolicy::Overwrite || !moved_meanwhile(outcome) {
        return Ok(None);
    }
    let options = PushOptions::default();
    let make = async || made_for(image, source, target, policy).await;
    let (image, again) = Box::pin(rewrite(source, target, &options, make)).await?;
    Ok(Some((image, again.after(outcome))))
}

async fn made_for(
    image: &Image,
    source: &ImageSource,
    target: &Target,
    policy: PublishPolicy,
) -> Result<Made, CopyError> {
    let mut found = Vec::new();
    if !policy.looks() {
        let image = image.clone();
        return Ok(Made { image, found });
    }
    let ours = entries(&image.root, source).await?;
    let mut all = ours.clone();
    for tag in &target.tags {
        let old = target.repository.manifest(tag).await?;
        found.push(old.as_ref().map(|old| old.digest.clone()));
        let Some(old) = old else { continue };
        if old.digest == *image.digest() {
            continue;
        }
        let old = entries(&old, &target.repository.clone().into()).await?;
        let kept = kept(old, &all, &ours);
        let lost = kept.iter().find_map(Entry::platform);
        if let (PublishPolicy::RefuseIfArchLost, Some(platform)) = (policy, lost) {
            return Err(CopyError::PlatformLost {
                tag: tag.clone(),
                platform: platform.to_string(),
            });
        }
        all.extend(kept);
    }
    if all.len() == ours.len() {
        let image = image.clone();
        return Ok(Made { image, found });
    }
    let media_type = index_type(image);
    let docker = media_type == media_type::DOCKER_LIST;
    if let Some(digest) = all[ours.len()..]
        .iter()
        .filter(|entry| entry.is_docker() != docker)
        .find_map(|entry| entry.digest()?.parse().ok())
    {
        return Err(CopyError::Families { digest });
    }
    let written = if image.media_type() == media_type {
        document(&image.root)?
    } else {
        json!({ "schemaVersion": 2, "mediaType": media_type })
    };
    let image = image.under(index(written, all, media_type)?)?;
    Ok(Made { image, found })
}

/// The platforms of a tag that are not there already, and the attestations about them.
fn kept(mut old: Vec<Entry>, there: &[Entry], ours: &[Entry]) -> Vec<Entry> {
    old.retain(|entry| entry.attests().is_some() || entry.platform().is_some());
    let about_ours = |about: &str| ours.iter().any(|our| our.digest() == Some(about));
    let mut kept = staying(&old, there);
    kept.retain(|entry| !entry.attests().is_some_and(about_ours));
    kept
}
