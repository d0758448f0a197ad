//! Challenges and tokens: which credential goes where.
//!
//! A registry's answer may name any realm. A password or refresh token goes to it only if
//! - it has the registry's own origin, or
//! - both the registry and the realm speak https. A registry that is reached over https has proven its name,
//!   and every large registry has its token server on another host.
//!
//! An http realm of an https registry is refused. A registry that is spoken to without TLS may name a realm
//! elsewhere, but only an anonymous token is asked for there, as anybody on the wire could have named it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, header::WWW_AUTHENTICATE};
use http_auth::ChallengeParser;
use reqwest::Url;
use serde::Deserialize;
use tokio::time::Instant;

use super::credentials::{Login, Proof, Secret};

/// The life of a token whose server does not say.
///
/// Source: distribution's token authentication specification.
const DEFAULT_LIFE: u64 = 60;

/// What a registry wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from `realm`.
    Bearer {
        realm: Url,
        service: Option<String>,
        /// Whether credentials may go to the realm.
        trusted: bool,
    },
}

/// Reads every `WWW-Authenticate` header and chooses; a token rather than a password with every request.
///
/// `None` when nothing usable is asked for.
///
/// # Errors
/// A text that says why the realm is refused.
pub(super) fn choose_challenge(headers: &HeaderMap, registry: &Url) -> Result<Option<Challenge>, String> {
    let mut basic = false;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        // What follows a malformed challenge in one header is lost, what came before it is kept.
        let challenges = value.to_str().map(ChallengeParser::new).into_iter().flatten();
        for challenge in challenges.map_while(Result::ok) {
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = true;
            }
            if !challenge.scheme.eq_ignore_ascii_case("bearer") {
                continue;
            }
            let parameter = |name: &str| {
                challenge
                    .params
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.to_unescaped())
            };
            if let Some(realm) = parameter("realm") {
                let (realm, trusted) = check_realm(registry, &realm)?;
                return Ok(Some(Challenge::Bearer {
                    realm,
                    service: parameter("service"),
                    trusted,
                }));
            }
        }
    }
    Ok(basic.then_some(Challenge::Basic))
}

/// The realm as a URL, and whether credentials may go there.
fn check_realm(registry: &Url, realm: &str) -> Result<(Url, bool), String> {
    let refused = |why: &str| format!("the registry names the token realm {realm:?}, which {why}");
    let url = registry.join(realm).map_err(|_| refused("is no URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused("has user information"));
    }
    let same_origin = url.origin() == registry.origin();
    match (registry.scheme(), url.scheme()) {
        _ if same_origin => Ok((url, true)),
        ("https", "https") => Ok((url, true)),
        ("http", "http" | "https") => Ok((url, false)),
        ("https", "http") => Err(refused("is not https, although the registry is")),
        _ => Err(refused("is neither https nor http")),
    }
}

/// `Authorization: Basic …` for a password.
pub(super) fn basic(login: &Login) -> Option<HeaderValue> {
    let Proof::Password { username, password } = &login.proof else {
        return None;
    };
    let pair = STANDARD.encode(format!("{username}:{}", password.reveal()));
    sensitive(&format!("Basic {pair}"))
}

/// `Authorization: Bearer …` for an access token that was given.
pub(super) fn access_token(login: &Login) -> Option<HeaderValue> {
    let Proof::AccessToken(token) = &login.proof else {
        return None;
    };
    sensitive(&format!("Bearer {}", token.reveal()))
}

/// The same, where a refresh token has to stand for a password.
pub(super) fn basic_or_token(login: &Login) -> Option<HeaderValue> {
    match &login.proof {
        Proof::Password { .. } => basic(login),
        Proof::IdentityToken(token) => {
            let pair = STANDARD.encode(format!("<token>:{}", token.reveal()));
            sensitive(&format!("Basic {pair}"))
        }
        Proof::AccessToken(_) => None,
    }
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// One access token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    value: Secret,
    refresh_at: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
}

impl Token {
    /// Reads a token server's answer.
    pub(super) fn read(body: &[u8], now: Instant) -> Option<Self> {
        let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
        let value = answer
            .token
            .or(answer.access_token)
            .filter(|token| !token.reveal().is_empty())?;
        // At most a day, so that the sum below stays a time.
        let life = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFE).min(86_400));
        Some(Self {
            value,
            // The rest of its life belongs to requests that are on their way.
            refresh_at: now + life.mul_f64(0.8),
        })
    }

    pub(super) fn header(&self) -> Option<HeaderValue> {
        sensitive(&format!("Bearer {}", self.value.reveal()))
    }

    fn is_fresh(&self) -> bool {
        Instant::now() < self.refresh_at
    }
}

/// What tells tokens apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) login: Option<usize>,
    pub(super) scopes: Arc<[String]>,
}

/// A place for one token. Whoever holds its lock fetches, everybody else waits for the result.
pub(super) type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;

/// What one identity knows of the registries that it spoke to.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    challenges: Mutex<HashMap<String, Challenge>>,
    slots: Mutex<HashMap<TokenKey, Slot>>,
    /// Origins whose tokens are good for one scope only.
    narrow: Mutex<HashSet<String>>,
}

