//! `ember wait`: until objects have a condition, or are gone.

use std::fmt;
use std::path::PathBuf;
use std::pin::pin;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use serde_json::Value;
use tokio::time::Instant;

use super::commands::{plain, say};
use super::connect;
use super::resources::{Collection, Resources};

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A condition with a status.
    Condition {
        /// Its type, as `Ready`.
        kind: String,
        /// `True`, unless told otherwise.
        status: String,
    },
    /// That the object is gone.
    Gone,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split('=').collect::<Vec<_>>()[..] {
            ["delete"] => Ok(Self::Gone),
            ["condition", kind] if !kind.is_empty() => {
                Ok(Self::Condition { kind: kind.to_owned(), status: "True".to_owned() })
            }
            ["condition", kind, status] if !kind.is_empty() && !status.is_empty() => {
                Ok(Self::Condition { kind: kind.to_owned(), status: status.to_owned() })
            }
            _ => Err("must be condition=TYPE, condition=TYPE=STATUS or delete".to_owned()),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Condition { kind, status } => write!(f, "condition {kind}={status}"),
            Self::Gone => f.write_str("deletion"),
        }
    }
}

impl Wanted {
    /// Whether an object, or its absence, is what is waited for; if not, why.
    pub(crate) fn check(&self, object: Option<&Value>) -> Result<(), String> {
        let (kind, status, object) = match (self, object) {
            (Self::Gone, None) => return Ok(()),
            (Self::Gone, Some(object)) => {
                let ending = object["metadata"]["deletionTimestamp"].is_string();
                return Err(if ending { "it is being deleted" } else { "it is there" }.to_owned());
            }
            (Self::Condition { .. }, None) => return Err("it is gone".to_owned()),
            (Self::Condition { kind, status }, Some(object)) => (kind, status, object),
        };
        let (seen, generation) = (&object["status"]["observedGeneration"], &object["metadata"]["generation"]);
        if seen.as_i64() < generation.as_i64() && seen.is_i64() {
            return Err(format!("its controller has not seen generation {generation} yet"));
        }
        let conditions = object["status"]["conditions"].as_array();
        let found = conditions
            .into_iter()
            .flatten()
            .find(|c| c["type"].as_str().is_some_and(|of| of.eq_ignore_ascii_case(kind)));
        let Some(found) = found else { return Err(format!("it has no condition {kind} yet")) };
        let is = found["status"].as_str().unwrap_or("Unknown");
        if is.eq_ignore_ascii_case(status) {
            return Ok(());
        }
        let words = [&found["reason"], &found["message"]].map(|word| word.as_str().unwrap_or_default());
        let why: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        Err(if why.is_empty() {
            format!("{kind} is {is}")
        } else {
            format!("{kind} is {is}: {}", why.join(": "))
        })
    }
}

/// Names on the command line: `KIND/NAME …`, or `KIND NAME …`; with `all`, `KIND`.
///
/// # Errors
/// When they are neither.
fn targets(words: &[String], all: bool) -> anyhow::Result<Vec<(String, Option<String>)>> {
    let (kind, names) = words.split_first().context("KIND/NAME is missing, for instance ksvc/hello")?;
    if all {
        if kind.contains('/') || !names.is_empty() {
            bail!("--all goes with a kind alone, for instance: ember wait ksvc --all");
        }
        return Ok(vec![(kind.clone(), None)]);
    }
    if kind.contains('/') {
        let split = |word: &String| match word.split_once('/') {
            Some((kind, name)) if !kind.is_empty() && !name.is_empty() => {
                Ok((kind.to_owned(), Some(name.to_owned())))
            }
            _ => bail!("{word:?} must be KIND/NAME, for instance ksvc/hello"),
        };
        return words.iter().map(split).collect();
    }
    if names.is_empty() {
        bail!("the name of a {kind} is missing: {kind}/NAME, or {kind} --all");
    }
    if let Some(name) = names.iter().find(|name| name.contains('/')) {
        bail!("{name:?} must be a name: kind {kind} was given before");
    }
    Ok(names.iter().map(|name| (kind.clone(), Some(name.clone()))).collect())
}

