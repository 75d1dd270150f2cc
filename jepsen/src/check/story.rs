//! Histories made by hand, for seeded faults and tests.

use serde_json::Value;

use crate::history::{Kind, Op, Process};
use crate::run::Run;

/// Writes histories by hand: each operation takes a second.
#[derive(Default)]
pub(crate) struct Story {
    pub(crate) run: Run,
    now: u64,
}

pub(crate) const SECOND: u64 = 1_000_000_000;

impl Story {
    pub(crate) fn new(sites: &[&str]) -> Self {
        let sites = sites.iter().map(|site| (*site).to_owned()).collect();
        Self { run: Run { sites, ..Run::default() }, now: 0 }
    }

    /// An operation of one process, whole.
    pub(crate) fn op(
        &mut self,
        process: u32,
        site: &str,
        f: &str,
        value: Value,
        kind: Kind,
        result: Value,
    ) -> &mut Self {
        let at = self.now * SECOND;
        self.push(process, site, f, Kind::Invoke, at, value, None);
        let error = (kind != Kind::Ok).then(|| result.as_str().unwrap_or("no answer").to_owned());
        let result = if kind == Kind::Ok { result } else { Value::Null };
        self.push(process, site, f, kind, at + SECOND / 2, result, error);
        self.now += 1;
        self
    }

    pub(crate) fn ok(&mut self, process: u32, site: &str, f: &str, value: Value, result: Value) -> &mut Self {
        self.op(process, site, f, value, Kind::Ok, result)
    }

    pub(crate) fn now(&self) -> u64 {
        self.now * SECOND
    }

    #[allow(clippy::too_many_arguments)]
    fn push(&mut self, process: u32, site: &str, f: &str, kind: Kind, time: u64, value: Value, error: Option<String>) {
        let index = u64::try_from(self.run.history.0.len()).unwrap_or(u64::MAX);
        let (process, f) = (Process::Client(process), f.to_owned());
        let (site, workload) = (Some(site.to_owned()), Some("set".to_owned()));
        self.run.history.0.push(Op { index, time, kind, process, f, value, site, workload, error });
    }
}
