//! What every hop of a request shares: the streaming proxy engine, probes, statistics, admission, wire messages.
//!
//! # A hop in short
//!
//! ```no_run
//! use std::sync::Arc;
//! use ember_dataplane::address::Address;
//! use ember_dataplane::body::Body;
//! use ember_dataplane::drain::Drain;
//! use ember_dataplane::error::{respond, timed_out};
//! use ember_dataplane::io::Io;
//! use ember_dataplane::pool::{self, Pool};
//! use ember_dataplane::proxy::{Outbound, Proxy};
//! use ember_dataplane::server::{self, Conn, Handler};
//! use ember_dataplane::timeout::Timeouts;
//! use ember_dataplane::worker::Workers;
//! use http::{Request, Response};
//!
//! /// State of one worker: its own pool.
//! struct Hop {
//!     proxy: Proxy,
//!     timeouts: Timeouts,
//! }
//!
//! impl Handler for Hop {
//!     async fn handle(&self, request: Request<Body>, conn: &Arc<Conn>) -> Response<Body> {
//!         // The timers run while waiting for a place too.
//!         let deadlines = self.timeouts.start();
//!         let answer = deadlines.before_response(async {
//!             let mut outbound = match Outbound::new(request, conn) {
//!                 Ok(outbound) => outbound,
//!                 Err(error) => return respond(&error),
//!             };
//!             loop {
//!                 let (address, permit) = choose_backend().await;
//!                 match self.proxy.forward(outbound, &address, None).await {
//!                     Ok(mut response) => {
//!                         // Held until the last byte, the client's departure, or the end of the upgraded stream.
//!                         response.body_mut().attach(permit);
//!                         return response;
//!                     }
//!                     // The one retry rule: a request comes back exactly when it may be repeated.
//!                     Err(failure) => match failure.into_retry() {
//!                         (Some(again), _) => outbound = again,
//!                         (None, error) => return respond(&error),
//!                     },
//!                 }
//!             }
//!         });
//!         match answer.await {
//!             Ok(mut response) => {
//!                 response.body_mut().limit(deadlines, "activator request timeout", Some(conn));
//!                 response
//!             }
//!             Err(_) => timed_out("activator request timeout"),
//!         }
//!     }
//! }
//! # async fn choose_backend() -> (Address, ()) { (Address::new("10.0.0.1", 8012), ()) }
//!
//! # async fn run(io: Io, workers: Workers, shutdown: tokio_util::sync::CancellationToken) -> std::io::Result<()> {
//! let drain = Drain::new();
//! let options = server::Options::default();
//! let listener = io.network.listen(([0, 0, 0, 0], 8012).into()).await?;
//! // One handler for each worker; connections are dealt in turn. Returns when `drain` is stopped.
//! let serving = server::serve(listener, &workers, &options, &drain, |_worker| {
//!     let pool = Pool::new(io.clone(), pool::Options::default());
//!     Arc::new(Hop { proxy: Proxy::new(pool, drain.clone()), timeouts: Timeouts::default() })
//! });
//! let ending = async {
//!     shutdown.cancelled().await;
//!     drain.announce(); // answers say `Connection: close`; still accepting
//!     // … wait until traffic has ceased …
//!     drain.finish(std::time::Duration::from_secs(30)).await // stop, wait, abort
//! };
//! tokio::join!(serving, ending);
//! # Ok(()) }
//! ```
//!
//! A bounded retry is the caller's: count, or let the deadline end it. A handler's future is dropped when the client
//! leaves, so what it holds is released at once, queue places included.

pub mod address;
pub mod body;
pub mod breaker;
pub mod dial;
pub mod drain;
pub mod error;
pub mod header;
pub mod io;
pub mod metrics;
pub mod pool;
pub mod port;
pub mod probe;
pub mod protocol;
pub mod proxy;
pub mod server;
pub mod stat;
pub mod stats;
pub mod timeout;
pub mod tls;
mod upgrade;
mod upload;
pub mod worker;
