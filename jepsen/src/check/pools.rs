//! Pools, as every site shows them: `minted = free + claimed + burnt` in every dimension, and nothing claimed beyond capacity.
//!
//! The sums are made here, from the numbers that were told; what a site says of its own sums (`conserved`) counts only
//! against it. Where a holder has forked, the overdraft that it owes is part of what there is (`PROTOCOL.md`, M3).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Finding, seconds, some};
use crate::run::{Run, Sample};

/// An amount: a dimension's name with its number.
type Amount = BTreeMap<String, u128>;

/// Numbers beyond what JSON holds exactly are told as text. The list of addresses is not a number.
fn amount(value: &Value) -> Amount {
    let number = |value: &Value| match value {
        Value::Number(number) => number.as_u64().map(u128::from),
        Value::String(text) => Some(text.parse().unwrap_or(u128::MAX)),
        _ => None,
    };
    let pairs = value.as_object().into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), number(value)?))).collect()
}

fn of(amount: &Amount, dimension: &str) -> u128 {
    amount.get(dimension).copied().unwrap_or(0)
}

/// One pool as one site showed it.
struct Shown<'a> {
    id: &'a str,
    value: &'a Value,
    minted: Amount,
    burnt: Amount,
    claimed: Amount,
    free: Amount,
    overdraft: Amount,
}

impl<'a> Shown<'a> {
    fn all(sample: &'a Sample) -> Vec<Self> {
        let pools = sample.pools["pools"].as_array().into_iter().flatten();
        pools.filter_map(Self::read).collect()
    }

    fn read(value: &'a Value) -> Option<Self> {
        let [minted, burnt, claimed, free, overdraft] =
            ["minted", "burnt", "claimed", "free", "overdraft"].map(|key| amount(&value[key]));
        Some(Self { id: value["id"].as_str()?, value, minted, burnt, claimed, free, overdraft })
    }

    fn dimensions(&self) -> BTreeSet<&String> {
        [&self.minted, &self.burnt, &self.claimed, &self.free].into_iter().flat_map(BTreeMap::keys).collect()
    }

    fn case(&self, sample: &Sample, what: String) -> Value {
        json!({"site": sample.site, "at": seconds(sample.time), "pool": self.id, "of": self.value["subject"], "what": what})
    }
}

/// Judges every pool of every sample, and says how many that were.
fn judge(run: &Run, good: &str, mut wrong: impl FnMut(&Shown<'_>, &Sample) -> Option<String>) -> Finding {
    let (mut seen, mut cases) = (0_u64, Vec::new());
    for sample in &run.samples {
        for pool in Shown::all(sample) {
            seen += 1;
            cases.extend(wrong(&pool, sample).map(|what| pool.case(sample, what)));
        }
    }
    if seen == 0 {
        return Finding::unknown("No site was asked for its pools.");
    }
    match cases.first() {
        None => Finding::held(format!("{seen} pools were looked at: {good}."), json!({"pools": seen})),
        Some(first) => {
            let (what, site) = (first["what"].as_str().unwrap_or_default(), first["site"].as_str().unwrap_or_default());
            let count = cases.len();
            let summary = format!("{count} of {seen} pools are wrong; the first, at {site}: {what}.");
            Finding::broken(summary, json!({"pools": seen, "cases": some(&cases)}), Vec::new())
        }
    }
}

pub(super) fn double_booking(run: &Run) -> Finding {
    judge(run, "nothing is claimed beyond capacity", |pool, _| {
        let over = |dimension: &&&String| {
            let there = of(&pool.minted, dimension).saturating_add(of(&pool.overdraft, dimension));
            of(&pool.claimed, dimension).saturating_add(of(&pool.burnt, dimension)) > there
        };
        let dimensions = pool.dimensions();
        let dimension = dimensions.iter().find(over)?;
        let [minted, burnt, claimed] = [&pool.minted, &pool.burnt, &pool.claimed].map(|part| of(part, dimension));
        Some(format!("{claimed} {dimension} are claimed of {minted} minted less {burnt} burnt"))
    })
}

pub(super) fn conservation(run: &Run) -> Finding {
    let mut highest: BTreeMap<(String, String, String), u128> = BTreeMap::new();
    judge(run, "rights add up everywhere", |pool, sample| {
        for dimension in pool.dimensions() {
            let [minted, burnt, claimed, free, overdraft] =
                [&pool.minted, &pool.burnt, &pool.claimed, &pool.free, &pool.overdraft].map(|part| of(part, dimension));
            let sum = free.saturating_add(claimed).saturating_add(burnt);
            if sum != minted.saturating_add(overdraft) {
                return Some(format!(
                    "{minted} {dimension} were minted, and {free} free, {claimed} claimed and {burnt} burnt are {sum}"
                ));
            }
            let key = (sample.site.clone(), pool.id.to_owned(), dimension.clone());
            let before = highest.entry(key).or_default();
            // What was minted is forgotten with a disk; that is another checker's.
            if minted < *before && run.faults.iter().all(|fault| !fault.may_lose) {
                return Some(format!("{before} {dimension} had been minted, and now {minted}"));
            }
            *before = minted.max(*before);
        }
        (pool.value["conserved"] == Value::Bool(false))
            .then(|| "the site says itself that its rights do not add up".into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Valid;

    fn run(pool: Value) -> Run {
        let pools = json!({"pools": [pool], "conserved": true});
        Run { samples: vec![Sample { site: "paris".into(), pools, ..Sample::default() }], ..Run::default() }
    }

    fn pool(minted: u64, free: u64, claimed: u64, burnt: u64) -> Value {
        let of = |n: u64| json!({"Vcpu": n});
        json!({"id": "p", "minted": of(minted), "free": of(free), "claimed": of(claimed), "burnt": of(burnt), "conserved": true})
    }

    #[test]
    fn a_claim_beyond_capacity_is_double_booking() {
        assert_eq!(double_booking(&run(pool(10, 2, 7, 1))).valid, Valid::True);
        assert_eq!(double_booking(&run(pool(10, 0, 10, 1))).valid, Valid::False);
        let mut forked = pool(10, 0, 11, 0);
        forked["overdraft"] = json!({"Vcpu": 1});
        assert_eq!(double_booking(&run(forked.clone())).valid, Valid::True);
        assert_eq!(conservation(&run(forked)).valid, Valid::True);
    }

    #[test]
    fn rights_that_vanish_or_appear_break_conservation() {
        assert_eq!(conservation(&run(pool(10, 2, 7, 1))).valid, Valid::True);
        assert_eq!(conservation(&run(pool(10, 1, 7, 1))).valid, Valid::False);
        assert_eq!(conservation(&run(pool(10, 3, 7, 1))).valid, Valid::False);
        let mut said = pool(10, 2, 7, 1);
        said["conserved"] = json!(false);
        assert_eq!(conservation(&run(said)).valid, Valid::False);
    }

    #[test]
    fn a_mint_is_never_taken_back() {
        let mut later = run(pool(10, 10, 0, 0));
        later.samples.extend(run(pool(9, 9, 0, 0)).samples);
        assert_eq!(conservation(&later).valid, Valid::False);
    }

    #[test]
    fn addresses_beyond_exact_numbers_are_counted() {
        let of = |n: &str| json!({"Addresses": n, "addresses": ["2001:db8::/64"]});
        let wide = json!({"id": "p", "minted": of("18446744073709551616"), "free": of("18446744073709551615"), "claimed": {"Addresses": 1}});
        assert_eq!(conservation(&run(wide)).valid, Valid::True);
    }
}
