//! Families of histograms that share their labels.
//!
//! The number of label sets is bounded, because some labels are the clients' to choose: when there are too many,
//! further ones are counted together, with [`OTHER`] as value.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

use super::histogram::{Histogram, Unit};
use super::text::{Kind, Label, Labels, Text};

/// The value of labels of which there were too many.
pub const OTHER: &str = "_other_";

/// Label sets that are counted for themselves.
const MOST: usize = 256;
/// Label sets with [`OTHER`] in some place.
const MOST_COLLAPSED: usize = 64;

/// The labels of a series.
pub trait LabelSet: Clone + Eq + Hash + Send + Sync + 'static {
    /// Names, OpenTelemetry's, and values.
    fn labels(&self) -> Vec<Label<'_>>;

    /// The set this one is counted in when there are too many: with fewer possible values than before, until nothing
    /// is left to give up and it is returned as it is.
    #[must_use]
    fn collapsed(&self) -> Self;
}

/// Who measures: labels of every series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// The instrumentation, under the name dashboards know it by.
    pub name: &'static str,
    /// Its version, or empty.
    pub version: &'static str,
}

impl Scope {
    /// The labels.
    #[must_use]
    pub fn labels(&self) -> [Label<'static>; 3] {
        [
            ("otel.scope.name", self.name.into()),
            ("otel.scope.schema_url", "".into()),
            ("otel.scope.version", self.version.into()),
        ]
    }
}

/// A family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// OpenTelemetry's name.
    pub name: &'static str,
    /// Prometheus' name, with the unit.
    pub exposed: &'static str,
    /// What is measured.
    pub help: &'static str,
    /// In what.
    pub unit: Unit,
}

/// Histograms of one label set, one for each family.
#[derive(Debug)]
pub struct Series(Box<[Histogram]>);

impl Series {
    /// Records one value for each family, in their order.
    pub fn record(&self, values: &[u64]) {
        for (histogram, value) in self.0.iter().zip(values) {
            histogram.record(*value);
        }
    }

    /// The histogram of a family.
    #[must_use]
    pub fn histogram(&self, family: usize) -> Option<&Histogram> {
        self.0.get(family)
    }
}

/// Families with the same labels.
#[derive(Debug)]
pub struct Families<L> {
    scope: Scope,
    definitions: &'static [Definition],
    series: Mutex<HashMap<L, Arc<Series>>>,
}

impl<L: LabelSet> Families<L> {
    /// No series yet.
    #[must_use]
    pub fn new(scope: Scope, definitions: &'static [Definition]) -> Self {
        Self { scope, definitions, series: Mutex::default() }
    }

    /// The series of a label set, or the one it is counted in. Keep it where it is used often.
    #[must_use]
    pub fn series(&self, labels: &L) -> Arc<Series> {
        let mut all = self.series.lock();
        if let Some(series) = all.get(labels) {
            return Arc::clone(series);
        }
        let mut labels = labels.clone();
        let mut room = MOST;
        loop {
            let collapsed = labels.collapsed();
            // The last of all has always room.
            if all.len() < room || collapsed == labels {
                return Arc::clone(all.entry(labels).or_insert_with(|| Arc::new(self.empty())));
            }
            labels = collapsed;
            if let Some(series) = all.get(&labels) {
                return Arc::clone(series);
            }
            room = MOST + MOST_COLLAPSED;
        }
    }

    fn empty(&self) -> Series {
        Series(self.definitions.iter().map(|definition| Histogram::new(definition.unit)).collect())
    }

    /// Forgets series that are no longer of interest. What is recorded into one that somebody keeps is lost.
    pub fn retain(&self, keep: impl Fn(&L) -> bool) {
        self.series.lock().retain(|labels, _| keep(labels));
    }

    /// Writes all series, ordered.
    pub fn expose(&self, text: &mut Text) {
        let mut all: Vec<(Labels, Arc<Series>)> = {
            let all = self.series.lock();
            all.iter().map(|(labels, series)| (self.written(labels), Arc::clone(series))).collect()
        };
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        if all.is_empty() {
            return;
        }
        for (index, definition) in self.definitions.iter().enumerate() {
            text.family(definition.exposed, definition.help, Kind::Histogram);
            for (labels, series) in &all {
                series.0[index].write(text, definition.exposed, labels);
            }
        }
    }

    fn written(&self, labels: &L) -> Labels {
        let mut all = labels.labels();
        all.extend(self.scope.labels());
        Labels::new(&all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Eq, Hash)]
    struct Pair(Option<u16>, Option<u16>);

    impl LabelSet for Pair {
        fn labels(&self) -> Vec<Label<'_>> {
            let value = |number: Option<u16>| number.map_or_else(|| OTHER.into(), Into::into);
            vec![("a.b", value(self.0)), ("c", value(self.1))]
        }

        fn collapsed(&self) -> Self {
            Self(None, self.1.filter(|_| self.0.is_some()))
        }
    }

    const DEFINITIONS: &[Definition] =
        &[Definition { name: "x", exposed: "x_bytes", help: "X.", unit: Unit::Bytes }];
    const SCOPE: Scope = Scope { name: "s", version: "1" };

    #[test]
    fn further_label_sets_are_counted_together() {
        let families = Families::new(SCOPE, DEFINITIONS);
        for first in 0..1000 {
            for second in 0..100 {
                families.series(&Pair(Some(first), Some(second))).record(&[1]);
            }
        }
        let all = families.series.lock();
        assert_eq!(all.len(), MOST + MOST_COLLAPSED + 1);
        let total: u64 = all.values().map(|series| series.0[0].count()).sum();
        assert_eq!(total, 100_000, "nothing is lost");
        assert!(all[&Pair(None, None)].0[0].count() > 0);
    }

    #[test]
    fn every_series_names_its_scope() {
        let families = Families::new(SCOPE, DEFINITIONS);
        let mut text = Text::default();
        families.expose(&mut text);
        assert_eq!(text.into_string(), "", "no family without a series");
        families.series(&Pair(Some(1), None)).record(&[3]);
        let mut text = Text::default();
        families.expose(&mut text);
        let text = text.into_string();
        assert!(text.starts_with("# HELP x_bytes X.\n# TYPE x_bytes histogram\n"), "{text}");
        let count = r#"x_bytes_count{a_b="1",c="_other_",otel_scope_name="s",otel_scope_schema_url="",otel_scope_version="1"} 1"#;
        assert!(text.contains(count), "{text}");
    }
}
