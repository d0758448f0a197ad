//! Credentials and tokens.

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, header};

use super::{content, describe};
use crate::{
    image::Digest,
    record::Reason,
    registry::{
        BytesSource, Client, Credentials, Mount, Secret,
        testing::{Door, Fault, FaultRegistry, PASSWORD, USER},
    },
};

fn tokens() -> Door {
    Door::Bearer {
        uses: 1000,
        realm: None,
    }
}

fn scopes(registry: &FaultRegistry) -> Vec<Vec<String>> {
    registry
        .log()
        .iter()
        .filter(|seen| seen.path == "/token")
        .map(|seen| {
            reqwest::Url::parse(&format!("http://x/?{}", seen.query))
                .unwrap()
                .query_pairs()
                .filter(|(key, _)| key == "scope")
                .map(|(_, scope)| scope.into_owned())
                .collect()
        })
        .collect()
}

#[tokio::test]
async fn a_password_is_shown_where_one_is_asked_for() {
    let registry = FaultRegistry::behind(Door::Basic).await;
    let source = BytesSource(Bytes::from_static(b"hello"));
    registry
        .repository("a")
        .upload_blob(&describe(b"hello"), &source)
        .await
        .unwrap();
    let refused = registry.log().iter().filter(|seen| seen.status == 401).count();
    assert_eq!(refused, 1);
}

#[tokio::test]
async fn without_credentials_or_with_wrong_ones_the_refusal_is_the_answer() {
    for door in [Door::Basic, tokens()] {
        let registry = FaultRegistry::behind(door).await;
        let wrong = Credentials::anonymous().with_password(&registry.host(), USER, "wrong");
        for credentials in [Credentials::anonymous(), wrong] {
            let client = Client::new(registry.options(), credentials).unwrap();
            let repository = client.repository(&registry.host(), "a");
            let error = repository.head_blob(&Digest::of(b"x")).await.unwrap_err();
            assert_eq!(error.reason(), Reason::PushUnauthorized);
            assert!(!format!("{error} {error:?}").contains("wrong"));
        }
        assert!(registry.log().len() <= 8);
    }
}

#[tokio::test]
async fn one_token_serves_a_push_and_names_its_mount_source() {
    let registry = FaultRegistry::behind(tokens()).await;
    let mounted = registry.put_blob("from", b"mounted");
    let repository = registry.repository("to").for_push(&["from"]);
    let mount = repository.mount_blob(&mounted, "from").await.unwrap();
    assert!(matches!(mount, Mount::Mounted));
    let source = BytesSource(Bytes::from_static(b"sent"));
    repository.upload_blob(&describe(b"sent"), &source).await.unwrap();
    assert_eq!(
        scopes(&registry),
        [["repository:to:pull,push", "repository:from:pull"]]
    );
}

#[tokio::test]
async fn a_server_that_grants_one_scope_is_asked_for_the_target_s() {
    let registry = FaultRegistry::behind(tokens()).await;
    registry.fault(
        1,
        Method::GET,
        "from",
        Fault::Answer(400, vec![], "one scope only".into()),
    );
    let repository = registry.repository("to").for_push(&["from"]);
    let blob = describe(b"hello");
    let Mount::Upload(pending) = repository.mount_blob(&blob.digest, "from").await.unwrap() else {
        panic!("an upload")
    };
    let source = BytesSource(Bytes::from_static(b"hello"));
    repository
        .send_blob(&blob, &source, Some(pending), None)
        .await
        .unwrap();
    assert_eq!(scopes(&registry).len(), 2);
}

