//! Version `v1alpha1`: one file per kind, and what they share.

mod build_strategy;
pub mod condition;
mod oci_recipe;
mod oci_recipe_build;
mod registry_policy;
mod registry_push;
mod shared;

pub use build_strategy::*;
pub use oci_recipe::*;
pub use oci_recipe_build::*;
pub use registry_policy::*;
pub use registry_push::*;
pub use shared::*;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

/// Every definition, in the order in which the documentation tells of them.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![
        OCIRecipe::crd(),
        OCIRecipeBuild::crd(),
        RegistryPush::crd(),
        BuildStrategy::crd(),
        ClusterBuildStrategy::crd(),
        RegistryPolicy::crd(),
    ]
}
