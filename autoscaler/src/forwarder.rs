//! Sends reports on to the replica that owns their bucket.
//!
//! What belongs here is taken at once, on the caller's task. Everything else goes through the bucket's own task, which
//! waits, for a bounded time and with bounded memory, while the bucket has no owner that can be reached.

use std::sync::Arc;

use ember_dataplane::io::{Io, Stream};
use ember_dataplane::stat::{Stat, WireStatMessage, WireStatMessages};
use ember_reconcile::cache::Key;
use futures::{SinkExt, StreamExt};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::buckets::{Buckets, Changes, Owner};
use crate::config::Config;
use crate::stat_server::StatSink;

/// Reports that go in one message.
const BATCH: usize = 100;

struct Waiting {
    key: Key,
    stat: Stat,
    since: Instant,
}

/// Takes reports, and knows where each belongs.
pub(crate) struct Forwarder {
    buckets: Arc<Buckets>,
    local: Arc<dyn StatSink>,
    links: Vec<mpsc::Sender<Waiting>>,
}

impl Forwarder {
    /// Starts a task for each bucket; they end with `stop`.
    pub(crate) fn start(
        buckets: &Arc<Buckets>,
        local: &Arc<dyn StatSink>,
        config: &Arc<Config>,
        io: &Io,
        (tasks, stop): (&TaskTracker, &CancellationToken),
    ) -> Self {
        let links = (0..buckets.len()).map(|bucket| {
            let (link, queue) = mpsc::channel(config.forward_queue);
            let task = Link {
                bucket,
                buckets: Arc::clone(buckets),
                local: Arc::clone(local),
                config: Arc::clone(config),
                io: io.clone(),
                changes: buckets.changes(bucket),
                socket: None,
            };
            tasks.spawn(stop.clone().run_until_cancelled_owned(task.run(queue)));
            link
        });
        Self { buckets: Arc::clone(buckets), local: Arc::clone(local), links: links.collect() }
    }
}

impl StatSink for Forwarder {
    fn accept(&self, key: Key, stat: Stat) {
        let bucket = self.buckets.of(&key);
        if self.buckets.is_ours(bucket) {
            return self.local.accept(key, stat);
        }
        let waiting = Waiting { key, stat, since: Instant::now() };
        if let Err(refused) = self.links[bucket].try_send(waiting) {
            let revision = &refused.into_inner().key;
            tracing::debug!(%revision, "a report was dropped: too many wait to be sent on");
        }
    }

    fn owns_bucket(&self, name: &str) -> bool {
        self.buckets.find(name).is_some_and(|bucket| self.buckets.is_ours(bucket))
    }
}

/// One bucket's way to its owner.
struct Link {
    bucket: usize,
    buckets: Arc<Buckets>,
    local: Arc<dyn StatSink>,
    config: Arc<Config>,
    io: Io,
    changes: Changes,
    socket: Option<(Owner, WebSocketStream<Stream>)>,
}

impl Link {
    async fn run(mut self, mut queue: mpsc::Receiver<Waiting>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut ping = tokio::time::interval(self.config.peer_ping_interval);
        ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                count = queue.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    self.deliver(&mut batch).await;
                    batch.clear();
                }
                () = self.changes.next() => self.let_go_of_former_owner(),
                gone = heard(self.socket.as_mut()) => if gone { self.socket = None },
                _ = ping.tick(), if self.socket.is_some() => self.send(Message::Ping(bytes::Bytes::new())).await,
            }
        }
    }

    fn let_go_of_former_owner(&mut self) {
        let owner = self.buckets.owner(self.bucket);
        self.socket.take_if(|(connected, _)| *connected != owner);
    }

    /// Tries until every report is where it belongs, or too old to be of use.
    async fn deliver(&mut self, batch: &mut Vec<Waiting>) {
        loop {
            batch.retain(|waiting| waiting.since.elapsed() < self.config.held_report_lifetime);
            if batch.is_empty() {
                return;
            }
            self.let_go_of_former_owner();
            match self.buckets.owner(self.bucket) {
                Owner::Us => {
                    for Waiting { key, stat, .. } in batch.drain(..) {
                        self.local.accept(key, stat);
                    }
                    return;
                }
                owner @ Owner::Peer(ip) => {
                    if self.socket.is_none() {
                        self.socket = self.connect(&ip.to_string()).await.map(|socket| (owner, socket));
                    }
                    if self.socket.is_some() {
                        self.send(Message::Binary(encode(batch).into())).await;
                    }
                    if self.socket.is_some() {
                        return;
                    }
                }
                Owner::Nobody => {}
            }
            tokio::select! {
                () = self.changes.next() => {}
                () = tokio::time::sleep(self.config.forward_retry) => {}
            }
        }
    }

    /// Sends; a peer that does not take it in time is given up.
    async fn send(&mut self, message: Message) {
        let Some((_, socket)) = &mut self.socket else { return };
        let sent = tokio::time::timeout(self.config.peer_timeout, socket.send(message)).await;
        if !matches!(sent, Ok(Ok(()))) {
            self.socket = None;
        }
    }

    /// Connects to the owner, by its address or else by the bucket's Service.
    async fn connect(&self, ip: &str) -> Option<WebSocketStream<Stream>> {
        let (config, port) = (&self.config, self.config.peer_port);
        let bucket = self.buckets.name(self.bucket);
        let service = format!("{bucket}.{}.svc.{}", config.system_namespace, config.cluster_domain);
        for host in [ip, &service] {
            // Asked for by the bucket's name, a replica that does not own it, or not yet, says no.
            let connecting = async {
                let stream = self.io.network.connect(host, port).await.map_err(WebSocketError::Io)?;
                tokio_tungstenite::client_async(format!("ws://{service}:{port}"), stream).await
            };
            match tokio::time::timeout(config.peer_timeout, connecting).await {
                Ok(Ok((socket, _))) => return Some(socket),
                Ok(Err(error)) => {
                    tracing::debug!(bucket, host, %error, "the bucket's owner cannot be reached");
                }
                Err(_) => tracing::debug!(bucket, host, "the bucket's owner did not answer in time"),
            }
        }
        None
    }
}

fn encode(batch: &[Waiting]) -> Vec<u8> {
    let message = |waiting: &Waiting| WireStatMessage {
        namespace: waiting.key.namespace.clone(),
        name: waiting.key.name.clone(),
        stat: Some(waiting.stat.clone()),
    };
    WireStatMessages { messages: batch.iter().map(message).collect() }.encode_to_vec()
}

/// Reads what the peer says, which keeps pings answered; returns whether the connection is over.
async fn heard(socket: Option<&mut (Owner, WebSocketStream<Stream>)>) -> bool {
    match socket {
        Some((_, socket)) => !matches!(socket.next().await, Some(Ok(message)) if !message.is_close()),
        None => std::future::pending().await,
    }
}
