//! Gives operations their place and time in the history: one clock and one order for all threads.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::Value;

use crate::history::{History, Kind, Op, Process};

/// The history while it is being made.
pub struct Recorder {
    start: Instant,
    ops: Mutex<Vec<Op>>,
}

/// Whose operation it is.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// The process.
    pub process: Process,
    /// The site that was asked.
    pub site: Option<&'a str>,
    /// The workload.
    pub workload: Option<&'a str>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { start: Instant::now(), ops: Mutex::default() }
    }
}

impl Recorder {
    /// Nanoseconds since the run began.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Writes an operation down, and gives its index.
    pub fn add(&self, whose: Whose<'_>, kind: Kind, f: &str, value: Value, error: Option<String>) -> u64 {
        let mut ops = self.ops.lock().unwrap_or_else(PoisonError::into_inner);
        let index = u64::try_from(ops.len()).unwrap_or(u64::MAX);
        let (site, workload) = (whose.site.map(str::to_owned), whose.workload.map(str::to_owned));
        // Asked under the lock: times are in the order of indices.
        let time = self.now();
        ops.push(Op { index, time, kind, process: whose.process, f: f.into(), value, site, workload, error });
        index
    }

    /// So many operations so far: invocations, and completions by kind (ok, fail, info).
    #[must_use]
    pub fn counts(&self) -> [usize; 4] {
        let ops = self.ops.lock().unwrap_or_else(PoisonError::into_inner);
        let clients = ops.iter().filter(|op| op.process != Process::Nemesis);
        let mut counts = [0; 4];
        for op in clients {
            let at = match op.kind {
                Kind::Invoke => 0,
                Kind::Ok => 1,
                Kind::Fail => 2,
                Kind::Info => 3,
            };
            counts[at] += 1;
        }
        counts
    }

    /// The history so far.
    #[must_use]
    pub fn history(&self) -> History {
        History(self.ops.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}
