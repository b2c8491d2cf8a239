//! The functions that templates may call.

use std::borrow::Cow;
use std::cmp::Ordering;

use crate::budget::{Budget, Out};
use crate::printf::printf;
use crate::text::{html, js, urlquery};
use crate::value::Value;

/// Calls a function that takes all its arguments; the error is the reason, in words.
pub(crate) fn call<'a>(name: &str, values: &[Value<'a>], budget: &Budget) -> Result<Value<'a>, String> {
    let mut out = Out::new(budget);
    match name {
        "index" => return index(values),
        "len" => return len(values),
        "slice" => return slice(values, budget),
        "not" => return Ok(Value::Bool(!at_least(1, values)?[0].is_true())),
        "eq" => return equal(at_least(2, values)?).map(Value::Bool),
        "ne" => return equal(exactly(2, values)?).map(|equal| Value::Bool(!equal)),
        "lt" => return order(values).map(|order| Value::Bool(order == Some(Ordering::Less))),
        "gt" => return order(values).map(|order| Value::Bool(order == Some(Ordering::Greater))),
        "le" => return order(values).map(|order| Value::Bool(order.is_some_and(Ordering::is_le))),
        "ge" => return order(values).map(|order| Value::Bool(order.is_some_and(Ordering::is_ge))),
        "print" => print(values, &mut out)?,
        "println" => {
            for (i, value) in values.iter().enumerate() {
                out.push(if i > 0 { " " } else { "" })?;
                out.push(&value.print()?)?;
            }
            out.push("\n")?;
        }
        "printf" => match at_least(1, values)?.split_first() {
            Some((Value::Text(format), arguments)) => printf(format, arguments, &mut out)?,
            Some((other, _)) => {
                return Err(format!("wrong type for value; expected string; got {}", other.kind()));
            }
            None => {}
        },
        "html" => escape(values, html, &mut out)?,
        "js" => escape(values, js, &mut out)?,
        "urlquery" => escape(values, urlquery, &mut out)?,
        _ => return Err(format!("{name} is not supported")),
    }
    Ok(Value::Text(Cow::Owned(out.into_text())))
}

pub(crate) fn at_least<'v, 'a>(count: usize, values: &'v [Value<'a>]) -> Result<&'v [Value<'a>], String> {
    if values.len() < count {
        return Err(format!("wrong number of args: want at least {count} got {}", values.len()));
    }
    Ok(values)
}

fn exactly<'v, 'a>(count: usize, values: &'v [Value<'a>]) -> Result<&'v [Value<'a>], String> {
    if values.len() != count {
        return Err(format!("wrong number of args: want {count} got {}", values.len()));
    }
    Ok(values)
}

fn index<'a>(values: &[Value<'a>]) -> Result<Value<'a>, String> {
    let mut item = at_least(1, values)?[0].clone();
    for key in &values[1..] {
        item = match (&item, key) {
            (Value::Map(map), Value::Text(key)) => {
                Value::Text(map.get(key.as_ref()).map_or(Cow::Borrowed(""), |text| text.as_str().into()))
            }
            (Value::List(list), Value::Int(i)) => {
                let found = usize::try_from(*i).ok().and_then(|i| list.get(i));
                Value::Text(found.ok_or_else(|| format!("index out of range: {i}"))?.as_str().into())
            }
            (Value::Text(text), Value::Int(i)) => {
                let found = usize::try_from(*i).ok().and_then(|i| text.as_bytes().get(i));
                Value::Int((*found.ok_or_else(|| format!("index out of range: {i}"))?).into())
            }
            (Value::List(_) | Value::Text(_), other) => {
                return Err(format!("cannot index slice/array with type {}", other.kind()));
            }
            (Value::Object(object), key) => match (object.lists(), key) {
                (Some(lists), Value::Text(key)) => {
                    Value::List(lists.get(key.as_ref()).map_or(&[], Vec::as_slice))
                }
                (Some(_), key) => {
                    return Err(format!("{} is not index type for {}", key.kind(), object.type_name()));
                }
                (None, _) => return Err(format!("can't index item of type {}", object.type_name())),
            },
            (item, _) => return Err(format!("can't index item of type {}", item.kind())),
        };
    }
    Ok(item)
}

