//! Doors on this node before which pods wait until a test opens them: how a test holds a phase.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::{Node, Service};
use kube::{Api, Client, api::ListParams};
use tokio::{
    io::{AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Where a connection stands that came to a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It waits.
    Held,
    /// It goes through, or is told so.
    Open,
}

/// A TCP address on this node that pods reach.
pub struct Door {
    /// `address:port`.
    pub address: String,
    state: watch::Sender<State>,
    arrived: watch::Receiver<usize>,
    listening: JoinHandle<()>,
}

impl Door {
    /// One that leads to a service once it is open.
    pub async fn to_service(client: &Client, namespace: &str, name: &str) -> Self {
        let service = Api::<Service>::namespaced(client.clone(), namespace)
            .get(name)
            .await
            .unwrap();
        let spec = service.spec.unwrap();
        let upstream = format!("{}:{}", spec.cluster_ip.unwrap(), spec.ports.unwrap()[0].port);
        Self::make(client, Some(upstream.parse().unwrap())).await
    }

    /// One behind which there is nothing: whoever waits is told to go on.
    pub async fn latch(client: &Client) -> Self {
        Self::make(client, None).await
    }

    async fn make(client: &Client, upstream: Option<SocketAddr>) -> Self {
        let nodes = Api::<Node>::all(client.clone())
            .list(&ListParams::default())
            .await
            .unwrap();
        let addresses = nodes.items[0]
            .status
            .as_ref()
            .unwrap()
            .addresses
            .as_ref()
            .unwrap();
        let node = &addresses
            .iter()
            .find(|address| address.type_ == "InternalIP")
            .unwrap()
            .address;
        let listener = TcpListener::bind((node.as_str(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (state, states) = watch::channel(State::Held);
        let (arrivals, arrived) = watch::channel(0);
        let listening = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                arrivals.send_modify(|count| *count += 1);
                tokio::spawn(admit(connection, upstream, states.clone()));
            }
        });
        Self {
            address,
            state,
            arrived,
            listening,
        }
    }

    /// Shell words that wait until the door is open.
    pub fn wait_here(&self) -> String {
        let (host, port) = self.address.rsplit_once(':').unwrap();
        format!("bash -c 'exec 3<>/dev/tcp/{host}/{port}; read -r go <&3'")
    }

    /// Returns once so many have come to the door.
    pub async fn arrived(&self, count: usize) {
        let mut arrived = self.arrived.clone();
        let wait = arrived.wait_for(|arrived| *arrived >= count);
        tokio::time::timeout(crate::support::LIMIT, wait)
            .await
            .expect("nobody came to the door")
            .unwrap();
    }

    /// Lets everybody through, from now on.
    pub fn open(&self) {
        self.state.send_replace(State::Open);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn admit(mut connection: TcpStream, upstream: Option<SocketAddr>, mut state: watch::Receiver<State>) {
    if state.wait_for(|state| *state == State::Open).await.is_err() {
        return; // the test has ended
    }
    match upstream {
        Some(upstream) => {
            if let Ok(mut onward) = TcpStream::connect(upstream).await {
                let _ = copy_bidirectional(&mut connection, &mut onward).await;
            }
        }
        None => {
            let _ = connection.write_all(b"go\n").await;
        }
    }
}
