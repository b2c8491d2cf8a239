//! How kubectl shows what there is: explanations, tables, logs, differences.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{Cluster, LIMIT, SERVICE, kubectl_is_here, words};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_explains_custom_and_builtin_kinds() {
    if !kubectl_is_here() {
        return;
    }
    let c = Cluster::start().await;
    for (path, fields) in [
        (
            "pod.spec.containers",
            &["image\t<string>", "env\t<[]EnvVar>", "A single application container"][..],
        ),
        ("deploy.spec.template.spec.volumes.emptyDir", &["sizeLimit\t<Quantity>"]),
        ("cm", &["binaryData\t<map[string]string>"]),
        ("endpointslice.endpoints", &["addresses\t<[]string> -required-"]),
        ("lease.spec", &["holderIdentity\t<string>"]),
        ("ksvc.spec.template", &["The template of the Revisions."]),
        ("ksvc.spec.template.spec", &["containerConcurrency\t<integer>"]),
        ("ksvc.metadata", &["labels\t<map[string]string>"]),
        ("kpa.spec", &["scaleTargetRef\t<Object>"]),
        ("king.spec", &["rules\t<[]Object>"]),
        ("hpa.spec", &["maxReplicas\t<integer> -required-"]),
    ] {
        let text = c.works(&["explain", path]).await;
        for field in fields {
            assert!(text.contains(field), "{path} lacks {field:?}:\n{text}");
        }
    }
    let all = c.works(&["explain", "ksvc", "--recursive"]).await;
    assert!(all.contains("timeoutSeconds\t<integer>"), "{all}");
    assert!(c.fails(&["explain", "pod.spec.nothing"]).await.contains("does not exist"));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_prints_the_columns_of_each_kind() {
    if !kubectl_is_here() {
        return;
    }
    let c = Cluster::start().await;
    let manifest = r#"
apiVersion: v1
kind: Endpoints
metadata: { name: e }
subsets: [{ addresses: [{ ip: 127.0.0.2 }], ports: [{ port: 80 }] }]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: e }
addressType: IPv4
ports: [{ port: 80 }, { port: 81 }]
endpoints: [{ addresses: [10.0.0.1] }, { addresses: [10.0.0.2] }, { addresses: [10.0.0.3] }, { addresses: [10.0.0.4] }]
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: { name: l }
spec: { holderIdentity: me }
---
apiVersion: v1
kind: Event
metadata: { name: x.1, namespace: default }
involvedObject: { kind: Service, apiVersion: serving.knative.dev/v1, name: hello, namespace: default }
type: Warning
reason: Broken
message: it broke
count: 3
source: { component: tester }
"#;
    let all = c.file("all.yaml", manifest);
    let service = c.file("hello.yaml", SERVICE);
    c.works(&["create", "-f", all.to_str().unwrap(), "-f", service.to_str().unwrap()]).await;
    let head = async |arguments: &[&str]| {
        let table = c.works(arguments).await;
        let mut lines = table.lines().map(|line| words(line).join(" "));
        (lines.next().unwrap_or_default(), lines.next().unwrap_or_default())
    };
    for (arguments, heading, row) in [
        (&["get", "endpoints"][..], "NAME ENDPOINTS AGE", "e 127.0.0.2:80 "),
        (
            &["get", "endpointslices"],
            "NAME ADDRESSTYPE PORTS ENDPOINTS AGE",
            "e IPv4 80,81 10.0.0.1,10.0.0.2,10.0.0.3 + 1 more... ",
        ),
        (&["get", "leases"], "NAME HOLDER AGE", "l me "),
        (&["get", "events"], "LAST SEEN TYPE REASON OBJECT MESSAGE", ""),
        (
            &["get", "events", "-o", "wide"],
            "LAST SEEN TYPE REASON OBJECT SUBOBJECT SOURCE MESSAGE FIRST SEEN COUNT NAME",
            "",
        ),
        (&["get", "ksvc", "-o", "wide"], "NAME URL LATESTCREATED LATESTREADY READY REASON", "hello"),
        (&["get", "ksvc", "--sort-by=.metadata.name", "--no-headers"], "hello", ""),
    ] {
        let (first, second) = head(arguments).await;
        assert_eq!(first, heading, "{arguments:?}");
        assert!(second.starts_with(row), "{arguments:?}: {second}");
    }
    let events = c.works(&["get", "events", "-o", "wide"]).await;
    for part in ["Warning", "Broken", "service/hello", "tester", "it broke", "3", "x.1"] {
        assert!(events.contains(part), "{part}: {events}");
    }
    let events =
        c.works(&["get", "events", "--field-selector=involvedObject.name=hello,reason=Broken"]).await;
    assert!(events.contains("it broke"), "{events}");
    let described = c.works(&["describe", "ksvc", "hello"]).await;
    assert!(!described.contains("it broke"), "an event of another object with that name: {described}");
    let uid = c.works(&["get", "ksvc", "hello", "-o=jsonpath={.metadata.uid}"]).await;
    c.works(&[
        "patch",
        "event",
        "x.1",
        "--type=merge",
        "-p",
        &format!(r#"{{"involvedObject":{{"uid":"{uid}"}}}}"#),
    ])
    .await;
    let described = c.works(&["describe", "ksvc", "hello"]).await;
    assert!(described.contains("Broken") && described.contains("it broke"), "{described}");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_logs_say_which_containers_there_are() {
    if !kubectl_is_here() {
        return;
    }
    let c = Cluster::start().await;
    let pod = "
apiVersion: v1
kind: Pod
metadata: { name: p }
spec: { nodeName: node-1, containers: [{ name: a, image: i }, { name: b, image: i }] }
";
    let file = c.file("pod.yaml", pod);
    c.works(&["create", "-f", file.to_str().unwrap()]).await;
    assert_eq!(c.works(&["logs", "p", "-c", "b", "--tail=3", "-f"]).await, "p/b tail=Some(3)\n");
    let error = c.fails(&["logs", "p", "-c", "x"]).await;
    assert!(error.contains("container x is not valid for pod p"), "{error}");
    let get = async |query: &str| {
        c.fails(&["get", "--raw", &format!("/api/v1/namespaces/default/pods/p/log?{query}")]).await
    };
    assert!(get("").await.contains("a container name must be specified for pod p, choose one of: [a b]"));
    assert!(get("container=x").await.contains("container x is not valid for pod p, choose one of: [a b]"));
    assert!(get("container=a&limitBytes=0").await.contains("must be greater than or equal to 1"));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_shows_differences_and_follows_changes() {
    if !kubectl_is_here() {
        return;
    }
    let c = Cluster::start().await;
    let file = c.file("hello.yaml", SERVICE);
    let file = file.to_str().unwrap();
    c.works(&["create", "-f", file]).await;
    assert!(c.fails(&["create", "-f", file]).await.contains("AlreadyExists"));
    c.file("hello.yaml", &SERVICE.replace("\"1\"", "\"2\""));
    // The program that compares comes from this machine; without one there is nothing to see.
    let diff = c.kubectl(&["diff", "-f", file]).await;
    if diff.err.contains("executable file not found") {
        println!("SKIPPED: there is no diff on PATH");
    } else {
        assert!(!diff.ok && diff.out.contains("value: \"2\""), "{}{}", diff.out, diff.err);
    }
    assert!(c.works(&["get", "ksvc", "hello", "-o=json"]).await.contains("\"value\": \"1\""));

    let mut watch = c.command(&["get", "ksvc", "-w", "-o", "name"]).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    for change in ["", "a", "b"] {
        if !change.is_empty() {
            c.works(&["label", "ksvc", "hello", "--overwrite", &format!("x={change}")]).await;
        }
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
        assert_eq!(line, "service.serving.knative.dev/hello");
    }
    watch.kill().await.unwrap();
    let patch = r#"[{"op":"replace","path":"/metadata/labels/x","value":"c"}]"#;
    c.works(&["patch", "ksvc", "hello", "--type=json", "-p", patch]).await;
    assert_eq!(
        c.works(&["get", "ksvc", "-l", "x=c", "-o", "name"]).await,
        "service.serving.knative.dev/hello\n"
    );
    // Who made it is the webhook's to say: a replacement has to repeat it.
    let error = c.fails(&["replace", "-f", file]).await;
    assert!(error.contains("annotation value is immutable"), "{error}");
    let whole = c.works(&["get", "ksvc", "hello", "-o", "yaml"]).await;
    c.file("hello.yaml", &whole.replace("value: \"1\"", "value: \"2\""));
    c.works(&["replace", "-f", file]).await;
    let waited = ["wait", "--for=jsonpath={.metadata.generation}=2", "ksvc/hello", "--timeout=30s"];
    assert!(c.works(&waited).await.contains("condition met"));
    assert!(c.works(&["delete", "ksvc", "--all"]).await.contains("hello"));
    c.stop().await;
}
