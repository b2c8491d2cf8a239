//! What a reconciler decides, and the one way it is carried out.
//!
//! A plan is data: writes in order, each with the event that follows its success and with what its failure means for
//! the object's status, and then the status that the object has when all went well. Deciding is pure; only
//! [`Context::carry_out`] writes.

use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;

use ember_api::status::{Conditioned, Status};
use ember_reconcile::apply::{Action, Verb};
use ember_reconcile::cache::Cache;
use ember_reconcile::event::{EventRecorder, EventType};
use ember_reconcile::queue::Next;
use jiff::Timestamp;
use kube::core::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::context::Context;

/// Text of an event on the reconciled object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventText {
    pub(crate) kind: EventType,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl EventText {
    pub(crate) fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind: EventType::Normal, reason, message: message.into() }
    }

    pub(crate) fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind: EventType::Warning, reason, message: message.into() }
    }
}

/// What a failed write means.
#[derive(Clone, Debug)]
pub(crate) struct Failure<K> {
    /// Reason and beginning of the message of a Warning event; the API's words follow.
    pub(crate) event: Option<(&'static str, String)>,
    /// Beginning of the reconcile's error; the API's words follow.
    pub(crate) error: String,
    /// The object as it stands when this write fails; `None` leaves its status alone.
    pub(crate) object: Option<K>,
    /// Puts the API's words into the status.
    pub(crate) explain: Option<fn(&mut K, &str, Timestamp)>,
    /// The failure is logged, its event is a Normal one, and the plan goes on.
    pub(crate) tolerated: bool,
    /// That the object exists already is no news but an outdated view: only the error is left of the failure.
    pub(crate) may_exist: bool,
    /// The reconcile's error makes no event of its own.
    pub(crate) quiet: bool,
}

impl<K> Failure<K> {
    /// A failure that ends the reconcile with `error: <what the API said>`, or just the API's words if `error` is
    /// empty.
    pub(crate) fn error(error: impl Into<String>, object: K) -> Self {
        Self { object: Some(object), ..Self::without_status(error) }
    }

    /// A failure that also is reported by a Warning event `message: <what the API said>`.
    pub(crate) fn with_event(mut self, reason: &'static str, message: impl Into<String>) -> Self {
        self.event = Some((reason, message.into()));
        self
    }

    /// Ends the reconcile and leaves the status of kinds that have none alone.
    pub(crate) fn without_status(error: impl Into<String>) -> Self {
        Self {
            event: None,
            error: error.into(),
            object: None,
            explain: None,
            tolerated: false,
            may_exist: false,
            quiet: false,
        }
    }

    /// A failure that does not end the reconcile.
    pub(crate) fn tolerated(mut self) -> Self {
        self.tolerated = true;
        self
    }

    /// A failure whose error makes no event.
    pub(crate) fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// The event that the failure makes; `exists` tells that the object to create was there already.
    pub(crate) fn event_text(&self, words: &str, exists: bool) -> Option<EventText> {
        let (reason, message) = self.event.as_ref().filter(|_| !(exists && self.may_exist))?;
        let kind = if self.tolerated { EventType::Normal } else { EventType::Warning };
        Some(EventText { kind, reason, message: format!("{message}: {words}") })
    }

    /// The reconcile's error.
    pub(crate) fn error_text(&self, words: &str) -> String {
        if self.error.is_empty() { words.to_owned() } else { format!("{}: {words}", self.error) }
    }

    /// The object with the status that the failure leaves.
    pub(crate) fn into_object(self, words: &str, exists: bool, now: Timestamp) -> Option<K> {
        let mut object = self.object?;
        if let Some(explain) = self.explain.filter(|_| !(exists && self.may_exist)) {
            explain(&mut object, words, now);
        }
        Some(object)
    }
}

/// One write of a plan.
#[derive(Clone, Debug)]
pub(crate) struct Step<K> {
    pub(crate) action: Action,
    pub(crate) done: Option<EventText>,
    pub(crate) failed: Failure<K>,
}

/// What is to be done about one object of kind `K`.
#[derive(Clone, Debug)]
pub(crate) struct Plan<K> {
    pub(crate) steps: Vec<Step<K>>,
    /// Events without a write.
    pub(crate) events: Vec<EventText>,
    /// The object with its new status; `None` for reconcilers that write no status.
    pub(crate) object: Option<K>,
    /// Why the reconcile has to be tried again.
    pub(crate) error: Option<String>,
    /// When to look again even if nothing changes.
    pub(crate) requeue_after: Option<Duration>,
}

impl<K> Default for Plan<K> {
    fn default() -> Self {
        Self { steps: Vec::new(), events: Vec::new(), object: None, error: None, requeue_after: None }
    }
}

impl<K> Plan<K> {
    pub(crate) fn step(&mut self, action: Action, done: Option<EventText>, failed: Failure<K>) {
        self.steps.push(Step { action, done, failed });
    }
}

/// Why a reconcile has to be tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The cache was behind the API: not worth an event.
    #[error("{0}")]
    Outdated(String),
    /// Anything else, as the InternalError event says it.
    #[error("{0}")]
    Failed(String),
}

/// The object at the start of its reconcile: missing conditions added, `Ready` unknown if the generation is new.
pub(crate) fn begin<K: Conditioned + Clone>(original: &K, now: Timestamp) -> K {
    let mut object = original.clone();
    let generation = object.generation();
    object.status_mut_or_default().begin_reconcile(generation, now);
    object
}

