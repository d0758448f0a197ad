//! Manifests: read with proof, written as the bytes that they are.

use bytes::Bytes;
use http::{
    Method, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, LINK},
};
use serde::Deserialize;

use super::{
    answer::Answer,
    client::Repository,
    error::{Operation, RegistryError},
    transport::Body,
};
use crate::image::{Digest, media_type};

/// The size up to which registries must accept a manifest; none of use is larger.
///
/// Source: OCI distribution specification, "Pushing manifests".
pub(super) const MANIFEST_LIMIT: u64 = 4 << 20;
/// One page of tags.
const TAGS_PAGE: u32 = 1000;
/// More tags than anybody reads.
const TAGS_LIMIT: usize = 100_000;
/// A page of a thousand tags of 128 characters, with room.
const TAGS_BYTES: u64 = 1 << 20;

const ACCEPTED: [&str; 4] = [
    media_type::OCI_MANIFEST,
    media_type::OCI_INDEX,
    media_type::DOCKER_MANIFEST,
    media_type::DOCKER_LIST,
];

/// A manifest as it was served: its bytes are its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawManifest {
    /// The document, never written anew.
    pub bytes: Bytes,
    /// What it is, without parameters.
    pub media_type: String,
    /// The digest of `bytes`.
    pub digest: Digest,
}

/// What is optional when a manifest is written.
#[derive(Clone, Debug, Default)]
pub(super) struct Put<'a> {
    /// Tags that the registry may move with the same request, if it can.
    pub(super) tags: &'a [String],
    /// The entity tag that must still be there.
    pub(super) if_match: Option<String>,
    /// Whether there must be nothing yet. Registries that know no conditions pass over both.
    pub(super) if_none: bool,
}

/// What a registry said about a manifest that it took.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) digest: Digest,
    /// The tags that the registry moved with it.
    pub(super) tags: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Typed {
    #[serde(default)]
    media_type: String,
}

#[derive(Deserialize)]
struct TagPage {
    tags: Option<Vec<String>>,
}

impl Repository {
    /// A manifest by tag or digest; `None` when there is none.
    ///
    /// # Errors
    /// When the registry does not answer well, or answers with other content than it says or was asked for.
    pub async fn manifest(&self, reference: &str) -> Result<Option<RawManifest>, RegistryError> {
        let found = self.manifest_and_tag(reference).await?;
        Ok(found.map(|(manifest, _)| manifest))
    }

