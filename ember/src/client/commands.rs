//! What `ember apply`, `get`, `delete` and `logs` do.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::{AsyncBufReadExt, TryStreamExt};
use http::header::{ACCEPT, CONTENT_TYPE};
use kube::Client;
use kube::api::{Api, LogParams};
use serde_json::{Value, json};

use super::apply::{apply, describe, wait_ready};
use super::resources::{Collection, Resources};
use super::{connect, manifest};

/// `ember apply`: each object in turn; a bad one does not keep the others from being applied.
pub(crate) async fn run_apply(kubeconfig: PathBuf, files: &[PathBuf], namespace: &str) -> anyhow::Result<()> {
    let mut manifests = Vec::new();
    for file in files {
        manifests.extend(manifest::read(file)?);
    }
    if manifests.is_empty() {
        let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        bail!(
            "there is no object in {}: a mapping with apiVersion, kind and metadata is expected",
            files.join(", ")
        );
    }
    let client = connect(&kubeconfig).await?;
    let resources = Resources::discover(&client).await?;
    let mut failed = 0;
    for (index, manifest) in manifests.iter().enumerate() {
        match apply(&client, &resources, manifest, namespace).await {
            Ok(applied) => say(&format!("{}/{} {applied}", manifest.kind().to_lowercase(), manifest.name()))?,
            Err(error) => {
                failed += 1;
                writeln!(std::io::stderr(), "error: {}", describe(&error))?;
            }
        }
        let again =
            |later: &manifest::Manifest| later.kind() == manifest.kind() && later.name() == manifest.name();
        if manifests[index + 1..].iter().any(again)
            && let Err(error) = wait_ready(&client, &resources, manifest, namespace).await
        {
            writeln!(std::io::stderr(), "warning: {}", describe(&error))?;
        }
    }
    if failed > 0 {
        bail!("{failed} of {} objects not applied", manifests.len());
    }
    Ok(())
}

/// How `ember get` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    Table,
    Wide,
    Yaml,
    Json,
}

/// `ember get`.
pub(crate) async fn run_get(
    kubeconfig: PathBuf,
    kind: &str,
    name: Option<&str>,
    namespace: Option<&str>,
    output: Output,
) -> anyhow::Result<()> {
    let client = connect(&kubeconfig).await?;
    let resources = Resources::discover(&client).await?;
    let collection = resources.of_name(kind)?;
    let path = collection.path(namespace, name);
    match output {
        Output::Table | Output::Wide => {
            let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
            let answer = fetch(&client, &path, table).await?;
            say(table_text(&answer, output == Output::Wide, namespace.is_none()).trim_end())
        }
        Output::Yaml => {
            say(serde_norway::to_string(&fetch(&client, &path, "application/json").await?)?.trim_end())
        }
        Output::Json => {
            say(&serde_json::to_string_pretty(&fetch(&client, &path, "application/json").await?)?)
        }
    }
}

/// `ember delete`: objects of a kind by name, or what manifests describe, the last one first. One that cannot be
/// deleted does not keep the others.
pub(crate) async fn run_delete(
    kubeconfig: PathBuf,
    kind: Option<&str>,
    names: &[String],
    files: &[PathBuf],
    namespace: &str,
) -> anyhow::Result<()> {
    let mut manifests = Vec::new();
    for file in files {
        manifests.extend(manifest::read(file)?);
    }
    let client = connect(&kubeconfig).await?;
    let resources = Resources::discover(&client).await?;
    // A manifest may describe one object in several documents, one revision after the other.
    let mut paths: Vec<(&Collection, &str, String)> = Vec::new();
    for manifest in manifests.iter().rev() {
        let collection = resources
            .of_kind(manifest.api_version(), manifest.kind())
            .with_context(|| format!("{manifest} ({})", manifest.source))?;
        let namespace = manifest.namespace().unwrap_or(namespace);
        let path = collection.path(Some(namespace), Some(manifest.name()));
        if !paths.iter().any(|(_, _, known)| *known == path) {
            paths.push((collection, manifest.name(), path));
        }
    }
    if let Some(kind) = kind {
        let collection = resources.of_name(kind)?;
        paths.extend(
            names
                .iter()
                .map(|name| (collection, name.as_str(), collection.path(Some(namespace), Some(name)))),
        );
    }
    let mut failed = 0;
    for (collection, name, path) in &paths {
        let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
        let request = http::Request::delete(path)
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string().into_bytes())?;
        match client.request::<Value>(request).await.map_err(plain) {
            Ok(_) => say(&format!("{}/{name} deleted", collection.kind.to_lowercase()))?,
            Err(error) if paths.len() == 1 => return Err(error),
            Err(error) => {
                failed += 1;
                writeln!(std::io::stderr(), "error: {}", describe(&error))?;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} objects not deleted", paths.len());
    }
    Ok(())
}

