//! What is measured, and how it is started.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::load::{connect, exchange};
use super::process::{Cpus, Process};
use super::stop::Stop;

/// How long a target may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts to reach it.
const ATTEMPTS: Duration = Duration::from_micros(100);

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
    QueueProxy(PathBuf),
    /// An activator before a queue-proxy.
    Activator(PathBuf),
    /// A command that takes a queue-proxy's environment.
    Peer(String),
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

impl Site<'_> {
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
        self.ready(port, vec![("backend".to_owned(), command)], cpus)
    }

    /// Starts a target before the backend.
    pub(super) fn start(&self, target: &Target, backend: &Running) -> anyhow::Result<Running> {
        let app = backend.address.port();
        let port = free_port()?;
        let commands = match &target.kind {
            Kind::Direct => {
                return Ok(Running {
                    address: backend.address,
                    processes: Vec::new(),
                    start_to_ready: backend.start_to_ready,
                });
            }
            Kind::Nginx(program) => {
                let http = format!(
                    "upstream app {{ server 127.0.0.1:{app}; keepalive 1000; \
                     keepalive_requests 1000000000; keepalive_timeout 90s; }}\n\
                     server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://app; \
                     proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; \
                     proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}"
                );
                vec![self.nginx(program, "nginx", &http)?]
            }
            Kind::Haproxy(program) => vec![self.haproxy(program, port, app)?],
            Kind::QueueProxy(program) => vec![queue_proxy(Command::new(program), port, app)],
            Kind::Activator(program) => {
                let pod = free_port()?;
                let mut activator = Command::new(std::env::current_exe()?);
                let data = tempfile::Builder::new().prefix("activator-").tempdir_in(self.dir)?.keep();
                activator
                    .args(["activator", "--port", &port.to_string(), "--pod", &pod.to_string(), "--data-dir"])
                    .arg(data);
                vec![activator, queue_proxy(Command::new(program), pod, app)]
            }
            Kind::Peer(line) => {
                let mut command = Command::new("sh");
                command.args(["-c", &format!("exec {line}")]);
                vec![queue_proxy(command, port, app)]
            }
        };
        let names = match &target.kind {
            Kind::Activator(_) => vec!["activator".to_owned(), "queue-proxy".to_owned()],
            _ => vec![target.name.clone()],
        };
        self.ready(port, names.into_iter().zip(commands).collect(), self.placement.target)
            .with_context(|| format!("{} cannot be measured", target.name))
    }

    /// Starts processes and waits until `port` answers with 200.
    fn ready(&self, port: u16, commands: Vec<(String, Command)>, cpus: Cpus) -> anyhow::Result<Running> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let start = Instant::now();
        let mut processes = Vec::new();
        for (name, command) in commands {
            let output = self.dir.join(format!("{name}.{port}.log"));
            processes.push(Process::start(&name, command, output, cpus, self.placement.rest)?);
        }
        let mut running = Running { address, processes, start_to_ready: Duration::ZERO };
        loop {
            if connect(address).and_then(|stream| exchange(&stream)).unwrap_or(false) {
                running.start_to_ready = start.elapsed();
                return Ok(running);
            }
            self.stop.check()?;
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
    fn haproxy(&self, program: &Path, port: u16, app: u16) -> anyhow::Result<Command> {
        let text = format!(
            "global\n  nbthread 1\n  maxconn 4096\n\
             defaults\n  mode http\n  http-reuse always\n  option forwardfor\n  timeout connect 5s\n  \
             timeout client 300s\n  timeout server 300s\n\
             frontend in\n  bind 127.0.0.1:{port} backlog 4096\n  default_backend app\n\
             backend app\n  server app 127.0.0.1:{app}\n"
        );
        let file = self.dir.join("haproxy.cfg");
        std::fs::write(&file, text)?;
        let mut command = Command::new(program);
        command.args(["-db", "-q", "-f"]).arg(file);
        Ok(command)
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

/// The file of a program, where it may be.
pub(super) fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where Debian puts servers, whether or not it is in the path.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}
