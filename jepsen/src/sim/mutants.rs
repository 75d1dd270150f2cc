//! The table of seeded bugs and of the rules that catch them.

use luc_engine::mutant::Mutant;

use super::rules::Rule;

/// Bugs that the simulator does not play, since its liar seals nothing: the model catches them (`jepsen/tests/model`), and
/// `engine/tests/forks.rs`. Hunted when they are named.
pub const NOT_PLAYED: &[Mutant] = &[Mutant::AssentIgnored];

/// The faults that bring a bug out, among which it is hunted: further ones only make that longer. None stands for all that
/// honest members meet.
#[must_use]
pub fn faults(mutant: Mutant) -> &'static [&'static str] {
    match mutant {
        Mutant::TombstoneDropped | Mutant::KeptIgnored | Mutant::PurgedUnstable => &["cut", "slow"],
        Mutant::OwnSealOnly | Mutant::LowestSeal | Mutant::SealIgnored => &["retire", "cut"],
        Mutant::AssentIgnored => &["retire", "cut", "slow", "liar"],
        Mutant::OldDiskAccepted => &["old-disk", "crash", "cut"],
        Mutant::WitnessIgnored => &["old-disk", "crash", "cut"],
        Mutant::StalePlacement | Mutant::VouchIgnored => &["host", "site"],
        Mutant::PlaceIgnored => &["clone", "crash", "cut"],
        Mutant::WordForgotten | Mutant::ObservationByArrival => &["site"],
        Mutant::ReplayForgotten | Mutant::MinorityDrops => &["logs", "cut"],
        Mutant::DeadHostSpent => &["host", "cut"],
        Mutant::RetiredHostDead => &["retire", "host", "lose"],
        Mutant::SignatureUnchecked
        | Mutant::WriterUnchecked
        | Mutant::RootUnchecked
        | Mutant::DebtForgiven
        | Mutant::HashIgnored
        | Mutant::ForkUntold
        | Mutant::PlacedByAnybody
        | Mutant::CapacityIgnored
        | Mutant::TrustKept => &["cut", "slow", "liar"],
        _ => &[],
    }
}

/// How a seeded bug was caught.
#[derive(Clone, Debug)]
pub struct Caught {
    /// Which bug.
    pub mutant: Mutant,
    /// By which rule, at which seed: the lowest that catches it; none if it got away.
    pub by: Option<(Rule, u64)>,
    /// How many seeds have caught it, of those that were run.
    pub times: usize,
    /// How long that took, seconds.
    pub seconds: f64,
}

/// How seeds are run.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug)]
pub struct Hunt {
    /// Seeds at once. The answer is the same however many these are.
    pub threads: usize,
    /// Run all seeds, not only up to the first that catches the bug.
    pub all: bool,
}

/// How many steps are left of the schedule at which a bug was caught, after at most so many runs.
#[cfg(feature = "mutants")]
#[must_use]
pub fn shrink(plan: &super::Plan, mutant: Mutant, (rule, seed): (Rule, u64), budget: usize) -> usize {
    luc_engine::mutant::set(Some(mutant));
    let steps = super::shrunk(plan, seed, rule, budget);
    luc_engine::mutant::set(None);
    steps.len()
}

/// Runs seeds with a bug switched on until a rule breaks. Seeds are handed out in order and every one below the lowest that
/// has caught the bug so far is run to its end, so the lowest of all is found.
#[cfg(feature = "mutants")]
#[must_use]
pub fn hunt(plan: &super::Plan, mutant: Mutant, seeds: std::ops::Range<u64>, hunt: Hunt) -> Caught {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    let started = std::time::Instant::now();
    let todo = Mutex::new((seeds, BTreeMap::new()));
    let next = || {
        let mut todo = todo.lock().ok()?;
        if todo.1.is_empty() || hunt.all { todo.0.next() } else { None }
    };
    let work = || {
        // Of each thread.
        luc_engine::mutant::set(Some(mutant));
        while let Some(seed) = next() {
            let broken = super::seed(plan, seed).broken;
            if let Some((broken, Ok(mut todo))) = broken.map(|broken| (broken, todo.lock())) {
                todo.1.insert(seed, broken.rule);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..hunt.threads.max(1) {
            scope.spawn(work);
        }
    });
    let caught = todo.into_inner().map(|(_, caught)| caught).unwrap_or_default();
    let by = caught.first_key_value().map(|(seed, rule)| (*rule, *seed));
    Caught { mutant, by, times: caught.len(), seconds: started.elapsed().as_secs_f64() }
}
