//! What is to be done about a ServerlessService: private Service, public Service, then the public Service's Endpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use ember_api::names;
use ember_api::networking::v1alpha1::{
    ServerlessService, ServerlessServiceOperationMode, ServerlessServiceStatus,
};
use ember_api::status::Conditioned;
use ember_reconcile::apply::Action;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use kube::ResourceExt;

use super::{services, subset};
use crate::owner::is_controlled_by;
use crate::plan::{Failure, Plan, begin};

/// What is known when a ServerlessService is looked at.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) sks: Arc<ServerlessService>,
    /// Selector of the scale target's pods, or why it is not known.
    pub(crate) selector: Result<BTreeMap<String, String>, String>,
    pub(crate) private_service: Option<Arc<Service>>,
    pub(crate) public_service: Option<Arc<Service>>,
    /// Endpoints of the private Service.
    pub(crate) private_endpoints: Option<Arc<Endpoints>>,
    pub(crate) public_endpoints: Option<Arc<Endpoints>>,
    /// Endpoints of the activator's Service.
    pub(crate) activator_endpoints: Option<Arc<Endpoints>>,
}

/// Decides. Deterministic: the time is passed in.
pub(crate) fn plan(observed: &Observed, now: Timestamp) -> Plan<ServerlessService> {
    if observed.sks.metadata.deletion_timestamp.is_some() {
        return Plan::default();
    }
    let mut planner = Planner { observed, object: begin(&*observed.sks, now), plan: Plan::default(), now };
    let result = planner
        .private_service()
        .and_then(|()| planner.public_service())
        .and_then(|()| planner.public_endpoints());
    Plan { object: Some(planner.object), error: result.err(), ..planner.plan }
}

struct Planner<'a> {
    observed: &'a Observed,
    /// The object with its status as it stands so far.
    object: ServerlessService,
    plan: Plan<ServerlessService>,
    now: Timestamp,
}

