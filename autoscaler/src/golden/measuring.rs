//! Windows, samples, scrapes, wire messages.

use std::sync::atomic::{AtomicUsize, Ordering};

use prost::Message;
use serde::Deserialize;

use super::{Float, at, check, differ, seconds};
use crate::collection::contribution;
use crate::pods::{PodState, ReadyPod};
use crate::sample_size::sample_size;
use crate::scrape_client::decode_report;
use crate::scraper::{Fetch, FetchError, ScrapeError, Scraper, Target, extrapolate};
use crate::time::Time;
use crate::window::{Algorithm, MaxWindow, Window, round_to_6_digits, smoothing_coefficient};
use ember_api::configmaps::network::MeshCompatibilityMode as MeshCompatibility;
use ember_dataplane::stat::{Stat, WireStatMessage, WireStatMessages};

#[derive(Debug, Deserialize)]
struct WindowCase {
    algorithm: String,
    window_s: Float,
    granularity_s: Float,
    ops: Vec<WindowOp>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum WindowOp {
    Record { at_ms: i64, value: Float },
    Average { at_ms: i64, want: Float },
    IsEmpty { at_ms: i64, want: bool },
    Resize { at_ms: i64, window_s: Float },
}

#[test]
fn golden_window_average() {
    check("window_average", |case: &WindowCase| {
        let algorithm =
            if case.algorithm == "linear" { Algorithm::Linear } else { Algorithm::WeightedExponential };
        let mut window = Window::new(algorithm, seconds(case.window_s), seconds(case.granularity_s));
        let mut wrong = Vec::new();
        for (number, op) in case.ops.iter().enumerate() {
            match *op {
                WindowOp::Record { at_ms, value } => window.record(at(at_ms), value.0),
                WindowOp::Average { at_ms, want } => {
                    let got = window.average(at(at_ms));
                    let same =
                        if algorithm == Algorithm::Linear { want.is_exactly(got) } else { want.is(got) };
                    if !same {
                        wrong.push(format!("op {number}: want {want:?}, got {got}"));
                    }
                }
                WindowOp::IsEmpty { at_ms, want } => {
                    wrong.extend(differ(&format!("op {number}"), &want, &window.is_empty(at(at_ms))));
                }
                WindowOp::Resize { at_ms, window_s } => window.resize(at(at_ms), seconds(window_s)),
            }
        }
        wrong
    });
}

#[test]
fn golden_smoothing_coefficient() {
    #[derive(Debug, Deserialize)]
    struct Case {
        buckets: usize,
        want: Float,
    }
    check("smoothing_coefficient", |case: &Case| {
        let got = smoothing_coefficient(case.buckets);
        if case.want.is(got) { vec![] } else { vec![format!("{case:?}, got {got}")] }
    });
}

#[test]
fn golden_round6() {
    #[derive(Debug, Deserialize)]
    struct Case {
        #[serde(rename = "in")]
        value: Float,
        want: Float,
    }
    check("round6", |case: &Case| {
        let got = round_to_6_digits(case.value.0);
        let same = case.want.0.to_bits() == got.to_bits() || (case.want.0.is_nan() && got.is_nan());
        if same { vec![] } else { vec![format!("{case:?}, got {got}")] }
    });
}

#[test]
fn golden_max_window() {
    #[derive(Debug, Deserialize)]
    struct Step {
        at_ms: i64,
        value: i32,
        want: i32,
    }
    #[derive(Debug, Deserialize)]
    struct Case {
        duration_s: Float,
        granularity_s: Float,
        steps: Vec<Step>,
    }
    check("max_window", |case: &Case| {
        let mut window = MaxWindow::new(seconds(case.duration_s), seconds(case.granularity_s));
        case.steps
            .iter()
            .filter_map(|step| {
                differ(&format!("at {}", step.at_ms), &step.want, &window.record(at(step.at_ms), step.value))
            })
            .collect()
    });
}

#[test]
fn golden_sample_size() {
    #[derive(Debug, Deserialize)]
    struct Case {
        population: i64,
        want: usize,
    }
    check("sample_size", |case: &Case| {
        let population = usize::try_from(case.population).unwrap_or(0);
        differ("sample", &case.want, &sample_size(population)).into_iter().collect()
    });
}

#[derive(Debug, Clone, Deserialize)]
struct StatCase {
    #[serde(default)]
    pod_name: String,
    #[serde(default = "zero")]
    average_concurrent_requests: Float,
    #[serde(default = "zero")]
    average_proxied_concurrent_requests: Float,
    #[serde(default = "zero")]
    request_count: Float,
    #[serde(default = "zero")]
    proxied_request_count: Float,
    #[serde(default = "zero")]
    process_uptime: Float,
    #[serde(default)]
    timestamp: i64,
}

fn zero() -> Float {
    Float(0.0)
}

impl From<&StatCase> for Stat {
    fn from(case: &StatCase) -> Self {
        Self {
            pod_name: case.pod_name.clone(),
            average_concurrent_requests: case.average_concurrent_requests.0,
            average_proxied_concurrent_requests: case.average_proxied_concurrent_requests.0,
            request_count: case.request_count.0,
            proxied_request_count: case.proxied_request_count.0,
            process_uptime: case.process_uptime.0,
            timestamp: case.timestamp,
        }
    }
}

fn stat_differs(want: &StatCase, got: &Stat) -> Vec<String> {
    let same = want.pod_name == got.pod_name
        && want.timestamp == got.timestamp
        && want.average_concurrent_requests.is(got.average_concurrent_requests)
        && want.average_proxied_concurrent_requests.is(got.average_proxied_concurrent_requests)
        && want.request_count.is(got.request_count)
        && want.proxied_request_count.is(got.proxied_request_count)
        && want.process_uptime.is(got.process_uptime);
    if same { vec![] } else { vec![format!("want {want:?}, got {got:?}")] }
}

#[test]
fn golden_scrape_extrapolation() {
    #[derive(Debug, Deserialize)]
    struct Case {
        sampled_stats: Vec<StatCase>,
        sample: usize,
        total: usize,
        want: StatCase,
    }
    check("scrape_extrapolation", |case: &Case| {
        let stats: Vec<Stat> = case.sampled_stats.iter().map(Stat::from).collect();
        stat_differs(&case.want, &extrapolate(&stats, case.sample, case.total))
    });
}

#[derive(Debug, Deserialize)]
struct ScrapePod {
    ip: String,
    age_s: Float,
    phase: String,
    ready_condition: String,
    deleting: bool,
    response: Option<Answer>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    kind: String,
    stat: Option<StatCase>,
}

#[derive(Debug, Deserialize)]
struct ScrapeCase {
    name: String,
    mesh_mode: String,
    enable_mesh_pod_addressability: bool,
    window_s: Float,
    pods: Option<Vec<ScrapePod>>,
    service_responses: Option<Vec<Answer>>,
    want_error: String,
    want_stat: Option<StatCase>,
    want_pod_requests: usize,
    want_service_requests: usize,
    want_pods_addressable_after: bool,
}

/// Answers as the case says.
struct Scripted<'a> {
    case: &'a ScrapeCase,
    pod_requests: AtomicUsize,
    service_requests: AtomicUsize,
}

