//! What the status of every Knative kind has in common.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::conditions::{Condition, ConditionSet, Conditions, Manager};

/// Declares a status: the common fields, then the kind's own.
macro_rules! status {
    ($(#[$meta:meta])* pub struct $name:ident { $($fields:tt)* } conditions: $set:expr) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            /// The generation that was last reconciled, successfully or not; 0 before the first time.
            #[serde(
                default,
                deserialize_with = "crate::omitempty::null_as_empty",
                skip_serializing_if = "crate::omitempty::is_empty"
            )]
            pub observed_generation: i64,
            /// The latest observations of the object's state.
            #[serde(
                default,
                deserialize_with = "crate::omitempty::null_as_empty",
                skip_serializing_if = "crate::omitempty::is_empty"
            )]
            pub conditions: crate::conditions::Conditions,
            /// Additional fields of the status.
            #[serde(
                default,
                deserialize_with = "crate::omitempty::null_as_empty",
                skip_serializing_if = "std::collections::BTreeMap::is_empty"
            )]
            pub annotations: std::collections::BTreeMap<String, String>,
            $($fields)*
        }

        impl crate::status::Status for $name {
            const CONDITION_SET: crate::conditions::ConditionSet<'static> = $set;

            fn observed_generation(&self) -> i64 {
                self.observed_generation
            }

            fn set_observed_generation(&mut self, generation: i64) {
                self.observed_generation = generation;
            }

            fn conditions(&self) -> &crate::conditions::Conditions {
                &self.conditions
            }

            fn conditions_mut(&mut self) -> &mut crate::conditions::Conditions {
                &mut self.conditions
            }

            fn annotations(&self) -> &std::collections::BTreeMap<String, String> {
                &self.annotations
            }
        }
    };
}
pub(crate) use status;

/// The status of a Knative kind: observed generation, conditions, annotations.
pub trait Status: Clone + Default + PartialEq {
    /// What the kind's happy condition depends on.
    const CONDITION_SET: ConditionSet<'static>;

    /// The generation that was last reconciled; 0 before the first time.
    fn observed_generation(&self) -> i64;
    /// Records that a generation has been dealt with.
    fn set_observed_generation(&mut self, generation: i64);
    /// The conditions.
    fn conditions(&self) -> &Conditions;
    /// The conditions, to change them by hand.
    fn conditions_mut(&mut self) -> &mut Conditions;
    /// Additional fields.
    fn annotations(&self) -> &BTreeMap<String, String>;

    /// The condition that sums up the others.
    fn top_level_condition(&self) -> Option<&Condition> {
        self.conditions().get(Self::CONDITION_SET.happy())
    }

    /// The condition of that type.
    fn condition(&self, type_: &str) -> Option<&Condition> {
        self.conditions().get(type_)
    }

    /// Changes conditions by the kind's rules, at the time `now`.
    fn manage(&mut self, now: Timestamp) -> Manager<'static, '_> {
        Self::CONDITION_SET.manage(self.conditions_mut(), now)
    }

    /// Adds the conditions that are missing.
    fn initialize_conditions(&mut self, now: Timestamp) {
        self.manage(now).init();
    }

    /// Starts a reconcile of that generation: adds missing conditions; a generation not seen before makes `Ready`
    /// `Unknown`, so that a failing reconcile leaves no stale `True`.
    fn begin_reconcile(&mut self, generation: i64, now: Timestamp) {
        let observed = self.observed_generation();
        self.manage(now).begin(observed, generation);
    }

    /// Ends a reconcile, also a failed one: the generation counts as observed, and conditions that are again as
    /// they were `read` keep their times.
    fn end_reconcile(&mut self, read: &Self, generation: i64, now: Timestamp) {
        self.set_observed_generation(generation);
        self.conditions_mut().settle(read.conditions(), now);
    }

    /// Whether the two differ in nothing but transition times; then nothing needs to be written.
    fn same_state(&self, other: &Self) -> bool {
        if !self.conditions().same_state(other.conditions()) {
            return false;
        }
        let mut aligned = other.clone();
        aligned.conditions_mut().clone_from(self.conditions());
        *self == aligned
    }
}

/// A Knative kind: an object with a [`Status`].
pub trait Conditioned {
    /// The kind's status.
    type Status: Status;

    /// `metadata.generation`; 0 where it is unset.
    fn generation(&self) -> i64;
    /// The status, if there is one yet.
    fn status_ref(&self) -> Option<&Self::Status>;
    /// The status; an empty one is made if there was none.
    fn status_mut_or_default(&mut self) -> &mut Self::Status;

    /// The status as of the present generation.
    fn current_status(&self) -> Option<&Self::Status> {
        self.status_ref().filter(|status| status.observed_generation() == self.generation())
    }

    /// Whether the present generation has been reconciled and the happy condition is `True`.
    fn is_ready(&self) -> bool {
        self.current_status().and_then(Status::top_level_condition).is_some_and(Condition::is_true)
    }

    /// Whether the present generation has been reconciled and the happy condition is `False`.
    fn is_failed(&self) -> bool {
        self.current_status().and_then(Status::top_level_condition).is_some_and(Condition::is_false)
    }

    /// The happy condition, of whichever generation.
    fn ready_condition(&self) -> Option<&Condition> {
        self.status_ref().and_then(Status::top_level_condition)
    }
}

/// Makes kinds [`Conditioned`].
macro_rules! conditioned {
    ($($kind:ty => $status:ty),+ $(,)?) => {$(
        impl crate::status::Conditioned for $kind {
            type Status = $status;

            fn generation(&self) -> i64 {
                self.metadata.generation.unwrap_or_default()
            }

            fn status_ref(&self) -> Option<&$status> {
                self.status.as_ref()
            }

            fn status_mut_or_default(&mut self) -> &mut $status {
                self.status.get_or_insert_default()
            }
        }
    )+};
}
pub(crate) use conditioned;
