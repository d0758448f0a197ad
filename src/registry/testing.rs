//! A registry in the test's own process: correct until a test tells it otherwise, and it remembers every request.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request, State as Shared, connect_info::Connected},
    response::Response,
    serve::{IncomingStream, Listener},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

use super::{Backoff, Client, ClientOptions, Credentials, Repository};
use crate::image::{Descriptor, Digest, media_type};

/// What a registry does wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Another answer, and no work.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// The work, and a header of the answer replaced or left out.
    Header(&'static str, Option<String>),
    /// The work, and another body.
    Says(Vec<u8>),
    /// The connection ends after so many bytes of the request's body; an upload keeps them.
    BreakAfter(u64),
    /// The work, and then the connection ends without an answer.
    LoseAnswer,
    /// The connection ends after so many bytes of the answer's body.
    CutAnswer(usize),
    /// The work as if no range had been asked for.
    NoRanges,
}

struct Rule {
    method: Method,
    part: String,
    times: usize,
    fault: Fault,
}

/// One request as it was seen.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    /// Bytes of its body that were read.
    pub(crate) body: u64,
    pub(crate) status: u16,
}

/// Whom the registry lets in.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    Open,
    Basic,
    /// Tokens for so many requests each.
    Bearer {
        uses: usize,
        realm: Option<String>,
    },
}

#[derive(Default)]
struct Content {
    blobs: HashMap<(String, String), Bytes>,
    manifests: HashMap<(String, String), (String, Bytes)>,
    tags: BTreeMap<(String, String), String>,
    uploads: HashMap<String, Vec<u8>>,
    rules: Vec<Rule>,
    log: Vec<Seen>,
    /// Scopes and uses left by token.
    tokens: HashMap<String, (Vec<String>, usize)>,
    names: usize,
}

struct Inner {
    address: SocketAddr,
    door: Door,
    content: Mutex<Content>,
}

pub(crate) const USER: &str = "user";
pub(crate) const PASSWORD: &str = "correct horse";

/// The registry. It ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct FaultRegistry {
    inner: Arc<Inner>,
}

impl FaultRegistry {
    pub(crate) async fn start() -> Self {
        Self::behind(Door::Open).await
    }

    pub(crate) async fn behind(door: Door) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inner = Arc::new(Inner {
            address: listener.local_addr().unwrap(),
            door,
            content: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        tokio::spawn(async move {
            axum::serve(
                Breakable(listener),
                router.into_make_service_with_connect_info::<Connection>(),
            )
            .await
        });
        Self { inner }
    }

    pub(crate) fn host(&self) -> String {
        self.inner.address.to_string()
    }

    /// Does something wrong with the next `times` requests of a method whose path and query contain `part`.
    pub(crate) fn fault(&self, times: usize, method: Method, part: &str, fault: Fault) {
        self.content().rules.push(Rule {
            method,
            part: part.to_owned(),
            times,
            fault,
        });
    }

    pub(crate) fn log(&self) -> Vec<Seen> {
        self.content().log.clone()
    }

    pub(crate) fn forget_log(&self) {
        self.content().log.clear();
    }

    /// `METHOD path` of every request so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        let line = |seen: Seen| format!("{} {}", seen.method, seen.path);
        self.log().into_iter().map(line).collect()
    }

    pub(crate) fn count(&self, method: &Method, part: &str) -> usize {
        let matching =
            |seen: &&Seen| seen.method == method && format!("{}?{}", seen.path, seen.query).contains(part);
        self.log().iter().filter(matching).count()
    }

    /// Bytes of layers and configs that came in.
    pub(crate) fn received(&self) -> u64 {
        self.log()
            .iter()
            .filter(|seen| seen.path.contains("/blobs/uploads/"))
            .map(|seen| seen.body)
            .sum()
    }

