//! Golden data: cases with what the contract's reference answers to them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ember_api::status::Conditioned;
use ember_reconcile::apply::{Action, ResourceType, Verb};
use jiff::{SignedDuration, Timestamp};
use kube::core::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::context::Configs;
use crate::plan::{EventText, Plan, status_action};

/// ConfigMap name → data.
pub(crate) type ConfigMaps = BTreeMap<String, BTreeMap<String, String>>;

fn folder() -> PathBuf {
    std::env::var_os("EMBER_VECTORS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors")),
        PathBuf::from,
    )
}

/// The cases of a file. Panics when there are none: an empty list must not pass for success.
pub(crate) fn cases<T: DeserializeOwned>(file: &str) -> Vec<T> {
    list(file, "cases")
}

/// A list of a file. Panics when it is empty.
pub(crate) fn list<T: DeserializeOwned>(file: &str, name: &str) -> Vec<T> {
    let path = folder().join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut file: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let cases: Vec<T> = serde_json::from_value(file[name].take()).expect("cases of the expected shape");
    assert!(!cases.is_empty(), "{} holds no {name}", path.display());
    cases
}

/// Collects the outcomes of a file's cases.
pub(crate) struct Report {
    file: &'static str,
    ran: usize,
    failures: Vec<String>,
}

impl Report {
    pub(crate) fn new(file: &'static str) -> Self {
        Self { file, ran: 0, failures: Vec::new() }
    }

    /// Counts one case; `failure` tells what is wrong with it.
    pub(crate) fn check(&mut self, id: &str, failure: Option<String>) {
        self.ran += 1;
        if let Some(failure) = failure {
            self.failures.push(format!("--- {id}\n{failure}"));
        }
    }

    /// Prints how many cases ran and panics with all failures.
    pub(crate) fn finish(self) {
        println!("{}: {} of {} cases pass", self.file, self.ran - self.failures.len(), self.ran);
        assert!(self.ran > 0, "{}: no case ran", self.file);
        assert!(self.failures.is_empty(), "{}", self.failures.join("\n"));
    }
}

/// Where two values differ, one line each, where absent, null and empty are the same.
pub(crate) fn differences(path: &str, ours: &Value, expected: &Value) -> Vec<String> {
    match (ours, expected) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            let absent = Value::Null;
            keys.into_iter()
                .flat_map(|key| {
                    let (a, b) = (a.get(key).unwrap_or(&absent), b.get(key).unwrap_or(&absent));
                    differences(&format!("{path}/{key}"), a, b)
                })
                .collect()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .flat_map(|(i, (a, b))| differences(&format!("{path}/{i}"), a, b))
            .collect(),
        // A whole number may be written with a fraction of zero.
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => Vec::new(),
        _ if ember_reconcile::apply::semantically_equal(ours, expected) => Vec::new(),
        _ => vec![format!("  {path}: ours {ours}, expected {expected}")],
    }
}

/// One reconcile: the state of the cluster before, and what the reconciler does.
#[derive(Debug, Deserialize)]
pub(crate) struct Reconcile {
    pub(crate) id: String,
    #[serde(rename = "in")]
    pub(crate) given: Given,
    #[serde(default)]
    expect: Expected,
    /// A client whose writes have no order.
    #[serde(skip)]
    unordered: Option<&'static str>,
}

/// The state before.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Given {
    key: String,
    #[serde(default, deserialize_with = "or_default")]
    configs: ConfigMaps,
    now: i64,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) objects: Vec<Value>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) resolver: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) digests: BTreeMap<String, String>,
    /// Calls that fail, as `verb resource`.
    #[serde(default, deserialize_with = "or_default")]
    fail: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Expected {
    #[serde(default, deserialize_with = "or_default")]
    actions: Vec<Value>,
    #[serde(default, deserialize_with = "or_default")]
    events: Vec<String>,
    #[serde(default)]
    error: Option<String>,
    /// Every delay the key was queued with.
    #[serde(default, deserialize_with = "or_default")]
    enqueue_after_nanos: Vec<i64>,
    #[serde(default, deserialize_with = "or_default")]
    tracked: Vec<String>,
    /// The reference crashed.
    #[serde(default)]
    panic: Option<String>,
}

