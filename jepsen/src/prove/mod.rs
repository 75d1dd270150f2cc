//! The proof of the checkers: each must catch what it is there for, or it counts for nothing.
//!
//! Two tables. **Histories**: faults put by hand into good histories, for every checker of every workload and of the whole
//! cloud; a checker without a fault to its name is an error, and so is one that finds fault with the good history.
//! **Sites**: bugs put into the server itself, one at a time, in a test build; the suite is run against a cloud of such sites,
//! with several seeds, and the checkers that are named for the bug must catch it, in ten minutes in the median.

pub mod sites;
mod trials;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use crate::check;
use crate::history::History;
use crate::workload::{self, Valid, Verdict};

/// Proves that the checkers catch what they are there for, and prints by which bug each has.
///
/// Without --sites only faults in histories are looked for, which takes a moment.
#[derive(Args, Debug)]
pub struct ProveArgs {
    /// Also run clouds whose sites have bugs; needs root, and `luc` built with `--features mutants` (`make prove` does it).
    #[arg(long)]
    sites: bool,
    /// Only these seeded bugs of sites, separated by commas; `none` for the same runs without a bug.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The binary with the seeded bugs; `luc-mutants` beside this one if not given.
    #[arg(long)]
    luc: Option<PathBuf>,
    /// How long a bug may go unnoticed in the median, minutes.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// So many seeds for each bug, from there on.
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// Name of the clouds on this machine: another, to have several proofs at once.
    #[arg(long, default_value = "prove")]
    name: String,
    /// Where runs are written.
    #[arg(long, default_value = "target/jepsen/prove")]
    out: PathBuf,
}

/// One row of the table of histories.
#[derive(Clone, Debug)]
pub struct Row {
    /// The workload, or `cloud`.
    pub workload: String,
    /// The checker that has to catch it.
    pub checker: String,
    /// What is wrong.
    pub bug: String,
    /// Which checkers caught it.
    pub caught: Vec<String>,
    /// What the named checker says of the history without the fault.
    pub content: bool,
    /// How long judging took.
    pub took: Duration,
}

impl Row {
    /// Whether the named checker caught it, and is content with the good history.
    #[must_use]
    pub fn is_proved(&self) -> bool {
        self.content && self.caught.contains(&self.checker)
    }
}

/// `jepsen prove`: 0 if every bug was caught by its checker and every checker has one.
#[must_use]
pub fn prove(args: &ProveArgs) -> ExitCode {
    let rows = histories();
    print_rows(&rows);
    let idle = idle(&rows);
    for checker in &idle {
        println!("NOT PROVED: {checker} has no seeded fault to its name");
    }
    let failed = rows.iter().filter(|row| !row.is_proved()).count();
    println!("{} of {} faults in histories were caught by the named checker", rows.len() - failed, rows.len());
    let mut good = failed == 0 && idle.is_empty();
    if args.sites {
        good &= sites::prove(&sites::Options {
            only: args.only.clone(),
            luc: args.luc.clone(),
            limit: Duration::from_secs(args.minutes * 60),
            seed: args.seed,
            seeds: args.seeds,
            name: args.name.clone(),
            out: args.out.clone(),
        });
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn broken(verdicts: &[Verdict]) -> Vec<String> {
    verdicts.iter().filter(|verdict| verdict.valid == Valid::False).map(|verdict| verdict.checker.clone()).collect()
}

/// Judges every history with a seeded fault, and the same without it.
#[must_use]
pub fn histories() -> Vec<Row> {
    let mut rows: Vec<Row> = workload::seeded().iter().map(of_workload).collect();
    let good = check::all(&check::seeded::good());
    for seeded in check::seeded::SEEDED {
        let began = Instant::now();
        let caught = broken(&check::all(&seeded.bad()));
        let content = good.iter().any(|verdict| verdict.checker == seeded.checker && verdict.valid == Valid::True);
        let (checker, bug) = (seeded.checker.to_owned(), seeded.bug.to_owned());
        rows.push(Row { workload: "cloud".into(), checker, bug, caught, content, took: began.elapsed() });
    }
    rows
}

fn of_workload(seeded: &workload::Seeded) -> Row {
    let judge = |history: &History| {
        let of = workload::all().into_iter().find(|workload| workload.name() == seeded.workload);
        of.map(|workload| workload.check(&history.of(seeded.workload), history)).unwrap_or_default()
    };
    let began = Instant::now();
    let caught = broken(&judge(&seeded.bad));
    let took = began.elapsed();
    let good = judge(&seeded.good);
    let content = good.iter().any(|verdict| verdict.checker == seeded.checker && verdict.valid == Valid::True);
    let (workload, checker, bug) = (seeded.workload.to_owned(), seeded.checker.to_owned(), seeded.bug.to_owned());
    Row { workload, checker, bug, caught, content, took }
}

/// All checkers: of which workload, or `cloud`, and what they are called.
fn checkers() -> impl Iterator<Item = (String, String)> {
    let empty = History::default();
    let of_workloads = workload::all().into_iter().flat_map(move |workload| workload.check(&empty, &empty));
    let of_workloads = of_workloads.map(|verdict| (verdict.workload, verdict.checker));
    let of_cloud = check::CHECKERS.iter().map(|checker| ("cloud".to_owned(), checker.name.to_owned()));
    of_workloads.chain(of_cloud)
}

/// The checkers that no seeded fault names.
#[must_use]
pub fn idle(rows: &[Row]) -> BTreeSet<String> {
    let named: BTreeSet<_> = rows.iter().map(|row| (row.workload.clone(), row.checker.clone())).collect();
    let idle = checkers().filter(|checker| !named.contains(checker));
    idle.map(|(workload, checker)| format!("{workload} {checker}")).collect()
}

fn print_rows(rows: &[Row]) {
    println!("{:<10} {:<22} {:<58} {:>6}  caught by", "workload", "checker", "fault in a history", "ms");
    for row in rows {
        let caught = if row.is_proved() { row.caught.join(", ") } else { format!("NOT PROVED {:?}", row.caught) };
        let milliseconds = row.took.as_millis();
        println!("{:<10} {:<22} {:<58} {milliseconds:>6}  {caught}", row.workload, row.checker, row.bug);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_in_a_history_is_caught_by_its_checker_and_every_checker_has_one() {
        let rows = histories();
        for row in &rows {
            assert!(row.is_proved(), "{row:?}");
        }
        assert_eq!(idle(&rows), BTreeSet::new());
    }
}
