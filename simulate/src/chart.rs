//! Histories as one SVG: the load, the pods of each setting, and the requests that wait, over one time axis.
//!
//! It loads nothing and follows the reader's light or dark scheme.

use std::fmt::Write as _;

use crate::history::{History, Point};
use crate::table::{duration, grouped};
use crate::trace::Unit;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
/// Of a panel: its title, its plot, and the space below.
const TITLE: f64 = 30.0;
const PLOT: f64 = 140.0;
const BELOW: f64 = 18.0;
/// The labels of the time axis, below all panels.
const AXIS: f64 = 30.0;

/// Colours by role. Lines of waiting requests take those of their setting, in order.
const STYLE: &str = "\
svg.ember{--bg:#ffffff;--fg:#1f2328;--muted:#59636e;--grid:#e2e6ea;--load:#0969da;--ideal:#8c959f;--wanted:#bc4c00;\
--ready:#1a7f37;--panic:#cf222e;--path:#8250df;--s0:#0969da;--s1:#bf3989;--s2:#9a6700;--s3:#1b7c83;\
font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',sans-serif}\
@media (prefers-color-scheme:dark){svg.ember{--bg:#0d1117;--fg:#e6edf3;--muted:#9198a1;--grid:#262c36;--load:#58a6ff;\
--ideal:#6e7681;--wanted:#f0883e;--ready:#3fb950;--panic:#f85149;--path:#a371f7;--s0:#58a6ff;--s1:#f778ba;--s2:#e3b341;--s3:#56d4dd}}\
.ember .bg{fill:var(--bg)}.ember text{fill:var(--fg)}.ember .label{fill:var(--muted)}.ember .title{font-weight:600}\
.ember .grid{stroke:var(--grid)}.ember .axis{stroke:var(--muted)}.ember .line{fill:none;stroke-width:1.6}\
.ember .load{fill:var(--load);fill-opacity:.22;stroke:var(--load)}.ember .ideal{fill:var(--ideal);fill-opacity:.3;stroke:none}\
.ember .wanted{stroke:var(--wanted);stroke-dasharray:5 3}.ember .ready{stroke:var(--ready);stroke-width:2}\
.ember .panic{fill:var(--panic);fill-opacity:.13}.ember .path{fill:var(--path);fill-opacity:.7}\
.ember .s0{stroke:var(--s0)}.ember .s1{stroke:var(--s1)}.ember .s2{stroke:var(--s2)}.ember .s3{stroke:var(--s3)}";

/// How many settings have colours of their own; further ones begin anew.
const COLOURS: usize = 4;

/// An entry of a legend: how it is drawn, its class, its name.
struct Entry<'a>(Mark, String, &'a str);

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    Line,
    Area,
}

/// Draws the histories; they are of the same trace.
#[must_use]
pub fn svg(histories: &[History]) -> String {
    let Some(first) = histories.first() else { return String::new() };
    let panel = TITLE + PLOT + BELOW;
    let height = panel * (histories.len() + 2) as f64 + AXIS;
    let mut chart = Chart { out: String::new(), seconds: first.summary.seconds.max(1.0), top: 0.0 };
    chart.write(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"ember\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\
         <title>Simulated autoscaling</title><style>{STYLE}</style>\
         <rect class=\"bg\" width=\"{WIDTH}\" height=\"{height}\"/>\n"
    ));

    let load: fn(&Point) -> f64 = match first.unit {
        Unit::Concurrency => |p| p.offered_concurrency,
        Unit::Rps => |p| p.offered_rps,
    };
    let title = match first.unit {
        Unit::Concurrency => "Offered concurrency",
        Unit::Rps => "Offered requests a second",
    };
    chart.panel(title, &[], most(histories, load), |chart, scale| {
        chart.series(first, scale, "load", Mark::Area, load);
    });

    let pods = most(histories, |p| f64::from(p.wanted_pods.max(p.ready_pods).max(p.ideal_pods)));
    for history in histories {
        // As long as the legend leaves room for.
        let title = shortened(&format!("Pods: {}", history.setting), 40);
        let legend = [
            Entry(Mark::Line, "line ready".into(), "ready"),
            Entry(Mark::Line, "line wanted".into(), "wanted"),
            Entry(Mark::Area, "ideal".into(), "needed by the load"),
            Entry(Mark::Area, "panic".into(), "panic"),
            Entry(Mark::Area, "path".into(), "activator in path"),
        ];
        chart.panel(&title, &legend, pods, |chart, scale| {
            chart.panics(history);
            chart.activator(history);
            chart.series(history, scale, "ideal", Mark::Area, |p| f64::from(p.ideal_pods));
            chart.series(history, scale, "line ready", Mark::Line, |p| f64::from(p.ready_pods));
            chart.series(history, scale, "line wanted", Mark::Line, |p| f64::from(p.wanted_pods));
        });
    }

    let class = |index: usize| format!("line s{}", index % COLOURS);
    let legend: Vec<Entry<'_>> = if histories.len() > 1 {
        let named = histories.iter().enumerate();
        named.map(|(index, h)| Entry(Mark::Line, class(index), h.setting.as_str())).collect()
    } else {
        Vec::new()
    };
    chart.panel("Requests waiting", &legend, most(histories, |p| p.queued), |chart, scale| {
        for (index, history) in histories.iter().enumerate() {
            chart.series(history, scale, &class(index), Mark::Line, |p| p.queued);
        }
    });
    chart.time_labels();
    chart.out.push_str("</svg>\n");
    chart.out
}

