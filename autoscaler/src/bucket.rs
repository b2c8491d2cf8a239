//! Buckets: how replicas of the autoscaler share out revisions, and how activators are picked for a revision.

use std::collections::BTreeSet;

/// Angles on the circle that candidates are placed on.
const UNIVERSE: u64 = 2048;

const PREFIX: &str = "autoscaler-bucket";

/// The name of bucket `ordinal` out of `total`.
#[must_use]
pub fn bucket_name(ordinal: u32, total: u32) -> String {
    format!("{PREFIX}-{ordinal:02}-of-{total:02}")
}

/// The bucket named by a `Host` header, if it names one.
#[must_use]
pub fn bucket_of_host(host: &str) -> Option<&str> {
    host.starts_with(PREFIX).then(|| host.split('.').next().unwrap_or(host))
}

/// Pod name and address in a lease holder's identity.
///
/// # Errors
/// When it is not made of the two, in Knative's words.
pub fn parse_holder(identity: &str) -> Result<(&str, &str), String> {
    identity.split_once('_').ok_or_else(|| format!("Failed to extract pod name and IP from {identity}"))
}

/// The bucket that `key` belongs to.
#[must_use]
pub fn owner<'a>(buckets: &BTreeSet<&'a str>, key: &str) -> Option<&'a str> {
    choose_subset(buckets, 1, key).into_iter().next()
}

/// `count` of `candidates`, picked by `key`: always the same ones, and few others when candidates come or go.
#[must_use]
pub fn choose_subset<'a>(candidates: &BTreeSet<&'a str>, count: usize, key: &str) -> BTreeSet<&'a str> {
    if candidates.is_empty() || count >= candidates.len() {
        return candidates.clone();
    }
    let mut circle: Vec<(u64, &'a str)> = Vec::with_capacity(candidates.len());
    for &candidate in candidates {
        let mut buffer = format!("{candidate}{key}").into_bytes();
        let mut hash = fnv1a(&buffer);
        while circle.iter().any(|&(slot, _)| slot == hash % UNIVERSE) {
            buffer.extend_from_slice(format!("{hash:x}").as_bytes());
            hash = fnv1a(&buffer);
        }
        circle.push((hash % UNIVERSE, candidate));
    }
    circle.sort_unstable();

    let mut angle = fnv1a(format!("{key}start-angle-salt").as_bytes()) % UNIVERSE;
    let step = fnv1a(format!("{key}step-angle-salt").as_bytes()) % UNIVERSE;
    let mut chosen = BTreeSet::new();
    while chosen.len() < count {
        let mut at = circle.partition_point(|&(slot, _)| slot < angle) % circle.len();
        while !chosen.insert(circle[at].1) {
            at = (at + 1) % circle.len();
        }
        angle = (angle + step) % UNIVERSE;
    }
    chosen
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
