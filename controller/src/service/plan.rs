//! What is to be done about a Service.

use std::sync::Arc;

use ember_api::admission::Kind;
use ember_api::configmaps::Configs;
use ember_api::labels;
use ember_api::serving::v1::{Configuration, Revision, Route, Service, ServiceStatus, TrafficTarget};
use ember_api::status::Conditioned;
use ember_reconcile::apply::Action;
use jiff::Timestamp;

use super::children;
use crate::defaults;
use crate::metadata::{label, same, same_maps};
use crate::owner::is_controlled_by;
use crate::plan::{EventText, Failure, Plan, begin};

/// What a plan for a Service is made from.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) service: Arc<Service>,
    /// The Configuration of the Service's name.
    pub(crate) configuration: Option<Arc<Configuration>>,
    /// The Route of the Service's name.
    pub(crate) route: Option<Arc<Route>>,
    /// The Revision of the name that the template asks for, if it asks for one.
    pub(crate) named_revision: Option<Arc<Revision>>,
}

/// Decides what to do about a Service.
pub(crate) fn plan(observed: &Observed, configs: &Configs, now: Timestamp) -> Plan<Service> {
    let mut plan = Plan::default();
    if observed.service.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut service = begin(&*observed.service, now);
    plan.error = reconcile(observed, configs, &mut service, &mut plan, now).err();
    plan.object = Some(service);
    plan
}

fn reconcile(
    observed: &Observed,
    configs: &Configs,
    service: &mut Service,
    plan: &mut Plan<Service>,
    now: Timestamp,
) -> Result<(), String> {
    let name = service.metadata.name.clone().unwrap_or_default();
    let byo_name = service.spec.template.metadata.name.clone().unwrap_or_default();
    // Children that are as the Service says are so with defaults, too: these matter only where something is written.
    let filled = || defaults::filled(Kind::Service, &*observed.service, configs);

    let configuration = match &observed.configuration {
        None => {
            let desired = children::configuration(&filled(), None);
            plan.step(
                Action::create(&desired),
                Some(EventText::normal("Created", format!("Created Configuration {name:?}"))),
                Failure::error("failed to create Configuration", service.clone())
                    .with_event("CreationFailed", format!("Failed to create Configuration {name:?}")),
            );
            None
        }
        Some(existing) if !is_controlled_by(&existing.metadata, service) => {
            service.status_mut_or_default().mark_configuration_not_owned(&name, now);
            return Err(format!("service: {name:?} does not own configuration: {name:?}"));
        }
        Some(existing) => {
            let mut desired = children::configuration(service, Some(existing));
            let mut same_spec = same(&existing.spec, &desired.spec);
            if !same_spec {
                desired.spec = children::configuration(&filled(), None).spec;
                let existing = defaults::filled(Kind::Configuration, &**existing, configs);
                same_spec = same(&existing.spec, &desired.spec);
            }
            if !same_spec || !same_maps(&existing.metadata, &desired.metadata) {
                let mut updated = Configuration::clone(existing);
                updated.spec = desired.spec;
                updated.metadata.labels = desired.metadata.labels;
                updated.metadata.annotations = desired.metadata.annotations;
                plan.step(
                    Action::update(&updated),
                    None,
                    Failure::error("failed to reconcile Configuration", service.clone()),
                );
            }
            // A changed spec is a generation that nobody has observed yet.
            same_spec.then_some(existing).filter(|c| c.current_status().is_some())
        }
    };

    let status = service.status_mut_or_default();
    match configuration {
        None => {
            status.mark_configuration_not_reconciled(now);
            // The Route must not point to a name before it is known to be ours.
            if !byo_name.is_empty() {
                return Ok(());
            }
        }
        Some(configuration) => {
            if let Some(from) = &configuration.status {
                status.propagate_configuration_status(from, now);
            }
            if is_name_taken(&byo_name, configuration, observed.named_revision.as_deref()) {
                status.mark_revision_name_taken(&byo_name, now);
                return Ok(());
            }
        }
    }

    let route = match &observed.route {
        None => {
            let desired = children::route(&filled());
            plan.step(
                Action::create(&desired),
                Some(EventText::normal("Created", format!("Created Route {name:?}"))),
                Failure::error("failed to create Route", service.clone())
                    .with_event("CreationFailed", format!("Failed to create Route {name:?}")),
            );
            None
        }
        Some(existing) if !is_controlled_by(&existing.metadata, service) => {
            service.status_mut_or_default().mark_route_not_owned(&name, now);
            return Err(format!("service: {name:?} does not own route: {name:?}"));
        }
        Some(existing) => {
            let mut desired = children::route(service);
            let mut same_spec = same(&existing.spec, &desired.spec);
            if !same_spec {
                desired.spec = children::route(&filled()).spec;
                let existing = defaults::filled(Kind::Route, &**existing, configs);
                same_spec = same(&existing.spec, &desired.spec);
            }
            if !same_spec || !same_maps(&existing.metadata, &desired.metadata) {
                let mut updated = Route::clone(existing);
                updated.spec = desired.spec;
                updated.metadata.labels = desired.metadata.labels;
                updated.metadata.annotations = desired.metadata.annotations;
                plan.step(
                    Action::update(&updated),
                    None,
                    Failure::error("failed to reconcile Route", service.clone()),
                );
            }
            same_spec.then_some(existing).filter(|r| r.current_status().is_some())
        }
    };

    let status = service.status_mut_or_default();
    let Some(route) = route else {
        status.mark_route_not_reconciled(now);
        return Ok(());
    };
    if let Some(from) = &route.status {
        status.propagate_route_status(from, now);
    }
    let latest = observed.configuration.as_ref().and_then(|c| c.status.as_ref());
    let latest = latest.map_or("", |s| s.latest_ready_revision_name.as_str());
    if status.conditions.is_true(ServiceStatus::ROUTES_READY) && !is_migrated(route, &name, latest) {
        status.mark_route_not_yet_ready(now);
    }
    Ok(())
}

