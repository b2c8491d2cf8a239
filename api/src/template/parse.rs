//! From text to nodes.

use super::{Command, FUNCTIONS, Node, Operand, Pipeline, Template, TemplateError};

#[derive(Debug, PartialEq)]
enum Token {
    End,
    Pipe,
    Open,
    Close,
    Space,
    Word(String),
    Field(String),
    Dot,
    Text(String),
    Int(i64),
}

struct Parser<'a> {
    name: &'static str,
    source: &'a str,
    at: usize,
    depth: usize,
}

/// How deep groups and conditions may nest.
const MAX_DEPTH: usize = 100;

/// What closed a list of nodes.
enum Closed {
    Eof,
    End,
    Else,
}

pub(super) fn parse(name: &'static str, source: &str) -> Result<Template, TemplateError> {
    let mut parser = Parser { name, source, at: 0, depth: 0 };
    let (nodes, closed) = parser.nodes()?;
    match closed {
        Closed::Eof => Ok(Template { name: name.into(), source: source.to_owned(), nodes }),
        Closed::End => Err(parser.error("unexpected {{end}}")),
        Closed::Else => Err(parser.error("unexpected {{else}}")),
    }
}

impl<'a> Parser<'a> {
    fn error(&self, message: impl std::fmt::Display) -> TemplateError {
        let line = 1 + self.source[..self.at].matches('\n').count();
        TemplateError(format!("{}:{line}: {message}", self.name))
    }

    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    /// Nodes up to the end of the text or an `end` or `else` action.
    fn nodes(&mut self) -> Result<(Vec<Node>, Closed), TemplateError> {
        let mut nodes = Vec::new();
        loop {
            let rest = self.rest();
            let Some(open) = rest.find("{{") else {
                self.at = self.source.len();
                push_text(&mut nodes, rest);
                return Ok((nodes, Closed::Eof));
            };
            let (text, action) = rest.split_at(open);
            let trims = action[2..].starts_with('-') && action[3..].starts_with([' ', '\t', '\r', '\n']);
            push_text(&mut nodes, if trims { text.trim_end() } else { text });
            self.at += open + if trims { 3 } else { 2 };
            self.skip_space();
            if self.rest().starts_with("/*") {
                let Some(end) = self.rest().find("*/") else { return Err(self.error("unclosed comment")) };
                self.at += end + 2;
                self.skip_space();
                if !self.close() {
                    return Err(self.error("comment ends before closing delimiter"));
                }
                continue;
            }
            match self.keyword() {
                Some("end") => {
                    self.expect_close("end")?;
                    return Ok((nodes, Closed::End));
                }
                Some("else") => {
                    self.skip_space();
                    let here = self.at;
                    if self.keyword() == Some("if") {
                        // `else if` is an `if` inside the `else`, sharing its end.
                        self.at = here;
                    } else {
                        self.expect_close("else")?;
                    }
                    return Ok((nodes, Closed::Else));
                }
                Some("if") => nodes.push(self.condition()?),
                Some(other) => return Err(self.error(format!("{{{{{other}}}}} is not supported"))),
                None => nodes.push(Node::Action(self.pipeline(&Token::End)?)),
            }
        }
    }

