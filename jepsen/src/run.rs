//! What a run leaves behind: all that checkers judge, and all that the report shows. It is kept as one file beside the
//! history, so that an old run can be judged again by newer checkers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::history::History;
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
    /// What ran: `luc`, `jepsen`, `libvirt`, …, with their versions.
    pub versions: BTreeMap<String, String>,
    /// The sites, in the cloud's order.
    pub sites: Vec<String>,
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
    /// The sites' logs and whatever else is worth reading, relative to the run's directory.
    pub logs: Vec<PathBuf>,
}

/// A fault, from its beginning to its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    #[serde(default)]
    pub cut: Vec<(String, String)>,
    /// What was done, in words; for faults of disks, with the case of `PROTOCOL.md`, M4.
    pub detail: String,
    /// Whether acknowledged writes that only the sites it hit held may be lost by it: a disk that was wiped or rolled back, a
    /// replica that was retired.
    #[serde(default)]
    pub may_lose: bool,
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
    /// Its digest, if it answered.
    pub digest: Option<String>,
    /// Its frontier, as `/luc/v1/frontier` shows it: for each replica the entry's number.
    #[serde(default)]
    pub frontier: BTreeMap<String, u64>,
    /// Entries that it holds and each other site has not confirmed.
    #[serde(default)]
    pub lag: BTreeMap<String, u64>,
    /// The answer to `/luc/v1/pools`; null if that was not asked.
    #[serde(default)]
    pub pools: Value,
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
}
