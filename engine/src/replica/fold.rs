//! Folding the log: what everybody holds leaves it (`PROTOCOL.md`, M5).
//!
//! **Who holds what is read from entries alone.** An entry's frontier is its author's signed word that its disk holds
//! what it names, given after everything that the author had written before; so the lowest of the frontiers of the
//! members' last entries is held by all of them, and by whomever they had admitted by then. Heard frontiers would move
//! sooner, but are forgotten by a restart and bind nobody. A member that takes much and writes nothing says so in an
//! entry of its own ([`MemberOp::Held`]). One that says that it holds more than it does hurts only itself.
//!
//! **Beyond a size** the log is dropped though members lack it, those first who lack most, as long as those who are left
//! have half of the votes and the founder, or more than half without one of them: so of two halves of a split at most one drops what the
//! other lacks, though a member that forks says to both that it holds what they have; and whoever then takes a snapshot has all of
//! its own log to replay on it ([`Replica::replace`]). *Else:* 0, 1, X and 2, 3, X of five, where X has forked: both drop what the
//! others lack, and neither can take the other's state.
//!
//! What is dropped leaves its hash and what it had seen behind, until no entry to come can name it: a frontier never
//! falls, so that is when everybody who may still write has named a later one. So if its author has forked there, and one who was
//! away rests on the other branch, the log can be split still. Each author's newest entry stays whole: it is what a replica is
//! shown that has lost it (M4).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Chain, Flushed, Replica, log_key, put_or_delete};
use crate::branch::Branch;
use crate::entry::{Entry, Frontier, Hash, MemberOp, Tip, encode};
use crate::id::{EntryId, Millis, ReplicaId};
use crate::mutant::{Mutant, on};
use crate::retire::is_majority;
use crate::store::{Batch, Reader, StoreError, Table};
use crate::tx::Refusal;
use crate::view::NameState;

/// Bytes of log beyond which what absent members lack is dropped too, unless a replica is told another number.
pub const LOG_BYTES: u64 = 256 << 20;
/// Entries after which the log is looked at again; and fewer, if it is too large.
const EVERY: usize = 512;
const OFTEN: usize = 32;
/// Entries that one commit drops at most.
const MOST: usize = 8192;
/// Entries of others after which a member says what it holds, and for every member so many more: all of them say it, and
/// that must not be a reason to say it again.
const UNSAID: u64 = 1024;
const UNSAID_EACH: u64 = 4;

/// What is left of an author's log here.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// No entry to come names an entry before this one.
    folded: u64,
    /// The first bytes of that one's hash.
    folded_hash: u64,
    /// The last entry that is in the log no more.
    dropped: u64,
    /// Bytes of the entries that are.
    bytes: u64,
}

impl Kept {
    pub(super) fn took(&mut self, entry: &Entry) {
        self.bytes += u64::try_from(entry.bytes().len()).unwrap_or(0);
    }

    /// Of a branch of this log that begins with this entry, and has these in its log.
    pub(crate) fn from<'a>(&self, first: u64, entries: impl Iterator<Item = &'a [u8]>) -> Self {
        let bytes = entries.map(|entry| u64::try_from(entry.len()).unwrap_or(0)).sum();
        Self { dropped: self.dropped.max(first - 1), bytes, ..Self::default() }
    }

    /// What is left of this log where a branch begins with this entry.
    pub(crate) fn before(&self, first: u64, branch: &Self) -> Self {
        Self { dropped: self.dropped.min(first - 1), bytes: self.bytes.saturating_sub(branch.bytes), ..*self }
    }

    /// No entry to come names an entry before this one.
    pub(crate) fn folded(&self) -> u64 {
        self.folded
    }

    /// The first bytes of the hash of an entry that is or was in this log, of whose rows it has these.
    pub(super) fn short_hash(
        &self,
        id: EntryId,
        row: impl Fn(Table) -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<Option<u64>, StoreError> {
        if id.number == self.folded {
            return Ok(Some(self.folded_hash));
        }
        let hash = if id.number <= self.dropped {
            row(Table::Dropped)?.and_then(|row| Left::read(&row)).map(|left| left.hash)
        } else {
            row(Table::Log)?.and_then(|bytes| Entry::hash_of(&bytes).ok())
        };
        Ok(hash.map(|hash| hash.short()))
    }

    /// The last entry that is in the log no more.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether every entry behind this number is in the log.
    pub(super) fn reaches(&self, number: u64) -> bool {
        self.dropped <= number
    }
}

/// What an entry leaves behind that is in the log no more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Left {
    pub(crate) hash: Hash,
    pub(crate) seen: Vec<(ReplicaId, Tip)>,
}

impl Left {
    pub(crate) fn of(entry: &Entry) -> Self {
        Self { hash: entry.hash(), seen: entry.header.seen.clone() }
    }

