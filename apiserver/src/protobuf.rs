//! Protobuf bodies, as `kubectl create` sends them: the kinds it makes without a file, decoded to what their JSON
//! would be. The messages are written out by hand; fields nobody here reads are left out and skipped.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use prost::Message;
use serde_json::{Map, Value, json};

use crate::status::ApiError;

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// `runtime.Unknown`: the envelope of every body.
#[derive(Clone, PartialEq, Message)]
struct Unknown {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
    #[prost(string, tag = "3")]
    content_encoding: String,
}

#[derive(Clone, PartialEq, Message)]
struct TypeMeta {
    #[prost(string, tag = "1")]
    api_version: String,
    #[prost(string, tag = "2")]
    kind: String,
}

#[derive(Clone, PartialEq, Message)]
struct ObjectMeta {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    generate_name: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(string, tag = "5")]
    uid: String,
    #[prost(string, tag = "6")]
    resource_version: String,
    #[prost(btree_map = "string, string", tag = "11")]
    labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "12")]
    annotations: BTreeMap<String, String>,
    #[prost(message, repeated, tag = "13")]
    owner_references: Vec<OwnerReference>,
    #[prost(string, repeated, tag = "14")]
    finalizers: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct OwnerReference {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    uid: String,
    #[prost(string, tag = "5")]
    api_version: String,
    #[prost(bool, optional, tag = "6")]
    controller: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    block_owner_deletion: Option<bool>,
}

/// A Namespace; its spec and status are the server's own to write.
#[derive(Clone, PartialEq, Message)]
struct Namespace {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
}

