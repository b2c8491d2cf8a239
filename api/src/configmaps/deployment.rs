//! `config-deployment`: the Deployments of revisions and their queue-proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

use super::ConfigError;
use super::data::{self, Data};
use crate::golang::{GoDuration, quote};
use crate::syntax;

/// The ConfigMap's name.
pub const NAME: &str = "config-deployment";

/// How a revision's pods are placed unless it says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AffinityType {
    /// No rule.
    None,
    /// Preferably on different nodes.
    #[default]
    PreferSpreadRevisionOverNodes,
}

/// The labels a revision needs to get a runtime class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeClassSelector {
    /// Labels and their values; none matches everything.
    pub selector: BTreeMap<String, String>,
}

/// Parsed `config-deployment`.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    /// Image of queue-proxy; required in the ConfigMap, empty by default.
    pub queue_sidecar_image: String,
    /// Longest a rollout may go without progress.
    pub progress_deadline: Duration,
    /// Longest the resolution of a tag to a digest may take.
    pub digest_resolution_timeout: Duration,
    /// Registries whose tags are used as they are.
    pub registries_skipping_tag_resolving: BTreeSet<String>,
    /// CPU request of queue-proxy.
    pub queue_sidecar_cpu_request: Option<Quantity>,
    /// CPU limit of queue-proxy.
    pub queue_sidecar_cpu_limit: Option<Quantity>,
    /// Memory request of queue-proxy.
    pub queue_sidecar_memory_request: Option<Quantity>,
    /// Memory limit of queue-proxy.
    pub queue_sidecar_memory_limit: Option<Quantity>,
    /// Ephemeral storage request of queue-proxy.
    pub queue_sidecar_ephemeral_storage_request: Option<Quantity>,
    /// Ephemeral storage limit of queue-proxy.
    pub queue_sidecar_ephemeral_storage_limit: Option<Quantity>,
    /// Audiences of the tokens that queue-proxy gets; one empty audience is none.
    pub queue_sidecar_token_audiences: BTreeSet<String>,
    /// Certificate authority that queue-proxy trusts, in PEM.
    pub queue_sidecar_root_ca: String,
    /// Lowest TLS version of queue-proxy.
    pub queue_sidecar_tls_min_version: String,
    /// Highest TLS version of queue-proxy.
    pub queue_sidecar_tls_max_version: String,
    /// Cipher suites of queue-proxy, comma-separated.
    pub queue_sidecar_tls_cipher_suites: String,
    /// Key exchange curves of queue-proxy, comma-separated.
    pub queue_sidecar_tls_curve_preferences: String,
    /// Placement of pods.
    pub default_affinity_type: AffinityType,
    /// Runtime classes and the revisions that get them.
    pub runtime_class_names: BTreeMap<String, RuntimeClassSelector>,
    /// Whether a pod that cannot be scheduled is not held against the revision.
    pub pod_is_always_schedulable: bool,
}

impl Default for Deployment {
    fn default() -> Self {
        Self {
            queue_sidecar_image: String::new(),
            progress_deadline: Duration::from_secs(600),
            digest_resolution_timeout: Duration::from_secs(10),
            registries_skipping_tag_resolving: ["dev.local", "kind.local", "ko.local"]
                .map(str::to_owned)
                .into(),
            queue_sidecar_cpu_request: Some(Quantity("25m".to_owned())),
            queue_sidecar_cpu_limit: None,
            queue_sidecar_memory_request: None,
            queue_sidecar_memory_limit: None,
            queue_sidecar_ephemeral_storage_request: None,
            queue_sidecar_ephemeral_storage_limit: None,
            queue_sidecar_token_audiences: [String::new()].into(),
            queue_sidecar_root_ca: String::new(),
            queue_sidecar_tls_min_version: String::new(),
            queue_sidecar_tls_max_version: String::new(),
            queue_sidecar_tls_cipher_suites: String::new(),
            queue_sidecar_tls_curve_preferences: String::new(),
            default_affinity_type: AffinityType::default(),
            runtime_class_names: BTreeMap::new(),
            pod_is_always_schedulable: false,
        }
    }
}

