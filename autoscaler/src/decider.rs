//! One evaluation of the Knative Pod Autoscaler: from averages to a wanted number of pods.

use std::time::Duration;

use crate::time::Time;
use crate::window::MaxWindow;

/// The step of the scale-down-delay window.
const SCALE_DOWN_DELAY_STEP: Duration = Duration::from_secs(2);

/// What the load is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum ScalingMetric {
    /// Requests in flight; also what an unknown metric name means.
    #[default]
    Concurrency,
    /// Requests a second.
    Rps,
}

impl ScalingMetric {
    /// The metric named by the annotation.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        if name == "rps" { Self::Rps } else { Self::Concurrency }
    }
}

/// What a decider is told about its revision; by default what Knative's defaults make of one.
#[derive(Debug, Clone, PartialEq)]
pub struct DeciderSpec {
    /// Largest factor of growth in one evaluation.
    pub max_scale_up_rate: f64,
    /// Largest factor of shrinking in one evaluation.
    pub max_scale_down_rate: f64,
    /// What load is measured in.
    pub scaling_metric: ScalingMetric,
    /// Load a pod should carry.
    pub target_value: f64,
    /// Load a pod can carry.
    pub total_value: f64,
    /// Burst to be ready for without the activator; 0 never uses it, -1 always.
    pub target_burst_capacity: f64,
    /// Load one activator can carry.
    pub activator_capacity: f64,
    /// Ratio of wanted to ready pods from which the autoscaler panics.
    pub panic_threshold: f64,
    /// The long window, also the time to calm down.
    pub stable_window: Duration,
    /// How long a smaller scale has to be wanted before it is taken. Read once, when the decider is created.
    pub scale_down_delay: Duration,
    /// Pods to start with.
    pub initial_scale: i32,
    /// Whether a route leads to the revision.
    pub reachable: bool,
    /// Smallest scale other than zero.
    pub activation_scale: i32,
}

/// Averages of the revision's metric over its two windows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Over the stable window.
    pub stable: f64,
    /// Over the panic window.
    pub panic: f64,
}

/// Whether the autoscaler panics: traffic outgrew the pods, so nothing shrinks until a calm stable window passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Follow the stable window.
    Stable,
    /// Follow the larger of both windows, and never down.
    Panic {
        /// When the threshold was last exceeded.
        since: Time,
    },
}

/// What an evaluation concluded, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// Wanted pods, before the bounds of the revision.
    pub desired: i32,
    /// Burst the ready pods could take beyond the wanted capacity; negative keeps the activator in the path.
    pub excess_burst_capacity: i32,
    /// What `excess_burst_capacity` follows from.
    pub burst: Burst,
    /// The averages it is based on.
    pub load: Load,
    /// The ready pods it is based on.
    pub ready: i32,
    /// Pods the stable window asks for, unlimited.
    pub stable_pods: f64,
    /// Pods the panic window asks for, unlimited.
    pub panic_pods: f64,
    /// Mode after the evaluation.
    pub mode: Mode,
    /// What determined `desired`.
    pub reason: Reason,
}

/// What the excess burst capacity follows from, and with it whether requests go through the activator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Burst {
    /// A target burst capacity of 0: the activator is never in the path of an active revision.
    NeverProxied,
    /// A target burst capacity of -1: it always is.
    AlwaysProxied,
    /// The ready pods can take the panic window's load and the target burst capacity on top.
    Room,
    /// They cannot: the activator has to hold back what is too much for them.
    Shortage,
}

/// What determined the wanted number of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The stable window's load, or what limited it.
    Stable(Option<Limit>),
    /// The panic window's load, or what limited it.
    Panic(Option<Limit>),
    /// Scale of an earlier moment of the same panic.
    PanicFloor,
    /// Scale of an earlier moment within the scale-down delay.
    ScaleDownDelay,
}

/// What kept a window from the number of pods that its load asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The limit of growth.
    ScaleUpRate,
    /// The limit of shrinking.
    ScaleDownRate,
    /// The smallest scale other than zero.
    ActivationScale,
}

/// The state that one evaluation leaves to the next.
#[derive(Debug, Clone)]
pub struct Decider {
    mode: Mode,
    max_panic_pods: i32,
    delay: Option<MaxWindow>,
}

