//! What stands between a client and a stored object: an API server or its webhook asks here what to store, and
//! whether.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::configmaps::{Configs, example};
use crate::defaulting::{self, Context};
use crate::field_error::Level;
use crate::names::SYSTEM_NAMESPACE;
use crate::validation::{self, Change};
use crate::{autoscaling, networking, serving};

/// The kinds that are defaulted and validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `serving.knative.dev/v1`.
    Service,
    /// `serving.knative.dev/v1`.
    Configuration,
    /// `serving.knative.dev/v1`.
    Revision,
    /// `serving.knative.dev/v1`.
    Route,
    /// `serving.knative.dev/v1beta1`.
    DomainMapping,
    /// `autoscaling.internal.knative.dev/v1alpha1`.
    PodAutoscaler,
    /// `autoscaling.internal.knative.dev/v1alpha1`.
    Metric,
    /// `networking.internal.knative.dev/v1alpha1`.
    ServerlessService,
    /// `networking.internal.knative.dev/v1alpha1`.
    Ingress,
    /// `networking.internal.knative.dev/v1alpha1`.
    Certificate,
    /// Kubernetes' own; validated where it is one of Knative's.
    ConfigMap,
}

impl Kind {
    /// The kind of that name in an API group (without version); `None` for kinds that pass as they are.
    #[must_use]
    pub fn of(group: &str, kind: &str) -> Option<Self> {
        Some(match (group, kind) {
            (serving::GROUP, "Service") => Self::Service,
            (serving::GROUP, "Configuration") => Self::Configuration,
            (serving::GROUP, "Revision") => Self::Revision,
            (serving::GROUP, "Route") => Self::Route,
            (serving::GROUP, "DomainMapping") => Self::DomainMapping,
            (autoscaling::INTERNAL_GROUP, "PodAutoscaler") => Self::PodAutoscaler,
            (autoscaling::INTERNAL_GROUP, "Metric") => Self::Metric,
            (networking::INTERNAL_GROUP, "ServerlessService") => Self::ServerlessService,
            (networking::INTERNAL_GROUP, "Ingress") => Self::Ingress,
            (networking::INTERNAL_GROUP, "Certificate") => Self::Certificate,
            ("", "ConfigMap") => Self::ConfigMap,
            _ => return None,
        })
    }
}

/// What is to happen to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// It is made.
    Create,
    /// It is changed, by update or patch.
    Update,
    /// It is deleted; always allowed.
    Delete,
}

/// A change that somebody asks for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The object's kind.
    pub kind: Kind,
    /// What is to happen to it.
    pub operation: Operation,
    /// The object as it is to be; patches are applied already.
    pub object: &'a Value,
    /// The object as it is; on updates.
    pub old: Option<&'a Value>,
    /// The subresource that is written, such as `status`; empty is the object itself.
    pub subresource: &'a str,
    /// Who asks; empty if that is not known, and then not recorded.
    pub user: &'a str,
    /// Whether nothing is to be stored in the end.
    pub dry_run: bool,
}

/// A refusal; HTTP status 400. Prints what Kubernetes tells the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("admission webhook \"{webhook}\" denied the request: {message}")]
pub struct Denied {
    /// The webhook that refuses.
    pub webhook: &'static str,
    /// Why.
    pub message: String,
}

const DEFAULTING: &str = "webhook.serving.knative.dev";
const VALIDATION: &str = "validation.webhook.serving.knative.dev";
const CONFIG: &str = "config.webhook.serving.knative.dev";

/// The object as it is to be stored: the request's with the defaults filled in, and with who made and changed it.
///
/// # Errors
/// The object does not fit its type.
pub fn default(request: &Request<'_>, configs: &Configs) -> Result<Value, Denied> {
    let mut object = request.object.clone();
    if request.operation == Operation::Delete || request.kind == Kind::ConfigMap {
        return Ok(object);
    }
    validation::check_type(request.kind, &object).map_err(|error| Denied {
        webhook: DEFAULTING,
        message: format!("mutation failed: cannot decode incoming new object: {error}"),
    })?;
    let user = Some(request.user).filter(|user| !user.is_empty());
    // What was stored before a default existed is not a change of the one who updates it now.
    let old = request.old.filter(|_| request.operation == Operation::Update).map(|old| {
        let mut old = old.clone();
        let context = Context { operation: None, old: None, user: None, configs };
        defaulting::default(request.kind, &mut old, context);
        old
    });
    let context = Context { operation: Some(request.operation), old: old.as_ref(), user, configs };
    defaulting::default(request.kind, &mut object, context);
    Ok(object)
}

