//! What a run found, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::connection::Protocol;
use super::load::histogram;
use super::target::{Kind, Running, Target};
use super::{SCENARIOS, Scenario};

/// One target under one load, over all rounds.
#[derive(Debug)]
pub(super) struct Load {
    scenario: Scenario,
    pinned: bool,
    /// Nanoseconds.
    pub(super) latencies: Histogram<u64>,
    pub(super) errors: u64,
    pub(super) elapsed: Duration,
    /// By process.
    pub(super) cpu: BTreeMap<String, Duration>,
}

/// Resident memory of all processes of a target, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Memory {
    /// After the first request, the one that shows that it is ready.
    pub(super) rss_idle_kib: Option<u64>,
    /// The most at the end of a time under load.
    pub(super) rss_loaded_kib: Option<u64>,
    /// With 1,000 idle connections, each of which has served a request.
    pub(super) rss_1000_idle_kib: Option<u64>,
    /// One second after those were closed.
    pub(super) rss_after_1000_idle_kib: Option<u64>,
}

/// All of a target.
#[derive(Debug)]
pub(super) struct Measured {
    target: String,
    pub(super) memory: Memory,
    starts: Vec<Duration>,
    loads: Vec<Load>,
}

impl Measured {
    pub(super) fn new(target: &str) -> Self {
        Self { target: target.to_owned(), memory: Memory::default(), starts: Vec::new(), loads: Vec::new() }
    }

    /// Takes note of a start.
    pub(super) fn start(&mut self, target: &Target, running: &Running) {
        if !matches!(target.kind, Kind::Direct) {
            self.starts.push(running.start_to_ready);
        }
    }

    pub(super) fn load(&mut self, scenario: Scenario, pinned: bool) -> anyhow::Result<&mut Load> {
        let same = |load: &Load| load.pinned == pinned && load.scenario == scenario;
        let at = match self.loads.iter().position(same) {
            Some(at) => at,
            None => {
                self.loads.push(Load {
                    scenario,
                    pinned,
                    latencies: histogram()?,
                    errors: 0,
                    elapsed: Duration::ZERO,
                    cpu: BTreeMap::new(),
                });
                self.loads.len() - 1
            }
        };
        Ok(&mut self.loads[at])
    }

    fn start_to_ready(&self) -> Option<f64> {
        let mut starts = self.starts.clone();
        starts.sort();
        starts.get(starts.len() / 2).map(|median| round(median.as_secs_f64() * 1e3, 2))
    }
}

/// Where the figures are from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cpus: usize,
    pub(super) kernel: String,
    /// At the start of the run: others at work make for noise.
    pub(super) load_average: String,
    pub(super) at: String,
}

impl Machine {
    pub(super) fn here() -> anyhow::Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).with_context(|| path.to_owned());
        let info = read("/proc/cpuinfo")?;
        let model = info.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split(':').nth(1)).unwrap_or("unknown CPU").trim();
        let load = read("/proc/loadavg")?;
        Ok(Self {
            cpu: model.to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            load_average: load.split(' ').next().unwrap_or_default().to_owned(),
            at: jiff::Timestamp::now().round(jiff::Unit::Second)?.to_string(),
        })
    }
}

/// All rows of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) rows: Vec<Row>,
}

/// One target under one load.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) scenario: &'static str,
    pub(super) target: String,
    pub(super) protocol: &'static str,
    /// Requests at a time.
    pub(super) concurrency: usize,
    /// Of each connection.
    #[serde(skip)]
    streams: usize,
    pub(super) pinned: bool,
    pub(super) rps: Option<f64>,
    pub(super) p50_us: Option<f64>,
    pub(super) p90_us: Option<f64>,
    pub(super) p99_us: Option<f64>,
    pub(super) p999_us: Option<f64>,
    pub(super) cpu_us_per_request: Option<f64>,
    /// Also of the backend and the load generator.
    pub(super) cpu_us_per_request_by_process: BTreeMap<String, f64>,
    #[serde(flatten)]
    pub(super) memory: Memory,
    pub(super) start_to_ready_ms: Option<f64>,
    pub(super) errors: u64,
}

fn round(value: f64, digits: i32) -> f64 {
    let unit = 10_f64.powi(digits);
    (value * unit).round() / unit
}

#[expect(clippy::cast_precision_loss, reason = "counts and nanoseconds, far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

