//! Why an upload is refused.

use crate::{image::archive::ArchiveError, record::Reason};

/// Why an upload is refused. Two texts are Launchpad's, to the letter.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// No subfolder has the file that says what the upload is.
    #[error("Build did not produce a digests.json.")]
    NoDigests {
        /// Whether there is one in the upload folder itself, where none counts.
        at_top: bool,
    },
    /// The first layer that is neither known nor there.
    #[error("Missing layer file: {layer_id}.")]
    LayerFile {
        /// The stem of the layer's file.
        layer_id: String,
    },
    /// The image's own list of images is not there.
    #[error("Build did not produce a manifest.json.")]
    NoManifest,
    /// A list without any layer.
    #[error("digests.json: it names no layer; the build must leave at least one")]
    NoLayer,
    /// What is accepted cannot be kept where it should be.
    #[error("{path}: {error}")]
    Keep {
        /// The folder.
        path: String,
        /// What the system says.
        #[source]
        error: std::io::Error,
    },
    /// What is wrong with a file, as in any archive.
    #[error(transparent)]
    File(#[from] ArchiveError),
}

impl UploadError {
    /// The stable reason that users, metrics and tests see.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoDigests { .. } => Reason::DigestsMissing,
            Self::LayerFile { .. } | Self::NoLayer => Reason::LayerMissing,
            Self::NoManifest => Reason::ManifestInvalid,
            Self::Keep { .. } => Reason::InternalError,
            Self::File(error) => error.reason(),
        }
    }

    /// The file that it is about.
    pub fn member(&self) -> Option<String> {
        match self {
            Self::NoDigests { .. } | Self::NoLayer => Some("digests.json".into()),
            Self::LayerFile { layer_id } => Some(super::digests::file_name(layer_id)),
            Self::NoManifest => Some("manifest.json".into()),
            Self::Keep { path, .. } => Some(path.clone()),
            Self::File(error) => error.member().map(str::to_owned),
        }
    }

    /// What to do, where the message does not say it.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::NoDigests { at_top: true } => {
                Some("there is one in the upload folder itself; files count only in a folder below it")
            }
            _ => None,
        }
    }
}
