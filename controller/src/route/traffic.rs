//! Which revisions a Route's traffic goes to: resolves `spec.traffic` against Configurations and Revisions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ember_api::conditions::Condition;
use ember_api::labels;
use ember_api::networking::ProtocolType;
use ember_api::serving::v1::{Configuration, Revision, Route, RouteStatus};
use ember_api::status::Conditioned;
use jiff::Timestamp;

use crate::route::rollout::{ConfigurationRollout, RevisionRollout, Rollout, StepParams};

/// The target that is reached by the Route's own host names.
pub(crate) const DEFAULT_TARGET: &str = "";

/// One resolved entry of `spec.traffic`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RevisionTarget {
    pub(crate) revision_name: String,
    /// Empty for a revision that no Configuration made.
    pub(crate) configuration_name: String,
    /// Empty when untagged.
    pub(crate) tag: String,
    /// Whether the entry follows a Configuration's latest ready revision.
    pub(crate) latest: bool,
    pub(crate) percent: i64,
    pub(crate) protocol: ProtocolType,
}

/// Why an entry cannot take traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TargetError {
    ConfigurationNotFound(String),
    RevisionNotFound(String),
    ConfigurationFailed(String),
    ConfigurationPending(String),
    RevisionFailed(String),
    RevisionPending(String),
    /// `owner` is empty for a Revision of no Service.
    RevisionNotOwned {
        revision: String,
        owner: String,
        service: String,
    },
}

impl TargetError {
    /// Whether waiting does not help.
    pub(crate) fn is_failure(&self) -> bool {
        !matches!(self, Self::ConfigurationPending(_) | Self::RevisionPending(_))
    }

    /// Says so in a Route's status.
    pub(crate) fn mark(&self, status: &mut RouteStatus, now: Timestamp) {
        match self {
            Self::ConfigurationNotFound(name) => {
                status.mark_missing_traffic_target("Configuration", name, now);
            }
            Self::RevisionNotFound(name) => status.mark_missing_traffic_target("Revision", name, now),
            Self::ConfigurationFailed(name) => status.mark_configuration_failed(name, now),
            Self::ConfigurationPending(name) => status.mark_configuration_not_ready(name, now),
            Self::RevisionFailed(name) => status.mark_revision_failed(name, now),
            Self::RevisionPending(name) => status.mark_revision_not_ready(name, now),
            Self::RevisionNotOwned { revision, owner, service } => {
                status.mark_revision_not_owned(revision, Some(owner), service, now);
            }
        }
    }
}

/// Where a Route's traffic goes, and what that was derived from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic {
    /// By tag, [`DEFAULT_TARGET`] among them; within one target every revision appears once. Empty on an error.
    pub(crate) targets: BTreeMap<String, Vec<RevisionTarget>>,
    /// The entries as `status.traffic` lists them.
    pub(crate) entries: Vec<RevisionTarget>,
    /// Names of Configurations that decide about the traffic, present or missing.
    pub(crate) configurations: BTreeSet<String>,
    /// Names of Revisions that decide about the traffic, present or missing.
    pub(crate) revisions: BTreeSet<String>,
    pub(crate) error: Option<TargetError>,
}

/// Looks up what traffic may refer to in the Route's namespace.
pub(crate) trait Lookup {
    fn configuration(&self, name: &str) -> Option<Arc<Configuration>>;
    fn revision(&self, name: &str) -> Option<Arc<Revision>>;
}

