//! Answers that break the rules: the next exchange has nothing of them.

use std::time::Duration;

use ember_dataplane::pool;
use ember_dataplane::server::Options;
use tokio::io::AsyncWriteExt;

use crate::hop::{brief_hop, hop_over, limited_hop};
use crate::wire::{LONG, OK, Wire, backend, eventually};

/// What the client is told when the backend answers everything under `/bad` with `answer`; and then the answer to a
/// request that is in order, over the same connections if they are still there.
async fn answers(method: &str, answer: &'static str) -> (String, String) {
    let addr = backend(move |mut wire| async move {
        while let Ok(head) = wire.try_until("\r\n\r\n").await {
            let bad = head.contains("/bad");
            wire.send(if bad { answer } else { OK }).await;
            if bad && answer.ends_with("EOF") {
                return;
            }
        }
    })
    .await;
    let hop = brief_hop(addr, LONG / 4).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send(format!("{method} /bad HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
    let bad = client.rest().await;
    let mut good = String::new();
    for _ in 0..3 {
        let mut client = Wire::connect(hop.addr).await;
        client.send("GET /good HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        good = client.rest().await;
        assert!(good.starts_with("HTTP/1.1 200 OK") && good.ends_with("\r\n\r\nok"), "{answer:?}: {good:?}");
    }
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    (bad, good)
}

const SECOND: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";

#[tokio::test]
async fn nothing_of_an_answer_is_left_for_the_next() {
    let two = |first: &str| -> &'static str { format!("{first}{SECOND}").leak() };
    for (method, answer, body) in [
        ("GET", two("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"), "ok"),
        ("GET", two("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), "ok"),
        ("HEAD", two("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"), ""),
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", ""),
        ("GET", two("HTTP/1.1 204 No Content\r\n\r\n"), ""),
        ("GET", "HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\nevil", ""),
        ("GET", two("HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n"), ""),
        ("GET", "HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n", ""),
        ("GET", two("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), ""),
        ("GET", two("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"), "ok"),
    ] {
        let (bad, _) = answers(method, answer).await;
        assert!(bad.starts_with("HTTP/1.1 20") || bad.starts_with("HTTP/1.1 304"), "{answer:?}: {bad:?}");
        let sent = bad.split_once("\r\n\r\n").unwrap().1;
        let sent = sent.trim_start_matches("2\r\n").trim_end_matches("\r\n0\r\n\r\n");
        assert_eq!(sent, body, "{answer:?}: {bad:?}");
    }
}

#[tokio::test]
async fn a_body_with_two_lengths_is_no_longer_than_what_the_client_is_told() {
    let chunked =
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n6\r\nokevil\r\n0\r\n\r\n";
    let (bad, _) = answers("GET", chunked).await;
    let (head, body) = bad.split_once("\r\n\r\n").unwrap();
    if head.contains("transfer-encoding") {
        assert!(!head.contains("content-length"), "{bad:?}");
    } else {
        assert!(head.contains("content-length: 2") && body == "ok", "{bad:?}");
    }
}

#[tokio::test]
async fn answers_that_cannot_be_read_are_a_502() {
    let large: &'static str = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(300 << 10)).leak();
    let many: &'static str = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(300)).leak();
    for answer in [
        large,
        many,
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!",
        "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nx: a\r\n folded\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nx : a\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nx: a\0\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 99 Low\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 20 Short\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/0.9 200 OK\r\n\r\n",
        "hello\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "EOF",
    ] {
        let (bad, _) = answers("GET", answer).await;
        let shown = &answer[..answer.len().min(80)];
        assert!(
            bad.starts_with("HTTP/1.1 502"),
            "{shown:?}: {} bytes, {:?}",
            bad.len(),
            &bad[bad.len().saturating_sub(100)..]
        );
    }
}

#[tokio::test]
async fn interim_answers_without_end_are_held_nowhere() {
    let (sent, mut count) = tokio::sync::mpsc::unbounded_channel();
    let addr = backend(move |mut wire| {
        let sent = sent.clone();
        async move {
            wire.until("\r\n\r\n").await;
            let hints = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(1000);
            let mut total = 0;
            while wire.stream.write_all(hints.as_bytes()).await.is_ok() {
                total += hints.len();
            }
            sent.send(total).unwrap();
        }
    })
    .await;
    let hop = brief_hop(addr, Duration::from_millis(500)).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(client.rest().await.starts_with("HTTP/1.1 504"));
    // The backend is let go of when the request is over.
    tokio::time::timeout(LONG, count.recv()).await.unwrap().unwrap();
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_ends_the_connection() {
    let addr = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig").await;
        wire.rest().await;
    })
    .await;
    // What is still sent to such a backend is sent for as long as its connection might be wanted again.
    let pool = pool::Options { idle_timeout: Duration::from_millis(300), ..pool::Options::default() };
    let hop = hop_over(addr, pool, Options::default()).await;
    for headers in ["content-length: 1000\r\n", "transfer-encoding: chunked\r\n"] {
        let mut client = Wire::connect(hop.addr).await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{headers}\r\n")).await;
        let answer = client.until("\r\n\r\nbig").await;
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("connection: close"), "{answer}");
        // The rest of the body is no request.
        client.send("GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(client.rest().await, "");
    }
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn an_answer_that_stalls_or_breaks_is_not_taken_for_whole() {
    let addr = backend(|mut wire| async move {
        if let Ok(head) = wire.try_until("\r\n\r\n").await {
            let answer = match &head {
                head if head.contains("/short") => "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
                head if head.contains("/chunk") => {
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort"
                }
                _ => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n-1\r\n",
            };
            wire.send(answer).await;
        }
    })
    .await;
    let hop = limited_hop(addr, Options::default()).await;
    for path in ["/short", "/chunk", "/negative"] {
        let mut client = Wire::connect(hop.addr).await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let answer = client.rest().await;
        assert!(answer.contains("short") && !answer.contains("\r\n0\r\n"), "{path}: {answer:?}");
    }
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    assert_eq!(hop.pool.idle(), 0);
}
