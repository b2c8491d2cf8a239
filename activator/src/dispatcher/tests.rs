//! Who goes in, who waits, and who is turned away.

use std::time::Duration;

use futures::FutureExt;
use proptest::prelude::*;

use super::*;

fn address(n: u16) -> Address {
    Address::new("10.0.0.1", n)
}

#[tokio::test]
async fn who_waits_longest_is_served_first_and_retries_before_all() {
    let dispatcher = Dispatcher::new(1, 10);
    let mut first = Box::pin(dispatcher.acquire(false));
    let mut second = Box::pin(dispatcher.acquire(false));
    let mut again = Box::pin(dispatcher.acquire(true));
    for waiter in [&mut first, &mut second, &mut again] {
        assert!(waiter.now_or_never().is_none());
    }
    dispatcher.set_pods(&[address(1)]);
    assert!(first.as_mut().now_or_never().is_none());
    drop(again.as_mut().now_or_never().unwrap().unwrap());
    let grant = first.as_mut().now_or_never().unwrap().unwrap();
    assert!(second.as_mut().now_or_never().is_none());
    drop(grant);
    assert!(second.as_mut().now_or_never().unwrap().is_ok());
}

#[tokio::test]
async fn who_leaves_loses_nothing_for_others() {
    let dispatcher = Dispatcher::new(1, 2);
    dispatcher.set_pods(&[address(1)]);
    let held = dispatcher.acquire(false).await.unwrap();
    let mut leaver = Box::pin(dispatcher.acquire(false));
    assert!(leaver.as_mut().now_or_never().is_none());
    let mut stayer = Box::pin(dispatcher.acquire(false));
    assert!(stayer.as_mut().now_or_never().is_none());
    assert_eq!(dispatcher.acquire(false).now_or_never().unwrap().unwrap_err(), Refused::QueueFull);
    // The place is handed to the leaver, who leaves without looking.
    drop(held);
    drop(leaver);
    assert!(tokio::time::timeout(Duration::from_secs(5), stayer).await.unwrap().is_ok());
    assert_eq!(dispatcher.waiting(), 0);
}

#[tokio::test]
async fn without_a_limit_all_go_in_once_there_is_a_pod() {
    let dispatcher = Dispatcher::new(0, 10);
    let mut waiters: Vec<_> = (0..5).map(|_| Box::pin(dispatcher.acquire(false))).collect();
    for waiter in &mut waiters {
        assert!(waiter.now_or_never().is_none());
    }
    dispatcher.set_pods(&[address(1)]);
    for waiter in &mut waiters {
        assert!(waiter.now_or_never().unwrap().is_ok());
    }
    dispatcher.set_pods(&[]);
    let mut late = Box::pin(dispatcher.acquire(false));
    assert!(late.as_mut().now_or_never().is_none());
    dispatcher.close();
    assert_eq!(late.now_or_never().unwrap().unwrap_err(), Refused::Closed);
}

#[tokio::test]
async fn who_leaves_takes_no_other_out_of_the_queue() {
    let dispatcher = Dispatcher::new(1, 10);
    let mut first = Box::pin(dispatcher.acquire(false));
    let mut second = Box::pin(dispatcher.acquire(false));
    assert!(first.as_mut().now_or_never().is_none());
    assert!(second.as_mut().now_or_never().is_none());
    dispatcher.set_pods(&[address(1)]);
    // The first has its place but has not looked yet.
    let mut again = Box::pin(dispatcher.acquire(true));
    assert!(again.as_mut().now_or_never().is_none());
    drop(first);
    assert!(again.as_mut().now_or_never().unwrap().is_ok());
    assert!(second.as_mut().now_or_never().unwrap().is_ok());
}

#[tokio::test]
async fn a_full_queue_does_not_turn_away_who_was_let_in_before() {
    let dispatcher = Dispatcher::new(1, 1);
    let mut waiter = Box::pin(dispatcher.acquire(false));
    assert!(waiter.as_mut().now_or_never().is_none());
    assert_eq!(dispatcher.acquire(false).now_or_never().unwrap().unwrap_err(), Refused::QueueFull);
    assert!(dispatcher.acquire(true).now_or_never().is_none());
}

