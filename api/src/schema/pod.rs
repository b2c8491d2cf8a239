//! The part of a pod that Knative's kinds know.

use serde_json::{Map, Value, json};

/// A field that is kept, and what of it.
#[derive(Clone, Copy)]
struct Field {
    name: &'static str,
    inner: Inner,
    required: &'static [&'static str],
    /// The key by which a list is a map.
    list_key: Option<&'static str>,
    /// Whether server-side apply replaces the object as a whole.
    atomic: bool,
    default: Option<&'static str>,
}

#[derive(Clone, Copy)]
enum Inner {
    /// As Kubernetes has it.
    Same,
    /// An object whose fields are not looked at.
    Open,
    /// Of the object, or of each object of the list, these fields.
    Fields(&'static [Field]),
}

const fn field(name: &'static str, inner: Inner) -> Field {
    Field { name, inner, required: &[], list_key: None, atomic: false, default: None }
}

const fn same(name: &'static str) -> Field {
    field(name, Inner::Same)
}

const fn open(name: &'static str) -> Field {
    field(name, Inner::Open)
}

const fn fields(name: &'static str, inner: &'static [Field]) -> Field {
    field(name, Inner::Fields(inner))
}

impl Field {
    const fn required(mut self, names: &'static [&'static str]) -> Self {
        self.required = names;
        self
    }

    const fn keyed_by(mut self, key: &'static str) -> Self {
        self.list_key = Some(key);
        self
    }

    const fn atomic(mut self) -> Self {
        self.atomic = true;
        self
    }

    const fn or(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }
}

const POD: &[Field] = &[
    open("affinity"),
    same("automountServiceAccountToken"),
    same("containerConcurrency"),
    fields("containers", CONTAINER),
    open("dnsConfig"),
    same("dnsPolicy"),
    same("enableServiceLinks"),
    open("hostAliases"),
    same("hostIPC"),
    same("hostNetwork"),
    same("hostPID"),
    same("idleTimeoutSeconds"),
    fields("imagePullSecrets", &[same("name").or("")]).atomic().keyed_by("name"),
    open("initContainers"),
    same("nodeSelector").atomic(),
    same("priorityClassName"),
    same("responseStartTimeoutSeconds"),
    same("runtimeClassName"),
    same("schedulerName"),
    open("securityContext"),
    same("serviceAccountName"),
    same("shareProcessNamespace"),
    same("timeoutSeconds"),
    open("tolerations"),
    open("topologySpreadConstraints"),
    fields("volumes", VOLUME).required(&["name"]).keyed_by("name"),
];

const CONTAINER: &[Field] = &[
    same("args"),
    same("command"),
    fields("env", ENV).required(&["name"]).keyed_by("name"),
    fields("envFrom", ENV_FROM),
    same("image"),
    same("imagePullPolicy"),
    fields("livenessProbe", PROBE),
    same("name"),
    fields("ports", &[same("containerPort"), same("name"), same("protocol").or("TCP")]),
    fields("readinessProbe", PROBE),
    fields("resources", &[same("limits"), same("requests")]),
    fields("securityContext", SECURITY_CONTEXT),
    fields("startupProbe", PROBE),
    same("terminationMessagePath"),
    same("terminationMessagePolicy"),
    fields("volumeMounts", VOLUME_MOUNT).required(&["mountPath", "name"]).keyed_by("mountPath"),
    same("workingDir"),
];

const ENV: &[Field] = &[
    same("name"),
    same("value"),
    fields(
        "valueFrom",
        &[
            fields("configMapKeyRef", KEY_SELECTOR).required(&["key"]).atomic(),
            open("fieldRef").atomic(),
            open("resourceFieldRef").atomic(),
            fields("secretKeyRef", KEY_SELECTOR).required(&["key"]).atomic(),
        ],
    ),
];

const KEY_SELECTOR: &[Field] = &[same("key"), same("name").or(""), same("optional")];

const ENV_FROM: &[Field] = &[
    fields("configMapRef", &[same("name").or(""), same("optional")]).atomic(),
    same("prefix"),
    fields("secretRef", &[same("name").or(""), same("optional")]).atomic(),
];

const PROBE: &[Field] = &[
    same("exec"),
    same("failureThreshold"),
    fields("grpc", &[same("port"), same("service").or("")]),
    fields(
        "httpGet",
        &[
            same("host"),
            fields("httpHeaders", &[same("name"), same("value")]).required(&["name", "value"]),
            same("path"),
            same("port"),
            same("scheme"),
        ],
    ),
    same("initialDelaySeconds"),
    same("periodSeconds"),
    same("successThreshold"),
    fields("tcpSocket", &[same("host"), same("port")]),
    same("timeoutSeconds"),
];

