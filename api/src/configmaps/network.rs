//! `config-network`: host names, TLS, and which ingress serves.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::ConfigError;
use super::data::{self, Data};
use crate::golang::quote;
use crate::template::{Fields, Template, Value};

/// The ConfigMap's name.
pub const NAME: &str = "config-network";

const DOMAIN_TEMPLATE: &str = "{{.Name}}.{{.Namespace}}.{{.Domain}}";
const TAG_TEMPLATE: &str = "{{.Tag}}-{{.Name}}";

/// What plain HTTP gets from the ingress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpProtocol {
    /// It is served.
    #[default]
    Enabled,
    /// It is refused.
    Disabled,
    /// It is sent to HTTPS.
    Redirected,
}

impl HttpProtocol {
    /// The setting as the ConfigMap spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
            Self::Redirected => "redirected",
        }
    }
}

/// Whether pods are reached by their own addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MeshCompatibilityMode {
    /// Never: only by the address of their service.
    Enabled,
    /// Always.
    Disabled,
    /// Unless that turns out not to work.
    #[default]
    Auto,
}

impl MeshCompatibilityMode {
    /// The setting as the ConfigMap spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
            Self::Auto => "auto",
        }
    }
}

/// Parsed `config-network`.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Class of Ingresses whose Route names none.
    pub default_ingress_class: String,
    /// Class of Certificates whose Route names none.
    pub default_certificate_class: String,
    /// Host of a Route; see [`DomainTemplateValues`].
    pub domain_template: Template,
    /// Name of a Route's tag; see [`TagTemplateValues`].
    pub tag_template: Template,
    /// Whether external domains get certificates.
    pub external_domain_tls: bool,
    /// Whether cluster-local domains get certificates.
    pub cluster_local_domain_tls: bool,
    /// Whether traffic between the system's components is encrypted.
    pub system_internal_tls: bool,
    /// What plain HTTP gets.
    pub http_protocol: HttpProtocol,
    /// Namespaces that get a wildcard certificate.
    pub namespace_wildcard_cert_selector: Option<LabelSelector>,
    /// How long new revisions take to get all the traffic, unless annotated; zero is at once.
    pub rollout_duration: Duration,
    /// Whether a DomainMapping claims its domain by itself.
    pub autocreate_cluster_domain_claims: bool,
    /// Scheme of external URLs without TLS.
    pub default_external_scheme: String,
    /// Whether pods are made addressable behind a mesh.
    pub enable_mesh_pod_addressability: bool,
    /// Whether pods are reached by their own addresses.
    pub mesh_compatibility_mode: MeshCompatibilityMode,
    /// The port that external URLs carry; `None` is the scheme's own. Ours alone, key `external-port`.
    pub external_port: Option<u16>,
    /// The port that cluster-local URLs carry; `None` is the scheme's own. Ours alone, key `internal-port`.
    pub internal_port: Option<u16>,
}

/// What a domain template is applied to.
#[derive(Clone, Copy, Debug)]
pub struct DomainTemplateValues<'a> {
    /// The Route's name, or that of its tag.
    pub name: &'a str,
    /// The Route's namespace.
    pub namespace: &'a str,
    /// The domain from `config-domain`.
    pub domain: &'a str,
    /// The Route's annotations.
    pub annotations: &'a BTreeMap<String, String>,
    /// The Route's labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// What a tag template is applied to.
#[derive(Clone, Copy, Debug)]
pub struct TagTemplateValues<'a> {
    /// The Route's name.
    pub name: &'a str,
    /// The tag.
    pub tag: &'a str,
}

impl Fields for DomainTemplateValues<'_> {
    fn type_name(&self) -> &'static str {
        "config.DomainTemplateValues"
    }

    fn field(&self, name: &str) -> Option<Value<'_>> {
        Some(match name {
            "Name" => Value::Text(self.name.into()),
            "Namespace" => Value::Text(self.namespace.into()),
            "Domain" => Value::Text(self.domain.into()),
            "Annotations" => Value::Map(self.annotations),
            "Labels" => Value::Map(self.labels),
            _ => return None,
        })
    }
}

