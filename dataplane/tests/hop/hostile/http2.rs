//! HTTP/2 clients that break the rules, or keep them and mean harm all the same.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ember_dataplane::server::Options;
use tokio::io::AsyncWriteExt;

use super::neighbours::{friendly, others_are_served};
use super::recording::recorder;
use crate::frames::{
    CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, MAX_FRAME,
    PADDED, PING, PREFACE, PRIORITY, PROTOCOL_ERROR, PUSH_PROMISE, REFUSED_STREAM, RST_STREAM, SETTINGS,
    Said, WINDOW_UPDATE, field, fields, frame, get, integer, setting,
};
use crate::hop::{hop, limited_hop};
use crate::wire::{OK, Wire, backend, eventually};

/// A backend that never answers, but for others.
async fn silent() -> SocketAddr {
    backend(|mut wire| async move {
        while let Ok(head) = wire.try_until("\r\n\r\n").await {
            if head.starts_with("GET /other") {
                wire.send(OK).await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn malformed_requests_end_their_stream_or_connection_and_reach_nobody() {
    let (addr, recorded) = recorder().await;
    let hop = hop(addr).await;
    let plain = |pairs: &[(&str, &str)]| -> Vec<u8> {
        pairs.iter().flat_map(|(name, value)| field(name, value)).collect()
    };
    let get = (":method", "GET");
    let scheme = (":scheme", "http");
    let authority = (":authority", "a");
    let path = (":path", "/bad");
    let mut blocks = vec![
        plain(&[get, scheme, authority]),
        plain(&[get, scheme]),
        plain(&[get, scheme, authority, path, path]),
        plain(&[scheme, authority, path]),
        plain(&[get, get, scheme, authority, path]),
        plain(&[get, authority, path]),
        plain(&[get, scheme, scheme, authority, path]),
        plain(&[get, scheme, authority, authority, path]),
        plain(&[get, scheme, authority, ("x", "y"), path]),
        plain(&[get, scheme, authority, path, ("host", "b"), ("host", "c"), (":x", "y")]),
        plain(&[get, scheme, path, ("host", "b"), ("host", "c")]),
        plain(&[get, scheme, path, ("host", "b c")]),
        plain(&[get, scheme, authority, path, (":status", "200")]),
        plain(&[get, scheme, authority, path, (":protocol", "websocket")]),
        plain(&[(":method", "G T"), scheme, authority, path]),
        plain(&[(":method", ""), scheme, authority, path]),
        plain(&[(":method", "GET / HTTP/1.1\r\nx: y"), scheme, authority, path]),
        plain(&[get, (":scheme", "h t"), authority, path]),
        plain(&[get, scheme, (":authority", "a b"), path]),
        plain(&[get, scheme, (":authority", "a\r\nx: y"), path]),
    ];
    for path in ["", "bad", "*", "/a b", "/a\r\nx: y", "/a\0", "/a\tb", "http://b/x"] {
        blocks.push(plain(&[get, scheme, authority, (":path", path)]));
    }
    for (name, value) in [
        ("X", "y"),
        ("x y", "z"),
        ("x\0", "y"),
        ("x:", "y"),
        ("", "y"),
        ("x\r\ny", "z"),
        ("x", "a\r\nb: c"),
        ("x", "a\nb"),
        ("x", "a\0b"),
        ("connection", "close"),
        ("keep-alive", "1"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("content-length", "5"),
        ("content-length", "-1"),
        ("content-length", "+0"),
        ("content-length", "0x0"),
        ("content-length", "99999999999999999999"),
    ] {
        blocks.push(fields("GET", "/bad", &[(name, value)]));
    }
    for block in blocks {
        let mut client = Client::connect(hop.addr).await;
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await;
        let said = client.said(1).await;
        let shown = String::from_utf8_lossy(&block);
        if said == Said::GoAway(PROTOCOL_ERROR) {
            // What is no field at all ends the connection.
            continue;
        }
        assert!(matches!(said, Said::Reset(PROTOCOL_ERROR) | Said::Status(400)), "{shown:?}: {said:?}");
        // The connection is none the worse.
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, &fields("GET", "/good", &[]))).await;
        assert_eq!(client.said(3).await, Said::Status(200), "{shown:?}");
    }
    assert!(recorded.all().0.iter().all(|seen| seen.target() == "GET /good"));
}

#[tokio::test]
async fn bodies_are_as_long_as_they_say() {
    let (addr, recorded) = recorder().await;
    let hop = hop(addr).await;
    let smuggled = b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    for (length, body, said) in [
        ("4", &b"longer"[..], Said::Reset(PROTOCOL_ERROR)),
        ("0", smuggled, Said::Reset(PROTOCOL_ERROR)),
        ("", smuggled, Said::Reset(PROTOCOL_ERROR)),
        ("10", b"shorter", Said::Reset(PROTOCOL_ERROR)),
        ("0007", b"exactly", Said::Status(200)),
    ] {
        let mut client = Client::connect(hop.addr).await;
        let head = fields("POST", "/", &[("content-length", length)]);
        client.send(frame(HEADERS, END_HEADERS, 1, &head)).await;
        client.send(frame(DATA, END_STREAM, 1, body)).await;
        assert_eq!(client.said(1).await, said, "{length:?}");
    }
    let mut client = Client::connect(hop.addr).await;
    let twice = fields("POST", "/", &[("content-length", "4"), ("content-length", "4")]);
    client.send(frame(HEADERS, END_HEADERS, 1, &twice)).await;
    client.send(frame(DATA, END_STREAM, 1, b"four")).await;
    assert_eq!(client.said(1).await, Said::Status(200));
    let empty = fields("POST", "/", &[("content-length", "")]);
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, &empty)).await;
    assert_eq!(client.said(3).await, Said::Status(200));
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    let seen = recorded.all().0;
    let bodies: Vec<_> = seen.iter().map(|seen| std::str::from_utf8(&seen.body).unwrap()).collect();
    assert_eq!(bodies, ["exactly", "four", ""]);
}

#[tokio::test]
async fn one_authority_is_the_host() {
    let (addr, recorded) = recorder().await;
    let hop = hop(addr).await;
    let mut client = Client::connect(hop.addr).await;
    let rest = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
    for (index, (authority, hosts)) in
        [("a", &["b"][..]), ("a", &["b", "c"]), ("me:secret@a", &[]), ("a", &[])].iter().enumerate()
    {
        let mut block: Vec<u8> = rest.iter().flat_map(|(name, value)| field(name, value)).collect();
        block.extend(field(":authority", authority));
        hosts.iter().for_each(|host| block.extend(field("host", host)));
        let stream = u32::try_from(2 * index + 1).unwrap();
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)).await;
        assert_eq!(client.said(stream).await, Said::Status(200));
    }
    let seen = recorded.all().0;
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|seen| seen.header("host") == ["a"]), "{seen:?}");
}

