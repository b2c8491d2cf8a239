//! What the whole component uses at rest, and for scrapes: its own process, against an API server and pods in another.
//!
//! `REVISIONS` and `PODS` say how many revisions sleep (20,000) and how many are awake with one pod each (1,000);
//! `SECONDS` how long is measured (30).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a run that cannot go on fails"
)]

#[path = "../tests/stage/cluster.rs"]
mod cluster;

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cluster::{cluster, follow_services};
use ember_allocator::Allocator;
use ember_api::autoscaling::v1alpha1::PodAutoscaler;
use ember_dataplane::io::Io;
use ember_dataplane::stat::Stat;
use futures::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use prost::Message as _;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// That of the program.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// How to reach the API server; makes the process the autoscaler.
const KUBECONFIG: &str = "BENCH_KUBECONFIG";
/// Where pods answer scrapes.
const SCRAPE_PORT: &str = "BENCH_SCRAPE_PORT";
/// Requests to the API at a time.
const WRITES: usize = 64;
/// How long everything may take until it is at rest.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match std::env::var(KUBECONFIG) {
        Ok(kubeconfig) => runtime.block_on(autoscaler(Path::new(&kubeconfig))),
        Err(_) => runtime.block_on(measure()),
    }
}

/// The component by itself, until it is killed.
async fn autoscaler(kubeconfig: &Path) {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();
    let config = ember_autoscaler::Config {
        stats_addr: "127.0.0.1:0".parse().unwrap(),
        scrape_port: std::env::var(SCRAPE_PORT).unwrap().parse().unwrap(),
        ..ember_autoscaler::Config::default()
    };
    ember_autoscaler::run(config, Io::system(), client, CancellationToken::new()).await.unwrap();
}

/// A number of the environment.
fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().map_or(default, |value| value.parse().expect("a number"))
}

async fn measure() {
    let (sleeping, awake) = (number("REVISIONS", 20_000), number("PODS", 1_000));
    let span = Duration::from_secs(number("SECONDS", 30).into());
    let scrapes = Arc::new(AtomicU64::new(0));
    let pods = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = pods.local_addr().unwrap().port();
    tokio::spawn(answer_scrapes(pods, Arc::clone(&scrapes)));

    let empty = World::start(port).await;
    let idle = empty.settled().await;
    println!("no revisions: {} KiB resident", idle.resident_kib());
    drop(idle);
    drop(empty);

    let world = World::start(port).await;
    world.revisions("asleep", sleeping, 0).await;
    println!("{sleeping} revisions at zero pods: written");
    // The one that brings them to rest is not the one that is measured.
    let first = world.autoscaler();
    world.until_all("Active", "False", sleeping).await;
    drop(first);
    let process = world.settled().await;
    let used = process.used_over(span).await;
    let share = 100.0 * used.as_secs_f64() / span.as_secs_f64();
    println!(
        "{sleeping} revisions at zero pods: {share:.2} % of one core, {} KiB resident",
        process.resident_kib()
    );
    drop(process);
    drop(world);

    let world = World::start(port).await;
    world.revisions("awake", awake, 1).await;
    let process = world.autoscaler();
    world.until_all("Active", "True", awake).await;
    process.until_steady().await;
    let before = scrapes.load(Ordering::Relaxed);
    let used = process.used_over(span).await;
    let scraped = scrapes.load(Ordering::Relaxed) - before;
    println!(
        "{awake} revisions of one pod: {scraped} scrapes in {span:?}, {:.1} µs of CPU each with all that follows, {} KiB resident",
        used.as_secs_f64() * 1e6 / scraped.max(1) as f64,
        process.resident_kib(),
    );
}

/// An API server, and the controller of ServerlessServices.
struct World {
    client: Client,
    kubeconfig: std::path::PathBuf,
    port: u16,
    stop: CancellationToken,
    _data: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    async fn start(port: u16) -> Self {
        let data = tempfile::tempdir().unwrap();
        let settings = json!({"allow-zero-initial-scale": "true"});
        let config = ember_apiserver::Config::new(data.path());
        let server = cluster(config, &[("config-autoscaler", &settings)]).await;
        let client = server.client();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let kubeconfig = data.path().join("kubeconfig");
        server.write_kubeconfig(&kubeconfig, listener.local_addr().unwrap()).unwrap();
        let stop = CancellationToken::new();
        let serving = stop.clone();
        tokio::spawn(async move { server.serve(listener, serving).await });
        tokio::spawn(follow_services(client.clone(), stop.clone()));
        Self { client, kubeconfig, port, stop, _data: data }
    }

