//! Which Configurations and Revisions a Route leads to, written on them.

use std::collections::BTreeSet;
use std::sync::Arc;

use ember_api::labels::RoutingState;
use ember_api::serving::v1::{Configuration, Revision, Route, routing_state_time};
use ember_api::status::Conditioned;
use ember_api::{annotations, labels};
use ember_reconcile::apply::Action;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use crate::metadata::{annotation, insert_name, label, remove_name};
use crate::owner::controller_of;
use crate::plan::{EventText, Failure, Plan};
use crate::route::Lookup;
use crate::tracker::Reference;

/// Keeps a deleted Route until nothing carries its name any more.
const FINALIZER: &str = "routes.serving.knative.dev";

/// The Route's namespace as the caches have it.
pub(crate) trait Namespace: Lookup {
    fn configurations(&self) -> Vec<Arc<Configuration>>;
    /// The Revisions that are labelled as led to.
    fn active_revisions(&self) -> Vec<Arc<Revision>>;
}

/// A plan, and what the Route depends on.
#[derive(Clone, Debug)]
pub(crate) struct LabelerPlan {
    pub(crate) plan: Plan<Route>,
    pub(crate) references: BTreeSet<Reference>,
}

/// Decides what has to be labelled differently because of a Route.
pub(crate) fn plan(route: &Route, namespace: &impl Namespace, now: Timestamp) -> LabelerPlan {
    let mut planner = Planner {
        route: route.metadata.name.as_deref().unwrap_or_default(),
        namespace_name: route.metadata.namespace.as_deref().unwrap_or_default(),
        namespace,
        now,
        plan: Plan::default(),
        references: BTreeSet::new(),
    };
    let finalizers = route.metadata.finalizers.clone().unwrap_or_default();
    let has_finalizer = finalizers.iter().any(|f| f == FINALIZER);
    if route.metadata.deletion_timestamp.is_some() {
        if has_finalizer {
            planner.clear_unlisted(&BTreeSet::new(), &BTreeSet::new());
            let mut others: Vec<String> = finalizers.into_iter().filter(|f| f != FINALIZER).collect();
            others.sort_unstable();
            planner.set_finalizers(route, &others);
        }
    } else {
        if !has_finalizer {
            let all: Vec<String> = finalizers.into_iter().chain([FINALIZER.to_owned()]).collect();
            planner.set_finalizers(route, &all);
        }
        planner.label(route);
    }
    LabelerPlan { plan: planner.plan, references: planner.references }
}

struct Planner<'a, N> {
    route: &'a str,
    namespace_name: &'a str,
    namespace: &'a N,
    now: Timestamp,
    plan: Plan<Route>,
    references: BTreeSet<Reference>,
}

