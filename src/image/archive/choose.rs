//! Which view of an archive is believed, whether two views agree, and which image is meant.

use super::{
    Absent, ArchiveError, ArchiveImage, ArchiveLayer, Limits, docker,
    documents::Documents,
    oci::{self, OciView},
    source::Holder,
};
use crate::image::Platform;

/// Reads every view that there is and settles what the archive holds.
pub(super) fn views(holder: &Holder, limits: &Limits) -> Result<OciView, ArchiveError> {
    let mut documents = Documents::new(holder, limits);
    let docker = docker::read(&mut documents, limits)?;
    let oci = oci::read(&mut documents, limits)?;
    let mut view = match (oci, docker) {
        (None, None) => Err(ArchiveError::malformed(
            "the archive",
            "it has neither index.json nor manifest.json, so it is no image archive",
        )),
        (Some(oci), None) => {
            if let Some(image) = oci.images.iter().find(|image| is_hollow(image)) {
                return Err(hollow(image));
            }
            Ok(oci)
        }
        (None, Some(images)) => Ok(OciView {
            images,
            ..OciView::default()
        }),
        (Some(oci), Some(images)) => settle(oci, images),
    }?;
    // Both views of one image read the same config.
    documents.warnings.dedup();
    view.warnings.append(&mut documents.warnings);
    Ok(view)
}

/// The image that is meant.
pub(super) fn single<'a>(
    images: &'a [ArchiveImage],
    absent: &[Absent],
    wanted: Option<&Platform>,
) -> Result<&'a ArchiveImage, ArchiveError> {
    let Some(wanted) = wanted else {
        return match images {
            [] => Err(ArchiveError::NoImage),
            [image] => Ok(image),
            _ => Err(ArchiveError::ManyImages { count: images.len() }),
        };
    };
    let fits = |image: &&ArchiveImage| {
        // Who names no platform at all fits where there is nothing else.
        image
            .platform
            .as_ref()
            .map_or(images.len() == 1, |platform| wanted.matches(platform))
    };
    let fitting: Vec<_> = images.iter().filter(fits).collect();
    if let [image] = fitting[..] {
        return Ok(image);
    }
    if fitting.len() > 1 {
        return Err(ArchiveError::ManyImages { count: fitting.len() });
    }
    let promised = |absent: &&Absent| {
        absent
            .platform
            .as_ref()
            .is_some_and(|found| wanted.matches(found))
    };
    if let Some(absent) = absent.iter().find(promised) {
        return Err(ArchiveError::manifest(
            super::documents::blob_name(&absent.digest),
            format!("the manifest for {wanted} is named and not in the archive"),
        ));
    }
    if images.is_empty() {
        return Err(ArchiveError::NoImage);
    }
    let found: Vec<String> = images
        .iter()
        .map(|image| {
            image
                .platform
                .as_ref()
                .map_or("no platform".into(), ToString::to_string)
        })
        .collect();
    Err(ArchiveError::PlatformMissing {
        wanted: wanted.clone(),
        found: found.join(", "),
    })
}

/// Compares the two views of one archive.
///
/// `docker save` of version 25 wrote manifests with layers left out or in another order, and indexes with
/// images left out; where the other view is complete it is believed, with a warning. Anything else that
/// differs is refused.
fn settle(oci: OciView, docker: Vec<ArchiveImage>) -> Result<OciView, ArchiveError> {
    if oci.images.is_empty() {
        let mut warnings = oci.warnings;
        warnings.push("index.json names no image that is there; manifest.json was believed".into());
        return Ok(OciView {
            images: docker,
            warnings,
            ..oci
        });
    }
    let mut settled = OciView {
        images: Vec::new(),
        ..oci
    };
    let same = |a: &ArchiveImage, b: &ArchiveImage| a.config.digest == b.config.digest;
    let only_docker = docker
        .iter()
        .filter(|image| !oci.images.iter().any(|other| same(image, other)))
        .count();
    let only_oci = oci
        .images
        .iter()
        .filter(|image| !docker.iter().any(|other| same(image, other)))
        .count();
    if only_docker > 0 && only_oci > 0 {
        return Err(ArchiveError::ambiguous(
            "manifest.json",
            "it names another image than index.json",
        ));
    }
    if only_docker > 0 {
        settled
            .warnings
            .push("index.json leaves out images that manifest.json names".into());
    }
    let mut docker: Vec<Option<ArchiveImage>> = docker.into_iter().map(Some).collect();
    for image in oci.images {
        let section = docker
            .iter_mut()
            .find(|section| section.as_ref().is_some_and(|section| same(section, &image)))
            .and_then(Option::take);
        settled.images.push(match section {
            Some(section) => settle_layers(image, section, &mut settled.warnings)?,
            None if is_hollow(&image) => return Err(hollow(&image)),
            None => image,
        });
    }
    settled.images.extend(docker.into_iter().flatten());
    Ok(settled)
}

fn settle_layers(
    image: ArchiveImage,
    section: ArchiveImage,
    warnings: &mut Vec<String>,
) -> Result<ArchiveImage, ArchiveError> {
    let paths = |layers: &[ArchiveLayer]| -> Vec<String> {
        layers.iter().map(|layer| layer.member.clone()).collect()
    };
    let (ours, theirs) = (paths(&image.layers), paths(&section.layers));
    if ours == theirs {
        let mut tags = image.tags.clone();
        tags.extend(section.tags);
        let mut tags_once = Vec::new();
        for tag in tags {
            if !tags_once.contains(&tag) {
                tags_once.push(tag);
            }
        }
        return Ok(ArchiveImage {
            tags: tags_once,
            ..image
        });
    }
    let mut sorted = (ours.clone(), theirs.clone());
    sorted.0.sort();
    sorted.1.sort();
    // The config's diff IDs are proven against the bytes later, so a wrong order cannot pass.
    if is_hollow(&image) || sorted.0 == sorted.1 {
        warnings.push(
            "the manifest of index.json leaves out layers or has them in another order; \
             manifest.json was believed"
                .into(),
        );
        return Ok(section);
    }
    Err(ArchiveError::ambiguous(
        "manifest.json",
        "it names other layers than index.json does",
    ))
}

/// A manifest without any layer, of an image that has some.
fn is_hollow(image: &ArchiveImage) -> bool {
    image.layers.len() != image.diff_ids.len()
}

fn hollow(image: &ArchiveImage) -> ArchiveError {
    ArchiveError::manifest(
        image
            .manifest
            .as_ref()
            .map_or("the manifest", |manifest| manifest.digest.as_str()),
        "it names no layer and its config does",
    )
}
