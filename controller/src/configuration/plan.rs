//! What is to be done about a Configuration.

use std::sync::Arc;

use ember_api::admission::Kind;
use ember_api::configmaps::Configs;
use ember_api::labels::{self, RoutingState};
use ember_api::serving::v1::{Configuration, Revision, routing_state_time};
use ember_api::status::{Conditioned, Status};
use ember_api::{annotations, names};
use ember_reconcile::apply::Action;
use jiff::Timestamp;

use crate::defaults;
use crate::metadata::{self, annotation, label, same};
use crate::owner::{controller_ref, is_controlled_by};
use crate::plan::{EventText, Failure, Plan, begin};

/// What a plan for a Configuration is made from.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) configuration: Arc<Configuration>,
    /// The Revisions labelled as this Configuration's.
    pub(crate) revisions: Vec<Arc<Revision>>,
    /// The Revision of the name that the template asks for, if it asks for one.
    pub(crate) named_revision: Option<Arc<Revision>>,
}

enum Latest {
    Present(Arc<Revision>),
    Missing,
    /// The name belongs to a Revision of something else.
    Taken(String),
}

/// Decides what to do about a Configuration.
pub(crate) fn plan(observed: &Observed, configs: &Configs, now: Timestamp) -> Plan<Configuration> {
    let mut plan = Plan::default();
    if observed.configuration.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut configuration = begin(&*observed.configuration, now);
    reconcile(observed, configs, &mut configuration, &mut plan, now);
    plan.object = Some(configuration);
    plan
}

fn reconcile(
    observed: &Observed,
    configs: &Configs,
    configuration: &mut Configuration,
    plan: &mut Plan<Configuration>,
    now: Timestamp,
) {
    let (created, ready) = match latest(observed, configs) {
        Latest::Taken(name) => {
            mark_creation_failed(
                configuration,
                &format!("revisions.serving.knative.dev {name:?} already exists"),
                now,
            );
            return;
        }
        Latest::Missing => {
            let desired = revision(&defaults::filled(Kind::Configuration, configuration, configs), now);
            let name = desired.metadata.name.clone().unwrap_or_default();
            plan.step(
                Action::create(&desired),
                Some(EventText::normal("Created", format!("Created Revision {name:?}"))),
                Failure {
                    explain: Some(mark_creation_failed),
                    may_exist: true,
                    ..Failure::error("failed to create Revision", configuration.clone())
                        .with_event("CreationFailed", "Failed to create Revision")
                },
            );
            (name, None)
        }
        Latest::Present(revision) => {
            (revision.metadata.name.clone().unwrap_or_default(), revision.ready_condition().cloned())
        }
    };

    let status = configuration.status_mut_or_default();
    status.set_latest_created_revision_name(&created, now);
    match ready {
        Some(ready) if ready.is_true() && status.latest_ready_revision_name.is_empty() => {
            plan.events.push(EventText::normal("ConfigurationReady", "Configuration becomes ready"));
        }
        Some(ready) if ready.is_false() => {
            let before = status.top_level_condition().cloned();
            status.mark_latest_created_failed(&created, &ready.message, now);
            let changed = match (&before, status.top_level_condition()) {
                (Some(before), Some(after)) => !before.same_state(after),
                _ => true,
            };
            if changed {
                plan.events.push(if created == status.latest_ready_revision_name {
                    EventText::warning(
                        "LatestReadyFailed",
                        format!("Latest ready revision {created:?} has failed"),
                    )
                } else {
                    EventText::warning(
                        "LatestCreatedFailed",
                        format!("Latest created revision {created:?} has failed"),
                    )
                });
            }
        }
        _ => {}
    }

    if let Some(revision) = latest_ready(observed, &created) {
        let name = revision.metadata.name.clone().unwrap_or_default();
        let status = configuration.status_mut_or_default();
        if status.latest_ready_revision_name != name {
            plan.events.push(EventText::normal(
                "LatestReadyUpdate",
                format!("LatestReadyRevisionName updated to {name:?}"),
            ));
        }
        status.set_latest_ready_revision_name(&name, now);
    }
}

fn mark_creation_failed(configuration: &mut Configuration, words: &str, now: Timestamp) {
    configuration.status_mut_or_default().mark_revision_creation_failed(words, now);
}

fn generation_of(revision: &Revision) -> Option<i64> {
    label(&revision.metadata, labels::CONFIGURATION_GENERATION)?.parse().ok()
}

/// The Revision that the present generation's template has led to.
fn latest(observed: &Observed, configs: &Configs) -> Latest {
    let configuration = &*observed.configuration;
    let generation = configuration.generation();
    let name = configuration.spec.template.metadata.name.clone().unwrap_or_default();
    if name.is_empty() {
        let found = observed.revisions.iter().find(|r| generation_of(r) == Some(generation));
        return found.map_or(Latest::Missing, |r| Latest::Present(Arc::clone(r)));
    }
    let Some(revision) = &observed.named_revision else { return Latest::Missing };
    let ours = is_controlled_by(&revision.metadata, configuration)
        && (generation_of(revision) == Some(generation)
            || same(
                &revision.spec,
                &defaults::filled(Kind::Configuration, configuration, configs).spec.template.spec,
            ));
    if ours { Latest::Present(Arc::clone(revision)) } else { Latest::Taken(name) }
}

