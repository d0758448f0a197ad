//! Small types that several kinds use.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A reference to an object of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalReference {
    /// The object's name.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// Requests and limits of the build container, as Kubernetes writes quantities.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// CPU requested, `500m` for example; builds are not throttled by a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^[0-9]+(\.[0-9]+)?m?$"))]
    pub cpu: Option<String>,
    /// Memory requested and at most used, `2Gi` for example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 32),
        regex(pattern = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$")
    )]
    pub memory: Option<String>,
    /// The size at which the scratch volume, with source, archive and the builder's own storage, is full;
    /// `20Gi` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 32),
        regex(pattern = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$")
    )]
    pub scratch: Option<String>,
}

/// Lets a pod run on tainted nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodToleration {
    /// The taint's key.
    #[schemars(length(min = 1, max = 317))]
    #[x_kube(validation = Rule::new("!self.startsWith('node-role.kubernetes.io/')").message("builds run on worker nodes; leave node-role.kubernetes.io out"))]
    pub key: String,
    /// `Exists` or `Equal`.
    #[serde(default)]
    pub operator: TolerationOperator,
    /// The taint's value.
    #[serde(default)]
    #[schemars(length(max = 63))]
    pub value: String,
    /// The taint's effect; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

/// How a toleration compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TolerationOperator {
    /// The key exists.
    Exists,
    /// Key and value are equal.
    #[default]
    Equal,
}

/// What a taint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the names are Kubernetes' own")]
pub enum TaintEffect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

/// Labels that a node must have.
pub type NodeSelector = BTreeMap<String, String>;

/// The schema of a map from text to text with bounded size, which CEL needs to bound the cost of a rule.
pub(super) fn text_map<const ENTRIES: u32, const LENGTH: u32>(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": ENTRIES,
        "additionalProperties": { "type": "string", "maxLength": LENGTH },
    })
}
