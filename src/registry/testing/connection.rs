//! Connections that end when a test says so.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

/// A listener whose connections can be ended from a handler.
pub(super) struct Breakable(TcpListener);

impl Breakable {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self(listener)
    }
}

/// One of its connections; `true` once it is to end.
#[derive(Clone)]
pub(super) struct Connection(Arc<AtomicBool>);

impl Connection {
    pub(super) fn end(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

pub(super) struct Breaking {
    stream: TcpStream,
    broken: Connection,
}

impl Listener for Breakable {
    type Io = Breaking;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Breaking, SocketAddr) {
        loop {
            if let Ok((stream, address)) = self.0.accept().await {
                let broken = Connection(Arc::default());
                return (Breaking { stream, broken }, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Connected<IncomingStream<'_, Breakable>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Breakable>) -> Self {
        stream.io().broken.clone()
    }
}

impl Breaking {
    fn check(&self) -> io::Result<()> {
        if self.broken.0.load(Ordering::SeqCst) {
            Err(io::ErrorKind::ConnectionReset.into())
        } else {
            Ok(())
        }
    }
}

impl AsyncRead for Breaking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Breaking {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
