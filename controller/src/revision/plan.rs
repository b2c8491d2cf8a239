//! What is to be done about a Revision: digests, the certificate of encrypted system traffic, Deployment, Images,
//! PodAutoscaler, in this order. What cannot be done ends the reconcile; what was done before it stays.

use std::collections::BTreeSet;
use std::sync::Arc;

use ember_api::admission::Kind;
use ember_api::autoscaling::v1alpha1::PodAutoscaler;
use ember_api::conditions::Condition;
use ember_api::names;
use ember_api::serving::v1::{Revision, RevisionStatus};
use ember_api::status::Conditioned;
use ember_reconcile::apply::Action;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::digest::Resolution;
use super::system_certificate::{self, SystemCertificate};
use super::{deployment, image, pod_autoscaler, pod_failure};
use crate::context::Configs;
use crate::defaults;
use crate::owner::is_controlled_by;
use crate::plan::{EventText, Failure, Plan, begin};

/// What is known when a Revision is looked at.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) revision: Arc<Revision>,
    /// Where the system's own objects live.
    pub(crate) system_namespace: Arc<str>,
    /// How far its images are resolved; not consulted once the status holds the digests.
    pub(crate) digests: Resolution,
    pub(crate) deployment: Option<Arc<Deployment>>,
    /// Names of the Images that are there.
    pub(crate) images: BTreeSet<String>,
    pub(crate) pod_autoscaler: Option<Arc<PodAutoscaler>>,
    /// One of its pods, if [`needs_pod`].
    pub(crate) pod: Option<Pod>,
    /// What there is of the certificate, if system traffic is encrypted.
    pub(crate) system_certificate: Option<SystemCertificate>,
}

/// Whether a look at a pod can tell why the Deployment has nothing available.
pub(crate) fn needs_pod(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let available = deployment.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
    wanted > 0 && available == 0
}

/// Whether the status holds a digest for each container.
pub(crate) fn has_digests(revision: &Revision) -> bool {
    let pod = &revision.spec.pod_spec;
    let containers = pod.containers.len() + pod.init_containers.as_ref().map_or(0, Vec::len);
    let known = revision.status.as_ref();
    known.map_or(0, |status| status.container_statuses.len() + status.init_container_statuses.len())
        == containers
}

/// Decides. Deterministic: the time is passed in.
pub(crate) fn plan(observed: &Observed, configs: &Configs, now: Timestamp) -> Plan<Revision> {
    if observed.revision.metadata.deletion_timestamp.is_some() {
        return Plan::default();
    }
    let revision = defaults::filled(Kind::Revision, &*observed.revision, configs);
    let object = begin(&revision, now);
    let mut planner = Planner { observed, configs, now, object, live: None, plan: Plan::default() };
    let was_ready = planner.object.is_ready();
    let error = planner.run().err();
    if error.is_none() && !was_ready && planner.object.ready_condition().is_some_and(Condition::is_true) {
        let message = "Revision becomes ready upon all resources being ready";
        planner.plan.events.push(EventText::normal("RevisionReady", message));
    }
    Plan { object: Some(planner.object), error, ..planner.plan }
}

struct Planner<'a> {
    observed: &'a Observed,
    configs: &'a Configs,
    now: Timestamp,
    /// The Revision with its status as it stands so far.
    object: Revision,
    /// The Deployment as it is after the steps so far.
    live: Option<Deployment>,
    plan: Plan<Revision>,
}

