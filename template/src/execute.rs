//! From nodes and data to text.

use crate::budget::{Budget, Out};
use crate::functions::{at_least, call};
use crate::text::quote;
use crate::value::{Fields, Value};
use crate::{Branch, Command, Node, Operand, Pipeline, Template, TemplateError};

struct Execution<'a, 'b> {
    template: &'a Template,
    budget: &'b Budget,
    out: Out<'b>,
    /// Innermost last.
    variables: Vec<(&'a str, Value<'a>)>,
}

pub(super) fn render(template: &Template, data: &dyn Fields) -> Result<String, TemplateError> {
    let budget = Budget::new();
    let root = Value::Object(data);
    let mut execution =
        Execution { template, budget: &budget, out: Out::new(&budget), variables: vec![("$", root.clone())] };
    execution.nodes(&template.nodes, &root)?;
    Ok(execution.out.into_text())
}

/// What belongs to the last name of a path.
type Arguments<'v, 'a> = &'v [Value<'a>];

impl<'a> Execution<'a, '_> {
    fn nodes(&mut self, nodes: &'a [Node], dot: &Value<'a>) -> Result<(), TemplateError> {
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push(text).map_err(|message| self.failed(message))?,
                Node::Action(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        let pushed = value.print().and_then(|text| self.out.push(&text));
                        pushed.map_err(|message| self.failed_at(pipeline, message))?;
                    } else {
                        self.assign(pipeline, &[value]);
                    }
                }
                Node::Branch { kind, pipeline, then, otherwise } => {
                    let known = self.variables.len();
                    self.branch(*kind, pipeline, then, otherwise, dot)?;
                    self.variables.truncate(known);
                }
            }
        }
        Ok(())
    }

    fn branch(
        &mut self,
        kind: Branch,
        pipeline: &'a Pipeline,
        then: &'a [Node],
        otherwise: &'a [Node],
        dot: &Value<'a>,
    ) -> Result<(), TemplateError> {
        let value = self.pipeline(pipeline, dot)?;
        if kind == Branch::Range {
            return self.range(pipeline, &value, then, otherwise, dot);
        }
        if !pipeline.variables.is_empty() {
            self.budget.spend(value.size()).map_err(|message| self.failed_at(pipeline, message))?;
            self.assign(pipeline, std::slice::from_ref(&value));
        }
        match (value.is_true(), kind) {
            (false, _) => self.nodes(otherwise, dot),
            (true, Branch::With) => self.nodes(then, &value),
            (true, _) => self.nodes(then, dot),
        }
    }

    fn range(
        &mut self,
        pipeline: &'a Pipeline,
        value: &Value<'a>,
        then: &'a [Node],
        otherwise: &'a [Node],
        dot: &Value<'a>,
    ) -> Result<(), TemplateError> {
        let text = |text: &'a String| Value::Text(text.as_str().into());
        let number = |i: usize| Value::Int(i64::try_from(i).unwrap_or(i64::MAX));
        let entries: Box<dyn Iterator<Item = (Value<'a>, Value<'a>)> + 'a> = match *value {
            Value::List(list) => {
                Box::new(list.iter().enumerate().map(move |(i, item)| (number(i), text(item))))
            }
            Value::Map(map) => Box::new(map.iter().map(move |(key, item)| (text(key), text(item)))),
            Value::Int(count) => Box::new((0..count).map(|i| (Value::Int(i), Value::Int(i)))),
            Value::Object(object) if object.lists().is_some() => Box::new(
                object.lists().into_iter().flatten().map(move |(key, list)| (text(key), Value::List(list))),
            ),
            Value::Nothing => Box::new(std::iter::empty()),
            ref other => {
                let kind = other.kind();
                return Err(self.failed_at(pipeline, format!("range can't iterate over {kind}")));
            }
        };
        let known = self.variables.len();
        let mut any = false;
        for (key, item) in entries {
            any = true;
            self.budget.step().map_err(|message| self.failed_at(pipeline, message))?;
            match pipeline.variables.len() {
                0 => {}
                1 => self.assign(pipeline, std::slice::from_ref(&item)),
                _ => self.assign(pipeline, &[key, item.clone()]),
            }
            self.nodes(then, &item)?;
            self.variables.truncate(known);
        }
        if any { Ok(()) } else { self.nodes(otherwise, dot) }
    }

    /// Gives the variables of a pipeline their values.
    fn assign(&mut self, pipeline: &'a Pipeline, values: &[Value<'a>]) {
        for (name, value) in pipeline.variables.iter().zip(values) {
            if pipeline.declares {
                self.variables.push((name, value.clone()));
            } else if let Some((_, known)) = self.variables.iter_mut().rev().find(|(known, _)| known == name)
            {
                known.clone_from(value);
            }
        }
    }

    fn error(&self, at: usize, source: &str, message: impl std::fmt::Display) -> TemplateError {
        let before = &self.template.source[..at];
        let line = 1 + before.matches('\n').count();
        let column = at - before.rfind('\n').map_or(0, |newline| newline + 1);
        let name = &self.template.name;
        TemplateError(format!("{name}:{line}:{column}: executing {} at <{source}>: {message}", quote(name)))
    }

    fn failed(&self, message: impl std::fmt::Display) -> TemplateError {
        let name = &self.template.name;
        TemplateError(format!("{name}: executing {}: {message}", quote(name)))
    }

    fn failed_at(&self, pipeline: &Pipeline, message: impl std::fmt::Display) -> TemplateError {
        match pipeline.commands.last() {
            Some(command) => self.error(command.at, &command.source, message),
            None => self.failed(message),
        }
    }

    fn pipeline(&self, pipeline: &'a Pipeline, dot: &Value<'a>) -> Result<Value<'a>, TemplateError> {
        let mut last = None;
        for command in &pipeline.commands {
            last = Some(self.command(command, dot, last)?);
        }
        Ok(last.unwrap_or(Value::Nothing))
    }

    fn command(
        &self,
        command: &'a Command,
        dot: &Value<'a>,
        piped: Option<Value<'a>>,
    ) -> Result<Value<'a>, TemplateError> {
        self.budget.step().map_err(|message| self.error(command.at, &command.source, message))?;
        let Some((first, arguments)) = command.operands.split_first() else { return Ok(Value::Nothing) };
        let mut values = Vec::new();
        if let Operand::Function(name @ ("and" | "or")) = first {
            // What does not matter any more is not looked at.
            for argument in arguments {
                let value = self.operand(command, argument, dot)?;
                let decides = value.is_true() == (*name == "or");
                values.push(value);
                if decides {
                    return Ok(values.pop().unwrap_or(Value::Nothing));
                }
            }
            values.extend(piped);
            at_least(1, &values).map_err(|message| self.call_failed(command, name, &message))?;
            return Ok(values.pop().unwrap_or(Value::Nothing));
        }
        for argument in arguments {
            values.push(self.operand(command, argument, dot)?);
        }
        values.extend(piped);
        match first {
            Operand::Function(name) => self.call(command, name, &values),
            Operand::Fields { path, at } => self.path(dot.clone(), path, &values, *at, &|| dotted("", path)),
            Operand::Variable { name, path, at } if !path.is_empty() => {
                self.path(self.variable(name), path, &values, *at, &|| dotted(name, path))
            }
            Operand::Group(pipeline, path) if !path.is_empty() => {
                let value = self.pipeline(pipeline, dot)?;
                self.path(value, path, &values, command.at, &|| command.source.clone())
            }
            Operand::Nil => Err(self.error(command.at, &command.source, "nil is not a command")),
            _ if !values.is_empty() => Err(self.error(
                command.at,
                &command.source,
                format!("can't give argument to non-function {}", command.source),
            )),
            other => self.operand(command, other, dot),
        }
    }

    fn operand(
        &self,
        command: &Command,
        operand: &'a Operand,
        dot: &Value<'a>,
    ) -> Result<Value<'a>, TemplateError> {
        let value = match operand {
            Operand::Dot => dot.clone(),
            Operand::Text(text) => Value::Text(text.into()),
            Operand::Int(value) => Value::Int(*value),
            Operand::Float(value) => Value::Float(*value),
            Operand::Bool(value) => Value::Bool(*value),
            Operand::Nil => Value::Nothing,
            Operand::Function(name) => self.call(command, name, &[])?,
            Operand::Group(pipeline, path) => {
                let value = self.pipeline(pipeline, dot)?;
                self.path(value, path, &[], command.at, &|| command.source.clone())?
            }
            Operand::Variable { name, path, at } => {
                self.path(self.variable(name), path, &[], *at, &|| dotted(name, path))?
            }
            Operand::Fields { path, at } => self.path(dot.clone(), path, &[], *at, &|| dotted("", path))?,
        };
        self.budget
            .spend(value.size())
            .map_err(|message| self.error(command.at, &command.source, message))?;
        Ok(value)
    }

    fn variable(&self, name: &str) -> Value<'a> {
        let found = self.variables.iter().rev().find(|(known, _)| *known == name);
        found.map_or(Value::Nothing, |(_, value)| value.clone())
    }

    fn call(
        &self,
        command: &Command,
        name: &str,
        values: Arguments<'_, 'a>,
    ) -> Result<Value<'a>, TemplateError> {
        call(name, values, self.budget).map_err(|message| self.call_failed(command, name, &message))
    }

    fn call_failed(&self, command: &Command, name: &str, message: &str) -> TemplateError {
        self.error(command.at, &command.source, format!("error calling {name}: {message}"))
    }

    /// Follows fields, methods and keys from `value`; the arguments are for the last.
    fn path(
        &self,
        mut value: Value<'a>,
        path: &[String],
        arguments: Arguments<'_, 'a>,
        at: usize,
        source: &dyn Fn() -> String,
    ) -> Result<Value<'a>, TemplateError> {
        let error = |message: String| self.error(at, &source(), message);
        for (i, name) in path.iter().enumerate() {
            let arguments = if i + 1 == path.len() { arguments } else { &[] };
            if let Value::Object(object) = value
                && let Some(called) = object.method(name, arguments)
            {
                value = called.map_err(|message| error(format!("error calling {name}: {message}")))?;
                continue;
            }
            let found = match value {
                Value::Object(object) => match (object.field(name), object.lists()) {
                    (Some(found), _) => found,
                    (None, Some(lists)) => lists.get(name).map_or(Value::Nothing, |list| Value::List(list)),
                    (None, None) => {
                        let kind = object.type_name();
                        return Err(error(format!("can't evaluate field {name} in type {kind}")));
                    }
                },
                Value::Map(map) => map.get(name).map_or(Value::Nothing, |text| Value::Text(text.into())),
                Value::Nothing => return Err(error(format!("nil data; no entry for key {}", quote(name)))),
                other => {
                    let kind = other.kind();
                    return Err(error(format!("can't evaluate field {name} in type {kind}")));
                }
            };
            if !arguments.is_empty() {
                return Err(error(format!("{name} has arguments but cannot be invoked as function")));
            }
            value = found;
        }
        Ok(value)
    }
}

fn dotted(start: &str, path: &[String]) -> String {
    path.iter().fold(start.to_owned(), |text, name| text + "." + name)
}