fn answer(answer: &Answer) -> Result<Stat, FetchError> {
    match answer.kind.as_str() {
        "ok" => Ok(answer.stat.as_ref().map(Stat::from).unwrap_or_default()),
        "mesh_error" => Err(FetchError { message: "mesh".into(), mesh: true }),
        _ => Err(FetchError { message: "plain".into(), mesh: false }),
    }
}

impl Fetch for Scripted<'_> {
    async fn fetch(&self, target: Target<'_>) -> Result<Stat, FetchError> {
        match target {
            Target::Pod { ip, through_mesh } => {
                assert_eq!(through_mesh, self.case.enable_mesh_pod_addressability);
                self.pod_requests.fetch_add(1, Ordering::Relaxed);
                let pod = self.case.pods.iter().flatten().find(|pod| pod.ip == ip).expect("a known pod");
                answer(pod.response.as_ref().expect("an answer for every pod that is asked"))
            }
            Target::Service => {
                let number = self.service_requests.fetch_add(1, Ordering::Relaxed);
                let answers = self.case.service_responses.as_deref().unwrap_or_default();
                answer(answers.get(number).or(answers.last()).expect("an answer of the Service"))
            }
        }
    }
}

fn scrape_pods(case: &ScrapeCase, now: Time) -> Vec<ReadyPod> {
    let pods = case.pods.iter().flatten();
    pods.filter_map(|pod| {
        let started = Time::from_millis(now.as_millis() - (pod.age_s.0 * 1000.0) as i64);
        let object = serde_json::json!({
            "metadata": {
                "name": pod.ip,
                "deletionTimestamp": if pod.deleting { "2000-01-01T00:00:00Z".into() } else { serde_json::Value::Null },
            },
            "status": {"phase": pod.phase, "conditions": [{"type": "Ready", "status": pod.ready_condition}]},
        });
        let object = serde_json::from_value(object).unwrap();
        (PodState::of(&object) == PodState::Ready).then(|| ReadyPod { ip: pod.ip.clone(), started })
    })
    .collect()
}

