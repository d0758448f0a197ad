//! Names of images: `host[:port]/repository[:tag][@digest]`.

use std::{fmt, str::FromStr};

use reqwest::Url;

use crate::image::Digest;

/// The longest `host[:port]/repository` that registries agree on.
///
/// Source: OCI distribution specification, "Pulling manifests".
const NAME_LIMIT: usize = 255;

/// An image, a repository or a tag in a registry that is named, never guessed.
///
/// Source: OCI distribution specification, "Pulling manifests". Docker's short names (`alpine`,
/// `docker.io/alpine`) are not completed: where a name without a host leads is a decision of the machine
/// that reads it, and a push must not depend on one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// `host[:port]`.
    pub registry: String,
    /// The repository's path.
    pub repository: String,
    /// The tag, if one was written.
    pub tag: Option<String>,
    /// The digest, if one was written.
    pub digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The first part is not a host.
    #[error("{text:?} names no registry: write it in full, for example registry.example.com/team/app")]
    NoRegistry {
        /// What was read.
        text: String,
    },
    /// The grammar of names, tags and digests does not allow it.
    #[error("{text:?} is not an image reference: {problem}")]
    Malformed {
        /// What was read.
        text: String,
        /// What is wrong.
        problem: String,
    },
    /// Only a repository was wanted.
    #[error("{text:?} has a tag or a digest where only host/repository belongs")]
    NotARepository {
        /// What was read.
        text: String,
    },
}

impl Reference {
    /// Reads `host[:port]/repository` and refuses a tag or digest after it.
    pub fn repository(text: &str) -> Result<Self, ReferenceError> {
        let reference: Self = text.parse()?;
        if reference.tag.is_some() || reference.digest.is_some() {
            return Err(ReferenceError::NotARepository { text: excerpt(text) });
        }
        Ok(reference)
    }

    /// The same repository at `tag`.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Malformed {
                text: excerpt(tag),
                problem: TAG_RULE.to_owned(),
            });
        }
        Ok(Self {
            tag: Some(tag.to_owned()),
            digest: None,
            ..self.clone()
        })
    }

    /// The same repository at `digest`.
    #[must_use]
    pub fn with_digest(&self, digest: &Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest.clone()),
            ..self.clone()
        }
    }

    /// What to ask the registry for: the digest, else the tag, else `latest`.
    pub fn selector(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }
}

const TAG_RULE: &str =
    "a tag has at most 128 of letters, digits, '_', '.' and '-', and starts with none of the last two";

/// Whether a text is one part of a host's name.
fn is_label(text: &str) -> bool {
    let ends_well = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    ends_well(bytes.first())
        && ends_well(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

/// Whether a text is one part of a repository's path.
///
/// Source: OCI distribution specification, "Pulling manifests".
fn is_part(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut separators = text.split(is_word).filter(|between| !between.is_empty());
    let ends_well = |c: Option<char>| c.is_some_and(is_word);
    ends_well(text.chars().next())
        && ends_well(text.chars().next_back())
        && separators
            .all(|between| matches!(between, "." | "_" | "__") || between.bytes().all(|byte| byte == b'-'))
}

/// Whether a text is a tag.
pub(super) fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// Whether the part before the first slash can only be a host.
fn is_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':'])
}

