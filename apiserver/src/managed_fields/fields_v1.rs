//! `FieldsV1`: a set of paths as JSON, every step a key and `.` the node itself.

use serde_json::{Map, Value};

use super::set::{Set, Step};

/// Reads a set; `None` for what is not one.
pub(crate) fn decode(value: &Value) -> Option<Set> {
    let mut set = node(value.as_object()?)?;
    // An object as a whole belongs to nobody.
    set.member = false;
    Some(set)
}

fn node(map: &Map<String, Value>) -> Option<Set> {
    let mut set = Set::default();
    set.member = map.is_empty();
    for (key, value) in map {
        let inner = value.as_object()?;
        if key == "." {
            set.member = true;
        } else {
            set.put(Step::parse(key)?, node(inner)?);
        }
    }
    Some(set)
}

/// The JSON of a set.
pub(crate) fn encode(set: &Set) -> Value {
    let mut map = Map::new();
    if set.member && set.has_children() {
        map.insert(".".into(), Value::Object(Map::new()));
    }
    for (step, child) in set.children() {
        map.insert(step.as_str().to_owned(), encode(child));
    }
    Value::Object(map)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_cluster_writes_comes_back_as_it_was() {
        let value = json!({ "f:metadata": { "f:labels": { ".": {}, "f:app": {} }, "f:finalizers": { "v:\"x/y\"": {} } },
            "f:spec": { "f:containers": { "k:{\"name\":\"c\"}": { ".": {}, "f:image": {}, "f:ports": {
                "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": { ".": {}, "f:containerPort": {} } } } } } });
        assert_eq!(encode(&decode(&value).unwrap()), value);
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for wrong in [json!(1), json!([]), json!({ "f:a": 1 }), json!({ "a": {} }), json!({ ".": [] })] {
            assert_eq!(decode(&wrong), None, "{wrong}");
        }
        assert!(decode(&json!({})).unwrap().is_empty());
    }
}
