//! `/wait-for-drain`: what the other containers' preStop hooks call, so that the app outlives its requests.

use std::sync::Arc;
use std::time::Duration;

use ember_dataplane::body::Body;
use ember_dataplane::drain::Quiet;
use ember_dataplane::error::{http_error, status};
use ember_dataplane::server::{Conn, Handler};
use http::{Request, Response, StatusCode};
use tokio_util::sync::CancellationToken;

/// The admin port's handler.
pub(crate) struct Admin {
    pub(crate) quiet: Quiet,
    /// SIGTERM.
    pub(crate) shutdown: CancellationToken,
    /// Traffic has ceased and nothing is in flight.
    pub(crate) drained: CancellationToken,
    /// How long SIGTERM may follow the hook.
    pub(crate) reset_after: Duration,
}

impl Handler for Admin {
    async fn handle(&self, request: Request<Body>, _: &Arc<Conn>) -> Response<Body> {
        if request.uri().path() != "/wait-for-drain" {
            return http_error(StatusCode::NOT_FOUND, "404 page not found");
        }
        tracing::info!("attached wait-for-drain from {}", request.method());
        self.quiet.begin();
        if tokio::time::timeout(self.reset_after, self.shutdown.cancelled()).await.is_err() {
            // Only the app's container is being restarted.
            self.quiet.reset();
        } else {
            self.drained.cancelled().await;
        }
        status(StatusCode::OK)
    }
}
