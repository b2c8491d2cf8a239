//! What ownership and patches need to know of a value's type: what is one value and what is many, and what identifies
//! the items of a list. Of custom kinds it is in their schema; of built-in kinds here, in the words of Kubernetes'
//! OpenAPI.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::set::Step;
use crate::resource::Resource;

/// The type of a value at some place of an object.
#[derive(Clone, Copy)]
pub(crate) struct Type<'a> {
    schema: &'a Value,
    /// Of a built-in kind: what the schema does not name is a field, of a type that is told by its value.
    built_in: bool,
    root: bool,
}

/// The items of a list, each with what identifies it.
pub(crate) type Items<'v> = Vec<(Step, &'v Value)>;

/// A value taken apart as far as its type allows.
pub(crate) enum Parts<'v> {
    /// Owned as a whole.
    Leaf,
    Map(&'v serde_json::Map<String, Value>),
    List(Items<'v>),
}

impl<'a> Type<'a> {
    /// The type of a resource's objects; `schema` is the one of a custom kind.
    pub(crate) fn of(resource: &Resource, schema: Option<&'a Value>) -> Self {
        match schema {
            Some(schema) => Self { schema, built_in: false, root: true },
            None => Self { schema: built_in(resource), built_in: true, root: true },
        }
    }

    /// Whether a key of a map is a field of its type, and not an entry that somebody chose.
    pub(crate) fn declares(self, name: &str) -> bool {
        let root = self.root && matches!(name, "apiVersion" | "kind" | "metadata");
        root || self.schema.get("properties").is_some_and(|p| p.get(name).is_some())
            || (self.built_in && self.schema.get("additionalProperties").is_none())
    }

    /// Whether the keys of a map are entries that somebody chose.
    pub(crate) fn is_free(self) -> bool {
        self.schema.get("properties").is_none() && !self.declares("")
    }

    /// The type of the value under a key.
    pub(crate) fn field(self, name: &str) -> Self {
        if self.root && name == "metadata" {
            return Self { schema: &METADATA, built_in: true, root: false };
        }
        let declared = self.schema.get("properties").and_then(|p| p.get(name));
        let schema = declared.or_else(|| self.schema.get("additionalProperties")).unwrap_or(&Value::Null);
        Self { schema, root: false, ..self }
    }

    /// The type of a list's items.
    pub(crate) fn items(self) -> Self {
        Self { schema: self.schema.get("items").unwrap_or(&Value::Null), root: false, ..self }
    }

    /// What tells the items of a list apart in a strategic merge patch; `None`: a patch replaces the list.
    pub(crate) fn merge_key(self) -> Option<&'a str> {
        self.schema.get("x-kubernetes-patch-merge-key").and_then(Value::as_str)
    }

    /// Whether a strategic merge patch adds to a list of plain values, rather than to replace it.
    pub(crate) fn unites(self) -> bool {
        self.text("x-kubernetes-list-type") == "set" && self.text("x-kubernetes-patch-strategy") == "merge"
    }

    fn text(self, field: &str) -> &'a str {
        self.schema.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// Takes a value apart. A list whose items cannot be told apart is one value.
    pub(crate) fn parts(self, value: &Value) -> Parts<'_> {
        match value {
            Value::Object(map) if self.text("x-kubernetes-map-type") != "atomic" => Parts::Map(map),
            Value::Array(list) => match self.identify(list) {
                Ok(Some(items)) => Parts::List(items),
                Ok(None) | Err(_) => Parts::Leaf,
            },
            _ => Parts::Leaf,
        }
    }

    /// The items of a list with what identifies each; `None` for a list that is one value.
    ///
    /// # Errors
    /// Why the items cannot be told apart.
    fn identify<'v>(self, list: &'v [Value]) -> Result<Option<Items<'v>>, String> {
        let mut items: Items<'v> = Vec::with_capacity(list.len());
        match self.text("x-kubernetes-list-type") {
            "set" => items.extend(list.iter().map(|item| (Step::value(item), item))),
            "map" => {
                let keys = self.schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                for (index, item) in list.iter().enumerate() {
                    let names = keys.into_iter().flatten().filter_map(Value::as_str);
                    let pairs: Result<Vec<(&str, &Value)>, String> = names
                        .map(|name| {
                            let default = || self.items().field(name).schema.get("default");
                            let value = item.get(name).filter(|v| !v.is_null()).or_else(default);
                            value.map(|value| (name, value)).ok_or_else(|| {
                                format!(
                                    "element {index}: associative list with keys has an element that omits key field \
                                     {name:?} (and doesn't have default value)"
                                )
                            })
                        })
                        .collect();
                    items.push((Step::key(pairs?), item));
                }
            }
            _ => return Ok(None),
        }
        let mut seen: Vec<&Step> = items.iter().map(|(step, _)| step).collect();
        seen.sort_unstable();
        match seen.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("duplicate entries for key {}", pair[0])),
            None => Ok(Some(items)),
        }
    }

    /// What is wrong with a value that is to be applied: lists whose items cannot be told apart.
    pub(crate) fn fault(self, value: &Value) -> Option<String> {
        fn walk(ty: Type<'_>, value: &Value, path: &mut Vec<Step>) -> Option<String> {
            let mut descend = |step: Step, ty: Type<'_>, value: &Value| {
                path.push(step);
                let fault = walk(ty, value, path);
                path.pop();
                fault
            };
            if let Value::Array(list) = value
                && let Err(fault) = ty.identify(list)
            {
                return Some(format!("{}: {fault}", super::set::path_text(path)));
            }
            match ty.parts(value) {
                Parts::Leaf => None,
                Parts::Map(map) => {
                    map.iter().find_map(|(name, value)| descend(Step::field(name), ty.field(name), value))
                }
                Parts::List(items) => {
                    items.into_iter().find_map(|(step, value)| descend(step, ty.items(), value))
                }
            }
        }
        walk(self, value, &mut Vec::new())
    }
}

