//! Who calls: a pod of Slipway's own, proven by the token that the kubelet mounted into it.

use std::sync::Arc;

use axum::http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt as _, runtime::reflector::Store};

use crate::kubernetes::{
    pod_identity::{IdentityError, TokenVerifier},
    watches::key,
};

/// Why a caller is turned away: a status and a sentence.
pub type Refusal = (StatusCode, String);

/// Proves callers.
pub struct Callers {
    verifier: TokenVerifier,
    pods: Store<Pod>,
}

impl Callers {
    /// Accepts the pods in this store.
    pub fn new(verifier: TokenVerifier, pods: Store<Pod>) -> Self {
        Self { verifier, pods }
    }

    /// The pod that shows this token.
    ///
    /// # Errors
    /// When the token proves no pod of Slipway's that still exists: the token outlives its pod, the store does not.
    pub async fn pod(&self, token: Option<&str>) -> Result<Arc<Pod>, Refusal> {
        let token = token.ok_or_else(|| {
            (
                StatusCode::UNAUTHORIZED,
                "show the token that the kubelet mounted into the pod\n".to_owned(),
            )
        })?;
        let identity = self.verifier.verify(token).await.map_err(|error| {
            let status = match error {
                IdentityError::Keys(_) => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::UNAUTHORIZED,
            };
            (status, format!("{error}\n"))
        })?;
        self.pods
            .get(&key(&identity.namespace, &identity.name))
            .filter(|pod| pod.uid().as_ref() == Some(&identity.uid))
            .ok_or_else(|| {
                (
                    StatusCode::FORBIDDEN,
                    format!("{} is no pod of Slipway's, or is gone\n", identity.name),
                )
            })
    }
}
