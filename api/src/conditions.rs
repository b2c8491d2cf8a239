//! Status conditions and the living condition set that keeps `Ready` in step with what it depends on.

use std::ops::Deref;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::omitempty::{is_empty, null_as_empty, string_enum};

/// The happy condition of every Knative kind that runs on.
pub const READY: &str = "Ready";

/// Reason of `Ready` between seeing a new generation and having reconciled it.
pub const NEW_OBSERVED_GEN_FAILURE: &str = "NewObservedGenFailure";
const NEW_GENERATION_MESSAGE: &str = "unsuccessfully observed a new generation";

string_enum! {
    /// Whether a condition holds.
    ConditionStatus {
        /// It holds.
        True = "True",
        /// It does not hold.
        False = "False",
        /// Not known, or not yet.
        #[default]
        Unknown = "Unknown",
    }
}

string_enum! {
    /// How bad it is when a condition is not `True`.
    ConditionSeverity {
        /// The object is not usable (the empty string).
        #[default]
        Error = "",
        /// Something to look at.
        Warning = "Warning",
        /// Merely informative.
        Info = "Info",
    }
}

/// One condition of an object's status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What the condition is about, e.g. `Ready`.
    #[serde(rename = "type")]
    pub type_: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// How bad it is when it does not.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub severity: ConditionSeverity,
    /// When anything in the condition last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub last_transition_time: Option<Time>,
    /// A word for the cause; empty when there is nothing to say.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The cause in a sentence.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Condition {
    /// Whether the status is `True`.
    #[must_use]
    pub fn is_true(&self) -> bool {
        self.status == ConditionStatus::True
    }

    /// Whether the status is `False`.
    #[must_use]
    pub fn is_false(&self) -> bool {
        self.status == ConditionStatus::False
    }

    /// Whether the status is `Unknown`.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.status == ConditionStatus::Unknown
    }

    /// Equality that leaves the transition time out.
    #[must_use]
    pub fn same_state(&self, other: &Self) -> bool {
        self.type_ == other.type_
            && self.status == other.status
            && self.severity == other.severity
            && self.reason == other.reason
            && self.message == other.message
    }
}

/// The conditions of an object, at most one of each type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Conditions(Vec<Condition>);

impl Deref for Conditions {
    type Target = [Condition];

    fn deref(&self) -> &[Condition] {
        &self.0
    }
}

impl From<Vec<Condition>> for Conditions {
    fn from(conditions: Vec<Condition>) -> Self {
        Self(conditions)
    }
}

impl<'a> IntoIterator for &'a Conditions {
    type Item = &'a Condition;
    type IntoIter = std::slice::Iter<'a, Condition>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl Conditions {
    /// The condition of that type.
    #[must_use]
    pub fn get(&self, type_: &str) -> Option<&Condition> {
        self.0.iter().find(|condition| condition.type_ == type_)
    }

    /// Whether the condition of that type is there and `True`.
    #[must_use]
    pub fn is_true(&self, type_: &str) -> bool {
        self.get(type_).is_some_and(Condition::is_true)
    }

    /// Whether the condition of that type is there and `False`.
    #[must_use]
    pub fn is_false(&self, type_: &str) -> bool {
        self.get(type_).is_some_and(Condition::is_false)
    }

    /// Whether the condition of that type is `Unknown` or not there at all.
    #[must_use]
    pub fn is_unknown(&self, type_: &str) -> bool {
        self.get(type_).is_none_or(Condition::is_unknown)
    }

    /// How long the condition has been in its present state, if it has that status.
    #[must_use]
    pub fn held_for(&self, type_: &str, status: ConditionStatus, now: Timestamp) -> Option<SignedDuration> {
        let condition = self.get(type_).filter(|condition| condition.status == status)?;
        // A condition without a time has been so since ever.
        let since = condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        Some(now.duration_since(since))
    }

