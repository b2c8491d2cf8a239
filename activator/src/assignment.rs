//! Which of a revision's pods belong to this activator, when there are several.
//!
//! Knative activator: subset assignment. Without a concurrency limit every activator uses every pod.

/// This activator among those that serve a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// How many activators there are.
    pub count: usize,
    /// Which of them this is, in order of their addresses.
    pub index: usize,
}

/// Where `own` stands among the activators' addresses; `None` when it is not one of them (the public endpoints lead
/// to the pods then), so that the last known position goes on being used.
#[must_use]
pub fn position(own: &str, mut activators: Vec<String>) -> Option<Position> {
    activators.sort();
    activators.dedup();
    let index = activators.iter().position(|address| address == own)?;
    Some(Position { count: activators.len(), index })
}

/// The pods (in order) of the activator at `position`; without a position all of them.
#[must_use]
pub fn assigned<T: Clone>(pods: &[T], position: Option<Position>) -> Vec<T> {
    let Some(Position { count, index }) = position else { return pods.to_vec() };
    let total = pods.len();
    if total <= 1 || count <= 1 {
        return pods.to_vec();
    }
    if count > total {
        return vec![pods[index % total].clone()];
    }
    let (share, rest) = (total / count, total % count);
    let mut mine = pods[index * share..(index + 1) * share].to_vec();
    if index < rest {
        mine.push(pods[total - rest + index].clone());
    }
    mine
}

/// How many requests this activator may have at a time in `ready` pods that are reached by one address, each taking
/// `limit`: its share of the places, but one at least where there are any.
#[must_use]
pub fn shared_places(limit: u32, ready: usize, position: Option<Position>) -> u32 {
    let places = u64::from(limit) * ready as u64;
    let activators = position.map_or(1, |position| position.count.max(1)) as u64;
    // As many as upstream counts to.
    let most = u64::from(i32::MAX.unsigned_abs());
    let share = if places == 0 { 0 } else { (places / activators).clamp(1, most) };
    u32::try_from(share).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_table() {
        struct Row {
            limit: u32,
            pods: usize,
            /// Reached by the Service's address.
            cluster_ip: bool,
            activators: usize,
            index: usize,
            assigned: &'static [usize],
            capacity: u32,
        }
        let row = |limit, pods, activators, index, assigned, capacity| Row {
            limit,
            pods,
            cluster_ip: false,
            activators,
            index,
            assigned,
            capacity,
        };
        let by_service = |limit, pods, activators, capacity| Row {
            limit,
            pods,
            cluster_ip: true,
            activators,
            index: 0,
            assigned: &[],
            capacity,
        };
        for Row { limit, pods, cluster_ip, activators, index, assigned: expected, capacity } in [
            row(42, 6, 4, 0, &[0, 4], 84),
            row(10, 3, 2, 0, &[0, 2], 20),
            row(10, 3, 2, 1, &[1], 10),
            row(1, 5, 2, 0, &[0, 1, 4], 3),
            row(1, 5, 2, 1, &[2, 3], 2),
            row(1, 2, 3, 0, &[0], 1),
            row(1, 2, 3, 1, &[1], 1),
            row(1, 2, 3, 2, &[0], 1),
            by_service(10, 10, 5, 20),
            by_service(10, 10, 200, 1),
            by_service(10, 0, 200, 0),
            by_service(10, 10, 1, 100),
            by_service(u32::MAX, 10, 1, 2_147_483_647),
        ] {
            let position = Some(Position { count: activators, index });
            let found = if cluster_ip {
                shared_places(limit, pods, position)
            } else {
                let mine = assigned(&(0..pods).collect::<Vec<_>>(), position);
                assert_eq!(mine, expected, "{pods} pods, activator {index} of {activators}");
                limit * u32::try_from(mine.len()).unwrap()
            };
            assert_eq!(found, capacity, "{limit} in {pods} pods, activator {index} of {activators}");
        }
        assert_eq!(shared_places(10, 3, None), 30);
    }

    #[test]
    fn contract_table() {
        let of = |pods: usize, count, index| {
            assigned(&(0..pods).collect::<Vec<_>>(), Some(Position { count, index }))
        };
        assert_eq!(of(6, 4, 0), [0, 4]);
        assert_eq!([of(3, 2, 0).len(), of(3, 2, 1).len()], [2, 1]);
        assert_eq!([of(5, 2, 0).len(), of(5, 2, 1).len()], [3, 2]);
        assert_eq!([of(2, 3, 0), of(2, 3, 1), of(2, 3, 2)], [[0], [1], [0]]);
        assert_eq!(assigned(&[0, 1, 2], None), [0, 1, 2]);
    }

    #[test]
    fn the_activators_share_all_pods_without_overlap() {
        for pods in 0..12_usize {
            for count in 1..=pods.max(1) {
                let mut seen: Vec<usize> = (0..count)
                    .flat_map(|index| {
                        assigned(&(0..pods).collect::<Vec<_>>(), Some(Position { count, index }))
                    })
                    .collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..pods).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_position_needs_to_be_among_the_addresses() {
        let addresses = || vec!["10.0.0.2".to_owned(), "10.0.0.1".to_owned()];
        assert_eq!(position("10.0.0.2", addresses()), Some(Position { count: 2, index: 1 }));
        assert_eq!(position("10.0.0.9", addresses()), None);
    }
}
