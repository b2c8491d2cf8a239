//! `ember doctor`: what is wrong with a service, or with the machine, and what to do about it.

mod finding;
mod machine;
mod service;

use std::path::Path;

use anyhow::bail;
use clap::Args;
use kube::Client;
use serde_json::{Value, json};

use crate::cli::Target;
use crate::client::commands::say;
use crate::client::connect;
use finding::Finding;
use machine::Facts;
use service::{Pod, Tree};

/// Lines of a log that are shown.
const LOG_LINES: usize = 10;

/// What `ember doctor` takes.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A service, as `ksvc NAME`, `ksvc/NAME` or NAME; without one, the machine and every service
    service: Vec<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    target: Target,
}

/// How `ember doctor` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// The name of the service that is meant, if one is.
fn service_of(words: &[String]) -> anyhow::Result<Option<&str>> {
    const KINDS: [&str; 5] = ["ksvc", "kservice", "service", "services", "services.serving.knative.dev"];
    let words: Vec<&str> = words.iter().flat_map(|word| word.split('/')).collect();
    match words[..] {
        [] => Ok(None),
        [name] if !KINDS.contains(&name) && !name.is_empty() => Ok(Some(name)),
        [kind, name] if KINDS.contains(&kind) && !name.is_empty() => Ok(Some(name)),
        _ => {
            bail!("{:?}: only services are looked at, for instance: ember doctor ksvc hello", words.join(" "))
        }
    }
}

/// Looks, and prints; an error where something is broken.
pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let name = service_of(&options.service)?;
    let kubeconfig = options.target.kubeconfig();
    let findings = match name {
        Some(name) => {
            let client = connect(&kubeconfig).await?;
            observe(&client, name, &options.target.namespace).await?.judge(name, &options.target.namespace)
        }
        None => everything(&kubeconfig).await,
    };
    let problems = finding::problems(&findings);
    match options.output {
        Output::Text => say(finding::text(&findings).trim_end())?,
        Output::Json => {
            say(&serde_json::to_string_pretty(&json!({"problems": problems, "findings": findings}))?)?;
        }
    }
    match problems {
        0 => Ok(()),
        1 => bail!("1 problem was found"),
        more => bail!("{more} problems were found"),
    }
}

/// The machine, and where an instance is to be there, its services.
async fn everything(kubeconfig: &Path) -> Vec<Finding> {
    let facts = Facts::look(&crate::client::default_data_dir());
    let mut findings = facts.judge();
    let expected = kubeconfig.exists() || facts.kubeconfigs().any(|other| other == kubeconfig);
    if !expected {
        return findings;
    }
    let about = "API server";
    let runs = facts.kubeconfigs().any(|other| other == kubeconfig);
    match connect(kubeconfig).await {
        Ok(client) => {
            findings.push(Finding::ok(about, format!("it answers ({})", kubeconfig.display())));
            match services(&client).await {
                Ok(more) => findings.extend(more),
                Err(error) => findings.push(Finding::problem("services", error.to_string())),
            }
        }
        // What an instance has left behind when it ended is no fault.
        Err(error) if runs => findings.push(Finding::problem(about, format!("{error:#}"))),
        Err(error) => findings.push(Finding::note(about, error.to_string()).advise("`ember up` starts one")),
    }
    findings
}

/// Every service that is not as it should be, and a word on the others.
async fn services(client: &Client) -> anyhow::Result<Vec<Finding>> {
    let list = get(client, "/apis/serving.knative.dev/v1/services").await?;
    let mut findings = Vec::new();
    let mut well = 0;
    for service in list["items"].as_array().into_iter().flatten() {
        let part = |name: &str| service["metadata"][name].as_str().unwrap_or_default().to_owned();
        let (name, namespace) = (part("name"), part("namespace"));
        let judged = observe(client, &name, &namespace).await?.judge(&name, &namespace);
        if finding::problems(&judged) == 0 {
            well += 1;
        } else {
            findings.extend(judged);
        }
    }
    findings.insert(0, Finding::ok("services", format!("{well} are as they should be")));
    Ok(findings)
}

async fn get(client: &Client, path: &str) -> Result<Value, kube::Error> {
    let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// A service and what was made for it.
async fn observe(client: &Client, name: &str, namespace: &str) -> anyhow::Result<Tree> {
    let serving = format!("/apis/serving.knative.dev/v1/namespaces/{namespace}");
    let scaling = format!("/apis/autoscaling.internal.knative.dev/v1alpha1/namespaces/{namespace}");
    let mut tree = Tree::default();
    let selector = format!("labelSelector=serving.knative.dev%2Fservice%3D{name}");
    tree.service = match get(client, &format!("{serving}/services/{name}")).await {
        Ok(service) => service,
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let all = get(client, &format!("{serving}/services")).await?;
            let names = all["items"].as_array().into_iter().flatten();
            tree.others = names.filter_map(|o| o["metadata"]["name"].as_str().map(str::to_owned)).collect();
            return Ok(tree);
        }
        Err(error) => return Err(error.into()),
    };
    for (path, kind) in [
        (format!("{serving}/configurations?{selector}"), "Configuration"),
        (format!("{serving}/routes?{selector}"), "Route"),
        (format!("{serving}/revisions?{selector}"), "Revision"),
        (format!("{scaling}/podautoscalers?{selector}"), "PodAutoscaler"),
    ] {
        let list = get(client, &path).await?;
        let latest = tree.service["status"]["latestCreatedRevisionName"].clone();
        for mut object in list["items"].as_array().cloned().unwrap_or_default() {
            // Old revisions that failed are no trouble of today's.
            let old = matches!(kind, "Revision" | "PodAutoscaler") && !latest.is_null() && {
                let routed = tree.service["status"]["traffic"].as_array().into_iter().flatten();
                object["metadata"]["name"] != latest
                    && !routed.into_iter().any(|target| target["revisionName"] == object["metadata"]["name"])
            };
            if !old {
                object["kind"] = kind.into();
                tree.parts.push(object);
            }
        }
    }
    tree.service["kind"] = "Service".into();
    let pods = get(client, &format!("/api/v1/namespaces/{namespace}/pods?{selector}")).await?;
    for object in pods["items"].as_array().cloned().unwrap_or_default() {
        let log = log(client, namespace, &object).await;
        tree.pods.push(Pod { object, log });
    }
    let events = get(client, &format!("/api/v1/namespaces/{namespace}/events")).await?;
    tree.events = events["items"].as_array().cloned().unwrap_or_default();
    Ok(tree)
}

/// The last lines of a pod's app; nothing where there is no log.
async fn log(client: &Client, namespace: &str, pod: &Value) -> Vec<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut names = containers.filter_map(|c| c["name"].as_str()).filter(|name| *name != "queue-proxy");
    let Some(container) = names.next() else { return Vec::new() };
    let path =
        format!("/api/v1/namespaces/{namespace}/pods/{name}/log?container={container}&tailLines={LOG_LINES}");
    let Ok(request) = http::Request::get(path).body(Vec::new()) else { return Vec::new() };
    let text = client.request_text(request).await.unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_in_several_ways() {
        let of = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            service_of(&words).map(|name| name.map(str::to_owned))
        };
        assert_eq!(of(&[]).unwrap(), None);
        for words in [&["a"][..], &["ksvc/a"], &["ksvc", "a"], &["service", "a"]] {
            assert_eq!(of(words).unwrap().as_deref(), Some("a"), "{words:?}");
        }
        for words in [&["ksvc"][..], &["pod", "a"], &["ksvc", "a", "b"], &["ksvc/"]] {
            assert!(of(words).is_err(), "{words:?}");
        }
    }
}
