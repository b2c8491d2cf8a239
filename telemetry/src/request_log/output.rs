//! Where lines go: a thread writes them, so that whoever has one to write never waits for a slow reader.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Most lines that wait to be written; more are dropped.
const MAX_LINES: usize = 8192;
/// Most bytes that wait.
const MAX_BYTES: usize = 8 << 20;
/// How often losses are told of while they go on.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

static STDOUT: OnceLock<Output> = OnceLock::new();

/// A bounded queue of lines and the thread that writes them, one write a line. Clones share it; the thread ends with
/// the last of them. A line that finds the queue full is dropped and counted, and the loss is told in the process's
/// own log.
#[derive(Clone)]
pub struct Output {
    lines: SyncSender<String>,
    progress: Arc<Progress>,
}

#[derive(Default)]
struct Progress {
    /// Lines that wait or are being written.
    waiting: AtomicUsize,
    bytes: AtomicUsize,
    dropped: AtomicU64,
    idle: Mutex<()>,
    idled: Condvar,
}

impl Output {
    /// Writes to `target`.
    #[must_use]
    pub fn new(target: impl Write + Send + 'static) -> Self {
        let (lines, queue) = sync_channel(MAX_LINES);
        let progress = Arc::new(Progress::default());
        let theirs = Arc::clone(&progress);
        let thread = std::thread::Builder::new()
            .name("request-log".to_owned())
            .spawn(move || theirs.write(&queue, target));
        if let Err(error) = thread {
            // The queue is gone: all lines will count as dropped.
            tracing::error!(%error, "requests are not logged");
        }
        Self { lines, progress }
    }

    /// The process's standard output; all who log there share it.
    #[must_use]
    pub fn stdout() -> Self {
        STDOUT.get_or_init(|| Self::new(std::io::stdout())).clone()
    }

    /// Waits until what was logged to [`Output::stdout`] is written, at most `within`; for the end of a process.
    pub fn flush_stdout(within: Duration) {
        if let Some(output) = STDOUT.get() {
            output.flush(within);
        }
    }

    /// Waits until all lines are written, at most `within`; whether they are. Blocks the thread.
    pub fn flush(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        let mut idle = self.progress.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while self.progress.waiting.load(Ordering::Acquire) > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.progress.idled.wait_timeout(idle, left);
            idle = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Lines that could not be written.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.progress.dropped.load(Ordering::Relaxed)
    }

    /// Has `line` written, or drops it; never waits.
    pub(super) fn write(&self, line: String) {
        let (progress, size) = (&self.progress, line.len());
        let before = progress.bytes.fetch_add(size, Ordering::Relaxed);
        progress.waiting.fetch_add(1, Ordering::Relaxed);
        // One line always fits, however long it is.
        let fits = before == 0 || before + size <= MAX_BYTES;
        if !fits || self.lines.try_send(line).is_err() {
            progress.dropped.fetch_add(1, Ordering::Relaxed);
            progress.done(size);
        }
    }
}

impl Progress {
    /// The writer: ends when nobody can send any more.
    fn write(&self, queue: &Receiver<String>, mut target: impl Write) {
        let (mut told, mut told_at) = (0, None::<Instant>);
        while let Ok(line) = queue.recv() {
            if let Err(error) = target.write_all(line.as_bytes()).and_then(|()| target.flush()) {
                tracing::debug!(%error, "a request is not logged");
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
            self.done(line.len());
            // From here and not from where a line is dropped: who handles requests does not wait for this log either.
            let dropped = self.dropped.load(Ordering::Relaxed);
            let over = self.waiting.load(Ordering::Relaxed) == 0;
            if dropped > told && (over || told_at.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL)) {
                tracing::warn!(
                    records = dropped - told,
                    "the request log cannot keep up: records are missing"
                );
                (told, told_at) = (dropped, Some(Instant::now()));
            }
        }
    }

    fn done(&self, size: usize) {
        self.bytes.fetch_sub(size, Ordering::Relaxed);
        if self.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            self.idled.notify_all();
        }
    }
}

impl PartialEq for Output {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.progress, &other.progress)
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("waiting", &self.progress.waiting)
            .field("dropped", &self.progress.dropped)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes when it is let.
    struct Gate {
        open: Receiver<()>,
        written: Arc<Written>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.open.recv().map_err(|_| std::io::ErrorKind::BrokenPipe)?;
            self.written.writes.fetch_add(1, Ordering::Relaxed);
            self.written.bytes.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What has been written, in how many writes.
    #[derive(Default)]
    struct Written {
        bytes: Mutex<Vec<u8>>,
        writes: AtomicUsize,
    }

    fn gate() -> (Output, std::sync::mpsc::Sender<()>, Arc<Written>) {
        let (let_write, open) = std::sync::mpsc::channel();
        let written = Arc::<Written>::default();
        (Output::new(Gate { open, written: Arc::clone(&written) }), let_write, written)
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_reader_that_is_slow_costs_lines_and_no_time() {
        let (output, let_write, written) = gate();
        let sent = MAX_LINES * 2;
        for i in 0..sent {
            output.write(format!("{i}\n"));
        }
        assert!(!output.flush(Duration::ZERO));
        let dropped = usize::try_from(output.dropped()).unwrap();
        // One is in the writer's hand, unless it has not come to take it yet.
        assert!((MAX_LINES - 1..=MAX_LINES).contains(&dropped), "{dropped}");
        for _ in 0..sent {
            let_write.send(()).unwrap();
        }
        assert!(output.flush(LONG));
        let kept = sent - dropped;
        assert_eq!(written.writes.load(Ordering::Relaxed), kept, "one write a line");
        let written = String::from_utf8(written.bytes.lock().unwrap().clone()).unwrap();
        let numbers: Vec<usize> = written.lines().map(|line| line.parse().unwrap()).collect();
        assert!(numbers.len() == kept && numbers.is_sorted(), "what is kept is in order");
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_a_long_line_fits_alone() {
        let (output, let_write, written) = gate();
        output.write("x".repeat(MAX_BYTES + 1));
        output.write("y".to_owned());
        assert_eq!(output.dropped(), 1);
        let_write.send(()).unwrap();
        assert!(output.flush(LONG));
        assert_eq!(written.bytes.lock().unwrap().len(), MAX_BYTES + 1);
        for _ in 0..20 {
            output.write("x".repeat(MAX_BYTES / 10));
        }
        assert!(output.progress.bytes.load(Ordering::Relaxed) <= MAX_BYTES);
        assert_eq!(output.dropped(), 11);
    }

    #[test]
    fn a_reader_that_is_gone_is_no_failure() {
        let (output, let_write, _) = gate();
        drop(let_write);
        output.write("a\n".to_owned());
        output.write("b\n".to_owned());
        assert!(output.flush(LONG));
        assert_eq!(output.dropped(), 2);
    }
}
