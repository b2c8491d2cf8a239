//! Templates, the lines they make, and when a line is written.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use proptest::prelude::*;

use super::record::{Head, Response};
use super::*;

/// What was written, write by write.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<String>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().push(String::from_utf8(bytes.to_vec()).unwrap());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn log(template: &str) -> (Arc<RequestLog>, Written) {
    let written = Written::default();
    let log = RequestLog::new(template, || Output::new(written.clone())).unwrap().unwrap();
    (log, written)
}

fn headers(list: &[(&'static str, &[u8])]) -> HeaderMap {
    list.iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap()))
        .collect()
}

fn head(list: &[(&'static str, &[u8])]) -> Head {
    Head {
        method: Method::GET,
        uri: "/a/b%20c?x=1&x=2+3&y=%zz&'=".parse().unwrap(),
        version: Version::HTTP_11,
        headers: headers(list),
        peer: ([10, 0, 0, 9], 4711).into(),
        content_length: Some(0),
    }
}

fn revision() -> Revision {
    let text = str::to_owned;
    Revision {
        name: text("rev"),
        namespace: text("ns"),
        service: text("svc"),
        configuration: text("cfg"),
        pod_name: text("pod"),
        pod_ip: text("10.0.0.1"),
    }
}

const RESPONSE: Response = Response { code: 200, size: 17, latency: 5.4e-5 };

fn line(template: &str, head: &Head) -> String {
    log(template).0.line(head, RESPONSE, &revision())
}

#[test]
fn the_default_is_one_object_of_json() {
    let plain = head(&[
        ("host", b"shop.example"),
        ("user-agent", b"curl/8 \"x\" <y>&z='"),
        ("referer", b"http://example.com/?a=b"),
        ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ]);
    assert_eq!(
        line(DEFAULT_TEMPLATE, &plain),
        concat!(
            r#"{"httpRequest": {"requestMethod": "GET", "requestUrl": "/a/b%20c?x\u003D1\u0026x\u003D2+3\u0026y\u003D%zz\u0026\'\u003D", "#,
            r#""requestSize": "0", "status": 200, "responseSize": "17", "userAgent": "curl/8 \"x\" \u003Cy\u003E\u0026z\u003D\'", "#,
            r#""remoteIp": "10.0.0.9:4711", "serverIp": "10.0.0.1", "referer": "http://example.com/?a\u003Db", "#,
            r#""latency": "5.4e-05s", "protocol": "HTTP/1.1"}, "traceId": "4bf92f3577b34da6a3ce929d0e0e4736"}"#,
            "\n",
        )
    );
    let unknown_size = Head {
        method: Method::POST,
        uri: "/".parse().unwrap(),
        version: Version::HTTP_2,
        peer: ("::1".parse::<std::net::IpAddr>().unwrap(), 80).into(),
        content_length: None,
        ..head(&[])
    };
    let made = line(DEFAULT_TEMPLATE, &unknown_size);
    let json: serde_json::Value = serde_json::from_str(&made).unwrap();
    let request = &json["httpRequest"];
    assert_eq!(request["requestSize"], "-1");
    assert_eq!((&request["remoteIp"], &request["protocol"]), (&"[::1]:80".into(), &"HTTP/2.0".into()));
    assert_eq!((&request["userAgent"], &json["traceId"]), (&"".into(), &"".into()));
}

#[test]
fn templates_reach_what_upstreams_do() {
    let head = head(&[
        ("host", b"shop.example:80"),
        ("x-many", b"1"),
        ("x-many", b"two"),
        ("x-bytes", b"\xff\xc3\xa9"),
        ("transfer-encoding", b"chunked"),
    ]);
    for (template, expected) in [
        (
            "{{.Request.Host}} {{.Request.Header.Get \"Host\"}}|{{.Request.Header.Get \"x-many\"}}",
            "shop.example:80 |1",
        ),
        ("{{index .Request.Header \"X-Many\"}} {{.Request.Header.Values \"x-many\"}}", "[1 two] [1 two]"),
        ("{{.Request.Header}}", "map[X-Bytes:[\u{fffd}é] X-Many:[1 two]]"),
        ("{{range $k, $v := .Request.Header}}{{$k}}={{len $v}};{{end}}", "X-Bytes=1;X-Many=2;"),
        ("{{.Request.URL.Path}} {{.Request.URL.RawQuery}}", "/a/b c x=1&x=2+3&y=%zz&'="),
        ("{{.Request.URL}} {{.Request.URL.EscapedPath}}", "/a/b%20c?x=1&x=2+3&y=%zz&'= /a/b%20c"),
        (
            "{{.Request.URL.Query.Get \"x\"}} {{index .Request.URL.Query \"x\"}}{{.Request.URL.Query.Get \"y\"}}",
            "1 [1 2 3]",
        ),
        (
            "{{.Request.TransferEncoding}} {{.Request.ProtoMajor}} {{.Request.ProtoAtLeast 1 1}}",
            "[chunked] 1 true",
        ),
        (
            "{{with .Revision}}{{.Name}} {{.Namespace}} {{.Service}} {{.Configuration}} {{.PodName}} {{.PodIP}}{{end}}",
            "rev ns svc cfg pod 10.0.0.1",
        ),
        ("{{printf \"%.3f %d %s\" .Response.Latency .Response.Code .Request.Method}}", "0.000 200 GET"),
        ("{{if ge .Response.Code 400}}bad{{else}}good{{end}} {{.Response.Size}}", "good 17"),
        ("{{html .Request.URL.RawQuery}}", "x=1&amp;x=2+3&amp;y=%zz&amp;&#39;="),
        ("ends\n", "ends"),
    ] {
        assert_eq!(line(template, &head), format!("{expected}\n"), "{template}");
    }
}

#[test]
fn the_trace_is_w3cs_or_else_b3s() {
    let trace = |list: &[(&'static str, &[u8])]| line("{{.TraceID}}", &head(list));
    let b3: (&str, &[u8]) = ("x-b3-traceid", b"b3");
    assert_eq!(trace(&[("traceparent", b"00-abc-def-01"), b3]), "abc\n");
    assert_eq!(trace(&[("traceparent", b"00-abc")]), "abc\n");
    assert_eq!(trace(&[("traceparent", b"invalid"), b3]), "b3\n");
    assert_eq!(trace(&[b3]), "b3\n");
    for parent in [&b"invalid"[..], b"00", b"", b"\xff"] {
        assert_eq!(trace(&[("traceparent", parent)]), "\n");
    }
}

#[test]
fn no_template_is_no_log_and_a_wrong_one_an_error() {
    let none = || -> Output { unreachable!("nothing is to be written") };
    assert!(RequestLog::new("", none).unwrap().is_none());
    for wrong in ["{{", "{{.Request.Method", "{{foo}}", "{{if}}", "{{define \"x\"}}{{end}}"] {
        assert!(RequestLog::new(wrong, none).is_err(), "{wrong}");
    }
}

#[test]
fn a_template_that_does_not_apply_gives_a_fixed_line() {
    for template in
        ["{{.Nope}}", "a {{.Request.Nope}}", "{{index .Request.Header.Nope 0}}", "{{.Request.Header.Get}}"]
    {
        assert_eq!(
            line(template, &head(&[])),
            "Invalid request log template: method: GET, response code: 200, latency: 5.4e-05, \
             url: /a/b%20c?x=1&x=2+3&y=%zz&'=\n",
            "{template}"
        );
    }
}

#[test]
fn a_line_ends_where_the_template_trims_its_end() {
    for template in
        ["{{.Response.Code -}}", "{{.Response.Code -}}\n", "{{.Response.Code}}{{- /* the end */ -}} \n\n"]
    {
        assert_eq!(line(template, &head(&[])), "200\n", "{template}");
    }
}

fn begin(log: &Arc<RequestLog>) -> Record {
    let request = Request::builder().uri("/").header("k-original-host", "x").body(()).unwrap();
    log.begin(&request, &Arc::new(revision()), ([127, 0, 0, 1], 1).into(), None)
}

#[test]
fn a_record_is_written_once_when_it_is_dropped() {
    let (log, written) =
        log("{{.Response.Code}} {{.Response.Size}} {{.Request.Header.Get \"K-Original-Host\"}}");
    // Answered.
    let size = Arc::new(AtomicU64::new(0));
    let mut record = begin(&log);
    record.headers_mut().remove("k-original-host");
    record.answered(StatusCode::NOT_FOUND, Arc::clone(&size));
    size.store(5, std::sync::atomic::Ordering::Relaxed);
    drop(record);
    // Not answered.
    drop(begin(&log));
    // The handler fails.
    let failed = std::panic::catch_unwind(|| {
        let _record = begin(&log);
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(failed.is_err());
    assert!(log.output.flush(Duration::from_secs(30)));
    assert_eq!(*written.0.lock().unwrap(), ["404 5 \n", "499 0 x\n", "500 0 x\n"]);
}

proptest! {
    #[test]
    fn no_template_and_no_request_make_it_fail_or_grow(
        template in "(\\{\\{(- )?(js|html|print|range|with|if|end|index|printf \"%[-+# 0]*[0-9]{0,5}[a-z]\"| |\\.Request|\\.Header|\\.URL|\\.Query|\\.Get|\\.Response|\\.Latency|\"[A-Za-z-]*\"|\\||\\(|\\))*( -)?\\}\\}|\\PC{0,4}){0,8}",
        target in "/[!$-;=?-~]{0,40}",
        value in proptest::collection::vec(prop_oneof![32_u8..127, 128_u8..], 0..60),
        code in 100_u16..600,
        size in any::<u64>(),
        latency in any::<f64>(),
    ) {
        let Ok(uri) = target.parse() else { return Ok(()) };
        let value: &[u8] = &value;
        let head = Head { uri, ..head(&[("user-agent", value), ("referer", value), ("traceparent", value), ("x", value)]) };
        let response = Response { code, size, latency };
        let render = |log: &Arc<RequestLog>| log.line(&head, response, &Revision::default());
        // What is escaped is one line and no quotation mark ends early.
        let made = render(&super::tests::log(DEFAULT_TEMPLATE).0);
        prop_assert!(made.ends_with('\n') && made.matches('\n').count() == 1);
        prop_assert!(made.len() < 100 * 1024);
        if let Ok(Some(log)) = RequestLog::new(&template, || Output::new(std::io::sink())) {
            let made = render(&log);
            prop_assert!(made.ends_with('\n'));
            prop_assert!(made.len() <= ember_template::MAX_COST);
        }
    }
}
