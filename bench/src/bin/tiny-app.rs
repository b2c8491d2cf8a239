//! The smallest app that a cold start can be measured with: what it takes to start is next to nothing, so that what is
//! measured is the system around it.
//!
//! It listens on 127.0.0.1 at `PORT` (default 8080), a thread for each connection, and answers every HTTP/1.1 request
//! with 200. SIGTERM ends it at once.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nawake\n";
const LAST_ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\nConnection: close\r\n\r\nawake\n";
/// Most bytes of a request's head.
const LARGEST_HEAD: u64 = 64 * 1024;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody to tell if standard error is closed.
            let _ = writeln!(io::stderr(), "tiny-app: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let port = match std::env::var("PORT") {
        Ok(port) => {
            port.parse().map_err(|_| io::Error::other(format!("PORT must be a port number, not {port:?}")))?
        }
        Err(_) => 8080,
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    for stream in listener.incoming() {
        // A connection that failed before it was accepted concerns its client alone.
        let Ok(stream) = stream else { continue };
        std::thread::spawn(move || {
            // So does one that breaks later.
            let _ = converse(&stream);
        });
    }
    Ok(())
}

/// Answers the requests of one connection until either side is done with it.
fn converse(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(head) = read_head(&mut reader)? {
        if head.close {
            return (&*stream).write_all(LAST_ANSWER);
        }
        io::copy(&mut (&mut reader).take(head.length), &mut io::sink())?;
        (&*stream).write_all(ANSWER)?;
    }
    Ok(())
}

/// What matters of a request's head.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    /// Bytes of body that follow.
    length: u64,
    /// The connection ends with this request: it asks for that, or has a body whose end is not told ahead.
    close: bool,
}

/// Reads up to the empty line; `None` at the end of the connection.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut reader = reader.take(LARGEST_HEAD);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut head = Head { length: 0, close: line.trim_end().ends_with("HTTP/1.0") };
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let field = line.trim_end();
        if field.is_empty() {
            return Ok(Some(head));
        }
        let Some((name, value)) = field.split_once(':') else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if name.eq_ignore_ascii_case("content-length") {
            head.length = value.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            head.close = true;
        } else if name.eq_ignore_ascii_case("connection") {
            head.close |= value.split(',').any(|option| option.trim().eq_ignore_ascii_case("close"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_requests() {
        let cases = [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Some(Head { length: 0, close: false })),
            ("POST / HTTP/1.1\r\ncontent-length: 12\r\n\r\n", Some(Head { length: 12, close: false })),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", Some(Head { length: 0, close: true })),
            ("GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n", Some(Head { length: 0, close: true })),
            ("GET / HTTP/1.0\r\n\r\n", Some(Head { length: 0, close: true })),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(read_head(&mut text.as_bytes()).unwrap(), expected, "{text:?}");
        }
        for text in ["GET / HTTP/1.1\r\nHost: a\r\n", "GET / HTTP/1.1\r\nnonsense\r\n\r\n"] {
            assert!(read_head(&mut text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_connection_carries_many_requests() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let server = std::thread::spawn(move || converse(&server));
        let body = "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        let last = "GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
        client.write_all(format!("{body}{body}{last}").as_bytes()).unwrap();
        let mut answers = Vec::new();
        client.read_to_end(&mut answers).unwrap();
        assert_eq!(answers, [ANSWER, ANSWER, LAST_ANSWER].concat());
        server.join().unwrap().unwrap();
    }
}
