//! The only writer of a control loop: carries out the actions of a plan.
//!
//! A plan is data: what to create, update, patch and delete, as the JSON that will be sent. Updates carry the live
//! object's resourceVersion, so that a write on an outdated view is refused by the API and tried again on a newer one.

use std::borrow::Cow;
use std::fmt;

use kube::core::{NamespaceResourceScope, Resource};
use kube::{Client, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cache::Cache;

/// Which collection of the API an action writes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ResourceType {
    /// API group; empty for the core group.
    pub group: Cow<'static, str>,
    /// Version within the group.
    pub version: Cow<'static, str>,
    /// Kind of the objects.
    pub kind: Cow<'static, str>,
    /// Plural name used in paths.
    pub plural: Cow<'static, str>,
}

impl ResourceType {
    /// The collection of a typed kind.
    #[must_use]
    pub fn of<K: Resource<DynamicType = ()>>() -> Self {
        Self { group: K::group(&()), version: K::version(&()), kind: K::kind(&()), plural: K::plural(&()) }
    }

    fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        match namespace {
            Some(namespace) => format!("{root}/{}/namespaces/{namespace}/{}", self.version, self.plural),
            None => format!("{root}/{}/{}", self.version, self.plural),
        }
    }
}

/// What an action does.
#[derive(Debug, Clone, PartialEq)]
pub enum Verb {
    /// Creates the object.
    Create(Value),
    /// Replaces the object; refused by the API if its resourceVersion is no longer the live one.
    Update(Value),
    /// Replaces the object's status.
    UpdateStatus(Value),
    /// Merges into the object (RFC 7386).
    MergePatch(Value),
    /// Edits the object step by step (RFC 6902).
    JsonPatch(Value),
    /// Deletes the object, in the background; with a uid, only that very object.
    Delete {
        /// Only the object with this uid.
        uid: Option<String>,
    },
}

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    /// The collection.
    pub resource: ResourceType,
    /// The namespace; `None` for cluster-scoped kinds.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
    /// What to do.
    pub verb: Verb,
}

impl Action {
    fn on<K: Resource<DynamicType = ()>>(object: &K, verb: Verb) -> Self {
        Self {
            resource: ResourceType::of::<K>(),
            namespace: object.namespace(),
            name: object.name_any(),
            verb,
        }
    }

    fn json<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Value {
        let resource = ResourceType::of::<K>();
        // Serialisation of an API type fails only for maps with keys that are not strings, which none has.
        let mut value = serde_json::to_value(object).unwrap_or_default();
        value["apiVersion"] = resource.api_version().into();
        value["kind"] = resource.kind.into_owned().into();
        value
    }

    /// Creates `object`.
    pub fn create<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        Self::on(object, Verb::Create(Self::json(object)))
    }

    /// Replaces the object by `object`, which carries the live object's resourceVersion.
    pub fn update<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        Self::on(object, Verb::Update(Self::json(object)))
    }

    /// Replaces the object's status by that of `object`.
    pub fn update_status<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        Self::on(object, Verb::UpdateStatus(Self::json(object)))
    }

    /// Merges `patch` into an object.
    #[must_use]
    pub fn merge_patch<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
        namespace: &str,
        name: &str,
        patch: Value,
    ) -> Self {
        Self::by_name::<K>(namespace, name, Verb::MergePatch(patch))
    }

    /// Applies a JSON patch to an object.
    #[must_use]
    pub fn json_patch<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
        namespace: &str,
        name: &str,
        patch: Value,
    ) -> Self {
        Self::by_name::<K>(namespace, name, Verb::JsonPatch(patch))
    }

    fn by_name<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
        namespace: &str,
        name: &str,
        verb: Verb,
    ) -> Self {
        Self {
            resource: ResourceType::of::<K>(),
            namespace: Some(namespace.to_owned()),
            name: name.to_owned(),
            verb,
        }
    }

    /// Deletes this very object (by uid, where it is known).
    pub fn delete<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self::on(object, Verb::Delete { uid: object.uid() })
    }

    /// The request that carries the action out.
    fn request(&self) -> Result<http::Request<Vec<u8>>, http::Error> {
        let collection = self.resource.path(self.namespace.as_deref());
        let object = format!("{collection}/{}", self.name);
        let (method, path, content_type, body) = match &self.verb {
            Verb::Create(value) => ("POST", collection, "application/json", value.to_string()),
            Verb::Update(value) => ("PUT", object, "application/json", value.to_string()),
            Verb::UpdateStatus(value) => {
                ("PUT", format!("{object}/status"), "application/json", value.to_string())
            }
            Verb::MergePatch(patch) => ("PATCH", object, "application/merge-patch+json", patch.to_string()),
            Verb::JsonPatch(patch) => ("PATCH", object, "application/json-patch+json", patch.to_string()),
            Verb::Delete { uid } => {
                let mut options =
                    json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
                if let Some(uid) = uid {
                    options["preconditions"] = json!({"uid": uid});
                }
                ("DELETE", object, "application/json", options.to_string())
            }
        };
        http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content_type)
            .body(body.into_bytes())
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.verb {
            Verb::Create(_) => "create",
            Verb::Update(_) => "update",
            Verb::UpdateStatus(_) => "update status of",
            Verb::MergePatch(_) | Verb::JsonPatch(_) => "patch",
            Verb::Delete { .. } => "delete",
        };
        let kind = &self.resource.kind;
        match &self.namespace {
            Some(namespace) => write!(f, "{verb} {kind} {namespace}/{}", self.name),
            None => write!(f, "{verb} {kind} {}", self.name),
        }
    }
}

