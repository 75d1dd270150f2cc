//! What is promised of a cloud with one member that lies (`DESIGN.md`, rule `authority`): it promises no more than it was
//! given, nothing of it in pools that are confirmed, and the others agree.
//!
//! From its fork on, nothing that the liar signs is believed here either. What it held then, claims included, and what it is
//! given later, is its **share**: by so much the claims of all others may exceed a pool that is not confirmed, since the liar may
//! have given all of it to two of them. Whose heir it is, their claims and rights it has too.

use std::collections::{BTreeMap, BTreeSet};

use luc_engine::entry::{Entry, Hash, LedgerOp};
use luc_engine::id::{ClaimId, PoolId, ReplicaId};
use luc_engine::retire::Retired;
use luc_engine::view::View;

use super::{Broken, Checked, Rule, Rules, Vector, add, vector};

/// A member that lies.
#[derive(Debug)]
pub(super) struct Liar {
    replica: ReplicaId,
    /// Its processes.
    nodes: BTreeSet<usize>,
    /// Its last entry before it forked.
    last: u64,
    share: BTreeMap<PoolId, Vector>,
    /// Whose heir it is, or was.
    heir_of: BTreeSet<ReplicaId>,
    /// Entries that nobody may take.
    lies: BTreeSet<Hash>,
}

impl Rules {
    /// From now on this member lies, by two processes, which know of these retirements.
    pub fn lies(&mut self, replica: ReplicaId, nodes: [usize; 2], retired: &Retired) {
        let Some(own) = self.nodes.get(nodes[0]) else { return };
        let mut share: BTreeMap<PoolId, Vector> = BTreeMap::new();
        for ((_, pool), free) in own.accounts.iter().filter(|((of, _), _)| *of == replica) {
            add(share.entry(*pool).or_default(), *free, 1);
        }
        let on_its_way = self.entries.values().filter(|known| known.counts && !own.holds(known.entry.id()));
        for op in on_its_way.flat_map(|known| &known.entry.header.ledger) {
            if let LedgerOp::Grant { pool, to, amount } = op
                && *to == replica
            {
                add(share.entry(*pool).or_default(), vector(amount), 1);
            }
        }
        let last = own.number(replica);
        self.index.insert(replica, nodes[0]);
        self.liar =
            Some(Liar { replica, nodes: nodes.into(), last, share, heir_of: BTreeSet::new(), lies: BTreeSet::new() });
        self.leave_to_liar(replica);
        self.inherits(nodes[0], retired);
    }

    /// Whoever's heir the liar is, by what a node knows: what they had is the liar's.
    pub(super) fn inherits(&mut self, node: usize, retired: &Retired) {
        let Some(liar) = &self.liar else { return };
        let is_its = |of: &ReplicaId| retired.heir(*of) == Some(liar.replica) && !liar.heir_of.contains(of);
        for of in retired.replicas().filter(is_its).collect::<Vec<_>>() {
            let known = self.nodes.get(node).into_iter().flat_map(|tracker| &tracker.accounts);
            let left: Vec<_> = known.filter(|((whose, _), _)| *whose == of).map(|((_, pool), n)| (*pool, *n)).collect();
            if let Some(liar) = &mut self.liar {
                liar.heir_of.insert(of);
                left.into_iter().for_each(|(pool, free)| add(liar.share.entry(pool).or_default(), free, 1));
            }
            self.leave_to_liar(of);
        }
    }

    /// A member's claims are the liar's to release, by entries that are not believed here.
    fn leave_to_liar(&mut self, of: ReplicaId) {
        let Some(liar) = &mut self.liar else { return };
        for (_, row) in self.claims.iter_mut().filter(|(id, _)| id.entry.author == of) {
            if std::mem::replace(&mut row.counts, false) && !row.released {
                add(&mut self.pools.entry(row.pool).or_default().live, row.amount, -1);
                add(liar.share.entry(row.pool).or_default(), row.amount, 1);
            }
        }
        self.free_liars_addresses(of);
    }

    /// The liar has signed this. Nobody may take it.
    pub fn lie(&mut self, entry: &Entry) {
        if let Some(liar) = &mut self.liar {
            liar.lies.insert(entry.hash());
        }
    }

    /// A node has its state from the liar, who left something out.
    pub fn deceived(&mut self, node: usize) {
        self.deceived.insert(node);
    }

    /// It has an honest one's.
    pub fn undeceived(&mut self, node: usize) {
        self.deceived.remove(&node);
    }

    /// Whether nothing that a process shows is believed: it is the liar's, or was deceived by it.
    pub(super) fn is_liar(&self, node: usize) -> bool {
        self.liar.as_ref().is_some_and(|liar| liar.nodes.contains(&node)) || self.deceived.contains(&node)
    }