    pub(crate) fn put_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.content().blobs.insert(
            (repository.into(), digest.to_string()),
            Bytes::copy_from_slice(bytes),
        );
        digest
    }

    pub(crate) fn blob(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        self.content()
            .blobs
            .get(&(repository.into(), digest.to_string()))
            .cloned()
    }

    pub(crate) fn remove_blob(&self, repository: &str, digest: &Digest) {
        self.content()
            .blobs
            .remove(&(repository.to_owned(), digest.to_string()));
    }

    pub(crate) fn put_manifest(&self, repository: &str, media_type: &str, document: &Value) -> Descriptor {
        let bytes = Bytes::from(document.to_string());
        let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        self.content().manifests.insert(
            (repository.into(), descriptor.digest.to_string()),
            (media_type.into(), bytes),
        );
        descriptor
    }

    pub(crate) fn tag(&self, repository: &str, tag: &str, digest: &Digest) {
        self.content()
            .tags
            .insert((repository.into(), tag.into()), digest.to_string());
    }

    pub(crate) fn tagged(&self, repository: &str, tag: &str) -> Option<String> {
        self.content()
            .tags
            .get(&(repository.to_owned(), tag.to_owned()))
            .cloned()
    }

    /// An image of a config and layers, in place.
    pub(crate) fn put_image(&self, repository: &str, layers: &[&[u8]]) -> Descriptor {
        let describe = |bytes: &[u8], media_type: &str| {
            let digest = self.put_blob(repository, bytes);
            json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
        };
        let config = format!(r#"{{"architecture":"amd64","os":"linux","x":{}}}"#, layers.len());
        let document = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": describe(config.as_bytes(), media_type::OCI_CONFIG),
            "layers": layers.iter().map(|layer| describe(layer, media_type::OCI_LAYER)).collect::<Vec<_>>(),
        });
        self.put_manifest(repository, media_type::OCI_MANIFEST, &document)
    }

    pub(crate) fn options(&self) -> ClientOptions {
        ClientOptions {
            plain_http: [self.host()].into(),
            backoff: Backoff {
                first: std::time::Duration::from_millis(1),
                ..Backoff::default()
            },
            ..ClientOptions::default()
        }
    }

    pub(crate) fn anonymous(&self, repository: &str) -> Repository {
        Client::new(self.options(), Credentials::anonymous())
            .unwrap()
            .repository(&self.host(), repository)
    }

    pub(crate) fn credentials(&self) -> Credentials {
        Credentials::anonymous().with_password(&self.host(), USER, PASSWORD)
    }

    pub(crate) fn repository(&self, repository: &str) -> Repository {
        Client::new(self.options(), self.credentials())
            .unwrap()
            .repository(&self.host(), repository)
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.inner.content.lock().unwrap()
    }
}

impl Inner {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap()
    }

    /// Takes the first fault that is meant for a request.
    fn fault_for(&self, method: &Method, target: &str) -> Option<Fault> {
        let mut content = self.content();
        let rule = content
            .rules
            .iter_mut()
            .find(|rule| rule.times > 0 && rule.method == method && target.contains(&rule.part))?;
        rule.times -= 1;
        Some(rule.fault.clone())
    }
}

async fn answer(
    Shared(inner): Shared<Arc<Inner>>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let fault = inner.fault_for(&parts.method, &format!("{path}?{query}"));
    let limit = match &fault {
        Some(Fault::BreakAfter(limit)) => *limit,
        _ => u64::MAX,
    };
    let bytes = read(body, limit).await;
    let length = bytes.len() as u64;
    let mut exchange = Exchange {
        inner: &inner,
        method: parts.method.clone(),
        path: path.clone(),
        query: query.clone(),
        headers: parts.headers.clone(),
        body: bytes,
    };
    let mut response = match &fault {
        Some(Fault::Answer(status, headers, body)) => {
            let mut response = reply(*status, headers, body.clone());
            if parts.method == Method::HEAD {
                *response.body_mut() = Body::empty();
            }
            response
        }
        Some(Fault::BreakAfter(_)) => {
            exchange.keep_part();
            reply(500, &[], "")
        }
        Some(Fault::NoRanges) => {
            exchange.headers.remove(header::RANGE);
            exchange.serve()
        }
        _ => exchange.serve(),
    };
    match fault {
        Some(Fault::Header(name, value)) => {
            response.headers_mut().remove(name);
            if let Some(value) = value {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
        }
        Some(Fault::Says(body)) => {
            response.headers_mut().remove(header::CONTENT_LENGTH);
            *response.body_mut() = Body::from(body);
        }
        Some(Fault::BreakAfter(_) | Fault::LoseAnswer) => connection.0.store(true, Ordering::SeqCst),
        Some(Fault::CutAnswer(length)) => {
            let whole = axum::body::to_bytes(std::mem::take(response.body_mut()), usize::MAX)
                .await
                .unwrap();
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, whole.len().into());
            let parts = [Ok(whole.slice(..length)), Err(io::Error::other("cut"))];
            *response.body_mut() = Body::from_stream(stream::iter(parts));
        }
        Some(Fault::Answer(..) | Fault::NoRanges) | None => {}
    }
    inner.content().log.push(Seen {
        method: parts.method,
        path,
        query,
        headers: parts.headers,
        body: length,
        status: response.status().as_u16(),
    });
    response
}

