//! The simulator in `cargo test`: few seeds, as many as a test may take. `make sim` runs many.
#![allow(missing_docs)]

use jepsen::sim::{self, Plan};

#[test]
fn one_seed_is_one_run_bit_for_bit() {
    let plan = Plan { ops: 150, ..Plan::default() };
    let (first, second) = (sim::seed(&plan, 7), sim::seed(&plan, 7));
    assert_eq!(first.broken, None);
    assert!(first.events > 1_000, "something happened");
    assert_eq!(first.hash, second.hash);
    assert_ne!(first.hash, sim::seed(&plan, 8).hash);
}

#[test]
fn the_rules_hold_on_a_few_seeds() {
    let plan = Plan { ops: 150, ..Plan::default() };
    for seed in 1..=12 {
        assert_eq!(sim::seed(&plan, seed).broken, None, "seed {seed}: `make sim SEED={seed}` tells the story");
    }
}