#[tokio::test]
async fn broken_frames_end_the_connection() {
    let hop = hop(silent().await).await;
    let open = frame(HEADERS, END_HEADERS, 1, &fields("POST", "/", &[]));
    let then = |bytes: Vec<u8>| [open.clone(), bytes].concat();
    let settings = |id, value| frame(SETTINGS, 0, 0, &setting(id, value));
    for (what, bytes) in [
        ("data on no stream", frame(DATA, 0, 0, b"x")),
        ("headers on no stream", frame(HEADERS, END_HEADERS, 0, &fields("GET", "/", &[]))),
        ("a stream of the server's", frame(HEADERS, END_HEADERS, 2, &fields("GET", "/", &[]))),
        ("data on an idle stream", frame(DATA, 0, 5, b"x")),
        ("a reset of an idle stream", frame(RST_STREAM, 0, 5, &8u32.to_be_bytes())),
        ("a window of an idle stream", frame(WINDOW_UPDATE, 0, 5, &8u32.to_be_bytes())),
        ("a promise of the client's", then(frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]))),
        ("a window beyond bounds", frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())),
        ("a window of nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("a short window", frame(WINDOW_UPDATE, 0, 0, &[0; 3])),
        ("push neither on nor off", settings(2, 2)),
        ("an initial window beyond bounds", settings(4, 0x8000_0000)),
        ("frames that are too small", settings(5, 100)),
        ("frames that are too large", settings(5, 0x0100_0000)),
        ("half a setting", frame(SETTINGS, 0, 0, &[0; 5])),
        ("settings of a stream", frame(SETTINGS, 0, 1, &[])),
        ("an answer to settings with settings", frame(SETTINGS, 1, 0, &setting(4, 1))),
        ("a short ping", frame(PING, 0, 0, &[0; 7])),
        ("a ping of a stream", frame(PING, 0, 1, &[0; 8])),
        ("a short reset", then(frame(RST_STREAM, 0, 1, &[0; 3]))),
        ("a large frame", then(frame(DATA, 0, 1, &vec![0; MAX_FRAME + 1]))),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &fields("GET", "/", &[]))),
        (
            "something between headers",
            [frame(HEADERS, 0, 1, &fields("GET", "/", &[])), frame(PING, 0, 0, &[0; 8])].concat(),
        ),
        (
            "another stream's continuation",
            [frame(HEADERS, 0, 1, &fields("GET", "/", &[])), frame(CONTINUATION, END_HEADERS, 3, &[])]
                .concat(),
        ),
        ("an index that is not there", frame(HEADERS, END_HEADERS, 1, &[0xff, 0x7f])),
        ("an integer without end", frame(HEADERS, END_HEADERS, 1, &[0xff; 64])),
        ("a text that is cut", frame(HEADERS, END_HEADERS, 1, &[0, 0x7f, 0x7f, b'x'])),
        ("a large table", frame(HEADERS, END_HEADERS, 1, &[0x3f, 0xff, 0xff, 0xff, 0x07])),
        ("padding that is all", then(frame(DATA, PADDED, 1, &[9, 0]))),
        ("an older stream", [get(5, "/"), get(3, "/")].concat()),
        ("a goaway of a stream", frame(GOAWAY, 0, 1, &[0; 8])),
    ] {
        let mut client = Client::connect(hop.addr).await;
        client.send(bytes).await;
        let end = client.end().await;
        assert!(matches!(end, Said::GoAway(_) | Said::End), "{what}: {end:?}");
    }
    let mut wire = Wire::connect(hop.addr).await;
    wire.send("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n").await;
    assert!(wire.rest().await.starts_with("HTTP/1.1 400"));
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    others_are_served(hop.addr).await;
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
    let addr = backend(|mut wire| async move {
        CONNECTIONS.fetch_add(1, Ordering::SeqCst);
        while wire.try_until("\r\n\r\n").await.is_ok() {
            wire.send(OK).await;
        }
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Client::connect(hop.addr).await;
    let mut flood = Vec::new();
    for stream in (1..10_000).step_by(2) {
        flood.extend(get(stream, "/"));
        flood.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    let sending = async { client.0.stream.write_all(&flood).await };
    let (_, ()) = tokio::join!(sending, others_are_served(hop.addr));
    let end = client.end().await;
    assert!(matches!(end, Said::GoAway(ENHANCE_YOUR_CALM) | Said::End), "{end:?}");
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    let connections = CONNECTIONS.load(Ordering::SeqCst);
    assert!(connections < 2_000, "{connections} connections to the backend");
    others_are_served(hop.addr).await;
}

#[tokio::test]
async fn a_flood_of_errors_ends_the_connection() {
    let options = Options { max_error_resets: 50, ..Options::default() };
    let hop = limited_hop(friendly().await, options).await;
    let mut client = Client::connect(hop.addr).await;
    for stream in (1..1000).step_by(2) {
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &field(":method", "GET"))).await;
    }
    assert_eq!(client.end().await, Said::GoAway(ENHANCE_YOUR_CALM));
    others_are_served(hop.addr).await;
}

