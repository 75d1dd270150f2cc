//! What happened, as seen from outside: the only thing that checkers judge.
//!
//! An operation is invoked, and completes as `ok` (it happened), `fail` (it did not happen, and never will) or `info` (nobody
//! knows: a timeout, a broken connection; it may happen at any time from its invocation on). These are Jepsen's own terms
//! and fields (<https://github.com/jepsen-io/history>), so that its checkers can read what is written here.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where in its life an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It begins.
    Invoke,
    /// It happened.
    Ok,
    /// It did not happen, and never will.
    Fail,
    /// Nobody knows whether it happened, or will.
    Info,
}

/// Who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Process {
    /// Who makes the faults.
    Nemesis,
    /// A client: one thread of operations, one after the other, at one site.
    #[serde(untagged)]
    Client(u32),
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Op {
    /// Its place in the history, from 0.
    pub index: u64,
    /// Nanoseconds since the run began.
    pub time: u64,
    /// Invocation or completion.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Who did it: what a process invokes completes before it invokes anything else.
    pub process: Process,
    /// What was done.
    pub f: String,
    /// With what, and what came of it.
    pub value: Value,
    /// The site that was asked; none for faults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The workload that it belongs to; none for faults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Why it is not `ok`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What an operation came to, before it has a place in the history.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It happened, with this to tell.
    Ok(Value),
    /// It did not happen, for this reason.
    Fail(String),
    /// Nobody knows, for this reason.
    Info(String),
}

/// A history, in the order of its indices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History(pub Vec<Op>);

/// An invocation with its completion.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// How it began.
    pub invoke: &'a Op,
    /// How it ended; none if the run ended first, which is as good as `info`.
    pub complete: Option<&'a Op>,
}

impl Pair<'_> {
    /// How it ended.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.complete.map_or(Kind::Info, |op| op.kind)
    }

    /// Whether it is known to have happened.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.kind() == Kind::Ok
    }
}

impl History {
    /// Every invocation with its completion, by invocation.
    #[must_use]
    pub fn pairs(&self) -> Vec<Pair<'_>> {
        let mut open: std::collections::HashMap<Process, usize> = std::collections::HashMap::new();
        let mut pairs: Vec<Pair<'_>> = Vec::new();
        for op in &self.0 {
            if op.kind == Kind::Invoke {
                open.insert(op.process, pairs.len());
                pairs.push(Pair { invoke: op, complete: None });
            } else if let Some(at) = open.remove(&op.process)
                && let Some(pair) = pairs.get_mut(at)
            {
                pair.complete = Some(op);
            }
        }
        pairs
    }

    /// The operations of one workload.
    #[must_use]
    pub fn of(&self, workload: &str) -> Self {
        Self(self.0.iter().filter(|op| op.workload.as_deref() == Some(workload)).cloned().collect())
    }

    /// As JSON lines.
    ///
    /// # Errors
    /// If a value cannot be written.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let mut text = String::new();
        for op in &self.0 {
            text.push_str(&serde_json::to_string(op)?);
            text.push('\n');
        }
        Ok(text)
    }

    /// From JSON lines.
    ///
    /// # Errors
    /// If a line is not an operation.
    pub fn from_json(text: &str) -> serde_json::Result<Self> {
        text.lines().filter(|line| !line.is_empty()).map(serde_json::from_str).collect::<Result<_, _>>().map(Self)
    }
}
