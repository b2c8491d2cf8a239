//! What a soak found, for people and for programs.

use std::fmt;
use std::sync::atomic::Ordering;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::Plan;
use super::client::Seen;
use super::world::World;

/// How many histories are printed.
const MOST_HISTORIES: usize = 20;

/// One run, for one limit of concurrency.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Row {
    pub container_concurrency: u32,
    pub seconds: u64,
    pub gets: u64,
    pub posts: u64,
    pub connections: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    pub pods_started: u64,
    pub pods_ended: u64,
    pub path_switches: u64,
    pub activator_restarts: u64,
    /// GETs that were executed more than once, as a proxy may have them.
    pub repeated_gets: u64,
    /// Requests without the right answer.
    pub unanswered: u64,
    /// Requests that were answered and never executed.
    pub lost: u64,
    /// POSTs that were executed more than once.
    pub repeated: u64,
    /// The histories of requests that went wrong, the first few.
    pub histories: Vec<String>,
    /// What else did not go as it should.
    pub faults: Vec<String>,
}

impl Row {
    /// Nothing went wrong.
    #[must_use]
    pub fn is_flawless(&self) -> bool {
        self.unanswered + self.lost + self.repeated == 0 && self.faults.is_empty()
    }
}

/// All rows of a soak.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// One for each limit of concurrency.
    pub rows: Vec<Row>,
}

impl Summary {
    /// Nothing went wrong in any of them.
    #[must_use]
    pub fn is_flawless(&self) -> bool {
        self.rows.iter().all(Row::is_flawless)
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds, far below 2^52")]
fn ms(micros: u64) -> f64 {
    micros as f64 / 1e3
}

pub(super) fn row(plan: Plan, world: &World, seen: &[Seen]) -> anyhow::Result<Row> {
    let mut latencies = Histogram::<u64>::new(3)?;
    for seen in seen {
        latencies.add(&seen.latencies)?;
    }
    let sum = world.ledger.sum(MOST_HISTORIES);
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    Ok(Row {
        container_concurrency: plan.concurrency,
        seconds: plan.length.as_secs(),
        gets: sum.gets,
        posts: sum.posts,
        connections: seen.iter().map(|seen| seen.connections).sum(),
        p50_ms: ms(latencies.value_at_quantile(0.5)),
        p99_ms: ms(latencies.value_at_quantile(0.99)),
        max_ms: ms(latencies.max()),
        pods_started: count(&world.counts.pods_started),
        pods_ended: count(&world.counts.pods_ended),
        path_switches: count(&world.counts.path_switches),
        activator_restarts: count(&world.counts.activator_restarts),
        repeated_gets: sum.repeated_gets,
        unanswered: sum.unanswered,
        lost: sum.lost,
        repeated: sum.repeated,
        histories: sum.histories,
        faults: world.faults.lock().clone(),
    })
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>4}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}{:>10}{:>10}{:>12}{:>6}{:>10}",
            "cc",
            "GETs",
            "POSTs",
            "p50 ms",
            "p99 ms",
            "max ms",
            "pods",
            "switches",
            "restarts",
            "unanswered",
            "lost",
            "repeated"
        )?;
        for row in &self.rows {
            writeln!(
                f,
                "{:>4}{:>9}{:>9}{:>9.1}{:>9.1}{:>9.1}{:>8}{:>10}{:>10}{:>12}{:>6}{:>10}",
                row.container_concurrency,
                row.gets,
                row.posts,
                row.p50_ms,
                row.p99_ms,
                row.max_ms,
                row.pods_ended,
                row.path_switches,
                row.activator_restarts,
                row.unanswered,
                row.lost,
                row.repeated
            )?;
        }
        for row in &self.rows {
            let lines = row.faults.iter().chain(&row.histories);
            for line in lines {
                writeln!(f, "\ncontainerConcurrency {}: {line}", row.container_concurrency)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_is_printed() {
        let good = Row { container_concurrency: 1, posts: 5, ..Row::default() };
        let bad = Row { lost: 1, histories: vec!["Post 7: gone".to_owned()], ..Row::default() };
        let summary = Summary { rows: vec![good.clone(), bad] };
        assert!(!summary.is_flawless());
        assert!(summary.to_string().contains("containerConcurrency 0: Post 7: gone"), "{summary}");
        assert!(Summary { rows: vec![good] }.is_flawless());
        let faulty = Row { faults: vec!["x".to_owned()], ..Row::default() };
        assert!(!faulty.is_flawless());
    }
}
