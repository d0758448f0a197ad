//! Doors on this node before which pods wait until a test opens them: how a test holds a phase.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::{Node, Service};
use kube::{Api, Client, api::ListParams};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream, tcp::ReadHalf},
    sync::watch,
    task::JoinHandle,
};

/// Where those stand that came to a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// They go through until one says the words.
    Listening,
    /// They wait.
    Held,
    /// They go through, or are told so.
    Open,
    /// The test has ended.
    Gone,
}

/// When a door closes for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closes {
    /// Before the other side hears the words.
    Before,
    /// Once the other side has heard them, and no more.
    After,
}

/// A TCP address on this node that pods reach.
pub struct Door {
    /// `address:port`.
    pub address: String,
    state: watch::Sender<State>,
    arrived: watch::Receiver<usize>,
    listening: JoinHandle<()>,
}

/// What every connection needs to know.
#[derive(Clone)]
struct Doorkeeper {
    /// What is behind the door, if anything.
    upstream: Option<SocketAddr>,
    words: String,
    closes: Closes,
    state: watch::Sender<State>,
    arrivals: watch::Sender<usize>,
}

impl Door {
    /// One that leads to a service once it is open.
    pub async fn to_service(client: &Client, namespace: &str, name: &str) -> Self {
        let upstream = address_of(client, namespace, name).await;
        Self::make(client, Some(upstream), State::Held, ("", Closes::Before)).await
    }

    /// One that leads to a service, and closes for all who use it when somebody says the words.
    pub async fn that_closes(client: &Client, [namespace, name]: [&str; 2], at: (&str, Closes)) -> Self {
        let upstream = address_of(client, namespace, name).await;
        Self::make(client, Some(upstream), State::Listening, at).await
    }

    /// One behind which there is nothing: whoever waits is told to go on.
    pub async fn latch(client: &Client) -> Self {
        Self::make(client, None, State::Held, ("", Closes::Before)).await
    }

    async fn make(
        client: &Client,
        upstream: Option<SocketAddr>,
        first: State,
        (words, closes): (&str, Closes),
    ) -> Self {
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
        let (state, _) = watch::channel(first);
        let (arrivals, arrived) = watch::channel(0);
        let keeper = Doorkeeper {
            upstream,
            words: words.to_owned(),
            closes,
            state: state.clone(),
            arrivals,
        };
        let listening = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(keeper.clone().admit(connection));
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

    /// Returns once so many have come to the closed door, or one has closed it.
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
        self.state.send_replace(State::Gone);
    }
}

impl Doorkeeper {
    async fn admit(self, mut connection: TcpStream) {
        let state = *self.state.borrow();
        if state != State::Listening {
            self.arrivals.send_modify(|count| *count += 1);
        }
        if state == State::Held && !self.opened().await {
            return; // the test has ended
        }
        let Some(upstream) = self.upstream else {
            let _ = connection.write_all(b"go\n").await;
            return;
        };
        let Ok(mut onward) = TcpStream::connect(upstream).await else {
            return;
        };
        let (mut from, mut to) = connection.split();
        let (mut answers, mut requests) = onward.split();
        let forth = async {
            let mut buffer = vec![0; 64 << 10];
            while let Some(count) = self.next(&mut from, &mut buffer).await {
                if requests.write_all(&buffer[..count]).await.is_err() {
                    break;
                }
            }
            let _ = requests.shutdown().await;
        };
        // Whoever was cut off on one side is cut off on the other.
        tokio::select! {
            () = forth => {}
            _ = copy(&mut answers, &mut to) => {}
        }
    }

    async fn opened(&self) -> bool {
        let mut state = self.state.subscribe();
        let decided = state.wait_for(|state| matches!(state, State::Open | State::Gone));
        decided.await.is_ok_and(|state| *state == State::Open)
    }

    /// What may go on to the other side; nothing of somebody who left while the door was closed.
    async fn next(&self, from: &mut ReadHalf<'_>, buffer: &mut [u8]) -> Option<usize> {
        let count = from.read(buffer).await.ok().filter(|count| *count > 0)?;
        let says = |words: &str| {
            buffer[..count]
                .windows(words.len())
                .any(|part| part == words.as_bytes())
        };
        let closed_it = *self.state.borrow() == State::Listening
            && says(&self.words)
            && self.state.send_if_modified(|state| {
                let listening = *state == State::Listening;
                if listening {
                    *state = State::Held;
                }
                listening
            });
        if closed_it {
            self.arrivals.send_modify(|count| *count += 1);
        }
        let goes_on = closed_it && self.closes == Closes::After;
        if *self.state.borrow() == State::Held && !goes_on {
            let left = async {
                let mut byte = [0];
                if from.peek(&mut byte).await.is_ok_and(|count| count > 0) {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                opened = self.opened() => opened.then_some(())?,
                () = left => return None,
            }
        }
        Some(count)
    }
}

async fn address_of(client: &Client, namespace: &str, name: &str) -> SocketAddr {
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    let spec = services.get(name).await.unwrap().spec.unwrap();
    let address = format!("{}:{}", spec.cluster_ip.unwrap(), spec.ports.unwrap()[0].port);
    address.parse().unwrap()
}
