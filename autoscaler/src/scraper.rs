//! Which pods to ask, how many, and what their answers say about all of them.

use std::collections::HashSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ember_dataplane::stat::Stat;
use futures::future::join_all;
use parking_lot::Mutex;

use crate::pods::ReadyPod;
use crate::sample_size::sample_size;
use crate::time::Time;
use ember_api::configmaps::network::MeshCompatibilityMode as MeshCompatibility;

/// How often a worker asks the Service in hope of a pod that nobody has heard of yet.
const SERVICE_ATTEMPTS: usize = 10;

/// Pod name of a stat that stands for all pods of a revision.
const SCRAPER_NAME: &str = "service-scraper";

/// Whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// One pod, by address. `through_mesh` asks the mesh to pass the request on to that very pod.
    Pod {
        /// The pod's address.
        ip: &'a str,
        /// Whether to send the headers of a direct request through a mesh.
        through_mesh: bool,
    },
    /// The revision's Service: whichever pod answers.
    Service,
}

/// Why a pod did not tell its metrics.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub struct FetchError {
    /// What happened.
    pub message: String,
    /// Whether it is how a mesh answers that does not let pods be addressed: 502 or 503.
    pub mesh: bool,
}

/// Reads one report.
pub trait Fetch: Sync {
    /// Asks `target`. Bounded in time by the implementation.
    fn fetch(&self, target: Target<'_>) -> impl Future<Output = Result<Stat, FetchError>> + Send;
}

/// Why a scrape gave no result.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ScrapeError {
    /// Too few pods answered.
    #[error("pods exhausted")]
    PodsExhausted,
    /// A mesh stands between us and every pod.
    #[error("all pod scrapes returned 503 error")]
    DirectScrapingNotAvailable,
    /// Through the Service, only pods answered that had answered before.
    #[error("unsuccessful scrape, sampleSize={0}: did not receive stat from an unscraped pod")]
    NoUnseenPod(usize),
    /// Through the Service, requests failed.
    #[error("unsuccessful scrape, sampleSize={0}: {1}")]
    Service(usize, FetchError),
}

/// What the scraper knows about the way to a revision's pods.
#[derive(Debug)]
pub struct Scraper {
    mesh: MeshCompatibility,
    through_mesh: bool,
    pods_addressable: AtomicBool,
}

impl Scraper {
    /// A scraper that still believes pods can be addressed.
    #[must_use]
    pub fn new(mesh: MeshCompatibility, through_mesh: bool) -> Self {
        Self { mesh, through_mesh, pods_addressable: AtomicBool::new(true) }
    }

    /// Whether pods are still believed to be addressable.
    #[must_use]
    pub fn pods_addressable(&self) -> bool {
        self.pods_addressable.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn believe_not_addressable(&self) {
        self.pods_addressable.store(false, Ordering::Relaxed);
    }

    /// Forgets that pods could not be addressed, as for a changed Metric.
    pub fn reset(&self) {
        self.pods_addressable.store(true, Ordering::Relaxed);
    }

    /// Scrapes the revision whose ready pods are `pods`; those that started less than `window` ago are young and
    /// asked only if need be. `None` without pods.
    ///
    /// # Errors
    /// When too few pods answered to speak for all of them.
    pub async fn scrape(
        &self,
        fetch: &impl Fetch,
        pods: Vec<ReadyPod>,
        now: Time,
        window: Duration,
    ) -> Result<Option<Stat>, ScrapeError> {
        if pods.is_empty() {
            return Ok(None);
        }
        let count = pods.len();
        let direct = match self.mesh {
            MeshCompatibility::Enabled => false,
            MeshCompatibility::Disabled => true,
            MeshCompatibility::Auto => self.through_mesh || self.pods_addressable(),
        };
        if direct {
            let result = self.scrape_pods(fetch, pods, now, window).await;
            let fall_back = result == Err(ScrapeError::DirectScrapingNotAvailable)
                && self.mesh == MeshCompatibility::Auto
                && !self.through_mesh;
            if !fall_back {
                return result.map(Some);
            }
        }
        let stat = scrape_service(fetch, count, window).await?;
        if self.mesh == MeshCompatibility::Auto {
            self.pods_addressable.store(false, Ordering::Relaxed);
        }
        Ok(Some(stat))
    }

    async fn scrape_pods(
        &self,
        fetch: &impl Fetch,
        pods: Vec<ReadyPod>,
        now: Time,
        window: Duration,
    ) -> Result<Stat, ScrapeError> {
        let count = pods.len();
        let sample = sample_size(count);
        let (mut order, mut young): (Vec<_>, Vec<_>) =
            pods.into_iter().partition(|pod| pod.started.after(window) <= now);
        if order.len() < sample {
            fastrand::shuffle(&mut young);
        } else {
            fastrand::shuffle(&mut order);
        }
        order.append(&mut young);

        // Every worker brings one report, taking the next candidate when one fails.
        let next = AtomicUsize::new(0);
        let only_mesh = AtomicBool::new(true);
        let worker = || async {
            while let Some(pod) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                match fetch.fetch(Target::Pod { ip: &pod.ip, through_mesh: self.through_mesh }).await {
                    Ok(stat) => return Some(stat),
                    Err(error) if error.mesh => {}
                    Err(_) => only_mesh.store(false, Ordering::Relaxed),
                }
            }
            None
        };
        let results = join_all((0..sample).map(|_| worker())).await;
        let stats: Vec<Stat> = results.into_iter().flatten().collect();
        if stats.len() == sample {
            Ok(extrapolate(&stats, sample, count))
        } else if stats.is_empty() && only_mesh.into_inner() {
            Err(ScrapeError::DirectScrapingNotAvailable)
        } else {
            Err(ScrapeError::PodsExhausted)
        }
    }
}

