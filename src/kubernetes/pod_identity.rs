//! Who a pod is, proven by the token that the kubelet mounted for one audience.
//!
//! Such a token names its pod and is signed by the API server, whose public keys anybody in the cluster may
//! read. So it is checked here without a request each; whether the pod still exists, the caller knows.
//! Tokens for the API server's own audience are nobody's business here and are refused like any other's.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use kube::Client;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde::{Deserialize, de::DeserializeOwned};

/// The API server may rotate its keys; a token of a key that is not known yet is worth one look this often.
const KEYS_LOOK_AGAIN: Duration = Duration::from_secs(10);

/// A token is some 1,200 bytes; nothing longer is decoded.
const TOKEN_LIMIT: usize = 8192;

/// The pod that a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It is no token, or not one of a pod's.
    #[error("the token is not one that the kubelet mounts into a pod: {0}")]
    Malformed(&'static str),
    /// None of the API server's keys signed it.
    #[error("the token is not signed by this cluster's API server")]
    Signature,
    /// It is for somebody else.
    #[error("the token is not for the audience {0:?}")]
    Audience(String),
    /// It was good once.
    #[error("the token has expired")]
    Expired,
    /// The keys cannot be read.
    #[error("the API server's keys cannot be read: {0}")]
    Keys(String),
}

/// Proves tokens of one audience.
pub struct TokenVerifier {
    client: Client,
    audience: String,
    keys: Mutex<Keys>,
}

#[derive(Clone, Debug, Default)]
struct Keys {
    set: Vec<Jwk>,
    read_at: Option<Instant>,
}

/// One key of the API server's set.
///
/// Source: RFC 7517 and RFC 7518, section 6.
#[derive(Clone, Debug, Deserialize)]
struct Jwk {
    kid: Option<String>,
    kty: String,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: BoundTo,
}

#[derive(Deserialize)]
struct BoundTo {
    namespace: String,
    pod: Option<BoundPod>,
}

#[derive(Deserialize)]
struct BoundPod {
    name: String,
    uid: String,
}

impl TokenVerifier {
    /// Proves tokens for `audience` with the keys that the API server publishes.
    pub fn new(client: Client, audience: &str) -> Self {
        Self {
            client,
            audience: audience.to_owned(),
            keys: Mutex::default(),
        }
    }

    /// The pod that the token was mounted into.
    ///
    /// # Errors
    /// When the token is not this cluster's, not for this audience, expired, or not bound to a pod.
    pub async fn verify(&self, token: &str) -> Result<PodIdentity, IdentityError> {
        let known = self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = Timestamp::now();
        match verify(token, &known.set, &self.audience, now) {
            Err(IdentityError::Signature)
                if known.read_at.is_none_or(|at| at.elapsed() > KEYS_LOOK_AGAIN) =>
            {
                let set = self.read_keys().await?;
                let verified = verify(token, &set, &self.audience, now);
                *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Keys {
                    set,
                    read_at: Some(Instant::now()),
                };
                verified
            }
            verified => verified,
        }
    }

    /// Source: Kubernetes, "Service account issuer discovery".
    async fn read_keys(&self) -> Result<Vec<Jwk>, IdentityError> {
        let request = http::Request::get("/openid/v1/jwks")
            .body(Vec::new())
            .map_err(|error| IdentityError::Keys(error.to_string()))?;
        let answer = tokio::time::timeout(Duration::from_secs(5), self.client.request::<JwkSet>(request));
        match answer.await {
            Ok(Ok(set)) => Ok(set.keys),
            Ok(Err(error)) => Err(IdentityError::Keys(error.to_string())),
            Err(_) => Err(IdentityError::Keys("no answer within 5 s".into())),
        }
    }
}

/// Proves a token against keys: signature first, so that nothing that a stranger wrote is believed.
fn verify(token: &str, keys: &[Jwk], audience: &str, now: Timestamp) -> Result<PodIdentity, IdentityError> {
    if token.len() > TOKEN_LIMIT {
        return Err(IdentityError::Malformed("it is too long"));
    }
    let (signed, signature) = token
        .rsplit_once('.')
        .ok_or(IdentityError::Malformed("it has no signature"))?;
    let (header, claims) = signed
        .split_once('.')
        .ok_or(IdentityError::Malformed("it has no claims"))?;
    let header: Header = decoded(header).ok_or(IdentityError::Malformed("its header cannot be read"))?;
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| IdentityError::Malformed("its signature cannot be read"))?;
    let proven = keys
        .iter()
        .filter(|key| header.kid.is_none() || key.kid == header.kid)
        .any(|key| key.proves(&header.alg, signed.as_bytes(), &signature));
    if !proven {
        return Err(IdentityError::Signature);
    }
    let claims: Claims = decoded(claims).ok_or(IdentityError::Malformed("it is not a service account's"))?;
    if !claims.aud.iter().any(|aud| aud == audience) {
        return Err(IdentityError::Audience(audience.to_owned()));
    }
    if claims.exp <= now.as_second() {
        return Err(IdentityError::Expired);
    }
    let pod = claims
        .kubernetes
        .pod
        .ok_or(IdentityError::Malformed("it is bound to no pod"))?;
    Ok(PodIdentity {
        namespace: claims.kubernetes.namespace,
        name: pod.name,
        uid: pod.uid,
    })
}

fn decoded<T: DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