impl Row {
    fn new(measured: &Measured, load: &Load) -> Self {
        let answers = load.latencies.len() + load.errors;
        let seconds = load.elapsed.as_secs_f64();
        let quantile = |quantile| {
            let nanos = load.latencies.value_at_quantile(quantile);
            (!load.latencies.is_empty()).then(|| round(float(nanos) / 1e3, 1))
        };
        let each = |cpu: Duration| round(cpu.as_secs_f64() * 1e6 / float(answers), 2);
        let by_process: BTreeMap<String, f64> =
            load.cpu.iter().filter(|_| answers > 0).map(|(name, cpu)| (name.clone(), each(*cpu))).collect();
        let of_target = by_process.iter().filter(|(name, _)| !["backend", "load"].contains(&name.as_str()));
        let of_target: Vec<f64> = of_target.map(|(_, cpu)| *cpu).collect();
        let cpu_us_per_request = if of_target.is_empty() {
            by_process.get("backend").copied()
        } else {
            Some(round(of_target.iter().sum(), 2))
        };
        Self {
            scenario: load.scenario.name(),
            target: measured.target.clone(),
            protocol: match load.scenario.protocol {
                Protocol::Http1 => "h1",
                Protocol::H2c => "h2c",
            },
            concurrency: load.scenario.connections * load.scenario.streams,
            streams: load.scenario.streams,
            pinned: load.pinned,
            rps: (seconds > 0.0).then(|| round(float(load.latencies.len()) / seconds, 1)),
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            cpu_us_per_request,
            cpu_us_per_request_by_process: by_process,
            memory: measured.memory,
            start_to_ready_ms: measured.start_to_ready(),
            errors: load.errors,
        }
    }
}

impl Report {
    pub(super) fn new(machine: Machine, measured: &[Measured]) -> anyhow::Result<Self> {
        let mut rows = Vec::new();
        let all =
            || measured.iter().flat_map(|measured| measured.loads.iter().map(move |load| (measured, load)));
        all().next().context("nothing was measured")?;
        // Side by side: all targets under one load.
        for pinned in [true, false] {
            for scenario in SCENARIOS {
                let same = all().filter(|(_, load)| load.pinned == pinned && load.scenario == scenario);
                rows.extend(same.map(|(measured, load)| Row::new(measured, load)));
            }
        }
        Ok(Self { machine, rows })
    }

    /// The rows of each load.
    pub(super) fn by_load(&self) -> Vec<&[Row]> {
        let load = |row: &Row| (row.pinned, row.scenario, row.protocol, row.concurrency);
        let same = |a: &Row, b: &Row| load(a) == load(b);
        self.rows.chunk_by(same).collect()
    }
}

