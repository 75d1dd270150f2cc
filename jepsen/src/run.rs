//! What a run leaves behind: all that checkers judge, and all that the report shows. It is kept as one file beside the
//! history, so that an old run can be judged again by newer checkers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::history::{History, Kind, Process};
use crate::workload::Verdict;

/// One run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Run {
    /// What everything random in it follows from.
    pub seed: u64,
    /// The command line that made it.
    pub command: String,
    /// When it began, Unix milliseconds, by the clock of who ran it.
    pub started: u64,
    /// How long it took, nanoseconds.
    pub duration: u64,
    /// When the last fault was healed, nanoseconds since the run began: what comes later are convergence and final reads.
    #[serde(default)]
    pub healed: u64,
    /// How long it then took until all endpoints had equal frontiers and digests, nanoseconds; none if they never had.
    #[serde(default)]
    pub converged: Option<u64>,
    /// What ran: `luc`, `jepsen`, `libvirt`, …, with their versions.
    pub versions: BTreeMap<String, String>,
    /// The sites, in the cloud's order.
    pub sites: Vec<String>,
    /// How many replicas clients work at: those of one number, modulo this, work at the same one. 0 if that is not known;
    /// then a site counts as one.
    #[serde(default)]
    pub endpoints: u32,
    /// What clients and nemesis did. Its own files, `history.jsonl` and `history.edn`, hold it.
    #[serde(skip)]
    pub history: History,
    /// What the checkers say.
    pub verdicts: Vec<Verdict>,
    /// The faults, by their beginning.
    pub faults: Vec<Fault>,
    /// What every site said of itself from time to time, by time.
    pub samples: Vec<Sample>,
    /// What was seen of the hypervisors, by time.
    pub domains: Vec<Domains>,
    /// How much of the machine the run got, by time.
    #[serde(default)]
    pub paces: Vec<Pace>,
    /// The sites' logs and whatever else is worth reading, relative to the run's directory.
    pub logs: Vec<PathBuf>,
}

/// How the machine that the suite runs on fared at one moment, as a probe saw it that asks no site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// When the probe wanted to begin its work, nanoseconds since the run began.
    pub from: u64,
    /// When it was through.
    pub until: u64,
    /// How long that takes alone, nanoseconds: its processor time.
    pub work: u64,
    /// What the run's own processes did not use of all processors, and was not idle, since the probe looked before; permille.
    pub others: u32,
}

/// A fault, from its beginning to its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fault {
    /// Which: `partition`, `kill`, `pause`, …
    pub name: String,
    /// When it began, nanoseconds since the run began.
    pub from: u64,
    /// When it was healed; none if it never was.
    pub until: Option<u64>,
    /// The sites it hit.
    pub sites: Vec<String>,
    /// Which sites could not talk to which, `(from, to)`; empty if the fault is none of the network.
    pub cut: Vec<(String, String)>,
    /// What was done, in words; for faults of disks, with the case of `PROTOCOL.md`, M4.
    pub detail: String,
    /// Whether acknowledged writes that only the sites it hit held may be lost by it: a disk that was wiped or rolled back, a
    /// replica that was retired.
    pub may_lose: bool,
    /// Which acknowledged writes may be lost by it, exactly: no others.
    pub excused: Vec<Excuse>,
}

/// Acknowledged writes that may be lost: those that only a disk held that was wiped or rolled back, or that left with a
/// retired replica, because no survivor had received them yet (`PROTOCOL.md`, M4). Nothing else may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excuse {
    /// The site whose replica answered.
    pub site: String,
    /// Where that replica answers: a site may have others.
    pub base: String,
    /// The processes that work there with that replica.
    pub processes: Vec<u32>,
    /// Only what completed after this time, nanoseconds since the run began: what came before, a survivor is known to hold.
    pub after: u64,
    /// And not later than this: then it had stopped.
    pub until: u64,
    /// The rule.
    pub case: String,
    /// Whether reads at that site may also be stale until the fault is over: an old copy answers before it has caught up.
    #[serde(default)]
    pub stale: bool,
}

impl Run {
    /// Whether a fault excuses that what was acknowledged at this site and time is lost.
    #[must_use]
    pub fn excuses(&self, site: &str, completed: u64) -> bool {
        self.faults.iter().flat_map(|fault| &fault.excused).any(|excuse| excuse.covers(site, completed))
    }

    /// Whether a site's disk may have lost something between two moments: only then may it hold less.
    #[must_use]
    pub fn may_have_lost(&self, site: &str, from: u64, until: u64) -> bool {
        self.faults.iter().any(|fault| fault.may_lose && fault.hit(site, from, until))
    }
}

impl Fault {
    /// Whether it hit a site at some time between two moments, these included.
    #[must_use]
    pub fn hit(&self, site: &str, from: u64, until: u64) -> bool {
        let named = self.sites.iter().any(|one| one == site);
        named && self.from <= until && self.until.is_none_or(|end| end >= from)
    }
}

impl Excuse {
    /// Whether it covers an operation that completed at this site and time.
    #[must_use]
    pub fn covers(&self, site: &str, completed: u64) -> bool {
        self.site == site && self.after < completed && completed <= self.until
    }
}

