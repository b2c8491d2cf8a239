//! Tells whoever started `ember up` what there is to open in a browser.

use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::mpsc::{SyncSender, sync_channel};

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

/// How many lines may wait to be printed.
const WAITING: usize = 1024;

/// Prints on a thread of its own: a terminal that does not take the lines must not hold up the control plane.
fn printer() -> SyncSender<String> {
    let (lines, waiting) = sync_channel::<String>(WAITING);
    std::thread::spawn(move || {
        for line in waiting {
            // Nobody reading is no reason to stop.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    });
    lines
}

/// Prints a line for each service that becomes Ready or fails, until `shutdown`.
pub(crate) async fn run(client: Client, gateway: SocketAddr, shutdown: CancellationToken) {
    let services: Cache<Service> = Cache::new();
    let said: Mutex<HashMap<Key, Said>> = Mutex::default();
    let lines = printer();
    let say = move |line: &str| {
        // More than can be printed is dropped: nobody is reading, then.
        let _ = lines.try_send(line.to_owned());
    };
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
