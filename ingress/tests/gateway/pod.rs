//! Pods and the activator, as small servers.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Answers every request with its name.
pub(crate) struct Pod {
    name: &'static str,
    pub(crate) addr: SocketAddr,
    pub(crate) seen: Mutex<Vec<HeaderMap>>,
    stopped: CancellationToken,
    tasks: TaskTracker,
}

impl Pod {
    pub(crate) async fn start(name: &'static str) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pod = Arc::new(Self {
            name,
            addr: listener.local_addr().unwrap(),
            seen: Mutex::default(),
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        pod.tasks.spawn(Arc::clone(&pod).serve(listener));
        pod
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let stream = tokio::select! {
                () = self.stopped.cancelled() => return,
                accepted = listener.accept() => accepted.unwrap().0,
            };
            let pod = Arc::clone(&self);
            self.tasks.spawn(async move {
                let stopped = pod.stopped.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    pod.seen.lock().push(request.headers().clone());
                    let name = pod.name;
                    async move { Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::from(name))) }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let mut serving = std::pin::pin!(serving);
                tokio::select! {
                    () = stopped.cancelled() => {
                        serving.as_mut().graceful_shutdown();
                        let _ = serving.await;
                    }
                    _ = serving.as_mut() => {}
                }
            });
        }
    }

    /// Ends like a pod: what is under way is answered, then connections are refused.
    pub(crate) async fn stop(&self) {
        self.stopped.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub(crate) fn last(&self) -> HeaderMap {
        self.seen.lock().last().unwrap().clone()
    }
}

/// A pod that speaks HTTP/2 only and answers every request with its protocol and its authority.
pub(crate) async fn h2c_pod() -> Arc<Pod> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (seen, stopped, tasks) = (Mutex::default(), CancellationToken::new(), TaskTracker::new());
    let pod = Arc::new(Pod { name: "h2c", addr, seen, stopped, tasks });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let text = format!("{:?} {}", request.version(), request.uri());
                Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::from(text)))
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    pod
}
