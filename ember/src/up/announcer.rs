//! Tells whoever started `ember up` what there is to open in a browser.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use ember_api::serving::v1::Service;
use ember_api::status::Conditioned;
use ember_autoscaler::Scales;
use ember_reconcile::cache::{Cache, Change, Key};
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::dashboard;
use super::screen::Screen;

/// The reason of a service without a revision that works: why the revision does not was told before.
const FOLLOWS: &str = "RevisionMissing";
/// How often the table is looked at.
const REDRAW: Duration = Duration::from_millis(300);

/// What was last said of a service.
#[derive(Debug, PartialEq, Eq, Clone)]
enum Said {
    Ready(Reach),
    Failed(String),
}

/// Where a service is reached.
#[derive(Debug, PartialEq, Eq, Clone)]
enum Reach {
    /// By everyone who reaches the gateway.
    Outside(String),
    /// By other services alone.
    Inside(String),
}

/// Prints a line for each service that becomes Ready or fails, until `shutdown`.
/// On a terminal a table below them shows what `scales` says of their revisions.
pub(crate) async fn run(
    client: Client,
    gateway: SocketAddr,
    screen: Screen,
    scales: Scales,
    shutdown: CancellationToken,
) {
    let services: Cache<Service> = Cache::new();
    let said: Mutex<HashMap<Key, Said>> = Mutex::default();
    let speaking = screen.clone();
    let say = move |line: &str| speaking.say(line);
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
            (Some(Said::Failed(_)), Some(Said::Failed(why))) if why.starts_with(FOLLOWS) => {}
            (before, Some(next)) if before != Some(&next) => {
                match &next {
                    Said::Ready(reach) => say(&ready(&key, reach, gateway)),
                    Said::Failed(why) => say(&format!("service {key} is not ready: {why}")),
                }
                said.insert(key, next);
            }
            _ => {}
        }
    });
    let watching = services.run(Api::all(client), watcher::Config::default(), shutdown.clone());
    let showing = async {
        if screen.is_live() {
            shutdown.run_until_cancelled(show(&services, &scales, &screen)).await;
        }
    };
    tokio::join!(watching, showing);
}

/// Keeps the table up to date.
async fn show(services: &Cache<Service>, scales: &Scales, screen: &Screen) {
    let mut ticks = tokio::time::interval(REDRAW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let rows = dashboard::rows(&services.all(), &scales.list());
        let (width, height) = Screen::size();
        // The rest is for lines; the last column is left free: some terminals go on in the next line.
        screen.show(dashboard::lines(&rows, width.saturating_sub(1), height / 2));
    }
}

fn state(service: &Service) -> Option<Said> {
    if service.is_ready() {
        let status = service.status.as_ref()?;
        let url = status.url.clone().unwrap_or_default();
        let inside = status.address.as_ref().and_then(|address| address.url.as_ref()) == Some(&url);
        return Some(Said::Ready(if inside { Reach::Inside(url) } else { Reach::Outside(url) }));
    }
    if service.is_failed() {
        let ready = service.ready_condition()?;
        return Some(Said::Failed(format!("{}: {}", ready.reason, ready.message)));
    }
    None
}

fn ready(key: &Key, reach: &Reach, gateway: SocketAddr) -> String {
    match reach {
        Reach::Inside(url) => format!("service {key} is ready at {url}, for other services"),
        Reach::Outside(url) => {
            let (_, host) = url.split_once("://").unwrap_or(("", url));
            let host = host.split([':', '/']).next().unwrap_or_default();
            format!(
                "service {key} is ready at {url}\n  (where {host} does not resolve: curl -H 'Host: {host}' \
                 http://{gateway})"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_reaches_a_service_is_told_how() {
        let service = |url: &str| {
            let service: Service = serde_json::from_value(json!({
                "metadata": {"name": "a", "namespace": "b", "generation": 1},
                "spec": {"template": {"spec": {"containers": [{}]}}},
                "status": {
                    "observedGeneration": 1, "url": url, "address": {"url": "http://a.b.svc.cluster.local"},
                    "conditions": [{"type": "Ready", "status": "True"}]
                }
            }))
            .unwrap();
            let Some(Said::Ready(reach)) = state(&service) else { panic!("{service:?}") };
            ready(&Key::of(&service), &reach, ([127, 0, 0, 1], 80).into())
        };
        assert_eq!(
            service("https://a.example.com"),
            "service b/a is ready at https://a.example.com\n  (where a.example.com does not resolve: \
             curl -H 'Host: a.example.com' http://127.0.0.1:80)"
        );
        assert_eq!(
            service("http://a.b.svc.cluster.local"),
            "service b/a is ready at http://a.b.svc.cluster.local, for other services"
        );
    }
}
