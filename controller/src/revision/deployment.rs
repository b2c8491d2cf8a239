//! The Deployment that runs a revision.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ember_api::configmaps::deployment::AffinityType;
use ember_api::serving::v1::Revision;
use ember_api::{annotations, golang, labels, names};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerPort, DownwardAPIVolumeFile, DownwardAPIVolumeSource, EmptyDirVolumeSource,
    EnvVar, EnvVarSource, HTTPGetAction, Lifecycle, LifecycleHandler, ObjectFieldSelector, PodAffinityTerm,
    PodAntiAffinity, PodSpec, PodTemplateSpec, ProjectedVolumeSource, SecretVolumeSource,
    ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use serde::Serialize;

use super::probe::PortMissing;
use super::{metadata, probe, queue_proxy};
use crate::context::Configs;

const DEFAULT_USER_PORT: i32 = 8080;
const USER_PORT_NAME: &str = "user-port";
const DRAIN_PATH: &str = "/wait-for-drain";
const ADMIN_PORT: i32 = 8022;

pub(super) const POD_INFO_VOLUME: &str = "pod-info";
pub(super) const TOKEN_VOLUME: &str = "knative-token-volume";
pub(super) const CERTIFICATES_VOLUME: &str = "server-certs";
const VAR_LOG_VOLUME: &str = "knative-var-log";
const VAR_LOG_PATH: &str = "/var/log";
const TOKEN_EXPIRATION_SECONDS: i64 = 3600;

/// Why no Deployment can be made of a revision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to create PodSpec: failed to create queue-proxy container: {0}")]
pub(crate) struct DeploymentError(#[from] pub(crate) PortMissing);

/// The port the serving container is told to listen on.
pub(super) fn user_port(serving: &Container) -> i32 {
    let given = serving.ports.iter().flatten().next().map_or(0, |port| port.container_port);
    if given == 0 { DEFAULT_USER_PORT } else { given }
}

/// The Deployment of a revision as it is created, with the hash label.
///
/// # Errors
/// The revision's containers cannot be probed.
pub(super) fn make(
    revision: &Revision,
    configs: &Configs,
    system_namespace: &str,
) -> Result<Deployment, DeploymentError> {
    let spec = pod_spec(revision, configs, system_namespace)?;
    let labels = metadata::child_labels(revision);
    let own_annotations = metadata::child_annotations(revision);
    let mut pod_annotations = own_annotations.clone();
    if let Some(serving) = revision.spec.serving_container().filter(|c| !c.name.is_empty()) {
        pod_annotations.insert(annotations::DEFAULT_CONTAINER.to_owned(), serving.name.clone());
    }
    let mut deployment = Deployment {
        metadata: metadata::child(revision, names::deployment(&revision.name_any()), own_annotations),
        spec: Some(DeploymentSpec {
            replicas: Some(initial_scale(revision, configs)),
            selector: LabelSelector {
                match_labels: Some(BTreeMap::from([(
                    labels::REVISION_UID.to_owned(),
                    revision.uid().unwrap_or_default(),
                )])),
                ..LabelSelector::default()
            },
            progress_deadline_seconds: Some(progress_deadline(revision, configs)),
            revision_history_limit: Some(0),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    max_surge: None,
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some(pod_annotations),
                    ..ObjectMeta::default()
                }),
                spec: Some(spec),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    };
    let hash = hash(&deployment);
    deployment.labels_mut().insert(labels::DEPLOYMENT_HASH.to_owned(), hash);
    Ok(deployment)
}

/// What the Deployment's content hashes to, its hash label left out.
pub(super) fn hash(deployment: &Deployment) -> String {
    #[derive(Serialize)]
    struct Content<'a> {
        spec: &'a Option<DeploymentSpec>,
        annotations: &'a BTreeMap<String, String>,
        labels: BTreeMap<&'a String, &'a String>,
    }
    let content = Content {
        spec: &deployment.spec,
        annotations: deployment.annotations(),
        labels: deployment.labels().iter().filter(|(key, _)| *key != labels::DEPLOYMENT_HASH).collect(),
    };
    // All maps of the API types are ordered and keyed by strings: the text is canonical and there always is one.
    let text = serde_json::to_vec(&content).unwrap_or_default();
    let hash =
        text.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    base36(hash)
}

fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.extend(char::from_digit(number % 36, 36));
        number /= 36;
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}

fn initial_scale(revision: &Revision, configs: &Configs) -> i32 {
    // The webhook has refused annotations that are no numbers.
    match annotations::lookup(revision.annotations(), annotations::INITIAL_SCALE) {
        Some((_, text)) => golang::parse_int32(text).unwrap_or(0),
        None => configs.autoscaler.initial_scale,
    }
}

fn progress_deadline(revision: &Revision, configs: &Configs) -> i32 {
    let deadline = match annotations::lookup(revision.annotations(), annotations::PROGRESS_DEADLINE) {
        Some((_, text)) => golang::parse_duration(text).map(golang::GoDuration::to_std).unwrap_or_default(),
        None => configs.deployment.progress_deadline,
    };
    i32::try_from(deadline.as_secs()).unwrap_or(i32::MAX)
}

fn pod_spec(
    revision: &Revision,
    configs: &Configs,
    system_namespace: &str,
) -> Result<PodSpec, DeploymentError> {
    let user = &revision.spec.pod_spec;
    let mut spec = user.clone();
    let serving = revision.spec.serving_container();
    let digests =
        revision.status.as_ref().map(|status| status.container_statuses.as_slice()).unwrap_or_default();
    for (index, (container, given)) in spec.containers.iter_mut().zip(&user.containers).enumerate() {
        if let Some(resolved) = digests.get(index).filter(|resolved| !resolved.image_digest.is_empty()) {
            container.image = Some(resolved.image_digest.clone());
        }
        let serves = serving.is_some_and(|serving| std::ptr::eq(serving, given));
        finish_user_container(container, serves, revision, configs);
    }
    spec.containers.push(queue_proxy::container(revision, configs, system_namespace)?);
    let extra = extra_volumes(revision, configs);
    if !extra.is_empty() {
        spec.volumes.get_or_insert_default().extend(extra);
    }
    spec.termination_grace_period_seconds = revision.spec.timeout_seconds;
    spec.enable_service_links = spec.enable_service_links.or(configs.defaults.enable_service_links);
    if spec.affinity.is_none()
        && configs.deployment.default_affinity_type == AffinityType::PreferSpreadRevisionOverNodes
    {
        spec.affinity = Some(spread_over_nodes(revision));
    }
    if spec.runtime_class_name.is_none() {
        spec.runtime_class_name =
            configs.deployment.runtime_class_name(revision.labels()).map(ToOwned::to_owned);
    }
    Ok(spec)
}

/// Prefers nodes that do not run this revision yet.
fn spread_over_nodes(revision: &Revision) -> Affinity {
    let same = LabelSelector {
        match_labels: Some(BTreeMap::from([(labels::REVISION.to_owned(), revision.name_any())])),
        ..LabelSelector::default()
    };
    let term = PodAffinityTerm {
        topology_key: "kubernetes.io/hostname".to_owned(),
        label_selector: Some(same),
        ..PodAffinityTerm::default()
    };
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                weight: 100,
                pod_affinity_term: term,
            }]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

pub(super) fn variable(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: Some(value.into()).filter(|value| !value.is_empty()),
        value_from: None,
    }
}

pub(super) fn field_variable(name: &str, path: &str, api_version: Option<&str>) -> EnvVar {
    let field =
        ObjectFieldSelector { api_version: api_version.map(ToOwned::to_owned), field_path: path.to_owned() };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    EnvVar { name: name.to_owned(), value: None, value_from: Some(source) }
}

