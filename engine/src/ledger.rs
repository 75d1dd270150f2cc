//! Ledgers: what can run out, spent without asking anyone (`PROTOCOL.md`, A1–A5).
//!
//! A pool's rights are shares that exactly one replica may spend. Rights are minted by the pool's root, move by
//! grants, are spent by claims and come back by releases. An **account** (one pool, one replica) is a function of its
//! owner's own chain and of the grants to it that the owner's frontier covers; it never goes below zero. So every
//! judge computes the same account for an entry, whatever else it holds, and no claim needs a message: the sum of all
//! accounts and live claims is what was minted, minus what was burnt.
//!
//! Addresses are the same, with sets for numbers ([`Amount`]): a right to an address is that address, in one account at a
//! time. What a pool once had is never minted into it again, not even what was burnt: a judge that has not seen who
//! burnt it would count it twice.
//!
//! The source is the escrow method (O'Neil 1986) in its replicated form, the bounded counter of Balegas et al.,
//! "Extending Eventually Consistent Cloud Databases for Enforcing Numeric Invariants" (2015), with vectors for numbers
//! and signed entries for messages.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::account::Debt;
pub use crate::account::{Pool, Waiting};
pub use crate::amount::{Amount, BadAmount, Dimension};
use crate::branch::{Rename, Renaming};
use crate::entry::{Frontier, LedgerOp, Subject};
use crate::hosts::Death;
use crate::id::{ClaimId, EntryId, HostId, PoolId, ReplicaId};
use crate::mutant::{Mutant, on};
use crate::record::{Kind, RecordId};
use crate::retire::{Retired, VOTES};

/// A right that has been spent on one record.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Claim {
    /// The pool.
    pub pool: PoolId,
    /// How much.
    pub amount: Amount,
    /// What for.
    pub record: RecordId,
    /// Placement epoch, for claims on hosts.
    pub epoch: u64,
    /// Entries that hold the agent's statement that its domain is gone and will never be started for this claim (A3).
    pub gone: Vec<EntryId>,
}

impl Rename for Claim {
    fn rename(&mut self, by: &Renaming) {
        self.pool.rename(by);
        self.gone.rename(by);
        self.gone.sort_unstable();
    }
}

/// Why a change of a ledger is void. Nothing of its entry is applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLedgerOp {
    /// A pool that the author cannot have seen.
    #[error("pool {0} is not in the entry's past")]
    UnknownPool(PoolId),
    /// Only the root mints, and countersigns grants of a confirmed pool.
    #[error("only the root of pool {0} can do that, and only in a confirmed pool countersign")]
    NotRoot(PoolId),
    /// The author does not hold that much (rule `authority`).
    #[error("the author holds {held} of pool {pool}, not {wanted}")]
    NotHeld {
        /// The pool.
        pool: PoolId,
        /// What its account has.
        held: Amount,
        /// What the operation needs.
        wanted: Amount,
    },
    /// Claims, releases and grants of nothing are noise.
    #[error("an operation on pool {0} moves nothing")]
    Nothing(PoolId),
    /// More than can be counted, or an address that the pool has or had.
    #[error("pool {0} would overflow, or have an address twice")]
    Overflow(PoolId),
    /// Numbers for a pool of addresses, or addresses for one of numbers.
    #[error("pool {0} does not hold what the operation moves: it is either of numbers or of addresses")]
    WrongKind(PoolId),
    /// Too many intervals: [`MAX_INTERVALS`] in one operation, [`MAX_FREE_INTERVALS`] in the author's account.
    #[error("an operation on pool {0} is, or leaves its author's account, in too many pieces")]
    Fragmented(PoolId),
    /// What is countersigned is in the past of who does it.
    #[error("the grant of entry {0} is not in the entry's past")]
    UnknownGrant(EntryId),
    /// Grants go to members only.
    #[error("a grant of pool {pool} goes to {to}, which is no member in the entry's past")]
    NotMember {
        /// The pool.
        pool: PoolId,
        /// To whom.
        to: ReplicaId,
    },
    /// Only its heir inherits from a replica, and only once it is retired in the entry's past.
    #[error("the author is not the heir of {from}, or that is not retired in the entry's past (pool {pool})")]
    NotHeir {
        /// The pool.
        pool: PoolId,
        /// From whom.
        from: ReplicaId,
    },
    /// Only its holder releases a claim, once.
    #[error("claim {0} is not the author's, or was released before")]
    NotHolder(ClaimId),
    /// A host claim is released with its agent's statement only, or once its host was declared dead (A3).
    #[error("claim {0} has no statement of its host's agent in the entry's past, and its host was not declared dead")]
    NoEvidence(ClaimId),
    /// Nothing is claimed of a host that was declared dead (S5).
    #[error("the host of pool {0} was declared dead in the entry's past")]
    Dead(PoolId),
    /// A branch of a log that forked spends more than its author ever had: none that was judged where it was written does (M3).
    /// Not wrong, but not taken either: what was granted to its author may not be known here yet.
    #[error("a branch of its author's log spends more of pool {0} than the author is known to have had")]
    Overspent(PoolId),
    /// What the pool is for was deleted: only claims are released.
    #[error("what pool {0} is for was deleted in the entry's past")]
    Closed(PoolId),
    /// Only hosts die.
    #[error("pool {0} is not a host's")]
    NotHost(PoolId),
}

