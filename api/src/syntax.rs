//! The syntax of Kubernetes' names. Each function answers with the problems it found, in Kubernetes' words;
//! none means that the text is fine.

const DNS1123_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS1123_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS1035_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_NAME: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const C_IDENTIFIER: &str = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";
const CONFIG_MAP_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

/// How Kubernetes counts; its checks differ in that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Characters,
    Bytes,
}

fn too_long(max: usize, unit: Unit) -> String {
    match unit {
        Unit::Characters => format!("must be no more than {max} characters"),
        Unit::Bytes => format!("must be no more than {max} bytes"),
    }
}

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn check(text: &str, (max, unit): (usize, Unit), good: bool, problem: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if text.len() > max {
        problems.push(too_long(max, unit));
    }
    if !good {
        problems.push(problem.to_owned());
    }
    problems
}

/// A label of RFC 1123: names of containers, volumes, namespaces.
#[must_use]
pub fn dns1123_label(text: &str) -> Vec<String> {
    // What is wrong with a good name of several labels is that there are several.
    let problem = if is_subdomain(text) { "must not contain dots" } else { DNS1123_LABEL };
    check(text, (63, Unit::Characters), is_label(text), problem)
}

/// Labels of RFC 1123 with dots between: names of most objects.
#[must_use]
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    subdomain(text, Unit::Characters)
}

fn subdomain(text: &str, unit: Unit) -> Vec<String> {
    check(text, (253, unit), is_subdomain(text), DNS1123_SUBDOMAIN)
}

/// A label of RFC 1035: names of services, so also of everything that gets one.
#[must_use]
pub fn dns1035_label(text: &str) -> Vec<String> {
    let good = is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase());
    check(text, (63, Unit::Characters), good, DNS1035_LABEL)
}

/// As [`dns1035_label`], for the beginning of a name: a dash at its end is fine, whatever stands before it.
#[must_use]
pub fn dns1035_label_prefix(text: &str) -> Vec<String> {
    let start = text.strip_suffix('-').and_then(|start| start.get(..start.len().checked_sub(1)?));
    let masked = start.map_or_else(|| text.to_owned(), |start| format!("{start}a"));
    dns1035_label(&masked)
}

/// A key of labels and annotations: a name, possibly behind a domain and a slash.
#[must_use]
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => {
            return vec![format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                QUALIFIED_NAME
            )];
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                problems.push("prefix part must be non-empty".to_owned());
            } else {
                problems
                    .extend(subdomain(prefix, Unit::Bytes).into_iter().map(|p| format!("prefix part {p}")));
            }
            name
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        problems.push(format!("name part {}", too_long(63, Unit::Bytes)));
    }
    if !is_label_text(name) {
        problems.push(format!("name part {QUALIFIED_NAME}"));
    }
    problems
}

fn is_label_text(text: &str) -> bool {
    let end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    end(text.as_bytes().first()) && end(text.as_bytes().last()) && text.bytes().all(inner)
}

/// A label's value.
#[must_use]
pub fn label_value(text: &str) -> Vec<String> {
    check(text, (63, Unit::Bytes), text.is_empty() || is_label_text(text), LABEL_VALUE)
}

/// An identifier as in C: names of kinds.
#[must_use]
pub fn c_identifier(text: &str) -> Vec<String> {
    let good = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if good { Vec::new() } else { vec![C_IDENTIFIER.to_owned()] }
}

/// A key of a ConfigMap or Secret.
#[must_use]
pub fn config_map_key(text: &str) -> Vec<String> {
    let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let mut problems = check(text, (253, Unit::Characters), good, CONFIG_MAP_KEY);
    match text {
        "." => problems.push("must not be '.'".to_owned()),
        ".." => problems.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => problems.push("must not start with '..'".to_owned()),
        _ => {}
    }
    problems
}

/// A domain name with at least two labels; a dot at its end is fine. The problem names the field, as Kubernetes
/// does for this check alone.
#[must_use]
pub fn fully_qualified_domain_name(field: &str, text: &str) -> Option<String> {
    if text.is_empty() {
        return Some(format!("{field}: Required value"));
    }
    let invalid = |value: &str, problem: &str| {
        Some(format!("{field}: Invalid value: {}: {problem}", crate::golang::quote(value)))
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    let problems = dns1123_subdomain(name);
    if !problems.is_empty() {
        return invalid(name, &problems.join(","));
    }
    if !name.contains('.') {
        return invalid(name, "should be a domain with at least two segments separated by dots");
    }
    let label = name.split('.').find(|label| !dns1123_label(label).is_empty())?;
    invalid(label, &dns1123_label(label).join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dash_at_the_end_of_a_prefix_is_fine() {
        for prefix in ["a-", "my-app-", "app", &format!("{}-", "a".repeat(63))] {
            assert_eq!(dns1035_label_prefix(prefix), Vec::<String>::new(), "{prefix}");
        }
        for prefix in ["-", "1app-", "My-"] {
            assert_eq!(dns1035_label_prefix(prefix), [DNS1035_LABEL], "{prefix}");
        }
    }

    #[test]
    fn several_labels_are_no_label() {
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(dns1123_label("a..b"), [DNS1123_LABEL]);
        assert_eq!(dns1123_label(&"a".repeat(64)), ["must be no more than 63 characters"]);
    }

    #[test]
    fn keys_are_counted_in_bytes() {
        assert_eq!(qualified_name(&"a".repeat(64)), ["name part must be no more than 63 bytes"]);
        assert_eq!(label_value(&"a".repeat(64)), ["must be no more than 63 bytes"]);
        assert!(qualified_name("a/b/c")[0].starts_with("a valid label key must consist of "));
        assert_eq!(qualified_name("/b"), ["prefix part must be non-empty"]);
    }
}
