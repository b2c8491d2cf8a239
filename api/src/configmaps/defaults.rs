//! `config-defaults`: what the webhook fills in where a revision says nothing.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::ConfigError;
use super::data::Data;
use crate::field_error::FieldError;
use crate::template::{Fields, Template, Value};

/// The ConfigMap's name.
pub const NAME: &str = "config-defaults";

const USER_CONTAINER: &str = "user-container";
const INIT_CONTAINER: &str = "init-container";

/// Parsed `config-defaults`; times are in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// Longest a request may take.
    pub revision_timeout_seconds: i64,
    /// The largest timeout a revision may ask for.
    pub max_revision_timeout_seconds: i64,
    /// Longest until the first byte of a response; 0 is no limit.
    pub revision_response_start_timeout_seconds: i64,
    /// Longest without a byte of a response; 0 is no limit.
    pub revision_idle_timeout_seconds: i64,
    /// Concurrent requests a container gets; 0 is no limit.
    pub container_concurrency: i64,
    /// The largest container concurrency a revision may ask for.
    pub container_concurrency_max_limit: i64,
    /// Whether a revision may ask for no limit.
    pub allow_container_concurrency_zero: bool,
    /// `enableServiceLinks` of revisions; `None` leaves it to Kubernetes.
    pub enable_service_links: Option<bool>,
    /// CPU request of containers.
    pub revision_cpu_request: Option<Quantity>,
    /// CPU limit of containers.
    pub revision_cpu_limit: Option<Quantity>,
    /// Memory request of containers.
    pub revision_memory_request: Option<Quantity>,
    /// Memory limit of containers.
    pub revision_memory_limit: Option<Quantity>,
    /// Ephemeral storage request of containers.
    pub revision_ephemeral_storage_request: Option<Quantity>,
    /// Ephemeral storage limit of containers.
    pub revision_ephemeral_storage_limit: Option<Quantity>,
    container_name: ContainerName,
    init_container_name: ContainerName,
}

/// A name, or a template for one over the metadata of the object that holds the container.
#[derive(Clone, Debug, PartialEq)]
enum ContainerName {
    Fixed(&'static str),
    Template(Template),
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            revision_timeout_seconds: 300,
            max_revision_timeout_seconds: 600,
            revision_response_start_timeout_seconds: 300,
            revision_idle_timeout_seconds: 0,
            container_concurrency: 0,
            container_concurrency_max_limit: 1000,
            allow_container_concurrency_zero: true,
            enable_service_links: Some(false),
            revision_cpu_request: None,
            revision_cpu_limit: None,
            revision_memory_request: None,
            revision_memory_limit: None,
            revision_ephemeral_storage_request: None,
            revision_ephemeral_storage_limit: None,
            container_name: ContainerName::Fixed(USER_CONTAINER),
            init_container_name: ContainerName::Fixed(INIT_CONTAINER),
        }
    }
}

