//! What is to be done about a Route.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ember_api::networking::v1alpha1::{Certificate, Http01Challenge, Ingress, IngressTls, IngressVisibility};
use ember_api::serving::v1::{Addressable, Route, RouteStatus, TrafficTarget};
use ember_api::status::{Conditioned, Status};
use ember_api::{annotations, labels, names};
use ember_reconcile::apply::Action;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Service};

use crate::metadata::{self, same, same_maps};
use crate::owner::is_controlled_by;
use crate::plan::{EventText, Failure, Plan, begin};
use crate::route::certificates::{self, Scope};
use crate::route::ingress::{self, Parts};
use crate::route::rollout::Rollout;
use crate::route::traffic::{self, DEFAULT_TARGET, Lookup, RevisionTarget, Traffic};
use crate::route::{RouteConfigs, domains, placeholder};
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
    configs: &RouteConfigs<'_>,
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
        route: begin(original, now),
        plan: Plan::default(),
        references: BTreeSet::new(),
    };
    let error = planner.reconcile().err();
    let Planner { route, mut plan, references, .. } = planner;
    plan.error = error;
    plan.object = Some(route);
    RoutePlan { plan, references }
}

struct Planner<'a, N> {
    namespace: &'a N,
    configs: &'a RouteConfigs<'a>,
    now: Timestamp,
    name: String,
    route: Route,
    plan: Plan<Route>,
    references: BTreeSet<Reference>,
}

/// A placeholder as it is once the plan's writes so far are done.
struct Placeholder {
    service: Service,
    endpoints: Option<Arc<Endpoints>>,
}

type Visibility = BTreeMap<String, IngressVisibility>;

