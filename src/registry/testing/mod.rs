//! A registry in the test's own process: correct until a test tells it otherwise, and it remembers every request.
//!
//! `exchange` is the registry as the specification has it, which the official conformance suite checks; `link`
//! puts one that we did not write in its place; `connection` breaks connections; what goes wrong, and when, is
//! here.

mod connection;
mod exchange;
mod link;
pub(crate) mod wire;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request, State as Shared},
    response::Response,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore};

use connection::{Breakable, Connection};
use exchange::Exchange;
use link::Link;

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
    /// The work, and the answer of a proxy that lost the registry's.
    BadGateway,
    /// The connection ends after so many bytes of the request's body; an upload keeps them.
    BreakAfter(u64),
    /// The work, and then the connection ends without an answer.
    LoseAnswer,
    /// The connection ends after so many bytes of the answer's body.
    CutAnswer(usize),
    /// The work, but slowly: a pause before each part of the request's body, and before each KiB of the answer's.
    Drip(Duration),
    /// The work as if no range had been asked for.
    NoRanges,
    /// Neither reads the body nor answers before there is a permit.
    Hold(Arc<Semaphore>),
}

/// What a registry offers beyond the least; everything by default.
#[derive(Clone, Copy, Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is there or not, whatever the others are"
)]
pub(crate) struct Features {
    /// The referrers API.
    pub(crate) referrers: bool,
    /// Several tags with one manifest.
    pub(crate) tag_parameter: bool,
    /// `ETag` and `If-Match` of manifests.
    pub(crate) etags: bool,
    /// A HEAD of a blob says its size.
    pub(crate) sizes: bool,
    /// A manifest without a length is refused.
    pub(crate) lengths: bool,
    /// Uploads by PATCH.
    pub(crate) pieces: bool,
    /// Mounts; without them an upload is opened instead.
    pub(crate) mounts: bool,
    /// The largest body of an upload's request.
    pub(crate) largest_body: u64,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            referrers: true,
            tag_parameter: true,
            etags: true,
            sizes: true,
            lengths: true,
            pieces: true,
            mounts: true,
            largest_body: u64::MAX,
        }
    }
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
    features: Features,
    rules: Vec<Rule>,
    log: Vec<Seen>,
    /// Scopes and uses left by token.
    tokens: HashMap<String, (Vec<String>, usize)>,
    names: usize,
}

struct Inner {
    address: SocketAddr,
    door: Door,
    /// Who does the work, if it is not done here.
    link: Option<Link>,
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
        Self::with(door, None).await
    }

    /// Doors and faults before a registry that does the work.
    pub(crate) async fn before(host: &str, door: Door) -> Self {
        Self::with(door, Some(Link::to(host))).await
    }

    async fn with(door: Door, link: Option<Link>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inner = Arc::new(Inner {
            address: listener.local_addr().unwrap(),
            door,
            link,
            content: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        tokio::spawn(async move {
            axum::serve(
                Breakable::new(listener),
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

    /// Leaves out a part of what registries may offer.
    pub(crate) fn without(self, change: impl FnOnce(&mut Features)) -> Self {
        change(&mut self.content().features);
        self
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

    /// A manifest of which only the digest matters.
    pub(crate) fn adopt_manifest(&self, repository: &str, digest: &Digest) {
        self.content().manifests.insert(
            (repository.to_owned(), digest.to_string()),
            (media_type::OCI_MANIFEST.into(), Bytes::from_static(b"{}")),
        );
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
        self.put_image_for(repository, "amd64", layers)
    }

    /// The same for a platform.
    pub(crate) fn put_image_for(&self, repository: &str, architecture: &str, layers: &[&[u8]]) -> Descriptor {
        let describe = |bytes: &[u8], media_type: &str| {
            let digest = self.put_blob(repository, bytes);
            json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
        };
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","x":{}}}"#,
            layers.len()
        );
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
                first: Duration::from_millis(1),
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
    if let Some(Fault::Hold(permits)) = &fault {
        let _ = permits.acquire().await;
    }
    let pause = match &fault {
        Some(Fault::Drip(pause)) => *pause,
        _ => Duration::ZERO,
    };
    let bytes = read(body, limit, pause).await;
    let length = bytes.len() as u64;
    if length > inner.content().features.largest_body && path.contains("/uploads/") {
        let refused = refusal(413, "SIZE_INVALID", &json!("TOO LARGE"));
        inner.content().log.push(Seen {
            method: parts.method,
            path,
            query,
            headers: parts.headers,
            body: length,
            status: 413,
        });
        return refused;
    }
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
            match &inner.link {
                Some(link) => link.break_off(&exchange).await,
                None => exchange.keep_part(),
            }
            reply(500, &[], "")
        }
        Some(Fault::NoRanges) => {
            exchange.headers.remove(header::RANGE);
            exchange.serve().await
        }
        _ => exchange.serve().await,
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
        Some(Fault::BadGateway) => response = reply(502, &[], ""),
        Some(Fault::BreakAfter(_) | Fault::LoseAnswer) => connection.end(),
        Some(Fault::Drip(pause)) if parts.method != Method::HEAD => {
            let whole = whole(&mut response).await;
            let drops: Vec<Bytes> = whole.chunks(1024).map(Bytes::copy_from_slice).collect();
            let drops = stream::iter(drops).then(move |drop| async move {
                tokio::time::sleep(pause).await;
                Ok::<_, io::Error>(drop)
            });
            *response.body_mut() = Body::from_stream(drops);
        }
        Some(Fault::CutAnswer(length)) => {
            let whole = whole(&mut response).await;
            let parts = [Ok(whole.slice(..length)), Err(io::Error::other("cut"))];
            *response.body_mut() = Body::from_stream(stream::iter(parts));
        }
        Some(Fault::Answer(..) | Fault::NoRanges | Fault::Hold(_) | Fault::Drip(_)) | None => {}
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

/// Takes the body out of an answer, which goes on to have its length.
async fn whole(response: &mut Response) -> Bytes {
    let body = std::mem::take(response.body_mut());
    let whole = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, whole.len().into());
    whole
}

async fn read(body: Body, limit: u64, pause: Duration) -> Vec<u8> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < limit
        && let Some(Ok(part)) = stream.next().await
    {
        bytes.extend_from_slice(&part);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
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