    /// A manifest and the entity tag by which it can be replaced only if it still is the same.
    pub(super) async fn manifest_and_tag(
        &self,
        reference: &str,
    ) -> Result<Option<(RawManifest, Option<String>)>, RegistryError> {
        let answer = self
            .manifest_call(Operation::GetManifest, Method::GET, reference)
            .await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(answer.refused().await),
        }
        let media_type = answer.text(CONTENT_TYPE).map(essence).unwrap_or_default();
        let claimed = claimed_digest(&answer);
        let etag = answer.text(ETAG).map(str::to_owned);
        let at = answer.at.clone();
        let bytes = answer.bytes(MANIFEST_LIMIT).await?;
        let wanted: Option<Digest> = reference.parse().ok().or(claimed);
        let digest = match wanted {
            None => Digest::of(&bytes),
            Some(expected) => {
                let mut hasher = expected.hasher();
                hasher.update(&bytes);
                let found = hasher.finish();
                if found != expected {
                    return Err(RegistryError::DigestMismatch { at, expected, found });
                }
                found
            }
        };
        let own: Typed = serde_json::from_slice(&bytes).map_err(|_| RegistryError::Protocol {
            at: at.clone(),
            problem: "the manifest is no JSON document".to_owned(),
        })?;
        // An OCI document may leave its type to the header; a header that says nothing of use, as some
        // proxies send, leaves it to the document.
        let known = ACCEPTED.contains(&media_type.as_str());
        if known && !own.media_type.is_empty() && own.media_type != media_type {
            return Err(RegistryError::MediaType {
                at,
                header: media_type,
                body: super::error::clean(&own.media_type, 255),
            });
        }
        let manifest = RawManifest {
            media_type: if known || own.media_type.is_empty() {
                media_type
            } else {
                own.media_type
            },
            bytes,
            digest,
        };
        Ok(Some((manifest, etag)))
    }

    /// The digest and size of a manifest; `None` when there is none.
    ///
    /// What a HEAD says is not proven; where it says too little, the manifest is read.
    pub async fn head_manifest(&self, reference: &str) -> Result<Option<(Digest, u64)>, RegistryError> {
        let answer = self
            .manifest_call(Operation::HeadManifest, Method::HEAD, reference)
            .await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            StatusCode::METHOD_NOT_ALLOWED => return self.read_head(reference).await,
            _ => return Err(answer.refused().await),
        }
        match (claimed_digest(&answer), answer.length()) {
            (Some(digest), Some(size)) => {
                if let Ok(expected) = reference.parse::<Digest>()
                    && expected != digest
                {
                    return Err(RegistryError::DigestMismatch {
                        at: answer.at,
                        expected,
                        found: digest,
                    });
                }
                Ok(Some((digest, size)))
            }
            _ => self.read_head(reference).await,
        }
    }

    async fn read_head(&self, reference: &str) -> Result<Option<(Digest, u64)>, RegistryError> {
        let manifest = self.manifest(reference).await?;
        Ok(manifest.map(|manifest| (manifest.digest, manifest.bytes.len() as u64)))
    }

    /// Writes a manifest under a tag or its digest, and returns its digest.
    ///
    /// # Errors
    /// When the registry refuses it, does not answer, or says that it stored something else.
    pub async fn put_manifest(
        &self,
        reference: &str,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<Digest, RegistryError> {
        let written = self
            .put_manifest_as(reference, media_type, bytes, &Put::default())
            .await?;
        Ok(written.digest)
    }

    /// [`Self::put_manifest`] with what is optional.
    pub(super) async fn put_manifest_as(
        &self,
        reference: &str,
        media_type: &str,
        bytes: &Bytes,
        put: &Put<'_>,
    ) -> Result<Written, RegistryError> {
        let writer = self.writing();
        let mut call = writer.call(
            Operation::PutManifest,
            Method::PUT,
            &manifest_path(reference)?,
            reference,
        )?;
        for tag in put.tags {
            call.url.query_pairs_mut().append_pair("tag", tag);
        }
        if let Some(etag) = &put.if_match {
            call = call.header(IF_MATCH, etag);
        }
        if put.if_none {
            call = call.header(IF_NONE_MATCH, "*");
        }
        let at = call.at.clone();
        if bytes.len() as u64 > MANIFEST_LIMIT {
            return Err(RegistryError::TooLarge {
                at,
                limit: MANIFEST_LIMIT,
            });
        }
        let mut hasher = reference
            .parse::<Digest>()
            .map_or_else(|_| crate::image::Hasher::sha256(), |digest| digest.hasher());
        hasher.update(bytes);
        let own = hasher.finish();
        if let Ok(expected) = reference.parse::<Digest>()
            && expected != own
        {
            return Err(RegistryError::DigestMismatch {
                at,
                expected,
                found: own,
            });
        }
        let answer = call
            .header(CONTENT_TYPE, media_type)
            .body(Body::Whole(bytes.clone()))
            .send()
            .await?;
        if !answer.status().is_success() {
            return Err(answer.refused().await);
        }
        match claimed_digest(&answer) {
            Some(found) if found.algorithm() == own.algorithm() && found != own => {
                Err(RegistryError::DigestMismatch {
                    at,
                    expected: own,
                    found,
                })
            }
            _ => Ok(Written {
                digest: own,
                tags: answer
                    .headers()
                    .get_all("oci-tag")
                    .iter()
                    .filter_map(|tag| tag.to_str().ok())
                    .flat_map(|tags| tags.split(','))
                    .map(|tag| tag.trim().to_owned())
                    .collect(),
            }),
        }
    }

    /// Every tag, in the registry's order.
    ///
    /// # Errors
    /// When the registry has no such repository, does not answer well, or does not come to an end.
    pub async fn tags(&self) -> Result<Vec<String>, RegistryError> {
        let home = self.known_base()?;
        let mut call = self.call(
            Operation::ListTags,
            Method::GET,
            &format!("tags/list?n={TAGS_PAGE}"),
            "",
        )?;
        let mut tags = Vec::new();
        loop {
            let answer = call.send().await?;
            if answer.status() != StatusCode::OK {
                return Err(answer.refused().await);
            }
            let next = next_page(&answer);
            let at = answer.at.clone();
            let body = answer.bytes(TAGS_BYTES).await?;
            let page: TagPage = serde_json::from_slice(&body).map_err(|_| RegistryError::Protocol {
                at: at.clone(),
                problem: "the list of tags is no such list".to_owned(),
            })?;
            let page = page.tags.unwrap_or_default();
            let ended = page.is_empty();
            tags.extend(page);
            let Some(next) = next.filter(|_| !ended) else {
                return Ok(tags);
            };
            if tags.len() > TAGS_LIMIT {
                return Err(RegistryError::TooLarge {
                    at,
                    limit: TAGS_LIMIT as u64,
                });
            }
            if next.origin() != home.origin() {
                return Err(RegistryError::Untrusted {
                    at,
                    problem: format!(
                        "the next page of tags is said to be at {}",
                        next.origin().ascii_serialization()
                    ),
                });
            }
            call = self.call_at(Operation::ListTags, Method::GET, home.clone(), next, "");
        }
    }

    async fn manifest_call(
        &self,
        operation: Operation,
        method: Method,
        reference: &str,
    ) -> Result<Answer, RegistryError> {
        let mut call = self.call(operation, method, &manifest_path(reference)?, reference)?;
        for accepted in ACCEPTED {
            call = call.header(ACCEPT, accepted);
        }
        call.send().await
    }
}

/// `manifests/…` for what is a tag or a digest, and nothing for anything else.
fn manifest_path(reference: &str) -> Result<String, RegistryError> {
    if reference.parse::<Digest>().is_ok() || super::reference::is_tag(reference) {
        Ok(format!("manifests/{reference}"))
    } else {
        Err(RegistryError::Name(super::error::clean(reference, 200)))
    }
}

/// A media type without its parameters.
pub(super) fn essence(media_type: &str) -> String {
    let (essence, _) = media_type.split_once(';').unwrap_or((media_type, ""));
    super::error::clean(&essence.to_ascii_lowercase(), 255)
}

fn claimed_digest(answer: &Answer) -> Option<Digest> {
    answer.text("docker-content-digest")?.trim().parse().ok()
}

/// The URL of `Link: <…>; rel="next"`.
pub(super) fn next_page(answer: &Answer) -> Option<reqwest::Url> {
    let link = answer.text(LINK)?;
    let (target, parameters) = link.trim_start().strip_prefix('<')?.split_once('>')?;
    parameters
        .contains("next")
        .then(|| answer.url.join(target).ok())
        .flatten()
}
