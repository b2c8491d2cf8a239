//! Go's text templates, as ConfigMaps hold them for host names, container names and request logs.
//!
//! The language is that of `text/template`: text, fields, methods, map look-ups, pipelines, variables, literals,
//! `if`, `with`, `range`, comments, trim markers and the functions of [`FUNCTIONS`]. Templates that define or call
//! other templates, `break` and `continue` are refused when the template is parsed. Rendering is bounded: in time, in
//! memory and in what it gives.

mod budget;
mod execute;
mod functions;
mod lexer;
mod parse;
mod printf;
pub mod text;
mod value;

use std::borrow::Cow;

pub use value::{Fields, Value};

/// The functions a template may call.
pub const FUNCTIONS: [&str; 19] = [
    "and", "call", "eq", "ge", "gt", "html", "index", "js", "le", "len", "lt", "ne", "not", "or", "print",
    "printf", "println", "slice", "urlquery",
];

/// What a rendering may cost, in bytes: of its output and of all values on the way there. A step counts as a few, so
/// that time is bounded too. 4 MiB.
pub const MAX_COST: usize = 4 << 20;

/// The line of the request log unless `config-observability` has another; here, where both who reads that ConfigMap
/// and who writes the log find it.
pub const DEFAULT_REQUEST_LOG: &str = r#"{"httpRequest": {"requestMethod": "{{.Request.Method}}", "requestUrl": "{{js .Request.RequestURI}}", "requestSize": "{{.Request.ContentLength}}", "status": {{.Response.Code}}, "responseSize": "{{.Response.Size}}", "userAgent": "{{js .Request.UserAgent}}", "remoteIp": "{{js .Request.RemoteAddr}}", "serverIp": "{{.Revision.PodIP}}", "referer": "{{js .Request.Referer}}", "latency": "{{.Response.Latency}}s", "protocol": "{{.Request.Proto}}"}, "traceId": "{{.TraceID}}"}"#;

/// Why a template does not parse or does not apply to its data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template: {0}")]
pub struct TemplateError(String);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Action(Pipeline),
    Branch { kind: Branch, pipeline: Pipeline, then: Vec<Node>, otherwise: Vec<Node> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Branch {
    If,
    With,
    Range,
}

#[derive(Clone, Debug, PartialEq)]
struct Pipeline {
    /// Variables that get the value: one, or for `range` up to two.
    variables: Vec<String>,
    /// Whether they are made here.
    declares: bool,
    commands: Vec<Command>,
}

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
    Variable { name: String, path: Vec<String>, at: usize },
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    Nil,
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
    /// A field that the data does not have, arguments that a function does not take, or more than [`MAX_COST`].
    pub fn render(&self, data: &dyn Fields) -> Result<String, TemplateError> {
        execute::render(self, data)
    }
}

#[cfg(test)]
mod tests;