/// The keys that have two spellings.
struct Spelling {
    image: &'static str,
    progress_deadline: &'static str,
    digest_resolution_timeout: &'static str,
    registries: &'static str,
    cpu_request: &'static str,
    memory_request: &'static str,
    storage_request: &'static str,
    cpu_limit: &'static str,
    memory_limit: &'static str,
    storage_limit: &'static str,
}

/// In order of reading: what is read later wins.
const SPELLINGS: [Spelling; 2] = [
    Spelling {
        image: "queueSidecarImage",
        progress_deadline: "progressDeadline",
        digest_resolution_timeout: "digestResolutionTimeout",
        registries: "registriesSkippingTagResolving",
        cpu_request: "queueSidecarCPURequest",
        memory_request: "queueSidecarMemoryRequest",
        storage_request: "queueSidecarEphemeralStorageRequest",
        cpu_limit: "queueSidecarCPULimit",
        memory_limit: "queueSidecarMemoryLimit",
        storage_limit: "queueSidecarEphemeralStorageLimit",
    },
    Spelling {
        image: "queue-sidecar-image",
        progress_deadline: "progress-deadline",
        digest_resolution_timeout: "digest-resolution-timeout",
        registries: "registries-skipping-tag-resolving",
        cpu_request: "queue-sidecar-cpu-request",
        memory_request: "queue-sidecar-memory-request",
        storage_request: "queue-sidecar-ephemeral-storage-request",
        cpu_limit: "queue-sidecar-cpu-limit",
        memory_limit: "queue-sidecar-memory-limit",
        storage_limit: "queue-sidecar-ephemeral-storage-limit",
    },
];

impl Deployment {
    /// Parses the ConfigMap's data.
    ///
    /// # Errors
    /// A value that does not parse or that is outside its bounds, or no image of queue-proxy.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let data = Data(data);
        let mut config = Self::default();
        let mut progress: GoDuration = config.progress_deadline.into();
        let mut digest: GoDuration = config.digest_resolution_timeout.into();
        for key in &SPELLINGS {
            data.string(key.image, &mut config.queue_sidecar_image);
            data.duration(key.progress_deadline, &mut progress)?;
            data.duration(key.digest_resolution_timeout, &mut digest)?;
            data.set(key.registries, &mut config.registries_skipping_tag_resolving);
            data.quantity(key.cpu_request, &mut config.queue_sidecar_cpu_request)?;
            data.quantity(key.memory_request, &mut config.queue_sidecar_memory_request)?;
            data.quantity(key.storage_request, &mut config.queue_sidecar_ephemeral_storage_request)?;
            data.quantity(key.cpu_limit, &mut config.queue_sidecar_cpu_limit)?;
            data.quantity(key.memory_limit, &mut config.queue_sidecar_memory_limit)?;
            data.quantity(key.storage_limit, &mut config.queue_sidecar_ephemeral_storage_limit)?;
        }
        data.set("queue-sidecar-token-audiences", &mut config.queue_sidecar_token_audiences);
        data.string("queue-sidecar-rootca", &mut config.queue_sidecar_root_ca);
        data.string("queue-sidecar-tls-min-version", &mut config.queue_sidecar_tls_min_version);
        data.string("queue-sidecar-tls-max-version", &mut config.queue_sidecar_tls_max_version);
        data.string("queue-sidecar-tls-cipher-suites", &mut config.queue_sidecar_tls_cipher_suites);
        data.string("queue-sidecar-tls-curve-preferences", &mut config.queue_sidecar_tls_curve_preferences);
        data.bool("pod-is-always-schedulable", &mut config.pod_is_always_schedulable)?;

