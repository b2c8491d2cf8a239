//! Lists and objects as the tables that `kubectl get` prints.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::jsonpath::JsonPath;
use crate::object::Object;
use crate::pod_columns;
use crate::resource::Resource;

#[derive(Debug, Clone)]
enum Cell {
    Path(JsonPath),
    /// The age of the time at the path.
    Age(JsonPath),
    Computed(fn(&Value) -> Value),
}

/// One printer column.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    name: String,
    kind: String,
    description: String,
    priority: i64,
    cell: Cell,
}

impl Column {
    /// A column of a custom kind, as a CRD declares it. `None` when its path cannot be read.
    pub(crate) fn declared(
        name: &str,
        kind: &str,
        description: &str,
        priority: i64,
        path: &str,
    ) -> Option<Self> {
        let path = JsonPath::parse(path)?;
        let cell = if kind == "date" { Cell::Age(path) } else { Cell::Path(path) };
        Some(Self {
            name: name.to_owned(),
            kind: kind.to_owned(),
            description: description.to_owned(),
            priority,
            cell,
        })
    }

    fn computed(name: &str, priority: i64, cell: fn(&Value) -> Value) -> Self {
        Self {
            name: name.to_owned(),
            kind: "string".into(),
            description: String::new(),
            priority,
            cell: Cell::Computed(cell),
        }
    }

    /// The age of the object.
    pub(crate) fn age() -> Self {
        let cell =
            Cell::Age(JsonPath::parse(".metadata.creationTimestamp").unwrap_or_else(|| unreachable!()));
        Self {
            name: "Age".into(),
            kind: "string".into(),
            description: "Time since creation.".into(),
            priority: 0,
            cell,
        }
    }
}

pub(crate) fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    value.pointer(path).unwrap_or(&Value::Null)
}

fn text(value: &Value, path: &str) -> String {
    match at(value, path) {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => "<none>".into(),
    }
}

pub(crate) fn items<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    at(value, path).as_array().into_iter().flatten()
}

fn joined(parts: impl Iterator<Item = String>) -> Value {
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() { "<none>".into() } else { parts.join(",").into() }
}

fn entries(value: &Value) -> usize {
    at(value, "/data").as_object().map_or(0, serde_json::Map::len)
        + at(value, "/binaryData").as_object().map_or(0, serde_json::Map::len)
}

fn labels(value: &Value, path: &str) -> Value {
    let map = at(value, path).as_object();
    joined(map.into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())))
}

fn count(value: &Value, path: &str) -> i64 {
    at(value, path).as_i64().unwrap_or(0)
}

fn service_ports(service: &Value) -> Value {
    let ports = items(service, "/spec/ports").map(|port| {
        let node = port.get("nodePort").and_then(Value::as_i64).map(|n| format!(":{n}")).unwrap_or_default();
        format!("{}{node}/{}", count(port, "/port"), port["protocol"].as_str().unwrap_or("TCP"))
    });
    joined(ports)
}

fn external_ip(service: &Value) -> Value {
    match at(service, "/spec/externalName").as_str() {
        Some(name) if !name.is_empty() => name.into(),
        _ => joined(items(service, "/spec/externalIPs").filter_map(Value::as_str).map(str::to_owned)),
    }
}

fn endpoints(value: &Value) -> Value {
    let mut all = Vec::new();
    for subset in items(value, "/subsets") {
        for address in items(subset, "/addresses") {
            for port in items(subset, "/ports") {
                all.push(format!("{}:{}", address["ip"].as_str().unwrap_or_default(), count(port, "/port")));
            }
        }
    }
    shortened(all)
}

/// The first three of many.
fn shortened(all: Vec<String>) -> Value {
    match all.get(..3) {
        Some(first) if all.len() > 3 => format!("{} + {} more...", first.join(","), all.len() - 3).into(),
        _ => joined(all.into_iter()),
    }
}

fn last_seen(event: &Value) -> Value {
    ago(event, &["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"])
}

fn first_seen(event: &Value) -> Value {
    ago(event, &["/firstTimestamp", "/eventTime", "/metadata/creationTimestamp"])
}

/// How long ago the first of these times was that is there.
fn ago(value: &Value, times: &[&str]) -> Value {
    let time = times.iter().find_map(|path| at(value, path).as_str());
    time.map_or_else(|| "<unknown>".into(), |t| age_of(t, jiff::Timestamp::now()).into())
}

