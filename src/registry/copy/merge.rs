//! One index of two: an image's platforms into what a tag already holds.
//!
//! The policy, whole: entries for a platform of ours give way to ours; entries for other platforms stay, as they
//! are and in their order, and ours come after them; an attestation stays only beside the image that it is about;
//! whatever else the index says stays. Merging the same image again changes nothing.
//!
//! An index that clients share is written by reading it first, see [`super::rewrite`].

use serde_json::json;

use super::{
    CopyError, Image, Outcome, PushOptions, Target,
    entries::{Entry, document, entries, index, index_type, listed, staying},
    plan::read_document,
    rewrite::{Made, rewrite},
};
use crate::{
    image::Digest,
    registry::{manifest::RawManifest, source::ImageSource},
};

/// Puts an image's platforms into the index under the target's tag; without one there, an index of them alone.
/// Returns the digest of what the tag then holds.
///
/// The target has one tag; of its policies only `Immutable` means anything else than `IfUnchanged` here.
///
/// # Errors
/// When the tag holds something that is no index or of the other family of media types, when the image does not
/// say its platform, and when a registry does not answer well.
pub async fn push_merged(
    image: &Image,
    source: &ImageSource,
    target: &Target,
    options: &PushOptions,
) -> Result<(Digest, Outcome), CopyError> {
    let ours = entries(&image.root, source).await?;
    let is_index = image.media_type() == index_type(image);
    if !is_index && ours.iter().all(|own| own.platform().is_none()) {
        return Err(CopyError::Manifest {
            digest: image.root.digest.clone(),
            problem: "its config does not say for which platform it is".to_owned(),
        });
    }
    let [tag] = &target.tags[..] else {
        return Err(CopyError::Unmergeable {
            what: target.repository.name().to_owned(),
            problem: "a merge needs exactly one tag".to_owned(),
        });
    };
    let (merged, outcome) = rewrite(source, target, options, async || {
        let theirs = target.repository.manifest(tag).await?;
        Ok(Made {
            image: image.under(merge(theirs.as_ref(), &ours, index_type(image))?)?,
            found: vec![theirs.map(|found| found.digest)],
        })
    })
    .await?;
    Ok((merged.digest().clone(), outcome))
}

