//! What is measured, and how it is started.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::cluster::{FORGET, PROBED};
use super::connection::{Protocol, exchange};
use super::process::{Cpus, Process};
use super::stop::Stop;

/// How long a target may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts to reach it.
const ATTEMPTS: Duration = Duration::from_micros(100);

/// What an activator may know besides the one revision of one pod that gets the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Known {
    pub(super) revisions: u32,
    pub(super) pods: u32,
}

impl Known {
    /// Nothing else.
    pub(super) const ONE: Self = Self { revisions: 1, pods: 1 };
    /// A large cluster.
    pub(super) const MANY: Self = Self { revisions: 1_000, pods: 10_000 };
}

/// The data port of a sidecar whose app speaks HTTP/2: the port says so.
const H2C_PORT: u16 = 8013;

/// Something that answers requests with the backend's answers.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// The backend itself.
    Direct,
    Nginx(PathBuf),
    Haproxy(PathBuf),
    /// A program that takes a queue-proxy's environment.
    QueueProxy(PathBuf),
    /// An activator before a queue-proxy.
    Activator(PathBuf, Known),
    /// A command that takes it.
    Peer(String),
}

impl Kind {
    /// Whether there is a point in asking it for that.
    pub(super) fn speaks(&self, protocol: Protocol) -> bool {
        protocol == Protocol::Http1
            || match self {
                // It has no HTTP/2 to its backends.
                Self::Nginx(_) | Self::Direct => false,
                Self::Activator(_, known) => *known == Known::ONE,
                Self::Haproxy(_) | Self::QueueProxy(_) | Self::Peer(_) => true,
            }
    }
}

/// Which CPUs are whose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placement {
    /// The target's.
    pub(super) target: Cpus,
    /// The backend's, and those of the load generator.
    pub(super) rest: Cpus,
}

/// Where things are put.
#[derive(Debug)]
pub(super) struct Site<'a> {
    /// Files go here.
    pub(super) dir: &'a Path,
    pub(super) placement: Placement,
    pub(super) stop: &'a Stop,
    /// What is around activators: what they know stays the same from start to start.
    clusters: RefCell<HashMap<(Known, bool), Rc<Cluster>>>,
}

/// What is around an activator.
#[derive(Debug)]
struct Cluster {
    _process: Process,
    kubeconfig: PathBuf,
    reports: u16,
    /// Of the queue-proxy that gets the requests.
    pod: u16,
    /// Of the pods that get none.
    idle: u16,
    idle_pods: u32,
}

/// A target that answers.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) address: SocketAddr,
    /// None, if the backend is the target.
    pub(super) processes: Vec<Process>,
    /// How long it took until it answered.
    pub(super) start_to_ready: Duration,
}

impl Running {
    /// What the processes are and their CPU time.
    pub(super) fn cpu(&self) -> anyhow::Result<Vec<(String, Duration)>> {
        self.processes.iter().map(|process| Ok((process.name.clone(), process.cpu()?))).collect()
    }

    /// Memory of all its processes.
    pub(super) fn rss_kib(&self) -> anyhow::Result<u64> {
        self.processes.iter().map(Process::rss_kib).sum()
    }

    /// What the processes printed.
    pub(super) fn said(&self) -> String {
        self.processes.iter().map(Process::said).collect::<Vec<_>>().join("\n")
    }
}

impl<'a> Site<'a> {
    pub(super) fn new(dir: &'a Path, placement: Placement, stop: &'a Stop) -> Self {
        Self { dir, placement, stop, clusters: RefCell::default() }
    }

    /// Starts what all targets pass requests on to: nginx, or else the smallest app.
    pub(super) fn backend(&self, nginx: Option<&Path>, tiny_app: &Path) -> anyhow::Result<Running> {
        let port = free_port()?;
        let command = match nginx {
            Some(nginx) => {
                let server = format!(
                    "server {{ listen 127.0.0.1:{port} backlog=4096; \
                     location / {{ default_type text/plain; return 200 \"hello\\n\"; }} }}"
                );
                self.nginx(nginx, "backend", &server)?
            }
            None => {
                let mut command = Command::new(tiny_app);
                command.env("PORT", port.to_string());
                command
            }
        };
        let cpus = self.placement.rest;
        self.ready(port, Protocol::Http1, vec![("backend".to_owned(), command)], cpus)
    }

