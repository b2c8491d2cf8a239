//! From nodes and data to text.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::{Command, Fields, Node, Operand, Pipeline, Template, TemplateError, Value};
use crate::golang::quote;

struct Execution<'a> {
    template: &'a Template,
    data: &'a dyn Fields,
}

pub(super) fn render(template: &Template, data: &dyn Fields) -> Result<String, TemplateError> {
    let mut out = String::new();
    Execution { template, data }.nodes(&template.nodes, &mut out)?;
    Ok(out)
}

impl<'a> Execution<'a> {
    fn nodes(&self, nodes: &'a [Node], out: &mut String) -> Result<(), TemplateError> {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Action(pipeline) => out.push_str(&self.pipeline(pipeline)?.print()),
                Node::If { condition, then, otherwise } => {
                    let branch = if self.pipeline(condition)?.is_true() { then } else { otherwise };
                    self.nodes(branch, out)?;
                }
            }
        }
        Ok(())
    }

    fn error(&self, at: usize, source: &str, message: impl std::fmt::Display) -> TemplateError {
        let before = &self.template.source[..at];
        let line = 1 + before.matches('\n').count();
        let column = at - before.rfind('\n').map_or(0, |newline| newline + 1);
        let name = &self.template.name;
        TemplateError(format!("{name}:{line}:{column}: executing {} at <{source}>: {message}", quote(name)))
    }

    fn pipeline(&self, pipeline: &'a Pipeline) -> Result<Value<'a>, TemplateError> {
        let mut last = None;
        for command in &pipeline.0 {
            last = Some(self.command(command, last)?);
        }
        Ok(last.unwrap_or(Value::Nothing))
    }

    fn command(&self, command: &'a Command, piped: Option<Value<'a>>) -> Result<Value<'a>, TemplateError> {
        let Some((first, arguments)) = command.operands.split_first() else { return Ok(Value::Nothing) };
        if let Operand::Function(name) = first {
            let mut values = Vec::with_capacity(arguments.len() + 1);
            for argument in arguments {
                values.push(self.operand(command, argument)?);
            }
            values.extend(piped);
            return call(name, &values).map_err(|message| {
                self.error(command.at, &command.source, format!("error calling {name}: {message}"))
            });
        }
        if !arguments.is_empty() || piped.is_some() {
            return Err(self.error(
                command.at,
                &command.source,
                format!("can't give argument to non-function {}", command.source),
            ));
        }
        self.operand(command, first)
    }

    fn operand(&self, command: &Command, operand: &'a Operand) -> Result<Value<'a>, TemplateError> {
        match operand {
            Operand::Dot => Ok(Value::Nothing),
            Operand::Text(text) => Ok(Value::Text(text.into())),
            Operand::Int(value) => Ok(Value::Int(*value)),
            Operand::Bool(value) => Ok(Value::Bool(*value)),
            Operand::Function(name) => call(name, &[]).map_err(|message| {
                self.error(command.at, &command.source, format!("error calling {name}: {message}"))
            }),
            Operand::Group(pipeline, path) => {
                let value = self.pipeline(pipeline)?;
                self.path(value, path, command.at, &command.source)
            }
            Operand::Fields { path, at } => {
                let source = format!(".{}", path.join("."));
                let Some(value) = path.first().and_then(|name| self.data.field(name)) else {
                    let name = path.first().map_or("", String::as_str);
                    let kind = self.data.type_name();
                    return Err(self.error(
                        *at,
                        &source,
                        format!("can't evaluate field {name} in type {kind}"),
                    ));
                };
                self.path(value, &path[1..], *at, &source)
            }
        }
    }

    fn path(
        &self,
        value: Value<'a>,
        path: &[String],
        at: usize,
        source: &str,
    ) -> Result<Value<'a>, TemplateError> {
        path.iter().try_fold(value, |value, name| match value {
            Value::Map(map) => Ok(map.get(name).map_or(Value::Nothing, |text| Value::Text(text.into()))),
            other => {
                let kind = other.kind();
                Err(self.error(at, source, format!("can't evaluate field {name} in type {kind}")))
            }
        })
    }
}

