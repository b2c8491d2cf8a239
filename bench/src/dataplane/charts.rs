//! Charts as inline SVG.

use std::fmt::Write;

/// A line of a chart: what it is of, and its values, drawn one within the other.
#[derive(Debug)]
pub(super) struct Bar {
    pub(super) label: String,
    /// The longest last.
    pub(super) values: Vec<f64>,
    /// Drawn in the colour of what the page is about.
    pub(super) ours: bool,
}

const WIDTH: f64 = 460.0;
const LABELS: f64 = 96.0;
const NUMBERS: f64 = 120.0;
const LINE: f64 = 24.0;

/// Horizontal bars from zero; the numbers beside them have `digits` decimals. Nothing, if there is nothing to draw.
pub(super) fn bars(title: &str, unit: &str, digits: usize, bars: &[Bar]) -> String {
    let longest = bars.iter().flat_map(|bar| &bar.values).copied().fold(0.0, f64::max);
    if longest <= 0.0 {
        return String::new();
    }
    let room = WIDTH - LABELS - NUMBERS;
    let mut svg = String::new();
    let mut y = 0.0;
    for bar in bars {
        let class = if bar.ours { "ours" } else { "theirs" };
        let middle = y + LINE / 2.0;
        let label = escape(&bar.label);
        // Writing to a string does not fail.
        let _ = write!(svg, r#"<text class="label" x="{}" y="{middle}">{label}</text>"#, LABELS - 8.0);
        for (at, value) in bar.values.iter().enumerate().rev() {
            let width = (value / longest * room).max(1.0);
            let opacity = if at == 0 { 1.0 } else { 0.35 };
            let _ = write!(
                svg,
                r#"<rect class="{class}" x="{LABELS}" y="{}" width="{width:.1}" height="{}" rx="2" opacity="{opacity}"/>"#,
                y + 4.0,
                LINE - 8.0
            );
        }
        let end = bar.values.iter().copied().fold(0.0, f64::max) / longest * room;
        let numbers: Vec<String> = bar.values.iter().map(|value| format!("{value:.digits$}")).collect();
        let _ = write!(
            svg,
            r#"<text class="number" x="{:.1}" y="{middle}">{}</text>"#,
            LABELS + end + 6.0,
            numbers.join(" / ")
        );
        y += LINE;
    }
    format!(
        r#"<figure><figcaption>{} <small>{}</small></figcaption><svg viewBox="0 0 {WIDTH} {y}" role="img" aria-label="{}">{svg}</svg></figure>"#,
        escape(title),
        escape(unit),
        escape(title)
    )
}

/// Text for HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() {
        let bar =
            |label: &str, value| Bar { label: label.to_owned(), values: vec![value], ours: label == "a" };
        let svg = bars("t", "µs", 1, &[bar("a", 50.0), bar("<b>", 100.0)]);
        assert!(svg.contains(r#"class="ours" x="96" y="4" width="122.0""#), "{svg}");
        assert!(svg.contains(r#"class="theirs" x="96" y="28" width="244.0""#), "{svg}");
        assert!(svg.contains("&lt;b&gt;") && svg.contains(">100.0<"), "{svg}");
        assert_eq!(bars("t", "", 0, &[]), "");
    }
}
