//! What templates compute with.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use crate::text::format_float;

/// An object that a template is applied to, or that it finds in one: named fields, and what else Go's types can do.
pub trait Fields {
    /// The name that errors give the object's type.
    fn type_name(&self) -> &'static str;

    /// A field's value; `None` if there is no such field.
    fn field(&self, name: &str) -> Option<Value<'_>>;

    /// Calls a method; `None` if there is no such method. The error is the reason, in words.
    fn method(&self, name: &str, arguments: &[Value<'_>]) -> Option<Result<Value<'_>, String>> {
        let _ = (name, arguments);
        None
    }

    /// The entries, if the object is a map from texts to lists of texts, as HTTP headers are.
    fn lists(&self) -> Option<&BTreeMap<String, Vec<String>>> {
        None
    }

    /// How the object prints, if it does.
    fn text(&self) -> Option<String> {
        None
    }
}

impl fmt::Debug for dyn Fields + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.type_name())
    }
}

/// A value inside a template.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// Text.
    Text(Cow<'a, str>),
    /// Text by key, such as labels.
    Map(&'a BTreeMap<String, String>),
    /// Several texts.
    List(&'a [String]),
    /// A number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Something with fields of its own.
    Object(&'a dyn Fields),
    /// What looking up an absent key by field syntax gives.
    Nothing,
}

impl Value<'_> {
    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Text(text) => !text.is_empty(),
            Self::Map(map) => !map.is_empty(),
            Self::List(list) => !list.is_empty(),
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Bool(value) => *value,
            Self::Object(object) => object.lists().is_none_or(|lists| !lists.is_empty()),
            Self::Nothing => false,
        }
    }

    /// The text of the value; the error is that there is none.
    pub(crate) fn print(&self) -> Result<Cow<'_, str>, String> {
        let entries = |entries: Vec<String>| Cow::Owned(format!("map[{}]", entries.join(" ")));
        Ok(match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Map(map) => entries(map.iter().map(|(k, v)| format!("{k}:{v}")).collect()),
            Self::List(list) => Cow::Owned(print_list(list)),
            Self::Int(value) => Cow::Owned(value.to_string()),
            Self::Float(value) => Cow::Owned(format_float(*value)),
            Self::Bool(value) => Cow::Borrowed(if *value { "true" } else { "false" }),
            Self::Object(object) => match (object.text(), object.lists()) {
                (Some(text), _) => Cow::Owned(text),
                (None, Some(lists)) => {
                    entries(lists.iter().map(|(k, list)| format!("{k}:{}", print_list(list))).collect())
                }
                (None, None) => return Err(format!("can't print {}", object.type_name())),
            },
            Self::Nothing => Cow::Borrowed("<no value>"),
        })
    }

    /// The name of the type.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "string",
            Self::Map(_) => "map[string]string",
            Self::List(_) => "[]string",
            Self::Int(_) => "int",
            Self::Float(_) => "float64",
            Self::Bool(_) => "bool",
            Self::Object(object) => object.type_name(),
            Self::Nothing => "nil",
        }
    }

    /// What a copy of the value takes, in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Text(Cow::Owned(text)) => text.len(),
            _ => 0,
        }
    }
}

fn print_list(list: &[String]) -> String {
    format!("[{}]", list.join(" "))
}
