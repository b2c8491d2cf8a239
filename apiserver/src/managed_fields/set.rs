//! Sets of field paths, as trees.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

/// One step of a path, in the form `FieldsV1` gives it: `f:` and a field's name, `k:` and the keys that identify a
/// list's item, `v:` and an item that is its own identity, `i:` and a position.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Step(Box<str>);

impl Step {
    pub(crate) fn field(name: &str) -> Self {
        Self(format!("f:{name}").into())
    }

    /// The item of a list that is a map, by the values of its keys.
    pub(crate) fn key<'a>(keys: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Self {
        let ordered: BTreeMap<&str, &Value> = keys.into_iter().collect();
        let pairs: Vec<String> =
            ordered.into_iter().map(|(key, value)| format!("{}:{value}", Value::from(key))).collect();
        Self(format!("k:{{{}}}", pairs.join(",")).into())
    }

    /// The item of a list that is a set.
    pub(crate) fn value(value: &Value) -> Self {
        Self(format!("v:{value}").into())
    }

    /// Reads a step; `None` for what is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("f", name) => Some(Self::field(name)),
            ("k", keys) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).ok()?;
                (!keys.is_empty()).then(|| Self::key(keys.iter().map(|(k, v)| (k.as_str(), v))))
            }
            ("v", value) => Some(Self::value(&serde_json::from_str(value).ok()?)),
            ("i", index) => Some(Self(format!("i:{}", index.parse::<i64>().ok()?).into())),
            _ => None,
        }
    }

    /// As in `FieldsV1`.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// As messages name it: `.replicas`, `[name="c"]`, `[="x"]`, `[0]`.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_once(':') {
            Some(("f", name)) => write!(f, ".{name}"),
            Some(("k", keys)) => {
                let keys: BTreeMap<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let pairs: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "[{}]", pairs.join(","))
            }
            Some(("v", value)) => write!(f, "[={value}]"),
            Some((_, index)) => write!(f, "[{index}]"),
            None => Ok(()),
        }
    }
}

/// A path, as messages name it.
pub(crate) fn path_text(path: &[Step]) -> String {
    path.iter().map(Step::to_string).collect()
}

/// A set of paths: this node's own path if it is a member, and those that go on from here. No node but the root is
/// without a member in it or below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Set {
    pub member: bool,
    children: BTreeMap<Step, Set>,
}

impl Set {
    pub(crate) fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    pub(crate) fn children(&self) -> impl Iterator<Item = (&Step, &Self)> {
        self.children.iter()
    }

    pub(crate) fn has_children(&self) -> bool {
        !self.children.is_empty()
    }

    pub(crate) fn child(&self, step: &Step) -> Option<&Self> {
        self.children.get(step)
    }

    /// Puts a subset in its place; an empty one leaves no trace.
    pub(crate) fn put(&mut self, step: Step, child: Self) {
        if child.is_empty() {
            self.children.remove(&step);
        } else {
            self.children.insert(step, child);
        }
    }

    pub(crate) fn contains(&self, path: &[Step]) -> bool {
        match path {
            [] => self.member,
            [step, rest @ ..] => self.children.get(step).is_some_and(|child| child.contains(rest)),
        }
    }

    pub(crate) fn insert(&mut self, path: &[Step]) {
        match path {
            [] => self.member = true,
            [step, rest @ ..] => self.children.entry(step.clone()).or_default().insert(rest),
        }
    }

    pub(crate) fn union(&mut self, other: &Self) {
        self.member |= other.member;
        for (step, theirs) in &other.children {
            self.children.entry(step.clone()).or_default().union(theirs);
        }
    }

    /// What is in both.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let mut both = Self { member: self.member && other.member, ..Self::default() };
        for (step, mine) in &self.children {
            if let Some(theirs) = other.children.get(step) {
                both.put(step.clone(), mine.intersection(theirs));
            }
        }
        both
    }

    /// Takes out every path of `other`. What is below a path stays.
    pub(crate) fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        self.children.retain(|step, mine| {
            if let Some(theirs) = other.children.get(step) {
                mine.subtract(theirs);
            }
            !mine.is_empty()
        });
    }

    /// Takes out a field of the root with all below it.
    pub(crate) fn remove_field(&mut self, name: &str) {
        self.children.remove(&Step::field(name));
    }

    /// Keeps one field of the root with all below it.
    pub(crate) fn keep_field(&mut self, name: &str) {
        let kept = Step::field(name);
        self.member = false;
        self.children.retain(|step, _| *step == kept);
    }

    /// Every path, in order.
    pub(crate) fn paths(&self) -> Vec<Vec<Step>> {
        fn walk(set: &Set, path: &mut Vec<Step>, out: &mut Vec<Vec<Step>>) {
            if set.member {
                out.push(path.clone());
            }
            for (step, child) in &set.children {
                path.push(step.clone());
                walk(child, path, out);
                path.pop();
            }
        }
        let mut out = Vec::new();
        walk(self, &mut Vec::new(), &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_have_one_form_and_are_named_as_messages_name_them() {
        let key = Step::parse(r#"k:{"protocol":"TCP", "containerPort": 80}"#).unwrap();
        assert_eq!(key.as_str(), r#"k:{"containerPort":80,"protocol":"TCP"}"#);
        let path = [Step::field("ports"), key, Step::field("name")];
        assert_eq!(path_text(&path), r#".ports[containerPort=80,protocol="TCP"].name"#);
        assert_eq!(path_text(&[Step::value(&json!("a")), Step::parse("i:3").unwrap()]), r#"[="a"][3]"#);
        for wrong in ["", "x", "f", "k:", "k:{}", "k:1", "v:", "i:x", "q:a", "."] {
            assert_eq!(Step::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Step::parse("f:a:b").unwrap(), Step::field("a:b"));
    }

    #[test]
    fn subtracting_leaves_what_is_below() {
        let paths: [&[&str]; 3] = [&["a"], &["a", "b"], &["c"]];
        let set = |paths: &[&[&str]]| {
            let mut set = Set::default();
            for path in paths {
                set.insert(&path.iter().map(|s| Step::field(s)).collect::<Vec<_>>());
            }
            set
        };
        let mut left = set(&paths);
        left.subtract(&set(&[&["a"], &["c"]]));
        assert_eq!(left, set(&[&["a", "b"]]));
        left.subtract(&set(&[&["a", "b"]]));
        assert!(left.is_empty());
        assert_eq!(set(&paths).intersection(&set(&[&["a", "b"], &["x"]])), set(&[&["a", "b"]]));
    }
}
