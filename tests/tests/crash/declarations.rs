//! Objects that a client declares, and what it may find of them after a crash.

use std::sync::atomic::{AtomicU64, Ordering};

use ember_tests::api;
use fastrand::Rng;
use kube::{Client, Error};
use serde_json::{Value, json};

/// What is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    ConfigMap,
    Secret,
    Service,
}

impl Kind {
    fn collection(self) -> &'static str {
        match self {
            Self::ConfigMap => "/api/v1/namespaces/default/configmaps",
            Self::Secret => "/api/v1/namespaces/default/secrets",
            Self::Service => "/apis/serving.knative.dev/v1/namespaces/default/services",
        }
    }

    /// An object whose value is `value`. Digits are valid base64, as Secrets need.
    fn object(self, name: &str, value: u64) -> Value {
        let data = json!({"value": format!("{value:08}")});
        let metadata = json!({"name": name});
        match self {
            Self::ConfigMap => json!({"metadata": metadata, "data": data}),
            Self::Secret => json!({"metadata": metadata, "data": data}),
            Self::Service => json!({
                "apiVersion": "serving.knative.dev/v1",
                "kind": "Service",
                "metadata": metadata,
                "spec": {"template": {
                    "metadata": {"annotations": {"autoscaling.knative.dev/initial-scale": "0"}},
                    "spec": {"containers": [{
                        "image": "dev.local/host",
                        "command": ["ember", "demo-app", "hello"],
                        "env": [{"name": "TARGET", "value": format!("{value:08}")}],
                    }]},
                }},
            }),
        }
    }

    /// The patch that changes an object's value.
    fn change(self, name: &str, value: u64) -> Value {
        let object = self.object(name, value);
        match self {
            Self::ConfigMap | Self::Secret => json!({"data": object["data"]}),
            Self::Service => json!({"spec": object["spec"]}),
        }
    }

    fn value(self, object: &Value) -> u64 {
        let value = match self {
            Self::ConfigMap | Self::Secret => &object["data"]["value"],
            Self::Service => &object["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"],
        };
        value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no value in {object}"))
    }
}

/// One state of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    value: u64,
    uid: String,
    generation: Option<i64>,
    version: u64,
}

/// What was asked for and not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Put(u64),
    Delete,
}

/// An object that one client alone writes.
#[derive(Debug)]
pub(crate) struct Declaration {
    kind: Kind,
    name: String,
    /// The last value asked for.
    value: u64,
    /// What was acknowledged last; `None`: that it is absent.
    acknowledged: Option<State>,
    attempt: Option<Attempt>,
}

/// The instance is gone, so that a client has no answer.
pub(crate) struct Gone;

impl Declaration {
    pub(crate) fn new(kind: Kind, name: String) -> Self {
        Self { kind, name, value: 0, acknowledged: None, attempt: None }
    }

    fn path(&self) -> String {
        format!("{}/{}", self.kind.collection(), self.name)
    }

    /// Creates, changes or deletes the object, and counts the acknowledgement.
    pub(crate) async fn write(
        &mut self,
        client: &Client,
        rng: &mut Rng,
        acknowledged: &AtomicU64,
    ) -> Result<(), Gone> {
        let delete = self.acknowledged.is_some() && rng.u8(0..5) == 0;
        let result = if delete {
            self.attempt = Some(Attempt::Delete);
            api::delete(client, &self.path()).await.map(|_| None)
        } else {
            self.value += 1;
            self.attempt = Some(Attempt::Put(self.value));
            let answer = if self.acknowledged.is_some() {
                api::merge(client, &self.path(), &self.kind.change(&self.name, self.value)).await
            } else {
                let object = self.kind.object(&self.name, self.value);
                api::create(client, self.kind.collection(), &object).await
            };
            answer.map(Some)
        };
        match result {
            Ok(object) => {
                let state = object.map(|object| self.state(&object));
                if let Some(state) = &state {
                    assert_eq!(state.value, self.value, "{} was acknowledged with another value", self.name);
                }
                self.acknowledged = state;
                self.attempt = None;
                acknowledged.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(Error::Api(status)) => panic!("{:?} of {self:?}: {status}", self.attempt),
            Err(_) => Err(Gone),
        }
    }

    fn state(&self, object: &Value) -> State {
        State {
            value: self.kind.value(object),
            uid: object["metadata"]["uid"].as_str().expect("a uid").to_owned(),
            generation: object["metadata"]["generation"].as_i64(),
            version: version(object),
        }
    }

    /// Finds the object as it was acknowledged, or as it was asked for since, and takes that as the new state.
    pub(crate) async fn check(&mut self, client: &Client) {
        let found = match api::get(client, &self.path()).await {
            Ok(object) => Some(self.state(&object)),
            Err(Error::Api(status)) if status.code == 404 => None,
            Err(error) => panic!("{}: {error}", self.name),
        };
        let asked = match (&found, self.attempt) {
            (Some(found), Some(Attempt::Put(value))) => found.value == value,
            (None, Some(Attempt::Delete)) => true,
            _ => false,
        };
        let kept = match (&found, &self.acknowledged) {
            (Some(found), Some(acknowledged)) => {
                found.value == acknowledged.value && found.generation == acknowledged.generation
            }
            (None, None) => true,
            _ => false,
        };
        assert!(asked || kept, "after the crash {found:?} was found of {self:?}");
        if let (Some(found), Some(acknowledged)) = (&found, &self.acknowledged) {
            assert_eq!(found.uid, acknowledged.uid, "{}: another object", self.name);
            assert!(found.version >= acknowledged.version, "{}: {found:?} of {self:?}", self.name);
        }
        self.acknowledged = found;
        self.attempt = None;
    }
}

/// The resourceVersion of an object or a list.
pub(crate) fn version(object: &Value) -> u64 {
    let version = object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok());
    version.unwrap_or_else(|| panic!("no resourceVersion in {object}"))
}