    /// Puts a condition in, unless the present one differs by the time only. Keeps the list sorted by type.
    pub fn set(&mut self, mut condition: Condition, now: Timestamp) {
        if self.get(&condition.type_).is_some_and(|present| present.same_state(&condition)) {
            return;
        }
        condition.last_transition_time = Some(Time(self.tick(now)));
        self.0.retain(|other| other.type_ != condition.type_);
        let at = self.0.partition_point(|other| other.type_ < condition.type_);
        self.0.insert(at, condition);
    }

    /// Takes a condition out.
    pub fn remove(&mut self, type_: &str) {
        self.0.retain(|condition| condition.type_ != type_);
    }

    /// `now`, or just after the newest transition of the same moment: which condition changed last must stay known
    /// although a whole reconcile runs at one `now`.
    fn tick(&self, now: Timestamp) -> Timestamp {
        let soon = now + SignedDuration::from_millis(1);
        self.0
            .iter()
            .filter_map(|condition| condition.last_transition_time.as_ref())
            .map(|time| time.0)
            .filter(|time| (now..soon).contains(time))
            .max()
            .map_or(now, |latest| latest + SignedDuration::from_nanos(1))
    }

    /// Ends a reconcile: a condition that is again what it was at the start keeps its old time, every other one
    /// gets `now`.
    pub fn settle(&mut self, read: &Self, now: Timestamp) {
        for condition in &mut self.0 {
            condition.last_transition_time = match read.get(&condition.type_) {
                Some(before) if before.same_state(condition) => before.last_transition_time.clone(),
                _ => Some(Time(now)),
            };
        }
    }

    /// Equality that leaves transition times and order out; what decides whether a status is written.
    #[must_use]
    pub fn same_state(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.iter().all(|mine| other.get(&mine.type_).is_some_and(|theirs| theirs.same_state(mine)))
    }
}

/// Which conditions a kind's happy condition depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConditionSet<'a> {
    happy: &'a str,
    dependents: &'a [&'a str],
}

impl<'a> ConditionSet<'a> {
    /// The set of something that runs on: `Ready` and its dependents.
    #[must_use]
    pub const fn living(dependents: &'a [&'a str]) -> Self {
        Self { happy: READY, dependents }
    }

    /// The condition that sums up the others.
    #[must_use]
    pub const fn happy(&self) -> &'a str {
        self.happy
    }

    /// What the happy condition depends on.
    #[must_use]
    pub const fn dependents(&self) -> &'a [&'a str] {
        self.dependents
    }

    /// Changes conditions by the rules of this set, at the time `now`.
    pub fn manage<'c>(self, conditions: &'c mut Conditions, now: Timestamp) -> Manager<'a, 'c> {
        Manager { set: self, conditions, now }
    }

    fn is_dependent(&self, type_: &str) -> bool {
        self.dependents.contains(&type_)
    }

    fn severity(&self, type_: &str) -> ConditionSeverity {
        if type_ == self.happy || self.is_dependent(type_) {
            ConditionSeverity::Error
        } else {
            ConditionSeverity::Info
        }
    }
}

/// Marks conditions and keeps the happy condition in step.
#[derive(Debug)]
pub struct Manager<'a, 'c> {
    set: ConditionSet<'a>,
    conditions: &'c mut Conditions,
    now: Timestamp,
}

impl Manager<'_, '_> {
    /// Adds what is missing of the set: as `Unknown`, dependents as `True` where the happy condition is `True`.
    pub fn init(&mut self) {
        if self.conditions.get(self.set.happy).is_none() {
            self.put(self.set.happy, ConditionStatus::Unknown, "", "");
        }
        let status = if self.conditions.is_true(self.set.happy) {
            ConditionStatus::True
        } else {
            ConditionStatus::Unknown
        };
        for dependent in self.set.dependents {
            if self.conditions.get(dependent).is_none() {
                self.put(dependent, status, "", "");
            }
        }
    }

    /// Starts a reconcile: [`Manager::init`], and when the generation is new, `Ready` is `Unknown` until it has been
    /// dealt with.
    pub fn begin(&mut self, observed_generation: i64, generation: i64) {
        self.init();
        if observed_generation != generation {
            self.mark_unknown(self.set.happy, NEW_OBSERVED_GEN_FAILURE, NEW_GENERATION_MESSAGE);
        }
    }

