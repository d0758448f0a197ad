//! A registry that behaves: OCI distribution specification 1.1, with what its next version adds.

use super::{
    Body, Bytes, Door, HeaderMap, Inner, Method, PASSWORD, Response, USER, Value, header, json, refusal,
    reply,
};
use crate::image::{Digest, media_type};
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// One request.
pub(super) struct Exchange<'a> {
    pub(super) inner: &'a Inner,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Exchange<'_> {
    pub(super) async fn serve(self) -> Response {
        if self.path == "/token" {
            return self.token();
        }
        if let Some(link) = &self.inner.link {
            return match self.refuse(self.repository()) {
                Some(refused) => refused,
                None => link.pass_on(self).await,
            };
        }
        self.serve_here()
    }

    /// The repository that a path is about; nothing for `/v2/`.
    fn repository(&self) -> &str {
        let rest = self.path.strip_prefix("/v2/").unwrap_or_default();
        let kinds = ["/blobs/", "/manifests/", "/tags/", "/referrers/"];
        let found = kinds.iter().find_map(|kind| rest.split_once(kind));
        found.map_or("", |(name, _)| name)
    }

    fn serve_here(self) -> Response {
        if self.path == "/v2/" || self.path == "/v2" {
            return self.refuse("").unwrap_or_else(|| reply(200, &[], "{}"));
        }
        let Some(rest) = self.path.strip_prefix("/v2/").map(str::to_owned) else {
            return reply(404, &[], "");
        };
        let kinds = [
            "/blobs/uploads/",
            "/blobs/uploads",
            "/blobs/",
            "/manifests/",
            "/tags/",
            "/referrers/",
        ];
        let found = kinds.iter().find_map(|part| {
            rest.split_once(part)
                .map(|(name, what)| (part.trim_end_matches('/'), name.to_owned(), what.to_owned()))
        });
        let Some((kind, name, what)) = found else {
            return reply(404, &[], "");
        };
        if let Some(refused) = self.refuse(&name) {
            return refused;
        }
        match (kind, self.method.as_str()) {
            ("/blobs/uploads", "POST") => self.open_upload(&name),
            ("/blobs/uploads", _) => self.upload(&name, &what),
            ("/blobs", "GET" | "HEAD") => self.serve_blob(name, what),
            ("/blobs", "DELETE") => self.delete_blob(name, what),
            ("/manifests", "GET" | "HEAD") => self.serve_manifest(&name, &what),
            ("/manifests", "PUT") => self.keep_manifest(&name, &what),
            ("/manifests", "DELETE") => self.delete_manifest(&name, &what),
            ("/tags", "GET") => self.list_tags(&name),
            ("/referrers", "GET") => self.list_referrers(&name, &what),
            _ => refusal(405, "UNSUPPORTED", &Value::Null),
        }
    }

    fn parameters(&self, name: &str) -> Vec<String> {
        let url = reqwest::Url::parse(&format!("http://x/?{}", self.query)).unwrap();
        url.query_pairs()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
            .collect()
    }

    fn parameter(&self, name: &str) -> Option<String> {
        self.parameters(name).into_iter().next()
    }

    fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn knows_password(&self) -> bool {
        let expected = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
        self.header(header::AUTHORIZATION) == Some(&expected)
    }

    /// Tokens name their scopes and may be used so often.
    fn token(&self) -> Response {
        if !self.knows_password() {
            return refusal(401, "UNAUTHORIZED", &Value::Null);
        }
        let Door::Bearer { uses, .. } = self.inner.door else {
            return reply(404, &[], "");
        };
        let scopes = self.parameters("scope");
        let mut content = self.inner.content();
        content.names += 1;
        let token = format!("token-{}", content.names);
        content.tokens.insert(token.clone(), (scopes, uses));
        reply(200, &[], json!({"token": token, "expires_in": 300}).to_string())
    }

    fn refuse(&self, name: &str) -> Option<Response> {
        let challenge = match &self.inner.door {
            Door::Open => return None,
            Door::Basic if self.knows_password() => return None,
            Door::Basic => r#"Basic realm="test""#.to_owned(),
            Door::Bearer { realm, .. } => {
                let reads = matches!(self.method, Method::GET | Method::HEAD);
                let action = if reads && !self.path.contains("uploads") {
                    "pull"
                } else {
                    "push"
                };
                if self.may(name, action, true) {
                    return None;
                }
                let own = format!("http://{}/token", self.inner.address);
                let realm = realm.as_ref().unwrap_or(&own);
                format!(r#"Bearer realm="{realm}",service="test",scope="repository:{name}:{action}""#)
            }
        };
        let body = json!({"errors": [{"code": "UNAUTHORIZED", "message": "who are you?"}]});
        Some(reply(401, &[("www-authenticate", challenge)], body.to_string()))
    }

    fn may(&self, name: &str, action: &str, uses: bool) -> bool {
        let token = self
            .header(header::AUTHORIZATION)
            .and_then(|text| text.strip_prefix("Bearer "))
            .unwrap_or_default();
        let mut content = self.inner.content();
        let Some((scopes, left)) = content.tokens.get_mut(token) else {
            return false;
        };
        let prefix = format!("repository:{name}:");
        let granted = scopes
            .iter()
            .filter_map(|scope| scope.strip_prefix(&prefix))
            .any(|actions| actions.split(',').any(|granted| granted == action));
        if !granted || *left == 0 {
            return false;
        }
        *left -= usize::from(uses);
        true
    }

    fn open_upload(&self, name: &str) -> Response {
        if let Some(digest) = self.parameter("mount") {
            let from = self.parameter("from");
            let readable =
                |from: &str| !matches!(self.inner.door, Door::Bearer { .. }) || self.may(from, "pull", false);
            let readable = from.as_deref().is_some_and(readable);
            let mut content = self.inner.content();
            if readable
                && content.features.mounts
                && let Some(bytes) = content
                    .blobs
                    .get(&(from.unwrap_or_default(), digest.clone()))
                    .cloned()
            {
                content.blobs.insert((name.to_owned(), digest.clone()), bytes);
                return created_blob(name, &digest);
            }
        } else if let Some(digest) = self.parameter("digest") {
            return self.keep_blob(name, &digest, self.body.clone());
        }
        let mut content = self.inner.content();
        content.names += 1;
        let id = format!("upload-{}", content.names);
        content.uploads.insert(id.clone(), Vec::new());
        drop(content);
        reply(
            202,
            &[("location", location(name, &id)), ("range", "0-0".into())],
            "",
        )
    }

    fn upload(&self, name: &str, id: &str) -> Response {
        // Whatever a Location carries comes back as it was.
        if !self.query.starts_with(STATE) {
            return refusal(400, "BLOB_UPLOAD_INVALID", &json!(self.query));
        }
        let mut content = self.inner.content();
        if !content.features.pieces && self.method == Method::PATCH {
            return refusal(405, "UNSUPPORTED", &Value::Null);
        }
        let Some(kept) = content.uploads.get_mut(id) else {
            return refusal(404, "BLOB_UPLOAD_UNKNOWN", &Value::Null);
        };
        if matches!(self.method, Method::PATCH | Method::PUT) {
            let start = self
                .header(header::CONTENT_RANGE)
                .and_then(|range| range.split_once('-'))
                .and_then(|(start, _)| start.parse::<usize>().ok());
            if start.is_some_and(|start| start != kept.len()) {
                let range = format!("0-{}", kept.len().saturating_sub(1));
                return reply(416, &[("location", location(name, id)), ("range", range)], "");
            }
            kept.extend_from_slice(&self.body);
        }
        let range = format!("0-{}", kept.len().saturating_sub(1));
        let headers = [("location", location(name, id)), ("range", range)];
        match self.method.as_str() {
            "GET" => reply(204, &headers, ""),
            "PATCH" => reply(202, &headers, ""),
            "DELETE" => {
                content.uploads.remove(id);
                reply(204, &[], "")
            }
            "PUT" => {
                let bytes = content.uploads.remove(id).unwrap_or_default();
                drop(content);
                match self.parameter("digest") {
                    Some(digest) => self.keep_blob(name, &digest, bytes),
                    None => refusal(400, "DIGEST_INVALID", &Value::Null),
                }
            }
            _ => refusal(405, "UNSUPPORTED", &Value::Null),
        }
    }

    fn keep_blob(&self, name: &str, digest: &str, bytes: Vec<u8>) -> Response {
        if !matches_digest(digest, &bytes) {
            return refusal(400, "DIGEST_INVALID", &json!(digest));
        }
        let key = (name.to_owned(), digest.to_owned());
        self.inner.content().blobs.insert(key, bytes.into());
        created_blob(name, digest)
    }

    /// What came before the connection broke.
    pub(super) fn keep_part(&self) {
        if let Some((_, id)) = self.path.split_once("/blobs/uploads/")
            && let Some(kept) = self.inner.content().uploads.get_mut(id)
        {
            kept.extend_from_slice(&self.body);
        }
    }

    fn serve_blob(&self, name: String, digest: String) -> Response {
        let content = self.inner.content();
        let sizes = content.features.sizes;
        let Some(bytes) = content.blobs.get(&(name, digest.clone())).cloned() else {
            return refusal(404, "BLOB_UNKNOWN", &Value::Null);
        };
        drop(content);
        let size = bytes.len();
        let digest = ("docker-content-digest", digest);
        if self.method == Method::HEAD {
            let length = ("content-length", size.to_string());
            // Without a length, HTTP's framing still has to say that nothing follows.
            return if sizes {
                reply(200, &[digest, length], "")
            } else {
                reply(
                    200,
                    &[digest],
                    Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>()),
                )
            };
        }
        let range = self
            .header(header::RANGE)
            .and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let Some((first, last)) = range else {
            return reply(200, &[digest], bytes);
        };
        // The last so many bytes, where no beginning is named.
        let suffix = last.parse().ok().filter(|_| first.is_empty());
        let first: usize = match suffix {
            Some(length) => size.saturating_sub(length),
            None => first.parse().unwrap_or(usize::MAX),
        };
        let last = if suffix.is_some() { "" } else { last };
        let last = last.parse().unwrap_or(usize::MAX).min(size.saturating_sub(1));
        if first > last || first >= size {
            return reply(416, &[("content-range", format!("bytes */{size}"))], "");
        }
        let range = ("content-range", format!("bytes {first}-{last}/{size}"));
        reply(206, &[digest, range], bytes.slice(first..=last))
    }

    fn delete_blob(&self, name: String, digest: String) -> Response {
        match self.inner.content().blobs.remove(&(name, digest)) {
            Some(_) => reply(202, &[], ""),
            None => refusal(404, "BLOB_UNKNOWN", &Value::Null),
        }
    }

    fn serve_manifest(&self, name: &str, reference: &str) -> Response {
        let content = self.inner.content();
        let tagged = content.tags.get(&(name.to_owned(), reference.to_owned()));
        let digest = tagged.cloned().unwrap_or_else(|| reference.to_owned());
        let Some((media_type, bytes)) = content.manifests.get(&(name.to_owned(), digest.clone())) else {
            return refusal(404, "MANIFEST_UNKNOWN", &Value::Null);
        };
        let mut accepted = self.headers.get_all(header::ACCEPT).iter();
        let wants = |text: &str| {
            text.split(',')
                .any(|one| one.trim() == media_type || one.trim() == "*/*")
        };
        if !accepted.any(|value| value.to_str().is_ok_and(wants)) {
            return refusal(
                404,
                "MANIFEST_UNKNOWN",
                &json!(format!("{media_type} is not accepted")),
            );
        }
        let mut headers = vec![
            ("content-type", media_type.clone()),
            ("docker-content-digest", digest.clone()),
            ("content-length", bytes.len().to_string()),
        ];
        if content.features.etags {
            headers.push(("etag", format!("\"{digest}\"")));
        }
        if self.method == Method::HEAD {
            return reply(200, &headers, "");
        }
        reply(200, &headers, bytes.clone())
    }

    fn keep_manifest(&self, name: &str, reference: &str) -> Response {
        let lengths = self.inner.content().features.lengths;
        if lengths && !self.headers.contains_key(header::CONTENT_LENGTH) {
            return refusal(411, "SIZE_INVALID", &Value::Null);
        }
        let Ok(document) = serde_json::from_slice::<Value>(&self.body) else {
            return refusal(400, "MANIFEST_INVALID", &Value::Null);
        };
        let is_digest = reference.contains(':');
        let named = if is_digest {
            Some(reference.to_owned())
        } else {
            self.parameter("digest")
        };
        let digest = named.unwrap_or_else(|| Digest::of(&self.body).to_string());
        if !matches_digest(&digest, &self.body) {
            return refusal(400, "DIGEST_INVALID", &json!(digest));
        }
        let mut content = self.inner.content();
        let list = |key: &str| document[key].as_array().cloned().unwrap_or_default();
        let mut blobs = list("layers");
        blobs.extend(document.get("config").cloned());
        let key = |child: &Value| {
            (
                name.to_owned(),
                child["digest"].as_str().unwrap_or_default().to_owned(),
            )
        };
        let is_elsewhere = |blob: &Value| {
            blob["mediaType"]
                .as_str()
                .is_some_and(|kind| kind.contains("nondistributable") || kind.contains("foreign"))
        };
        let missing = blobs
            .iter()
            .find(|blob| !content.blobs.contains_key(&key(blob)) && !is_elsewhere(blob))
            .or(list("manifests")
                .iter()
                .find(|child| !content.manifests.contains_key(&key(child))))
            .cloned();
        if let Some(missing) = missing {
            return refusal(400, "MANIFEST_BLOB_UNKNOWN", &missing);
        }
        let mut tags = if content.features.tag_parameter && is_digest {
            self.parameters("tag")
        } else {
            Vec::new()
        };
        let mut headers: Vec<_> = tags.iter().map(|tag| ("oci-tag", tag.clone())).collect();
        if !is_digest {
            tags.push(reference.to_owned());
        }
        if let Some(wanted) = self.header(header::IF_MATCH).filter(|_| content.features.etags) {
            let now = content.tags.get(&(name.to_owned(), reference.to_owned()));
            if now.map(|digest| format!("\"{digest}\"")).as_deref() != Some(wanted) {
                return refusal(412, "PRECONDITION_FAILED", &Value::Null);
            }
        }
        let is_there = content
            .tags
            .contains_key(&(name.to_owned(), reference.to_owned()));
        if content.features.etags && is_there && self.header(header::IF_NONE_MATCH) == Some("*") {
            return refusal(412, "PRECONDITION_FAILED", &Value::Null);
        }
        for tag in tags {
            content.tags.insert((name.to_owned(), tag), digest.clone());
        }
        let media_type = self.header(header::CONTENT_TYPE).unwrap_or_default().to_owned();
        content.manifests.insert(
            (name.to_owned(), digest.clone()),
            (media_type, self.body.clone().into()),
        );
        headers.push(("location", format!("/v2/{name}/manifests/{digest}")));
        headers.push(("docker-content-digest", digest));
        if content.features.referrers
            && let Some(subject) = document["subject"]["digest"].as_str()
        {
            headers.push(("oci-subject", subject.to_owned()));
        }
        reply(201, &headers, "")
    }

    fn delete_manifest(&self, name: &str, reference: &str) -> Response {
        let key = (name.to_owned(), reference.to_owned());
        let mut content = self.inner.content();
        let found = content.tags.remove(&key).is_some() || content.manifests.remove(&key).is_some();
        if !found {
            return refusal(404, "MANIFEST_UNKNOWN", &Value::Null);
        }
        content
            .tags
            .retain(|(repository, _), digest| repository != name || digest != reference);
        reply(202, &[], "")
    }

    /// Two tags a page unless more are asked for, so that there are pages.
    fn list_tags(&self, name: &str) -> Response {
        let after = self.parameter("last").unwrap_or_default();
        let wanted = self
            .parameter("n")
            .and_then(|n| n.parse().ok())
            .unwrap_or(usize::MAX);
        let size = if wanted == 1000 { 2 } else { wanted };
        let content = self.inner.content();
        let tags: Vec<&String> = content
            .tags
            .keys()
            .filter(|(repository, tag)| repository == name && *tag > after)
            .map(|(_, tag)| tag)
            .collect();
        let page = &tags[..tags.len().min(size)];
        let mut headers = vec![("content-type", "application/json".to_owned())];
        if let Some(last) = page.last().filter(|_| tags.len() > page.len()) {
            headers.push((
                "link",
                format!("</v2/{name}/tags/list?n={wanted}&last={last}>; rel=\"next\""),
            ));
        }
        reply(200, &headers, json!({"name": name, "tags": page}).to_string())
    }

    fn list_referrers(&self, name: &str, subject: &str) -> Response {
        let content = self.inner.content();
        if !content.features.referrers {
            return reply(
                404,
                &[("content-type", "text/plain".into())],
                "404 page not found",
            );
        }
        if subject.parse::<Digest>().is_err() {
            return refusal(400, "DIGEST_INVALID", &json!(subject));
        }
        let wanted = self.parameter("artifactType");
        let mut entries = Vec::new();
        for ((repository, digest), (media_type, bytes)) in &content.manifests {
            let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
            if repository != name || document["subject"]["digest"] != subject {
                continue;
            }
            let kind = match document["artifactType"].as_str() {
                Some(kind) if !kind.is_empty() => Some(kind),
                _ => document["config"]["mediaType"].as_str(),
            };
            if wanted.is_some() && wanted.as_deref() != kind {
                continue;
            }
            let mut entry = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
            if let Some(kind) = kind {
                entry["artifactType"] = json!(kind);
            }
            if let Some(annotations) = document.get("annotations") {
                entry["annotations"] = annotations.clone();
            }
            entries.push(entry);
        }
        let mut headers = vec![("content-type", media_type::OCI_INDEX.to_owned())];
        if wanted.is_some() {
            headers.push(("oci-filters-applied", "artifactType".to_owned()));
        }
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries});
        reply(200, &headers, index.to_string())
    }
}

const STATE: &str = "_state=a%3Db%2Fc";

fn location(name: &str, id: &str) -> String {
    format!("/v2/{name}/blobs/uploads/{id}?{STATE}")
}

fn created_blob(name: &str, digest: &str) -> Response {
    let location = format!("/v2/{name}/blobs/{digest}");
    reply(
        201,
        &[
            ("location", location),
            ("docker-content-digest", digest.to_owned()),
        ],
        "",
    )
}

fn matches_digest(digest: &str, bytes: &[u8]) -> bool {
    digest.parse::<Digest>().is_ok_and(|wanted| {
        let mut hasher = wanted.hasher();
        hasher.update(bytes);
        hasher.finish() == wanted
    })
}
