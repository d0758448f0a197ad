//! Real repositories behind git's own http server program, for tests.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, Response, StatusCode, header},
};
use base64::Engine as _;
use tokio::{io::AsyncWriteExt as _, net::TcpListener, process::Command};

/// How a server behaves.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// Wants this user and password.
    pub login: Option<(&'static str, &'static str)>,
    /// Sends everybody (who may enter) to another server.
    pub moved_to: Option<String>,
    /// Speaks the protocol in which a commit cannot be asked for by its digits.
    pub old: bool,
    /// Answers so many requests with 503 first.
    pub outages: usize,
}

/// A server of the repositories in its folder.
pub struct GitServer {
    /// `http://host:port`.
    pub origin: String,
    folder: tempfile::TempDir,
    seen: Arc<Mutex<Vec<HeaderMap>>>,
}

#[derive(Clone)]
struct Shared {
    root: PathBuf,
    manners: Manners,
    seen: Arc<Mutex<Vec<HeaderMap>>>,
}

impl GitServer {
    pub async fn start(manners: Manners) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = Shared {
            root: folder.path().to_owned(),
            manners,
            seen: seen.clone(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(shared);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { origin, folder, seen }
    }

    pub fn url(&self, repository: &str) -> String {
        format!("{}/{repository}", self.origin)
    }

    /// A new repository with one commit.
    pub async fn repository(&self, name: &str) -> Repository {
        let repository = Repository {
            path: self.folder.path().join(name),
        };
        std::fs::create_dir(&repository.path).unwrap();
        repository
            .git(&["init", "--quiet", "--initial-branch=main"])
            .await;
        repository.write("app/Containerfile", "FROM scratch\n");
        repository.commit("first").await;
        repository
    }

    pub fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub fn saw_credentials(&self) -> bool {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .any(|headers| headers.contains_key(header::AUTHORIZATION))
    }
}

/// A repository that a test fills.
pub struct Repository {
    path: PathBuf,
}

impl Repository {
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Commits everything and returns the commit.
    pub async fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]).await;
        self.git(&["commit", "--quiet", "--message", message]).await;
        self.git(&["rev-parse", "HEAD"]).await
    }

    pub async fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(&self.path)
            .args(["-c", "user.name=Test", "-c", "user.email=test@example.org"])
            .args(["-c", "protocol.file.allow=always"])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_COMMITTER_DATE", "1700000000 +0000")
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response<Body> {
    let number = {
        let mut seen = shared.seen.lock().unwrap();
        seen.push(request.headers().clone());
        seen.len()
    };
    let status = |code: StatusCode| Response::builder().status(code);
    if number <= shared.manners.outages {
        return status(StatusCode::SERVICE_UNAVAILABLE)
            .body(Body::empty())
            .unwrap();
    }
    if let Some((user, password)) = shared.manners.login {
        let token = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let given = request.headers().get(header::AUTHORIZATION);
        if given.is_none_or(|given| given.as_bytes() != format!("Basic {token}").as_bytes()) {
            return status(StatusCode::UNAUTHORIZED)
                .header(header::WWW_AUTHENTICATE, "Basic realm=\"git\"")
                .body(Body::empty())
                .unwrap();
        }
    }
    if let Some(origin) = &shared.manners.moved_to {
        return status(StatusCode::FOUND)
            .header(header::LOCATION, format!("{origin}{}", request.uri()))
            .body(Body::empty())
            .unwrap();
    }
    serve(&shared, request).await
}

/// Runs `git http-backend` as a web server runs a CGI program.
async fn serve(shared: &Shared, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let text = |name: &str| {
        let value = parts.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap()).to_owned()
    };
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &shared.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", text("content-type"))
        .env("HTTP_CONTENT_ENCODING", text("content-encoding"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if !shared.manners.old {
        command.env("GIT_PROTOCOL", text("git-protocol"));
    }
    let mut child = command.spawn().unwrap();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let mut input = child.stdin.take().unwrap();
    // It may answer without having read everything.
    let _ = input.write_all(&body).await;
    drop(input);
    let output = child.wait_with_output().await.unwrap().stdout;

    let end = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let mut response = Response::builder();
    for line in std::str::from_utf8(&output[..end]).unwrap().split("\r\n") {
        let (name, value) = line.split_once(": ").unwrap();
        response = match name {
            "Status" => response.status(value[..3].parse::<u16>().unwrap()),
            _ => response.header(name, value),
        };
    }
    response.body(Body::from(output[end + 4..].to_vec())).unwrap()
}