    /// Starts what they pass requests on to over HTTP/2.
    pub(super) fn h2c_backend(&self) -> anyhow::Result<Running> {
        let port = free_port()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["app", "--port", &port.to_string()]);
        self.ready(port, Protocol::H2c, vec![("backend".to_owned(), command)], self.placement.rest)
    }

    /// Starts a target before the backend, both speaking `protocol`.
    pub(super) fn start(
        &self,
        target: &Target,
        backend: &Running,
        protocol: Protocol,
    ) -> anyhow::Result<Running> {
        let app = backend.address.port();
        let h2c = protocol == Protocol::H2c;
        let named = |command| vec![(target.name.clone(), command)];
        let sidecar_port = || if h2c { if_free(H2C_PORT) } else { free_port() };
        let (port, commands) = match &target.kind {
            Kind::Direct => {
                return Ok(Running {
                    address: backend.address,
                    processes: Vec::new(),
                    start_to_ready: backend.start_to_ready,
                });
            }
            Kind::Nginx(program) => {
                let port = free_port()?;
                let http = format!(
                    "upstream app {{ server 127.0.0.1:{app}; keepalive 1000; \
                     keepalive_requests 1000000000; keepalive_timeout 90s; }}\n\
                     server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://app; \
                     proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; \
                     proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}"
                );
                (port, named(self.nginx(program, "nginx", &http)?))
            }
            Kind::Haproxy(program) => {
                let port = free_port()?;
                (port, named(self.haproxy(program, port, app, h2c)?))
            }
            Kind::QueueProxy(program) => {
                let port = sidecar_port()?;
                (port, named(queue_proxy(Command::new(program), port, app)))
            }
            Kind::Peer(line) => {
                let port = sidecar_port()?;
                let mut command = Command::new("sh");
                command.args(["-c", &format!("exec {line}")]);
                (port, named(queue_proxy(command, port, app)))
            }
            Kind::Activator(program, known) => {
                let cluster = self.cluster(*known, h2c)?;
                let port = free_port()?;
                let mut activator = Command::new(std::env::current_exe()?);
                let (own, reports) = (port.to_string(), cluster.reports.to_string());
                activator.args(["activator", "--port", &own, "--autoscaler", &reports, "--kubeconfig"]);
                activator.arg(&cluster.kubeconfig);
                let pod = queue_proxy(Command::new(program), cluster.pod, app);
                let commands = vec![("activator".to_owned(), activator), ("queue-proxy".to_owned(), pod)];
                cluster.ask(FORGET)?;
                let running = self.ready(port, protocol, commands, self.placement.target)?;
                cluster.wait_until_probed(self.stop)?;
                return Ok(running);
            }
        };
        self.ready(port, protocol, commands, self.placement.target)
            .with_context(|| format!("{} cannot be measured", target.name))
    }

    /// What is around an activator that knows so much, started now if nobody has asked for it before.
    fn cluster(&self, known: Known, h2c: bool) -> anyhow::Result<Rc<Cluster>> {
        if let Some(cluster) = self.clusters.borrow().get(&(known, h2c)) {
            return Ok(Rc::clone(cluster));
        }
        let data = tempfile::Builder::new().prefix("cluster-").tempdir_in(self.dir)?.keep();
        let kubeconfig = data.join("kubeconfig");
        let pod = if h2c { if_free(H2C_PORT)? } else { free_port()? };
        let (idle, reports) = (free_port()?, free_port()?);
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("cluster").arg("--data-dir").arg(&data).arg("--kubeconfig").arg(&kubeconfig);
        for (name, value) in [
            ("--pod", u32::from(pod)),
            ("--idle-port", idle.into()),
            ("--reports", reports.into()),
            ("--revisions", known.revisions),
            ("--pods", known.pods),
        ] {
            command.args([name, &value.to_string()]);
        }
        command.args(h2c.then_some("--h2c"));
        let output = self.dir.join(format!("cluster.{idle}.log"));
        let rest = self.placement.rest;
        let mut process = Process::start("cluster", command, output, rest, rest)?;
        let start = Instant::now();
        while !kubeconfig.exists() {
            self.stop.check()?;
            if process.has_ended() || start.elapsed() > PATIENCE {
                bail!("what is around the activator does not start. {}", process.said());
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let idle_pods = known.pods - 1;
        let cluster = Rc::new(Cluster { _process: process, kubeconfig, reports, pod, idle, idle_pods });
        self.clusters.borrow_mut().insert((known, h2c), Rc::clone(&cluster));
        Ok(cluster)
    }

    /// Starts processes and waits until `port` answers with 200.
    fn ready(
        &self,
        port: u16,
        protocol: Protocol,
        commands: Vec<(String, Command)>,
        cpus: Cpus,
    ) -> anyhow::Result<Running> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let start = Instant::now();
        let mut processes = Vec::new();
        for (name, command) in commands {
            let output = self.dir.join(format!("{name}.{port}.log"));
            processes.push(Process::start(&name, command, output, cpus, self.placement.rest)?);
        }
        let mut running = Running { address, processes, start_to_ready: Duration::ZERO };
        loop {
            match exchange(address, protocol) {
                Ok((true, _)) => {
                    running.start_to_ready = start.elapsed();
                    return Ok(running);
                }
                // No use to ask again.
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                    bail!("what answers does not speak {protocol:?}");
                }
                _ => self.stop.check()?,
            }
            if running.processes.iter_mut().any(Process::has_ended) {
                bail!("it ended before it answered. {}", running.said());
            }
            if start.elapsed() > PATIENCE {
                bail!("no answer within {PATIENCE:?}. {}", running.said());
            }
            std::thread::park_timeout(ATTEMPTS);
        }
    }

    /// One process with one thread, and no log of requests.
    fn nginx(&self, program: &Path, name: &str, http: &str) -> anyhow::Result<Command> {
        let folder = self.dir.join(format!("{name}-files"));
        std::fs::create_dir_all(&folder)?;
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {}/{kind};\n", folder.display()))
            .collect();
        let text = format!(
            "daemon off;\nmaster_process off;\nworker_processes 1;\npid {}/pid;\nerror_log stderr crit;\n\
             events {{ worker_connections 4096; }}\nhttp {{\naccess_log off;\n{temporary}\
             keepalive_requests 1000000000;\nkeepalive_timeout 300s;\n{http}\n}}\n",
            folder.display()
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, text)?;
        let mut command = Command::new(program);
        command.arg("-p").arg(&folder).arg("-c").arg(&file).args(["-e", "stderr"]);
        Ok(command)
    }

    /// One process with one thread for traffic.
    fn haproxy(&self, program: &Path, port: u16, app: u16, h2c: bool) -> anyhow::Result<Command> {
        let proto = if h2c { " proto h2" } else { "" };
        let text = format!(
            "global\n  nbthread 1\n  maxconn 4096\n\
             defaults\n  mode http\n  http-reuse always\n  option forwardfor\n  timeout connect 5s\n  \
             timeout client 300s\n  timeout server 300s\n\
             frontend in\n  bind 127.0.0.1:{port} backlog 4096{proto}\n  default_backend app\n\
             backend app\n  server app 127.0.0.1:{app}{proto}\n"
        );
        let file = self.dir.join("haproxy.cfg");
        std::fs::write(&file, text)?;
        let mut command = Command::new(program);
        command.args(["-db", "-q", "-f"]).arg(file);
        Ok(command)
    }
}

