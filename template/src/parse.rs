//! From text to nodes.

use crate::lexer::{Lexer, Token};
use crate::text::quote;
use crate::{Branch, Command, FUNCTIONS, Node, Operand, Pipeline, Template, TemplateError};

struct Parser<'a> {
    lexer: Lexer<'a>,
    depth: usize,
    /// Those that are known here.
    variables: Vec<String>,
}

/// How deep groups and branches may nest.
const MAX_DEPTH: usize = 100;

/// What closed a list of nodes.
enum Closed {
    Eof,
    End,
    Else,
}

pub(super) fn parse(name: &'static str, source: &str) -> Result<Template, TemplateError> {
    let lexer = Lexer { name, source, at: 0 };
    let mut parser = Parser { lexer, depth: 0, variables: vec!["$".to_owned()] };
    let (nodes, closed) = parser.nodes()?;
    match closed {
        Closed::Eof => Ok(Template { name: name.into(), source: source.to_owned(), nodes }),
        Closed::End => Err(parser.error("unexpected {{end}}")),
        Closed::Else => Err(parser.error("unexpected {{else}}")),
    }
}

impl Parser<'_> {
    fn error(&self, message: impl std::fmt::Display) -> TemplateError {
        self.lexer.error(message)
    }

    /// Nodes up to the end of the text or an `end` or `else` action.
    fn nodes(&mut self) -> Result<(Vec<Node>, Closed), TemplateError> {
        let mut nodes = Vec::new();
        loop {
            let (text, action) = self.lexer.text();
            if !text.is_empty() {
                nodes.push(Node::Text(text.to_owned()));
            }
            if !action {
                return Ok((nodes, Closed::Eof));
            }
            self.lexer.skip_space();
            if self.lexer.comment()? {
                continue;
            }
            match self.lexer.keyword() {
                Some("end") => {
                    self.expect_close("end")?;
                    return Ok((nodes, Closed::End));
                }
                Some("else") => {
                    self.lexer.skip_space();
                    let here = self.lexer.at;
                    if matches!(self.lexer.keyword(), Some("if" | "with")) {
                        // A branch inside the `else`, sharing its end.
                        self.lexer.at = here;
                    } else {
                        self.expect_close("else")?;
                    }
                    return Ok((nodes, Closed::Else));
                }
                Some("if") => nodes.push(self.branch(Branch::If)?),
                Some("with") => nodes.push(self.branch(Branch::With)?),
                Some("range") => nodes.push(self.branch(Branch::Range)?),
                Some(other) => return Err(self.error(format!("{{{{{other}}}}} is not supported"))),
                None => nodes.push(Node::Action(self.declaration(1)?)),
            }
        }
    }

    fn deeper(&mut self) -> Result<(), TemplateError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(self.error("nested too deeply")) } else { Ok(()) }
    }

    fn branch(&mut self, kind: Branch) -> Result<Node, TemplateError> {
        self.deeper()?;
        let known = self.variables.len();
        let pipeline = self.declaration(if kind == Branch::Range { 2 } else { 1 })?;
        let declared = self.variables.len();
        let (then, closed) = self.nodes()?;
        self.variables.truncate(declared);
        let otherwise = match closed {
            Closed::End => Vec::new(),
            Closed::Eof => return Err(self.error("unexpected EOF")),
            Closed::Else => match self.lexer.keyword() {
                Some("if") if kind == Branch::If => vec![self.branch(Branch::If)?],
                Some("with") if kind == Branch::With => vec![self.branch(Branch::With)?],
                Some(other) => return Err(self.error(format!("unexpected {{{{else {other}}}}}"))),
                None => match self.nodes()? {
                    (nodes, Closed::End) => nodes,
                    (_, Closed::Else) => return Err(self.error("expected end; found {{else}}")),
                    (_, Closed::Eof) => return Err(self.error("unexpected EOF")),
                },
            },
        };
        self.variables.truncate(known);
        self.depth -= 1;
        Ok(Node::Branch { kind, pipeline, then, otherwise })
    }

    fn expect_close(&mut self, context: &str) -> Result<(), TemplateError> {
        self.lexer.skip_space();
        match self.lexer.token()? {
            Token::End => Ok(()),
            _ => Err(self.error(format!("unexpected token in {context}"))),
        }
    }

    /// A pipeline up to the end of the action whose value up to `most` variables may get.
    fn declaration(&mut self, most: usize) -> Result<Pipeline, TemplateError> {
        self.lexer.skip_space();
        let here = self.lexer.at;
        let mut names = Vec::new();
        let mut declares = None;
        while self.lexer.rest().starts_with('$')
            && let Token::Variable(name) = self.lexer.token()?
        {
            names.push(name);
            if self.lexer.take_symbol(":=") {
                declares = Some(true);
            } else if self.lexer.take_symbol("=") {
                declares = Some(false);
            } else if self.lexer.take_symbol(",") {
                if names.len() == most {
                    return Err(self.error("too many declarations"));
                }
                self.lexer.skip_space();
                continue;
            }
            break;
        }
        let Some(declares) = declares else {
            self.lexer.at = here;
            return self.pipeline(&Token::End);
        };
        if !declares {
            for name in &names {
                self.check_variable(name)?;
            }
        }
        let mut pipeline = self.pipeline(&Token::End)?;
        if declares {
            self.variables.extend(names.iter().cloned());
        }
        pipeline.variables = names;
        pipeline.declares = declares;
        Ok(pipeline)
    }

    fn check_variable(&self, name: &str) -> Result<(), TemplateError> {
        if self.variables.iter().any(|known| known == name) {
            return Ok(());
        }
        Err(self.error(format!("undefined variable {}", quote(name))))
    }

    fn pipeline(&mut self, until: &Token) -> Result<Pipeline, TemplateError> {
        self.deeper()?;
        let mut commands = Vec::new();
        loop {
            let (command, token) = self.command(commands.is_empty())?;
            commands.push(command);
            match token {
                Token::Pipe => {}
                token if token == *until => {
                    self.depth -= 1;
                    return Ok(Pipeline { variables: Vec::new(), declares: false, commands });
                }
                Token::Close => return Err(self.error("unexpected right paren")),
                _ => return Err(self.error("unclosed left paren")),
            }
        }
    }

    /// A command and the token that ends it.
    fn command(&mut self, first: bool) -> Result<(Command, Token), TemplateError> {
        self.lexer.skip_space();
        let start = self.lexer.at;
        let mut operands: Vec<Operand> = Vec::new();
        let mut spaced = true;
        loop {
            let at = self.lexer.at;
            let operand = match self.lexer.token()? {
                Token::Space => {
                    spaced = true;
                    continue;
                }
                token @ (Token::End | Token::Pipe | Token::Close) => {
                    if operands.is_empty() {
                        let after = if first { "" } else { " after |" };
                        return Err(self.error(format!("missing value for command{after}")));
                    }
                    if !first && !matches!(operands[0], Operand::Function(_)) && !can_be_called(&operands[0])
                    {
                        return Err(self.error("non executable command in pipeline"));
                    }
                    let source = self.lexer.source[start..at].trim_end().to_owned();
                    return Ok((Command { operands, at: start, source }, token));
                }
                Token::Field(name) => match operands.last_mut() {
                    Some(
                        Operand::Fields { path, .. }
                        | Operand::Variable { path, .. }
                        | Operand::Group(_, path),
                    ) if !spaced => {
                        path.push(name);
                        continue;
                    }
                    _ => Operand::Fields { path: vec![name], at },
                },
                Token::Variable(name) => {
                    self.check_variable(&name)?;
                    Operand::Variable { name, path: Vec::new(), at }
                }
                Token::Dot => Operand::Dot,
                Token::Text(text) => Operand::Text(text),
                Token::Int(value) => Operand::Int(value),
                Token::Float(value) => Operand::Float(value),
                Token::Word(word) => match word.as_str() {
                    "true" => Operand::Bool(true),
                    "false" => Operand::Bool(false),
                    "nil" => Operand::Nil,
                    word => match FUNCTIONS.into_iter().find(|f| *f == word) {
                        Some(function) => Operand::Function(function),
                        None => {
                            return Err(self.error(format!("function {} not defined", quote(word))));
                        }
                    },
                },
                Token::Open => Operand::Group(self.pipeline(&Token::Close)?, Vec::new()),
            };
            operands.push(operand);
            spaced = false;
        }
    }
}

/// Whether what stands before may be given to it.
fn can_be_called(operand: &Operand) -> bool {
    matches!(operand, Operand::Fields { .. } | Operand::Variable { .. } | Operand::Group(..))
}
