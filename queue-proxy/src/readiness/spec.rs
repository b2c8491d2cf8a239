//! Readiness probes as the controller writes them: Kubernetes' `Probe` as JSON, one or a list.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

/// One readiness probe.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// What to try.
    pub action: Action,
    /// Seconds between kubelet's probes; 0: as fast as possible until it succeeds.
    pub period_seconds: u32,
    /// Seconds an attempt may take; at least 1.
    pub timeout_seconds: u32,
    /// Successes in a row that make ready; at least 1.
    pub success_threshold: u32,
    /// Failures in a row that make a ready pod unready; at least 1.
    pub failure_threshold: u32,
}

/// What a probe tries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// GET, ready on 200–399.
    Http {
        /// Empty: the app's host.
        host: String,
        /// Port of the app.
        port: u16,
        /// With query, with a leading slash.
        path: String,
        /// `HTTP` or `HTTPS`.
        https: bool,
        /// Added to the request.
        headers: Vec<(String, String)>,
    },
    /// A connection, ready when it opens.
    Tcp {
        /// Empty: the app's host.
        host: String,
        /// Port of the app.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check`, ready on SERVING.
    Grpc {
        /// Port of the app.
        port: u16,
        /// Service to ask for; may be empty.
        service: String,
    },
    /// Cannot be run from here: never ready.
    Exec,
    /// The probe says nothing: never ready.
    None,
}

impl Probe {
    /// Whether the probe asks to be tried as fast as possible.
    #[must_use]
    pub fn is_aggressive(&self) -> bool {
        self.period_seconds == 0
    }

    /// How long an attempt may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.max(1).into())
    }

    /// How often a ready pod is looked at: kubelet's default is 10 s.
    #[must_use]
    pub fn period(&self) -> Duration {
        Duration::from_secs(if self.period_seconds == 0 { 10 } else { self.period_seconds.into() })
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Document {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    exec: Option<Value>,
    period_seconds: i64,
    timeout_seconds: i64,
    success_threshold: i64,
    failure_threshold: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    #[serde(default)]
    host: String,
    port: Port,
    #[serde(default)]
    path: String,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Debug, Deserialize)]
struct Header {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Debug, Deserialize)]
struct TcpSocket {
    #[serde(default)]
    host: String,
    port: Port,
}

#[derive(Debug, Deserialize)]
struct Grpc {
    port: Port,
    service: Option<String>,
}

/// A port is written as a number or as a text.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Port {
    Number(u16),
    Text(String),
}

impl Port {
    fn number(self) -> Result<u16, String> {
        match self {
            Self::Number(port) => Ok(port),
            Self::Text(text) => text.parse().map_err(|_| format!("port {text:?}: not a number")),
        }
    }
}

/// Reads `SERVING_READINESS_PROBE`. Empty is no probe; `several`: a list is expected. `null` elements are no probes.
///
/// # Errors
/// The text is not such JSON.
pub fn decode(json: &str, several: bool) -> Result<Vec<Probe>, String> {
    if json.is_empty() {
        return Ok(Vec::new());
    }
    let value: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let elements = match value {
        Value::Array(elements) if several => elements,
        one if !several => vec![one],
        _ => return Err("expected a list of probes".to_owned()),
    };
    let probes = elements.into_iter().filter(|element| !element.is_null());
    probes
        .map(|element| {
            // A list would do for a struct too.
            if !element.is_object() {
                return Err("expected a probe".to_owned());
            }
            serde_json::from_value::<Document>(element).map_err(|error| error.to_string())?.probe()
        })
        .collect()
}