fn finish_user_container(container: &mut Container, serving: bool, revision: &Revision, configs: &Configs) {
    let label = |key: &str| revision.labels().get(key).cloned().unwrap_or_default();
    let port = user_port(container);
    let env = container.env.get_or_insert_default();
    if serving {
        env.push(variable("PORT", port.to_string()));
        container.ports = Some(vec![ContainerPort {
            name: Some(USER_PORT_NAME.to_owned()),
            container_port: port,
            ..ContainerPort::default()
        }]);
        probe::rewrite_liveness(container, port, configs.features.multi_container_probing.is_enabled());
    }
    let env = container.env.get_or_insert_default();
    env.push(variable("K_REVISION", revision.name_any()));
    env.push(variable("K_CONFIGURATION", label(labels::CONFIGURATION)));
    env.push(variable("K_SERVICE", label(labels::SERVICE)));
    if configs.observability.enable_var_log_collection {
        env.push(field_variable("K_INTERNAL_POD_NAME", "metadata.name", None));
        env.push(field_variable("K_INTERNAL_POD_NAMESPACE", "metadata.namespace", None));
        let mut path = "$(K_INTERNAL_POD_NAMESPACE)_$(K_INTERNAL_POD_NAME)_".to_owned();
        // Writing to a String does not fail.
        let _ = write!(path, "{}", container.name);
        container.volume_mounts.get_or_insert_default().push(VolumeMount {
            name: VAR_LOG_VOLUME.to_owned(),
            mount_path: VAR_LOG_PATH.to_owned(),
            sub_path_expr: Some(path),
            ..VolumeMount::default()
        });
    }
    // The container may not stop before queue-proxy has let the last request through.
    let drained = HTTPGetAction {
        path: Some(DRAIN_PATH.to_owned()),
        port: IntOrString::Int(ADMIN_PORT),
        ..HTTPGetAction::default()
    };
    let pre_stop = LifecycleHandler { http_get: Some(drained), ..LifecycleHandler::default() };
    container.lifecycle = Some(Lifecycle { pre_stop: Some(pre_stop), ..Lifecycle::default() });
    container.stdin = None;
    container.tty = None;
    if container.termination_message_policy.as_deref().unwrap_or_default().is_empty() {
        container.termination_message_policy = Some("FallbackToLogsOnError".to_owned());
    }
    probe::drop_probed_by_queue_proxy(container);
}

fn extra_volumes(revision: &Revision, configs: &Configs) -> Vec<Volume> {
    let volume = |name: &str| Volume { name: name.to_owned(), ..Volume::default() };
    let mut volumes = Vec::new();
    if queue_proxy::mounts_pod_info(revision, configs) {
        let annotations = DownwardAPIVolumeFile {
            path: "annotations".to_owned(),
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: "metadata.annotations".to_owned(),
            }),
            ..DownwardAPIVolumeFile::default()
        };
        let source = DownwardAPIVolumeSource { items: Some(vec![annotations]), default_mode: None };
        volumes.push(Volume { downward_api: Some(source), ..volume(POD_INFO_VOLUME) });
    }
    if queue_proxy::has_token_audiences(configs) {
        let token = |audience: &String| VolumeProjection {
            service_account_token: Some(ServiceAccountTokenProjection {
                audience: Some(audience.clone()),
                expiration_seconds: Some(TOKEN_EXPIRATION_SECONDS),
                path: audience.clone(),
            }),
            ..VolumeProjection::default()
        };
        let sources = configs
            .deployment
            .queue_sidecar_token_audiences
            .iter()
            .filter(|a| !a.is_empty())
            .map(token)
            .collect();
        let source = ProjectedVolumeSource { sources: Some(sources), default_mode: None };
        volumes.push(Volume { projected: Some(source), ..volume(TOKEN_VOLUME) });
    }
    if configs.network.system_internal_tls {
        let source = SecretVolumeSource {
            secret_name: Some(names::SERVING_CERT.to_owned()),
            ..SecretVolumeSource::default()
        };
        volumes.push(Volume { secret: Some(source), ..volume(CERTIFICATES_VOLUME) });
    }
    if configs.observability.enable_var_log_collection {
        volumes.push(Volume { empty_dir: Some(EmptyDirVolumeSource::default()), ..volume(VAR_LOG_VOLUME) });
    }
    volumes
}

/// The live Deployment brought to what is desired, if it was made of something else. The scale belongs to the
/// autoscaler, the selector cannot change, and metadata that others have put there stays.
pub(super) fn updated(live: &Deployment, desired: Deployment) -> Option<Deployment> {
    if live.labels().get(labels::DEPLOYMENT_HASH) == desired.labels().get(labels::DEPLOYMENT_HASH) {
        return None;
    }
    let mut next = live.clone();
    keep_foreign(&mut next.metadata, &desired.metadata);
    if let (Some(mut spec), Some(live_spec)) = (desired.spec, live.spec.as_ref()) {
        spec.replicas = live_spec.replicas;
        spec.selector = live_spec.selector.clone();
        let mut template = live_spec.template.metadata.clone().unwrap_or_default();
        keep_foreign(&mut template, &spec.template.metadata.unwrap_or_default());
        spec.template.metadata = Some(template);
        next.spec = Some(spec);
    }
    Some(next)
}