/// Most intervals in one operation: what a hostile one costs is bounded.
pub const MAX_INTERVALS: usize = 1_024;
/// Most intervals that an operation may leave free in its author's account. It costs about so many additions to spend from
/// it; an honest replica comes nowhere near, since neighbours merge.
pub const MAX_FREE_INTERVALS: usize = 16_384;

/// All pools and live claims. A persistent value: a clone is cheap and independent.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    // Behind a pointer: a persistent map copies a node of dozens for every change.
    pools: OrdMap<PoolId, Arc<Pool>>,
    claims: OrdMap<ClaimId, Arc<Claim>>,
    votes: Option<PoolId>,
    quota_pools: OrdMap<Uuid, Vector<PoolId>>,
    host_pools: OrdMap<HostId, Vector<PoolId>>,
    group_pools: OrdMap<(Uuid, Option<HostId>), Vector<PoolId>>,
    address_pools: OrdMap<RecordId, Vector<PoolId>>,
    claims_by_record: OrdMap<(RecordId, ClaimId), ()>,
    claims_by_host: OrdMap<(HostId, ClaimId), ()>,
    /// Grants in confirmed pools that nobody has countersigned.
    waiting: OrdSet<Waiting>,
}

/// Where the claims of one record or host begin in an index.
const LOWEST_CLAIM: ClaimId = ClaimId { entry: EntryId { author: ReplicaId(Uuid::nil()), number: 0 }, index: 0 };

/// Which rows of the ledger an operation changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    /// A pool or one of its accounts.
    Pool(PoolId),
    /// A claim: made, released, or stated gone.
    Claim(ClaimId),
}

/// Who wrote an entry, and what it had seen, itself included.
#[derive(Clone, Copy)]
pub struct Judged<'a> {
    /// The entry.
    pub entry: EntryId,
    /// Who wrote it.
    pub author: ReplicaId,
    /// Its author has forked: what each branch spends was covered where it was written, and is not judged by what all of
    /// them have spent together (M3).
    pub is_forked: bool,
    /// Its author's full frontier, this entry included.
    pub frontier: &'a Frontier,
    /// Whether a replica is a member in the entry's past.
    pub is_member: &'a dyn Fn(ReplicaId) -> bool,
    /// Who is retired in the entry's past, and who inherits.
    pub retired: &'a Retired,
}

impl Ledger {
    /// A pool.
    #[must_use]
    pub fn pool(&self, id: PoolId) -> Option<&Pool> {
        self.pools.get(&id).map(|pool| &**pool)
    }

    /// A pool, to be kept as it is now.
    pub(crate) fn pool_now(&self, id: PoolId) -> Option<Arc<Pool>> {
        self.pools.get(&id).cloned()
    }

    /// The simulator's replicas hold equal pools once.
    #[cfg(feature = "memo")]
    pub(crate) fn share_pool(&mut self, id: PoolId) {
        if let Some(pool) = self.pools.get_mut(&id) {
            *pool = crate::memo::pool(id, pool.clone());
        }
    }

