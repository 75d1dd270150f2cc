//! The deterministic simulator: the real [`luc_engine::replica::Replica`] and the real [`luc_sync::proto::Proto`] on
//! virtual time, network and disk.
//!
//! A seed draws a schedule of operations and faults ([`workload`]); the world plays it ([`world`]); after every step the
//! oracle checks the rules of `DESIGN.md` over the union of all states ([`rules`]). One seed and one commit give one
//! run, bit for bit: the hash of its trace says so. A failing seed is shrunk to a short story ([`shrink`]).

mod addresses;
mod agent;
mod dead;
pub mod disk;
mod faults;
mod liar;
pub mod mutants;
pub mod net;
mod node;
mod ops;
mod queue;
mod rights;
pub mod rng;
pub mod rules;
mod sessions;
pub mod shrink;
mod snapshots;
pub mod sometimes;
mod story;
pub mod trace;
mod vouching;
mod witness;
pub mod workload;
pub mod world;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rules::{Broken, Rule};
use workload::{HONEST, Step};
use world::{Config, Outcome};

/// What is run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Replicas at the start.
    pub sites: usize,
    /// Operations.
    pub ops: usize,
    /// Names of faults, see [`workload::FAULTS`].
    pub faults: BTreeSet<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { sites: 8, ops: 2_000, faults: HONEST.iter().map(|name| (*name).to_owned()).collect() }
    }
}

/// Runs one seed.
#[must_use]
pub fn seed(plan: &Plan, seed: u64) -> Outcome {
    let steps = workload::schedule(seed, plan.ops, &plan.faults);
    run(plan, seed, steps, false)
}

/// Runs a schedule of a seed. A panic is a broken rule like any other.
#[must_use]
pub fn run(plan: &Plan, seed: u64, steps: Vec<Step>, text: bool) -> Outcome {
    let config = Config { seed, sites: plan.sites, text };
    #[cfg(feature = "memo")]
    luc_engine::memo::forget();
    let outcome = catch_unwind(AssertUnwindSafe(|| world::run(&config, steps)));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let how = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
        Outcome {
            broken: Some(Broken::new(Rule::Panic, how)),
            hash: String::new(),
            events: 0,
            sometimes: sometimes::Sometimes::default(),
            lines: Vec::new(),
            took: 0,
            entries: 0,
        }
    })
}

/// The steps that a failing seed needs.
#[must_use]
pub fn shrunk(plan: &Plan, seed: u64, rule: Rule, budget: usize) -> Vec<Step> {
    let all = workload::schedule(seed, plan.ops, &plan.faults);
    let mut fails = |steps: &[Step]| run(plan, seed, steps.to_vec(), false).broken.map(|broken| broken.rule);
    shrink::shrink(all, rule, budget, &mut fails)
}

/// A failing seed's short story, as text: what broke, the steps that it needs, and everything that happens in them.
#[must_use]
pub fn story(plan: &Plan, seed: u64, rule: Rule, budget: usize) -> String {
    use std::fmt::Write;
    let count = workload::schedule(seed, plan.ops, &plan.faults).len();
    let steps = shrunk(plan, seed, rule, budget);
    let outcome = run(plan, seed, steps.clone(), true);
    let mut text = format!("seed {seed}, {} sites: rule {rule} is broken\n", plan.sites);
    if let Some(broken) = &outcome.broken {
        let _ = writeln!(text, "{}", broken.how);
    }
    let _ = writeln!(text, "\n{} of {count} steps are needed:", steps.len());
    for step in &steps {
        let _ = writeln!(text, "{:>12.6} {:?}", trace::Seconds(step.at), step.what);
    }
    let _ = writeln!(text, "\nwhat happens:");
    outcome.lines.iter().for_each(|line| text.push_str(&format!("{line}\n")));
    text
}