/// Why a write was not done.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}: {source}")]
pub struct ApplyError {
    /// What was to be done.
    pub action: String,
    /// What the API said.
    #[source]
    pub source: Box<kube::Error>,
}

impl ApplyError {
    fn code(&self) -> Option<u16> {
        match &*self.source {
            kube::Error::Api(status) => Some(status.code),
            _ => None,
        }
    }

    fn reason(&self) -> &str {
        match &*self.source {
            kube::Error::Api(status) => &status.reason,
            _ => "",
        }
    }

    /// Whether the object to create is there already.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.reason() == "AlreadyExists"
    }

    /// Whether our view of the object was outdated.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409) && !self.is_already_exists()
    }

    /// Whether the object is gone.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// The API's own words, without our prefix.
    #[must_use]
    pub fn api_message(&self) -> String {
        match &*self.source {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        }
    }
}

/// Carries out actions through a Kubernetes client. Cheap to clone.
#[derive(Clone)]
pub struct Applier {
    client: Client,
}

impl fmt::Debug for Applier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applier").finish_non_exhaustive()
    }
}

impl Applier {
    /// An applier that writes through `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Carries out one action and returns the API's answer: the object as stored, or, for a deletion, its last state
    /// or a Status. Deleting what is already gone succeeds.
    ///
    /// # Errors
    /// What the API said, with the action it was about.
    pub async fn execute(&self, action: &Action) -> Result<Value, ApplyError> {
        let fail = |source: kube::Error| ApplyError { action: action.to_string(), source: Box::new(source) };
        let request = action.request().map_err(|e| fail(kube::Error::HttpError(e)))?;
        match self.client.request::<Value>(request).await.map_err(fail) {
            Err(error) if error.is_not_found() && matches!(action.verb, Verb::Delete { .. }) => {
                Ok(Value::Null)
            }
            other => other,
        }
    }

    /// Carries out one action on an object of kind `K` and puts the answer into `cache`, so that the next reconcile
    /// sees it whatever the watch's delay.
    ///
    /// # Errors
    /// What the API said, with the action it was about.
    pub async fn execute_into<K>(&self, action: &Action, cache: &Cache<K>) -> Result<K, ApplyError>
    where
        K: Resource + Clone + fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
    {
        let value = self.execute(action).await?;
        let object: K = serde_json::from_value(value).map_err(|e| ApplyError {
            action: action.to_string(),
            source: Box::new(kube::Error::SerdeError(e)),
        })?;
        cache.put_written(object.clone());
        Ok(object)
    }
}

/// Whether two JSON values mean the same to Kubernetes: absent, null, and empty objects and lists are equal.
#[must_use]
pub fn semantically_equal(a: &Value, b: &Value) -> bool {
    fn empty(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Object(map) => map.values().all(empty),
            Value::Array(items) => items.is_empty(),
            _ => false,
        }
    }
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let absent = &Value::Null;
            a.iter().all(|(key, value)| semantically_equal(value, b.get(key).unwrap_or(absent)))
                && b.iter().all(|(key, value)| a.contains_key(key) || empty(value))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| semantically_equal(a, b))
        }
        // 1 and 1.0 are one number; of two integers every digit counts.
        (Value::Number(a), Value::Number(b)) => {
            a == b || ((a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64())
        }
        (a, b) => a == b || (empty(a) && empty(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    #[test]
    fn absent_null_and_empty_are_equal_but_an_empty_string_is_a_value() {
        let equal = |a, b| semantically_equal(&a, &b);
        assert!(equal(json!({"a": null, "b": {}, "c": [], "d": 1}), json!({"d": 1.0})));
        assert!(equal(json!({"a": {"b": {"c": null}}}), json!({})));
        assert!(!equal(json!({"a": ""}), json!({})));
        assert!(!equal(json!(9_007_199_254_740_993_i64), json!(9_007_199_254_740_992_i64)));
        assert!(!equal(json!({"a": [1, 2]}), json!({"a": [2, 1]})));
        assert!(!equal(json!({}), json!({"a": 1})));
    }

    #[test]
    fn a_deletion_names_the_very_object() {
        let mut object = ConfigMap::default();
        object.metadata.name = Some("a".into());
        object.metadata.namespace = Some("ns".into());
        object.metadata.uid = Some("u-1".into());
        let request = Action::delete(&object).request().unwrap();
        assert_eq!(request.uri(), "/api/v1/namespaces/ns/configmaps/a");
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        assert_eq!(body["preconditions"]["uid"], "u-1");
    }
}
