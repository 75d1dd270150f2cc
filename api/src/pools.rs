//! `GET /luc/v1/pools`: every pool with its rights, and whether minted = free + claimed + burnt (rule `conservation`).
//!
//! The sums are made anew from the accounts and from the live claims, not read from the pool: what is checked must not
//! be what is shown.

use std::collections::BTreeMap;

use axum::extract::State;
use luc_engine::entry::Subject;
use luc_engine::id::PoolId;
use luc_engine::interval::{Interval, Intervals};
use luc_engine::ledger::{Amount, Pool};
use luc_engine::record::{AddressPool, Host, Project, ServerGroup};
use luc_engine::view::View;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::auth::Caller;
use crate::compute::quotas::Quota;
use crate::http::{Reply, ok};
use crate::policy::{self, Action};
use crate::rights::Holders;

/// The largest whole number up to which all are exact in JSON as everybody reads it.
const EXACT: u128 = 1 << 53;

/// The live claims of one pool.
#[derive(Default)]
struct Claims {
    count: u64,
    sum: Amount,
    /// Their intervals: put together once, since adding them up one by one costs the square of their number.
    parts: Vec<Interval>,
}

impl Claims {
    fn add(&mut self, amount: &Amount) {
        self.count += 1;
        self.parts.extend(amount.addresses().iter());
        self.sum = self.sum.saturating_add(&amount.iter().collect());
    }

    /// The sum of all; and whether no two have an address in common.
    fn finish(mut self) -> (Self, bool) {
        self.parts.sort_unstable();
        let disjoint = self.parts.windows(2).all(|pair| pair[0].last() < pair[1].first());
        let addresses: Intervals = std::mem::take(&mut self.parts).into_iter().collect();
        self.sum = self.sum.saturating_add(&addresses.into());
        (self, disjoint)
    }
}

pub(crate) async fn pools(State(app): State<App>, caller: Caller) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let (view, holders) = (app.view(), Holders::of(&app));
    let mut claims = claims(&view);
    let mut all_conserved = view.ledger().is_conserved();
    let mut pools = Vec::new();
    for (id, pool) in view.ledger().pools() {
        let (claims, disjoint) = claims.remove(id).unwrap_or_default().finish();
        let conserved = is_conserved(pool, &claims, disjoint);
        all_conserved &= conserved;
        let mut value = render(&view, &holders, *id, pool, &claims, conserved);
        value["pending"] = pending(&view, *id, pool);
        pools.push(value);
    }
    // A claim on a pool that is not there would be capacity out of nothing.
    all_conserved &= claims.is_empty();
    ok(&json!({"pools": pools, "conserved": all_conserved}))
}

/// One pool, as [`pools`] shows it.
pub(crate) fn one_pool(app: &App, id: PoolId) -> Option<Value> {
    let (view, holders) = (app.view(), Holders::of(app));
    let pool = view.ledger().pool(id)?;
    let (claims, disjoint) = claims(&view).remove(&id).unwrap_or_default().finish();
    Some(render(&view, &holders, id, pool, &claims, is_conserved(pool, &claims, disjoint)))
}

fn claims(view: &View) -> BTreeMap<PoolId, Claims> {
    let mut claims: BTreeMap<PoolId, Claims> = BTreeMap::new();
    for (_, claim) in view.ledger().claims() {
        claims.entry(claim.pool).or_default().add(&claim.amount);
    }
    claims
}

/// Whether a pool's accounts and live claims add up to what was minted, in every dimension; and to its overdraft, where a
/// holder has forked and spent a right twice (M3).
fn is_conserved(pool: &Pool, claims: &Claims, disjoint: bool) -> bool {
    let used = [claims.sum.clone(), pool.burnt.clone()];
    let mut parts = pool.accounts().map(|(_, free)| free).chain(used);
    if pool.is_forked {
        let sum = parts.fold(Amount::default(), |sum, part| sum.saturating_add(&part));
        let due = pool.minted.saturating_add(&pool.overdraft());
        return sum.iter().eq(due.iter()) && pool.minted.addresses().covers(sum.addresses());
    }
    let sum = parts.try_fold(Amount::default(), |sum, part| sum.checked_add(&part));
    disjoint && sum.is_some_and(|sum| sum == pool.minted) && claims.sum == pool.claimed
}