/// `null` is as good as absent.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    given: D,
) -> Result<T, D::Error> {
    Option::deserialize(given).map(Option::unwrap_or_default)
}

impl Given {
    /// Whether calls of this verb and resource fail.
    pub(crate) fn fails(&self, call: &str) -> bool {
        self.fail.iter().any(|failing| failing == call)
    }

    /// Whether the object of an action is there.
    fn holds(&self, action: &Action) -> bool {
        let ResourceType { group, version, .. } = &action.resource;
        let api_version = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
        self.objects.iter().any(|object| {
            object["kind"] == action.resource.kind.as_ref()
                && object["apiVersion"] == api_version
                && object["metadata"]["name"] == action.name.as_str()
                && object["metadata"]["namespace"].as_str() == action.namespace.as_deref()
        })
    }

    pub(crate) fn key(&self) -> (&str, &str) {
        self.key.split_once('/').unwrap_or(("", &self.key))
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(self.now)).expect("a time")
    }

    /// The typed configuration; the sidecar's image has no default.
    pub(crate) fn configs(&self) -> Configs {
        configs(&self.configs)
    }

    /// The objects of kind `K`. Times given relative to now become absolute.
    pub(crate) fn all<K: Resource<DynamicType = ()> + DeserializeOwned>(&self) -> Vec<K> {
        let of_kind = |object: &&Value| {
            object["kind"] == K::kind(&()).as_ref() && object["apiVersion"] == K::api_version(&()).as_ref()
        };
        let typed = |object: &Value| {
            let mut object = object.clone();
            self.absolute_times(&mut object);
            serde_json::from_value(object).expect("an object of its kind")
        };
        self.objects.iter().filter(of_kind).map(typed).collect()
    }

    pub(crate) fn get<K: Resource<DynamicType = ()> + DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<K> {
        self.all::<K>().into_iter().find(|object| {
            let meta = object.meta();
            meta.namespace.as_deref().unwrap_or_default() == namespace && meta.name.as_deref() == Some(name)
        })
    }

    fn absolute_times(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Some(age) = text.strip_prefix("__NOW-").and_then(|text| text.strip_suffix("__")) {
                    let age = ember_api::golang::parse_duration(age).expect("a duration").to_std();
                    let then = self.now() - SignedDuration::try_from(age).expect("a short duration");
                    *text = then.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.absolute_times(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.absolute_times(field)),
            _ => {}
        }
    }
}

/// The typed configuration of a case.
pub(crate) fn configs(given: &ConfigMaps) -> Configs {
    let mut given = given.clone();
    given
        .entry("config-deployment".to_owned())
        .or_default()
        .entry("queue-sidecar-image".to_owned())
        .or_insert_with(|| "example.com/queue:v1".to_owned());
    Configs::parse(&given).expect("configuration that can be used")
}

impl Reconcile {
    /// The objects of kind `K` that are expected to be sent.
    pub(crate) fn expected_objects<K: Resource<DynamicType = ()> + DeserializeOwned>(&self) -> Vec<K> {
        let objects = self.expect.actions.iter().filter_map(|action| action.get("object"));
        let of_kind = objects.filter(|object| object["kind"] == K::kind(&()).as_ref());
        of_kind.map(|object| serde_json::from_value(object.clone()).expect("an object of its kind")).collect()
    }

    /// What is expected to be done although the object is not there: an object that is gone asks for nothing.
    pub(crate) fn without_object(&self) -> Option<String> {
        let Expected { actions, error, .. } = &self.expect;
        let nothing = actions.is_empty() && error.is_none();
        (!nothing).then(|| format!("  the object is not there; expected {actions:?}, error {error:?}"))
    }

    /// The message with which the reference crashed on this case, if it did.
    pub(crate) fn panics(&self) -> Option<&str> {
        self.expect.panic.as_deref()
    }

    /// What the reconciled object is expected to depend on, as `group/version/Kind/namespace/name`.
    pub(crate) fn tracked(&self) -> &[String] {
        &self.expect.tracked
    }