#[derive(Clone, PartialEq, Message)]
struct ConfigMap {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(btree_map = "string, string", tag = "2")]
    data: BTreeMap<String, String>,
    #[prost(btree_map = "string, bytes", tag = "3")]
    binary_data: BTreeMap<String, Vec<u8>>,
    #[prost(bool, optional, tag = "4")]
    immutable: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct Secret {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(btree_map = "string, bytes", tag = "2")]
    data: BTreeMap<String, Vec<u8>>,
    #[prost(string, tag = "3")]
    type_: String,
    #[prost(btree_map = "string, string", tag = "4")]
    string_data: BTreeMap<String, String>,
    #[prost(bool, optional, tag = "5")]
    immutable: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct ServiceAccount {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(bool, optional, tag = "4")]
    automount_service_account_token: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct SelfSubjectAccessReview {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<AccessReviewSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct AccessReviewSpec {
    #[prost(message, optional, tag = "1")]
    resource: Option<ResourceAttributes>,
    #[prost(message, optional, tag = "2")]
    non_resource: Option<NonResourceAttributes>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceAttributes {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    verb: String,
    #[prost(string, tag = "3")]
    group: String,
    #[prost(string, tag = "4")]
    version: String,
    #[prost(string, tag = "5")]
    resource: String,
    #[prost(string, tag = "6")]
    subresource: String,
    #[prost(string, tag = "7")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct NonResourceAttributes {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(string, tag = "2")]
    verb: String,
}

#[derive(Clone, PartialEq, Message)]
struct SelfSubjectRulesReview {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<RulesReviewSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct RulesReviewSpec {
    #[prost(string, tag = "1")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct SelfSubjectReview {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
}

/// The object in a body, as its JSON would be.
///
/// # Errors
/// 400 when the body is damaged, 415 for a kind that is read as JSON only.
pub(crate) fn decode(body: &[u8]) -> Result<Value, ApiError> {
    let damaged = |error: &dyn std::fmt::Display| {
        ApiError::bad_request(format!("the body of the request is not a protobuf object: {error}"))
    };
    let envelope = body.strip_prefix(MAGIC).ok_or_else(|| damaged(&"it does not begin with \"k8s\\0\""))?;
    let envelope = Unknown::decode(envelope).map_err(|e| damaged(&e))?;
    if !envelope.content_encoding.is_empty() {
        return Err(damaged(&format!("contentEncoding {:?} is not supported", envelope.content_encoding)));
    }
    let TypeMeta { api_version, kind } = envelope.type_meta.unwrap_or_default();
    let raw = envelope.raw.as_slice();
    let object = match (api_version.as_str(), kind.as_str()) {
        ("v1", "Namespace") => Namespace::decode(raw).map(namespace),
        ("v1", "ConfigMap") => ConfigMap::decode(raw).map(config_map),
        ("v1", "Secret") => Secret::decode(raw).map(secret),
        ("v1", "ServiceAccount") => ServiceAccount::decode(raw).map(service_account),
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview") => {
            SelfSubjectAccessReview::decode(raw).map(access_review)
        }
        ("authorization.k8s.io/v1", "SelfSubjectRulesReview") => {
            SelfSubjectRulesReview::decode(raw).map(rules_review)
        }
        ("authentication.k8s.io/v1", "SelfSubjectReview") => {
            SelfSubjectReview::decode(raw).map(|review| fields([("metadata", metadata(review.metadata))]))
        }
        _ => {
            return Err(ApiError::unsupported_media_type(format!(
                "a {kind} of {api_version} is not read from protobuf here; accepted media types include: \
                 application/json, application/yaml (with kubectl, write the object with --dry-run=client -o yaml and \
                 use create -f)"
            )));
        }
    };
    let mut object = object.map_err(|e| damaged(&e))?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

/// Fields in the order they are given; what is empty is left out, as Go's `omitempty` does.
fn fields<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    fields
        .into_iter()
        .filter(|(_, value)| !empty(value))
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn encoded(data: BTreeMap<String, Vec<u8>>) -> Value {
    data.into_iter()
        .map(|(key, bytes)| (key, Value::from(BASE64.encode(bytes))))
        .collect::<Map<_, _>>()
        .into()
}

fn metadata(metadata: Option<ObjectMeta>) -> Value {
    let m = metadata.unwrap_or_default();
    let owners: Vec<Value> = m
        .owner_references
        .into_iter()
        .map(|o| {
            // All but the last two are required, so they stay also when they are empty.
            let mut owner =
                json!({ "apiVersion": o.api_version, "kind": o.kind, "name": o.name, "uid": o.uid });
            for (field, flag) in
                [("controller", o.controller), ("blockOwnerDeletion", o.block_owner_deletion)]
            {
                if let Some(flag) = flag {
                    owner[field] = flag.into();
                }
            }
            owner
        })
        .collect();
    fields([
        ("name", m.name.into()),
        ("generateName", m.generate_name.into()),
        ("namespace", m.namespace.into()),
        ("uid", m.uid.into()),
        ("resourceVersion", m.resource_version.into()),
        ("labels", json!(m.labels)),
        ("annotations", json!(m.annotations)),
        ("ownerReferences", owners.into()),
        ("finalizers", json!(m.finalizers)),
    ])
    .into()
}

fn namespace(object: Namespace) -> Map<String, Value> {
    fields([("metadata", metadata(object.metadata))])
}

fn config_map(object: ConfigMap) -> Map<String, Value> {
    fields([
        ("metadata", metadata(object.metadata)),
        ("data", json!(object.data)),
        ("binaryData", encoded(object.binary_data)),
        ("immutable", json!(object.immutable)),
    ])
}

fn secret(object: Secret) -> Map<String, Value> {
    fields([
        ("metadata", metadata(object.metadata)),
        ("data", encoded(object.data)),
        ("type", object.type_.into()),
        ("stringData", json!(object.string_data)),
        ("immutable", json!(object.immutable)),
    ])
}

fn service_account(object: ServiceAccount) -> Map<String, Value> {
    fields([
        ("metadata", metadata(object.metadata)),
        ("automountServiceAccountToken", json!(object.automount_service_account_token)),
    ])
}

fn access_review(object: SelfSubjectAccessReview) -> Map<String, Value> {
    let spec = object.spec.unwrap_or_default();
    let resource = spec.resource.map_or(Value::Null, |r| {
        fields([
            ("namespace", r.namespace.into()),
            ("verb", r.verb.into()),
            ("group", r.group.into()),
            ("version", r.version.into()),
            ("resource", r.resource.into()),
            ("subresource", r.subresource.into()),
            ("name", r.name.into()),
        ])
        .into()
    });
    let non_resource = spec
        .non_resource
        .map_or(Value::Null, |r| fields([("path", r.path.into()), ("verb", r.verb.into())]).into());
    let attributes = fields([("resourceAttributes", resource), ("nonResourceAttributes", non_resource)]);
    fields([("metadata", metadata(object.metadata)), ("spec", attributes.into())])
}

fn rules_review(object: SelfSubjectRulesReview) -> Map<String, Value> {
    let spec = fields([("namespace", object.spec.unwrap_or_default().namespace.into())]);
    fields([("metadata", metadata(object.metadata)), ("spec", spec.into())])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(api_version: &str, kind: &str, raw: Vec<u8>) -> Vec<u8> {
        let type_meta = Some(TypeMeta { api_version: api_version.into(), kind: kind.into() });
        let mut body = MAGIC.to_vec();
        body.extend(Unknown { type_meta, raw, content_encoding: String::new() }.encode_to_vec());
        body
    }

    #[test]
    fn a_config_map_becomes_its_json() {
        // Bytes as another encoder writes them: {metadata: {name: "m"}, data: {a: "1"}, binaryData: {b: 0xff}}.
        let raw = b"\x0a\x03\x0a\x01m\x12\x06\x0a\x01a\x12\x011\x1a\x06\x0a\x01b\x12\x01\xff".to_vec();
        assert_eq!(
            decode(&body("v1", "ConfigMap", raw)).unwrap(),
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" }, "data": { "a": "1" },
                    "binaryData": { "b": "/w==" } })
        );
    }

    #[test]
    fn what_cannot_be_read_says_so() {
        assert_eq!(decode(b"{}").unwrap_err().code(), 400);
        assert_eq!(decode(&body("v1", "ConfigMap", b"\x0a\xff".to_vec())).unwrap_err().code(), 400);
        let error = decode(&body("apps/v1", "Deployment", Vec::new())).unwrap_err();
        assert_eq!(error.code(), 415);
        assert!(error.to_string().contains("a Deployment of apps/v1"), "{error}");
    }

    const KINDS: [(&str, &str); 6] = [
        ("v1", "Namespace"),
        ("v1", "ConfigMap"),
        ("v1", "Secret"),
        ("v1", "ServiceAccount"),
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview"),
        ("authorization.k8s.io/v1", "SelfSubjectRulesReview"),
    ];

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..KINDS.len()) {
            let _ = decode(&bytes);
            let _ = decode(&[MAGIC, &bytes].concat());
            let (api_version, kind) = KINDS[kind];
            if let Ok(object) = decode(&body(api_version, kind, bytes)) {
                prop_assert!(object.is_object());
            }
        }

        #[test]
        fn cut_and_changed_bodies_never_panic(at in 0usize..60, byte in any::<u8>(), cut in 0usize..60) {
            let metadata = Some(ObjectMeta { name: "name".into(), labels: [("a".into(), "b".into())].into(),
                                             ..ObjectMeta::default() });
            let map = ConfigMap { metadata, data: [("k".into(), "v".into())].into(), ..ConfigMap::default() };
            let mut body = body("v1", "ConfigMap", map.encode_to_vec());
            if let Some(place) = body.get_mut(at) {
                *place = byte;
            }
            body.truncate(cut.max(1));
            let _ = decode(&body);
        }
    }
}
