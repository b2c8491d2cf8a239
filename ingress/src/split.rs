//! Percentages as an exact order of turns.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Deals requests to weighted choices so that every full round holds each choice exactly as often as its weight says,
/// spread evenly (smooth weighted round robin, worked out once; dealing is one atomic addition).
#[derive(Debug)]
pub struct Split {
    order: Box<[u8]>,
    turn: AtomicUsize,
}

impl Split {
    /// `weights` by choice; at most 256 choices. Choices of weight 0 are never dealt; when all are 0 nothing is.
    #[must_use]
    pub fn new(weights: &[u32]) -> Self {
        let divisor = weights.iter().copied().fold(0, gcd).max(1);
        let weights: Vec<i64> = weights.iter().map(|w| i64::from(w / divisor)).collect();
        let total: i64 = weights.iter().sum();
        let mut current = vec![0_i64; weights.len()];
        let mut order = Vec::new();
        for _ in 0..total {
            let mut best = 0;
            for (choice, weight) in weights.iter().enumerate() {
                current[choice] += weight;
                if current[choice] > current[best] || weights[best] == 0 {
                    best = choice;
                }
            }
            current[best] -= total;
            order.push(u8::try_from(best).unwrap_or(u8::MAX));
        }
        Self { order: order.into(), turn: AtomicUsize::new(0) }
    }

    /// The choice whose turn it is.
    pub fn next(&self) -> Option<usize> {
        if self.order.len() == 1 {
            return Some(usize::from(self.order[0]));
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.order.get(turn % self.order.len().max(1)).map(|&choice| usize::from(choice))
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ninety_ten_is_spread() {
        let split = Split::new(&[90, 10]);
        let first: Vec<_> = (0..10).filter_map(|_| split.next()).collect();
        assert_eq!(first.iter().filter(|&&c| c == 1).count(), 1);
        assert_eq!(Split::new(&[0, 0]).next(), None);
    }

    proptest! {
        #[test]
        fn every_round_is_exact(weights in proptest::collection::vec(0_u32..=100, 1..6), rounds in 1_usize..4) {
            let split = Split::new(&weights);
            let total: u32 = weights.iter().sum();
            let mut dealt = vec![0_u32; weights.len()];
            for _ in 0..total as usize * rounds {
                if let Some(choice) = split.next() {
                    dealt[choice] += 1;
                }
            }
            for (choice, weight) in weights.iter().enumerate() {
                prop_assert_eq!(dealt[choice] as usize, *weight as usize * rounds);
            }
        }
    }
}
