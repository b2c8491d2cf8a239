//! `ember up`: every component in one process, on an embedded API.
//!
//! The control plane runs on the main thread's runtime, the node on a thread of its own; requests, and the sidecars of
//! pods, on worker threads.

mod announcer;
mod component;
mod dashboard;
mod descriptors;
mod hosts;
mod images;
mod pod_logs;
mod screen;
mod seed;
mod settled;
mod sidecar;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use ember_apiserver::ApiServer;
use ember_dataplane::io::{Io, SystemClock};
use ember_dataplane::port;
use ember_dataplane::server;
use ember_dataplane::worker::Workers;
use ember_node::address::Block;
use ember_reconcile::cache::Cache;
use ember_telemetry::logs;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::{Role, Up};
use crate::client::apply::{apply, describe};
use crate::client::manifest::{self, Manifest};
use crate::client::resources::Resources;
use crate::machine::{instances, listeners};
use crate::network::{ClusterNetwork, SharedNetwork};
use component::Component;
use hosts::HostsFile;
use screen::Screen;

const CLUSTER_DOMAIN: &str = "cluster.local";
/// Places in the instance's block that are not for pods.
const ACTIVATOR: u16 = 1;
const AUTOSCALER: u16 = 2;
const GATEWAY: u16 = 3;
/// Where cluster-local hosts are served, on the gateway's own address, unless that of their URLs can be had.
const INTERNAL_PORT: u16 = 8081;
/// The port of URLs that name none.
const HTTP: u16 = 80;
/// How long requests under way, and then pods, have at the end.
const GATEWAY_DRAIN: Duration = Duration::from_secs(4);
const PODS_END: Duration = Duration::from_secs(4);
/// Nobody waits longer than this for Ctrl-C.
const ALL_ENDS: Duration = Duration::from_millis(9_500);
/// What a component gets to notice that it is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs until Ctrl-C or SIGTERM.
pub(crate) fn run(options: &Up) -> anyhow::Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("ember up runs on Linux only: it needs all of 127.0.0.0/8 and Linux's process control");
    }
    if options.without.contains(&Role::Ingress) && options.http.port() == 0 {
        bail!("--http {}: a port is needed where the ingress is left out: URLs carry it", options.http);
    }
    let screen = Screen::open()?;
    let log = screen.log();
    logs::init_to(logs::Format::Plain, &options.log, move || log.clone())?;
    // Before anything is started: a typing error should cost nothing.
    let mut manifests = Vec::new();
    for file in &options.file {
        manifests.extend(manifest::read(file)?);
    }
    let files = descriptors::raise();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = Workers::start(options.workers.unwrap_or(cores))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let result = Instance::start(options, workers.clone(), files, screen.clone()).await;
        let result = match result {
            Ok(instance) => instance.serve(&manifests).await,
            Err(error) => Err(error),
        };
        workers.shutdown().await;
        screen.end();
        result
    })
}

struct Instance {
    server: ApiServer,
    client: Client,
    gateway: SocketAddr,
    api: SocketAddr,
    kubeconfig: PathBuf,
    files: u64,
    screen: Screen,
    scales: ember_autoscaler::Scales,
    without: Vec<Role>,
    addresses: seed::Addresses,
    /// In the order in which they end.
    components: Vec<(Component, Duration)>,
    background: TaskTracker,
    /// Ends what the components still need while they end.
    last: CancellationToken,
    /// For the volumes of pods.
    pods: PathBuf,
    /// By which containers find other services, or why they cannot.
    hosts_file: Option<PathBuf>,
    no_names: Option<String>,
    _claim: ember_node::address::BlockClaim,
}