    /// An autoscaler of its own process.
    fn autoscaler(&self) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .env(KUBECONFIG, &self.kubeconfig)
            .env(SCRAPE_PORT, self.port.to_string())
            .stdin(Stdio::null());
        Process(command.spawn().unwrap())
    }

    /// An autoscaler that has seen everything.
    async fn settled(&self) -> Process {
        let process = self.autoscaler();
        process.until_steady().await;
        process
    }

    /// Writes `count` revisions with that many pods each: Deployments, PodAutoscalers, ready Pods.
    async fn revisions(&self, prefix: &str, count: u32, pods: u32) {
        stream::iter(0..count)
            .for_each_concurrent(
                WRITES,
                |i| async move { self.revision(&format!("{prefix}-{i}"), pods).await },
            )
            .await;
    }

    async fn revision(&self, name: &str, pods: u32) {
        let labels = json!({
            "serving.knative.dev/revision": name, "serving.knative.dev/revisionUID": "u-1",
            "serving.knative.dev/configuration": name, "serving.knative.dev/service": name,
        });
        let annotations = json!({"autoscaling.knative.dev/initial-scale": pods.to_string()});
        for pod in 0..pods {
            let ip = Ipv4Addr::LOCALHOST.into();
            cluster::pod(&self.client, &format!("{name}-{pod}"), ip, &labels).await;
        }
        let replicas = i32::try_from(pods).unwrap();
        cluster::revision(&self.client, name, replicas, &annotations, &labels).await;
    }

    /// Waits until that condition of so many PodAutoscalers has that status.
    async fn until_all(&self, condition: &str, status: &str, count: u32) {
        let api = Api::<PodAutoscaler>::namespaced(self.client.clone(), "ns");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let all = api.list(&ListParams::default()).await.unwrap();
            let there = all.iter().filter(|pa| {
                let found = pa.status.as_ref().and_then(|s| s.conditions.get(condition));
                found.is_some_and(|found| found.status.as_str() == status)
            });
            let there = there.count();
            if there >= count as usize {
                return;
            }
            assert!(Instant::now() < deadline, "{there} of {count} are {condition} {status}");
            sleep(Duration::from_secs(1)).await;
        }
    }
}

/// A process that dies with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// CPU time of its threads so far; none of them ends.
    fn used(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let nanos = tasks.map(|task| {
            let text = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
            text.split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap()
        });
        Duration::from_nanos(nanos.sum())
    }

    async fn used_over(&self, span: Duration) -> Duration {
        let before = self.used();
        sleep(span).await;
        self.used() - before
    }

    /// Waits until two spans of some seconds in a row take the same CPU time, more or less.
    async fn until_steady(&self) {
        const SPAN: Duration = Duration::from_secs(4);
        let deadline = Instant::now() + PATIENCE;
        let mut last = self.used_over(SPAN).await;
        loop {
            let used = self.used_over(SPAN).await;
            if used.abs_diff(last) < SPAN / 200 + used / 10 {
                return;
            }
            assert!(Instant::now() < deadline, "still busy: {used:?} in {SPAN:?}");
            last = used;
        }
    }

    fn resident_kib(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.split_ascii_whitespace().next().unwrap().parse().unwrap()
    }
}

/// Answers like queue-proxies of pods with some load.
async fn answer_scrapes(listener: TcpListener, scrapes: Arc<AtomicU64>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let scrapes = Arc::clone(&scrapes);
        let service = service_fn(move |_: Request<Incoming>| {
            scrapes.fetch_add(1, Ordering::Relaxed);
            let stat = Stat {
                pod_name: "pod-1".into(),
                average_concurrent_requests: 7.0,
                request_count: 70.0,
                process_uptime: 100.0,
                ..Stat::default()
            };
            let mut response = Response::new(Full::<Bytes>::from(stat.encode_to_vec()));
            response
                .headers_mut()
                .insert("content-type", http::HeaderValue::from_static("application/protobuf"));
            async move { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
        );
    }
}
