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

/// Which parameters of a list or watch go together.
///
/// # Errors
/// 422 with every fault.
pub(super) fn check_list(query: &Query, watch: bool) -> Result<(), ApiError> {
    const MATCH: &str = "resourceVersionMatch";
    let (exact, not_older) = ("Exact", "NotOlderThan");
    let wanted = query.get(MATCH);
    let version = query.get("resourceVersion").unwrap_or_default();
    let initial_events = query.get("sendInitialEvents").is_some();
    let mut causes = Vec::new();
    let mut forbid = |field: &str, text: &str| causes.push(Cause::forbidden(field, text));
    if watch && initial_events && wanted != Some(not_older) {
        forbid(MATCH, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    if watch && wanted.is_some() && !initial_events {
        forbid(MATCH, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
    }
    if !watch && wanted.is_some() && version.is_empty() {
        forbid(MATCH, "resourceVersionMatch is forbidden unless resourceVersion is provided");
    }
    if wanted.is_some() && query.get("continue").is_some() {
        forbid(MATCH, "resourceVersionMatch is forbidden when continue is provided");
    }
    if !watch && wanted == Some(exact) && version == "0" {
        forbid(MATCH, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
    }
    if !watch && initial_events {
        forbid("sendInitialEvents", "sendInitialEvents is forbidden for list");
    }
    let allowed = if watch { vec![not_older] } else { vec![exact, not_older, ""] };
    if let Some(wanted) = wanted.filter(|wanted| !allowed.contains(wanted)) {
        let allowed: Vec<_> = allowed.into_iter().map(Into::into).collect();
        causes.push(Cause::unsupported(MATCH, &wanted.into(), &allowed));
    }
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid_options("ListOptions", &causes)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_lists_and_watches_go_together() {
        for (query, watch, wanted) in [
            ("", false, true),
            ("resourceVersion=5", false, true),
            ("resourceVersion=5&resourceVersionMatch=Exact", false, true),
            ("resourceVersion=0&resourceVersionMatch=NotOlderThan", false, true),
            ("resourceVersionMatch=Exact", false, false),
            ("resourceVersion=0&resourceVersionMatch=Exact", false, false),
            ("resourceVersion=5&resourceVersionMatch=Foo", false, false),
            ("resourceVersion=5&resourceVersionMatch=Exact&continue=x", false, false),
            ("sendInitialEvents=false", false, false),
            ("resourceVersion=5", true, true),
            ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", true, true),
            ("sendInitialEvents=true", true, false),
            ("sendInitialEvents=true&resourceVersionMatch=Exact", true, false),
            ("resourceVersion=5&resourceVersionMatch=NotOlderThan", true, false),
        ] {
            let result = check_list(&Query::parse(Some(query)), watch);
            assert_eq!(
                result.as_ref().map_err(|e| e.code().as_u16()).err(),
                (!wanted).then_some(422),
                "{query}"
            );
        }
    }
}
