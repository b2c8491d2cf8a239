//! Histories as a table of text, a column each.

use std::fmt::Write as _;

use crate::history::{History, Summary};

/// One line of the table.
type Row = (&'static str, fn(&Summary) -> String);

const ROWS: &[Row] = &[
    ("simulated", |s| duration(s.seconds)),
    ("requests", |s| grouped(s.requests)),
    ("found no room", |s| percent(s.waited, s.requests)),
    ("mean wait", |s| format!("{:.1} ms", s.mean_wait_seconds * 1000.0)),
    ("longest queue", |s| grouped(s.longest_queue)),
    ("queued at the end", |s| grouped(s.queued_at_end)),
    ("most pods", |s| s.most_pods.to_string()),
    ("pods started", |s| s.pods_started.to_string()),
    ("wakes from zero", |s| s.wakes.to_string()),
    ("time at zero", |s| percent(s.seconds_at_zero, s.seconds)),
    ("panics", |s| s.panics.to_string()),
    ("time in panic", |s| percent(s.panic_seconds, s.seconds)),
    ("activator in path", |s| percent(s.activator_seconds, s.seconds)),
    ("pod-seconds paid", |s| grouped(s.pod_seconds)),
    ("pod-seconds ideal", |s| grouped(s.ideal_pod_seconds)),
    ("paid for ideal", |s| ratio(s.pod_seconds, s.ideal_pod_seconds)),
];

/// The table's cells: a name and a value of each history, line by line.
#[must_use]
pub fn cells(histories: &[History]) -> Vec<(&'static str, Vec<String>)> {
    ROWS.iter().map(|(name, show)| (*name, histories.iter().map(|h| show(&h.summary)).collect())).collect()
}

/// The table as text; ends with a line break.
#[must_use]
pub fn text(histories: &[History]) -> String {
    let mut lines = vec![("", histories.iter().map(|h| h.setting.clone()).collect::<Vec<_>>())];
    lines.extend(cells(histories));
    let first = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|(_, cells)| cells.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..histories.len()).map(width).collect();
    let mut text = String::new();
    for (name, cells) in &lines {
        let mut line = format!("{name:first$}");
        for (cell, width) in cells.iter().zip(&widths) {
            // Writing to a String does not fail.
            let _ = write!(line, "  {cell:>width$}");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn percent(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.2} %", 100.0 * part / whole) } else { "-".to_owned() }
}

fn ratio(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.2} x", part / whole) } else { "-".to_owned() }
}

/// A whole number with its thousands apart.
pub(crate) fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.max(0.0));
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds as days, hours, minutes and seconds.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    let parts = [(whole / 86_400, "d"), (whole / 3600 % 24, "h"), (whole / 60 % 60, "m"), (whole % 60, "s")];
    let text: String = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_can_be_read() {
        assert_eq!([0.0, 999.4, 1000.0, 1_234_567.0].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.0, 61.0, 90_000.0, 604_800.0].map(duration), ["0s", "1m1s", "1d1h", "7d"]);
    }
}
