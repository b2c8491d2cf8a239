//! Failures as Kubernetes tells them: every error a client sees is a `Status` object.

use std::fmt;

use http::StatusCode;
use serde_json::{Value, json};

use crate::resource::Resource;

/// One field at fault in an `Invalid` answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    pub reason: &'static str,
    pub field: String,
    pub message: String,
}

impl Cause {
    pub(crate) fn invalid(field: impl Into<String>, value: &Value, detail: impl fmt::Display) -> Self {
        let shown = match value {
            Value::Null => "null".to_owned(),
            other => other.to_string(),
        };
        Self {
            reason: "FieldValueInvalid",
            field: field.into(),
            message: format!("Invalid value: {shown}: {detail}"),
        }
    }

    pub(crate) fn required(field: impl Into<String>, detail: &str) -> Self {
        let message =
            if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        Self { reason: "FieldValueRequired", field: field.into(), message }
    }

    pub(crate) fn forbidden(field: &str, detail: &str) -> Self {
        let message = format!("Forbidden: {detail}");
        Self { reason: "FieldValueForbidden", field: field.into(), message }
    }

    pub(crate) fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        let message = format!("Duplicate value: {value}");
        Self { reason: "FieldValueDuplicate", field: field.into(), message }
    }

    pub(crate) fn too_long(field: &str, limit: usize) -> Self {
        let message = format!("Too long: may not be more than {limit} bytes");
        Self { reason: "FieldValueTooLong", field: field.into(), message }
    }

    pub(crate) fn unsupported(field: impl Into<String>, value: &Value, allowed: &[Value]) -> Self {
        let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
        Self {
            reason: "FieldValueNotSupported",
            field: field.into(),
            message: format!("Unsupported value: {value}: supported values: {}", allowed.join(", ")),
        }
    }

    pub(crate) fn of_type(field: impl Into<String>, got: &str, wanted: &str) -> Self {
        let field = field.into();
        let message = format!(
            "Invalid value: \"{got}\": {} in body must be of type {wanted}: \"{got}\"",
            if field.is_empty() { "object" } else { &field }
        );
        Self { reason: "FieldValueTypeInvalid", field, message }
    }
}

#[derive(Debug, Clone)]
struct Failure {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Option<Value>,
}

/// A failed API call.
#[derive(Debug, Clone)]
pub(crate) struct ApiError(Box<Failure>);

impl ApiError {
    fn new(
        code: StatusCode,
        reason: &'static str,
        message: impl Into<String>,
        details: Option<Value>,
    ) -> Self {
        Self(Box::new(Failure { code, reason, message: message.into(), details }))
    }

