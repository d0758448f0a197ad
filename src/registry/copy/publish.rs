//! What becomes of the platforms that a tag has already: replaced, kept, or a reason to refuse.
//!
//! Only the root is made anew, and only where something is kept; what is kept lies in the target's repository, so
//! nothing of it is sent. The bytes of our own image are never touched.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    CopyError, Image, Target,
    entries::{Entry, document, entries, index, index_type, staying},
};
use crate::{image::media_type, registry::client::Repository};

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

/// The image as it goes to one target.
///
/// # Errors
/// When the target does not answer well, and when a platform would be lost that is not to be, or would have to be
/// kept in an index of another family.
pub async fn for_target(
    image: &Image,
    source: &Repository,
    target: &Target,
    policy: PublishPolicy,
) -> Result<Image, CopyError> {
    if matches!(policy, PublishPolicy::WhenComplete | PublishPolicy::AsReady) {
        return Ok(image.clone());
    }
    let ours = entries(&image.root, &source.clone().into()).await?;
    let mut all = ours.clone();
    for tag in &target.tags {
        let Some(old) = target.repository.manifest(tag).await? else {
            continue;
        };
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
        return Ok(image.clone());
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
    image.under(index(written, all, media_type)?)
}

/// The platforms of a tag that are not there already, and the attestations about them.
fn kept(mut old: Vec<Entry>, there: &[Entry], ours: &[Entry]) -> Vec<Entry> {
    old.retain(|entry| entry.attests().is_some() || entry.platform().is_some());
    let about_ours = |about: &str| ours.iter().any(|our| our.digest() == Some(about));
    let mut kept = staying(&old, there);
    kept.retain(|entry| !entry.attests().is_some_and(about_ours));
    kept
}
