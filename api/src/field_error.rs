//! Errors about fields of an object, as Knative words, merges and orders them.
//!
//! A [`FieldError`] is a set of findings. Validation of a part names paths relative to that part; whoever
//! validates the whole prefixes them with [`via_field`](FieldError::via_field) and its relatives.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use crate::golang::quote;

/// How severe a finding is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The object is refused.
    #[default]
    Error,
    /// The object is accepted, and its author told.
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    level: Level,
    message: String,
    details: String,
    paths: Vec<String>,
}

/// Findings about the fields of an object; empty if there is nothing to find fault with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct FieldError(Vec<Finding>);

/// The path of the object itself.
pub const CURRENT_FIELD: &str = "";

impl FieldError {
    /// No findings.
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// A finding in free words.
    pub fn generic(message: impl Into<String>, paths: &[&str]) -> Self {
        let paths = paths.iter().map(|p| (*p).to_owned()).collect();
        Self(vec![Finding { level: Level::Error, message: message.into(), details: String::new(), paths }])
    }

    /// Required fields that are absent.
    pub fn missing(paths: &[&str]) -> Self {
        Self::generic("missing field(s)", paths)
    }

    /// Fields that must not be set.
    pub fn disallowed(paths: &[&str]) -> Self {
        Self::generic("must not set the field(s)", paths)
    }

    /// None of a group of which one is required.
    pub fn missing_one_of(paths: &[&str]) -> Self {
        Self::generic("expected exactly one, got neither", paths)
    }

    /// Several of a group of which only one is allowed.
    pub fn multiple_one_of(paths: &[&str]) -> Self {
        Self::generic("expected exactly one, got both", paths)
    }

    /// A value that is not allowed.
    pub fn invalid_value(value: impl fmt::Display, path: &str) -> Self {
        Self::generic(format!("invalid value: {value}"), &[path])
    }

    /// An element of a list that is not allowed.
    pub fn invalid_array_value(value: impl fmt::Display, field: &str, index: usize) -> Self {
        Self::invalid_value(value, &format!("{field}[{index}]"))
    }

    /// A value outside `low..=high`.
    pub fn out_of_bounds(
        value: impl fmt::Display,
        low: impl fmt::Display,
        high: impl fmt::Display,
        path: &str,
    ) -> Self {
        Self::generic(format!("expected {low} <= {value} <= {high}"), &[path])
    }

    /// A key that is not allowed in a map.
    pub fn invalid_key_name(key: &str, path: &str) -> Self {
        Self::generic(format!("invalid key name {}", quote(key)), &[path])
    }