    /// The condition holds.
    pub fn mark_true(&mut self, type_: &str) {
        self.mark_true_with_reason(type_, "", "");
    }

    /// The condition holds, and there is something to say about it.
    pub fn mark_true_with_reason(&mut self, type_: &str, reason: &str, message: &str) {
        self.put(type_, ConditionStatus::True, reason, message);
        self.recompute_happiness(type_);
    }

    /// It is not known whether the condition holds. The happy condition follows, unless something else has failed.
    pub fn mark_unknown(&mut self, type_: &str, reason: &str, message: &str) {
        self.put(type_, ConditionStatus::Unknown, reason, message);
        if self.set.dependents.iter().any(|dependent| self.conditions.is_false(dependent)) {
            if !self.conditions.is_false(self.set.happy) {
                self.mark_false(self.set.happy, reason, message);
            }
        } else if self.set.is_dependent(type_) {
            self.put(self.set.happy, ConditionStatus::Unknown, reason, message);
        }
    }

    /// The condition does not hold. The happy condition follows.
    pub fn mark_false(&mut self, type_: &str, reason: &str, message: &str) {
        self.put(type_, ConditionStatus::False, reason, message);
        if self.set.is_dependent(type_) {
            self.put(self.set.happy, ConditionStatus::False, reason, message);
        }
    }

    /// Takes over another object's condition under the name `type_`; one that is `True` has nothing to add.
    pub fn mirror(&mut self, type_: &str, source: &Condition) {
        match source.status {
            ConditionStatus::True => self.mark_true(type_),
            ConditionStatus::False => self.mark_false(type_, &source.reason, &source.message),
            ConditionStatus::Unknown => self.mark_unknown(type_, &source.reason, &source.message),
        }
    }

    /// Puts a condition in as it is, leaving the happy condition alone.
    pub fn set(&mut self, condition: Condition) {
        self.conditions.set(condition, self.now);
    }