impl Planner<'_> {
    fn status(&mut self) -> &mut ServerlessServiceStatus {
        self.object.status_mut_or_default()
    }

    fn step(&mut self, action: Action, error: &str) {
        let failed = Failure::error(error, self.object.clone());
        self.plan.step(action, None, failed);
    }

    fn mark_not_ready(&mut self, reason: &str) {
        let now = self.now;
        self.status().mark_endpoints_not_ready(reason, now);
    }

    fn not_owned(&mut self, kind: &str, name: &str) -> String {
        let now = self.now;
        self.status().mark_endpoints_not_owned(kind, name, now);
        format!("SKS: {} does not own {kind}: {name}", self.object.name_any())
    }

    fn private_service(&mut self) -> Result<(), String> {
        let observed = self.observed;
        let selector = observed.selector.clone();
        let selector =
            selector.map_err(|error| format!("error retrieving deployment selector spec: {error}"))?;
        let desired = services::private_service(&observed.sks, selector);
        let name = desired.name_any();
        match &observed.private_service {
            None => {
                self.mark_not_ready("CreatingPrivateService");
                self.step(Action::create(&desired), "failed to create private K8s Service");
            }
            Some(live) if !is_controlled_by(&live.metadata, &*observed.sks) => {
                return Err(self.not_owned("Service", &name));
            }
            Some(live) => {
                if let Some(next) = services::updated(live, &desired) {
                    self.mark_not_ready("UpdatingPrivateService");
                    self.step(Action::update(&next), "failed to update private K8s Service");
                }
            }
        }
        self.status().private_service_name = name;
        Ok(())
    }

    fn public_service(&mut self) -> Result<(), String> {
        let observed = self.observed;
        let desired = services::public_service(&observed.sks);
        let name = desired.name_any();
        match &observed.public_service {
            None => {
                self.mark_not_ready("CreatingPublicService");
                self.step(Action::create(&desired), "failed to create public K8s Service");
            }
            Some(live) if !is_controlled_by(&live.metadata, &*observed.sks) => {
                return Err(self.not_owned("Service", &name));
            }
            Some(live) => {
                if let Some(next) = services::updated(live, &desired) {
                    self.step(Action::update(&next), "failed to update public K8s Service");
                }
            }
        }
        self.status().service_name = name;
        Ok(())
    }

    fn public_endpoints(&mut self) -> Result<(), String> {
        let observed = self.observed;
        let missing =
            |what: &str, name: &str| format!("failed to get {what} endpoints: endpoints {name:?} not found");
        let Some(activators) = &observed.activator_endpoints else {
            return Err(missing("activator service", names::ACTIVATOR_SERVICE));
        };
        let name = observed.sks.name_any();
        let Some(private) = &observed.private_endpoints else {
            return Err(missing("private K8s Service", &names::private_service(&name)));
        };
        let has_backends = services::ready_addresses(private) > 0;
        let proxies = observed.sks.spec.mode == ServerlessServiceOperationMode::Proxy;
        let activators_only = proxies || !has_backends;

        // Without an activator the pods are all there is to lead to, whether there are any or not.
        let source = if activators_only && services::ready_addresses(activators) > 0 {
            let count = usize::try_from(observed.sks.spec.num_activators).unwrap_or(0);
            subset::reduce(activators.subsets.as_deref().unwrap_or_default(), &name, count)
        } else {
            private.subsets.clone().unwrap_or_default()
        };

        match &observed.public_endpoints {
            None => {
                self.mark_not_ready("CreatingPublicEndpoints");
                let desired = services::public_endpoints(&observed.sks, &source);
                self.step(Action::create(&desired), "failed to create public K8s Endpoints");
            }
            Some(live) if !is_controlled_by(&live.metadata, &*observed.sks) => {
                return Err(self.not_owned("Endpoints", &name));
            }
            Some(live) => {
                let subsets = services::serving_subsets(&observed.sks, &source);
                if !services::same_subsets(&subsets, live.subsets.as_deref().unwrap_or_default()) {
                    let next =
                        Endpoints { subsets: Some(subsets).filter(|s| !s.is_empty()), ..(**live).clone() };
                    self.step(Action::update(&next), "failed to update public K8s Endpoints");
                }
            }
        }

        let now = self.now;
        if has_backends {
            self.status().mark_endpoints_ready(now);
        } else {
            self.mark_not_ready("NoHealthyBackends");
        }
        if activators_only {
            self.status().mark_activator_endpoints_populated(now);
        } else {
            self.status().mark_activator_endpoints_removed(now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, Given, Reconcile};
    use k8s_openapi::api::apps::v1::Deployment;

    fn observed(sks: ServerlessService, given: &Given) -> Observed {
        let (namespace, name) = given.key();
        let private = names::private_service(name);
        let target = sks.spec.object_ref.name.clone().unwrap_or_default();
        let selector = given
            .get::<Deployment>(namespace, &target)
            .and_then(|deployment| deployment.spec?.selector.match_labels)
            .ok_or_else(|| {
                format!(
                    "error fetching Pod Scalable {namespace}/{target}: deployments.apps {target:?} not found"
                )
            });
        Observed {
            selector,
            private_service: given.get(namespace, &private).map(Arc::new),
            public_service: given.get(namespace, name).map(Arc::new),
            private_endpoints: given.get(namespace, &private).map(Arc::new),
            public_endpoints: given.get(namespace, name).map(Arc::new),
            activator_endpoints: given.get(names::SYSTEM_NAMESPACE, names::ACTIVATOR_SERVICE).map(Arc::new),
            sks: Arc::new(sks),
        }
    }

    #[test]
    fn golden_reconcile_serverlessservice() {
        let mut report = golden::Report::new("reconcile_serverlessservice.json");
        for case in golden::cases::<Reconcile>("reconcile_serverlessservice.json") {
            let (namespace, name) = case.given.key();
            let Some(sks) = case.given.get::<ServerlessService>(namespace, name) else {
                report.check(&case.id, case.without_object());
                continue;
            };
            let plan = plan(&observed(sks.clone(), &case.given), case.given.now());
            report.check(&case.id, case.compare(&sks, plan));
        }
        report.finish();
    }
}