/// The index of both.
fn merge(
    theirs: Option<&RawManifest>,
    ours: &[Entry],
    media_type: &'static str,
) -> Result<RawManifest, CopyError> {
    let (document, mut merged) = match theirs {
        None => (json!({"schemaVersion": 2, "mediaType": media_type}), Vec::new()),
        Some(theirs) if theirs.media_type != media_type => {
            return Err(CopyError::Unmergeable {
                what: theirs.digest.to_string(),
                problem: format!(
                    "the tag holds {:?}, and the image would go into {media_type:?}; push without merging, or under another tag",
                    theirs.media_type
                ),
            });
        }
        Some(theirs) => {
            read_document(theirs)?;
            (document(theirs)?, staying(&listed(theirs)?, ours))
        }
    };
    merged.extend_from_slice(ours);
    index(document, merged, media_type)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use bytes::Bytes;
    use serde_json::Value;

    use super::*;
    use crate::{image::media_type, registry::copy::plan::ATTESTS};

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    /// `name platform`, or `name about other` for an attestation.
    fn entry(text: &str) -> Value {
        let words: Vec<&str> = text.split(' ').collect();
        let mut entry = json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest(words[0]), "size": 7});
        match words[1..] {
            ["about", other] => {
                entry["platform"] = json!({"os": "unknown", "architecture": "unknown"});
                entry["annotations"] = json!({ATTESTS: digest(other)});
            }
            [platform] => {
                let mut parts = platform.split(['/', '@']);
                entry["platform"] = json!({"os": parts.next(), "architecture": parts.next()});
                match (parts.next(), platform.contains('@')) {
                    (Some(version), true) => entry["platform"]["os.version"] = version.into(),
                    (Some(variant), false) => entry["platform"]["variant"] = variant.into(),
                    _ => {}
                }
            }
            _ => {}
        }
        entry
    }

    fn raw(media_type: &str, entries: &[&str]) -> RawManifest {
        let entries: Vec<Value> = entries.iter().map(|text| entry(text)).collect();
        let document = json!({"schemaVersion": 2, "mediaType": media_type, "annotations": {"kept": "yes"}, "manifests": entries});
        let bytes = Bytes::from(document.to_string());
        RawManifest {
            digest: Digest::of(&bytes),
            media_type: media_type.to_owned(),
            bytes,
        }
    }

    fn names(merged: &RawManifest, known: &[&str]) -> Vec<String> {
        let document: Value = serde_json::from_slice(&merged.bytes).unwrap();
        let entries = document["manifests"].as_array().unwrap();
        let name = |entry: &Value| {
            let is_it = |text: &&&str| {
                let name = text.split(' ').next().unwrap();
                json!(digest(name)) == entry["digest"]
            };
            known
                .iter()
                .find(is_it)
                .unwrap()
                .split(' ')
                .next()
                .unwrap()
                .to_owned()
        };
        entries.iter().map(name).collect()
    }

    #[rstest]
    #[case::nothing_there(&[], &["a linux/amd64"], &["a"])]
    #[case::replaced(&["old linux/amd64"], &["a linux/amd64"], &["a"])]
    #[case::others_stay(&["x linux/arm64", "old linux/amd64", "y linux/s390x"], &["a linux/amd64"], &["x", "y", "a"])]
    #[case::the_same_again(&["x linux/arm64", "a linux/amd64"], &["a linux/amd64"], &["x", "a"])]
    #[case::a_variant_that_is_implied(&["old linux/arm64"], &["a linux/arm64/v8"], &["a"])]
    #[case::another_variant(&["x linux/arm/v6"], &["a linux/arm/v7"], &["x", "a"])]
    #[case::another_version_of_windows(&["x windows/amd64@10.0.1"], &["a windows/amd64@10.0.2"], &["x", "a"])]
    #[case::the_same_version_of_windows(&["old windows/amd64@10.0.1"], &["a windows/amd64@10.0.1"], &["a"])]
    #[case::dangling(&["old linux/amd64", "sbom about old", "x linux/arm64", "proof about x"], &["a linux/amd64"], &["x", "proof", "a"])]
    #[case::dangling_before(&["x linux/arm64", "lost about nobody"], &["a linux/amd64"], &["x", "a"])]
    #[case::ours_come_with_theirs(&["old linux/amd64", "sbom about old"], &["a linux/amd64", "new about a"], &["a", "new"])]
    #[case::attested_again(&["a linux/amd64", "proof about a"], &["a linux/amd64"], &["proof", "a"])]
    #[case::without_a_platform(&["x"], &["a linux/amd64"], &["x", "a"])]
    #[case::several(&["p linux/amd64", "q linux/arm64", "r linux/riscv64"], &["a linux/amd64", "b linux/arm64"], &["r", "a", "b"])]
    fn platforms_of_ours_are_replaced_others_stay_and_nothing_dangles(
        #[case] theirs: &[&str],
        #[case] ours: &[&str],
        #[case] expected: &[&str],
    ) {
        let known = [theirs, ours].concat();
        let theirs = (!theirs.is_empty()).then(|| raw(media_type::OCI_INDEX, theirs));
        let ours: Vec<Entry> = ours.iter().map(|text| Entry(entry(text))).collect();
        let merged = merge(theirs.as_ref(), &ours, media_type::OCI_INDEX).unwrap();
        assert_eq!(names(&merged, &known), expected);
        let again = merge(Some(&merged), &ours, media_type::OCI_INDEX).unwrap();
        assert_eq!(again, merged, "a second merge changes nothing");
        if theirs.is_some() {
            let document: Value = serde_json::from_slice(&merged.bytes).unwrap();
            assert_eq!(document["annotations"]["kept"], "yes");
        }
    }

    #[rstest]
    #[case::families(media_type::DOCKER_LIST)]
    #[case::an_image(media_type::OCI_MANIFEST)]
    fn what_is_no_index_of_our_family_is_left_alone(#[case] media_type: &str) {
        let theirs = raw(media_type, &["x linux/arm64"]);
        let error = merge(
            Some(&theirs),
            &[Entry(entry("a linux/amd64"))],
            media_type::OCI_INDEX,
        )
        .unwrap_err();
        assert!(error.to_string().contains(media_type), "{error}");
    }

    #[test]
    fn a_merge_keeps_to_the_limits() {
        let many: Vec<String> = (0..128)
            .map(|number| format!("x{number} linux/x{number}"))
            .collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let theirs = raw(media_type::OCI_INDEX, &many);
        assert!(
            merge(
                Some(&theirs),
                &[Entry(entry("a linux/amd64"))],
                media_type::OCI_INDEX
            )
            .is_err()
        );
    }
}
