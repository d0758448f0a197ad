//! Where a repository is and what of it is wanted: read strictly, because both become arguments of `git`.

use std::fmt;

use url::{Host, Url};

use crate::record::{Failure, Reason};

/// A repository's address over https, http or ssh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GitUrl {
    /// `https://…` or `http://…`, without user information.
    Web {
        /// As git is given it.
        text: String,
        /// `scheme://host[:port]`, the only place that credentials may go to.
        origin: String,
    },
    /// `ssh://[user@]host[:port]/path` or `[user@]host:path`.
    Ssh {
        /// As git is given it.
        text: String,
        /// Whom the key is for.
        host: String,
        /// Whether the address says as whom.
        names_user: bool,
    },
}

impl GitUrl {
    /// Reads an address.
    ///
    /// # Errors
    /// `SpecInvalid`, with what is wrong but never with a password.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        if text.starts_with('-') || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(invalid("is not a URL"));
        }
        if !text.contains("://") {
            return parse_short(text);
        }
        let url = Url::parse(text).map_err(|error| invalid(&format!("is not a URL: {error}")))?;
        let host = host_name(&url)?;
        match url.scheme() {
            "https" | "http" => {
                if !url.username().is_empty() || url.password().is_some() {
                    return Err(invalid(
                        "has user information; name a Secret in credentialsRef instead",
                    ));
                }
                Ok(Self::Web {
                    text: url.as_str().to_owned(),
                    origin: url.origin().ascii_serialization(),
                })
            }
            "ssh" => {
                if url.password().is_some() || !(url.username().is_empty() || is_user(url.username())) {
                    return Err(invalid(
                        "has a password or an odd user name; name a Secret in credentialsRef instead",
                    ));
                }
                Ok(Self::Ssh {
                    text: url.as_str().to_owned(),
                    host,
                    names_user: !url.username().is_empty(),
                })
            }
            _ => Err(invalid("is not https, http or ssh")),
        }
    }
}

impl fmt::Display for GitUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Web { text, .. } | Self::Ssh { text, .. } => f.write_str(text),
        }
    }
}

fn host_name(url: &Url) -> Result<String, Failure> {
    match url.host() {
        Some(Host::Domain(name)) if is_host(name) => Ok(name.to_owned()),
        Some(Host::Ipv4(address)) => Ok(address.to_string()),
        Some(Host::Ipv6(address)) => Ok(address.to_string()),
        _ => Err(invalid("has no host name")),
    }
}

/// `[user@]host:path`, as ssh and scp have it.
fn parse_short(text: &str) -> Result<GitUrl, Failure> {
    let (place, path) = text
        .split_once(':')
        .ok_or_else(|| invalid("is not https, http or ssh"))?;
    let (user, host) = match place.split_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, place),
    };
    // A second colon would name one of git's transport helpers, which can run programs.
    if path.starts_with([':', '-']) || path.is_empty() || !is_host(host) || user.is_some_and(|u| !is_user(u))
    {
        return Err(invalid("is not https, http or ssh"));
    }
    Ok(GitUrl::Ssh {
        text: text.to_owned(),
        host: host.to_owned(),
        names_user: user.is_some(),
    })
}

fn is_host(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

fn is_user(text: &str) -> bool {
    is_host(text)
}

fn invalid(what: &str) -> Failure {
    Failure::new(Reason::SpecInvalid, format!("spec.source.git.url {what}"))
}

/// What of a repository is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GitReference {
    /// The default branch.
    Head,
    /// A branch, a tag or a full `refs/…` name. Where a branch and a tag share the name, the tag.
    Name(String),
    /// All digits of a commit.
    Commit(String),
}

