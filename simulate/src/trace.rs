//! How much load there is when.

use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

/// What a trace counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Requests in flight, if none has to wait.
    Concurrency,
    /// Requests that arrive in a second.
    Rps,
}

impl Unit {
    /// The name of the column that holds it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Concurrency => "concurrency",
            Self::Rps => "rps",
        }
    }
}

/// Load over time: each value holds until the next one.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    unit: Unit,
    /// Milliseconds since the start, rising from 0, and the load from then on.
    values: Vec<(i64, f64)>,
    end: i64,
}

/// The longest trace: ten years.
const LONGEST_SECONDS: f64 = 3600.0 * 24.0 * 3653.0;

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file is no CSV, or cannot be read.
    #[error("{file}: {source}")]
    Csv {
        /// The file.
        file: String,
        /// What is wrong.
        #[source]
        source: csv::Error,
    },
    /// A field is not what it has to be.
    #[error("{file}: line {line}, column {column}: {found:?}: {expected}")]
    Field {
        /// The file.
        file: String,
        /// Line of the file, from 1.
        line: u64,
        /// Field of the line, from 1.
        column: usize,
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
    },
    /// There is nothing in it.
    #[error("{file}: line {line}: {expected}")]
    Empty {
        /// The file.
        file: String,
        /// Line of the file, from 1.
        line: u64,
        /// What should be there.
        expected: &'static str,
    },
}

impl Trace {
    /// A trace of values that each hold for `step`.
    #[must_use]
    pub fn regular(unit: Unit, step: Duration, values: impl IntoIterator<Item = f64>) -> Self {
        let step = i64::try_from(step.as_millis()).unwrap_or(i64::MAX).max(1);
        let mut at = 0;
        let mut kept: Vec<(i64, f64)> = Vec::new();
        for value in values {
            if kept.last().is_none_or(|&(_, last)| last.to_bits() != value.to_bits()) {
                kept.push((at, value));
            }
            at += step;
        }
        Self { unit, values: kept, end: at }
    }

    /// What is counted.
    #[must_use]
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// How long it is.
    #[must_use]
    pub fn duration(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.end).unwrap_or(0))
    }

    /// Milliseconds since the start and the load from then on, in order.
    #[must_use]
    pub fn values(&self) -> &[(i64, f64)] {
        &self.values
    }

    /// Reads CSV with the header `time,concurrency` or `time,rps`: seconds, rising, and the load from then on. Time
    /// starts with the first line. The last value holds as long as the one before it, a single one for a second.
    ///
    /// # Errors
    /// Names file, line, column and what is expected.
    pub fn from_csv(file: &str, read: impl Read) -> Result<Self, TraceError> {
        let rows = Rows { file };
        let mut lines = Lines { file, lines: BufReader::new(read).lines(), number: 0 };
        let Some((line, record)) = lines.next()? else {
            let expected = "is empty; the header time,concurrency or time,rps is expected";
            return Err(TraceError::Empty { file: file.to_owned(), line: 1, expected });
        };
        let time = record.get(0).unwrap_or_default();
        if time != "time" {
            return Err(rows.wrong(line, 1, time, "the header time,concurrency or time,rps is expected"));
        }
        let unit = match record.get(1).unwrap_or_default() {
            "concurrency" => Unit::Concurrency,
            "rps" => Unit::Rps,
            other => return Err(rows.wrong(line, 2, other, "the header must be concurrency or rps")),
        };
        rows.ends_after(&record, 2, line)?;

        let mut values: Vec<(i64, f64)> = Vec::new();
        let mut start = None;
        while let Some((line, record)) = lines.next()? {
            let seconds = rows.number(&record, 0, line, "time: a number of seconds is expected")?;
            let start = *start.get_or_insert(seconds);
            let value = rows.number(&record, 1, line, load_rule(unit))?;
            rows.ends_after(&record, 2, line)?;
            if value < 0.0 {
                return Err(rows.wrong(line, 2, record.get(1).unwrap_or_default(), load_rule(unit)));
            }
            if seconds - start > LONGEST_SECONDS {
                let rule = "time: a trace may be ten years long";
                return Err(rows.wrong(line, 1, record.get(0).unwrap_or_default(), rule));
            }
            let at = ((seconds - start) * 1000.0).round() as i64;
            if values.last().is_some_and(|&(last, _)| at <= last) {
                let rule = "time: must be later than the line before, by a millisecond at least";
                return Err(rows.wrong(line, 1, record.get(0).unwrap_or_default(), rule));
            }
            values.push((at, value));
        }
        let end = match values.as_slice() {
            [] => {
                let expected = "at least one line of time and load is expected after the header";
                return Err(TraceError::Empty { file: file.to_owned(), line: line + 1, expected });
            }
            [_] => 1000,
            [.., (before, _), (last, _)] => last + (last - before),
        };
        Ok(Self { unit, values, end })
    }
}