fn call<'a>(name: &str, values: &[Value<'a>]) -> Result<Value<'a>, String> {
    let at_least = |n: usize| {
        if values.len() < n {
            Err(format!("wrong number of args: want at least {n} got {}", values.len()))
        } else {
            Ok(())
        }
    };
    let text = |value: String| Ok(Value::Text(Cow::Owned(value)));
    match name {
        "index" => {
            at_least(1)?;
            let mut keys = values[1..].iter();
            match (&values[0], keys.next(), keys.next()) {
                (value, None, _) => Ok(value.clone()),
                (Value::Map(map), Some(Value::Text(key)), None) => {
                    Ok(Value::Text(map.get(key.as_ref()).map_or(Cow::Borrowed(""), Cow::from)))
                }
                (value, ..) => Err(format!("can't index item of type {}", value.kind())),
            }
        }
        "len" => match values {
            [Value::Text(text)] => Ok(Value::Int(text.len() as i64)),
            [Value::Map(map)] => Ok(Value::Int(map.len() as i64)),
            [other] => Err(format!("len of type {}", other.kind())),
            _ => Err(format!("wrong number of args: want 1 got {}", values.len())),
        },
        "slice" => slice(values),
        "and" => {
            at_least(1)?;
            Ok(values.iter().find(|v| !v.is_true()).unwrap_or(&values[values.len() - 1]).clone())
        }
        "or" => {
            at_least(1)?;
            Ok(values.iter().find(|v| v.is_true()).unwrap_or(&values[values.len() - 1]).clone())
        }
        "not" => {
            at_least(1)?;
            Ok(Value::Bool(!values[0].is_true()))
        }
        "eq" => {
            at_least(2)?;
            Ok(Value::Bool(values[1..].contains(&values[0])))
        }
        "ne" => {
            at_least(2)?;
            Ok(Value::Bool(values[0] != values[1]))
        }
        "lt" | "le" | "gt" | "ge" => {
            let ordering = match values {
                [Value::Int(a), Value::Int(b)] => a.cmp(b),
                [Value::Text(a), Value::Text(b)] => a.cmp(b),
                _ => return Err("incompatible types for comparison".into()),
            };
            Ok(Value::Bool(match name {
                "lt" => ordering.is_lt(),
                "le" => ordering.is_le(),
                "gt" => ordering.is_gt(),
                _ => ordering.is_ge(),
            }))
        }
        "print" => text(values.iter().map(Value::print).collect()),
        "println" => text(values.iter().map(Value::print).collect::<Vec<_>>().join(" ") + "\n"),
        "printf" => {
            at_least(1)?;
            text(printf(&values[0].print(), &values[1..]))
        }
        "html" => text(escape(values, |c| match c {
            '<' => Some("&lt;".into()),
            '>' => Some("&gt;".into()),
            '&' => Some("&amp;".into()),
            '"' => Some("&#34;".into()),
            '\'' => Some("&#39;".into()),
            _ => None,
        })),
        "js" => text(escape(values, |c| match c {
            '\\' | '\'' | '"' => Some(format!("\\{c}")),
            '<' | '>' | '&' | '=' => Some(format!("\\u{:04X}", c as u32)),
            c if (c as u32) < 0x20 => Some(format!("\\u{:04X}", c as u32)),
            _ => None,
        })),
        "urlquery" => text(escape(values, |c| match c {
            ' ' => Some("+".into()),
            c if c.is_ascii_alphanumeric() || "-_.~".contains(c) => None,
            c => Some(c.to_string().bytes().fold(String::new(), |mut out, byte| {
                // Writing to a string does not fail.
                let _ = write!(out, "%{byte:02X}");
                out
            })),
        })),
        _ => Err(format!("{name} is not supported")),
    }
}

fn slice<'a>(values: &[Value<'a>]) -> Result<Value<'a>, String> {
    let (Some(Value::Text(text)), indexes) = (values.first(), values.get(1..).unwrap_or_default()) else {
        return Err("can't slice item of this type".into());
    };
    let index = |i: usize, default: usize| match indexes.get(i) {
        None => Ok(default),
        Some(Value::Int(n)) => usize::try_from(*n)
            .ok()
            .filter(|n| *n <= text.len())
            .ok_or_else(|| format!("index out of range: {n}")),
        Some(other) => Err(format!("cannot index slice/array with type {}", other.kind())),
    };
    let (start, end) = (index(0, 0)?, index(1, text.len())?);
    match text.get(start..end) {
        Some(part) => Ok(Value::Text(Cow::Owned(part.to_owned()))),
        None => Err(format!("invalid slice index: {start} > {end}")),
    }
}

fn escape(values: &[Value<'_>], escaped: impl Fn(char) -> Option<String>) -> String {
    let mut out = String::new();
    for c in values.iter().map(Value::print).collect::<String>().chars() {
        match escaped(c) {
            Some(text) => out.push_str(&text),
            None => out.push(c),
        }
    }
    out
}

fn printf(format: &str, arguments: &[Value<'_>]) -> String {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => out.push('%'),
            Some(verb @ ('s' | 'v' | 'd' | 'q')) => match arguments.next() {
                Some(argument) if verb == 'q' => out.push_str(&quote(&argument.print())),
                Some(argument) => out.push_str(&argument.print()),
                None => {
                    let _ = write!(out, "%!{verb}(MISSING)");
                }
            },
            Some(verb) => {
                let _ = write!(out, "%!{verb}");
            }
            None => out.push_str("%!(NOVERB)"),
        }
    }
    out
}

impl Value<'_> {
    fn is_true(&self) -> bool {
        match self {
            Self::Text(text) => !text.is_empty(),
            Self::Map(map) => !map.is_empty(),
            Self::Int(value) => *value != 0,
            Self::Bool(value) => *value,
            Self::Nothing => false,
        }
    }

    fn print(&self) -> String {
        match self {
            Self::Text(text) => text.to_string(),
            Self::Map(map) => {
                let entries: Vec<_> = map.iter().map(|(k, v)| format!("{k}:{v}")).collect();
                format!("map[{}]", entries.join(" "))
            }
            Self::Int(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Nothing => "<no value>".into(),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "string",
            Self::Map(_) => "map[string]string",
            Self::Int(_) => "int",
            Self::Bool(_) => "bool",
            Self::Nothing => "nil",
        }
    }
}