impl Defaults {
    /// Parses the ConfigMap's data.
    ///
    /// # Errors
    /// A value that does not parse or that is outside its bounds.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        config.read(&Data(data))?;
        config.check()?;
        Ok(config)
    }

    /// The name of a container that has none, in an object with this metadata.
    #[must_use]
    pub fn container_name(&self, parent: &ObjectMeta) -> String {
        self.container_name.render(parent).unwrap_or_default()
    }

    /// The name of an init container that has none, in an object with this metadata.
    #[must_use]
    pub fn init_container_name(&self, parent: &ObjectMeta) -> String {
        self.init_container_name.render(parent).unwrap_or_default()
    }

    fn read(&mut self, data: &Data<'_>) -> Result<(), ConfigError> {
        self.init_container_name.read(data, "init-container-name-template")?;
        self.container_name.read(data, "container-name-template")?;
        data.bool("allow-container-concurrency-zero", &mut self.allow_container_concurrency_zero)?;
        if let Some(raw) = data.get("enable-service-links") {
            self.enable_service_links = match raw.to_ascii_lowercase().as_str() {
                "true" => Some(true),
                "false" => Some(false),
                _ => None,
            };
        }
        data.int("revision-timeout-seconds", &mut self.revision_timeout_seconds)?;
        data.int("max-revision-timeout-seconds", &mut self.max_revision_timeout_seconds)?;
        data.int("revision-idle-timeout-seconds", &mut self.revision_idle_timeout_seconds)?;
        data.int("container-concurrency", &mut self.container_concurrency)?;
        data.int("container-concurrency-max-limit", &mut self.container_concurrency_max_limit)?;
        data.quantity("revision-cpu-request", &mut self.revision_cpu_request)?;
        data.quantity("revision-memory-request", &mut self.revision_memory_request)?;
        data.quantity("revision-ephemeral-storage-request", &mut self.revision_ephemeral_storage_request)?;
        data.quantity("revision-cpu-limit", &mut self.revision_cpu_limit)?;
        data.quantity("revision-memory-limit", &mut self.revision_memory_limit)?;
        data.quantity("revision-ephemeral-storage-limit", &mut self.revision_ephemeral_storage_limit)?;
        self.revision_response_start_timeout_seconds = self.revision_timeout_seconds;
        data.int("revision-response-start-timeout-seconds", &mut self.revision_response_start_timeout_seconds)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let (timeout, max) = (self.revision_timeout_seconds, self.max_revision_timeout_seconds);
        if timeout > max {
            return Err(ConfigError(format!(
                "revision-timeout-seconds ({timeout}) cannot be greater than max-revision-timeout-seconds ({max})"
            )));
        }
        for (key, value) in [
            ("revision-response-start-timeout-seconds", self.revision_response_start_timeout_seconds),
            ("revision-idle-timeout-seconds", self.revision_idle_timeout_seconds),
        ] {
            if value > 0 && value > timeout {
                return Err(ConfigError(format!(
                    "{key} ({value}) cannot be greater than revision-timeout-seconds ({timeout})"
                )));
            }
        }
        let (concurrency, limit) = (self.container_concurrency, self.container_concurrency_max_limit);
        if limit < 1 {
            return Err(
                FieldError::out_of_bounds(limit, 1, i32::MAX, "container-concurrency-max-limit").into()
            );
        }
        if !(0..=limit).contains(&concurrency) {
            return Err(FieldError::out_of_bounds(concurrency, 0, limit, "container-concurrency").into());
        }
        for name in [&self.container_name, &self.init_container_name] {
            name.render(&ObjectMeta::default())
                .map_err(|e| ConfigError(format!("error executing template: {e}")))?;
        }
        Ok(())
    }
}

impl ContainerName {
    fn read(&mut self, data: &Data<'_>, key: &str) -> Result<(), ConfigError> {
        if let Some(raw) = data.get(key) {
            *self = Self::Template(Template::parse("container-template", raw)?);
        }
        Ok(())
    }

    fn render(&self, parent: &ObjectMeta) -> Result<String, crate::template::TemplateError> {
        match self {
            Self::Fixed(name) => Ok((*name).to_owned()),
            Self::Template(template) => template.render(&Parent(parent)),
        }
    }
}

/// What a container name's template is applied to: the metadata of the object that holds the container.
struct Parent<'a>(&'a ObjectMeta);

impl Fields for Parent<'_> {
    fn type_name(&self) -> &'static str {
        "v1.ObjectMeta"
    }

    fn field(&self, name: &str) -> Option<Value<'_>> {
        static EMPTY: BTreeMap<String, String> = BTreeMap::new();
        let text = |text: &'_ Option<String>| Value::Text(Cow::Owned(text.clone().unwrap_or_default()));
        Some(match name {
            "Name" => text(&self.0.name),
            "GenerateName" => text(&self.0.generate_name),
            "Namespace" => text(&self.0.namespace),
            "UID" => text(&self.0.uid),
            "ResourceVersion" => text(&self.0.resource_version),
            "SelfLink" => text(&self.0.self_link),
            "Generation" => Value::Int(self.0.generation.unwrap_or_default()),
            "Labels" => Value::Map(self.0.labels.as_ref().unwrap_or(&EMPTY)),
            "Annotations" => Value::Map(self.0.annotations.as_ref().unwrap_or(&EMPTY)),
            _ => return None,
        })
    }
}
