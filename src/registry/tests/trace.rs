//! What crosses the wire to servers that a hostile registry names: no byte of a credential.
//!
//! The servers keep all that they are sent, below any library, so what is asserted is what a stranger would have.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use rstest::rstest;

use super::describe;
use crate::{
    image::{Digest, media_type},
    registry::{
        BytesSource, Client, ClientOptions, Credentials, Secret,
        testing::wire::{Heard, Wire, answer},
    },
};

const PASSWORD: &str = "canarypassword";
const REFRESH: &str = "canaryrefresh";
const ACCESS: &str = "canaryaccess";
/// What a token server of the registry's own issues.
const ISSUED: &str = "canaryissued";

/// How the registry tries.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trick {
    /// The token realm is elsewhere.
    Realm,
    /// Its own token server sends the client elsewhere.
    TokenRedirect,
    /// Whatever is asked with a credential is said to be elsewhere.
    Redirect(u16),
    /// The same, with a name and a password in the URL.
    UserInformation,
    /// Uploads go on elsewhere.
    Location,
    /// The next page is elsewhere.
    Link,
}

fn hostile(trick: Trick, basic: bool, other: &str) -> impl Fn(&str, &Heard) -> String + use<> {
    let other = other.to_owned();
    move |own, heard| {
        if heard.line.contains(" /token") {
            return match trick {
                Trick::TokenRedirect => answer(307, &[("location", &format!("http://{other}/token"))], ""),
                _ => answer(200, &[], &format!(r#"{{"token":"{ISSUED}"}}"#)),
            };
        }
        if heard.header("authorization").is_none() {
            let realm = match trick {
                Trick::Realm => format!(r#"Bearer realm="http://{other}/token",service="s""#),
                _ if basic => r#"Basic realm="x""#.to_owned(),
                _ => format!(r#"Bearer realm="http://{own}/token",service="s""#),
            };
            return answer(401, &[("www-authenticate", &realm)], "");
        }
        let elsewhere = format!("http://{other}/elsewhere");
        match trick {
            Trick::Redirect(status) => answer(status, &[("location", &elsewhere)], ""),
            Trick::UserInformation => answer(
                307,
                &[("location", &format!("http://user:{PASSWORD}@{other}/x"))],
                "",
            ),
            Trick::Location if heard.line.starts_with("POST") => answer(202, &[("location", &elsewhere)], ""),
            Trick::Link if heard.line.contains("/tags/list") => answer(
                200,
                &[("link", &format!(r#"<{elsewhere}>; rel="next""#))],
                r#"{"tags":["a"]}"#,
            ),
            Trick::Link if heard.line.contains("/referrers/") => answer(
                200,
                &[
                    ("link", &format!(r#"<{elsewhere}>; rel="next""#)),
                    ("content-type", media_type::OCI_INDEX),
                ],
                &format!(
                    r#"{{"manifests":[{{"mediaType":"m","size":1,"digest":"{}"}}]}}"#,
                    Digest::of(b"x")
                ),
            ),
            _ => answer(404, &[], ""),
        }
    }
}

/// A collector's server: it takes whatever it gets.
fn taking(_: &str, heard: &Heard) -> String {
    if heard.line.contains("/token") {
        return answer(200, &[], r#"{"token":"anonymous"}"#);
    }
    answer(200, &[], "hello")
}

/// Everything that a client does; none of it has to succeed.
async fn everything(client: &Client, host: &str) {
    let repository = client.repository(host, "a");
    let (blob, digest) = (describe(b"hello"), Digest::of(b"hello"));
    let _ = repository.head_blob(&digest).await;
    let _ = repository.blob_bytes(&blob, 5).await;
    let _ = repository.manifest("latest").await;
    let _ = repository.head_manifest("latest").await;
    let _ = repository.tags().await;
    let _ = repository.referrers(&digest).await;
    let _ = repository.mount_blob(&digest, "other").await;
    let source = BytesSource(Bytes::from_static(b"hello"));
    let _ = repository.upload_blob(&blob, &source).await;
    let _ = repository
        .put_manifest("latest", media_type::OCI_MANIFEST, &Bytes::from_static(b"{}"))
        .await;
    if let Ok(mut upload) = repository.begin_upload().await {
        let _ = upload.write(Bytes::from_static(b"hello")).await;
        let _ = upload.commit(&digest).await;
    }
}

fn logins(host: &str) -> [Credentials; 3] {
    let none = Credentials::anonymous;
    [
        none().with_password(host, "user", PASSWORD),
        none().with_identity_token(host, Secret::new(REFRESH)),
        none().with_access_token(host, ACCESS),
    ]
}

#[rstest]
#[case::realm(Trick::Realm, false)]
#[case::token_redirect(Trick::TokenRedirect, false)]
#[case::moved(Trick::Redirect(301), true)]
#[case::found(Trick::Redirect(302), true)]
#[case::see_other(Trick::Redirect(303), true)]
#[case::temporary(Trick::Redirect(307), true)]
#[case::temporary_with_a_token(Trick::Redirect(307), false)]
#[case::permanent(Trick::Redirect(308), true)]
#[case::user_information(Trick::UserInformation, true)]
#[case::location(Trick::Location, true)]
#[case::location_with_a_token(Trick::Location, false)]
#[case::link(Trick::Link, true)]
#[tokio::test]
async fn no_byte_of_a_credential_leaves_its_origin(
    #[case] trick: Trick,
    #[case] basic: bool,
    #[values(false, true)] foreign_uploads: bool,
) {
    let other = Wire::start(taking).await;
    let home = Wire::start(hostile(trick, basic, &other.host)).await;
    for credentials in logins(&home.host) {
        let options = ClientOptions {
            plain_http: [home.host.clone()].into(),
            foreign_uploads,
            backoff: crate::registry::Backoff {
                attempts: 1,
                ..crate::registry::Backoff::default()
            },
            ..ClientOptions::default()
        };
        let client = Client::new(options, credentials).unwrap();
        everything(&client, &home.host).await;
    }
    let stolen = other.received();
    let pair = STANDARD.encode(format!("user:{PASSWORD}"));
    for secret in [PASSWORD, REFRESH, ACCESS, ISSUED, &pair] {
        assert!(!stolen.contains(secret), "{secret} in\n{stolen}");
    }
    assert!(
        !stolen.to_ascii_lowercase().contains("authorization:"),
        "{stolen}"
    );
    // The check would find one where one is: at home.
    let own = home.received();
    match trick {
        Trick::Realm => assert!(own.contains(ACCESS)),
        Trick::TokenRedirect => assert!(own.contains(&pair) && own.contains(REFRESH)),
        _ if basic => assert!(own.contains(&pair)),
        _ => assert!(own.contains(&pair) && own.contains(REFRESH) && own.contains(ISSUED)),
    }
    // The other server was there to be spoken to, wherever that is allowed at all.
    let followed = match trick {
        Trick::Realm | Trick::Redirect(_) => true,
        Trick::Location => foreign_uploads,
        Trick::TokenRedirect | Trick::UserInformation | Trick::Link => false,
    };
    assert_eq!(!other.heard().is_empty(), followed, "{:?}", other.heard());
}
