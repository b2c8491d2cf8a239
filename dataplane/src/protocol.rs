//! What a backend speaks.

/// Header lines of a message that hyper has room for without asking: another limit costs allocations for each message.
pub const INLINE_HEADERS: usize = 100;

/// The protocol of a backend. There is no negotiation: who names a backend knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1, one exchange at a time on a connection.
    #[default]
    Http1,
    /// HTTP/2 in clear text, known beforehand; exchanges share connections. Upgrades go over HTTP/1.1 all the same.
    H2c,
}

impl Protocol {
    /// By the port of a Service: `appProtocol` where there is one that says it, else the port's name.
    #[must_use]
    pub fn of_service_port(name: Option<&str>, app_protocol: Option<&str>) -> Self {
        if app_protocol == Some("kubernetes.io/h2c") || matches!(name, Some("http2" | "h2c")) {
            Self::H2c
        } else {
            Self::Http1
        }
    }

    /// By the data port of a queue-proxy: 8013 is that of revisions whose app speaks h2c.
    #[must_use]
    pub fn of_data_port(port: u16) -> Self {
        if port == crate::port::HTTP2 { Self::H2c } else { Self::Http1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_or_app_protocol_make_h2c() {
        let of = Protocol::of_service_port;
        assert_eq!(of(Some("http2"), None), Protocol::H2c);
        assert_eq!(of(Some("h2c"), None), Protocol::H2c);
        assert_eq!(of(Some("web"), Some("kubernetes.io/h2c")), Protocol::H2c);
        assert_eq!(of(Some("http"), None), Protocol::Http1);
        assert_eq!(of(None, Some("http")), Protocol::Http1);
        assert_eq!([8012, 8013].map(Protocol::of_data_port), [Protocol::Http1, Protocol::H2c]);
    }
}
