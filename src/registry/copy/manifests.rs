//! The documents of a push: manifests from the leaves up, referrers, tags last, and a look at what is served.

use std::collections::{BTreeMap, HashSet};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    CopyError, Progress, TagPolicy,
    plan::{Node, Referrer},
    push::{Push, REQUESTS},
};
use crate::{
    image::{Descriptor, Digest, Manifest},
    registry::{
        error::RegistryError,
        manifest::{Put, RawManifest},
        referrers::{entry_of, fallback_tag},
    },
};

impl Push<'_> {
    /// Says no before anything is sent for a tag that will not be moved.
    pub(super) fn refuse_taken_tags(&self, previous: &[Option<Digest>]) -> Result<(), CopyError> {
        if self.target.policy != TagPolicy::Immutable {
            return Ok(());
        }
        for (tag, found) in self.target.tags.iter().zip(previous) {
            if let Some(found) = found.as_ref().filter(|found| *found != self.image.digest()) {
                return Err(taken(tag, Some(found), IMMUTABLE));
            }
        }
        Ok(())
    }

    /// Whether the target has the very bytes of the root.
    pub(super) async fn serves_root(&self) -> Result<bool, CopyError> {
        let root = &self.image.root;
        let found = self.repository.manifest(root.digest.as_str()).await?;
        Ok(found.is_some_and(|found| found.bytes == root.bytes))
    }

    /// Whether it has those, and every manifest below them.
    pub(super) async fn serves_documents(&self) -> Result<bool, CopyError> {
        let children = stream::iter(&self.image.nodes)
            .map(|node| self.serves_child(&node.raw))
            .buffer_unordered(REQUESTS)
            .try_fold(true, async |all, served| Ok(all && served));
        let (root, children) = futures_util::try_join!(self.serves_root(), children)?;
        Ok(root && children)
    }

    async fn serves_child(&self, raw: &RawManifest) -> Result<bool, CopyError> {
        if raw.digest == self.image.root.digest {
            return Ok(true);
        }
        let found = self.repository.head_manifest(raw.digest.as_str()).await?;
        Ok(found.is_some_and(|(_, size)| size == raw.bytes.len() as u64))
    }

    /// Writes what the target lacks, leaves before branches, the root last; returns the tags that the registry
    /// moved together with the root.
    pub(super) async fn bring_manifests(
        &self,
        served: bool,
        previous: &[Option<Digest>],
    ) -> Result<Vec<String>, CopyError> {
        let root = &self.image.root.digest;
        let below = || self.image.nodes.iter().filter(|node| node.raw.digest != *root);
        // An image always has a config, an index never has blobs.
        stream::iter(below().filter(|node| !node.blobs.is_empty()))
            .map(|node| self.bring_manifest(node))
            .buffer_unordered(REQUESTS)
            .try_collect::<()>()
            .await?;
        for node in below().filter(|node| node.blobs.is_empty()) {
            self.bring_manifest(node).await?;
        }
        let Some(node) = self.image.nodes.iter().find(|node| node.raw.digest == *root) else {
            return Ok(Vec::new());
        };
        if served {
            self.state().proven.insert(root.clone());
            return Ok(Vec::new());
        }
        self.write_manifest(node, self.tags_at_once(previous)).await
    }

    async fn bring_manifest(&self, node: &Node) -> Result<(), CopyError> {
        let raw = &node.raw;
        if self.is_proven(&raw.digest) {
            return Ok(());
        }
        if self.serves_child(raw).await? {
            self.state().proven.insert(raw.digest.clone());
            return Ok(());
        }
        self.write_manifest(node, &[]).await?;
        Ok(())
    }

    /// Writes a manifest; where the registry misses blobs that it said it had, they are sent after all, once.
    async fn write_manifest(&self, node: &Node, tags: &[String]) -> Result<Vec<String>, CopyError> {
        let RawManifest {
            bytes,
            media_type,
            digest,
        } = &node.raw;
        let put = async || {
            let put = Put {
                tags,
                ..Put::default()
            };
            let written = self
                .repository
                .put_manifest_as(digest.as_str(), media_type, bytes, &put)
                .await;
            match written {
                // A registry that does not like parameters; the tags have requests of their own then.
                Err(error) if !tags.is_empty() && dislikes_parameters(&error) => {
                    self.repository
                        .put_manifest_as(digest.as_str(), media_type, bytes, &Put::default())
                        .await
                }
                written => written,
            }
        };
        let written = match put().await {
            Err(RegistryError::Answered { refusal, .. }) if misses_blobs(refusal.code.as_deref()) => {
                let is_named = |blob: &&Descriptor| refusal.named.contains(&blob.digest);
                let all = !node.blobs.iter().any(|blob| is_named(&blob));
                for blob in node.blobs.iter().filter(|blob| all || is_named(blob)) {
                    tracing::warn!(digest = %blob.digest, "the registry said that it had the blob, and misses it");
                    self.forget(blob);
                    self.send_blob(blob, None).await?;
                }
                put().await?
            }
            written => written?,
        };
        self.state().changed = true;
        self.tell(Progress::Manifest {
            target: self.index,
            digest: digest.clone(),
        });
        Ok(written.tags)
    }

    /// Brings what refers to the image, and sees to it that it is listed.
    pub(super) async fn bring_referrers(&self) -> Result<(), CopyError> {
        let mut by_subject: BTreeMap<&Digest, Vec<&Referrer>> = BTreeMap::new();
        for referrer in &self.image.referrers {
            by_subject.entry(&referrer.subject).or_default().push(referrer);
        }
        stream::iter(by_subject)
            .map(|(subject, referrers)| self.bring_about(subject, referrers))
            .buffer_unordered(REQUESTS)
            .try_collect()
            .await
    }

    async fn bring_about(&self, subject: &Digest, referrers: Vec<&Referrer>) -> Result<(), CopyError> {
        let (tagged, listed): (Vec<&Referrer>, Vec<&Referrer>) =
            referrers.into_iter().partition(|referrer| referrer.tag.is_some());
        self.bring_listed(subject, &listed).await?;
        for referrer in tagged {
            if let Some(tag) = &referrer.tag {
                self.bring_tagged(referrer, tag).await?;
            }
        }
        Ok(())
    }

    async fn bring_listed(&self, subject: &Digest, referrers: &[&Referrer]) -> Result<(), CopyError> {
        if referrers.is_empty() {
            return Ok(());
        }
        let there = self.repository.referrers(subject).await?;
        let is_there = |referrer: &Referrer| {
            there
                .entries
                .iter()
                .any(|entry| entry.digest == referrer.raw.digest)
        };
        let mut unlisted = Vec::new();
        for referrer in referrers {
            if is_there(referrer) {
                self.state().referrers.existed += 1;
                continue;
            }
            for node in &referrer.nodes {
                self.bring_manifest(node).await?;
            }
            unlisted.extend(entry_of(&referrer.raw));
            self.state().referrers.written += 1;
        }
        if unlisted.is_empty() {
            return Ok(());
        }
        if !there.by_registry {
            self.repository.list_referrers(subject, &unlisted).await?;
            let mut state = self.state();
            state.changed = true;
            state.lists.push((subject.clone(), unlisted.clone()));
        }
        let now = self.repository.referrers(subject).await?;
        for entry in &unlisted {
            if !now.entries.iter().any(|seen| seen.digest == entry.digest) {
                return Err(CopyError::Verification {
                    what: format!("the list of what refers to {subject} ({})", fallback_tag(subject)),
                    found: format!("{} is not in it", entry.digest),
                });
            }
        }
        Ok(())
    }

    /// Cosign's tags hold several signatures in one manifest: what the target has more of is not thrown away.
    async fn bring_tagged(&self, referrer: &Referrer, tag: &str) -> Result<(), CopyError> {
        let _turn = self.repository.turn(tag).await;
        let raw = &referrer.raw;
        match self.repository.manifest(tag).await? {
            Some(found) if found.bytes == raw.bytes => {
                self.state().referrers.existed += 1;
                return Ok(());
            }
            Some(found) => {
                let (theirs, ours) = (layers(&found), layers(raw));
                if ours.is_subset(&theirs) {
                    self.state().referrers.existed += 1;
                    return Ok(());
                }
                if !theirs.is_subset(&ours) {
                    return Err(CopyError::ReferrerTaken {
                        tag: tag.to_owned(),
                        found: found.digest,
                    });
                }
            }
            None => {}
        }
        for node in &referrer.nodes {
            self.bring_manifest(node).await?;
        }
        self.repository
            .put_manifest(tag, &raw.media_type, &raw.bytes)
            .await?;
        let mut state = self.state();
        state.changed = true;
        state.referrers.written += 1;
        Ok(())
    }

    /// Several tags may be moved together with the root, where the policy does not look at them again: the
    /// specification's next version has that, and other registries pass over it.
    fn tags_at_once(&self, previous: &[Option<Digest>]) -> &[String] {
        let referrers_come_first = !self.image.referrers.is_empty();
        let all_differ = previous
            .iter()
            .all(|found| found.as_ref() != Some(self.image.digest()));
        let several = self.target.tags.len() > 1;
        if several && self.target.policy == TagPolicy::Overwrite && !referrers_come_first && all_differ {
            &self.target.tags
        } else {
            &[]
        }
    }

    /// Points the tags to the root, and returns those that did not before.
    pub(super) async fn move_tags(
        &self,
        previous: &[Option<Digest>],
        moved: &[String],
    ) -> Result<Vec<String>, CopyError> {
        let RawManifest {
            bytes,
            media_type,
            digest,
        } = &self.image.root;
        let mut written = Vec::new();
        for (tag, previous) in self.target.tags.iter().zip(previous) {
            if moved.contains(tag) {
                written.push(tag.clone());
            } else if previous.as_ref() != Some(digest) {
                let _turn = self.repository.turn(tag).await;
                let (now, put) = self.still(tag, previous.as_ref()).await?;
                if now.as_ref() != Some(digest) {
                    self.repository
                        .put_manifest_as(tag, media_type, bytes, &put)
                        .await
                        .map_err(|error| refused_tag(tag, previous.as_ref(), &put, error))?;
                    written.push(tag.clone());
                }
            }
            self.tell(Progress::Tagged {
                target: self.index,
                tag: tag.clone(),
            });
        }
        self.state().changed |= !written.is_empty();
        Ok(written)
    }

    /// Where a tag points to right before it is moved, and on which condition it is.
    async fn still(
        &self,
        tag: &str,
        previous: Option<&Digest>,
    ) -> Result<(Option<Digest>, Put<'static>), CopyError> {
        if self.target.policy == TagPolicy::Overwrite {
            return Ok((previous.cloned(), Put::default()));
        }
        // A long push lies between then and now.
        let found = self.repository.manifest_and_tag(tag).await?;
        let now = found.as_ref().map(|(found, _)| found.digest.clone());
        if now.as_ref() != previous && now.as_ref() != Some(self.image.digest()) {
            return Err(taken(tag, now.as_ref(), CHANGED));
        }
        let put = Put {
            if_none: found.is_none(),
            if_match: found.and_then(|(_, etag)| etag),
            ..Put::default()
        };
        Ok((now, put))
    }

    /// Reads back what this push has not yet seen at the target.
    pub(super) async fn verify(&self, served: bool, written: &[String]) -> Result<(), CopyError> {
        let root = &self.image.root;
        let references = (!served)
            .then_some(root.digest.as_str())
            .into_iter()
            .chain(written.iter().map(String::as_str));
        let roots = stream::iter(references)
            .map(|reference| self.verify_root(reference))
            .buffer_unordered(REQUESTS)
            .try_collect::<()>();
        let children = stream::iter(self.image.all_nodes())
            .map(|node| self.verify_child(&node.raw))
            .buffer_unordered(REQUESTS)
            .try_collect::<()>();
        let blobs = stream::iter(&self.image.blobs)
            .map(|blob| self.verify_blob(blob))
            .buffer_unordered(REQUESTS)
            .try_collect::<()>();
        futures_util::try_join!(roots, children, blobs, self.keep_lists())?;
        Ok(())
    }

    /// Another client may have written a list that it had read before ours was in it, where the registry knows no
    /// conditions. Some time has passed since, so it is looked at again.
    async fn keep_lists(&self) -> Result<(), CopyError> {
        let lists = std::mem::take(&mut self.state().lists);
        for (subject, entries) in lists {
            self.repository.list_referrers(&subject, &entries).await?;
        }
        Ok(())
    }

    async fn verify_root(&self, reference: &str) -> Result<(), CopyError> {
        let found = self.repository.manifest(reference).await?;
        match found {
            Some(found) if found.bytes == self.image.root.bytes => Ok(()),
            found => Err(CopyError::Verification {
                what: reference.to_owned(),
                found: found.map_or_else(|| "nothing".to_owned(), |found| found.digest.to_string()),
            }),
        }
    }

    async fn verify_child(&self, raw: &RawManifest) -> Result<(), CopyError> {
        if raw.digest == self.image.root.digest || self.is_proven(&raw.digest) {
            return Ok(());
        }
        match self.repository.head_manifest(raw.digest.as_str()).await? {
            Some((_, size)) if size == raw.bytes.len() as u64 => Ok(()),
            // What the target kept instead of a referrer has more in it.
            None if self.image.referrers().any(|digest| *digest == raw.digest) => Ok(()),
            found => Err(CopyError::Verification {
                what: format!("the manifest {}", raw.digest),
                found: found.map_or_else(|| "nothing".to_owned(), |(_, size)| format!("{size} bytes")),
            }),
        }
    }

    async fn verify_blob(&self, blob: &Descriptor) -> Result<(), CopyError> {
        if !self.is_proven(&blob.digest) {
            self.repository.prove(blob).await?;
        }
        Ok(())
    }
}

