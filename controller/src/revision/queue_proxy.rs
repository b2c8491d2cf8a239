//! The queue-proxy container that goes into every pod of a revision.

use ember_api::networking::ProtocolType;
use ember_api::serving::v1::Revision;
use ember_api::{annotations, labels, names};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EnvVar, SeccompProfile, SecurityContext, VolumeMount,
};
use kube::ResourceExt;

use super::deployment::{
    CERTIFICATES_VOLUME, POD_INFO_VOLUME, TOKEN_VOLUME, field_variable, user_port, variable,
};
use super::probe::{self, PortMissing};
use super::sidecar_resources;
use crate::context::Configs;

const HTTP_PORT: i32 = 8012;
const HTTP2_PORT: i32 = 8013;
const HTTPS_PORT: i32 = 8112;
const METRICS_PORT: i32 = 9090;
const USER_METRICS_PORT: i32 = 9091;
const PROFILING_PORT: i32 = 8008;

fn is_annotated(revision: &Revision, annotation: &str) -> bool {
    revision.annotations().get(annotation).is_some_and(|value| value.eq_ignore_ascii_case("enabled"))
}

/// Whether queue-proxy is given the pod's annotations as a file.
pub(super) fn mounts_pod_info(revision: &Revision, configs: &Configs) -> bool {
    let feature = configs.features.queue_proxy_mount_pod_info;
    feature.is_enabled()
        || (feature.is_allowed() && is_annotated(revision, annotations::QUEUE_PROXY_POD_INFO))
}

/// Whether queue-proxy is given tokens for other services.
pub(super) fn has_token_audiences(configs: &Configs) -> bool {
    configs.deployment.queue_sidecar_token_audiences.iter().any(|audience| !audience.is_empty())
}

/// The container for a revision.
///
/// # Errors
/// A sidecar's readiness probe names no port.
pub(super) fn container(
    revision: &Revision,
    configs: &Configs,
    system_namespace: &str,
) -> Result<Container, PortMissing> {
    let nothing = Container::default();
    let pod = &revision.spec.pod_spec;
    let serving = revision.spec.serving_container().unwrap_or(&nothing);
    let serving_port = if revision.spec.protocol() == ProtocolType::H2c { HTTP2_PORT } else { HTTP_PORT };
    let port = user_port(serving);

    let probes = if configs.features.multi_container_probing.is_enabled() {
        probe::encode_all(serving, pod.containers.iter().filter(|c| !std::ptr::eq(*c, serving)), port)?
    } else {
        probe::encode_serving(serving, port)
    };

    Ok(Container {
        name: names::QUEUE_CONTAINER.to_owned(),
        image: Some(configs.deployment.queue_sidecar_image.clone()),
        resources: Some(sidecar_resources::resources(
            &configs.deployment,
            configs.features.queue_proxy_resource_defaults.is_enabled(),
            revision.annotations(),
            serving,
        )),
        ports: Some(ports(serving_port, configs)),
        readiness_probe: probe::of_queue_proxy(serving, serving_port),
        security_context: Some(security_context()),
        volume_mounts: Some(volume_mounts(revision, configs)).filter(|mounts| !mounts.is_empty()),
        env: Some(environment(revision, configs, system_namespace, serving_port, port, probes)),
        ..Container::default()
    })
}

fn ports(serving_port: i32, configs: &Configs) -> Vec<ContainerPort> {
    let port = |name: &str, number| ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        ..ContainerPort::default()
    };
    let mut ports = vec![port("http-autometric", METRICS_PORT), port("http-usermetric", USER_METRICS_PORT)];
    if configs.observability.runtime.profiling == "enabled" {
        ports.push(port("profiling-port", PROFILING_PORT));
    }
    ports.push(port("queue-port", serving_port));
    ports.push(port("https-port", HTTPS_PORT));
    ports
}

fn security_context() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..SecurityContext::default()
    }
}