fn render(view: &View, holders: &Holders, id: PoolId, pool: &Pool, claims: &Claims, conserved: bool) -> Value {
    let mut total = Amount::default();
    let mut rights = Vec::new();
    for (replica, free) in pool.accounts() {
        total = total.saturating_add(&free);
        let age = holders.heard(replica).map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        rights.push(json!({
            "replica": replica.to_string(), "site": holders.site(replica), "free": amount(&pool.free(replica)),
            "unconfirmed": amount(&pool.unconfirmed(replica)),
            "reachable": holders.is_reachable(replica), "age_ms": age, "retiring": holders.is_retiring(replica),
            "retired": view.retired().contains(replica),
        }));
    }
    // What has paths of its own is named by what those take; the others by the entry that minted them.
    let name = if let Subject::Addresses { of } = &pool.subject { of.id.to_string() } else { id.to_string() };
    json!({
        "id": name, "minted_by": id.to_string(), "root": id.entry.author.to_string(), "subject": subject(view, &pool.subject),
        "minted": amount(&pool.minted), "burnt": amount(&pool.burnt), "capacity": amount(&pool.capacity()),
        "claims": claims.count, "claimed": amount(&claims.sum), "free": amount(&total), "rights": rights,
        "conserved": conserved, "confirmed": pool.confirmed, "overdraft": amount(&pool.overdraft()),
    })
}

/// What of a quota is still to be burnt, told once, with the first of its pools; and what is left of a host's pool that
/// its agent does not serve.
fn pending(view: &View, id: PoolId, pool: &Pool) -> Value {
    if view.is_surplus(id) {
        return amount(&pool.capacity());
    }
    let Subject::Quota { project } = &pool.subject else { return Value::Null };
    let first = view.ledger().quota_pools(*project).next().is_some_and(|(first, _)| first == id);
    if first { amount(&Quota::of(view, *project).pending()) } else { Value::Null }
}

/// What a pool is the capacity of, with names for people: null where the record is gone, or not here yet.
fn subject(view: &View, subject: &Subject) -> Value {
    match subject {
        Subject::Host(host) => {
            let name = view.get::<Host>(host.host.0).map(|host| &host.name);
            json!({"host": host.host.to_string(), "name": name, "site": host.site.as_str()})
        }
        Subject::Quota { project } => {
            let name = view.get::<Project>(*project).map(|project| &project.name);
            json!({"project": project.simple().to_string(), "name": name})
        }
        Subject::Votes => json!({"votes": "on retirements"}),
        Subject::Addresses { of } => {
            let name = view.get::<AddressPool>(of.id).map(|pool| &pool.name);
            json!({"address_pool": of.id.to_string(), "name": name})
        }
        Subject::Group { group, host } => {
            let name = view.get::<ServerGroup>(*group).map(|group| &group.name);
            let mut value = json!({"server_group": group.to_string(), "name": name});
            if let Some(host) = host {
                value["host"] = json!(host.to_string());
                value["host_name"] = json!(view.get::<Host>(host.0).map(|host| &host.name));
            }
            value
        }
    }
}

/// An amount as an object: a dimension a key; addresses as blocks and ranges, with their number.
pub(crate) fn amount(amount: &Amount) -> Value {
    let mut value: Map<_, _> = amount.iter().map(|(dimension, n)| (format!("{dimension:?}"), json!(n))).collect();
    let set = amount.addresses();
    if !set.is_empty() {
        value.insert("Addresses".into(), count(set));
        value.insert("addresses".into(), list(set));
    }
    Value::Object(value)
}

/// How many: a string where JSON's numbers are not exact any more.
pub(crate) fn count(set: &Intervals) -> Value {
    match set.len() {
        Some(n) if n <= EXACT => json!(u64::try_from(n).unwrap_or(u64::MAX)),
        Some(n) => json!(n.to_string()),
        None => json!("340282366920938463463374607431768211456"),
    }
}

/// Which: `10.0.0.0/24`, `10.0.1.7`, `10.0.1.9-10.0.1.11`.
pub(crate) fn list(set: &Intervals) -> Value {
    set.iter().map(|one| json!(one.to_string())).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use luc_engine::ledger::Dimension;

    use super::*;

    #[test]
    fn a_claim_more_or_a_right_less_breaks_conservation() {
        let replica = crate::testing::founder();
        let pool = replica.view().ledger().pools().next().unwrap().1.clone();
        assert!(is_conserved(&pool, &Claims::default(), true));
        let mut twice = Claims::default();
        for text in ["10.0.0.0/30", "10.0.0.8/30", "10.0.0.3"] {
            twice.add(&Intervals::from_iter([text.parse::<Interval>().unwrap()]).into());
        }
        assert!(!twice.finish().1, "an address that two claims have");
        let one: Amount = std::iter::once((Dimension::Votes, 1)).collect();
        let unknown = Claims { count: 1, sum: one.clone(), ..Claims::default() };
        assert!(!is_conserved(&pool, &unknown, true), "a live claim that the pool does not count");
        let mut forked = pool.clone();
        forked.is_forked = true;
        assert!(is_conserved(&forked, &Claims::default(), false));
        assert!(!is_conserved(&forked, &unknown, true), "more than minted, and nobody owes it");
        let mut lost = pool.clone();
        lost.minted = pool.minted.saturating_add(&one);
        assert!(!is_conserved(&lost, &Claims::default(), true), "a right that nobody holds");
        let mut burnt = pool.clone();
        burnt.burnt = one;
        assert!(!is_conserved(&burnt, &Claims::default(), true), "a right both held and burnt");
    }
}
