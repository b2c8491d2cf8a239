//! The history of a revision while it is written.

use std::collections::BTreeMap;

use ember_autoscaler::decider::{Burst, Limit, Reason};
use ember_autoscaler::scaler::{Bound, ScaleReason};

use crate::history::{History, MAX_POINTS, Point};
use crate::revision::{Revision, STEP};
use crate::setting::Setting;
use crate::trace::Unit;

/// Writes a history.
pub(crate) struct Recording {
    every: i64,
    points: Vec<Point>,
    panics: Vec<(f64, f64)>,
    reasons: Durations,
    scale_reasons: Durations,
    burst_reasons: Durations,
}

/// Milliseconds by name.
type Durations = BTreeMap<&'static str, i64>;

impl Recording {
    pub(crate) fn new(end: i64) -> Self {
        let steps = (end + STEP - 1) / STEP;
        let every = ((steps + MAX_POINTS - 1) / MAX_POINTS).max(1) * STEP;
        Self {
            every,
            points: Vec::new(),
            panics: Vec::new(),
            reasons: Durations::new(),
            scale_reasons: Durations::new(),
            burst_reasons: Durations::new(),
        }
    }

    pub(crate) fn add(&mut self, now: i64, revision: &Revision<'_>, point: &Point) {
        let seconds = now as f64 / 1000.0;
        match self.points.last_mut() {
            Some(last) if now % self.every != 0 => last.raise(point),
            _ => self.points.push(Point { time: seconds, ..*point }),
        }
        let open = self.panics.last().is_some_and(|&(_, end)| end.is_infinite());
        if point.panic && !open {
            self.panics.push((seconds, f64::INFINITY));
        } else if !point.panic
            && open
            && let Some(last) = self.panics.last_mut()
        {
            last.1 = seconds;
        }
        if let Some(reason) = revision.reason {
            *self.reasons.entry(reason_name(reason)).or_default() += STEP;
        }
        if let Some(burst) = revision.burst {
            *self.burst_reasons.entry(burst_name(burst)).or_default() += STEP;
        }
        *self.scale_reasons.entry(scale_reason_name(revision.scale_reason)).or_default() += STEP;
    }

    pub(crate) fn finish(
        mut self,
        setting: &Setting,
        unit: Unit,
        revision: &Revision<'_>,
        now: i64,
    ) -> History {
        let seconds = now as f64 / 1000.0;
        if let Some(last) = self.panics.last_mut() {
            last.1 = last.1.min(seconds);
        }
        let mut summary = revision.summary;
        summary.seconds = seconds;
        summary.queued_at_end = revision.queued;
        summary.panics = self.panics.len() as u64;
        summary.mean_wait_seconds =
            if summary.requests > 0.0 { summary.mean_wait_seconds / summary.requests } else { 0.0 };
        let in_seconds = |durations: Durations| {
            durations.into_iter().map(|(name, millis)| (name, millis as f64 / 1000.0)).collect()
        };
        History {
            setting: setting.name.clone(),
            unit,
            summary,
            step_seconds: self.every as f64 / 1000.0,
            points: self.points,
            panics: self.panics,
            reasons: in_seconds(self.reasons),
            scale_reasons: in_seconds(self.scale_reasons),
            burst_reasons: in_seconds(self.burst_reasons),
        }
    }
}

/// What a reason of the decider is called.
fn reason_name(reason: Reason) -> &'static str {
    match reason {
        Reason::Stable(None) => "stable-window",
        Reason::Stable(Some(Limit::ScaleUpRate)) => "max-scale-up-rate",
        Reason::Stable(Some(Limit::ScaleDownRate)) => "max-scale-down-rate",
        Reason::Stable(Some(Limit::ActivationScale)) => "activation-scale",
        Reason::Panic(None) => "panic-window",
        Reason::Panic(Some(Limit::ScaleUpRate)) => "panic-window-max-scale-up-rate",
        Reason::Panic(Some(Limit::ScaleDownRate)) => "panic-window-max-scale-down-rate",
        Reason::Panic(Some(Limit::ActivationScale)) => "panic-window-activation-scale",
        Reason::PanicFloor => "panic-floor",
        Reason::ScaleDownDelay => "scale-down-delay",
    }
}

/// What a reason of the scale is called.
fn scale_reason_name(reason: ScaleReason) -> &'static str {
    match reason {
        ScaleReason::NoDecision => "no-decision",
        ScaleReason::Desired(None) => "desired",
        ScaleReason::Desired(Some(Bound::MinScale)) => "min-scale",
        ScaleReason::Desired(Some(Bound::MaxScale)) => "max-scale",
        ScaleReason::Desired(Some(Bound::InitialScale)) => "initial-scale",
        ScaleReason::ScaleToZeroDisabled => "scale-to-zero-disabled",
        ScaleReason::ActivationTimedOut => "activation-timed-out",
        ScaleReason::Activating => "activating",
        ScaleReason::Deactivating => "deactivating",
        ScaleReason::StayingActive => "staying-active",
        ScaleReason::ActivatorNotInPath => "activator-not-in-path",
        ScaleReason::InactiveLongEnough => "inactive-long-enough",
        ScaleReason::Retention => "scale-to-zero-pod-retention-period",
        ScaleReason::ProxiedLongEnough => "proxied-long-enough",
        ScaleReason::Grace => "scale-to-zero-grace-period",
    }
}

/// What a reason of the excess burst capacity is called.
fn burst_name(burst: Burst) -> &'static str {
    match burst {
        Burst::NeverProxied => "never-proxied",
        Burst::AlwaysProxied => "always-proxied",
        Burst::Room => "room",
        Burst::Shortage => "shortage",
    }
}
