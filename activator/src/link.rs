//! The connection to the autoscaler: reports go out over one WebSocket that is made again whenever it breaks.
//!
//! While there is no connection nothing is lost: immediate reports wait, and the windows of the others go on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ember_dataplane::io::{Io, Stream};
use ember_dataplane::stat::{Stat, WireStatMessage, WireStatMessages};
use ember_reconcile::cache::Key;
use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::{Config, SILENT_PINGS};
use crate::registry::Registry;
use crate::reporter::immediate;
use crate::revision::RevisionState;

/// How long one attempt to connect may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// Where requests leave their immediate reports.
#[derive(Debug)]
pub struct Outbox {
    /// At most one for each revision.
    pending: Mutex<HashMap<Key, Stat>>,
    filled: Notify,
    /// Revisions that have something to report, or may have. Those without traffic are not looked at.
    active: Mutex<HashMap<Key, Arc<RevisionState>>>,
    connected: watch::Sender<bool>,
    lost: AtomicU64,
    clock: Clock,
    pod_name: String,
}

impl Outbox {
    pub(crate) fn new(pod_name: &str, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            pending: Mutex::default(),
            filled: Notify::new(),
            active: Mutex::default(),
            connected: watch::Sender::new(false),
            lost: AtomicU64::new(0),
            clock,
            pod_name: pod_name.to_owned(),
        })
    }

    /// Has the autoscaler told at once that a revision has a request.
    pub fn wake(&self, revision: &Arc<RevisionState>) {
        self.active.lock().insert(revision.key.clone(), Arc::clone(revision));
        self.pending.lock().insert(revision.key.clone(), immediate(&self.pod_name));
        self.filled.notify_one();
    }

    /// The reports of all revisions that have traffic. One that has none any more is not looked at again until it is
    /// woken.
    fn report(&self) -> Vec<WireStatMessage> {
        let now = self.now();
        let active = std::mem::take(&mut *self.active.lock());
        let mut messages = Vec::with_capacity(active.len());
        for (key, revision) in active {
            if let Some(stat) = revision.reporter.report(now, &self.pod_name) {
                revision.metrics.set_concurrency(stat.average_concurrent_requests);
                messages.push(message(key.clone(), stat));
            }
            // Who comes after this look is woken again.
            if !revision.reporter.is_idle() {
                self.active.lock().entry(key).or_insert(revision);
            }
        }
        messages
    }

    /// What the last connection took may have been lost with it, and a request may be waiting to be known of.
    fn begin_again(&self) {
        let pending = self.pending.lock();
        for (key, revision) in self.active.lock().iter() {
            if !pending.contains_key(key) {
                revision.reporter.told_in_vain();
            }
        }
    }

    /// Connections that were lost so far.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether the autoscaler can be reached.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Monotonic nanoseconds, as statistics take them.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    fn take(&self) -> Vec<WireStatMessage> {
        let pending = std::mem::take(&mut *self.pending.lock());
        pending.into_iter().map(|(key, stat)| message(key, stat)).collect()
    }

    /// Puts back what could not be sent.
    fn put_back(&self, messages: Vec<WireStatMessage>) {
        let mut pending = self.pending.lock();
        for message in messages {
            if let Some(stat) = message.stat {
                pending.entry(Key::new(message.namespace, message.name)).or_insert(stat);
            }
        }
    }
}

fn message(key: Key, stat: Stat) -> WireStatMessage {
    WireStatMessage { namespace: key.namespace, name: key.name, stat: Some(stat) }
}

