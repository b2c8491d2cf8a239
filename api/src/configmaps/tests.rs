//! What each ConfigMap's data becomes.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::*;
use crate::golden;

fn data(value: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(value.clone()).unwrap_or_default()
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn quantity(quantity: &Option<Quantity>) -> Value {
    quantity.as_ref().map_or(Value::Null, |q| json!(q.0))
}

/// A whole float as Go writes it.
fn float(value: f64) -> Value {
    if value.fract() == 0.0 { json!(value as i64) } else { json!(value) }
}

fn none_if_empty(value: Value) -> Value {
    if value.as_object().is_some_and(serde_json::Map::is_empty) { Value::Null } else { value }
}

/// Parses and shows the result the way the golden data does.
fn parsed(name: &str, data: &BTreeMap<String, String>) -> Result<Value, ConfigError> {
    let meta =
        ObjectMeta { name: Some("svc".into()), namespace: Some("ns1".into()), ..ObjectMeta::default() };
    Ok(match name {
        autoscaler::NAME => {
            let c = autoscaler::Autoscaler::parse(data)?;
            json!({
                "ActivatorCapacity": float(c.activator_capacity),
                "AllowZeroInitialScale": c.allow_zero_initial_scale,
                "ContainerConcurrencyTargetDefault": float(c.container_concurrency_target_default),
                "ContainerConcurrencyTargetFraction": float(c.container_concurrency_target_fraction),
                "EnableScaleToZero": c.enable_scale_to_zero,
                "InitialScale": c.initial_scale,
                "MaxScale": c.max_scale,
                "MaxScaleDownRate": float(c.max_scale_down_rate),
                "MaxScaleLimit": c.max_scale_limit,
                "MaxScaleUpRate": float(c.max_scale_up_rate),
                "MinScale": c.min_scale,
                "PanicThresholdPercentage": float(c.panic_threshold_percentage),
                "PanicWindowPercentage": float(c.panic_window_percentage),
                "PodAutoscalerClass": c.pod_autoscaler_class,
                "RPSTargetDefault": float(c.rps_target_default),
                "ScaleDownDelay": nanos(c.scale_down_delay),
                "ScaleToZeroGracePeriod": nanos(c.scale_to_zero_grace_period),
                "ScaleToZeroPodRetentionPeriod": nanos(c.scale_to_zero_pod_retention_period),
                "StableWindow": nanos(c.stable_window),
                "TargetBurstCapacity": float(c.target_burst_capacity),
                "TargetUtilization": float(c.target_utilization),
            })
        }
        defaults::NAME => {
            let c = defaults::Defaults::parse(data)?;
            json!({
                "AllowContainerConcurrencyZero": c.allow_container_concurrency_zero,
                "ContainerConcurrency": c.container_concurrency,
                "ContainerConcurrencyMaxLimit": c.container_concurrency_max_limit,
                "EnableServiceLinks": c.enable_service_links,
                "InitContainerName(name=svc,ns=ns1)": c.init_container_name(&meta),
                "MaxRevisionTimeoutSeconds": c.max_revision_timeout_seconds,
                "RevisionCPULimit": quantity(&c.revision_cpu_limit),
                "RevisionCPURequest": quantity(&c.revision_cpu_request),
                "RevisionEphemeralStorageLimit": quantity(&c.revision_ephemeral_storage_limit),
                "RevisionEphemeralStorageRequest": quantity(&c.revision_ephemeral_storage_request),
                "RevisionIdleTimeoutSeconds": c.revision_idle_timeout_seconds,
                "RevisionMemoryLimit": quantity(&c.revision_memory_limit),
                "RevisionMemoryRequest": quantity(&c.revision_memory_request),
                "RevisionResponseStartTimeoutSeconds": c.revision_response_start_timeout_seconds,
                "RevisionTimeoutSeconds": c.revision_timeout_seconds,
                "UserContainerName(name=svc,ns=ns1)": c.container_name(&meta),
            })
        }
        deployment::NAME => {
            let c = deployment::Deployment::parse(data)?;
            let classes: serde_json::Map<String, Value> = c
                .runtime_class_names
                .iter()
                .map(|(name, class)| {
                    let selector = none_if_empty(json!(class.selector));
                    (
                        name.clone(),
                        if selector.is_null() { json!({}) } else { json!({ "selector": selector }) },
                    )
                })
                .collect();
            json!({
                "DefaultAffinityType": match c.default_affinity_type {
                    deployment::AffinityType::None => "none",
                    deployment::AffinityType::PreferSpreadRevisionOverNodes => "prefer-spread-revision-over-nodes",
                },
                "DigestResolutionTimeoutNanos": nanos(c.digest_resolution_timeout),
                "PodIsAlwaysSchedulable": c.pod_is_always_schedulable,
                "ProgressDeadlineNanos": nanos(c.progress_deadline),
                "QueueSidecarCPULimit": quantity(&c.queue_sidecar_cpu_limit),
                "QueueSidecarCPURequest": quantity(&c.queue_sidecar_cpu_request),
                "QueueSidecarEphemeralStorageLimit": quantity(&c.queue_sidecar_ephemeral_storage_limit),
                "QueueSidecarEphemeralStorageRequest": quantity(&c.queue_sidecar_ephemeral_storage_request),
                "QueueSidecarImage": c.queue_sidecar_image,
                "QueueSidecarMemoryLimit": quantity(&c.queue_sidecar_memory_limit),
                "QueueSidecarMemoryRequest": quantity(&c.queue_sidecar_memory_request),
                "QueueSidecarRootCA": c.queue_sidecar_root_ca,
                "QueueSidecarTLSMinVersion": c.queue_sidecar_tls_min_version,
                "QueueSidecarTokenAudiences": c.queue_sidecar_token_audiences,
                "RegistriesSkippingTagResolving": c.registries_skipping_tag_resolving,
                "RuntimeClassNames": none_if_empty(Value::Object(classes)),
            })
        }
        domain::NAME => {
            let c = domain::Domain::parse(data)?;
            let domains: serde_json::Map<String, Value> = c
                .domains
                .iter()
                .map(|(name, d)| {
                    let selector =
                        if d.selector.is_empty() { json!({}) } else { json!({ "selector": d.selector }) };
                    (name.clone(), json!({ "Selector": selector, "Type": d.kind }))
                })
                .collect();
            json!({ "Domains": domains })
        }
        features::NAME => {
            let c = features::Features::parse(data)?;
            json!({
                "AutoDetectHTTP2": c.autodetect_http2.as_str(),
                "ContainerSpecAddCapabilities": c.container_spec_add_capabilities.as_str(),
                "MultiContainer": c.multi_container.as_str(),
                "MultiContainerProbing": c.multi_container_probing.as_str(),
                "PodSpecAffinity": c.pod_spec_affinity.as_str(),
                "PodSpecDNSConfig": c.pod_spec_dns_config.as_str(),
                "PodSpecDNSPolicy": c.pod_spec_dns_policy.as_str(),
                "PodSpecFieldRef": c.pod_spec_field_ref.as_str(),
                "PodSpecHostAliases": c.pod_spec_host_aliases.as_str(),
                "PodSpecHostIPC": c.pod_spec_host_ipc.as_str(),
                "PodSpecHostNetwork": c.pod_spec_host_network.as_str(),
                "PodSpecHostPID": c.pod_spec_host_pid.as_str(),
                "PodSpecInitContainers": c.pod_spec_init_containers.as_str(),
                "PodSpecNodeSelector": c.pod_spec_node_selector.as_str(),
                "PodSpecPersistentVolumeClaim": c.pod_spec_persistent_volume_claim.as_str(),
                "PodSpecPersistentVolumeWrite": c.pod_spec_persistent_volume_write.as_str(),
                "PodSpecPriorityClassName": c.pod_spec_priority_class_name.as_str(),
                "PodSpecRuntimeClassName": c.pod_spec_runtime_class_name.as_str(),
                "PodSpecSchedulerName": c.pod_spec_scheduler_name.as_str(),
                "PodSpecSecurityContext": c.pod_spec_security_context.as_str(),
                "PodSpecShareProcessNamespace": c.pod_spec_share_process_namespace.as_str(),
                "PodSpecTolerations": c.pod_spec_tolerations.as_str(),
                "PodSpecTopologySpreadConstraints": c.pod_spec_topology_spread_constraints.as_str(),
                "PodSpecVolumesCSI": c.pod_spec_volumes_csi.as_str(),
                "PodSpecVolumesEmptyDir": c.pod_spec_volumes_empty_dir.as_str(),
                "PodSpecVolumesEphemeral": c.pod_spec_volumes_ephemeral.as_str(),
                "PodSpecVolumesHostPath": c.pod_spec_volumes_host_path.as_str(),
                "PodSpecVolumesImage": c.pod_spec_volumes_image.as_str(),
                "PodSpecVolumesMountPropagation": c.pod_spec_volumes_mount_propagation.as_str(),
                "QueueProxyMountPodInfo": c.queue_proxy_mount_pod_info.as_str(),
                "QueueProxyResourceDefaults": c.queue_proxy_resource_defaults.as_str(),
                "SecurePodDefaults": c.secure_pod_defaults.as_str(),
                "TagHeaderBasedRouting": c.tag_header_based_routing.as_str(),
            })
        }
        gc::NAME => {
            let c = gc::Gc::parse(data)?;
            json!({
                "MaxNonActiveRevisions": c.max_non_active_revisions.unwrap_or(-1),
                "MinNonActiveRevisions": c.min_non_active_revisions,
                "RetainSinceCreateTime": c.retain_since_create_time.map_or(-1, nanos),
                "RetainSinceLastActiveTime": c.retain_since_last_active_time.map_or(-1, nanos),
            })
        }
        leader_election::NAME => {
            let c = leader_election::LeaderElection::parse(data)?;
            json!({
                "Buckets": c.buckets,
                "LeaseDuration": nanos(c.lease_duration),
                "LeaseNamesPrefixMapping": none_if_empty(json!(c.lease_name_prefixes)),
                "RenewDeadline": nanos(c.renew_deadline),
                "RetryPeriod": nanos(c.retry_period),
            })
        }
        logging::NAME => {
            let c = logging::Logging::parse(data)?;
            json!({ "LoggingConfig": c.logger_config, "LoggingLevel": c.levels })
        }
        certmanager::NAME => {
            let c = certmanager::CertManager::parse(data)?;
            json!({
                "ClusterLocalIssuerRef": c.cluster_local_issuer_ref,
                "IssuerRef": c.issuer_ref,
                "SystemInternalIssuerRef": c.system_internal_issuer_ref,
            })
        }
        network::NAME => {
            let c = network::Network::parse(data)?;
            let switch = |on: bool| if on { "enabled" } else { "disabled" };
            json!({
                "AutoTLS": c.external_domain_tls,
                "AutocreateClusterDomainClaims": c.autocreate_cluster_domain_claims,
                "ClusterLocalDomainTLS": switch(c.cluster_local_domain_tls),
                "DefaultCertificateClass": c.default_certificate_class,
                "DefaultExternalScheme": c.default_external_scheme,
                "DefaultIngressClass": c.default_ingress_class,
                "DomainTemplate": c.domain_template.source(),
                "EnableMeshPodAddressability": c.enable_mesh_pod_addressability,
                "ExternalDomainTLS": c.external_domain_tls,
                "HTTPProtocol": c.http_protocol.as_str(),
                "InternalEncryption": c.system_internal_tls,
                "MeshCompatibilityMode": c.mesh_compatibility_mode.as_str(),
                "NamespaceWildcardCertSelector": c.namespace_wildcard_cert_selector,
                "RolloutDurationSecs": c.rollout_duration.as_secs(),
                "SystemInternalTLS": switch(c.system_internal_tls),
                "TagTemplate": c.tag_template.source(),
            })
        }
        observability::NAME => json!(observability::Observability::parse(data)?),
        other => panic!("unknown ConfigMap {other}"),
    })
}

#[test]
fn golden_configmaps() {
    let cases = golden::cases("configmaps");
    let mut failures = Vec::new();
    for case in &cases {
        let mut want = case["expect"].clone();
        want.as_object_mut()
            .into_iter()
            .for_each(|fields| fields.retain(|key, _| ["error", "parsed"].contains(&key.as_str())));
        if want["error"].is_string() {
            want.as_object_mut().into_iter().for_each(|fields| fields.retain(|key, _| key == "error"));
        }
        let got = match parsed(case["name"].as_str().unwrap_or_default(), &data(&case["data"])) {
            Ok(parsed) => json!({ "error": null, "parsed": parsed }),
            Err(error) => json!({ "error": error.to_string() }),
        };
        if got != want {
            failures.push(format!("{}: got {got}\nwant {want}", case["id"]));
        }
    }
    golden::report("configmaps", cases.len(), &failures);
    let sums = golden::list("configmaps", "checksums");
    let failures: Vec<String> = sums
        .iter()
        .filter(|sum| example::checksum(sum["value"].as_str().unwrap_or_default()) != sum["checksum"])
        .map(Value::to_string)
        .collect();
    golden::report("checksums", sums.len(), &failures);
}

fn map<const N: usize>(entries: [(&str, &str); N]) -> BTreeMap<String, String> {
    entries.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

#[test]
fn the_first_failure_of_config_autoscaler_is_named() {
    for (key, value, error) in [
        ("stable-window", "5s", "stable-window = 5s, must be in [6s; 1h0m0s] range"),
        ("stable-window", "6.5s", "stable-window = 6.5s, must be specified with at most second precision"),
        (
            "stable-window",
            "10",
            r#"failed to parse data: failed to parse "stable-window": time: missing unit in duration "10""#,
        ),
        (
            "target-burst-capacity",
            "-2",
            "target-burst-capacity must be either non-negative or -1 (for unlimited), was: -2.000000",
        ),
        (
            "initial-scale",
            "0",
            "initial-scale = 0, must be at least 0 (or at least 1 when allow-zero-initial-scale is false)",
        ),
        ("max-scale-limit", "5", "max-scale = 0, must be in [1, max-scale-limit(5)] range"),
        ("max-scale-up-rate", "1", "max-scale-up-rate = 1, must be greater than 1.0"),
    ] {
        let got = autoscaler::Autoscaler::parse(&map([(key, value)])).map_err(|e| e.to_string());
        assert_eq!(got, Err(error.to_owned()), "{key}: {value}");
    }
    let percent = map([("container-concurrency-target-percentage", "80")]);
    let fraction = autoscaler::Autoscaler::parse(&percent).map(|c| c.container_concurrency_target_fraction);
    assert_eq!(fraction, Ok(0.8));
}

#[test]
fn the_ports_of_urls_are_ports() {
    for (key, of) in [
        ("external-port", (|c| c.external_port) as fn(network::Network) -> Option<u16>),
        ("internal-port", |c| c.internal_port),
    ] {
        let port = |raw| network::Network::parse(&map([(key, raw)])).map(of);
        assert_eq!(port("8080"), Ok(Some(8080)));
        assert_eq!(port(""), Ok(None));
        for wrong in ["0", "http"] {
            let error = port(wrong).unwrap_err().to_string();
            assert_eq!(error, format!("{key} must be a port number, but was {wrong:?}"));
        }
    }
}

#[test]
fn a_map_that_does_not_parse_leaves_the_snapshot() {
    let mut configs = Configs::default();
    assert_eq!(configs.set("config-gc", &map([("min-non-active-revisions", "7")])), Ok(true));
    assert!(configs.set("config-gc", &map([("min-non-active-revisions", "x")])).is_err());
    assert_eq!(configs.gc.min_non_active_revisions, 7);
    assert_eq!(configs.set("config-other", &map([])), Ok(false));
}

#[test]
fn texts_need_no_quotes_in_yaml() {
    let domain = domain::Domain::parse(&map([("a.com", "selector:\n  v: 1\n  on: true")])).unwrap();
    assert_eq!(domain.domains["a.com"].selector, map([("v", "1"), ("on", "true")]));
    let network =
        network::Network::parse(&map([("namespace-wildcard-cert-selector", "matchLabels: {v: 2}")]));
    let selector = network.unwrap().namespace_wildcard_cert_selector.unwrap();
    assert_eq!(selector.match_labels, Some(map([("v", "2")])));
}

#[test]
fn errors_are_worded_as_upstream_words_them() {
    for (name, data, error) in [
        ("config-logging", map([("loglevel.controller", "loud")]), "invalid logging level: loud"),
        (
            "config-network",
            map([("domain-template", "{{.Name}}.{{.Labels.x}}.{{.Domain}}")]),
            r#"parse "https://foo.<no value>.baz.com": invalid character " " in host name"#,
        ),
        (
            "config-network",
            map([("domain-template", "{{.Name}}:x")]),
            r#"parse "https://foo:x": invalid port ":x" after host"#,
        ),
        (
            "config-network",
            map([("namespace-wildcard-cert-selector", "x")]),
            "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal string into Go value of type \
             v1.LabelSelector",
        ),
        (
            "config-deployment",
            map([("queue-sidecar-image", "  ")]),
            "queue-sidecar-image cannot be empty or unset",
        ),
        (
            "config-gc",
            map([("retain-since-create-time", "-1s")]),
            "failed to parse retain-since-create-time: must be non-negative",
        ),
        (
            "config-leader-election",
            map([("buckets", "4294967296")]),
            r#"failed to parse "buckets": strconv.ParseUint: parsing "4294967296": value out of range"#,
        ),
        ("config-observability", map([("metrics-protocol", "x")]), r#"unsupported protocol "x""#),
        (
            "config-observability",
            map([("activator-server-timing", "perhaps")]),
            r#"failed to parse "activator-server-timing": strconv.ParseBool: parsing "perhaps": invalid syntax"#,
        ),
        (
            "config-observability",
            map([("runtime-export-interval", "-1s")]),
            r#"export interval "-1s" should be greater than zero"#,
        ),
    ] {
        let got = Configs::default().set(name, &data).map_err(|e| e.to_string());
        assert_eq!(got, Err(error.to_owned()), "{name} {data:?}");
    }
}

#[test]
fn a_selector_of_runtime_classes_has_valid_labels() {
    let data = map([
        ("queue-sidecar-image", "q"),
        ("runtime-class-name", "kata:\n  selector:\n    \"a b\": \"c d\""),
    ]);
    let error = deployment::Deployment::parse(&data).unwrap_err().to_string();
    assert!(
        error.starts_with(
            r#"runtime-class-name kata selector invalid: [key: Invalid value: "a b": name part must "#
        ),
        "{error}"
    );
    assert!(error.contains(r#"), values[0][a b]: Invalid value: "c d": a valid label must "#), "{error}");
}
