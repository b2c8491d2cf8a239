//! The process runtime: Ember's side of the process helper.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use crate::helper::protocol::{self, HELPER, Id, Order, Report, Start};
use crate::runtime::{Process, Runtime, StartError, Stop};

/// How long the helper may take to end its processes when it is told to go.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs containers as processes of this host.
pub struct ProcessRuntime {
    program: PathBuf,
    next: AtomicU64,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl std::fmt::Debug for ProcessRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessRuntime").field("program", &self.program).finish_non_exhaustive()
    }
}

struct Connection {
    /// Keeps message boundaries, which this type neither knows nor disturbs.
    socket: UnixStream,
    processes: Mutex<HashMap<Id, Waiting>>,
    helper: Mutex<Option<Child>>,
}

/// Who waits for a process.
struct Waiting {
    started: Option<oneshot::Sender<Result<i32, StartError>>>,
    exit: oneshot::Sender<i32>,
    name: String,
}

impl ProcessRuntime {
    /// Starts the helper: `program` executed with [`HELPER`] as its first argument. Call it inside of a runtime.
    ///
    /// # Errors
    /// What the system says when the helper cannot be started.
    pub fn start_helper(program: PathBuf) -> io::Result<Self> {
        let runtime = Self { program, next: AtomicU64::new(1), connection: Mutex::new(None) };
        runtime.connect()?;
        Ok(runtime)
    }

    /// The connection to the helper, which is started again if it broke.
    fn connect(&self) -> io::Result<Arc<Connection>> {
        let mut slot = self.connection.lock();
        if let Some(connection) = slot.as_ref().filter(|c| c.helper.lock().is_some()) {
            return Ok(Arc::clone(connection));
        }
        let (ours, theirs) = protocol::pair()?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let helper = Command::new(&self.program)
            .arg(HELPER)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        let connection = Arc::new(Connection {
            socket: UnixStream::from_std(std::os::unix::net::UnixStream::from(ours))?,
            processes: Mutex::new(HashMap::new()),
            helper: Mutex::new(Some(helper)),
        });
        tokio::spawn(Arc::clone(&connection).listen());
        *slot = Some(Arc::clone(&connection));
        Ok(connection)
    }

    async fn try_start(&self, mut start: Start) -> Result<Process, StartError> {
        let refuse = |e: io::Error| StartError::Program(format!("the process helper does not answer: {e}"));
        let connection = self.connect().map_err(refuse)?;
        start.id = self.next.fetch_add(1, Ordering::Relaxed);
        let id = start.id;
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| refuse(e.into()))?;
        let output = pipe::Receiver::from_owned_fd(read).map_err(refuse)?;
        let (started, is_started) = oneshot::channel();
        let (exit, has_exited) = oneshot::channel();
        let name = start.program.clone().unwrap_or_else(|| "ember".to_owned());
        connection.processes.lock().insert(id, Waiting { started: Some(started), exit, name });
        if let Err(e) = connection.send(&Order::Start(start), Some(&write)).await {
            connection.processes.lock().remove(&id);
            return Err(StartError::Program(match e.raw_os_error() {
                Some(code) if code == nix::errno::Errno::EMSGSIZE as i32 => {
                    "argument list too long".to_owned()
                }
                _ => refuse(e).to_string(),
            }));
        }
        drop(write);
        match is_started.await {
            Ok(Ok(pid)) => Ok(Process { id, pid, output, exit: has_exited }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(StartError::Program("the process helper ended".to_owned())),
        }
    }
}

impl Runtime for ProcessRuntime {
    fn start(&self, start: Start) -> BoxFuture<'_, Result<Process, StartError>> {
        self.try_start(start).boxed()
    }

    fn stop(&self, id: Id, how: Stop) -> BoxFuture<'_, ()> {
        async move {
            let Some(connection) = self.connection.lock().clone() else { return };
            let order = match how {
                Stop::Terminate => Order::Terminate(id),
                Stop::Kill => Order::Kill(id),
            };
            // A helper that is gone has taken the process with it.
            if let Err(error) = connection.send(&order, None).await {
                tracing::warn!(%error, "cannot reach the process helper");
            }
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            let Some(connection) = self.connection.lock().take() else { return };
            let helper = connection.helper.lock().take();
            let _ =
                nix::sys::socket::shutdown(connection.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
            if let Some(mut helper) = helper
                && tokio::time::timeout(CLOSE_TIMEOUT, helper.wait()).await.is_err()
            {
                tracing::warn!("the process helper does not end");
            }
        }
        .boxed()
    }
}

impl Connection {
    async fn send(&self, order: &Order, output: Option<&OwnedFd>) -> io::Result<()> {
        let fds: Vec<_> = output.iter().map(|fd| fd.as_raw_fd()).collect();
        let send = || protocol::send(self.socket.as_fd(), order, &fds);
        self.socket.async_io(Interest::WRITABLE, send).await
    }

    /// Hands what the helper reports to those who wait for it, until the helper ends.
    async fn listen(self: Arc<Self>) {
        let mut buffer = Vec::new();
        loop {
            let receive = || protocol::receive::<Report>(self.socket.as_fd(), &mut buffer);
            match self.socket.async_io(Interest::READABLE, receive).await {
                Ok(Some((report, _))) => self.hear(report),
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "process helper");
                    break;
                }
            }
        }
        // Dropping them tells everyone who waits.
        self.processes.lock().clear();
        let helper = self.helper.lock().take();
        if let Some(mut helper) = helper {
            tracing::error!("the process helper ended; every process it started is gone");
            let _ = helper.wait().await;
        }
    }

    fn hear(&self, report: Report) {
        let mut processes = self.processes.lock();
        match report {
            Report::Warning(id, text) => {
                let name = processes.get(&id).map_or("", |w| w.name.as_str());
                tracing::warn!(program = name, "{text}");
            }
            Report::Started(id, pid) => {
                if let Some(started) = processes.get_mut(&id).and_then(|w| w.started.take()) {
                    let _ = started.send(Ok(pid));
                }
            }
            Report::Failed(id, error) => {
                if let Some(started) = processes.remove(&id).and_then(|w| w.started) {
                    let _ = started.send(Err(error));
                }
            }
            Report::Exited(id, code) => {
                if let Some(waiting) = processes.remove(&id) {
                    let _ = waiting.exit.send(code);
                }
            }
        }
    }
}