#[tokio::test]
async fn headers_without_end_end_the_connection() {
    let hop = hop(friendly().await).await;
    for (what, continuation) in [
        ("nothing", frame(CONTINUATION, 0, 1, &[])),
        ("fields", frame(CONTINUATION, 0, 1, &field("x", "y").repeat(100))),
        ("a text", frame(CONTINUATION, 0, 1, &[b'x'; 1000])),
    ] {
        let mut client = Client::connect(hop.addr).await;
        let mut block = fields("GET", "/", &[]);
        if what == "a text" {
            block.extend([0, 1, b'x']);
            integer(&mut block, 0, 7, 1 << 30);
        }
        client.send(frame(HEADERS, 0, 1, &block)).await;
        let taken = client.0.flood(&continuation.repeat(20), 64 << 20).await;
        assert!(taken < 64 << 20, "{what}: {taken} bytes");
        let end = client.end().await;
        assert!(matches!(end, Said::GoAway(_) | Said::End), "{what}: {end:?}");
    }
    others_are_served(hop.addr).await;
}

#[tokio::test]
async fn large_headers_are_refused_however_they_are_written() {
    let options = Options { max_header_bytes: 16 << 10, max_headers: 64, ..Options::default() };
    let hop = limited_hop(friendly().await, options).await;
    let long = fields("GET", "/", &[("x", &"y".repeat(17 << 10))]);
    let many: Vec<(String, String)> = (0..65).map(|index| (format!("x{index}"), "y".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (&**name, &**value)).collect();
    let many = fields("GET", "/", &many);
    // A large field is kept in the table, and named by one byte each time.
    let mut bomb = fields("GET", "/", &[]);
    bomb.extend([0x40, 1, b'x']);
    integer(&mut bomb, 0, 7, 3000);
    bomb.extend(vec![b'y'; 3000]);
    bomb.extend(vec![0x80 | 62; 15]);
    let mut larger = bomb.clone();
    larger.extend(vec![0x80 | 62; 12_000]);
    for (what, block, said) in [
        ("a long one", &long, &[Said::Status(431)][..]),
        ("many", &many, &[Said::Status(431)]),
        ("a bomb", &bomb, &[Said::Status(431)]),
        ("a larger bomb", &larger, &[Said::Status(431), Said::GoAway(ENHANCE_YOUR_CALM)]),
    ] {
        let mut client = Client::connect(hop.addr).await;
        let (first, rest) = block.split_at(block.len().min(MAX_FRAME));
        client
            .send(frame(HEADERS, END_STREAM | if rest.is_empty() { END_HEADERS } else { 0 }, 1, first))
            .await;
        if !rest.is_empty() {
            client.send(frame(CONTINUATION, END_HEADERS, 1, rest)).await;
        }
        let found = client.said(1).await;
        assert!(said.contains(&found), "{what}: {found:?}");
        if !matches!(found, Said::GoAway(_)) {
            client.send(get(3, "/")).await;
            assert_eq!(client.said(3).await, Said::Status(200), "{what}");
        }
    }
    others_are_served(hop.addr).await;
}

#[tokio::test]
async fn questions_of_who_does_not_listen_are_taken_only_so_far() {
    let options = Options { stall_timeout: Duration::from_secs(2), ..Options::default() };
    let hop = limited_hop(friendly().await, options).await;
    for (what, question) in [
        ("pings", frame(PING, 0, 0, &[0; 8])),
        ("settings", frame(SETTINGS, 0, 0, &setting(4, 1000))),
        ("requests that are in error", frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields("GET", "", &[]))),
    ] {
        let mut client = Client::connect(hop.addr).await;
        let taken = client.0.flood(&question.repeat(1000), 256 << 20).await;
        assert!(taken < 64 << 20, "{what}: {taken} bytes");
        others_are_served(hop.addr).await;
        // It is let go of, although it is there.
        eventually(what, || {
            client.0.stream.try_write(&[0]).is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
        })
        .await;
    }
}

