//! Acknowledgements: none lost, none given twice, nothing comes back.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};

use super::facts::{Fact, Says, facts};
use super::{Finding, indices, some};
use crate::run::Run;

/// The last list of each workload at each site, of those that were asked for after the last fault.
fn last_lists<'a, 'b>(run: &Run, facts: &'b [Fact<'a>]) -> BTreeMap<(&'b str, &'b str), (&'b Fact<'a>, &'b [String])> {
    let mut last = BTreeMap::new();
    for fact in facts.iter().filter(|fact| fact.pair.invoke.time >= run.healed) {
        if let Says::Listed(ids, _) = &fact.says {
            last.insert((fact.workload(), fact.site()), (fact, ids.as_slice()));
        }
    }
    last
}

/// What was asked to be gone, whatever came of it.
fn unmade<'a>(facts: &'a [Fact<'_>]) -> BTreeSet<&'a str> {
    let unmade =
        facts.iter().filter_map(|fact| if let Says::Unmade(id) = &fact.says { Some(id.as_str()) } else { None });
    unmade.collect()
}

/// Where else than at its site a thing was seen before it was lost: then a survivor held it, and nothing excuses its loss.
fn seen_elsewhere(facts: &[Fact<'_>], id: &str, site: &str) -> bool {
    facts.iter().filter(|fact| fact.site() != site).any(|fact| match &fact.says {
        Says::Listed(ids, _) => ids.iter().any(|listed| listed == id),
        Says::Shown(shown, there) => shown == id && *there,
        Says::Made(_) | Says::Unmade(_) => false,
    })
}

pub(super) fn lost(run: &Run) -> Finding {
    let facts = facts(run);
    let (lists, unmade) = (last_lists(run, &facts), unmade(&facts));
    let (mut made, mut excused, mut cases, mut anomaly) = (0_u64, 0_u64, Vec::new(), Vec::new());
    for fact in &facts {
        let Says::Made(id) = &fact.says else { continue };
        if unmade.contains(id.as_str()) {
            continue;
        }
        let of = lists
            .iter()
            .filter(|((workload, _), (list, _))| *workload == fact.workload() && list.pair.invoke.time > fact.done());
        let (mut there, mut lacks) = (0, Vec::new());
        for ((_, site), (list, ids)) in of {
            if ids.contains(id) { there += 1 } else { lacks.push((*site, *list)) }
        }
        made += u64::from(there > 0 || !lacks.is_empty());
        let Some((_, list)) = lacks.first() else { continue };
        let covered = run.excuses(fact.site(), fact.done());
        if covered && there == 0 && !seen_elsewhere(&facts, id, fact.site()) {
            excused += 1;
            continue;
        }
        let sites: Vec<&str> = lacks.iter().map(|(site, _)| *site).collect();
        cases.push(json!({"id": id, "made": fact.pair.invoke.index, "at": fact.site(), "lacks": sites}));
        if anomaly.is_empty() {
            anomaly.extend(indices(&fact.pair).chain(indices(&list.pair)));
        }
    }
    if made == 0 {
        return Finding::unknown("Nothing was acknowledged that a later list would have to show.");
    }
    let detail = json!({"acknowledged": made, "excused": excused, "cases": some(&cases)});
    match cases.first() {
        Some(case) => {
            let (count, id, sites) = (cases.len(), &case["id"], &case["lacks"]);
            Finding::broken(
                format!("{count} of {made} acknowledged things are lost; {id} is missing at {sites}."),
                detail,
                anomaly,
            )
        }
        None => {
            let why = if excused > 0 { format!("; {excused} were lost with their only disk") } else { String::new() };
            Finding::held(format!("{made} acknowledged things are there in the end{why}."), detail)
        }
    }
}

pub(super) fn duplicate(run: &Run) -> Finding {
    let facts = facts(run);
    let (mut by, mut cases, mut anomaly) = (HashMap::<(&str, &str), &Fact<'_>>::new(), Vec::<Value>::new(), Vec::new());
    let mut tell = |case: Value, shown: &mut dyn Iterator<Item = u64>| {
        if cases.is_empty() {
            anomaly.extend(shown);
        }
        cases.push(case);
    };
    for fact in &facts {
        match &fact.says {
            Says::Made(id) => {
                if let Some(other) = by.insert((fact.workload(), id), fact) {
                    let case = json!({"id": id, "acknowledged by": [other.pair.invoke.index, fact.pair.invoke.index]});
                    tell(case, &mut indices(&other.pair).chain(indices(&fact.pair)));
                }
            }
            Says::Listed(ids, _) => {
                let mut seen = BTreeSet::new();
                if let Some(id) = ids.iter().find(|id| !seen.insert(id.as_str())) {
                    tell(json!({"id": id, "listed twice": fact.pair.invoke.index}), &mut indices(&fact.pair));
                }
            }
            Says::Unmade(_) | Says::Shown(..) => {}
        }
    }
    let made = by.len();
    match cases.first() {
        Some(case) => {
            let summary = format!("{} ids were given or shown twice, first {}.", cases.len(), case["id"]);
            Finding::broken(summary, json!({"cases": some(&cases)}), anomaly)
        }
        None if made == 0 => Finding::unknown("Nothing was made."),
        None => Finding::held(format!("{made} things were made, each with an id of its own."), json!({"made": made})),
    }
}

/// What one site has shown of one thing so far: there, and then gone, with the operation that showed it last.
#[derive(Clone, Copy)]
enum Shown<'b, 'a> {
    There(&'b Fact<'a>),
    Gone(&'b Fact<'a>),
}

pub(super) fn resurrection(run: &Run) -> Finding {
    let facts = facts(run);
    let mut by_end: Vec<&Fact<'_>> = facts.iter().filter(|fact| fact.pair.complete.is_some()).collect();
    by_end.sort_by_key(|fact| fact.done());
    let (mut shown, mut gone) = (HashMap::new(), 0_u64);
    let (mut cases, mut anomaly) = (Vec::new(), Vec::new());
    for fact in by_end {
        let place = (fact.workload(), fact.site(), fact.replica(run));
        let listed: BTreeSet<&str> = match &fact.says {
            Says::Listed(ids, _) => ids.iter().map(String::as_str).collect(),
            Says::Shown(id, true) => std::iter::once(id.as_str()).collect(),
            _ => BTreeSet::new(),
        };
        for id in &listed {
            let key = (place.0, place.1, place.2, *id);
            match shown.get(&key) {
                // Only what was asked for after the other was over is later.
                Some(Shown::Gone(before)) if before.done() < fact.pair.invoke.time => {
                    if run.may_have_lost(fact.site(), before.done(), fact.done()) {
                        shown.insert(key, Shown::There(fact));
                        continue;
                    }
                    let (gone, back) = (before.pair.invoke.index, fact.pair.invoke.index);
                    cases.push(json!({"id": id, "site": fact.site(), "gone": gone, "back": back}));
                    if anomaly.is_empty() {
                        let deleted = facts.iter().find(|one| one.says == Says::Unmade((*id).to_owned()));
                        anomaly.extend(deleted.into_iter().flat_map(|one| indices(&one.pair)));
                        anomaly.extend(indices(&before.pair).chain(indices(&fact.pair)));
                    }
                }
                Some(Shown::Gone(_)) => continue,
                _ => {}
            }
            shown.insert(key, Shown::There(fact));
        }
        let is_gone = |id: &str| match &fact.says {
            Says::Listed(..) => !listed.contains(id),
            Says::Shown(other, there) => other == id && !there,
            _ => false,
        };
        for ((workload, site, replica, id), state) in &mut shown {
            if let Shown::There(before) = *state
                && (*workload, *site, *replica) == place
                && is_gone(id)
                && before.done() < fact.pair.invoke.time
            {
                gone += 1;
                *state = Shown::Gone(fact);
            }
        }
    }
    deleted_but_there(run, &facts, &mut cases, &mut anomaly);
    match cases.first() {
        Some(case) => {
            let summary =
                format!("{} things came back or stayed, first {} at {}.", cases.len(), case["id"], case["site"]);
            Finding::broken(summary, json!({"gone": gone, "cases": some(&cases)}), anomaly)
        }
        None if gone == 0 => Finding::unknown("No site was seen to lose anything that it had shown."),
        None => Finding::held(format!("{gone} times a thing was gone, and stayed so."), json!({"gone": gone})),
    }
}

/// What a list shows, without what is on its way out.
fn staying<'b>(list: &Fact<'_>, ids: &'b [String]) -> &'b [String] {
    let leaving = if let Says::Listed(_, leaving) = list.says { leaving } else { 0 };
    ids.get(..ids.len().saturating_sub(leaving)).unwrap_or_default()
}

/// Deletions that were acknowledged, of things that a last list still shows.
fn deleted_but_there(run: &Run, facts: &[Fact<'_>], cases: &mut Vec<Value>, anomaly: &mut Vec<u64>) {
    // Without a healing that was waited for, there is no end.
    if run.healed == 0 {
        return;
    }
    let lists = last_lists(run, facts);
    for fact in facts.iter().filter(|fact| fact.pair.is_ok()) {
        let Says::Unmade(id) = &fact.says else { continue };
        if run.excuses(fact.site(), fact.done()) {
            continue;
        }
        let there = lists.iter().find(|((workload, _), (list, ids))| {
            *workload == fact.workload()
                && fact.done() < run.healed
                && list.pair.invoke.time > run.healed
                && staying(list, ids).contains(id)
        });
        let Some(((_, site), (list, _))) = there else { continue };
        cases.push(json!({"id": id, "site": site, "deleted": fact.pair.invoke.index, "there": list.pair.invoke.index}));
        if anomaly.is_empty() {
            anomaly.extend(indices(&fact.pair).chain(indices(&list.pair)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{SECOND, Story};
    use crate::history::Kind;
    use crate::run::{Excuse, Fault};
    use crate::workload::Valid;

    fn made(story: &mut Story, site: &str, id: &str) {
        story.ok(0, site, "create", json!({"name": id}), json!({"id": id}));
    }

    fn listed(story: &mut Story, process: u32, site: &str, ids: &[&str]) {
        story.ok(process, site, "list", Value::Null, json!({"ids": ids}));
    }

    #[test]
    fn what_was_acknowledged_is_in_the_last_list() {
        let mut story = Story::new(&["paris", "lyon"]);
        made(&mut story, "paris", "a");
        listed(&mut story, 1, "lyon", &[]);
        listed(&mut story, 1, "lyon", &["a"]);
        assert_eq!(lost(&story.run).valid, Valid::True);
        listed(&mut story, 1, "lyon", &[]);
        let finding = lost(&story.run);
        assert_eq!((finding.valid, finding.anomaly), (Valid::False, vec![0, 1, 6, 7]));
        story.op(0, "paris", "delete", json!({"id": "a"}), Kind::Info, Value::Null);
        assert_eq!(lost(&story.run).valid, Valid::Unknown, "it may have been deleted");
    }

    #[test]
    fn what_only_a_lost_disk_held_is_excused_and_nothing_else() {
        let mut story = Story::new(&["paris", "lyon"]);
        made(&mut story, "paris", "a");
        let excused = Excuse { site: "paris".into(), after: 0, until: 5 * SECOND, ..Excuse::default() };
        story.run.faults.push(Fault { excused: vec![excused], may_lose: true, ..Fault::default() });
        listed(&mut story, 1, "lyon", &[]);
        assert_eq!(lost(&story.run).valid, Valid::True);
        listed(&mut story, 1, "lyon", &["a"]);
        listed(&mut story, 1, "lyon", &[]);
        assert_eq!(lost(&story.run).valid, Valid::False, "lyon had it");
    }

    #[test]
    fn ids_are_given_once_and_shown_once() {
        let mut story = Story::new(&["paris"]);
        made(&mut story, "paris", "a");
        made(&mut story, "paris", "b");
        assert_eq!(duplicate(&story.run).valid, Valid::True);
        made(&mut story, "paris", "a");
        assert_eq!(duplicate(&story.run).anomaly, [0, 1, 4, 5]);
        let mut story = Story::new(&["paris"]);
        listed(&mut story, 0, "paris", &["a", "a"]);
        assert_eq!(duplicate(&story.run).valid, Valid::False);
    }

    #[test]
    fn what_is_gone_stays_gone() {
        let mut story = Story::new(&["paris", "lyon"]);
        made(&mut story, "paris", "a");
        listed(&mut story, 0, "paris", &["a"]);
        story.ok(0, "paris", "delete", json!({"id": "a"}), Value::Null);
        listed(&mut story, 0, "paris", &[]);
        listed(&mut story, 1, "lyon", &["a"]);
        assert_eq!(resurrection(&story.run).valid, Valid::True, "lyon has not heard of it yet");
        listed(&mut story, 0, "paris", &["a"]);
        assert_eq!(resurrection(&story.run).valid, Valid::False);
    }

    #[test]
    fn what_was_deleted_is_gone_in_the_end() {
        let mut story = Story::new(&["paris"]);
        made(&mut story, "paris", "a");
        story.ok(0, "paris", "delete", json!({"id": "a"}), Value::Null);
        story.run.healed = story.now();
        listed(&mut story, 0, "paris", &["a"]);
        listed(&mut story, 0, "paris", &["a"]);
        assert_eq!(resurrection(&story.run).valid, Valid::False);
    }
}
