//! Checkers of the whole cloud: what must hold of a run whatever its workloads did.
//!
//! They judge a [`Run`]: the history of all workloads, what the sites said of themselves, and what the hypervisors ran. They
//! share no code with what they check: sums are made from what the APIs told as JSON, order from the run's own clock. Each
//! has a bug to its name in `jepsen prove`, or it counts for nothing.

mod acknowledgement;
mod addresses;
mod availability;
mod convergence;
mod facts;
pub mod hypervisor;
mod machine;
mod pools;
pub mod seeded;
mod session;
mod story;

pub(crate) use convergence::healings;
use serde_json::Value;

use crate::history::{History, Op, Pair, Process};
use crate::run::Run;
use crate::workload::{Valid, Verdict};

/// What a checker found, before it bears the checker's name.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Whether the rule held.
    pub valid: Valid,
    /// What was seen, in a sentence, with numbers.
    pub summary: String,
    /// More.
    pub detail: Value,
    /// The operations that show it broken, by index.
    pub anomaly: Vec<u64>,
}

/// A checker of the whole cloud.
#[derive(Clone, Copy, Debug)]
pub struct Checker {
    /// Its name, as in the table of seeded bugs.
    pub name: &'static str,
    /// What must hold, in a sentence.
    pub rule: &'static str,
    /// Judges a run.
    pub check: fn(&Run) -> Finding,
}

/// All of them.
pub const CHECKERS: &[Checker] = &[
    Checker {
        name: "no-double-booking",
        rule: "At every site and time, what is claimed of a pool is at most what was minted less what was burnt.",
        check: pools::double_booking,
    },
    Checker {
        name: "conservation",
        rule: "At every site and time, a pool's free, claimed and burnt rights are together what was minted, and \
               no mint is ever taken back.",
        check: pools::conservation,
    },
    Checker {
        name: "equal-digests",
        rule: "Sites that hold the same entries have the same digest, whenever they are asked.",
        check: convergence::digests,
    },
    Checker {
        name: "no-going-back",
        rule: "A site that held an entry holds it ever after, also after kill -9.",
        check: convergence::going_back,
    },
    Checker {
        name: "convergence",
        rule: "Within ten seconds of the end of all faults every site holds what any site held when they ended.",
        check: convergence::convergence,
    },
    Checker {
        name: "availability",
        rule: "A site that is not itself hit answers at least 99.9 % of its reads and of its writes, and so it does \
               while it is cut off from others. A refusal is an answer.",
        check: availability::availability,
    },
    Checker {
        name: "lost-acknowledgement",
        rule: "What was acknowledged, and not asked to be deleted, is there at every site in the end.",
        check: acknowledgement::lost,
    },
    Checker {
        name: "duplicate",
        rule: "No two acknowledgements bear the same id, and no list shows a thing twice.",
        check: acknowledgement::duplicate,
    },
    Checker {
        name: "resurrection",
        rule: "What a site showed to be gone it never shows again; and what was deleted is gone everywhere in the end.",
        check: acknowledgement::resurrection,
    },
    Checker {
        name: "unique-addresses",
        rule: "No address is taken twice: from when its claim is acknowledged until its release is asked for, it is \
               in no other claim.",
        check: addresses::unique,
    },
    Checker {
        name: "session-order",
        rule: "Who asks the site that acknowledged a write finds it, and a site never shows less than it showed before.",
        check: session::order,
    },
    Checker {
        name: "hypervisor",
        rule: "What runs is what the API says, and no server runs on two hosts.",
        check: hypervisor::truth,
    },
];

/// What all of them say.
#[must_use]
pub fn all(run: &Run) -> Vec<Verdict> {
    CHECKERS.iter().map(|checker| judge(checker, run)).collect()
}

/// How the machine that the suite ran on fared, in a sentence.
#[must_use]
pub fn machine(run: &Run) -> String {
    machine::sentence(run)
}

/// What one of them says.
#[must_use]
pub fn judge(checker: &Checker, run: &Run) -> Verdict {
    let Finding { valid, summary, detail, anomaly } = (checker.check)(run);
    let (workload, checker, rule) = ("cloud".into(), checker.name.into(), checker.rule.into());
    Verdict { workload, checker, rule, valid, summary, detail, anomaly }
}

impl Finding {
    /// The rule held.
    fn held(summary: impl Into<String>, detail: Value) -> Self {
        Self { valid: Valid::True, summary: summary.into(), detail, anomaly: Vec::new() }
    }

    /// The rule was broken, as these operations show.
    fn broken(summary: impl Into<String>, detail: Value, anomaly: Vec<u64>) -> Self {
        Self { valid: Valid::False, summary: summary.into(), detail, anomaly }
    }

    /// The run does not tell.
    fn unknown(summary: impl Into<String>) -> Self {
        Self { valid: Valid::Unknown, summary: summary.into(), detail: Value::Null, anomaly: Vec::new() }
    }
}

/// Most cases that a finding tells in full: who looks at one needs the first few, and how many there are.
const TOLD: usize = 10;

/// The first of many, as JSON.
fn some(cases: &[Value]) -> Value {
    Value::Array(cases.iter().take(TOLD).cloned().collect())
}

/// A time for people.
fn seconds(nanoseconds: u64) -> String {
    let milliseconds = nanoseconds / 1_000_000;
    format!("{}.{:03} s", milliseconds / 1000, milliseconds % 1000)
}

/// The indices of an operation.
fn indices(pair: &Pair<'_>) -> impl Iterator<Item = u64> {
    std::iter::once(pair.invoke.index).chain(pair.complete.map(|op: &Op| op.index))
}

/// The operations of clients.
fn clients(history: &History) -> Vec<Pair<'_>> {
    let mut pairs = history.pairs();
    pairs.retain(|pair| pair.invoke.process != Process::Nemesis);
    pairs
}

#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::story::{SECOND, Story};
    use super::*;

    #[test]
    fn a_run_in_which_nothing_happened_proves_nothing() {
        let run = Run::default();
        for verdict in all(&run) {
            assert_eq!(verdict.valid, Valid::Unknown, "{}", verdict.checker);
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = CHECKERS.iter().map(|checker| checker.name).collect();
        assert_eq!(names.len(), CHECKERS.len());
    }
}