impl Fields for TagTemplateValues<'_> {
    fn type_name(&self) -> &'static str {
        "config.TagTemplateValues"
    }

    fn field(&self, name: &str) -> Option<Value<'_>> {
        match name {
            "Name" => Some(Value::Text(Cow::Borrowed(self.name))),
            "Tag" => Some(Value::Text(Cow::Borrowed(self.tag))),
            _ => None,
        }
    }
}

impl Default for Network {
    #[expect(
        clippy::expect_used,
        reason = "both templates are constants, and parsed by every test that defaults"
    )]
    fn default() -> Self {
        Self {
            default_ingress_class: "istio.ingress.networking.knative.dev".to_owned(),
            default_certificate_class: "cert-manager.certificate.networking.knative.dev".to_owned(),
            domain_template: Template::parse("domain-template", DOMAIN_TEMPLATE).expect("a valid template"),
            tag_template: Template::parse("tag-template", TAG_TEMPLATE).expect("a valid template"),
            external_domain_tls: false,
            cluster_local_domain_tls: false,
            system_internal_tls: false,
            http_protocol: HttpProtocol::default(),
            namespace_wildcard_cert_selector: None,
            rollout_duration: Duration::ZERO,
            autocreate_cluster_domain_claims: false,
            default_external_scheme: "http".to_owned(),
            enable_mesh_pod_addressability: false,
            mesh_compatibility_mode: MeshCompatibilityMode::default(),
            external_port: None,
            internal_port: None,
        }
    }
}

impl Network {
    /// Parses the ConfigMap's data.
    ///
    /// # Errors
    /// A value that does not parse or that is outside its bounds.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let data = Data(data);
        let mut config = Self::default();
        let mut rollout = 0;
        let mut internal_encryption = false;
        let mut domain_template = DOMAIN_TEMPLATE.to_owned();
        let mut tag_template = TAG_TEMPLATE.to_owned();
        // What is read later wins.
        for [ingress, certificate, domain, tag, duration, claims, scheme] in [
            [
                "ingress.class",
                "certificate.class",
                "domainTemplate",
                "tagTemplate",
                "rolloutDuration",
                "autocreateClusterDomainClaims",
                "defaultExternalScheme",
            ],
            [
                "ingress-class",
                "certificate-class",
                "domain-template",
                "tag-template",
                "rollout-duration",
                "autocreate-cluster-domain-claims",
                "default-external-scheme",
            ],
        ] {
            data.string(ingress, &mut config.default_ingress_class);
            data.string(certificate, &mut config.default_certificate_class);
            data.string(domain, &mut domain_template);
            data.string(tag, &mut tag_template);
            data.int(duration, &mut rollout)?;
            data.bool(claims, &mut config.autocreate_cluster_domain_claims)?;
            data.string(scheme, &mut config.default_external_scheme);
        }
        data.bool("enable-mesh-pod-addressability", &mut config.enable_mesh_pod_addressability)?;
        data.bool("internal-encryption", &mut internal_encryption)?;
        match data.get("mesh-compatibility-mode").map(str::to_ascii_lowercase).as_deref() {
            Some("enabled") => config.mesh_compatibility_mode = MeshCompatibilityMode::Enabled,
            Some("disabled") => config.mesh_compatibility_mode = MeshCompatibilityMode::Disabled,
            _ => {}
        }
        if let Some(raw) = data.get("namespace-wildcard-cert-selector").filter(|raw| !raw.is_empty()) {
            let selector = data::texts(data::yaml(raw)?);
            if !selector.is_object() && !selector.is_null() {
                return Err(data::unmarshal_error(&selector, "", "v1.LabelSelector"));
            }
            config.namespace_wildcard_cert_selector = serde_json::from_value(selector)
                .map_err(|e| ConfigError(format!("error unmarshaling JSON: while decoding JSON: {e}")))?;
        }
        config.rollout_duration = u64::try_from(rollout).map(Duration::from_secs).map_err(|_| {
            ConfigError(format!("rollout-duration must be a positive integer, but was {rollout}"))
        })?;
        config.domain_template = Template::parse("domain-template", &domain_template)?;
        check_domain_template(&config.domain_template)?;
        config.tag_template = Template::parse("tag-template", &tag_template)?;
        config.tag_template.render(&TagTemplateValues { name: "foo", tag: "v2" })?;