impl Decider {
    /// A decider for a revision that has `ready` pods now. With more than one it starts in panic: the past is
    /// unknown, so they stay for a stable window.
    #[must_use]
    pub fn new(spec: &DeciderSpec, ready: i32, now: Time) -> Self {
        Self {
            mode: if ready > 1 { Mode::Panic { since: now } } else { Mode::Stable },
            max_panic_pods: ready,
            delay: (!spec.scale_down_delay.is_zero())
                .then(|| MaxWindow::new(spec.scale_down_delay, SCALE_DOWN_DELAY_STEP)),
        }
    }

    /// The present mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The largest scale wanted since the panic began.
    #[must_use]
    pub fn max_panic_pods(&self) -> i32 {
        self.max_panic_pods
    }

    /// Evaluates `load` on `ready` pods. `None` when load or target is no number, which is as good as no data.
    pub fn evaluate(&mut self, spec: &DeciderSpec, now: Time, ready: i32, load: Load) -> Option<Decision> {
        let stable_pods = (load.stable / spec.target_value).ceil();
        let panic_pods = (load.panic / spec.target_value).ceil();
        if stable_pods.is_nan() || panic_pods.is_nan() {
            return None;
        }
        let pods = f64::from(ready.max(1));
        let up = (spec.max_scale_up_rate * pods).ceil();
        let down = if spec.reachable { (pods / spec.max_scale_down_rate).floor() } else { 0.0 };
        let (stable_scale, stable_limit) = limit(spec, stable_pods, down, up);
        let (panic_scale, panic_limit) = limit(spec, panic_pods, down, up);

        if panic_pods / pods >= spec.panic_threshold {
            self.mode = Mode::Panic { since: now };
        } else if let Mode::Panic { since } = self.mode
            && since.after(spec.stable_window) < now
        {
            self.mode = Mode::Stable;
            self.max_panic_pods = 0;
        }

        let (mut desired, mut reason) = (stable_scale, Reason::Stable(stable_limit));
        if matches!(self.mode, Mode::Panic { .. }) {
            if panic_scale > desired {
                desired = panic_scale;
                reason = Reason::Panic(panic_limit);
            }
            if self.max_panic_pods > desired {
                desired = self.max_panic_pods;
                reason = Reason::PanicFloor;
            }
            self.max_panic_pods = desired;
        }
        if spec.reachable
            && let Some(delay) = &mut self.delay
        {
            let delayed = delay.record(now, desired);
            if delayed > desired {
                desired = delayed;
                reason = Reason::ScaleDownDelay;
            }
        }
        let excess_burst_capacity = excess_burst_capacity(spec, ready, load.panic);
        Some(Decision {
            desired,
            excess_burst_capacity,
            burst: Burst::of(spec, excess_burst_capacity),
            load,
            ready,
            stable_pods,
            panic_pods,
            mode: self.mode,
            reason,
        })
    }
}

/// Rate limits, then the activation scale: it may exceed the rate and looks at the unlimited number of pods.
fn limit(spec: &DeciderSpec, pods: f64, down: f64, up: f64) -> (i32, Option<Limit>) {
    let scale = whole(pods.max(down).min(up));
    if spec.activation_scale > 1 && pods > 0.0 && spec.activation_scale > scale {
        return (spec.activation_scale, Some(Limit::ActivationScale));
    }
    let limit = if pods > up {
        Some(Limit::ScaleUpRate)
    } else if pods < down {
        Some(Limit::ScaleDownRate)
    } else {
        None
    };
    (scale, limit)
}

/// A number without its fraction. What is no number counts as the smallest one: too little capacity, as in Knative.
fn whole(number: f64) -> i32 {
    if number.is_nan() { i32::MIN } else { number as i32 }
}

/// What the ready pods could take on top of the present load and the wanted burst. Negative: the activator has to
/// stay in the path.
#[must_use]
pub fn excess_burst_capacity(spec: &DeciderSpec, ready: i32, panic_load: f64) -> i32 {
    let wanted = spec.target_burst_capacity;
    if wanted == 0.0 {
        0
    } else if wanted > 0.0 {
        whole((f64::from(ready) * spec.total_value - wanted - panic_load).floor())
    } else {
        -1
    }
}

