//! Judges a run: by each workload's own checkers, and by those of the whole cloud.

use crate::run::Run;
use crate::workload::{Verdict, Workload};

/// All verdicts of a run.
#[must_use]
pub fn verdicts(workloads: &[Box<dyn Workload>], run: &Run) -> Vec<Verdict> {
    let of = |workload: &dyn Workload| workload.check(&run.history.of(workload.name()), &run.history);
    let mut verdicts: Vec<Verdict> = workloads.iter().flat_map(|workload| of(workload.as_ref())).collect();
    verdicts.extend(crate::check::all(run));
    verdicts
}