fn event_source(event: &Value) -> Value {
    let own = |path| at(event, path).as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let component = own("/source/component").or_else(|| own("/reportingComponent"));
    joined(component.into_iter().chain(own("/source/host")))
}

fn slice_ports(slice: &Value) -> Value {
    joined(items(slice, "/ports").map(|port| text(port, "/port").replace("<none>", "*")))
}

fn slice_endpoints(slice: &Value) -> Value {
    let addresses = items(slice, "/endpoints").flat_map(|e| items(e, "/addresses")).filter_map(Value::as_str);
    shortened(addresses.map(str::to_owned).collect())
}

fn event_object(event: &Value) -> Value {
    let kind = at(event, "/involvedObject/kind").as_str().unwrap_or_default().to_lowercase();
    format!("{kind}/{}", at(event, "/involvedObject/name").as_str().unwrap_or_default()).into()
}

/// The columns of a built-in kind after its name.
pub(crate) fn builtin(resource: &Resource) -> Vec<Column> {
    let c = Column::computed;
    let mut columns: Vec<Column> = match (resource.group, resource.plural) {
        ("", "pods") => vec![
            c("Ready", 0, pod_columns::ready),
            c("Status", 0, pod_columns::status),
            c("Restarts", 0, pod_columns::restarts),
            Column::age(),
            c("IP", 1, |p| text(p, "/status/podIP").into()),
            c("Node", 1, |p| text(p, "/spec/nodeName").into()),
        ],
        ("apps", "deployments") => vec![
            c("Ready", 0, |d| {
                format!("{}/{}", count(d, "/status/readyReplicas"), count(d, "/spec/replicas")).into()
            }),
            c("Up-to-date", 0, |d| count(d, "/status/updatedReplicas").into()),
            c("Available", 0, |d| count(d, "/status/availableReplicas").into()),
            Column::age(),
            c("Containers", 1, |d| {
                joined(items(d, "/spec/template/spec/containers").map(|c| text(c, "/name")))
            }),
            c("Images", 1, |d| joined(items(d, "/spec/template/spec/containers").map(|c| text(c, "/image")))),
            c("Selector", 1, |d| labels(d, "/spec/selector/matchLabels")),
        ],
        ("", "services") => vec![
            c("Type", 0, |s| at(s, "/spec/type").as_str().unwrap_or("ClusterIP").into()),
            c("Cluster-IP", 0, |s| text(s, "/spec/clusterIP").into()),
            c("External-IP", 0, external_ip),
            c("Port(s)", 0, service_ports),
            Column::age(),
            c("Selector", 1, |s| labels(s, "/spec/selector")),
        ],
        ("", "configmaps") => vec![c("Data", 0, |v| entries(v).to_string().into()), Column::age()],
        ("", "secrets") => vec![
            c("Type", 0, |v| text(v, "/type").into()),
            c("Data", 0, |v| entries(v).to_string().into()),
            Column::age(),
        ],
        ("", "namespaces") => vec![c("Status", 0, |v| text(v, "/status/phase").into()), Column::age()],
        ("", "endpoints") => vec![c("Endpoints", 0, endpoints), Column::age()],
        ("", "events") => {
            // Events are told by what happened, their generated names say nothing.
            return vec![
                c("Last Seen", 0, last_seen),
                c("Type", 0, |v| text(v, "/type").into()),
                c("Reason", 0, |v| text(v, "/reason").into()),
                c("Object", 0, event_object),
                c("Subobject", 1, |v| at(v, "/involvedObject/fieldPath").as_str().unwrap_or_default().into()),
                c("Source", 1, event_source),
                c("Message", 0, |v| at(v, "/message").as_str().unwrap_or_default().trim().into()),
                c("First Seen", 1, first_seen),
                c("Count", 1, |v| count(v, "/count").max(1).into()),
                c("Name", 1, |v| text(v, "/metadata/name").into()),
            ];
        }
        ("", "serviceaccounts") => {
            vec![c("Secrets", 0, |v| items(v, "/secrets").count().into()), Column::age()]
        }
        ("discovery.k8s.io", "endpointslices") => vec![
            c("AddressType", 0, |v| text(v, "/addressType").into()),
            c("Ports", 0, slice_ports),
            c("Endpoints", 0, slice_endpoints),
            Column::age(),
        ],
        ("coordination.k8s.io", "leases") => {
            vec![c("Holder", 0, |v| text(v, "/spec/holderIdentity").into()), Column::age()]
        }
        _ => vec![Column::age()],
    };
    columns.insert(0, name_column());
    columns
}