impl Jwk {
    /// The key's kind decides which algorithm it may have signed with; the token's header only has to agree.
    fn proves(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
        let part = |part: &Option<String>| URL_SAFE_NO_PAD.decode(part.as_deref()?).ok();
        match (self.kty.as_str(), self.crv.as_deref(), algorithm) {
            ("RSA", _, "RS256") => {
                let (Some(n), Some(e)) = (part(&self.n), part(&self.e)) else {
                    return false;
                };
                RsaPublicKeyComponents { n, e }
                    .verify(&signature::RSA_PKCS1_2048_8192_SHA256, signed, signature)
                    .is_ok()
            }
            ("EC", Some("P-256"), "ES256") => {
                self.proves_on_curve(&signature::ECDSA_P256_SHA256_FIXED, signed, signature)
            }
            ("EC", Some("P-384"), "ES384") => {
                self.proves_on_curve(&signature::ECDSA_P384_SHA384_FIXED, signed, signature)
            }
            _ => false,
        }
    }

    fn proves_on_curve(
        &self,
        curve: &'static dyn VerificationAlgorithm,
        signed: &[u8],
        signature: &[u8],
    ) -> bool {
        let coordinate = |c: &Option<String>| URL_SAFE_NO_PAD.decode(c.as_deref()?).ok();
        let (Some(x), Some(y)) = (coordinate(&self.x), coordinate(&self.y)) else {
            return false;
        };
        // An uncompressed point: SEC 1, section 2.3.3.
        let point = [&[4], x.as_slice(), y.as_slice()].concat();
        UnparsedPublicKey::new(curve, point)
            .verify(signed, signature)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
    };
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    struct Issuer {
        pair: EcdsaKeyPair,
        random: SystemRandom,
    }

    impl Issuer {
        fn new() -> Self {
            let random = SystemRandom::new();
            let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random)
                .unwrap();
            Self { pair, random }
        }

        fn key(&self) -> Jwk {
            let point = &self.pair.public_key().as_ref()[1..];
            serde_json::from_value(json!({
                "kid": "k", "kty": "EC", "crv": "P-256",
                "x": URL_SAFE_NO_PAD.encode(&point[..32]), "y": URL_SAFE_NO_PAD.encode(&point[32..]),
            }))
            .unwrap()
        }

        fn sign(&self, header: &Value, claims: &Value) -> String {
            let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let signed = format!("{}.{}", part(header), part(claims));
            let signature = self.pair.sign(&self.random, signed.as_bytes()).unwrap();
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
        }
    }

    fn header() -> Value {
        json!({ "alg": "ES256", "kid": "k" })
    }

    fn claims() -> Value {
        json!({
            "aud": ["slipway"], "exp": 2000, "iss": "https://kubernetes.default.svc",
            "kubernetes.io": { "namespace": "team", "pod": { "name": "web-1", "uid": "u1" }, "serviceaccount": { "name": "default", "uid": "s" } },
        })
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_token_of_the_cluster_names_its_pod() {
        let issuer = Issuer::new();
        let token = issuer.sign(&header(), &claims());
        let expected = PodIdentity {
            namespace: "team".into(),
            name: "web-1".into(),
            uid: "u1".into(),
        };
        assert_eq!(
            verify(&token, &[issuer.key()], "slipway", at(1999)).unwrap(),
            expected
        );
        assert!(matches!(
            verify(&token, &[issuer.key()], "slipway", at(2000)),
            Err(IdentityError::Expired)
        ));
        assert!(matches!(
            verify(&token, &[issuer.key()], "somebody", at(1)),
            Err(IdentityError::Audience(_))
        ));
        assert!(matches!(
            verify(&token, &[Issuer::new().key()], "slipway", at(1)),
            Err(IdentityError::Signature)
        ));
    }

    #[rstest]
    #[case::another_algorithm(json!({ "alg": "RS256", "kid": "k" }))]
    #[case::none(json!({ "alg": "none", "kid": "k" }))]
    #[case::a_shared_secret(json!({ "alg": "HS256", "kid": "k" }))]
    #[case::another_key(json!({ "alg": "ES256", "kid": "other" }))]
    fn the_key_decides_how_a_token_is_proven_not_the_token(#[case] header: Value) {
        let issuer = Issuer::new();
        let token = issuer.sign(&header, &claims());
        assert!(matches!(
            verify(&token, &[issuer.key()], "slipway", at(1)),
            Err(IdentityError::Signature)
        ));
    }

    #[test]
    fn a_token_whose_claims_were_changed_is_refused() {
        let issuer = Issuer::new();
        let token = issuer.sign(&header(), &claims());
        let mut other = claims();
        other["kubernetes.io"]["pod"]["uid"] = json!("u2");
        let parts: Vec<&str> = token.split('.').collect();
        let forged = format!(
            "{}.{}.{}",
            parts[0],
            URL_SAFE_NO_PAD.encode(other.to_string()),
            parts[2]
        );
        assert!(matches!(
            verify(&forged, &[issuer.key()], "slipway", at(1)),
            Err(IdentityError::Signature)
        ));
    }

    #[test]
    fn a_token_of_no_pod_is_refused() {
        let issuer = Issuer::new();
        let mut unbound = claims();
        unbound["kubernetes.io"].as_object_mut().unwrap().remove("pod");
        let token = issuer.sign(&header(), &unbound);
        assert!(matches!(
            verify(&token, &[issuer.key()], "slipway", at(1)),
            Err(IdentityError::Malformed(_))
        ));
        assert!(matches!(
            verify("rubbish", &[], "slipway", at(1)),
            Err(IdentityError::Malformed(_))
        ));
    }
}