    fn deeper(&mut self) -> Result<(), TemplateError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(self.error("nested too deeply")) } else { Ok(()) }
    }

    fn condition(&mut self) -> Result<Node, TemplateError> {
        self.deeper()?;
        let condition = self.pipeline(&Token::End)?;
        let (then, closed) = self.nodes()?;
        let otherwise = match closed {
            Closed::End => Vec::new(),
            Closed::Eof => return Err(self.error("unexpected EOF")),
            Closed::Else if self.keyword() == Some("if") => vec![self.condition()?],
            Closed::Else => match self.nodes()? {
                (nodes, Closed::End) => nodes,
                (_, Closed::Else) => return Err(self.error("expected end; found {{else}}")),
                (_, Closed::Eof) => return Err(self.error("unexpected EOF")),
            },
        };
        self.depth -= 1;
        Ok(Node::If { condition, then, otherwise })
    }

    /// The keyword that the action starts with, if it does; moves behind it.
    fn keyword(&mut self) -> Option<&'static str> {
        const KEYWORDS: [&str; 10] =
            ["end", "else", "if", "range", "with", "define", "block", "template", "break", "continue"];
        let rest = self.rest();
        let word = &rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())];
        let keyword = KEYWORDS.into_iter().find(|k| *k == word)?;
        self.at += word.len();
        Some(keyword)
    }

    fn expect_close(&mut self, context: &str) -> Result<(), TemplateError> {
        self.skip_space();
        if self.close() {
            return Ok(());
        }
        match self.token()? {
            Token::End => Ok(()),
            _ => Err(self.error(format!("unexpected token in {context}"))),
        }
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
    }

    /// Moves behind the closing delimiter, if it is here.
    fn close(&mut self) -> bool {
        let trimmed = self.rest().trim_start_matches([' ', '\t', '\r', '\n']);
        let rest = self.rest();
        if let Some(tail) = trimmed.strip_prefix("-}}").filter(|_| {
            trimmed.len() < rest.len() || self.source[..self.at].ends_with([' ', '\t', '\r', '\n'])
        }) {
            self.at = self.source.len() - tail.trim_start().len();
            return true;
        }
        if rest.starts_with("}}") {
            self.at += 2;
            return true;
        }
        false
    }

    fn token(&mut self) -> Result<Token, TemplateError> {
        if self.close() {
            return Ok(Token::End);
        }
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Err(self.error("unclosed action")) };
        let word_len =
            |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        match first {
            ' ' | '\t' | '\r' | '\n' => {
                self.skip_space();
                Ok(Token::Space)
            }
            '|' => self.take(1, Token::Pipe),
            '(' => self.take(1, Token::Open),
            ')' => self.take(1, Token::Close),
            '.' => {
                let len = word_len(&rest[1..]);
                if len == 0 {
                    return self.take(1, Token::Dot);
                }
                self.take(1 + len, Token::Field(rest[1..=len].to_owned()))
            }
            '`' => match rest[1..].find('`') {
                Some(len) => self.take(len + 2, Token::Text(rest[1..=len].to_owned())),
                None => Err(self.error("unterminated raw quoted string")),
            },
            '"' => self.quoted(),
            '0'..='9' | '-' | '+' => {
                let len = 1 + word_len(&rest[1..]);
                match crate::golang::parse_int(&rest[..len]) {
                    Ok(value) => self.take(len, Token::Int(value)),
                    Err(_) => {
                        Err(self.error(format!("bad number syntax: {}", crate::golang::quote(&rest[..len]))))
                    }
                }
            }
            c if c.is_alphabetic() || c == '_' => {
                let len = word_len(rest);
                self.take(len, Token::Word(rest[..len].to_owned()))
            }
            c => Err(self.error(format!("unexpected {} in command", crate::golang::quote(&c.to_string())))),
        }
    }

    // Infallible; in this shape each arm above is one line.
    #[expect(clippy::unnecessary_wraps, reason = "the arms of the lexer return results")]
    fn take(&mut self, len: usize, token: Token) -> Result<Token, TemplateError> {
        self.at += len;
        Ok(token)
    }

    fn quoted(&mut self) -> Result<Token, TemplateError> {
        let mut text = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(Token::Text(text));
                }
                '\n' => break,
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some(c @ ('\\' | '"')) => text.push(c),
                    _ => return Err(self.error("invalid syntax")),
                },
                c => text.push(c),
            }
        }
        Err(self.error("unterminated quoted string"))
    }

    fn pipeline(&mut self, until: &Token) -> Result<Pipeline, TemplateError> {
        self.deeper()?;
        let mut commands = Vec::new();
        loop {
            self.skip_space();
            let start = self.at;
            let mut operands: Vec<Operand> = Vec::new();
            let mut spaced = true;
            let token = loop {
                let at = self.at;
                let token = self.token()?;
                let operand = match token {
                    Token::Space => {
                        spaced = true;
                        continue;
                    }
                    Token::End | Token::Pipe | Token::Close => {
                        let source = self.source[start..at].trim_end().to_owned();
                        if operands.is_empty() {
                            return Err(self.error(if commands.is_empty() {
                                "missing value for command"
                            } else {
                                "missing value for command after |"
                            }));
                        }
                        commands.push(Command { operands, at: start, source });
                        break token;
                    }
                    Token::Field(name) => match operands.last_mut() {
                        Some(Operand::Fields { path, .. } | Operand::Group(_, path)) if !spaced => {
                            path.push(name);
                            continue;
                        }
                        _ => Operand::Fields { path: vec![name], at },
                    },
                    Token::Dot => Operand::Dot,
                    Token::Text(text) => Operand::Text(text),
                    Token::Int(value) => Operand::Int(value),
                    Token::Word(word) if word == "true" || word == "false" => Operand::Bool(word == "true"),
                    Token::Word(word) => match FUNCTIONS.into_iter().find(|f| *f == word) {
                        Some(function) => Operand::Function(function),
                        None => {
                            return Err(
                                self.error(format!("function {} not defined", crate::golang::quote(&word)))
                            );
                        }
                    },
                    Token::Open => Operand::Group(self.pipeline(&Token::Close)?, Vec::new()),
                };
                operands.push(operand);
                spaced = false;
            };
            match token {
                Token::Pipe => {}
                token if token == *until => {
                    self.depth -= 1;
                    return Ok(Pipeline(commands));
                }
                Token::Close => return Err(self.error("unexpected right paren")),
                _ => return Err(self.error("unclosed left paren")),
            }
        }
    }
}

fn push_text(nodes: &mut Vec<Node>, text: &str) {
    if !text.is_empty() {
        nodes.push(Node::Text(text.to_owned()));
    }
}
