//! From a failing schedule to a short story: steps are left out, half of them at first, then ever fewer, as long as the
//! same rule still breaks (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002).

use super::rules::Rule;
use super::workload::Step;

/// Leaves out what the failure does not need. At most so many runs are spent on it.
pub fn shrink(
    steps: Vec<Step>,
    rule: Rule,
    budget: usize,
    fails: &mut dyn FnMut(&[Step]) -> Option<Rule>,
) -> Vec<Step> {
    let mut steps = steps;
    let mut parts = 2;
    let mut left = budget;
    while steps.len() > 1 && left > 0 {
        let size = steps.len().div_ceil(parts);
        let mut shrunk = false;
        let mut from = 0;
        while from < steps.len() && left > 0 {
            let to = (from + size).min(steps.len());
            let rest: Vec<Step> = steps.iter().take(from).chain(steps.iter().skip(to)).cloned().collect();
            left -= 1;
            if fails(&rest) == Some(rule) {
                steps = rest;
                shrunk = true;
            } else {
                from = to;
            }
        }
        if shrunk {
            parts = parts.saturating_sub(1).max(2);
        } else if size == 1 {
            break;
        } else {
            parts = (parts * 2).min(steps.len());
        }
    }
    steps
}
