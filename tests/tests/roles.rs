//! Every role as a process of its own, by kubeconfig over TLS, against an API server and a node that are another one.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test may panic to fail")]

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use ember_node::address::{Block, BlockClaim};
use ember_tests::http::{Client, host};
use ember_tests::instance::{Ember, program};
use ember_tests::load::Load;
use ember_tests::{PATIENCE, api, eventually};
use futures::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const SYSTEM: &str = "/api/v1/namespaces/knative-serving";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/knative-serving/leases";
const ROUTES_LEASE: &str = "controller.knative.dev.serving.pkg.reconciler.route.reconciler.00-of-01";

/// The processes, and what they share.
struct Roles {
    ember: Ember,
    /// Addresses of the controllers, one each, and of the gateway's outside.
    claim: BlockClaim,
}

/// A role's process; it ends with this.
struct Role {
    name: String,
    child: Child,
}

impl Role {
    /// Sends a signal, waits for the end and returns the exit code, if there is one.
    fn end(mut self, signal: Signal) -> Option<i32> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap_or_else(|error| panic!("{} ended before: {error}", self.name));
        self.child.wait().unwrap().code()
    }
}

impl Role {
    /// Waits until it has ended by itself, and returns the exit code.
    async fn ended(mut self) -> Option<i32> {
        let waiting = tokio::task::spawn_blocking(move || self.child.wait().unwrap().code());
        tokio::time::timeout(PATIENCE, waiting).await.expect("it ends").unwrap()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Roles {
    /// An API server and a node.
    async fn start() -> Self {
        let claim = Block::claim().unwrap();
        let gateway = SocketAddr::from((claim.block().address(1), 8080)).to_string();
        let without = "controller,autoscaler,activator,ingress";
        let ember = Ember::start_with(&["--http", &gateway, "--without", without]).await;
        let data = json!({"data": {"metrics-protocol": "prometheus"}});
        let map = format!("{SYSTEM}/configmaps/config-observability");
        api::merge(&ember.client, &map, &data).await.unwrap();
        Self { ember, claim }
    }

    /// The place of a component, as its Service's Endpoints state it.
    async fn address(&self, service: &str) -> String {
        let endpoints = api::get(&self.ember.client, &format!("{SYSTEM}/endpoints/{service}")).await.unwrap();
        endpoints["subsets"][0]["addresses"][0]["ip"].as_str().unwrap().to_owned()
    }

    fn spawn(&self, role: &str, name: &str, address: &str, arguments: &[&str]) -> Role {
        let child = Command::new(program())
            .args([role, "--bind", address])
            .args(arguments)
            .env("KUBECONFIG", &self.ember.kubeconfig)
            .env("POD_NAME", name)
            .env("POD_IP", address)
            .env("SYSTEM_NAMESPACE", "knative-serving")
            .env("CLUSTER_DOMAIN", "cluster.local")
            .env_remove("EMBER_KUBECONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Role { name: name.to_owned(), child }
    }

    /// The `number`th controller; it is ready when it has said so.
    async fn controller(&self, number: u16) -> Role {
        let address = self.claim.block().address(1 + number);
        let role = self.spawn("controller", &format!("controller-{number}"), &address.to_string(), &[]);
        ready((address, 8080).into()).await;
        role
    }

    async fn autoscaler(&self) -> Role {
        let address = self.address("autoscaler").await;
        self.spawn("autoscaler", "autoscaler-0", &address, &["--without-dns", "--without-hpa"])
    }

    async fn activator(&self) -> Role {
        let address = self.address("activator-service").await;
        self.spawn("activator", "activator-0", &address, &["--without-dns", "--drain-settle", "0s"])
    }

    async fn ingress(&self) -> Role {
        let address = self.address("ember-gateway").await;
        let gateway = self.ember.gateway.to_string();
        let arguments = ["--without-dns", "--http", &gateway, "--drain-settle", "0s"];
        let role = self.spawn("ingress", "ingress-0", &address, &arguments);
        ready(format!("{address}:8082").parse().unwrap()).await;
        role
    }

    /// Who has the Lease on routes.
    async fn holder(&self) -> String {
        let lease = api::get(&self.ember.client, &format!("{LEASES}/{ROUTES_LEASE}")).await;
        let holder = lease.unwrap_or_default()["spec"]["holderIdentity"].as_str().map(str::to_owned);
        holder.unwrap_or_default()
    }

    async fn wakes(&self, service: &str) {
        self.ember.pods(service, 0).await;
        let waking = (0..20).map(|_| {
            let client = Client::new(self.ember.gateway);
            async move { client.ok(&host(service), "/").await }
        });
        for answer in join_all(waking).await {
            assert_eq!(answer, format!("Hello {service}!\n"));
        }
    }
}

async fn ready(probes: SocketAddr) {
    let client = Client::new(probes);
    eventually(&format!("{probes} ready"), PATIENCE, || async {
        let answer = client.get("probes", "/readiness").await?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text) }
    })
    .await;
}

fn service(name: &str, annotations: &[(&str, &str)]) -> String {
    let annotations: serde_json::Map<String, Value> = annotations
        .iter()
        .map(|(key, value)| (format!("autoscaling.knative.dev/{key}"), Value::from(*value)))
        .collect();
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"template": {
            "metadata": {"annotations": annotations},
            "spec": {"containers": [{
                "image": "dev.local/host",
                "command": ["ember", "demo-app", "hello"],
                "env": [{"name": "TARGET", "value": name}],
            }]},
        }},
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_sleeps_and_wakes_by_roles_alone() {
    let roles = Roles::start().await;
    assert!(
        roles.ember.output().contains("left out    activator, expected at 127."),
        "{}",
        roles.ember.output()
    );
    let _running =
        (roles.controller(1).await, roles.autoscaler().await, roles.activator().await, roles.ingress().await);
    roles.ember.apply(&service("alone", &[("window", "6s")]));
    roles.ember.ready("alone").await;
    for _ in 0..2 {
        roles.wakes("alone").await;
    }
    for (service, port) in [("autoscaler", 9090), ("activator-service", 9090), ("ember-gateway", 9090)] {
        let address = format!("{}:{port}", roles.address(service).await).parse().unwrap();
        let metrics = Client::new(address).ok("metrics", "/metrics").await;
        assert!(metrics.contains("# TYPE "), "{service}: {metrics}");
    }
    let controller = SocketAddr::from((roles.claim.block().address(2), 9090));
    let metrics = Client::new(controller).ok("metrics", "/metrics").await;
    assert!(metrics.contains("kn_workqueue_depth{name=\"route\"}"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_killed_and_started_again_costs_no_request() {
    let roles = Roles::start().await;
    let (mut controller, mut autoscaler, mut activator, _ingress) =
        (roles.controller(1).await, roles.autoscaler().await, roles.activator().await, roles.ingress().await);
    // The activator is not on the way of a service that runs.
    let steady = [("min-scale", "2"), ("max-scale", "2"), ("target-burst-capacity", "0")];
    roles.ember.apply(&service("steady", &steady));
    roles.ember.apply(&service("sleepy", &[("window", "6s")]));
    roles.ember.ready("steady").await;
    roles.ember.ready("sleepy").await;
    let endpoints = "/api/v1/namespaces/default/endpoints/steady-00001";
    eventually("the activator off the way", PATIENCE, || async {
        let endpoints = api::get(&roles.ember.client, endpoints).await.map_err(|e| e.to_string())?;
        let count = endpoints["subsets"][0]["addresses"].as_array().map_or(0, Vec::len);
        if count == 2 { Ok(()) } else { Err(endpoints.to_string()) }
    })
    .await;

    let load = Load::start(roles.ember.gateway, &host("steady"), "/", 8);
    let more = async |what: &str| {
        let before = load.tally().answered();
        eventually(what, PATIENCE, || async {
            let answered = load.tally().answered();
            if answered >= before + 500 { Ok(()) } else { Err(answered) }
        })
        .await;
    };
    more("requests before anything ends").await;
    assert_eq!(controller.end(Signal::SIGKILL), None);
    more("requests without a controller").await;
    controller = roles.controller(1).await;
    assert_eq!(activator.end(Signal::SIGKILL), None);
    more("requests without an activator").await;
    activator = roles.activator().await;
    let intake = format!("{}:8012", roles.address("activator-service").await).parse().unwrap();
    eventually("the activator listens", PATIENCE, || async { Client::new(intake).get("any", "/").await })
        .await;
    // Last: a new autoscaler leads requests through the activator until it has decided.
    assert_eq!(autoscaler.end(Signal::SIGKILL), None);
    more("requests without an autoscaler").await;
    autoscaler = roles.autoscaler().await;
    // All of them are at work again.
    roles.wakes("sleepy").await;
    roles.ember.apply(&service("later", &[]));
    roles.ember.ready("later").await;
    let tally = load.stop().await;
    let (lost, some) = (tally.failures.len(), tally.failures.first());
    assert!(lost == 0, "{lost} of {}: {some:?}", tally.answered());

    assert_eq!(activator.end(Signal::SIGTERM), Some(0));
    assert_eq!(autoscaler.end(Signal::SIGTERM), Some(0));
    assert_eq!(controller.end(Signal::SIGTERM), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_controllers_one_works_the_other_follows_at_once_and_ends_without_its_lease() {
    let roles = Roles::start().await;
    let first = roles.controller(1).await;
    eventually("the first has the Lease", PATIENCE, || async {
        let holder = roles.holder().await;
        if holder == "controller-1" { Ok(()) } else { Err(holder) }
    })
    .await;
    let second = roles.controller(2).await;
    roles.ember.apply(&service("one", &[]));
    let configuration = async |name: &str| {
        let path = format!("/apis/serving.knative.dev/v1/namespaces/default/configurations/{name}");
        eventually(name, PATIENCE, || async { api::get(&roles.ember.client, &path).await }).await
    };
    configuration("one").await;
    assert_eq!(roles.holder().await, "controller-1");
    assert_eq!(first.end(Signal::SIGTERM), Some(0));
    // Long before a Lease would be over, which is a minute.
    eventually("the second has the Lease", PATIENCE / 3, || async {
        let holder = roles.holder().await;
        if holder == "controller-2" { Ok(()) } else { Err(holder) }
    })
    .await;
    roles.ember.apply(&service("two", &[]));
    configuration("two").await;
    // Whoever finds a Lease to be another's may not go on.
    let stolen = json!({"spec": {"holderIdentity": "somebody"}});
    api::merge(&roles.ember.client, &format!("{LEASES}/{ROUTES_LEASE}"), &stolen).await.unwrap();
    assert_eq!(second.ended().await, Some(1));
    assert_eq!(roles.holder().await, "somebody");
}
