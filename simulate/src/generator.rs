//! Load made up from a few words.
//!
//! A specification is a sum of parts joined by `+`; a part is `KIND:KEY=VALUE,…`. The [`HELP`] says which there are.

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::time::Duration;

use ember_api::golang::parse_duration;

use crate::trace::{Trace, Unit};

/// What a specification may say.
pub const HELP: &str = "\
Parts joined by + add up; each is KIND:KEY=VALUE,KEY=VALUE:
  constant:value=20                        the same all the time
  steps:values=0/50/200/0,every=2m         one value after the other, the last one stays
  ramp:from=0,to=200,over=5m               a straight line, then its end
  sine:mean=50,amplitude=40,period=10m     a wave, never below 0
  bursts:rate=0.5,size=80,length=20s       bursts at random moments (Poisson), rate of them a minute
Every kind takes start=DURATION: nothing before it.
Example: constant:value=5+bursts:rate=0.5,size=80,length=20s";

/// The longest generated trace, in seconds: a year.
const LONGEST_SECONDS: u64 = 3600 * 24 * 366;

/// Why a specification is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// A part without a known kind.
    #[error(
        "generate: {0:?}: the kind must be constant, steps, ramp, sine or bursts, as in steps:values=0/50,every=2m"
    )]
    Kind(String),
    /// A part without keys, or a key without value.
    #[error("generate: {kind}: {found:?}: must be KEY=VALUE")]
    NotAPair {
        /// The part's kind.
        kind: String,
        /// What stands there.
        found: String,
    },
    /// A key that is missing or unknown.
    #[error("generate: {kind}: {key}: {rule}")]
    Key {
        /// The part's kind.
        kind: String,
        /// The key.
        key: String,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// A value that is not what it has to be.
    #[error("generate: {kind}: {key}={found}: must be {rule}")]
    Value {
        /// The part's kind.
        kind: String,
        /// The key.
        key: String,
        /// What stands there.
        found: String,
        /// What should.
        rule: &'static str,
    },
    /// A length that no trace has.
    #[error("duration: must be between 1s and 366 days")]
    Duration,
}

/// One part, in seconds.
enum Shape {
    Constant(f64),
    Steps { values: Vec<f64>, every: f64 },
    Ramp { from: f64, to: f64, over: f64 },
    Sine { mean: f64, amplitude: f64, period: f64 },
    Bursts { rate: f64, size: f64, length: f64 },
}

/// Makes a trace of `duration`, a value a second. The same `seed` gives the same bursts.
///
/// # Errors
/// Names the part, its key and the rule.
pub fn generate(spec: &str, unit: Unit, duration: Duration, seed: u64) -> Result<Trace, SpecError> {
    let seconds = duration.as_secs();
    if !(1..=LONGEST_SECONDS).contains(&seconds) {
        return Err(SpecError::Duration);
    }
    // At most a year's: it fits.
    let mut load = vec![0.0; seconds as usize];
    for (number, part) in spec.split('+').enumerate() {
        let (shape, start) = parse(part.trim())?;
        let mut random = fastrand::Rng::with_seed(seed.wrapping_add(number as u64));
        shape.add_to(&mut load, start, &mut random);
    }
    Ok(Trace::regular(unit, Duration::from_secs(1), load.into_iter().map(|v| v.max(0.0))))
}

fn parse(part: &str) -> Result<(Shape, f64), SpecError> {
    let (kind, rest) = part.split_once(':').unwrap_or((part, ""));
    let mut keys = Keys { kind, values: BTreeMap::new() };
    for pair in rest.split(',').filter(|p| !p.trim().is_empty()) {
        let wrong = || SpecError::NotAPair { kind: kind.to_owned(), found: pair.to_owned() };
        let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
        keys.values.insert(key.trim(), value.trim());
    }
    let shape = match kind {
        "constant" => Shape::Constant(keys.number("value")?),
        "steps" => Shape::Steps { values: keys.numbers("values")?, every: keys.duration("every")? },
        "ramp" => {
            Shape::Ramp { from: keys.number("from")?, to: keys.number("to")?, over: keys.duration("over")? }
        }
        "sine" => Shape::Sine {
            mean: keys.number("mean")?,
            amplitude: keys.number("amplitude")?,
            period: keys.duration("period")?,
        },
        "bursts" => Shape::Bursts {
            rate: keys.number("rate")?,
            size: keys.number("size")?,
            length: keys.duration("length")?,
        },
        _ => return Err(SpecError::Kind(kind.to_owned())),
    };
    let start = if keys.values.contains_key("start") { keys.duration("start")? } else { 0.0 };
    match keys.values.keys().next() {
        Some(key) => Err(keys.key_error(key, "no such key here")),
        None => Ok((shape, start)),
    }
}

struct Keys<'a> {
    kind: &'a str,
    values: BTreeMap<&'a str, &'a str>,
}

