//! The simulator in `cargo test`: few seeds, as many as a test may take. `make sim` runs many.
#![allow(missing_docs)]

use jepsen::sim::workload::{Fault, Op, Step, What};
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

/// 0 writes while it is cut off, and only its host's agent is told of that; its disk is put back, and it waits for that
/// agent's word. The machine fails, and is to be declared dead, which nobody but 0 may say: 0 would wait for
/// ever, and so would the retirement of 1, which needs its seal.
#[test]
fn a_machine_is_not_given_up_while_its_agent_alone_can_tell_how_old_a_disk_is() {
    let fault = |at, fault| Step { at, what: What::Fault(fault) };
    let op = |at, op| Step { at, what: What::Op { node: 0, op } };
    let steps = vec![
        fault(3_000_000, Fault::CopyDisk { node: 0 }),
        fault(3_000_000, Fault::Part { bits: 1 }),
        op(3_100_000, Op::Flavor { name: 1 }),
        fault(6_500_000, Fault::OldDisk { node: 0, down: 100_000 }),
        fault(6_550_000, Fault::KillHost { agent: 0, declared: true, down: 100_000 }),
        // Of those that run, 0 does not: this is 1.
        fault(6_580_000, Fault::Retire { node: 0, again: 4_000_000 }),
    ];
    assert_eq!(sim::run(&Plan::default(), 1, steps, false).broken, None);
}
