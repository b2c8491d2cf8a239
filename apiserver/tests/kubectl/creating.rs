//! What kubectl makes without a file, and what it asks about itself.

use crate::{Cluster, kubectl_is_here, words};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_creates_without_a_file() {
    if !kubectl_is_here() {
        return;
    }
    let c = Cluster::start().await;
    assert_eq!(c.works(&["create", "namespace", "team"]).await, "namespace/team created\n");
    assert!(c.fails(&["create", "namespace", "team"]).await.contains("AlreadyExists"));

    let raw = c.folder.path().join("raw");
    std::fs::write(&raw, b"a\xff\0").unwrap();
    let from_file = format!("--from-file={}", raw.display());
    c.works(&["create", "configmap", "m", "-n", "team", "--from-literal=k=v=w", &from_file]).await;
    let shown = c.works(&["get", "cm", "m", "-n", "team", "-o=jsonpath={.data} {.binaryData}"]).await;
    assert_eq!(shown, r#"{"k":"v=w"} {"raw":"Yf8A"}"#);
    let dry = ["create", "configmap", "dry", "-n", "team", "--from-literal=a=b", "--dry-run=server"];
    assert_eq!(c.works(&dry).await, "configmap/dry created (server dry run)\n");
    assert!(c.fails(&["get", "cm", "dry", "-n", "team"]).await.contains("NotFound"));

    c.works(&["create", "secret", "generic", "s", "-n", "team", "--from-literal=p=q"]).await;
    assert_eq!(
        c.works(&["get", "secret", "s", "-n", "team", "-o=jsonpath={.data.p} {.type}"]).await,
        "cQ== Opaque"
    );
    let registry = ["create", "secret", "docker-registry", "r", "-n", "team", "--docker-username=u"];
    c.works(&[&registry[..], &["--docker-password=p"]].concat()).await;
    let secrets = c.works(&["get", "secrets", "-n", "team"]).await;
    assert!(secrets.contains("kubernetes.io/dockerconfigjson"), "{secrets}");
    c.works(&["create", "serviceaccount", "bot", "-n", "team"]).await;
    assert!(c.works(&["get", "sa", "-n", "team"]).await.contains("bot"));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_asks_what_it_may_do() {
    if !kubectl_is_here() {
        return;
    }
    let c = Cluster::start().await;
    assert_eq!(c.works(&["auth", "can-i", "create", "ksvc"]).await, "yes\n");
    assert_eq!(c.works(&["auth", "can-i", "get", "/metrics"]).await, "yes\n");
    assert!(c.works(&["auth", "can-i", "--list"]).await.contains("*.*"));
    assert!(c.works(&["auth", "whoami"]).await.contains("system:masters"));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn horizontal_pod_autoscalers_are_refused_with_advice() {
    if !kubectl_is_here() {
        return;
    }
    let c = Cluster::start().await;
    let manifest = |version: &str, target: &str| {
        format!(
            "apiVersion: autoscaling/{version}\nkind: HorizontalPodAutoscaler\nmetadata: {{ name: a }}\nspec: {{ \
             maxReplicas: 2, scaleTargetRef: {{ apiVersion: apps/v1, kind: Deployment, name: {target} }} }}\n"
        )
    };
    let deployment = "
apiVersion: apps/v1
kind: Deployment
metadata: { name: d }
spec:
  selector: { matchLabels: { a: d } }
  template: { metadata: { labels: { a: d } }, spec: { containers: [{ name: c, image: i }] } }
";
    let file = c.file("d.yaml", deployment);
    c.works(&["apply", "-f", file.to_str().unwrap()]).await;
    for version in ["v1", "v2"] {
        let file = c.file("hpa.yaml", &manifest(version, "d"));
        let error = c.fails(&["apply", "-f", file.to_str().unwrap()]).await;
        assert!(error.contains("nothing here runs HorizontalPodAutoscalers"), "{error}");
    }
    for arguments in [&["get", "hpa"][..], &["get", "hpa", "a"], &["autoscale", "deploy", "d", "--max=3"]] {
        let error = c.fails(arguments).await;
        assert!(error.contains("kubectl scale"), "{error}");
    }
    // What lists everything that can be listed does not come to it.
    let listed = c.works(&["api-resources", "--verbs=list", "-o", "name"]).await;
    assert!(listed.contains("podautoscalers") && !listed.contains("horizontal"), "{listed}");
    let head = c.works(&["api-resources", "--no-headers"]).await;
    let hpa = head.lines().find(|line| line.starts_with("horizontalpodautoscalers")).unwrap().to_owned();
    assert_eq!(words(&hpa)[1..3], ["hpa", "autoscaling/v2"]);
    c.stop().await;
}
