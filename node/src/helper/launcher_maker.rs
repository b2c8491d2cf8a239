//! Makes launchers beside the helper: whoever starts a process waits until the new one has loaded its program, which
//! on a busy machine takes milliseconds that an order may not have to wait.

use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::{Launcher, launch};

/// A thread that makes launchers on demand. It lives as long as the helper: launchers, and the programs they become,
/// are killed when the thread that made them ends.
pub(super) struct LauncherMaker {
    orders: SyncSender<()>,
    made: Receiver<io::Result<Launcher>>,
    /// Has a byte for each of `made`.
    told: PipeReader,
    /// Ordered and not taken yet.
    pending: usize,
}

impl LauncherMaker {
    /// Starts the thread; at most `most` launchers may be pending.
    pub(super) fn start(most: usize) -> io::Result<Self> {
        let (orders, ordered) = sync_channel(most);
        let (made, taken) = sync_channel(most);
        let (told, mut tell) = io::pipe()?;
        std::thread::Builder::new().name("launcher-maker".to_owned()).spawn(move || {
            while ordered.recv().is_ok() {
                if made.send(launch()).is_err() || tell.write_all(&[0]).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { orders, made: taken, told, pending: 0 })
    }

    /// Orders one.
    pub(super) fn make(&mut self) {
        // With as many pending as there may be, there is no need for another.
        if self.orders.try_send(()).is_ok() {
            self.pending += 1;
        }
    }

    /// Whether one is pending.
    pub(super) fn is_busy(&self) -> bool {
        self.pending > 0
    }

    /// The next one, once the descriptor is readable; `None` if it could not be made.
    pub(super) fn take(&mut self) -> io::Result<Option<Launcher>> {
        self.told.read_exact(&mut [0])?;
        self.pending = self.pending.saturating_sub(1);
        Ok(self.made.try_recv().ok().and_then(Result::ok))
    }
}

impl AsFd for LauncherMaker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }
}