impl<N: Namespace> Planner<'_, N> {
    fn status(&mut self) -> &mut RouteStatus {
        self.route.status_mut_or_default()
    }

    fn step(&mut self, action: Action, done: Option<EventText>, failed: Failure<Route>) {
        self.plan.step(action, done, failed);
    }

    fn reconcile(&mut self) -> Result<(), String> {
        let now = self.now;
        // Otherwise an error further down would leave a stale True for a generation that nobody serves yet.
        if self.route.current_status().is_none() {
            self.mark_ingress_not_configured();
        }
        let Some((traffic, visibility)) = self.assign_traffic()? else { return Ok(()) };

        let address = self.configs.service_host(&self.route);
        self.status().address = Some(Addressable::from_url(format!("http://{address}")));
        let placeholders = self.placeholders(&traffic)?;
        let (mut tls, challenges, wanted) = self.external_tls(&traffic, &visibility)?;
        if self.configs.cluster_local_domain_tls() {
            tls.extend(self.cluster_local_tls(&traffic)?);
        } else if self.configs.external_domain_tls(&self.route) && wanted == 0 {
            self.status().manage(now).mark_true_with_reason(
                RouteStatus::CERTIFICATE_PROVISIONED,
                "TLSNotEnabled",
                "TLS is not enabled for cluster-local",
            );
        }

        let (ingress, rollout) = self.ingress(&traffic, &visibility, &tls, &challenges)?;
        let in_progress = !rollout.is_done();
        match ingress.current_status() {
            None => self.mark_ingress_not_configured(),
            Some(_) if in_progress => {}
            Some(status) => match status.top_level_condition() {
                None => self.mark_ingress_not_configured(),
                Some(ready) => self.status().manage(now).mirror(RouteStatus::INGRESS_READY, ready),
            },
        }
        self.update_placeholders(&placeholders, &ingress);
        if in_progress {
            self.status().manage(now).mark_unknown(
                RouteStatus::INGRESS_READY,
                "RolloutInProgress",
                "A gradual rollout of the latest revision(s) is in progress.",
            );
            let traffic = self.traffic_status(&traffic.effective_entries(&rollout), &visibility)?;
            self.status().traffic = traffic;
        }
        Ok(())
    }

    fn mark_ingress_not_configured(&mut self) {
        let now = self.now;
        self.status().manage(now).mark_unknown(
            RouteStatus::INGRESS_READY,
            "IngressNotConfigured",
            "Ingress has not yet been reconciled.",
        );
    }

    /// Resolves the traffic and says so in the status; `None` when a target cannot take any.
    fn assign_traffic(&mut self) -> Result<Option<(Traffic, Visibility)>, String> {
        let now = self.now;
        let traffic = traffic::resolve(&self.route, self.namespace);
        let tags: BTreeSet<String> = std::iter::once(DEFAULT_TARGET.to_owned())
            .chain(self.route.spec.traffic.iter().map(|t| t.tag.clone()))
            .collect();
        let namespace = self.namespace;
        let visibility =
            domains::visibility(self.configs, &self.route, tags.iter().map(String::as_str), |name| {
                namespace.service(name).and_then(|s| metadata::label(&s.metadata, labels::VISIBILITY).map(str::to_owned))
            });
        let visibility = self.or_config_error(visibility)?;
        let seen = visibility.get(DEFAULT_TARGET).copied().unwrap_or_default();
        let host = domains::host(self.configs, &self.route, &self.name, seen);
        let host = self.or_config_error(host)?;
        self.status().url = Some(self.configs.url(seen, &host));

        let within = self.route.metadata.namespace.clone().unwrap_or_default();
        self.references.extend(
            (traffic.configurations.iter().map(|name| Reference::new("Configuration", &within, name)))
                .chain(traffic.revisions.iter().map(|name| Reference::new("Revision", &within, name))),
        );
        if let Some(error) = &traffic.error {
            let message = error.to_string();
            let mut conditions = self.route.status_mut_or_default().manage(now);
            if error.is_failure() {
                conditions.mark_false(RouteStatus::ALL_TRAFFIC_ASSIGNED, error.reason(), &message);
            } else {
                conditions.mark_unknown(RouteStatus::ALL_TRAFFIC_ASSIGNED, error.reason(), &message);
            }
            return Ok(None);
        }
        let assigned = self.traffic_status(&traffic.entries, &visibility)?;
        let status = self.status();
        status.traffic = assigned;
        status.manage(now).mark_true(RouteStatus::ALL_TRAFFIC_ASSIGNED);
        Ok(Some((traffic, visibility)))
    }

    fn or_config_error<T>(&mut self, result: Result<T, domains::DomainNameError>) -> Result<T, String> {
        let now = self.now;
        result.map_err(|error| {
            let message = error.to_string();
            let mut conditions = self.route.status_mut_or_default().manage(now);
            conditions.mark_false(RouteStatus::ALL_TRAFFIC_ASSIGNED, "ErrorConfig", &message);
            message
        })
    }

    fn traffic_status(
        &mut self,
        entries: &[RevisionTarget],
        visibility: &Visibility,
    ) -> Result<Vec<TrafficTarget>, String> {
        let targets = entries.iter().map(|entry| traffic_target(self.configs, &self.route, entry, visibility));
        let targets = targets.collect::<Result<Vec<_>, _>>();
        self.or_config_error(targets)
    }

    /// Makes the placeholders of all targets and deletes those of targets that are no more.
    fn placeholders(&mut self, traffic: &Traffic) -> Result<Vec<Placeholder>, String> {
        let now = self.now;
        let mut wanted = BTreeSet::new();
        let mut placeholders = Vec::new();
        for tag in traffic.targets.keys() {
            let desired = placeholder::initial(self.configs, &self.route, tag).map_err(|e| e.to_string())?;
            let name = desired.metadata.name.clone().unwrap_or_default();
            let service = match self.namespace.service(&name) {
                None => {
                    let failed = Failure::error("failed to create placeholder service", self.route.clone())
                        .with_event("CreationFailed", format!("Failed to create placeholder service {name:?}"));
                    let done = EventText::normal("Created", format!("Created placeholder service {name:?}"));
                    self.step(Action::create(&desired), Some(done), failed);
                    desired
                }
                Some(existing) if !is_controlled_by(&existing.metadata, &self.route) => {
                    let message = format!("There is an existing placeholder Service {name:?} that we do not own.");
                    self.status().manage(now).mark_false(RouteStatus::INGRESS_READY, "NotOwned", &message);
                    return Err(format!("route: {:?} does not own Service: {name:?}", self.name));
                }
                Some(existing) => Service::clone(&existing),
            };
            let endpoints = self.namespace.endpoints(&name);
            if endpoints.as_ref().is_some_and(|e| !is_controlled_by(&e.metadata, &self.route)) {
                let message = format!("There is an existing placeholder Endpoint {name:?} that we do not own.");
                self.status().manage(now).mark_false(RouteStatus::INGRESS_READY, "NotOwned", &message);
                return Err(format!("route: {:?} does not own Endpoints: {name:?}", self.name));
            }
            wanted.insert(name);
            placeholders.push(Placeholder { service, endpoints });
        }
        for orphan in self.namespace.services_of(&self.name) {
            let name = orphan.metadata.name.clone().unwrap_or_default();
            if wanted.contains(&name) || !is_controlled_by(&orphan.metadata, &self.route) {
                continue;
            }
            let failed = Failure::error("failed to delete Service", self.route.clone());
            self.step(Action::delete(&*orphan), None, failed);
            let endpoints = self.namespace.endpoints(&name);
            if let Some(endpoints) = endpoints.filter(|e| is_controlled_by(&e.metadata, &self.route)) {
                let failed = Failure::error("failed to delete Endpoints", self.route.clone());
                self.step(Action::delete(&*endpoints), None, failed);
            }
        }
        Ok(placeholders)
    }

    fn update_placeholders(&mut self, placeholders: &[Placeholder], ingress: &Ingress) {
        for Placeholder { service, endpoints } in placeholders {
            for action in placeholder::updates(&self.route, service, endpoints.as_deref(), ingress) {
                let failed = Failure::error("failed to update placeholder service", self.route.clone());
                self.step(action, None, failed);
            }
        }
    }

    /// Creates or updates a Certificate; returns it as it will be.
    fn certificate(&mut self, desired: Certificate) -> Result<Certificate, String> {
        let now = self.now;
        let name = desired.metadata.name.clone().unwrap_or_default();
        let within = desired.metadata.namespace.clone().unwrap_or_default();
        let Some(existing) = self.namespace.certificate(&name) else {
            let failed = self.certificate_failure(&name, "failed to create Certificate").with_event(
                "CreationFailed",
                format!("Failed to create Certificate {within}/{name}"),
            );
            let done = EventText::normal("Created", format!("Created Certificate {within}/{name}"));
            self.step(Action::create(&desired), Some(done), failed);
            return Ok(desired);
        };
        if !is_controlled_by(&existing.metadata, &self.route) {
            let message = format!("There is an existing certificate {name} that we don't own.");
            let mut conditions = self.route.status_mut_or_default().manage(now);
            conditions.mark_false(RouteStatus::CERTIFICATE_PROVISIONED, "CertificateNotOwned", &message);
            let route = &self.name;
            return Err(format!("notowned: owner: {route} with Type *v1.Route does not own Certificate: {name:?}"));
        }
        let same_spec = same(&existing.spec, &desired.spec);
        if same_spec && same_maps(&existing.metadata, &desired.metadata) {
            return Ok(Certificate::clone(&existing));
        }
        let mut updated = Certificate::clone(&existing);
        updated.spec = desired.spec;
        updated.metadata.labels = desired.metadata.labels;
        updated.metadata.annotations = desired.metadata.annotations;
        let failed = self
            .certificate_failure(&name, "failed to update Certificate")
            .with_event("UpdateFailed", format!("Failed to update Certificate {within}/{name}"));
        let done = EventText::normal("Updated", format!("Updated Spec for Certificate {within}/{name}"));
        self.step(Action::update(&updated), Some(done), failed);
        if !same_spec {
            expect_new_generation(&mut updated.metadata.generation);
        }
        Ok(updated)
    }

    fn certificate_failure(&self, name: &str, error: &str) -> Failure<Route> {
        let mut route = self.route.clone();
        route.status_mut_or_default().manage(self.now).mark_false(
            RouteStatus::CERTIFICATE_PROVISIONED,
            "CertificateProvisionFailed",
            &format!("Certificate {name} fails to be provisioned: "),
        );
        Failure::error(error, route)
    }

    /// Sets the condition to what a Certificate has come to; returns whether it can be used.
    fn mark_certificate(&mut self, certificate: &Certificate) -> bool {
        let now = self.now;
        let name = certificate.metadata.name.clone().unwrap_or_default();
        let reason = certificate.ready_condition().map_or(String::new(), |c| c.reason.clone());
        let mut conditions = self.route.status_mut_or_default().manage(now);
        let condition = RouteStatus::CERTIFICATE_PROVISIONED;
        if certificate.is_ready() {
            conditions.mark_true(condition);
            return true;
        }
        if certificate.is_failed() {
            let message = format!("Certificate {name} fails to be provisioned: {reason}");
            conditions.mark_false(condition, "CertificateProvisionFailed", &message);
        } else {
            let message = format!("Certificate {name} is not ready: {reason}");
            conditions.mark_unknown(condition, "CertificateNotReady", &message);
        }
        false
    }

    /// Certificates for the hosts that the outside reaches: what the Ingress terminates with, the challenges it has
    /// to let through, and how many certificates are wanted.
    fn external_tls(
        &mut self,
        traffic: &Traffic,
        visibility: &Visibility,
    ) -> Result<(Vec<IngressTls>, Vec<Http01Challenge>, usize), String> {
        let now = self.now;
        let condition = RouteStatus::CERTIFICATE_PROVISIONED;
        if !self.configs.external_domain_tls(&self.route) {
            let mut conditions = self.route.status_mut_or_default().manage(now);
            conditions.mark_true_with_reason(condition, "TLSNotEnabled", "external-domain-tls is not enabled");
            return Ok((Vec::new(), Vec::new(), 0));
        }
        let mut tag_by_host = BTreeMap::new();
        for tag in traffic.targets.keys() {
            let seen = visibility.get(tag).copied().unwrap_or_default();
            let name = domains::hostname(self.configs, &self.name, tag).map_err(|e| e.to_string())?;
            let host = domains::host(self.configs, &self.route, &name, seen).map_err(|e| e.to_string())?;
            if !host.ends_with(self.configs.cluster_domain) {
                tag_by_host.insert(host, tag.clone());
            }
        }
        let domain = domains::base_domain(self.configs, &metadata::labels(&self.route.metadata));
        let wildcards = self.namespace.certificates(labels::WILDCARD_DOMAIN, &domain);
        let (mut tls, mut challenges) = (Vec::new(), Vec::new());
        for (host, tag) in &tag_by_host {
            let hosts = std::slice::from_ref(host);
            let certificate = match wildcards.iter().find(|w| certificates::covers(w, hosts)) {
                Some(wildcard) => Certificate::clone(wildcard),
                None => {
                    let desired = certificates::certificate(
                        self.configs,
                        &self.route,
                        tag,
                        hosts.to_vec(),
                        domain.clone(),
                        Scope::External,
                    );
                    self.certificate(desired)?
                }
            };
            self.set_scheme(hosts, "https");
            let status = certificate.status.as_ref();
            if self.mark_certificate(&certificate) {
                tls.push(certificates::ingress_tls(&certificate, hosts));
                if status.is_some_and(|s| s.conditions.is_true("Renewing")) {
                    challenges.extend(status.into_iter().flat_map(|s| s.http01_challenges.clone()));
                }
            } else {
                challenges.extend(status.into_iter().flat_map(|s| s.http01_challenges.clone()));
                if self.configs.is_http_enabled() {
                    self.set_scheme(hosts, "http");
                    let name = certificate.metadata.name.clone().unwrap_or_default();
                    let message = format!("Certificate {name} is not ready downgrade HTTP.");
                    let mut conditions = self.route.status_mut_or_default().manage(now);
                    conditions.mark_true_with_reason(condition, "HTTPDowngrade", &message);
                }
            }
        }
        challenges.sort_by(|a, b| a.url.cmp(&b.url));
        let used: BTreeSet<&str> = tag_by_host.keys().map(String::as_str).collect();
        self.delete_orphaned_certificates(Scope::External, &used);
        Ok((tls, challenges, tag_by_host.len()))
    }

    fn cluster_local_tls(&mut self, traffic: &Traffic) -> Result<Vec<IngressTls>, String> {
        let mut tls = Vec::new();
        let mut used = BTreeSet::new();
        let domain = self.configs.service_domain();
        for tag in traffic.targets.keys() {
            let hosts = domains::hosts(self.configs, &self.route, tag, IngressVisibility::ClusterLocal)
                .map_err(|e| e.to_string())?;
            let desired = certificates::certificate(
                self.configs,
                &self.route,
                tag,
                hosts.clone(),
                domain.clone(),
                Scope::ClusterLocal,
            );
            let certificate = self.certificate(desired)?;
            if self.mark_certificate(&certificate) {
                if let Some(Addressable { url: Some(url), .. }) = &mut self.status().address {
                    set_scheme(url, "https");
                }
                if let Some(url) = self.status().url.as_mut().filter(|url| hosts.iter().any(|h| h == host_of(url))) {
                    set_scheme(url, "https");
                }
                tls.push(certificates::ingress_tls(&certificate, &hosts));
            }
            used.extend(hosts);
        }
        let used = used.iter().map(String::as_str).collect();
        self.delete_orphaned_certificates(Scope::ClusterLocal, &used);
        Ok(tls)
    }

    fn delete_orphaned_certificates(&mut self, scope: Scope, used: &BTreeSet<&str>) {
        for certificate in self.namespace.certificates(labels::ROUTE, &self.name.clone()) {
            let typed = metadata::label(&certificate.metadata, labels::CERTIFICATE_TYPE) == Some(scope.as_str());
            if !typed || certificate.spec.dns_names.iter().any(|name| used.contains(name.as_str())) {
                continue;
            }
            let name = certificate.metadata.name.clone().unwrap_or_default();
            let within = certificate.metadata.namespace.clone().unwrap_or_default();
            let done = EventText::normal("Deleted", format!("Deleted orphaned Knative Certificate {within}/{name}"));
            let failed = Failure::error("failed to delete Certificate", self.route.clone())
                .with_event(
                    "DeleteFailed",
                    format!("Failed to delete orphaned Knative Certificate {within}/{name}"),
                )
                .tolerated();
            self.step(Action::delete(&*certificate), Some(done), failed);
        }
    }

    /// Sets the scheme of the status' URLs that lead to one of `hosts`.
    fn set_scheme(&mut self, hosts: &[String], scheme: &str) {
        let status = self.status();
        let urls = status.url.iter_mut().chain(status.traffic.iter_mut().filter_map(|t| t.url.as_mut()));
        for url in urls.filter(|url| hosts.iter().any(|h| h == host_of(url))) {
            set_scheme(url, scheme);
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
        let duration = self.configs.rollout_duration(&self.route);
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
fn expect_new_generation(generation: &mut Option<i64>) {
    *generation = Some(generation.unwrap_or(0) + 1);
}

fn traffic_target(
    configs: &RouteConfigs<'_>,
    route: &Route,
    entry: &RevisionTarget,
    visibility: &Visibility,
) -> Result<TrafficTarget, domains::DomainNameError> {
    let url = if entry.tag.is_empty() {
        None
    } else {
        let seen = visibility.get(&entry.tag).copied().unwrap_or_default();
        let name = domains::hostname(configs, route.metadata.name.as_deref().unwrap_or_default(), &entry.tag)?;
        Some(configs.url(seen, &domains::host(configs, route, &name, seen)?))
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

/// The host of a URL that this module made, without a port.
fn host_of(url: &str) -> &str {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    authority.split([':', '/']).next().unwrap_or_default()
}

fn set_scheme(url: &mut String, scheme: &str) {
    if let Some((_, rest)) = url.split_once("://") {
        *url = format!("{scheme}://{rest}");
    }
}
