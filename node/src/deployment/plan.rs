//! Which pods a Deployment gets and loses. Pods belong to the Deployment itself: there are no ReplicaSets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sha2::{Digest, Sha256};

/// The label that tells the pods of one template from those of another.
pub const TEMPLATE_HASH: &str = "pod-template-hash";

/// What to do for one Deployment, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Names of pods to delete.
    pub delete: Vec<String>,
    /// Pods to create.
    pub create: Vec<Pod>,
}

/// How many pods a Deployment has, as its status counts them. Pods that are being deleted or have ended for good do
/// not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub total: i32,
    /// Of the current template.
    pub updated: i32,
    /// With condition Ready.
    pub ready: i32,
    /// Ready for `minReadySeconds`.
    pub available: i32,
}

/// `spec.replicas`, 1 if absent.
#[must_use]
pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0)
}

/// The hash of the pod template: ten characters that fit a label and a name.
#[must_use]
pub fn template_hash(template: &PodTemplateSpec) -> String {
    // Kubernetes' alphabet for generated names: no vowels, nothing that looks like another character.
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    // A template that came from JSON goes back to it.
    let json = serde_json::to_vec(template).unwrap_or_default();
    Sha256::digest(&json)
        .iter()
        .take(10)
        .map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()]))
        .collect()
}

/// The name that stands for the ReplicaSet in conditions: `<deployment>-<hash>`.
#[must_use]
pub fn replica_set_name(deployment: &Deployment, hash: &str) -> String {
    format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())
}

/// Whether `selector` selects an object with `labels`. An empty selector selects everything.
#[must_use]
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|e| {
            let value = labels.get(&e.key);
            let listed = |value: &String| e.values.iter().flatten().any(|v| v == value);
            match e.operator.as_str() {
                "In" => value.is_some_and(listed),
                "NotIn" => !value.is_some_and(listed),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Whether the pod's controller is the object with this UID.
#[must_use]
pub fn is_controlled_by(pod: &Pod, uid: Option<&str>) -> bool {
    uid.is_some()
        && pod
            .metadata
            .owner_references
            .iter()
            .flatten()
            .any(|o| o.controller == Some(true) && Some(o.uid.as_str()) == uid)
}

/// When the pod became ready; `None` if it is not.
#[must_use]
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let condition = pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "Ready")?;
    (condition.status == "True")
        .then(|| condition.last_transition_time.as_ref().map_or(Timestamp::MIN, |t| t.0))
}

fn is_active(pod: &Pod) -> bool {
    let ended = pod
        .status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .is_some_and(|p| p == "Failed" || p == "Succeeded");
    pod.metadata.deletion_timestamp.is_none() && !ended
}

fn is_of_template(pod: &Pod, hash: &str) -> bool {
    pod.metadata.labels.as_ref().and_then(|l| l.get(TEMPLATE_HASH)).is_some_and(|h| h == hash)
}

/// When a ready pod becomes available.
fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    let since = ready_since(pod)?;
    since.checked_add(jiff::SignedDuration::from_secs(i64::from(min_ready_seconds))).ok().or(Some(since))
}

fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_at(pod, min_ready_seconds).is_some_and(|at| min_ready_seconds == 0 || at <= now)
}

fn min_ready_seconds(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
}

/// The earliest time after `now` when a pod becomes available by time alone.
#[must_use]
pub fn next_available(deployment: &Deployment, pods: &[Arc<Pod>], now: Timestamp) -> Option<Timestamp> {
    let wait = min_ready_seconds(deployment);
    if wait == 0 {
        return None;
    }
    pods.iter().filter(|p| is_active(p)).filter_map(|p| available_at(p, wait)).filter(|at| *at > now).min()
}

/// Counts `pods`, all of which are the Deployment's.
#[must_use]
pub fn count(deployment: &Deployment, hash: &str, pods: &[Arc<Pod>], now: Timestamp) -> Counts {
    let wait = min_ready_seconds(deployment);
    let mut counts = Counts::default();
    for pod in pods.iter().filter(|p| is_active(p)) {
        counts.total += 1;
        counts.updated += i32::from(is_of_template(pod, hash));
        counts.ready += i32::from(ready_since(pod).is_some());
        counts.available += i32::from(is_available(pod, wait, now));
    }
    counts
}