impl Cluster {
    /// Asks the pods that get no requests; the answer's body.
    fn ask(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.idle))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: pods\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        Ok(body.to_owned())
    }

    /// Waits until the activator has seen all of them, so that it is busy with nothing but requests from then on.
    fn wait_until_probed(&self, stop: &Stop) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.ask(PROBED)?.parse() != Ok(self.idle_pods) {
            stop.check()?;
            if start.elapsed() > PATIENCE {
                bail!("{} of {} pods were probed", self.ask(PROBED)?, self.idle_pods);
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// Adds what the controller puts into the environment of a queue-proxy by default.
fn queue_proxy(mut command: Command, port: u16, app: u16) -> Command {
    let (port, app) = (port.to_string(), app.to_string());
    let probe = format!(r#"{{"tcpSocket":{{"port":{app},"host":"127.0.0.1"}},"successThreshold":1}}"#);
    command.envs([
        ("CONTAINER_CONCURRENCY", "0"),
        ("ENABLE_HTTP2_AUTO_DETECTION", "false"),
        ("ENABLE_HTTP_FULL_DUPLEX", "false"),
        ("ENABLE_MULTI_CONTAINER_PROBES", "false"),
        ("HOST_IP", "127.0.0.1"),
        ("OBSERVABILITY_CONFIG", r#"{"tracing":{},"metrics":{},"runtime":{},"requestMetrics":{}}"#),
        ("QUEUE_PROXY_TLS_CIPHER_SUITES", ""),
        ("QUEUE_PROXY_TLS_CURVE_PREFERENCES", ""),
        ("QUEUE_PROXY_TLS_MAX_VERSION", ""),
        ("QUEUE_PROXY_TLS_MIN_VERSION", ""),
        ("QUEUE_SERVING_PORT", &port),
        ("QUEUE_SERVING_TLS_PORT", "8112"),
        ("REVISION_IDLE_TIMEOUT_SECONDS", "0"),
        ("REVISION_RESPONSE_START_TIMEOUT_SECONDS", "0"),
        ("REVISION_TIMEOUT_SECONDS", "300"),
        ("ROOT_CA", ""),
        ("SERVING_CONFIGURATION", "bench"),
        ("SERVING_LOGGING_CONFIG", ""),
        ("SERVING_LOGGING_LEVEL", ""),
        ("SERVING_NAMESPACE", "default"),
        ("SERVING_POD", "bench-pod"),
        ("SERVING_POD_IP", "127.0.0.1"),
        ("SERVING_READINESS_PROBE", &probe),
        ("SERVING_REVISION", "bench"),
        ("SERVING_SERVICE", "bench"),
        ("SYSTEM_NAMESPACE", "knative-serving"),
        ("USER_PORT", &app),
    ]);
    command
}

/// A port nothing listens on, outside of those that outgoing connections get.
fn free_port() -> anyhow::Result<u16> {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    for _ in 0..10_000 {
        let port = 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port is free")
}

/// That port, if nothing listens on it.
fn if_free(port: u16) -> anyhow::Result<u16> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("port {port} is taken"))?;
    Ok(port)
}

/// The file of a program, where it may be.
pub(super) fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where Debian puts servers, whether or not it is in the path.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}
