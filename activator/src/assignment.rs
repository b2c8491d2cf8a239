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

#[cfg(test)]
mod tests {
    use super::*;

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
