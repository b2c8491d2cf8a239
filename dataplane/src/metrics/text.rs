//! Prometheus' text format, version 0.0.4.

use std::borrow::Cow;
use std::fmt::Write as _;

/// A value of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// Text.
    Text(Cow<'a, str>),
    /// A number.
    Number(i64),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<u16> for Value<'_> {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

/// A label: OpenTelemetry's name and the value.
pub type Label<'a> = (&'static str, Value<'a>);

/// What a family of metrics is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// An exposition under way.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// Opens a family: its samples follow.
    pub fn family(&mut self, name: &str, help: &str, kind: Kind) {
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// A sample of a family.
    pub fn sample(&mut self, name: &str, labels: &Labels, value: impl std::fmt::Display) {
        let labels = &labels.0;
        if labels.is_empty() {
            self.write(format_args!("{name} {value}\n"));
        } else {
            self.write(format_args!("{name}{{{labels}}} {value}\n"));
        }
    }

    /// A bucket of a histogram: what is at most `bound`.
    pub(super) fn bucket(&mut self, name: &str, labels: &Labels, bound: Option<f64>, count: u64) {
        let labels = &labels.0;
        let comma = if labels.is_empty() { "" } else { "," };
        match bound {
            Some(bound) => {
                self.write(format_args!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}\n"));
            }
            None => self.write(format_args!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}\n")),
        }
    }

    /// Text in the same format.
    pub fn append(&mut self, text: &str) {
        self.0.push_str(text);
    }

    /// The whole of it.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }

    fn write(&mut self, arguments: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.0.write_fmt(arguments);
    }
}

/// Labels in their written form: names as Prometheus has them, in order, values escaped.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels(String);

impl Labels {
    /// Writes labels down.
    #[must_use]
    pub fn new<N: AsRef<str>>(labels: &[(N, Value<'_>)]) -> Self {
        let mut named: Vec<(String, &Value<'_>)> =
            labels.iter().map(|(name, value)| (prometheus_name(name.as_ref()), value)).collect();
        named.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut text = String::new();
        for (name, value) in named {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(&name);
            text.push_str("=\"");
            match value {
                Value::Text(value) => escape(&mut text, value),
                Value::Number(number) => {
                    let _ = write!(text, "{number}");
                }
            }
            text.push('"');
        }
        Self(text)
    }
}

/// Dots, and whatever else Prometheus does not have in names, become underscores.
fn prometheus_name(name: &str) -> String {
    let digit = name.starts_with(|first: char| first.is_ascii_digit());
    let allowed = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
    digit.then_some('_').into_iter().chain(name.chars().map(allowed)).collect()
}

fn escape(text: &mut String, value: &str) {
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_named_sorted_and_escaped() {
        let labels = Labels::new(&[
            ("url.scheme", "http".into()),
            ("http.response.status_code", 200.into()),
            ("kn.route.tag", "a\"\\\nb".to_owned().into()),
            ("1-st", "x".into()),
        ]);
        assert_eq!(
            labels.0,
            r#"_1_st="x",http_response_status_code="200",kn_route_tag="a\"\\\nb",url_scheme="http""#
        );
    }

    #[test]
    fn samples_with_and_without_labels() {
        let mut text = Text::default();
        text.family("depth", "How deep.", Kind::Gauge);
        text.sample("depth", &Labels::default(), 3);
        text.bucket("h", &Labels::default(), Some(0.005), 1);
        text.bucket("h", &Labels::new(&[("a", "b".into())]), None, 2);
        assert_eq!(
            text.into_string(),
            "# HELP depth How deep.\n# TYPE depth gauge\ndepth 3\nh_bucket{le=\"0.005\"} 1\nh_bucket{a=\"b\",le=\"+Inf\"} 2\n"
        );
    }
}
