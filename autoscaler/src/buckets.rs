//! Who owns which bucket, as this replica sees it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use ember_reconcile::cache::Key;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::bucket;

/// Where the reports for a bucket go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Nobody that is known.
    Nobody,
    /// This replica.
    Us,
    /// The replica at that address.
    Peer(IpAddr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    ours: bool,
    peer: Option<IpAddr>,
}

struct Place {
    name: String,
    /// Until when the bucket is ours, in milliseconds since `begin`; checked by itself, so that a replica that was
    /// held up does nothing in the name of a bucket that may be somebody else's by now.
    until: AtomicU64,
    view: watch::Sender<View>,
}

/// All buckets.
pub(crate) struct Buckets {
    begin: Instant,
    places: Vec<Place>,
}

impl Buckets {
    /// One bucket that is this replica's for good: there is no other.
    pub(crate) fn sole() -> Self {
        let buckets = Self::shared(1);
        buckets.places[0].until.store(u64::MAX, Ordering::Release);
        buckets.places[0].view.send_replace(View { ours: true, peer: None });
        buckets
    }

    /// `count` buckets that nobody owns yet.
    pub(crate) fn shared(count: u32) -> Self {
        let place = |ordinal| Place {
            name: bucket::bucket_name(ordinal, count),
            until: AtomicU64::new(0),
            view: watch::Sender::new(View { ours: false, peer: None }),
        };
        Self { begin: Instant::now(), places: (0..count.max(1)).map(place).collect() }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether other replicas may own some of them.
    pub(crate) fn are_shared(&self) -> bool {
        self.places.iter().any(|place| place.until.load(Ordering::Acquire) != u64::MAX)
    }

    pub(crate) fn name(&self, bucket: usize) -> &str {
        &self.places[bucket].name
    }

    /// The bucket of that name.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.places.iter().position(|place| place.name == name)
    }

    /// The bucket that a revision belongs to.
    pub(crate) fn of(&self, key: &Key) -> usize {
        if self.places.len() == 1 {
            return 0;
        }
        let names: BTreeSet<&str> = self.places.iter().map(|place| place.name.as_str()).collect();
        bucket::owner(&names, &key.to_string()).and_then(|name| self.find(name)).unwrap_or(0)
    }

    /// Whether the bucket is this replica's.
    pub(crate) fn is_ours(&self, bucket: usize) -> bool {
        match self.places[bucket].until.load(Ordering::Acquire) {
            u64::MAX => true,
            until => u128::from(until) > self.begin.elapsed().as_millis(),
        }
    }

    /// Whether a revision is this replica's to take care of.
    pub(crate) fn owns(&self, key: &Key) -> bool {
        self.is_ours(self.of(key))
    }

    /// Takes note that the bucket is ours until then, or no longer; returns whether that is new.
    pub(crate) fn hold(&self, bucket: usize, until: Option<Instant>) -> bool {
        let place = &self.places[bucket];
        let millis = until.map_or(0, |until| until.saturating_duration_since(self.begin).as_millis());
        place.until.store(u64::try_from(millis).unwrap_or(u64::MAX - 1), Ordering::Release);
        place.view.send_if_modified(|view| {
            let changes = view.ours != until.is_some();
            view.ours = until.is_some();
            changes
        })
    }

    /// Takes note of the other replica that has the bucket's Lease, if one has.
    pub(crate) fn follow(&self, bucket: usize, peer: Option<IpAddr>) {
        self.places[bucket].view.send_if_modified(|view| {
            let changes = view.peer != peer;
            view.peer = peer;
            changes
        });
    }

    /// Where reports for the bucket go.
    pub(crate) fn owner(&self, bucket: usize) -> Owner {
        let view = *self.places[bucket].view.borrow();
        match view.peer {
            _ if self.is_ours(bucket) => Owner::Us,
            Some(peer) if !view.ours => Owner::Peer(peer),
            _ => Owner::Nobody,
        }
    }

    /// Wakes when the bucket changes hands.
    pub(crate) fn changes(&self, bucket: usize) -> Changes {
        Changes(self.places[bucket].view.subscribe())
    }
}

/// Tells of a bucket that changes hands.
pub(crate) struct Changes(watch::Receiver<View>);

impl Changes {
    /// Waits for the next change since the last call; never ends once the buckets are gone.
    pub(crate) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_is_ours_no_longer_than_its_lease_whoever_forgets_to_say_so() {
        let buckets = Buckets::shared(3);
        let key = Key::new("default", "hello-00002");
        assert_eq!(buckets.name(buckets.of(&key)), "autoscaler-bucket-01-of-03");
        assert!(!buckets.owns(&key));
        assert!(buckets.hold(1, Some(Instant::now() + Duration::from_secs(40))), "gained");
        assert!(buckets.owns(&key));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(!buckets.hold(1, Some(Instant::now() + Duration::from_secs(40))), "renewed");
        tokio::time::advance(Duration::from_secs(39)).await;
        assert!(buckets.owns(&key));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((buckets.owns(&key), buckets.owner(1)), (false, Owner::Nobody));
        assert!(buckets.hold(1, None), "lost");
    }

    #[tokio::test(start_paused = true)]
    async fn reports_go_where_the_lease_says() {
        let buckets = Buckets::shared(2);
        let peer: IpAddr = "10.0.0.7".parse().unwrap();
        buckets.follow(0, Some(peer));
        assert_eq!((buckets.owner(0), buckets.owner(1)), (Owner::Peer(peer), Owner::Nobody));
        buckets.hold(0, Some(Instant::now() + Duration::from_secs(1)));
        assert_eq!(buckets.owner(0), Owner::Us);
        assert!(Buckets::sole().owns(&Key::new("any", "revision")));
    }
}
