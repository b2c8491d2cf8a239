//! The table that `ember up` keeps on a terminal: what runs, and what it has to do. Pure.

use std::collections::BTreeMap;

use ember_api::serving::v1::Service;
use ember_api::status::Conditioned;
use ember_autoscaler::RevisionScale;
use kube::ResourceExt;

/// A revision of a service, or a service without one that takes traffic.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Row {
    /// The service, with its namespace unless that is `default`.
    service: String,
    revision: String,
    /// Percent of the service's traffic.
    traffic: Option<i64>,
    /// What the autoscaler says of it.
    scale: Option<RevisionScale>,
    /// Why the service is not ready, if it is not.
    trouble: String,
}

/// Rows by namespace and name; each service's revisions with those first that have most traffic.
pub(crate) fn rows(services: &[impl AsRef<Service>], scales: &[RevisionScale]) -> Vec<Row> {
    let mut services: Vec<&Service> = services.iter().map(AsRef::as_ref).collect();
    services.sort_by_key(|service| (service.namespace(), service.name_any()));
    let mut rows = Vec::new();
    for service in services {
        let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
        let mut traffic: BTreeMap<&str, i64> = BTreeMap::new();
        for target in service.status.iter().flat_map(|status| &status.traffic) {
            *traffic.entry(target.revision_name.as_str()).or_default() += target.percent.unwrap_or(0);
        }
        let own = |scale: &&RevisionScale| scale.namespace == namespace && scale.service == name;
        for scale in scales.iter().filter(own) {
            // What has no traffic is shown for as long as it has pods.
            if scale.ready > 0 || scale.wanted.unwrap_or(0) > 0 {
                traffic.entry(&scale.revision).or_default();
            }
        }
        let label = if namespace == "default" { name.clone() } else { format!("{namespace}/{name}") };
        let trouble = trouble(service);
        if traffic.is_empty() {
            rows.push(Row { service: label, trouble, ..Row::default() });
            continue;
        }
        let mut shares: Vec<(&str, i64)> = traffic.into_iter().collect();
        shares.sort_by_key(|(revision, percent)| (-percent, std::cmp::Reverse(*revision)));
        for (revision, percent) in shares {
            let scale = scales.iter().find(|scale| own(scale) && scale.revision == revision);
            rows.push(Row {
                service: label.clone(),
                revision: revision.to_owned(),
                traffic: Some(percent),
                scale: scale.cloned(),
                trouble: trouble.clone(),
            });
        }
    }
    rows
}

fn trouble(service: &Service) -> String {
    match service.ready_condition() {
        _ if service.is_ready() => String::new(),
        Some(ready) if service.is_failed() && !ready.reason.is_empty() => ready.reason.clone(),
        _ if service.is_failed() => "failed".to_owned(),
        _ => "starting".to_owned(),
    }
}

const HEADER: [&str; 7] = ["SERVICE", "REVISION", "TRAFFIC", "PODS", "CONCURRENCY", "RPS", "STATE"];
/// Columns whose numbers stand one below the other.
const RIGHT: [bool; 7] = [false, false, true, true, true, true, false];
const GAP: usize = 2;
/// No column is cut below this.
const NARROWEST: usize = 6;

impl Row {
    fn cells(&self) -> [String; 7] {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
        let scale = self.scale.as_ref();
        let pods = scale.map_or_else(
            || "-".to_owned(),
            |scale| {
                let wanted = scale.wanted.map_or_else(|| "?".to_owned(), |wanted| wanted.to_string());
                format!("{}/{wanted}", scale.ready)
            },
        );
        let state = match scale {
            _ if !self.trouble.is_empty() => self.trouble.as_str(),
            Some(scale) if scale.panicking => "panic",
            Some(scale) if scale.ready == 0 && scale.wanted.unwrap_or(0) == 0 => "asleep",
            Some(scale) if scale.ready < scale.wanted.unwrap_or(0) => "starting",
            Some(_) => "stable",
            None => "",
        };
        [
            self.service.clone(),
            self.revision.clone(),
            self.traffic.map_or_else(|| "-".to_owned(), |percent| format!("{percent} %")),
            pods,
            number(scale.and_then(|scale| scale.concurrency)),
            number(scale.and_then(|scale| scale.rps)),
            state.to_owned(),
        ]
    }
}