    fn put(&mut self, type_: &str, status: ConditionStatus, reason: &str, message: &str) {
        let condition = Condition {
            type_: type_.to_owned(),
            status,
            severity: self.set.severity(type_),
            last_transition_time: None,
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        self.conditions.set(condition, self.now);
    }

    fn recompute_happiness(&mut self, type_: &str) {
        if let Some(unhappy) = self.unhappy_dependent() {
            self.put(self.set.happy, unhappy.status, &unhappy.reason, &unhappy.message);
        } else if type_ != self.set.happy {
            self.put(self.set.happy, ConditionStatus::True, "", "");
        }
    }

    /// The dependent that explains unhappiness: `False` before `Unknown`, the latest transition first; dependents
    /// that are missing count as `Unknown`.
    fn unhappy_dependent(&self) -> Option<Condition> {
        if self.set.dependents.is_empty() {
            return None;
        }
        // Whoever set a condition without a severity meant it to count.
        let mut present: Vec<&Condition> = self
            .conditions
            .iter()
            .filter(|condition| {
                condition.severity == ConditionSeverity::Error && condition.type_ != self.set.happy
            })
            .collect();
        present.sort_by(|a, b| b.last_transition_time.cmp(&a.last_transition_time));
        let found = present
            .iter()
            .find(|condition| condition.is_false())
            .or_else(|| present.iter().find(|condition| condition.is_unknown()));
        match found {
            Some(&condition) => Some(condition.clone()),
            None if present.len() < self.set.dependents.len() => Some(Condition::default()),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::golden;

    fn now() -> Timestamp {
        Timestamp::from_second(1_600_000_000).unwrap()
    }

    #[test]
    fn golden_conditions() {
        let mut failures = Vec::new();
        let mut checked = 0;
        for case in golden::cases("conditions") {
            let dependents: Vec<&str> = case["dependents"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|name| name.as_str())
                .collect();
            let set = ConditionSet::living(&dependents);
            let mut conditions = Conditions::default();
            let steps = case["expectSteps"].as_array().cloned().unwrap_or_default();
            for (index, (op, expect)) in case["ops"].as_array().into_iter().flatten().zip(&steps).enumerate()
            {
                checked += 1;
                let text = |key: &str| op[key].as_str().unwrap_or_default();
                let (type_, reason, message) = (text("Type"), text("Reason"), text("Message"));
                let mut manager = set.manage(&mut conditions, now());
                match text("Op") {
                    "init" => manager.init(),
                    "true" => manager.mark_true(type_),
                    "trueReason" => manager.mark_true_with_reason(type_, reason, message),
                    "false" => manager.mark_false(type_, reason, message),
                    "unknown" => manager.mark_unknown(type_, reason, message),
                    other => panic!("unknown operation {other}"),
                }
                let got = golden::without_times(serde_json::to_value(&conditions).unwrap());
                if got != *expect {
                    failures.push(format!("{} step {index}: got {got}, want {expect}", case["id"]));
                }
            }
        }
        golden::report("conditions", checked, &failures);
    }

    proptest::proptest! {
        #[test]
        fn ready_sums_up_its_dependents(ops in proptest::collection::vec((0..4usize, 0..3u8), 0..24)) {
            const DEPENDENTS: &[&str] = &["A", "B", "C"];
            // The fourth is none of Ready's business.
            const ALL: &[&str] = &["A", "B", "C", "Other"];
            let mut conditions = Conditions::default();
            let mut manager = ConditionSet::living(DEPENDENTS).manage(&mut conditions, now());
            manager.init();
            for (which, op) in ops {
                match op {
                    0 => manager.mark_true(ALL[which]),
                    1 => manager.mark_unknown(ALL[which], "Waiting", ""),
                    _ => manager.mark_false(ALL[which], "Broken", ""),
                }
            }
            let expect = if DEPENDENTS.iter().any(|name| conditions.is_false(name)) {
                ConditionStatus::False
            } else if DEPENDENTS.iter().any(|name| conditions.is_unknown(name)) {
                ConditionStatus::Unknown
            } else {
                ConditionStatus::True
            };
            assert_eq!(conditions.get(READY).map(|ready| ready.status), Some(expect));
            assert!(conditions.is_sorted_by(|a, b| a.type_ < b.type_));
        }
    }

    #[test]
    fn settling_keeps_the_time_of_what_came_back() {
        let set = ConditionSet::living(&["A", "B"]);
        let mut conditions = Conditions::default();
        let mut manager = set.manage(&mut conditions, now());
        manager.mark_true("A");
        manager.mark_true("B");
        conditions.settle(&Conditions::default(), now());
        let read = conditions.clone();

        let later = now() + SignedDuration::from_secs(60);
        let mut manager = set.manage(&mut conditions, later);
        manager.mark_unknown("A", "Wait", "");
        manager.mark_true("A");
        manager.mark_false("B", "Broken", "");
        conditions.settle(&read, later);

        let time = |type_: &str| conditions.get(type_).unwrap().last_transition_time.as_ref().unwrap().0;
        assert_eq!(time("A"), now());
        assert_eq!(time("B"), later);
        assert_eq!(time(READY), later);
    }

    #[test]
    fn a_new_generation_makes_ready_unknown() {
        let set = ConditionSet::living(&["A"]);
        let mut conditions = Conditions::default();
        set.manage(&mut conditions, now()).mark_true("A");
        set.manage(&mut conditions, now()).begin(1, 2);
        assert_eq!(conditions.get(READY).unwrap().reason, NEW_OBSERVED_GEN_FAILURE);
        assert!(conditions.is_unknown(READY));
        set.manage(&mut conditions, now()).mark_true("A");
        assert!(conditions.is_true(READY));
    }

    #[test]
    fn malformed_status_reads_as_unknown() {
        let condition: Condition =
            serde_json::from_value(json!({"type": "Ready", "status": "Perhaps", "reason": null})).unwrap();
        assert_eq!(condition.status, ConditionStatus::Unknown);
    }
}
