//! Which activators stand in for a revision: a consistent choice, so that it changes little when activators come and
//! go, and different revisions use different ones.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::EndpointSubset;

/// Positions on the ring that members and angles are hashed to.
const UNIVERSE: u64 = 1 << 11;
const START_SALT: &str = "start-angle-salt";
const STEP_SALT: &str = "step-angle-salt";

fn fnv1a(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Chooses `n` of `from` for `target`, always the same ones. All of them when there are no more than `n`.
///
/// Members are placed on a ring; from a start angle the ring is walked in steps of one angle, each time taking the
/// next member that has not been taken. Both angles depend on `target` alone.
pub(crate) fn choose<'a>(from: &BTreeSet<&'a str>, n: usize, target: &str) -> BTreeSet<&'a str> {
    if n >= from.len() {
        return from.clone();
    }
    let ring: Vec<(u64, &str)> = ring(from, target).into_iter().collect();
    let start = fnv1a(&[target, START_SALT]) % UNIVERSE;
    let step = fnv1a(&[target, STEP_SALT]) % UNIVERSE;

    let mut taken = BTreeSet::new();
    let mut angle = start;
    while taken.len() < n {
        let mut index = ring.partition_point(|(position, _)| *position < angle) % ring.len();
        while !taken.insert(index) {
            index = (index + 1) % ring.len();
        }
        angle = (angle + step) % UNIVERSE;
    }
    taken.into_iter().map(|index| ring[index].1).collect()
}

/// The members by position. A member whose position is taken is hashed again with its hash as salt.
fn ring<'a>(from: &BTreeSet<&'a str>, target: &str) -> BTreeMap<u64, &'a str> {
    let mut ring = BTreeMap::new();
    for member in from {
        // More members than positions can have no place each; the first ones of them are as good as any.
        if ring.len() as u64 == UNIVERSE {
            break;
        }
        let mut salted = format!("{member}{target}");
        let mut hash = fnv1a(&[&salted]);
        while ring.contains_key(&(hash % UNIVERSE)) {
            salted.push_str(&format!("{hash:x}"));
            hash = fnv1a(&[&salted]);
        }
        ring.insert(hash % UNIVERSE, *member);
    }
    ring
}

/// The subsets reduced to `n` ready addresses chosen for `target`; 0 means all. A subset that keeps no ready address
/// is left out.
pub(crate) fn reduce(subsets: &[EndpointSubset], target: &str, n: usize) -> Vec<EndpointSubset> {
    let addresses: BTreeSet<&str> =
        subsets.iter().flat_map(|s| s.addresses.iter().flatten()).map(|a| a.ip.as_str()).collect();
    if n == 0 || addresses.len() <= n {
        return subsets.to_vec();
    }
    let chosen = choose(&addresses, n, target);
    let mut reduced = Vec::with_capacity(subsets.len());
    for subset in subsets {
        let kept: Vec<_> =
            subset.addresses.iter().flatten().filter(|a| chosen.contains(a.ip.as_str())).cloned().collect();
        if !kept.is_empty() {
            reduced.push(EndpointSubset { addresses: Some(kept), ..subset.clone() });
        }
    }
    reduced
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Case {
        #[serde(rename = "From", default, deserialize_with = "golden::or_default")]
        from: BTreeSet<String>,
        #[serde(rename = "N", default)]
        n: usize,
        #[serde(rename = "Target")]
        target: String,
        #[serde(default, deserialize_with = "golden::or_default")]
        expect: BTreeSet<String>,
    }

    #[test]
    fn golden_subset() {
        let mut report = golden::Report::new("subset.json");
        for case in golden::cases::<Case>("subset.json") {
            let from = case.from.iter().map(String::as_str).collect();
            let chosen: BTreeSet<String> =
                choose(&from, case.n, &case.target).into_iter().map(Into::into).collect();
            let id = format!("{} of {} for {}", case.n, case.from.len(), case.target);
            report.check(&id, (chosen != case.expect).then(|| format!("{chosen:?} != {:?}", case.expect)));
        }
        report.finish();
    }

    #[test]
    fn a_ring_with_more_members_than_positions_still_answers() {
        let members: Vec<String> = (0..3000).map(|i| format!("10.0.{}.{}", i / 256, i % 256)).collect();
        let from = members.iter().map(String::as_str).collect();
        assert_eq!(choose(&from, 20, "rev").len(), 20);
    }
}
