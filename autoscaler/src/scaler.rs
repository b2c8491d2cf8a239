//! From the decider's wish to the scale of the Deployment: bounds, and the way to zero and back.

use std::time::Duration;

/// How long after finding the activator already in the path a deactivated revision is looked at again.
const PROXY_RECHECK: Duration = Duration::from_secs(3);

/// Whether a revision serves traffic; its PodAutoscaler's condition `Active`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Condition True.
    Active,
    /// Condition Unknown: pods are on their way.
    Activating,
    /// Condition False.
    Inactive,
}

/// What the decision needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleInput {
    /// The decider's wish; -1 before its first evaluation.
    pub desired: i32,
    /// Lower bound, 0 for revisions no route leads to.
    pub min: i32,
    /// Upper bound, 0 for none.
    pub max: i32,
    /// Pods to start with.
    pub initial_scale: i32,
    /// Whether the initial scale was reached once.
    pub initialized: bool,
    /// Whether routes do not lead to the revision.
    pub unreachable: bool,
    /// State and its age.
    pub activity: Activity,
    /// How long `activity` has lasted.
    pub activity_age: Duration,
    /// Whether zero is allowed at all.
    pub enable_scale_to_zero: bool,
    /// Shortest time a revision stays active.
    pub stable_window: Duration,
    /// How long pods may take to come up.
    pub activation_timeout: Duration,
    /// How long the activator has to be in the path before the last pod goes.
    pub grace: Duration,
    /// How long the last pod is kept in any case.
    pub retention: Duration,
    /// Whether the ServerlessService asks for the activator in the path.
    pub proxy_mode: bool,
    /// How long the activator has been in the path.
    pub proxy_for: Duration,
    /// Whether the path has to be probed before the last pod goes; not for revisions that always use the activator.
    pub probe_activator: bool,
    /// What the probe found, if it was made.
    pub probe: Option<bool>,
}

/// Why a scale was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleReason {
    /// There is no wish yet.
    NoDecision,
    /// The wish, or the bound of the revision that took its place.
    Desired(Option<Bound>),
    /// Zero is not allowed.
    ScaleToZeroDisabled,
    /// Pods did not come up in time.
    ActivationTimedOut,
    /// Pods are coming up.
    Activating,
    /// The stable window has passed: put the activator into the path first.
    Deactivating,
    /// The revision has not been active for a stable window.
    StayingActive,
    /// The activator was not seen in the path.
    ActivatorNotInPath,
    /// Inactive for long enough.
    InactiveLongEnough,
    /// The last pod is kept for a while.
    Retention,
    /// The activator has been in the path for long enough.
    ProxiedLongEnough,
    /// The activator has not been in the path for long enough.
    Grace,
}

/// What a revision was told about its scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// `min-scale`.
    MinScale,
    /// `max-scale`.
    MaxScale,
    /// `initial-scale`, which has not been reached yet.
    InitialScale,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// Wanted pods; -1 for no opinion.
    pub want: i32,
    /// Whether to write it to the scale target.
    pub apply: bool,
    /// When to look again.
    pub requeue: Option<Duration>,
    /// Whether the activator has to be probed until it answers.
    pub probe_until_success: bool,
    /// Why.
    pub reason: ScaleReason,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Probe the activator and ask again with the answer.
    ProbeActivator,
    /// The decision.
    Scale(Scale),
}

/// `x` within `min` and `max` (0: none); the lower bound wins.
#[must_use]
pub fn apply_bounds(min: i32, max: i32, x: i32) -> i32 {
    within((min, Bound::MinScale), max, x).0
}

/// The same with the bound that counted, if one did.
fn within((min, lower): (i32, Bound), max: i32, x: i32) -> (i32, Option<Bound>) {
    if x < min {
        (min, Some(lower))
    } else if max != 0 && x > max {
        (max, Some(Bound::MaxScale))
    } else {
        (x, None)
    }
}

/// The decider's wish within the revision's bounds, before any care for zero, and the bound that took its place.
#[must_use]
pub fn bounded(input: &ScaleInput) -> (i32, Option<Bound>) {
    let starting = input.initial_scale > 1 && !input.initialized && !input.unreachable;
    let lower = if starting && input.initial_scale > input.min {
        (input.initial_scale, Bound::InitialScale)
    } else {
        (input.min, Bound::MinScale)
    };
    within(lower, input.max, input.desired)
}

/// Decides the scale.
#[must_use]
pub fn scale(input: &ScaleInput) -> Step {
    if input.desired < 0 && input.activity != Activity::Activating {
        return decided(input.desired, false, None, ScaleReason::NoDecision);
    }
    match bounded(input) {
        (0, _) => to_zero(input),
        (want, bound) => decided(want, true, None, ScaleReason::Desired(bound)),
    }
}

fn to_zero(input: &ScaleInput) -> Step {
    if !input.enable_scale_to_zero {
        return decided(1, true, None, ScaleReason::ScaleToZeroDisabled);
    }
    let age = input.activity_age;
    match input.activity {
        Activity::Activating if age > input.activation_timeout => {
            decided(0, true, None, ScaleReason::ActivationTimedOut)
        }
        Activity::Activating => decided(-1, false, Some(input.activation_timeout), ScaleReason::Activating),
        Activity::Active if age >= input.stable_window => {
            decided(0, false, input.proxy_mode.then_some(PROXY_RECHECK), ScaleReason::Deactivating)
        }
        Activity::Active => decided(1, true, Some(input.stable_window - age), ScaleReason::StayingActive),
        Activity::Inactive => last_pod(input, age),
    }
}

