//! The messages that carry statistics to the autoscaler: proto3, package `metrics`, derives written by hand.

use bytes::Bytes;
use prost::Message as _;

/// Content type of queue-proxy's statistics.
pub const CONTENT_TYPE: &str = "application/protobuf";
/// The most the autoscaler reads of them, in bytes.
pub const MAX_BYTES: usize = 336;

/// Not such a message.
pub use prost::DecodeError;

/// Statistics of one pod over one window.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stat {
    /// The pod; the activator sends its own name.
    #[prost(string, tag = "1")]
    pub pod_name: String,
    /// Requests in flight on average.
    #[prost(double, tag = "2")]
    pub average_concurrent_requests: f64,
    /// Part of the above that came through the activator.
    #[prost(double, tag = "3")]
    pub average_proxied_concurrent_requests: f64,
    /// Arrivals: a second from queue-proxy, a window from the activator.
    #[prost(double, tag = "4")]
    pub request_count: f64,
    /// Part of the above that came through the activator.
    #[prost(double, tag = "5")]
    pub proxied_request_count: f64,
    /// Seconds the process has run.
    #[prost(double, tag = "6")]
    pub process_uptime: f64,
    /// Unix seconds; filled in on receipt when 0.
    #[prost(int64, tag = "7")]
    pub timestamp: i64,
}

impl Stat {
    /// The message as it goes over the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// Reads a message.
    ///
    /// # Errors
    /// The bytes are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(bytes)
    }
}

/// Statistics about one revision.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireStatMessage {
    /// Namespace of the revision.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Name of the revision.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Messages without it are ignored.
    #[prost(message, optional, tag = "3")]
    pub stat: Option<Stat>,
}

/// What the activator sends as one WebSocket message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireStatMessages {
    /// One for each revision.
    #[prost(message, repeated, tag = "1")]
    pub messages: Vec<WireStatMessage>,
}

impl WireStatMessages {
    /// The message as it goes over the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// Reads a message.
    ///
    /// # Errors
    /// The bytes are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn before_the_first_tick_only_the_name() {
        let stat = Stat { pod_name: "pod-1".to_owned(), ..Stat::default() };
        assert_eq!(hex(&stat.encode_to_vec()), "0a05706f642d31");
    }

    #[test]
    fn unproxied_traffic_leaves_the_proxied_fields_out() {
        let stat = Stat {
            pod_name: "pod-1".to_owned(),
            average_concurrent_requests: 0.5,
            average_proxied_concurrent_requests: -0.0,
            request_count: 3.0,
            process_uptime: 12.5,
            ..Stat::default()
        };
        let bytes = stat.encode_to_vec();
        assert_eq!(bytes.len(), 34);
        assert_eq!([bytes[0], bytes[7], bytes[16], bytes[25]], [0x0a, 0x11, 0x21, 0x31]);
    }

    #[test]
    fn the_activators_immediate_message() {
        let stat = Stat {
            pod_name: "p".to_owned(),
            average_concurrent_requests: 1.0,
            request_count: 1.0,
            ..Stat::default()
        };
        let message =
            WireStatMessage { namespace: "test".to_owned(), name: "rev1".to_owned(), stat: Some(stat) };
        let messages = WireStatMessages { messages: vec![message] };
        assert_eq!(
            hex(&messages.encode_to_vec()),
            "0a230a04746573741204726576311a150a017011000000000000f03f21000000000000f03f"
        );
        assert_eq!(WireStatMessages::decode(&*messages.encode_to_vec()).unwrap(), messages);
    }

    #[test]
    fn the_longest_stat_fits_what_is_read() {
        let stat = Stat {
            pod_name: "x".repeat(253),
            average_concurrent_requests: f64::MAX,
            average_proxied_concurrent_requests: f64::MAX,
            request_count: f64::MAX,
            proxied_request_count: f64::MAX,
            process_uptime: f64::MAX,
            timestamp: 0,
        };
        assert!(stat.encoded_len() <= MAX_BYTES);
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Finite numbers, which equal themselves.
    fn number() -> impl Strategy<Value = f64> {
        any::<f64>().prop_filter("finite", |number| number.is_finite())
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_stat_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..1000)) {
            let read = &bytes[..bytes.len().min(MAX_BYTES)];
            if let Ok(stat) = Stat::from_bytes(read) {
                prop_assert!(stat.pod_name.len() <= read.len());
            }
            if let Ok(messages) = WireStatMessages::from_bytes(&bytes) {
                prop_assert!(messages.messages.len() <= bytes.len() / 2);
            }
        }

        #[test]
        fn a_stat_survives_the_wire_and_a_cut_is_noticed_or_harmless(
            pod_name in "[ -~]{0,253}",
            numbers in prop::array::uniform5(number()),
            timestamp in any::<i64>(),
            cut in 0..400usize,
            flip in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let [average, proxied, count, proxied_count, uptime] = numbers;
            let stat = Stat {
                pod_name,
                average_concurrent_requests: average,
                average_proxied_concurrent_requests: proxied,
                request_count: count,
                proxied_request_count: proxied_count,
                process_uptime: uptime,
                timestamp,
            };
            let mut bytes = stat.to_bytes().to_vec();
            prop_assert_eq!(Stat::from_bytes(&bytes), Ok(stat.clone()));
            if let Ok(part) = Stat::from_bytes(&bytes[..cut.min(bytes.len())]) {
                prop_assert!(part.pod_name == stat.pod_name || part.pod_name.is_empty());
            }
            if let (Some((index, byte)), false) = (flip, bytes.is_empty()) {
                let at = index.index(bytes.len());
                bytes[at] = byte;
                let _ = Stat::from_bytes(&bytes);
            }
        }
    }
}