        let fail = |message: String| Err(ConfigError(message));
        if config.queue_sidecar_image.is_empty() {
            return fail("queue-sidecar-image cannot be empty or unset".into());
        }
        if progress <= GoDuration(0) {
            return fail(format!("progress-deadline cannot be a non-positive duration, was {progress}"));
        }
        if !progress.is_whole_seconds() {
            return fail(format!("progress-deadline must be rounded to a whole second, was: {progress}"));
        }
        if digest <= GoDuration(0) {
            return fail(format!(
                "digest-resolution-timeout cannot be a non-positive duration, was {digest}"
            ));
        }
        config.progress_deadline = progress.to_std();
        config.digest_resolution_timeout = digest.to_std();
        config.default_affinity_type = match data.get("default-affinity-type") {
            None => config.default_affinity_type,
            Some("none") => AffinityType::None,
            Some("prefer-spread-revision-over-nodes") => AffinityType::PreferSpreadRevisionOverNodes,
            Some(other) => return fail(format!("unsupported default-affinity-type value: {}", quote(other))),
        };
        if let Some(raw) = data.get("runtime-class-name").map(str::trim) {
            config.runtime_class_names = runtime_classes(raw)?;
        }
        Ok(config)
    }

    /// The runtime class for an object with these labels: the most specific that matches, then the first by
    /// name.
    #[must_use]
    pub fn runtime_class_name(&self, labels: &BTreeMap<String, String>) -> Option<&str> {
        let matching = self
            .runtime_class_names
            .iter()
            .filter(|(_, class)| class.selector.iter().all(|(k, v)| labels.get(k) == Some(v)));
        // Of equals the last would win, so they are visited backwards.
        matching.rev().max_by_key(|(_, class)| class.selector.len()).map(|(name, _)| name.as_str())
    }
}

fn runtime_classes(raw: &str) -> Result<BTreeMap<String, RuntimeClassSelector>, ConfigError> {
    const KIND: &str = "map[string]deployment.RuntimeClassNameLabelSelector";
    let parsed = data::yaml(raw).and_then(|value| match value {
        Value::Null => Ok(BTreeMap::new()),
        Value::Object(classes) => classes
            .iter()
            .map(|(name, class)| match class {
                Value::Null => Ok((name.clone(), RuntimeClassSelector::default())),
                Value::Object(class) => {
                    let selector =
                        data::string_map(class.get("selector"), "selector", "RuntimeClassNameLabelSelector")?;
                    Ok((name.clone(), RuntimeClassSelector { selector }))
                }
                other => Err(data::unmarshal_error(other, "", "deployment.RuntimeClassNameLabelSelector")),
            })
            .collect(),
        other => Err(data::unmarshal_error(&other, "", KIND)),
    });
    let classes = parsed.map_err(|e| {
        ConfigError(format!("runtime-class-name cannot be parsed, please check the format: {e}"))
    })?;
    for (name, class) in &classes {
        let problems = syntax::dns1123_subdomain(name);
        if !problems.is_empty() {
            return Err(ConfigError(format!(
                "runtime-class-name {name} selector not valid DNSSubdomain: [{}]",
                problems.join(" ")
            )));
        }
        for (key, value) in &class.selector {
            let invalid =
                |what: String| ConfigError(format!("runtime-class-name {name} selector invalid: {what}"));
            let checks = [
                ("key".to_owned(), key, syntax::qualified_name(key)),
                (format!("values[0][{key}]"), value, syntax::label_value(value)),
            ];
            let found: Vec<String> = checks
                .into_iter()
                .filter(|(_, _, problems)| !problems.is_empty())
                .map(|(path, value, problems)| {
                    format!("{path}: Invalid value: {}: {}", quote(value), problems.join("; "))
                })
                .collect();
            match found.as_slice() {
                [] => {}
                [only] => return Err(invalid(only.clone())),
                several => return Err(invalid(format!("[{}]", several.join(", ")))),
            }
        }
    }
    Ok(classes)
}
