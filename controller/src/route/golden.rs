//! Routes against golden data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ember_api::networking::v1alpha1::{Certificate, Ingress};
use ember_api::serving::v1::{Configuration, Revision, Route, RouteStatus};
use ember_api::status::{Conditioned, Status};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::golden::{self, ConfigMaps, Given, Reconcile, Report, differences};
use crate::metadata::label;
use crate::route::plan::{self, Namespace};
use crate::route::rollout::Rollout;
use crate::route::traffic::{self, Lookup, RevisionTarget, TargetError};

/// Objects by name in place of the caches.
#[derive(Default)]
pub(crate) struct Objects {
    pub(crate) configurations: BTreeMap<String, Arc<Configuration>>,
    pub(crate) revisions: BTreeMap<String, Arc<Revision>>,
    services: BTreeMap<String, Arc<Service>>,
    endpoints: BTreeMap<String, Arc<Endpoints>>,
    ingresses: BTreeMap<String, Arc<Ingress>>,
    certificates: BTreeMap<String, Arc<Certificate>>,
}

fn by_name<K: kube::Resource>(objects: Vec<K>) -> BTreeMap<String, Arc<K>> {
    objects.into_iter().map(|o| (o.meta().name.clone().unwrap_or_default(), Arc::new(o))).collect()
}

impl Objects {
    pub(crate) fn of(given: &Given) -> Self {
        Self {
            configurations: by_name(given.all()),
            revisions: by_name(given.all()),
            services: by_name(given.all()),
            endpoints: by_name(given.all()),
            ingresses: by_name(given.all()),
            certificates: by_name(given.all()),
        }
    }
}

impl Lookup for Objects {
    fn configuration(&self, name: &str) -> Option<Arc<Configuration>> {
        self.configurations.get(name).cloned()
    }

    fn revision(&self, name: &str) -> Option<Arc<Revision>> {
        self.revisions.get(name).cloned()
    }
}

impl Namespace for Objects {
    fn service(&self, name: &str) -> Option<Arc<Service>> {
        self.services.get(name).cloned()
    }

    fn services_of(&self, route: &str) -> Vec<Arc<Service>> {
        let of_route = |s: &&Arc<Service>| label(&s.metadata, ember_api::labels::ROUTE) == Some(route);
        self.services.values().filter(of_route).cloned().collect()
    }

    fn endpoints(&self, name: &str) -> Option<Arc<Endpoints>> {
        self.endpoints.get(name).cloned()
    }

    fn ingress(&self, name: &str) -> Option<Arc<Ingress>> {
        self.ingresses.get(name).cloned()
    }

    fn certificate(&self, name: &str) -> Option<Arc<Certificate>> {
        self.certificates.get(name).cloned()
    }

    fn certificates(&self, key: &str, value: &str) -> Vec<Arc<Certificate>> {
        self.certificates.values().filter(|c| label(&c.metadata, key) == Some(value)).cloned().collect()
    }
}

/// What a case tracks, as the reference spells it.
pub(crate) fn tracked<'a>(
    references: impl IntoIterator<Item = &'a crate::tracker::Reference>,
) -> Vec<String> {
    let mut tracked: Vec<String> = references
        .into_iter()
        .map(|r| format!("serving.knative.dev/v1/{}/{}/{}", r.kind, r.key.namespace, r.key.name))
        .collect();
    tracked.sort();
    tracked
}

#[test]
fn golden_reconcile_route() {
    let mut report = Report::new("reconcile_route.json");
    for mut case in golden::cases::<Reconcile>("reconcile_route.json") {
        let (namespace, name) = case.given.key();
        let Some(route) = case.given.get::<Route>(namespace, name) else {
            report.check(&case.id, case.without_object());
            continue;
        };
        let configs = case.given.configs();
        let decided = plan::plan(&route, &Objects::of(&case.given), &configs, case.given.now());
        if let Some(panic) = case.panics() {
            // The reference crashes when a running rollout's percentage is lowered below what the oldest revision
            // has; there is nothing to compare with. Ours goes on with the revisions that are left.
            println!("skipped {}: the reference panics: {panic}", case.id);
            let state = decided.plan.steps.iter().find_map(|step| match &step.action.verb {
                ember_reconcile::apply::Verb::Update(o) if o["kind"] == "Ingress" => {
                    Rollout::parse(o["metadata"]["annotations"][ember_api::annotations::ROLLOUT].as_str()?)
                }
                _ => None,
            });
            let done = state.is_some_and(|s| s.is_done());
            report.check(&case.id, (!done).then(|| "  the rollout is not done".to_owned()));
            continue;
        }
        // Its fake API refuses a status for reasons that are the webhook's.
        if !case.given.fails("update routes")
            && case.expected_events().iter().any(|event| event.starts_with("Warning UpdateFailed "))
        {
            case.forget_api_errors();
        }
        // Placeholders have no order among themselves.
        case.ignore_order("kube");
        let mut failure = case.compare(&route, decided.plan).unwrap_or_default();
        let tracked = tracked(&decided.references);
        if tracked != case.tracked() {
            failure.push_str(&format!("\n  tracked: ours {tracked:?}, expected {:?}", case.tracked()));
        }
        report.check(&case.id, (!failure.is_empty()).then_some(failure));
    }
    report.finish();
}

