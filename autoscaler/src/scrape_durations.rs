//! How long scrapes take, for Prometheus.
//!
//! Revisions of a Configuration share a series: it lives as long as one of them is scraped.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;

/// Upper bounds of the buckets in seconds.
const BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Whose scrapes are counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ScrapeLabels {
    pub(crate) namespace: String,
    /// Empty for a Configuration without a Service.
    pub(crate) service: String,
    pub(crate) configuration: String,
}

/// The scrapes of one label set.
#[derive(Debug)]
pub(crate) struct Series(Histogram);

impl Series {
    pub(crate) fn observe(&self, duration: Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

/// All of them. Clones share the series.
#[derive(Debug, Clone, Default)]
pub(crate) struct ScrapeDurations(Arc<Mutex<BTreeMap<ScrapeLabels, Weak<Series>>>>);

impl ScrapeDurations {
    /// The series of a label set, shared with whoever has it already.
    pub(crate) fn series(&self, labels: ScrapeLabels) -> Arc<Series> {
        let mut all = self.0.lock();
        if let Some(series) = all.get(&labels).and_then(Weak::upgrade) {
            return series;
        }
        all.retain(|_, series| series.strong_count() > 0);
        let series = Arc::new(Series(Histogram::new(BOUNDS)));
        all.insert(labels, Arc::downgrade(&series));
        series
    }
}

impl Collector for ScrapeDurations {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let all = self.0.lock().clone();
        let mut all = all.iter().filter_map(|(labels, series)| Some((labels, series.upgrade()?))).peekable();
        if all.peek().is_none() {
            return Ok(());
        }
        let (name, help) = ("kn_autoscaler_scrape_duration_seconds", "Time a scrape takes");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, series) in all {
            let labels = [
                ("kn_service_name", labels.service.as_str()),
                ("kn_configuration_name", labels.configuration.as_str()),
                ("k8s_namespace_name", labels.namespace.as_str()),
            ];
            series.0.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
