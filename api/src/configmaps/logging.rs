//! `config-logging`: what each component logs.

use std::collections::BTreeMap;

use super::ConfigError;

/// The ConfigMap's name.
pub const NAME: &str = "config-logging";

/// Parsed `config-logging`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logging {
    /// The logger's configuration, a JSON text; not checked here.
    pub logger_config: String,
    /// Level by component.
    pub levels: BTreeMap<String, String>,
}

impl Logging {
    /// Parses the ConfigMap's data.
    ///
    /// # Errors
    /// A level that is none.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(raw) = data.get("zap-logger-config") {
            config.logger_config.clone_from(raw);
        }
        for (key, level) in data {
            let Some(component) = key.strip_prefix("loglevel.").filter(|c| !c.is_empty()) else { continue };
            if level.is_empty() {
                continue;
            }
            let known = ["debug", "info", "warn", "warning", "error", "dpanic", "panic", "fatal"];
            if !known.contains(&level.to_ascii_lowercase().as_str()) {
                return Err(ConfigError(format!("invalid logging level: {level}")));
            }
            config.levels.insert(component.to_owned(), level.to_ascii_lowercase().replace("warning", "warn"));
        }
        Ok(config)
    }
}