    /// A claim, to be kept as it is now.
    pub(crate) fn claim_now(&self, id: ClaimId) -> Option<Arc<Claim>> {
        self.claims.get(&id).cloned()
    }

    /// All pools, in order of their ids.
    pub fn pools(&self) -> impl Iterator<Item = (&PoolId, &Pool)> {
        self.pools.iter().map(|(id, pool)| (id, &**pool))
    }

    /// A live claim.
    #[must_use]
    pub fn claim(&self, id: ClaimId) -> Option<&Claim> {
        self.claims.get(&id).map(|claim| &**claim)
    }

    /// All live claims.
    pub fn claims(&self) -> impl Iterator<Item = (&ClaimId, &Claim)> {
        self.claims.iter().map(|(id, claim)| (id, &**claim))
    }

    /// The votes of one that is not retired at `past`, with its parts of those of the retired, taken or not.
    pub(crate) fn votes_of(&self, replica: ReplicaId, retired: &Retired, past: &Frontier) -> u64 {
        let Some((_, pool)) = self.votes() else { return 0 };
        let parts = retired.replicas().map(|from| pool.part(replica, from, retired, past));
        let parts = parts.fold(Amount::default(), |sum, part| sum.saturating_add(&part));
        pool.held(replica, past).saturating_add(&parts).get(Dimension::Votes)
    }

    /// How many votes count at `past`: all but what is left of those of the retired, which is no less in a larger past.
    pub(crate) fn votes_left(&self, retired: &Retired, past: &Frontier) -> u64 {
        let Some((_, pool)) = self.votes() else { return 0 };
        let left = retired.replicas().map(|from| pool.left(from, retired, past).get(Dimension::Votes));
        VOTES.saturating_sub(left.sum())
    }

    /// The pool of votes on retirements.
    #[must_use]
    pub fn votes(&self) -> Option<(PoolId, &Pool)> {
        self.votes.and_then(|id| Some((id, self.pool(id)?)))
    }

    /// The pools of a project's quota. More than one only if two sites made them apart (A2): they count together.
    pub fn quota_pools(&self, project: Uuid) -> impl Iterator<Item = (PoolId, &Pool)> {
        pools_of(&self.pools, self.quota_pools.get(&project))
    }

    /// The pools of a host.
    pub fn host_pools(&self, host: HostId) -> impl Iterator<Item = (PoolId, &Pool)> {
        pools_of(&self.pools, self.host_pools.get(&host))
    }

    /// The pools of the right to place members of a server group: on a host (anti-affinity), or at all (affinity).
    pub fn group_pools(&self, group: Uuid, host: Option<HostId>) -> impl Iterator<Item = (PoolId, &Pool)> {
        pools_of(&self.pools, self.group_pools.get(&(group, host)))
    }

    /// The pools that call themselves those of a record's addresses; [`crate::view::View::address_pool`] says which is.
    pub fn address_pools(&self, of: RecordId) -> impl Iterator<Item = (PoolId, &Pool)> {
        pools_of(&self.pools, self.address_pools.get(&of))
    }

    /// The pools that are closed by the deletion of a record.
    pub fn pools_for(&self, record: RecordId) -> impl Iterator<Item = (PoolId, &Pool)> {
        let quota = self.quota_pools.get(&record.id).filter(|_| record.kind == Kind::Project);
        let groups = self.group_pools.range((record.id, None)..);
        let groups = groups.take_while(move |((group, _), _)| record.kind == Kind::ServerGroup && *group == record.id);
        let ids = quota.into_iter().chain(groups.map(|(_, ids)| ids)).chain(self.address_pools.get(&record));
        ids.flatten().filter_map(|id| self.pool(*id).map(|pool| (*id, pool)))
    }

    /// The grants of confirmed pools that wait for the word of their pools' roots.
    pub fn waiting(&self) -> impl Iterator<Item = &Waiting> {
        self.waiting.iter()
    }

