//! What is to be done about a Route.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ember_api::configmaps::Configs;
use ember_api::domains::{DomainError, domains_for_visibility};
use ember_api::networking::v1alpha1::{Certificate, Http01Challenge, Ingress, IngressTls};
use ember_api::serving::v1::{Addressable, Route, RouteStatus, TrafficTarget};
use ember_api::status::Conditioned;
use ember_api::{annotations, labels, names};
use ember_reconcile::apply::Action;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Service};

use crate::metadata::{self, same, same_maps};
use crate::owner::is_controlled_by;
use crate::plan::{EventText, Failure, Plan, begin};
use crate::route::ingress::{self, Parts};
use crate::route::rollout::Rollout;
use crate::route::traffic::{self, DEFAULT_TARGET, Lookup, RevisionTarget, Traffic};
use crate::route::visibility::{self, Visibility};
use crate::route::{configs, placeholder};
use crate::tracker::Reference;

/// The Route's namespace as the caches have it.
pub(crate) trait Namespace: Lookup {
    fn service(&self, name: &str) -> Option<Arc<Service>>;
    /// The Services labelled as the Route's.
    fn services_of(&self, route: &str) -> Vec<Arc<Service>>;
    fn endpoints(&self, name: &str) -> Option<Arc<Endpoints>>;
    fn ingress(&self, name: &str) -> Option<Arc<Ingress>>;
    fn certificate(&self, name: &str) -> Option<Arc<Certificate>>;
    /// The Certificates with a label, by name.
    fn certificates(&self, label: &str, value: &str) -> Vec<Arc<Certificate>>;
}

/// A plan, and what the Route depends on beside its own children.
#[derive(Clone, Debug)]
pub(crate) struct RoutePlan {
    pub(crate) plan: Plan<Route>,
    pub(crate) references: BTreeSet<Reference>,
}

/// Decides what to do about a Route.
pub(crate) fn plan(
    original: &Route,
    namespace: &impl Namespace,
    configs: &Configs,
    now: Timestamp,
) -> RoutePlan {
    if original.metadata.deletion_timestamp.is_some() {
        return RoutePlan { plan: Plan::default(), references: BTreeSet::new() };
    }
    let mut planner = Planner {
        namespace,
        configs,
        now,
        name: original.metadata.name.clone().unwrap_or_default(),
        route: begin(&with_defaults(original), now),
        plan: Plan::default(),
        references: BTreeSet::new(),
    };
    let error = planner.reconcile().err();
    let Planner { route, mut plan, references, .. } = planner;
    plan.error = error;
    plan.object = Some(route);
    RoutePlan { plan, references }
}

/// The Route with every target's defaults filled in. They are so few that they are not worth a detour by JSON.
fn with_defaults(route: &Route) -> Route {
    let mut route = route.clone();
    for target in &mut route.spec.traffic {
        target.latest_revision.get_or_insert(target.revision_name.is_empty());
        target.percent.get_or_insert(0);
    }
    route
}

pub(super) struct Planner<'a, N> {
    pub(super) namespace: &'a N,
    pub(super) configs: &'a Configs,
    pub(super) now: Timestamp,
    pub(super) name: String,
    pub(super) route: Route,
    pub(super) plan: Plan<Route>,
    pub(super) references: BTreeSet<Reference>,
}

/// A placeholder as it is once the plan's writes so far are done.
struct Placeholder {
    service: Service,
    endpoints: Option<Arc<Endpoints>>,
}

