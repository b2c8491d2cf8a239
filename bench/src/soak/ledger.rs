//! Who saw which request when: what was sent, what was executed, what was answered, and what that adds up to.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Requests are spread over so many maps, so that who records seldom waits.
const SHARDS: u64 = 16;
/// How far around a request's life a history tells what went on.
const AROUND: Duration = Duration::from_secs(3);

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// May be repeated by whoever forwards it.
    Get,
    /// Has to be executed exactly once.
    Post,
}

/// One thing that happened to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// The client began to send it, on a connection of its own or on a kept one.
    Sent { kept: bool },
    /// An app has its head: that counts as an execution.
    Started(Arc<str>),
    /// That app has answered to the end.
    Finished(Arc<str>),
    /// That app's exchange was cut.
    Cut(Arc<str>),
    /// The client has the whole answer, and it is the right one.
    Answered,
    /// The client does not, for that reason.
    Failed(String),
}

#[derive(Debug)]
struct Record {
    method: Method,
    /// What it is like, in words.
    shape: String,
    events: Vec<(Duration, Event)>,
}

/// What is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Unanswered,
    Lost,
    Repeated(usize),
}

impl Record {
    fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|(_, event)| wanted(event)).count()
    }

    fn executions(&self) -> usize {
        self.count(|event| matches!(event, Event::Started(_)))
    }

    fn fault(&self) -> Option<Fault> {
        let executions = self.executions();
        if self.count(|event| *event == Event::Answered) != 1 {
            Some(Fault::Unanswered)
        } else if executions == 0 {
            Some(Fault::Lost)
        } else if self.method == Method::Post && executions > 1 {
            Some(Fault::Repeated(executions))
        } else {
            None
        }
    }
}

/// All requests of a run. Times are since its start.
#[derive(Debug)]
pub(super) struct Ledger {
    start: Instant,
    shards: Vec<Mutex<HashMap<u64, Record>>>,
    /// What was done to the system meanwhile.
    deeds: Mutex<Vec<(Duration, String)>>,
}

/// What a run adds up to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) gets: u64,
    pub(super) posts: u64,
    /// GETs that were executed more than once, as they may be.
    pub(super) repeated_gets: u64,
    pub(super) unanswered: u64,
    pub(super) lost: u64,
    pub(super) repeated: u64,
    /// The histories of those that went wrong, the first few.
    pub(super) histories: Vec<String>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { start: Instant::now(), shards, deeds: Mutex::default() }
    }

    fn shard(&self, id: u64) -> Option<&Mutex<HashMap<u64, Record>>> {
        self.shards.get(usize::try_from(id % SHARDS).ok()?)
    }

    /// A request that nobody has seen yet.
    pub(super) fn open(&self, id: u64, method: Method, shape: String) {
        if let Some(shard) = self.shard(id) {
            shard.lock().insert(id, Record { method, shape, events: Vec::with_capacity(4) });
        }
    }

    /// Something happened to a request. What was never opened is nobody's request: an app that is sent one records it
    /// here as one that nobody will have had answered.
    pub(super) fn record(&self, id: u64, event: Event) {
        let at = self.start.elapsed();
        if let Some(shard) = self.shard(id) {
            let mut shard = shard.lock();
            let record = shard.entry(id).or_insert_with(|| Record {
                method: Method::Post,
                shape: "of an unknown id".to_owned(),
                events: Vec::new(),
            });
            record.events.push((at, event));
        }
    }

    /// Something was done to the system.
    pub(super) fn note(&self, deed: String) {
        self.deeds.lock().push((self.start.elapsed(), deed));
    }

    /// Adds up. `most`: how many histories are told.
    pub(super) fn sum(&self, most: usize) -> Sum {
        let mut sum = Sum::default();
        let deeds = self.deeds.lock();
        for shard in &self.shards {
            for (id, record) in &*shard.lock() {
                match record.method {
                    Method::Get => sum.gets += 1,
                    Method::Post => sum.posts += 1,
                }
                let Some(fault) = record.fault() else {
                    sum.repeated_gets += u64::from(record.executions() > 1);
                    continue;
                };
                match fault {
                    Fault::Unanswered => sum.unanswered += 1,
                    Fault::Lost => sum.lost += 1,
                    Fault::Repeated(_) => sum.repeated += 1,
                }
                if sum.histories.len() < most {
                    sum.histories.push(history(*id, record, fault, &deeds));
                }
            }
        }
        sum
    }
}

fn history(id: u64, record: &Record, fault: Fault, deeds: &[(Duration, String)]) -> String {
    let what = match fault {
        Fault::Unanswered if record.executions() == 0 => "not answered, not executed".to_owned(),
        Fault::Unanswered => format!("not answered, executed {} times", record.executions()),
        Fault::Lost => "answered, but never executed".to_owned(),
        Fault::Repeated(times) => format!("executed {times} times"),
    };
    let mut text = format!("{:?} {id}, {}: {what}\n", record.method, record.shape);
    let first = record.events.first().map_or(Duration::ZERO, |(at, _)| *at).saturating_sub(AROUND);
    let last = record.events.last().map_or(first, |(at, _)| *at) + AROUND;
    let of_request = record.events.iter().map(|(at, event)| (*at, format!("{event:?}")));
    let around = deeds.iter().filter(|(at, _)| (first..=last).contains(at));
    let mut lines: Vec<(Duration, String)> =
        of_request.chain(around.map(|(at, deed)| (*at, format!("    {deed}")))).collect();
    lines.sort_by_key(|(at, _)| *at);
    for (at, line) in lines {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {:>10.4} s  {line}", at.as_secs_f64());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(method: Method, events: &[Event]) -> Sum {
        let ledger = Ledger::new();
        ledger.note("pod a is gone".to_owned());
        ledger.open(7, method, "small".to_owned());
        for event in events {
            ledger.record(7, event.clone());
        }
        ledger.sum(10)
    }

    #[test]
    fn what_a_request_has_to_be() {
        let started = || Event::Started("a".into());
        let (sent, answered) = (Event::Sent { kept: true }, Event::Answered);
        let once = [sent.clone(), started(), Event::Finished("a".into()), answered.clone()];
        for method in [Method::Get, Method::Post] {
            let sum = ledger(method, &once);
            assert_eq!((sum.gets + sum.posts, sum.histories.len()), (1, 0));
        }
        let twice = [sent.clone(), started(), Event::Cut("a".into()), started(), answered.clone()];
        assert_eq!(ledger(Method::Get, &twice).repeated_gets, 1);
        let sum = ledger(Method::Post, &twice);
        assert_eq!((sum.repeated, sum.repeated_gets), (1, 0));
        assert!(sum.histories[0].starts_with("Post 7, small: executed 2 times\n"), "{}", sum.histories[0]);
        assert!(sum.histories[0].contains("pod a is gone"), "{}", sum.histories[0]);
        assert_eq!(ledger(Method::Get, &[sent.clone(), answered]).lost, 1);
        let failed = [sent, started(), Event::Failed("502".to_owned())];
        assert_eq!(ledger(Method::Get, &failed).unanswered, 1);
        assert_eq!(ledger(Method::Post, &[]).unanswered, 1);
    }

    #[test]
    fn what_nobody_sent_is_told() {
        let ledger = Ledger::new();
        ledger.record(9, Event::Started("a".into()));
        assert_eq!(ledger.sum(10).unanswered, 1);
    }
}
