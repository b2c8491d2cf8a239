//! QP-ENV: what the controller writes is what the sidecar reads.

use std::collections::BTreeSet;

use ember_queue_proxy::Config;
use serde_json::Value;

use crate::sidecar::{S, config};

/// All that the controller writes.
const WRITTEN: [&str; 27] = [
    "CONTAINER_CONCURRENCY",
    "ENABLE_HTTP2_AUTO_DETECTION",
    "ENABLE_HTTP_FULL_DUPLEX",
    "ENABLE_MULTI_CONTAINER_PROBES",
    "HOST_IP",
    "OBSERVABILITY_CONFIG",
    "QUEUE_PROXY_TLS_CIPHER_SUITES",
    "QUEUE_PROXY_TLS_CURVE_PREFERENCES",
    "QUEUE_PROXY_TLS_MAX_VERSION",
    "QUEUE_PROXY_TLS_MIN_VERSION",
    "QUEUE_SERVING_PORT",
    "QUEUE_SERVING_TLS_PORT",
    "REVISION_IDLE_TIMEOUT_SECONDS",
    "REVISION_RESPONSE_START_TIMEOUT_SECONDS",
    "REVISION_TIMEOUT_SECONDS",
    "ROOT_CA",
    "SERVING_CONFIGURATION",
    "SERVING_LOGGING_CONFIG",
    "SERVING_LOGGING_LEVEL",
    "SERVING_NAMESPACE",
    "SERVING_POD",
    "SERVING_POD_IP",
    "SERVING_READINESS_PROBE",
    "SERVING_REVISION",
    "SERVING_SERVICE",
    "SYSTEM_NAMESPACE",
    "USER_PORT",
];

#[test]
fn every_recorded_container_is_configured() {
    let folder = std::env::var("EMBER_VECTORS")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors").to_owned());
    let text = std::fs::read_to_string(format!("{folder}/deployments.json")).unwrap();
    let vectors: Value = serde_json::from_str(&text).unwrap();
    let (mut seen, mut names) = (0, BTreeSet::new());
    for case in vectors["cases"].as_array().unwrap() {
        let containers = &case["expect"]["deployment"]["spec"]["template"]["spec"]["containers"];
        for container in containers.as_array().into_iter().flatten() {
            if container["name"] != "queue-proxy" {
                continue;
            }
            let entries = container["env"].as_array().unwrap();
            let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            let env: Vec<_> = entries
                .iter()
                .map(|entry| match entry["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                    Some(field) => (text(entry, "name"), format!("<{field}>")),
                    None => (text(entry, "name"), text(entry, "value")),
                })
                .collect();
            names.extend(env.iter().map(|(name, _)| name.clone()));
            let value = |name: &str| env.iter().find(|(found, _)| found == name).unwrap().1.clone();
            let config =
                Config::from_env(env.clone()).unwrap_or_else(|error| panic!("{}: {error}", case["id"]));
            assert_eq!(config.serving_port.to_string(), value("QUEUE_SERVING_PORT"));
            assert_eq!(config.user_port.to_string(), value("USER_PORT"));
            assert_eq!((config.pod.as_str(), config.pod_ip.as_str()), ("<metadata.name>", "<status.podIP>"));
            assert_eq!(config.revision, value("SERVING_REVISION"));
            assert_eq!(config.readiness_probes.is_empty(), value("SERVING_READINESS_PROBE").is_empty());
            assert_eq!(config.full_duplex.to_string(), value("ENABLE_HTTP_FULL_DUPLEX"));
            seen += 1;
        }
    }
    assert!(seen > 0);
    let written: BTreeSet<_> = WRITTEN.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names, written);
}

#[test]
fn what_else_is_in_the_environment_is_none_of_its_business() {
    let strange = config(8080, &[("SOMETHING_NEW", "\u{1F980} ="), ("AN_EXTENSION", "")]);
    assert_eq!(strange, config(8080, &[]));
    assert_eq!(strange.drain_quiet_period, 30 * S);
}