#[tokio::test]
async fn frames_that_carry_nothing_end_the_connection() {
    let hop = hop(silent().await).await;
    for (what, payload, flags) in
        [("empty ones", &b""[..], 0), ("small ones", b"x", 0), ("padding", &[1, 0], PADDED)]
    {
        let mut client = Client::connect(hop.addr).await;
        let (mut flood, each) = (Vec::new(), 200);
        // On many streams: the window of one ends sooner.
        for stream in (1..200).step_by(2) {
            flood.extend(frame(HEADERS, END_HEADERS, stream, &fields("POST", "/", &[])));
            flood.extend(frame(DATA, flags, stream, payload).repeat(each));
        }
        let sending = async { client.0.stream.write_all(&flood).await };
        let (sent, ()) = tokio::join!(sending, others_are_served(hop.addr));
        // The others have all been taken, and passed on to who took them.
        if sent.is_err() || what == "empty ones" {
            let end = client.end().await;
            assert!(matches!(end, Said::GoAway(ENHANCE_YOUR_CALM) | Said::End), "{what}: {end:?}");
        }
        drop(client);
        eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    }
    // These cost nothing but the time to look at them.
    let mut client = Client::connect(hop.addr).await;
    let odd = [
        frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1]),
        frame(0x42, 0xff, 7, b"what"),
        frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()),
    ];
    client.send(odd.concat().repeat(10_000)).await;
    client.send(get(5, "/other")).await;
    assert_eq!(client.said(5).await, Said::Status(200));
    others_are_served(hop.addr).await;
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let options = Options { max_streams: 10, ..Options::default() };
    let hop = limited_hop(silent().await, options).await;
    let mut client = Client::connect(hop.addr).await;
    for stream in (1..=41).step_by(2) {
        client.send(get(stream, "/")).await;
    }
    assert_eq!(client.said(21).await, Said::Reset(REFUSED_STREAM));
    assert_eq!(client.said(41).await, Said::Reset(REFUSED_STREAM));
    assert_eq!(hop.quiet.in_flight(), 10);
    others_are_served(hop.addr).await;
    drop(client);
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn who_falls_silent_in_mid_head_is_let_go_of() {
    let options = Options {
        ping_interval: Duration::from_millis(100),
        ping_timeout: Duration::from_millis(100),
        header_read_timeout: Duration::from_millis(300),
        ..Options::default()
    };
    let hop = limited_hop(friendly().await, options).await;
    let mut client = Client::connect(hop.addr).await;
    client.send(frame(HEADERS, 0, 1, &fields("GET", "/", &[]))).await;
    assert_eq!(client.end().await, Said::End);
    let mut begun = Wire::connect(hop.addr).await;
    begun.send(&PREFACE[..10]).await;
    assert_eq!(begun.rest().await, "");
}
