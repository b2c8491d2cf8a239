//! Pods' queue-proxies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A pod's queue-proxy, Ember's: answers probes, and requests with its name. Requests for `/hold` wait for a permit, those for
/// `/takes/N` take N milliseconds.
pub struct Pod {
    pub name: &'static str,
    pub addr: SocketAddr,
    pub seen: Mutex<Vec<(String, HeaderMap)>>,
    /// The status probes are answered with; 200 unless said.
    pub probe_status: AtomicU16,
    pub probes: Mutex<Vec<HeaderMap>>,
    /// When each `/work` began and ended.
    pub work: Mutex<Vec<(Instant, Instant)>>,
    /// Whether its app listens; requests are handed back while it does not.
    pub app_away: AtomicBool,
    /// The patience it asks for, in milliseconds.
    pub patience: AtomicUsize,
    pub permits: Semaphore,
    pub in_flight: AtomicUsize,
    pub most: AtomicUsize,
    pub killed: CancellationToken,
    pub tasks: TaskTracker,
}

impl Pod {
    pub async fn start(name: &'static str) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pod = Arc::new(Self {
            name,
            addr: listener.local_addr().unwrap(),
            seen: Mutex::default(),
            probe_status: AtomicU16::new(200),
            probes: Mutex::default(),
            work: Mutex::default(),
            app_away: AtomicBool::new(false),
            patience: AtomicUsize::new(0),
            permits: Semaphore::new(0),
            in_flight: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            killed: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        pod.tasks.spawn(Arc::clone(&pod).serve(listener));
        pod
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let stream = tokio::select! {
                () = self.killed.cancelled() => return,
                accepted = listener.accept() => accepted.unwrap().0,
            };
            let pod = Arc::clone(&self);
            self.tasks.spawn(async move {
                let killed = pod.killed.clone();
                let service = service_fn(move |request| {
                    let pod = Arc::clone(&pod);
                    async move { Ok::<_, std::convert::Infallible>(pod.answer(request).await) }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    () = killed.cancelled() => {}
                    _ = serving => {}
                }
            });
        }
    }

    pub async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.headers().get("k-network-probe").is_some_and(|probe| probe == "queue") {
            assert_eq!(request.headers()["user-agent"], "Knative-Activator-Probe");
            self.probes.lock().push(request.headers().clone());
            let status = StatusCode::from_u16(self.probe_status.load(Ordering::SeqCst)).unwrap();
            let body = if status == StatusCode::OK { "queue" } else { "" };
            return Response::builder().status(status).body(Full::from(body)).unwrap();
        }
        self.seen.lock().push((request.uri().path().to_owned(), request.headers().clone()));
        if self.app_away.load(Ordering::SeqCst) && request.headers().contains_key("ember-returnable") {
            let patience = self.patience.load(Ordering::SeqCst);
            let refusal = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE);
            return refusal.header("ember-app-away", patience).body(Full::default()).unwrap();
        }
        let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let began = Instant::now();
        let hold = request.uri().path() == "/hold";
        let work = request.uri().path().strip_prefix("/takes/").map(|millis| millis.parse().unwrap());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        if hold {
            self.permits.acquire().await.unwrap().forget();
        }
        if let Some(millis) = work {
            tokio::time::sleep_until(began + Duration::from_millis(millis)).await;
            self.work.lock().push((began, Instant::now()));
        }
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        Response::new(Full::from(format!("{}{}", self.name, String::from_utf8_lossy(&body))))
    }

    /// From now on connections are refused, and those there are have ended.
    pub async fn kill(&self) {
        self.killed.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub fn paths(&self) -> Vec<String> {
        self.seen.lock().iter().map(|(path, _)| path.clone()).collect()
    }
}
