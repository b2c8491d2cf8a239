//! Progressive rollout: the shift of traffic from a Configuration's previous revisions to its latest one in steps.
//!
//! The state lives in an annotation of the Ingress, so that a restarted controller goes on where it stopped. All
//! functions are pure; times are nanoseconds since the Unix epoch, as they are in the annotation.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

const NANOS_PER_SECOND: f64 = 1e9;

/// The rollout state of a Route: one entry per tag and Configuration that receives traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rollout {
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) configurations: Vec<ConfigurationRollout>,
}

/// How one Configuration's share under one tag is divided among its revisions, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConfigurationRollout {
    #[serde(default)]
    pub(crate) configuration_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) tag: String,
    #[serde(default)]
    pub(crate) percent: i64,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) revisions: Vec<RevisionRollout>,
    #[serde(default)]
    pub(crate) step_params: StepParams,
}

/// A revision's share in percent of the whole target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RevisionRollout {
    #[serde(default)]
    pub(crate) revision_name: String,
    #[serde(default)]
    pub(crate) percent: i64,
}

/// When and by how much traffic moves; all zero while no rollout runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StepParams {
    /// When the rollout began. The wire name has no capital, unlike its siblings.
    #[serde(default, rename = "starttime", skip_serializing_if = "is_zero")]
    pub(crate) start_time: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) next_step_time: i64,
    /// Nanoseconds between steps.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) step_duration: i64,
    /// Percent moved by one step.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) step_size: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// A list that is `null` is empty.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(given: D) -> Result<T, D::Error> {
    Option::deserialize(given).map(Option::unwrap_or_default)
}

impl Rollout {
    /// Reads the state from the annotation. What cannot be read or contradicts itself is no state at all: the goal
    /// is then reached at once, rather than a user's edit stopping the Route.
    pub(crate) fn parse(annotation: &str) -> Option<Self> {
        serde_json::from_str::<Self>(annotation).ok().filter(Self::is_valid)
    }

    /// Whether shares add up and steps are within bounds.
    pub(crate) fn is_valid(&self) -> bool {
        self.configurations.iter().all(|c| {
            let shares = c.revisions.iter().try_fold(0_i64, |sum, r| sum.checked_add(r.percent));
            c.percent <= 100
                && c.step_params.step_size >= 0
                && c.step_params.step_size <= c.percent
                && shares == Some(c.percent)
        })
    }

    /// Whether every Configuration has reached its goal.
    pub(crate) fn is_done(&self) -> bool {
        self.configurations.iter().all(|c| c.revisions.len() < 2)
    }

    /// The earliest time at which a step is due; `None` when no step is scheduled.
    pub(crate) fn next_step_time(&self) -> Option<i64> {
        self.configurations.iter().map(|c| c.step_params.next_step_time).filter(|t| *t > 0).min()
    }

    /// The state of a Configuration under a tag.
    pub(crate) fn configuration(&self, tag: &str, name: &str) -> Option<&ConfigurationRollout> {
        self.configurations.iter().find(|c| c.tag == tag && c.configuration_name == name)
    }

    /// Brings entries into the order in which they are stored and compared.
    pub(crate) fn sort(&mut self) {
        self.configurations
            .sort_by(|a, b| (&a.tag, &a.configuration_name).cmp(&(&b.tag, &b.configuration_name)));
    }

    /// Moves `previous` towards the goal `self`.
    #[must_use]
    pub(crate) fn step(&self, previous: Option<&Self>, now: i64) -> Self {
        let Some(previous) = previous.filter(|p| !p.configurations.is_empty()) else {
            return self.clone();
        };
        let before: BTreeMap<(&str, &str), &ConfigurationRollout> = previous
            .configurations
            .iter()
            .map(|c| ((c.tag.as_str(), c.configuration_name.as_str()), c))
            .collect();
        let mut next = Self {
            configurations: self
                .configurations
                .iter()
                .filter(|goal| goal.percent != 0)
                .map(|goal| {
                    match before.get(&(goal.tag.as_str(), goal.configuration_name.as_str())) {
                        // One percent cannot be divided.
                        Some(prev) if goal.percent > 1 => step_configuration(goal, prev, now),
                        _ => goal.clone(),
                    }
                })
                .collect(),
        };
        next.sort();
        next
    }

    /// Records that the gateway serves the first percent of rollouts begun since, and derives from how long that
    /// took how large and how far apart the steps have to be for the rollout to last `duration` seconds.
    pub(crate) fn observe_ready(&mut self, now: i64, duration: f64) {
        for c in &mut self.configurations {
            if c.step_params.step_duration == 0 && c.step_params.start_time > 0 {
                c.compute_steps(now, duration);
            }
        }
    }
}

