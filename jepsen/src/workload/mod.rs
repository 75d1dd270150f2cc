//! Workloads: what clients do, and what must hold of what they saw. One file each, with operations, generator and checker
//! together.
//!
//! A checker judges a [`History`] and shares no code with what it checks. What it finds wrong it names by the rule, with the
//! operations that show it. It needs nothing but the history: an old one can be judged again.
//!
//! An acknowledged write may be missing only where a fault [excuses](crate::run::excuses) it. A run whose operations mostly
//! failed for dull reasons says nothing, and its verdict says so: [`Valid::Unknown`].
//!
//! An invocation of `domains` is answered by who runs the workload: hypervisors are asked, not sites.

mod auth;
mod causal;
mod certificates;
mod claims;
mod images;
mod lifecycle;
mod quota;
mod register;
mod registers;
mod set;
mod stage;
mod story;
mod twins;

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::Client;
use crate::history::{History, Outcome};
use crate::sim::rng::Rng;

/// How long after the end of all faults a revoked certificate may still work.
pub const REVOKED: std::time::Duration = std::time::Duration::from_nanos(auth::BOUND);

/// A site as clients know it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its name, which is its availability zone.
    pub site: String,
    /// Where its APIs are, `http://address:port`.
    pub base: String,
    /// The network namespace from which it is reached, if it is not this one.
    pub namespace: Option<PathBuf>,
}

/// A cloud as clients know it.
#[derive(Clone, Debug)]
pub struct Cloud {
    /// Its sites.
    pub endpoints: Vec<Endpoint>,
    /// The administrator's password.
    pub password: String,
    /// How many operations each workload will have done in the end, about.
    pub operations: u64,
}

/// A client's process: one operation after the other, at one site.
pub struct Session {
    /// Its number, the `process` of the history.
    pub process: u32,
    /// Its site's place among the cloud's endpoints.
    pub at: usize,
    /// Its client of that site, logged in as administrator.
    pub client: Client,
    /// Clients of all sites, in the cloud's order, for workloads whose sessions wander.
    pub all: Vec<Client>,
    /// Chance, by seed.
    pub rng: Rng,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation {
    /// What.
    pub f: &'static str,
    /// With what.
    pub value: Value,
}

/// How a rule fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Valid {
    /// It held.
    True,
    /// It was broken.
    False,
    /// The run does not tell: too little happened, or most operations failed trivially.
    Unknown,
}

/// What a checker says of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// The workload, or `cloud` for what holds of all.
    pub workload: String,
    /// The rule's short name, as in the table of seeded bugs.
    pub checker: String,
    /// What must hold, in a sentence.
    pub rule: String,
    /// Whether it did.
    pub valid: Valid,
    /// What was seen, in a sentence, with numbers.
    pub summary: String,
    /// More, for who wants to know.
    pub detail: Value,
    /// The smallest set of operations that shows it broken, by index; empty if it held.
    pub anomaly: Vec<u64>,
}

/// What clients do, and what must hold of what they saw.
pub trait Workload: Send + Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Makes what it needs: images, flavors, projects, quotas. Called once, before any fault.
    ///
    /// # Errors
    /// If the cloud does not do as it is told; the run then says nothing.
    fn setup(&self, cloud: &Cloud, clients: &[Client]) -> Result<()>;

    /// What this session does next; none if it waits for a while.
    fn next(&self, session: &mut Session) -> Option<Invocation>;

    /// Does it, in bounded time.
    fn invoke(&self, session: &mut Session, invocation: &Invocation) -> Outcome;

    /// What each session does after all faults were healed and the sites agree: the final reads.
    fn finish(&self, session: &mut Session) -> Vec<Invocation>;

    /// Judges the history of this workload (`all` holds faults and other workloads too).
    fn check(&self, history: &History, all: &History) -> Vec<Verdict>;
}

/// All workloads.
#[must_use]
pub fn all() -> Vec<Box<dyn Workload>> {
    vec![
        Box::<claims::Claims>::default(),
        Box::<quota::Quota>::default(),
        Box::<set::Set>::default(),
        Box::<register::Register>::default(),
        Box::<causal::Causal>::default(),
        Box::<lifecycle::Lifecycle>::default(),
        Box::<auth::Auth>::default(),
        Box::<images::Images>::default(),
    ]
}

/// A fault put into a history by hand, to prove the checker that has to find it.
#[derive(Clone, Debug)]
pub struct Seeded {
    /// The workload whose history it is.
    pub workload: &'static str,
    /// The checker that must say that its rule was broken.
    pub checker: &'static str,
    /// What is wrong, in a few words.
    pub bug: &'static str,
    /// The same story without it, with which that checker must be content.
    pub good: History,
    /// The story with it.
    pub bad: History,
}

impl Seeded {
    fn new(
        workload: &'static str,
        checker: &'static str,
        bug: &'static str,
        good: story::Story,
        bad: story::Story,
    ) -> Self {
        Self { workload, checker, bug, good: good.history(), bad: bad.history() }
    }
}

/// At least one seeded fault for every checker of every workload.
#[must_use]
pub fn seeded() -> Vec<Seeded> {
    [
        claims::seeded(),
        quota::seeded(),
        set::seeded(),
        register::seeded(),
        causal::seeded(),
        lifecycle::seeded(),
        auth::seeded(),
        images::seeded(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn judge(seeded: &Seeded, history: &History) -> Vec<Verdict> {
        let found = all().into_iter().find(|workload| workload.name() == seeded.workload);
        found.map(|workload| workload.check(&history.of(seeded.workload), history)).unwrap_or_default()
    }

    #[test]
    fn every_seeded_fault_is_caught_by_its_checker_and_by_what_shows_it() {
        for seeded in seeded() {
            let name = format!("{} {}: {}", seeded.workload, seeded.checker, seeded.bug);
            let good = judge(&seeded, &seeded.good);
            let good = good.iter().find(|verdict| verdict.checker == seeded.checker);
            assert_eq!(good.map(|verdict| verdict.valid), Some(Valid::True), "{name}: {good:#?}");
            let bad = judge(&seeded, &seeded.bad);
            let bad = bad.iter().find(|verdict| verdict.checker == seeded.checker);
            assert_eq!(bad.map(|verdict| verdict.valid), Some(Valid::False), "{name}: {bad:#?}");
            let shown = bad.map(|verdict| verdict.anomaly.clone()).unwrap_or_default();
            assert!(!shown.is_empty(), "{name} is shown by nothing");
            let known: BTreeSet<u64> = seeded.bad.0.iter().map(|op| op.index).collect();
            assert!(shown.iter().all(|index| known.contains(index)), "{name}: {shown:?}");
        }
    }

    #[test]
    fn no_checker_is_without_a_fault_to_its_name() {
        let caught: BTreeSet<_> =
            seeded().iter().map(|one| (one.workload.to_owned(), one.checker.to_owned())).collect();
        for workload in all() {
            for verdict in workload.check(&History::default(), &History::default()) {
                assert!(caught.contains(&(verdict.workload.clone(), verdict.checker.clone())), "{}", verdict.checker);
            }
        }
    }

    #[test]
    fn of_an_empty_history_nothing_is_said() {
        for workload in all() {
            for verdict in workload.check(&History::default(), &History::default()) {
                assert_eq!(verdict.valid, Valid::Unknown, "{} {}", verdict.workload, verdict.checker);
            }
        }
    }
}
