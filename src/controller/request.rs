//! The request annotation: `<any new value> [platform,platform…]`.

use kube::{Resource, ResourceExt as _};

use crate::{
    api::{REQUEST_ANNOTATION, UPLOAD_ANNOTATION},
    image::Platform,
};

/// The longest value that a status can echo; 16 platforms and a time are a third of it.
const LIMIT: usize = 1024;

/// The request that an object carries; one too long to be echoed is none.
pub fn of<K: Resource>(object: &K) -> Option<&str> {
    annotation(object, REQUEST_ANNOTATION)
}

/// The request for an upload that a build carries.
pub fn of_upload<K: Resource>(object: &K) -> Option<&str> {
    annotation(object, UPLOAD_ANNOTATION)
}

fn annotation<'a, K: Resource>(object: &'a K, key: &str) -> Option<&'a str> {
    let text = object.annotations().get(key)?;
    (text.len() <= LIMIT).then_some(text)
}

/// Which platforms a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    platforms: Vec<Platform>,
}

impl Request {
    /// Reads an annotation's value; what is no platform is ignored.
    pub fn parse(text: &str) -> Self {
        let platforms = text.split_once(' ').map_or("", |(_, platforms)| platforms);
        Self {
            platforms: platforms
                .split(',')
                .filter_map(|p| p.trim().parse().ok())
                .collect(),
        }
    }

    /// Whether the request is about this platform: all of them when it names none.
    pub fn names(&self, platform: &Platform) -> bool {
        self.platforms.is_empty() || self.platforms.iter().any(|named| named.matches(platform))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_platforms_names_all() {
        let arm: Platform = "linux/arm64".parse().unwrap();
        assert!(Request::parse("2026-01-01T00:00:00Z").names(&arm));
        assert!(Request::parse("1 linux/arm64/v8").names(&arm));
        assert!(!Request::parse("1 linux/amd64").names(&arm));
    }
}
