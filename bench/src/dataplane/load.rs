//! The load generator: one thread, kept connections, three system calls a request over HTTP/1.1.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::connection::{Connection, Protocol};
use super::h2::Ended;
use super::stop::Stop;

/// How long an answer may take once no more is asked for.
const GRACE: Duration = Duration::from_secs(5);
/// A target that fails this often is not measured any further.
const MOST_ERRORS: u64 = 1000;
/// The longest time to wait without a look around.
const LOOK: Duration = Duration::from_millis(100);
const TIMER: u64 = u64::MAX;

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// On each connection, the next one as soon as the last is answered.
    Closed,
    /// So many a second, whether the last ones are answered or not; on whichever connection is free.
    Rate(u32),
}

/// A time under load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) address: SocketAddr,
    pub(super) protocol: Protocol,
    pub(super) connections: usize,
    /// Requests at a time on each of them.
    pub(super) streams: usize,
    pub(super) pace: Pace,
    /// Load before the measurement.
    pub(super) warm_up: Duration,
    pub(super) length: Duration,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Outcome<M> {
    /// Nanoseconds from when a request was sent, or should have been at a constant rate, to the end of its answer.
    pub(super) latencies: Histogram<u64>,
    pub(super) errors: u64,
    /// From the start of the measurement to the last answer.
    pub(super) elapsed: Duration,
    /// The meter, before and after.
    pub(super) meter: (M, M),
    /// Still open.
    _connections: Vec<Connection>,
}

/// For latencies in nanoseconds.
pub(super) fn histogram() -> anyhow::Result<Histogram<u64>> {
    Histogram::new(3).context("cannot make a histogram")
}

/// One run of a plan.
struct Drive<'a> {
    plan: &'a Plan,
    epoll: Epoll,
    connections: Vec<Connection>,
    /// The connections that have room for a request, each as often as it has.
    free: VecDeque<usize>,
    /// Requests that should have been sent.
    due: VecDeque<Instant>,
    measure_from: Instant,
    end: Instant,
    latencies: Histogram<u64>,
    errors: u64,
    last_answer: Instant,
    /// Between two uses.
    ended: Vec<Ended>,
}

fn open(plan: &Plan, epoll: &Epoll, index: usize) -> anyhow::Result<Connection> {
    let connection = Connection::open(plan.address, plan.protocol)?;
    epoll.add(connection.stream(), EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
    Ok(connection)
}

/// Puts load on the plan's address from this thread. `meter` is called when the measurement starts and when it ends.
pub(super) fn drive<M>(
    plan: &Plan,
    stop: &Stop,
    mut meter: impl FnMut() -> anyhow::Result<M>,
) -> anyhow::Result<Outcome<M>> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let connections = (0..plan.connections)
        .map(|index| open(plan, &epoll, index))
        .collect::<anyhow::Result<Vec<_>>>()
        .with_context(|| format!("cannot open {} connections", plan.connections))?;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
    epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
    let start = Instant::now();
    let measure_from = start + plan.warm_up;
    let mut drive = Drive {
        plan,
        epoll,
        free: (0..plan.streams).flat_map(|_| 0..plan.connections).collect(),
        connections,
        due: VecDeque::new(),
        measure_from,
        end: measure_from + plan.length,
        latencies: histogram()?,
        errors: 0,
        last_answer: measure_from,
        ended: Vec::new(),
    };
    let interval = match plan.pace {
        Pace::Closed => {
            drive.due.extend(std::iter::repeat_n(start, plan.connections * plan.streams));
            None
        }
        Pace::Rate(rate) => {
            let interval = Duration::from_secs(1) / rate.max(1);
            let every = TimeSpec::nanoseconds(i64::try_from(interval.as_nanos())?);
            timer.set(Expiration::Interval(every), TimerSetTimeFlags::empty())?;
            Some(interval)
        }
    };
    let mut next_due = start;
    let mut before = None;
    let mut events = vec![EpollEvent::empty(); plan.connections + 1];
    let mut now = start;
    loop {
        while let Some(interval) = interval
            && next_due <= now
            && next_due < drive.end
        {
            drive.due.push_back(next_due);
            next_due += interval;
        }
        drive.send_due();
        if before.is_none() && now >= measure_from {
            before = Some(meter()?);
        }
        if now >= drive.end {
            let open = plan.connections * plan.streams - drive.free.len() + drive.due.len();
            if open == 0 || now >= drive.end + GRACE {
                drive.errors += open as u64;
                break;
            }
        }
        if drive.errors > MOST_ERRORS {
            bail!("more than {MOST_ERRORS} requests failed");
        }
        let ready = match drive.epoll.wait(&mut events, EpollTimeout::try_from(LOOK)?) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        stop.check()?;
        for event in &events[..ready] {
            now = Instant::now();
            if event.data() == TIMER {
                timer.wait()?;
            } else if let Ok(index) = usize::try_from(event.data()) {
                drive.receive(index, now)?;
            }
        }
        now = Instant::now();
    }
    let after = meter()?;
    let before = before.context("the measurement never started")?;
    Ok(Outcome {
        latencies: drive.latencies,
        errors: drive.errors,
        elapsed: drive.last_answer.saturating_duration_since(measure_from),
        meter: (before, after),
        _connections: drive.connections,
    })
}

