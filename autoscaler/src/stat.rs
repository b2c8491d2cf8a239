//! temporary
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stat {
    #[prost(string, tag = "1")] pub pod_name: String,
    #[prost(double, tag = "2")] pub average_concurrent_requests: f64,
    #[prost(double, tag = "3")] pub average_proxied_concurrent_requests: f64,
    #[prost(double, tag = "4")] pub request_count: f64,
    #[prost(double, tag = "5")] pub proxied_request_count: f64,
    #[prost(double, tag = "6")] pub process_uptime: f64,
    #[prost(int64, tag = "7")] pub timestamp: i64,
}
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireStatMessage {
    #[prost(string, tag = "1")] pub namespace: String,
    #[prost(string, tag = "2")] pub name: String,
    #[prost(message, optional, tag = "3")] pub stat: Option<Stat>,
}
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireStatMessages {
    #[prost(message, repeated, tag = "1")] pub messages: Vec<WireStatMessage>,
}
