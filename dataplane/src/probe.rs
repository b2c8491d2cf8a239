//! Knative's own probes: telling them from requests, answering them, sending them.

use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use tokio::time::Instant;

use crate::address::Address;
use crate::body::Body;
use crate::error::http_error;
use crate::header::{
    KUBELET_PROBE, NETWORK_HASH, NETWORK_PROBE, USER_AGENT_ACTIVATOR, USER_AGENT_AUTOSCALER,
    USER_AGENT_KUBE_PROBE,
};
use crate::proxy::{Outbound, Proxy};

/// Probe of a queue-proxy; also the body of its answer.
pub const QUEUE: &str = "queue";
/// Probe of an activator; also the body of its answer.
pub const ACTIVATOR: &str = "activator";
/// Probe of whoever comes first on the path; the hash is echoed.
pub const PROBE: &str = "probe";

/// Longest answer to a probe that is read.
const MAX_ANSWER: usize = 64 << 10;

fn user_agent(headers: &HeaderMap) -> &[u8] {
    headers.get(USER_AGENT).map_or(b"", HeaderValue::as_bytes)
}

fn is_set(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get(name).is_some_and(|value| !value.is_empty())
}

/// The value of `K-Network-Probe`; empty if absent.
#[must_use]
pub fn network_probe(headers: &HeaderMap) -> &[u8] {
    headers.get(NETWORK_PROBE).map_or(b"", HeaderValue::as_bytes)
}

/// Whether the User-Agent is the kubelet's.
#[must_use]
pub fn is_kubelet_user_agent(headers: &HeaderMap) -> bool {
    user_agent(headers).starts_with(USER_AGENT_KUBE_PROBE.as_bytes())
}

/// Whether this is a kubelet probe: by User-Agent, or by `K-Kubelet-Probe`.
#[must_use]
pub fn is_kubelet_probe(headers: &HeaderMap) -> bool {
    is_kubelet_user_agent(headers) || is_set(headers, &KUBELET_PROBE)
}

/// Whether this is a probe of any kind: a kubelet probe, or one with `K-Network-Probe`.
#[must_use]
pub fn is_probe(headers: &HeaderMap) -> bool {
    is_kubelet_probe(headers) || is_set(headers, &NETWORK_PROBE)
}

/// Whether the User-Agent is one queue-proxy answers itself: kubelet, activator, autoscaler.
#[must_use]
pub fn is_health_check(headers: &HeaderMap) -> bool {
    let agent = user_agent(headers);
    [USER_AGENT_KUBE_PROBE, USER_AGENT_ACTIVATOR, USER_AGENT_AUTOSCALER]
        .iter()
        .any(|prefix| agent.starts_with(prefix.as_bytes()))
}

/// The answer to `K-Network-Probe: probe`: the hash comes back.
#[must_use]
pub fn echo(headers: &HeaderMap) -> Response<Body> {
    match headers.get(NETWORK_HASH).filter(|hash| !hash.is_empty()) {
        Some(hash) => {
            let mut response = Response::new(Body::empty());
            response.headers_mut().insert(NETWORK_HASH, hash.clone());
            response
        }
        None => http_error(
            StatusCode::BAD_REQUEST,
            r#"a probe request must contain a non-empty "K-Network-Hash" header"#,
        ),
    }
}

/// 200 with the name of the component that was probed.
#[must_use]
pub fn success(name: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::full(name));
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Somebody answered.
    Answer(StatusCode, Bytes),
    /// Nobody did, in words.
    Nothing(String),
}

impl Found {
    /// Whether a queue-proxy said that its pod is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Answer(StatusCode::OK, body) if body == QUEUE)
    }

    /// Whether the answer shows that no mesh stands between: a mesh answers 502 or 503 in the pod's stead.
    #[must_use]
    pub fn is_not_mesh(&self) -> bool {
        matches!(self, Self::Answer(status, _)
            if *status != StatusCode::BAD_GATEWAY && *status != StatusCode::SERVICE_UNAVAILABLE)
    }
}

