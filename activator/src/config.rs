//! What the activator is told at start.

use std::net::IpAddr;
use std::time::Duration;

use ember_dataplane::port;
use ember_dataplane::server;

/// Configuration of the activator. Times default to Knative's.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address the servers listen on. 0.0.0.0.
    pub bind: IpAddr,
    /// Ports that carry requests. 8012 and 8013.
    pub ports: Vec<u16>,
    /// Limits of what clients may do. Safe by default.
    pub server: server::Options,
    /// Own name in reports.
    pub pod_name: String,
    /// Own address as the public endpoints of revisions show it.
    pub pod_ip: String,
    /// The autoscaler's host and port.
    pub autoscaler: (String, u16),
    /// Last labels of in-cluster host names. `cluster.local`.
    pub cluster_domain: String,
    /// How many requests of one revision may wait for a pod. 10 000.
    pub queue_depth: usize,
    /// How often concurrency is reported. 1 s.
    pub report_interval: Duration,
    /// How long one probe of a pod may take; the sidecar holds it until it knows. 10 s.
    pub probe_timeout: Duration,
    /// Pause after the first failed probe; doubles up to [`Config::probe_longest_pause`]. 0.5 ms.
    pub probe_first_pause: Duration,
    /// Longest pause between probes. 200 ms.
    pub probe_longest_pause: Duration,
    /// How long connecting to a pod may take before another is tried. 1 s.
    pub connect_timeout: Duration,
    /// First pause between attempts at the autoscaler; grows by 1.3 each time, up to [`Config::longest_reconnect`].
    /// 100 ms.
    pub first_reconnect: Duration,
    /// Longest pause between attempts at the autoscaler. 5 s.
    pub longest_reconnect: Duration,
    /// How often the autoscaler is pinged; it is given up when three pings go unanswered. 3.33 s.
    pub ping_interval: Duration,
    /// How long new requests are still taken after shutdown begins. 45 s.
    pub drain_settle: Duration,
    /// How long requests under way may take to end after that. 60 s.
    pub drain_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bind: IpAddr::from([0, 0, 0, 0]),
            ports: vec![port::HTTP1, port::HTTP2],
            server: server::Options::default(),
            pod_name: "activator".to_owned(),
            pod_ip: String::new(),
            autoscaler: ("autoscaler.knative-serving.svc.cluster.local".to_owned(), 8080),
            cluster_domain: "cluster.local".to_owned(),
            queue_depth: 10_000,
            report_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_secs(10),
            probe_first_pause: Duration::from_micros(500),
            probe_longest_pause: Duration::from_millis(200),
            connect_timeout: Duration::from_secs(1),
            first_reconnect: Duration::from_millis(100),
            longest_reconnect: Duration::from_secs(5),
            ping_interval: Duration::from_millis(3333),
            drain_settle: Duration::from_secs(45),
            drain_timeout: Duration::from_secs(60),
        }
    }
}
