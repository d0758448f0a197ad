//! What a registry answers: bounded in size and in time, and never believed about where things are.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_LENGTH, LOCATION},
};
use jiff::Timestamp;
use reqwest::{Response, Url};
use tokio::time::timeout;

use super::{
    error::{Place, Refusal, RegistryError},
    pace::retry_after,
    transport::{chain, stalled},
};

/// The part of a refusal's body that is looked at.
const REFUSAL_LIMIT: u64 = 16 << 10;

/// An answer, its body not yet read.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) at: Place,
    /// The URL that answered, after redirects.
    pub(super) url: Url,
    pub(super) idle: Duration,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(super) fn text(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// The length that the header says; of a HEAD's answer the only one there is.
    pub(super) fn length(&self) -> Option<u64> {
        self.text(CONTENT_LENGTH)?.trim().parse().ok()
    }

    pub(super) fn protocol(&self, problem: impl Into<String>) -> RegistryError {
        RegistryError::Protocol {
            at: self.at.clone(),
            problem: problem.into(),
        }
    }

    /// The next part of the body.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let unreachable = |at: &Place, problem| RegistryError::Unreachable {
            at: at.clone(),
            problem,
        };
        match timeout(self.idle, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(unreachable(&self.at, chain(&error.without_url()))),
            Err(_) => Err(unreachable(&self.at, stalled(self.idle))),
        }
    }

    /// The whole body.
    pub(super) async fn bytes(mut self, limit: u64) -> Result<Bytes, RegistryError> {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(RegistryError::TooLarge { at: self.at, limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// The answer as the error that it is.
    pub(super) async fn refused(mut self) -> RegistryError {
        let mut body = BytesMut::new();
        while let Ok(Some(chunk)) = self.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > REFUSAL_LIMIT {
                break;
            }
        }
        let retry_after = retry_after(self.headers(), Timestamp::now());
        RegistryError::Answered {
            refusal: Box::new(Refusal::read(self.status(), retry_after, &body)),
            at: self.at,
        }
    }
}

/// A `Location`, resolved against the URL that answered.
///
/// # Errors
/// A text that says why it is refused.
pub(super) fn location(base: &Url, headers: &HeaderMap) -> Result<Url, String> {
    let text = headers
        .get(LOCATION)
        .ok_or("the answer has no Location")?
        .to_str()
        .map_err(|_| "the answer's Location is no text")?;
    let url = base.join(text).map_err(|_| {
        format!(
            "the answer's Location {:?} is no URL",
            super::error::clean(text, 200)
        )
    })?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("the answer's Location has the scheme {:?}", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the answer's Location has user information".to_owned());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::absolute("https://r.io/v2/x?a=%2F", Some("https://r.io/v2/x?a=%2F"))]
    #[case::path("/v2/x?_state=a%3Db", Some("https://r.io/v2/x?_state=a%3Db"))]
    #[case::relative("y", Some("https://r.io/v2/a/y"))]
    #[case::query("?y", Some("https://r.io/v2/a/?y"))]
    #[case::other_host("//other.io/y", Some("https://other.io/y"))]
    #[case::script("javascript:alert(1)", None)]
    #[case::file("file:///etc/passwd", None)]
    #[case::user_information("https://u:p@r.io/", None)]
    fn a_location_is_resolved_or_refused(#[case] text: &str, #[case] expected: Option<&str>) {
        let headers = HeaderMap::from_iter([(LOCATION, text.parse().unwrap())]);
        let base = "https://r.io/v2/a/".parse().unwrap();
        assert_eq!(location(&base, &headers).ok().as_ref().map(Url::as_str), expected);
    }
}
