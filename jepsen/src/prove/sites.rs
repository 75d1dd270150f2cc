//! Bugs in the server itself, one at a time: `luc` built with the feature `mutants` takes one's name from the environment
//! variable `LUC_MUTANT`. Each trial is a `jepsen run` of its own, with the workload and the faults under which such a bug would
//! show, and again with the next seed until it is caught or the time is over.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::workload::{Valid, Verdict};

/// What is tried, and how.
pub struct Options {
    /// Only these bugs; all if empty.
    pub only: Vec<String>,
    /// The binary with the bugs.
    pub luc: Option<PathBuf>,
    /// How long one bug may go unnoticed.
    pub limit: Duration,
    /// The first seed.
    pub seed: u64,
    /// Where runs are written.
    pub out: PathBuf,
}

/// A bug, how to meet it, and who has to notice.
struct Trial {
    bug: &'static str,
    workload: &'static str,
    nemesis: &'static str,
    /// How long one run is, seconds.
    time: u64,
    /// Any of these checkers catches it.
    checkers: &'static [&'static str],
}

const fn trial(
    bug: &'static str,
    workload: &'static str,
    nemesis: &'static str,
    time: u64,
    checkers: &'static [&'static str],
) -> Trial {
    Trial { bug, workload, nemesis, time, checkers }
}

/// Of the site's own bugs and, below, of the engine's: those that clients can meet.
const TRIALS: &[Trial] = &[
    trial("AckBeforeFlush", "set", "kill", 40, &["stale", "lost", "session-order", "lost-acknowledgement"]),
    trial("FlushSkipped", "set", "kill", 60, &["no-going-back", "lost", "lost-acknowledgement", "availability"]),
    trial("DeleteForgotten", "set", "none", 20, &["resurrected", "resurrection"]),
    trial("StaleRead", "set", "none", 90, &["stale", "session-order"]),
    trial("FrontierIgnored", "causal", "partition,slow", 60, &["session"]),
    trial("RevocationIgnored", "auth", "none", 40, &["revoked-works", "works-again"]),
    trial("AsksEverybody", "set", "partition", 60, &["availability"]),
    trial("DomainLeft", "lifecycle", "none", 40, &["hypervisor", "runs-once"]),
    trial("ImageUnchecked", "images", "none", 60, &["checksum"]),
    trial("RightsUnchecked", "quota", "none", 40, &["no-double-booking", "quota-exceeded"]),
    trial("ReleaseTwice", "quota", "none", 40, &["conservation"]),
    trial("TransferTwice", "quota", "none", 40, &["conservation"]),
    trial("TombstoneDropped", "set", "partition", 60, &["resurrected", "resurrection", "equal-digests"]),
    trial("ReleaseNotStored", "set", "kill", 60, &["equal-digests", "convergence", "conservation"]),
    trial("PastIgnored", "set", "partition", 60, &["equal-digests", "convergence"]),
];

/// Runs all trials and prints the table; whether all were caught.
pub(super) fn prove(options: &Options) -> bool {
    let Some((jepsen, luc)) = binaries(options) else { return false };
    println!("{:<20} {:<12} {:<18} {:>5} {:>8}  caught by", "seeded bug", "workload", "faults", "runs", "seconds");
    let named = |trial: &&Trial| options.only.is_empty() || options.only.iter().any(|name| name == trial.bug);
    let (mut caught, mut all) = (0, 0);
    for trial in TRIALS.iter().filter(named) {
        all += 1;
        let began = Instant::now();
        let (mut runs, mut by) = (0, Vec::new());
        while by.is_empty() && began.elapsed() < options.limit {
            runs += 1;
            match run(trial, &jepsen, &luc, options, options.seed + runs - 1) {
                Ok(verdicts) => by = verdicts,
                Err(error) => {
                    println!("{}: {error}", trial.bug);
                    break;
                }
            }
        }
        let ours = by.iter().any(|checker| trial.checkers.iter().any(|name| checker.contains(name)));
        caught += u32::from(!by.is_empty());
        let seconds = began.elapsed().as_secs();
        let by = match (by.is_empty(), ours) {
            (true, _) => "NOT CAUGHT".to_owned(),
            (_, true) => by.join(", "),
            (_, false) => format!("{} (another than was thought)", by.join(", ")),
        };
        println!("{:<20} {:<12} {:<18} {runs:>5} {seconds:>8}  {by}", trial.bug, trial.workload, trial.nemesis);
    }
    println!("{caught} of {all} seeded bugs of sites were caught");
    caught == all
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

/// One run against sites with the bug; the checkers that say that a rule was broken.
fn run(trial: &Trial, jepsen: &Path, luc: &Path, options: &Options, seed: u64) -> Result<Vec<String>, String> {
    let out = options.out.join(trial.bug);
    std::fs::create_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    let verdicts = out.join(crate::runner::files::VERDICTS);
    // What an earlier run found is not what this one does.
    let _ = std::fs::remove_file(&verdicts);
    let log = out.join("jepsen.log");
    let told = std::fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
    let errors = told.try_clone().map_err(|error| error.to_string())?;
    let mut command = Command::new(jepsen);
    command.args(["run", "--sites", "3", "--doubled", "0", "--hosts", "0", "--name", "prove", "--every", "10s"]);
    command.args(["--workload", trial.workload, "--nemesis", trial.nemesis]);
    command.arg("--time").arg(trial.time.to_string()).arg("--seed").arg(seed.to_string());
    command.arg("--luc").arg(luc).arg("--out").arg(&out).env("LUC_MUTANT", trial.bug);
    command.stdin(Stdio::null()).stdout(told).stderr(errors);
    let status = command.status().map_err(|error| format!("{}: {error}", jepsen.display()))?;
    let text = std::fs::read_to_string(&verdicts)
        .map_err(|_| format!("no run came about ({status}); see {}", log.display()))?;
    let verdicts: Vec<Verdict> = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", out.display()))?;
    let broken = verdicts.into_iter().filter(|verdict| verdict.valid == Valid::False);
    Ok(broken.map(|verdict| format!("{} {}", verdict.workload, verdict.checker)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trial_is_of_a_bug_and_a_workload_that_there_are() {
        let workloads: Vec<_> = crate::workload::all().iter().map(|workload| workload.name()).collect();
        for trial in TRIALS {
            let of_engine = luc_engine::mutant::Mutant::ALL.iter().any(|one| format!("{one:?}") == trial.bug);
            let of_site = luc_engine::site_mutant::SiteMutant::named(trial.bug).is_some();
            assert!(of_engine || of_site, "{}", trial.bug);
            assert!(workloads.contains(&trial.workload), "{}", trial.workload);
        }
        for mutant in luc_engine::site_mutant::SiteMutant::ALL {
            assert!(TRIALS.iter().any(|trial| trial.bug == format!("{mutant:?}")), "{mutant:?} is never tried");
        }
    }
}
