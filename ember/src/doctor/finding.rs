//! What the doctor found, for people and for programs.

use std::fmt::Write;

use serde::Serialize;

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is broken.
    Note,
    /// Something does not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// How bad it is.
    pub(crate) level: Level,
    /// What was looked at, as `revision hello-00001` or `open files`.
    pub(crate) about: String,
    /// How it is.
    pub(crate) what: String,
    /// What to do next, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) advice: Option<String>,
    /// Lines that show it, for instance of a log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) lines: Vec<String>,
}

impl Finding {
    fn new(level: Level, about: impl Into<String>, what: impl Into<String>) -> Self {
        Self { level, about: about.into(), what: what.into(), advice: None, lines: Vec::new() }
    }

    /// As it should be.
    pub(crate) fn ok(about: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(Level::Ok, about, what)
    }

    /// Worth knowing.
    pub(crate) fn note(about: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(Level::Note, about, what)
    }

    /// Does not work.
    pub(crate) fn problem(about: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(Level::Problem, about, what)
    }

    /// The same with what to do.
    pub(crate) fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// The same with lines that show it.
    pub(crate) fn show(self, lines: Vec<String>) -> Self {
        Self { lines, ..self }
    }
}

/// Findings in plain text: a line each, then what shows it and what to do, indented.
pub(crate) fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.level {
            Level::Ok => "ok     ",
            Level::Note => "note   ",
            Level::Problem => "PROBLEM",
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{mark} {}: {}", finding.about, finding.what.trim_end());
        for line in &finding.lines {
            let _ = writeln!(text, "        | {line}");
        }
        if let Some(advice) = &finding.advice {
            let _ = writeln!(text, "        → {advice}");
        }
    }
    text
}

/// How many problems there are.
pub(crate) fn problems(findings: &[Finding]) -> usize {
    findings.iter().filter(|finding| finding.level == Level::Problem).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_lines_with_advice_below() {
        let findings = [
            Finding::ok("open files", "up to 1024"),
            Finding::problem("pod a", "ends").show(vec!["boom".into()]).advise("mend it"),
        ];
        assert_eq!(
            text(&findings),
            "ok      open files: up to 1024\nPROBLEM pod a: ends\n        | boom\n        → mend it\n"
        );
        assert_eq!(problems(&findings), 1);
    }
}