impl GitReference {
    /// Reads a reference by git's own rules for names, so that it is neither an option nor a refspec.
    ///
    /// # Errors
    /// `SpecInvalid`.
    pub fn parse(text: Option<&str>) -> Result<Self, Failure> {
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            return Ok(Self::Head);
        };
        if matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Self::Commit(text.to_ascii_lowercase()));
        }
        let odd_character = |c: char| c.is_control() || " ~^:?*[\\+".contains(c);
        let odd_part = |part: &str| {
            part.is_empty()
                || part.starts_with(['.', '-'])
                || part.ends_with('.')
                || part.strip_suffix(".lock").is_some()
        };
        let is_odd = text.contains(odd_character)
            || text.contains("..")
            || text.contains("@{")
            || text.split('/').any(odd_part);
        if is_odd {
            return Err(Failure::new(
                Reason::SpecInvalid,
                format!("spec.source.git.ref {text:?} is not the name of a branch, a tag or a commit"),
            ));
        }
        Ok(Self::Name(text.to_owned()))
    }

    /// As git is given it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Head => "HEAD",
            Self::Name(text) | Self::Commit(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::https(
        "https://Example.org:443/a/b.git",
        "https://example.org/a/b.git",
        "https://example.org"
    )]
    #[case::port("http://127.0.0.1:8080/r", "http://127.0.0.1:8080/r", "http://127.0.0.1:8080")]
    fn a_web_address_has_one_origin(#[case] given: &str, #[case] text: &str, #[case] origin: &str) {
        let (text, origin) = (text.to_owned(), origin.to_owned());
        assert_eq!(GitUrl::parse(given), Ok(GitUrl::Web { text, origin }));
    }

    #[rstest]
    #[case::url("ssh://git@example.org:2222/a/b", "example.org", true)]
    #[case::short("git@example.org:a/b.git", "example.org", true)]
    #[case::no_user("ssh://example.org/a", "example.org", false)]
    fn an_ssh_address_has_a_host(#[case] given: &str, #[case] expected: &str, #[case] user: bool) {
        match GitUrl::parse(given) {
            Ok(GitUrl::Ssh {
                text,
                host,
                names_user,
            }) => {
                assert_eq!(
                    (text.as_str(), host.as_str(), names_user),
                    (given, expected, user)
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[rstest]
    #[case("https://user:hunter2@example.org/a")]
    #[case("https://token@example.org/a")]
    #[case("ssh://git:hunter2@example.org/a")]
    #[case("ssh://-oProxyCommand=x/a")]
    #[case("ssh://-oX@example.org/a")]
    #[case("-oProxyCommand=x:a")]
    #[case("git@-oX:a")]
    #[case("--upload-pack=x")]
    #[case("ext::sh -c id")]
    #[case("ext::sh")]
    #[case("file:///etc")]
    #[case("git://example.org/a")]
    #[case("/etc")]
    #[case("../x")]
    #[case("https://exa mple.org/")]
    #[case("")]
    fn other_addresses_are_refused_without_repeating_them(#[case] text: &str) {
        let refused = GitUrl::parse(text).unwrap_err();
        assert_eq!(refused.reason, Reason::SpecInvalid);
        assert!(!refused.message.contains("hunter2"));
    }

    #[rstest]
    #[case("main")]
    #[case("feature/x-1.2")]
    #[case("refs/pull/7/head")]
    #[case("v1.0.0")]
    #[case("c0ffee")]
    fn names_are_accepted(#[case] text: &str) {
        assert_eq!(
            GitReference::parse(Some(text)),
            Ok(GitReference::Name(text.into()))
        );
    }

    #[test]
    fn a_commit_has_all_its_digits() {
        let commit = "C0FFEE".repeat(7)[..40].to_owned();
        assert_eq!(
            GitReference::parse(Some(&commit)),
            Ok(GitReference::Commit(commit.to_ascii_lowercase()))
        );
        assert_eq!(GitReference::parse(None), Ok(GitReference::Head));
    }

    #[rstest]
    #[case("--upload-pack=touch /tmp/x")]
    #[case("-x")]
    #[case("+main")]
    #[case("main:refs/heads/other")]
    #[case("refs/heads/*")]
    #[case("a..b")]
    #[case("main@{1}")]
    #[case("main^{tree}")]
    #[case("a//b")]
    #[case("a\nb")]
    fn options_and_refspecs_are_refused(#[case] text: &str) {
        assert_eq!(
            GitReference::parse(Some(text)).unwrap_err().reason,
            Reason::SpecInvalid
        );
    }
}