/// How many pods a rolling update may have above and lack below `spec.replicas`: Kubernetes' defaults are 25 % each.
#[must_use]
pub fn bounds(deployment: &Deployment) -> (i32, i32) {
    let desired = replicas(deployment);
    let rolling =
        deployment.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    let amount = |value: Option<&IntOrString>, up: bool| {
        let percent = match value {
            Some(IntOrString::Int(number)) => return (*number).max(0),
            Some(IntOrString::String(text)) => text.trim_end_matches('%').parse::<i32>().unwrap_or(25),
            None => 25,
        };
        let scaled = desired * percent;
        if up { (scaled + 99) / 100 } else { scaled / 100 }
    };
    let surge = amount(rolling.and_then(|r| r.max_surge.as_ref()), true);
    let unavailable = amount(rolling.and_then(|r| r.max_unavailable.as_ref()), false);
    // Both zero would never move.
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// What brings `pods`, all of which are the Deployment's, closer to its spec.
#[must_use]
pub fn plan(deployment: &Deployment, hash: &str, pods: &[Arc<Pod>], node: &str, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if deployment.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let desired = replicas(deployment);
    let wait = min_ready_seconds(deployment);
    let recreate = deployment
        .spec
        .as_ref()
        .and_then(|s| s.strategy.as_ref())
        .is_some_and(|s| s.type_.as_deref() == Some("Recreate"));

    // Pods that ended for good only occupy their slot.
    plan.delete.extend(
        pods.iter()
            .filter(|p| p.metadata.deletion_timestamp.is_none() && !is_active(p))
            .filter_map(|p| p.metadata.name.clone()),
    );
    let (mut new, mut old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
        pods.iter().filter(|p| is_active(p)).partition(|p| is_of_template(p, hash));
    for group in [&mut new, &mut old] {
        group.sort_by(|a, b| deletion_rank(a).cmp(&deletion_rank(b)));
    }
    let as_i32 = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let (surge, max_unavailable) = bounds(deployment);

    // The current template: up to the bound, or down to what is wanted.
    let missing = desired - as_i32(new.len());
    let room = if recreate {
        if pods.iter().any(|p| !is_of_template(p, hash)) { 0 } else { missing }
    } else {
        desired + surge - as_i32(new.len() + old.len())
    };
    for _ in 0..missing.min(room) {
        let taken = pods.iter().filter_map(|p| p.metadata.name.as_deref());
        let planned = plan.create.iter().filter_map(|p| p.metadata.name.as_deref());
        let name = free_slot(&replica_set_name(deployment, hash), &taken.chain(planned).collect());
        plan.create.push(pod(deployment, hash, name, node));
    }
    if missing < 0 {
        let surplus = usize::try_from(-missing).unwrap_or(0);
        plan.delete.extend(new.drain(..surplus).filter_map(|p| p.metadata.name.clone()));
    }

    // Older templates: first those that serve nobody, then as many as the available ones can replace.
    let available = |group: &[&Arc<Pod>]| as_i32(group.iter().filter(|p| is_available(p, wait, now)).count());
    let minimum = if recreate || desired == 0 { 0 } else { desired - max_unavailable };
    let mut spare = available(&new) + available(&old) - minimum;
    for pod in old {
        let serves = is_available(pod, wait, now);
        if recreate || desired == 0 || !serves || spare > 0 {
            spare -= i32::from(serves);
            plan.delete.extend(pod.metadata.name.clone());
        }
    }
    plan
}

/// Those with the lowest rank go first: not ready before ready, then young before old, then high slots before low.
fn deletion_rank(pod: &Pod) -> impl Ord + use<'_> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (ready_since(pod).is_some(), std::cmp::Reverse(created), std::cmp::Reverse((name.len(), name)))
}

/// The first name `<prefix>-<slot>` that is not taken. Names are deterministic, so that a repeated create is answered
/// AlreadyExists instead of making one pod too many.
fn free_slot(prefix: &str, taken: &BTreeSet<&str>) -> String {
    let mut slot = 0_u32;
    loop {
        let name = format!("{prefix}-{slot}");
        if !taken.contains(name.as_str()) {
            return name;
        }
        slot += 1;
    }
}

fn pod(deployment: &Deployment, hash: &str, name: String, node: &str) -> Pod {
    let template = deployment.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let metadata = template.metadata.unwrap_or_default();
    let mut labels = metadata.labels.unwrap_or_default();
    labels.insert(TEMPLATE_HASH.to_owned(), hash.to_owned());
    let mut spec = template.spec.unwrap_or_default();
    spec.node_name = Some(node.to_owned());
    Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: metadata.annotations,
            owner_references: Some(vec![OwnerReference {
                api_version: "apps/v1".to_owned(),
                kind: "Deployment".to_owned(),
                name: deployment.metadata.name.clone().unwrap_or_default(),
                uid: deployment.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(replicas: Option<i32>) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "hello", "namespace": "default", "uid": "d"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "hello"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}},
                "template": {"metadata": {"labels": {"app": "hello"}}, "spec": {"containers": [{"name": "c"}]}}
            }
        }))
        .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn make(hash: &str, slot: u32, ready: bool, created: i64) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {
                    "name": format!("hello-{hash}-{slot}"), "labels": {TEMPLATE_HASH: hash},
                    "creationTimestamp": at(created).to_string()
                },
                "status": {"conditions": [{
                    "type": "Ready", "status": if ready { "True" } else { "False" },
                    "lastTransitionTime": at(created + 1).to_string()
                }]}
            }))
            .unwrap(),
        )
    }

    fn terminating(pod: &Arc<Pod>) -> Arc<Pod> {
        let mut pod = Pod::clone(pod);
        pod.metadata.deletion_timestamp = serde_json::from_value(json!(at(9).to_string())).unwrap();
        Arc::new(pod)
    }

    fn names(plan: &Plan) -> (Vec<&str>, Vec<&str>) {
        (
            plan.create.iter().map(|p| p.metadata.name.as_deref().unwrap()).collect(),
            plan.delete.iter().map(String::as_str).collect(),
        )
    }

    fn run(deployment: &Deployment, pods: &[Arc<Pod>]) -> Plan {
        plan(deployment, "new", pods, "node", at(100))
    }

    #[test]
    fn scales_up_in_the_first_free_slots() {
        let plan = run(&deployment(Some(3)), &[make("new", 1, true, 0)]);
        assert_eq!(names(&plan), (vec!["hello-new-0", "hello-new-2"], vec![]));
        let pod = &plan.create[0];
        assert_eq!(pod.metadata.labels.as_ref().unwrap()[TEMPLATE_HASH], "new");
        assert!(is_controlled_by(pod, Some("d")));
        assert_eq!(pod.spec.as_ref().unwrap().node_name.as_deref(), Some("node"));
    }

    #[test]
    fn absent_replicas_is_one() {
        assert_eq!(names(&run(&deployment(None), &[])), (vec!["hello-new-0"], vec![]));
        assert_eq!(names(&run(&deployment(Some(0)), &[])), (vec![], vec![]));
    }

    #[test]
    fn scales_down_not_ready_then_young_ones() {
        let pods = [
            make("new", 0, true, 0),
            make("new", 1, false, 0),
            make("new", 2, true, 5),
            make("new", 3, true, 1),
        ];
        assert_eq!(names(&run(&deployment(Some(3)), &pods)).1, ["hello-new-1"]);
        assert_eq!(names(&run(&deployment(Some(2)), &pods)).1, ["hello-new-1", "hello-new-2"]);
        assert_eq!(names(&run(&deployment(Some(0)), &pods)).1.len(), 4);
    }

    #[test]
    fn a_terminating_pod_keeps_its_slot_and_does_not_count() {
        let pods = [terminating(&make("new", 0, true, 0))];
        assert_eq!(names(&run(&deployment(Some(1)), &pods)), (vec!["hello-new-1"], vec![]));
        assert_eq!(count(&deployment(Some(1)), "new", &pods, at(100)), Counts::default());
    }

    #[test]
    fn an_update_surges_and_keeps_what_is_available() {
        let old = [make("old", 0, true, 0), make("old", 1, true, 0)];
        assert_eq!(names(&run(&deployment(Some(2)), &old)), (vec!["hello-new-0"], vec![]));
        let waiting = [old[0].clone(), old[1].clone(), make("new", 0, false, 2)];
        assert_eq!(names(&run(&deployment(Some(2)), &waiting)), (vec![], vec![]));
        let ready = [old[0].clone(), old[1].clone(), make("new", 0, true, 2)];
        assert_eq!(names(&run(&deployment(Some(2)), &ready)), (vec![], vec!["hello-old-1"]));
        let broken = [make("old", 0, false, 0), make("new", 0, false, 2)];
        assert_eq!(names(&run(&deployment(Some(1)), &broken)), (vec![], vec!["hello-old-0"]));
    }

    #[test]
    fn recreate_waits_until_the_old_ones_are_gone() {
        let mut deployment = deployment(Some(1));
        deployment.spec.as_mut().unwrap().strategy =
            serde_json::from_value(json!({"type": "Recreate"})).unwrap();
        let old = make("old", 0, true, 0);
        assert_eq!(names(&run(&deployment, std::slice::from_ref(&old))), (vec![], vec!["hello-old-0"]));
        assert_eq!(names(&run(&deployment, &[terminating(&old)])), (vec![], vec![]));
        assert_eq!(names(&run(&deployment, &[])), (vec!["hello-new-0"], vec![]));
    }

    #[test]
    fn the_hash_depends_on_the_template_alone() {
        let hash = |d: &Deployment| template_hash(&d.spec.as_ref().unwrap().template);
        assert_eq!(hash(&deployment(Some(1))), hash(&deployment(Some(5))));
        let mut other = deployment(Some(1));
        other.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some("x".into());
        assert_ne!(hash(&deployment(Some(1))), hash(&other));
        assert_eq!(hash(&other).len(), 10);
    }

    #[test]
    fn selectors() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let check = |value: serde_json::Value| selects(&serde_json::from_value(value).unwrap(), &labels);
        assert!(check(json!({})));
        assert!(check(json!({"matchLabels": {"a": "1"}})));
        assert!(!check(json!({"matchLabels": {"a": "2"}})));
        assert!(check(json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]})));
        assert!(check(json!({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]})));
        assert!(!check(json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]})));
    }
}
