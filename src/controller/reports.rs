//! What agents report themselves, the moment they are done.
//!
//! The kubelet looks once a second and shows a termination message a second or two after it was left. An
//! agent therefore says the same here, with the token that only its own container has. What is said here is
//! laid over the pod as the kubelet shows it; one that gets lost is in the termination message all the same.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    routing::post,
};
use kube::ResourceExt as _;

use super::{
    build::pod_report::{COLLECT, FETCH},
    callers::{Callers, Refusal},
    push::pod::PUSH,
    triggers::Queues,
};
use crate::{
    agent::report::TOLD_LIMIT,
    kubernetes::pod::{Container, SeenPod},
};

/// The kubelet has shown the same long before; what is older is of pods that are gone.
const KEPT: Duration = Duration::from_secs(300);

/// Reports by pod UID and container.
#[derive(Clone)]
pub struct Reports {
    shared: Arc<Shared>,
}

struct Shared {
    callers: Arc<Callers>,
    queues: Queues,
    told: Mutex<HashMap<String, Told>>,
}

struct Told {
    at: Instant,
    by_container: BTreeMap<String, String>,
}

impl Reports {
    /// Accepts reports of these callers, and asks for a look at whose they are.
    pub fn new(callers: Arc<Callers>, queues: Queues) -> Self {
        Self {
            shared: Arc::new(Shared {
                callers,
                queues,
                told: Mutex::default(),
            }),
        }
    }

    /// Lays what was told over what the kubelet shows.
    pub fn lay_over(&self, pod: &mut SeenPod) {
        let told = self.shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = told.get(&pod.uid) {
            lay_over(pod, &told.by_container);
        }
    }

    /// `POST /reports/{container}`, the report as the body, the pod's token as the bearer.
    pub fn routes(&self) -> Router {
        Router::new()
            .route("/reports/{container}", post(accept))
            .layer(DefaultBodyLimit::max(TOLD_LIMIT))
            .with_state(self.clone())
    }

    fn keep(&self, uid: String, container: String, report: String) {
        let mut told = self.shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, told| told.at.elapsed() < KEPT);
        let entry = told.entry(uid).or_insert_with(|| Told {
            at: Instant::now(),
            by_container: BTreeMap::new(),
        });
        entry.by_container.insert(container, report);
    }
}

/// A container that told its report has done its work, whatever the kubelet knows of it.
fn lay_over(pod: &mut SeenPod, told: &BTreeMap<String, String>) {
    for (name, message) in told {
        // Only one that runs has a token to tell with; a name that the pod does not have is nobody's.
        if let Some(state @ (Container::Waiting | Container::Running)) = pod.containers.get_mut(name) {
            *state = Container::Ended {
                code: 0,
                reason: "Reported".into(),
                message: message.clone(),
            };
            pod.ahead = true;
        }
    }
}

async fn accept(
    State(reports): State<Reports>,
    Path(container): Path<String>,
    headers: HeaderMap,
    body: String,
) -> Result<StatusCode, Refusal> {
    let shared = &reports.shared;
    if !shared.queues.builds.is_open() {
        let text = "another replica leads; ask again\n".to_owned();
        return Err((StatusCode::SERVICE_UNAVAILABLE, text));
    }
    if ![FETCH, COLLECT, PUSH].contains(&container.as_str()) {
        return Err((StatusCode::NOT_FOUND, format!("{container} reports nothing\n")));
    }
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = bearer.and_then(|value| value.strip_prefix("Bearer "));
    let pod = shared.callers.pod(token).await?;
    reports.keep(pod.uid().unwrap_or_default(), container, body);
    shared.queues.pod_changed(&pod);
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(containers: &[(&str, Container)]) -> SeenPod {
        SeenPod {
            containers: containers
                .iter()
                .map(|(name, state)| ((*name).to_owned(), state.clone()))
                .collect(),
            ..SeenPod::default()
        }
    }

    fn told(container: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(container.to_owned(), "report".to_owned())])
    }

    #[test]
    fn what_was_told_is_ahead_of_the_kubelet() {
        let mut seen = pod(&[("collect", Container::Running), ("build", Container::Running)]);
        lay_over(&mut seen, &told("collect"));
        assert!(seen.ahead);
        assert!(matches!(seen.container("collect"), Container::Ended { message, .. } if message == "report"));
        assert_eq!(seen.container("build"), &Container::Running);
    }

    #[test]
    fn what_the_kubelet_shows_of_an_end_counts() {
        let ended = Container::Ended {
            code: 137,
            reason: "OOMKilled".into(),
            message: String::new(),
        };
        let mut seen = pod(&[("collect", ended.clone())]);
        lay_over(&mut seen, &told("collect"));
        assert_eq!((seen.container("collect"), seen.ahead), (&ended, false));
    }

    #[test]
    fn a_container_that_the_pod_does_not_have_is_not_made_up() {
        let mut seen = pod(&[("collect", Container::Running)]);
        lay_over(&mut seen, &told("other"));
        assert_eq!(seen, pod(&[("collect", Container::Running)]));
    }
}
