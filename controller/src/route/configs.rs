//! The configuration that Routes are subject to.

use std::time::Duration;

use ember_api::annotations;
use ember_api::configmaps::network::{DomainTemplateValues, HttpProtocol, Network, TagTemplateValues};
use ember_api::golang;
use ember_api::networking::v1alpha1::{HttpOption, IngressVisibility};
use ember_api::serving::v1::Route;

use crate::context::Configs;
use crate::metadata::{self, Map};

/// One snapshot of the configuration, as Routes see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteConfigs<'a> {
    configs: &'a Configs,
    /// The DNS suffix of the cluster.
    pub(crate) cluster_domain: &'a str,
}

impl<'a> RouteConfigs<'a> {
    pub(crate) fn new(configs: &'a Configs, cluster_domain: &'a str) -> Self {
        Self { configs, cluster_domain }
    }

    fn network(&self) -> &'a Network {
        &self.configs.network
    }

    /// The domain of hosts within the cluster.
    pub(crate) fn service_domain(&self) -> String {
        format!("svc.{}", self.cluster_domain)
    }

    /// The host by which callers within the cluster reach a Route.
    pub(crate) fn service_host(&self, route: &Route) -> String {
        let name = route.metadata.name.as_deref().unwrap_or_default();
        let namespace = route.metadata.namespace.as_deref().unwrap_or_default();
        format!("{name}.{namespace}.{}", self.service_domain())
    }

    /// The domain of config-domain for an object with these labels.
    pub(crate) fn domain_for(&self, labels: &Map) -> String {
        self.configs.domain.for_labels(labels)
    }

    /// The name of a tag of a Route.
    pub(crate) fn tag_host(&self, route: &str, tag: &str) -> Result<String, String> {
        let values = TagTemplateValues { name: route, tag };
        self.network().tag_template.render(&values).map_err(|e| e.to_string())
    }

    /// The host that the domain template makes of a name.
    pub(crate) fn domain_host(
        &self,
        name: &str,
        namespace: &str,
        domain: &str,
        annotations: &Map,
        labels: &Map,
    ) -> Result<String, String> {
        let values = DomainTemplateValues { name, namespace, domain, annotations, labels };
        self.network().domain_template.render(&values).map_err(|e| e.to_string())
    }

    /// The URL of a host. Hosts that the outside reaches carry the gateway's port where it is not the scheme's own.
    pub(crate) fn url(&self, visibility: IngressVisibility, host: &str) -> String {
        match (visibility, self.network().external_port) {
            (IngressVisibility::ClusterLocal, _) => format!("http://{host}"),
            (IngressVisibility::ExternalIP, None) => format!("{}://{host}", self.network().default_external_scheme),
            (IngressVisibility::ExternalIP, Some(port)) => {
                format!("{}://{host}:{port}", self.network().default_external_scheme)
            }
        }
    }

    pub(crate) fn ingress_class(&self) -> &'a str {
        &self.network().default_ingress_class
    }

    pub(crate) fn certificate_class(&self) -> &'a str {
        &self.network().default_certificate_class
    }

    /// What plain HTTP gets unless the Route says otherwise.
    pub(crate) fn http_option(&self) -> Option<HttpOption> {
        match self.network().http_protocol {
            HttpProtocol::Enabled => Some(HttpOption::Enabled),
            HttpProtocol::Redirected => Some(HttpOption::Redirected),
            HttpProtocol::Disabled => None,
        }
    }

    pub(crate) fn is_http_enabled(&self) -> bool {
        self.network().http_protocol == HttpProtocol::Enabled
    }

    pub(crate) fn system_internal_tls(&self) -> bool {
        self.network().system_internal_tls
    }

    pub(crate) fn cluster_local_domain_tls(&self) -> bool {
        self.network().cluster_local_domain_tls
    }

    /// Whether the Route's hosts get certificates.
    pub(crate) fn external_domain_tls(&self, route: &Route) -> bool {
        let own = metadata::annotations(&route.metadata);
        let disabled = annotations::lookup(&own, annotations::DISABLE_EXTERNAL_DOMAIN_TLS)
            .is_some_and(|(_, value)| golang::parse_bool(value).unwrap_or(false));
        self.network().external_domain_tls && !disabled
    }

    pub(crate) fn tag_header_based_routing(&self) -> bool {
        self.configs.features.tag_header_based_routing.is_enabled()
    }

    /// How long a rollout lasts: the Route's own wish if it has a good one, else the configured time.
    pub(crate) fn rollout_duration(&self, route: &Route) -> Duration {
        let own = metadata::annotations(&route.metadata);
        annotations::lookup(&own, annotations::ROLLOUT_DURATION)
            .and_then(|(_, text)| golang::parse_duration(text).ok())
            .map(golang::GoDuration::to_std)
            .filter(|duration| !duration.is_zero())
            .unwrap_or(self.network().rollout_duration)
    }
}
