//! A network in memory: ports, and nothing between them.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ember_dataplane::io::{Io, Listener, Network, Stream, SystemClock};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use crate::wire::Wire;

/// Where the app listens, here.
pub(crate) const APP: u16 = 8080;

#[derive(Default)]
pub(crate) struct Memory(Mutex<HashMap<u16, mpsc::Sender<DuplexStream>>>);

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn io(self: &Arc<Self>) -> Io {
        Io { clock: Arc::new(SystemClock), network: Arc::clone(self) as _ }
    }

    fn bind(&self, port: u16) -> io::Result<mpsc::Receiver<DuplexStream>> {
        let (connections, accepted) = mpsc::channel(1000);
        let mut ports = self.0.lock();
        if ports.get(&port).is_some_and(|listener| !listener.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        ports.insert(port, connections);
        Ok(accepted)
    }

    fn dial(&self, port: u16) -> io::Result<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let listener = self.0.lock().get(&port).cloned().ok_or(io::ErrorKind::ConnectionRefused)?;
        listener.try_send(theirs).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(ours)
    }

    pub(crate) fn connect(&self, port: u16) -> Wire {
        Wire::new(self.dial(port).unwrap())
    }

    pub(crate) fn listens(&self, port: u16) -> bool {
        self.0.lock().get(&port).is_some_and(|listener| !listener.is_closed())
    }

    /// An app that treats each connection with `serve`, until the answer is dropped.
    pub(crate) fn app<F, T>(self: &Arc<Self>, serve: F) -> App
    where
        F: Fn(Wire) -> T + Send + Sync + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let mut accepted = self.bind(APP).unwrap();
        App(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Some(stream) = accepted.recv().await {
                connections.spawn(serve(Wire::new(stream)));
            }
        }))
    }

    /// One exchange with the sidecar.
    pub(crate) async fn get(&self, port: u16, path: &str, headers: &str) -> String {
        self.connect(port).exchange("GET", path, headers).await
    }
}

/// An app that runs as long as this lives.
#[must_use]
pub(crate) struct App(tokio::task::JoinHandle<()>);

impl App {
    /// Ends it, its connections with it.
    pub(crate) async fn stop(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Network for Memory {
    fn listen<'a>(&'a self, addr: SocketAddr) -> BoxFuture<'a, io::Result<Listener>> {
        Box::pin(async move { Ok(Listener::Memory(addr, self.bind(addr.port())?)) })
    }

    fn connect<'a>(&'a self, _: &'a str, port: u16) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move { Ok(Stream::Memory(self.dial(port)?)) })
    }
}
