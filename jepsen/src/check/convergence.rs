//! Frontiers and digests: equal entries make equal state, what was held is held, and healed clouds agree in bounded time.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::{Finding, machine, seconds, some};
use crate::run::{Run, Sample, Tip};

/// How long after the end of all faults every site may lack what any site had, nanoseconds. The protocol needs a second and the
/// transfer; a machine that is shared by all sites needs more.
const LIMIT: u64 = 10_000_000_000;
/// What the protocol needs, and the transfer besides, nanoseconds.
const SECOND: u64 = 1_000_000_000;

fn answered(run: &Run) -> impl Iterator<Item = &Sample> {
    run.samples.iter().filter(|sample| sample.digest.is_some() && !sample.frontier.is_empty())
}

pub(super) fn digests(run: &Run) -> Finding {
    let mut first: HashMap<Vec<(&String, &Tip)>, &Sample> = HashMap::new();
    let (mut compared, mut cases) = (0_u64, Vec::<Value>::new());
    for sample in answered(run) {
        let other = *first.entry(sample.frontier.iter().collect()).or_insert(sample);
        if std::ptr::eq(other, sample) {
            continue;
        }
        compared += u64::from((&other.site, &other.base) != (&sample.site, &sample.base));
        if other.digest != sample.digest {
            let one =
                |sample: &Sample| json!({"site": sample.site, "at": seconds(sample.time), "digest": sample.digest});
            cases.push(json!({"one": one(other), "other": one(sample), "frontier": sample.frontier}));
        }
    }
    match cases.first() {
        Some(case) => {
            let site = |key: &str| case[key]["site"].as_str().unwrap_or_default().to_owned();
            let (one, other, count) = (site("one"), site("other"), cases.len());
            let summary = format!("{count} times equal frontiers had different digests; first {one} and {other}.");
            Finding::broken(summary, json!({"compared": compared, "cases": some(&cases)}), Vec::new())
        }
        None if compared == 0 => Finding::unknown("No two sites were seen at the same frontier."),
        None => {
            let summary = format!("{compared} times two sites were seen at the same frontier, with the same digest.");
            Finding::held(summary, json!({"compared": compared}))
        }
    }
}

pub(super) fn going_back(run: &Run) -> Finding {
    let (mut last, mut looked, mut cases): (HashMap<_, &Sample>, u64, Vec<Value>) = Default::default();
    for sample in answered(run) {
        let before = last.insert((&sample.site, &sample.base), sample);
        let Some(before) = before.filter(|before| before.answered <= sample.time) else { continue };
        if run.may_have_lost(&sample.site, before.time, sample.answered) {
            continue;
        }
        looked += 1;
        for (replica, tip) in &before.frontier {
            let now = sample.frontier.get(replica);
            let less = now.is_none_or(|now| now.number < tip.number);
            let other = now.is_some_and(|now| now.number == tip.number && now.hash != tip.hash);
            if less || other {
                let at = [before.time, sample.time].map(seconds);
                cases.push(json!({"site": sample.site, "at": at, "replica": replica, "had": tip, "has": now}));
            }
        }
    }
    match cases.first() {
        Some(case) => {
            let (site, had) = (case["site"].as_str().unwrap_or_default(), &case["had"]["number"]);
            let has = case["has"]["number"].as_u64().unwrap_or(0);
            let summary =
                format!("{site} held {had} entries of a replica, and then {has}; {} such cases.", cases.len());
            Finding::broken(summary, json!({"looked": looked, "cases": some(&cases)}), Vec::new())
        }
        None if looked == 0 => Finding::unknown("No site was asked twice for its frontier."),
        None => Finding::held(
            format!("{looked} times a site was asked again, and held no less."),
            json!({"looked": looked}),
        ),
    }
}

/// When no fault was under way: from, until.
fn calm(run: &Run) -> Vec<(u64, u64)> {
    let end = run.samples.iter().map(|sample| sample.answered).max().unwrap_or(0).max(run.duration);
    let mut faults: Vec<(u64, u64)> = run.faults.iter().map(|one| (one.from, one.until.unwrap_or(end))).collect();
    faults.sort_unstable();
    let (mut spans, mut busy) = (Vec::new(), 0);
    for (from, until) in faults {
        if from > busy {
            spans.push((busy, from));
        }
        busy = busy.max(until);
    }
    if end > busy {
        spans.push((busy, end));
    }
    // What was before the first fault was no healing.
    spans.retain(|(from, _)| *from > 0);
    spans
}