    /// Adds an explanation, printed on a line of its own.
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        let details = details.into();
        for finding in &mut self.0 {
            finding.details.clone_from(&details);
        }
        self
    }

    /// Both sets of findings.
    pub fn also(mut self, other: Self) -> Self {
        self.add(other);
        self
    }

    /// Adds findings.
    pub fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The findings as seen from the object that holds this one under `field`.
    pub fn via_field(mut self, field: &str) -> Self {
        for path in self.0.iter_mut().flat_map(|f| &mut f.paths) {
            *path = flatten(field, path);
        }
        self
    }

    /// The findings as seen from the list that holds this object.
    pub fn via_index(self, index: usize) -> Self {
        self.via_field(&format!("[{index}]"))
    }

    /// The findings as seen from the map that holds this object.
    pub fn via_key(self, key: &str) -> Self {
        self.via_field(&format!("[{key}]"))
    }

    /// The findings as seen from the object whose list `field` holds this one.
    pub fn via_field_index(self, field: &str, index: usize) -> Self {
        self.via_index(index).via_field(field)
    }

    /// The findings as seen from the object whose map `field` holds this one.
    pub fn via_field_key(self, field: &str, key: &str) -> Self {
        self.via_key(key).via_field(field)
    }

    /// The same findings at another level.
    pub fn at_level(mut self, level: Level) -> Self {
        for finding in &mut self.0 {
            finding.level = level;
        }
        self
    }

    /// The findings of one level.
    pub fn filter(&self, level: Level) -> Self {
        Self(self.0.iter().filter(|f| f.level == level).cloned().collect())
    }

    /// Whether there are no findings.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `Ok` if nothing was found at [`Level::Error`].
    ///
    /// # Errors
    /// The findings at that level.
    pub fn into_result(self) -> Result<(), Self> {
        let errors = self.filter(Level::Error);
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// One text for each distinct finding, in the order they print.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut merged: BTreeMap<(&str, &str, Level), Vec<&str>> = BTreeMap::new();
        for finding in self.0.iter().filter(|finding| !finding.message.is_empty()) {
            let paths = finding.paths.iter().map(String::as_str);
            match merged.entry((&finding.message, &finding.details, finding.level)) {
                Entry::Vacant(entry) => {
                    entry.insert(paths.collect());
                }
                Entry::Occupied(mut entry) => {
                    for path in paths {
                        if !entry.get().contains(&path) {
                            entry.get_mut().push(path);
                        }
                    }
                }
            }
        }
        let line = |((message, details, _), mut paths): ((&str, &str, Level), Vec<&str>)| {
            paths.sort_unstable();
            let paths = paths.join(", ");
            if details.is_empty() {
                format!("{message}: {paths}")
            } else {
                format!("{message}: {paths}\n{details}")
            }
        };
        merged.into_iter().map(line).collect()
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

impl std::error::Error for FieldError {}

impl Extend<FieldError> for FieldError {
    fn extend<T: IntoIterator<Item = FieldError>>(&mut self, iter: T) {
        for error in iter {
            self.add(error);
        }
    }
}

impl FromIterator<FieldError> for FieldError {
    fn from_iter<T: IntoIterator<Item = FieldError>>(iter: T) -> Self {
        let mut all = Self::none();
        all.extend(iter);
        all
    }
}

/// Joins with dots; an index attaches to what stands before it, empty parts vanish.
fn flatten(prefix: &str, path: &str) -> String {
    let mut out = String::with_capacity(prefix.len() + path.len() + 1);
    for part in prefix.split('.').chain(path.split('.')).filter(|p| !p.is_empty()) {
        let is_index = part.starts_with('[') && part.ends_with(']');
        if !out.is_empty() && !is_index {
            out.push('.');
        }
        out.push_str(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::golden;

    fn strings(value: &Value) -> Vec<&str> {
        value.as_array().map(|a| a.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
    }

    fn text(value: &Value) -> String {
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    /// Builds in the order constructor, children, prefixes, level.
    fn build(node: &Value) -> FieldError {
        let mut error = FieldError::none();
        let details = |error: FieldError, of: &Value| error.with_details(strings(&of["Details"]).join(", "));
        for (kind, of) in node.as_object().into_iter().flatten() {
            match kind.as_str() {
                "Missing" => error = FieldError::missing(&strings(of)),
                "Disallowed" => error = FieldError::disallowed(&strings(of)),
                "MissingOne" => error = FieldError::missing_one_of(&strings(of)),
                "MultiOne" => error = FieldError::multiple_one_of(&strings(of)),
                "Invalid" => {
                    error = details(FieldError::invalid_value(text(&of["Value"]), &text(&of["Path"])), of);
                }
                "Bounds" => {
                    let [value, low, high, path] = ["Value", "Low", "High", "Path"].map(|k| text(&of[k]));
                    error = FieldError::out_of_bounds(value, low, high, &path);
                }
                "Key" => {
                    let key = FieldError::invalid_key_name(&text(&of["Key"]), &text(&of["Path"]));
                    error = details(key, of);
                }
                "Generic" => {
                    error = FieldError::generic(text(&of["Msg"]), &strings(&of["Paths"]));
                    if let Some(details) = of["Details"].as_str() {
                        error = error.with_details(details);
                    }
                }
                "Array" => {
                    let index = of["Index"].as_u64().unwrap_or_default() as usize;
                    error = FieldError::invalid_array_value(text(&of["Value"]), &text(&of["Field"]), index);
                }
                "Also" | "Via" | "ViaIndex" | "ViaFieldIx" | "ViaKey" | "Warn" => {}
                other => panic!("unknown node {other}"),
            }
        }
        error.extend(node["Also"].as_array().into_iter().flatten().map(build));
        if let Some(via) = node.get("Via") {
            error = error.via_field(&strings(via).join("."));
        }
        if let Some(index) = node["ViaIndex"].as_u64() {
            error = error.via_index(index as usize);
        }
        match &node["ViaFieldIx"] {
            Value::Null => {}
            of => {
                let [field, index] =
                    if of.is_array() { [&of[0], &of[1]] } else { [&of["Field"], &of["Index"]] };
                let index = index.as_u64().unwrap_or_default() as usize;
                error = error.via_field_index(&text(field), index);
            }
        }
        if let Some(key) = node["ViaKey"].as_str() {
            error = error.via_key(key);
        }
        if node["Warn"] == true {
            error = error.at_level(Level::Warning);
        }
        error
    }

    fn shown(error: &FieldError) -> Value {
        if error.is_empty() { Value::Null } else { Value::String(error.to_string()) }
    }

    #[test]
    fn golden_fielderror() {
        let cases = golden::cases("fielderror");
        let failures: Vec<String> = cases
            .iter()
            .filter_map(|case| {
                let error = build(&case["in"]);
                let got = serde_json::json!({
                    "all": shown(&error),
                    "error": shown(&error.filter(Level::Error)),
                    "warning": shown(&error.filter(Level::Warning)),
                });
                (got != case["expect"]).then(|| format!("{}: got {got}\nwant {}", case["id"], case["expect"]))
            })
            .collect();
        golden::report("fielderror", cases.len(), &failures);
    }
}
