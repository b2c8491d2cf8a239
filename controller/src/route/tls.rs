//! TLS of a Route: the certificates for its hosts, and what they have come to.

use std::collections::{BTreeMap, BTreeSet};

use ember_api::configmaps::network::HttpProtocol;
use ember_api::domains::{self, Domains};
use ember_api::labels;
use ember_api::networking::v1alpha1::{Certificate, Http01Challenge, IngressTls, IngressVisibility};
use ember_api::serving::v1::{Addressable, Route, RouteStatus};
use ember_api::status::Conditioned;
use ember_reconcile::apply::Action;

use crate::metadata::{self, same, same_maps};
use crate::owner::is_controlled_by;
use crate::plan::{EventText, Failure};
use crate::route::certificates::{self, Scope};
use crate::route::configs;
use crate::route::plan::{Namespace, Planner, expect_new_generation};
use crate::route::traffic::Traffic;
use crate::route::visibility::{self, Visibility};

impl<N: Namespace> Planner<'_, N> {
    /// Creates or updates a Certificate; returns it as it will be.
    fn certificate(&mut self, desired: Certificate) -> Result<Certificate, String> {
        let now = self.now;
        let name = desired.metadata.name.clone().unwrap_or_default();
        let within = desired.metadata.namespace.clone().unwrap_or_default();
        let Some(existing) = self.namespace.certificate(&name) else {
            let failed = self
                .certificate_failure(&desired, "failed to create Certificate")
                .with_event("CreationFailed", format!("Failed to create Certificate {within}/{name}"));
            let done = EventText::normal("Created", format!("Created Certificate {within}/{name}"));
            self.step(Action::create(&desired), Some(done), failed);
            return Ok(desired);
        };
        if !is_controlled_by(&existing.metadata, &self.route) {
            self.status().mark_certificate_not_owned(&name, now);
            let route = &self.name;
            return Err(format!(
                "notowned: owner: {route} with Type *v1.Route does not own Certificate: {name:?}"
            ));
        }
        let same_spec = same(&existing.spec, &desired.spec);
        if same_spec && same_maps(&existing.metadata, &desired.metadata) {
            return Ok(Certificate::clone(&existing));
        }
        let wanted = desired.clone();
        let mut updated = Certificate::clone(&existing);
        updated.spec = desired.spec;
        updated.metadata.labels = desired.metadata.labels;
        updated.metadata.annotations = desired.metadata.annotations;
        let failed = self
            .certificate_failure(&wanted, "failed to update Certificate")
            .with_event("UpdateFailed", format!("Failed to update Certificate {within}/{name}"));
        let done = EventText::normal("Updated", format!("Updated Spec for Certificate {within}/{name}"));
        self.step(Action::update(&updated), Some(done), failed);
        if !same_spec {
            expect_new_generation(&mut updated.metadata.generation);
        }
        Ok(updated)
    }

    fn certificate_failure(&self, certificate: &Certificate, error: &str) -> Failure<Route> {
        let mut route = self.route.clone();
        route.status_mut_or_default().mark_certificate_provision_failed(certificate, self.now);
        Failure::error(error, route)
    }

    /// Sets the condition to what a Certificate has come to; returns whether it can be used.
    fn mark_certificate(&mut self, certificate: &Certificate) -> bool {
        let (now, ready) = (self.now, certificate.is_ready());
        if ready {
            self.status().mark_certificate_ready(now);
        } else if certificate.is_failed() {
            self.status().mark_certificate_provision_failed(certificate, now);
        } else {
            self.status().mark_certificate_not_ready(certificate, now);
        }
        ready
    }

    /// Certificates for the hosts that the outside reaches: what the Ingress terminates with, the challenges it has
    /// to let through, and how many certificates are wanted.
    pub(super) fn external_tls(
        &mut self,
        traffic: &Traffic,
        visibility: &Visibility,
    ) -> Result<(Vec<IngressTls>, Vec<Http01Challenge>, usize), String> {
        let now = self.now;
        if !configs::external_domain_tls(self.configs, &self.route) {
            self.status().mark_tls_not_enabled(RouteStatus::EXTERNAL_DOMAIN_TLS_NOT_ENABLED, now);
            return Ok((Vec::new(), Vec::new(), 0));
        }
        let mut tag_by_host = BTreeMap::new();
        for tag in traffic.targets.keys() {
            let seen = visibility::of(visibility, tag);
            let host = self.hosts(tag, seen)?.primary;
            if !domains::is_cluster_local(&self.configs.domain, &host) {
                tag_by_host.insert(host, tag.clone());
            }
        }
        let domain = self.configs.domain.for_labels(&metadata::labels(&self.route.metadata));
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
                if self.configs.network.http_protocol == HttpProtocol::Enabled {
                    self.set_scheme(hosts, "http");
                    let name = certificate.metadata.name.clone().unwrap_or_default();
                    self.status().mark_http_downgrade(&name, now);
                }
            }
        }
        challenges.sort_by(|a, b| a.url.cmp(&b.url));
        let used: BTreeSet<&str> = tag_by_host.keys().map(String::as_str).collect();
        self.delete_orphaned_certificates(Scope::External, &used);
        Ok((tls, challenges, tag_by_host.len()))
    }

    pub(super) fn cluster_local_tls(&mut self, traffic: &Traffic) -> Result<Vec<IngressTls>, String> {
        let mut tls = Vec::new();
        let mut used = BTreeSet::new();
        let domain = self.configs.domain.cluster_local();
        for tag in traffic.targets.keys() {
            let hosts = self.hosts(tag, IngressVisibility::ClusterLocal)?.expanded;
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
                if let Some(url) =
                    self.status().url.as_mut().filter(|url| hosts.iter().any(|h| h == host_of(url)))
                {
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

    fn hosts(&self, tag: &str, seen: IngressVisibility) -> Result<Domains, String> {
        domains::domains_for_visibility(self.configs, &self.route.metadata, tag, seen)
            .map_err(|e| e.to_string())
    }

    fn delete_orphaned_certificates(&mut self, scope: Scope, used: &BTreeSet<&str>) {
        for certificate in self.namespace.certificates(labels::ROUTE, &self.name.clone()) {
            let typed =
                metadata::label(&certificate.metadata, labels::CERTIFICATE_TYPE) == Some(scope.as_str());
            if !typed || certificate.spec.dns_names.iter().any(|name| used.contains(name.as_str())) {
                continue;
            }
            let name = certificate.metadata.name.clone().unwrap_or_default();
            let within = certificate.metadata.namespace.clone().unwrap_or_default();
            let done =
                EventText::normal("Deleted", format!("Deleted orphaned Knative Certificate {within}/{name}"));
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
