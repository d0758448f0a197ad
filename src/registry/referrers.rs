//! What refers to a manifest: signatures, SBOMs, attestations.
//!
//! Registries that know the referrers API keep the list themselves. For others the clients keep it, in an
//! index under the tag `sha256-…` of the subject; several clients may write it at once, and nothing but
//! `ETag` where it is offered, one writer at a time within a process, and reading it again keeps them apart.
//!
//! Source: OCI distribution specification, "Listing Referrers" and "Referrers Tag Schema".

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Method, StatusCode, header::CONTENT_TYPE};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    client::Repository,
    error::{Operation, RegistryError},
    manifest::{MANIFEST_LIMIT, Put, RawManifest, essence, next_page},
};
use crate::image::{Descriptor, Digest, media_type};

/// More than any subject has; each costs requests.
const REFERRERS_LIMIT: usize = 1024;
/// How often a list is written until it holds what it should.
const WRITES: u32 = 24;

/// What refers to one manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Referrers {
    /// Each once, in the registry's order.
    pub entries: Vec<Descriptor>,
    /// Whether the registry keeps the list; else clients do.
    pub by_registry: bool,
}

#[derive(Deserialize)]
struct Page {
    manifests: Option<Vec<Descriptor>>,
}

/// The tag under which clients keep the list of a manifest's referrers.
pub(super) fn fallback_tag(subject: &Digest) -> String {
    // The specification cuts what would not fit into a tag.
    let hex = &subject.hex()[..subject.hex().len().min(64)];
    format!("{}-{hex}", subject.algorithm())
}

/// An entry of a list of referrers, with what the specification wants to be copied from the manifest.
pub(super) fn entry_of(raw: &RawManifest) -> Option<Descriptor> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Described {
        #[serde(default)]
        artifact_type: Option<String>,
        #[serde(default)]
        config: Option<Descriptor>,
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }
    let described: Described = serde_json::from_slice(&raw.bytes).ok()?;
    let config_type = described.config.map(|config| config.media_type);
    Some(Descriptor {
        artifact_type: described
            .artifact_type
            .filter(|kind| !kind.is_empty())
            .or(config_type),
        annotations: described.annotations,
        ..Descriptor::new(raw.media_type.clone(), raw.digest.clone(), raw.bytes.len() as u64)
    })
}

/// The subject that a manifest names.
pub(super) fn subject_of(raw: &RawManifest) -> Option<Digest> {
    #[derive(Deserialize)]
    struct About {
        subject: Option<Descriptor>,
    }
    let about: About = serde_json::from_slice(&raw.bytes).ok()?;
    about.subject.map(|subject| subject.digest)
}

impl Repository {
    /// What refers to a manifest: by the registry's list, or by the clients' where the registry keeps none.
    ///
    /// # Errors
    /// When the registry does not answer well, or something else than a list is where the list should be.
    pub async fn referrers(&self, subject: &Digest) -> Result<Referrers, RegistryError> {
        if let Some(entries) = self.listed_referrers(subject).await? {
            return Ok(Referrers {
                entries,
                by_registry: true,
            });
        }
        let entries = match self.read_list(subject).await? {
            Some((list, _)) => list.descriptors,
            None => Vec::new(),
        };
        Ok(Referrers {
            entries,
            by_registry: false,
        })
    }

