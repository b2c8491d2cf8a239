//! One revision on a clock of its own: load flows in, the autoscaler's core decides, pods come and go.
//!
//! Time goes in steps of 100 ms. Load is a fluid: a pod works on as many requests at a time as it can carry (the
//! target before its utilization), what finds no room waits, first come first served. Reports, scrapes and evaluations
//! come when production's do: each second, every 2 s, and at once for traffic that finds the revision asleep.

use std::collections::VecDeque;
use std::time::Duration;

use ember_autoscaler::collection::Collection;
use ember_autoscaler::decider::{Burst, Decider, DeciderStatus, Mode, Reason, ScalingMetric};
use ember_autoscaler::scaler::{
    self, Activity, ActivityChange, ActivityInput, ScaleInput, ScaleReason, Step,
};
use ember_autoscaler::time::Time;
use ember_dataplane::stat::Stat;

use crate::history::{History, Point, Summary};
use crate::recording::Recording;
use crate::setting::Setting;
use crate::trace::{Trace, Unit};

/// Milliseconds of a step.
pub(crate) const STEP: i64 = 100;
/// A second's reports come this long after its end.
const REPORT_PHASE: i64 = 100;
/// Milliseconds between evaluations, and where in that period they are.
const TICK: (i64, i64) = (2000, 600);
/// The start of the simulated clock: 2000-01-01.
const EPOCH: i64 = 946_684_800_000;
/// How much simulated time passes between words of progress.
const PROGRESS: i64 = 600_000;
/// The name of the Service that would be scraped.
const SCRAPED: &str = "revision-private";

/// Runs `setting` over `trace`; `progress` hears from time to time how much of it is done.
///
/// It begins with a revision just deployed, its initial scale ready.
pub fn simulate(setting: &Setting, trace: &Trace, mut progress: impl FnMut(Duration)) -> History {
    let mut revision = Revision::new(setting);
    let end = i64::try_from(trace.duration().as_millis()).unwrap_or(i64::MAX);
    let mut record = Recording::new(end);
    let mut values = trace.values().iter().peekable();
    let mut load = Load { concurrency: 0.0, rps: 0.0 };
    let mut now = 0;
    while now < end {
        while let Some(&(_, value)) = values.next_if(|&&(at, _)| at <= now) {
            load = Load::of(value, trace.unit(), setting.world.request_time);
        }
        let point = revision.step(now, load);
        record.add(now, &revision, &point);
        now += STEP;
        if now % PROGRESS == 0 {
            progress(Duration::from_millis(now.unsigned_abs()));
        }
    }
    record.finish(setting, trace.unit(), &revision, now)
}

/// What arrives.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Load {
    concurrency: f64,
    rps: f64,
}

impl Load {
    fn of(value: f64, unit: Unit, request_time: Duration) -> Self {
        let seconds = request_time.as_secs_f64();
        match unit {
            Unit::Concurrency => Self { concurrency: value, rps: value / seconds },
            Unit::Rps => Self { concurrency: value * seconds, rps: value },
        }
    }
}

/// What came in since the last report.
#[derive(Debug, Default)]
struct Reported {
    /// Requests in flight, times milliseconds.
    in_flight: f64,
    requests: f64,
    millis: i64,
    /// Reported already, at once.
    at_once: f64,
}

pub(crate) struct Revision<'a> {
    setting: &'a Setting,
    /// Requests that a pod works on at a time.
    capacity: f64,
    collection: Collection,
    decider: Decider,
    status: DeciderStatus,
    pub(crate) reason: Option<Reason>,
    pub(crate) scale_reason: ScaleReason,
    pub(crate) burst: Option<Burst>,
    ready: i32,
    /// When each pod that is on its way will be ready.
    starting: VecDeque<i64>,
    wanted: i32,
    activity: Activity,
    active_since: i64,
    initialized: bool,
    /// Since when the activator is in the path.
    proxied_since: Option<i64>,
    requeue: Option<i64>,
    pub(crate) queued: f64,
    idle: bool,
    reported: Reported,
    pub(crate) summary: Summary,
}

impl<'a> Revision<'a> {
    fn new(setting: &'a Setting) -> Self {
        let spec = &setting.resolved.decider;
        let initial = spec.initial_scale;
        let seconds = setting.world.request_time.as_secs_f64();
        let carried = match spec.scaling_metric {
            ScalingMetric::Concurrency => spec.total_value,
            ScalingMetric::Rps => spec.total_value * seconds,
        };
        let limit = setting.world.container_concurrency;
        let capacity = if limit == 0 { carried } else { carried.min(f64::from(limit)) };
        let mut revision = Self {
            setting,
            capacity,
            collection: Collection::new(setting.resolved.collection(SCRAPED)),
            decider: Decider::new(spec, initial, at(0)),
            status: DeciderStatus::initial(spec),
            reason: None,
            scale_reason: ScaleReason::NoDecision,
            burst: None,
            ready: initial,
            starting: VecDeque::new(),
            wanted: initial,
            activity: if initial > 0 { Activity::Activating } else { Activity::Inactive },
            active_since: 0,
            initialized: false,
            proxied_since: Some(0),
            requeue: None,
            queued: 0.0,
            idle: true,
            reported: Reported::default(),
            summary: Summary { most_pods: initial, ..Summary::default() },
        };
        revision.reconcile(0);
        revision
    }