/// Keeps the connection and reports over it, until `shutdown`.
pub(crate) async fn run(
    config: Config,
    io: Io,
    registry: Arc<Registry>,
    outbox: Arc<Outbox>,
    shutdown: CancellationToken,
) {
    let mut pause = config.first_reconnect;
    loop {
        let attempt = tokio::select! {
            () = shutdown.cancelled() => return,
            attempt = tokio::time::timeout(HANDSHAKE_TIMEOUT, connect(&config, &io)) => attempt,
        };
        match attempt {
            Ok(Ok(socket)) => {
                tracing::debug!("connected to the autoscaler");
                outbox.connected.send_replace(true);
                let since = Instant::now();
                let ended = talk(socket, &config, &registry, &outbox, &shutdown).await;
                outbox.connected.send_replace(false);
                outbox.lost.fetch_add(1, Ordering::Relaxed);
                if shutdown.is_cancelled() {
                    return;
                }
                tracing::info!(reason = %ended, "the connection to the autoscaler ended");
                if since.elapsed() >= config.longest_reconnect {
                    // It may have restarted elsewhere: try at once.
                    pause = config.first_reconnect;
                    continue;
                }
                // One that hangs up as soon as it is reached is not to be called without pause.
            }
            Ok(Err(error)) => tracing::debug!(%error, "cannot reach the autoscaler"),
            Err(_) => tracing::debug!("the autoscaler did not answer in time"),
        }
        let jittered = pause.mul_f64(1.0 + fastrand::f64() / 2.0);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(jittered) => {}
        }
        pause = pause.mul_f64(1.3).min(config.longest_reconnect);
    }
}

async fn connect(config: &Config, io: &Io) -> Result<WebSocketStream<Stream>, WsError> {
    let (host, port) = &config.autoscaler;
    let stream = io.network.connect(host, *port).await.map_err(WsError::Io)?;
    let (socket, _) = tokio_tungstenite::client_async(format!("ws://{host}:{port}"), stream).await?;
    Ok(socket)
}

/// Reports until the connection ends; returns why.
async fn talk(
    mut socket: WebSocketStream<Stream>,
    config: &Config,
    registry: &Registry,
    outbox: &Outbox,
    shutdown: &CancellationToken,
) -> String {
    outbox.begin_again();
    // The first tick comes at once: a new autoscaler has to know what is under way.
    let mut tick = tokio::time::interval(config.report_interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ping = tokio::time::interval_at(Instant::now() + config.ping_interval, config.ping_interval);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        // Immediate reports come first in a batch.
        let (immediate, batch) = tokio::select! {
            biased;
            () = shutdown.cancelled() => {
                let _ = tokio::time::timeout(Duration::from_secs(1), socket.close(None)).await;
                return "shutting down".to_owned();
            }
            () = outbox.filled.notified() => {
                let batch = outbox.take();
                (batch.len(), batch)
            }
            incoming = socket.next() => match incoming {
                Some(Ok(Message::Close(frame))) => {
                    return frame.map_or_else(|| "closed".to_owned(), |frame| frame.to_string());
                }
                Some(Ok(_)) => { heard = Instant::now(); continue }
                Some(Err(error)) => return error.to_string(),
                None => return "closed".to_owned(),
            },
            _ = tick.tick() => {
                let mut batch = outbox.take();
                let immediate = batch.len();
                batch.extend(outbox.report());
                (immediate, batch)
            }
            () = tokio::time::sleep_until(heard + config.ping_interval * SILENT_PINGS) => {
                return "no answer to pings".to_owned();
            }
            _ = ping.tick() => {
                let ping = Message::Ping(bytes::Bytes::new());
                if let Err(why) = send(&mut socket, ping, config, shutdown).await {
                    return why;
                }
                continue;
            }
        };
        if batch.is_empty() {
            continue;
        }
        let messages = WireStatMessages { messages: batch };
        let report = Message::Binary(messages.encode_to_vec().into());
        if let Err(why) = send(&mut socket, report, config, shutdown).await {
            outbox.put_back(messages.messages);
            return why;
        }
        for WireStatMessage { namespace, name, .. } in messages.messages.iter().take(immediate) {
            if let Some(revision) = registry.get(namespace, name) {
                revision.reported();
            }
            let revision = format_args!("{namespace}/{name}");
            tracing::debug!(target: "ember::coldstart", phase = "reported", %revision);
        }
    }
}

/// Sends, but waits no longer for a peer that does not read than for one that does not answer pings.
async fn send(
    socket: &mut WebSocketStream<Stream>,
    message: Message,
    config: &Config,
    shutdown: &CancellationToken,
) -> Result<(), String> {
    tokio::select! {
        () = shutdown.cancelled() => Err("shutting down".to_owned()),
        sent = tokio::time::timeout(config.ping_interval * SILENT_PINGS, socket.send(message)) => match sent {
            Ok(sent) => sent.map_err(|error| error.to_string()),
            Err(_) => Err("it does not take what is sent".to_owned()),
        },
    }
}
