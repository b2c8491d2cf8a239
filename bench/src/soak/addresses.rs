//! Addresses of a run's own on the loopback interface.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, TcpListener};

use anyhow::{Context, bail};
use parking_lot::Mutex;

/// The last bytes of the pods' addresses: few enough that new pods soon get those of pods that are gone, as they do on
/// a node.
const PODS: std::ops::Range<u8> = 10..50;

/// The ports everything listens on. Not the contract's: others on this machine may listen on those on all addresses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) gateway: u16,
    /// Of activators and sidecars.
    pub(super) data: u16,
    pub(super) admin: u16,
    pub(super) statistics: u16,
    pub(super) app: u16,
}

impl Ports {
    fn from(first: u16) -> Self {
        Self { gateway: first, data: first + 1, admin: first + 2, statistics: first + 3, app: first + 4 }
    }

    fn all(self) -> [u16; 5] {
        [self.gateway, self.data, self.admin, self.statistics, self.app]
    }
}

/// A /24 of 127.0.0.0/8, and ports that are free on all of it.
#[derive(Debug)]
pub(super) struct Addresses {
    net: [u8; 2],
    pub(super) ports: Ports,
    /// Of pods; those given back are used again, the longest unused first.
    free: Mutex<VecDeque<u8>>,
}

impl Addresses {
    /// Claims some that nobody else listens on.
    pub(super) fn claim() -> anyhow::Result<Self> {
        for _ in 0..100 {
            // Below the ports that outgoing connections get.
            let ports = Ports::from(fastrand::u16(12_000..30_000));
            // What can be bound on all addresses is free on each of them.
            if ports.all().iter().all(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok()) {
                let net = [fastrand::u8(200..250), fastrand::u8(..)];
                return Ok(Self { net, ports, free: Mutex::new(PODS.collect()) });
            }
        }
        bail!("no ports are free")
    }

    /// The gateway's.
    pub(super) fn gateway(&self) -> IpAddr {
        self.at(1)
    }

    /// Those of the activators.
    pub(super) fn activators(&self) -> [IpAddr; 2] {
        [self.at(2), self.at(3)]
    }

    fn at(&self, host: u8) -> IpAddr {
        let [a, b] = self.net;
        Ipv4Addr::new(127, a, b, host).into()
    }

    /// One for a pod.
    pub(super) fn take(&self) -> anyhow::Result<IpAddr> {
        let host = self.free.lock().pop_front().context("every address is taken")?;
        Ok(self.at(host))
    }

    /// The pod is gone.
    pub(super) fn give_back(&self, ip: IpAddr) {
        if let IpAddr::V4(ip) = ip {
            self.free.lock().push_back(ip.octets()[3]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_used_again_once_it_was_given_back() {
        let addresses = Addresses::claim().unwrap();
        let first = addresses.take().unwrap();
        let others: Vec<IpAddr> = (1..PODS.len()).map(|_| addresses.take().unwrap()).collect();
        assert!(!others.contains(&first) && addresses.take().is_err());
        addresses.give_back(first);
        assert_eq!(addresses.take().unwrap(), first);
        assert!(!others.contains(&addresses.gateway()));
    }
}
