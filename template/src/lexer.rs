//! From the text inside an action to tokens.

use crate::TemplateError;
use crate::text::quote;

#[derive(Debug, PartialEq)]
pub(crate) enum Token {
    End,
    Pipe,
    Open,
    Close,
    Space,
    Word(String),
    Field(String),
    Variable(String),
    Dot,
    Text(String),
    Int(i64),
    Float(f64),
}

/// A place in the text of a template.
pub(crate) struct Lexer<'a> {
    pub(crate) name: &'static str,
    pub(crate) source: &'a str,
    pub(crate) at: usize,
}

const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn word_len(text: &str) -> usize {
    text.find(|c: char| !is_word(c)).unwrap_or(text.len())
}

impl<'a> Lexer<'a> {
    pub(crate) fn error(&self, message: impl std::fmt::Display) -> TemplateError {
        let line = 1 + self.source[..self.at].matches('\n').count();
        TemplateError(format!("{}:{line}: {message}", self.name))
    }

    pub(crate) fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    pub(crate) fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches(SPACE).len();
    }

    /// The text up to the next action, trimmed if that asks for it, and whether there is one; moves behind its
    /// opening delimiter.
    pub(crate) fn text(&mut self) -> (&'a str, bool) {
        let rest = self.rest();
        let Some(open) = rest.find("{{") else {
            self.at = self.source.len();
            return (rest, false);
        };
        let (text, action) = rest.split_at(open);
        let trims = action[2..].starts_with('-') && action[3..].starts_with(SPACE);
        self.at += open + if trims { 3 } else { 2 };
        (if trims { text.trim_end_matches(SPACE) } else { text }, true)
    }

    /// Moves behind the comment that the action is, if it is one.
    pub(crate) fn comment(&mut self) -> Result<bool, TemplateError> {
        if !self.rest().starts_with("/*") {
            return Ok(false);
        }
        let Some(end) = self.rest().find("*/") else { return Err(self.error("unclosed comment")) };
        self.at += end + 2;
        self.skip_space();
        if self.close() { Ok(true) } else { Err(self.error("comment ends before closing delimiter")) }
    }

    /// The keyword that is next, if one is; moves behind it.
    pub(crate) fn keyword(&mut self) -> Option<&'static str> {
        const KEYWORDS: [&str; 10] =
            ["end", "else", "if", "range", "with", "define", "block", "template", "break", "continue"];
        let rest = self.rest();
        let word = &rest[..word_len(rest)];
        let keyword = KEYWORDS.into_iter().find(|k| *k == word)?;
        self.at += word.len();
        Some(keyword)
    }

    /// Moves behind the closing delimiter, if it is here.
    pub(crate) fn close(&mut self) -> bool {
        let rest = self.rest();
        let trimmed = rest.trim_start_matches(SPACE);
        let spaced = trimmed.len() < rest.len() || self.source[..self.at].ends_with(SPACE);
        if let Some(tail) = trimmed.strip_prefix("-}}").filter(|_| spaced) {
            self.at = self.source.len() - tail.trim_start_matches(SPACE).len();
            return true;
        }
        if rest.starts_with("}}") {
            self.at += 2;
            return true;
        }
        false
    }

    /// Moves behind `text`, if it is here after space.
    pub(crate) fn take_symbol(&mut self, text: &str) -> bool {
        let trimmed = self.rest().trim_start_matches(SPACE);
        let Some(tail) = trimmed.strip_prefix(text) else { return false };
        self.at = self.source.len() - tail.len();
        true
    }

    pub(crate) fn token(&mut self) -> Result<Token, TemplateError> {
        if self.close() {
            return Ok(Token::End);
        }
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Err(self.error("unclosed action")) };
        match first {
            ' ' | '\t' | '\r' | '\n' => {
                self.skip_space();
                Ok(Token::Space)
            }
            '|' => self.take(1, Token::Pipe),
            '(' => self.take(1, Token::Open),
            ')' => self.take(1, Token::Close),
            '.' if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => self.number(),
            '.' => {
                let len = word_len(&rest[1..]);
                if len == 0 {
                    return self.take(1, Token::Dot);
                }
                self.take(1 + len, Token::Field(rest[1..=len].to_owned()))
            }
            '$' => {
                let len = 1 + word_len(&rest[1..]);
                self.take(len, Token::Variable(rest[..len].to_owned()))
            }
            '`' => match rest[1..].find('`') {
                Some(len) => self.take(len + 2, Token::Text(rest[1..=len].to_owned())),
                None => Err(self.error("unterminated raw quoted string")),
            },
            '"' => self.quoted(),
            '0'..='9' | '-' | '+' => self.number(),
            c if c.is_alphabetic() || c == '_' => {
                let len = word_len(rest);
                self.take(len, Token::Word(rest[..len].to_owned()))
            }
            c => Err(self.error(format!("unexpected {} in command", quote(&c.to_string())))),
        }
    }

    // Infallible; in this shape each arm above is one line.
    #[expect(clippy::unnecessary_wraps, reason = "the arms of the lexer return results")]
    fn take(&mut self, len: usize, token: Token) -> Result<Token, TemplateError> {
        self.at += len;
        Ok(token)
    }

    fn number(&mut self) -> Result<Token, TemplateError> {
        let rest = self.rest();
        let mut len = usize::from(rest.starts_with(['-', '+']));
        let hex = rest[len..].starts_with("0x") || rest[len..].starts_with("0X");
        let mut previous = '\0';
        for c in rest[len..].chars() {
            let sign = matches!(c, '-' | '+') && !hex && matches!(previous, 'e' | 'E');
            if !is_word(c) && c != '.' && !sign {
                break;
            }
            len += c.len_utf8();
            previous = c;
        }
        let text = &rest[..len];
        match (integer(text), float(text)) {
            (Some(value), _) => self.take(len, Token::Int(value)),
            (None, Some(value)) => self.take(len, Token::Float(value)),
            (None, None) => Err(self.error(format!("bad number syntax: {}", quote(text)))),
        }
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
                '\\' => {
                    let escaped = match chars.next().map(|(_, c)| c) {
                        Some('a') => Some('\x07'),
                        Some('b') => Some('\x08'),
                        Some('f') => Some('\x0c'),
                        Some('n') => Some('\n'),
                        Some('r') => Some('\r'),
                        Some('t') => Some('\t'),
                        Some('v') => Some('\x0b'),
                        Some(c @ ('\\' | '"')) => Some(c),
                        // Bytes beyond ASCII need not make a text.
                        Some('x') => code(&mut chars, 2).filter(char::is_ascii),
                        Some('u') => code(&mut chars, 4),
                        Some('U') => code(&mut chars, 8),
                        _ => None,
                    };
                    let Some(escaped) = escaped else { return Err(self.error("invalid syntax")) };
                    text.push(escaped);
                }
                c => text.push(c),
            }
        }
        Err(self.error("unterminated quoted string"))
    }
}

fn code(chars: &mut impl Iterator<Item = (usize, char)>, digits: usize) -> Option<char> {
    let mut code = 0_u32;
    for _ in 0..digits {
        code = code.checked_mul(16)? + chars.next()?.1.to_digit(16)?;
    }
    char::from_u32(code)
}

/// An integer as Go's source has them: decimal or with a base prefix, underscores between digits.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        Some(_) if lower.starts_with('0') => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    if digits.starts_with(['-', '+']) || digits.ends_with('_') {
        return None;
    }
    let digits = digits.replace('_', "");
    let signed = if negative { format!("-{digits}") } else { digits };
    i64::from_str_radix(&signed, radix).ok()
}

fn float(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b".-+eE".contains(&b));
    text.parse().ok().filter(|value: &f64| plain && value.is_finite())
}