    /// Every host that has a pool.
    pub fn hosts(&self) -> impl Iterator<Item = HostId> + '_ {
        self.host_pools.keys().copied()
    }

    /// The live claims of a record.
    pub fn claims_of(&self, record: RecordId) -> impl Iterator<Item = (ClaimId, &Claim)> {
        let ids = self.claims_by_record.range((record, LOWEST_CLAIM)..).map(|(key, ())| *key);
        let ids = ids.take_while(move |(r, _)| *r == record);
        ids.filter_map(|(_, id)| self.claim(id).map(|claim| (id, claim)))
    }

    /// The live claims on a host.
    pub fn claims_on(&self, host: HostId) -> impl Iterator<Item = (ClaimId, &Claim)> {
        let ids = self
            .claims_by_host
            .range((host, LOWEST_CLAIM)..)
            .map(|(key, ())| *key)
            .take_while(move |(h, _)| *h == host);
        ids.filter_map(|(_, id)| self.claim(id).map(|claim| (id, claim)))
    }

    /// Whether a claim is on a host that was declared dead.
    #[must_use]
    pub fn is_on_dead_host(&self, claim: &Claim) -> bool {
        self.pools.get(&claim.pool).is_some_and(|pool| !pool.dead.is_empty())
    }

    /// The host that a claim is on, if it is on one.
    #[must_use]
    pub fn host_of(&self, claim: &Claim) -> Option<HostId> {
        match &self.pools.get(&claim.pool)?.subject {
            Subject::Host(host) => Some(host.host),
            Subject::Quota { .. } | Subject::Group { .. } | Subject::Addresses { .. } | Subject::Votes => None,
        }
    }

    /// Whether rights and claims add up: minted + overdraft = free + claimed + burnt, in every dimension of every pool. Holds at
    /// every causally closed set of entries (rule `conservation`).
    #[must_use]
    pub fn is_conserved(&self) -> bool {
        self.pools.values().all(|pool| pool.is_conserved())
    }

    /// Applies one operation of an entry, in its order. On an error the ledger may have been changed by earlier
    /// operations: the caller drops this clone.
    ///
    /// # Errors
    /// [`BadLedgerOp`], judged at the entry's own past: every replica gives the same answer (E3).
    pub fn apply(&mut self, judged: Judged<'_>, index: u32, op: &LedgerOp) -> Result<Touched, BadLedgerOp> {
        let author = judged.author;
        match op {
            LedgerOp::Mint { subject, amount, confirmed } => {
                let id = PoolId { entry: judged.entry, index };
                check_kind(id, subject, amount)?;
                self.insert_pool(id, Pool::mint(author, subject.clone(), amount.clone(), *confirmed));
                Ok(Touched::Pool(id))
            }
            LedgerOp::Grow { pool: id, amount } => {
                let pool = self.pool_mut(judged, *id)?;
                if !judged.retired.acts_for(author, id.entry.author) && !on(Mutant::RootUnchecked) {
                    return Err(BadLedgerOp::NotRoot(*id));
                }
                check_kind(*id, &pool.subject, amount)?;
                pool.grow(author, *id, amount)?;
                Ok(Touched::Pool(*id))
            }
            LedgerOp::Burn { pool: id, amount } => {
                let pool = self.spend(judged, *id, amount)?;
                pool.burnt = pool.burnt.saturating_add(amount);
                Ok(Touched::Pool(*id))
            }
            LedgerOp::Grant { pool: id, to, amount } => {
                if !(judged.is_member)(*to) || *to == author {
                    return Err(BadLedgerOp::NotMember { pool: *id, to: *to });
                }
                let by_root = judged.retired.acts_for(author, id.entry.author) || on(Mutant::ConfirmIgnored);
                let pool = self.spend(judged, *id, amount)?;
                pool.grant(*to, judged.entry, index, amount.clone(), by_root);
                if on(Mutant::TransferTwice) {
                    pool.grant(*to, judged.entry, index, amount.clone(), by_root);
                }
                if pool.confirmed && !by_root {
                    self.waiting.insert(Waiting { pool: *id, to: *to, grant: judged.entry, index });
                }
                Ok(Touched::Pool(*id))
            }
            LedgerOp::Confirm { pool: id, to, grant, index } => {
                let granted = Waiting { pool: *id, to: *to, grant: *grant, index: *index };
                self.confirm(judged, granted).map(|()| Touched::Pool(*id))
            }
            LedgerOp::Claim { pool: id, amount, record, epoch } => {
                let pool = self.spend(judged, *id, amount)?;
                if pool.is_dead_at(judged.frontier) && !on(Mutant::DeadHostSpent) {
                    return Err(BadLedgerOp::Dead(*id));
                }
                pool.claim(amount);
                let claim = ClaimId { entry: judged.entry, index };
                let row = Claim { pool: *id, amount: amount.clone(), record: *record, epoch: *epoch, gone: Vec::new() };
                self.insert_claim(claim, row);
                Ok(Touched::Claim(claim))
            }
            LedgerOp::DeclareDead { pool: id, at, by } => {
                let pool = self.pool_mut(judged, *id)?;
                if !matches!(pool.subject, Subject::Host(_)) {
                    return Err(BadLedgerOp::NotHost(*id));
                }
                pool.dead.push(Death { entry: judged.entry, at: *at, by: *by });
                pool.dead.sort_unstable();
                pool.dead.dedup();
                Ok(Touched::Pool(*id))
            }
            LedgerOp::Inherit { pool, from } => self.inherit(judged, *pool, *from).map(|()| Touched::Pool(*pool)),
            LedgerOp::Release { claim } => self.release(judged, *claim).map(|()| Touched::Claim(*claim)),
        }
    }

    /// Notes that `entry` holds the agent's statement for a claim. Void for claims that are settled.
    pub fn note_gone(&mut self, claim: ClaimId, entry: EntryId) {
        if let Some(row) = self.claims.get_mut(&claim).map(Arc::make_mut)
            && !row.gone.contains(&entry)
        {
            row.gone.push(entry);
            row.gone.sort_unstable();
        }
    }

    /// Puts a stored pool back.
    pub fn insert_pool(&mut self, id: PoolId, pool: Pool) {
        match &pool.subject {
            Subject::Host(host) => insert_sorted(self.host_pools.entry(host.host).or_default(), id),
            Subject::Quota { project } => insert_sorted(self.quota_pools.entry(*project).or_default(), id),
            Subject::Votes => self.votes = Some(id),
            Subject::Group { group, host } => insert_sorted(self.group_pools.entry((*group, *host)).or_default(), id),
            Subject::Addresses { of } => insert_sorted(self.address_pools.entry(*of).or_default(), id),
        }
        self.waiting.extend(pool.waiting(id));
        self.pools.insert(id, Arc::new(pool));
    }

    /// Puts a stored claim back. Its pool must be there.
    pub fn insert_claim(&mut self, id: ClaimId, claim: Claim) {
        if let Some(host) = self.host_of(&claim) {
            self.claims_by_host.insert((host, id), ());
        }
        self.claims_by_record.insert((claim.record, id), ());
        self.claims.insert(id, Arc::new(claim));
    }

    /// Notes that an owner has forked, or earlier than was known: each of its branches is held to what it had. `given` is what the
    /// branch that is held here has given away and burnt since, up to the fork that was the earliest; none if that cannot be told.
    /// `is_its` says whose claims it holds.
    pub(crate) fn fork(
        &mut self,
        owner: ReplicaId,
        given: Option<&BTreeMap<PoolId, Amount>>,
        is_its: &dyn Fn(ReplicaId) -> bool,
    ) {
        let mut claimed: BTreeMap<PoolId, Amount> = BTreeMap::new();
        for (_, claim) in self.claims.iter().filter(|(id, _)| is_its(id.entry.author)) {
            let sum = claimed.entry(claim.pool).or_default();
            *sum = sum.saturating_add(&claim.amount);
        }
        let none = Amount::default();
        let ids: Vec<PoolId> = self.pools.keys().copied().collect();
        for id in ids {
            if let Some(pool) = self.pools.get_mut(&id).map(Arc::make_mut) {
                let given = given.map(|given| given.get(&id).unwrap_or(&none));
                pool.fork(owner, claimed.get(&id).unwrap_or(&none), given);
            }
        }
    }

    /// Forgets a pool that nobody will name any more.
    pub(crate) fn remove_pool(&mut self, id: PoolId) {
        let Some(pool) = self.pools.remove(&id) else { return };
        for granted in pool.waiting(id) {
            self.waiting.remove(&granted);
        }
        match &pool.subject {
            Subject::Host(host) => remove_sorted(&mut self.host_pools, &host.host, id),
            Subject::Quota { project } => remove_sorted(&mut self.quota_pools, project, id),
            Subject::Votes => self.votes = self.votes.filter(|votes| *votes != id),
            Subject::Group { group, host } => remove_sorted(&mut self.group_pools, &(*group, *host), id),
            Subject::Addresses { of } => remove_sorted(&mut self.address_pools, of, id),
        }
    }

    /// Notes that a pool was minted by somebody who had seen the deletion of what it is for.
    pub(crate) fn note_late(&mut self, id: PoolId) {
        if let Some(pool) = self.pools.get_mut(&id) {
            Arc::make_mut(pool).late = true;
        }
    }

    /// Takes up the grants that their receivers have said to have seen. Gives the pools that have changed.
    pub(crate) fn fold_grants<'a>(
        &mut self,
        said: &dyn Fn(ReplicaId) -> Option<&'a Frontier>,
        all_have: &dyn Fn(EntryId) -> bool,
    ) -> Vec<PoolId> {
        let folded = self.pools.iter().filter_map(|(id, pool)| Some((*id, Arc::new(pool.folded(said, all_have)?))));
        let changed: Vec<_> = folded.collect();
        let ids = changed.iter().map(|(id, _)| *id).collect();
        self.pools.extend(changed);
        ids
    }

    /// Takes free rights from the author's account, after the grants that its frontier covers.
    fn spend(&mut self, judged: Judged<'_>, id: PoolId, amount: &Amount) -> Result<&mut Pool, BadLedgerOp> {
        if amount.is_zero() {
            return Err(BadLedgerOp::Nothing(id));
        }
        let pool = self.pool_mut(judged, id)?;
        check_kind(id, &pool.subject, amount)?;
        pool.settle(judged.author, judged.entry, judged.frontier);
        if judged.is_forked {
            pool.overdraw(judged.author, judged.entry.author, id, amount)?;
        } else {
            pool.take(judged.author, id, amount)?;
        }
        pool.note_spent(judged.author, judged.entry, amount);
        Ok(pool)
    }

    /// Countersigns a grant of a confirmed pool. A grant that is not there, or settled, or confirmed before makes it void:
    /// which of these it is depends on what is held (E3).
    fn confirm(&mut self, judged: Judged<'_>, granted: Waiting) -> Result<(), BadLedgerOp> {
        let acts = judged.retired.acts_for(judged.author, granted.pool.entry.author);
        let pool = self.pool_mut(judged, granted.pool)?;
        if !acts || !pool.confirmed {
            return Err(BadLedgerOp::NotRoot(granted.pool));
        }
        if !judged.frontier.holds(granted.grant) {
            return Err(BadLedgerOp::UnknownGrant(granted.grant));
        }
        pool.confirm(granted, judged.entry, judged.frontier);
        self.waiting.remove(&granted);
        Ok(())
    }

    fn release(&mut self, judged: Judged<'_>, id: ClaimId) -> Result<(), BadLedgerOp> {
        let acts = judged.retired.acts_for(judged.author, id.entry.author) || on(Mutant::ReleaseByAnybody);
        if judged.is_forked && !self.claims.contains_key(&id) {
            // Another branch has released it.
            return Ok(());
        }
        let Some(claim) = self.claims.get(&id).filter(|_| acts).cloned() else {
            return Err(BadLedgerOp::NotHolder(id));
        };
        let host = self.host_of(&claim);
        let is_dead = |claim: &Claim| self.pools.get(&claim.pool).is_some_and(|pool| pool.is_dead_at(judged.frontier));
        let stated = |claim: &Claim| claim.gone.iter().any(|entry| judged.frontier.holds(*entry));
        let buried = |claim: &Claim| on(Mutant::RetiredHostDead) && judged.retired.contains(claim.pool.entry.author);
        let has_evidence = |claim: &Claim| stated(claim) || is_dead(claim) || buried(claim);
        // The right to be on a host goes with the claim on it: of the same entry, so that all judges see the same.
        let in_group = self.pools.get(&claim.pool).is_some_and(|pool| matches!(pool.subject, Subject::Group { .. }));
        let stays = |(other, claim): (ClaimId, &Claim)| {
            other.entry == id.entry && self.host_of(claim).is_some() && !has_evidence(claim)
        };
        if (host.is_some() && !has_evidence(&claim) && !on(Mutant::ReleaseWithoutWord))
            || (in_group && self.claims_of(claim.record).any(stays))
        {
            return Err(BadLedgerOp::NoEvidence(id));
        }
        let pool = self.pool_mut(judged, claim.pool)?;
        pool.unclaim(&claim.amount);
        pool.add(judged.author, claim.pool, &claim.amount)?;
        if judged.is_forked && id.entry.author == judged.entry.author {
            pool.unspend(judged.author, judged.entry.author, &claim.amount);
        }
        if on(Mutant::ReleaseTwice) {
            pool.add(judged.author, claim.pool, &claim.amount)?;
        }
        self.claims.remove(&id);
        if let Some(host) = host {
            self.claims_by_host.remove(&(host, id));
        }
        self.claims_by_record.remove(&(claim.record, id));
        Ok(())
    }

    /// Moves what a retired replica held: all of its chain that counts is in the past of everybody who knows of its
    /// retirement, so all judges move the same. What is granted to it later waits for the next time.
    fn inherit(&mut self, judged: Judged<'_>, id: PoolId, from: ReplicaId) -> Result<(), BadLedgerOp> {
        let author = judged.author;
        let is_votes = self.votes == Some(id);
        let is_heir = if is_votes {
            judged.retired.stayed(from).is_some_and(|stayed| stayed.contains(&author))
        } else {
            judged.retired.heir(from) == Some(author)
        };
        if !is_heir {
            return Err(BadLedgerOp::NotHeir { pool: id, from });
        }
        let pool = self.pool_mut(judged, id)?;
        let (amount, debt) = if is_votes {
            let part = pool.take_part(author, from, judged.retired, judged.frontier, judged.entry);
            (part, Debt::default())
        } else {
            pool.take_all(from, judged.frontier)
        };
        if amount.is_zero() && debt.is_zero() && !judged.is_forked {
            return Err(BadLedgerOp::Nothing(id));
        }
        pool.owe(author, debt);
        pool.credit(author, &amount);
        pool.add(author, id, &amount)
    }

    fn pool_mut(&mut self, judged: Judged<'_>, id: PoolId) -> Result<&mut Pool, BadLedgerOp> {
        let seen = judged.frontier.holds(id.entry);
        self.pools.get_mut(&id).filter(|_| seen).map(Arc::make_mut).ok_or(BadLedgerOp::UnknownPool(id))
    }
}