fn layers(raw: &RawManifest) -> HashSet<Digest> {
    serde_json::from_slice::<Manifest>(&raw.bytes)
        .map(|manifest| manifest.layers.into_iter().map(|layer| layer.digest).collect())
        .unwrap_or_default()
}

pub(super) const IMMUTABLE: &str = "the policy says that it is never moved";
const CHANGED: &str = "somebody moved it during this push, and the policy says that it is not moved then";
const REGISTRY_SAYS: &str = "the registry does not let it be moved";

pub(super) fn taken(tag: &str, found: Option<&Digest>, rule: &'static str) -> CopyError {
    CopyError::TagTaken {
        tag: tag.to_owned(),
        found: found.map_or_else(|| "nothing".to_owned(), Digest::to_string),
        rule,
    }
}

/// Registries have no common way of saying that a tag is immutable; some use 412, most the word.
fn refused_tag(tag: &str, previous: Option<&Digest>, put: &Put<'_>, error: RegistryError) -> CopyError {
    let conditional = put.if_none || put.if_match.is_some();
    if conditional && error.status() == Some(http::StatusCode::PRECONDITION_FAILED) {
        return taken(tag, previous, CHANGED);
    }
    if let RegistryError::Answered { refusal, .. } = &error
        && previous.is_some()
        && refusal.status.is_client_error()
        && (refusal.status == http::StatusCode::PRECONDITION_FAILED
            || refusal.message.to_ascii_lowercase().contains("immutable"))
    {
        return taken(tag, previous, REGISTRY_SAYS);
    }
    error.into()
}

fn misses_blobs(code: Option<&str>) -> bool {
    matches!(code, Some("MANIFEST_BLOB_UNKNOWN" | "BLOB_UNKNOWN"))
}

/// 414 and 431 are the specification's answers to too many tags, 400 and 405 those of registries that know
/// nothing of them.
fn dislikes_parameters(error: &RegistryError) -> bool {
    !misses_blobs(error.code())
        && error
            .status()
            .is_some_and(|status| matches!(status.as_u16(), 400 | 405 | 414 | 431))
}
