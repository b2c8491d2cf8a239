//! Decisions checked against those of the reference implementation.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::time::Time;

/// Offsets in the data count from here: 2000-01-01T00:00:00Z.
pub(crate) const BASE_MILLIS: i64 = 946_684_800_000;

/// A float that may be written as the name of a special value.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(from = "Written")]
pub(crate) struct Float(pub(crate) f64);

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(f64),
    Name(String),
}

impl From<Written> for Float {
    fn from(written: Written) -> Self {
        Self(match written {
            Written::Number(number) => number,
            Written::Name(name) if name == "+Inf" => f64::INFINITY,
            Written::Name(name) if name == "-Inf" => f64::NEG_INFINITY,
            // The bits of the reference's NaN: encodings are compared byte by byte.
            Written::Name(name) if name == "NaN" => f64::from_bits(0x7ff8_0000_0000_0001),
            Written::Name(name) => name.parse().unwrap_or_else(|_| panic!("{name} is no float")),
        })
    }
}

/// Puts numbers of many digits in quotes, for [`Float`] to read them to the last bit. The JSON parser's own reading may
/// be one bit off, as far as a decision that hangs on the last bit.
fn quote_long_numbers(json: &str) -> String {
    const EXACT_DIGITS: usize = 15;
    let mut quoted = String::with_capacity(json.len() + json.len() / 8);
    let mut rest = json;
    while let Some(at) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        let (before, token) = rest.split_at(at);
        quoted.push_str(before);
        let length = if token.starts_with('"') {
            let mut escaped = false;
            let end = token.get(1..).unwrap_or_default().find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(token.len(), |end| end + 2)
        } else {
            token.find(|c: char| !matches!(c, '-' | '+' | '.' | 'e' | 'E' | '0'..='9')).unwrap_or(token.len())
        };
        let (token, after) = token.split_at(length);
        let digits = token.bytes().filter(u8::is_ascii_digit).count();
        let long = !token.starts_with('"') && token.contains('.') && digits > EXACT_DIGITS;
        quoted.extend(if long { ["\"", token, "\""] } else { ["", token, ""] });
        rest = after;
    }
    quoted.push_str(rest);
    quoted
}

#[test]
fn long_numbers_are_read_to_the_last_bit() {
    let json = r#"{"a\"1.2345678901234567": 0.30000000000000004, "b": [-1.5, 12, 1.2345678901234567e-9]}"#;
    let quoted = quote_long_numbers(json);
    assert_eq!(
        quoted,
        r#"{"a\"1.2345678901234567": "0.30000000000000004", "b": [-1.5, 12, "1.2345678901234567e-9"]}"#
    );
    let value: Float = serde_json::from_str("\"0.30000000000000004\"").unwrap();
    assert_eq!(value.0, 0.1 + 0.2);
}

impl Float {
    /// Equal but for the last digits, in which implementations of powers differ; special values included.
    pub(crate) fn is(self, got: f64) -> bool {
        let want = self.0;
        self.is_exactly(got) || (want - got).abs() <= 1e-12 * want.abs()
    }

    /// Equal to the last bit; no number is like any other.
    pub(crate) fn is_exactly(self, got: f64) -> bool {
        self.0 == got || (self.0.is_nan() && got.is_nan())
    }
}

pub(crate) fn at(offset_ms: i64) -> Time {
    Time::from_millis(BASE_MILLIS + offset_ms)
}

pub(crate) fn seconds(seconds: Float) -> Duration {
    Duration::from_secs_f64(seconds.0)
}

/// Runs `check` on every case of a section and reports all failures. `check` returns what is wrong.
pub(crate) fn check<C: DeserializeOwned + Debug>(section: &str, check: impl Fn(&C) -> Vec<String>) {
    let folder = std::env::var_os("EMBER_VECTORS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors")),
        PathBuf::from,
    );
    let file = std::fs::read_to_string(folder.join("kpa.json")).expect("kpa.json");
    let mut sections: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&quote_long_numbers(&file)).expect("kpa.json is JSON");
    let cases = sections.remove(section).unwrap_or_else(|| panic!("no section {section}"));
    let cases: Vec<serde_json::Value> = serde_json::from_value(cases).expect("a list of cases");
    assert!(!cases.is_empty(), "no case in {section}");
    let mut failures = Vec::new();
    for (number, value) in cases.iter().enumerate() {
        let wrong = match serde_json::from_value(value.clone()) {
            Ok(case) => check(&case),
            Err(error) => vec![format!("it cannot be read: {error}")],
        };
        if !wrong.is_empty() {
            let name = value.get("name").and_then(serde_json::Value::as_str).unwrap_or_default();
            failures.push(format!("{section} {number} {name}: {}", wrong.join("; ")));
        }
    }
    println!("{section}: {} of {} cases agree", cases.len() - failures.len(), cases.len());
    assert!(failures.is_empty(), "{} of {} failed:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// What differs, if anything does.
pub(crate) fn differ<T: PartialEq + Debug>(what: &str, want: &T, got: &T) -> Option<String> {
    (want != got).then(|| format!("{what}: want {want:?}, got {got:?}"))
}

mod buckets;
mod deciding;
mod measuring;
mod objects;
mod pipeline;
mod reconciling;
mod resolving;