#[tokio::test]
async fn a_token_that_is_good_for_another_scope_only_is_replaced_by_a_narrow_one() {
    let registry = FaultRegistry::behind(tokens()).await;
    let realm = format!("Bearer realm=\"http://{}/token\"", registry.host());
    let refusal = Fault::Answer(401, vec![("www-authenticate", realm)], String::new());
    registry.fault(2, Method::HEAD, "blobs", refusal);
    let repository = registry.repository("to").for_push(&["from"]);
    for _ in 0..3 {
        assert_eq!(repository.head_blob(&Digest::of(b"x")).await.unwrap(), None);
    }
    let asked: Vec<usize> = scopes(&registry).iter().map(Vec::len).collect();
    assert_eq!(asked[..2], [2, 1]);
    // Once more, because the challenge that the registry itself makes names a service.
    assert!(asked[2..].iter().all(|scopes| *scopes == 1));
}

#[tokio::test]
async fn many_requests_at_once_fetch_one_token() {
    let registry = FaultRegistry::behind(tokens()).await;
    let repository = registry.repository("a");
    let digest = Digest::of(b"x");
    let found = join_all((0..20).map(|_| repository.head_blob(&digest))).await;
    assert!(found.into_iter().all(|found| found.unwrap().is_none()));
    assert_eq!(scopes(&registry).len(), 1);
}

#[tokio::test]
async fn a_token_that_ends_early_is_renewed_once_for_each_request() {
    let registry = FaultRegistry::behind(Door::Bearer { uses: 2, realm: None }).await;
    let repository = registry.repository("a");
    for _ in 0..6 {
        assert_eq!(repository.head_blob(&Digest::of(b"x")).await.unwrap(), None);
    }
    assert_eq!(scopes(&registry).len(), 3);
}

#[tokio::test]
async fn an_upload_outlives_its_token() {
    // HEAD and POST use up the first token, so that the PUT is refused after its body was sent.
    let registry = FaultRegistry::behind(Door::Bearer { uses: 2, realm: None }).await;
    let bytes = content(1 << 20);
    let source = BytesSource(bytes.clone());
    let repository = registry.repository("a").for_push(&[]);
    repository.upload_blob(&describe(&bytes), &source).await.unwrap();
    assert_eq!(registry.blob("a", &Digest::of(&bytes)).unwrap(), bytes);
}

#[tokio::test]
async fn a_registry_that_refuses_every_token_is_not_asked_for_ever() {
    let registry = FaultRegistry::behind(Door::Bearer { uses: 0, realm: None }).await;
    let error = registry
        .repository("a")
        .head_blob(&Digest::of(b"x"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::PushUnauthorized);
    assert_eq!(scopes(&registry).len(), 1);
    assert_eq!(registry.log().len(), 3);
}

#[tokio::test]
async fn a_plain_registry_cannot_send_the_password_to_another_realm() {
    let thief = FaultRegistry::behind(tokens()).await;
    let registry = FaultRegistry::behind(Door::Bearer {
        uses: 9,
        realm: Some(format!("http://{}/token", thief.host())),
    })
    .await;
    let error = registry
        .repository("a")
        .head_blob(&Digest::of(b"x"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::PushUnauthorized);
    let seen = thief.log();
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].headers.contains_key(header::AUTHORIZATION));
}

#[tokio::test]
async fn a_realm_that_the_login_names_is_shown_the_password_and_no_other_one_is() {
    let (operator, thief) = (
        FaultRegistry::behind(tokens()).await,
        FaultRegistry::behind(tokens()).await,
    );
    let realm = |at: &FaultRegistry| format!("http://{}/token", at.host());
    for (named, server, shown) in [(&operator, &operator, true), (&operator, &thief, false)] {
        let registry = FaultRegistry::behind(Door::Bearer {
            uses: 9,
            realm: Some(realm(server)),
        })
        .await;
        let login = Credentials::anonymous().with_password_for_realm(
            &registry.host(),
            USER,
            PASSWORD,
            realm(named).parse().unwrap(),
        );
        let client = Client::new(registry.options(), login).unwrap();
        let _ = client
            .repository(&registry.host(), "a")
            .head_blob(&Digest::of(b"x"))
            .await;
        let seen = server.log();
        assert!(!seen.is_empty());
        assert!(
            seen.iter()
                .all(|seen| seen.headers.contains_key(header::AUTHORIZATION) == shown)
        );
    }
}