/// The column every table starts with.
pub(crate) fn name_column() -> Column {
    Column::computed("Name", 0, |v| text(v, "/metadata/name").into())
}

fn cell(column: &Column, value: &Value, now: jiff::Timestamp) -> Value {
    match &column.cell {
        Cell::Computed(compute) => compute(value),
        Cell::Age(path) => match path.find(value).and_then(Value::as_str) {
            Some(time) => age_of(time, now).into(),
            None => "<unknown>".into(),
        },
        Cell::Path(path) => match path.find(value) {
            None => Value::Null,
            Some(found) => match (column.kind.as_str(), found) {
                ("integer", Value::Number(_))
                | ("number", Value::Number(_))
                | ("boolean", Value::Bool(_)) => found.clone(),
                (_, Value::String(text)) => text.as_str().into(),
                (_, Value::Null) => Value::Null,
                (_, other) => other.to_string().into(),
            },
        },
    }
}

/// What of the object a row carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

/// A `Table` with one row for each object.
pub(crate) fn render(
    columns: &[Column],
    objects: impl Iterator<Item = Value>,
    include: Include,
    list_metadata: &Value,
    now: jiff::Timestamp,
) -> Value {
    let definitions: Vec<Value> = columns
        .iter()
        .map(|c| {
            let format = if c.name == "Name" { "name" } else { "" };
            // Ages are rendered here, so that they arrive as text.
            let kind = if c.kind == "date" { "string" } else { c.kind.as_str() };
            json!({ "name": c.name, "type": kind, "format": format, "description": c.description, "priority": c.priority })
        })
        .collect();
    let rows: Vec<Value> = objects
        .map(|mut value| {
            let cells: Vec<Value> = columns.iter().map(|c| cell(c, &value, now)).collect();
            let object = match include {
                Include::None => Value::Null,
                Include::Metadata => partial(value["metadata"].take()),
                Include::Object => value,
            };
            json!({ "cells": cells, "object": object })
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

/// An object of metadata alone.
pub(crate) fn partial(metadata: Value) -> Value {
    let mut object = json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1" });
    object["metadata"] = metadata;
    object
}

/// The object's metadata alone, serialised.
pub(crate) fn partial_json(object: &Object) -> Bytes {
    Bytes::from(partial(object.metadata()).to_string())
}

/// How long ago `time` (RFC 3339) was, as kubectl writes it.
fn age_of(time: &str, now: jiff::Timestamp) -> String {
    match time.parse::<jiff::Timestamp>() {
        Ok(then) => human(now.as_second() - then.as_second()),
        Err(_) => "<unknown>".into(),
    }
}

/// Kubernetes' `HumanDuration`.
fn human(seconds: i64) -> String {
    let pair = |a: i64, x: &str, b: i64, y: &str| {
        if b == 0 { format!("{a}{x}") } else { format!("{a}{x}{b}{y}") }
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        ..-1 => "<invalid>".into(),
        -1..0 => "0s".into(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => pair(hours / 24, "d", hours % 24, "h"),
        _ if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        _ if hours < 24 * 365 * 8 => pair(hours / 24 / 365, "y", hours / 24 % 365, "d"),
        _ => format!("{}y", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectl_writes_them() {
        for (seconds, text) in [
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (3600, "60m"),
            (4 * 3600 + 60, "4h1m"),
            (10 * 3600, "10h"),
            (3 * 86400, "3d"),
            (400 * 86400, "400d"),
        ] {
            assert_eq!(human(seconds), text);
        }
    }

    #[test]
    fn declared_columns_show_values_by_path() {
        let ready =
            Column::declared("Ready", "string", "", 0, ".status.conditions[?(@.type=='Ready')].status");
        let columns = [name_column(), ready.unwrap()];
        let object = json!({ "metadata": { "name": "x" },
                             "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
        let empty = json!({ "metadata": { "name": "y" } });
        let table = render(
            &columns,
            [object, empty].into_iter(),
            Include::None,
            &json!({}),
            jiff::Timestamp::UNIX_EPOCH,
        );
        assert_eq!(table["rows"][0]["cells"], json!(["x", "True"]));
        assert_eq!(table["rows"][1]["cells"], json!(["y", null]));
    }
}