fn atomic_map() -> Value {
    json!({ "x-kubernetes-map-type": "atomic" })
}

fn free_map() -> Value {
    json!({ "additionalProperties": {} })
}

/// A list whose items all of `keys` tell apart; in a strategic merge patch the first does.
fn list_by(keys: &[&str], items: &Value) -> Value {
    json!({
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys, "items": items,
        "x-kubernetes-patch-merge-key": keys[0],
    })
}

/// ObjectMeta.
static METADATA: LazyLock<Value> = LazyLock::new(|| {
    json!({ "properties": {
        "labels": free_map(),
        "annotations": free_map(),
        "finalizers": { "x-kubernetes-list-type": "set", "x-kubernetes-patch-strategy": "merge" },
        "ownerReferences": list_by(&["uid"], &atomic_map()),
    } })
});

/// A map whose keys are entries, such as the data of a ConfigMap.
static DATA: LazyLock<Value> = LazyLock::new(
    || json!({ "properties": { "data": free_map(), "binaryData": free_map(), "stringData": free_map() } }),
);

static CONDITIONS: LazyLock<Value> = LazyLock::new(
    || json!({ "properties": { "status": { "properties": { "conditions": list_by(&["type"], &json!({})) } } } }),
);

static SERVICE: LazyLock<Value> = LazyLock::new(|| {
    let port = json!({ "properties": { "protocol": { "default": "TCP" } } });
    json!({ "properties": {
        "spec": { "properties": {
            "ports": list_by(&["port", "protocol"], &port),
            "selector": atomic_map(),
        } },
        "status": CONDITIONS["properties"]["status"],
    } })
});

static SERVICE_ACCOUNT: LazyLock<Value> =
    LazyLock::new(|| json!({ "properties": { "secrets": list_by(&["name"], &json!({})) } }));

static POD: LazyLock<Value> =
    LazyLock::new(|| json!({ "properties": { "spec": pod_spec(), "status": pod_status() } }));

static DEPLOYMENT: LazyLock<Value> = LazyLock::new(|| {
    let template = json!({ "properties": { "metadata": &*METADATA, "spec": pod_spec() } });
    json!({ "properties": {
        "spec": { "properties": { "selector": atomic_map(), "template": template } },
        "status": CONDITIONS["properties"]["status"],
    } })
});

fn pod_spec() -> Value {
    let container = container();
    json!({ "properties": {
        "containers": list_by(&["name"], &container),
        "initContainers": list_by(&["name"], &container),
        "ephemeralContainers": list_by(&["name"], &container),
        "volumes": list_by(&["name"], &volume()),
        "imagePullSecrets": list_by(&["name"], &atomic_map()),
        "hostAliases": list_by(&["ip"], &json!({})),
        "resourceClaims": list_by(&["name"], &json!({})),
        "schedulingGates": list_by(&["name"], &json!({})),
        "topologySpreadConstraints": list_by(
            &["topologyKey", "whenUnsatisfiable"],
            &json!({ "properties": { "labelSelector": atomic_map() } }),
        ),
        "nodeSelector": atomic_map(),
        "overhead": free_map(),
        "affinity": { "properties": { "nodeAffinity": { "properties": {
            "requiredDuringSchedulingIgnoredDuringExecution": atomic_map() } } } },
    } })
}

fn container() -> Value {
    let port = json!({ "properties": { "protocol": { "default": "TCP" } } });
    let env = json!({ "properties": { "valueFrom": { "properties": {
        "configMapKeyRef": atomic_map(), "fieldRef": atomic_map(),
        "resourceFieldRef": atomic_map(), "secretKeyRef": atomic_map() } } } });
    // Ownership knows these by name, a strategic merge patch replaces them.
    let claims = json!({ "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"] });
    json!({ "properties": {
        "env": list_by(&["name"], &env),
        "ports": list_by(&["containerPort", "protocol"], &port),
        "volumeMounts": list_by(&["mountPath"], &json!({})),
        "volumeDevices": list_by(&["devicePath"], &json!({})),
        "resources": { "properties": {
            "limits": free_map(), "requests": free_map(), "claims": claims } },
    } })
}

fn volume() -> Value {
    json!({ "properties": {
        "csi": { "properties": { "nodePublishSecretRef": atomic_map(), "volumeAttributes": free_map() } },
        "flexVolume": { "properties": { "options": free_map(), "secretRef": atomic_map() } },
    } })
}

fn pod_status() -> Value {
    json!({ "properties": {
        "conditions": list_by(&["type"], &json!({})),
        "podIPs": list_by(&["ip"], &json!({})),
        "resourceClaimStatuses": list_by(&["name"], &json!({})),
    } })
}

fn built_in(resource: &Resource) -> &'static Value {
    match (resource.group, resource.plural) {
        ("", "configmaps" | "secrets") => &DATA,
        ("", "namespaces") => &CONDITIONS,
        ("", "services") => &SERVICE,
        ("", "serviceaccounts") => &SERVICE_ACCOUNT,
        ("", "pods") => &POD,
        ("apps", "deployments") => &DEPLOYMENT,
        _ => &Value::Null,
    }
}
