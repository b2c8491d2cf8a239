//! Waiting, at start, for the control plane to have caught up with what is declared.

use std::collections::HashSet;
use std::time::Duration;

use ember_api::networking::v1alpha1::Ingress;
use ember_api::serving::v1::Route;
use ember_api::status::Conditioned;
use ember_reconcile::cache::Key;
use kube::api::ListParams;
use kube::{Api, Client};

/// A Route that is not settled by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Waits until every Route has its Ingress, or has failed; no longer than three seconds.
pub(crate) async fn routes(client: &Client) {
    let waiting = async {
        while !all_routes_settled(client).await.unwrap_or(false) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        tracing::warn!("not every Route has its Ingress yet; the gateway opens anyway");
    }
}

async fn all_routes_settled(client: &Client) -> Result<bool, kube::Error> {
    let routes = Api::<Route>::all(client.clone()).list(&ListParams::default()).await?;
    if routes.items.is_empty() {
        return Ok(true);
    }
    let ingresses = Api::<Ingress>::all(client.clone()).list(&ListParams::default()).await?;
    let made: HashSet<Key> = ingresses.iter().filter(|i| !i.spec.rules.is_empty()).map(Key::of).collect();
    Ok(routes.iter().all(|route| {
        route.is_failed() || route.metadata.deletion_timestamp.is_some() || made.contains(&Key::of(route))
    }))
}
