//! Where a backend is.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use crate::tls::Identity;

/// A host (name or IP address), a port, and who has to answer there if that is to be proven. Cheap to clone; what
/// connection pools are keyed by, so that a connection made for one identity never serves another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    host: Arc<str>,
    port: u16,
    identity: Option<Identity>,
}

impl Address {
    /// An IPv6 host is written without brackets.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port, identity: None }
    }

    /// Name or IP address, IPv6 without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same host on `port`, spoken to by TLS with whoever proves to be `identity`.
    #[must_use]
    pub fn secured(&self, port: u16, identity: Identity) -> Self {
        Self { host: Arc::clone(&self.host), port, identity: Some(identity) }
    }

    /// Who has to answer, by TLS; `None`: in clear text.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.parse::<Ipv6Addr>().is_ok() {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        Self::from((addr.ip(), addr.port()))
    }
}

impl From<(IpAddr, u16)> for Address {
    fn from((ip, port): (IpAddr, u16)) -> Self {
        Self::new(&ip.to_string(), port)
    }
}

/// Not of the form `host:port`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("address {0:?}: expected host:port")]
pub struct InvalidAddress(String);

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.rsplit_once(':').and_then(|(host, port)| {
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            // The number's own parser would take a sign.
            let port = port.parse().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()))?;
            Some(Self::new(host, port)).filter(|address| !address.host.is_empty())
        });
        parsed.ok_or_else(|| InvalidAddress(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_identity_makes_another_backend() {
        let plain = Address::new("10.0.0.1", 8112);
        let of = |namespace| plain.secured(8112, Identity::of_namespace(namespace));
        assert_eq!(of("a"), of("A"));
        assert_ne!(of("a"), of("b"));
        assert_ne!(of("a"), plain);
        assert_eq!(of("a").to_string(), plain.to_string());
    }

    #[test]
    fn text_form_round_trips() {
        for text in ["10.0.0.1:8012", "[2001:db8::1]:8112", "app.default.svc:80"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "x", ":80", "x:70000", "x:", "x:+80", "x:-1", "x: 80"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        assert_eq!("[::1]:80".parse::<Address>().unwrap().host(), "::1");
    }

    proptest! {
        #[test]
        fn what_can_be_read_is_written_so_that_it_is_read_the_same(
            text in prop_oneof![".*", r"\[?[0-9a-z.:]{0,20}\]?:[0-9]{0,6}"],
        ) {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert!(!address.host().is_empty());
                prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
            }
        }

        #[test]
        fn every_socket_has_an_address(socket in any::<SocketAddr>()) {
            let address = Address::from(socket);
            prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address.clone()));
            if !matches!(socket, SocketAddr::V6(v6) if v6.scope_id() != 0) {
                prop_assert_eq!(address.to_string().parse::<SocketAddr>().map(|found| found.port()), Ok(socket.port()));
            }
        }
    }
}
