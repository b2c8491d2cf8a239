//! What containers write: a bounded ring for each container's current and previous run.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

/// The longest line that is kept in one piece, as of container runtimes.
const MAX_LINE: usize = 16 << 10;
/// What a termination message takes from the log at most: bytes and lines, as the kubelet.
const MESSAGE_BYTES: usize = 2048;
const MESSAGE_LINES: usize = 80;

/// What to read of a container's log: the parameters of `pods/NAME/log`.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Stay and send what comes.
    pub follow: bool,
    /// The run before the current one.
    pub previous: bool,
    /// Put the time of each line before it.
    pub timestamps: bool,
    /// Only the last so many lines.
    pub tail_lines: Option<usize>,
    /// Only lines from this time on.
    pub since: Option<Timestamp>,
    /// End after so many bytes.
    pub limit_bytes: Option<usize>,
}

/// The logs of all containers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Logs {
    capacity: usize,
    containers: Arc<Mutex<HashMap<Key, Arc<ContainerLog>>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    namespace: String,
    pod: String,
    container: String,
}

/// One container's runs.
#[derive(Debug)]
pub(crate) struct ContainerLog {
    runs: Mutex<Runs>,
}

#[derive(Debug)]
struct Runs {
    current: Arc<Run>,
    previous: Option<Arc<Run>>,
}

/// The output of one run of a container.
#[derive(Debug)]
pub(crate) struct Run {
    ring: Mutex<Ring>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Ring {
    capacity: usize,
    bytes: usize,
    /// The number of the first line that is kept.
    first: u64,
    lines: VecDeque<(Timestamp, Bytes)>,
    partial: BytesMut,
    closed: bool,
}

impl Logs {
    /// Keeps `capacity` bytes of each run.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity, containers: Arc::default() }
    }

    /// The lines that `options` ask for; `None` if there is no such container (or no such run).
    #[must_use]
    pub fn get(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        options: LogOptions,
    ) -> Option<impl Stream<Item = Bytes> + Send + use<>> {
        let key =
            Key { namespace: namespace.to_owned(), pod: pod.to_owned(), container: container.to_owned() };
        let log = self.containers.lock().get(&key).cloned()?;
        let run = {
            let runs = log.runs.lock();
            if options.previous { runs.previous.clone()? } else { Arc::clone(&runs.current) }
        };
        Some(read(run, options))
    }

    /// The container's log, made if there is none.
    pub(crate) fn container(&self, namespace: &str, pod: &str, container: &str) -> Arc<ContainerLog> {
        let key =
            Key { namespace: namespace.to_owned(), pod: pod.to_owned(), container: container.to_owned() };
        let make = || {
            let current = Arc::new(Run::new(self.capacity));
            Arc::new(ContainerLog { runs: Mutex::new(Runs { current, previous: None }) })
        };
        Arc::clone(self.containers.lock().entry(key).or_insert_with(make))
    }

    /// Forgets a pod's logs; readers get what there is, then their end.
    pub(crate) fn remove(&self, namespace: &str, pod: &str) {
        self.containers.lock().retain(|key, log| {
            let keep = key.namespace != namespace || key.pod != pod;
            if !keep {
                log.runs.lock().current.close();
            }
            keep
        });
    }

    /// How much is kept of a run.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }
}

impl ContainerLog {
    /// Starts a new run; the current one becomes the previous one.
    pub(crate) fn rotate(&self, capacity: usize) -> Arc<Run> {
        let mut runs = self.runs.lock();
        let unused = {
            let ring = runs.current.ring.lock();
            ring.first == 0 && ring.lines.is_empty() && !ring.closed
        };
        if !unused {
            let next = Arc::new(Run::new(capacity));
            runs.current.close();
            runs.previous = Some(std::mem::replace(&mut runs.current, next));
        }
        Arc::clone(&runs.current)
    }
}

impl Run {
    fn new(capacity: usize) -> Self {
        Self { ring: Mutex::new(Ring { capacity, ..Ring::default() }), changed: watch::Sender::new(()) }
    }

    /// Adds what the container wrote.
    pub(crate) fn append(&self, bytes: &[u8], now: Timestamp) {
        self.ring.lock().append(bytes, now);
        self.changed.send_replace(());
    }

    /// Nothing more will come.
    pub(crate) fn close(&self) {
        let mut ring = self.ring.lock();
        if !ring.closed {
            ring.flush(Timestamp::now());
            ring.closed = true;
        }
        drop(ring);
        self.changed.send_replace(());
    }

    /// The end of the log, as it becomes a termination message.
    pub(crate) fn message(&self) -> Option<String> {
        let ring = self.ring.lock();
        let skip = ring.lines.len().saturating_sub(MESSAGE_LINES);
        let mut text = Vec::new();
        for (_, line) in ring.lines.iter().skip(skip) {
            text.extend_from_slice(line);
        }
        let tail = &text[text.len().saturating_sub(MESSAGE_BYTES)..];
        (!tail.is_empty()).then(|| String::from_utf8_lossy(tail).into_owned())
    }
}

