//! The parameters of a request, checked.

use http::Method;

use super::Caller;
use crate::decode::FieldValidation;
use crate::request::{Query, Target};
use crate::selector::Selector;
use crate::status::{ApiError, Cause};
use crate::table::Include;

/// Longest name of a field manager, in bytes.
const MANAGER_LIMIT: usize = 128;

pub(super) fn selector(query: &Query, target: &Target) -> Result<Selector, ApiError> {
    Selector::parse(target.resource(), query.get("labelSelector"), query.get("fieldSelector"))
        .map_err(ApiError::bad_request)
}

pub(super) fn version_parameter(query: &Query) -> Result<Option<u64>, ApiError> {
    query
        .get("resourceVersion")
        .map(|text| {
            text.parse().map_err(|_| ApiError::bad_request(format!("invalid resource version {text:?}")))
        })
        .transpose()
}

pub(super) fn dry_run(values: &[&str]) -> Result<bool, ApiError> {
    match values.iter().find(|v| **v != "All") {
        Some(other) => {
            let text = format!("dryRun: Unsupported value: {other:?}: supported values: \"All\"");
            Err(ApiError::bad_request(text))
        }
        None => Ok(!values.is_empty()),
    }
}

/// Who the caller says it is.
pub(super) fn field_manager<'q>(query: &'q Query, method: &Method) -> Result<Option<&'q str>, ApiError> {
    let Some(name) = query.get("fieldManager") else { return Ok(None) };
    let cause = if name.len() > MANAGER_LIMIT {
        Cause {
            reason: "FieldValueTooLong",
            field: "fieldManager".into(),
            message: format!("Too long: may not be more than {MANAGER_LIMIT} bytes"),
        }
    } else if name.chars().any(char::is_control) {
        Cause::invalid("fieldManager", &name.into(), "should only contain printable characters")
    } else {
        return Ok(Some(name));
    };
    let kind = match *method {
        Method::POST => "CreateOptions",
        Method::PUT => "UpdateOptions",
        _ => "PatchOptions",
    };
    Err(ApiError::invalid_options(kind, &[cause]))
}

pub(super) fn field_validation(query: &Query, caller: &Caller) -> Result<FieldValidation, ApiError> {
    match query.get("fieldValidation") {
        Some("Strict") => Ok(FieldValidation::Strict),
        Some("Warn") => Ok(FieldValidation::Warn),
        Some("Ignore") => Ok(FieldValidation::Ignore),
        None if caller.local => Ok(FieldValidation::Ignore),
        None => Ok(FieldValidation::Warn),
        Some(other) => Err(ApiError::bad_request(format!(
            "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
        ))),
    }
}

pub(super) fn include(query: &Query) -> Result<Include, ApiError> {
    match query.get("includeObject") {
        None | Some("Metadata") => Ok(Include::Metadata),
        Some("Object") => Ok(Include::Object),
        Some("None") => Ok(Include::None),
        Some(other) => Err(ApiError::bad_request(format!("unrecognized includeObject value: {other:?}"))),
    }
}