impl Instance {
    async fn start(options: &Up, workers: Workers, files: u64, screen: Screen) -> anyhow::Result<Self> {
        let data_dir = options.data_dir.clone().unwrap_or_else(crate::client::default_data_dir);
        let mut config = ember_apiserver::Config::new(&data_dir);
        config.admission = Arc::new(ember_apiserver::KnativeAdmission::new());
        let server = ApiServer::open(config).map_err(|error| refused(&data_dir, error))?;
        let client = server.client();
        let claim = Block::claim().context("cannot claim addresses for pods")?;
        let block = claim.block();
        let last = CancellationToken::new();
        let background = TaskTracker::new();

        let (services, endpoints) = (Cache::new(), Cache::new());
        let network: SharedNetwork =
            Arc::new(ClusterNetwork::new(CLUSTER_DOMAIN, services.clone(), endpoints.clone()));
        let gateway = open_gateway(options, &network)?;
        let listener = tokio::net::TcpListener::bind(options.api)
            .await
            .map_err(|error| anyhow::anyhow!(listeners::explain(options.api, "--api", &error)))?;
        let api = listener.local_addr()?;
        let kubeconfig = options.kubeconfig.clone().unwrap_or_else(|| data_dir.join("kubeconfig"));
        server.write_kubeconfig(&kubeconfig, api).map_err(|error| refused(&data_dir, error))?;

        let serving = server.clone();
        let stop_api = last.clone();
        background.spawn(async move { serving.serve(listener, stop_api).await });
        let own = |offset| IpAddr::V4(block.address(offset));
        let addresses = seed::Addresses {
            activator: own(ACTIVATOR),
            autoscaler: own(AUTOSCALER),
            gateway: own(GATEWAY),
            internal_port: open_inside(options, &network, own(GATEWAY)),
            external_port: gateway.port(),
        };
        seed::seed(&client, addresses).await?;
        let hosts = HostsFile::create(&data_dir, own(GATEWAY), CLUSTER_DOMAIN)
            .context("cannot write the hosts file of containers")?;
        let program = std::env::current_exe()?;
        let fits = ember_node::hosts_file_fits(&program, hosts.path());
        let hosts_file = fits.is_ok().then(|| hosts.path().to_owned());
        background.spawn(hosts.run(services.clone(), service_host(), last.clone()));
        background.spawn(services.run(Api::all(client.clone()), watcher::Config::default(), last.clone()));
        background.spawn(endpoints.run(Api::all(client.clone()), watcher::Config::default(), last.clone()));

        let io = Io { clock: Arc::new(SystemClock), network: SharedNetwork::clone(&network) as _ };
        let mut instance = Self {
            server,
            client,
            gateway,
            api,
            kubeconfig,
            files,
            screen,
            scales: ember_autoscaler::Scales::default(),
            without: options.without.clone(),
            addresses,
            components: Vec::new(),
            background,
            last,
            // Containers see it from folders of their own.
            pods: std::path::absolute(data_dir.join("pods"))?,
            hosts_file,
            no_names: fits.err(),
            _claim: claim,
        };
        instance.start_components(block, &io, &network, &workers)?;
        Ok(instance)
    }

    fn start_components(
        &mut self,
        block: Block,
        io: &Io,
        network: &SharedNetwork,
        workers: &Workers,
    ) -> anyhow::Result<()> {
        let client = || self.client.clone();
        let stop = CancellationToken::new;
        let addresses = self.addresses;
        let runs = |role: Role| !self.without.contains(&role);

        let ingress = ember_ingress::Config {
            listen: self.gateway,
            listen_internal: Some(SocketAddr::new(addresses.gateway, addresses.internal_port)),
            ingress_class: seed::INGRESS_CLASS.to_owned(),
            service_host: service_host(),
            server: server::Options {
                max_connections: descriptors::clients(self.files),
                ..ember_ingress::Config::default().server
            },
            drain_timeout: GATEWAY_DRAIN,
            ..ember_ingress::Config::default()
        };
        let token = stop();
        let ingress = runs(Role::Ingress).then(|| {
            Component::spawn("ingress", token.clone(), {
                let (io, client, workers) = (io.clone(), client(), workers.clone());
                async move {
                    // A crash may have lost what is derived: a host must not be unknown until it is made again.
                    settled::routes(&client).await;
                    ember_ingress::run(ingress, io, client, workers, token).await
                }
            })
        });

        let activator = ember_activator::Config {
            bind: addresses.activator,
            // Sidecars have no certificates here, and nothing leaves the machine.
            tls_port: None,
            pod_ip: addresses.activator.to_string(),
            // Its own address: on others pods have the same port.
            metrics: SocketAddr::new(addresses.activator, port::AUTOSCALING_METRICS),
            autoscaler: (format!("autoscaler.knative-serving.svc.{CLUSTER_DOMAIN}"), 8080),
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
            first_reconnect: Duration::from_millis(5),
            longest_reconnect: Duration::from_millis(200),
            // The gateway is its only client and has ended before.
            drain_settle: Duration::ZERO,
            drain_timeout: LAST_WORDS,
            ..ember_activator::Config::default()
        };
        let token = stop();
        let activator = runs(Role::Activator).then(|| {
            Component::spawn(
                "activator",
                token.clone(),
                ember_activator::run(activator, io.clone(), client(), workers.clone(), token),
            )
        });

        let mut node = ember_node::Config::new(block)?;
        node.reserved = [ACTIVATOR, AUTOSCALER, GATEWAY].map(|offset| block.address(offset)).to_vec();
        node.shutdown_grace = PODS_END;
        node.volumes = self.pods.clone();
        node.hosts_file = self.hosts_file.clone();
        self.server.set_pod_logs(Arc::new(pod_logs::NodeLogs(node.logs.clone())));
        let sidecar = Arc::new(sidecar::InProcess {
            io: io.clone(),
            network: SharedNetwork::clone(network),
            workers: workers.clone(),
        });
        let token = stop();
        // A pod that is to be started does not queue behind what everyone else makes of it.
        let server = self.server.clone();
        let node = Component::spawn_apart("node", token.clone(), move || {
            ember_node::run(node, server.own_client(), sidecar, token)
        })?;

        let autoscaler = ember_autoscaler::Config {
            stats_addr: SocketAddr::new(addresses.autoscaler, 8080),
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
            shutdown_timeout: LAST_WORDS,
            scales: self.scales.clone(),
            ..ember_autoscaler::Config::default()
        };
        let token = stop();
        let autoscaler = runs(Role::Autoscaler).then(|| {
            Component::spawn(
                "autoscaler",
                token.clone(),
                ember_autoscaler::run(autoscaler, io.clone(), client(), token),
            )
        });

        let controller = ember_controller::Config {
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
            digests: Arc::new(images::HostProgramsOnly),
            ..Default::default()
        };
        let token = stop();
        let controller = runs(Role::Controller).then(|| {
            Component::spawn("controller", token.clone(), ember_controller::run(controller, client(), token))
        });

        let components = [
            (ingress, GATEWAY_DRAIN + LAST_WORDS),
            (activator, LAST_WORDS * 2),
            // Before the node: what it takes down must not be scaled up again.
            (autoscaler, LAST_WORDS),
            (controller, LAST_WORDS),
            (Some(node), PODS_END + LAST_WORDS),
        ];
        self.components =
            components.into_iter().filter_map(|(component, patience)| Some((component?, patience))).collect();
        Ok(())
    }

