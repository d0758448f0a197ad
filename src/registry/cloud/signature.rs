//! Amazon's signature of requests, as far as it takes to sign one POST.
//!
//! Source: AWS, "Create a signed AWS API request" (Signature Version 4).

use std::fmt::Write as _;

use jiff::{Timestamp, tz::TimeZone};
use reqwest::Url;
use ring::hmac;
use sha2::{Digest as _, Sha256};

use crate::registry::credentials::Secret;

/// Keys of some hours.
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: Secret,
    pub(super) session: Secret,
}

/// What is signed and for whom.
pub(super) struct Signed<'a> {
    pub(super) url: &'a Url,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
    /// Lower-case names, sorted; `host` and the date are added.
    pub(super) headers: &'a [(&'static str, &'a str)],
    pub(super) body: &'a str,
    pub(super) now: Timestamp,
}

impl Signed<'_> {
    /// The headers that a POST is sent with, `authorization` among them.
    pub(super) fn headers(&self, keys: &Keys) -> Vec<(&'static str, String)> {
        let time = self
            .now
            .to_zoned(TimeZone::UTC)
            .strftime("%Y%m%dT%H%M%SZ")
            .to_string();
        let host = match (self.url.host_str().unwrap_or_default(), self.url.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        let mut headers: Vec<(&'static str, String)> = vec![
            ("host", host),
            ("x-amz-date", time.clone()),
            ("x-amz-security-token", keys.session.reveal().to_owned()),
        ];
        headers.extend(
            self.headers
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        headers.sort();
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let mut canonical = format!("POST\n{}\n\n", self.url.path());
        for (name, value) in &headers {
            let _ = writeln!(canonical, "{name}:{}", value.trim());
        }
        let _ = write!(canonical, "\n{names}\n{}", hex(&Sha256::digest(self.body)));
        let date = &time[..8];
        let scope = format!("{date}/{}/{}/aws4_request", self.region, self.service);
        let text = format!(
            "AWS4-HMAC-SHA256\n{time}\n{scope}\n{}",
            hex(&Sha256::digest(&canonical))
        );
        let signature = sign(&keys.secret, date, self.region, self.service, &text);
        headers.push((
            "authorization",
            format!(
                "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
                keys.id
            ),
        ));
        headers
    }
}

/// The signature of a text by a key of one day, region and service.
fn sign(secret: &Secret, date: &str, region: &str, service: &str, text: &str) -> String {
    let mac = |key: &[u8], text: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        hmac::sign(&key, text.as_bytes())
    };
    let first = format!("AWS4{}", secret.reveal());
    let key = [date, region, service, "aws4_request", text]
        .into_iter()
        .fold(first.into_bytes(), |key, part| mac(&key, part).as_ref().to_vec());
    hex(&key)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example of Amazon's documentation.
    #[test]
    fn the_documentation_s_example_has_its_signature() {
        let text = "AWS4-HMAC-SHA256\n20150830T123600Z\n20150830/us-east-1/iam/aws4_request\n\
                    f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59";
        let secret = Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        assert_eq!(
            sign(&secret, "20150830", "us-east-1", "iam", text),
            "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );
    }

    #[test]
    fn every_header_that_is_sent_is_signed() {
        let signed = Signed {
            url: &"https://api.ecr.eu-west-1.amazonaws.com/".parse().unwrap(),
            region: "eu-west-1",
            service: "ecr",
            headers: &[
                ("x-amz-target", "T"),
                ("content-type", "application/x-amz-json-1.1"),
            ],
            body: "{}",
            now: "2015-08-30T12:36:00Z".parse().unwrap(),
        };
        let keys = Keys {
            id: "AKID".to_owned(),
            secret: Secret::new("s"),
            session: Secret::new("t"),
        };
        let headers = signed.headers(&keys);
        let (_, authorization) = headers.last().unwrap();
        assert!(authorization.starts_with(
            "AWS4-HMAC-SHA256 Credential=AKID/20150830/eu-west-1/ecr/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, Signature="
        ));
        let date = headers.iter().find(|(name, _)| *name == "x-amz-date").unwrap();
        assert_eq!(date.1, "20150830T123600Z");
    }
}
