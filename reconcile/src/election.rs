//! Leader election by a Lease: what a candidate does, and when. Pure: the shell around it is [`crate::lease`].
//!
//! Times are those of a clock that never goes back, as time since any fixed moment. Of other candidates' clocks nothing
//! is believed: a Lease is over when it has not changed here for as long as it says it lasts.

use std::time::Duration;

use ember_api::configmaps::leader_election::LeaderElection;
use jiff::Timestamp;

/// Retry periods are stretched by up to this part, so that candidates do not meet again and again.
const JITTER: f64 = 1.2;

/// The times of an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a Lease is good for without renewal.
    pub lease_duration: Duration,
    /// How long a leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// Time between attempts.
    pub retry_period: Duration,
}

impl From<&LeaderElection> for Timing {
    fn from(settings: &LeaderElection) -> Self {
        Self {
            lease_duration: settings.lease_duration,
            renew_deadline: settings.renew_deadline,
            retry_period: settings.retry_period,
        }
    }
}

impl Timing {
    /// Whether a leader always gives up before another one can take over, and tries to renew before it gives up.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn validate(&self) -> Result<(), &'static str> {
        if self.lease_duration < Duration::from_secs(1) {
            return Err("leaseDuration must be at least 1s");
        }
        if self.lease_duration <= self.renew_deadline {
            return Err("leaseDuration must be greater than renewDeadline");
        }
        if self.renew_deadline <= self.retry_period.mul_f64(JITTER) {
            return Err("renewDeadline must be greater than retryPeriod*JitterFactor");
        }
        if self.retry_period.is_zero() {
            return Err("retryPeriod must be greater than zero");
        }
        Ok(())
    }
}

/// What a Lease says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// Who has it; empty: nobody.
    pub holder: String,
    /// How long it lasts without renewal, in whole seconds.
    pub seconds: u32,
    /// When its holder got it.
    pub acquired: Option<Timestamp>,
    /// When its holder renewed it last.
    pub renewed: Option<Timestamp>,
    /// How often the holder changed.
    pub transitions: i32,
}

/// What the candidate should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write this record; onto the object of that resourceVersion, or as a new one.
    Write(Record, Option<String>),
    /// Nothing before that time, unless the Lease changes.
    Wait(Duration),
}

#[derive(Debug)]
struct Seen {
    record: Record,
    version: String,
    since: Duration,
}

/// One candidate for one Lease.
#[derive(Debug)]
pub struct Candidate {
    identity: String,
    timing: Timing,
    seen: Option<Seen>,
    /// When the last renewal that succeeded was begun.
    renewed: Option<Duration>,
    next_attempt: Duration,
}

impl Candidate {
    /// A candidate that knows nothing of the Lease yet.
    #[must_use]
    pub fn new(identity: impl Into<String>, timing: Timing) -> Self {
        Self { identity: identity.into(), timing, seen: None, renewed: None, next_attempt: Duration::ZERO }
    }

    /// Takes note of the Lease as it is, or that there is none.
    pub fn observe(&mut self, now: Duration, lease: Option<(Record, String)>) {
        let Some((record, version)) = lease else {
            self.seen = None;
            return;
        };
        if record.holder != self.identity {
            self.renewed = None;
        }
        let since = match &self.seen {
            Some(seen) if seen.record == record => seen.since,
            known => {
                if known.as_ref().is_some_and(|seen| seen.record.holder != record.holder)
                    && record.holder.is_empty()
                {
                    // It was given up just now: no reason to wait.
                    self.next_attempt = now;
                }
                now
            }
        };
        self.seen = Some(Seen { record, version, since });
    }

    /// Until when the candidate is the leader; a time gone by: no longer.
    #[must_use]
    pub fn leads_until(&self) -> Option<Duration> {
        Some(self.renewed? + self.timing.renew_deadline)
    }

    /// Whether the candidate is the leader.
    #[must_use]
    pub fn leads(&self, now: Duration) -> bool {
        self.leads_until().is_some_and(|until| now < until)
    }

    /// What to do. `wall` is what a record would say of now.
    #[must_use]
    pub fn step(&self, now: Duration, wall: Timestamp) -> Step {
        let leads = self.leads(now);
        let free_at = match &self.seen {
            _ if leads => self.next_attempt,
            Some(Seen { record, since, .. })
                if !record.holder.is_empty() && record.holder != self.identity =>
            {
                self.next_attempt.max(*since + Duration::from_secs(u64::from(record.seconds)))
            }
            _ => self.next_attempt,
        };
        if now < free_at {
            let end = self.leads_until().filter(|_| leads).unwrap_or(free_at);
            return Step::Wait(free_at.min(end));
        }
        let old = self.seen.as_ref().map(|seen| &seen.record);
        let ours = old.filter(|old| old.holder == self.identity);
        let record = Record {
            holder: self.identity.clone(),
            seconds: u32::try_from(self.timing.lease_duration.as_secs()).unwrap_or(u32::MAX),
            acquired: ours.map_or(Some(wall), |old| old.acquired),
            renewed: Some(wall),
            transitions: match (old, ours) {
                (None, _) => 0,
                (Some(old), None) => old.transitions.saturating_add(1),
                (_, Some(old)) => old.transitions,
            },
        };
        Step::Write(record, self.seen.as_ref().map(|seen| seen.version.clone()))
    }

    /// A write that was begun at `begun` succeeded; `version` is the object's now.
    pub fn written(&mut self, begun: Duration, record: Record, version: String) {
        self.renewed = (record.holder == self.identity).then_some(begun);
        self.next_attempt = begun + self.timing.retry_period;
        self.seen = Some(Seen { record, version, since: begun });
    }

