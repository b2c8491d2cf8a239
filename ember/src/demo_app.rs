//! A small HTTP app to try Ember with: `ember demo-app hello|autoscale`.
//!
//! It reads `PORT` (default 8080), `HOST` (default 127.0.0.1) and `TARGET` (default `World`) from its environment,
//! and ends on SIGTERM once the requests under way are answered.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The largest `prime` a request may ask for: about a second of work.
const LARGEST_PRIME: u64 = 100_000_000;
/// The most memory, in MiB, a request may ask for.
const LARGEST_BLOAT: u64 = 1024;
/// The longest a request may sleep, in milliseconds.
const LONGEST_SLEEP: u64 = 600_000;

/// How many requests the app was working on, this one included, when it took this one: to watch limits and spread.
const IN_FLIGHT: http::HeaderName = http::HeaderName::from_static("demo-in-flight");

/// A request that the app works on.
struct InFlight {
    count: Arc<AtomicU64>,
    most: u64,
}

impl InFlight {
    fn enter(count: &Arc<AtomicU64>) -> Self {
        Self { most: count.fetch_add(1, Ordering::Relaxed) + 1, count: Arc::clone(count) }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the app does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum App {
    /// Answers `Hello TARGET!`.
    Hello,
    /// Sleeps, computes and allocates as the query asks: `?sleep=MS&prime=N&bloat=MIB`.
    Autoscale,
}

/// Serves until SIGTERM.
pub(crate) fn run(app: App) -> anyhow::Result<()> {
    let port = match std::env::var("PORT") {
        Ok(port) => {
            port.parse::<u16>().with_context(|| format!("PORT must be a port number, not {port:?}"))?
        }
        Err(_) => 8080,
    };
    let host = match std::env::var("HOST") {
        Ok(host) => {
            host.parse::<IpAddr>().with_context(|| format!("HOST must be an IP address, not {host:?}"))?
        }
        Err(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let target = std::env::var("TARGET").unwrap_or_else(|_| "World".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(app, host, port, Arc::from(target)))
}

async fn serve(app: App, host: IpAddr, port: u16, target: Arc<str>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let listener =
        TcpListener::bind((host, port)).await.with_context(|| format!("cannot listen on {host}:{port}"))?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let in_flight = Arc::new(AtomicU64::new(0));
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // Out of descriptors, or the client is gone already: the next one may do better.
                Err(_) => { tokio::time::sleep(Duration::from_millis(10)).await; continue }
            },
            _ = terminate.recv() => break,
        };
        let (stop, target, in_flight) = (stop.clone(), Arc::clone(&target), Arc::clone(&in_flight));
        tasks.spawn(async move {
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (target, entered) = (Arc::clone(&target), InFlight::enter(&in_flight));
                async move {
                    let mut response = answer(app, &target, request.uri().query().unwrap_or("")).await;
                    response.headers_mut().insert(IN_FLIGHT, entered.most.into());
                    Ok::<_, Infallible>(response)
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            // A failed connection is the client's affair.
            let _ = tokio::select! {
                result = &mut connection => result,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
        });
    }
    drop(listener);
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

async fn answer(app: App, target: &str, query: &str) -> Response<Full<Bytes>> {
    let result = match app {
        App::Hello => Ok(format!("Hello {target}!\n")),
        App::Autoscale => load(target, query).await,
    };
    let (status, text) = match result {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}\n")),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

async fn load(target: &str, query: &str) -> anyhow::Result<String> {
    let parameters = parameters(query)?;
    let mut text = String::new();
    let held = match parameters.get("bloat") {
        Some(&mib) => {
            let size = usize::try_from(mib * 1024 * 1024)?;
            writeln!(text, "Allocated {mib} Mb of memory.")?;
            Some(tokio::task::spawn_blocking(move || vec![1_u8; size]).await?)
        }
        None => None,
    };
    if let Some(&limit) = parameters.get("prime") {
        match tokio::task::spawn_blocking(move || largest_prime(limit)).await? {
            Some(prime) => writeln!(text, "The largest prime less than {limit} is {prime}.")?,
            None => writeln!(text, "There are no primes smaller than {limit}.")?,
        }
    }
    if let Some(&millis) = parameters.get("sleep") {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        writeln!(text, "Slept for {millis} milliseconds.")?;
    }
    drop(held);
    if text.is_empty() {
        writeln!(text, "Hello {target}! Ask for load with ?sleep=MILLISECONDS&prime=LIMIT&bloat=MIB.")?;
    }
    Ok(text)
}

fn parameters(query: &str) -> anyhow::Result<HashMap<&str, u64>> {
    let mut parameters = HashMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let most = match name {
            "sleep" => LONGEST_SLEEP,
            "prime" => LARGEST_PRIME,
            "bloat" => LARGEST_BLOAT,
            _ => bail!("unknown parameter {name:?}: use sleep, prime or bloat"),
        };
        match value.parse() {
            Ok(number) if number <= most => parameters.insert(name, number),
            _ => bail!("{name} must be a whole number from 0 to {most}, not {value:?}"),
        };
    }
    Ok(parameters)
}

/// The largest prime below `limit`, by trial division from above.
fn largest_prime(limit: u64) -> Option<u64> {
    let is_prime = |n: u64| (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    (2..limit).rev().find(|&n| is_prime(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes() {
        assert_eq!(largest_prime(2), None);
        assert_eq!(largest_prime(3), Some(2));
        assert_eq!(largest_prime(100), Some(97));
    }

    #[test]
    fn parameters_are_checked_by_name() {
        assert_eq!(parameters("sleep=5&prime=10").unwrap(), HashMap::from([("sleep", 5), ("prime", 10)]));
        for (query, part) in
            [("sleep=x", "sleep must be"), ("bloat=99999", "0 to 1024"), ("nap=1", "\"nap\"")]
        {
            let error = parameters(query).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
