//! The root of a build's image: the one manifest, or the index over several.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::{
    api::v1alpha1::{BuiltImage, PlatformStatus},
    image::{Descriptor, Digest, Index, media_type},
};

/// What a build's tag will point to.
pub struct Root {
    /// The manifest, or the index.
    pub descriptor: Descriptor,
    /// The bytes of an index; a single manifest was stored by its collector.
    pub index: Option<Vec<u8>>,
}

/// The root over all platforms; `None` when one of them has no manifest.
///
/// The index is in the order of the recipe's platforms, so that the same images give the same digest.
pub fn root(platforms: &[PlatformStatus]) -> Option<Root> {
    let children: Option<Vec<Descriptor>> = platforms.iter().map(child).collect();
    let mut children = children?;
    if children.len() == 1 {
        let descriptor = children.pop()?;
        return Some(Root {
            descriptor: Descriptor {
                platform: None,
                ..descriptor
            },
            index: None,
        });
    }
    let index = Index {
        schema_version: 2,
        media_type: media_type::OCI_INDEX.into(),
        manifests: children,
        annotations: std::collections::BTreeMap::new(),
    };
    let bytes = serde_json::to_vec(&index).ok()?;
    let descriptor = Descriptor::new(media_type::OCI_INDEX, Digest::of(&bytes), bytes.len() as u64);
    Some(Root {
        descriptor,
        index: Some(bytes),
    })
}

fn child(status: &PlatformStatus) -> Option<Descriptor> {
    let mut descriptor = Descriptor::new(
        status.manifest_media_type.clone()?,
        status.manifest.clone()?,
        status.manifest_size?,
    );
    descriptor.platform = Some((&status.platform).into());
    Some(descriptor)
}

/// What the status says of a whole image.
pub fn built(root: &Descriptor, repository: &str, platforms: &[PlatformStatus]) -> BuiltImage {
    let distinct: BTreeSet<_> = platforms
        .iter()
        .flat_map(|p| &p.layers)
        .map(|l| (&l.digest, l.size))
        .collect();
    BuiltImage {
        reference: format!("{repository}@{}", root.digest),
        digest: root.digest.clone(),
        media_type: root.media_type.clone(),
        layer_bytes: distinct.iter().map(|(_, size)| size).sum(),
    }
}

/// The digest of a value's JSON; keys of maps are sorted, so equal values have equal digests.
pub fn json_digest(value: &impl Serialize) -> Digest {
    Digest::of(&serde_json::to_vec(value).unwrap_or_default())
}