async fn read(body: Body, limit: u64) -> Vec<u8> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < limit
        && let Some(Ok(part)) = stream.next().await
    {
        bytes.extend_from_slice(&part);
    }
    bytes.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    bytes
}

fn reply(status: u16, headers: &[(&'static str, String)], body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().append(*name, value.parse().unwrap());
    }
    response
}

fn refusal(status: u16, code: &str, detail: &Value) -> Response {
    let body = json!({"errors": [{"code": code, "message": "so it is", "detail": detail}]});
    reply(status, &[], body.to_string())
}

/// One request to a registry that behaves.
struct Exchange<'a> {
    inner: &'a Inner,
    method: Method,
    path: String,
    query: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Exchange<'_> {
    fn serve(self) -> Response {
        if self.path == "/token" {
            return self.token();
        }
        let Some(rest) = self.path.strip_prefix("/v2/").map(str::to_owned) else {
            return reply(404, &[], "");
        };
        let found = ["/blobs/uploads/", "/blobs/", "/manifests/", "/tags/"]
            .iter()
            .find_map(|part| {
                rest.split_once(part)
                    .map(|(name, what)| (*part, name.to_owned(), what.to_owned()))
            });
        let Some((kind, name, what)) = found else {
            return reply(404, &[], "");
        };
        if let Some(refused) = self.refuse(&name) {
            return refused;
        }
        match (kind, self.method.as_str()) {
            ("/blobs/uploads/", "POST") => self.open_upload(&name),
            ("/blobs/uploads/", _) => self.upload(&name, &what),
            ("/blobs/", "GET" | "HEAD") => self.serve_blob(name, what),
            ("/manifests/", "GET" | "HEAD") => self.serve_manifest(&name, &what),
            ("/manifests/", "PUT") => self.keep_manifest(&name, &what),
            ("/tags/", "GET") => self.list_tags(&name),
            _ => reply(405, &[], ""),
        }
    }

    fn parameter(&self, name: &str) -> Option<String> {
        let url = reqwest::Url::parse(&format!("http://x/?{}", self.query)).unwrap();
        url.query_pairs()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
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
        let url = reqwest::Url::parse(&format!("http://x/?{}", self.query)).unwrap();
        let scopes = url
            .query_pairs()
            .filter(|(key, _)| key == "scope")
            .map(|(_, value)| value.into_owned())
            .collect();
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
                let action =
                    if matches!(self.method, Method::GET | Method::HEAD) && !self.path.contains("uploads") {
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
        if let (Some(digest), Some(from)) = (self.parameter("mount"), self.parameter("from")) {
            let readable = !matches!(self.inner.door, Door::Bearer { .. }) || self.may(&from, "pull", false);
            let mut content = self.inner.content();
            if readable && let Some(bytes) = content.blobs.get(&(from, digest.clone())).cloned() {
                content.blobs.insert((name.to_owned(), digest.clone()), bytes);
                return reply(201, &[("location", format!("/v2/{name}/blobs/{digest}"))], "");
            }
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
        assert!(self.query.starts_with(STATE), "{}", self.query);
        let mut content = self.inner.content();
        let Some(kept) = content.uploads.get_mut(id) else {
            return refusal(404, "BLOB_UPLOAD_UNKNOWN", &Value::Null);
        };
        if matches!(self.method, Method::PATCH | Method::PUT) {
            let start = self
                .header(header::CONTENT_RANGE)
                .and_then(|range| range.split_once('-'))
                .map(|(start, _)| start.parse::<usize>().unwrap());
            if start.is_some_and(|start| start != kept.len()) {
                return refusal(416, "RANGE_INVALID", &Value::Null);
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
                let wanted: Digest = self.parameter("digest").unwrap().parse().unwrap();
                let mut hasher = wanted.hasher();
                hasher.update(kept);
                if hasher.finish() != wanted {
                    return refusal(400, "DIGEST_INVALID", &Value::Null);
                }
                let bytes = content.uploads.remove(id).unwrap_or_default();
                content
                    .blobs
                    .insert((name.to_owned(), wanted.to_string()), bytes.into());
                reply(201, &[("location", format!("/v2/{name}/blobs/{wanted}"))], "")
            }
            _ => reply(405, &[], ""),
        }
    }

    /// What came before the connection broke.
    fn keep_part(&self) {
        if let Some((_, id)) = self.path.split_once("/blobs/uploads/")
            && let Some(kept) = self.inner.content().uploads.get_mut(id)
        {
            kept.extend_from_slice(&self.body);
        }
    }

    fn serve_blob(&self, name: String, digest: String) -> Response {
        let Some(bytes) = self.inner.content().blobs.get(&(name, digest)).cloned() else {
            return refusal(404, "BLOB_UNKNOWN", &Value::Null);
        };
        let size = bytes.len();
        if self.method == Method::HEAD {
            return reply(200, &[("content-length", size.to_string())], "");
        }
        let range = self
            .header(header::RANGE)
            .and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        match range {
            None => reply(200, &[], bytes),
            Some((first, last)) => {
                let first: usize = first.parse().unwrap();
                let last = last.parse().unwrap_or(size - 1);
                let range = format!("bytes {first}-{last}/{size}");
                reply(206, &[("content-range", range)], bytes.slice(first..=last))
            }
        }
    }

    fn serve_manifest(&self, name: &str, reference: &str) -> Response {
        let content = self.inner.content();
        let tagged = content.tags.get(&(name.to_owned(), reference.to_owned()));
        let digest = tagged.cloned().unwrap_or_else(|| reference.to_owned());
        let Some((media_type, bytes)) = content.manifests.get(&(name.to_owned(), digest.clone())) else {
            return refusal(404, "MANIFEST_UNKNOWN", &Value::Null);
        };
        let accepted = self.headers.get_all(header::ACCEPT).iter();
        assert!(
            accepted
                .filter_map(|value| value.to_str().ok())
                .any(|value| value == media_type),
            "{media_type} is not accepted"
        );
        let headers = [
            ("content-type", media_type.clone()),
            ("docker-content-digest", digest),
            ("content-length", bytes.len().to_string()),
        ];
        if self.method == Method::HEAD {
            return reply(200, &headers, "");
        }
        reply(200, &headers, bytes.clone())
    }

    fn keep_manifest(&self, name: &str, reference: &str) -> Response {
        assert!(self.headers.contains_key(header::CONTENT_LENGTH));
        let document: Value = serde_json::from_slice(&self.body).unwrap();
        let digest = Digest::of(&self.body).to_string();
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
        let missing = blobs
            .iter()
            .find(|blob| !content.blobs.contains_key(&key(blob)))
            .or(list("manifests")
                .iter()
                .find(|child| !content.manifests.contains_key(&key(child))))
            .cloned();
        if let Some(missing) = missing {
            return refusal(400, "MANIFEST_BLOB_UNKNOWN", &missing);
        }
        if reference.starts_with("sha256:") {
            assert_eq!(reference, digest);
        } else {
            content
                .tags
                .insert((name.to_owned(), reference.to_owned()), digest.clone());
        }
        let media_type = self.header(header::CONTENT_TYPE).unwrap().to_owned();
        content.manifests.insert(
            (name.to_owned(), digest.clone()),
            (media_type, self.body.clone().into()),
        );
        reply(201, &[("docker-content-digest", digest)], "")
    }

    /// Two tags a page, so that there are pages.
    fn list_tags(&self, name: &str) -> Response {
        let after = self.parameter("after").unwrap_or_default();
        let content = self.inner.content();
        let tags: Vec<&String> = content
            .tags
            .keys()
            .filter(|(repository, tag)| repository == name && *tag > after)
            .map(|(_, tag)| tag)
            .collect();
        let page = &tags[..tags.len().min(2)];
        let mut headers = Vec::new();
        if tags.len() > 2 {
            headers.push((
                "link",
                format!("</v2/{name}/tags/list?after={}>; rel=\"next\"", page[1]),
            ));
        }
        reply(200, &headers, json!({"name": name, "tags": page}).to_string())
    }
}

const STATE: &str = "_state=a%3Db%2Fc";

fn location(name: &str, id: &str) -> String {
    format!("/v2/{name}/blobs/uploads/{id}?{STATE}")
}

/// A listener whose connections can be ended from a handler.
struct Breakable(TcpListener);

/// One of its connections; `true` once it is to end.
#[derive(Clone)]
struct Connection(Arc<AtomicBool>);

struct Breaking {
    stream: TcpStream,
    broken: Connection,
}

impl Listener for Breakable {
    type Io = Breaking;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Breaking, SocketAddr) {
        loop {
            if let Ok((stream, address)) = self.0.accept().await {
                let broken = Connection(Arc::default());
                return (Breaking { stream, broken }, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Connected<IncomingStream<'_, Breakable>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Breakable>) -> Self {
        stream.io().broken.clone()
    }
}

impl Breaking {
    fn check(&self) -> io::Result<()> {
        if self.broken.0.load(Ordering::SeqCst) {
            Err(io::ErrorKind::ConnectionReset.into())
        } else {
            Ok(())
        }
    }
}

impl AsyncRead for Breaking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Breaking {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