/// Replaces the labels and annotations that are ours to set; others stay.
fn keep_foreign(live: &mut ObjectMeta, desired: &ObjectMeta) {
    let merge = |live: &mut Option<BTreeMap<String, String>>, desired: &Option<BTreeMap<String, String>>| {
        let mut merged = live.take().unwrap_or_default();
        merged.retain(|key, _| key != labels::APP && !key.contains("knative.dev/"));
        merged.extend(desired.iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
        *live = Some(merged);
    };
    merge(&mut live.labels, &desired.labels);
    merge(&mut live.annotations, &desired.annotations);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, ConfigMaps, differences, normalise};
    use crate::revision::{image, pod_autoscaler};
    use serde_json::{Value, json};

    #[derive(serde::Deserialize)]
    struct Case {
        id: String,
        revision: Revision,
        #[serde(default, deserialize_with = "golden::or_default")]
        configs: ConfigMaps,
        expect: Value,
    }

    /// Kind and version are said by the path an object is sent to.
    fn forget_kind(object: &mut Value) {
        if let Some(fields) = object.as_object_mut() {
            fields.remove("apiVersion");
            fields.remove("kind");
        }
    }

    fn difference(case: Case) -> Option<String> {
        let configs = golden::configs(&case.configs);
        let mut expected = case.expect;
        let mut ours = match make(&case.revision, &configs, names::SYSTEM_NAMESPACE) {
            Ok(deployment) => {
                let autoscaler = pod_autoscaler::make(&case.revision, None);
                let status = case.revision.status.clone().unwrap_or_default();
                let resolved = status.container_statuses.iter().chain(&status.init_container_statuses);
                let images: Vec<_> =
                    resolved.map(|container| image::make(&case.revision, container)).collect();
                for kind in ["deployment", "podAutoscaler"] {
                    if let Some(object) = expected[kind].as_object_mut() {
                        object.remove("status");
                    }
                }
                json!({"deployment": deployment, "podAutoscaler": autoscaler, "images": images})
            }
            Err(error) => {
                // The reference wraps the cause in words about where it arose.
                let cause = error.0.to_string();
                let same = expected["error"].as_str().is_some_and(|text| text.ends_with(&cause));
                return (!same).then(|| format!("  ours {error}, expected {expected}"));
            }
        };
        normalise(&mut ours);
        normalise(&mut expected);
        for value in [&mut ours, &mut expected] {
            forget_kind(&mut value["deployment"]);
            forget_kind(&mut value["podAutoscaler"]);
            value["images"].as_array_mut().into_iter().flatten().for_each(forget_kind);
        }
        let wrong = differences("", &ours, &expected);
        (!wrong.is_empty()).then(|| wrong.join("\n"))
    }

    #[test]
    fn golden_deployments() {
        let mut report = golden::Report::new("deployments.json");
        for case in golden::cases::<Case>("deployments.json") {
            report.check(&case.id.clone(), difference(case));
        }
        report.finish();
    }

    #[test]
    fn a_changed_scale_or_foreign_label_does_not_change_the_hash_of_what_is_desired() {
        let mut live = Deployment::default();
        live.labels_mut().insert("team".to_owned(), "a".to_owned());
        let with_hash = |mut deployment: Deployment| {
            let hash = hash(&deployment);
            deployment.labels_mut().insert(labels::DEPLOYMENT_HASH.to_owned(), hash);
            deployment
        };
        let desired =
            with_hash(Deployment { spec: Some(DeploymentSpec::default()), ..Deployment::default() });
        assert_eq!(hash(&desired), desired.labels()[labels::DEPLOYMENT_HASH]);
        live.spec = Some(DeploymentSpec { replicas: Some(7), ..DeploymentSpec::default() });
        let next = updated(&live, desired.clone()).expect("an update of what was not made by us");
        assert_eq!(next.spec.as_ref().and_then(|spec| spec.replicas), Some(7));
        assert_eq!(next.labels()["team"], "a");
        assert_eq!(updated(&next, desired), None);
    }
}