fn len<'a>(values: &[Value<'a>]) -> Result<Value<'a>, String> {
    let item = &exactly(1, values)?[0];
    let length = match item {
        Value::Text(text) => Some(text.len()),
        Value::Map(map) => Some(map.len()),
        Value::List(list) => Some(list.len()),
        Value::Object(object) => object.lists().map(std::collections::BTreeMap::len),
        _ => None,
    };
    match length {
        Some(length) => Ok(Value::Int(i64::try_from(length).unwrap_or(i64::MAX))),
        None => Err(format!("len of type {}", item.kind())),
    }
}

fn slice<'a>(values: &[Value<'a>], budget: &Budget) -> Result<Value<'a>, String> {
    let (item, indexes) = (&at_least(1, values)?[0], &values[1..]);
    let length = match item {
        Value::Text(text) => text.len(),
        Value::List(list) => list.len(),
        other => return Err(format!("can't slice item of type {}", other.kind())),
    };
    if indexes.len() > 2 {
        return Err(format!("too many slice indexes: {}", indexes.len()));
    }
    let index = |i: usize, default: usize| match indexes.get(i) {
        None => Ok(default),
        Some(Value::Int(n)) => usize::try_from(*n)
            .ok()
            .filter(|n| *n <= length)
            .ok_or_else(|| format!("index out of range: {n}")),
        Some(other) => Err(format!("cannot index slice/array with type {}", other.kind())),
    };
    let (start, end) = (index(0, 0)?, index(1, length)?);
    let invalid = || format!("invalid slice index: {start} > {end}");
    match item {
        Value::Text(text) => {
            let part = text.get(start..end).ok_or_else(invalid)?;
            budget.spend(part.len())?;
            Ok(Value::Text(Cow::Owned(part.to_owned())))
        }
        Value::List(list) => Ok(Value::List(list.get(start..end).ok_or_else(invalid)?)),
        _ => Err(invalid()),
    }
}

/// Whether the first is one of the others.
fn equal(values: &[Value<'_>]) -> Result<bool, String> {
    let first = &values[0];
    for other in &values[1..] {
        let equal = match (first, other) {
            (Value::Text(a), Value::Text(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Float(a), Value::Float(b)) => a == b,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Nothing, Value::Nothing) => true,
            // What is not there is unlike anything.
            (Value::Nothing, _) | (_, Value::Nothing) => false,
            (Value::Map(_) | Value::List(_) | Value::Object(_), _)
            | (_, Value::Map(_) | Value::List(_) | Value::Object(_)) => {
                return Err("invalid type for comparison".to_owned());
            }
            _ => return Err("incompatible types for comparison".to_owned()),
        };
        if equal {
            return Ok(true);
        }
    }
    Ok(false)
}

fn order(values: &[Value<'_>]) -> Result<Option<Ordering>, String> {
    match exactly(2, values)? {
        [Value::Int(a), Value::Int(b)] => Ok(Some(a.cmp(b))),
        [Value::Text(a), Value::Text(b)] => Ok(Some(a.cmp(b))),
        [Value::Float(a), Value::Float(b)] => Ok(a.partial_cmp(b)),
        _ => Err("incompatible types for comparison".to_owned()),
    }
}

/// All values, with a space between two of which neither is a text.
fn print(values: &[Value<'_>], out: &mut Out<'_>) -> Result<(), String> {
    let mut after_text = true;
    for value in values {
        let is_text = matches!(value, Value::Text(_));
        if !after_text && !is_text {
            out.push(" ")?;
        }
        out.push(&value.print()?)?;
        after_text = is_text;
    }
    Ok(())
}

fn escape(
    values: &[Value<'_>],
    escaped: impl Fn(char) -> Option<String>,
    out: &mut Out<'_>,
) -> Result<(), String> {
    let mut plain = Out::new(out.budget());
    let text = match values {
        [value] => value.print()?,
        values => {
            print(values, &mut plain)?;
            Cow::Owned(plain.into_text())
        }
    };
    let mut from = 0;
    for (at, c) in text.char_indices() {
        if let Some(escaped) = escaped(c) {
            out.push(&text[from..at])?;
            out.push(&escaped)?;
            from = at + c.len_utf8();
        }
    }
    out.push(&text[from..])
}