#[test]
fn golden_scrape() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    check("scrape", |case: &ScrapeCase| {
        let mesh = match case.mesh_mode.as_str() {
            "enabled" => MeshCompatibility::Enabled,
            "disabled" => MeshCompatibility::Disabled,
            _ => MeshCompatibility::Auto,
        };
        let scraper = Scraper::new(mesh, case.enable_mesh_pod_addressability);
        if case.name.starts_with("previously-not-addressable") {
            scraper.believe_not_addressable();
        }
        let fetch =
            Scripted { case, pod_requests: AtomicUsize::new(0), service_requests: AtomicUsize::new(0) };
        let now = at(10_000_000);
        let result =
            runtime.block_on(scraper.scrape(&fetch, scrape_pods(case, now), now, seconds(case.window_s)));
        let error = match &result {
            Ok(_) => String::new(),
            Err(ScrapeError::PodsExhausted) => "pods_exhausted".into(),
            Err(ScrapeError::DirectScrapingNotAvailable) => "direct_scraping_not_available".into(),
            Err(other) => format!("other: {other}"),
        };
        let mut wrong: Vec<String> = [
            differ("error", &case.want_error, &error),
            differ("pod requests", &case.want_pod_requests, &fetch.pod_requests.into_inner()),
            differ("service requests", &case.want_service_requests, &fetch.service_requests.into_inner()),
            differ("addressable", &case.want_pods_addressable_after, &scraper.pods_addressable()),
        ]
        .into_iter()
        .flatten()
        .collect();
        match (&case.want_stat, result.ok().flatten()) {
            (Some(want), Some(got)) => wrong.extend(stat_differs(want, &got)),
            (None, None) => {}
            (want, got) => wrong.push(format!("stat: want {want:?}, got {got:?}")),
        }
        wrong
    });
}

#[test]
fn golden_stat_contribution() {
    #[derive(Debug, Deserialize)]
    struct Case {
        stat: StatCase,
        want_concurrency: Float,
        want_rps: Float,
    }
    check("stat_contribution", |case: &Case| {
        let (concurrency, rps) = contribution(&Stat::from(&case.stat));
        if case.want_concurrency.is(concurrency) && case.want_rps.is(rps) {
            vec![]
        } else {
            vec![format!("{case:?}, got {concurrency} {rps}")]
        }
    });
}

#[test]
fn golden_stat() {
    #[derive(Debug, Deserialize)]
    struct Case {
        stat: StatCase,
        hex: String,
    }
    check("stat", |case: &Case| {
        let mut wrong: Vec<_> =
            differ("hex", &case.hex, &hex(&Stat::from(&case.stat).encode_to_vec())).into_iter().collect();
        wrong.extend(stat_differs(&case.stat, &Stat::decode(&*unhex(&case.hex)).unwrap()));
        wrong
    });
}

#[derive(Debug, Deserialize)]
struct WireCase {
    namespace: String,
    name: String,
    stat: Option<StatCase>,
}

impl From<&WireCase> for WireStatMessage {
    fn from(case: &WireCase) -> Self {
        Self {
            namespace: case.namespace.clone(),
            name: case.name.clone(),
            stat: case.stat.as_ref().map(Stat::from),
        }
    }
}

#[test]
fn golden_wire_stat_messages() {
    #[derive(Debug, Deserialize)]
    struct Case {
        messages: Vec<WireCase>,
        hex: String,
    }
    check("wire_stat_messages", |case: &Case| {
        let messages =
            WireStatMessages { messages: case.messages.iter().map(WireStatMessage::from).collect() };
        differ("hex", &case.hex, &hex(&messages.encode_to_vec())).into_iter().collect()
    });
}

#[test]
fn golden_decode() {
    #[derive(Debug, Deserialize)]
    struct Case {
        message_type: String,
        hex: String,
        want_error: String,
        want_stat: Option<StatCase>,
        want_stats: Option<Vec<WireCase>>,
    }
    check("decode", |case: &Case| {
        let bytes = unhex(&case.hex);
        if case.message_type.starts_with("Stat") {
            match (decode_report(&bytes), &case.want_stat) {
                (Ok(got), Some(want)) => stat_differs(want, &got),
                (Err(_), None) if !case.want_error.is_empty() => vec![],
                (got, _) => vec![format!("got {got:?}")],
            }
        } else {
            match WireStatMessages::decode(&*bytes) {
                Err(_) if !case.want_error.is_empty() => vec![],
                Ok(got) if case.want_error.is_empty() => {
                    // Entries without a report are skipped.
                    let got: Vec<_> = got.messages.into_iter().filter(|m| m.stat.is_some()).collect();
                    let want: Vec<_> = case.want_stats.iter().flatten().map(WireStatMessage::from).collect();
                    differ("messages", &want, &got).into_iter().collect()
                }
                got => vec![format!("want {:?}, got {got:?}", case.want_error)],
            }
        }
    });
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}