    /// One step from `now` on.
    fn step(&mut self, now: i64, load: Load) -> Point {
        self.welcome_pods(now);
        if now % 1000 == REPORT_PHASE && self.reported.millis > 0 {
            self.report(now);
        }
        if now % TICK.0 == TICK.1 {
            self.evaluate(now);
        }
        if self.requeue.is_some_and(|due| due <= now) {
            self.requeue = None;
            self.reconcile(now);
        }
        let busy = load.concurrency > 0.0 || self.queued > 0.0;
        if busy && self.idle && self.proxied_since.is_some() {
            self.first_request(now);
        }
        self.idle = !busy;
        self.flow(load)
    }

    fn welcome_pods(&mut self, now: i64) {
        let before = self.ready;
        while self.starting.front().is_some_and(|&due| due <= now) {
            self.starting.pop_front();
            self.ready += 1;
        }
        if self.ready != before {
            self.reconcile(now);
        }
    }

    /// Requests arrive, are worked on and leave.
    fn flow(&mut self, load: Load) -> Point {
        let room = f64::from(self.ready) * self.capacity;
        let arrived = load.rps * STEP as f64 / 1000.0;
        let full = self.queued > 0.0 || load.concurrency > room;
        let before = self.queued;
        if full {
            let seconds = self.setting.world.request_time.as_secs_f64();
            let gone = room / seconds * STEP as f64 / 1000.0;
            self.queued = (self.queued + arrived - gone).max(0.0);
            self.summary.waited += arrived;
        }
        let waiting = f64::midpoint(before, self.queued);
        let in_flight = waiting + if full { room } else { load.concurrency };
        self.reported.in_flight += in_flight * STEP as f64;
        self.reported.requests += arrived;
        self.reported.millis += STEP;

        let summary = &mut self.summary;
        let seconds = STEP as f64 / 1000.0;
        let pods = self.ready + self.starting.len() as i32;
        let ideal = (load.concurrency / self.capacity).ceil() as i32;
        summary.requests += arrived;
        // By Little's law: the waiting time of all requests together.
        summary.mean_wait_seconds += waiting * seconds;
        summary.longest_queue = summary.longest_queue.max(self.queued);
        summary.pod_seconds += f64::from(pods) * seconds;
        summary.ideal_pod_seconds += f64::from(ideal) * seconds;
        summary.most_pods = summary.most_pods.max(pods);
        summary.seconds_at_zero += if pods == 0 { seconds } else { 0.0 };
        summary.activator_seconds += if self.proxied_since.is_some() { seconds } else { 0.0 };
        let panic = matches!(self.decider.mode(), Mode::Panic { .. });
        summary.panic_seconds += if panic { seconds } else { 0.0 };
        Point {
            time: 0.0,
            offered_concurrency: load.concurrency,
            offered_rps: load.rps,
            wanted_pods: self.wanted,
            ready_pods: self.ready,
            ideal_pods: ideal,
            queued: before.max(self.queued),
            panic,
            activator_in_path: self.proxied_since.is_some(),
        }
    }

    /// The activator reports a request after silence at once.
    fn first_request(&mut self, now: i64) {
        self.reported.at_once += 1.0;
        self.collection.record(
            at(now),
            &Stat { average_concurrent_requests: 1.0, request_count: 1.0, ..Stat::default() },
        );
        self.wake(now, 1.0);
    }

    /// The last second's report. Where there is no pod and no request nobody reports.
    fn report(&mut self, now: i64) {
        let reported = std::mem::take(&mut self.reported);
        let concurrency = reported.in_flight / reported.millis as f64;
        if self.ready == 0 && concurrency == 0.0 {
            return;
        }
        let seconds = reported.millis as f64 / 1000.0;
        let stat = Stat {
            average_concurrent_requests: (concurrency - reported.at_once).max(0.0),
            request_count: reported.requests / seconds - reported.at_once,
            ..Stat::default()
        };
        self.collection.record(at(now), &stat);
        if self.proxied_since.is_some() {
            self.wake(now, stat.average_concurrent_requests);
        }
    }

