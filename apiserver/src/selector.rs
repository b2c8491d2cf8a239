//! Label and field selectors, parsed once and matched against objects.

use serde_json::Value;

use crate::metadata::{label_value_fault, qualified_faults};
use crate::object::Object;
use crate::resource::Resource;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    NotExists(String),
    Greater(String, i64),
    Less(String, i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldTerm {
    path: String,
    value: String,
    equal: bool,
}

/// What a list or watch is narrowed to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
}

impl Selector {
    /// Parses both selectors of a request.
    ///
    /// # Errors
    /// The text for a `BadRequest`.
    pub(crate) fn parse(
        resource: &Resource,
        labels: Option<&str>,
        fields: Option<&str>,
    ) -> Result<Self, String> {
        Ok(Self {
            labels: labels.map(parse_labels).transpose()?.unwrap_or_default(),
            fields: fields.map(|text| parse_fields(resource, text)).transpose()?.unwrap_or_default(),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Narrowed further to one name.
    pub(crate) fn and_name(mut self, name: &str) -> Self {
        let path = "metadata.name".to_owned();
        self.fields.push(FieldTerm { path, value: name.to_owned(), equal: true });
        self
    }

    pub(crate) fn matches(&self, object: &Object) -> bool {
        self.matches_labels(object) && self.matches_fields(object)
    }

    fn matches_labels(&self, object: &Object) -> bool {
        if self.labels.is_empty() {
            return true;
        }
        let metadata = object.metadata();
        let labels = metadata.get("labels");
        let label = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
        let number = |key: &str| label(key).and_then(|v| v.parse::<i64>().ok());
        self.labels.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Requirement::NotIn(key, values) => !label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::NotExists(key) => label(key).is_none(),
            Requirement::Greater(key, bound) => number(key).is_some_and(|v| v > *bound),
            Requirement::Less(key, bound) => number(key).is_some_and(|v| v < *bound),
        })
    }

    fn matches_fields(&self, object: &Object) -> bool {
        let mut value = None;
        self.fields.iter().all(|term| {
            let found = match term.path.as_str() {
                "metadata.name" => object.name().to_owned(),
                "metadata.namespace" => object.namespace().to_owned(),
                path => {
                    let value = value.get_or_insert_with(|| object.value());
                    match path.split('.').try_fold(&*value, |v, step| v.get(step)) {
                        None | Some(Value::Null) => String::new(),
                        Some(Value::String(text)) => text.clone(),
                        Some(other) => other.to_string(),
                    }
                }
            };
            (found == term.value) == term.equal
        })
    }
}

/// Splits at commas that are not inside parentheses.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut terms) = (0_i32, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms.into_iter().map(str::trim).collect()
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    split_terms(text).into_iter().map(parse_label).collect()
}

fn parse_label(term: &str) -> Result<Requirement, String> {
    let fail = |why: &str| format!("unable to parse requirement: {why}: {term:?}");
    if term.is_empty() {
        return Err(fail("found '', expected: identifier after ','"));
    }
    // One word, none of whose characters means something here.
    let word = |text: &str| -> Result<String, String> {
        let text = text.trim();
        match text.chars().find(|c| c.is_whitespace() || "=!(),<>".contains(*c)) {
            Some(c) => Err(fail(&format!("found '{c}', expected: identifier"))),
            None => Ok(text.to_owned()),
        }
    };
    let key = |text: &str| -> Result<String, String> {
        let text = word(text)?;
        match qualified_faults(&text).first() {
            Some(fault) => Err(fail(&format!("key: Invalid value: {text:?}: {fault}"))),
            None => Ok(text),
        }
    };
    let value = |text: &str| -> Result<String, String> {
        let text = word(text)?;
        match label_value_fault(&text) {
            Some(fault) => Err(fail(&format!("values[0]: Invalid value: {text:?}: {fault}"))),
            None => Ok(text),
        }
    };
    if let Some(rest) = term.strip_prefix('!') {
        return Ok(Requirement::NotExists(key(rest)?));
    }
    if let Some((name, values)) = term.split_once('(') {
        let values = values.strip_suffix(')').ok_or_else(|| fail("missing ')'"))?;
        let values = values.split(',').map(value).collect::<Result<Vec<String>, String>>()?;
        let mut words = name.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(name), Some("in"), None) => Ok(Requirement::In(key(name)?, values)),
            (Some(name), Some("notin"), None) => Ok(Requirement::NotIn(key(name)?, values)),
            _ => Err(fail("found '(', expected: in, notin")),
        };
    }
    for (operator, negated) in [("!=", true), ("==", false), ("=", false)] {
        if let Some((name, text)) = term.split_once(operator) {
            let (name, values) = (key(name)?, vec![value(text)?]);
            return Ok(if negated {
                Requirement::NotIn(name, values)
            } else {
                Requirement::In(name, values)
            });
        }
    }
    if let Some((name, value)) = term.split_once('>') {
        let bound = value.trim().parse().map_err(|_| fail("for 'Gt', the value must be an integer"))?;
        return Ok(Requirement::Greater(key(name)?, bound));
    }
    if let Some((name, value)) = term.split_once('<') {
        let bound = value.trim().parse().map_err(|_| fail("for 'Lt', the value must be an integer"))?;
        return Ok(Requirement::Less(key(name)?, bound));
    }
    key(term).map(Requirement::Exists)
}

