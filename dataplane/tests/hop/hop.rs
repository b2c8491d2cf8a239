//! The hop that is tested: a server, a proxy, and its pool.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ember_dataplane::address::Address;
use ember_dataplane::body::Body;
use ember_dataplane::drain::{Drain, InFlight, Quiet};
use ember_dataplane::error::{respond, timed_out};
use ember_dataplane::io::Io;
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::protocol::Protocol;
use ember_dataplane::proxy::{Outbound, Proxy};
use ember_dataplane::server::{self, Conn, Handler, Options};
use ember_dataplane::timeout::Timeouts;
use ember_dataplane::worker::Workers;
use http::{Request, Response};

pub(crate) struct Hop {
    pub(crate) proxy: Proxy,
    pub(crate) backend: Address,
    pub(crate) protocol: Protocol,
    pub(crate) timeouts: Timeouts,
    pub(crate) quiet: Quiet,
}

impl Handler for Hop {
    async fn handle(&self, request: Request<Body>, conn: &Arc<Conn>) -> Response<Body> {
        let deadlines = self.timeouts.start();
        let guard: InFlight = self.quiet.enter();
        let answer = deadlines.before_response(async {
            let mut outbound = match Outbound::new(request, conn) {
                Ok(outbound) => outbound,
                Err(error) => return respond(&error),
            };
            outbound.set_protocol(self.protocol);
            match self.proxy.forward(outbound, &self.backend, None).await {
                Ok(response) => response,
                Err(failure) => respond(failure.error()),
            }
        });
        let mut response = answer.await.unwrap_or_else(|_| timed_out("request timeout"));
        response.body_mut().limit(deadlines, "request timeout", Some(conn));
        response.body_mut().attach(guard);
        response
    }
}

pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) drain: Drain,
    pub(crate) quiet: Quiet,
    pub(crate) pool: Pool,
}

pub(crate) async fn hop_with(
    backend: SocketAddr,
    protocol: Protocol,
    timeouts: Timeouts,
    options: Options,
) -> Running {
    start(backend, protocol, timeouts, pool::Options::default(), options).await
}

/// A hop with limits of its own on both sides.
pub(crate) async fn hop_over(backend: SocketAddr, pool: pool::Options, options: Options) -> Running {
    start(backend, Protocol::Http1, Timeouts::default(), pool, options).await
}

async fn start(
    backend: SocketAddr,
    protocol: Protocol,
    timeouts: Timeouts,
    pool: pool::Options,
    options: Options,
) -> Running {
    let io = Io::system();
    let drain = Drain::new();
    let quiet = Quiet::new(Duration::from_millis(50));
    let pool = Pool::new(io.clone(), pool);
    let hop = Arc::new(Hop {
        proxy: Proxy::new(pool.clone(), drain.clone()),
        backend: backend.into(),
        protocol,
        timeouts,
        quiet: quiet.clone(),
    });
    let listener = io.network.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = drain.clone();
    tokio::spawn(async move {
        server::serve(listener, &Workers::current(), &options, &serving, |_| Arc::clone(&hop)).await;
    });
    Running { addr, drain, quiet, pool }
}

/// A hop whose server has limits of its own.
pub(crate) async fn limited_hop(backend: SocketAddr, options: Options) -> Running {
    hop_with(backend, Protocol::Http1, Timeouts::default(), options).await
}

pub(crate) async fn hop(backend: SocketAddr) -> Running {
    limited_hop(backend, Options::default()).await
}

/// A hop whose requests take no longer than `total`.
pub(crate) async fn brief_hop(backend: SocketAddr, total: Duration) -> Running {
    let timeouts = Timeouts { total: Some(total), ..Timeouts::default() };
    hop_with(backend, Protocol::Http1, timeouts, Options::default()).await
}