#[derive(Deserialize)]
struct TrafficCase {
    id: String,
    #[serde(rename = "in")]
    given: TrafficGiven,
    expect: TrafficExpected,
}

#[derive(Deserialize)]
struct TrafficGiven {
    route: Value,
    #[serde(default, deserialize_with = "golden::or_default")]
    configurations: Vec<Value>,
    #[serde(default, deserialize_with = "golden::or_default")]
    revisions: Vec<Value>,
    #[serde(default, deserialize_with = "golden::or_default")]
    services: Vec<Value>,
    #[serde(default, deserialize_with = "golden::or_default")]
    configs: ConfigMaps,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TrafficExpected {
    #[serde(default)]
    targets: Value,
    #[serde(default)]
    status_traffic: Value,
    #[serde(default)]
    rollout: Value,
    #[serde(default, deserialize_with = "golden::or_default")]
    missing: Vec<String>,
    #[serde(default)]
    conditions: Option<Value>,
    #[serde(default)]
    is_failure: Option<bool>,
}

fn typed<T: serde::de::DeserializeOwned>(kind: &str, version: &str, mut value: Value) -> T {
    value["kind"] = kind.into();
    value["apiVersion"] = version.into();
    if value.get("spec").is_none() {
        value["spec"] = json!({});
    }
    serde_json::from_value(value).expect("an object")
}

const SERVING: &str = "serving.knative.dev/v1";

fn target_json(target: &RevisionTarget) -> Value {
    json!({
        "revisionName": target.revision_name,
        "configurationName": Some(&target.configuration_name).filter(|n| !n.is_empty()),
        "tag": Some(&target.tag).filter(|t| !t.is_empty()),
        "latestRevision": target.latest,
        "percent": target.percent,
        "protocol": target.protocol.as_str(),
    })
}

#[test]
fn golden_traffic() {
    let mut report = Report::new("traffic.json");
    let now = Timestamp::UNIX_EPOCH;
    for case in golden::cases::<TrafficCase>("traffic.json") {
        let mut route: Route = typed("Route", SERVING, case.given.route);
        let all = |kind: &str, objects: Vec<Value>| -> Vec<Value> {
            objects.into_iter().map(|o| typed::<Value>(kind, SERVING, o)).collect()
        };
        let objects = Objects {
            configurations: by_name(
                all("Configuration", case.given.configurations)
                    .into_iter()
                    .map(|o| serde_json::from_value(o).expect("a Configuration"))
                    .collect(),
            ),
            revisions: by_name(
                all("Revision", case.given.revisions)
                    .into_iter()
                    .map(|o| serde_json::from_value(o).expect("a Revision"))
                    .collect(),
            ),
            services: by_name(case.given.services.into_iter().map(|o| typed("Service", "v1", o)).collect()),
            ..Objects::default()
        };
        let configs = golden::configs(&case.given.configs);
        let resolved = traffic::resolve(&route, &objects);

        let targets: Value = resolved
            .targets
            .iter()
            .map(|(tag, targets)| (tag.clone(), targets.iter().map(target_json).collect::<Value>()))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let mut wrong = differences("targets", &targets, &case.expect.targets);
        let missing: BTreeSet<String> = resolved
            .configurations
            .iter()
            .filter(|name| objects.configuration(name).is_none())
            .map(|name| format!("Configuration/{name}"))
            .chain(
                resolved
                    .revisions
                    .iter()
                    .filter(|name| objects.revision(name).is_none())
                    .map(|name| format!("Revision/{name}")),
            )
            .collect();
        if missing != BTreeSet::from_iter(case.expect.missing.clone()) {
            wrong.push(format!("  missing: ours {missing:?}, expected {:?}", case.expect.missing));
        }
        if case.expect.is_failure != resolved.error.as_ref().map(TargetError::is_failure) {
            wrong.push(format!("  error: ours {:?}, expected {:?}", resolved.error, case.expect.is_failure));
        }
        if resolved.error.is_none() {
            let rollout = serde_json::to_value(resolved.rollout()).expect("JSON");
            wrong.extend(differences("rollout", &rollout, &case.expect.rollout));
        }
        // Conditions and URLs come with the whole plan.
        route.status = Some(RouteStatus::default());
        route.status_mut_or_default().initialize_conditions(now);
        route.metadata.generation = Some(0);
        let decided = plan::plan(&route, &objects, &configs, now);
        let status = decided.plan.object.and_then(|r| r.status).unwrap_or_default();
        if resolved.error.is_none() {
            let traffic = serde_json::to_value(&status.traffic).expect("JSON");
            wrong.extend(differences("statusTraffic", &traffic, &case.expect.status_traffic));
        }
        if let Some(expected) = &case.expect.conditions {
            let mut conditions = serde_json::to_value(&status.conditions).expect("JSON");
            golden::normalise(&mut conditions);
            wrong.extend(differences("conditions", &conditions, expected));
        }
        report.check(&case.id, (!wrong.is_empty()).then(|| wrong.join("\n")));
    }
    report.finish();
}

#[derive(Deserialize)]
struct StepCase {
    id: String,
    cur: Rollout,
    #[serde(default)]
    prev: Option<Rollout>,
    now: i64,
    #[serde(default)]
    expect: Value,
}

#[derive(Deserialize)]
struct ObserveCase {
    id: String,
    rollout: Rollout,
    now: i64,
    duration: f64,
    expect: Value,
}

#[derive(Deserialize)]
struct ValidateCase {
    id: String,
    rollout: Rollout,
    valid: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Timeline {
    duration_secs: f64,
    timeline: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    now: i64,
    event: String,
    rollout: Value,
}

/// The state without what the reference forgets: under a tag that `previous` does not have, all but the first.
fn forgetting(state: &Rollout, previous: &Option<Rollout>) -> Rollout {
    let known: BTreeSet<&str> =
        previous.iter().flat_map(|p| &p.configurations).map(|c| c.tag.as_str()).collect();
    let mut seen = BTreeSet::new();
    let mut state = state.clone();
    state.configurations.retain(|c| known.contains(c.tag.as_str()) || seen.insert(c.tag.clone()));
    state
}

fn state(rollout: &Rollout) -> Value {
    serde_json::to_value(rollout).expect("JSON")
}

#[test]
fn golden_rollout() {
    let mut report = Report::new("rollout.json");
    for case in golden::cases::<StepCase>("rollout.json") {
        let next = case.cur.step(case.prev.as_ref(), case.now);
        let Some(expected) = case.expect.get("rollout") else {
            // The reference crashes here; ours has to come out with shares that add up.
            println!("skipped {}: the reference panics", case.id);
            report.check(&case.id, (!next.is_valid()).then(|| format!("  invalid state {next:?}")));
            continue;
        };
        let mut wrong = differences("rollout", &state(&next), expected);
        // The reference forgets all but the first Configuration of a tag that is new in this step.
        if !wrong.is_empty()
            && differences("rollout", &state(&forgetting(&next, &case.prev)), expected).is_empty()
        {
            println!("{}: the reference forgets Configurations", case.id);
            wrong.clear();
        }
        if case.expect["done"] != next.is_done() {
            wrong.push(format!("  done: ours {}", next.is_done()));
        }
        if case.expect["nextStepTime"] != next.next_step_time().unwrap_or(0) {
            wrong.push(format!(
                "  nextStepTime: ours {:?}, expected {}",
                next.next_step_time(),
                case.expect["nextStepTime"]
            ));
        }
        report.check(&case.id, (!wrong.is_empty()).then(|| wrong.join("\n")));
    }
    for case in golden::list::<ObserveCase>("rollout.json", "observe") {
        let mut rollout = case.rollout;
        rollout.observe_ready(case.now, case.duration);
        let wrong = differences("observe", &state(&rollout), &case.expect);
        report.check(&case.id, (!wrong.is_empty()).then(|| wrong.join("\n")));
    }
    for case in golden::list::<ValidateCase>("rollout.json", "validate") {
        let valid = case.rollout.is_valid();
        report.check(&case.id, (valid != case.valid).then(|| format!("  valid: ours {valid}")));
    }
    for line in golden::list::<Timeline>("rollout.json", "timelines") {
        let goal: Rollout = serde_json::from_value(json!({"configurations": [{
            "configurationName": "c", "percent": 100, "revisions": [{"revisionName": "r2", "percent": 100}]}]}))
        .expect("a state");
        let mut current: Rollout = serde_json::from_value(json!({"configurations": [{
            "configurationName": "c", "percent": 100, "revisions": [{"revisionName": "r1", "percent": 100}]}]}))
        .expect("a state");
        let mut wrong = Vec::new();
        for (i, event) in line.timeline.iter().enumerate() {
            if event.event == "ingress-ready" {
                current.observe_ready(event.now, line.duration_secs);
            } else {
                current = goal.step(Some(&current), event.now);
            }
            wrong.extend(differences(&format!("{i}"), &state(&current), &event.rollout));
        }
        report.check(&format!("{}s", line.duration_secs), (!wrong.is_empty()).then(|| wrong.join("\n")));
    }
    report.finish();
}

#[derive(Deserialize)]
struct ExpandCase {
    hosts: Vec<String>,
    expect: Vec<String>,
}

#[test]
fn golden_expanded_hosts() {
    let mut report = Report::new("subset.json, expandedHosts");
    for case in golden::list::<ExpandCase>("subset.json", "expandedHosts") {
        let domain = ember_api::configmaps::domain::Domain::default();
        let mut ours: Vec<String> =
            case.hosts.iter().flat_map(|host| ember_api::domains::expanded_hosts(&domain, host)).collect();
        ours.sort_unstable();
        report.check(&case.hosts.join(","), (ours != case.expect).then(|| format!("  ours {ours:?}")));
    }
    report.finish();
}
