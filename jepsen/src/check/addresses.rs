//! Addresses: taken once. A claim holds its addresses from when it is acknowledged until its release is asked for.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Finding, clients, indices, some};
use crate::history::Pair;
use crate::run::Run;

/// A block, a range or one address of a claim, and from when until when the claim surely holds it.
struct Held<'a> {
    pair: Pair<'a>,
    pool: &'a str,
    first: u128,
    last: u128,
    from: u64,
    until: u64,
}

/// A claim's name, or its pool's.
fn text<'a>(pair: &Pair<'a>, keys: &[&str]) -> Option<&'a str> {
    let values = pair.complete.map(|op| &op.value).into_iter().chain([&pair.invoke.value]);
    values.flat_map(|value| keys.iter().filter_map(move |key| value[*key].as_str())).next()
}

fn held(run: &Run) -> Vec<Held<'_>> {
    let pairs = clients(&run.history);
    let mut released: HashMap<&str, u64> = HashMap::new();
    for pair in pairs.iter().filter(|pair| ["release", "return"].iter().any(|word| pair.invoke.f.starts_with(word))) {
        if let Some(id) = text(pair, &["claim", "id"]).or(pair.invoke.value.as_str()) {
            let at = released.entry(id).or_insert(u64::MAX);
            *at = pair.invoke.time.min(*at);
        }
    }
    // What only a lost disk held is void, and its addresses are their heir's.
    let is_lost = |pair: &Pair<'_>| {
        let (site, done) = (pair.invoke.site.as_deref().unwrap_or_default(), pair.complete.map_or(0, |op| op.time));
        run.excuses(site, done)
    };
    let claims = pairs.iter().filter(|pair| pair.is_ok() && pair.invoke.f.starts_with("claim") && !is_lost(pair));
    claims.flat_map(|pair| blocks(*pair, &released)).collect()
}

fn blocks<'a>(pair: Pair<'a>, released: &HashMap<&str, u64>) -> Vec<Held<'a>> {
    let Some(done) = pair.complete else { return Vec::new() };
    let until = text(&pair, &["claim", "id"]).and_then(|id| released.get(id)).copied().unwrap_or(u64::MAX);
    let (pool, from) = (text(&pair, &["pool"]).unwrap_or_default(), done.time);
    let blocks = done.value["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let held = |(first, last)| Held { pair, pool, first, last, from, until };
    blocks.filter_map(block).map(held).collect()
}

/// `192.0.2.7`, `192.0.2.0/24`, `192.0.2.7-192.0.2.9`; IPv4 lies in IPv6 as mapped addresses, so the two never meet.
fn block(text: &str) -> Option<(u128, u128)> {
    let number = |text: &str| {
        text.parse().ok().map(|address| match address {
            IpAddr::V4(address) => u128::from(address.to_ipv6_mapped()),
            IpAddr::V6(address) => u128::from(address),
        })
    };
    if let Some((first, last)) = text.split_once('-') {
        return Some((number(first)?, number(last)?));
    }
    let Some((first, length)) = text.split_once('/') else { return number(text).map(|one| (one, one)) };
    let bits: u32 = if first.contains(':') { 128 } else { 32 };
    let free = bits.checked_sub(length.parse().ok()?)?;
    let first = number(first)?;
    Some((first, first | 1_u128.checked_shl(free).map_or(u128::MAX, |size| size - 1)))
}

pub(super) fn unique(run: &Run) -> Finding {
    let mut by: BTreeMap<&str, Vec<Held<'_>>> = BTreeMap::new();
    held(run).into_iter().for_each(|one| by.entry(one.pool).or_default().push(one));
    let (mut blocks, mut cases, mut anomaly) = (0, Vec::new(), Vec::new());
    for (pool, mut held) in by {
        blocks += held.len();
        held.sort_by_key(|one| one.first);
        for (at, one) in held.iter().enumerate() {
            let later = held.iter().skip(at + 1).take_while(|other| other.first <= one.last);
            for other in later.filter(|other| other.from < one.until && one.from < other.until) {
                let claims = [one.pair.invoke.index, other.pair.invoke.index];
                let addresses = [one, other].map(|claim| claim.pair.complete.map(|op| &op.value["addresses"]));
                cases.push(json!({"pool": pool, "addresses": addresses, "claims": claims}));
                if anomaly.is_empty() {
                    anomaly.extend(indices(&one.pair).chain(indices(&other.pair)));
                }
            }
        }
    }
    match cases.first() {
        Some(case) => {
            let summary = format!("{} pairs of claims overlap, one of them {}.", cases.len(), case["addresses"]);
            Finding::broken(summary, json!({"cases": some(&cases)}), anomaly)
        }
        None if blocks == 0 => Finding::unknown("No addresses were claimed."),
        None => Finding::held(
            format!("{blocks} blocks of addresses were claimed, none twice at a time."),
            json!({"blocks": blocks}),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::Story;
    use crate::run::{Excuse, Fault};
    use crate::workload::Valid;

    #[test]
    fn an_address_is_taken_again_only_after_its_release() {
        let mut story = Story::new(&["paris", "lyon"]);
        let claim = |id: &str| json!({"id": id, "pool": "p", "addresses": ["192.0.2.7"]});
        story.ok(0, "paris", "claim", json!({"pool": "p"}), claim("a"));
        story.ok(0, "paris", "release", json!({"id": "a"}), Value::Null);
        story.ok(1, "lyon", "claim", json!({"pool": "p"}), claim("b"));
        assert_eq!(unique(&story.run).valid, Valid::True);
        story.ok(0, "paris", "claim", json!({"pool": "p"}), claim("c"));
        let finding = unique(&story.run);
        assert_eq!((finding.valid, finding.anomaly), (Valid::False, vec![4, 5, 6, 7]));
    }

    #[test]
    fn what_only_a_lost_disk_held_is_taken_again_by_its_heir() {
        let mut story = Story::new(&["paris", "lyon"]);
        let claim = |id: &str| json!({"id": id, "pool": "p", "addresses": ["192.0.2.7"]});
        story.ok(0, "paris", "claim", json!({"pool": "p"}), claim("a"));
        let lost = story.run.history.0.last().map_or(0, |op| op.time);
        story.ok(1, "lyon", "claim", json!({"pool": "p"}), claim("b"));
        assert_eq!(unique(&story.run).valid, Valid::False);
        let excused = Excuse { site: "paris".into(), after: 0, until: lost + 1, ..Excuse::default() };
        story.run.faults.push(Fault { excused: vec![excused], may_lose: true, ..Fault::default() });
        assert_eq!(unique(&story.run).valid, Valid::True);
        story.ok(1, "lyon", "claim", json!({"pool": "p"}), claim("c"));
        assert_eq!(unique(&story.run).valid, Valid::False, "nothing excuses the heir");
    }

    #[test]
    fn blocks_that_overlap_are_seen() {
        let overlap = |one: &str, other: &str| {
            let mut story = Story::new(&["paris"]);
            story.ok(0, "paris", "claim", json!({}), json!({"claim": "a", "addresses": [one]}));
            story.ok(0, "paris", "claim", json!({}), json!({"claim": "b", "addresses": [other]}));
            unique(&story.run).valid == Valid::False
        };
        assert!(overlap("192.0.2.0/28", "192.0.2.7"));
        assert!(overlap("192.0.2.9", "192.0.2.3-192.0.2.9"));
        assert!(!overlap("192.0.2.0/28", "192.0.2.16-192.0.2.20"));
        assert!(overlap("2001:db8::/64", "2001:db8::ffff") && !overlap("2001:db8::/64", "2001:db8:0:1::"));
    }
}