/// What workers that ask the Service have in common.
#[derive(Debug, Default)]
struct Seen {
    pods: HashSet<String>,
    old: Vec<Stat>,
    young: Vec<Stat>,
}

async fn scrape_service(fetch: &impl Fetch, count: usize, window: Duration) -> Result<Stat, ScrapeError> {
    let sample = sample_size(count);
    let seen = Mutex::new(Seen::default());
    let results = join_all((0..sample).map(|_| ask_service(fetch, &seen, sample, window))).await;
    let Seen { mut old, young, .. } = seen.into_inner();
    for failure in results.into_iter().filter_map(Result::err) {
        match failure {
            ScrapeError::NoUnseenPod(_) if old.len() + young.len() >= sample => {}
            failure => return Err(failure),
        }
    }
    let missing = sample.saturating_sub(old.len());
    old.extend(young.into_iter().take(missing));
    Ok(extrapolate(&old, sample, count))
}

/// Asks until an old pod answers that nobody has heard of yet.
async fn ask_service(
    fetch: &impl Fetch,
    seen: &Mutex<Seen>,
    sample: usize,
    window: Duration,
) -> Result<(), ScrapeError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let answer = fetch.fetch(Target::Service).await;
        let mut seen = seen.lock();
        let failure = match answer {
            Err(error) => ScrapeError::Service(sample, error),
            Ok(stat) if !seen.pods.insert(stat.pod_name.clone()) => ScrapeError::NoUnseenPod(sample),
            Ok(stat) if stat.process_uptime >= window.as_secs_f64() => {
                seen.old.push(stat);
                return Ok(());
            }
            Ok(_) if seen.young.len() >= sample => return Ok(()),
            Ok(stat) => {
                seen.young.push(stat);
                continue;
            }
        };
        if attempt >= SERVICE_ATTEMPTS {
            return Err(failure);
        }
    }
}

/// What `sample` pods out of `total` say about all of them.
#[must_use]
pub fn extrapolate(stats: &[Stat], sample: usize, total: usize) -> Stat {
    let mut sum = Stat { pod_name: SCRAPER_NAME.to_owned(), ..Stat::default() };
    for stat in stats {
        sum.average_concurrent_requests += stat.average_concurrent_requests;
        sum.average_proxied_concurrent_requests += stat.average_proxied_concurrent_requests;
        sum.request_count += stat.request_count;
        sum.proxied_request_count += stat.proxied_request_count;
    }
    let (sample, total) = (sample as f64, total as f64);
    for value in [
        &mut sum.average_concurrent_requests,
        &mut sum.average_proxied_concurrent_requests,
        &mut sum.request_count,
        &mut sum.proxied_request_count,
    ] {
        *value = *value / sample * total;
    }
    sum
}
