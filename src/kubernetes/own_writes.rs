//! What this process wrote and its watches have not shown yet.
//!
//! A reconcile that trusts a stale cache makes twins and takes back its own status. Here every write leaves
//! its result, and reads prefer it until the watch has caught up.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::{Resource, ResourceExt, runtime::reflector::ObjectRef};

/// A watch that has not shown a write by now lost it: the object was deleted before the watch saw it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The latest own writes to objects of one kind.
pub struct OwnWrites<K: Resource<DynamicType = ()>> {
    latest: Mutex<Latest<K>>,
}

/// What was written, and when.
type Latest<K> = HashMap<ObjectRef<K>, (Arc<K>, Instant)>;

impl<K: Resource<DynamicType = ()>> Default for OwnWrites<K> {
    fn default() -> Self {
        Self {
            latest: Mutex::new(HashMap::new()),
        }
    }
}

impl<K: Resource<DynamicType = ()> + Clone> OwnWrites<K> {
    /// Keeps what the API server answered to a write.
    pub fn remember(&self, object: K) -> Arc<K> {
        let object = Arc::new(object);
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.retain(|_, (_, at)| at.elapsed() < PATIENCE);
        latest.insert(
            ObjectRef::from_obj(&*object),
            (Arc::clone(&object), Instant::now()),
        );
        object
    }

    /// The newer of what the cache has and what was written.
    pub fn newest(&self, key: &ObjectRef<K>, cached: Option<Arc<K>>) -> Option<Arc<K>> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((written, at)) = latest.get(key) else {
            return cached;
        };
        let caught_up = match &cached {
            Some(cached) => version(&**cached) >= version(&**written) || cached.uid() != written.uid(),
            None => false,
        };
        if caught_up || at.elapsed() >= PATIENCE {
            latest.remove(key);
            return cached;
        }
        Some(Arc::clone(written))
    }
}

/// Resource versions of one kind are comparable numbers (guaranteed since Kubernetes 1.35, true of etcd since
/// the beginning). One that is no number counts as old, so that the cache wins.
fn version<K: Resource>(object: &K) -> u64 {
    object
        .meta()
        .resource_version
        .as_deref()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;

    use super::*;

    fn object(version: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some("a".into()),
                namespace: Some("b".into()),
                uid: Some("u".into()),
                resource_version: Some(version.into()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    #[test]
    fn a_write_hides_an_older_cache_until_the_cache_has_caught_up() {
        let writes = OwnWrites::default();
        let key = ObjectRef::from_obj(&object("1"));
        writes.remember(object("10"));
        let seen = |cached: Option<&str>| {
            writes
                .newest(&key, cached.map(|v| Arc::new(object(v))))
                .and_then(|o| o.resource_version())
        };
        assert_eq!(
            seen(Some("9")).as_deref(),
            Some("10"),
            "9 is older than 10, though not as text"
        );
        assert_eq!(seen(None).as_deref(), Some("10"), "created and not seen yet");
        assert_eq!(seen(Some("11")).as_deref(), Some("11"));
        assert_eq!(seen(None), None, "seen, so a later absence is a deletion");
    }
}