    fn read(row: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(row).ok()
    }
}

/// The short hashes of the last entries of a log: entries to come name one of these, nearly always.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recent {
    /// The first and the last that are known.
    from: u64,
    to: u64,
    /// By number, [`RECENT`] of them.
    hashes: Arc<Vec<u64>>,
}

/// See [`Recent`].
const RECENT: usize = 64;

impl Recent {
    pub(super) fn took(&mut self, tip: Tip) {
        if self.to + 1 != tip.number || self.hashes.is_empty() {
            self.from = tip.number;
        }
        self.to = tip.number;
        let hashes = Arc::make_mut(&mut self.hashes);
        let at = Self::at(tip.number);
        if hashes.len() <= at {
            hashes.resize(at + 1, 0);
        }
        if let Some(slot) = hashes.get_mut(at) {
            *slot = tip.hash;
        }
    }

    fn get(&self, number: u64) -> Option<u64> {
        let is_known = (self.from..=self.to).contains(&number) && self.to - number < RECENT as u64;
        if is_known { self.hashes.get(Self::at(number)).copied() } else { None }
    }

    fn at(number: u64) -> usize {
        usize::try_from(number % RECENT as u64).unwrap_or(0)
    }
}

/// When to fold next.
#[derive(Debug)]
pub(super) struct Folding {
    limit: u64,
    /// Entries since the log was folded, and since its size was looked at.
    since: usize,
    unlooked: usize,
    /// Bytes of others' entries since this replica wrote.
    unsaid: u64,
}

impl Default for Folding {
    fn default() -> Self {
        Self { limit: LOG_BYTES, since: 0, unlooked: 0, unsaid: 0 }
    }
}

impl Folding {
    pub(super) fn took(&mut self, own: bool, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(0);
        self.unsaid = if own { 0 } else { self.unsaid.saturating_add(bytes) };
    }
}

impl Chain {
    /// As it is stored.
    pub(super) fn row(&self, branch: Option<&Branch>) -> Vec<u8> {
        encode(&(self.last, &*self.frontier, self.kept, &*self.floor, branch))
    }
}

/// See [`Chain::row`].
pub(super) type ChainRow = (Hash, Frontier, Kept, Frontier, Option<Branch>);

impl Replica {
    /// From now on the log is dropped beyond so many bytes, though absent members lack it.
    pub fn limit_log(&mut self, bytes: u64) {
        self.folding.limit = bytes;
    }

