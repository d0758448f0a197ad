//! A wire of a certain length: what goes in at one end comes out at the other half a round trip later.
//!
//! A connection costs its handshake's round trip too, and holds a window's worth of bytes on their way, as TCP
//! on Linux does by default. Loss and slow start are not made.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// The default upper bound of a send buffer on Linux.
const WINDOW: usize = 4 << 20;
const PIECE: usize = 64 << 10;

pub struct Proxy {
    pub host: String,
    counters: Arc<Counters>,
    _connections: JoinSet<()>,
}

#[derive(Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    /// Where, in bytes that were sent, the connection that sends them is cut.
    cuts: Mutex<Vec<u64>>,
}

impl Proxy {
    pub async fn start(server: &str, round_trip: Duration, cuts: Vec<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let counters = Arc::new(Counters {
            cuts: Mutex::new(cuts),
            ..Counters::default()
        });
        let mut connections = JoinSet::new();
        let (shared, server) = (Arc::clone(&counters), server.to_owned());
        connections.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                open.spawn(carry(client, server.clone(), round_trip, Arc::clone(&shared)));
            }
        });
        Self {
            host,
            counters,
            _connections: connections,
        }
    }

    /// Bytes from clients to the server.
    pub fn sent(&self) -> u64 {
        self.counters.sent.load(Ordering::Relaxed)
    }

    /// Bytes from the server to clients.
    pub fn received(&self) -> u64 {
        self.counters.received.load(Ordering::Relaxed)
    }
}

async fn carry(client: TcpStream, server: String, round_trip: Duration, counters: Arc<Counters>) {
    let Ok(server) = TcpStream::connect(&server).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let opened = Instant::now() + round_trip;
    let forth = pump(
        from_client,
        to_server,
        round_trip / 2,
        opened,
        &counters.sent,
        Some(&counters.cuts),
    );
    let back = pump(
        from_server,
        to_client,
        round_trip / 2,
        opened,
        &counters.received,
        None,
    );
    tokio::pin!(forth, back);
    tokio::select! {
        // The client said everything; the answer is still to come. A cut ends both.
        whole = &mut forth => if whole { back.await; },
        _ = &mut back => {}
    }
}

/// Carries one direction to its end; `false` when it was cut.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
    opened: Instant,
    count: &AtomicU64,
    cuts: Option<&Mutex<Vec<u64>>>,
) -> bool {
    let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let window = &Semaphore::new(WINDOW);
    // Ends with the sender, so that the other half knows that nothing more comes.
    let read = async move {
        loop {
            let mut piece = vec![0; PIECE];
            let Ok(length @ 1..) = from.read(&mut piece).await else {
                break true;
            };
            piece.truncate(length);
            let total = count.fetch_add(length as u64, Ordering::Relaxed) + length as u64;
            if let Some(cuts) = cuts {
                let mut cuts = cuts.lock().unwrap();
                if cuts.last().is_some_and(|cut| total >= *cut) {
                    cuts.pop();
                    break false;
                }
            }
            let room = window.acquire_many(u32::try_from(length).unwrap()).await;
            room.unwrap().forget();
            let due = opened.max(Instant::now()) + delay;
            if sender.send((due, piece)).is_err() {
                break true;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = receiver.recv().await {
            if delay > Duration::ZERO {
                sleep_until(due).await;
            }
            if to.write_all(&piece).await.is_err() {
                return;
            }
            window.add_permits(piece.len());
        }
        let _ = to.shutdown().await;
    };
    tokio::pin!(read, write);
    tokio::select! {
        whole = &mut read => {
            if whole {
                write.await;
            }
            whole
        }
        () = &mut write => true,
    }
}