    fn about(resource: &Resource, name: &str) -> Value {
        let mut details = json!({ "name": name, "kind": resource.plural });
        if !resource.group.is_empty() {
            details["group"] = resource.group.into();
        }
        details
    }

    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} not found", resource.qualified());
        Self::new(StatusCode::NOT_FOUND, "NotFound", message, Some(Self::about(resource, name)))
    }

    /// The path names nothing that is served.
    pub(crate) fn no_such_path() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(StatusCode::NOT_FOUND, "NotFound", message, Some(json!({})))
    }

    /// A kind that is known, and not served on purpose; the message says what to do instead.
    pub(crate) fn refused(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", message, Some(json!({})))
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", resource.qualified());
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message, Some(Self::about(resource, name)))
    }

    pub(crate) fn conflict(resource: &Resource, name: &str, detail: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {detail}", resource.qualified());
        Self::new(StatusCode::CONFLICT, "Conflict", message, Some(Self::about(resource, name)))
    }

    /// An apply that would change fields of others.
    pub(crate) fn apply_conflict(message: &str, causes: &[Cause]) -> Self {
        let details = json!({ "causes": Self::causes(causes) });
        Self::new(StatusCode::CONFLICT, "Conflict", message, Some(details))
    }

    /// The caller worked on an older version of the object.
    pub(crate) fn modified(resource: &Resource, name: &str) -> Self {
        let detail =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, detail)
    }

    pub(crate) fn invalid(resource: &Resource, name: &str, causes: &[Cause]) -> Self {
        let list = Self::listed(causes);
        let message = format!("{} {name:?} is invalid: {list}", resource.qualified_kind());
        let mut details = Self::about(resource, name);
        details["kind"] = resource.kind.into();
        details["causes"] = Self::causes(causes);
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message, Some(details))
    }

    /// Parameters of a request that do not go together; `kind` is the one of the options.
    pub(crate) fn invalid_options(kind: &str, causes: &[Cause]) -> Self {
        let message = format!("{kind}.meta.k8s.io \"\" is invalid: {}", Self::listed(causes));
        let details = json!({ "group": "meta.k8s.io", "kind": kind, "causes": Self::causes(causes) });
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message, Some(details))
    }

    fn listed(causes: &[Cause]) -> String {
        let mut texts: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        texts.dedup();
        match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        }
    }

    fn causes(causes: &[Cause]) -> Value {
        causes.iter().map(|c| json!({ "reason": c.reason, "message": c.message, "field": c.field })).collect()
    }

    /// A patch that is well formed but cannot be carried out.
    pub(crate) fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message, None)
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message, None)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized", None)
    }

    pub(crate) fn forbidden(resource: &Resource, name: &str, detail: &str, cause: Option<Value>) -> Self {
        let message = format!("{} {name:?} is forbidden: {detail}", resource.qualified());
        let mut details = Self::about(resource, name);
        if let Some(cause) = cause {
            details["causes"] = json!([cause]);
        }
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message, Some(details))
    }

    /// The caller, who is `user`, asks to be somebody else.
    pub(crate) fn impersonation(what: &str, name: &str, user: &str) -> Self {
        let message = format!(
            "{what} {name:?} is forbidden: Ember does not support impersonation: whoever has the token of this server is \
             {user:?} and may do everything"
        );
        let details = json!({ "name": name, "kind": what });
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message, Some(details))
    }

    pub(crate) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message, Some(json!({})))
    }

    pub(crate) fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message, None)
    }

    pub(crate) fn not_acceptable(accepted: &str) -> Self {
        let message = format!("only the following media types are accepted: {accepted}");
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message, None)
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message, None)
    }

    /// A JSON patch of more than the server takes.
    pub(crate) fn too_many_operations(limit: usize, count: usize) -> Self {
        let message = format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {limit}, got {count}"
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message, None)
    }

    /// The asked-for version is older than what is remembered.
    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message, None)
    }

    pub(crate) fn too_old(asked: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {asked} ({oldest})"))
    }

    pub(crate) fn version_from_the_future(asked: u64, current: u64) -> Self {
        let details = json!({
            "retryAfterSeconds": 1,
            "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
        });
        let message = format!("Too large resource version: {asked}, current: {current}");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message, Some(details))
    }

    pub(crate) fn internal(message: impl fmt::Display) -> Self {
        let text = format!("Internal error occurred: {message}");
        let details = json!({ "causes": [{ "message": message.to_string() }] });
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", text, Some(details))
    }

    /// The disk has no room for the write.
    pub(crate) fn insufficient_storage(message: impl fmt::Display) -> Self {
        let details = json!({ "causes": [{ "message": message.to_string() }] });
        let reason = "InsufficientStorage";
        Self::new(StatusCode::INSUFFICIENT_STORAGE, reason, message.to_string(), Some(details))
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message, None)
    }

    pub(crate) fn code(&self) -> StatusCode {
        self.0.code
    }

    /// The `Status` object.
    pub(crate) fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.0.message,
            "reason": self.0.reason,
            "code": self.0.code.as_u16(),
        });
        if let Some(details) = &self.0.details {
            status["details"] = details.clone();
        }
        status
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

/// What a deletion that left nothing behind is answered with.
pub(crate) fn success(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = ApiError::about(resource, name);
    details["uid"] = uid.into();
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    })
}