impl Tokens {
    /// What an origin asked for when it last refused.
    pub(super) fn challenge(&self, origin: &str) -> Option<Challenge> {
        lock(&self.challenges).get(origin).cloned()
    }

    pub(super) fn learn(&self, origin: &str, challenge: Challenge) {
        lock(&self.challenges).insert(origin.to_owned(), challenge);
    }

    /// From here on asks for the first scope alone; whether that is news.
    pub(super) fn narrow(&self, origin: &str) -> bool {
        lock(&self.narrow).insert(origin.to_owned())
    }

    pub(super) fn is_narrow(&self, origin: &str) -> bool {
        lock(&self.narrow).contains(origin)
    }

    pub(super) fn slot(&self, key: TokenKey) -> Slot {
        Arc::clone(lock(&self.slots).entry(key).or_default())
    }
}

/// The slot's token, unless it is old or the one that was just refused.
pub(super) fn usable(slot: Option<&Token>, refused: Option<&HeaderValue>) -> Option<HeaderValue> {
    let token = slot.filter(|token| token.is_fresh())?;
    token.header().filter(|header| Some(header) != refused)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.parse().unwrap(),
            service: service.map(str::to_owned),
            trusted: true,
        }
    }

    fn chosen(registry: &str, headers: &[&str]) -> Result<Option<Challenge>, String> {
        let headers = headers
            .iter()
            .map(|value| (WWW_AUTHENTICATE, value.parse().unwrap()))
            .collect();
        choose_challenge(&headers, &registry.parse().unwrap())
    }

    #[rstest]
    #[case::usual(&[r#"Bearer realm="https://auth.io/token",service="r.io",scope="repository:a:pull""#], Some(bearer("https://auth.io/token", Some("r.io"))))]
    #[case::case_of_names(&[r#"bEARER Realm="https://auth.io/t",SERVICE="r.io""#], Some(bearer("https://auth.io/t", Some("r.io"))))]
    #[case::bearer_before_basic(&[r#"Basic realm="x", Bearer realm="https://auth.io/t""#], Some(bearer("https://auth.io/t", None)))]
    #[case::several_headers(&[r#"Basic realm="x""#, r#"Bearer realm="https://auth.io/t""#], Some(bearer("https://auth.io/t", None)))]
    #[case::relative_realm(&[r#"Bearer realm="/auth/token""#], Some(bearer("https://r.io/auth/token", None)))]
    #[case::escapes(&[r#"Bearer realm="https://auth.io/t",service="a\"b""#], Some(bearer("https://auth.io/t", Some("a\"b"))))]
    #[case::basic(&[r#"Basic realm="x""#], Some(Challenge::Basic))]
    #[case::unknown_scheme(&[r#"Negotiate realm="x""#], None)]
    #[case::no_realm(&[r#"Bearer service="x""#], None)]
    #[case::broken(&[r#"Bearer realm="https://"#], None)]
    #[case::nothing(&[], None)]
    fn challenges_are_read_as_registries_write_them(
        #[case] headers: &[&str],
        #[case] expected: Option<Challenge>,
    ) {
        assert_eq!(chosen("https://r.io/v2/", headers), Ok(expected));
    }

    #[rstest]
    #[case::same_origin("https://r.io", "https://r.io/token", Ok(true))]
    #[case::other_host("https://r.io", "https://auth.io/token", Ok(true))]
    #[case::other_port("https://r.io", "https://r.io:8443/token", Ok(true))]
    #[case::downgrade("https://r.io", "http://r.io/token", Err(()))]
    #[case::plain_registry_itself("http://r.io:5000", "http://r.io:5000/token", Ok(true))]
    #[case::plain_registry_other_port("http://r.io:5000", "http://r.io:5001/token", Ok(false))]
    #[case::plain_registry_https_realm("http://r.io:5000", "https://evil.io/token", Ok(false))]
    #[case::user_information("https://r.io", "https://u:p@r.io/token", Err(()))]
    #[case::other_scheme("https://r.io", "file:///etc/passwd", Err(()))]
    #[case::script("https://r.io", "javascript:alert(1)", Err(()))]
    fn credentials_go_to_realms_that_proved_themselves(
        #[case] registry: &str,
        #[case] realm: &str,
        #[case] trusted: Result<bool, ()>,
    ) {
        let result = check_realm(&registry.parse().unwrap(), realm);
        assert_eq!(result.map(|(_, trusted)| trusted).map_err(|_| ()), trusted);
    }

    #[rstest]
    #[case::token(r#"{"token":"t"}"#, Some(48.0))]
    #[case::access_token(r#"{"access_token":"t","expires_in":300}"#, Some(240.0))]
    #[case::for_ever(r#"{"token":"t","expires_in":18446744073709551615}"#, Some(69_120.0))]
    #[case::empty(r#"{"token":""}"#, None)]
    #[case::no_token("{}", None)]
    #[case::no_json("<html>", None)]
    fn a_token_is_refreshed_at_four_fifths_of_its_life(#[case] body: &str, #[case] seconds: Option<f64>) {
        let now = Instant::now();
        let life = Token::read(body.as_bytes(), now).map(|token| (token.refresh_at - now).as_secs_f64());
        assert_eq!(life, seconds);
    }
}