fn parse_fields(resource: &Resource, text: &str) -> Result<Vec<FieldTerm>, String> {
    let mut terms = Vec::new();
    for term in text.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        let (path, value, equal) = if let Some((path, value)) = term.split_once("!=") {
            (path, value, false)
        } else if let Some((path, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
            (path, value, true)
        } else {
            return Err(format!("invalid field selector: {text:?}; can't understand {term:?}"));
        };
        if !field_is_selectable(resource, path) {
            return Err(format!("field label not supported: {path}"));
        }
        terms.push(FieldTerm { path: path.to_owned(), value: value.to_owned(), equal });
    }
    Ok(terms)
}

fn field_is_selectable(resource: &Resource, path: &str) -> bool {
    if path == "metadata.name" || (path == "metadata.namespace" && resource.namespaced) {
        return true;
    }
    match (resource.group, resource.plural) {
        ("", "pods") => matches!(
            path,
            "spec.nodeName"
                | "spec.restartPolicy"
                | "spec.schedulerName"
                | "spec.serviceAccountName"
                | "status.phase"
                | "status.podIP"
        ),
        ("", "events") => {
            path.starts_with("involvedObject.") || matches!(path, "reason" | "type" | "reportingComponent")
        }
        ("", "secrets") => path == "type",
        ("", "namespaces") => path == "status.phase",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::{EVENTS, PODS, RESOURCES};

    fn labels(selector: &str, object: &Value) -> bool {
        let object = Object::new(object.clone(), 1);
        Selector::parse(&RESOURCES[PODS], Some(selector), None).unwrap().matches(&object)
    }

    #[test]
    fn label_selectors_follow_kubernetes() {
        let pod = json!({ "metadata": { "labels": { "app": "a", "tier": "web", "n": "5" } } });
        for selector in [
            "app=a",
            "app==a",
            "app!=b",
            "missing!=b",
            "app in (a,b),tier",
            "app in (a, b)",
            "tier notin (db)",
            "!missing",
            "n>4",
            "n<6",
            "",
        ] {
            assert!(labels(selector, &pod), "{selector}");
        }
        for selector in ["app=b", "app!=a", "!app", "missing", "app notin (a)", "missing in (a)", "n>5"] {
            assert!(!labels(selector, &pod), "{selector}");
        }
        for selector in [
            "a b", "a===b", "a=b=c", "a=b c", "a=b,", "a=b,,c", "=a", "a in (b", "a=-b", "a/b/c", "a=b)",
            "!a=b",
        ] {
            let error = Selector::parse(&RESOURCES[PODS], Some(selector), None).unwrap_err();
            assert!(error.starts_with("unable to parse requirement: "), "{selector}: {error}");
        }
    }

    #[test]
    fn field_selectors_are_limited_to_known_fields() {
        let event =
            json!({ "metadata": { "name": "e", "namespace": "n" }, "involvedObject": { "name": "x" } });
        let event = Object::new(event, 1);
        let parse = |text| Selector::parse(&RESOURCES[EVENTS], None, Some(text));
        assert!(parse("involvedObject.name=x,metadata.namespace=n").unwrap().matches(&event));
        assert!(!parse("involvedObject.name!=x").unwrap().matches(&event));
        assert!(parse("spec.foo=x").is_err());
    }
}
