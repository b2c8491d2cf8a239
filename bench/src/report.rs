//! What a run found, for people and for programs.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::distribution::Distribution;
use crate::phases::{Phase, Timeline};

/// All rows of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
}

/// The cold starts of one app.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    app: &'static str,
    n: u64,
    #[serde(flatten)]
    total: Quantiles,
    #[serde(serialize_with = "as_map")]
    phases: Vec<(&'static str, PhaseTimes)>,
}

/// One phase over all cold starts that told it.
#[derive(Debug, Serialize)]
struct PhaseTimes {
    n: u64,
    /// Since the request was sent.
    #[serde(flatten)]
    since_sent: Quantiles,
    /// Since the latest of the phases before it.
    step: Quantiles,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Quantiles {
    p50_ms: Option<f64>,
    p90_ms: Option<f64>,
    p99_ms: Option<f64>,
}

impl Quantiles {
    fn of(times: &Distribution) -> Self {
        Self {
            p50_ms: times.quantile_ms(0.50),
            p90_ms: times.quantile_ms(0.90),
            p99_ms: times.quantile_ms(0.99),
        }
    }
}

fn as_map<S: Serializer>(phases: &[(&'static str, PhaseTimes)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(phases.iter().map(|(name, times)| (name, times)))
}

impl Row {
    /// The figures of an app's cold starts.
    pub(crate) fn new(app: &'static str, timelines: &[Timeline]) -> anyhow::Result<Self> {
        let mut phases = Vec::new();
        let mut total = Distribution::of([])?;
        for (at, phase) in Phase::ALL.into_iter().enumerate() {
            let since_sent = Distribution::of(timelines.iter().filter_map(|timeline| timeline.0[at]))?;
            let step = Distribution::of(timelines.iter().filter_map(|timeline| timeline.steps()[at]))?;
            let times = PhaseTimes {
                n: since_sent.count(),
                since_sent: Quantiles::of(&since_sent),
                step: Quantiles::of(&step),
            };
            phases.push((phase.name(), times));
            // The last phase is the whole.
            total = since_sent;
        }
        Ok(Self { app, n: total.count(), total: Quantiles::of(&total), phases })
    }
}

/// A time in a column.
struct Ms(Option<f64>);

impl fmt::Display for Ms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(ms) => write!(f, "{ms:>9.2}"),
            None => write!(f, "{:>9}", "-"),
        }
    }
}

impl fmt::Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", Ms(self.p50_ms), Ms(self.p90_ms), Ms(self.p99_ms))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Quantiles { p50_ms, p90_ms, p99_ms } = self.total;
        let [p50, p90, p99] = [p50_ms, p90_ms, p99_ms].map(|ms| ms.unwrap_or(f64::NAN));
        writeln!(
            f,
            "{}: {} cold starts, p50 {p50:.2} ms, p90 {p90:.2} ms, p99 {p99:.2} ms",
            self.app, self.n
        )?;
        writeln!(f, "{:<18}{:>5}  {:>27}  {:>27}", "", "", "ms since sent", "ms since phase before")?;
        writeln!(
            f,
            "{:<18}{:>5}  {:>9}{:>9}{:>9}  {:>9}{:>9}{:>9}",
            "phase", "n", "p50", "p90", "p99", "p50", "p90", "p99"
        )?;
        for (name, times) in &self.phases {
            writeln!(f, "{name:<18}{:>5}  {}  {}", times.n, times.since_sent, times.step)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row() -> Row {
        let whole = Timeline([1, 2, 3, 4, 5, 6, 7, 8].map(|n| Some(n * 1000)));
        let gap = Timeline([Some(1000), None, Some(3000), None, None, None, None, Some(8000)]);
        Row::new("tiny", &[whole, gap]).unwrap()
    }

    #[test]
    fn for_programs() {
        let report = serde_json::to_value(Report { rows: vec![row()] }).unwrap();
        let row = &report["rows"][0];
        assert_eq!(row["app"], "tiny");
        assert_eq!((&row["n"], &row["p50_ms"], &row["p99_ms"]), (&json!(2), &json!(8.0), &json!(8.0)));
        assert_eq!(
            row["phases"]["pod_created"],
            json!({"n": 2, "p50_ms": 3.0, "p90_ms": 3.0, "p99_ms": 3.0,
                "step": {"p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 2.0}})
        );
        assert_eq!(row["phases"]["decided"]["n"], 1);
        assert_eq!(row["phases"].as_object().unwrap().len(), Phase::ALL.len());
    }

    #[test]
    fn for_people() {
        let text = row().to_string();
        assert!(text.starts_with("tiny: 2 cold starts, p50 8.00 ms, p90 8.00 ms, p99 8.00 ms\n"), "{text}");
        let line = text.lines().find(|line| line.starts_with("pod_created")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words, ["pod_created", "2", "3.00", "3.00", "3.00", "1.00", "2.00", "2.00"]);
        let none = Row::new("tiny", &[]).unwrap().to_string();
        assert!(none.contains('-'), "{none}");
    }
}