impl<N: Namespace> Planner<'_, N> {
    fn set_finalizers(&mut self, route: &Route, finalizers: &[String]) {
        let name = self.route;
        let version = route.metadata.resource_version.clone().unwrap_or_default();
        let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}});
        let setting = finalizers.iter().any(|finalizer| finalizer == FINALIZER);
        let failed = Failure::without_status(format!(
            "failed to {} finalizers",
            if setting { "set" } else { "clear" }
        ))
        .quiet()
        .with_event("FinalizerUpdateFailed", format!("Failed to update finalizers for {name:?}"));
        let done = EventText::normal("FinalizerUpdate", format!("Updated {name:?} finalizers"));
        self.plan.step(Action::merge_patch::<Route>(self.namespace_name, name, patch), Some(done), failed);
    }

    fn label(&mut self, route: &Route) {
        let (configurations, revisions) = self.listed(route);
        // While the Route is between two states, both the old and the new Revisions may be needed.
        if route.is_ready() || route.is_failed() {
            self.clear_unlisted(&configurations, &revisions);
        }
        for name in &revisions {
            if let Some(revision) = self.namespace.revision(name) {
                self.patch_revision(&revision, true);
            }
        }
        for name in &configurations {
            if let Some(configuration) = self.namespace.configuration(name) {
                self.patch_configuration(&configuration, true);
            }
        }
    }

    /// Names of the Configurations and Revisions that the Route leads to, or will.
    fn listed(&mut self, route: &Route) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut configurations, mut revisions) = (BTreeSet::new(), BTreeSet::new());
        let assigned = route.status.iter().flat_map(|s| &s.traffic);
        for target in assigned.chain(&route.spec.traffic) {
            let mut configuration_name = target.configuration_name.clone();
            if !target.revision_name.is_empty() {
                self.references.insert(Reference::new(
                    "Revision",
                    self.namespace_name,
                    &target.revision_name,
                ));
                let Some(revision) = self.namespace.revision(&target.revision_name) else { continue };
                revisions.insert(target.revision_name.clone());
                if let Some(owner) = controller_of(&revision.metadata).filter(|o| o.kind == "Configuration") {
                    configuration_name.clone_from(&owner.name);
                }
            }
            if configuration_name.is_empty() {
                continue;
            }
            self.references.insert(Reference::new("Configuration", self.namespace_name, &configuration_name));
            let Some(configuration) = self.namespace.configuration(&configuration_name) else { continue };
            // The Revision that will take over is kept up before the Route knows it.
            let created =
                configuration.status.as_ref().map_or("", |s| s.latest_created_revision_name.as_str());
            if target.latest_revision == Some(true) && self.namespace.revision(created).is_some() {
                revisions.insert(created.to_owned());
            }
            configurations.insert(configuration_name);
        }
        (configurations, revisions)
    }

    fn clear_unlisted(&mut self, configurations: &BTreeSet<String>, revisions: &BTreeSet<String>) {
        let is_listed = |meta: &ObjectMeta, listed: &BTreeSet<String>| {
            meta.name.as_ref().is_some_and(|name| listed.contains(name))
        };
        for revision in self.namespace.active_revisions() {
            if self.leads_to(&revision.metadata) && !is_listed(&revision.metadata, revisions) {
                self.patch_revision(&revision, false);
            }
        }
        for configuration in self.namespace.configurations() {
            if self.leads_to(&configuration.metadata) && !is_listed(&configuration.metadata, configurations) {
                self.patch_configuration(&configuration, false);
            }
        }
    }

    fn failure(&self, kind: &str, name: &str, leads: bool) -> String {
        if leads {
            format!("failed to add route annotation to Namespace={} Name={name:?}", self.namespace_name)
        } else {
            format!("failed to remove route annotation to serving.knative.dev/v1, Kind={kind} {name:?}")
        }
    }

    fn leads_to(&self, meta: &ObjectMeta) -> bool {
        annotation(meta, annotations::ROUTES)
            .is_some_and(|list| list.split(',').any(|name| name == self.route))
    }

    /// The list of Routes as it shall be, and the annotations that make it so.
    fn routes(&self, meta: &ObjectMeta, leads: bool) -> (String, Map<String, Value>) {
        let current = annotation(meta, annotations::ROUTES).unwrap_or_default();
        let wanted = if leads { insert_name(current, self.route) } else { remove_name(current, self.route) };
        let mut changes = Map::new();
        if self.leads_to(meta) != leads {
            let value = if wanted.is_empty() { Value::Null } else { Value::from(wanted.as_str()) };
            changes.insert(annotations::ROUTES.to_owned(), value);
        }
        (wanted, changes)
    }

    fn patch_revision(&mut self, revision: &Revision, leads: bool) {
        let (routes, mut annotations) = self.routes(&revision.metadata, leads);
        let state = if routes.is_empty() { RoutingState::Reserve } else { RoutingState::Active };
        let mut labels = Map::new();
        if label(&revision.metadata, labels::ROUTING_STATE) != Some(state.as_str()) {
            labels.insert(labels::ROUTING_STATE.to_owned(), state.as_str().into());
            annotations
                .insert(annotations::ROUTING_STATE_MODIFIED.to_owned(), routing_state_time(self.now).into());
        }
        let name = revision.metadata.name.as_deref().unwrap_or_default();
        if let Some(patch) = metadata_patch(annotations, labels) {
            self.plan.step(
                Action::merge_patch::<Revision>(self.namespace_name, name, patch),
                None,
                Failure::without_status(self.failure("Revision", name, leads)),
            );
        }
    }

    fn patch_configuration(&mut self, configuration: &Configuration, leads: bool) {
        let (_, annotations) = self.routes(&configuration.metadata, leads);
        let name = configuration.metadata.name.as_deref().unwrap_or_default();
        if let Some(patch) = metadata_patch(annotations, Map::new()) {
            self.plan.step(
                Action::merge_patch::<Configuration>(self.namespace_name, name, patch),
                None,
                Failure::without_status(self.failure("Configuration", name, leads)),
            );
        }
    }
}

fn metadata_patch(annotations: Map<String, Value>, labels: Map<String, Value>) -> Option<Value> {
    let mut metadata = Map::new();
    if !annotations.is_empty() {
        metadata.insert("annotations".to_owned(), annotations.into());
    }
    if !labels.is_empty() {
        metadata.insert("labels".to_owned(), labels.into());
    }
    (!metadata.is_empty()).then(|| json!({ "metadata": metadata }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, Reconcile, Report};
    use crate::route::golden::{Objects, tracked};

    impl Namespace for Objects {
        fn configurations(&self) -> Vec<Arc<Configuration>> {
            self.configurations.values().cloned().collect()
        }

        fn active_revisions(&self) -> Vec<Arc<Revision>> {
            let active = |r: &&Arc<Revision>| label(&r.metadata, labels::ROUTING_STATE) == Some("active");
            self.revisions.values().filter(active).cloned().collect()
        }
    }

    #[test]
    fn golden_reconcile_labeler() {
        let mut report = Report::new("reconcile_labeler.json");
        for mut case in golden::cases::<Reconcile>("reconcile_labeler.json") {
            let (namespace, name) = case.given.key();
            let Some(route) = case.given.get::<Route>(namespace, name) else {
                report.check(&case.id, case.without_object());
                continue;
            };
            let decided = plan(&route, &Objects::of(&case.given), case.given.now());
            // Patches of different objects have no order among themselves.
            case.ignore_order("serving");
            let mut failure = case.compare(&route, decided.plan).unwrap_or_default();
            let tracked = tracked(&decided.references);
            if tracked != case.tracked() {
                failure.push_str(&format!("\n  tracked: ours {tracked:?}, expected {:?}", case.tracked()));
            }
            report.check(&case.id, (!failure.is_empty()).then_some(failure));
        }
        report.finish();
    }
}