/// The newest ready Revision that is not older than the one known as such. A Revision that was asked for by name
/// goes first, however old it is.
fn latest_ready<'a>(observed: &'a Observed, created: &str) -> Option<&'a Arc<Revision>> {
    let configuration = &*observed.configuration;
    let byo_name = configuration.spec.template.metadata.name.as_deref().unwrap_or_default();
    let known = configuration.status.as_ref().map_or("", |s| s.latest_ready_revision_name.as_str());
    let oldest = observed
        .revisions
        .iter()
        .find(|r| !known.is_empty() && r.metadata.name.as_deref() == Some(known))
        .map(|r| generation_of(r).unwrap_or_else(|| configuration.generation()));
    let is_named = |r: &Revision| !byo_name.is_empty() && r.metadata.name.as_deref() == Some(byo_name);
    let mut candidates: Vec<_> = observed
        .revisions
        .iter()
        .filter(|r| match (oldest, generation_of(r)) {
            (None, _) => true,
            (Some(oldest), Some(generation)) => {
                (oldest..=configuration.generation()).contains(&generation)
                    || (is_named(r) && r.metadata.name.as_deref() == Some(created))
            }
            (Some(_), None) => false,
        })
        .collect();
    candidates.sort_by_key(|r| (!is_named(r), std::cmp::Reverse(generation_of(r))));
    candidates.into_iter().find(|r| r.is_ready())
}

/// The Revision that the Configuration's template describes.
fn revision(configuration: &Configuration, now: Timestamp) -> Revision {
    let template = &configuration.spec.template;
    let name = configuration.metadata.name.clone().unwrap_or_default();
    let mut meta = template.metadata.clone();
    meta.namespace.clone_from(&configuration.metadata.namespace);
    if meta.name.as_deref().unwrap_or_default().is_empty() {
        meta.name = Some(names::revision(&name, configuration.generation()));
    }
    meta.owner_references.get_or_insert_default().push(controller_ref(configuration));

    let routes = annotation(&configuration.metadata, annotations::ROUTES);
    let state = if routes.is_none() { RoutingState::Pending } else { RoutingState::Active };
    let mut labels = metadata::labels(&meta);
    let generation = configuration.generation().to_string();
    let own = |key: &str| label(&configuration.metadata, key).unwrap_or_default().to_owned();
    labels.extend(
        [
            (labels::SERVICE, own(labels::SERVICE)),
            (labels::SERVICE_UID, own(labels::SERVICE_UID)),
            (labels::CONFIGURATION, name),
            (labels::CONFIGURATION_UID, configuration.metadata.uid.clone().unwrap_or_default()),
            (labels::CONFIGURATION_GENERATION, generation),
            (labels::ROUTING_STATE, state.as_str().to_owned()),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), value)),
    );
    let mut annotations = metadata::annotations(&meta);
    annotations.insert(annotations::ROUTING_STATE_MODIFIED.to_owned(), routing_state_time(now));
    if let Some(modifier) = annotation(&configuration.metadata, annotations::LAST_MODIFIER) {
        annotations.insert(annotations::CREATOR.to_owned(), modifier.to_owned());
    }
    if let Some(routes) = routes {
        annotations.insert(annotations::ROUTES.to_owned(), routes.to_owned());
    }
    meta.labels = Some(labels);
    meta.annotations = Some(annotations);
    Revision { metadata: meta, spec: template.spec.clone(), status: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, Reconcile, Report};

    #[test]
    fn golden_reconcile_configuration() {
        let mut report = Report::new("reconcile_configuration.json");
        for case in golden::cases::<Reconcile>("reconcile_configuration.json") {
            let (namespace, name) = case.given.key();
            let Some(configuration) = case.given.get::<Configuration>(namespace, name) else {
                report.check(&case.id, case.without_object());
                continue;
            };
            let named = configuration.spec.template.metadata.name.clone();
            let revisions = case.given.all::<Revision>().into_iter();
            let observed = Observed {
                revisions: revisions
                    .filter(|r| label(&r.metadata, labels::CONFIGURATION) == Some(name))
                    .map(Arc::new)
                    .collect(),
                named_revision: named.and_then(|name| case.given.get(namespace, &name)).map(Arc::new),
                configuration: Arc::new(configuration),
            };
            let plan = plan(&observed, &case.given.configs(), case.given.now());
            report.check(&case.id, case.compare(&*observed.configuration, plan));
        }
        report.finish();
    }
}