    /// A write failed. `stretch` between 0 and 1 says how far the next attempt is put off beyond the retry period.
    pub fn refused(&mut self, now: Duration, stretch: f64) {
        let stretch = stretch.clamp(0.0, 1.0) * (JITTER - 1.0);
        self.next_attempt = now + self.timing.retry_period.mul_f64(1.0 + stretch);
    }

    /// The write that gives the Lease up, if the candidate has it.
    #[must_use]
    pub fn release(&self, now: Duration, wall: Timestamp) -> Option<(Record, String)> {
        let seen =
            self.seen.as_ref().filter(|seen| self.leads(now) && seen.record.holder == self.identity)?;
        let record = Record {
            holder: String::new(),
            seconds: 1,
            acquired: Some(wall),
            renewed: Some(wall),
            ..seen.record.clone()
        };
        Some((record, seen.version.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing {
        lease_duration: Duration::from_secs(60),
        renew_deadline: Duration::from_secs(40),
        retry_period: Duration::from_secs(10),
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn wall(seconds: u64) -> Timestamp {
        Timestamp::from_second(946_684_800 + i64::try_from(seconds).unwrap()).unwrap()
    }

    fn step(candidate: &Candidate, seconds: u64) -> Step {
        candidate.step(at(seconds), wall(seconds))
    }

    /// Does what the candidate wants to write.
    fn write(candidate: &mut Candidate, seconds: u64, version: &str) -> Record {
        let Step::Write(record, _) = step(candidate, seconds) else { panic!("nothing to write") };
        candidate.written(at(seconds), record.clone(), version.to_owned());
        record
    }

    #[test]
    fn a_free_lease_is_taken_and_renewed_in_time() {
        let mut a = Candidate::new("a", TIMING);
        a.observe(at(0), None);
        assert!(!a.leads(at(0)));
        let record = write(&mut a, 0, "1");
        assert_eq!((record.holder.as_str(), record.seconds, record.transitions), ("a", 60, 0));
        assert_eq!(step(&a, 3), Step::Wait(at(10)));
        let renewed = write(&mut a, 10, "2");
        assert_eq!((renewed.acquired, renewed.renewed), (record.acquired, Some(wall(10))));
        assert_eq!(a.leads_until(), Some(at(50)));
    }

    #[test]
    fn a_leader_that_cannot_renew_gives_up_before_anybody_may_take_over() {
        let (mut a, mut b) = (Candidate::new("a", TIMING), Candidate::new("b", TIMING));
        let record = write(&mut a, 0, "1");
        b.observe(at(0), Some((record.clone(), "1".into())));
        assert_eq!(step(&b, 5), Step::Wait(at(60)));
        for seconds in [10, 20, 30] {
            assert!(matches!(step(&a, seconds), Step::Write(..)));
            a.refused(at(seconds), 0.0);
            assert!(a.leads(at(seconds)));
        }
        assert_eq!(step(&a, 31), Step::Wait(at(40)), "it has to know when it is over");
        assert!(!a.leads(at(40)));
        // Listed again, it is the same record: the time goes on.
        b.observe(at(50), Some((record, "1".into())));
        assert_eq!(step(&b, 59), Step::Wait(at(60)));
        let taken = write(&mut b, 60, "2");
        assert_eq!((taken.holder.as_str(), taken.transitions, taken.acquired), ("b", 1, Some(wall(60))));
        a.observe(at(61), Some((taken, "2".into())));
        assert_eq!(step(&a, 61), Step::Wait(at(121)));
    }

    #[test]
    fn a_change_of_the_holder_ends_leadership_at_once() {
        let mut a = Candidate::new("a", TIMING);
        let record = write(&mut a, 0, "1");
        a.observe(at(1), Some((Record { holder: "b".into(), ..record }, "2".into())));
        assert!(!a.leads(at(1)));
    }

    #[test]
    fn what_is_released_is_free_at_once() {
        let (mut a, mut b) = (Candidate::new("a", TIMING), Candidate::new("b", TIMING));
        let record = write(&mut a, 0, "1");
        b.observe(at(0), Some((record, "1".into())));
        b.refused(at(0), 1.0);
        let (released, version) = a.release(at(5), wall(5)).unwrap();
        assert_eq!((released.holder.as_str(), version.as_str()), ("", "1"));
        b.observe(at(5), Some((released, "2".into())));
        assert_eq!(write(&mut b, 5, "3").transitions, 1);
        assert_eq!(b.release(at(50), wall(50)), None, "there is nothing left to give up");
    }

    #[test]
    fn a_restarted_replica_of_the_same_name_goes_on_at_once() {
        let mut a = Candidate::new("a", TIMING);
        let held = Record { holder: "a".into(), seconds: 60, transitions: 4, ..Record::default() };
        a.observe(at(0), Some((held, "7".into())));
        assert!(!a.leads(at(0)));
        assert_eq!(write(&mut a, 0, "8").transitions, 4);
        assert!(a.leads(at(0)));
    }

    #[test]
    fn times_that_could_make_two_leaders_are_refused() {
        assert_eq!(TIMING.validate(), Ok(()));
        let wrong = Timing { renew_deadline: at(60), ..TIMING };
        assert_eq!(wrong.validate(), Err("leaseDuration must be greater than renewDeadline"));
        let wrong = Timing { retry_period: at(34), ..TIMING };
        assert_eq!(wrong.validate(), Err("renewDeadline must be greater than retryPeriod*JitterFactor"));
        assert!(Timing { lease_duration: Duration::from_millis(900), ..TIMING }.validate().is_err());
        assert!(Timing { retry_period: Duration::ZERO, ..TIMING }.validate().is_err());
    }
}
