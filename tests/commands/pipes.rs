//! Commands between pipes and proxies: readers that leave, and requests that go round.

use std::{
    fs,
    io::{Read as _, Write as _},
    process::{Command, Stdio},
};

/// A registry of one answer, and what it was asked.
fn answering(answer: &'static str) -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut piece = [0; 4096];
            while !request.windows(4).any(|part| part == b"\r\n\r\n") {
                match stream.read(&mut piece) {
                    Ok(length @ 1..) => request.extend_from_slice(&piece[..length]),
                    _ => break,
                }
            }
            let head = String::from_utf8_lossy(&request).into_owned();
            let _ = stream.write_all(answer.as_bytes());
            if sender.send(head).is_err() {
                return;
            }
        }
    });
    (host, receiver)
}

const TAGS: &str =
    "HTTP/1.1 200 OK\r\ncontent-length: 22\r\nconnection: close\r\n\r\n{\"tags\":[\"v1\", \"v2\"] }";

/// What `| head` does: the reader leaves before anything is written.
#[test]
fn a_reader_that_leaves_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("image.tar"), "no archive").unwrap();
    let (host, _asked) = answering(TAGS);
    let plain = format!("--plain-http={host}");
    let (repository, image) = (format!("{host}/a"), format!("{host}/a:v1"));
    let commands: [&[&str]; 7] = [
        &["crds"],
        &["inspect", "image.tar"],
        &["inspect", "image.tar", "--json"],
        &["tags", &plain, &repository],
        &["tags", "--json", &plain, &repository],
        // These fail, and say so to nobody.
        &["push", &plain, &image, &repository],
        &["push", "--json", &plain, &image, &repository],
    ];
    for arguments in commands {
        let (reader, writer) = std::io::pipe().unwrap();
        let (error_reader, error_writer) = std::io::pipe().unwrap();
        drop((reader, error_reader));
        let status = Command::new(env!("CARGO_BIN_EXE_slipway"))
            .args(arguments)
            .current_dir(folder.path())
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(error_writer)
            .status()
            .unwrap();
        let expected = i32::from(matches!(arguments[0], "push" | "inspect"));
        assert_eq!(status.code(), Some(expected), "{arguments:?}");
    }
}

/// The environment's proxies, as they are asked: for plain http by a whole URL, for https by CONNECT.
#[test]
fn proxies_of_the_environment_are_used_except_where_they_are_not_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let (proxy, asked) = answering(TAGS);
    let tags = |arguments: &[&str], no_proxy: &str| {
        Command::new(env!("CARGO_BIN_EXE_slipway"))
            .arg("tags")
            .args(arguments)
            .env("HOME", folder.path())
            .env("HTTP_PROXY", format!("http://{proxy}"))
            .env("http_proxy", format!("http://{proxy}"))
            .env("HTTPS_PROXY", format!("http://{proxy}"))
            .env("https_proxy", format!("http://{proxy}"))
            .env("NO_PROXY", no_proxy)
            .env("no_proxy", no_proxy)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    // Only the proxy could know this name.
    let plain = ["--plain-http", "registry.invalid:5000", "registry.invalid:5000/a"];
    let output = tags(&plain, "");
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(0), &b"v1\nv2\n"[..])
    );
    let head = asked.recv().unwrap();
    assert!(
        head.starts_with("GET http://registry.invalid:5000/v2/a/tags/list?n=1000 HTTP/1.1\r\n"),
        "{head}"
    );
    // This proxy speaks no TLS, so it ends there; each attempt asked for a tunnel and for nothing else.
    assert_eq!(tags(&["registry.invalid/a"], "").status.code(), Some(3));
    let tunnels: Vec<String> = asked.try_iter().collect();
    assert!(!tunnels.is_empty());
    for head in tunnels {
        assert!(
            head.starts_with("CONNECT registry.invalid:443 HTTP/1.1\r\n"),
            "{head}"
        );
    }
    assert_eq!(tags(&plain, "registry.invalid").status.code(), Some(3));
    assert_eq!(asked.try_iter().count(), 0);
}
