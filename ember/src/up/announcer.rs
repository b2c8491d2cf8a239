//! Tells whoever started `ember up` what there is to open in a browser.

use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;

use ember_api::serving::v1::Service;
use ember_api::status::Conditioned;
use ember_reconcile::cache::{Cache, Change, Key};
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// What was last said of a service.
#[derive(PartialEq, Eq, Clone)]
enum Said {
    Ready(String),
    Failed(String),
}

/// Prints a line for each service that becomes Ready or fails, until `shutdown`.
pub(crate) async fn run(client: Client, gateway: SocketAddr, shutdown: CancellationToken) {
    let services: Cache<Service> = Cache::new();
    let said: Mutex<HashMap<Key, Said>> = Mutex::default();
    services.on_change(move |change| {
        let service = change.object();
        let key = Key::of(&**service);
        let next = match change {
            Change::Deleted(_) => None,
            Change::Applied { .. } => state(service),
        };
        let mut said = said.lock();
        match (said.get(&key), next) {
            (Some(_), None) if matches!(change, Change::Deleted(_)) => {
                said.remove(&key);
                say(&format!("service {key} is deleted"));
            }
            (before, Some(next)) if before != Some(&next) => {
                match &next {
                    Said::Ready(url) => say(&ready(&key, url, gateway)),
                    Said::Failed(why) => say(&format!("service {key} is not ready: {why}")),
                }
                said.insert(key, next);
            }
            _ => {}
        }
    });
    services.run(Api::all(client), watcher::Config::default(), shutdown).await;
}

fn state(service: &Service) -> Option<Said> {
    if service.is_ready() {
        let url = service.status.as_ref()?.url.clone().unwrap_or_default();
        return Some(Said::Ready(url));
    }
    if service.is_failed() {
        let ready = service.ready_condition()?;
        return Some(Said::Failed(format!("{}: {}", ready.reason, ready.message)));
    }
    None
}

fn ready(key: &Key, url: &str, gateway: SocketAddr) -> String {
    let host = url.trim_start_matches("http://").split([':', '/']).next().unwrap_or_default();
    format!(
        "service {key} is ready at {url}\n  (where {host} does not resolve: curl -H 'Host: {host}' http://{gateway})"
    )
}

fn say(line: &str) {
    // Nobody reading is no reason to stop.
    let _ = writeln!(std::io::stdout(), "{line}");
}
