//! Workloads: what clients do, and what must hold of what they saw. One file each, with operations, generator and checker
//! together.
//!
//! A checker judges a [`History`] and shares no code with what it checks. What it finds wrong it names by the rule, with the
//! operations that show it.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::Client;
use crate::history::{History, Outcome};
use crate::sim::rng::Rng;

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
