//! Which registry belongs to which provider: the one place that knows hosts by name.
//!
//! Nothing here decides how a registry is spoken to; that is learned from its answers. A name only says who may
//! issue a login for it, and where.

/// Who issues logins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// Amazon Elastic Container Registry.
    Aws,
    /// Google Artifact Registry and Container Registry.
    Google,
    /// Azure Container Registry.
    Azure,
}

/// The provider of a registry, `host[:port]`, by the host's name; `None` for everybody else's.
///
/// A host with a port is nobody's: the providers' registries have none.
///
/// Sources: the providers' documentation of registry names ("Private registry authentication in Amazon ECR",
/// "Repository and image names" of Artifact Registry, "Registry endpoints" of Azure).
pub fn provider_of(registry: &str) -> Option<Provider> {
    let registry = registry.to_ascii_lowercase();
    if ecr(&registry).is_some() {
        return Some(Provider::Aws);
    }
    let below = |domain: &str| {
        registry
            .strip_suffix(domain)
            .and_then(|rest| rest.strip_suffix('.'))
            .is_some_and(|rest| !rest.is_empty())
    };
    if below("pkg.dev") || below("gcr.io") || registry == "gcr.io" {
        return Some(Provider::Google);
    }
    ["azurecr.io", "azurecr.cn", "azurecr.us"]
        .into_iter()
        .any(below)
        .then_some(Provider::Azure)
}

/// The region of an ECR registry and the domain of its partition.
pub(super) fn ecr(registry: &str) -> Option<(String, &'static str)> {
    let registry = registry.to_ascii_lowercase();
    let (rest, domain) = ["amazonaws.com", "amazonaws.com.cn"]
        .into_iter()
        .find_map(|domain| Some((registry.strip_suffix(domain)?.strip_suffix('.')?, domain)))?;
    let mut parts = rest.split('.');
    let (account, dkr, service, region) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    let is_region = !region.is_empty()
        && region
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (is_account
        && dkr == "dkr"
        && matches!(service, "ecr" | "ecr-fips")
        && is_region
        && parts.next().is_none())
    .then(|| (region.to_owned(), domain))
}

/// The security token service of a region.
pub(super) fn aws_sts(region: &str, domain: &str) -> String {
    format!("https://sts.{region}.{domain}/")
}

/// The API of ECR in a region.
pub(super) fn aws_ecr(region: &str, domain: &str) -> String {
    format!("https://api.ecr.{region}.{domain}/")
}

/// Google's metadata server, as a pod or a machine sees it.
pub(super) const GOOGLE_METADATA: &str = "metadata.google.internal";

/// Where a token of Google's is good for registries.
pub(super) const GOOGLE_SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// Azure's login, where the platform names no other.
pub(super) const AZURE_AUTHORITY: &str = "https://login.microsoftonline.com/";

/// What a token of Azure's is asked for, to be shown to registries.
pub(super) const AZURE_SCOPE: &str = "https://containerregistry.azure.net/.default";

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::ecr("123456789012.dkr.ecr.eu-west-1.amazonaws.com", Some(Provider::Aws))]
    #[case::ecr_in_china("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", Some(Provider::Aws))]
    #[case::ecr_fips("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com", Some(Provider::Aws))]
    #[case::artifact_registry("europe-docker.pkg.dev", Some(Provider::Google))]
    #[case::container_registry("gcr.io", Some(Provider::Google))]
    #[case::its_regions("eu.gcr.io", Some(Provider::Google))]
    #[case::azure("Team.azurecr.io", Some(Provider::Azure))]
    #[case::azure_itself("azurecr.io", None)]
    #[case::azure_within_another("team.azurecr.io.evil.test", None)]
    #[case::azure_as_an_end("evilazurecr.io", None)]
    #[case::google_as_an_end("evilgcr.io", None)]
    #[case::pkg_dev_itself("pkg.dev", None)]
    #[case::a_port("team.azurecr.io:8443", None)]
    #[case::amazon_without_an_account("dkr.ecr.eu-west-1.amazonaws.com", None)]
    #[case::amazon_s_storage("bucket.s3.eu-west-1.amazonaws.com", None)]
    #[case::a_stranger_s_bucket("123456789012.dkr.ecr.x.y.amazonaws.com", None)]
    #[case::amazon_within_another("123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.test", None)]
    #[case::everybody_else("registry.example.com", None)]
    fn a_host_s_name_says_whose_it_is(#[case] registry: &str, #[case] expected: Option<Provider>) {
        assert_eq!(provider_of(registry), expected);
    }

    #[test]
    fn endpoints_are_the_region_s() {
        let (region, domain) = ecr("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn").unwrap();
        assert_eq!(
            aws_sts(&region, domain),
            "https://sts.cn-north-1.amazonaws.com.cn/"
        );
        assert_eq!(
            aws_ecr(&region, domain),
            "https://api.ecr.cn-north-1.amazonaws.com.cn/"
        );
    }
}
