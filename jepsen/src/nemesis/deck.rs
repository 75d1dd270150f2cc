//! In which order faults come: by chance, and each before one comes again, so that a short run has all of them.

use super::Name;
use crate::sim::rng::Rng;

/// The faults that are still to come before all come again.
#[derive(Debug, Default)]
pub(super) struct Deck(Vec<Name>);

impl Deck {
    /// The next of these.
    pub(super) fn draw(&mut self, names: &[Name], rng: &mut Rng) -> Option<Name> {
        if self.0.is_empty() {
            self.0 = names.to_vec();
            shuffle(&mut self.0, rng);
        }
        self.0.pop()
    }
}

/// Puts a list in an order that chance decides.
pub(super) fn shuffle<T>(list: &mut [T], rng: &mut Rng) {
    for at in (1..list.len()).rev() {
        let bound = u64::try_from(at).unwrap_or(u64::MAX).saturating_add(1);
        list.swap(at, usize::try_from(rng.below(bound)).unwrap_or(at));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use clap::ValueEnum;

    use super::*;

    fn drawn(seed: u64, count: usize) -> Vec<Name> {
        let (mut deck, mut rng) = (Deck::default(), Rng::new(seed, 2));
        (0..count).map(|_| deck.draw(Name::value_variants(), &mut rng).unwrap()).collect()
    }

    #[test]
    fn each_fault_comes_before_one_comes_again() {
        let all: BTreeSet<Name> = Name::value_variants().iter().copied().collect();
        for seed in 0..50 {
            for round in drawn(seed, 3 * all.len()).chunks(all.len()) {
                assert_eq!(round.iter().copied().collect::<BTreeSet<_>>(), all, "seed {seed}");
            }
        }
    }

    #[test]
    fn the_order_follows_from_the_seed() {
        assert_eq!(drawn(7, 40), drawn(7, 40));
        let orders: BTreeSet<Vec<Name>> = (0..20).map(|seed| drawn(seed, 13)).collect();
        assert_eq!(orders.len(), 20, "and seeds differ");
    }

    #[test]
    fn of_no_faults_none_comes() {
        assert_eq!(Deck::default().draw(&[], &mut Rng::new(1, 2)), None);
    }
}
