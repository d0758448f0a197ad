//! Where a name may lead: checked on the addresses that are connected to, not on the text of a URL.
//!
//! A registry is where a person or an administrator said it is, and may be on a private network. Wherever the
//! registry itself sends the client (redirects, uploads, token realms, next pages) must not be nearer to the
//! client than the registry is: a public registry may not make it speak to a private network or to this machine.
//! Link-local addresses, where clouds keep their instances' credentials, are nobody's registry.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

/// How near an address is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Reach {
    /// Somewhere on the internet.
    #[default]
    Public,
    /// On a network of one's own.
    Private,
    /// This machine.
    Loopback,
    /// This link, no address at all, or everybody at once.
    Link,
}

/// How near an address is; of an IPv4 address within an IPv6 one, the former's.
pub(super) fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(address) => reach_v4(address),
        IpAddr::V6(address) => reach_v6(address),
    }
}

fn reach_v4(address: Ipv4Addr) -> Reach {
    let [a, b, ..] = address.octets();
    match (a, b) {
        (127, _) => Reach::Loopback,
        (0 | 224.., _) | (169, 254) => Reach::Link,
        // Networks of one's own, carriers' among them, and those for measurements.
        (10, _) | (172, 16..=31) | (192, 168) | (100, 64..=127) | (198, 18..=19) => Reach::Private,
        _ => Reach::Public,
    }
}

fn reach_v6(address: Ipv6Addr) -> Reach {
    // One cloud's instance credentials live at an address of the private range.
    const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    if let Some(mapped) = address.to_ipv4_mapped() {
        return reach_v4(mapped);
    }
    let parts = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        reach_v4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        [first, ..]
            if address == METADATA
                || address.is_unspecified()
                || first & 0xffc0 == 0xfe80
                || first & 0xff00 == 0xff00 =>
        {
            Reach::Link
        }
        _ if address.is_loopback() => Reach::Loopback,
        // Translated, tunnelled and the deprecated compatible form.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            embedded(high, low)
        }
        [first, ..] if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 => Reach::Private,
        _ => Reach::Public,
    }
}

/// A name or an address that leads nearer than is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Denied {
    host: String,
    address: IpAddr,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is at {}, which is not connected to from here: it is on this machine, this link or a private network",
            self.host, self.address
        )
    }
}

impl std::error::Error for Denied {}

/// The denial inside an error of a connection, if that is what it was.
pub(super) fn denial(error: &(dyn std::error::Error + 'static)) -> Option<Denied> {
    let mut error = Some(error);
    while let Some(inner) = error {
        if let Some(denied) = inner.downcast_ref::<Denied>() {
            return Some(denied.clone());
        }
        error = inner.source();
    }
    None
}

/// Resolves names to addresses that are not nearer than allowed.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    nearest: Reach,
    /// Names of whatever kind: plain registries that were named, and proxies.
    exempt: BTreeSet<String>,
}

impl Resolver {
    pub(super) fn new(nearest: Reach, named: &BTreeSet<String>) -> Self {
        let named = named.iter().map(|origin| host_of(origin).to_owned());
        Self {
            nearest,
            exempt: named.chain(proxies()).collect(),
        }
    }

    /// An address in a URL is not resolved, so it is looked at before the request.
    pub(super) fn check_literal(&self, url: &Url) -> Result<(), Denied> {
        let Some(address) = literal(url) else {
            return Ok(());
        };
        let host = url.host_str().unwrap_or_default();
        if reach(address) <= self.nearest || self.exempt.contains(host) {
            return Ok(());
        }
        Err(Denied {
            host: host.to_owned(),
            address,
        })
    }

    fn keep(&self, host: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Denied> {
        let allowed =
            |address: &SocketAddr| reach(address.ip()) <= self.nearest || self.exempt.contains(host);
        let denied = found.iter().find(|address| !allowed(address)).copied();
        let kept: Vec<SocketAddr> = found.into_iter().filter(allowed).collect();
        match denied {
            Some(denied) if kept.is_empty() => Err(Denied {
                host: host.to_owned(),
                address: denied.ip(),
            }),
            _ => Ok(kept),
        }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let kept = resolver.keep(name.as_str(), found)?;
            Ok(Box::new(kept.into_iter()) as Addrs)
        })
    }
}

/// How near the origins are that answered.
#[derive(Debug, Default)]
pub(super) struct Reached {
    by_origin: Mutex<HashMap<String, Reach>>,
}

impl Reached {
    pub(super) fn learn(&self, origin: &str, address: Option<SocketAddr>) {
        if let Some(address) = address {
            let mut by_origin = self.by_origin.lock().unwrap_or_else(PoisonError::into_inner);
            by_origin.insert(origin.to_owned(), reach(address.ip()));
        }
    }

