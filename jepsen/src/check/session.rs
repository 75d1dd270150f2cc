//! Sessions: a replica that acknowledged a write shows it, and shows no less later than it showed before.
//!
//! Both are asked of one site alone, so no frontier is needed. What crosses sites is the workload `causal`.

use std::collections::{BTreeSet, HashMap};

use serde_json::json;

use super::facts::{Fact, Says, facts};
use super::{Finding, indices, some};
use crate::run::Run;

pub(super) fn order(run: &Run) -> Finding {
    let facts = facts(run);
    let mut unmade: HashMap<&str, u64> = HashMap::new();
    for fact in &facts {
        if let Says::Unmade(id) = &fact.says {
            let at = unmade.entry(id).or_insert(u64::MAX);
            *at = fact.pair.invoke.time.min(*at);
        }
    }
    let (mut looked, mut cases, mut anomaly) = (0_u64, Vec::new(), Vec::new());
    let mut by_place: HashMap<(&str, &str, u32), Vec<&Fact<'_>>> = HashMap::new();
    for fact in facts.iter().filter(|fact| fact.pair.complete.is_some()) {
        by_place.entry((fact.workload(), fact.site(), fact.replica(run))).or_default().push(fact);
    }
    for ((_, site, _), mut there) in by_place {
        there.sort_by_key(|fact| fact.done());
        // Since when a thing must be shown: by the operation that acknowledged it, or first showed it.
        let mut since: HashMap<&str, &Fact<'_>> = HashMap::new();
        for fact in there {
            let began = fact.pair.invoke.time;
            if let Some((id, before)) = lacks(fact, &since).into_iter().find(|(id, before)| {
                before.done() < began
                    && unmade.get(id).is_none_or(|at| *at > fact.done())
                    && !run.may_have_lost(site, before.done(), fact.done())
            }) {
                cases.push(json!({"id": id, "site": site, "known": before.pair.invoke.index, "missing": fact.pair.invoke.index}));
                if anomaly.is_empty() {
                    anomaly.extend(indices(&before.pair).chain(indices(&fact.pair)));
                }
            }
            looked += u64::from(matches!(fact.says, Says::Listed(..) | Says::Shown(..)) && !since.is_empty());
            match &fact.says {
                Says::Made(id) | Says::Shown(id, true) => {
                    since.entry(id).or_insert(fact);
                }
                Says::Listed(ids, _) => ids.iter().for_each(|id| {
                    since.entry(id).or_insert(fact);
                }),
                Says::Unmade(_) | Says::Shown(_, false) => {}
            }
        }
    }
    match cases.first() {
        Some(case) => {
            let summary = format!(
                "{} reads lacked what their site had shown or acknowledged, first {}.",
                cases.len(),
                case["id"]
            );
            Finding::broken(summary, json!({"reads": looked, "cases": some(&cases)}), anomaly)
        }
        None if looked == 0 => Finding::unknown("No site was read after it had acknowledged anything."),
        None => Finding::held(
            format!("{looked} reads showed all that their site had shown before."),
            json!({"reads": looked}),
        ),
    }
}

/// What a read does not show of what was known before.
fn lacks<'b, 'a>(fact: &Fact<'_>, since: &HashMap<&'b str, &'b Fact<'a>>) -> Vec<(&'b str, &'b Fact<'a>)> {
    match &fact.says {
        Says::Listed(ids, _) => {
            let ids: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
            since.iter().filter(|(id, _)| !ids.contains(**id)).map(|(id, before)| (*id, *before)).collect()
        }
        Says::Shown(id, false) => {
            since.get_key_value(id.as_str()).map(|(id, before)| (*id, *before)).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::check::tests::Story;
    use crate::history::Kind;
    use crate::workload::Valid;

    fn story() -> Story {
        let mut story = Story::new(&["paris", "lyon"]);
        story.ok(0, "paris", "create", json!({}), json!({"id": "a"}));
        story
    }

    #[test]
    fn a_site_shows_what_it_acknowledged() {
        let mut good = story();
        good.ok(1, "paris", "list", Value::Null, json!({"ids": ["a"]}));
        good.ok(2, "lyon", "list", Value::Null, json!({"ids": []}));
        assert_eq!(order(&good.run).valid, Valid::True);
        let mut bad = story();
        bad.ok(1, "paris", "list", Value::Null, json!({"ids": []}));
        assert_eq!(order(&bad.run).anomaly, [0, 1, 2, 3]);
        let mut bad = story();
        bad.op(1, "paris", "show", json!({"id": "a"}), Kind::Fail, json!("404 not found"));
        assert_eq!(order(&bad.run).valid, Valid::False);
    }

    #[test]
    fn a_site_shows_no_less_than_before() {
        let mut bad = story();
        bad.ok(1, "lyon", "list", Value::Null, json!({"ids": ["a"]}));
        bad.ok(2, "lyon", "list", Value::Null, json!({"ids": []}));
        assert_eq!(order(&bad.run).valid, Valid::False);
        let mut good = story();
        good.ok(1, "lyon", "list", Value::Null, json!({"ids": ["a"]}));
        good.ok(0, "paris", "delete", json!({"id": "a"}), Value::Null);
        good.ok(2, "lyon", "list", Value::Null, json!({"ids": []}));
        assert_eq!(order(&good.run).valid, Valid::True);
    }
}