    /// The registry's own list, all pages of it; `None` when it keeps none.
    async fn listed_referrers(&self, subject: &Digest) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let home = self.known_base()?;
        let mut call = self.call(
            Operation::ListReferrers,
            Method::GET,
            &format!("referrers/{subject}"),
            subject.as_str(),
        )?;
        let mut entries: Vec<Descriptor> = Vec::new();
        loop {
            let answer = call.send().await?;
            match answer.status() {
                StatusCode::OK => {}
                // Registries without the API say so in each of these ways.
                StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::BAD_REQUEST
                | StatusCode::NOT_IMPLEMENTED
                    if entries.is_empty() =>
                {
                    return Ok(None);
                }
                _ => return Err(answer.refused().await),
            }
            let kind = answer.text(CONTENT_TYPE).map(essence).unwrap_or_default();
            if kind != media_type::OCI_INDEX {
                return Err(answer.protocol(format!("the list of referrers is sent as {kind:?}")));
            }
            let next = next_page(&answer);
            let at = answer.at.clone();
            let body = answer.bytes(MANIFEST_LIMIT).await?;
            let page: Page = serde_json::from_slice(&body).map_err(|_| RegistryError::Protocol {
                at: at.clone(),
                problem: "the list of referrers is no index".to_owned(),
            })?;
            let page = page.manifests.unwrap_or_default();
            let ended = page.is_empty();
            for entry in page {
                if !entries.iter().any(|seen| seen.digest == entry.digest) {
                    entries.push(entry);
                }
            }
            if entries.len() > REFERRERS_LIMIT {
                return Err(RegistryError::TooLarge {
                    at,
                    limit: REFERRERS_LIMIT as u64,
                });
            }
            let Some(next) = next.filter(|_| !ended) else {
                return Ok(Some(entries));
            };
            if next.origin() != home.origin() {
                return Err(RegistryError::Untrusted {
                    at,
                    problem: format!(
                        "the next page of referrers is said to be at {}",
                        next.origin().ascii_serialization()
                    ),
                });
            }
            call = self.call_at(
                Operation::ListReferrers,
                Method::GET,
                home.clone(),
                next,
                subject.as_str(),
            );
        }
    }

    /// Puts entries into the clients' list, and leaves whatever else is in it.
    ///
    /// # Errors
    /// When something else is under the tag, or others write faster than this can.
    pub(super) async fn list_referrers(
        &self,
        subject: &Digest,
        entries: &[Descriptor],
    ) -> Result<(), RegistryError> {
        let tag = fallback_tag(subject);
        let writer = self.writing();
        let _turn = writer.turn(&tag).await;
        let backoff = self.client.network.options.backoff;
        for failures in 0..WRITES {
            let found = writer.read_list(subject).await?;
            let missing = |list: &List, entry: &&Descriptor| {
                !list.descriptors.iter().any(|seen| seen.digest == entry.digest)
            };
            let if_none = found.is_none();
            let (mut list, etag) = found.unwrap_or_default();
            let new: Vec<&Descriptor> = entries.iter().filter(|entry| missing(&list, entry)).collect();
            if new.is_empty() {
                return Ok(());
            }
            if failures > 0 {
                // Somebody else wrote in between; at random, so that the two do not meet again.
                sleep(backoff.delay(failures.min(3))).await;
            }
            list.values.extend(new.iter().map(|entry| json!(entry)));
            let document = json!({
                "schemaVersion": 2,
                "mediaType": media_type::OCI_INDEX,
                "manifests": list.values,
            });
            let put = Put {
                if_match: etag,
                if_none,
                ..Put::default()
            };
            let written = writer
                .put_manifest_as(
                    &tag,
                    media_type::OCI_INDEX,
                    &Bytes::from(document.to_string()),
                    &put,
                )
                .await;
            match written {
                Ok(_) => {}
                Err(error) if error.status() == Some(StatusCode::PRECONDITION_FAILED) => {}
                Err(error) => return Err(error),
            }
        }
        Err(RegistryError::Protocol {
            at: writer.place(Operation::PutManifest, &tag),
            problem: format!(
                "the list of referrers was written {WRITES} times and still lacks what was written; somebody else writes it at the same time, try again"
            ),
        })
    }

    async fn read_list(&self, subject: &Digest) -> Result<Option<(List, Option<String>)>, RegistryError> {
        let tag = fallback_tag(subject);
        let Some((raw, etag)) = self.manifest_and_tag(&tag).await? else {
            return Ok(None);
        };
        let at = self.place(Operation::GetManifest, &tag);
        let values = serde_json::from_slice::<Value>(&raw.bytes)
            .ok()
            .filter(|_| raw.media_type == media_type::OCI_INDEX)
            .and_then(
                |mut document| match document.get_mut("manifests").map(Value::take) {
                    Some(Value::Array(values)) => Some(values),
                    Some(Value::Null) | None => Some(Vec::new()),
                    _ => None,
                },
            )
            .ok_or_else(|| RegistryError::Protocol {
                at: at.clone(),
                problem: format!(
                    "the tag belongs to the list of referrers and holds {:?}; remove or rename it",
                    raw.media_type
                ),
            })?;
        if values.len() > REFERRERS_LIMIT {
            return Err(RegistryError::TooLarge {
                at,
                limit: REFERRERS_LIMIT as u64,
            });
        }
        let descriptors = values
            .iter()
            .filter_map(|value| Descriptor::deserialize(value).ok())
            .collect();
        Ok(Some((List { values, descriptors }, etag)))
    }
}

/// The clients' list, as it is and as far as it can be read.
#[derive(Default)]
struct List {
    values: Vec<Value>,
    descriptors: Vec<Descriptor>,
}