fn load_rule(unit: Unit) -> &'static str {
    match unit {
        Unit::Concurrency => "concurrency: a number of at least 0 is expected",
        Unit::Rps => "rps: a number of at least 0 is expected",
    }
}

/// The lines of a trace that say something. Numbers need no quotes, so a field is what stands between two commas, and
/// every line, empty or not, counts.
struct Lines<'a, R> {
    file: &'a str,
    lines: std::io::Lines<R>,
    number: u64,
}

impl<R: BufRead> Lines<'_, R> {
    /// The next line's number and fields.
    fn next(&mut self) -> Result<Option<(u64, csv::StringRecord)>, TraceError> {
        for line in self.lines.by_ref() {
            self.number += 1;
            let line = line
                .map_err(|e| TraceError::Csv { file: self.file.to_owned(), source: csv::Error::from(e) })?;
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                return Ok(Some((self.number, line.split(',').map(str::trim).collect())));
            }
        }
        Ok(None)
    }
}

/// What rows of every CSV have in common: where they are and what is wrong with them.
pub(crate) struct Rows<'a> {
    pub(crate) file: &'a str,
}

impl Rows<'_> {
    pub(crate) fn next(
        &self,
        reader: &mut csv::Reader<impl Read>,
        record: &mut csv::StringRecord,
    ) -> Result<bool, TraceError> {
        reader.read_record(record).map_err(|source| TraceError::Csv { file: self.file.to_owned(), source })
    }

    pub(crate) fn line(&self, record: &csv::StringRecord) -> u64 {
        record.position().map_or(1, csv::Position::line)
    }

    pub(crate) fn wrong(&self, line: u64, column: usize, found: &str, expected: &str) -> TraceError {
        TraceError::Field {
            file: self.file.to_owned(),
            line,
            column,
            found: found.to_owned(),
            expected: expected.to_owned(),
        }
    }

    /// The field at `index`, a finite number.
    pub(crate) fn number(
        &self,
        record: &csv::StringRecord,
        index: usize,
        line: u64,
        expected: &str,
    ) -> Result<f64, TraceError> {
        let text = record.get(index).unwrap_or_default();
        let number = text.parse().ok().filter(|n: &f64| n.is_finite());
        number.ok_or_else(|| self.wrong(line, index + 1, text, expected))
    }

    pub(crate) fn ends_after(
        &self,
        record: &csv::StringRecord,
        fields: usize,
        line: u64,
    ) -> Result<(), TraceError> {
        match record.get(fields) {
            Some(more) => Err(self.wrong(line, fields + 1, more, &format!("{fields} fields are expected"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_holds_until_the_next() {
        let trace = Trace::from_csv("t.csv", "time,rps\n10,1\n12.5, 3\n# a note\n15,0\n".as_bytes()).unwrap();
        assert_eq!((trace.unit(), trace.duration()), (Unit::Rps, Duration::from_millis(7500)));
        assert_eq!(trace.values(), [(0, 1.0), (2500, 3.0), (5000, 0.0)]);
        let regular = Trace::regular(Unit::Rps, Duration::from_millis(2500), [1.0, 3.0, 0.0]);
        assert_eq!(regular, trace);
    }

    #[test]
    fn bad_input_is_named_by_file_line_and_column() {
        for (text, parts) in [
            ("", "t.csv: line 1: is empty"),
            ("time,concurrency\n", "t.csv: line 2: at least one line"),
            ("when,rps\n", "line 1, column 1: \"when\": the header time,concurrency or time,rps"),
            ("time,load\n", "line 1, column 2: \"load\": the header must be concurrency or rps"),
            ("time,rps,x\n", "line 1, column 3: \"x\": 2 fields are expected"),
            ("time,rps\n0,1\nx,2\n", "line 3, column 1: \"x\": time: a number of seconds"),
            ("time,rps\n0,-1\n", "line 2, column 2: \"-1\": rps: a number of at least 0"),
            ("time,rps\n0,NaN\n", "line 2, column 2: \"NaN\": rps: a number of at least 0"),
            ("time,concurrency\n0\n", "line 2, column 2: \"\": concurrency: a number"),
            ("time,rps\n5,1\n\n5,2\n", "line 4, column 1: \"5\": time: must be later"),
            ("time,rps\n0,1\n1e12,2\n", "line 3, column 1: \"1e12\": time: a trace may be"),
            ("time,rps\n0,1,9\n", "line 2, column 3: \"9\": 2 fields"),
        ] {
            let error = Trace::from_csv("t.csv", text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(parts), "{parts:?} in {error:?}");
        }
    }
}
