//! The threads requests are served on.
//!
//! Each worker is one thread with a runtime of its own, so that a request, its connections and its pools stay on one
//! core. Connections are dealt to the workers in turn; a component keeps one set of per-worker state for each.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::io::Stream;

/// A small, fixed set of current-thread runtimes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Workers(Arc<Set>);

#[derive(Debug)]
struct Set {
    handles: Vec<Handle>,
    /// Whether work runs on the caller's runtime: streams need no new registration then.
    inline: bool,
    next: AtomicUsize,
    stop: CancellationToken,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

impl Drop for Set {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Workers {
    /// Starts `count` threads (at least one).
    ///
    /// # Errors
    /// The system refused a thread or a runtime.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut handles = Vec::new();
        let mut threads = Vec::new();
        for index in 0..count.max(1) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            handles.push(runtime.handle().clone());
            let stop = stop.clone();
            threads.push(
                thread::Builder::new()
                    .name(format!("worker-{index}"))
                    .spawn(move || runtime.block_on(stop.cancelled()))?,
            );
        }
        Ok(Self(Arc::new(Set {
            handles,
            inline: false,
            next: AtomicUsize::new(0),
            stop,
            threads: Mutex::new(threads),
        })))
    }

    /// One worker: the runtime that calls this. For programs with a single runtime, such as the sidecar.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn current() -> Self {
        Self(Arc::new(Set {
            handles: vec![Handle::current()],
            inline: true,
            next: AtomicUsize::new(0),
            stop: CancellationToken::new(),
            threads: Mutex::default(),
        }))
    }

    /// Number of workers, at least 1. Indices run from 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.0.handles.len()
    }

    /// The index whose turn it is.
    #[must_use]
    pub fn next(&self) -> usize {
        self.0.next.fetch_add(1, Ordering::Relaxed) % self.0.handles.len()
    }

    /// Runs `start` on worker `index` (modulo the count) and then the future it makes.
    pub fn spawn<F, T>(&self, index: usize, start: F) -> JoinHandle<T::Output>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        self.0.handles[index % self.0.handles.len()].spawn(async move { start().await })
    }

    /// Takes a stream off the calling runtime, so that a worker can [`attach`](Detached::attach) it to its own.
    ///
    /// # Errors
    /// What the system says.
    pub fn detach(&self, stream: Stream) -> io::Result<Detached> {
        Ok(match stream {
            Stream::Tcp(tcp) if !self.0.inline => Detached(Parts::Std(tcp.into_std()?)),
            other => Detached(Parts::Attached(other)),
        })
    }

    /// Ends the threads and waits for them. Tasks still running are dropped: drain first.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        let threads = std::mem::take(&mut *self.0.threads.lock());
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                // A worker that panicked has already said so.
                let _ = thread.join();
            }
        });
        let _ = joined.await;
    }
}

/// A stream between two runtimes.
#[derive(Debug)]
pub struct Detached(Parts);

#[derive(Debug)]
enum Parts {
    Std(std::net::TcpStream),
    Attached(Stream),
}

impl Detached {
    /// Registers the stream with the calling runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn attach(self) -> io::Result<Stream> {
        match self.0 {
            Parts::Std(tcp) => Ok(Stream::Tcp(tokio::net::TcpStream::from_std(tcp)?)),
            Parts::Attached(stream) => Ok(stream),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_index_is_one_thread_and_turns_are_dealt() {
        let workers = Workers::start(2).unwrap();
        assert_eq!([workers.next(), workers.next(), workers.next()], [0, 1, 0]);
        let name = |index| workers.spawn(index, || async { thread::current().name().map(str::to_owned) });
        assert_eq!(name(0).await.unwrap().as_deref(), Some("worker-0"));
        assert_eq!(name(1).await.unwrap().as_deref(), Some("worker-1"));
        assert_eq!(name(2).await.unwrap().as_deref(), Some("worker-0"));
        workers.shutdown().await;
    }

    #[tokio::test]
    async fn a_stream_moves_to_a_worker() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let workers = Workers::start(1).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let detached = workers.detach(Stream::Tcp(stream)).unwrap();
        let echo = workers.spawn(0, || async move {
            let mut stream = detached.attach().unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            stream.write_all(&byte).await.unwrap();
        });
        client.write_all(b"x").await.unwrap();
        let mut byte = [0];
        client.read_exact(&mut byte).await.unwrap();
        echo.await.unwrap();
        assert_eq!(&byte, b"x");
        workers.shutdown().await;
    }
}
