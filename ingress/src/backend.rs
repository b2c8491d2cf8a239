//! Backends: the Services that splits name, as the addresses behind them right now.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arc_swap::ArcSwap;
use ember_dataplane::address::Address;
use ember_dataplane::protocol::Protocol;
use k8s_openapi::api::core::v1::{Endpoints, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use parking_lot::Mutex;

/// A port of a Service: its number or its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PortRef {
    /// By number.
    Number(i32),
    /// By name.
    Name(String),
}

impl From<&IntOrString> for PortRef {
    fn from(port: &IntOrString) -> Self {
        match port {
            IntOrString::Int(number) => Self::Number(*number),
            IntOrString::String(name) => Self::Name(name.clone()),
        }
    }
}

/// Which backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BackendKey {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub service: String,
    /// Port of the Service.
    pub port: PortRef,
}

/// One address of a backend, with the requests under way to it from this gateway.
#[derive(Debug)]
pub struct Target {
    /// Where it is.
    pub address: Address,
    in_flight: AtomicU32,
}

/// Counts a request against a target until dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Target>);

impl Target {
    fn new(address: Address) -> Arc<Self> {
        Arc::new(Self { address, in_flight: AtomicU32::new(0) })
    }

    /// Counts one more request until the guard is dropped.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a backend is right now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Where it is; empty: nowhere.
    pub addresses: Vec<Address>,
    /// What it speaks, by the port of its Service.
    pub protocol: Protocol,
}

/// A backend: read by requests, kept up to date by the watch of Endpoints.
#[derive(Debug)]
pub struct Backend {
    /// Which one it is.
    pub key: BackendKey,
    targets: ArcSwap<Vec<Arc<Target>>>,
    speaks_h2c: AtomicBool,
}

impl Backend {
    fn new(key: BackendKey) -> Self {
        Self { key, targets: ArcSwap::default(), speaks_h2c: AtomicBool::new(false) }
    }

    /// What the backend speaks.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        if self.speaks_h2c.load(Ordering::Relaxed) { Protocol::H2c } else { Protocol::Http1 }
    }

    /// A target for a request: the one with fewer requests under way of two taken at random. `None` when there is
    /// no address, or only those in `tried`.
    #[must_use]
    pub fn pick(&self, tried: &[Address]) -> Option<Arc<Target>> {
        let targets = self.targets.load();
        let usable = |target: &Arc<Target>| (!tried.contains(&target.address)).then(|| Arc::clone(target));
        match targets.len() {
            0 => None,
            1 => usable(&targets[0]),
            count => {
                let first = fastrand::usize(..count);
                let second = (first + 1 + fastrand::usize(..count - 1)) % count;
                let (a, b) = (&targets[first], &targets[second]);
                let (better, other) =
                    if a.in_flight.load(Ordering::Relaxed) <= b.in_flight.load(Ordering::Relaxed) {
                        (a, b)
                    } else {
                        (b, a)
                    };
                usable(better).or_else(|| usable(other)).or_else(|| targets.iter().find_map(usable))
            }
        }
    }

    /// Takes over addresses; those that stay keep their counts.
    fn update(&self, resolved: &Resolved) {
        self.speaks_h2c.store(resolved.protocol == Protocol::H2c, Ordering::Relaxed);
        let addresses = &resolved.addresses;
        let old = self.targets.load_full();
        if old.len() == addresses.len() && old.iter().zip(addresses).all(|(t, a)| t.address == *a) {
            return;
        }
        let next = addresses
            .iter()
            .map(|address| match old.iter().find(|target| target.address == *address) {
                Some(target) => Arc::clone(target),
                None => Target::new(address.clone()),
            })
            .collect();
        self.targets.store(Arc::new(next));
    }
}

/// All backends that the routing table names. Requests never come here: they hold their [`Backend`].
#[derive(Debug, Default)]
pub struct Backends(Mutex<HashMap<BackendKey, Arc<Backend>>>);

impl Backends {
    /// The backend of that key, made if need be; `resolve` tells what it is.
    pub fn get(&self, key: &BackendKey, resolve: impl Fn(&BackendKey) -> Resolved) -> Arc<Backend> {
        let mut backends = self.0.lock();
        let backend = backends.entry(key.clone()).or_insert_with(|| Arc::new(Backend::new(key.clone())));
        backend.update(&resolve(key));
        Arc::clone(backend)
    }

    /// Resolves the backends of one Service anew.
    pub fn refresh(&self, namespace: &str, service: &str, resolve: impl Fn(&BackendKey) -> Resolved) {
        for (key, backend) in self.0.lock().iter() {
            if key.namespace == namespace && key.service == service {
                backend.update(&resolve(key));
            }
        }
    }

    /// Forgets backends that nothing else holds any more.
    pub fn forget_unused(&self) {
        self.0.lock().retain(|_, backend| Arc::strong_count(backend) > 1);
    }
}