impl Document {
    fn probe(self) -> Result<Probe, String> {
        let action = match (self.http_get, self.tcp_socket, self.grpc, self.exec) {
            (Some(get), ..) => Action::Http {
                host: get.host,
                port: get.port.number()?,
                path: format!("/{}", get.path.strip_prefix('/').unwrap_or(&get.path)),
                https: get.scheme.eq_ignore_ascii_case("https"),
                headers: get.http_headers.into_iter().map(|header| (header.name, header.value)).collect(),
            },
            (None, Some(socket), ..) => Action::Tcp { host: socket.host, port: socket.port.number()? },
            (None, None, Some(grpc), _) => {
                Action::Grpc { port: grpc.port.number()?, service: grpc.service.unwrap_or_default() }
            }
            (None, None, None, Some(_)) => Action::Exec,
            (None, None, None, None) => Action::None,
        };
        let at_least = |least: u32, given: i64| u32::try_from(given).unwrap_or(0).max(least);
        Ok(Probe {
            action,
            period_seconds: at_least(0, self.period_seconds),
            timeout_seconds: at_least(1, self.timeout_seconds),
            success_threshold: at_least(1, self.success_threshold),
            failure_threshold: if self.failure_threshold > 0 {
                at_least(1, self.failure_threshold)
            } else {
                3
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_probe() {
        let probes = decode(
            r#"{"httpGet":{"path":"health?x=1","port":"8080","host":"127.0.0.1","scheme":"HTTP","httpHeaders":[{"name":"A","value":"b"}]},"periodSeconds":3,"timeoutSeconds":2}"#,
            false,
        )
        .unwrap();
        assert_eq!(
            probes,
            [Probe {
                action: Action::Http {
                    host: "127.0.0.1".to_owned(),
                    port: 8080,
                    path: "/health?x=1".to_owned(),
                    https: false,
                    headers: vec![("A".to_owned(), "b".to_owned())],
                },
                period_seconds: 3,
                timeout_seconds: 2,
                success_threshold: 1,
                failure_threshold: 3,
            }]
        );
        assert!(!probes[0].is_aggressive());
    }

    #[test]
    fn every_type_is_told() {
        let actions: Vec<_> = decode(
            r#"[{"tcpSocket":{"port":1}},{"grpc":{"port":2,"service":null}},{"exec":{"command":["x"]}},{},null]"#,
            true,
        )
        .unwrap()
        .into_iter()
        .map(|probe| probe.action)
        .collect();
        assert_eq!(
            actions,
            [
                Action::Tcp { host: String::new(), port: 1 },
                Action::Grpc { port: 2, service: String::new() },
                Action::Exec,
                Action::None,
            ]
        );
    }

    #[test]
    fn form_follows_the_flag() {
        assert_eq!(decode("", true), Ok(Vec::new()));
        assert_eq!(decode("null", false), Ok(Vec::new()));
        assert!(decode("{}", true).is_err());
        assert!(decode("[]", false).is_err());
        assert!(decode(r#"{"tcpSocket":{"port":"http"}}"#, false).is_err());
        assert!(decode(r#"{"tcpSocket":{"port":70000}}"#, false).is_err());
    }

    fn json() -> impl Strategy<Value = String> {
        let known = prop_oneof![
            Just("httpGet"),
            Just("tcpSocket"),
            Just("grpc"),
            Just("exec"),
            Just("port"),
            Just("host"),
            Just("path"),
            Just("scheme"),
            Just("httpHeaders"),
            Just("name"),
            Just("service"),
            Just("periodSeconds"),
            Just("timeoutSeconds"),
            Just("successThreshold"),
            Just("failureThreshold"),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            (0..70_000u32).prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
            "-?[0-9]{1,6}".prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(known.clone().prop_map(str::to_owned), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        prop_oneof![3 => value.prop_map(|value| value.to_string()), 1 => ".*"]
    }

    proptest! {
        #[test]
        fn whatever_is_a_probe_can_be_tried(json in json(), several in any::<bool>()) {
            for probe in decode(&json, several).unwrap_or_default() {
                prop_assert!(probe.timeout_seconds >= 1 && probe.success_threshold >= 1);
                prop_assert!(probe.failure_threshold >= 1 && probe.period() >= Duration::from_secs(1));
                let _ = tokio::time::Instant::now() + probe.timeout();
                if let Action::Http { path, .. } = probe.action {
                    prop_assert!(path.starts_with('/'));
                }
            }
        }

        #[test]
        fn a_list_is_read_as_its_elements(values in prop::collection::vec(json(), 0..4)) {
            let valid: Vec<_> = values.iter().filter_map(|json| decode(json, false).ok()).collect();
            if valid.len() == values.len() && values.iter().all(|json| !json.is_empty()) {
                let list = format!("[{}]", values.join(","));
                prop_assert_eq!(decode(&list, true), Ok(valid.concat()));
            }
        }
    }

    #[test]
    fn depth_has_a_limit() {
        for open in ["[", r#"{"httpGet":"#] {
            assert!(decode(&open.repeat(100_000), true).is_err());
            assert!(decode(&open.repeat(100_000), false).is_err());
        }
    }
}
