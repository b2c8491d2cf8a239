//! Steady load from several clients, with every answer counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::http::Client;

/// What came of a load.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    /// How often each body was answered with 200.
    pub answers: BTreeMap<String, u64>,
    /// Everything else.
    pub failures: Vec<String>,
    /// How long the slowest of all took.
    pub slowest: Duration,
}

impl Tally {
    /// How many were answered with 200.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }
}

/// A running load.
pub struct Load {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    tally: Arc<Mutex<Tally>>,
}

impl Load {
    /// `clients` clients that each ask again as soon as they are answered, until [`Load::stop`].
    #[must_use]
    pub fn start(gateway: SocketAddr, host: &str, path: &str, clients: usize) -> Self {
        Self::begin(gateway, host, path, None, clients)
    }

    /// The same with requests that POST `body`.
    #[must_use]
    pub fn post(gateway: SocketAddr, host: &str, path: &str, body: &'static str, clients: usize) -> Self {
        Self::begin(gateway, host, path, Some(body), clients)
    }

    fn begin(
        gateway: SocketAddr,
        host: &str,
        path: &str,
        body: Option<&'static str>,
        clients: usize,
    ) -> Self {
        let (stop, tally) = (CancellationToken::new(), Arc::new(Mutex::new(Tally::default())));
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let (stop, tally) = (stop.clone(), Arc::clone(&tally));
            let (host, path, client) = (host.to_owned(), path.to_owned(), Client::new(gateway));
            tasks.spawn(async move {
                while !stop.is_cancelled() {
                    let begun = Instant::now();
                    let result = match body {
                        None => client.get(&host, &path).await,
                        Some(body) => client.post(&host, &path, body).await,
                    };
                    let mut tally = tally.lock();
                    tally.slowest = tally.slowest.max(begun.elapsed());
                    match result {
                        Ok(answer) if answer.status.is_success() => {
                            *tally.answers.entry(answer.text.trim().to_owned()).or_default() += 1;
                        }
                        Ok(answer) => {
                            tally.failures.push(format!("{} {}", answer.status, answer.text.trim()));
                        }
                        Err(error) => tally.failures.push(error),
                    }
                }
            });
        }
        Self { stop, tasks, tally }
    }

    /// What came of it so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally.lock().clone()
    }

    /// Lets every request under way end, and tells what came of all.
    pub async fn stop(mut self) -> Tally {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.tally.lock().clone()
    }
}
