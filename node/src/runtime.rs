//! The seam between pods and what runs their containers.
//!
//! A runtime starts and stops processes. Parking and unparking of idle ones will join them here: a parked process is
//! no Pod, so nothing above this seam needs to know of it.

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::helper::protocol::{Id, Start};

/// What starts and stops the processes of containers.
pub trait Runtime: Send + Sync + 'static {
    /// Starts a process; completes when the program runs. `start.id` is chosen by the runtime.
    fn start(&self, start: Start) -> BoxFuture<'_, Result<Process, StartError>>;

    /// Asks a process to end (SIGTERM to its process group), or ends it and all it started.
    fn stop(&self, id: Id, how: Stop) -> BoxFuture<'_, ()>;

    /// Ends everything and gives up what the runtime holds.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// How a process is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It is asked to.
    Terminate,
    /// It is not asked.
    Kill,
}

/// A process that runs.
#[derive(Debug)]
pub struct Process {
    /// Its name at the runtime.
    pub id: Id,
    /// Its number at the system.
    pub pid: i32,
    /// Its standard output and error, together.
    pub output: pipe::Receiver,
    /// Its exit code (128 + signal if killed by one), when it has ended. Closed without a value: the runtime broke.
    pub exit: oneshot::Receiver<i32>,
}

/// Why a process could not be started, in the words that a container's status has for it.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum StartError {
    /// The program cannot be run.
    #[error("{0}")]
    Program(String),
    /// Its volumes cannot be mounted: it is not the program's fault.
    #[error("{0}")]
    Mounts(String),
}
