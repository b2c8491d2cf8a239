//! Reading and writing a socket that somebody else looks at, too.

use std::io;
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;

pub(crate) fn poll_read(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        let room = buf.remaining();
        let mut read = None;
        let outcome = tcp.try_io(Interest::READABLE, || {
            let length = tcp.try_read_buf(buf)?;
            read = Some(length);
            // A read that left room has emptied the socket: the next one waits to be told, and costs no call.
            if length > 0 && length < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match (read, outcome) {
            (Some(_), _) | (None, Ok(())) => return Poll::Ready(Ok(())),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, Err(error)) => return Poll::Ready(Err(error)),
        }
    }
}

pub(crate) fn poll_write(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    write: impl Fn(&TcpStream) -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        match write(tcp) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return Poll::Ready(other),
        }
    }
}

/// Says that nothing more will be written.
pub(crate) fn shutdown(tcp: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(tcp).shutdown(Shutdown::Write)
}
