//! Bugs in the server itself, one at a time: `luc` built with the feature `mutants` takes one's name from the environment
//! variable `LUC_MUTANT`, and switches it on when the cloud is set up. Each trial is a `jepsen run` of its own, with the
//! workload and the faults under which such a bug would show, once for each seed; nothing is tried again.
//!
//! A bug is caught if **all** checkers that are named for it say that their rules were broken, and those alone count. What
//! others say is told. Every setting is also run without any bug: then the named checkers must have nothing to say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::trials::{TRIALS, Trial};
use crate::workload::{Valid, Verdict};

/// What is tried, and how.
pub struct Options {
    /// Only these bugs; all if empty.
    pub only: Vec<String>,
    /// The binary with the bugs.
    pub luc: Option<PathBuf>,
    /// How long a run may take in the median.
    pub limit: Duration,
    /// The first seed.
    pub seed: u64,
    /// How many from there on.
    pub seeds: u64,
    /// What the cloud is called.
    pub name: String,
    /// Where runs are written.
    pub out: PathBuf,
}

/// What came of one run.
struct Ran {
    seconds: u64,
    /// The checkers that say that a rule was broken.
    broken: BTreeSet<String>,
}

/// What came of all runs of one bug.
struct Row<'a> {
    trial: &'a Trial,
    /// The bug; none for the same setting without.
    bug: Option<&'a str>,
    ran: Vec<Ran>,
    errors: Vec<String>,
}

impl Row<'_> {
    fn is_caught(&self, ran: &Ran) -> bool {
        self.trial.named.iter().all(|name| ran.broken.contains(*name))
    }

    fn caught(&self) -> usize {
        self.ran.iter().filter(|ran| self.is_caught(ran)).count()
    }

    /// Of how long the runs took, each with its starting, healing and judging; none if most did not catch it.
    fn median(&self) -> Option<u64> {
        let all = self.ran.len() + self.errors.len();
        let mut took: Vec<u64> = self.ran.iter().filter(|ran| self.is_caught(ran)).map(|ran| ran.seconds).collect();
        took.sort_unstable();
        took.get(all.saturating_sub(1) / 2).copied()
    }

    /// Who else spoke up, and how often.
    fn others(&self) -> String {
        let mut others: BTreeMap<&str, usize> = BTreeMap::new();
        for name in self.ran.iter().flat_map(|ran| &ran.broken) {
            if self.bug.is_none() || !self.trial.named.contains(&name.as_str()) {
                *others.entry(name).or_default() += 1;
            }
        }
        others.iter().map(|(name, count)| format!("{name} ({count})")).collect::<Vec<_>>().join(", ")
    }

    fn named(&self) -> String {
        let one = |name: &&str| {
            let count = self.ran.iter().filter(|ran| ran.broken.contains(*name)).count();
            format!("{name} ({count})")
        };
        self.trial.named.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    fn is_good(&self, limit: Duration) -> bool {
        match self.bug {
            Some(_) => self.median().is_some_and(|took| took <= limit.as_secs()),
            None => self.errors.is_empty() && self.others().is_empty(),
        }
    }

    /// As a row of a table in Markdown, which people read as well.
    fn line(&self) -> String {
        let Trial { workload, nemesis, time, .. } = self.trial;
        let (all, faults) = (self.ran.len() + self.errors.len(), if *nemesis == "none" { "" } else { nemesis });
        let errors: String = self.errors.iter().map(|error| format!("; {error}")).collect();
        let (bug, caught, took, named) = match self.bug {
            Some(bug) => {
                let took = self.median().map_or_else(|| "-".to_owned(), |took| took.to_string());
                (bug, format!("{} of {all}", self.caught()), took, self.named())
            }
            None => ("*none*", String::new(), String::new(), String::new()),
        };
        format!("| {bug} | {workload} | {faults} | {time} | {caught} | {took} | {named} | {}{errors} |", self.others())
    }
}

const HEAD: &str = "| seeded bug | workload | faults | work, s | caught | median, s | by its checkers (runs) | others that spoke up |\n|---|---|---|---|---|---|---|---|";

/// Runs all trials and prints the table; whether all were caught.
pub(super) fn prove(options: &Options) -> bool {
    let Some((jepsen, luc)) = binaries(options) else { return false };
    let named = |trial: &&Trial| options.only.is_empty() || options.only.iter().any(|name| name == trial.bug);
    let without = options.only.is_empty() || options.only.iter().any(|name| name == "none");
    let mut settings: BTreeMap<_, &Trial> = BTreeMap::new();
    if without {
        settings.extend(TRIALS.iter().map(|trial| (trial.setting(), trial)));
    }
    let bugs = TRIALS.iter().filter(named).map(|trial| (trial, Some(trial.bug)));
    let all = bugs.chain(settings.into_values().map(|trial| (trial, None)));
    println!("{HEAD}");
    let (mut table, mut missed) = (format!("{HEAD}\n"), Vec::new());
    for (trial, bug) in all {
        let mut row = Row { trial, bug, ran: Vec::new(), errors: Vec::new() };
        let seeds = if bug.is_some() { options.seeds.max(1) } else { 1 };
        for seed in options.seed..options.seed + seeds {
            match run(trial, bug, &jepsen, &luc, options, seed) {
                Ok(ran) => row.ran.push(ran),
                Err(error) => row.errors.push(error),
            }
        }
        println!("{}", row.line());
        let _ = writeln!(table, "{}", row.line());
        if !row.is_good(options.limit) {
            missed.push(bug.map_or_else(|| format!("{} without a bug", trial.workload), str::to_owned));
        }
    }
    if let Err(error) = std::fs::write(options.out.join("table.md"), table) {
        eprintln!("jepsen: the table is not kept: {error}");
    }
    let free = unnamed();
    println!("checkers that no bug of a site is named for: {}", free.into_iter().collect::<Vec<_>>().join(", "));
    match missed.is_empty() {
        true => println!("every seeded bug of sites was caught by the checkers named for it"),
        false => println!("NOT PROVED: {}", missed.join(", ")),
    }
    missed.is_empty()
}

