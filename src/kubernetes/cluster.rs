//! The API server: every call has a time limit, every write is counted.

use std::{future::Future, time::Duration};

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use prometheus_client::metrics::{counter::Counter, family::Family};
use serde::{Serialize, de::DeserializeOwned};

/// A call to the API server that has not answered by now never will; reconciles must not hang on it.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "slipway";

/// A connection to the API server.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    writes: Family<WriteLabels, Counter>,
}

/// What a write was.
#[derive(Clone, Debug, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelSet)]
pub struct WriteLabels {
    verb: &'static str,
    kind: String,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server answered with an error, or could not be reached.
    #[error("{verb} {kind} {name}: {source}")]
    Api {
        /// What was asked.
        verb: &'static str,
        /// Of which kind.
        kind: String,
        /// Of which name.
        name: String,
        /// The answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("{verb} {kind} {name}: no answer from the API server within {}s", TIMEOUT.as_secs())]
    Timeout {
        /// What was asked.
        verb: &'static str,
        /// Of which kind.
        kind: String,
        /// Of which name.
        name: String,
    },
}

impl ClusterError {
    fn status_code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::Timeout { .. } => None,
        }
    }

    /// The object is not there.
    pub fn is_not_found(&self) -> bool {
        self.status_code() == Some(404)
    }

    /// The API server will refuse the same request again: invalid, forbidden by admission or by quota.
    pub fn is_refusal(&self) -> bool {
        // A quota has room again when another object is gone.
        let for_now =
            matches!(self, Self::Api { source, .. } if source.to_string().contains("exceeded quota"));
        !for_now && matches!(self.status_code(), Some(400 | 403 | 413 | 422))
    }
}

/// What creating an object came to.
#[derive(Debug)]
pub enum Created<K> {
    /// It is new.
    New(K),
    /// An object of this name exists; whose it is, the caller looks at.
    Exists(K),
}

impl Cluster {
    /// Talks through `client`.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            writes: Family::default(),
        }
    }

    /// The client, for watches.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The counter of writes, to be registered once.
    pub fn writes(&self) -> Family<WriteLabels, Counter> {
        self.writes.clone()
    }

    /// An object, if it is there.
    ///
    /// # Errors
    /// When the API server does not answer, or with anything but the object or 404.
    pub async fn get<K>(&self, namespace: &str, name: &str) -> Result<Option<K>, ClusterError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        limited("get", &K::kind(&()), name, self.api::<K>(namespace).get_opt(name)).await
    }

    /// Creates an object under its own name, or finds the one of that name.
    ///
    /// # Errors
    /// When the API server does not answer, or refuses.
    pub async fn create<K>(&self, namespace: &str, object: &K) -> Result<Created<K>, ClusterError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Serialize
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let (api, name, kind) = (self.api::<K>(namespace), object.name_any(), K::kind(&()));
        self.count("create", &kind);
        let parameters = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        match limited("create", &kind, &name, api.create(&parameters, object)).await {
            Ok(created) => Ok(Created::New(created)),
            Err(error) if error.status_code() == Some(409) => limited("get", &kind, &name, api.get(&name))
                .await
                .map(Created::Exists),
            Err(error) => Err(error),
        }
    }

    /// Deletes the object of this name and UID; one that is gone is fine.
    ///
    /// # Errors
    /// When the API server does not answer, or refuses.
    pub async fn delete<K>(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ClusterError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let kind = K::kind(&());
        self.count("delete", &kind);
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                ..Preconditions::default()
            }),
            ..DeleteParams::background()
        };
        match limited(
            "delete",
            &kind,
            name,
            self.api::<K>(namespace).delete(name, &parameters),
        )
        .await
        {
            Ok(_) => Ok(()),
            // 409: the object of this name is another one by now.
            Err(error) if error.is_not_found() || error.status_code() == Some(409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Applies a whole status, with force: this operator is the only writer.
    ///
    /// # Errors
    /// When the API server does not answer, or refuses.
    pub async fn apply_status<K, S>(&self, object: &K, status: &S) -> Result<K, ClusterError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
        S: Serialize,
    {
        let (name, kind) = (object.name_any(), K::kind(&()));
        let document = serde_json::json!({
            "apiVersion": K::api_version(&()),
            "kind": kind,
            // The UID keeps a status from landing on a new object of the same name.
            "metadata": { "name": name, "uid": object.uid() },
            "status": status,
        });
        self.count("apply_status", &kind);
        let api = self.api::<K>(&object.namespace().unwrap_or_default());
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        limited(
            "apply the status of",
            &kind,
            &name,
            api.patch_status(&name, &parameters, &Patch::Apply(document)),
        )
        .await
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn count(&self, verb: &'static str, kind: &str) {
        self.writes
            .get_or_create(&WriteLabels {
                verb,
                kind: kind.to_owned(),
            })
            .inc();
    }
}

async fn limited<T>(
    verb: &'static str,
    kind: &str,
    name: &str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ClusterError> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(ClusterError::Api {
            verb,
            kind: kind.to_owned(),
            name: name.to_owned(),
            source: Box::new(source),
        }),
        Err(_) => Err(ClusterError::Timeout {
            verb,
            kind: kind.to_owned(),
            name: name.to_owned(),
        }),
    }
}