    /// Applies the manifests and stays until a signal comes or a component fails.
    async fn serve(mut self, manifests: &[Manifest]) -> anyhow::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut components = std::mem::take(&mut self.components);
        let work = async {
            if !self.without.contains(&Role::Ingress) {
                self.answering().await;
            }
            self.announce();
            let (client, screen) = (self.client.clone(), self.screen.clone());
            let scales = self.scales.clone();
            self.background.spawn(announcer::run(client, self.gateway, screen, scales, self.last.clone()));
            apply_all(&self.client, manifests, &self.screen).await?;
            std::future::pending().await
        };
        // A component that cannot go on ends everything, at start too: the rest would wait for it in vain.
        let result = tokio::select! {
            result = work => result,
            (index, error) = first_to_end(&mut components) => {
                components.remove(index);
                Err(error)
            }
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        };
        self.components = components;
        self.end(result).await
    }

    /// Waits until the gateway answers, which it does once its routing table is complete. That it can be connected to
    /// says nothing: its socket was opened first of all.
    async fn answering(&self) {
        let pause = Duration::from_millis(2);
        while ask(self.gateway).await.is_err() {
            tokio::time::sleep(pause).await;
        }
    }

    fn announce(&self) {
        let say = |line: String| self.screen.say(&line);
        say(format!("Ember {} is up; Ctrl-C ends it.", ember_telemetry::build::VERSION));
        say(format!("  gateway     http://{}", self.gateway));
        say(format!("  api         https://{}", self.api));
        say(format!("  kubeconfig  {}", self.kubeconfig.display()));
        let clients = descriptors::clients(self.files);
        say(format!("  limits      {} open files, at most {clients} clients at a time", self.files));
        if let Some(reason) = &self.no_names {
            say(format!(
                "  names       services cannot call each other by cluster-local URLs ({reason}); see docs/operations.md"
            ));
        }
        for role in &self.without {
            let place = match role {
                Role::Activator => format!(", expected at {}", self.addresses.activator),
                Role::Autoscaler => format!(", expected at {}", self.addresses.autoscaler),
                Role::Ingress => format!(", expected at {} and {}", self.gateway, self.addresses.gateway),
                Role::Controller => String::new(),
            };
            say(format!("  left out    {}{place}", format!("{role:?}").to_lowercase()));
        }
    }

    /// Ends everything in order; a second signal ends the process at once.
    async fn end(mut self, result: anyhow::Result<()>) -> anyhow::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let ending = async {
            for (component, patience) in std::mem::take(&mut self.components) {
                component.end(patience).await;
            }
            if let Err(error) = self.server.flush().await {
                tracing::error!(%error, "not everything is on disk");
            }
            self.last.cancel();
            self.background.close();
            // What is left are watches and API connections: they end with `last`.
            let _ = tokio::time::timeout(LAST_WORDS, self.background.wait()).await;
            self.server.close();
        };
        tokio::select! {
            ended = tokio::time::timeout(ALL_ENDS, ending) => match ended {
                Ok(()) => result,
                Err(_) => result.and_then(|()| bail!("not everything ended within {ALL_ENDS:?}")),
            },
            _ = interrupt.recv() => bail!("interrupted again: ended at once"),
            _ = terminate.recv() => bail!("interrupted again: ended at once"),
        }
    }
}

