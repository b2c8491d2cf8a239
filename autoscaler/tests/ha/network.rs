//! How replicas reach each other, pods and the activator.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ember_dataplane::io::{Listener, Network, Stream, SystemNetwork};
use futures::future::BoxFuture;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client};
use parking_lot::Mutex;

use crate::stage::cluster::SYSTEM;

/// How replicas reach each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// By address: there is no DNS.
    Address,
    /// By the names of buckets only: their addresses lead nowhere, as where policies allow Services alone.
    Service,
}

/// The machine's network without names, except those of buckets where they are the only way: pods are known by address.
/// Asked for anything else it answers as an activator, which is what the KPA probes.
pub(super) struct Addresses {
    pub(super) activator: SocketAddr,
    pub(super) reach: Reach,
    /// The port of replicas.
    pub(super) replicas: u16,
    /// Where EndpointSlices are looked up.
    pub(super) client: Client,
    /// The names of buckets that led to a replica.
    pub(super) named: Arc<Mutex<Vec<String>>>,
}

impl Addresses {
    /// What a cluster's DNS and its Services make of a bucket's name: the address in its EndpointSlice.
    async fn bucket(&self, host: &str, port: u16) -> std::io::Result<Stream> {
        let wrong = || std::io::Error::other(format!("{host}:{port} leads nowhere"));
        let mut labels = host.splitn(4, '.');
        let (Some(bucket), Some(SYSTEM), Some("svc"), Some("cluster.local")) =
            (labels.next(), labels.next(), labels.next(), labels.next())
        else {
            return Err(wrong());
        };
        let slice = Api::<EndpointSlice>::namespaced(self.client.clone(), SYSTEM).get_opt(bucket).await;
        let slice = slice.unwrap().ok_or_else(wrong)?;
        let stream = SystemNetwork.connect(&slice.endpoints[0].addresses[0], port).await?;
        self.named.lock().push(bucket.to_owned());
        Ok(stream)
    }
}

impl Network for Addresses {
    fn listen<'a>(&'a self, addr: SocketAddr) -> BoxFuture<'a, std::io::Result<Listener>> {
        SystemNetwork.listen(addr)
    }

    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, std::io::Result<Stream>> {
        Box::pin(async move {
            if host.parse::<IpAddr>().is_ok() {
                if self.reach == Reach::Service && port == self.replicas {
                    return Err(std::io::Error::from(std::io::ErrorKind::HostUnreachable));
                }
                SystemNetwork.connect(host, port).await
            } else if host.starts_with("autoscaler-bucket") {
                match self.reach {
                    Reach::Address => Err(std::io::Error::other("there is no DNS")),
                    Reach::Service => self.bucket(host, port).await,
                }
            } else {
                SystemNetwork.connect(&self.activator.ip().to_string(), self.activator.port()).await
            }
        })
    }
}
