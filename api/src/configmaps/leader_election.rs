//! `config-leader-election`: the Leases by which replicas share work.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ConfigError;
use super::data::Data;
use crate::golang::GoDuration;

/// The ConfigMap's name.
pub const NAME: &str = "config-leader-election";

const MAX_BUCKETS: u32 = 10;

/// Parsed `config-leader-election`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderElection {
    /// Parts the keys are dealt into, each with a leader of its own.
    pub buckets: u32,
    /// How long a Lease is good for without renewal.
    pub lease_duration: Duration,
    /// How long a leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// Time between attempts.
    pub retry_period: Duration,
    /// Replacement prefixes of Lease names, by `component.queue`.
    pub lease_name_prefixes: BTreeMap<String, String>,
}

impl Default for LeaderElection {
    fn default() -> Self {
        Self {
            buckets: 1,
            lease_duration: Duration::from_secs(60),
            renew_deadline: Duration::from_secs(40),
            retry_period: Duration::from_secs(10),
            lease_name_prefixes: BTreeMap::new(),
        }
    }
}

impl LeaderElection {
    /// Parses the ConfigMap's data.
    ///
    /// # Errors
    /// A value that does not parse or that is outside its bounds.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let reader = Data(data);
        let mut config = Self::default();
        for keys in [
            ["leaseDuration", "renewDeadline", "retryPeriod"],
            ["lease-duration", "renew-deadline", "retry-period"],
        ] {
            let targets = [&mut config.lease_duration, &mut config.renew_deadline, &mut config.retry_period];
            for (key, target) in keys.into_iter().zip(targets) {
                let mut duration = GoDuration::from(*target);
                reader.duration(key, &mut duration)?;
                *target = duration.to_std();
            }
        }
        reader.uint32("buckets", &mut config.buckets)?;
        config.lease_name_prefixes = data
            .iter()
            .filter_map(|(k, v)| Some((k.strip_prefix("map-lease-prefix.")?.to_owned(), v.clone())))
            .filter(|(k, _)| !k.is_empty())
            .collect();
        if !(1..=MAX_BUCKETS).contains(&config.buckets) {
            return Err(ConfigError(format!(
                "buckets: value must be between 1 <= {} <= {MAX_BUCKETS}",
                config.buckets
            )));
        }
        Ok(config)
    }
}
