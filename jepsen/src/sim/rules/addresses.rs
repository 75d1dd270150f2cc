//! Addresses are not numbers: which of them a claim has is in it, and no other live claim of its pool has it too.

use std::collections::BTreeMap;

use luc_engine::entry::LedgerOp;
use luc_engine::id::{ClaimId, PoolId, ReplicaId};
use luc_engine::interval::Intervals;
use luc_engine::ledger::{Amount, Pool};

use super::{Broken, Checked, Rule, Rules};

/// Who has which address.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// By pool and address.
    taken: BTreeMap<(PoolId, u128), ClaimId>,
    /// All that was ever granted to a replica.
    granted: BTreeMap<(PoolId, ReplicaId), Intervals>,
    /// What every claim has, or had.
    held: BTreeMap<ClaimId, (PoolId, Intervals)>,
}

impl Addresses {
    fn each(set: &Intervals) -> impl Iterator<Item = u128> + '_ {
        set.iter().flat_map(|run| run.first()..=run.last())
    }
}

impl Rules {
    /// Takes up what an operation does to addresses.
    pub(super) fn count_addresses(&mut self, claim: ClaimId, op: &LedgerOp) -> Checked {
        match op {
            LedgerOp::Claim { pool, amount, .. } if !amount.addresses().is_empty() => {
                self.take_addresses(claim, *pool, amount.addresses())
            }
            LedgerOp::Grant { pool, to, amount } if !amount.addresses().is_empty() => {
                let all = self.addresses.granted.entry((*pool, *to)).or_default();
                *all = all.union(amount.addresses());
                Ok(())
            }
            LedgerOp::Release { claim } => {
                self.free_addresses(*claim);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn take_addresses(&mut self, claim: ClaimId, pool: PoolId, set: &Intervals) -> Checked {
        // What the liar was given it may have given to two, unless that needs another's word.
        let excused = self.liars_addresses(pool);
        let Addresses { taken, held, .. } = &mut self.addresses;
        held.insert(claim, (pool, set.clone()));
        for address in Addresses::each(set) {
            let before = taken.insert((pool, address), claim);
            if let Some(other) = before.filter(|other| *other != claim && !excused.contains(address)) {
                let how = format!("address {address:#x} of pool {pool} is in claim {claim} and in claim {other}");
                return Err(Broken::new(Rule::AddressUniqueness, how));
            }
        }
        Ok(())
    }

    /// A claim is no more: it was released, or nobody has the entry that made it.
    pub(super) fn free_addresses(&mut self, claim: ClaimId) {
        let Addresses { taken, held, .. } = &mut self.addresses;
        let Some((pool, set)) = held.get(&claim) else { return };
        for address in Addresses::each(set) {
            if taken.get(&(*pool, address)) == Some(&claim) {
                taken.remove(&(*pool, address));
            }
        }
    }

    /// What a member who lies from now on has claimed, it may give to others by an entry that is not believed here.
    pub(super) fn free_liars_addresses(&mut self, liar: ReplicaId) {
        let its: Vec<ClaimId> =
            self.addresses.held.keys().filter(|claim| claim.entry.author == liar).copied().collect();
        its.into_iter().for_each(|claim| self.free_addresses(claim));
    }

    /// A claim is live again: nobody has the entry that released it.
    pub(super) fn retake_addresses(&mut self, claim: ClaimId) {
        if self.has_liar(claim.entry.author) {
            return;
        }
        let Addresses { taken, held, .. } = &mut self.addresses;
        let Some((pool, set)) = held.get(&claim) else { return };
        taken.extend(Addresses::each(set).map(|address| ((*pool, address), claim)));
    }

    fn liars_addresses(&self, pool: PoolId) -> Intervals {
        if self.liar.is_none() {
            return Intervals::default();
        }
        if self.has_liar(pool.entry.author) {
            return Intervals::full();
        }
        if self.pools.get(&pool).is_some_and(|pool| pool.confirmed) {
            return Intervals::default();
        }
        let granted = self.addresses.granted.iter().filter(|((of, to), _)| *of == pool && self.has_liar(*to));
        granted.fold(Intervals::default(), |all, (_, set)| all.union(set))
    }
}

/// Whether the addresses of a pool are each in one place: free in one account, claimed, or burnt.
pub(super) fn is_conserved(pool: &Pool) -> bool {
    if pool.is_forked || pool.minted.addresses().is_empty() {
        return true;
    }
    let parts = pool.accounts().map(|(_, free)| free).chain([pool.claimed.clone(), pool.burnt.clone()]);
    let sum = parts.into_iter().try_fold(Amount::default(), |sum, part| sum.checked_add(&part));
    sum.is_some_and(|sum| sum == pool.minted)
}
