//! Requests that two readers could understand differently: the backend sees one request, or none.

use std::time::Duration;

use super::recording::{find, recorder};
use crate::hop::{brief_hop, hop};
use crate::wire::{Wire, eventually};

/// A request that is none: it stands where a body ends for one reader and not for another.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
/// Ends the connection, if it gets that far.
const LAST: &str = "GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

/// Sends the request and a last one; returns what the client and the backend have seen of it.
async fn exchange(request: &[u8]) -> (String, Vec<(String, String)>) {
    let (addr, recorded) = recorder().await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send([request, LAST.as_bytes()].concat()).await;
    let answers = client.rest().await;
    let (seen, rests) = recorded.all();
    assert!(rests.iter().all(Vec::is_empty), "{:?} left {rests:?}", String::from_utf8_lossy(request));
    let seen = seen.into_iter().map(|seen| {
        let body = String::from_utf8(seen.body.clone()).unwrap();
        (seen.target().to_owned(), body)
    });
    (answers, seen.collect())
}

/// The request is refused with 400, the connection ends, and the backend has seen nothing.
async fn refused(request: impl AsRef<[u8]>) {
    let request = request.as_ref();
    let shown = String::from_utf8_lossy(request).into_owned();
    let (answers, seen) = exchange(request).await;
    assert!(seen.is_empty(), "{shown:?}: {seen:?}");
    assert!(answers.starts_with("HTTP/1.1 400"), "{shown:?}: {answers:?}");
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{shown:?}: {answers:?}");
}

/// The backend sees these requests, and the last if the connection goes on.
async fn understood(request: impl AsRef<[u8]>, expected: &[(&str, &str)], goes_on: bool) {
    let request = request.as_ref();
    let shown = String::from_utf8_lossy(request).into_owned();
    let (answers, seen) = exchange(request).await;
    let mut expected: Vec<_> =
        expected.iter().map(|(target, body)| ((*target).to_owned(), (*body).to_owned())).collect();
    if goes_on {
        expected.push(("GET /last".to_owned(), String::new()));
    }
    assert_eq!(seen, expected, "{shown:?}: {answers:?}");
    assert_eq!(answers.matches(" 200 OK\r\n").count(), expected.len(), "{shown:?}: {answers:?}");
}

/// A POST with these header lines, each ended by CRLF, and that body.
fn post(headers: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: a\r\n{headers}\r\n{body}")
}

#[tokio::test]
async fn a_body_with_two_lengths_has_one_and_the_connection_ends() {
    let empty = format!("0\r\n\r\n{SMUGGLED}");
    for headers in [
        "content-length: 4\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
        "transfer-encoding: chunked\r\ncontent-length: x\r\n",
        "content-length: 4\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n",
    ] {
        understood(post(headers, &empty), &[("POST /", "")], false).await;
    }
    let shorter = "content-length: 3\r\ntransfer-encoding: chunked\r\n";
    understood(post(shorter, "8\r\nSMUGGLED\r\n0\r\n\r\n"), &[("POST /", "SMUGGLED")], false).await;
}

#[tokio::test]
async fn transfer_codings_that_are_not_plainly_chunked_are_refused() {
    for headers in [
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: identity, chunked\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding : chunked\r\n",
        "transfer-encoding\t: chunked\r\n",
        "transfer-encoding\r\n: chunked\r\n",
        " transfer-encoding: chunked\r\n",
        "x: a\r\n transfer-encoding: chunked\r\n",
        "x: a\r\n\ttransfer-encoding: chunked\r\n",
        "transfer-encoding:\r\n chunked\r\n",
        "transfer-encoding:\x0bchunked\r\n",
        "transfer-encoding: chun\0ked\r\n",
        "transfer-encoding: \"chunked\"\r\n",
        "transfer-encoding: chunked;q=1\r\n",
        "transfer-encoding: chunked,\r\n",
        "transfer-encoding: ,chunked\r\n",
        "transfer-encoding:\r\ncontent-length: 5\r\n",
        "transfer-encoding: identity\r\ncontent-length: 5\r\n",
        "x: a\rtransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\rx: a\r\n",
    ] {
        refused(post(headers, &format!("0\r\n\r\n{SMUGGLED}"))).await;
    }
    refused(format!("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"))
        .await;
    understood(post("Transfer-Encoding:\t CHUNKED \r\n", "0\r\n\r\n"), &[("POST /", "")], true).await;
}