/// Why the data folder cannot be used, and what to do about it.
fn refused(data_dir: &Path, error: ember_apiserver::Error) -> anyhow::Error {
    let advice = match &error {
        ember_apiserver::Error::Io { source, .. }
        | ember_apiserver::Error::Store(ember_apiserver::OpenError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::StorageFull =>
        {
            "make room on its disk, or name another folder with --data-dir".to_owned()
        }
        ember_apiserver::Error::Store(ember_apiserver::OpenError::Locked { .. }) => {
            let own = instances::running().into_iter().find(|i| i.kubeconfig.starts_with(data_dir));
            let Some(own) = own else { return error.into() };
            format!("--kubeconfig {} leads to it", own.kubeconfig.display())
        }
        ember_apiserver::Error::Io { .. }
        | ember_apiserver::Error::Store(ember_apiserver::OpenError::Io { .. }) => {
            "name a folder that this user may write with --data-dir; `ember doctor` looks at the usual one"
                .to_owned()
        }
        _ => return error.into(),
    };
    anyhow::anyhow!("cannot use the data folder: {error}; {advice}")
}

/// The address of the gateway, which listens from now on; a gateway that is left out has to be told where to.
fn open_gateway(options: &Up, network: &SharedNetwork) -> anyhow::Result<SocketAddr> {
    let wanted = options.http;
    if options.without.contains(&Role::Ingress) {
        return Ok(wanted);
    }
    network.open(wanted).map_err(|error| anyhow::anyhow!(listeners::explain(wanted, "--http", &error)))
}

/// The port of the gateway for the inside, which listens from now on: that of URLs without one, if it is to be had.
fn open_inside(options: &Up, network: &SharedNetwork, address: IpAddr) -> u16 {
    let there = !options.without.contains(&Role::Ingress);
    if there && network.open(SocketAddr::new(address, HTTP)).is_ok() { HTTP } else { INTERNAL_PORT }
}

/// The name of the gateway's Service.
fn service_host() -> String {
    format!("ember-gateway.knative-serving.svc.{CLUSTER_DOMAIN}")
}

/// The index of the component that ends first, and why that is an error.
async fn first_to_end(components: &mut [(Component, Duration)]) -> (usize, anyhow::Error) {
    let tasks = components.iter_mut().map(|(component, _)| &mut component.task);
    let (ended, index, _) = futures::future::select_all(tasks).await;
    let name = components[index].0.name;
    let error = match ended {
        Ok(Ok(())) => anyhow::anyhow!("{name} ended by itself"),
        Ok(Err(error)) => anyhow::anyhow!("{name}: {error}"),
        Err(error) => anyhow::anyhow!("{name}: {error}"),
    };
    (index, error)
}

/// Asks an HTTP server for any answer at all.
async fn ask(server: SocketAddr) -> std::io::Result<()> {
    let mut stream = tokio::net::TcpStream::connect(server).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: ember\r\nConnection: close\r\n\r\n").await?;
    match stream.read(&mut [0]).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Applies manifests in order; the first that is refused ends it.
async fn apply_all(client: &Client, manifests: &[Manifest], screen: &Screen) -> anyhow::Result<()> {
    if manifests.is_empty() {
        return Ok(());
    }
    let resources = Resources::discover(client).await?;
    for (index, manifest) in manifests.iter().enumerate() {
        let applied = apply(client, &resources, manifest, "default").await?;
        screen.say(&format!("{}/{} {applied}", manifest.kind().to_lowercase(), manifest.name()));
        let again = |later: &Manifest| later.kind() == manifest.kind() && later.name() == manifest.name();
        if manifests[index + 1..].iter().any(again)
            && let Err(error) =
                crate::client::apply::wait_ready(client, &resources, manifest, "default").await
        {
            tracing::warn!("{}", describe(&error));
        }
    }
    Ok(())
}