/// Resolves a Route's traffic. All entries are looked at even after an error, so that everything missing is known;
/// the last failure wins over the first entry that merely has to wait.
pub(crate) fn resolve(route: &Route, lookup: &impl Lookup) -> Traffic {
    let mut builder = Builder {
        lookup,
        service: route
            .metadata
            .labels
            .as_ref()
            .and_then(|l| l.get(labels::SERVICE))
            .map_or("", String::as_str),
        traffic: Traffic::default(),
    };
    for entry in &route.spec.traffic {
        let tag = entry.tag.clone();
        let percent = entry.percent.unwrap_or(0);
        let resolved = if !entry.revision_name.is_empty() {
            builder.pinned(&entry.revision_name)
        } else if !entry.configuration_name.is_empty() {
            builder.latest(&entry.configuration_name)
        } else {
            continue;
        };
        match resolved {
            Ok(target) => builder.add(RevisionTarget { tag, percent, ..target }),
            Err(error) => builder.fail(error),
        }
    }
    let mut traffic = builder.traffic;
    if traffic.error.is_some() {
        traffic.targets.clear();
        traffic.entries.clear();
    }
    for targets in traffic.targets.values_mut() {
        *targets = consolidate(std::mem::take(targets));
    }
    traffic
}

struct Builder<'a, L> {
    lookup: &'a L,
    service: &'a str,
    traffic: Traffic,
}

impl<L: Lookup> Builder<'_, L> {
    fn fail(&mut self, error: TargetError) {
        if error.is_failure() || self.traffic.error.is_none() {
            self.traffic.error = Some(error);
        }
    }

    fn latest(&mut self, name: &str) -> Result<RevisionTarget, TargetError> {
        self.traffic.configurations.insert(name.to_owned());
        let configuration = self
            .lookup
            .configuration(name)
            .ok_or_else(|| TargetError::ConfigurationNotFound(name.to_owned()))?;
        let latest = configuration.status.as_ref().map(|s| s.latest_ready_revision_name.clone());
        let Some(latest) = latest.filter(|l| !l.is_empty()) else {
            return Err(if configuration.ready_condition().is_some_and(Condition::is_false) {
                TargetError::ConfigurationFailed(name.to_owned())
            } else {
                TargetError::ConfigurationPending(name.to_owned())
            });
        };
        let revision = self.ready_revision(&latest)?;
        Ok(RevisionTarget {
            protocol: revision.spec.protocol(),
            revision_name: latest,
            configuration_name: name.to_owned(),
            tag: String::new(),
            latest: true,
            percent: 0,
        })
    }

    fn pinned(&mut self, name: &str) -> Result<RevisionTarget, TargetError> {
        self.traffic.revisions.insert(name.to_owned());
        let revision =
            self.lookup.revision(name).ok_or_else(|| TargetError::RevisionNotFound(name.to_owned()))?;
        let label = |key: &str| revision.metadata.labels.as_ref().and_then(|l| l.get(key)).cloned();
        let owner = label(labels::SERVICE).unwrap_or_default();
        if !self.service.is_empty() && owner != self.service {
            let (revision, service) = (name.to_owned(), self.service.to_owned());
            return Err(TargetError::RevisionNotOwned { revision, owner, service });
        }
        check_ready(&revision, name)?;
        let configuration_name = label(labels::CONFIGURATION).unwrap_or_default();
        if !configuration_name.is_empty() {
            self.traffic.configurations.insert(configuration_name.clone());
            if self.lookup.configuration(&configuration_name).is_none() {
                return Err(TargetError::ConfigurationNotFound(configuration_name));
            }
        }
        Ok(RevisionTarget {
            protocol: revision.spec.protocol(),
            revision_name: name.to_owned(),
            configuration_name,
            tag: String::new(),
            latest: false,
            percent: 0,
        })
    }

    fn ready_revision(&mut self, name: &str) -> Result<Arc<Revision>, TargetError> {
        self.traffic.revisions.insert(name.to_owned());
        let revision =
            self.lookup.revision(name).ok_or_else(|| TargetError::RevisionNotFound(name.to_owned()))?;
        check_ready(&revision, name)?;
        Ok(revision)
    }

    fn add(&mut self, target: RevisionTarget) {
        let same = |e: &&mut RevisionTarget| {
            e.tag == target.tag && e.revision_name == target.revision_name && e.latest == target.latest
        };
        match self.traffic.entries.iter_mut().find(same) {
            Some(entry) => entry.percent += target.percent,
            None => self.traffic.entries.push(target.clone()),
        }
        if !target.tag.is_empty() {
            self.traffic.targets.entry(target.tag.clone()).or_default().push(target.clone());
        }
        self.traffic.targets.entry(DEFAULT_TARGET.to_owned()).or_default().push(target);
    }
}