impl Drive<'_> {
    fn send_due(&mut self) {
        let mut touched = Vec::new();
        while !self.due.is_empty()
            && let Some(index) = self.free.pop_front()
            && let Some(since) = self.due.pop_front()
        {
            self.connections[index].request(since);
            if !touched.contains(&index) {
                touched.push(index);
            }
        }
        for index in touched {
            // Reading will tell if it fails.
            let _ = self.connections[index].flush();
        }
    }

    fn receive(&mut self, index: usize, now: Instant) -> anyhow::Result<()> {
        let mut ended = std::mem::take(&mut self.ended);
        let connection = &mut self.connections[index];
        let over = connection.receive(&mut ended);
        if over {
            connection.give_up(&mut ended);
            // Dropping the old stream takes it out of the epoll set.
            self.connections[index] = open(self.plan, &self.epoll, index).context("cannot connect again")?;
        }
        for Ended { since, ok } in ended.drain(..) {
            self.answered(since, now, ok)?;
            match self.plan.pace {
                Pace::Closed if now < self.end => self.connections[index].request(Instant::now()),
                _ => self.free.push_back(index),
            }
        }
        self.ended = ended;
        // Reading will tell if it fails.
        let _ = self.connections[index].flush();
        Ok(())
    }

    fn answered(&mut self, since: Instant, now: Instant, ok: bool) -> anyhow::Result<()> {
        let counts = match self.plan.pace {
            // Throughput and CPU are those of all answers after the start.
            Pace::Closed => now >= self.measure_from,
            Pace::Rate(_) => since >= self.measure_from,
        };
        if !counts {
            return Ok(());
        }
        self.last_answer = now;
        if ok {
            let nanos = u64::try_from(now.saturating_duration_since(since).as_nanos())?;
            self.latencies.record(nanos)?;
        } else {
            self.errors += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::app;
    use super::super::connection::{REQUEST, exchange};
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    /// Answers whatever comes after `pause`, `failing` of a hundred requests of a connection with 500.
    fn server(pause: Duration, failing: u64) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut request = vec![0; REQUEST.len()];
                    let mut count = 0;
                    while (&stream).read_exact(&mut request).is_ok() {
                        count += 1;
                        thread::park_timeout(pause);
                        let status = if count % 100 < failing { 500 } else { 200 };
                        let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 2\r\n\r\nok");
                        if (&stream).write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    fn plan(address: SocketAddr, connections: usize, pace: Pace) -> Plan {
        let (warm_up, length) = (Duration::from_millis(20), Duration::from_millis(300));
        Plan { address, protocol: Protocol::Http1, connections, streams: 1, pace, warm_up, length }
    }

    #[test]
    fn a_closed_loop_asks_again_when_it_is_answered() {
        let address = server(Duration::from_millis(10), 0);
        let outcome = drive(&plan(address, 4, Pace::Closed), &Stop::default(), || Ok(())).unwrap();
        let answers = outcome.latencies.len();
        assert!((4..=4 * 32).contains(&answers), "{answers}");
        assert!(outcome.latencies.min() >= 9_900_000, "{}", outcome.latencies.min());
        assert_eq!(outcome.errors, 0);
    }

    #[test]
    fn streams_share_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                app::serve(tokio::net::TcpListener::from_std(listener).unwrap()).await.unwrap();
            });
        });
        assert!(exchange(address, Protocol::H2c).unwrap().0);
        let plan = Plan { protocol: Protocol::H2c, streams: 5, ..plan(address, 2, Pace::Closed) };
        let outcome = drive(&plan, &Stop::default(), || Ok(())).unwrap();
        // More than one round of all streams, on however slow a machine.
        assert!(outcome.latencies.len() > 10, "{}", outcome.latencies.len());
        assert_eq!(outcome.errors, 0);
        // Who speaks something else is found out.
        assert!(exchange(server(Duration::ZERO, 0), Protocol::H2c).is_err());
    }

    #[test]
    fn a_constant_rate_counts_the_time_that_a_request_waits_for_its_turn() {
        // One connection that takes 50 ms for each, asked 100 times a second: the last ones wait for long.
        let address = server(Duration::from_millis(50), 0);
        let outcome = drive(&plan(address, 1, Pace::Rate(100)), &Stop::default(), || Ok(())).unwrap();
        let answers = outcome.latencies.len();
        assert!((28..=31).contains(&answers), "{answers}");
        assert!(outcome.latencies.max() > 900_000_000, "{}", outcome.latencies.max());
        assert_eq!(outcome.errors, 0);
    }

    #[test]
    fn failures_are_counted_and_a_dead_target_is_an_error() {
        let address = server(Duration::ZERO, 50);
        let mut calls = 0;
        let count = || {
            calls += 1;
            Ok(calls)
        };
        let rate = plan(address, 1, Pace::Rate(1000));
        let outcome = drive(&rate, &Stop::default(), count).unwrap();
        assert!(outcome.errors > 20, "{}", outcome.errors);
        assert_eq!(outcome.meter, (1, 2));
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(drive(&plan(closed, 1, Pace::Closed), &Stop::default(), || Ok(())).is_err());
    }
}