/// How long after a healing the last site held all that any had; none if one never did.
fn took(run: &Run, from: u64, until: u64) -> Option<(u64, BTreeMap<&str, Option<u64>>)> {
    let mut wanted: BTreeMap<&String, u64> = BTreeMap::new();
    let mut last: HashMap<&str, &Sample> = HashMap::new();
    for sample in answered(run).filter(|sample| sample.answered <= from) {
        last.insert(&sample.site, sample);
    }
    for sample in last.values().filter(|sample| !run.may_have_lost(&sample.site, sample.time, from)) {
        for (replica, tip) in &sample.frontier {
            let highest = wanted.entry(replica).or_default();
            *highest = tip.number.max(*highest);
        }
    }
    if wanted.is_empty() {
        return None;
    }
    let has = |sample: &&Sample| {
        wanted.iter().all(|(replica, number)| sample.frontier.get(*replica).is_some_and(|tip| tip.number >= *number))
    };
    // A site with several replicas is there when all of them are.
    let after = |site: &str| {
        let there = answered(run).filter(|one| one.site == site && one.time >= from && one.time < until);
        let mut by: BTreeMap<&str, Option<u64>> = BTreeMap::new();
        for sample in there {
            let first = by.entry(&sample.base).or_default();
            *first = first.or_else(|| has(&sample).then(|| sample.answered.saturating_sub(from)));
        }
        let worst = by.values().map(|took| took.unwrap_or(u64::MAX)).max();
        worst.filter(|worst| *worst < u64::MAX)
    };
    let times: BTreeMap<&str, Option<u64>> = run.sites.iter().map(|site| (site.as_str(), after(site))).collect();
    // A site that was not asked in time says nothing; one that was, and did not answer, does.
    let asked = |site: &&str| {
        let mut there = run.samples.iter().filter(|one| one.site == **site);
        there.any(|one| one.time >= from && one.time < from.saturating_add(LIMIT) && one.time < until)
    };
    if times.iter().any(|(site, took)| took.is_none_or(|took| took > LIMIT) && !asked(site)) {
        return None;
    }
    let worst = times.values().map(|took| took.unwrap_or(u64::MAX)).max()?;
    Some((worst, times))
}

/// When each site held all, nanoseconds after a healing; none if it never did.
type Times<'a> = BTreeMap<&'a str, Option<u64>>;

/// How long each healing took: when it began, and when each site held all, nanoseconds after that.
#[must_use]
pub(crate) fn healings(run: &Run) -> Vec<(u64, u64, Times<'_>)> {
    let spans = calm(run).into_iter();
    spans
        .filter_map(|(from, until)| took(run, from, until).map(|(worst, times)| (from, worst.min(until), times)))
        .collect()
}

pub(super) fn convergence(run: &Run) -> Finding {
    let (mut all, mut judged, mut busy, mut cases) = (Vec::new(), 0_u64, 0_u64, Vec::new());
    for (from, until) in calm(run) {
        let Some((took, times)) = took(run, from, until) else { continue };
        // A fault that came too soon says nothing, unless all was done before it.
        if took > LIMIT && until.saturating_sub(from) < LIMIT {
            continue;
        }
        if took > LIMIT && machine::explains(run, from, from.saturating_add(LIMIT)) {
            busy += 1;
            continue;
        }
        judged += 1;
        if took > LIMIT {
            let late: Vec<_> = times.into_iter().filter(|(_, took)| took.is_none_or(|took| took > LIMIT)).collect();
            cases.push(json!({"healed": seconds(from), "late": late}));
        } else {
            all.push(took);
        }
    }
    let differ = differ_in_the_end(run);
    if let Some(differ) = &differ {
        let summary = "In the end, with no fault and nothing more to come, the sites' digests differ.";
        return Finding::broken(summary, json!({"digests": differ, "cases": some(&cases)}), Vec::new());
    }
    if !cases.is_empty() {
        let count = cases.len();
        let summary =
            format!("{count} of {judged} healings took longer than {}, or never came to an end.", seconds(LIMIT));
        return Finding::broken(summary, json!({"cases": some(&cases)}), Vec::new());
    }
    let told = match busy {
        0 => String::new(),
        count => format!(" {count} are not judged, since others kept this machine busy."),
    };
    if judged == 0 && (busy > 0 || run.converged.is_none()) {
        return Finding::unknown(format!("No fault was healed for long enough to see the sites agree.{told}"));
    }
    all.extend(run.converged);
    all.sort_unstable();
    let (worst, median) = (all.last().copied().unwrap_or(0), all.get(all.len() / 2).copied().unwrap_or(0));
    let within = all.iter().filter(|took| **took <= SECOND).count();
    let summary = format!(
        "{judged} healings, of which the longest took {}, {} in the median; {within} of {} within a second.{told}",
        seconds(worst),
        seconds(median),
        all.len(),
    );
    let evidence =
        json!({"healings": judged, "not judged": busy, "longest_ns": worst, "median_ns": median, "took_ns": all});
    Finding::held(summary, evidence)
}