/// The faults of a history, by their beginning. Their operations are `start` and `stop`, or `once` for what is over at once; the
/// value is a [`Fault`] with a number, `id`, that its operations share. A fault lasts from the invocation of its start to the
/// completion of its stop.
#[must_use]
pub fn faults(history: &History) -> Vec<Fault> {
    let mut found: Vec<(u64, Fault)> = Vec::new();
    for op in history.0.iter().filter(|op| op.process == Process::Nemesis) {
        let Some(id) = op.value["id"].as_u64() else { continue };
        let open = found.iter_mut().find(|(other, _)| *other == id).map(|(_, fault)| fault);
        let told = || serde_json::from_value::<Fault>(op.value.clone()).ok();
        match (op.f.as_str(), op.kind == Kind::Invoke, open) {
            ("start" | "once", true, None) => {
                let fault = told().unwrap_or_default();
                found.push((id, Fault { from: op.time, until: None, ..fault }));
            }
            ("start", false, Some(fault)) => *fault = Fault { from: fault.from, ..told().unwrap_or_default() },
            ("once", false, Some(fault)) => {
                *fault = Fault { from: fault.from, until: Some(op.time), ..told().unwrap_or_default() };
            }
            ("stop", false, Some(fault)) => {
                fault.until = Some(op.time);
                fault.excused.extend(told().unwrap_or_default().excused);
            }
            _ => {}
        }
    }
    found.into_iter().map(|(_, fault)| fault).collect()
}

/// All that a history's faults excuse.
#[must_use]
pub fn excuses(history: &History) -> Vec<Excuse> {
    faults(history).into_iter().flat_map(|fault| fault.excused).collect()
}

/// What one site said of itself at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When it was asked, nanoseconds since the run began.
    pub time: u64,
    /// When it had answered.
    #[serde(default)]
    pub answered: u64,
    /// The site.
    pub site: String,
    /// Where it was asked: a site with several replicas has several answers.
    #[serde(default)]
    pub base: String,
    /// Its digest, if it answered.
    pub digest: Option<String>,
    /// Its frontier, of the same moment as the digest (`/luc/v1/digest` tells both): for each replica, its last entry here.
    #[serde(default)]
    pub frontier: BTreeMap<String, Tip>,
    /// Entries that it holds and each other site has not confirmed.
    #[serde(default)]
    pub lag: BTreeMap<String, u64>,
    /// The answer to `/luc/v1/pools`, with the rights of the site itself alone: others tell theirs. Null if that was not asked.
    #[serde(default)]
    pub pools: Value,
}

/// The last entry of a replica's log that a site holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tip {
    /// Its number.
    pub number: u64,
    /// The beginning of its hash, which tells two branches of a fork apart.
    pub hash: String,
}

/// What a hypervisor was seen to run at one moment, beside what the APIs said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Domains {
    /// When libvirt was asked, nanoseconds since the run began.
    pub time: u64,
    /// The host's site.
    pub site: String,
    /// The host.
    pub host: String,
    /// Running domains, by the server's id.
    pub running: Vec<String>,
    /// Domains that are defined and do not run.
    #[serde(default)]
    pub stopped: Vec<String>,
    /// What the API said of the host's servers at that moment, by id: `ACTIVE`, `SHUTOFF`, …; none if that was not asked.
    #[serde(default)]
    pub said: Option<BTreeMap<String, String>>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::history::Op;

    fn op(index: u64, kind: Kind, f: &str, value: Value) -> Op {
        let (process, time) = (Process::Nemesis, index * 10);
        Op { index, time, kind, process, f: f.into(), value, site: None, workload: None, error: None }
    }

    #[test]
    fn a_fault_lasts_from_the_invocation_of_its_start_to_the_completion_of_its_stop() {
        let excuse = json!([{"site": "lyon", "processes": [3], "base": "", "after": 5, "until": 12, "case": "M4"}]);
        let wiped = json!({"name": "wipe", "id": 1, "sites": ["lyon"], "may_lose": true, "excused": excuse});
        let history = History(vec![
            op(0, Kind::Invoke, "start", json!({"name": "wipe", "id": 1})),
            op(1, Kind::Info, "start", wiped),
            op(2, Kind::Invoke, "once", json!({"name": "kill", "id": 2})),
            op(3, Kind::Info, "once", json!({"name": "kill", "id": 2})),
            op(4, Kind::Invoke, "stop", json!({"name": "wipe", "id": 1})),
            op(5, Kind::Info, "stop", json!({"name": "wipe", "id": 1})),
            op(6, Kind::Invoke, "start", json!({"name": "pause", "id": 3})),
        ]);
        let faults = faults(&history);
        let spans: Vec<_> = faults.iter().map(|one| (one.name.as_str(), one.from, one.until)).collect();
        assert_eq!(spans, [("wipe", 0, Some(50)), ("kill", 20, Some(30)), ("pause", 60, None)]);
        assert!(faults[0].may_lose);
        let excuses = excuses(&history);
        assert!(excuses[0].covers("lyon", 6) && excuses[0].covers("lyon", 12));
        assert!(!excuses[0].covers("lyon", 5) && !excuses[0].covers("lyon", 13) && !excuses[0].covers("paris", 6));
    }
}