/// The table, a line a row below a heading, none longer than `width` characters and no more than `height` lines. What
/// does not fit is cut: the state, then names; rows that have no place are counted in the last line.
pub(crate) fn lines(rows: &[Row], width: usize, height: usize) -> Vec<String> {
    if rows.is_empty() || height < 2 || width < NARROWEST {
        return Vec::new();
    }
    let fit = height - 1;
    let shown = if rows.len() <= fit { rows.len() } else { fit - 1 };
    let mut cells = vec![HEADER.map(str::to_owned)];
    cells.extend(rows[..shown].iter().map(Row::cells));
    let mut widths: [usize; 7] =
        std::array::from_fn(|column| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let needed = |widths: &[usize; 7]| widths.iter().sum::<usize>() + GAP * (widths.len() - 1);
    // Words can be told by less of them; numbers cannot.
    for column in [6, 1, 0] {
        let over = needed(&widths).saturating_sub(width);
        widths[column] = (widths[column].saturating_sub(over)).max(NARROWEST.min(widths[column]));
    }
    let mut lines: Vec<String> = cells
        .iter()
        .map(|row| {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let (cell, room) = (cut(cell, widths[column]), widths[column]);
                line += &if RIGHT[column] { format!("{cell:>room$}") } else { format!("{cell:<room$}") };
                line += "  ";
            }
            cut(line.trim_end(), width)
        })
        .collect();
    if shown < rows.len() {
        lines.push(cut(&format!("and {} more", rows.len() - shown), width));
    }
    lines
}

/// At most `width` characters of a text; a cut one ends in `…`.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn scale(service: &str, revision: &str, ready: u32, wanted: u32) -> RevisionScale {
        RevisionScale {
            namespace: "default".into(),
            service: service.into(),
            revision: revision.into(),
            wanted: Some(wanted),
            ready,
            concurrency: Some(1.25),
            rps: Some(120.0),
            panicking: false,
        }
    }

    fn service(name: &str, traffic: &serde_json::Value, ready: &str) -> Arc<Service> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "default", "generation": 1}, "spec": {"template": {}},
                "status": {"observedGeneration": 1, "traffic": traffic, "conditions": [
                    {"type": "Ready", "status": ready, "reason": if ready == "True" { "" } else { "RevisionMissing" }}]},
            }))
            .unwrap(),
        )
    }

    fn both() -> Vec<Row> {
        let split = json!([{"revisionName": "a-1", "percent": 10}, {"revisionName": "a-2", "percent": 80},
                           {"revisionName": "a-2", "percent": 10, "tag": "t"}]);
        let mut panicking = scale("a", "a-2", 2, 3);
        panicking.panicking = true;
        let scales =
            [scale("a", "a-1", 0, 0), panicking, scale("a", "a-0", 1, 0), scale("other", "o-1", 1, 1)];
        rows(&[service("b", &json!([]), "False"), service("a", &split, "True")], &scales)
    }

    #[test]
    fn revisions_stand_below_their_heading() {
        assert_eq!(
            lines(&both(), 100, 10),
            [
                "SERVICE  REVISION  TRAFFIC  PODS  CONCURRENCY    RPS  STATE",
                "a        a-2          90 %   2/3          1.2  120.0  panic",
                "a        a-1          10 %   0/0          1.2  120.0  asleep",
                "a        a-0           0 %   1/0          1.2  120.0  stable",
                "b                        -     -            -      -  RevisionMissing",
            ]
        );
    }

    #[test]
    fn nothing_is_wider_or_higher_than_the_terminal() {
        for width in 6..90 {
            for height in 2..8 {
                let lines = lines(&both(), width, height);
                assert!(lines.len() <= height, "{height}: {lines:#?}");
                assert!(lines.iter().all(|line| line.chars().count() <= width), "{width}: {lines:#?}");
            }
        }
        assert_eq!(lines(&both(), 80, 4).last().map(String::as_str), Some("and 2 more"));
        assert_eq!(lines(&[], 80, 10), Vec::<String>::new());
        assert_eq!(lines(&both(), 80, 1), Vec::<String>::new());
    }

    #[test]
    fn words_are_cut_and_numbers_are_not() {
        let lines = lines(&both(), 66, 10);
        assert_eq!(lines[1], "a        a-2          90 %   2/3          1.2  120.0  panic");
        assert!(lines[4].ends_with(" RevisionMis…"), "{lines:#?}");
    }
}