    /// Public for whom never answered: that allows least.
    pub(super) fn of(&self, origin: &str) -> Reach {
        let by_origin = self.by_origin.lock().unwrap_or_else(PoisonError::into_inner);
        by_origin.get(origin).copied().unwrap_or_default()
    }
}

fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
}

fn host_of(origin: &str) -> &str {
    match origin.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => origin,
    }
}

/// Hosts of the environment's proxies: they are asked instead of whatever is behind them.
fn proxies() -> impl Iterator<Item = String> {
    [
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ]
    .into_iter()
    .filter_map(|name| std::env::var(name).ok())
    .filter_map(|text| {
        let text = if text.contains("://") {
            text
        } else {
            format!("http://{text}")
        };
        Some(Url::parse(&text).ok()?.host_str()?.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::public("93.184.215.14", Reach::Public)]
    #[case::ten("10.0.0.1", Reach::Private)]
    #[case::sixteen("172.31.255.255", Reach::Private)]
    #[case::beside_it("172.32.0.1", Reach::Public)]
    #[case::home("192.168.1.1", Reach::Private)]
    #[case::carrier("100.64.0.1", Reach::Private)]
    #[case::benchmark("198.18.0.1", Reach::Private)]
    #[case::loopback("127.1.2.3", Reach::Loopback)]
    #[case::metadata("169.254.169.254", Reach::Link)]
    #[case::none("0.0.0.0", Reach::Link)]
    #[case::multicast("224.0.0.1", Reach::Link)]
    #[case::broadcast("255.255.255.255", Reach::Link)]
    #[case::v6_public("2606:2800:21f::1", Reach::Public)]
    #[case::v6_loopback("::1", Reach::Loopback)]
    #[case::v6_none("::", Reach::Link)]
    #[case::v6_link("fe80::1", Reach::Link)]
    #[case::v6_link_end("febf::1", Reach::Link)]
    #[case::v6_site("fec0::1", Reach::Private)]
    #[case::v6_unique("fd12:3456::1", Reach::Private)]
    #[case::v6_metadata("fd00:ec2::254", Reach::Link)]
    #[case::v6_multicast("ff02::1", Reach::Link)]
    #[case::mapped_loopback("::ffff:127.0.0.1", Reach::Loopback)]
    #[case::mapped_metadata("::ffff:169.254.169.254", Reach::Link)]
    #[case::compatible("::169.254.169.254", Reach::Link)]
    #[case::translated("64:ff9b::a9fe:a9fe", Reach::Link)]
    #[case::tunnelled("2002:7f00:1::", Reach::Loopback)]
    fn an_address_is_as_near_as_it_is(#[case] address: &str, #[case] expected: Reach) {
        assert_eq!(reach(address.parse().unwrap()), expected);
    }

    #[rstest]
    #[case::decimal("http://2130706433/", Reach::Private)]
    #[case::hexadecimal("http://0x7f000001/", Reach::Private)]
    #[case::octal("http://0177.0.0.1/", Reach::Private)]
    #[case::short("http://127.1/", Reach::Private)]
    #[case::v6("http://[::1]/", Reach::Private)]
    #[case::mapped("http://[::ffff:127.0.0.1]/", Reach::Private)]
    #[case::metadata("http://169.254.169.254/latest/meta-data", Reach::Loopback)]
    #[case::full_width("http://１２７.0.0.1/", Reach::Private)]
    fn every_spelling_of_an_address_is_that_address(#[case] url: &str, #[case] nearest: Reach) {
        let resolver = Resolver::new(nearest, &BTreeSet::new());
        assert!(resolver.check_literal(&url.parse().unwrap()).is_err());
    }

    #[test]
    fn of_several_addresses_those_are_kept_that_may_be_connected_to() {
        let resolver = Resolver::new(Reach::Public, &["registry.test:5000".to_owned()].into());
        let found = || vec!["10.0.0.1:0".parse().unwrap(), "93.184.215.14:0".parse().unwrap()];
        assert_eq!(resolver.keep("a.test", found()).unwrap().len(), 1);
        assert!(resolver.keep("a.test", found()[..1].to_vec()).is_err());
        assert_eq!(resolver.keep("registry.test", found()).unwrap().len(), 2);
        assert_eq!(resolver.keep("gone.test", vec![]).unwrap().len(), 0);
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_machine_is_refused_when_it_is_connected_to() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .dns_resolver(std::sync::Arc::new(Resolver::new(
                Reach::Private,
                &BTreeSet::new(),
            )))
            .no_proxy()
            .build()
            .unwrap();
        let error = client.get("http://localhost:1/").send().await.unwrap_err();
        assert!(denial(&error).is_some(), "{error:?}");
    }
}
