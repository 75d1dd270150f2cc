//! The table of seeded bugs and of the rules that catch them.

use luc_engine::mutant::Mutant;

use super::rules::Rule;

/// Bugs that the simulator does not reach well enough yet to be sure of them within the seeds that the table allows: they are
/// looked for when they are named.
pub const UNSURE: &[Mutant] = &[Mutant::WordForgotten, Mutant::VouchIgnored, Mutant::AssentIgnored];

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
        Mutant::VouchIgnored => &["host", "site", "cut"],
        Mutant::PlaceIgnored => &["clone", "crash", "cut"],
        Mutant::WordForgotten => &["site", "join", "roam"],
        Mutant::ObservationByArrival => &["site", "join", "cut"],
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
        | Mutant::CapacityIgnored => &["cut", "slow", "liar"],
        _ => &[],
    }
}

/// How a seeded bug was caught.
#[derive(Clone, Debug)]
pub struct Caught {
    /// Which bug.
    pub mutant: Mutant,
    /// By which rule, at which seed; none if it got away.
    pub by: Option<(Rule, u64)>,
    /// How long that took, seconds.
    pub seconds: f64,
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

/// Switches a bug on and runs seeds until a rule breaks.
#[cfg(feature = "mutants")]
#[must_use]
pub fn hunt(plan: &super::Plan, mutant: Mutant, mut seeds: std::ops::Range<u64>) -> Caught {
    let started = std::time::Instant::now();
    luc_engine::mutant::set(Some(mutant));
    let caught = seeds.find_map(|seed| super::seed(plan, seed).broken.map(|broken| (broken.rule, seed)));
    luc_engine::mutant::set(None);
    Caught { mutant, by: caught, seconds: started.elapsed().as_secs_f64() }
}
