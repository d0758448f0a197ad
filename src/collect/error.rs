//! Why no image was collected.

use crate::{
    image::archive::ArchiveError,
    record::{Failure, Reason},
    staging::StagingError,
};

/// Why no image was collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The archive's fault.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The store's fault.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// A thread of ours ended badly.
    #[error("a part of the collection ended without a result: {0}")]
    Internal(String),
}

impl CollectError {
    /// The stable reason that users, metrics and tests see.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Archive(error) => error.reason(),
            Self::Staging(error) => error.reason(),
            Self::Internal(_) => Reason::InternalError,
        }
    }

    /// The member of the archive that it is about, if it is about one.
    pub fn member(&self) -> Option<&str> {
        match self {
            Self::Archive(error) => error.member(),
            Self::Staging(_) | Self::Internal(_) => None,
        }
    }
}

impl From<&CollectError> for Failure {
    fn from(error: &CollectError) -> Self {
        // Names in the message are the build's.
        Self::new(error.reason(), visible(&error.to_string()))
    }
}

/// The text without what changes how the text around it is shown.
pub fn visible(text: &str) -> String {
    text.chars()
        .map(|char| {
            let is_direction =
                matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if char.is_control() || is_direction {
                '\u{fffd}'
            } else {
                char
            }
        })
        .collect()
}