        config.external_domain_tls = ["external-domain-tls", "auto-tls", "autoTLS"]
            .iter()
            .find_map(|key| data.get(key))
            .is_some_and(|raw| raw.eq_ignore_ascii_case("enabled"));
        let http = data.get("http-protocol").or_else(|| data.get("httpProtocol")).unwrap_or_default();
        config.http_protocol = match http.to_ascii_lowercase().as_str() {
            "" | "enabled" => HttpProtocol::Enabled,
            "disabled" => HttpProtocol::Disabled,
            "redirected" => HttpProtocol::Redirected,
            _ => {
                let raw = data.get("http-protocol").unwrap_or_default();
                return Err(ConfigError(format!(
                    "httpProtocol {raw} in config-network ConfigMap is not supported"
                )));
            }
        };
        config.system_internal_tls = encryption(&data, "system-internal-tls")? || internal_encryption;
        config.cluster_local_domain_tls = encryption(&data, "cluster-local-domain-tls")?;
        config.external_port = port(&data, "external-port")?;
        config.internal_port = port(&data, "internal-port")?;
        Ok(config)
    }
}

fn port(data: &Data<'_>, key: &str) -> Result<Option<u16>, ConfigError> {
    let Some(raw) = data.get(key).filter(|raw| !raw.is_empty()) else { return Ok(None) };
    let port = raw.parse().ok().filter(|port| *port != 0);
    port.map(Some).ok_or_else(|| ConfigError(format!("{key} must be a port number, but was {}", quote(raw))))
}

fn encryption(data: &Data<'_>, key: &str) -> Result<bool, ConfigError> {
    let raw = data.get(key).unwrap_or_default();
    match raw.to_ascii_lowercase().as_str() {
        "" | "disabled" => Ok(false),
        "enabled" => Ok(true),
        _ => Err(ConfigError(format!(
            "{key} with value: {} in config-network ConfigMap is not supported",
            quote(raw)
        ))),
    }
}

/// A domain template has to give a host name, and nothing but one.
fn check_domain_template(template: &Template) -> Result<(), ConfigError> {
    let none = BTreeMap::new();
    let values = DomainTemplateValues {
        name: "foo",
        namespace: "bar",
        domain: "baz.com",
        annotations: &none,
        labels: &none,
    };
    let rendered = template.render(&values)?;
    let end = rendered.find(['/', '?', '#']).unwrap_or(rendered.len());
    let (authority, path) = rendered.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let url = quote(&format!("https://{rendered}"));
    if rendered.chars().any(|c| c.is_ascii_control()) {
        return Err(ConfigError(format!("parse {url}: net/url: invalid control character in URL")));
    }
    let (name, port) = host.rfind(':').map_or((host, ""), |at| host.split_at(at));
    if !port.bytes().skip(1).all(|b| b.is_ascii_digit()) {
        return Err(ConfigError(format!("parse {url}: invalid port {} after host", quote(port))));
    }
    if let Some(bad) = host.chars().find(|c| " \\^`{|}".contains(*c)) {
        let bad = quote(&bad.to_string());
        return Err(ConfigError(format!("parse {url}: invalid character {bad} in host name")));
    }
    if name.is_empty() {
        return Err(ConfigError("empty hostname".to_owned()));
    }
    let request = match path.split('#').next().unwrap_or_default() {
        path if path.starts_with('/') => path.to_owned(),
        query => format!("/{query}"),
    };
    if request != "/" {
        return Err(ConfigError(format!("domain template has url path: {request}")));
    }
    Ok(())
}
