//! Histories made by hand, for seeded faults: who did what, in order. Process 0 is at paris, 1 at lyon, 2 at rennes, 3 at
//! paris again, and so on; every line is a second after the one before.

use serde_json::{Value, json};

use crate::history::{History, Kind, Op, Outcome, Process};

const SECOND: u64 = 1_000_000_000;
const SITES: [&str; 3] = ["paris", "lyon", "rennes"];

/// A history in the making.
#[derive(Clone)]
pub(super) struct Story {
    workload: &'static str,
    now: u64,
    ops: Vec<Op>,
}

impl Story {
    pub(super) fn new(workload: &'static str) -> Self {
        Self { workload, now: 0, ops: Vec::new() }
    }

    fn push(mut self, process: Process, kind: Kind, f: &str, value: Value, error: Option<String>) -> Self {
        let (site, workload) = match process {
            Process::Client(number) => {
                let site = usize::try_from(number).ok().and_then(|number| SITES.get(number % SITES.len()));
                (site.map(|site| (*site).to_owned()), Some(self.workload.to_owned()))
            }
            Process::Nemesis => (None, None),
        };
        let index = u64::try_from(self.ops.len()).unwrap_or(u64::MAX);
        self.ops.push(Op { index, time: self.now, kind, process, f: f.to_owned(), value, site, workload, error });
        self.now += SECOND;
        self
    }

    /// Time passes.
    pub(super) fn wait(mut self, seconds: u64) -> Self {
        self.now += seconds * SECOND;
        self
    }

    /// An operation begins.
    pub(super) fn begin(self, process: u32, f: &str, value: Value) -> Self {
        self.push(Process::Client(process), Kind::Invoke, f, value, None)
    }

    /// The process's operation ends.
    pub(super) fn end(self, process: u32, outcome: Outcome) -> Self {
        let mine = self.ops.iter().rev().find(|op| op.process == Process::Client(process));
        let (f, value) = mine.map(|op| (op.f.clone(), op.value.clone())).unwrap_or_default();
        let (kind, value, error) = match outcome {
            Outcome::Ok(value) => (Kind::Ok, value, None),
            Outcome::Fail(why) => (Kind::Fail, value, Some(why)),
            Outcome::Info(why) => (Kind::Info, value, Some(why)),
        };
        self.push(Process::Client(process), kind, &f, value, error)
    }

    /// An operation that happened.
    pub(super) fn ok(self, process: u32, f: &str, value: Value, result: Value) -> Self {
        self.begin(process, f, value).end(process, Outcome::Ok(result))
    }

    /// An operation that was refused.
    pub(super) fn fail(self, process: u32, f: &str, value: Value, why: &str) -> Self {
        self.begin(process, f, value).end(process, Outcome::Fail(why.into()))
    }

    /// An operation of which nobody knows.
    pub(super) fn info(self, process: u32, f: &str, value: Value) -> Self {
        self.begin(process, f, value).end(process, Outcome::Info("no answer: timeout".into()))
    }

    /// A site's disk is wiped: what it acknowledged lately may be lost.
    pub(super) fn wiped(self, site: &str) -> Self {
        let id = self.ops.len();
        let excuse = json!({"site": site, "base": "", "processes": [], "after": 0, "until": self.now, "case": "M4"});
        self.fault("once", json!({"id": id, "name": "wipe", "sites": [site], "may_lose": true, "excused": [excuse]}))
    }

    /// A site's disk is put back as it had been, and its replica runs on it.
    pub(super) fn rolled_back(self, site: &str) -> Self {
        self.fault("start", json!({"id": 9, "name": "rollback", "sites": [site], "may_lose": true}))
    }

    /// Links are cut.
    pub(super) fn cut(self) -> Self {
        self.everywhere("start", 7, "partition")
    }

    /// Links are healed.
    pub(super) fn heal(self) -> Self {
        self.everywhere("stop", 7, "partition")
    }

    /// Clocks are wrong everywhere.
    pub(super) fn clocks(self) -> Self {
        self.everywhere("start", 8, "clock")
    }

    /// They are right again.
    pub(super) fn right(self) -> Self {
        self.everywhere("stop", 8, "clock")
    }

    /// A fault of all sites starts, or stops.
    fn everywhere(self, f: &str, id: u64, name: &str) -> Self {
        self.fault(f, json!({"id": id, "name": name, "sites": SITES}))
    }

    /// A fault starts, or stops.
    fn fault(self, f: &str, fault: Value) -> Self {
        let begun = self.push(Process::Nemesis, Kind::Invoke, f, fault.clone(), None);
        begun.push(Process::Nemesis, Kind::Info, f, fault, None)
    }

    /// It is looked what comes of a certificate that was revoked half a minute ago.
    pub(super) fn certificate(self, site: &str, does: &str) -> Self {
        let revoked = self.now.saturating_sub(30 * SECOND);
        let mut sites = json!([{"site": site}]);
        sites[0][does] = json!(true);
        let told = json!({"replica": "r", "by": "paris", "revoked": revoked, "sites": sites});
        let asked = self.push(Process::Nemesis, Kind::Invoke, "certificate", json!({"replica": "r"}), None);
        asked.push(Process::Nemesis, Kind::Info, "certificate", told, None)
    }

    /// What happened.
    pub(super) fn history(self) -> History {
        History(self.ops)
    }
}
