//! `config-gc`: which old revisions are deleted.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ConfigError;
use super::data::Data;
use crate::golang;

/// The ConfigMap's name.
pub const NAME: &str = "config-gc";

/// Parsed `config-gc`; `None` is a disabled criterion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gc {
    /// Revisions younger than this stay.
    pub retain_since_create_time: Option<Duration>,
    /// Revisions that were routed to within this time stay.
    pub retain_since_last_active_time: Option<Duration>,
    /// Revisions without a route that always stay.
    pub min_non_active_revisions: i64,
    /// Revisions without a route beyond this number go.
    pub max_non_active_revisions: Option<i64>,
}

impl Default for Gc {
    fn default() -> Self {
        Self {
            retain_since_create_time: Some(Duration::from_secs(48 * 3600)),
            retain_since_last_active_time: Some(Duration::from_secs(15 * 3600)),
            min_non_active_revisions: 20,
            max_non_active_revisions: Some(1000),
        }
    }
}

impl Gc {
    /// Parses the ConfigMap's data.
    ///
    /// # Errors
    /// A value that does not parse or that is outside its bounds.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let data = Data(data);
        let mut config = Self::default();
        data.int("min-non-active-revisions", &mut config.min_non_active_revisions)
            .map_err(|e| ConfigError(format!("failed to parse data: {e}")))?;
        criterion(&data, "retain-since-create-time", &mut config.retain_since_create_time, duration)?;
        criterion(
            &data,
            "retain-since-last-active-time",
            &mut config.retain_since_last_active_time,
            duration,
        )?;
        criterion(&data, "max-non-active-revisions", &mut config.max_non_active_revisions, |raw| {
            let value = golang::parse_uint(raw).map_err(|e| e.to_string())?;
            i64::try_from(value).map_err(|_| format!("value should be lower than {}", i64::MAX))
        })?;
        let min = config.min_non_active_revisions;
        if min < 0 {
            return Err(ConfigError(format!("min-non-active-revisions must be non-negative, was: {min}")));
        }
        if let Some(max) = config.max_non_active_revisions.filter(|max| min > *max) {
            return Err(ConfigError(format!(
                "min-non-active-revisions({min}) must be <= max-non-active-revisions({max})"
            )));
        }
        Ok(config)
    }
}

fn criterion<T>(
    data: &Data<'_>,
    key: &str,
    target: &mut Option<T>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<(), ConfigError> {
    match data.get(key).map(str::trim) {
        None | Some("") => {}
        Some(raw) if raw.eq_ignore_ascii_case("disabled") => *target = None,
        Some(raw) => {
            *target = Some(parse(raw).map_err(|e| ConfigError(format!("failed to parse {key}: {e}")))?);
        }
    }
    Ok(())
}

fn duration(raw: &str) -> Result<Duration, String> {
    let parsed = golang::parse_duration(raw).map_err(|e| e.to_string())?;
    if parsed.0 < 0 { Err("must be non-negative".into()) } else { Ok(parsed.to_std()) }
}