/// Decides whether a change is allowed. The object is expected to have its defaults. Returns what its author is to
/// be warned about, one line each.
///
/// # Errors
/// The change is not allowed.
pub fn validate(request: &Request<'_>, configs: &Configs) -> Result<Vec<String>, Denied> {
    if request.operation == Operation::Delete {
        return Ok(Vec::new());
    }
    if request.kind == Kind::ConfigMap {
        return config_map(request.object).map(|()| Vec::new());
    }
    let denied = |message: String| Denied { webhook: VALIDATION, message };
    let change = Change {
        operation: request.operation,
        object: request.object,
        old: request.old,
        subresource: request.subresource,
    };
    let findings = validation::validate(request.kind, change, configs).map_err(|error| {
        denied(format!("decoding request failed: cannot decode incoming new object: {error}"))
    })?;
    let warnings = findings.filter(Level::Warning).to_string();
    match findings.into_result() {
        Ok(()) => Ok(warnings.lines().map(str::to_owned).collect()),
        Err(errors) => Err(denied(format!("validation failed: {errors}"))),
    }
}

/// Checks a ConfigMap that configures serving; others pass.
fn config_map(object: &Value) -> Result<(), Denied> {
    let meta = &object["metadata"];
    if meta["namespace"] != SYSTEM_NAMESPACE {
        return Ok(());
    }
    let name = meta["name"].as_str().unwrap_or_default();
    let denied = |message: &dyn std::fmt::Display| Denied {
        webhook: CONFIG,
        message: format!("validation failed: {message}"),
    };
    let data: BTreeMap<String, String> = match &object["data"] {
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect(),
        _ => BTreeMap::new(),
    };
    let mut configs = Configs::default();
    let parsed = configs.set(name, &data);
    let shipped = meta["annotations"][example::CHECKSUM_ANNOTATION].as_str();
    if let (Some(text), Some(shipped), true) = (data.get(example::KEY), shipped, parsed != Ok(false))
        && example::checksum(text) != shipped
    {
        return Err(denied(
            &"the update modifies a key in \"_example\" which is probably not what you want. Instead, copy the \
                  respective setting to the top-level of the ConfigMap, directly below \"data\"",
        ));
    }
    parsed.map(|_| ()).map_err(|error| denied(&error))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(image: &str) -> Value {
        json!({
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": { "name": "hello", "namespace": "default" },
            "spec": { "template": { "spec": { "containers": [{ "image": image }] } } },
        })
    }

    fn create(kind: Kind, object: &Value) -> Request<'_> {
        Request {
            kind,
            operation: Operation::Create,
            object,
            old: None,
            subresource: "",
            user: "alice",
            dry_run: false,
        }
    }

    #[test]
    fn a_plain_service_passes_with_one_warning() {
        let (configs, given) = (Configs::default(), service("example.com/app:v1"));
        let stored = default(&create(Kind::Service, &given), &configs).unwrap();
        assert_eq!(stored["metadata"]["annotations"]["serving.knative.dev/creator"], "alice");
        assert_eq!(stored["spec"]["traffic"], json!([{ "latestRevision": true, "percent": 100 }]));
        let warnings = validate(&create(Kind::Service, &stored), &configs).unwrap();
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn a_refusal_reads_as_kubernetes_words_it() {
        let (configs, given) = (Configs::default(), service(""));
        let stored = default(&create(Kind::Service, &given), &configs).unwrap();
        let denied = validate(&create(Kind::Service, &stored), &configs).unwrap_err();
        assert_eq!(
            denied.to_string(),
            "admission webhook \"validation.webhook.serving.knative.dev\" denied the request: validation failed: \
             missing field(s): spec.template.spec.containers[0].image"
        );
    }

    #[test]
    fn what_does_not_fit_its_type_is_refused() {
        let given =
            json!({ "metadata": { "name": "a" }, "spec": { "template": { "spec": { "containers": 1 } } } });
        let denied = default(&create(Kind::Service, &given), &Configs::default()).unwrap_err();
        assert!(
            denied.message.starts_with("mutation failed: cannot decode incoming new object: "),
            "{denied}"
        );
        let mut given = service("example.com/app:v1");
        given["spec"]["template"]["spec"]["containers"][0]["resources"] =
            json!({ "limits": { "cpu": "1x" } });
        assert!(default(&create(Kind::Service, &given), &Configs::default()).is_err());
    }

    #[test]
    fn a_config_map_has_to_parse() {
        let map = |name: &str, key: &str, value: &str| {
            json!({
                "metadata": {
                    "name": name,
                    "namespace": "knative-serving",
                    "annotations": { "knative.dev/example-checksum": "e8b7be43" },
                },
                "data": { key: value },
            })
        };
        let check = |object: &Value| validate(&create(Kind::ConfigMap, object), &Configs::default());
        let denied = check(&map("config-gc", "min-non-active-revisions", "-1")).unwrap_err();
        assert_eq!(
            denied.to_string(),
            "admission webhook \"config.webhook.serving.knative.dev\" denied the request: validation failed: \
             min-non-active-revisions must be non-negative, was: -1"
        );
        assert!(check(&map("config-gc", "_example", "b")).is_err());
        assert!(check(&map("config-gc", "_example", "a")).is_ok());
        assert!(check(&map("something-else", "_example", "b")).is_ok());
    }
}