    /// Bytes in the log, as entries travel.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.chains.values().map(|chain| chain.kept.bytes).sum()
    }

    /// What every member that takes part has said, in entries held here, that it holds: by author, the number.
    #[must_use]
    pub fn stable(&self) -> BTreeMap<ReplicaId, u64> {
        self.said_by(&self.who_takes_part())
    }

    /// Drops from the log, and from what is kept of it, what nobody needs any more. Says how many entries went. Nothing
    /// happens while something is not flushed.
    ///
    /// # Errors
    /// [`StoreError`]; then the replica must be opened anew from its store, as after a flush that fails.
    pub fn fold(&mut self) -> Result<usize, StoreError> {
        let folded = self.fold_what_is_stable();
        self.sound(folded)
    }

    fn fold_what_is_stable(&mut self) -> Result<usize, StoreError> {
        if !self.pending.entries.is_empty() || self.replaced.is_some() {
            return Ok(0);
        }
        let reader = self.store.reader()?;
        let nameable = self.said_by(&self.who_may_write());
        let kept = self.chains.iter().map(|(author, chain)| (*author, chain.kept)).collect();
        let mut dropping = Dropping { reader: &*reader, nameable: &nameable, kept, batch: Batch::default(), count: 0 };
        let mut holders = self.who_takes_part();
        dropping.drop_all(self, &self.said_by(&holders))?;
        while dropping.bytes() > self.folding.limit && dropping.count < MOST {
            let Some(farthest) = self.farthest_behind(&holders) else { break };
            holders.remove(&farthest);
            if !self.is_majority(&holders) && !on(Mutant::MinorityDrops) {
                break;
            }
            dropping.drop_all(self, &self.said_by(&holders))?;
        }
        dropping.forget_hashes(self)?;
        let Dropping { kept, mut batch, count, .. } = dropping;
        let all_have = |entry: EntryId| nameable.get(&entry.author).is_some_and(|number| *number >= entry.number);
        let over = self.view.over(&all_have);
        for id in &over {
            batch.delete(Table::Tombstone, encode(id));
            batch.delete(Table::Document, encode(id));
        }
        let mut ledger = self.view.ledger.clone();
        for id in self.view.closed_pools(&all_have) {
            ledger.remove_pool(id);
            batch.delete(Table::Pool, encode(&id));
        }
        let names = self.view.without_unbound(&all_have);
        for (name, state) in &names {
            let left = (*state != NameState::default()).then(|| encode(state));
            put_or_delete(&mut batch, Table::Name, encode(name), left);
        }
        // Of one who forked, each branch says for itself what it has seen.
        let said = |owner| self.said(owner).filter(|_| !self.view.branches.is_forked(owner));
        for id in ledger.fold_grants(&said, &all_have) {
            batch.put(Table::Pool, encode(&id), ledger.pool(id).map(encode).unwrap_or_default());
        }
        if batch.is_empty() {
            return Ok(0);
        }
        for (author, kept) in kept {
            let moved = self.chains.get(&author).is_some_and(|chain| chain.kept.folded < kept.folded);
            // Read while its entries are still there.
            let floor = if moved { Some(self.frontier_at(author, kept.folded)?) } else { None };
            if let Some(chain) = self.chains.get_mut(&author) {
                chain.kept = kept;
                chain.floor = floor.map_or_else(|| chain.floor.clone(), Arc::new);
                batch.put(Table::Author, encode(&author), chain.row(self.view.branches.get(author)));
            }
        }
        self.store.commit(&batch)?;
        over.iter().for_each(|id| drop(self.view.hidden.remove(id)));
        names.into_iter().for_each(|(name, state)| self.view.fold_name(name, state));
        self.view.ledger = ledger;
        self.pending.reader = self.store.reader()?;
        Ok(count)
    }

    pub(super) fn fold_now_and_then(&mut self, flushed: Option<&Flushed>) -> Result<(), StoreError> {
        let new = flushed.map_or(EVERY, |flushed| flushed.entries.len());
        self.folding.since = self.folding.since.saturating_add(new);
        // How large the log is takes a look at every author's.
        self.folding.unlooked = self.folding.unlooked.saturating_add(new);
        let looks = self.folding.unlooked >= OFTEN;
        if looks {
            self.folding.unlooked = 0;
        }
        if self.folding.since >= EVERY || (looks && self.log_bytes() > self.folding.limit) {
            self.folding.since = 0;
            self.fold()?;
        }
        Ok(())
    }

    /// Says in an entry what is held here, if the last one is too old to tell. Says whether it did.
    pub(super) fn say_held(&mut self, now: Millis) -> Result<bool, Refusal> {
        let unsaid = match self.chains.get(&self.me) {
            Some(chain) => chain.frontier.missing(&self.view.frontier),
            // A newcomer, of whom nobody knows yet what it holds.
            None => u64::MAX,
        };
        let is_large = self.folding.unsaid > self.folding.limit / 8;
        if unsaid <= UNSAID && !is_large {
            return Ok(false);
        }
        let members = u64::try_from(self.view.living().count()).unwrap_or(u64::MAX);
        let few = members.saturating_mul(UNSAID_EACH);
        let is_much = is_large && unsaid > few + UNSAID / 32;
        if unsaid <= few + UNSAID && !is_much {
            return Ok(false);
        }
        self.transact::<_, Refusal>(now, |tx| tx.membership(MemberOp::Held))?;
        Ok(true)
    }

    /// Whether the entry that is held here by this number has this hash. Of one that no honest author can name any more
    /// the answer is yes.
    pub(crate) fn is_held_as(&self, id: EntryId, hash: u64) -> Result<bool, StoreError> {
        Ok(self.short_hash(id)?.map_or_else(|| self.is_folded(id), |held| held == hash || on(Mutant::HashIgnored)))
    }

    /// Whether no honest author can name an entry any more.
    pub(crate) fn is_folded(&self, id: EntryId) -> bool {
        self.chains.get(&id.author).is_some_and(|chain| id.number < chain.kept.folded)
    }

    /// The first bytes of the hash of an entry that is held, as far as that is kept.
    pub(crate) fn short_hash(&self, id: EntryId) -> Result<Option<u64>, StoreError> {
        if let Some(tip) = self.view.frontier.0.get(&id.author).filter(|tip| tip.number == id.number) {
            return Ok(Some(tip.hash));
        }
        let chain = self.chains.get(&id.author);
        if let Some(known) = chain.and_then(|chain| chain.recent.get(id.number)) {
            return Ok(Some(known));
        }
        if let Some(entry) = self.pending.entries.iter().find(|entry| entry.held_as() == id) {
            return Ok(Some(entry.hash().short()));
        }
        chain.map(|chain| chain.kept).unwrap_or_default().short_hash(id, |table| self.pending.row_of(table, id))
    }

    /// What is left of an entry that is in the log no more, if it can be named still.
    pub(crate) fn left_of(&self, id: EntryId) -> Result<Option<Left>, StoreError> {
        Ok(self.pending.row_of(Table::Dropped, id)?.and_then(|row| Left::read(&row)))
    }

    /// Everybody whose entries may still come.
    fn who_may_write(&self) -> BTreeSet<ReplicaId> {
        self.view.living().map(|(id, _)| *id).collect()
    }

    /// Less those who are being retired, or are turned away.
    fn who_takes_part(&self) -> BTreeSet<ReplicaId> {
        let going = self.view.retirements.named(&self.view.frontier);
        let stays = self.view.living().filter(|(id, state)| !state.revoked && !going.contains(id));
        stays.map(|(id, _)| *id).collect()
    }

    /// What a member has said that it holds.
    fn said(&self, member: ReplicaId) -> Option<&Frontier> {
        if member == self.me {
            return Some(&self.view.frontier);
        }
        self.chains.get(&member).map(|chain| &*chain.frontier)
    }

    fn said_by(&self, members: &BTreeSet<ReplicaId>) -> BTreeMap<ReplicaId, u64> {
        let of = |author: ReplicaId| {
            let said = members.iter().map(|member| self.said(*member).map_or(0, |said| said.number(author)));
            (author, said.min().unwrap_or(0))
        };
        self.chains.keys().copied().map(of).collect()
    }

    fn farthest_behind(&self, members: &BTreeSet<ReplicaId>) -> Option<ReplicaId> {
        let behind = |member: &ReplicaId| match self.said(*member) {
            Some(said) => said.missing(&self.view.frontier),
            None => u64::MAX,
        };
        members.iter().copied().filter(|member| *member != self.me).max_by_key(behind)
    }

    /// Whether no others can be as many, though one of these tells others that it holds what they have: half of the votes with the
    /// founder, or its heir, or more than half without the largest of the others.
    fn is_majority(&self, members: &BTreeSet<ReplicaId>) -> bool {
        let votes = |member: &ReplicaId| self.votes(*member);
        let all: u64 = members.iter().map(votes).sum();
        let founder = self.view.ledger().votes().map(|(id, _)| id.entry.author);
        let is_root = |member: &ReplicaId| founder.is_some_and(|of| self.view.retired().acts_for(*member, of));
        if members.iter().any(is_root) {
            return all >= self.votes_left().div_ceil(2);
        }
        let largest = members.iter().filter(|member| **member != self.me).map(votes).max().unwrap_or(0);
        is_majority(all - largest, self.votes_left())
    }
}

