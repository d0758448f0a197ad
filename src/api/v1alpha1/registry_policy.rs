//! RegistryPolicy: what the cluster's administrator says of one registry.

use super::shared::LocalReference;
use crate::agent::plan::RegistryLimits;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the cluster's administrator says of one registry origin.
///
/// A tenant cannot weaken transport security: plain http, own roots and proxies come from here only.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "slipway.dev",
    version = "v1alpha1",
    kind = "RegistryPolicy",
    plural = "registrypolicies",
    shortname = "rpol",
    category = "slipway",
    derive = "PartialEq",
    doc = "What the cluster's administrator says of one registry origin.",
    printcolumn(name = "Origin", type_ = "string", json_path = ".spec.origin"),
    printcolumn(name = "Access", type_ = "string", json_path = ".spec.access"),
    printcolumn(name = "PlainHTTP", type_ = "boolean", json_path = ".spec.plainHTTP"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(self.plainHTTP && has(self.caBundle))")
        .message("caBundle has no use with plainHTTP; leave one out"),
    validation = Rule::new("!(self.plainHTTP && has(self.clientCertificateRef))")
        .message("clientCertificateRef has no use with plainHTTP; leave one out"),
    validation = Rule::new("!(has(self.clientCertificateRef) && has(self.proxy) && self.proxy.startsWith('https:'))")
        .message("a proxy over https would be shown the certificate of clientCertificateRef; use an http:// proxy")
)]
pub struct RegistryPolicySpec {
    /// `host[:port]`, as it stands in image names.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9.-]+(:[0-9]+)?$"))]
    pub origin: String,
    /// Whether builds may read from it and pushes may go there.
    #[serde(default)]
    pub access: RegistryAccess,
    /// Whether it is spoken to without TLS.
    #[serde(rename = "plainHTTP", default)]
    pub plain_http: bool,
    /// Certificates in PEM that are trusted for this origin beside the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536), regex(pattern = r"^\s*-----BEGIN CERTIFICATE-----"))]
    pub ca_bundle: Option<String>,
    /// The `kubernetes.io/tls` Secret, of each namespace its own, with the certificate that is shown to this
    /// origin by pushes from there, and by builds whose source is an artifact. They wait where there is no such Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_ref: Option<LocalReference>,
    /// The proxy through which pushes, and builds whose source is an artifact, speak to this origin and to wherever it
    /// sends them, such as its token server: `http://` or `https://`, a host, and a port where it is not the scheme's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255), regex(pattern = r"^https?://[A-Za-z0-9.-]+(:[0-9]+)?/?$"))]
    pub proxy: Option<String>,
    /// What all pushes to it together may ask of it; without it nothing limits them but the registry itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<RegistryLimits>,
}

/// Whether a registry may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RegistryAccess {
    /// It may.
    #[default]
    Allowed,
    /// Pushes to it fail with `OriginForbidden`.
    Denied,
}