    /// The events that are expected.
    pub(crate) fn expected_events(&self) -> &[String] {
        &self.expect.events
    }

    /// Leaves what the reference's API server alone made of the case out of what is expected.
    pub(crate) fn forget_api_errors(&mut self) {
        self.expect.events.retain(|event| !event.starts_with("Warning UpdateFailed "));
        self.expect.error = None;
    }

    /// Writes through `client` have no order of their own in this case, except those on one object.
    pub(crate) fn ignore_order(&mut self, client: &'static str) {
        self.unordered = Some(client);
    }

    /// What the plan does otherwise than expected, if anything. `original` is the object the plan is for.
    pub(crate) fn compare<K>(&self, original: &K, plan: Plan<K>) -> Option<String>
    where
        K: Conditioned + Resource<DynamicType = ()> + Serialize + Clone,
    {
        let (actions, events, error, requeue) = self.carry_out(original, plan);
        let mut wrong = Vec::new();
        for client in ["serving", "networking", "caching", "kube"] {
            let of_client = |actions: &[Value]| {
                let actions = actions.iter().filter(|action| action["client"] == client);
                let mut actions: Vec<Value> = actions.cloned().map(comparable).collect();
                actions.iter_mut().for_each(undo_formats);
                if self.unordered == Some(client) {
                    actions.sort_by_key(resource_and_name);
                }
                actions
            };
            let (expected, ours) = (of_client(&self.expect.actions), of_client(&actions));
            wrong.extend(differences(client, &Value::from(ours), &Value::from(expected)));
        }
        if events != self.expect.events {
            wrong.push(format!("  events: ours {events:?}, expected {:?}", self.expect.events));
        }
        if error != self.expect.error {
            wrong.push(format!("  error: ours {error:?}, expected {:?}", self.expect.error));
        }
        // An error has the key queued again in any case.
        if requeue.as_slice() != self.expect.enqueue_after_nanos && error.is_none() {
            wrong
                .push(format!("  requeue: ours {requeue:?}, expected {:?}", self.expect.enqueue_after_nanos));
        }
        (!wrong.is_empty()).then(|| wrong.join("\n"))
    }

    /// Carries a plan out as the shell does, against an API that fails the calls it is told to.
    fn carry_out<K>(
        &self,
        original: &K,
        plan: Plan<K>,
    ) -> (Vec<Value>, Vec<String>, Option<String>, Option<i64>)
    where
        K: Conditioned + Resource<DynamicType = ()> + Serialize + Clone,
    {
        let text = |event: &EventText| format!("{} {} {}", event.kind.as_str(), event.reason, event.message);
        let (mut actions, mut events, mut error, mut object) =
            (Vec::new(), Vec::new(), plan.error, plan.object);
        let mut quiet = false;
        for step in plan.steps {
            let action = described(&step.action);
            let call =
                format!("{} {}", action["verb"].as_str().unwrap_or_default(), step.action.resource.plural);
            let is_deleted = actions.iter().any(|action: &Value| {
                action["verb"] == "delete"
                    && action["resource"] == step.action.resource.plural.as_ref()
                    && action["name"] == step.action.name.as_str()
            });
            let exists =
                matches!(step.action.verb, Verb::Create(_)) && !is_deleted && self.given.holds(&step.action);
            actions.push(action);
            let words = if self.given.fails(&call) {
                format!("inducing failure for {call}")
            } else if exists {
                let ResourceType { plural, group, .. } = &step.action.resource;
                let resource =
                    if group.is_empty() { plural.to_string() } else { format!("{plural}.{group}") };
                format!("{resource} {:?} already exists", step.action.name)
            } else {
                events.extend(step.done.as_ref().map(text));
                continue;
            };
            events.extend(step.failed.event_text(&words, exists).as_ref().map(text));
            if step.failed.tolerated {
                continue;
            }
            error = Some(step.failed.error_text(&words));
            quiet = step.failed.quiet;
            object = step.failed.into_object(&words, exists, self.given.now());
            break;
        }
        events.extend(plan.events.iter().map(text));
        actions.extend(
            object
                .as_mut()
                .and_then(|new| status_action(original, new, self.given.now()))
                .map(|action| described(&action)),
        );
        if let Some(action) = actions.last().filter(|action| action["subresource"] == "status") {
            let call = format!("update {}", action["resource"].as_str().unwrap_or_default());
            if self.given.fails(&call) {
                let name = original.meta().name.as_deref().unwrap_or_default();
                let words = format!("inducing failure for {call}");
                events.push(format!("Warning UpdateFailed Failed to update status for {name:?}: {words}"));
                return (actions, events, Some(words), None);
            }
        }
        events
            .extend(error.as_ref().filter(|_| !quiet).map(|error| format!("Warning InternalError {error}")));
        let requeue = plan.requeue_after.map(|after| i64::try_from(after.as_nanos()).expect("a short time"));
        (actions, events, error, requeue)
    }
}

