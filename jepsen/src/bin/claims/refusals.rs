//! How often a claim is refused though a right was free elsewhere, in three designs under the same loads.
//!
//! One run has twenty minutes of steady load and then an hour of cut: what happened in the first minutes of it is what a
//! cut of so many minutes does.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::load::{CUT, Cut, HEAL, Load, Micros, Plan, SECOND, STEADY, Verdict};
use jepsen::parts::Fallible;

use crate::{baseline, escrow, plot};

pub(crate) const UTILISATIONS: [f64; 3] = [0.5, 0.8, 0.95];
pub(crate) const SKEWS: [f64; 3] = [0.0, 0.5, 1.0];
const CUTS: [Cut; 2] = [Cut::Halves, Cut::Alone];
/// Lengths of cuts in the table, minutes.
const LENGTHS: [u64; 4] = [1, 5, 20, 60];
/// What is counted together.
const BIN: Micros = 30 * SECOND;

/// The designs, in the order in which they are told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Design {
    Escrow,
    EqualShares,
    CentralCounter,
}

impl Design {
    pub(crate) const ALL: [Self; 3] = [Self::Escrow, Self::EqualShares, Self::CentralCounter];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Escrow => "LUC: rights follow demand",
            Self::EqualShares => "fixed equal shares",
            Self::CentralCounter => "one central counter",
        }
    }
}

/// What was counted, over all seeds of a plan.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Before the cut.
    pub(crate) steady: Count,
    /// During it, one after the other.
    bins: Vec<Count>,
    asked_ahead: u64,
    ideal: (u64, f64),
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    here: u64,
    asked: u64,
    refused_in_vain: u64,
    full: u64,
}

impl Count {
    fn add(&mut self, verdict: Verdict) {
        *(match verdict {
            Verdict::Here => &mut self.here,
            Verdict::Asked => &mut self.asked,
            Verdict::False => &mut self.refused_in_vain,
            Verdict::Full => &mut self.full,
        }) += 1;
    }

    fn sum(self, other: Self) -> Self {
        Self {
            here: self.here + other.here,
            asked: self.asked + other.asked,
            refused_in_vain: self.refused_in_vain + other.refused_in_vain,
            full: self.full + other.full,
        }
    }

    /// False refusals, percent of all requests.
    pub(crate) fn false_refusals(self) -> f64 {
        percent(self.refused_in_vain, self.here + self.asked + self.refused_in_vain + self.full)
    }

    fn without_message(self) -> f64 {
        percent(self.here, self.here + self.asked)
    }
}

fn percent(part: u64, all: u64) -> f64 {
    100.0 * part as f64 / all.max(1) as f64
}

impl Tally {
    fn new() -> Self {
        let bins = usize::try_from((HEAL - CUT) / BIN).unwrap_or_default();
        Self { steady: Count::default(), bins: vec![Count::default(); bins], asked_ahead: 0, ideal: (0, 0.0) }
    }

    fn add(&mut self, load: &Load, verdicts: &[Verdict], asked_ahead: &[Micros]) {
        for (arrival, verdict) in load.arrivals.iter().zip(verdicts) {
            match arrival.at.checked_sub(CUT) {
                None if arrival.at >= STEADY => self.steady.add(*verdict),
                None => {}
                Some(since) => {
                    let bin = usize::try_from(since / BIN).ok().and_then(|bin| self.bins.get_mut(bin));
                    bin.into_iter().for_each(|count| count.add(*verdict));
                }
            }
        }
        let steady = asked_ahead.iter().filter(|at| (STEADY..CUT).contains(*at));
        self.asked_ahead += steady.count() as u64;
    }

    fn merge(&mut self, other: &Self) {
        self.steady = self.steady.sum(other.steady);
        self.bins.iter_mut().zip(&other.bins).for_each(|(mine, other)| *mine = mine.sum(*other));
        self.asked_ahead += other.asked_ahead;
        self.ideal = (self.ideal.0 + other.ideal.0, self.ideal.1 + other.ideal.1);
    }

    /// The first so many seconds of the cut; the steady state if none.
    pub(crate) fn first(&self, seconds: u64) -> Count {
        let bins = usize::try_from(seconds * SECOND / BIN).unwrap_or_default();
        match bins {
            0 => self.steady,
            bins => self.bins.iter().take(bins).fold(Count::default(), |sum, bin| sum.sum(*bin)),
        }
    }
}

/// Everything that was counted.
pub(crate) struct Results(BTreeMap<(usize, Design), Tally>, Vec<Plan>);

impl Results {
    pub(crate) fn of(&self, utilisation: f64, skew: f64, cut: Cut, design: Design) -> Option<&Tally> {
        let index = self.1.iter().position(|plan| *plan == Plan { utilisation, skew, cut })?;
        self.0.get(&(index, design))
    }
}

