//! Addresses: taken once. A claim holds its addresses from when it is acknowledged until its release is asked for.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{Finding, clients, indices, some};
use crate::history::Pair;
use crate::run::Run;

/// A claim: its addresses in its pool, and from when until when it surely holds them.
struct Held<'a> {
    pair: Pair<'a>,
    pool: &'a str,
    addresses: Vec<&'a str>,
    from: u64,
    until: u64,
}

fn text<'a>(pair: &Pair<'a>, key: &str) -> Option<&'a str> {
    let result = pair.complete.map(|op| &op.value);
    result.and_then(|value| value[key].as_str()).or_else(|| pair.invoke.value[key].as_str())
}

fn held(run: &Run) -> Vec<Held<'_>> {
    let pairs = clients(&run.history);
    let mut released: HashMap<&str, u64> = HashMap::new();
    for pair in pairs.iter().filter(|pair| pair.invoke.f.starts_with("release")) {
        if let Some(id) = text(pair, "id").or(pair.invoke.value.as_str()) {
            let at = released.entry(id).or_insert(u64::MAX);
            *at = pair.invoke.time.min(*at);
        }
    }
    let claim = |pair: &Pair<'_>| pair.is_ok() && pair.invoke.f.starts_with("claim");
    pairs.iter().filter(|pair| claim(pair)).filter_map(|pair| one(*pair, &released)).collect()
}

fn one<'a>(pair: Pair<'a>, released: &HashMap<&str, u64>) -> Option<Held<'a>> {
    let done = pair.complete?;
    let addresses: Vec<&str> = done.value["addresses"].as_array()?.iter().filter_map(Value::as_str).collect();
    let until = text(&pair, "id").and_then(|id| released.get(id)).copied().unwrap_or(u64::MAX);
    Some(Held { pair, pool: text(&pair, "pool").unwrap_or_default(), addresses, from: done.time, until })
}

pub(super) fn unique(run: &Run) -> Finding {
    let held = held(run);
    let mut by: HashMap<(&str, &str), Vec<&Held<'_>>> = HashMap::new();
    for claim in &held {
        for address in &claim.addresses {
            by.entry((claim.pool, address)).or_default().push(claim);
        }
    }
    let (addresses, mut cases, mut anomaly) = (by.len(), Vec::new(), Vec::new());
    for ((pool, address), mut claims) in by {
        claims.sort_by_key(|claim| claim.from);
        let overlap = claims.windows(2).find(|pair| pair[1].from < pair[0].until);
        let Some([one, other]) = overlap else { continue };
        let claims = [one.pair.invoke.index, other.pair.invoke.index];
        cases.push(json!({"pool": pool, "address": address, "claims": claims}));
        if anomaly.is_empty() {
            anomaly.extend(indices(&one.pair).chain(indices(&other.pair)));
        }
    }
    match cases.first() {
        Some(case) => {
            let summary = format!("{} addresses were taken twice, one of them {}.", cases.len(), case["address"]);
            Finding::broken(summary, json!({"cases": some(&cases)}), anomaly)
        }
        None if addresses == 0 => Finding::unknown("No addresses were claimed."),
        None => Finding::held(
            format!("{addresses} addresses were claimed, none twice at a time."),
            json!({"addresses": addresses}),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::Story;
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
}
