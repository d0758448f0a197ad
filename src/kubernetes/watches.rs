//! One watch per kind, each with a backoff of its own.
//!
//! kube's `Controller` lets all its watches share one backoff, so that one missing permission delays every
//! kind; here a failing watch delays nobody else, and says so through its gate.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use kube::{
    Api, Resource, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// Where one watch stands; all of them together are the readiness of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The first list is not in yet.
    Starting,
    /// The watch is up to date.
    Ready,
    /// The watch failed and is tried again.
    Failing {
        /// The error.
        error: String,
        /// When; a watch that went on since may have nothing to tell.
        since: Instant,
        /// Whether the whole list had been shown before.
        listed: bool,
    },
}

/// Something that happened to an object.
#[derive(Clone, Debug)]
pub enum Change<K> {
    /// It is there, new or changed or listed again.
    Present(Arc<K>),
    /// It is gone.
    Gone(Arc<K>),
}

impl<K> Change<K> {
    /// The object, as it is or last was.
    pub fn object(&self) -> &K {
        match self {
            Self::Present(object) | Self::Gone(object) => object,
        }
    }
}

/// Watches one kind for ever: fills the store, trims what nobody reads, and tells of every change.
///
/// `trim` runs before an object is kept; `tell` runs after the store shows the change.
pub fn watch<K>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    trim: impl Fn(&mut K) + Send + 'static,
    tell: impl Fn(Change<K>) + Send + 'static,
) -> (Store<K>, watch::Receiver<Gate>, impl Future<Output = ()> + Send)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let (store, mut writer) = reflector::store::<K>();
    let (gate, readiness) = watch::channel(Gate::Starting);
    let shown = store.clone();
    let task = async move {
        let backoff = watcher::DefaultBackoff::default();
        let mut events = std::pin::pin!(watcher(api, config).backoff(backoff));
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch failed, trying again");
                    let listed = matches!(&*gate.borrow(), Gate::Ready | Gate::Failing { listed: true, .. });
                    gate.send_replace(Gate::Failing {
                        error: error.to_string(),
                        since: Instant::now(),
                        listed,
                    });
                    continue;
                }
            };
            let Some(event) = decoded(event, &trim) else {
                continue;
            };
            let change = match &event {
                watcher::Event::Apply(object) => Some(Change::Present(Arc::new(object.clone()))),
                watcher::Event::Delete(object) => Some(Change::Gone(Arc::new(object.clone()))),
                watcher::Event::Init | watcher::Event::InitApply(_) | watcher::Event::InitDone => None,
            };
            let done = matches!(event, watcher::Event::InitDone);
            writer.apply_watcher_event(&event);
            if done || *gate.borrow() != Gate::Ready && change.is_some() {
                gate.send_replace(Gate::Ready);
            }
            let listed = if done { shown.state() } else { Vec::new() };
            listed
                .into_iter()
                .map(Change::Present)
                .chain(change)
                .for_each(&tell);
        }
    };
    (store, readiness, task)
}

/// The event with its object decoded and trimmed; an object that cannot be decoded is skipped, not fatal.
fn decoded<K: Resource<DynamicType = ()> + Clone>(
    event: watcher::Event<DeserializeGuard<K>>,
    trim: &impl Fn(&mut K),
) -> Option<watcher::Event<K>> {
    let open = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(mut object) => {
            object.managed_fields_mut().clear();
            object
                .annotations_mut()
                .remove("kubectl.kubernetes.io/last-applied-configuration");
            trim(&mut object);
            Some(object)
        }
        Err(error) => {
            let name = error.metadata.name.unwrap_or_default();
            tracing::error!(kind = %K::kind(&()), name, error = error.error, "object cannot be read, skipped");
            None
        }
    };
    Some(match event {
        watcher::Event::Apply(guard) => watcher::Event::Apply(open(guard)?),
        watcher::Event::Delete(guard) => watcher::Event::Delete(open(guard)?),
        watcher::Event::InitApply(guard) => watcher::Event::InitApply(open(guard)?),
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitDone => watcher::Event::InitDone,
    })
}

/// Waits until a watch has shown the whole list once.
pub async fn listed(mut gate: watch::Receiver<Gate>) {
    // The sender lives as long as the watch; if it is gone the process is ending anyway.
    // One that failed after its list goes on without another: there is nothing more to wait for.
    let _ = gate
        .wait_for(|state| matches!(state, Gate::Ready | Gate::Failing { listed: true, .. }))
        .await;
}

/// How often every object is looked at without an event: what a lost event left behind is repaired then.
pub const RESYNC: Duration = Duration::from_secs(300);

/// A key into a namespaced store.
pub fn key<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> ObjectRef<K> {
    ObjectRef::new(name).within(namespace)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_watch_that_failed_after_its_list_is_not_waited_for() {
        let failing = |listed| Gate::Failing {
            error: "429".into(),
            since: Instant::now(),
            listed,
        };
        let (gate, receiver) = watch::channel(failing(false));
        assert_eq!(listed(receiver.clone()).now_or_never(), None);
        gate.send_replace(failing(true));
        assert_eq!(listed(receiver).now_or_never(), Some(()));
    }
}
