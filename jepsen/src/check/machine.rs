//! What the machine excuses. Sites that share a machine with others' work may leave a client without an answer because they
//! did not get to run. That is told by a probe that asked neither ([`Pace`]), and is counted, never passed over: what it
//! excuses is **not judged**, and of a rule of which too much is not judged the run says nothing.

use serde_json::{Value, json};

use crate::run::{Pace, Run};

/// The machine explains a silence if work took so many times as long as alone.
const TIMES: u64 = 4;
/// And if others than the run used so much of it, permille: who is slow by their own doing is not excused.
const OTHERS: u64 = 250;
/// The probe looks so often, nanoseconds: what began in between is near one that is no further away.
const NEAR: u64 = 1_500_000_000;

/// Whether others kept the machine so busy between two times that a silence then says nothing.
pub(super) fn explains(run: &Run, from: u64, until: u64) -> bool {
    let near = |pace: &&Pace| pace.until.saturating_add(NEAR) >= from && pace.from <= until.saturating_add(NEAR);
    let (mut count, mut work, mut wall, mut others) = (0, 0_u64, 0_u64, 0);
    for pace in run.paces.iter().filter(near) {
        count += 1;
        work += pace.work;
        wall += pace.until.saturating_sub(pace.from);
        others += u64::from(pace.others);
    }
    count > 0 && work.saturating_mul(TIMES) <= wall && others >= count * OTHERS
}

/// How many times as long as alone work took at this percent of all looks, in hundredths.
fn times(run: &Run, percent: usize) -> Option<u64> {
    let of = |pace: &Pace| pace.until.saturating_sub(pace.from) * 100 / pace.work.max(1);
    let mut times: Vec<u64> = run.paces.iter().map(of).collect();
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) * percent / 100).copied()
}

/// How much of the machine others used on average, percent.
fn others(run: &Run) -> u64 {
    let sum: u64 = run.paces.iter().map(|pace| u64::from(pace.others)).sum();
    sum.checked_div(u64::try_from(run.paces.len()).unwrap_or(0) * 10).unwrap_or(0)
}

/// How the machine was, for who reads a verdict's detail.
pub(super) fn told(run: &Run) -> Value {
    let at = |percent| times(run, percent).map(|hundredths| format!("{}.{:02}", hundredths / 100, hundredths % 100));
    json!({
        "looked": run.paces.len(), "times as long as alone": {"median": at(50), "p99": at(99), "most": at(100)},
        "used by others, percent": others(run),
    })
}

/// The same in a sentence.
pub(super) fn sentence(run: &Run) -> String {
    let at = |percent| times(run, percent).map_or(0, |hundredths| hundredths.div_ceil(100));
    format!(
        "others used {} % of this machine; work took up to {} times as long as alone in the median, {} in 99 % of all looks",
        others(run),
        at(50),
        at(99)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::SECOND;

    fn run(paces: &[(u64, u64, u32)]) -> Run {
        let pace = |(second, times, others): &(u64, u64, u32)| Pace {
            from: second * SECOND,
            until: second * SECOND + times * 5_000_000,
            work: 5_000_000,
            others: *others,
        };
        Run { paces: paces.iter().map(pace).collect(), ..Run::default() }
    }

    #[test]
    fn a_machine_that_others_keep_busy_explains_a_silence() {
        let busy = run(&[(1, 1, 0), (10, 9, 900), (11, 8, 900), (20, 1, 0)]);
        assert!(explains(&busy, 10 * SECOND, 11 * SECOND));
        assert!(!explains(&busy, 14 * SECOND, 16 * SECOND), "nothing was seen then");
        assert!(!explains(&busy, 20 * SECOND, 21 * SECOND), "it was idle");
    }

    #[test]
    fn who_is_slow_by_their_own_doing_is_not_excused() {
        assert!(!explains(&run(&[(10, 9, 100)]), 10 * SECOND, 11 * SECOND));
        assert!(!explains(&run(&[(10, 3, 900)]), 10 * SECOND, 11 * SECOND), "work went on well enough");
        assert!(!explains(&Run::default(), 0, SECOND), "nobody has looked");
    }
}
