//! `apply`: creates what is missing, merges what changed.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use http::{Method, StatusCode};
use kube::Client;
use serde_json::Value;

use super::manifest::Manifest;
use super::merge;
use super::resources::Resources;

/// What became of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    Created,
    Configured,
    Unchanged,
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        })
    }
}

const QUERY: &str = "fieldManager=ember&fieldValidation=Strict";

/// Applies one object.
///
/// # Errors
/// What the API said, with the place the object came from.
pub(crate) async fn apply(
    client: &Client,
    resources: &Resources,
    manifest: &Manifest,
    default_namespace: &str,
) -> anyhow::Result<Applied> {
    try_apply(client, resources, manifest, default_namespace)
        .await
        .with_context(|| format!("{manifest} ({})", manifest.source))
}

async fn try_apply(
    client: &Client,
    resources: &Resources,
    manifest: &Manifest,
    default_namespace: &str,
) -> anyhow::Result<Applied> {
    let collection = resources.of_kind(manifest.api_version(), manifest.kind())?;
    let namespace = manifest.namespace().unwrap_or(default_namespace);
    let path = collection.path(Some(namespace), Some(manifest.name()));
    let mut wanted = manifest.object.clone();
    if collection.namespaced {
        wanted["metadata"]["namespace"] = namespace.into();
    }
    let wanted = merge::annotated(&wanted);
    let live = match send(client, Method::GET, &path, "application/json", None).await {
        Ok(live) => live,
        Err(error) if code(&error) == Some(StatusCode::NOT_FOUND) => {
            let path = format!("{}?{QUERY}", collection.path(Some(namespace), None));
            send(client, Method::POST, &path, "application/json", Some(&wanted)).await?;
            return Ok(Applied::Created);
        }
        Err(error) => return Err(error.into()),
    };
    let Some(patch) = merge::patch(&merge::last_applied(&live), &live, &wanted) else {
        return Ok(Applied::Unchanged);
    };
    let path = format!("{path}?{QUERY}");
    let answer = send(client, Method::PATCH, &path, "application/merge-patch+json", Some(&patch)).await?;
    let same = answer["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"];
    Ok(if same { Applied::Unchanged } else { Applied::Configured })
}

/// How long [`wait_ready`] waits.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Waits until an object that has a `Ready` condition is ready as applied: the next version of the same object in one
/// run of `apply` builds on what this one made, for instance a revision by name.
///
/// # Errors
/// When it fails, or is not ready within a minute.
pub(crate) async fn wait_ready(
    client: &Client,
    resources: &Resources,
    manifest: &Manifest,
    default_namespace: &str,
) -> anyhow::Result<()> {
    let collection = resources.of_kind(manifest.api_version(), manifest.kind())?;
    if !manifest.api_version().starts_with("serving.knative.dev/") {
        return Ok(());
    }
    let path =
        collection.path(Some(manifest.namespace().unwrap_or(default_namespace)), Some(manifest.name()));
    let deadline = tokio::time::Instant::now() + READY_WITHIN;
    loop {
        let live = send(client, Method::GET, &path, "application/json", None).await?;
        let current = live["status"]["observedGeneration"] == live["metadata"]["generation"];
        let conditions = live["status"]["conditions"].as_array();
        let ready = conditions.into_iter().flatten().find(|c| c["type"] == "Ready" && current);
        match ready.map(|c| (c["status"].as_str(), c["message"].as_str().unwrap_or_default())) {
            Some((Some("True"), _)) => return Ok(()),
            Some((Some("False"), why)) => anyhow::bail!("{manifest} is not ready: {why}"),
            _ if tokio::time::Instant::now() > deadline => {
                anyhow::bail!(
                    "{manifest} is not ready after {READY_WITHIN:?}; its next version is applied anyway"
                )
            }
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn code(error: &kube::Error) -> Option<StatusCode> {
    match error {
        kube::Error::Api(status) => StatusCode::from_u16(status.code).ok(),
        _ => None,
    }
}

async fn send(
    client: &Client,
    method: Method,
    path: &str,
    content_type: &str,
    body: Option<&Value>,
) -> Result<Value, kube::Error> {
    let body = body.map(Value::to_string).unwrap_or_default().into_bytes();
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content_type)
        .body(body)
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// An API error in one line: the API's own words.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    let words = |error: &(dyn std::error::Error + 'static)| match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) if !status.message.is_empty() => (status.message.clone(), true),
        _ => (error.to_string(), false),
    };
    let mut parts = Vec::new();
    for cause in error.chain() {
        let (text, last) = words(cause);
        // Some errors repeat what caused them.
        if !parts.last().is_some_and(|before: &String| before.ends_with(&text)) {
            parts.push(text);
        }
        if last {
            break;
        }
    }
    parts.join(": ")
}