#[tokio::test]
async fn a_pod_that_comes_back_is_as_full_as_it_was() {
    let dispatcher = Dispatcher::new(1, 10);
    dispatcher.set_pods(&[address(1)]);
    let running = dispatcher.acquire(false).await.unwrap();
    dispatcher.set_pods(&[]);
    dispatcher.set_pods(&[address(1)]);
    let mut waiter = Box::pin(dispatcher.acquire(false));
    assert!(waiter.as_mut().now_or_never().is_none());
    drop(running);
    drop(waiter.as_mut().now_or_never().unwrap().unwrap());
    dispatcher.set_pods(&[]);
    assert!(dispatcher.0.state.lock().retired.is_empty());
    dispatcher.close();
    dispatcher.set_pods(&[address(1)]);
    assert_eq!(dispatcher.acquire(false).await.unwrap_err(), Refused::Closed);
}

#[tokio::test]
async fn who_finds_no_pod_is_told_apart_from_who_finds_no_place() {
    let dispatcher = Dispatcher::new(1, 10);
    let mut cold = Box::pin(dispatcher.acquire(false));
    assert!(cold.as_mut().now_or_never().is_none());
    dispatcher.set_pods(&[address(1)]);
    let cold = cold.as_mut().now_or_never().unwrap().unwrap();
    let mut warm = Box::pin(dispatcher.acquire(false));
    assert!(warm.as_mut().now_or_never().is_none());
    assert!(cold.is_cold());
    drop(cold);
    assert!(!warm.as_mut().now_or_never().unwrap().unwrap().is_cold());
}

#[tokio::test]
async fn the_places_of_a_backend_change() {
    let dispatcher = Dispatcher::new(1, 10);
    let backend = |places| vec![Backend { address: address(1), places }];
    dispatcher.set_backends(backend(2));
    let held = [dispatcher.acquire(false).await.unwrap(), dispatcher.acquire(false).await.unwrap()];
    let mut waiter = Box::pin(dispatcher.acquire(false));
    assert!(waiter.as_mut().now_or_never().is_none());
    dispatcher.set_backends(backend(1));
    let [first, second] = held;
    drop(first);
    assert!(waiter.as_mut().now_or_never().is_none(), "it still has as many as it may");
    dispatcher.set_backends(backend(2));
    let third = waiter.as_mut().now_or_never().unwrap().unwrap();
    drop((second, third));
    dispatcher.set_backends(backend(0));
    assert!(dispatcher.acquire(false).now_or_never().is_none());
}

#[derive(Debug, Clone)]
enum Step {
    Arrive,
    Leave(usize),
    Finish(usize),
    Pods(u16),
}

proptest! {
    /// Never more than the limit in a pod, never someone waiting while a place is free, nothing leaks.
    #[test]
    fn places_are_conserved(
        limit in 1_u32..4,
        steps in proptest::collection::vec(prop_oneof![
            3 => Just(Step::Arrive),
            1 => (0_usize..20).prop_map(Step::Leave),
            2 => (0_usize..20).prop_map(Step::Finish),
            1 => (0_u16..5).prop_map(Step::Pods),
        ], 1..80),
    ) {
        let dispatcher = Dispatcher::new(limit, 1000);
        let mut waiting: Vec<futures::future::BoxFuture<'_, Result<Grant, Refused>>> = Vec::new();
        let mut running: Vec<Grant> = Vec::new();
        let mut pods: u16 = 0;
        for step in steps {
            match step {
                Step::Arrive => waiting.push(Box::pin(dispatcher.acquire(false))),
                Step::Leave(n) if !waiting.is_empty() => drop(waiting.remove(n % waiting.len())),
                Step::Finish(n) if !running.is_empty() => drop(running.remove(n % running.len())),
                Step::Pods(n) => {
                    pods = n;
                    dispatcher.set_pods(&(0..n).map(address).collect::<Vec<_>>());
                }
                Step::Leave(_) | Step::Finish(_) => {}
            }
            let mut still = Vec::new();
            for mut waiter in waiting {
                match waiter.as_mut().now_or_never() {
                    Some(grant) => running.push(grant.unwrap()),
                    None => still.push(waiter),
                }
            }
            waiting = still;
            let current = dispatcher.0.pods.load();
            prop_assert_eq!(current.len(), usize::from(pods));
            prop_assert!(current.iter().all(|pod| pod.load() <= limit));
            let listed = dispatcher.0.state.lock().free.len();
            prop_assert_eq!(listed, current.iter().filter(|pod| pod.load() < limit).count());
            let free = current.iter().any(|pod| pod.load() < limit);
            prop_assert!(waiting.is_empty() || !free, "someone waits while a place is free");
            prop_assert_eq!(dispatcher.waiting(), waiting.len());
        }
        drop(waiting);
        drop(running);
        prop_assert!(dispatcher.0.pods.load().iter().all(|pod| pod.load() == 0));
        prop_assert_eq!(dispatcher.waiting(), 0);
    }
}