/// The checkers for which no trial is.
pub(super) fn unnamed() -> BTreeSet<String> {
    let named: BTreeSet<&str> = TRIALS.iter().flat_map(|trial| trial.named.iter().copied()).collect();
    super::checkers()
        .map(|(workload, checker)| format!("{workload} {checker}"))
        .filter(|name| !named.contains(&**name))
        .collect()
}

fn binaries(options: &Options) -> Option<(PathBuf, PathBuf)> {
    let Ok(jepsen) = std::env::current_exe() else {
        eprintln!("jepsen: this program does not know where it is");
        return None;
    };
    let luc = options.luc.clone().unwrap_or_else(|| jepsen.with_file_name("luc-mutants"));
    if !luc.exists() {
        eprintln!("jepsen: {} is missing: `make prove` builds it", luc.display());
        return None;
    }
    Some((jepsen, luc))
}

/// One run against sites with the bug, or without.
fn run(
    trial: &Trial,
    bug: Option<&str>,
    jepsen: &Path,
    luc: &Path,
    options: &Options,
    seed: u64,
) -> Result<Ran, String> {
    let began = Instant::now();
    let place = bug.map_or_else(|| format!("none-{}", trial.workload), str::to_owned);
    let out = options.out.join(format!("{place}-{seed}"));
    std::fs::create_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    let out = std::path::absolute(&out).map_err(|error| error.to_string())?;
    let (verdicts, up) = (out.join(crate::runner::files::VERDICTS), out.join("up"));
    // What an earlier run found is not what this one does.
    for old in [&verdicts, &up] {
        let _ = std::fs::remove_file(old);
    }
    let log = out.join("jepsen.log");
    let told = std::fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
    let errors = told.try_clone().map_err(|error| error.to_string())?;
    // However this process ends, the run is asked to end too, and cleans up.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).arg(jepsen);
    command.args(["run", "--sites", "3", "--doubled", "0", "--hosts", "0", "--agree", "20", "--name", &options.name]);
    command.args(["--workload", trial.workload, "--nemesis", trial.nemesis, "--every", trial.every]);
    command.args(["--lines", trial.lines, "--rate", trial.rate]);
    command.arg("--time").arg(trial.time.to_string()).arg("--seed").arg(seed.to_string());
    command.arg("--luc").arg(luc).arg("--out").arg(&out).arg("--when-up").arg(&up);
    command.env_remove("LUC_MUTANT").env("LUC_MUTANT_WHEN", &up);
    if let Some(bug) = bug {
        command.env("LUC_MUTANT", bug);
    }
    command.stdin(Stdio::null()).stdout(told).stderr(errors);
    let status = command.status().map_err(|error| format!("{}: {error}", jepsen.display()))?;
    let text = std::fs::read_to_string(&verdicts)
        .map_err(|_| format!("no run came about ({status}); see {}", log.display()))?;
    let verdicts: Vec<Verdict> = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", out.display()))?;
    let broken = verdicts.into_iter().filter(|verdict| verdict.valid == Valid::False);
    let broken = broken.map(|verdict| format!("{} {}", verdict.workload, verdict.checker)).collect();
    Ok(Ran { seconds: began.elapsed().as_secs(), broken })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(trial: &Trial, ran: Vec<(u64, &[&str])>) -> Option<u64> {
        let ran = ran
            .into_iter()
            .map(|(seconds, broken)| Ran { seconds, broken: broken.iter().map(|name| (*name).to_owned()).collect() });
        Row { trial, bug: Some(trial.bug), ran: ran.collect(), errors: Vec::new() }.median()
    }

    #[test]
    fn only_the_named_checkers_count_and_all_of_them() {
        let trial = Trial { named: &["set lost", "cloud duplicate"], ..TRIALS[0] };
        let both: &[&str] = &["set lost", "cloud duplicate", "set stale"];
        assert_eq!(row(&trial, vec![(30, both), (10, both), (20, both)]), Some(20));
        assert_eq!(row(&trial, vec![(30, both), (10, &["set lost", "set stale"]), (20, both)]), Some(30));
        assert_eq!(row(&trial, vec![(30, both), (10, &["set lost"]), (20, &[])]), None);
    }
}