/// Whether an amount is of what a pool of `subject` holds, and not in too many pieces.
fn check_kind(id: PoolId, subject: &Subject, amount: &Amount) -> Result<(), BadLedgerOp> {
    let named = matches!(subject, Subject::Addresses { .. });
    let wrong = if named { amount.iter().next().is_some() } else { !amount.addresses().is_empty() };
    // How many of any addresses is a wish, not a right.
    if wrong || amount.get(Dimension::Addresses) > 0 {
        return Err(BadLedgerOp::WrongKind(id));
    }
    if amount.addresses().pieces() > MAX_INTERVALS { Err(BadLedgerOp::Fragmented(id)) } else { Ok(()) }
}

fn pools_of<'a>(
    pools: &'a OrdMap<PoolId, Arc<Pool>>,
    ids: Option<&'a Vector<PoolId>>,
) -> impl Iterator<Item = (PoolId, &'a Pool)> {
    ids.into_iter().flatten().filter_map(|id| pools.get(id).map(|pool| (*id, &**pool)))
}

fn remove_sorted<K: Ord + Clone>(all: &mut OrdMap<K, Vector<PoolId>>, key: &K, id: PoolId) {
    let Some(mut ids) = all.remove(key) else { return };
    ids.retain(|other| *other != id);
    if !ids.is_empty() {
        all.insert(key.clone(), ids);
    }
}

fn insert_sorted<T: Ord + Copy>(ids: &mut Vector<T>, id: T) {
    if let Err(at) = ids.binary_search(&id) {
        ids.insert(at, id);
    }
}
