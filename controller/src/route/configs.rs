//! What the configuration says about a Route, where the Route may say otherwise.

use std::time::Duration;

use ember_api::configmaps::Configs;
use ember_api::configmaps::network::HttpProtocol;
use ember_api::networking::v1alpha1::{HttpOption, IngressVisibility};
use ember_api::serving::v1::Route;
use ember_api::{annotations, domains, golang};

use crate::metadata;

/// The host by which callers within the cluster reach a Route.
pub(super) fn service_host(configs: &Configs, route: &Route) -> String {
    let name = route.metadata.name.as_deref().unwrap_or_default();
    let namespace = route.metadata.namespace.as_deref().unwrap_or_default();
    format!("{name}.{namespace}.{}", configs.domain.cluster_local())
}

/// The URL of a host as long as no certificate is known for it.
pub(super) fn url(configs: &Configs, visibility: IngressVisibility, host: &str) -> String {
    let scheme = match visibility {
        IngressVisibility::ClusterLocal => "http",
        IngressVisibility::ExternalIP => configs.network.default_external_scheme.as_str(),
    };
    domains::url(configs, scheme, host)
}

/// What plain HTTP gets.
///
/// # Errors
/// The Route's wish makes no sense.
pub(super) fn http_option(configs: &Configs, route: &Route) -> Result<Option<HttpOption>, String> {
    let own = metadata::annotations(&route.metadata);
    match annotations::lookup(&own, annotations::HTTP_PROTOCOL).filter(|(_, value)| !value.is_empty()) {
        None => Ok(match configs.network.http_protocol {
            HttpProtocol::Enabled => Some(HttpOption::Enabled),
            HttpProtocol::Redirected => Some(HttpOption::Redirected),
            HttpProtocol::Disabled => None,
        }),
        Some((_, value)) => match value.to_lowercase().as_str() {
            "enabled" => Ok(Some(HttpOption::Enabled)),
            "redirected" => Ok(Some(HttpOption::Redirected)),
            other => Err(format!("incorrect http-protocol annotation: {other}")),
        },
    }
}

/// Whether the Route's external hosts get certificates.
pub(super) fn external_domain_tls(configs: &Configs, route: &Route) -> bool {
    let own = metadata::annotations(&route.metadata);
    let disabled = annotations::lookup(&own, annotations::DISABLE_EXTERNAL_DOMAIN_TLS)
        .is_some_and(|(_, value)| golang::parse_bool(value).unwrap_or(false));
    configs.network.external_domain_tls && !disabled
}

/// How long a rollout lasts: the Route's own wish if it has a good one, else the configured time.
pub(super) fn rollout_duration(configs: &Configs, route: &Route) -> Duration {
    let own = metadata::annotations(&route.metadata);
    annotations::lookup(&own, annotations::ROLLOUT_DURATION)
        .and_then(|(_, text)| golang::parse_duration(text).ok())
        .map(|duration| Duration::from_secs(duration.to_std().as_secs()))
        .filter(|duration| !duration.is_zero())
        .unwrap_or(configs.network.rollout_duration)
}
