//! What the gateway is told at start.

use std::net::SocketAddr;
use std::time::Duration;

use ember_dataplane::server;

/// Configuration of the gateway.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the outside reaches it.
    pub listen: SocketAddr,
    /// Where the inside reaches it, cluster-local hosts included; `None` for not at all.
    pub listen_internal: Option<SocketAddr>,
    /// Limits of what clients may do. Safe by default; an HTTP/2 client may send 4 MiB ahead on a connection, which is
    /// its own: those of other components carry many clients. One that has no more to say is waited for 60 s; clients of
    /// other components are hops, which close a side only when they give up.
    pub server: server::Options,
    /// The class of the Ingresses that are ours. `ember.ingress.networking.knative.dev`.
    pub ingress_class: String,
    /// The DNS name of the gateway's own Service, as the status of an Ingress states it.
    pub service_host: String,
    /// The namespace of the system's own objects. `knative-serving`.
    pub system_namespace: String,
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
            server: server::Options {
                connection_window: 4 << 20,
                half_closed_timeout: Duration::from_secs(60),
                ..server::Options::default()
            },
            ingress_class: "ember.ingress.networking.knative.dev".to_owned(),
            service_host: "ember-gateway.knative-serving.svc.cluster.local".to_owned(),
            system_namespace: ember_reconcile::SYSTEM_NAMESPACE.to_owned(),
            activator_service: "activator-service".to_owned(),
            drain_timeout: Duration::from_secs(30),
        }
    }
}