/// Whether the name that the template asks for belongs to another Revision than the one the template makes.
fn is_name_taken(name: &str, configuration: &Configuration, revision: Option<&Revision>) -> bool {
    let Some(revision) = revision.filter(|_| !name.is_empty()) else { return false };
    let generation = configuration.generation().to_string();
    let ours = is_controlled_by(&revision.metadata, configuration)
        && (label(&revision.metadata, labels::CONFIGURATION_GENERATION) == Some(generation.as_str())
            || same(&revision.spec, &configuration.spec.template.spec));
    !ours
}

/// Whether the Route's traffic goes where its spec says, its Configuration's latest ready Revision being `latest`.
fn is_migrated(route: &Route, configuration: &str, latest: &str) -> bool {
    let assigned = route.status.as_ref().map_or(&[][..], |s| s.traffic.as_slice());
    let same_target = |wanted: &TrafficTarget, got: &TrafficTarget| {
        let (revision, other) = if wanted.configuration_name == configuration {
            (latest, "")
        } else {
            (wanted.revision_name.as_str(), wanted.configuration_name.as_str())
        };
        revision == got.revision_name
            && other == got.configuration_name
            && wanted.tag == got.tag
            && wanted.percent.unwrap_or(0) == got.percent.unwrap_or(0)
    };
    route.spec.traffic.len() == assigned.len()
        && route.spec.traffic.iter().zip(assigned).all(|(wanted, got)| same_target(wanted, got))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, Reconcile, Report};

    #[test]
    fn golden_reconcile_service() {
        let mut report = Report::new("reconcile_service.json");
        for case in golden::cases::<Reconcile>("reconcile_service.json") {
            let (namespace, name) = case.given.key();
            let Some(service) = case.given.get::<Service>(namespace, name) else {
                report.check(&case.id, case.without_object());
                continue;
            };
            let named = service.spec.template.metadata.name.clone();
            let observed = Observed {
                configuration: case.given.get(namespace, name).map(Arc::new),
                route: case.given.get(namespace, name).map(Arc::new),
                named_revision: named.and_then(|name| case.given.get(namespace, &name)).map(Arc::new),
                service: Arc::new(service),
            };
            let plan = plan(&observed, &case.given.configs(), case.given.now());
            report.check(&case.id, case.compare(&*observed.service, plan));
        }
        report.finish();
    }
}
