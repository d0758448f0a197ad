//! Every pod that a namespace ever had, so that each test can tell that no attempt had two.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    runtime::watcher::{self, watcher},
};
use slipway::{
    api::{BUILD_LABEL, PLATFORM_LABEL, PUSH_LABEL},
    kubernetes::pod::SeenPod,
};
use tokio::task::JoinHandle;

/// Watches the pods of a namespace from its beginning.
pub struct PodHistory {
    seen: Arc<Mutex<Seen>>,
    watching: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    /// Every UID that a name ever had; a name has the attempt in it.
    uids: BTreeMap<String, BTreeSet<String>>,
    /// What each live pod works for, by UID.
    live: BTreeMap<String, String>,
    /// Two live pods that worked for the same.
    twins: Vec<String>,
}

impl PodHistory {
    pub fn begin(pods: Api<Pod>) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let watching = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                let mut events = std::pin::pin!(watcher(pods, watcher::Config::default()));
                while let Some(event) = events.next().await {
                    match event {
                        Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => {
                            seen.lock().unwrap().note(&pod);
                        }
                        Ok(watcher::Event::Delete(pod)) => {
                            seen.lock().unwrap().live.remove(&pod.uid().unwrap());
                        }
                        _ => {}
                    }
                }
            }
        });
        Self { seen, watching }
    }

    /// Fails the test if an attempt had a second pod, or two pods worked for the same at a time.
    pub fn assert_one_pod_per_attempt(&self) {
        let seen = self.seen.lock().unwrap();
        assert!(seen.twins.is_empty(), "two live pods: {:?}", seen.twins);
        for (name, uids) in &seen.uids {
            assert_eq!(uids.len(), 1, "pod {name} was made {} times", uids.len());
        }
    }

    /// How many pods there were whose name begins so.
    pub fn count(&self, prefix: &str) -> usize {
        self.names(prefix).len()
    }

    /// Their names.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let names = seen.uids.keys().filter(|name| name.starts_with(prefix));
        names.cloned().collect()
    }
}

impl Seen {
    fn note(&mut self, pod: &Pod) {
        let Some(purpose) = purpose(pod) else { return };
        let (name, uid) = (pod.name_any(), pod.uid().unwrap());
        self.uids.entry(name.clone()).or_default().insert(uid.clone());
        if !SeenPod::from(pod).is_live() {
            self.live.remove(&uid);
            return;
        }
        self.live.insert(uid.clone(), purpose.clone());
        let twin = self
            .live
            .iter()
            .find(|(other, its)| **its == purpose && **other != uid);
        if let Some((other, _)) = twin {
            self.twins
                .push(format!("{purpose}: {name} ({uid}) while {other} lived"));
        }
    }
}

/// The build and platform, or the push, that a pod works for.
fn purpose(pod: &Pod) -> Option<String> {
    let labels = pod.labels();
    let build = labels
        .get(BUILD_LABEL)
        .map(|build| format!("{build} {:?}", labels.get(PLATFORM_LABEL)));
    build.or_else(|| labels.get(PUSH_LABEL).map(|push| format!("push {push}")))
}

impl Drop for PodHistory {
    fn drop(&mut self) {
        self.watching.abort();
    }
}
