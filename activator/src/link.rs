//! The connection to the autoscaler: reports go out over one WebSocket that is made again whenever it breaks.
//!
//! While there is no connection nothing is lost: immediate reports wait, and the windows of the others go on.

use std::collections::HashMap;
use std::sync::Arc;
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

use crate::config::Config;
use crate::registry::Registry;
use crate::reporter::immediate;

/// How long one attempt to connect may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// Where requests leave their immediate reports.
#[derive(Debug)]
pub struct Outbox {
    /// At most one for each revision.
    pending: Mutex<HashMap<Key, Stat>>,
    filled: Notify,
    connected: watch::Sender<bool>,
    base: Instant,
    pod_name: String,
}

impl Outbox {
    pub(crate) fn new(pod_name: &str) -> Arc<Self> {
        Arc::new(Self {
            pending: Mutex::default(),
            filled: Notify::new(),
            connected: watch::Sender::new(false),
            base: Instant::now(),
            pod_name: pod_name.to_owned(),
        })
    }

    /// Has the autoscaler told at once that a revision has a request.
    pub fn wake(&self, key: &Key) {
        self.pending.lock().insert(key.clone(), immediate(&self.pod_name));
        self.filled.notify_one();
    }

    /// Whether the autoscaler can be reached.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Monotonic nanoseconds, as statistics take them.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether a report waits to be sent at once.
    fn holds(&self, key: &Key) -> bool {
        self.pending.lock().contains_key(key)
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
    // What the last connection took may have been lost with it, and a request may be waiting to be known of.
    for revision in registry.all() {
        if !outbox.holds(&revision.key) {
            revision.reporter.told_in_vain();
        }
    }
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
                let now = outbox.now();
                for revision in registry.all() {
                    if let Some(stat) = revision.reporter.report(now, &config.pod_name) {
                        batch.push(message(revision.key.clone(), stat));
                    }
                }
                (immediate, batch)
            }
            _ = ping.tick() => {
                if heard.elapsed() > config.ping_interval * 3 {
                    return "no answer to pings".to_owned();
                }
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
        sent = tokio::time::timeout(config.ping_interval * 3, socket.send(message)) => match sent {
            Ok(sent) => sent.map_err(|error| error.to_string()),
            Err(_) => Err("it does not take what is sent".to_owned()),
        },
    }
}