fn excerpt(text: &str) -> String {
    text.chars().take(300).collect()
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let malformed = |problem: String| ReferenceError::Malformed {
            text: excerpt(text),
            problem,
        };
        let (registry, path) = text
            .split_once('/')
            .filter(|(host, _)| is_host(host))
            .ok_or_else(|| ReferenceError::NoRegistry { text: excerpt(text) })?;
        let (path, digest) = match path.split_once('@') {
            Some((path, digest)) => {
                let digest: Digest = digest
                    .parse()
                    .map_err(|error: crate::image::DigestError| malformed(error.to_string()))?;
                (path, Some(digest))
            }
            None => (path, None),
        };
        let (repository, tag) = match path.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag.to_owned())),
            None => (path, None),
        };
        if registry.len() + 1 + repository.len() > NAME_LIMIT {
            return Err(malformed(format!(
                "host and repository have more than {NAME_LIMIT} characters"
            )));
        }
        let (host, port) = registry
            .split_once(':')
            .map_or((registry, None), |(host, port)| (host, Some(port)));
        if !host.split('.').all(is_label) {
            return Err(malformed(format!("{host} is not the name or address of a host")));
        }
        if let Some(port) = port
            && (port.parse::<u16>().is_err() || port.starts_with('+'))
        {
            return Err(malformed(format!("{port} is not a port")));
        }
        if !repository.split('/').all(is_part) {
            return Err(malformed(format!(
                "{repository:?} is not a repository: its parts have lower-case letters and digits, with '.', '_', '__' or dashes between them"
            )));
        }
        if let Some(tag) = &tag
            && !is_tag(tag)
        {
            return Err(malformed(TAG_RULE.to_owned()));
        }
        Ok(Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag,
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// A registry's origin in the one spelling that rules are compared in: as it is connected to, lower case, numbers
/// of addresses and ports written out, no trailing dot, no port that is the default, and one name for Docker Hub's.
pub fn normal_origin(registry: &str) -> String {
    let Ok(url) = Url::parse(&format!("https://{registry}/")) else {
        return registry.to_ascii_lowercase();
    };
    let host = match url.host_str().unwrap_or_default().trim_end_matches('.') {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    };
    match url.port() {
        None | Some(80) => host.to_owned(),
        Some(port) => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[rstest]
    #[case::tag(
        "registry.example.com/team/app:v1",
        "registry.example.com",
        "team/app",
        Some("v1"),
        None
    )]
    #[case::port("localhost:5000/app", "localhost:5000", "app", None, None)]
    #[case::plain_localhost("localhost/app:x", "localhost", "app", Some("x"), None)]
    #[case::digest(&format!("r.io/a@{D}"), "r.io", "a", None, Some(D))]
    #[case::both(&format!("r.io/a/b-c__d:1.2@{D}"), "r.io", "a/b-c__d", Some("1.2"), Some(D))]
    #[case::address("10.0.0.1:5000/a/b", "10.0.0.1:5000", "a/b", None, None)]
    #[case::dashes("a-b.io/a--b.c_d/0", "a-b.io", "a--b.c_d/0", None, None)]
    #[case::hub_is_not_completed("docker.io/alpine", "docker.io", "alpine", None, None)]
    fn references_are_read_as_written(
        #[case] text: &str,
        #[case] registry: &str,
        #[case] repository: &str,
        #[case] tag: Option<&str>,
        #[case] digest: Option<&str>,
    ) {
        let reference: Reference = text.parse().unwrap();
        assert_eq!(reference.registry, registry);
        assert_eq!(reference.repository, repository);
        assert_eq!(reference.tag.as_deref(), tag);
        assert_eq!(reference.digest.as_ref().map(Digest::as_str), digest);
        assert_eq!(reference.to_string(), text);
    }

    #[rstest]
    #[case::no_host("alpine")]
    #[case::hub_short_name("library/alpine:3")]
    #[case::upper_case("r.io/Team/app")]
    #[case::empty_part("r.io/a//b")]
    #[case::leading_dash("r.io/-a")]
    #[case::trailing_dash("r.io/a-")]
    #[case::three_underscores("r.io/a___b")]
    #[case::mixed_separators("r.io/a.-b")]
    #[case::not_ascii("r.io/ä")]
    #[case::host_with_a_dash_at_an_end("-r.io/a")]
    #[case::host_with_an_empty_part("r..io/a")]
    #[case::host_with_an_underscore("r_x.io/a")]
    #[case::dots("r.io/../etc")]
    #[case::user_information("user:secret@r.io/a")]
    #[case::scheme("https://r.io/a")]
    #[case::empty_tag("r.io/a:")]
    #[case::long_tag(&format!("r.io/a:{}", "t".repeat(129)))]
    #[case::short_digest("r.io/a@sha256:00")]
    #[case::unknown_digest(&format!("r.io/a@sha384:{}", "0".repeat(96)))]
    #[case::long_name(&format!("r.io/{}", "a".repeat(251)))]
    #[case::port("r.io:99999/a")]
    #[case::signed_port("r.io:+80/a")]
    #[case::two_tags("r.io/a:b:c")]
    #[case::two_digests(&format!("r.io/a@{D}@{D}"))]
    #[case::query("r.io/a?x=y")]
    #[case::newline("r.io/a\n")]
    #[case::empty("")]
    fn anything_else_is_refused(#[case] text: &str) {
        assert!(text.parse::<Reference>().is_err());
    }

    proptest::proptest! {
        /// Where a host is written and nothing is longer than registries take, the two grammars are one.
        #[test]
        fn the_grammar_is_that_of_other_clients(
            text in "(r\\.io|r-x\\.io|-r\\.io|10\\.0\\.0\\.1)(:[0-9]{1,4})?(/[a-bA._-]{1,5}){1,2}(:[a._-]{1,3})?",
        ) {
            let ours = text.parse::<Reference>().is_ok();
            let theirs = text.parse::<oci_distribution::Reference>().is_ok();
            proptest::prop_assert_eq!(ours, theirs, "{}", text);
        }
    }

    #[test]
    fn a_name_may_have_255_characters_and_a_tag_128() {
        let name = format!("r.io/{}", "a".repeat(250));
        let reference = Reference::repository(&name).unwrap();
        assert!(reference.with_tag(&"t".repeat(128)).is_ok());
    }

    #[rstest]
    #[case::dash("-x")]
    #[case::dot(".x")]
    #[case::slash("a/b")]
    #[case::empty("")]
    #[case::digest("a@b")]
    fn a_tag_that_is_none_is_refused(#[case] tag: &str) {
        assert!(Reference::repository("r.io/a").unwrap().with_tag(tag).is_err());
    }

    #[test]
    fn a_repository_has_neither_tag_nor_digest() {
        assert!(matches!(
            Reference::repository("r.io/a:x"),
            Err(ReferenceError::NotARepository { .. })
        ));
    }

    #[rstest::rstest]
    #[case::case_and_dot("GHCR.io.", "ghcr.io")]
    #[case::default_port("ghcr.io:443", "ghcr.io")]
    #[case::own_port("Registry.test:5000", "registry.test:5000")]
    #[case::default_port_with_zeros("ghcr.io:0443", "ghcr.io")]
    #[case::port_with_zeros("registry.test:05000", "registry.test:5000")]
    #[case::short_address("10.1:5000", "10.0.0.1:5000")]
    #[case::longer_address("[0:0:0:0:0:0:0:1]:5000", "[::1]:5000")]
    #[case::nonsense("Not a host", "not a host")]
    #[case::docker("index.docker.io", "docker.io")]
    fn rules_are_compared_in_one_spelling(#[case] written: &str, #[case] normal: &str) {
        assert_eq!(normal_origin(written), normal);
    }
}
