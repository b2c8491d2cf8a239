//! The part of JSONPath that printer columns use: fields, quoted fields and one equality filter.

use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(usize),
    /// The first entry whose field has the value.
    Filter(Vec<String>, String),
}

/// A parsed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Parses paths such as `.status.conditions[?(@.type=='Ready')].status`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut steps = Vec::new();
        let mut rest = text.trim().trim_start_matches('$');
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix("[?(@.") {
                let (condition, after) = after.split_once(")]")?;
                let (path, value) = condition.split_once("==")?;
                let value = value.trim().trim_matches(|c| c == '\'' || c == '"');
                let path = path.trim().split('.').map(str::to_owned).collect();
                steps.push(Step::Filter(path, value.to_owned()));
                rest = after;
            } else if let Some(after) = rest.strip_prefix("['").or_else(|| rest.strip_prefix("[\"")) {
                let end = after.find("']").or_else(|| after.find("\"]"))?;
                steps.push(Step::Field(after[..end].replace("\\.", ".")));
                rest = &after[end + 2..];
            } else if let Some(after) = rest.strip_prefix('[') {
                let (index, after) = after.split_once(']')?;
                steps.push(Step::Index(index.parse().ok()?));
                rest = after;
            } else {
                let after = rest.strip_prefix('.').unwrap_or(rest);
                let mut name = String::new();
                let mut chars = after.char_indices();
                let mut end = after.len();
                while let Some((at, c)) = chars.next() {
                    match c {
                        '\\' => name.extend(chars.next().map(|(_, c)| c)),
                        '.' | '[' => {
                            end = at;
                            break;
                        }
                        c => name.push(c),
                    }
                }
                if name.is_empty() {
                    return None;
                }
                steps.push(Step::Field(name));
                rest = &after[end..];
            }
        }
        Some(Self(steps))
    }

    pub(crate) fn find<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(value, |value, step| match step {
            Step::Field(name) => value.get(name),
            Step::Index(index) => value.get(index),
            Step::Filter(path, wanted) => value.as_array()?.iter().find(|entry| {
                path.iter().try_fold(*entry, |v, name| v.get(name)).and_then(Value::as_str) == Some(wanted)
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn printer_column_paths_resolve() {
        let value = json!({ "metadata": { "labels": { "serving.knative.dev/configuration": "c" } },
            "status": { "conditions": [{ "type": "A", "status": "x" }, { "type": "Ready", "status": "True" }] } });
        let find = |path| JsonPath::parse(path).unwrap().find(&value).cloned();
        assert_eq!(find(".status.conditions[?(@.type=='Ready')].status"), Some("True".into()));
        assert_eq!(find(".status.conditions[?(@.type==\"A\")].status"), Some("x".into()));
        assert_eq!(find(r".metadata.labels['serving\.knative\.dev/configuration']"), Some("c".into()));
        assert_eq!(find(r".metadata.labels.serving\.knative\.dev/configuration"), Some("c".into()));
        assert_eq!(find(".status.conditions[0].type"), Some("A".into()));
        assert_eq!(find(".spec.x"), None);
    }
}