#[tokio::test]
async fn an_access_token_is_shown_to_the_registry_alone() {
    let registry = FaultRegistry::behind(tokens()).await;
    let login = Credentials::anonymous().with_access_token(&registry.host(), "given");
    let client = Client::new(registry.options(), login).unwrap();
    let _ = client
        .repository(&registry.host(), "a")
        .head_blob(&Digest::of(b"x"))
        .await;
    let log = registry.log();
    assert!(log.iter().all(|seen| seen.path != "/token"));
    assert!(log.iter().any(|seen| {
        seen.headers
            .get(header::AUTHORIZATION)
            .is_some_and(|value| value == "Bearer given")
    }));
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_the_oauth_form() {
    let registry = FaultRegistry::behind(tokens()).await;
    let json = format!(
        r#"{{"auths":{{"{}":{{"identitytoken":"refresh-me"}}}}}}"#,
        registry.host()
    );
    let credentials = Credentials::from_docker_config(json.as_bytes()).unwrap();
    let token = r#"{"access_token":"given"}"#.to_owned();
    registry.fault(1, Method::POST, "/token", Fault::Answer(200, vec![], token));
    let client = Client::new(registry.options(), credentials).unwrap();
    let repository = client.repository(&registry.host(), "a");
    // The test registry does not know the token that the test invented.
    assert!(repository.head_blob(&Digest::of(b"x")).await.is_err());
    let seen = registry.log();
    let exchange = seen.iter().find(|seen| seen.path == "/token").unwrap();
    assert_eq!(exchange.method, Method::POST);
    assert!(!exchange.query.contains("refresh-me"));
    let last = seen.last().unwrap();
    assert_eq!(last.headers[header::AUTHORIZATION], "Bearer given");
    assert!(
        seen.iter()
            .all(|seen| !format!("{:?}", seen.headers).contains(PASSWORD))
    );
}

#[rstest::rstest]
#[case::not_found(404)]
#[case::not_allowed(405)]
#[tokio::test]
async fn a_token_server_without_oauth_is_asked_in_the_old_way(#[case] status: u16) {
    let registry = FaultRegistry::behind(tokens()).await;
    let credentials =
        Credentials::anonymous().with_identity_token(&registry.host(), Secret::new("refresh-me"));
    registry.fault(
        1,
        Method::POST,
        "/token",
        Fault::Answer(status, vec![], String::new()),
    );
    let token = r#"{"token":"given"}"#.to_owned();
    registry.fault(1, Method::GET, "/token", Fault::Answer(200, vec![], token));
    let client = Client::new(registry.options(), credentials).unwrap();
    let repository = client.repository(&registry.host(), "a");
    assert!(repository.head_blob(&Digest::of(b"x")).await.is_err());
    let seen = registry.log();
    let asked: Vec<_> = seen.iter().filter(|seen| seen.path == "/token").collect();
    assert_eq!(
        (&asked[0].method, &asked[1].method),
        (&Method::POST, &Method::GET)
    );
    assert!(asked[1].headers.contains_key(header::AUTHORIZATION));
    assert_eq!(
        seen.last().unwrap().headers[header::AUTHORIZATION],
        "Bearer given"
    );
}

#[tokio::test]
async fn a_credential_for_another_registry_stays_at_home() {
    let registry = FaultRegistry::behind(Door::Basic).await;
    let credentials = Credentials::anonymous().with_password("registry.example.com", USER, PASSWORD);
    let client = Client::new(registry.options(), credentials).unwrap();
    let repository = client.repository(&registry.host(), "a");
    assert!(repository.head_blob(&Digest::of(b"x")).await.is_err());
    assert!(
        registry
            .log()
            .iter()
            .all(|seen| !seen.headers.contains_key(header::AUTHORIZATION))
    );
}
