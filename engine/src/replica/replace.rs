//! Taking a snapshot in place of the state, by a replica that lacks what others have dropped (`PROTOCOL.md`, E4, M5).
//!
//! States are never merged: the snapshot **replaces** what is here, and the entries that it lacks, whoever wrote them,
//! are **replayed** on it. They go into a table of their own in the commit that replaces the state, and leave it in the
//! commit that holds their effects: whenever the process ends, nothing that was acknowledged is lost.

use super::trust::Trust;
use super::{
    Chain, Flushed, OpenError, Pending, Received, Rejection, Replica, load_chains, load_rows, log_key, read_log,
};
use crate::entry::Entry;
use crate::id::{EntryId, ReplicaId};
use crate::mutant::{Mutant, on};
use crate::stage::Stage;
use crate::store::{Batch, Reader, StoreError, Table};
use crate::view::View;

/// Why a snapshot did not take the place of the state. The replica is as before.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// The snapshot is none of this cloud's, or knows no member with this replica's key.
    #[error("the snapshot is of no use here: {0}")]
    Snapshot(#[source] OpenError),
    /// Entries that the snapshot lacks are in the log here no more: they would be lost.
    #[error("the snapshot lacks entries of {0} that were dropped from the log here too")]
    Dropped(ReplicaId),
    /// Another form of an entry is held here.
    #[error("the snapshot has entry {0} in another form than is held here")]
    Fork(EntryId),
    /// The snapshot does not show the newest entry of an author, signed by it.
    #[error("the snapshot says that it holds entry {0}, and does not show it")]
    Unproved(EntryId),
    /// Of somebody whom this replica has sealed, it holds more than was promised: nobody whose word counts has sealed that.
    #[error("the snapshot holds entry {0} of one that is being retired, and nobody has sealed that")]
    Sealed(EntryId),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Entries with their keys in a table.
type Logged = Vec<(Vec<u8>, Vec<u8>)>;

impl Replica {
    /// Puts a snapshot in place of the state, and replays what it lacks of the log. All of it shows after the next
    /// [`Replica::flush`], which says that everything has changed. From then on the state is on trust (R14): `giver` gave it.
    ///
    /// # Errors
    /// [`ReplaceError`]; the replica is as before. After [`ReplaceError::Store`] it must be opened anew, as after a flush that fails.
    pub fn replace(&mut self, snapshot: &dyn Reader, giver: ReplicaId) -> Result<(), ReplaceError> {
        match self.replace_by(snapshot, giver) {
            Err(ReplaceError::Store(error)) => self.sound(Err(error)).map_err(ReplaceError::Store),
            other => other,
        }
    }

    fn replace_by(&mut self, snapshot: &dyn Reader, giver: ReplicaId) -> Result<(), ReplaceError> {
        let (view, chains) = self.read_state(snapshot).map_err(ReplaceError::Snapshot)?;
        if let Some(entry) = self.unproved(snapshot, &view, &chains)? {
            return Err(ReplaceError::Unproved(entry));
        }
        self.check_promise(&view)?;
        let flushed = self.flush()?;
        let before = self.all_changed(flushed, Flushed::default());
        let rest = self.lacking(snapshot, &view, &chains)?;
        let mut batch = Batch::default();
        let old = self.store.reader()?;
        for table in Table::in_snapshot() {
            old.scan(table, &[], &mut |key, _| {
                batch.delete(table, key.to_vec());
                true
            })?;
            snapshot.scan(table, &[], &mut |key, value| {
                batch.put(table, key.to_vec(), value.to_vec());
                true
            })?;
        }
        for (key, bytes) in rest.into_iter().filter(|_| !on(Mutant::ReplayForgotten)) {
            batch.put(Table::Replay, key, bytes);
        }
        let trust = Trust::replaced(self.trust.as_ref(), giver);
        trust.note(&mut batch);
        self.store.commit(&batch)?;
        self.view = view;
        self.chains = chains;
        self.pending = Pending::over(self.store.reader()?);
        self.quarantine.clear();
        self.stage = Stage::default();
        self.proofs.clear();
        self.replay()?;
        self.replaced = Some(before);
        self.trust = Some(trust);
        Ok(self.weigh_trust()?)
    }

    /// Applies the entries that a snapshot lacked. Says whether there were any.
    pub(super) fn replay(&mut self) -> Result<bool, StoreError> {
        let mut rest = self.to_replay()?;
        let any = !rest.is_empty();
        self.replaying = true;
        loop {
            let before = rest.len();
            let (done, mut alone) = (&mut Vec::new(), Vec::new());
            rest.retain(|(key, bytes)| match self.receive(bytes) {
                // A replica that was retired meanwhile takes nothing; what it held stays on its disk.
                Received::Waiting(_) | Received::Refused(Rejection::Fenced(_) | Rejection::Store(_)) => true,
                // Of one that forked: what rests on it may come later.
                Received::Refused(Rejection::Fork { .. } | Rejection::Quarantined(_)) => {
                    alone.push(key.clone());
                    true
                }
                // What is refused otherwise is void by now: its author was retired meanwhile.
                Received::Applied | Received::Known | Received::Refused(_) => {
                    done.push(key.clone());
                    false
                }
            });
            self.pending.replayed.append(done);
            if rest.len() == before {
                // Nothing rests on these.
                if alone.len() == before {
                    self.pending.replayed.append(&mut alone);
                }
                break;
            }
        }
        self.replaying = false;
        Ok(any)
    }

    /// Whether its own entries are being applied once more.
    pub(crate) fn is_replaying(&self) -> bool {
        self.replaying
    }

    /// What has changed, in one, where a state has taken the place of another.
    pub(super) fn all_changed(&self, mut before: Flushed, after: Flushed) -> Flushed {
        before.entries.extend(after.entries);
        let view = &self.view;
        before.records.extend(view.records.keys().copied());
        before.claims.extend(view.ledger.claims().map(|(id, _)| *id));
        before.pools.extend(view.ledger.pools().map(|(id, _)| *id));
        before.records.sort_unstable();
        before.records.dedup();
        before.claims.sort_unstable();
        before.claims.dedup();
        before.pools.sort_unstable();
        before.pools.dedup();
        before.members = true;
        before
    }

    fn read_state(&self, reader: &dyn Reader) -> Result<(View, imbl::OrdMap<ReplicaId, Chain>), OpenError> {
        let (chains, branches) = load_chains(reader)?;
        let mut view = View::new(self.identity.cloud);
        view.restore(load_rows(reader, &chains, branches)?);
        let me = view.member(self.me).filter(|state| state.member.public_key == self.identity.public_key());
        if me.is_some() { Ok((view, chains)) } else { Err(OpenError::NotMember) }
    }

    /// Whoever gives a state shows that everybody whom it names did write what it says to hold: the first that it does not show.
    pub(super) fn unproved(
        &self,
        snapshot: &dyn Reader,
        view: &View,
        chains: &imbl::OrdMap<ReplicaId, Chain>,
    ) -> Result<Option<EntryId>, StoreError> {
        // Where a log has forked its branches end it, and what that rests on may be dropped.
        let ends = |log: &ReplicaId| !view.branches.is_parent(*log);
        for (log, tip) in view.frontier.0.iter().filter(|(log, _)| ends(log)) {
            let id = EntryId { author: *log, number: tip.number };
            let bytes = snapshot.get(Table::Log, &log_key(id))?;
            let author = view.branches.author(*log);
            let member = self.view.member(author).or_else(|| view.member(author));
            let last = chains.get(log).map(|chain| chain.last);
            let entry = bytes.and_then(|bytes| Entry::decode(&bytes).ok());
            let is_it = |entry: &Entry| entry.id() == EntryId { author, ..id } && Some(entry.hash()) == last;
            let entry = entry.filter(is_it);
            let is_signed = entry.zip(member).is_some_and(|(entry, m)| entry.verify(&m.member.public_key).is_ok());
            if !is_signed {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// What this replica has promised by its seal, it does not take in a snapshot either, as from one who is being retired and
    /// runs on (`docs/reservations.md`, question c): no more than it holds, or than a seal in the snapshot says.
    fn check_promise(&self, view: &View) -> Result<(), ReplaceError> {
        let set = self.sealed();
        let counts = |by| self.view.member(by).is_some() && !set.contains(&by);
        let awaits = set.iter().filter(|of| !view.retired().contains(**of));
        for log in awaits.flat_map(|of| view.branches.logs(*of)) {
            let (here, there) = (self.view.frontier.number(log), view.frontier.number(log));
            if there > here && there > view.retirements.sealed_to(log, &view.branches, counts) {
                return Err(ReplaceError::Sealed(EntryId { author: log, number: there }));
            }
        }
        Ok(())
    }

    /// The entries that a snapshot lacks. What one log here holds may lie in several there, if it is known there that its author has
    /// forked. Where the snapshot has another branch than is held here, and knows that this has forked or nobody rests on what is held
    /// here, these are all from there on: they are in the new state where somebody rests on them.
    fn lacking(
        &self,
        snapshot: &dyn Reader,
        view: &View,
        chains: &imbl::OrdMap<ReplicaId, Chain>,
    ) -> Result<Logged, ReplaceError> {
        let mut all = Vec::new();
        for (log, tip) in &self.view.frontier.0 {
            let owner = self.view.branches.author(*log);
            let is_own = owner == self.me;
            let there = |of: &ReplicaId| (view.branches.first(*of), view.frontier.number(*of));
            // A log that is another one here is none of these.
            let may_hold = |of: &ReplicaId| {
                self.view.branches.continues(*log, *of) || !is_own && self.view.frontier.0.get(of).is_none()
            };
            let logs: Vec<ReplicaId> = view.branches.logs(owner).filter(may_hold).collect();
            let spans = |of: &&ReplicaId, number: u64| (there(of).0..=there(of).1).contains(&number);
            let is_alike = |of: &ReplicaId, number: u64| {
                let known = match view.frontier.0.get(of).filter(|tip| tip.number == number) {
                    Some(tip) => Some(tip.hash),
                    None => {
                        let named = EntryId { author: *of, number };
                        let chain = chains.get(of).cloned().unwrap_or_default();
                        chain.kept.short_hash(named, |table| snapshot.get(table, &log_key(named)))?
                    }
                };
                known.map_or(Ok(true), |hash| self.is_held_as(EntryId { author: *log, number }, hash))
            };
            let first = self.view.branches.first(*log);
            let most = logs.iter().map(|of| there(of).1).max().unwrap_or(0);
            if is_own && most > tip.number {
                return Err(ReplaceError::Fork(EntryId { author: *log, number: most }));
            }
            let mut from = most.min(tip.number).max(first - 1);
            let is_held = |number: u64| {
                let mut of = logs.iter().filter(|of| spans(of, number));
                of.try_fold(false, |held, of| Ok::<_, StoreError>(held || is_alike(of, number)?))
            };
            while from >= first && !is_held(from)? {
                from -= 1;
            }
            if from == tip.number {
                continue;
            }
            let next = EntryId { author: *log, number: from + 1 };
            if logs.iter().any(|of| spans(&of, next.number)) {
                // What is built here on another branch could not be replayed where nobody has heard of that yet.
                let is_known = view.retirements.is_forked(owner, view.frontier());
                if is_own || !is_known && self.is_rested_on(*log, from) {
                    return Err(ReplaceError::Fork(next));
                }
            }
            if !self.chains.get(log).is_some_and(|chain| chain.kept.reaches(from)) {
                return Err(ReplaceError::Dropped(*log));
            }
            let mut last = None;
            for number in next.number..=tip.number {
                let id = EntryId { author: *log, number };
                let bytes = read_log(&*self.pending.reader, id, 1, 1)?.pop().ok_or(ReplaceError::Dropped(*log))?;
                let follows = |entry: &Entry| last.is_none_or(|last| entry.header.previous == last);
                let is_it = |entry: &Entry| entry.id() == EntryId { author: owner, number } && follows(entry);
                let entry = Entry::decode(&bytes).ok().filter(is_it);
                last = Some(entry.ok_or(ReplaceError::Fork(id))?.hash());
                all.push((log_key(id), bytes));
            }
        }
        Ok(all)
    }

    /// Whether what somebody else wrote rests on more of a log than its first entries, so many.
    fn is_rested_on(&self, log: ReplicaId, first: u64) -> bool {
        let branches = &self.view.branches;
        let is_others = |other: &ReplicaId| branches.author(*other) != branches.author(log);
        self.chains.iter().any(|(other, chain)| is_others(other) && chain.frontier.number(log) > first)
    }

    fn to_replay(&self) -> Result<Logged, StoreError> {
        let mut all = Vec::new();
        self.store.reader()?.scan(Table::Replay, &[], &mut |key, value| {
            all.push((key.to_vec(), value.to_vec()));
            true
        })?;
        Ok(all)
    }
}