const SECURITY_CONTEXT: &[Field] = &[
    same("allowPrivilegeEscalation"),
    fields("capabilities", &[same("add"), same("drop")]),
    same("privileged"),
    same("readOnlyRootFilesystem"),
    same("runAsGroup"),
    same("runAsNonRoot"),
    same("runAsUser"),
    fields("seccompProfile", &[same("localhostProfile"), same("type")]).required(&["type"]),
];

const VOLUME_MOUNT: &[Field] =
    &[same("mountPath"), same("mountPropagation"), same("name"), same("readOnly"), same("subPath")];

const VOLUME: &[Field] = &[
    fields(
        "configMap",
        &[
            same("defaultMode"),
            fields("items", KEY_TO_PATH).required(&["key", "path"]),
            same("name").or(""),
            same("optional"),
        ],
    )
    .atomic(),
    open("csi"),
    open("emptyDir"),
    open("ephemeral"),
    open("hostPath"),
    open("image"),
    same("name"),
    open("persistentVolumeClaim"),
    fields("projected", &[same("defaultMode"), fields("sources", PROJECTION)]),
    fields(
        "secret",
        &[
            same("defaultMode"),
            fields("items", KEY_TO_PATH).required(&["key", "path"]),
            same("optional"),
            same("secretName"),
        ],
    ),
];

const KEY_TO_PATH: &[Field] = &[same("key"), same("mode"), same("path")];

const PROJECTED: &[Field] =
    &[fields("items", KEY_TO_PATH).required(&["key", "path"]), same("name").or(""), same("optional")];

const PROJECTION: &[Field] = &[
    fields("configMap", PROJECTED).atomic(),
    fields(
        "downwardAPI",
        &[fields(
            "items",
            &[
                fields("fieldRef", &[same("apiVersion"), same("fieldPath")])
                    .required(&["fieldPath"])
                    .atomic(),
                same("mode"),
                same("path"),
                fields("resourceFieldRef", &[same("containerName"), same("divisor"), same("resource")])
                    .required(&["resource"])
                    .atomic(),
            ],
        )
        .required(&["path"])],
    ),
    fields("secret", PROJECTED).atomic(),
    fields("serviceAccountToken", &[same("audience"), same("expirationSeconds"), same("path")])
        .required(&["path"]),
];

/// Reduces the schema of a pod spec to the fields that Knative's kinds know.
pub(super) fn keep_known_fields(schema: &mut Value) {
    keep(schema, POD);
}

/// Reduces the schema of a reference to the fields that name something with a scale.
pub(super) fn keep_scale_target_fields(schema: &mut Value) {
    keep(schema, &[same("apiVersion"), same("kind"), same("name")]);
    schema["x-kubernetes-map-type"] = json!("atomic");
}

/// Shapes the references to Secrets in the schema of an Image's spec.
pub(super) fn keep_image_fields(schema: &mut Value) {
    const IMAGE: &[Field] = &[
        same("image"),
        fields("imagePullSecrets", &[same("name").or("")]).atomic(),
        same("serviceAccountName"),
    ];
    keep(schema, IMAGE);
}

fn keep(schema: &mut Value, known: &[Field]) {
    let Some(Value::Object(properties)) = schema.get_mut("properties") else { return };
    let mut kept = Map::new();
    for field in known {
        if let Some(property) = properties.remove(field.name) {
            kept.insert(field.name.to_owned(), shape(property, field));
        }
    }
    *properties = kept;
}

fn shape(mut property: Value, field: &Field) -> Value {
    let is_list = property.get("items").is_some();
    let object = match property.get_mut("items") {
        Some(items) => items,
        None => &mut property,
    };
    match field.inner {
        Inner::Same => {}
        Inner::Open => {
            let description = object.get("description").cloned();
            *object = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
            if let Some(description) = description {
                object["description"] = description;
            }
        }
        Inner::Fields(known) => {
            keep(object, known);
            let fields = object.as_object_mut();
            if let Some(fields) = fields {
                fields.remove("required");
                if !field.required.is_empty() {
                    fields.insert("required".to_owned(), json!(field.required));
                }
            }
        }
    }
    if field.atomic {
        object["x-kubernetes-map-type"] = json!("atomic");
    }
    if let Some(key) = field.list_key.filter(|_| is_list) {
        property["x-kubernetes-list-type"] = json!("map");
        property["x-kubernetes-list-map-keys"] = json!([key]);
    }
    if let Some(default) = field.default {
        property["default"] = json!(default);
    }
    property
}