/// What is behind a port of a Service: its ExternalName, or the ready addresses of its Endpoints.
#[must_use]
pub fn resolve(port: &PortRef, service: Option<&Service>, endpoints: Option<&Endpoints>) -> Resolved {
    let Some(service) = service else { return Resolved::default() };
    let declared = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).find(|p| match port {
        PortRef::Number(number) => p.port == *number,
        PortRef::Name(name) => p.name.as_deref() == Some(name),
    });
    let protocol = declared
        .map(|p| Protocol::of_service_port(p.name.as_deref(), p.app_protocol.as_deref()))
        .unwrap_or_default();
    let addresses = addresses(port, service, declared, endpoints);
    Resolved { addresses, protocol }
}

fn addresses(
    port: &PortRef,
    service: &Service,
    declared: Option<&ServicePort>,
    endpoints: Option<&Endpoints>,
) -> Vec<Address> {
    let alias = service.spec.as_ref().and_then(|spec| spec.external_name.as_deref());
    if let Some(name) = alias.filter(|name| !name.is_empty()) {
        let number = declared.map(|p| p.port).or(match port {
            PortRef::Number(number) => Some(*number),
            PortRef::Name(_) => None,
        });
        return number
            .and_then(|n| u16::try_from(n).ok())
            .map(|n| Address::new(name, n))
            .into_iter()
            .collect();
    }
    let (Some(declared), Some(endpoints)) = (declared, endpoints) else { return Vec::new() };
    let name = declared.name.as_deref().unwrap_or("");
    let mut addresses = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let number =
            subset.ports.iter().flatten().find(|p| p.name.as_deref().unwrap_or("") == name).map(|p| p.port);
        let Some(number) = number.and_then(|n| u16::try_from(n).ok()) else { continue };
        let ips = subset.addresses.iter().flatten().filter_map(|a| a.ip.parse::<IpAddr>().ok());
        addresses.extend(ips.map(|ip| Address::from((ip, number))));
    }
    addresses.sort();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service() -> Service {
        serde_json::from_value(json!({"spec": {"ports": [{"name": "http", "port": 80}]}})).unwrap()
    }

    #[test]
    fn ready_addresses_on_the_port_of_the_same_name() {
        let endpoints: Endpoints = serde_json::from_value(json!({"subsets": [{
            "addresses": [{"ip": "10.0.0.2"}, {"ip": "10.0.0.1"}], "notReadyAddresses": [{"ip": "10.0.0.3"}],
            "ports": [{"name": "https", "port": 8112}, {"name": "http", "port": 8012}]}]}))
        .unwrap();
        let text = |port| {
            let found = resolve(&port, Some(&service()), Some(&endpoints)).addresses;
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(text(PortRef::Number(80)), ["10.0.0.1:8012", "10.0.0.2:8012"]);
        assert_eq!(text(PortRef::Name("http".into())), ["10.0.0.1:8012", "10.0.0.2:8012"]);
        assert!(text(PortRef::Number(81)).is_empty());
    }

    #[test]
    fn an_external_name_is_its_own_address() {
        let service: Service =
            serde_json::from_value(json!({"spec": {"externalName": "example.com", "ports": [{"port": 80}]}}))
                .unwrap();
        let resolved = resolve(&PortRef::Number(80), Some(&service), None);
        assert_eq!(resolved.addresses, [Address::new("example.com", 80)]);
        assert_eq!(resolved.protocol, Protocol::Http1);
    }

    #[test]
    fn the_port_of_the_service_says_what_is_spoken() {
        let service: Service = serde_json::from_value(json!({"spec": {"ports": [
            {"name": "http2", "port": 81}, {"name": "web", "port": 82, "appProtocol": "kubernetes.io/h2c"},
            {"name": "http", "port": 80}]}}))
        .unwrap();
        let of = |port| resolve(&PortRef::Number(port), Some(&service), None).protocol;
        assert_eq!(
            [81, 82, 80, 83].map(of),
            [Protocol::H2c, Protocol::H2c, Protocol::Http1, Protocol::Http1]
        );
        let backend = Backend::new(BackendKey {
            namespace: "n".into(),
            service: "s".into(),
            port: PortRef::Number(81),
        });
        assert_eq!(backend.protocol(), Protocol::Http1);
        backend.update(&resolve(&backend.key.port, Some(&service), None));
        assert_eq!(backend.protocol(), Protocol::H2c);
    }

    #[test]
    fn the_less_busy_target_is_taken_and_failed_ones_are_not() {
        let backend = Backend::new(BackendKey {
            namespace: "n".into(),
            service: "s".into(),
            port: PortRef::Number(80),
        });
        let (a, b) = (Address::new("10.0.0.1", 80), Address::new("10.0.0.2", 80));
        let at = |addresses: [&Address; 2]| Resolved {
            addresses: addresses.map(Address::clone).to_vec(),
            protocol: Protocol::Http1,
        };
        backend.update(&at([&a, &b]));
        let busy = backend.pick(&[]).unwrap();
        let guard = busy.enter();
        for _ in 0..20 {
            assert_ne!(backend.pick(&[]).unwrap().address, busy.address);
        }
        backend.update(&at([&b, &a]));
        for _ in 0..20 {
            assert_ne!(backend.pick(&[]).unwrap().address, busy.address, "counts survive an update");
        }
        drop(guard);
        assert_eq!(backend.pick(std::slice::from_ref(&a)).unwrap().address, b);
        assert!(backend.pick(&[a, b]).is_none());
    }
}
