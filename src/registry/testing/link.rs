//! A registry that we did not write, behind the doors and faults of the test's own.

use axum::{body::Body, response::Response};
use http::{Method, header};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{exchange::Exchange, reply};

/// The way to the registry.
pub(super) struct Link {
    host: String,
    http: reqwest::Client,
}

impl Link {
    pub(super) fn to(host: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            host: host.to_owned(),
            http: reqwest::Client::builder()
                .no_proxy()
                .tls_certs_only([])
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .unwrap(),
        }
    }

    /// The registry's own answer. It hears of the name that the client used, so that its Locations lead here.
    pub(super) async fn pass_on(&self, exchange: Exchange<'_>) -> Response {
        let url = format!("http://{}{}", self.host, target(&exchange));
        let mut headers = exchange.headers;
        headers.remove(header::AUTHORIZATION);
        let is_head = exchange.method == Method::HEAD;
        let request = self.http.request(exchange.method, url).headers(headers);
        let Ok(answer) = request.body(exchange.body).send().await else {
            // As a gateway says it whose connection was closed meanwhile.
            return reply(502, &[], "");
        };
        let mut response = Response::new(Body::empty());
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        response.headers_mut().remove(header::TRANSFER_ENCODING);
        response.headers_mut().remove(header::CONNECTION);
        if !is_head {
            *response.body_mut() = Body::from(answer.bytes().await.unwrap());
        }
        response
    }

    /// Gives the registry what of a request came before the connection broke, and waits until it has seen the
    /// break.
    pub(super) async fn break_off(&self, exchange: &Exchange<'_>) {
        let mut head = format!("{} {} HTTP/1.1\r\n", exchange.method, target(exchange));
        for (name, value) in &exchange.headers {
            head.extend([name.as_str(), ": ", value.to_str().unwrap(), "\r\n"]);
        }
        let mut stream = TcpStream::connect(&self.host).await.unwrap();
        stream.write_all((head + "\r\n").as_bytes()).await.unwrap();
        stream.write_all(&exchange.body).await.unwrap();
        stream.shutdown().await.unwrap();
        // It answers, or ends the connection without a word.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
}

fn target(exchange: &Exchange<'_>) -> String {
    let (path, query) = (&exchange.path, &exchange.query);
    if query.is_empty() {
        path.clone()
    } else {
        format!("{path}?{query}")
    }
}