impl<N: Namespace> Planner<'_, N> {
    pub(super) fn status(&mut self) -> &mut RouteStatus {
        self.route.status_mut_or_default()
    }

    pub(super) fn step(&mut self, action: Action, done: Option<EventText>, failed: Failure<Route>) {
        self.plan.step(action, done, failed);
    }

    fn reconcile(&mut self) -> Result<(), String> {
        let now = self.now;
        // Otherwise an error further down would leave a stale True for a generation that nobody serves yet.
        if self.route.current_status().is_none() {
            self.status().mark_ingress_not_configured(now);
        }
        let Some((traffic, visibility)) = self.assign_traffic()? else { return Ok(()) };

        let address = configs::service_host(self.configs, &self.route);
        let url = ember_api::domains::url(self.configs, "http", &address);
        self.status().address = Some(Addressable::from_url(url));
        let placeholders = self.placeholders(&traffic)?;
        let (mut tls, challenges, wanted) = self.external_tls(&traffic, &visibility)?;
        if self.configs.network.cluster_local_domain_tls {
            tls.extend(self.cluster_local_tls(&traffic)?);
        } else if configs::external_domain_tls(self.configs, &self.route) && wanted == 0 {
            self.status().mark_tls_not_enabled(RouteStatus::TLS_NOT_ENABLED_FOR_CLUSTER_LOCAL, now);
        }

        let (ingress, rollout) = self.ingress(&traffic, &visibility, &tls, &challenges)?;
        let in_progress = !rollout.is_done();
        match ingress.current_status() {
            None => self.status().mark_ingress_not_configured(now),
            Some(_) if in_progress => {}
            Some(status) => self.status().propagate_ingress_status(status, now),
        }
        self.update_placeholders(&placeholders, &ingress);
        if in_progress {
            self.status().mark_ingress_rollout_in_progress(now);
            let traffic = self.traffic_status(&traffic.effective_entries(&rollout), &visibility)?;
            self.status().traffic = traffic;
        }
        Ok(())
    }

    /// Resolves the traffic and says so in the status; `None` when a target cannot take any.
    fn assign_traffic(&mut self) -> Result<Option<(Traffic, Visibility)>, String> {
        let now = self.now;
        let traffic = traffic::resolve(&self.route, self.namespace);
        let tags: BTreeSet<String> = std::iter::once(DEFAULT_TARGET.to_owned())
            .chain(self.route.spec.traffic.iter().map(|t| t.tag.clone()))
            .collect();
        let (namespace, route_name) = (self.namespace, self.name.clone());
        let visibility =
            visibility::visibility(self.configs, &self.route, tags.iter().map(String::as_str), |name| {
                namespace
                    .service(name)
                    .filter(|s| metadata::label(&s.metadata, labels::ROUTE) == Some(route_name.as_str()))
                    .and_then(|s| metadata::label(&s.metadata, labels::VISIBILITY).map(str::to_owned))
            });
        let visibility = self.or_config_error(visibility)?;
        let seen = visibility::of(&visibility, DEFAULT_TARGET);
        let hosts = domains_for_visibility(self.configs, &self.route.metadata, DEFAULT_TARGET, seen);
        let host = self.or_config_error(hosts)?.primary;
        self.status().url = Some(configs::url(self.configs, seen, &host));

        let within = self.route.metadata.namespace.clone().unwrap_or_default();
        self.references.extend(
            (traffic.configurations.iter().map(|name| Reference::new("Configuration", &within, name)))
                .chain(traffic.revisions.iter().map(|name| Reference::new("Revision", &within, name))),
        );
        if let Some(error) = &traffic.error {
            error.mark(self.status(), now);
            return Ok(None);
        }
        let assigned = self.traffic_status(&traffic.entries, &visibility)?;
        let status = self.status();
        status.traffic = assigned;
        status.mark_traffic_assigned(now);
        Ok(Some((traffic, visibility)))
    }

    fn or_config_error<T>(&mut self, result: Result<T, DomainError>) -> Result<T, String> {
        let now = self.now;
        result.map_err(|error| {
            let message = error.to_string();
            self.status().mark_error_config(&message, now);
            message
        })
    }

    fn traffic_status(
        &mut self,
        entries: &[RevisionTarget],
        visibility: &Visibility,
    ) -> Result<Vec<TrafficTarget>, String> {
        let targets =
            entries.iter().map(|entry| traffic_target(self.configs, &self.route, entry, visibility));
        let targets = targets.collect::<Result<Vec<_>, _>>();
        self.or_config_error(targets)
    }

    /// Makes the placeholders of all targets and deletes those of targets that are no more.
    fn placeholders(&mut self, traffic: &Traffic) -> Result<Vec<Placeholder>, String> {
        let now = self.now;
        let mut wanted = BTreeSet::new();
        let mut placeholders = Vec::new();
        for tag in traffic.targets.keys() {
            let desired = placeholder::initial(self.configs, &self.route, tag)
                .map_err(|error| format!("failed to construct placeholder k8s service: {error}"))?;
            let name = desired.metadata.name.clone().unwrap_or_default();
            let service = match self.namespace.service(&name) {
                None => {
                    let failed = Failure::error("failed to create placeholder service", self.route.clone())
                        .with_event(
                            "CreationFailed",
                            format!("Failed to create placeholder service {name:?}"),
                        );
                    let done = EventText::normal("Created", format!("Created placeholder service {name:?}"));
                    self.step(Action::create(&desired), Some(done), failed);
                    desired
                }
                Some(existing) if !is_controlled_by(&existing.metadata, &self.route) => {
                    self.status().mark_service_not_owned(&name, now);
                    return Err(format!("route: {:?} does not own Service: {name:?}", self.name));
                }
                Some(existing) => Service::clone(&existing),
            };
            let endpoints = self.namespace.endpoints(&name);
            if endpoints.as_ref().is_some_and(|e| !is_controlled_by(&e.metadata, &self.route)) {
                self.status().mark_endpoint_not_owned(&name, now);
                return Err(format!("route: {:?} does not own Endpoints: {name:?}", self.name));
            }
            wanted.insert(name);
            placeholders.push(Placeholder { service, endpoints });
        }
        for orphan in self.namespace.services_of(&self.name) {
            let name = orphan.metadata.name.clone().unwrap_or_default();
            if wanted.contains(&name) {
                continue;
            }
            let failed = Failure::error("failed to delete Service", self.route.clone());
            self.step(Action::delete(&*orphan), None, failed);
            if let Some(endpoints) = self.namespace.endpoints(&name) {
                let failed = Failure::error("failed to delete Endpoints", self.route.clone());
                self.step(Action::delete(&*endpoints), None, failed);
            }
        }
        Ok(placeholders)
    }

    fn update_placeholders(&mut self, placeholders: &[Placeholder], ingress: &Ingress) {
        for Placeholder { service, endpoints } in placeholders {
            for action in placeholder::updates(&self.route, service, endpoints.as_deref(), ingress) {
                let failed = Failure::error("", self.route.clone());
                self.step(action, None, failed);
            }
        }
    }

    /// Creates or updates the Ingress; returns it as it will be, and the rollout state it carries.
    fn ingress(
        &mut self,
        traffic: &Traffic,
        visibility: &Visibility,
        tls: &[IngressTls],
        challenges: &[Http01Challenge],
    ) -> Result<(Ingress, Rollout), String> {
        let existing = self.namespace.ingress(&names::ingress(&self.name));
        let rollout = match &existing {
            None => traffic.rollout(),
            Some(existing) => self.rollout(traffic, existing),
        };
        let parts = Parts { traffic, visibility, rollout: &rollout, tls, challenges };
        let desired = ingress::ingress(self.configs, &self.route, parts)?;
        let Some(existing) = existing else {
            let failed = Failure::error("failed to create Ingress", self.route.clone())
                .with_event("CreationFailed", "Failed to create Ingress");
            let name = desired.metadata.name.as_deref().unwrap_or_default();
            let done = EventText::normal("Created", format!("Created Ingress {name:?}"));
            self.step(Action::create(&desired), Some(done), failed);
            let mut created = desired;
            expect_new_generation(&mut created.metadata.generation);
            return Ok((created, rollout));
        };
        let same_spec = same(&existing.spec, &desired.spec);
        if same_spec && same_maps(&existing.metadata, &desired.metadata) {
            return Ok((Ingress::clone(&existing), rollout));
        }
        let mut updated = Ingress::clone(&existing);
        updated.spec = desired.spec;
        updated.metadata.labels = desired.metadata.labels;
        updated.metadata.annotations = desired.metadata.annotations;
        let failed = Failure::error("failed to update Ingress", self.route.clone());
        self.step(Action::update(&updated), None, failed);
        if !same_spec {
            expect_new_generation(&mut updated.metadata.generation);
        }
        Ok((updated, rollout))
    }

    /// Moves the rollout state of the Ingress on, and has the Route looked at again when the next step is due.
    fn rollout(&mut self, traffic: &Traffic, existing: &Ingress) -> Rollout {
        let goal = traffic.rollout();
        let duration = configs::rollout_duration(self.configs, &self.route);
        if duration.is_zero() {
            return goal;
        }
        let state = metadata::annotation(&existing.metadata, annotations::ROLLOUT);
        let mut previous = state.and_then(Rollout::parse);
        let now = i64::try_from(self.now.as_nanosecond()).unwrap_or(i64::MAX);
        let was_ready = self.status().conditions.is_true(RouteStatus::INGRESS_READY);
        if let Some(previous) = &mut previous
            && existing.is_ready()
            && !was_ready
        {
            previous.observe_ready(now, duration.as_secs_f64());
        }
        let next = goal.step(previous.as_ref(), now);
        self.plan.requeue_after =
            next.next_step_time().map(|at| Duration::from_nanos(u64::try_from(at - now).unwrap_or(0)));
        next
    }
}

/// The API raises the generation of an object whose spec is written; nobody has observed that one yet.
pub(super) fn expect_new_generation(generation: &mut Option<i64>) {
    *generation = Some(generation.unwrap_or(0) + 1);
}

fn traffic_target(
    configs: &Configs,
    route: &Route,
    entry: &RevisionTarget,
    visibility: &Visibility,
) -> Result<TrafficTarget, DomainError> {
    let url = if entry.tag.is_empty() {
        None
    } else {
        let seen = visibility::of(visibility, &entry.tag);
        let host = domains_for_visibility(configs, &route.metadata, &entry.tag, seen)?.primary;
        Some(configs::url(configs, seen, &host))
    };
    Ok(TrafficTarget {
        tag: entry.tag.clone(),
        revision_name: entry.revision_name.clone(),
        configuration_name: String::new(),
        latest_revision: Some(entry.latest),
        percent: Some(entry.percent),
        url,
    })
}