/// Measures, prints, and writes the picture.
pub(crate) fn measure(seeds: u64, svg: &Path) -> Fallible<()> {
    let results = run_all(seeds)?;
    println!(
        "False refusals: 8 sites 50 ms apart, one quota of 800, lifetimes of 10 minutes on average, {seeds} seeds"
    );
    for cut in CUTS {
        let how = if cut == Cut::Halves { "cut into two halves" } else { "every site cut off from every other" };
        println!("\n{how}: refused though a right was free somewhere, % of requests in the first minutes of the cut");
        let lengths: String = LENGTHS.iter().map(|length| format!("{length:>7} min")).collect();
        println!("{:<12} {:<5} {:<26} {:>9}{lengths}", "utilisation", "skew", "", "no cut");
        for (utilisation, skew, design) in combinations() {
            let Some(tally) = results.of(utilisation, skew, cut, design) else { continue };
            let figures: String =
                LENGTHS.iter().map(|length| format!("{:>11.3}", tally.first(length * 60).false_refusals())).collect();
            println!(
                "{:<12} {skew:<5} {:<26} {:>9.3}{figures}",
                format!("{:.0} %", utilisation * 100.0),
                design.name(),
                tally.steady.false_refusals(),
            );
        }
    }
    println!("\nsteady state, before the cut: claims granted without a message to another site (target ≥ 99.9 %)");
    println!(
        "{:<12} {:<5} {:>12} {:>16} {:>34}",
        "utilisation", "skew", "without", "at best", "requests ahead, per 1000 claims"
    );
    for (utilisation, skew, design) in combinations().filter(|(_, _, design)| *design == Design::Escrow) {
        let both = CUTS.iter().filter_map(|cut| results.of(utilisation, skew, *cut, design));
        let both = both.fold(Tally::new(), |mut sum, tally| {
            sum.merge(tally);
            sum
        });
        let ahead = percent(both.asked_ahead, both.steady.here + both.steady.asked) * 10.0;
        println!(
            "{:<12} {skew:<5} {:>10.3} % {:>14.3} % {ahead:>34.1}",
            format!("{:.0} %", utilisation * 100.0),
            both.steady.without_message(),
            100.0 * both.ideal.1 / both.ideal.0.max(1) as f64,
        );
    }
    plot::write(&results, svg)
}

fn combinations() -> impl Iterator<Item = (f64, f64, Design)> {
    let pairs = UTILISATIONS.iter().flat_map(|utilisation| SKEWS.iter().map(|skew| (*utilisation, *skew)));
    pairs.flat_map(|(utilisation, skew)| Design::ALL.map(|design| (utilisation, skew, design)))
}

fn run_all(seeds: u64) -> Fallible<Results> {
    let mut plans = Vec::new();
    for (utilisation, skew) in UTILISATIONS.iter().flat_map(|u| SKEWS.iter().map(|s| (*u, *s))) {
        plans.extend(CUTS.map(|cut| Plan { utilisation, skew, cut }));
    }
    let jobs: Vec<(usize, u64)> = (0..plans.len()).flat_map(|plan| (1..=seeds).map(move |seed| (plan, seed))).collect();
    let next = AtomicUsize::new(0);
    let all = Mutex::new((BTreeMap::<(usize, Design), Tally>::new(), None));
    let work = || {
        while let Some((index, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
            let Some(plan) = plans.get(index) else { return };
            let done = run_one(plan, seed);
            let Ok(mut all) = all.lock() else { return };
            match done {
                Ok(tallies) => tallies.iter().for_each(|(design, tally)| {
                    all.0.entry((index, *design)).or_insert_with(Tally::new).merge(tally);
                }),
                Err(error) => {
                    all.1.get_or_insert(format!("{plan:?}, seed {seed}: {error}"));
                    return;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(work);
        }
    });
    match all.into_inner().map_err(|_| "a run panicked")? {
        (results, None) => Ok(Results(results, plans)),
        (_, Some(error)) => Err(error.into()),
    }
}

fn run_one(plan: &Plan, seed: u64) -> Fallible<[(Design, Tally); 3]> {
    let load = Load::new(plan, seed);
    let outcome = escrow::run(&load)?;
    let tally = |verdicts: &[Verdict], ahead: &[Micros]| {
        let mut tally = Tally::new();
        tally.add(&load, verdicts, ahead);
        tally
    };
    let mut escrow = tally(&outcome.verdicts, &outcome.asked_ahead);
    escrow.ideal = outcome.ideal;
    Ok([
        (Design::Escrow, escrow),
        (Design::EqualShares, tally(&baseline::equal_shares(&load), &[])),
        (Design::CentralCounter, tally(&baseline::central_counter(&load), &[])),
    ])
}
