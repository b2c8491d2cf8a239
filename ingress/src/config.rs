//! What the gateway is told at start.

use std::net::SocketAddr;
use std::time::Duration;

/// Configuration of the gateway.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the outside reaches it.
    pub listen: SocketAddr,
    /// Where the inside reaches it, cluster-local hosts included; `None` for not at all.
    pub listen_internal: Option<SocketAddr>,
    /// The class of the Ingresses that are ours. `ember.ingress.networking.knative.dev`.
    pub ingress_class: String,
    /// The DNS name of the gateway's own Service, as the status of an Ingress states it.
    pub service_host: String,
    /// Name of the activator's Service in the system namespace.
    pub activator_service: String,
    /// How long requests under way may take to end at shutdown. 30 s.
    pub drain_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            listen_internal: None,
            ingress_class: "ember.ingress.networking.knative.dev".to_owned(),
            service_host: "ember-gateway.knative-serving.svc.cluster.local".to_owned(),
            activator_service: "activator-service".to_owned(),
            drain_timeout: Duration::from_secs(30),
        }
    }
}