impl ConfigurationRollout {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "the contract computes in float64; percents and durations are far inside its range"
    )]
    fn compute_steps(&mut self, now: i64, duration: f64) {
        // A step is never shorter than the gateway needs to take up a change.
        let waited = (now - self.step_params.start_time) as f64 / NANOS_PER_SECOND;
        let shortest = waited.ceil().max(1.0);
        let duration = (duration - shortest).max(1.0);
        let remaining = (self.percent - 1) as f64;
        let steps = (duration / shortest).max(1.0).min(remaining);
        let step = duration / steps * NANOS_PER_SECOND;
        self.step_params.step_size = (remaining / steps).round() as i64;
        self.step_params.step_duration = step as i64;
        self.step_params.next_step_time = (now as f64 + step) as i64;
    }

    /// Moves one step's worth of traffic from the older revisions, newest of them first, to the latest.
    fn advance(&mut self, now: i64) {
        let Some(mut latest) = self.revisions.pop() else {
            return;
        };
        let mut move_left = self.step_params.step_size.min(self.percent - latest.percent);
        latest.percent += move_left;
        for older in self.revisions.iter_mut().rev() {
            let taken = older.percent.min(move_left);
            older.percent -= taken;
            move_left -= taken;
        }
        self.revisions.retain(|r| r.percent > 0);
        self.revisions.push(latest);
        if self.revisions.len() > 1 {
            self.step_params.next_step_time = now + self.step_params.step_duration;
        } else {
            self.step_params = StepParams::default();
        }
    }
}

fn step_configuration(
    goal: &ConfigurationRollout,
    previous: &ConfigurationRollout,
    now: i64,
) -> ConfigurationRollout {
    let mut next = ConfigurationRollout { percent: goal.percent, ..previous.clone() };
    adjust_percent(&mut next.revisions, goal.percent - previous.percent);
    let Some(target) = goal.revisions.first() else {
        return goal.clone();
    };
    match next.revisions.last() {
        None => return goal.clone(),
        Some(last) if last.revision_name == target.revision_name => {
            if next.revisions.len() < 2 {
                return goal.clone();
            }
            if next.step_params.step_size > 0 && now >= next.step_params.next_step_time {
                next.advance(now);
            }
            return next;
        }
        Some(_) => {}
    }
    // A new revision: what an unfinished rollout has reached stays as it is and is drained from its newest end.
    if let Some(donor) = next.revisions.iter_mut().rev().find(|r| r.percent > 0) {
        donor.percent -= 1;
    }
    next.revisions.retain(|r| r.percent > 0);
    next.revisions.push(RevisionRollout { revision_name: target.revision_name.clone(), percent: 1 });
    next.step_params = StepParams { start_time: now, ..StepParams::default() };
    next
}

/// Follows a change of the Configuration's share: more goes to the newest revision, less is taken from the oldest.
fn adjust_percent(revisions: &mut Vec<RevisionRollout>, change: i64) {
    if change >= 0 {
        if let Some(last) = revisions.last_mut() {
            last.percent += change;
        }
        return;
    }
    let mut excess = -change;
    for revision in revisions.iter_mut() {
        let taken = revision.percent.min(excess);
        revision.percent -= taken;
        excess -= taken;
    }
    revisions.retain(|r| r.percent > 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(configurations: &str) -> Rollout {
        Rollout::parse(&format!("{{\"configurations\":[{configurations}]}}")).expect("a valid state")
    }

    #[test]
    fn a_state_without_revisions_starts_at_its_goal() {
        let goal = state(
            r#"{"configurationName":"c","percent":100,"revisions":[{"revisionName":"r","percent":100}]}"#,
        );
        let empty = state(r#"{"configurationName":"c","revisions":null}"#);
        assert_eq!(goal.step(Some(&empty), 5), goal);
    }

    #[test]
    fn less_than_the_oldest_revision_has_goes_on_with_the_others() {
        let goal = state(
            r#"{"configurationName":"c","percent":15,"revisions":[{"revisionName":"r2","percent":15}]}"#,
        );
        let before = state(
            r#"{"configurationName":"c","percent":60,
                "revisions":[{"revisionName":"r1","percent":40},{"revisionName":"r2","percent":20}],
                "stepParams":{"starttime":1,"nextStepTime":2,"stepDuration":3,"stepSize":4}}"#,
        );
        assert_eq!(goal.step(Some(&before), 5), goal);
    }
}