impl Planner<'_> {
    fn status(&mut self) -> &mut RevisionStatus {
        self.object.status_mut_or_default()
    }

    fn step(&mut self, action: Action, error: String) {
        let failed = Failure::error(error, self.object.clone());
        self.plan.step(action, None, failed);
    }

    fn not_owned(&mut self, kind: &str, name: &str) -> String {
        let now = self.now;
        self.status().mark_resource_not_owned(kind, name, now);
        format!("revision: {:?} does not own {kind}: {name:?}", self.object.name_any())
    }

    fn run(&mut self) -> Result<(), String> {
        let template = &self.configs.observability.logging_url_template;
        let uid = self.object.uid().unwrap_or_default();
        self.status().log_url = template.replace("${REVISION_UID}", &uid);
        if !self.digests()? {
            return Ok(());
        }
        self.system_certificate()?;
        self.deployment()?;
        self.images();
        self.pod_autoscaler()
    }

    /// Whether the digests are known.
    fn digests(&mut self) -> Result<bool, String> {
        if has_digests(&self.object) {
            return Ok(true);
        }
        let now = self.now;
        match &self.observed.digests {
            Resolution::Resolved(resolved) => {
                let status = self.status();
                status.container_statuses.clone_from(&resolved.containers);
                status.init_container_statuses.clone_from(&resolved.init_containers);
                Ok(true)
            }
            Resolution::Pending => {
                self.status().mark_resolving_digests(now);
                Ok(false)
            }
            Resolution::Failed(error) => {
                let reason = RevisionStatus::REASON_CONTAINER_MISSING;
                self.status().mark_container_healthy_false(reason, error, now);
                Err(error.clone())
            }
        }
    }

    fn system_certificate(&mut self) -> Result<(), String> {
        let Some(observed) = &self.observed.system_certificate else { return Ok(()) };
        let owner = observed.namespace.as_ref().map_err(Clone::clone)?;
        let desired = system_certificate::desired(&self.object, owner, self.configs);
        if let Some(write) = system_certificate::write(observed.certificate.as_deref(), owner, desired)? {
            let (reason, message) = write.failed;
            let failed = Failure::error(write.error, self.object.clone()).with_event(reason, message);
            self.plan.step(write.action, Some(write.done), failed);
        }
        system_certificate::check_secret(&self.object, observed)
    }

    fn deployment(&mut self) -> Result<(), String> {
        let name = names::deployment(&self.object.name_any());
        let observed = self.observed;
        let now = self.now;
        let Some(live) = &observed.deployment else {
            self.status().mark_deploying(now);
            let failed = format!("failed to create deployment {name:?}");
            let desired = deployment::make(&self.object, self.configs, &self.observed.system_namespace)
                .map_err(|error| format!("{failed}: failed to make deployment: {error}"))?;
            self.step(Action::create(&desired), failed);
            self.live = Some(desired);
            return Ok(());
        };
        if !is_controlled_by(&live.metadata, &*observed.revision) {
            return Err(self.not_owned("Deployment", &name));
        }
        let failed = format!("failed to update deployment {name:?}");
        let desired = deployment::make(&self.object, self.configs, &self.observed.system_namespace)
            .map_err(|error| format!("{failed}: failed to update deployment: {error}"))?;
        let mut current = (**live).clone();
        if let Some(next) = deployment::updated(live, desired) {
            self.step(Action::update(&next), failed);
            current = next;
        }

        let state = current.status.clone().unwrap_or_default();
        self.status().propagate_deployment_status(&state, now);
        if needs_pod(&current)
            && let Some(pod) = &observed.pod
        {
            let always_schedulable = self.configs.deployment.pod_is_always_schedulable;
            pod_failure::mark(self.status(), pod, &state, always_schedulable, now);
        }
        if state.ready_replicas.unwrap_or(0) > 0 {
            self.status().mark_container_healthy_true(now);
        }
        self.live = Some(current);
        Ok(())
    }

    fn images(&mut self) {
        let status = self.status();
        let resolved: Vec<_> =
            status.container_statuses.iter().chain(&status.init_container_statuses).cloned().collect();
        for container in resolved {
            let desired = image::make(&self.object, &container);
            let name = desired.name_any();
            if !self.observed.images.contains(&name) {
                self.step(Action::create(&desired), format!("failed to create image cache {name:?}"));
            }
        }
    }

    fn pod_autoscaler(&mut self) -> Result<(), String> {
        let name = names::pod_autoscaler(&self.object.name_any());
        let observed = self.observed;
        let now = self.now;
        let Some(live) = &observed.pod_autoscaler else {
            let desired = pod_autoscaler::make(&self.object, self.live.as_ref());
            let created = pod_autoscaler::with_class(desired, self.configs);
            self.step(Action::create(&created), format!("failed to create PA {name:?}"));
            self.status().propagate_autoscaler_status(&created.status.unwrap_or_default(), now);
            return Ok(());
        };
        if !is_controlled_by(&live.metadata, &*observed.revision) {
            return Err(self.not_owned("PodAutoscaler", &name));
        }
        self.status().propagate_autoscaler_status(&live.status.clone().unwrap_or_default(), now);
        let desired = pod_autoscaler::make(&self.object, self.live.as_ref());
        if let Some(next) = pod_autoscaler::updated(live, desired) {
            self.step(Action::update(&next), format!("failed to update PA {name:?}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::digest::Digests;
    use super::*;
    use crate::golden::{self, Given, Reconcile};
    use ember_api::caching::v1alpha1::Image;
    use ember_api::labels;
    use ember_api::networking::v1alpha1::Certificate;
    use ember_api::serving::v1::ContainerStatus;
    use ember_reconcile::apply::Verb;
    use k8s_openapi::api::core::v1::{Container, Namespace, Secret};
    use serde_json::Value;

    fn hash_of(deployment: &Value) -> Option<String> {
        deployment["metadata"]["labels"][labels::DEPLOYMENT_HASH].as_str().map(ToOwned::to_owned)
    }

    /// Which of our hashes stands for which of the reference's. A hash is opaque, but where the reference sends a
    /// Deployment, we send the same one with our hash.
    fn hashes(cases: &[Reconcile]) -> BTreeMap<String, String> {
        let mut known = BTreeMap::new();
        for case in cases {
            let Some(theirs) = case.expected_objects::<Deployment>().pop() else { continue };
            let (namespace, name) = case.given.key();
            let Some(revision) = case.given.get(namespace, name) else { continue };
            let observed = observed(revision, &case.given, &BTreeMap::new());
            let plan = plan(&observed, &case.given.configs(), case.given.now());
            let ours = plan.steps.iter().find_map(|step| match &step.action.verb {
                Verb::Create(object) | Verb::Update(object) if step.action.resource.kind == "Deployment" => {
                    hash_of(object)
                }
                _ => None,
            });
            if let (Some(theirs), Some(ours)) = (theirs.labels().get(labels::DEPLOYMENT_HASH), ours) {
                known.insert(theirs.clone(), ours);
            }
        }
        known
    }

    fn resolution(revision: &Revision, given: &Given) -> Resolution {
        let statuses = |containers: &[Container]| {
            let one = |container: &Container| ContainerStatus {
                name: container.name.clone(),
                image_digest: given
                    .digests
                    .get(container.image.as_deref().unwrap_or_default())
                    .cloned()
                    .unwrap_or_default(),
            };
            containers.iter().map(one).collect()
        };
        match given.resolver.as_str() {
            "" => Resolution::Resolved(Digests {
                containers: statuses(&revision.spec.pod_spec.containers),
                init_containers: statuses(
                    revision.spec.pod_spec.init_containers.as_deref().unwrap_or_default(),
                ),
            }),
            "pending" => Resolution::Pending,
            error => Resolution::Failed(error.to_owned()),
        }
    }

    fn namespace_of(given: &Given, name: &str) -> Result<Namespace, String> {
        if given.fails("get namespaces") {
            return Err("inducing failure for get namespaces".to_owned());
        }
        let found = given.all::<Namespace>().into_iter().find(|namespace| namespace.name_any() == name);
        found.ok_or_else(|| format!("namespaces {name:?} not found"))
    }

    fn observed(revision: Revision, given: &Given, hashes: &BTreeMap<String, String>) -> Observed {
        let (namespace, name) = given.key();
        let deployment =
            given.get::<Deployment>(namespace, &names::deployment(name)).map(|mut deployment| {
                if let Some(hash) = deployment.labels_mut().get_mut(labels::DEPLOYMENT_HASH)
                    && let Some(ours) = hashes.get(hash)
                {
                    hash.clone_from(ours);
                }
                deployment
            });
        let selected = |pod: &Pod| {
            let selector = deployment.as_ref().and_then(|d| d.spec.as_ref()?.selector.match_labels.as_ref());
            selector
                .is_some_and(|labels| labels.iter().all(|(key, value)| pod.labels().get(key) == Some(value)))
        };
        let encrypted = given.configs().network.system_internal_tls;
        Observed {
            system_namespace: names::SYSTEM_NAMESPACE.into(),
            digests: resolution(&revision, given),
            images: given.all::<Image>().iter().map(ResourceExt::name_any).collect(),
            pod_autoscaler: given.get(namespace, name).map(Arc::new),
            pod: given.all::<Pod>().into_iter().filter(|_| !given.fails("list pods")).find(selected),
            system_certificate: encrypted.then(|| SystemCertificate {
                namespace: namespace_of(given, namespace),
                certificate: given.get::<Certificate>(namespace, names::SERVING_CERT).map(Arc::new),
                secret: if given.fails("get secrets") {
                    Err("inducing failure for get secrets".to_owned())
                } else {
                    Ok(given.get::<Secret>(namespace, names::SERVING_CERT))
                },
            }),
            deployment: deployment.map(Arc::new),
            revision: Arc::new(revision),
        }
    }

    #[test]
    fn golden_reconcile_revision() {
        let mut report = golden::Report::new("reconcile_revision.json");
        let cases = golden::cases::<Reconcile>("reconcile_revision.json");
        let hashes = hashes(&cases);
        for case in cases {
            let (namespace, name) = case.given.key();
            let Some(revision) = case.given.get::<Revision>(namespace, name) else {
                report.check(&case.id, case.without_object());
                continue;
            };
            let observed = observed(revision.clone(), &case.given, &hashes);
            let plan = plan(&observed, &case.given.configs(), case.given.now());
            report.check(&case.id, case.compare(&revision, plan));
        }
        report.finish();
    }
}
