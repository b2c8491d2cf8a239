//! What holds for a simulated revision: annotations and ConfigMap keys, checked and read as in production.

use std::collections::BTreeMap;
use std::time::Duration;

use ember_api::annotations as keys;
use ember_api::autoscaling::annotations::{Scaling, validate};
use ember_api::autoscaling::v1alpha1::PodAutoscalerSpec;
use ember_api::configmaps::ConfigError;
use ember_api::configmaps::autoscaler::{Autoscaler, HPA};
use ember_api::field_error::{FieldError, Level};
use ember_autoscaler::resolution::{Resolved, Settings, resolve};

/// The domain of the annotations that a setting is made of.
const DOMAIN: &str = "autoscaling.knative.dev/";

/// Why a setting is refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// An argument that is no pair.
    #[error("{0:?}: must be KEY=VALUE, for instance target=50")]
    NotAPair(String),
    /// An annotation that means nothing to the autoscaler.
    #[error("annotation {0}: no such annotation; known are {1}")]
    UnknownAnnotation(String, String),
    /// A key that is not one of ConfigMap `config-autoscaler`.
    #[error("config {0}: no such key in ConfigMap config-autoscaler; known are {1}")]
    UnknownKey(String, String),
    /// The annotations are not valid; the text is the admission's.
    #[error("annotations: {0}")]
    Annotations(FieldError),
    /// The ConfigMap is not valid; the text is the admission's.
    #[error("config-autoscaler: {0}")]
    Config(ConfigError),
    /// A class of autoscaler that is not simulated.
    #[error(
        "annotation autoscaling.knative.dev/class: {0:?} is not simulated, only kpa.autoscaling.knative.dev is"
    )]
    Class(String),
}

/// What the simulated world is like besides the setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct World {
    /// From the creation of a pod to its readiness. Default 500 ms.
    pub pod_start: Duration,
    /// How long a request is worked on; tells concurrency from requests a second. Default 100 ms.
    pub request_time: Duration,
    /// `containerConcurrency` of the revision; 0 (the default) is no limit.
    pub container_concurrency: u32,
}

impl Default for World {
    fn default() -> Self {
        Self {
            pod_start: Duration::from_millis(500),
            request_time: Duration::from_millis(100),
            container_concurrency: 0,
        }
    }
}

/// A setting to simulate.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// What it is called in tables and charts.
    pub name: String,
    /// What follows from it.
    pub resolved: Resolved,
    /// The world it is tried in.
    pub world: World,
}

impl Setting {
    /// Reads a setting from annotations and ConfigMap keys, each a list of `KEY=VALUE`; of a key that comes twice the
    /// last value holds. Annotations may be written without their domain.
    ///
    /// # Errors
    /// What the admission of a cluster would refuse, and keys that no autoscaler reads.
    pub fn parse(
        name: &str,
        annotations: &[String],
        config: &[String],
        world: World,
    ) -> Result<Self, SettingError> {
        let config = autoscaler_config(config)?;
        let mut read = BTreeMap::new();
        for pair in annotations {
            let (key, value) = split(pair)?;
            let key = if key.contains('/') { key.to_owned() } else { format!("{DOMAIN}{key}") };
            let Some(spellings) = spellings_of(&key) else {
                return Err(SettingError::UnknownAnnotation(key, known_annotations()));
            };
            // The last one counts, whichever way it is spelled.
            read.retain(|other: &String, _| !spellings.contains(&other.as_str()));
            read.insert(key, value.to_owned());
        }
        validate(&read, &config).filter(Level::Error).into_result().map_err(SettingError::Annotations)?;
        let scaling = Scaling::new(&read);
        if scaling.class().unwrap_or(&config.pod_autoscaler_class) == HPA {
            return Err(SettingError::Class(HPA.to_owned()));
        }
        let spec = PodAutoscalerSpec {
            container_concurrency: i64::from(world.container_concurrency),
            ..PodAutoscalerSpec::default()
        };
        let settings = Settings { autoscaler: config, ..Settings::default() };
        let buffer = ember_autoscaler::Config::default().activation_timeout_buffer;
        // What the webhook writes into a PodAutoscaler without one.
        read.entry(keys::METRIC.to_owned()).or_insert_with(|| "concurrency".to_owned());
        Ok(Self { name: name.to_owned(), resolved: resolve(&read, &spec, &settings, buffer), world })
    }
}

fn split(pair: &str) -> Result<(&str, &str), SettingError> {
    let wrong = || SettingError::NotAPair(pair.to_owned());
    let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
    let (key, value) = (key.trim(), value.trim());
    if key.is_empty() { Err(wrong()) } else { Ok((key, value)) }
}