fn volume_mounts(revision: &Revision, configs: &Configs) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let mut mounts = Vec::new();
    if mounts_pod_info(revision, configs) {
        mounts.push(mount(POD_INFO_VOLUME, "/etc/podinfo", true));
    }
    if has_token_audiences(configs) {
        mounts.push(mount(TOKEN_VOLUME, "/var/run/secrets/tokens", false));
    }
    if configs.network.system_internal_tls {
        mounts.push(mount(CERTIFICATES_VOLUME, "/var/lib/knative/certs", true));
    }
    mounts
}

/// What queue-proxy is told of metrics, traces and logs, in the words it reads.
fn observability(configs: &Configs) -> String {
    // Strings, numbers and booleans: the serialisation does not fail.
    serde_json::to_string(&configs.observability).unwrap_or_default()
}

fn environment(
    revision: &Revision,
    configs: &Configs,
    system_namespace: &str,
    serving_port: i32,
    user_port: i32,
    probes: String,
) -> Vec<EnvVar> {
    let spec = &revision.spec;
    let seconds = |value: Option<i64>| value.unwrap_or(0).to_string();
    let configuration = revision
        .owner_references()
        .iter()
        .find(|owner| owner.controller == Some(true) && owner.kind == "Configuration")
        .map(|owner| owner.name.clone())
        .unwrap_or_default();
    let service = revision.labels().get(labels::SERVICE).cloned().unwrap_or_default();
    let tls = &configs.deployment;
    vec![
        variable("SERVING_NAMESPACE", revision.namespace().unwrap_or_default()),
        variable("SERVING_SERVICE", service),
        variable("SERVING_CONFIGURATION", configuration),
        variable("SERVING_REVISION", revision.name_any()),
        variable("QUEUE_SERVING_PORT", serving_port.to_string()),
        variable("QUEUE_SERVING_TLS_PORT", HTTPS_PORT.to_string()),
        variable("CONTAINER_CONCURRENCY", seconds(spec.container_concurrency)),
        variable("REVISION_TIMEOUT_SECONDS", seconds(spec.timeout_seconds)),
        variable("REVISION_RESPONSE_START_TIMEOUT_SECONDS", seconds(spec.response_start_timeout_seconds)),
        variable("REVISION_IDLE_TIMEOUT_SECONDS", seconds(spec.idle_timeout_seconds)),
        field_variable("SERVING_POD", "metadata.name", None),
        field_variable("SERVING_POD_IP", "status.podIP", None),
        variable("SERVING_LOGGING_CONFIG", configs.logging.logger_config.clone()),
        variable(
            "SERVING_LOGGING_LEVEL",
            configs.logging.levels.get("queueproxy").cloned().unwrap_or_default(),
        ),
        variable("USER_PORT", user_port.to_string()),
        variable("SYSTEM_NAMESPACE", system_namespace),
        variable("SERVING_READINESS_PROBE", probes),
        field_variable("HOST_IP", "status.hostIP", Some("v1")),
        variable("ENABLE_HTTP2_AUTO_DETECTION", configs.features.autodetect_http2.is_enabled().to_string()),
        variable(
            "ENABLE_HTTP_FULL_DUPLEX",
            is_annotated(revision, annotations::ALLOW_HTTP_FULL_DUPLEX).to_string(),
        ),
        variable("ROOT_CA", tls.queue_sidecar_root_ca.clone()),
        variable("QUEUE_PROXY_TLS_MIN_VERSION", tls.queue_sidecar_tls_min_version.clone()),
        variable("QUEUE_PROXY_TLS_MAX_VERSION", tls.queue_sidecar_tls_max_version.clone()),
        variable("QUEUE_PROXY_TLS_CIPHER_SUITES", tls.queue_sidecar_tls_cipher_suites.clone()),
        variable("QUEUE_PROXY_TLS_CURVE_PREFERENCES", tls.queue_sidecar_tls_curve_preferences.clone()),
        variable(
            "ENABLE_MULTI_CONTAINER_PROBES",
            configs.features.multi_container_probing.is_enabled().to_string(),
        ),
        variable("OBSERVABILITY_CONFIG", observability(configs)),
    ]
}