/// The reference takes messages for formats: a percent sign comes out with words about what is missing. Ours are
/// verbatim.
fn undo_formats(value: &mut Value) {
    match value {
        Value::String(text) => {
            while let Some(start) = text.find("%!")
                && let Some(length) = text[start..].find("(MISSING)")
                && length == 3
            {
                text.replace_range(start + 3..start + length + "(MISSING)".len(), "");
                text.replace_range(start + 1..start + 2, "");
            }
            *text = text.replace("%!(NOVERB)", "%");
        }
        Value::Array(items) => items.iter_mut().for_each(undo_formats),
        Value::Object(fields) => fields.values_mut().for_each(undo_formats),
        _ => {}
    }
}

fn resource_and_name(action: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = action.get("name").unwrap_or_else(|| &action["object"]["metadata"]["name"]);
    (text(&action["resource"]), text(name))
}

/// An action as the golden data describes it.
fn described(action: &Action) -> Value {
    let client = match action.resource.group.as_ref() {
        "serving.knative.dev" | "autoscaling.internal.knative.dev" => "serving",
        "networking.internal.knative.dev" => "networking",
        "caching.internal.knative.dev" => "caching",
        _ => "kube",
    };
    let (verb, object) = match &action.verb {
        Verb::Create(object) => ("create", json!({"object": object})),
        Verb::Update(object) => ("update", json!({"object": object})),
        Verb::UpdateStatus(object) => ("update", json!({"object": object, "subresource": "status"})),
        Verb::MergePatch(patch) | Verb::JsonPatch(patch) => {
            ("patch", json!({"name": action.name, "patch": patch}))
        }
        Verb::Delete { .. } => ("delete", json!({"name": action.name})),
    };
    let mut described = object;
    described["client"] = client.into();
    described["verb"] = verb.into();
    described["resource"] = action.resource.plural.as_ref().into();
    described["namespace"] = action.namespace.clone().into();
    described
}

/// An action without what carries no meaning: times, the status of what is created, and the opaque hash; texts that
/// are JSON are taken as what they say.
fn comparable(mut action: Value) -> Value {
    let creates = action["verb"] == "create";
    if let Some(fields) = action.as_object_mut() {
        fields.remove("patchType");
    }
    // In a patch what is null or empty says something: it takes away.
    if let Some(patch) = action.get_mut("patch") {
        *patch = patch.to_string().into();
    }
    if let Some(object) = action.get_mut("object") {
        if creates && let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
        normalise(object);
    }
    action
}

/// Removes times and the opaque hash, and parses JSON texts.
pub(crate) fn normalise(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // Unset ports are zero in the reference's objects.
            if fields.get("targetPort").is_some_and(|port| port == 0) {
                fields.remove("targetPort");
            }
            for key in [
                "lastTransitionTime",
                "creationTimestamp",
                "resourceVersion",
                "serving.knative.dev/deployment-hash",
            ] {
                fields.remove(key);
            }
            fields.values_mut().for_each(normalise);
        }
        Value::Array(items) => items.iter_mut().for_each(normalise),
        Value::String(text) if text.starts_with(['{', '[']) => {
            if let Ok(said) = serde_json::from_str(text) {
                *value = said;
            }
        }
        _ => {}
    }
}