#[tokio::test]
async fn lengths_that_are_not_plain_numbers_are_refused() {
    for length in [
        "4\r\ncontent-length: 5",
        "4, 5",
        "4, 4",
        "+4",
        "-4",
        "0x4",
        "4 4",
        "4;",
        "4.0",
        "",
        "four",
        "4\x0b",
        "18446744073709551616",
        "100000000000000000000000004",
    ] {
        refused(post(&format!("content-length: {length}\r\n"), &format!("four{SMUGGLED}"))).await;
    }
    // A number, but one that means something else to the server's parser.
    let (answers, seen) =
        exchange(post("content-length: 18446744073709551615\r\n", SMUGGLED).as_bytes()).await;
    assert!(answers.starts_with("HTTP/1.1 431") && seen.is_empty(), "{answers:?} {seen:?}");
    refused(post("content-length : 4\r\n", &format!("four{SMUGGLED}"))).await;
    refused(post("content-length\0: 4\r\n", &format!("four{SMUGGLED}"))).await;
    // The backend is told once, and in the plain form.
    for length in ["4\r\ncontent-length: 4", "0004", "0000000000000000000000004"] {
        understood(post(&format!("content-length: {length}\r\n"), "four"), &[("POST /", "four")], true).await;
    }
    understood(post("content-length: 00\r\n", ""), &[("POST /", "")], true).await;
    let body = SMUGGLED.len();
    let carried = format!("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: {body}\r\n\r\n{SMUGGLED}");
    understood(carried, &[("GET /", SMUGGLED)], true).await;
}

#[tokio::test]
async fn chunks_that_are_not_plain_break_off() {
    for body in [
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
        "0;\0\n\r\n",
        "0\r\nbad trailer\r\n\r\n",
        "0\r\nx: a\r\n folded\r\n\r\n",
        "0\r\n\rGET / HTTP/1.1\r\n",
    ] {
        let (addr, recorded) = recorder().await;
        let hop = brief_hop(addr, Duration::from_millis(300)).await;
        let mut client = Wire::connect(hop.addr).await;
        client.send(post("transfer-encoding: chunked\r\n", &format!("{body}{SMUGGLED}"))).await;
        let answer = client.rest().await;
        assert!(!answer.contains("HTTP/1.1 200"), "{body:?}: {answer:?}");
        eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
        let (seen, rests) = recorded.all();
        assert!(seen.is_empty(), "{body:?}: {seen:?}");
        assert!(
            rests.iter().all(|rest| find(rest, b"GET /smuggled").is_none() || rest.starts_with(b"POST /"))
        );
        assert_eq!(hop.pool.idle(), 0, "{body:?}: the backend's connection is not used again");
    }
    let plain = "5 ;a=\"b\"\r\nhello\r\n0\r\n\r\n";
    understood(post("transfer-encoding: chunked\r\n", plain), &[("POST /", "hello")], true).await;
}

#[tokio::test]
async fn what_no_head_may_hold_is_refused() {
    for line in [
        "x\0: a",
        "x: a\0b",
        "x\x01: a",
        "x: a\x01b",
        "x: a\x7fb",
        "x y: a",
        "x\r: a",
        ": a",
        "x",
        "x\u{80}: a",
        "x(: a",
        "x: a\rb: c",
    ] {
        refused(format!("GET / HTTP/1.1\r\nhost: a\r\n{line}\r\n\r\n{SMUGGLED}")).await;
    }
    for line in [
        "GET  / HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /\tHTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /\0 HTTP/1.1",
        "GET /\x7f HTTP/1.1",
        "GET /\r HTTP/1.1",
        "G\0T / HTTP/1.1",
        "G(T / HTTP/1.1",
        "GET /",
        "GET",
        "/ HTTP/1.1",
        "GET / HTTP/2.0",
        "GET / HTTP/1.2",
        "GET / HTTP/1.11",
        "GET / HTTP/11",
        "GET / HTTP 1.1",
        "GET / http/1.1",
        "PRI * HTTP/2.0",
        "GET * HTTP/1.1",
        "GET a HTTP/1.1",
        "GET a:80 HTTP/1.1",
        "GET //[ HTTP/1.1 x",
        "GET http:// HTTP/1.1",
        "GET http:///x HTTP/1.1",
    ] {
        refused(format!("{line}\r\nhost: a\r\n\r\n{SMUGGLED}")).await;
    }
    for hosts in [
        "",
        "host: a\r\nhost: a\r\n",
        "host: a\r\nhost: b\r\n",
        "host: a b\r\n",
        "host: a/b\r\n",
        "host: a@b\r\n",
    ] {
        refused(format!("GET / HTTP/1.1\r\n{hosts}\r\n{SMUGGLED}")).await;
        refused(format!("GET /x HTTP/1.1\r\n{hosts}content-length: 5\r\n\r\nhello{SMUGGLED}")).await;
    }
    refused(format!("GET http://c/ HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n{SMUGGLED}")).await;
    // Other characters than ASCII are the application's affair.
    understood("GET /\u{e4} HTTP/1.1\r\nhost: a\r\nx: \u{e4}\r\n\r\n", &[("GET /\u{e4}", "")], true).await;
}

