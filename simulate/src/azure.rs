//! Invocations per minute, in the layout of the public traces of Azure Functions.

use std::io::Read;
use std::time::Duration;

use crate::trace::{Rows, Trace, TraceError, Unit};

/// The first columns of every row.
const HEAD: [&str; 4] = ["HashOwner", "HashApp", "HashFunction", "Trigger"];

/// The minutes of a day, a column each.
const MINUTES: usize = 1440;

/// Which rows count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// All of them, added up.
    Sum,
    /// One, counted from 1 after the header.
    Row(u64),
}

/// Reads `HashOwner,HashApp,HashFunction,Trigger,1,…,1440`: a function a row, its invocations in each minute of a day.
///
/// # Errors
/// Names file, line, column and what is expected.
pub fn from_csv(file: &str, read: impl Read, choice: Choice) -> Result<Trace, TraceError> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(read);
    let rows = Rows { file };
    let mut record = csv::StringRecord::new();
    if !rows.next(&mut reader, &mut record)? {
        let expected = "is empty; the header HashOwner,HashApp,HashFunction,Trigger,1,…,1440 is expected";
        return Err(TraceError::Empty { file: file.to_owned(), line: 1, expected });
    }
    let line = rows.line(&record);
    for column in 0..HEAD.len() + MINUTES {
        let expected =
            HEAD.get(column).map_or_else(|| (column + 1 - HEAD.len()).to_string(), |&h| h.to_owned());
        let found = record.get(column).unwrap_or_default().trim();
        if found != expected {
            return Err(rows.wrong(line, column + 1, found, &format!("the header must be {expected}")));
        }
    }
    rows.ends_after(&record, HEAD.len() + MINUTES, line)?;

    let mut invocations = vec![0.0; MINUTES];
    let mut number = 0;
    let mut counted = false;
    while rows.next(&mut reader, &mut record)? {
        number += 1;
        if matches!(choice, Choice::Row(row) if row != number) {
            continue;
        }
        let line = rows.line(&record);
        for (minute, sum) in invocations.iter_mut().enumerate() {
            let expected = "invocations: a whole number of at least 0 is expected";
            let column = HEAD.len() + minute;
            let text = record.get(column).unwrap_or_default().trim();
            let count: u32 = text.parse().map_err(|_| rows.wrong(line, column + 1, text, expected))?;
            *sum += f64::from(count);
        }
        rows.ends_after(&record, HEAD.len() + MINUTES, line)?;
        counted = true;
    }
    if !counted {
        let expected = match choice {
            Choice::Sum => "at least one function is expected after the header",
            Choice::Row(_) => "there is no such row",
        };
        return Err(TraceError::Empty { file: file.to_owned(), line: number + 1, expected });
    }
    Ok(Trace::regular(Unit::Rps, Duration::from_secs(60), invocations.into_iter().map(|n| n / 60.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(rows: &[&str]) -> String {
        let minutes: Vec<String> = (1..=MINUTES).map(|m| m.to_string()).collect();
        format!("{},{}\n{}", HEAD.join(","), minutes.join(","), rows.concat())
    }

    fn row(first: &str, others: &str) -> String {
        format!("o,a,f,http,{first}{}\n", format!(",{others}").repeat(MINUTES - 1))
    }

    #[test]
    fn invocations_of_a_minute_become_requests_a_second() {
        let text = file(&[&row("60", "0"), &row("120", "6")]);
        let sum = from_csv("a.csv", text.as_bytes(), Choice::Sum).unwrap();
        assert_eq!(sum.values(), [(0, 3.0), (60_000, 0.1)]);
        assert_eq!(sum.duration(), Duration::from_secs(24 * 3600));
        let second = from_csv("a.csv", text.as_bytes(), Choice::Row(2)).unwrap();
        assert_eq!(second.values(), [(0, 2.0), (60_000, 0.1)]);
    }

    #[test]
    fn bad_input_is_named_by_file_line_and_column() {
        let good = row("1", "1");
        for (text, choice, part) in [
            (String::new(), Choice::Sum, "a.csv: line 1: is empty"),
            ("HashOwner,App\n".into(), Choice::Sum, "line 1, column 2: \"App\": the header must be HashApp"),
            (file(&[]), Choice::Sum, "line 1: at least one function"),
            (file(&[&row("x", "1")]), Choice::Sum, "line 2, column 5: \"x\": invocations"),
            (file(&[&good, "o,a,f,http,1,2\n"]), Choice::Sum, "line 3, column 7: \"\": invocations"),
            (file(&[&good]), Choice::Row(2), "there is no such row"),
        ] {
            let error = from_csv("a.csv", text.as_bytes(), choice).unwrap_err().to_string();
            assert!(error.contains(part), "{part:?} in {error:?}");
        }
    }
}
