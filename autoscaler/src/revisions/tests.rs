//! Reports, ticks and what is kept between them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ember_dataplane::io::Clock;

use super::*;
use crate::window::Algorithm;

struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Duration {
        Duration::from_secs(946_684_800)
    }
}

fn revisions() -> Revisions {
    let clock = MonotonicClock::new(Arc::new(FixedClock));
    let held = HeldReports::new(8, Duration::from_secs(60));
    Revisions::new(clock, PodIndex::default(), held, Arc::new(Buckets::sole()))
}

fn spec() -> DeciderSpec {
    DeciderSpec { initial_scale: 0, ..DeciderSpec::default() }
}

fn collection() -> CollectionSpec {
    CollectionSpec {
        stable_window: Duration::from_secs(60),
        panic_window: Duration::from_secs(6),
        scrape_target: "rev-private".into(),
        algorithm: Algorithm::Linear,
    }
}

fn report() -> Stat {
    Stat { average_concurrent_requests: 1.0, request_count: 1.0, timestamp: 946_684_800, ..Stat::default() }
}

fn labels() -> RevisionLabels {
    RevisionLabels { service: "s".into(), configuration: "c".into(), revision: "rev".into() }
}

#[tokio::test(start_paused = true)]
async fn the_first_report_for_a_revision_that_never_ran_wakes_it_at_once() {
    let (revisions, key) = (revisions(), Key::new("ns", "rev"));
    assert_eq!(revisions.ensure_decider(&key, labels(), &spec(), None).desired_scale, -1);
    revisions.ensure_collection(&key, collection());
    let status = revisions.accept(&key, report()).expect("a decision without a tick");
    assert_eq!(status.desired_scale, 1);
    assert_eq!(revisions.accept(&key, report()), None, "awake: the tick is enough");
}

#[tokio::test(start_paused = true)]
async fn what_ran_before_is_kept_until_a_window_has_been_seen() {
    struct Steps(AtomicI64);
    impl Clock for Steps {
        fn now(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::Relaxed).unsigned_abs())
        }
    }
    let clock = Arc::new(Steps(AtomicI64::new(946_684_800)));
    let held = HeldReports::new(8, Duration::from_secs(60));
    let monotonic = MonotonicClock::new(Arc::clone(&clock) as Arc<dyn Clock>);
    let revisions = Revisions::new(monotonic, PodIndex::default(), held, Arc::new(Buckets::sole()));
    let key = Key::new("ns", "rev");
    revisions.ensure_collection(&key, collection());
    assert_eq!(revisions.ensure_decider(&key, labels(), &spec(), Some(7)).desired_scale, -1);
    let wanted = |seconds: i64| {
        clock.0.store(946_684_800 + seconds, Ordering::Relaxed);
        let timestamp = 946_684_800 + seconds;
        revisions.accept(&key, Stat { timestamp, ..report() });
        revisions.tick(|_, _| {});
        revisions.status(&key).unwrap().desired_scale
    };
    assert_eq!((wanted(1), wanted(59), wanted(60)), (7, 7, 1));
}

#[tokio::test(start_paused = true)]
async fn a_report_that_comes_before_its_revision_waits_for_both_parts() {
    let (revisions, key) = (revisions(), Key::new("ns", "rev"));
    assert_eq!(revisions.accept(&key, report()), None);
    assert_eq!(revisions.ensure_collection(&key, collection()), (None, None));
    assert_eq!(revisions.ensure_decider(&key, labels(), &spec(), None).desired_scale, 1);
    assert_eq!(revisions.held.lock().len(), 0);

    let other = Key::new("ns", "other");
    assert_eq!(revisions.accept(&other, report()), None);
    assert_eq!(revisions.ensure_decider(&other, labels(), &spec(), None).desired_scale, -1);
    let (_, changed) = revisions.ensure_collection(&other, collection());
    assert_eq!(changed.map(|s| s.desired_scale), Some(1));
}

#[tokio::test(start_paused = true)]
async fn reports_for_unknown_revisions_are_bounded_in_number_and_time() {
    let revisions = revisions();
    for number in 0..20 {
        revisions.accept(&Key::new("ns", format!("rev-{number}")), report());
    }
    assert_eq!(revisions.held.lock().len(), 8);
    tokio::time::advance(Duration::from_secs(61)).await;
    let key = Key::new("ns", "rev-0");
    revisions.ensure_collection(&key, collection());
    assert_eq!(revisions.ensure_decider(&key, labels(), &spec(), None).desired_scale, -1, "too old");
    revisions.tick(|_, _| {});
    assert_eq!(revisions.held.lock().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_tick_over_many_sleeping_revisions_is_short() {
    let revisions = revisions();
    for number in 0..300 {
        let key = Key::new("ns", format!("rev-{number}"));
        revisions.ensure_decider(&key, labels(), &spec(), None);
        revisions.ensure_collection(&key, collection());
    }
    let begun = std::time::Instant::now();
    for _ in 0..10 {
        revisions.tick(|key, _| panic!("nothing happened to {key}"));
        assert!(revisions.scrape_jobs(|_| {}).is_empty());
    }
    let each = begun.elapsed() / 10;
    println!("a tick and a look for pods to scrape, for 300 revisions: {each:?}");
    assert!(each < Duration::from_millis(50), "{each:?}");
}

#[test]
fn the_clock_never_goes_back() {
    struct Steps(AtomicI64);
    impl Clock for Steps {
        fn now(&self) -> Duration {
            Duration::from_millis(self.0.fetch_sub(500, Ordering::Relaxed).unsigned_abs())
        }
    }
    let clock = MonotonicClock::new(Arc::new(Steps(AtomicI64::new(5000))));
    assert_eq!(clock.now(), clock.now());
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(MonotonicClock::new(Arc::new(ember_dataplane::io::SystemClock)).now() >= Time::from_epoch(wall));
}