#[tokio::test]
async fn what_is_only_unusual_is_understood_in_one_way() {
    let first = [("GET /first", "")];
    understood("\r\n\r\nGET /first HTTP/1.1\r\nhost: a\r\n\r\n", &first, true).await;
    understood("GET /first HTTP/1.1\nhost: a\n\n", &first, true).await;
    understood("GET /first HTTP/1.1\r\nhost: a\n\r\n", &first, true).await;
    understood("GET /first HTTP/1.1\r\nHOST:a\r\n\r\n", &first, true).await;
    understood("GET http://b/first HTTP/1.1\r\nhost: a\r\n\r\n", &first, true).await;
    understood("GET /first HTTP/1.0\r\n\r\n", &first, false).await;
    let two = "GET /first HTTP/1.1\r\nhost: a\r\n\r\nGET /second HTTP/1.1\r\nhost: a\r\n\r\n";
    understood(two, &[("GET /first", ""), ("GET /second", "")], true).await;
    // What follows an error is not looked at.
    refused(format!("GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n{SMUGGLED}")).await;
    let then = format!("GET /first HTTP/1.1\r\nhost: a\r\n\r\nGET bad HTTP/1.1\r\nhost: a\r\n\r\n{SMUGGLED}");
    let (answers, seen) = exchange(then.as_bytes()).await;
    assert_eq!(seen, [("GET /first".to_owned(), String::new())]);
    assert!(answers.contains("HTTP/1.1 400") && answers.matches("HTTP/1.1 ").count() == 2, "{answers}");
}

#[tokio::test]
async fn connection_names_nothing_that_frames_the_message() {
    for name in ["content-length", "Content-Length, close", "transfer-encoding", "host", "x-forwarded-for"] {
        let (addr, recorded) = recorder().await;
        let hop = hop(addr).await;
        let mut client = Wire::connect(hop.addr).await;
        let headers = format!(
            "connection: {name}\r\nx-forwarded-for: 1.1.1.1\r\ncontent-length: {}\r\n",
            SMUGGLED.len()
        );
        client.send(post(&headers, SMUGGLED)).await;
        client.until("\r\n\r\nok").await;
        let (seen, _) = recorded.all();
        assert_eq!((seen.len(), &*seen[0].body), (1, SMUGGLED.as_bytes()), "{name}");
        assert_eq!(seen[0].header("host"), ["a"], "{name}");
        assert_eq!(seen[0].header("x-forwarded-for"), ["1.1.1.1, 127.0.0.1"], "{name}");
        assert!(seen[0].header("connection").is_empty(), "{name}");
    }
}

#[tokio::test]
async fn trailers_frame_nothing() {
    let (addr, recorded) = recorder().await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    let trailers = "content-length: 5\r\ntransfer-encoding: chunked\r\nhost: b\r\nx-sum: 1\r\n";
    let body = format!("2\r\nhi\r\n0\r\n{trailers}\r\n");
    let headers = "trailer: content-length, transfer-encoding, host, x-sum\r\ntransfer-encoding: chunked\r\n";
    client.send(post(headers, &body)).await;
    client.until("\r\n\r\nok").await;
    let sent = recorded.bytes();
    let (_, trailers) = sent.split_once("hi\r\n0\r\n").unwrap();
    assert_eq!(trailers, "x-sum: 1\r\n\r\n");
}

#[tokio::test]
async fn no_client_gets_past_the_hops_by_switching_to_http2() {
    let (addr, recorded) = recorder().await;
    let hop = hop(addr).await;
    for upgrade in ["h2c", "H2C", "websocket, h2c", "h2"] {
        let mut client = Wire::connect(hop.addr).await;
        client
            .send(format!(
                "GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: {upgrade}\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
            ))
            .await;
        client.until("\r\n\r\nok").await;
    }
    for seen in recorded.all().0 {
        for name in ["upgrade", "connection", "http2-settings"] {
            assert!(seen.header(name).is_empty(), "{seen:?}");
        }
    }
}
