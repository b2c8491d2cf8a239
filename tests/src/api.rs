//! Plain JSON conversation with the API.

use http::header::CONTENT_TYPE;
use kube::Client;
use serde_json::Value;

/// GET.
///
/// # Errors
/// What the API said.
pub async fn get(client: &Client, path: &str) -> Result<Value, kube::Error> {
    client.request(http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?).await
}

/// POST.
///
/// # Errors
/// What the API said.
pub async fn create(client: &Client, path: &str, object: &Value) -> Result<Value, kube::Error> {
    send(client, "POST", path, "application/json", object).await
}

/// PATCH with a JSON merge patch.
///
/// # Errors
/// What the API said.
pub async fn merge(client: &Client, path: &str, patch: &Value) -> Result<Value, kube::Error> {
    send(client, "PATCH", path, "application/merge-patch+json", patch).await
}

/// DELETE.
///
/// # Errors
/// What the API said.
pub async fn delete(client: &Client, path: &str) -> Result<Value, kube::Error> {
    send(client, "DELETE", path, "application/json", &Value::Object(serde_json::Map::new())).await
}

async fn send(
    client: &Client,
    method: &str,
    path: &str,
    kind: &str,
    body: &Value,
) -> Result<Value, kube::Error> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(CONTENT_TYPE, kind)
        .body(body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// A condition of an object.
#[must_use]
pub fn condition(object: &Value, kind: &str) -> Option<Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind).cloned()
}
