//! What the autoscaler is started with. What people tune while it runs is in ConfigMap `config-autoscaler`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ember_api::configmaps::leader_election;

use crate::scales::Scales;

/// This replica among several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Its pod's name.
    pub pod_name: String,
    /// Where the other replicas reach it.
    pub pod_ip: IpAddr,
}

/// Who takes care of PodAutoscalers of the class `hpa.autoscaling.knative.dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HpaClass {
    /// This process: it writes HorizontalPodAutoscalers, which Kubernetes runs.
    Managed,
    /// Nobody, as nothing runs HorizontalPodAutoscalers: such PodAutoscalers say so.
    #[default]
    Unavailable,
    /// Another process.
    Elsewhere,
}

/// Start configuration. Every wait is a field; the defaults are Knative's.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where activators connect to report, and where kubelet probes. Default `0.0.0.0:8080`.
    pub stats_addr: SocketAddr,
    /// Where Prometheus scrapes; `None` (the default) serves nothing.
    pub metrics_addr: Option<SocketAddr>,
    /// Namespace of the ConfigMaps. Default `knative-serving`.
    pub system_namespace: String,
    /// Suffix of Service names. Default `cluster.local`.
    pub cluster_domain: String,
    /// Time between evaluations of a revision. Default 2 s.
    pub tick: Duration,
    /// Time between scrapes of a revision's pods. Default 1 s.
    pub scrape_interval: Duration,
    /// Deadline of one scrape request. Default 3 s.
    pub scrape_timeout: Duration,
    /// Port of the pods' metrics. Default 9090.
    pub scrape_port: u16,
    /// Added to the progress deadline to get the activation timeout. Default 30 s.
    pub activation_timeout_buffer: Duration,
    /// Deadline of one probe of the activator. Default 5 s.
    pub probe_timeout: Duration,
    /// Time between repeated probes of the activator. Default 1 s.
    pub probe_period: Duration,
    /// How long probes of the activator are repeated. Default 45 s.
    pub probe_deadline: Duration,
    /// How long after repeated probes ended the revision is looked at again. Default 1 s.
    pub probe_requeue: Duration,
    /// Deadline of one reconcile. Default 30 s.
    pub reconcile_timeout: Duration,
    /// PodAutoscalers and Metrics worked on at the same time, each. Default 16.
    pub reconcile_concurrency: usize,
    /// Who takes care of the HPA class. Default: nobody.
    pub hpa_class: HpaClass,
    /// This replica, where there may be others; `None` (the default): every revision is its own, and no Lease is needed.
    pub replica: Option<Replica>,
    /// Name of the ConfigMap on leader election, read once. Default `config-leader-election`.
    pub leader_election_name: String,
    /// Port on which other replicas take reports. Default 8080.
    pub peer_port: u16,
    /// How long connecting or sending to another replica may take, each. Default 500 ms.
    pub peer_timeout: Duration,
    /// How often connections to other replicas are pinged. Default 3.33 s.
    pub peer_ping_interval: Duration,
    /// Pause after a report could not be sent on. Default 500 ms.
    pub forward_retry: Duration,
    /// Reports of one bucket that wait to be sent on; more are dropped. Default 1000.
    pub forward_queue: usize,
    /// How long a report is kept for a revision that is not known yet, or while its bucket has no owner. Default 60 s.
    pub held_report_lifetime: Duration,
    /// Reports kept for revisions that are not known yet. Default 4096.
    pub held_reports: usize,
    /// Connections of activators served at the same time; more are refused. Default 1024.
    pub max_stat_connections: usize,
    /// Largest accepted report. Default 16 MiB.
    pub max_stat_message: usize,
    /// A connection on which nothing arrives for so long is closed; activators ping every few seconds. Default 60 s.
    pub stat_idle_timeout: Duration,
    /// Deadline for the head of a request on the stats port. Default 60 s.
    pub header_timeout: Duration,
    /// How long shutting down may take. Default 5 s.
    pub shutdown_timeout: Duration,
    /// Shows the revisions to whoever else has a clone of it.
    pub scales: Scales,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            stats_addr: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080),
            metrics_addr: None,
            system_namespace: ember_reconcile::SYSTEM_NAMESPACE.to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            tick: Duration::from_secs(2),
            scrape_interval: Duration::from_secs(1),
            scrape_timeout: Duration::from_secs(3),
            scrape_port: 9090,
            activation_timeout_buffer: Duration::from_secs(30),
            probe_timeout: Duration::from_secs(5),
            probe_period: Duration::from_secs(1),
            probe_deadline: Duration::from_secs(45),
            probe_requeue: Duration::from_secs(1),
            reconcile_timeout: Duration::from_secs(30),
            reconcile_concurrency: 16,
            hpa_class: HpaClass::default(),
            replica: None,
            leader_election_name: leader_election::NAME.to_owned(),
            peer_port: 8080,
            peer_timeout: Duration::from_millis(500),
            peer_ping_interval: Duration::from_millis(3333),
            forward_retry: Duration::from_millis(500),
            forward_queue: 1000,
            held_report_lifetime: Duration::from_secs(60),
            held_reports: 4096,
            max_stat_connections: 1024,
            max_stat_message: 16 << 20,
            stat_idle_timeout: Duration::from_secs(60),
            header_timeout: Duration::from_secs(60),
            shutdown_timeout: Duration::from_secs(5),
            scales: Scales::default(),
        }
    }
}
