//! The page with charts: one file, nothing loaded from elsewhere.

use std::fmt::Write;

use super::charts::{Bar, bars, escape};
use super::report::{Report, Row, title};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5d6873; --line: #d9dee3; --ours: #d9480f; --theirs: #7a8794; --page: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebee; --soft: #9aa5b0; --line: #333c45; --ours: #ff7a3d; --theirs: #74828f; --page: #15191d } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1000px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.1em; margin: 2em 0 .3em; border-bottom: 1px solid var(--line) }
p, small { color: var(--soft) }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1em 2em }
figure { margin: 0 } figcaption { font-weight: 600 } figcaption small { font-weight: 400 }
svg { width: 100%; height: auto; display: block } svg text { font-size: 12px; fill: var(--ink); dominant-baseline: central }
svg .label { text-anchor: end } svg .number { fill: var(--soft); font-variant-numeric: tabular-nums }
rect.ours { fill: var(--ours) } rect.theirs { fill: var(--theirs) }
.wide { overflow-x: auto; margin-top: 1em } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; width: 100% }
th, td { text-align: right; padding: .15em .6em; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { color: var(--soft); font-weight: 500 }
";

/// The page.
pub(super) fn render(report: &Report) -> String {
    let machine = &report.machine;
    let mut html = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>What a proxied request costs</title><style>{STYLE}</style>\n\
         <h1>What a proxied request costs</h1>\n<p>{}, {} CPUs, Linux {}, {}. Load average at the start: {}. \
         Ember's own are in colour. Compare within this page: the targets took turns on one machine.</p>\n",
        escape(&machine.cpu),
        machine.cpus,
        escape(&machine.kernel),
        escape(&machine.at),
        escape(&machine.load_average)
    );
    for rows in report.by_load() {
        let Some(first) = rows.first() else { continue };
        let _ = write!(html, "<h2>{}</h2>\n<div class=\"charts\">", escape(&title(first)));
        let proxies: Vec<&Row> = rows.iter().filter(|row| row.target != "direct").collect();
        html += &chart("CPU per request", "µs, of the proxy", 1, &proxies, |row| {
            row.cpu_us_per_request.into_iter().collect()
        });
        let all: Vec<&Row> = rows.iter().collect();
        if first.scenario == "closed-loop" {
            html += &chart("Requests per second", "", 0, &all, |row| row.rps.into_iter().collect());
        }
        html += &chart("Latency", "µs, p50 / p99", 0, &all, |row| {
            row.p50_us.into_iter().chain(row.p99_us).collect()
        });
        html += "</div>\n";
        html += &table(rows);
    }
    let rows = report.by_load().first().copied().unwrap_or_default();
    let proxies: Vec<&Row> = rows.iter().filter(|row| row.target != "direct").collect();
    html += "<h2>Memory and start</h2>\n<div class=\"charts\">";
    let memory = |name, of: &dyn Fn(&Row) -> Option<u64>| {
        chart(name, "MiB resident", 1, &proxies, |row| of(row).map(mib).into_iter().collect())
    };
    html += &memory("Idle", &|row| row.memory.rss_idle_kib);
    html += &memory("Under load", &|row| row.memory.rss_loaded_kib);
    html += &memory("With 1,000 idle connections", &|row| row.memory.rss_1000_idle_kib);
    html += &memory("After those were closed", &|row| row.memory.rss_after_1000_idle_kib);
    html += &chart("From start to the first answer", "ms", 2, &proxies, |row| {
        row.start_to_ready_ms.into_iter().collect()
    });
    html += "</div>\n<p>The activator's memory and start are those of two processes, its own and its \
             queue-proxy's.</p>\n</html>\n";
    html
}

fn chart(title: &str, unit: &str, digits: usize, rows: &[&Row], of: impl Fn(&Row) -> Vec<f64>) -> String {
    let lines: Vec<Bar> = rows
        .iter()
        .map(|row| Bar {
            label: row.target.clone(),
            values: of(row),
            ours: ["queue-proxy", "activator", "activator-10000"].contains(&row.target.as_str()),
        })
        .filter(|bar| !bar.values.is_empty())
        .collect();
    bars(title, unit, digits, &lines)
}

#[expect(clippy::cast_precision_loss, reason = "memory in KiB")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn table(rows: &[Row]) -> String {
    let mut html =
        "<div class=\"wide\"><table><tr><th>target<th>req/s<th>p50 µs<th>p90 µs<th>p99 µs<th>p99.9 µs\
                    <th>CPU µs<th>of each process<th>errors</tr>\n"
            .to_owned();
    for row in rows {
        let _ = write!(html, "<tr><td>{}", escape(&row.target));
        let numbers =
            [row.rps, row.p50_us, row.p90_us, row.p99_us, row.p999_us, row.cpu_us_per_request].into_iter();
        for number in numbers {
            match number {
                Some(number) => {
                    let _ = write!(html, "<td>{number}");
                }
                None => html += "<td>–",
            }
        }
        let each: Vec<String> = row
            .cpu_us_per_request_by_process
            .iter()
            .map(|(name, cpu)| format!("{} {cpu}", escape(name)))
            .collect();
        let _ = writeln!(html, "<td>{}<td>{}</tr>", each.join(", "), row.errors);
    }
    html += "</table></div>\n";
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_page_with_everything_in_it() {
        let page = render(&super::super::report::tests::report());
        assert!(page.contains("CPU &lt;x&gt;"), "{page}");
        assert_eq!(page.matches("<h2>").count(), 2 * 7 + 1);
        assert_eq!(page.matches("<tr><td>").count(), 30);
        for outside in ["http://", "https://", "src=", "href="] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