fn check_ready(revision: &Revision, name: &str) -> Result<(), TargetError> {
    if revision.is_ready() {
        Ok(())
    } else if revision.ready_condition().is_some_and(Condition::is_false) {
        Err(TargetError::RevisionFailed(name.to_owned()))
    } else {
        Err(TargetError::RevisionPending(name.to_owned()))
    }
}

/// Joins entries for the same revision; a target with a single revision sends everything there, whatever its share.
fn consolidate(targets: Vec<RevisionTarget>) -> Vec<RevisionTarget> {
    let mut joined: Vec<RevisionTarget> = Vec::with_capacity(targets.len());
    for target in targets {
        match joined.iter_mut().find(|t| t.revision_name == target.revision_name) {
            Some(known) => known.percent += target.percent,
            None => joined.push(target),
        }
    }
    if let [only] = joined.as_mut_slice() {
        only.percent = 100;
    }
    joined
}

impl Traffic {
    /// The rollout state in which every Configuration is at its goal.
    pub(crate) fn rollout(&self) -> Rollout {
        let mut rollout = Rollout::default();
        for (tag, targets) in &self.targets {
            for target in targets.iter().filter(|t| t.latest && t.percent != 0) {
                rollout.configurations.push(ConfigurationRollout {
                    configuration_name: target.configuration_name.clone(),
                    tag: tag.clone(),
                    percent: target.percent,
                    revisions: vec![RevisionRollout {
                        revision_name: target.revision_name.clone(),
                        percent: target.percent,
                    }],
                    step_params: StepParams::default(),
                });
            }
        }
        rollout.sort();
        rollout
    }

    /// The entries of `status.traffic` under a rollout state: an entry that follows a Configuration appears once for
    /// each of the revisions that its tag leads to, with their shares under that tag.
    pub(crate) fn effective_entries(&self, rollout: &Rollout) -> Vec<RevisionTarget> {
        self.entries
            .iter()
            .flat_map(|entry| {
                let state =
                    rollout.configuration(&entry.tag, &entry.configuration_name).filter(|_| entry.latest);
                match state {
                    None => vec![entry.clone()],
                    Some(state) => state
                        .revisions
                        .iter()
                        .map(|r| RevisionTarget {
                            revision_name: r.revision_name.clone(),
                            percent: r.percent,
                            ..entry.clone()
                        })
                        .collect(),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_shows_every_entry_with_the_shares_under_its_own_tag() {
        let entry = |tag: &str, latest, percent| RevisionTarget {
            revision_name: "r2".to_owned(),
            configuration_name: "c".to_owned(),
            tag: tag.to_owned(),
            latest,
            percent,
            protocol: ProtocolType::Http1,
        };
        let traffic = Traffic {
            entries: vec![entry("", true, 70), entry("t", true, 30), entry("pinned", false, 0)],
            ..Traffic::default()
        };
        let rollout = Rollout::parse(
            r#"{"configurations":[
                {"configurationName":"c","percent":70,
                 "revisions":[{"revisionName":"r1","percent":69},{"revisionName":"r2","percent":1}]},
                {"configurationName":"c","tag":"t","percent":100,
                 "revisions":[{"revisionName":"r1","percent":90},{"revisionName":"r2","percent":10}]}]}"#,
        )
        .expect("a state");
        let shown: Vec<_> = traffic
            .effective_entries(&rollout)
            .into_iter()
            .map(|entry| (entry.tag, entry.revision_name, entry.percent))
            .collect();
        let expected = [("", "r1", 69), ("", "r2", 1), ("t", "r1", 90), ("t", "r2", 10), ("pinned", "r2", 0)];
        assert_eq!(shown, expected.map(|(tag, name, percent)| (tag.to_owned(), name.to_owned(), percent)));
    }
}
