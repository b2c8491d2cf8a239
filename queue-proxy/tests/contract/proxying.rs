//! QP-PORT and QP-PXY: which protocols arrive, and what becomes of bodies, upgrades and failures.

use std::sync::Arc;

use ember_dataplane::body::Body;
use http::{Request, Version};
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::network::{APP, Memory};
use crate::sidecar::{S, Sidecar, app, config};
use crate::wire::{OK, Wire, body, echo, ok, status};

#[tokio::test]
async fn one_data_port_is_open_and_takes_both_protocols() {
    for (data, other) in [(8012, 8013), (8013, 8012)] {
        // Whatever the app speaks: here HTTP/1.1 on both, so that 8013's is asked for a probe only.
        let sidecar =
            Sidecar::start(config(app(echo).await, &[("QUEUE_SERVING_PORT", &data.to_string())])).await;
        assert!(TcpStream::connect((sidecar.ip, other)).await.is_err());
        let probe = "k-network-probe: probe\r\nk-network-hash: h\r\n";
        assert_eq!(status(&sidecar.get(data, "/", probe).await), 200);
        let stream = TcpStream::connect((sidecar.ip, data)).await.unwrap();
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request =
            Request::get("http://app/").header("k-network-probe", "probe").header("k-network-hash", "h");
        let answer = client.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));
        if data == 8012 {
            // An app that speaks HTTP/1.1 only serves HTTP/2 clients too.
            let request = Request::post("http://app/x").body(Body::from("body")).unwrap();
            let answer = client.send_request(request).await.unwrap().collect().await.unwrap().to_bytes();
            assert!(answer.starts_with(b"POST /x HTTP/1.1\r\n"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn idle_connections_stay_open() {
    let memory = Memory::new();
    let _app = memory.app(ok);
    let _sidecar = Sidecar::simulate(config(APP, &[]), &memory).await;
    let mut client = memory.connect(8012);
    for _ in 0..3 {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.until("ok").await;
        tokio::time::sleep(3600 * S).await;
    }
}

#[tokio::test]
async fn what_the_app_writes_arrives_before_it_writes_more() {
    let more = Arc::new(Semaphore::new(0));
    let port = app({
        let more = Arc::clone(&more);
        move |mut wire| {
            let more = Arc::clone(&more);
            async move {
                while let Some(head) = wire.head().await {
                    let (start, event) = match head.split(' ').nth(1).unwrap() {
                        "/events" => (
                            "content-type: text/event-stream\r\ntransfer-encoding: chunked",
                            "8\r\ndata: x\n\r\n",
                        ),
                        "/chunked" => ("transfer-encoding: chunked", "8\r\ndata: x\n\r\n"),
                        _ => ("content-length: 24", "data: x\n"),
                    };
                    wire.send(&format!("HTTP/1.1 200 OK\r\n{start}\r\n\r\n")).await;
                    for _ in 0..3 {
                        more.acquire().await.unwrap().forget();
                        wire.send(event).await;
                    }
                    if start.contains("chunked") {
                        wire.send("0\r\n\r\n").await;
                    }
                }
            }
        }
    })
    .await;
    let sidecar = Sidecar::start(config(port, &[])).await;
    let mut client = sidecar.connect(8012).await;
    for path in ["/events", "/chunked", "/sized"] {
        client.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        client.until("\r\n\r\n").await;
        for _ in 0..3 {
            more.add_permits(1);
            client.until("data: x\n").await;
        }
        if path != "/sized" {
            client.until("0\r\n\r\n").await;
        }
    }
}

#[tokio::test]
async fn the_status_after_an_informational_one_is_the_status() {
    let port = app(|mut wire| async move {
        while wire.head().await.is_some() {
            wire.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone").await;
        }
    })
    .await;
    let sidecar = Sidecar::start(config(port, &[])).await;
    let answer = sidecar.get(8012, "/", "").await;
    let last = answer.rsplit("HTTP/1.1 ").next().unwrap();
    assert!(last.starts_with("404") && last.ends_with("\r\n\r\nnone"), "{answer}");
}

#[tokio::test]
async fn reading_goes_on_while_writing() {
    let port = app(|mut wire| async move {
        wire.head().await.unwrap();
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        while let Ok(line) = wire.try_until("!").await {
            let word = line.rsplit('\n').next().unwrap().to_owned();
            wire.send(&format!("{:x}\r\n{word}\r\n", word.len())).await;
        }
    })
    .await;
    for full_duplex in ["false", "true"] {
        let sidecar = Sidecar::start(config(port, &[("ENABLE_HTTP_FULL_DUPLEX", full_duplex)])).await;
        let mut client = sidecar.connect(8012).await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
        client.until("\r\n\r\n").await;
        for round in 100..200 {
            client.send(&format!("5\r\nw{round}!\r\n")).await;
            client.until(&format!("w{round}!")).await;
        }
    }
}

#[tokio::test]
async fn an_upgraded_stream_passes_bytes_and_half_closes() {
    let port = app(|mut wire| async move {
        let head = wire.head().await.unwrap();
        assert!(head.contains("upgrade: websocket\r\n") && head.contains("sec-websocket-key: k\r\n"), "{head}");
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\nsec-websocket-accept: a\r\n\r\nhello").await;
        // All the client had to say, to the end; then the answer.
        let said = wire.rest().await;
        wire.send(&said.to_uppercase()).await;
    })
    .await;
    let sidecar = Sidecar::start(config(port, &[])).await;
    let mut client = sidecar.connect(8012).await;
    client
        .send("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n")
        .await;
    let head = client.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("sec-websocket-accept: a"), "{head}");
    client.until("hello").await;
    client.send("one two").await;
    client.shutdown().await;
    assert_eq!(client.rest().await, "ONE TWO");
}

#[tokio::test]
async fn failures_are_502_with_their_text() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let sidecar = Sidecar::start(config(port, &[])).await;
    let answer = sidecar.get(8012, "/", "").await;
    assert_eq!(status(&answer), 502);
    assert_eq!(body(&answer), format!("dial tcp 127.0.0.1:{port}: connect: connection refused\n"));
    // An app that hangs up instead of an answer.
    let hangs_up = app(|mut wire| async move { drop(wire.head().await) }).await;
    let sidecar = Sidecar::start(config(hangs_up, &[])).await;
    let answer = sidecar.connect(8012).await.exchange("POST", "/", "").await;
    assert_eq!((status(&answer), body(&answer)), (502, "EOF\n"));
    let connect = sidecar.connect(8012).await.exchange("CONNECT", "a:80", "").await;
    assert_eq!((status(&connect), body(&connect)), (502, "client sent unsupported CONNECT request\n"));
}

#[tokio::test(start_paused = true)]
async fn a_connection_the_app_has_closed_costs_no_request() {
    let memory = Memory::new();
    let _app = memory.app(|mut wire: Wire| async move {
        wire.until("body").await;
        wire.send(OK).await;
    });
    let _sidecar = Sidecar::simulate(config(APP, &[]), &memory).await;
    let mut client = memory.connect(8012);
    for _ in 0..50 {
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody").await;
        assert_eq!(status(&client.until("ok").await), 200);
        // The end of the app's connection is on its way.
        tokio::time::sleep(S).await;
    }
}

#[tokio::test]
async fn an_app_that_breaks_off_breaks_the_clients_connection() {
    let port = app(|mut wire: Wire| async move {
        let head = wire.head().await.unwrap();
        let start = if head.contains("/sized") {
            "content-length: 9\r\n\r\npart"
        } else {
            "transfer-encoding: chunked\r\n\r\n4\r\npart\r\n"
        };
        wire.send(&format!("HTTP/1.1 200 OK\r\n{start}")).await;
    })
    .await;
    let sidecar = Sidecar::start(config(port, &[])).await;
    for path in ["/sized", "/chunked"] {
        let mut client = sidecar.connect(8012).await;
        client.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let answer = client.rest().await;
        assert!(answer.contains("part") && !answer.contains("0\r\n\r\n"), "{answer}");
    }
}