fn autoscaler_config(pairs: &[String]) -> Result<Autoscaler, SettingError> {
    let mut data = BTreeMap::new();
    for pair in pairs {
        let (key, value) = split(pair)?;
        if !CONFIG_KEYS.contains(&key) {
            return Err(SettingError::UnknownKey(key.to_owned(), CONFIG_KEYS.join(", ")));
        }
        data.insert(key.to_owned(), value.to_owned());
    }
    Autoscaler::parse(&data).map_err(SettingError::Config)
}

/// What may be set of ConfigMap `config-autoscaler`.
const CONFIG_KEYS: &[&str] = &[
    "enable-scale-to-zero",
    "allow-zero-initial-scale",
    "max-scale-up-rate",
    "max-scale-down-rate",
    "container-concurrency-target-percentage",
    "container-concurrency-target-default",
    "requests-per-second-target-default",
    "target-burst-capacity",
    "panic-window-percentage",
    "activator-capacity",
    "panic-threshold-percentage",
    "initial-scale",
    "min-scale",
    "max-scale",
    "max-scale-limit",
    "stable-window",
    "scale-down-delay",
    "scale-to-zero-grace-period",
    "scale-to-zero-pod-retention-period",
];

/// The annotations that scaling by the KPA depends on, each with its spellings.
const ANNOTATIONS: &[keys::Keys] = &[
    &[keys::CLASS],
    &[keys::METRIC],
    &[keys::TARGET],
    &[keys::WINDOW],
    keys::MIN_SCALE,
    keys::MAX_SCALE,
    keys::INITIAL_SCALE,
    keys::ACTIVATION_SCALE,
    keys::SCALE_DOWN_DELAY,
    keys::SCALE_TO_ZERO_POD_RETENTION_PERIOD,
    keys::METRIC_AGGREGATION_ALGORITHM,
    keys::TARGET_UTILIZATION_PERCENTAGE,
    keys::TARGET_BURST_CAPACITY,
    keys::PANIC_WINDOW_PERCENTAGE,
    keys::PANIC_THRESHOLD_PERCENTAGE,
];

fn spellings_of(key: &str) -> Option<keys::Keys> {
    ANNOTATIONS.iter().copied().find(|spellings| spellings.contains(&key))
}

fn known_annotations() -> String {
    let known: Vec<&str> = ANNOTATIONS.iter().filter_map(|s| s.first()?.strip_prefix(DOMAIN)).collect();
    known.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(annotations: &[&str], config: &[&str]) -> Result<Setting, SettingError> {
        let own = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
        Setting::parse("test", &own(annotations), &own(config), World::default())
    }

    #[test]
    fn every_key_of_the_config_map_is_read() {
        assert_eq!(ember_api::configmaps::autoscaler::NAME, "config-autoscaler");
        for key in CONFIG_KEYS {
            // Nothing of what may be set takes this for a value.
            assert!(
                parse(&[], &[&format!("{key}=nonsense")]).is_err()
                    || key.contains("enable")
                    || key.contains("allow"),
                "{key}"
            );
        }
    }

    #[test]
    fn annotations_win_over_the_config_map_and_the_last_value_wins() {
        let setting = parse(&["minScale=2", "min-scale=3", "target=50"], &["min-scale=1"]).unwrap();
        assert_eq!(setting.resolved.min_scale, 3);
        assert!((setting.resolved.decider.target_value - 35.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (annotations, config, parts) in [
            (vec!["target"], vec![], vec!["\"target\"", "KEY=VALUE"]),
            (vec!["target=abc"], vec![], vec!["autoscaling.knative.dev/target", "abc"]),
            (vec!["window=1s"], vec![], vec!["autoscaling.knative.dev/window", "6s"]),
            (vec!["tagret=1"], vec![], vec!["autoscaling.knative.dev/tagret", "target, window"]),
            (vec!["min-scale=5", "max-scale=2"], vec![], vec!["max-scale=2 is less than min-scale=5"]),
            (vec!["class=hpa.autoscaling.knative.dev"], vec![], vec!["not simulated"]),
            (vec!["metric=cpu"], vec![], vec!["autoscaling.knative.dev/metric", "cpu"]),
            (vec![], vec!["stable-window=1s"], vec!["stable-window"]),
            (vec![], vec!["stable=1s"], vec!["stable", "stable-window"]),
        ] {
            let error = parse(&annotations, &config).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{part:?} in {error:?}");
            }
        }
    }
}