/// `ember wait`.
pub(crate) async fn run(
    kubeconfig: PathBuf,
    words: &[String],
    all: bool,
    wanted: &Wanted,
    timeout: Duration,
    namespace: &str,
) -> anyhow::Result<()> {
    let targets = targets(words, all)?;
    let client = connect(&kubeconfig).await?;
    let resources = Resources::discover(&client).await?;
    let deadline = Instant::now() + timeout;
    let mut failed = Vec::new();
    for (kind, name) in targets {
        let collection = resources.of_name(&kind)?;
        let api = api(&client, collection, namespace);
        let names = match name {
            Some(name) => vec![name],
            None => {
                let list = api.list(&ListParams::default()).await.map_err(plain)?;
                let names: Vec<String> = list.items.into_iter().filter_map(|o| o.metadata.name).collect();
                if names.is_empty() && *wanted != Wanted::Gone {
                    bail!("there are no {} in namespace {namespace:?}", collection.plural);
                }
                names
            }
        };
        for name in names {
            let label = format!("{}/{name}", collection.kind.to_lowercase());
            match wait(&api, &name, wanted, deadline).await.with_context(|| label.clone())? {
                Ok(()) if *wanted == Wanted::Gone => say(&format!("{label} deleted"))?,
                Ok(()) => say(&format!("{label} condition met"))?,
                Err(why) => failed.push(format!("{label}: {why}")),
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("no {wanted} within {timeout:?}: {}; `ember doctor` tells more", failed.join("; "))
}

fn api(client: &Client, collection: &Collection, namespace: &str) -> Api<DynamicObject> {
    let (group, version) =
        collection.group_version.split_once('/').unwrap_or(("", &collection.group_version));
    let kind = GroupVersionKind::gvk(group, version, &collection.kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, &collection.plural);
    if collection.namespaced {
        Api::namespaced_with(client.clone(), namespace, &resource)
    } else {
        Api::all_with(client.clone(), &resource)
    }
}

/// `Err` tells what was still wrong when time was over.
async fn wait(
    api: &Api<DynamicObject>,
    name: &str,
    wanted: &Wanted,
    deadline: Instant,
) -> anyhow::Result<Result<(), String>> {
    let check = |object: Option<&DynamicObject>| -> anyhow::Result<Result<(), String>> {
        let value = object.map(serde_json::to_value).transpose()?;
        Ok(wanted.check(value.as_ref()))
    };
    // Once in any case, also when no time is left; and who mistypes a name has not to wait to hear of it.
    let now = api.get_opt(name).await.map_err(plain)?;
    if now.is_none() && *wanted != Wanted::Gone {
        bail!("there is no object of that name; `ember get` lists them");
    }
    let mut last = check(now.as_ref())?;
    let mut changes = pin!(watch_object(api.clone(), name).default_backoff());
    while last.is_err() {
        match tokio::time::timeout_at(deadline, changes.next()).await {
            Ok(Some(Ok(object))) => last = check(object.as_ref())?,
            // It is tried again, and says so if that is all there is to say.
            Ok(Some(Err(error))) => last = Err(format!("the API server is out of reach: {error}")),
            Ok(None) | Err(_) => break,
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_to_wait_for_is_parsed() {
        let condition =
            |kind: &str, status: &str| Wanted::Condition { kind: kind.into(), status: status.into() };
        assert_eq!("condition=Ready".parse(), Ok(condition("Ready", "True")));
        assert_eq!("condition=Ready=False".parse(), Ok(condition("Ready", "False")));
        assert_eq!("delete".parse(), Ok(Wanted::Gone));
        for wrong in ["", "Ready", "condition", "condition=", "condition=a=", "jsonpath={.a}"] {
            assert!(wrong.parse::<Wanted>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_missing_is_told() {
        let ready: Wanted = "condition=Ready".parse().unwrap();
        let object = |seen: i64, status: &str| {
            json!({"metadata": {"generation": 2}, "status": {"observedGeneration": seen, "conditions": [
                {"type": "Ready", "status": status, "reason": "Why", "message": "because"}]}})
        };
        assert_eq!(ready.check(Some(&object(2, "True"))), Ok(()));
        assert_eq!(ready.check(Some(&object(2, "False"))), Err("Ready is False: Why: because".into()));
        let old = ready.check(Some(&object(1, "True"))).unwrap_err();
        assert_eq!(old, "its controller has not seen generation 2 yet");
        assert_eq!(ready.check(Some(&json!({}))), Err("it has no condition Ready yet".into()));
        assert_eq!(ready.check(None), Err("it is gone".into()));
        assert_eq!(Wanted::Gone.check(None), Ok(()));
        assert_eq!(Wanted::Gone.check(Some(&json!({}))), Err("it is there".into()));
    }

    #[test]
    fn names_come_with_their_kind_or_after_it() {
        let of = |words: &[&str], all| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            targets(&words, all)
        };
        let hello = ("ksvc".to_owned(), Some("hello".to_owned()));
        assert_eq!(of(&["ksvc/hello"], false).unwrap(), std::slice::from_ref(&hello));
        assert_eq!(of(&["ksvc", "hello"], false).unwrap(), [hello]);
        assert_eq!(of(&["ksvc"], true).unwrap(), [("ksvc".to_owned(), None)]);
        for (words, all) in [
            (&["ksvc"][..], false),
            (&["ksvc/a"], true),
            (&["ksvc/a", "b"], false),
            (&["ksvc", "a/b"], false),
            (&["ksvc/"], false),
        ] {
            assert!(of(words, all).is_err(), "{words:?}");
        }
    }
}
