//! Platforms in the spelling of the OCI image index: `os/architecture[/variant]`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An operating system, a CPU architecture and, where the architecture needs one, a variant.
///
/// Source: OCI image index, "platform"; architecture names are Go's. `arm64` and `arm64/v8` are one
/// platform, as are `arm` and `arm/v7`: see [`Platform::matches`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    /// For example `linux`.
    pub os: String,
    /// For example `amd64`.
    pub architecture: String,
    /// For example `v7` of `arm`.
    pub variant: Option<String>,
}

/// Why a text is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: write os/architecture or os/architecture/variant, for example linux/arm64")]
pub struct PlatformError(String);

impl Platform {
    /// Whether an image for `other` runs where this one is asked for.
    pub fn matches(&self, other: &Self) -> bool {
        self.os == other.os
            && self.architecture == other.architecture
            && self.normal_variant() == other.normal_variant()
    }

    /// A part of an object's name: `linux/arm/v7` is `arm-v7`, and only other systems are named.
    pub fn slug(&self) -> String {
        let mut parts = Vec::new();
        if self.os != "linux" {
            parts.push(self.os.as_str());
        }
        parts.push(self.architecture.as_str());
        parts.extend(self.variant.as_deref());
        parts.join("-")
    }

    fn normal_variant(&self) -> Option<&str> {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm64", Some("v8")) => None,
            ("arm", None) => Some("v7"),
            (_, variant) => variant,
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let legal = |part: &str| {
            !part.is_empty()
                && part.len() <= 32
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'.')
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|part| legal(part)) {
            return Err(PlatformError(text.chars().take(80).collect()));
        }
        match parts[..] {
            [os, architecture] => Ok(Self {
                os: os.into(),
                architecture: architecture.into(),
                variant: None,
            }),
            [os, architecture, variant] => Ok(Self {
                os: os.into(),
                architecture: architecture.into(),
                variant: Some(variant.into()),
            }),
            _ => Err(PlatformError(text.chars().take(80).collect())),
        }
    }
}

impl TryFrom<String> for Platform {
    type Error = PlatformError;

    fn try_from(text: String) -> Result<Self, PlatformError> {
        text.parse()
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .iter()
            .try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("linux/arm64", "linux/arm64/v8", true)]
    #[case("linux/arm", "linux/arm/v7", true)]
    #[case("linux/arm/v6", "linux/arm/v7", false)]
    #[case("linux/amd64", "linux/arm64", false)]
    fn variants_match_as_runtimes_match_them(
        #[case] wanted: &str,
        #[case] found: &str,
        #[case] matches: bool,
    ) {
        let (wanted, found): (Platform, Platform) = (wanted.parse().unwrap(), found.parse().unwrap());
        assert_eq!(wanted.matches(&found), matches);
    }

    #[rstest]
    #[case::one_part("amd64")]
    #[case::empty_part("linux/")]
    #[case::upper_case("Linux/AMD64")]
    #[case::four_parts("linux/arm/v7/x")]
    fn malformed_platforms_are_refused(#[case] text: &str) {
        assert!(text.parse::<Platform>().is_err());
    }

    #[test]
    fn a_slug_is_short_for_linux_and_legal_in_a_name() {
        assert_eq!("linux/arm/v7".parse::<Platform>().unwrap().slug(), "arm-v7");
        assert_eq!(
            "windows/amd64".parse::<Platform>().unwrap().slug(),
            "windows-amd64"
        );
    }
}