/// A load in words.
pub(super) fn title(row: &Row) -> String {
    let placed = if row.pinned { "pinned" } else { "unpinned" };
    match row.scenario {
        _ if row.protocol == "h2c" => {
            let connections = row.concurrency / row.streams.max(1);
            format!("HTTP/2, closed loop, {connections} connections × {} streams, {placed}", row.streams)
        }
        "closed-loop" => format!("closed loop, {} at a time, {placed}", row.concurrency),
        _ => format!("300 requests/s over {} connections, {placed}", row.concurrency),
    }
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

#[expect(clippy::cast_precision_loss, reason = "memory in KiB")]
fn mib(kib: Option<u64>) -> Option<f64> {
    kib.map(|kib| kib as f64 / 1024.0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rows in self.by_load() {
            let Some(first) = rows.first() else { continue };
            writeln!(f, "\n{}", title(first))?;
            writeln!(
                f,
                "{:<16}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>8}{:>8}",
                "target", "req/s", "p50 µs", "p90 µs", "p99 µs", "p99.9 µs", "CPU µs", "×nginx", "errors"
            )?;
            let nginx = rows.iter().find(|row| row.target == "nginx").and_then(|row| row.cpu_us_per_request);
            for row in rows {
                let ratio = row.cpu_us_per_request.zip(nginx).map(|(cpu, nginx)| cpu / nginx);
                writeln!(
                    f,
                    "{:<16}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>8}{:>8}",
                    row.target,
                    cell(row.rps, 0),
                    cell(row.p50_us, 1),
                    cell(row.p90_us, 1),
                    cell(row.p99_us, 1),
                    cell(row.p999_us, 1),
                    cell(row.cpu_us_per_request, 2),
                    cell(ratio.filter(|_| row.target != "direct"), 2),
                    row.errors
                )?;
            }
        }
        writeln!(f, "\nmemory (RSS, MiB) and start")?;
        writeln!(
            f,
            "{:<16}{:>10}{:>10}{:>12}{:>14}{:>12}",
            "target", "idle", "loaded", "1000 idle", "after those", "start ms"
        )?;
        for row in self.by_load().first().copied().unwrap_or_default() {
            let Memory { rss_idle_kib, rss_loaded_kib, rss_1000_idle_kib, rss_after_1000_idle_kib } =
                row.memory;
            writeln!(
                f,
                "{:<16}{:>10}{:>10}{:>12}{:>14}{:>12}",
                row.target,
                cell(mib(rss_idle_kib), 1),
                cell(mib(rss_loaded_kib), 1),
                cell(mib(rss_1000_idle_kib), 1),
                cell(mib(rss_after_1000_idle_kib), 1),
                cell(row.start_to_ready_ms, 2)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn report() -> Report {
        let measured = ["direct", "nginx", "queue-proxy"].map(|name| {
            let mut measured = Measured::new(name);
            for pinned in [true, false] {
                // The backend and nginx are not asked for HTTP/2.
                let asked = |load: &Scenario| name == "queue-proxy" || load.protocol == Protocol::Http1;
                for scenario in SCENARIOS.into_iter().filter(asked) {
                    let load = measured.load(scenario, pinned).unwrap();
                    for n in 1..=100 {
                        load.latencies.record(n * 1000).unwrap();
                    }
                    load.elapsed = Duration::from_millis(10);
                    load.cpu.insert("backend".to_owned(), Duration::from_micros(500));
                    if name != "direct" {
                        load.cpu.insert(name.to_owned(), Duration::from_millis(2));
                    }
                }
            }
            if name != "direct" {
                measured.memory.rss_idle_kib = Some(2048);
                measured.starts = [4, 9, 1].map(Duration::from_millis).to_vec();
            }
            measured
        });
        let machine = Machine {
            cpu: "CPU <x>".to_owned(),
            cpus: 2,
            kernel: "6".to_owned(),
            load_average: "0.5".to_owned(),
            at: "2026-01-02T03:04:05Z".to_owned(),
        };
        Report::new(machine, &measured).unwrap()
    }

    #[test]
    fn for_programs() {
        let report = serde_json::to_value(report()).unwrap();
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 2 * (3 * 4 + 3));
        assert_eq!(
            rows[1],
            json!({"scenario": "closed-loop", "target": "nginx", "protocol": "h1", "concurrency": 1,
                "pinned": true, "rps": 10000.0, "p50_us": 50.0, "p90_us": 90.0, "p99_us": 99.0, "p999_us": 100.0,
                "cpu_us_per_request": 20.0, "cpu_us_per_request_by_process": {"backend": 5.0, "nginx": 20.0},
                "rss_idle_kib": 2048, "rss_loaded_kib": null, "rss_1000_idle_kib": null,
                "rss_after_1000_idle_kib": null, "start_to_ready_ms": 4.0, "errors": 0})
        );
        assert_eq!(rows[0]["cpu_us_per_request"], 5.0);
        assert_eq!(rows[0]["start_to_ready_ms"], json!(null));
        assert_eq!((&rows[9]["scenario"], &rows[9]["concurrency"]), (&json!("constant-rate"), &json!(16)));
        let last = &rows[29];
        assert_eq!((&last["protocol"], &last["concurrency"]), (&json!("h2c"), &json!(128)));
        assert_eq!((&last["target"], &last["pinned"]), (&json!("queue-proxy"), &json!(false)));
    }

    #[test]
    fn for_people() {
        let text = report().to_string();
        assert!(text.contains("closed loop, 16 at a time, unpinned"), "{text}");
        assert!(text.contains("HTTP/2, closed loop, 8 connections × 16 streams, pinned"), "{text}");
        let line = text.lines().find(|line| line.starts_with("queue-proxy")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words, ["queue-proxy", "10000", "50.0", "90.0", "99.0", "100.0", "20.00", "1.00", "0"]);
    }
}
