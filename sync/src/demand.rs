//! Rights follow demand: when to ask for more before it is needed. Pure: no clock, randomness, socket or runtime.
//!
//! What was claimed here of a pool in the last seconds is what will be claimed in the next. And whoever is cut off must
//! live on what it has: of a quota, a site that claims wants at least half of what it would have, were all free rights
//! shared evenly among those that can be reached. Below the greater of both (the **low water mark**) more is asked for,
//! up to twice as much (the **high water mark**), of the richest holder that can be reached, and at most half of what
//! that has: a site that is cut off goes on with the rest. Between the marks nothing moves, a pool is asked for at most
//! once in a while, and a holder keeps what it needs itself, or the larger half of what it has: so rights do not go to and fro
//! in small change, and where few are left no site has two while another has none. Who asks has just claimed, so nothing moves
//! where nothing is claimed. Of addresses it is their number that is in demand.

use std::collections::BTreeMap;

use luc_engine::entry::Subject;
use luc_engine::id::{Millis, PoolId, ReplicaId};
use luc_engine::ledger::{Amount, Pool};
use luc_engine::tx::Shortage;

/// What is counted as one demand, milliseconds.
const WINDOW: Millis = 10_000;
/// How long a pool is not asked for again, milliseconds.
const PAUSE: Millis = 100;
/// Most pools whose demand is remembered: those that are idle the longest are forgotten first.
const POOLS: usize = 4_096;

/// What was claimed here lately.
#[derive(Debug, Default)]
pub struct Demand {
    pools: BTreeMap<PoolId, Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    since: Millis,
    now: Amount,
    before: Amount,
    asked: Millis,
}

impl Demand {
    /// Notes a claim of this replica's.
    pub fn claimed(&mut self, pool: PoolId, amount: &Amount, now: Millis) {
        if self.pools.len() >= POOLS && !self.pools.contains_key(&pool) {
            let idle = self.pools.iter().min_by_key(|(_, recent)| recent.since).map(|(id, _)| *id);
            idle.and_then(|id| self.pools.remove(&id));
        }
        let recent = self.pools.entry(pool).or_default();
        recent.roll(now);
        recent.now = recent.now.saturating_add(&amount.counted());
    }

    /// What is needed here of a pool in the next seconds.
    #[must_use]
    pub fn of(&self, pool: PoolId, now: Millis) -> Amount {
        self.pools.get(&pool).map(|recent| recent.at(now)).unwrap_or_default()
    }

    /// Whom to ask for how much of a pool now, if anybody. It counts as asked.
    pub fn ask(
        &mut self,
        id: PoolId,
        pool: &Pool,
        me: ReplicaId,
        now: Millis,
        reachable: impl Fn(ReplicaId) -> bool,
    ) -> Option<(ReplicaId, Amount)> {
        let recent = self.pools.get_mut(&id)?;
        let mine = pool.free(me).counted();
        let demand = recent.at(now).max(&even_share(pool, |id| id == me || reachable(id)).divided_by(2));
        if mine.covers(&demand) || now.saturating_sub(recent.asked) < PAUSE {
            return None;
        }
        let wanted = demand.saturating_add(&demand).saturating_sub(&mine);
        let others = pool.spendable().filter(|(replica, _)| *replica != me && reachable(*replica));
        let half = others.map(|(replica, free)| (wanted.min(&free.counted().divided_by(2)), replica));
        let low = demand.saturating_sub(&mine);
        // Small change is left to whoever has it, until it is really needed.
        let helps = |amount: &Amount| low.iter().any(|(d, _)| amount.get(d) > demand.get(d) / 8);
        let best = half.filter(|(amount, _)| helps(amount)).max_by_key(|(amount, replica)| (amount.size(), *replica));
        let (amount, holder) = best?;
        recent.asked = now;
        Some((holder, amount))
    }
}

/// What each of those who can be reached would have free of a quota, were it shared evenly. Of other pools nothing: a
/// host's site keeps most of it, and what only one can hold is not spread.
fn even_share(pool: &Pool, near: impl Fn(ReplicaId) -> bool) -> Amount {
    if !matches!(pool.subject, Subject::Quota { .. }) {
        return Amount::default();
    }
    let (mut sum, mut count) = (Amount::default(), 0);
    for (_, free) in pool.accounts().filter(|(replica, _)| near(*replica)) {
        (sum, count) = (sum.saturating_add(&free), count + 1);
    }
    sum.divided_by(count)
}

/// Whom to ask at once, and each for how much, for what is `missing` of a shortage: the first of these holders, so many as
/// have all of it, as far as is known here.
#[must_use]
pub fn shares(short: &Shortage, missing: &Amount, holders: &[(ReplicaId, PoolId)]) -> Vec<(ReplicaId, PoolId, Amount)> {
    let mut missing = missing.clone();
    let mut shares = Vec::new();
    for (holder, pool) in holders {
        let has = short.elsewhere.iter().filter(|(of, at, _)| (of, at) == (holder, pool));
        let free = has.fold(Amount::default(), |sum, (_, _, free)| sum.saturating_add(free));
        let share = missing.min(&free.in_terms_of(&missing));
        if !share.is_zero() {
            missing = missing.saturating_sub(&share);
            shares.push((*holder, *pool, share));
        }
    }
    shares
}

/// Who has anything of what is `missing` of a shortage: who has enough before who has not, the richest first.
#[must_use]
pub fn holders(short: &Shortage, missing: &Amount) -> Vec<(ReplicaId, PoolId)> {
    let mut holders: Vec<_> = short.elsewhere.iter().collect();
    holders.sort_by_key(|(_, _, free)| std::cmp::Reverse(covered(free, missing)));
    holders.into_iter().map(|(holder, pool, _)| (*holder, *pool)).collect()
}

/// How much of what is missing an amount covers, for sorting: the count of dimensions covered, then the sum.
fn covered(free: &Amount, missing: &Amount) -> (usize, u64) {
    let dimensions = missing.iter().filter(|(dimension, n)| free.get(*dimension) >= *n).count();
    (dimensions, free.towards(missing).size())
}

impl Recent {
    fn roll(&mut self, now: Millis) {
        let windows = now.saturating_sub(self.since) / WINDOW;
        if windows > 0 {
            let last = std::mem::take(&mut self.now);
            self.before = if windows == 1 { last } else { Amount::default() };
            self.since += windows * WINDOW;
        }
    }

    /// The larger of this window's and the last one's.
    fn at(&self, now: Millis) -> Amount {
        match now.saturating_sub(self.since) / WINDOW {
            0 => self.now.max(&self.before),
            1 => self.now.clone(),
            _ => Amount::default(),
        }
    }
}