/// Which lines `ember logs` prints.
#[derive(Debug, clap::Args)]
pub(crate) struct Lines {
    /// Go on printing as lines come
    #[arg(short, long)]
    follow: bool,
    /// Only so many of the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<i64>,
    /// Only what is not older, for instance 5m
    #[arg(long, value_name = "DURATION", value_parser = crate::container::duration)]
    since: Option<Duration>,
    /// What the container printed before it was started again
    #[arg(short, long, conflicts_with = "follow")]
    previous: bool,
    /// Put the time before each line
    #[arg(long)]
    timestamps: bool,
}

/// `ember logs`: of a pod by name, or of the newest pod of a service.
pub(crate) async fn run_logs(
    kubeconfig: PathBuf,
    name: &str,
    namespace: &str,
    container: Option<String>,
    lines: &Lines,
) -> anyhow::Result<()> {
    let client = connect(&kubeconfig).await?;
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client, namespace);
    let pod = match pods.get_opt(name).await.map_err(plain)? {
        Some(pod) => pod,
        None => {
            let selector = format!("serving.knative.dev/service={name}");
            let list = pods.list(&kube::api::ListParams::default().labels(&selector)).await.map_err(plain)?;
            let newest =
                list.items.into_iter().max_by_key(|pod| pod.metadata.creation_timestamp.clone().map(|t| t.0));
            newest.with_context(|| {
                format!(
                    "no pod {name:?} and no running pod of a service {name:?} in namespace {namespace:?}: it sleeps, \
                     or `ember doctor ksvc {name}` tells what is wrong"
                )
            })?
        }
    };
    let container = container.or_else(|| {
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        containers.map(|c| c.name.clone()).find(|name| name != "queue-proxy")
    });
    let parameters = LogParams {
        container,
        follow: lines.follow,
        tail_lines: lines.tail,
        // Whole seconds, and not fewer than asked for.
        since_seconds: lines
            .since
            .map(|since| i64::try_from(since.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)),
        previous: lines.previous,
        timestamps: lines.timestamps,
        ..LogParams::default()
    };
    let pod_name = pod.metadata.name.unwrap_or_default();
    let mut lines = pods.log_stream(&pod_name, &parameters).await.map_err(plain)?.lines();
    while let Some(line) = lines.try_next().await? {
        say(&line)?;
    }
    Ok(())
}

pub(crate) fn plain(error: kube::Error) -> anyhow::Error {
    anyhow::anyhow!(describe(&error.into()))
}

async fn fetch(client: &Client, path: &str, accept: &str) -> anyhow::Result<Value> {
    let request = http::Request::get(path).header(ACCEPT, accept).body(Vec::new())?;
    client.request(request).await.map_err(plain)
}

/// One line on standard output; a reader that went away ends the command quietly.
pub(crate) fn say(line: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

fn table_text(table: &Value, wide: bool, with_namespace: bool) -> String {
    let columns = table["columnDefinitions"].as_array().cloned().unwrap_or_default();
    let shown: Vec<usize> =
        (0..columns.len()).filter(|&i| wide || columns[i]["priority"].as_i64().unwrap_or(0) == 0).collect();
    let mut lines: Vec<Vec<String>> = Vec::new();
    let mut header: Vec<String> =
        shown.iter().map(|&i| columns[i]["name"].as_str().unwrap_or("").to_uppercase()).collect();
    if with_namespace {
        header.insert(0, "NAMESPACE".to_owned());
    }
    lines.push(header);
    for row in table["rows"].as_array().into_iter().flatten() {
        let mut line: Vec<String> = shown
            .iter()
            .map(|&i| match &row["cells"][i] {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => other.to_string(),
            })
            .collect();
        if with_namespace {
            line.insert(0, row["object"]["metadata"]["namespace"].as_str().unwrap_or("").to_owned());
        }
        lines.push(line);
    }
    if lines.len() == 1 {
        return "No resources found".to_owned();
    }
    let count = lines[0].len();
    let widths: Vec<usize> =
        (0..count).map(|i| lines.iter().map(|l| l[i].chars().count()).max().unwrap_or(0) + 3).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text += cells.collect::<String>().trim_end();
        text.push('\n');
    }
    text
}