/// One look at the log.
struct Dropping<'a> {
    reader: &'a dyn Reader,
    /// By author, what entries to come name at least.
    nameable: &'a BTreeMap<ReplicaId, u64>,
    kept: BTreeMap<ReplicaId, Kept>,
    batch: Batch,
    count: usize,
}

impl Dropping<'_> {
    fn bytes(&self) -> u64 {
        self.kept.values().map(|kept| kept.bytes).sum()
    }

    fn drop_all(&mut self, replica: &Replica, up_to: &BTreeMap<ReplicaId, u64>) -> Result<(), StoreError> {
        for (author, number) in up_to {
            let newest = replica.view.frontier.number(*author);
            // The last one that they all hold stays: there a branch could leave that some of them have (M3).
            self.drop_of(*author, newest.min(*number).saturating_sub(1))?;
        }
        Ok(())
    }

    fn drop_of(&mut self, author: ReplicaId, to: u64) -> Result<(), StoreError> {
        let Some(kept) = self.kept.get_mut(&author).filter(|kept| kept.dropped < to) else { return Ok(()) };
        let nameable = self.nameable.get(&author).copied().unwrap_or(0);
        let (batch, count) = (&mut self.batch, &mut self.count);
        let last = log_key(EntryId { author, number: to });
        let first = EntryId { author, number: kept.dropped + 1 };
        self.reader.scan(Table::Log, &log_key(first), &mut |key, value| {
            if key > last.as_slice() || *count >= MOST {
                return false;
            }
            kept.dropped += 1;
            kept.bytes = kept.bytes.saturating_sub(u64::try_from(value.len()).unwrap_or(0));
            *count += 1;
            batch.delete(Table::Log, key.to_vec());
            if kept.dropped > nameable
                && let Ok(entry) = Entry::decode_shared(value)
            {
                batch.put(Table::Dropped, key.to_vec(), encode(&Left::of(&entry)));
            }
            true
        })
    }

    fn forget_hashes(&mut self, replica: &Replica) -> Result<(), StoreError> {
        for (author, kept) in &mut self.kept {
            let to = self.nameable.get(author).copied().unwrap_or(0).min(kept.dropped);
            if to <= kept.folded {
                continue;
            }
            // What is left of it is read as it was before this batch.
            let Some(hash) = replica.short_hash(EntryId { author: *author, number: to })? else { continue };
            for number in kept.folded + 1..=to {
                self.batch.delete(Table::Dropped, log_key(EntryId { author: *author, number }));
            }
            (kept.folded, kept.folded_hash) = (to, hash);
        }
        Ok(())
    }
}