/// One GET of `/healthz` at `address` with the given probe and User-Agent, over the pool that requests use, so that
/// the first request finds a connection. `headers` are added. Cancel safe: dropping it aborts the probe.
pub async fn get(
    proxy: &Proxy,
    address: &Address,
    probe: &'static str,
    agent: &'static str,
    headers: &[(HeaderName, HeaderValue)],
    timeout: Duration,
) -> Found {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = http::Uri::from_static("/healthz");
    let map = request.headers_mut();
    map.insert(NETWORK_PROBE, HeaderValue::from_static(probe));
    map.insert(USER_AGENT, HeaderValue::from_static(agent));
    for (name, value) in headers {
        map.insert(name, value.clone());
    }
    if !map.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&address.to_string())
    {
        map.insert(HOST, host);
    }
    let deadline = Instant::now() + timeout;
    let exchange = async {
        let response = proxy
            .forward(Outbound::direct(request), address, Some(deadline))
            .await
            .map_err(|failure| failure.error().to_string())?;
        let status = response.status();
        let body = response.into_body().collect(MAX_ANSWER).await.map_err(|error| error.to_string())?;
        Ok(Found::Answer(status, body))
    };
    match tokio::time::timeout_at(deadline, exchange).await {
        Ok(found) => found.unwrap_or_else(Found::Nothing),
        Err(_) => Found::Nothing(format!("no answer after {timeout:?}")),
    }
}

/// The activator's probe of a queue-proxy.
pub async fn queue(
    proxy: &Proxy,
    address: &Address,
    headers: &[(HeaderName, HeaderValue)],
    timeout: Duration,
) -> Found {
    get(proxy, address, QUEUE, USER_AGENT_ACTIVATOR, headers, timeout).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_three_predicates_differ() {
        let kubelet = headers(&[(USER_AGENT, "kube-probe/1.34")]);
        let marked = headers(&[(KUBELET_PROBE, "x")]);
        let network = headers(&[(NETWORK_PROBE, "queue")]);
        let empty = headers(&[(NETWORK_PROBE, ""), (KUBELET_PROBE, "")]);
        let table = |predicate: fn(&HeaderMap) -> bool| [&kubelet, &marked, &network, &empty].map(predicate);
        assert_eq!(table(is_kubelet_user_agent), [true, false, false, false]);
        assert_eq!(table(is_kubelet_probe), [true, true, false, false]);
        assert_eq!(table(is_probe), [true, true, true, false]);
        assert_eq!(table(is_health_check), [true, false, false, false]);
        assert!(is_health_check(&headers(&[(USER_AGENT, "Knative-Activator-Probe")])));
        assert!(!is_health_check(&headers(&[(USER_AGENT, "Knative-Ingress-Probe")])));
    }

    #[test]
    fn the_hash_is_echoed_or_asked_for() {
        let echoed = echo(&headers(&[(NETWORK_HASH, "abc")]));
        assert_eq!(
            (echoed.status(), &echoed.headers()[NETWORK_HASH]),
            (StatusCode::OK, &"abc".parse().unwrap())
        );
        assert_eq!(echo(&HeaderMap::new()).status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_mesh_answers_for_pods_that_are_not_there() {
        let answer = |status: u16, body: &'static str| {
            Found::Answer(StatusCode::from_u16(status).unwrap(), Bytes::from_static(body.as_bytes()))
        };
        assert!(answer(200, "queue").is_ready());
        assert!(!answer(200, "queue\n").is_ready());
        assert!(!answer(503, "queue").is_ready());
        assert!(answer(404, "").is_not_mesh());
        assert!(!answer(503, "").is_not_mesh());
        assert!(!Found::Nothing(String::new()).is_not_mesh());
    }

    proptest! {
        #[test]
        fn any_headers_make_a_probe_or_none_and_the_hash_comes_back_unchanged(
            probe in prop::collection::vec(any::<u8>(), 0..40),
            hash in prop::collection::vec(any::<u8>(), 0..200),
            agent in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in [(NETWORK_PROBE, &probe), (NETWORK_HASH, &hash), (USER_AGENT, &agent)] {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    headers.insert(name, value);
                }
            }
            let answer = echo(&headers);
            match headers.get(NETWORK_HASH).filter(|hash| !hash.is_empty()) {
                Some(hash) => {
                    prop_assert_eq!(answer.status(), StatusCode::OK);
                    prop_assert_eq!(answer.headers().get(NETWORK_HASH), Some(hash));
                    prop_assert_eq!(answer.headers().len(), 1);
                }
                None => prop_assert_eq!(answer.status(), StatusCode::BAD_REQUEST),
            }
            prop_assert!(!is_kubelet_probe(&headers) || is_probe(&headers));
            prop_assert!(!is_kubelet_user_agent(&headers) || is_health_check(&headers));
            prop_assert_eq!(is_probe(&headers), is_kubelet_probe(&headers) || !network_probe(&headers).is_empty());
        }
    }
}
