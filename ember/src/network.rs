//! Connecting by cluster name without a cluster: `NAME.NAMESPACE.svc.<cluster domain>` is resolved from the API's
//! Services and Endpoints, as kube-proxy and the cluster's DNS do together.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ember_dataplane::io::{Listener, Network, Stream, SystemNetwork};
use ember_reconcile::cache::Cache;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// How often an ExternalName may lead to another name.
const MOST_ALIASES: usize = 4;

/// The [`Network`] of the one-process mode, and of a process beside it.
pub(crate) struct ClusterNetwork {
    cluster_domain: String,
    services: Cache<Service>,
    endpoints: Cache<Endpoints>,
    /// Listeners opened ahead of their component, so that their port is known: handed out once, by address.
    opened: Mutex<HashMap<SocketAddr, std::net::TcpListener>>,
    turn: AtomicUsize,
}

impl ClusterNetwork {
    pub(crate) fn new(cluster_domain: &str, services: Cache<Service>, endpoints: Cache<Endpoints>) -> Self {
        Self {
            cluster_domain: cluster_domain.to_owned(),
            services,
            endpoints,
            opened: Mutex::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// A network that knows every Service of the API already, and follows them until `stop`.
    pub(crate) async fn follow(client: &Client, cluster_domain: &str, stop: &CancellationToken) -> Self {
        let (services, endpoints) = (Cache::new(), Cache::new());
        let everything = watcher::Config::default;
        tokio::spawn(services.run(Api::all(client.clone()), everything(), stop.clone()));
        tokio::spawn(endpoints.run(Api::all(client.clone()), everything(), stop.clone()));
        tokio::join!(services.synced(), endpoints.synced());
        Self::new(cluster_domain, services, endpoints)
    }

    /// Opens a listener now; the component that listens on its address later gets this very socket.
    pub(crate) fn open(&self, addr: SocketAddr) -> io::Result<SocketAddr> {
        let listener = std::net::TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        self.opened.lock().insert(addr, listener);
        Ok(addr)
    }

    /// Closes a listener that was opened and has not been handed out.
    pub(crate) fn discard(&self, addr: SocketAddr) {
        self.opened.lock().remove(&addr);
    }

    /// `NAME.NAMESPACE.svc` and `NAME.NAMESPACE.svc.<cluster domain>` are names of Services.
    fn service_of<'h>(&self, host: &'h str) -> Option<(&'h str, &'h str)> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let name = host.strip_suffix(&self.cluster_domain).and_then(|h| h.strip_suffix('.')).unwrap_or(host);
        let (name, namespace) = name.strip_suffix(".svc")?.split_once('.')?;
        (!namespace.contains('.')).then_some((name, namespace))
    }

    fn resolve(&self, host: &str, port: u16) -> io::Result<Option<SocketAddr>> {
        let mut host = host.to_owned();
        for _ in 0..MOST_ALIASES {
            let Some((name, namespace)) = self.service_of(&host) else { return Ok(None) };
            let unknown =
                || io::Error::new(io::ErrorKind::NotFound, format!("no Service {namespace}/{name}"));
            let service = self.services.get(namespace, name).ok_or_else(unknown)?;
            let alias = service.spec.as_ref().and_then(|spec| spec.external_name.clone());
            let Some(alias) = alias else {
                let addresses = self.endpoints.get(namespace, name).map(|e| addresses(&service, &e, port));
                let addresses = addresses.unwrap_or_default();
                if addresses.is_empty() {
                    let message = format!("Service {namespace}/{name} has no ready address for port {port}");
                    return Err(io::Error::new(io::ErrorKind::ConnectionRefused, message));
                }
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                return Ok(Some(addresses[turn % addresses.len()]));
            };
            host = alias;
        }
        Err(io::Error::other(format!("{host}: too many ExternalName aliases")))
    }
}

/// The ready addresses behind a port of a Service.
fn addresses(service: &Service, endpoints: &Endpoints, port: u16) -> Vec<SocketAddr> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let declared = ports.into_iter().flatten().find(|p| p.port == i32::from(port));
    let name = declared.and_then(|p| p.name.as_deref()).unwrap_or("");
    let fixed = match declared.and_then(|p| p.target_port.as_ref()) {
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        _ => None,
    };
    let mut found = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mut numbers = subset.ports.iter().flatten();
        let by_name = numbers.find(|p| p.name.as_deref().unwrap_or("") == name).map(|p| p.port);
        let number = by_name.and_then(|p| u16::try_from(p).ok()).or(fixed);
        let ips = subset.addresses.iter().flatten().filter_map(|a| a.ip.parse::<IpAddr>().ok());
        found.extend(
            number.into_iter().flat_map(|number| ips.clone().map(move |ip| SocketAddr::new(ip, number))),
        );
    }
    found
}

impl Network for ClusterNetwork {
    fn listen<'a>(&'a self, addr: SocketAddr) -> BoxFuture<'a, io::Result<Listener>> {
        Box::pin(async move {
            let opened = self.opened.lock().remove(&addr);
            match opened {
                Some(listener) => Ok(Listener::Tcp(tokio::net::TcpListener::from_std(listener)?)),
                None => SystemNetwork.listen(addr).await,
            }
        })
    }

    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            if host.parse::<IpAddr>().is_ok() {
                return SystemNetwork.connect(host, port).await;
            }
            match self.resolve(host, port)? {
                Some(addr) => SystemNetwork.connect(&addr.ip().to_string(), addr.port()).await,
                None => SystemNetwork.connect(host, port).await,
            }
        })
    }
}

/// The network seen by everything that runs in this process.
pub(crate) type SharedNetwork = Arc<ClusterNetwork>;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_services() {
        let network = ClusterNetwork::new("cluster.local", Cache::new(), Cache::new());
        assert_eq!(network.service_of("a.ns.svc.cluster.local"), Some(("a", "ns")));
        assert_eq!(network.service_of("a.ns.svc.cluster.local."), Some(("a", "ns")));
        assert_eq!(network.service_of("a.ns.svc"), Some(("a", "ns")));
        assert_eq!(network.service_of("a.ns.example.com"), None);
        assert_eq!(network.service_of("x.a.ns.svc"), None);
    }

    #[test]
    fn a_service_port_leads_to_the_port_of_that_name() {
        let service: Service = serde_json::from_value(json!({"spec": {"ports": [
            {"name": "http", "port": 80, "targetPort": 8012}, {"name": "m", "port": 9090, "targetPort": 9090}]}}))
        .unwrap();
        let endpoints: Endpoints = serde_json::from_value(json!({"metadata": {}, "subsets": [
            {"addresses": [{"ip": "127.1.0.3"}], "notReadyAddresses": [{"ip": "127.1.0.4"}],
             "ports": [{"name": "m", "port": 9090}, {"name": "http", "port": 8012}]}]}))
        .unwrap();
        assert_eq!(addresses(&service, &endpoints, 80), ["127.1.0.3:8012".parse().unwrap()]);
    }
}