impl Keys<'_> {
    fn key_error(&self, key: &str, rule: &'static str) -> SpecError {
        SpecError::Key { kind: self.kind.to_owned(), key: key.to_owned(), rule }
    }

    fn take<T>(
        &mut self,
        key: &str,
        rule: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<T, SpecError> {
        let found = self.values.remove(key).ok_or_else(|| self.key_error(key, "is missing"))?;
        read(found).ok_or_else(|| SpecError::Value {
            kind: self.kind.to_owned(),
            key: key.to_owned(),
            found: found.to_owned(),
            rule,
        })
    }

    fn number(&mut self, key: &str) -> Result<f64, SpecError> {
        self.take(key, "a number of at least 0", load)
    }

    fn numbers(&mut self, key: &str) -> Result<Vec<f64>, SpecError> {
        self.take(key, "numbers of at least 0, separated by /", |text| text.split('/').map(load).collect())
    }

    fn duration(&mut self, key: &str) -> Result<f64, SpecError> {
        self.take(key, "a duration of at least 1s, such as 90s or 2m", |text| {
            let duration = parse_duration(text).ok()?.to_std();
            (duration >= Duration::from_secs(1)).then_some(duration.as_secs_f64())
        })
    }
}

fn load(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0)
}

impl Shape {
    fn add_to(&self, load: &mut [f64], start: f64, random: &mut fastrand::Rng) {
        let mut add = |from: f64, value: &dyn Fn(f64) -> f64| {
            for (second, sum) in load.iter_mut().enumerate().skip(from.ceil() as usize) {
                *sum += value(second as f64 - from);
            }
        };
        match self {
            Self::Constant(value) => add(start, &|_| *value),
            Self::Steps { values, every } => add(start, &|t| {
                let step = ((t / every) as usize).min(values.len() - 1);
                values[step]
            }),
            Self::Ramp { from, to, over } => add(start, &|t| from + (to - from) * (t / over).min(1.0)),
            Self::Sine { mean, amplitude, period } => {
                add(start, &|t| (mean + amplitude * (TAU * t / period).sin()).max(0.0));
            }
            Self::Bursts { rate, size, length } => {
                let mut at = start;
                if *rate == 0.0 {
                    return;
                }
                loop {
                    // The time to the next of independent events is exponential.
                    at += -(1.0 - random.f64()).ln() * 60.0 / rate;
                    let first = at as usize;
                    if first >= load.len() {
                        break;
                    }
                    let end = load.len().min((at + length) as usize);
                    load[first..end].iter_mut().for_each(|sum| *sum += size);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(spec: &str, seconds: u64) -> Vec<(i64, f64)> {
        generate(spec, Unit::Concurrency, Duration::from_secs(seconds), 1).unwrap().values().to_vec()
    }

    #[test]
    fn parts_add_up() {
        assert_eq!(made("steps:values=0/5,every=10s", 30), [(0, 0.0), (10_000, 5.0)]);
        assert_eq!(made("constant:value=1+constant:value=2,start=3s", 5), [(0, 1.0), (3000, 3.0)]);
        assert_eq!(made("ramp:from=0,to=4,over=2s", 5), [(0, 0.0), (1000, 2.0), (2000, 4.0)],);
        assert_eq!(
            made("sine:mean=0,amplitude=2,period=4s", 4),
            [(0, 0.0), (1000, 2.0), (2000, made("sine:mean=0,amplitude=2,period=4s", 4)[2].1), (3000, 0.0)]
        );
    }

    #[test]
    fn bursts_depend_on_the_seed_alone() {
        let bursts = |seed| {
            generate("bursts:rate=2,size=10,length=5s", Unit::Rps, Duration::from_secs(36_000), seed).unwrap()
        };
        assert_eq!(bursts(1), bursts(1));
        assert_ne!(bursts(1), bursts(2));
        let on: f64 = bursts(3).values().windows(2).map(|w| w[0].1 * (w[1].0 - w[0].0) as f64 / 1000.0).sum();
        // 1200 bursts of 50 on average; their number varies by some 3 %.
        assert!((50_000.0..70_000.0).contains(&on), "{on}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (spec, part) in [
            ("", "the kind must be"),
            ("wave:x=1", "\"wave\": the kind must be"),
            ("constant", "constant: value: is missing"),
            ("constant:5", "constant: \"5\": must be KEY=VALUE"),
            ("constant:value=-1", "constant: value=-1: must be a number of at least 0"),
            ("steps:values=1//2,every=5s", "steps: values=1//2: must be numbers"),
            ("steps:values=1,every=5", "steps: every=5: must be a duration"),
            ("constant:value=1,end=3s", "constant: end: no such key"),
            ("constant:value=1+ramp:from=1", "ramp: to: is missing"),
        ] {
            let error = generate(spec, Unit::Rps, Duration::from_secs(9), 0).unwrap_err().to_string();
            assert!(error.contains(part), "{part:?} in {error:?}");
        }
        assert_eq!(generate("constant:value=1", Unit::Rps, Duration::ZERO, 0), Err(SpecError::Duration));
    }
}