    /// Traffic that finds the revision asleep is evaluated at once.
    fn wake(&mut self, now: i64, concurrency: f64) {
        if self.status.desired_scale <= 0 && concurrency != 0.0 {
            self.evaluate(now);
        }
    }

    fn evaluate(&mut self, now: i64) {
        let spec = &self.setting.resolved.decider;
        let decision = self
            .collection
            .load(spec.scaling_metric, at(now))
            .and_then(|load| self.decider.evaluate(spec, at(now), self.ready, load));
        let Some(decision) = decision else { return };
        self.reason = Some(decision.reason);
        self.burst = Some(decision.burst);
        let next = DeciderStatus {
            desired_scale: decision.desired,
            excess_burst_capacity: decision.excess_burst_capacity,
        };
        if std::mem::replace(&mut self.status, next).notifies(next) {
            self.reconcile(now);
        }
    }

    /// Decides the scale and follows it, until nothing changes.
    fn reconcile(&mut self, now: i64) {
        // Each pass but the last one changes the activity or the path; both settle.
        const PASSES: usize = 4;
        for _ in 0..PASSES {
            if !self.reconcile_once(now) {
                return;
            }
        }
        self.look_again(now, Duration::from_millis(STEP.unsigned_abs()));
    }

    fn look_again(&mut self, now: i64, after: Duration) {
        let due = now.saturating_add(i64::try_from(after.as_millis()).unwrap_or(i64::MAX));
        self.requeue = Some(self.requeue.map_or(due, |other| other.min(due)));
    }

    /// Returns whether another look is called for.
    fn reconcile_once(&mut self, now: i64) -> bool {
        // The simulated activator is in the path as soon as it has to be, and answers.
        let Step::Scale(scale) = scaler::scale(&self.scale_input(now)) else { return false };
        self.scale_reason = scale.reason;
        if scale.apply && scale.want != self.wanted {
            self.apply(now, scale.want);
        }
        if let Some(after) = scale.requeue {
            self.look_again(now, after);
        }
        let proxied = scale.want <= 0 || self.status.excess_burst_capacity < 0;
        let path_changed = proxied != self.proxied_since.is_some();
        if path_changed {
            self.proxied_since = proxied.then_some(now);
        }
        let resolved = &self.setting.resolved;
        let (change, initialized) = scaler::activity(&ActivityInput {
            want: scale.want,
            ready: self.ready,
            min: resolved.min_scale,
            initial_scale: resolved.decider.initial_scale,
            initialized: self.initialized,
            has_service: true,
            before: self.activity,
        });
        let activity = match change {
            ActivityChange::Keep => self.activity,
            ActivityChange::Active => Activity::Active,
            ActivityChange::Activating => Activity::Activating,
            ActivityChange::NoTraffic | ActivityChange::TimedOut => Activity::Inactive,
        };
        let changed = path_changed || initialized != self.initialized || activity != self.activity;
        self.initialized = initialized;
        if activity != self.activity {
            self.activity = activity;
            self.active_since = now;
        }
        changed
    }

    fn scale_input(&self, now: i64) -> ScaleInput {
        let since = |then: i64| Duration::from_millis((now - then).unsigned_abs());
        let resolved = &self.setting.resolved;
        ScaleInput {
            desired: self.status.desired_scale,
            min: resolved.min_scale,
            max: resolved.max_scale,
            initial_scale: resolved.decider.initial_scale,
            initialized: self.initialized,
            unreachable: !resolved.decider.reachable,
            activity: self.activity,
            activity_age: since(self.active_since),
            enable_scale_to_zero: resolved.enable_scale_to_zero,
            stable_window: resolved.stable_window,
            activation_timeout: resolved.activation_timeout,
            grace: resolved.grace,
            retention: resolved.retention,
            proxy_mode: self.proxied_since.is_some(),
            proxy_for: self.proxied_since.map_or(Duration::ZERO, since),
            probe_activator: !resolved.always_proxied(),
            probe: Some(true),
        }
    }

    /// Creates and ends pods; those that are not ready yet go first.
    fn apply(&mut self, now: i64, want: i32) {
        let want = want.max(0);
        self.wanted = want;
        let pods = self.ready + self.starting.len() as i32;
        if pods == 0 && want > 0 {
            self.summary.wakes += 1;
        }
        let due = now + i64::try_from(self.setting.world.pod_start.as_millis()).unwrap_or(i64::MAX - now);
        for _ in pods..want {
            self.starting.push_back(due);
            self.summary.pods_started += 1;
        }
        for _ in want..pods {
            if self.starting.pop_back().is_none() {
                self.ready -= 1;
            }
        }
    }
}

fn at(now: i64) -> Time {
    Time::from_millis(EPOCH + now)
}