impl Burst {
    /// What led to that excess burst capacity.
    #[must_use]
    pub fn of(spec: &DeciderSpec, capacity: i32) -> Self {
        if spec.target_burst_capacity == 0.0 {
            Self::NeverProxied
        } else if spec.target_burst_capacity > 0.0 {
            if capacity < 0 { Self::Shortage } else { Self::Room }
        } else {
            Self::AlwaysProxied
        }
    }
}

/// What a decider publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeciderStatus {
    /// Wanted pods; -1 before the first evaluation.
    pub desired_scale: i32,
    /// See [`Decision::excess_burst_capacity`].
    pub excess_burst_capacity: i32,
}

impl DeciderStatus {
    /// The status before any evaluation.
    #[must_use]
    pub fn initial(spec: &DeciderSpec) -> Self {
        let wanted = spec.target_burst_capacity;
        let excess_burst_capacity = if wanted == -1.0 || wanted == 0.0 {
            wanted as i32
        } else {
            // Toward zero, where evaluations round down: Knative's difference.
            whole(f64::from(spec.initial_scale) * spec.total_value - wanted)
        };
        Self { desired_scale: -1, excess_burst_capacity }
    }

    /// Whether the change from `self` to `next` concerns the reconciler: another scale, or the other sign of the
    /// burst capacity.
    #[must_use]
    pub fn notifies(self, next: Self) -> bool {
        self.desired_scale != next.desired_scale
            || (self.excess_burst_capacity < 0) != (next.excess_burst_capacity < 0)
    }
}

/// Activators a revision gets assigned.
#[must_use]
pub fn num_activators(spec: &DeciderSpec, ready: i32) -> i32 {
    /// Two at least, so that one can fail.
    const MINIMUM: i32 = 2;
    if spec.target_burst_capacity == 0.0 {
        return MINIMUM;
    }
    let capacity = f64::from(ready) * spec.total_value + spec.target_burst_capacity.max(0.0);
    ((capacity / spec.activator_capacity).ceil() as i32).max(MINIMUM)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> DeciderSpec {
        DeciderSpec {
            max_scale_up_rate: 10.0,
            target_value: 1.0,
            total_value: 1.0,
            target_burst_capacity: 0.0,
            ..DeciderSpec::default()
        }
    }

    fn reason(spec: &DeciderSpec, stable: f64, panic: f64) -> Option<(i32, Reason)> {
        let now = Time::from_millis(0);
        let decision = Decider::new(spec, 1, now).evaluate(spec, now, 1, Load { stable, panic })?;
        Some((decision.desired, decision.reason))
    }

    #[test]
    fn a_reason_names_what_limited_the_window_that_counted() {
        let spec = spec();
        let up = Some(Limit::ScaleUpRate);
        assert_eq!(reason(&spec, 1.0, 1.0), Some((1, Reason::Stable(None))));
        assert_eq!(reason(&spec, 20.0, 20.0), Some((10, Reason::Stable(up))));
        assert_eq!(reason(&spec, 2.0, 5.0), Some((5, Reason::Panic(None))));
        assert_eq!(reason(&spec, 2.0, 20.0), Some((10, Reason::Panic(up))));
        let spec = DeciderSpec { activation_scale: 7, ..spec };
        let activation = Some(Limit::ActivationScale);
        assert_eq!(reason(&spec, 0.0, 5.0), Some((7, Reason::Panic(activation))));
        assert_eq!(reason(&spec, 2.0, 5.0), Some((7, Reason::Stable(activation))));
    }

    #[test]
    fn the_excess_burst_capacity_comes_with_what_it_follows_from() {
        let burst = |target_burst_capacity, ready, panic| {
            let spec = DeciderSpec { target_burst_capacity, total_value: 10.0, ..spec() };
            let now = Time::from_millis(0);
            let load = Load { stable: 1.0, panic };
            let decision = Decider::new(&spec, ready, now).evaluate(&spec, now, ready, load)?;
            Some((decision.excess_burst_capacity, decision.burst, decision.ready))
        };
        assert_eq!(burst(0.0, 1, 50.0), Some((0, Burst::NeverProxied, 1)));
        assert_eq!(burst(-1.0, 9, 0.0), Some((-1, Burst::AlwaysProxied, 9)));
        assert_eq!(burst(5.0, 2, 15.0), Some((0, Burst::Room, 2)));
        assert_eq!(burst(5.0, 2, 15.5), Some((-1, Burst::Shortage, 2)));
    }
}
