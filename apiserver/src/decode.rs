//! Request bodies: JSON (or YAML, or protobuf) to a value, with the duplicate fields that strict decoding reports.

use std::fmt;

use http::{HeaderMap, header};
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::protobuf;
use crate::status::ApiError;

/// How unknown and duplicate fields are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// The form of a request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

/// The form of the body of a create or update.
///
/// # Errors
/// 415 for everything that is not JSON, YAML or protobuf.
pub(crate) fn encoding(headers: &HeaderMap) -> Result<Encoding, ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Encoding::Json) };
    let text = value.to_str().unwrap_or_default();
    match text.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => Ok(Encoding::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Encoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Encoding::Protobuf),
        _ => Err(ApiError::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// Parses a body. Returns the paths of duplicate fields too; of those the last one counts.
///
/// # Errors
/// 400 when it is not one document of its encoding; 415 for a kind that is not read from protobuf.
pub(crate) fn parse(body: &[u8], encoding: Encoding) -> Result<(Value, Vec<String>), ApiError> {
    let mut duplicates = Vec::new();
    let seed = Tracked { path: Path::Root, duplicates: &mut duplicates };
    let value = match encoding {
        Encoding::Json => {
            let mut reader = serde_json::Deserializer::from_slice(body);
            seed.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value)).map_err(|e| {
                ApiError::bad_request(format!("couldn't get version/kind; json parse error: {e}"))
            })?
        }
        Encoding::Yaml => seed
            .deserialize(serde_norway::Deserializer::from_slice(body))
            .map_err(|e| ApiError::bad_request(format!("error converting YAML to JSON: {e}")))?,
        // Its fields have numbers: unknown ones are skipped, and a second one counts, by the rules of protobuf.
        Encoding::Protobuf => protobuf::decode(body)?,
    };
    Ok((value, duplicates))
}

/// Where the parser is; a string is made only when there is something to report.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

struct Tracked<'a> {
    path: Path<'a>,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Tracked<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tracked<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let path = Path::Index(&self.path, list.len());
            match access.next_element_seed(Tracked { path, duplicates: &mut *self.duplicates })? {
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let path = Path::Field(&self.path, &key);
            let value = access.next_value_seed(Tracked { path, duplicates: &mut *self.duplicates })?;
            if map.contains_key(&key) {
                self.duplicates.push(Path::Field(&self.path, &key).to_string());
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// Turns unknown and duplicate fields into what `validation` asks for: an error, warnings or nothing.
///
/// # Errors
/// 400 with Kubernetes' text under [`FieldValidation::Strict`]; `context` comes in front of it.
pub(crate) fn report(
    validation: FieldValidation,
    context: &str,
    duplicates: &[String],
    unknown: &[String],
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    let texts = duplicates
        .iter()
        .map(|path| format!("duplicate field \"{path}\""))
        .chain(unknown.iter().map(|path| format!("unknown field \"{path}\"")));
    match validation {
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            warnings.extend(texts);
            Ok(())
        }
        FieldValidation::Strict if duplicates.is_empty() && unknown.is_empty() => Ok(()),
        FieldValidation::Strict => {
            let list = texts.collect::<Vec<_>>().join(", ");
            Err(ApiError::bad_request(format!("{context}strict decoding error: {list}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_reported_with_their_path_and_the_last_counts() {
        let (value, duplicates) =
            parse(br#"{"a":1,"spec":{"l":[{"x":1,"x":2}]},"a":3}"#, Encoding::Json).unwrap();
        assert_eq!(value["a"], 3);
        assert_eq!(value["spec"]["l"][0]["x"], 2);
        assert_eq!(duplicates, ["spec.l[0].x", "a"]);
    }

    #[test]
    fn broken_documents_are_bad_requests() {
        for body in ["", "{", "{\"a\":1}x", "{\"a\":}"] {
            assert_eq!(parse(body.as_bytes(), Encoding::Json).unwrap_err().code(), 400, "{body}");
        }
    }
}