fn most(histories: &[History], value: impl Fn(&Point) -> f64) -> f64 {
    histories.iter().flat_map(|h| &h.points).map(value).fold(0.0, f64::max)
}

struct Chart {
    out: String,
    seconds: f64,
    /// Where the next panel begins.
    top: f64,
}

/// From values to heights of the present panel.
#[derive(Clone, Copy)]
struct Scale {
    bottom: f64,
    most: f64,
}

impl Scale {
    fn y(self, value: f64) -> f64 {
        self.bottom - PLOT * value / self.most
    }
}

impl Chart {
    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = self.out.write_fmt(text);
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * seconds / self.seconds
    }

    fn panel(&mut self, title: &str, legend: &[Entry<'_>], most: f64, draw: impl FnOnce(&mut Self, Scale)) {
        let step = tick(most.max(1.0), 4.0);
        let top = (most.max(1.0) / step).ceil() * step;
        let scale = Scale { bottom: self.top + TITLE + PLOT, most: top };
        let baseline = self.top + TITLE - 10.0;
        self.write(format_args!(
            "<text class=\"title\" x=\"{LEFT}\" y=\"{baseline}\">{}</text>\n",
            escaped(title)
        ));
        self.legend(legend, baseline);
        let right = WIDTH - RIGHT;
        let ticks = (top / step).round() as u32;
        for number in 0..=ticks {
            let value = f64::from(number) * step;
            let (y, class) = (scale.y(value), if number == 0 { "axis" } else { "grid" });
            self.write(format_args!(
                "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"label\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>\n",
                LEFT - 8.0,
                y + 4.0,
                number_label(value),
            ));
        }
        draw(self, scale);
        self.top += TITLE + PLOT + BELOW;
    }

    /// From the right: each mark has its name before it.
    fn legend(&mut self, legend: &[Entry<'_>], baseline: f64) {
        const MARK: f64 = 20.0;
        let mut right = WIDTH - RIGHT;
        for Entry(mark, class, name) in legend.iter().rev() {
            let name = shortened(name, 44);
            let begin = right - MARK;
            match mark {
                Mark::Line => self.write(format_args!(
                    "<path class=\"{class}\" d=\"M{begin:.1} {}h{MARK}\"/>",
                    baseline - 4.0
                )),
                Mark::Area => self.write(format_args!(
                    "<rect class=\"{class}\" x=\"{begin:.1}\" y=\"{}\" width=\"{MARK}\" height=\"11\"/>",
                    baseline - 10.0
                )),
            }
            let end = begin - 6.0;
            self.write(format_args!(
                "<text class=\"label\" text-anchor=\"end\" x=\"{end:.1}\" y=\"{baseline}\">{}</text>\n",
                escaped(&name)
            ));
            // More than the mean width of a letter, so that entries stay apart.
            right = end - 7.0 * name.chars().count() as f64 - 12.0;
        }
    }

    fn series(
        &mut self,
        history: &History,
        scale: Scale,
        class: &str,
        mark: Mark,
        value: impl Fn(&Point) -> f64,
    ) {
        let mut path = String::new();
        let mut last: Option<f64> = None;
        for point in &history.points {
            let y = scale.y(value(point));
            let x = self.x(point.time);
            // Each value holds until the next: steps, and nothing where nothing changes.
            let _ = match last {
                None => write!(path, "M{x:.1} {y:.1}"),
                Some(before) if (before - y).abs() < 0.05 => continue,
                Some(_) => write!(path, "H{x:.1}V{y:.1}"),
            };
            last = Some(y);
        }
        let end = self.x(self.seconds);
        let _ = write!(path, "H{end:.1}");
        if mark == Mark::Area {
            let _ = write!(path, "V{:.1}H{LEFT}Z", scale.bottom);
        }
        self.write(format_args!("<path class=\"{class}\" d=\"{path}\"/>\n"));
    }

    /// Spans of panic, at least as wide as can be seen.
    fn panics(&mut self, history: &History) {
        let top = self.top + TITLE;
        for &(begin, end) in &history.panics {
            let (begin, end) = (self.x(begin), self.x(end));
            self.write(format_args!(
                "<rect class=\"panic\" x=\"{begin:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{PLOT}\"/>\n",
                (end - begin).max(1.0)
            ));
        }
    }

    /// A strip below the plot for as long as requests go through the activator.
    fn activator(&mut self, history: &History) {
        let y = self.top + TITLE + PLOT + 3.0;
        let mut since = None;
        let last = std::iter::once((self.seconds, false));
        let course = history.points.iter().map(|p| (p.time, p.activator_in_path)).chain(last);
        for (time, through) in course {
            match (since, through) {
                (None, true) => since = Some(time),
                (Some(begin), false) => {
                    let (begin, end) = (self.x(begin), self.x(time));
                    self.write(format_args!(
                        "<rect class=\"path\" x=\"{begin:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"5\"/>\n",
                        (end - begin).max(1.0)
                    ));
                    since = None;
                }
                _ => {}
            }
        }
    }

    fn time_labels(&mut self) {
        let step = time_step(self.seconds);
        let y = self.top - BELOW + 18.0;
        let mut at = 0.0;
        while at <= self.seconds {
            let x = self.x(at);
            let anchor = if at + step > self.seconds && x > WIDTH - RIGHT - 20.0 { "end" } else { "middle" };
            self.write(format_args!(
                "<text class=\"label\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y}\">{}</text>\n",
                if at == 0.0 { "0".to_owned() } else { duration(at) }
            ));
            at += step;
        }
    }
}

/// A round step that divides `most` into about `parts`.
fn tick(most: f64, parts: f64) -> f64 {
    let rough = most / parts;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|s| s * power >= rough).unwrap_or(10.0);
    (step * power).max(0.25)
}

/// A step between labels of time: about ten of them.
fn time_step(seconds: f64) -> f64 {
    const STEPS: [f64; 17] = [
        1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14_400.0, 21_600.0,
        43_200.0, 86_400.0, 604_800.0,
    ];
    let rough = seconds / 10.0;
    STEPS.into_iter().find(|step| *step >= rough).unwrap_or((rough / 604_800.0).ceil() * 604_800.0)
}

fn number_label(value: f64) -> String {
    if value.fract() == 0.0 { grouped(value) } else { format!("{value}") }
}

fn shortened(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(letters - 1).collect();
    short.push('…');
    short
}

/// Text as it may stand in XML and HTML.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            _ => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_steps() {
        assert_eq!([1.0, 3.0, 7.0, 42.0, 1000.0].map(|most| tick(most, 4.0)), [0.5, 1.0, 2.0, 20.0, 500.0]);
        assert_eq!([60.0, 600.0, 86_400.0, 604_800.0].map(time_step), [10.0, 60.0, 14_400.0, 86_400.0]);
    }
}