    /// Whether a log is the liar's: the one that forked, or a branch of it.
    #[must_use]
    pub fn is_liars(&self, log: ReplicaId) -> bool {
        self.liar.as_ref().is_some_and(|liar| liar.replica == log || !self.index.contains_key(&log))
    }

    /// Whether what this member had is the liar's: its own, or that of one whose heir it is.
    pub(super) fn has_liar(&self, of: ReplicaId) -> bool {
        self.is_liars(of) || self.liar.as_ref().is_some_and(|liar| liar.heir_of.contains(&of))
    }

    /// Whether an entry was signed after the fork.
    pub(super) fn is_forked(&self, entry: &Entry) -> bool {
        self.liar.as_ref().is_some_and(|liar| liar.replica == entry.header.author && entry.header.number > liar.last)
    }

    /// An honest node has taken an entry of the liar's.
    pub(super) fn took_from_liar(&mut self, node: usize, entry: &Entry) -> Checked {
        if self.liar.as_ref().is_some_and(|liar| liar.lies.contains(&entry.hash())) {
            let how = format!("node {node} has taken a lie: {:?} {:?}", entry.id(), entry.header);
            return Err(Broken::new(Rule::Authority, how));
        }
        for op in &entry.header.ledger {
            if let LedgerOp::DeclareDead { pool, .. } = op {
                self.pools.entry(*pool).or_default().dead.insert(entry.id());
            }
        }
        Ok(())
    }

    /// Whether a pool was made by the liar after its fork: it is worth what the liar wants.
    pub(super) fn is_liars_pool(&self, pool: PoolId) -> bool {
        let after =
            self.liar.as_ref().is_some_and(|liar| liar.replica != pool.entry.author || pool.entry.number > liar.last);
        self.is_liars(pool.entry.author) && after
    }

    /// Whether a claim is the liar's, or on a pool that the liar made after its fork.
    pub(super) fn is_unreckoned(&self, claim: ClaimId) -> bool {
        self.has_liar(claim.entry.author) || (self.liar.is_some() && !self.claims.contains_key(&claim))
    }

    /// An honest member has granted rights.
    pub(super) fn gave(&mut self, pool: PoolId, to: ReplicaId, amount: Vector) {
        if let Some(liar) = self.liar.as_mut().filter(|liar| liar.replica == to || liar.heir_of.contains(&to)) {
            add(liar.share.entry(pool).or_default(), amount, 1);
        }
    }

    /// By how much the claims of all others may exceed a pool: none if it is confirmed, any amount if the liar mints into it.
    pub(super) fn leeway(&self, pool: PoolId) -> Option<Vector> {
        let Some(liar) = &self.liar else { return Some(Vector::default()) };
        let row = self.pools.get(&pool);
        match row.is_some_and(|row| row.confirmed) {
            _ if self.has_liar(pool.entry.author) => None,
            true => Some(Vector::default()),
            false => Some(liar.share.get(&pool).copied().unwrap_or_default()),
        }
    }

    /// What a view shows as promised twice is at most what the liar had.
    pub(super) fn check_overdraft(&self, node: usize, view: &View, id: PoolId) -> Checked {
        let Some(liar) = &self.liar else { return Ok(()) };
        let Some(pool) = view.ledger().pool(id).filter(|_| !self.has_liar(id.entry.author)) else { return Ok(()) };
        let (owed, share) = (vector(&pool.overdraft()), liar.share.get(&id).copied().unwrap_or_default());
        if owed.iter().zip(share).any(|(owed, share)| *owed > share) {
            let how = format!("node {node}: pool {id} is overdrawn by {owed:?}, and the liar had {share:?}");
            return Err(Broken::new(Rule::NoDoubleBooking, how));
        }
        Ok(())
    }

    /// What honest members have claimed of a pool, as a view shows it.
    pub(super) fn honest_claims(&self, view: &View) -> BTreeMap<PoolId, Vector> {
        let mut all: BTreeMap<PoolId, Vector> = BTreeMap::new();
        let honest = |(id, _): &(&ClaimId, &luc_engine::ledger::Claim)| !self.has_liar(id.entry.author);
        for (_, claim) in view.ledger().claims().filter(honest) {
            add(all.entry(claim.pool).or_default(), vector(&claim.amount), 1);
        }
        all
    }

    /// Who was seen to fork is retired by its own proof.
    pub(super) fn check_retired(&self, node: usize, view: &View) -> Checked {
        let Some(liar) = &self.liar else { return Ok(()) };
        if view.branches().is_forked(liar.replica) && !view.retired().contains(liar.replica) {
            let how =
                format!("node {node} holds two branches of {}, which is no member's to write any more", liar.replica);
            return Err(Broken::new(Rule::Convergence, how));
        }
        Ok(())
    }
}