impl Ring {
    fn append(&mut self, mut bytes: &[u8], now: Timestamp) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.partial.extend_from_slice(&bytes[..=end]);
            self.flush(now);
            bytes = &bytes[end + 1..];
        }
        self.partial.extend_from_slice(bytes);
        if self.partial.len() >= MAX_LINE {
            self.flush(now);
        }
    }

    fn flush(&mut self, now: Timestamp) {
        if self.partial.is_empty() {
            return;
        }
        let line = self.partial.split().freeze();
        self.bytes += line.len();
        self.lines.push_back((now, line));
        while self.bytes > self.capacity && self.lines.len() > 1 {
            if let Some((_, line)) = self.lines.pop_front() {
                self.bytes -= line.len();
                self.first += 1;
            }
        }
    }
}

struct Reader {
    run: Arc<Run>,
    changed: watch::Receiver<()>,
    options: LogOptions,
    /// The number of the next line.
    next: u64,
    left: Option<usize>,
}

fn read(run: Arc<Run>, options: LogOptions) -> impl Stream<Item = Bytes> + Send {
    let next = {
        let ring = run.ring.lock();
        let skip = options.tail_lines.map_or(0, |n| ring.lines.len().saturating_sub(n));
        ring.first + skip as u64
    };
    let changed = run.changed.subscribe();
    let left = options.limit_bytes;
    futures::stream::unfold(Reader { run, changed, options, next, left }, |mut reader| async move {
        loop {
            let (chunk, ended) = reader.take();
            if !chunk.is_empty() {
                return Some((chunk, reader));
            }
            if ended || reader.changed.changed().await.is_err() {
                return None;
            }
        }
    })
}

impl Reader {
    /// All lines that are there, and whether there will be no more.
    fn take(&mut self) -> (Bytes, bool) {
        if self.left == Some(0) {
            return (Bytes::new(), true);
        }
        let ring = self.run.ring.lock();
        self.next = self.next.max(ring.first);
        // The number of lines kept fits in memory.
        let skip = usize::try_from(self.next - ring.first).unwrap_or(usize::MAX);
        let mut out = BytesMut::new();
        for (at, line) in ring.lines.iter().skip(skip) {
            self.next += 1;
            if self.options.since.is_some_and(|since| *at < since) {
                continue;
            }
            if self.options.timestamps {
                out.extend_from_slice(format!("{at:.9} ").as_bytes());
            }
            out.extend_from_slice(line);
        }
        if let Some(left) = &mut self.left {
            out.truncate(*left);
            *left -= out.len();
        }
        (out.freeze(), ring.closed || !self.options.follow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    async fn text(logs: &Logs, options: LogOptions) -> String {
        let chunks: Vec<Bytes> = logs.get("ns", "p", "c", options).unwrap().collect().await;
        String::from_utf8(chunks.concat()).unwrap()
    }

    #[tokio::test]
    async fn options() {
        let logs = Logs::new(1 << 20);
        assert!(logs.get("ns", "p", "c", LogOptions::default()).is_none());
        let log = logs.container("ns", "p", "c");
        let run = log.rotate(1 << 20);
        run.append(b"on", at(0));
        run.append(b"e\ntwo\nthr", at(1));
        run.append(b"ee\n", at(2));
        assert_eq!(text(&logs, LogOptions::default()).await, "one\ntwo\nthree\n");
        assert_eq!(text(&logs, LogOptions { tail_lines: Some(1), ..Default::default() }).await, "three\n");
        assert_eq!(text(&logs, LogOptions { since: Some(at(2)), ..Default::default() }).await, "three\n");
        assert_eq!(text(&logs, LogOptions { limit_bytes: Some(5), ..Default::default() }).await, "one\nt");
        let stamped =
            text(&logs, LogOptions { timestamps: true, tail_lines: Some(1), ..Default::default() }).await;
        assert_eq!(stamped, "2023-11-14T22:13:22.000000000Z three\n");
        assert!(logs.get("ns", "p", "c", LogOptions { previous: true, ..Default::default() }).is_none());
        let next = log.rotate(1 << 20);
        next.append(b"new\n", at(3));
        assert_eq!(
            text(&logs, LogOptions { previous: true, ..Default::default() }).await,
            "one\ntwo\nthree\n"
        );
        assert_eq!(text(&logs, LogOptions::default()).await, "new\n");
    }

    #[tokio::test]
    async fn follows_until_the_end() {
        let logs = Logs::new(1 << 20);
        let run = logs.container("ns", "p", "c").rotate(1 << 20);
        run.append(b"a\n", at(0));
        let mut lines =
            Box::pin(logs.get("ns", "p", "c", LogOptions { follow: true, ..Default::default() }).unwrap());
        assert_eq!(lines.next().await.unwrap(), "a\n");
        run.append(b"b\nc", at(0));
        assert_eq!(lines.next().await.unwrap(), "b\n");
        logs.remove("ns", "p");
        assert_eq!(lines.next().await.unwrap(), "c");
        assert_eq!(lines.next().await, None);
    }

    #[tokio::test]
    async fn is_bounded() {
        let logs = Logs::new(100);
        let run = logs.container("ns", "p", "c").rotate(100);
        for i in 0..1000 {
            run.append(format!("line {i}\n").as_bytes(), at(0));
        }
        let kept = text(&logs, LogOptions::default()).await;
        assert!(kept.len() <= 100 && kept.ends_with("line 999\n"), "{kept}");
        assert!(run.message().unwrap().ends_with("line 999\n"));
        run.append(&[b'x'; 3 * MAX_LINE], at(0));
        assert!(run.ring.lock().partial.len() < MAX_LINE);
    }
}
