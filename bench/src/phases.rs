//! The phases of a cold start: read from the system's log, attributed to requests, put in order.

use jiff::Timestamp;

/// The log target of the lines that tell phases.
pub(crate) const LOG_TARGET: &str = "ember::coldstart";

/// One step from a request to its answer, in the order in which they follow from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The activator has told the autoscaler.
    Reported,
    /// The autoscaler's write of the scale was answered.
    Decided,
    /// The pod exists in the API.
    PodCreated,
    /// The app's program runs.
    ProcessStarted,
    /// The sidecar has seen the app answer.
    AppListening,
    /// The activator has seen the pod answer.
    Ready,
    /// The request has a pod.
    Forwarded,
    /// The client has the whole answer.
    Answered,
}

impl Phase {
    /// All, in order.
    pub(crate) const ALL: [Self; 8] = [
        Self::Reported,
        Self::Decided,
        Self::PodCreated,
        Self::ProcessStarted,
        Self::AppListening,
        Self::Ready,
        Self::Forwarded,
        Self::Answered,
    ];

    /// As the log and the report write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Decided => "decided",
            Self::PodCreated => "pod_created",
            Self::ProcessStarted => "process_started",
            Self::AppListening => "app_listening",
            Self::Ready => "ready",
            Self::Forwarded => "forwarded",
            Self::Answered => "answered",
        }
    }
}

/// A phase that a revision reached. Times are microseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) at: i64,
    pub(crate) phase: Phase,
    /// `NAMESPACE/NAME`.
    pub(crate) revision: String,
}

/// Reads a line such as `2026-01-02T03:04:05.678901Z DEBUG phase="ready" revision=default/a-00001`; `None` if the line
/// tells no phase.
pub(crate) fn parse(line: &str) -> Option<Event> {
    let mut words = line.split_ascii_whitespace();
    let at = words.next()?.parse::<Timestamp>().ok()?.as_microsecond();
    let (mut phase, mut revision) = (None, None);
    for (name, value) in words.filter_map(|word| word.split_once('=')) {
        let value = value.trim_matches('"');
        match name {
            "phase" => phase = Phase::ALL.into_iter().find(|phase| phase.name() == value),
            "revision" => revision = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(Event { at, phase: phase?, revision: revision? })
}

/// A request that woke a revision. Times as in [`Event`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wake {
    pub(crate) revision: String,
    pub(crate) sent: i64,
    pub(crate) answered: i64,
}

/// When each of [`Phase::ALL`] was reached, in microseconds since the request was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Timeline(pub(crate) [Option<u64>; Phase::ALL.len()]);

impl Timeline {
    /// The first event of each phase that the revision told between request and answer.
    pub(crate) fn of(wake: &Wake, events: &[Event]) -> Self {
        let meant = |event: &&Event| {
            event.revision == wake.revision && (wake.sent..=wake.answered).contains(&event.at)
        };
        let since_sent = |at: i64| u64::try_from(at - wake.sent).unwrap_or(0);
        Self(Phase::ALL.map(|phase| match phase {
            Phase::Answered => Some(since_sent(wake.answered)),
            _ => {
                let told = events.iter().filter(meant).filter(|event| event.phase == phase);
                told.map(|event| since_sent(event.at)).min()
            }
        }))
    }

    /// What each phase added: the time since the latest of the phases before it. A phase that is overtaken by a later
    /// one adds nothing to the total, so it is that later one's step which counts.
    pub(crate) fn steps(&self) -> [Option<u64>; Phase::ALL.len()] {
        let mut latest = 0;
        self.0.map(|at| {
            let step = at?.saturating_sub(latest);
            latest += step;
            Some(step)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_tell_phases() {
        let line = r#"2026-01-02T03:04:05.678901Z DEBUG phase="ready" revision=default/a-00001 pod=x"#;
        let event = parse(line).unwrap();
        assert_eq!(event.phase, Phase::Ready);
        assert_eq!(event.revision, "default/a-00001");
        assert_eq!(event.at % 1_000_000, 678_901);
        let quoted = r#"2026-01-02T03:04:05.678902Z DEBUG phase="pod_created" revision="default/a-00001""#;
        let later = parse(quoted).unwrap();
        assert_eq!((later.phase, later.at - event.at), (Phase::PodCreated, 1));
        assert_eq!(later.revision, event.revision);
    }

    #[test]
    fn other_lines() {
        for line in [
            "",
            "phase=\"ready\" revision=default/a",
            "2026-01-02T03:04:05.678901Z DEBUG phase=\"resting\" revision=default/a",
            "2026-01-02T03:04:05.678901Z DEBUG phase=\"ready\"",
            "2026-01-02T03:04:05.678901Z  WARN aggressive probe error (failed 3 times): connection refused",
        ] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn every_phase_is_read_by_its_name() {
        for phase in Phase::ALL {
            let line = format!("2026-01-02T03:04:05Z DEBUG phase={:?} revision=n/r", phase.name());
            assert_eq!(parse(&line).unwrap().phase, phase);
        }
    }

    fn event(at: i64, phase: Phase, revision: &str) -> Event {
        Event { at, phase, revision: revision.to_owned() }
    }

    #[test]
    fn a_request_gets_what_its_revision_told_meanwhile() {
        let wake = Wake { revision: "n/a".to_owned(), sent: 1000, answered: 1900 };
        let events = [
            event(900, Phase::Decided, "n/a"),
            event(1050, Phase::Reported, "n/b"),
            event(1700, Phase::Ready, "n/a"),
            event(1100, Phase::Reported, "n/a"),
            event(1200, Phase::Reported, "n/a"),
            event(1901, Phase::Forwarded, "n/a"),
        ];
        let timeline = Timeline::of(&wake, &events);
        assert_eq!(timeline.0, [Some(100), None, None, None, None, Some(700), None, Some(900)]);
        assert_eq!(timeline.steps(), [Some(100), None, None, None, None, Some(600), None, Some(200)]);
    }

    #[test]
    fn steps_add_up_to_the_whole() {
        // The pod was created before the autoscaler heard that its write had succeeded.
        let timeline =
            Timeline([Some(10), Some(35), Some(30), Some(60), Some(80), Some(80), Some(90), Some(100)]);
        let steps = timeline.steps();
        assert_eq!(steps, [10, 25, 0, 25, 20, 0, 10, 10].map(Some));
        assert_eq!(steps.into_iter().flatten().sum::<u64>(), 100);
    }
}
