//! Which Revisions of a Configuration are to be deleted.

use std::sync::Arc;
use std::time::Duration;

use ember_api::labels::RoutingState;
use ember_api::serving::v1::{Configuration, Revision};
use ember_api::{annotations, configmaps};
use ember_reconcile::apply::Action;
use jiff::Timestamp;
use kube::ResourceExt;

/// Decides: the Revisions to delete, longest unused first. Deterministic: the time is passed in.
pub(crate) fn plan(
    configuration: &Configuration,
    revisions: &[Arc<Revision>],
    config: &configmaps::gc::Gc,
    now: Timestamp,
) -> Vec<Action> {
    if configuration.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let ages = (config.retain_since_create_time, config.retain_since_last_active_time);
    if config.max_non_active_revisions.is_none() && ages == (None, None) {
        return Vec::new();
    }
    let fewest = usize::try_from(config.min_non_active_revisions).unwrap_or(usize::MAX);
    let mut idle: Vec<&Revision> = revisions
        .iter()
        .map(|revision| &**revision)
        .filter(|revision| !is_active(revision, configuration))
        .collect();
    if idle.len() <= fewest {
        return Vec::new();
    }
    idle.sort_by_key(|revision| last_active(revision));

    let mut deletable = idle.len() - fewest;
    let (mut actions, mut kept) = (Vec::new(), Vec::new());
    for revision in idle {
        if deletable > 0 && is_stale(revision, ages, now) {
            actions.push(Action::delete(revision));
            deletable -= 1;
        } else {
            kept.push(revision);
        }
    }
    if deletable == 0 {
        return actions;
    }
    if let Some(most) = config.max_non_active_revisions {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        actions.extend(
            kept.iter().take(kept.len().saturating_sub(most)).map(|revision| Action::delete(*revision)),
        );
    }
    actions
}

fn is_active(revision: &Revision, configuration: &Configuration) -> bool {
    let kept = revision
        .annotations()
        .get(annotations::NO_GC)
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    kept || revision.name_any() == super::latest_ready(configuration)
        || revision.routing_state() != Some(RoutingState::Reserve)
}

fn created(revision: &Revision) -> Timestamp {
    revision.metadata.creation_timestamp.as_ref().map(|time| time.0).unwrap_or_default()
}

/// When a Route last led to the Revision, or, if that is not known, when it was created.
fn last_active(revision: &Revision) -> Timestamp {
    revision.routing_state_modified().unwrap_or_else(|| created(revision))
}

/// Whether each of the ages that are asked for has been reached.
fn is_stale(revision: &Revision, ages: (Option<Duration>, Option<Duration>), now: Timestamp) -> bool {
    let reached = |since: Timestamp, age: Option<Duration>| {
        age.is_none_or(|age| Duration::try_from(now.duration_since(since)).is_ok_and(|passed| passed >= age))
    };
    ages != (None, None) && reached(created(revision), ages.0) && reached(last_active(revision), ages.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use crate::plan::{Failure, Plan};
    use ember_api::labels;

    #[test]
    fn golden_reconcile_gc() {
        let mut report = golden::Report::new("reconcile_gc.json");
        for case in golden::cases::<golden::Reconcile>("reconcile_gc.json") {
            let (namespace, name) = case.given.key();
            let Some(configuration) = case.given.get::<Configuration>(namespace, name) else {
                report.check(&case.id, case.without_object());
                continue;
            };
            let mut revisions = case.given.all::<Revision>();
            revisions.retain(|r| r.labels().get(labels::CONFIGURATION).is_some_and(|of| of == name));
            let revisions: Vec<_> = revisions.into_iter().map(Arc::new).collect();
            let actions = super::plan(&configuration, &revisions, &case.given.configs().gc, case.given.now());
            let mut plan = Plan::<Configuration>::default();
            for action in actions {
                plan.step(action, None, Failure::without_status("").tolerated());
            }
            report.check(&case.id, case.compare(&configuration, plan));
        }
        report.finish();
    }
}
