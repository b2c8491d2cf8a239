//! Reviews of the caller itself: who it is and what it may do. There is one user, who may do everything. Pure.

use serde_json::{Value, json};

use crate::status::ApiError;
use crate::unstored::Unstored;

/// What a review asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// May I do this? (SelfSubjectAccessReview)
    Access,
    /// What may I do? (SelfSubjectRulesReview)
    Rules,
    /// Who am I? (SelfSubjectReview)
    Identity,
}

/// The review with its status.
///
/// # Errors
/// 400 when `review` is of another kind, 422 when it does not ask for anything.
pub(crate) fn answer(
    question: Question,
    resource: &Unstored,
    mut review: Value,
    user: &str,
) -> Result<Value, ApiError> {
    let api_version = format!("{}/{}", resource.group, resource.version);
    for (field, wanted) in [("apiVersion", api_version.as_str()), ("kind", resource.kind)] {
        let given = review.get(field).and_then(Value::as_str).unwrap_or_default();
        if !review.is_object() || !(given.is_empty() || given == wanted) {
            return Err(ApiError::bad_request(format!(
                "the {field} of the body is {given:?}, expected {wanted:?}"
            )));
        }
    }
    let status = match question {
        Question::Access => {
            let asked = |field: &str| review.pointer(&format!("/spec/{field}")).is_some_and(Value::is_object);
            if asked("resourceAttributes") == asked("nonResourceAttributes") {
                return Err(ApiError::unprocessable(format!(
                    "{}.{} \"\" is invalid: spec: Invalid value: exactly one of nonResourceAttributes or \
                     resourceAttributes must be specified",
                    resource.kind, resource.group
                )));
            }
            json!({ "allowed": true, "reason": "whoever has the token of this server may do everything" })
        }
        Question::Rules => {
            let namespace = review.pointer("/spec/namespace").and_then(Value::as_str).unwrap_or_default();
            if namespace.is_empty() {
                return Err(ApiError::bad_request("no namespace on request"));
            }
            json!({
                "incomplete": false,
                "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }],
                "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            })
        }
        Question::Identity => {
            json!({ "userInfo": { "username": user, "groups": ["system:masters", "system:authenticated"] } })
        }
    };
    review["apiVersion"] = api_version.into();
    review["kind"] = resource.kind.into();
    review["status"] = status;
    if !review.get("metadata").is_some_and(Value::is_object) {
        review["metadata"] = json!({});
    }
    Ok(review)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unstored::UNSTORED;

    #[test]
    fn everything_is_allowed_to_whoever_asks_for_something() {
        let access = &UNSTORED[1];
        let ask = |value| answer(Question::Access, access, value, "me");
        let answer =
            ask(json!({ "spec": { "resourceAttributes": { "verb": "get", "resource": "pods" } } })).unwrap();
        assert_eq!((&answer["status"]["allowed"], &answer["kind"]), (&json!(true), &json!(access.kind)));
        assert_eq!(ask(json!({ "spec": {} })).unwrap_err().code(), 422);
        assert_eq!(ask(json!({ "kind": "Pod" })).unwrap_err().code(), 400);
        assert_eq!(ask(json!([])).unwrap_err().code(), 400);
    }
}
