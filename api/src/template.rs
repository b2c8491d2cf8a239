//! Templates over an object's metadata, as ConfigMaps hold them for host and container names.
//!
//! The language is the part of Go's `text/template` that makes sense there: text, fields, map lookups,
//! pipelines, parentheses, literals, `if`/`else`, comments, trim markers and the functions of [`FUNCTIONS`].
//! Variables, `range`, `with` and nested definitions are refused when the template is parsed.

mod execute;
mod parse;

use std::borrow::Cow;
use std::collections::BTreeMap;

/// The functions a template may call.
pub const FUNCTIONS: [&str; 19] = [
    "and", "call", "eq", "ge", "gt", "html", "index", "js", "le", "len", "lt", "ne", "not", "or", "print",
    "printf", "println", "slice", "urlquery",
];

/// Why a template does not parse or does not apply to its data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template: {0}")]
pub struct TemplateError(String);

/// What a template is applied to: named fields.
pub trait Fields {
    /// The name that errors give the data.
    fn type_name(&self) -> &'static str;
    /// A field's value; `None` if there is no such field.
    fn field(&self, name: &str) -> Option<Value<'_>>;
}

/// A value inside a template.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Text.
    Text(Cow<'a, str>),
    /// Text by key, such as labels.
    Map(&'a BTreeMap<String, String>),
    /// A number.
    Int(i64),
    /// A truth value.
    Bool(bool),
    /// What looking up an absent key by field syntax gives.
    Nothing,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Action(Pipeline),
    If { condition: Pipeline, then: Vec<Node>, otherwise: Vec<Node> },
}

#[derive(Clone, Debug, PartialEq)]
struct Pipeline(Vec<Command>);

#[derive(Clone, Debug, PartialEq)]
struct Command {
    operands: Vec<Operand>,
    at: usize,
    source: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Dot,
    Fields { path: Vec<String>, at: usize },
    Text(String),
    Int(i64),
    Bool(bool),
    Function(&'static str),
    Group(Pipeline, Vec<String>),
}

/// A parsed template.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    name: Cow<'static, str>,
    source: String,
    nodes: Vec<Node>,
}

impl Template {
    /// Parses a template; `name` appears in errors.
    ///
    /// # Errors
    /// The text is outside the language.
    pub fn parse(name: &'static str, source: &str) -> Result<Self, TemplateError> {
        parse::parse(name, source)
    }

    /// The text it was parsed from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Applies the template.
    ///
    /// # Errors
    /// A field that the data does not have, or arguments that a function does not take.
    pub fn render(&self, data: &dyn Fields) -> Result<String, TemplateError> {
        execute::render(self, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Meta(BTreeMap<String, String>);

    impl Fields for Meta {
        fn type_name(&self) -> &'static str {
            "v1.Meta"
        }

        fn field(&self, name: &str) -> Option<Value<'_>> {
            match name {
                "Name" => Some(Value::Text("web".into())),
                "Labels" => Some(Value::Map(&self.0)),
                _ => None,
            }
        }
    }

    fn render(source: &str) -> Result<String, String> {
        let data = Meta([("app".to_owned(), "shop".to_owned())].into());
        Template::parse("t", source).and_then(|t| t.render(&data)).map_err(|e| e.to_string())
    }

    #[test]
    fn renders() {
        for (source, text) in [
            ("a-{{.Name}}", "a-web"),
            ("{{ .Labels.app }}", "shop"),
            ("{{.Labels.none}}", "<no value>"),
            (r#"{{index .Labels "none"}}"#, ""),
            (r#"{{ index .Labels "app" | printf "%s-%q" .Name }}"#, r#"web-"shop""#),
            (r#"{{if eq .Name "web"}}yes{{else}}no{{end}}"#, "yes"),
            (r#"{{if (index .Labels "x")}}a{{else if .Labels}}b{{else}}c{{end}}"#, "b"),
            ("a {{- /* note */ -}} b", "ab"),
            ("{{slice .Name 0 2}}{{len .Name}}", "we3"),
            (r#"{{or (index .Labels "x") `raw`}}"#, "raw"),
        ] {
            assert_eq!(render(source).as_deref(), Ok(text), "{source}");
        }
    }

    #[test]
    fn nesting_has_an_end() {
        let deep = format!("{{{{{}.Name{}}}}}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(render(&deep).is_err());
        assert!(render(&"{{if .Name}}".repeat(100_000)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_template_or_an_error(text in "[{}().| a-z\"`if-]*|\\PC*") {
            let _ = render(&text);
            let _ = render(&format!("{{{{{text}}}}}"));
        }
    }

    #[test]
    fn errors_name_the_place() {
        for (source, error) in [
            ("{{.Name", "template: t:1: unclosed action"),
            ("{{ a", r#"template: t:1: function "a" not defined"#),
            (
                "\n{{.Nope}}",
                r#"template: t:2:2: executing "t" at <.Nope>: can't evaluate field Nope in type v1.Meta"#,
            ),
            ("{{if .Name}}x", "template: t:1: unexpected EOF"),
            ("{{end}}", "template: t:1: unexpected {{end}}"),
            ("{{}}", "template: t:1: missing value for command"),
        ] {
            assert_eq!(render(source), Err(error.to_owned()), "{source}");
        }
    }
}