/// The digests that the sites last told, if they are not all equal though the run waited for them.
fn differ_in_the_end(run: &Run) -> Option<BTreeMap<&str, &str>> {
    if run.healed == 0 || run.converged.is_some() {
        return None;
    }
    let mut last: BTreeMap<&str, &str> = BTreeMap::new();
    for sample in answered(run).filter(|sample| sample.time >= run.healed) {
        last.insert(&sample.site, sample.digest.as_deref().unwrap_or_default());
    }
    let mut digests = last.values();
    let one = *digests.next()?;
    digests.any(|digest| *digest != one).then_some(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::SECOND;
    use crate::run::{Fault, Pace};
    use crate::workload::Valid;

    fn sample(time: u64, site: &str, digest: &str, numbers: &[(&str, u64)]) -> Sample {
        let tip = |(replica, number): &(&str, u64)| ((*replica).to_owned(), Tip { number: *number, hash: "h".into() });
        let frontier = numbers.iter().map(tip).collect();
        let (time, answered) = (time * SECOND, time * SECOND + 1);
        Sample { time, answered, site: site.into(), digest: Some(digest.into()), frontier, ..Sample::default() }
    }

    fn run(samples: Vec<Sample>, faults: Vec<Fault>) -> Run {
        let sites = vec!["lyon".into(), "paris".into()];
        Run { sites, samples, faults, duration: 60 * SECOND, ..Run::default() }
    }

    fn fault(name: &str, from: u64, until: u64, may_lose: bool) -> Fault {
        let (from, until) = (from * SECOND, Some(until * SECOND));
        Fault { name: name.into(), from, until, may_lose, sites: vec!["paris".into()], ..Fault::default() }
    }

    #[test]
    fn equal_entries_with_other_digests_are_seen() {
        let good = vec![sample(1, "paris", "x", &[("a", 1)]), sample(2, "lyon", "x", &[("a", 1)])];
        assert_eq!(digests(&run(good.clone(), vec![])).valid, Valid::True);
        let bad = vec![good[0].clone(), sample(9, "lyon", "y", &[("a", 1)])];
        assert_eq!(digests(&run(bad, vec![])).valid, Valid::False);
        let apart = vec![good[0].clone(), sample(2, "lyon", "y", &[("a", 2)])];
        assert_eq!(digests(&run(apart, vec![])).valid, Valid::Unknown);
    }

    #[test]
    fn entries_that_are_gone_are_seen_unless_a_disk_may_have_lost_them() {
        let samples = vec![sample(1, "paris", "x", &[("a", 5)]), sample(9, "paris", "y", &[("a", 4)])];
        assert_eq!(going_back(&run(samples.clone(), vec![])).valid, Valid::False);
        assert_eq!(going_back(&run(samples.clone(), vec![fault("kill", 2, 3, false)])).valid, Valid::False);
        assert_eq!(going_back(&run(samples.clone(), vec![fault("wipe", 2, 3, true)])).valid, Valid::Unknown);
        assert_eq!(going_back(&run(samples.into_iter().rev().collect(), vec![])).valid, Valid::Unknown);
        let mut branch = sample(9, "paris", "y", &[("a", 5)]);
        branch.frontier.values_mut().for_each(|tip| tip.hash = "other".into());
        let forked = vec![sample(1, "paris", "x", &[("a", 5)]), branch];
        assert_eq!(going_back(&run(forked, vec![])).valid, Valid::False);
    }

    #[test]
    fn a_healing_has_ten_seconds() {
        let before = vec![sample(1, "paris", "x", &[("a", 5)]), sample(1, "lyon", "y", &[("a", 4)])];
        let with = |after: Vec<Sample>| run([before.clone(), after].concat(), vec![fault("partition", 1, 2, false)]);
        let soon = |time| vec![sample(time, "paris", "x", &[("a", 5)]), sample(time, "lyon", "x", &[("a", 5)])];
        assert_eq!(convergence(&with(soon(4))).valid, Valid::True);
        let lags = vec![sample(5, "paris", "x", &[("a", 5)]), sample(5, "lyon", "y", &[("a", 4)])];
        assert_eq!(convergence(&with([lags, soon(30)].concat())).valid, Valid::False);
        let silent = Sample { digest: None, ..sample(5, "lyon", "", &[]) };
        let paris = sample(4, "paris", "x", &[("a", 5)]);
        assert_eq!(convergence(&with(vec![paris.clone(), silent])).valid, Valid::False, "lyon does not answer");
        assert_eq!(convergence(&with(vec![paris])).valid, Valid::Unknown, "lyon was not asked");
        assert_eq!(healings(&with(soon(4))).len(), 1);
    }

    #[test]
    fn a_healing_on_a_machine_that_others_kept_busy_is_not_judged() {
        let at = |time, lyon| vec![sample(time, "paris", "x", &[("a", 5)]), sample(time, "lyon", "y", &[("a", lyon)])];
        let late = [at(1, 4), at(5, 4), at(30, 5)].concat();
        let mut busy = run(late, vec![fault("partition", 1, 2, false)]);
        assert_eq!(convergence(&busy).valid, Valid::False);
        let pace =
            |second: u64| Pace { from: second * SECOND, until: (second + 1) * SECOND, work: SECOND / 100, others: 900 };
        busy.paces = (2..12).map(pace).collect();
        let finding = convergence(&busy);
        assert_eq!(finding.valid, Valid::Unknown);
        assert!(finding.summary.contains("1 are not judged"), "{}", finding.summary);
    }

    #[test]
    fn sites_that_differ_in_the_end_are_seen() {
        let mut end = run(vec![sample(9, "paris", "x", &[("a", 5)]), sample(9, "lyon", "y", &[("a", 5)])], vec![]);
        end.healed = 5 * SECOND;
        assert_eq!(convergence(&end).valid, Valid::False);
    }
}