fn last_pod(input: &ScaleInput, age: Duration) -> Step {
    if input.probe_activator {
        match input.probe {
            None => return Step::ProbeActivator,
            Some(true) => {}
            Some(false) => {
                return Step::Scale(Scale {
                    want: 0,
                    apply: false,
                    requeue: None,
                    probe_until_success: true,
                    reason: ScaleReason::ActivatorNotInPath,
                });
            }
        }
    }
    if age >= input.grace.max(input.retention) {
        decided(0, true, None, ScaleReason::InactiveLongEnough)
    } else if age < input.retention {
        decided(0, false, Some(input.retention - age), ScaleReason::Retention)
    } else if input.proxy_for >= input.grace {
        decided(0, true, None, ScaleReason::ProxiedLongEnough)
    } else {
        decided(0, false, Some(input.grace - input.proxy_for), ScaleReason::Grace)
    }
}

fn decided(want: i32, apply: bool, requeue: Option<Duration>, reason: ScaleReason) -> Step {
    Step::Scale(Scale { want, apply, requeue, probe_until_success: false, reason })
}

/// Facts that the next activity follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivityInput {
    /// The scale decided on; -1 for no opinion.
    pub want: i32,
    /// Ready pods.
    pub ready: i32,
    /// Lower bound, 0 for revisions no route leads to.
    pub min: i32,
    /// Pods to start with.
    pub initial_scale: i32,
    /// Whether the initial scale was reached before.
    pub initialized: bool,
    /// Whether the revision has a Service.
    pub has_service: bool,
    /// The activity so far.
    pub before: Activity,
}

/// What becomes of the condition `Active`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivityChange {
    /// As it was.
    Keep,
    /// True.
    Active,
    /// Unknown, `Queued`.
    Activating,
    /// False, `NoTraffic`.
    NoTraffic,
    /// False, `TimedOut`.
    TimedOut,
}

/// The next activity, and whether the revision counts as initialised from now on.
#[must_use]
pub fn activity(input: &ActivityInput) -> (ActivityChange, bool) {
    let threshold = input.min.max(if input.initialized { 1 } else { input.initial_scale });
    let enough = input.ready >= threshold;
    let initialized = input.initialized || (enough && input.has_service);
    let change = if input.want == 0 || threshold == 0 {
        if input.before == Activity::Activating && threshold > 0 {
            ActivityChange::TimedOut
        } else {
            ActivityChange::NoTraffic
        }
    } else if input.want > 0 {
        if enough { ActivityChange::Active } else { ActivityChange::Activating }
    } else {
        match (input.before, enough) {
            (Activity::Inactive, true) => ActivityChange::Keep,
            (Activity::Inactive, false) => ActivityChange::NoTraffic,
            (_, true) => ActivityChange::Active,
            (_, false) => ActivityChange::Activating,
        }
    };
    (change, initialized)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A revision that has been active for an hour.
    fn input(desired: i32) -> ScaleInput {
        ScaleInput {
            desired,
            min: 0,
            max: 0,
            initial_scale: 1,
            initialized: true,
            unreachable: false,
            activity: Activity::Active,
            activity_age: Duration::from_secs(3600),
            enable_scale_to_zero: true,
            stable_window: Duration::from_secs(60),
            activation_timeout: Duration::from_secs(630),
            grace: Duration::from_secs(30),
            retention: Duration::ZERO,
            proxy_mode: false,
            proxy_for: Duration::ZERO,
            probe_activator: true,
            probe: None,
        }
    }

    fn reason(input: &ScaleInput) -> Option<(i32, ScaleReason)> {
        match scale(input) {
            Step::Scale(scale) => Some((scale.want, scale.reason)),
            Step::ProbeActivator => None,
        }
    }

    #[test]
    fn a_reason_names_the_bound_that_took_the_place_of_the_wish() {
        let desired = |bound| ScaleReason::Desired(bound);
        assert_eq!(reason(&input(3)), Some((3, desired(None))));
        let bounded = |wish| ScaleInput { min: 2, max: 5, ..input(wish) };
        assert_eq!(reason(&bounded(0)), Some((2, desired(Some(Bound::MinScale)))));
        assert_eq!(reason(&bounded(2)), Some((2, desired(None))), "what was wished for anyway");
        assert_eq!(reason(&bounded(9)), Some((5, desired(Some(Bound::MaxScale)))));
        let starting = ScaleInput { initial_scale: 4, initialized: false, ..bounded(1) };
        assert_eq!(reason(&starting), Some((4, desired(Some(Bound::InitialScale)))));
        assert_eq!(
            reason(&ScaleInput { min: 4, ..starting.clone() }),
            Some((4, desired(Some(Bound::MinScale))))
        );
        assert_eq!(
            reason(&ScaleInput { unreachable: true, ..starting }),
            Some((2, desired(Some(Bound::MinScale))))
        );
        assert_eq!(reason(&input(0)), Some((0, ScaleReason::Deactivating)));
    }
}
