//! A server below HTTP's libraries: it keeps every byte that it is sent, and answers as a test says.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    /// `METHOD target`.
    pub(crate) line: String,
    /// Header lines, names in lower case.
    pub(crate) headers: Vec<String>,
    pub(crate) body: String,
}

impl Heard {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter_map(|line| line.split_once(": "));
        values.find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// A field of a form.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let url = reqwest::Url::parse(&format!("http://form/?{}", self.body)).ok()?;
        let mut pairs = url.query_pairs();
        pairs
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.into_owned())
    }
}

/// Answers a request; the server's own host is given.
type Script = dyn Fn(&str, &Heard) -> String + Send + Sync;

/// The server. It ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) host: String,
    bytes: Arc<Mutex<Vec<u8>>>,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Wire {
    pub(crate) async fn start(script: impl Fn(&str, &Heard) -> String + Send + Sync + 'static) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Self {
            host: listener.local_addr().unwrap().to_string(),
            bytes: Arc::default(),
            heard: Arc::default(),
        };
        let (shared, script): (Self, Arc<Script>) = (wire.clone(), Arc::new(script));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(shared.clone().serve(stream, Arc::clone(&script)));
            }
        });
        wire
    }

    /// Everything that came, whatever it was.
    pub(crate) fn received(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    async fn serve(self, mut stream: TcpStream, script: Arc<Script>) {
        let mut pending = Vec::new();
        loop {
            let request = loop {
                if let Some((request, length)) = parse(&pending) {
                    pending.drain(..length);
                    break request;
                }
                let mut piece = vec![0; 16 << 10];
                let Ok(length @ 1..) = stream.read(&mut piece).await else {
                    return;
                };
                self.bytes.lock().unwrap().extend_from_slice(&piece[..length]);
                pending.extend_from_slice(&piece[..length]);
            };
            let mut answer = script(&self.host, &request);
            if request.line.starts_with("HEAD ")
                && let Some(end) = answer.find("\r\n\r\n")
            {
                answer.truncate(end + 4);
            }
            self.heard.lock().unwrap().push(request);
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// The first whole request and its length.
fn parse(bytes: &[u8]) -> Option<(Heard, usize)> {
    let end = bytes.windows(4).position(|part| part == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let line = lines.next()?.rsplit_once(' ')?.0.to_owned();
    let headers: Vec<String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| format!("{}: {value}", name.to_ascii_lowercase()))
        .collect();
    let length = headers
        .iter()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    let body = bytes.get(end + 4..end + 4 + length)?;
    let heard = Heard {
        line,
        headers,
        body: String::from_utf8_lossy(body).into_owned(),
    };
    Some((heard, end + 4 + length))
}

/// An answer as it goes over the wire.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        text.extend([*name, ": ", *value, "\r\n"]);
    }
    text + "\r\n" + body
}