/// Ends the reconcile of `object`: its generation counts as observed. The action that writes the status, if anything
/// but times is new in it. Of `object` only the status counts: what was assumed about the rest while deciding is not
/// sent.
pub(crate) fn status_action<K>(original: &K, object: &mut K, now: Timestamp) -> Option<Action>
where
    K: Conditioned + Resource<DynamicType = ()> + Serialize + Clone,
{
    let generation = object.generation();
    let nothing = K::Status::default();
    let read = original.status_ref().unwrap_or(&nothing);
    object.status_mut_or_default().end_reconcile(read, generation, now);
    let status = object.status_ref().filter(|status| !status.same_state(read))?;
    let mut written = original.clone();
    written.status_mut_or_default().clone_from(status);
    Some(Action::update_status(&written))
}

impl Context {
    /// Carries out a plan made for `original`, which `cache` holds.
    pub(crate) async fn carry_out<K>(
        &self,
        original: &K,
        plan: Plan<K>,
        cache: &Cache<K>,
        events: &EventRecorder,
        now: Timestamp,
    ) -> Result<Next, Error>
    where
        K: Conditioned + Resource<DynamicType = ()> + Serialize + DeserializeOwned,
        K: Clone + Debug + Send + Sync + 'static,
    {
        let record =
            |event: &EventText| events.record(original, event.kind, event.reason, &event.message, now);
        let mut object = plan.object;
        let mut error = plan.error.map(Error::Failed);
        let mut quiet = false;
        let mut versions: HashMap<(String, String), Value> = HashMap::new();
        for step in plan.steps {
            let mut action = step.action;
            let target = (action.resource.plural.to_string(), action.name.clone());
            // An object that this plan created can be updated by it, too.
            if let Verb::Update(value) = &mut action.verb
                && value["metadata"].get("resourceVersion").is_none()
                && let Some(version) = versions.get(&target)
            {
                value["metadata"]["resourceVersion"] = version.clone();
            }
            match self.write(&action).await {
                Ok(stored) => {
                    if let Some(version) = stored.pointer("/metadata/resourceVersion") {
                        versions.insert(target, version.clone());
                    }
                    if let Some(event) = &step.done {
                        record(event);
                    }
                }
                Err(failure) => {
                    let words = failure.api_message();
                    let failed = step.failed;
                    let exists = failure.is_already_exists();
                    // Somebody else was faster: the next attempt knows, and nobody needs to be told.
                    if let Some(event) = failed.event_text(&words, exists).filter(|_| !failure.is_conflict())
                    {
                        record(&event);
                    }
                    if failed.tolerated {
                        tracing::warn!(%action, error = words, "a write failed");
                        continue;
                    }
                    let text = failed.error_text(&words);
                    error =
                        Some(if failure.is_conflict() { Error::Outdated(text) } else { Error::Failed(text) });
                    quiet = failed.quiet;
                    object = failed.into_object(&words, exists, now);
                    break;
                }
            }
        }
        for event in &plan.events {
            record(event);
        }
        if let Some(action) = object.as_mut().and_then(|new| status_action(original, new, now))
            && let Err(failure) = self.applier.execute_into(&action, cache).await
        {
            // A conflict comes back with the newer object; the plan is made anew then.
            let text = failure.api_message();
            if failure.is_conflict() {
                return Err(Error::Outdated(text));
            }
            if !failure.is_not_found() {
                let name = original.meta().name.as_deref().unwrap_or_default();
                record(&EventText::warning(
                    "UpdateFailed",
                    format!("Failed to update status for {name:?}: {text}"),
                ));
                return Err(Error::Failed(text));
            }
        }
        match error {
            None => Ok(plan.requeue_after.map_or(Next::Wait, Next::After)),
            Some(error) => {
                if let Error::Failed(text) = &error
                    && !quiet
                {
                    record(&EventText::warning("InternalError", text.clone()));
                }
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ember_api::serving::v1::Route;

    fn failure() -> Failure<Route> {
        let explain: fn(&mut Route, &str, Timestamp) =
            |route, words, _| route.metadata.name = Some(words.to_owned());
        Failure {
            explain: Some(explain),
            may_exist: true,
            ..Failure::error("failed", Route::default()).with_event("CreationFailed", "Failed")
        }
    }

    #[test]
    fn what_may_exist_is_no_news_when_it_does() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(failure().event_text("no", true), None);
        assert_eq!(
            failure().event_text("no", false),
            Some(EventText::warning("CreationFailed", "Failed: no"))
        );
        assert_eq!(failure().into_object("no", true, now).and_then(|route| route.metadata.name), None);
        let explained = failure().into_object("no", false, now).and_then(|route| route.metadata.name);
        assert_eq!(explained.as_deref(), Some("no"));
        assert_eq!(failure().error_text("no"), "failed: no");
        assert_eq!(Failure::<Route>::without_status("").error_text("no"), "no");
    }

    #[test]
    fn a_tolerated_failure_is_told_without_alarm() {
        let event = failure().tolerated().event_text("no", false);
        assert_eq!(event, Some(EventText::normal("CreationFailed", "Failed: no")));
    }

    #[test]
    fn only_the_status_of_the_planned_object_is_sent() {
        let original = Route::default();
        let mut planned = original.clone();
        planned.spec.traffic.push(Default::default());
        planned.status_mut_or_default().url = Some("http://r".to_owned());
        let action = status_action(&original, &mut planned, Timestamp::UNIX_EPOCH).expect("a write");
        let Verb::UpdateStatus(sent) = action.verb else { panic!("not a status") };
        assert_eq!((&sent["spec"]["traffic"], &sent["status"]["url"]), (&Value::Null, &"http://r".into()));
    }
}
