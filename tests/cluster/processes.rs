//! The processes of the cluster's containers: they run on this node, and a test may stop or kill one.

use std::{fs, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};
use rustix::process::{Pid, Signal, kill_process};

/// A process of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process(Pid);

impl Process {
    /// The process of a pod's container whose command line has this word.
    pub fn find(pod: &Pod, container: &str, word: &str) -> Option<Self> {
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        let id = statuses
            .iter()
            .find(|status| status.name == container)?
            .container_id
            .as_ref()?;
        let id = id.rsplit('/').next()?;
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .find(|pid: &i32| {
                let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
                read("cgroup").contains(id) && read("cmdline").split('\0').any(|argument| argument == word)
            })
            .and_then(Pid::from_raw)
            .map(Self)
    }

    /// The same of a pod that is looked up first.
    pub async fn of(pods: &Api<Pod>, pod: &str, container: &str, word: &str) -> Self {
        let pod = pods.get(pod).await.unwrap();
        // The kubelet says that a container runs a moment before its program has taken the runtime's place.
        for _ in 0..500 {
            if let Some(process) = Self::find(&pod, container, word) {
                return process;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{}: no process {word} of {container} runs here", pod.name_any())
    }

    /// It does nothing more until it goes on.
    pub fn stop(self) {
        kill_process(self.0, Signal::STOP).unwrap();
    }

    /// It goes on; one that was killed meanwhile is gone, which is fine.
    pub fn go_on(self) {
        let _ = kill_process(self.0, Signal::CONT);
    }

    /// It ends without a last word.
    pub fn kill(self) {
        kill_process(self.0, Signal::KILL).unwrap();
    }
}
