//! Judges a run: each workload's own checkers, those of the whole cloud, and whether anything was tried at all.

use serde_json::json;

use crate::history::{Kind, Process};
use crate::run::Run;
use crate::workload::{Valid, Verdict, Workload};

/// Of a workload's operations so many percent must have succeeded, or the run says nothing about it.
const LEAST: usize = 20;
/// And so many operations must have.
const FEWEST: usize = 10;

/// All verdicts of a run.
#[must_use]
pub fn verdicts(workloads: &[Box<dyn Workload>], run: &Run) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for workload in workloads {
        let name = workload.name();
        verdicts.push(effort(name, run));
        verdicts.extend(workload.check(&run.history.of(name), &run.history));
    }
    verdicts.extend(crate::check::all(run));
    verdicts
}

/// Whether a run is worth anything: whether enough of what was tried succeeded.
fn effort(workload: &str, run: &Run) -> Verdict {
    let ops = run.history.0.iter();
    let ops = ops.filter(|op| op.process != Process::Nemesis && op.workload.as_deref() == Some(workload));
    let (mut ok, mut all) = (0, 0);
    for op in ops.filter(|op| op.kind != Kind::Invoke) {
        all += 1;
        ok += usize::from(op.kind == Kind::Ok);
    }
    let enough = ok >= FEWEST && ok * 100 >= all * LEAST;
    Verdict {
        workload: workload.into(),
        checker: "effort".into(),
        rule: format!("at least {LEAST} % of the operations, and {FEWEST}, succeed, or the run is worthless"),
        valid: if enough { Valid::True } else { Valid::Unknown },
        summary: format!("{ok} of {all} operations succeeded{}", if enough { "" } else { ": the run is worthless" }),
        detail: json!({"ok": ok, "all": all}),
        anomaly: Vec::new(),
    }
}
