//! Taking a snapshot in place of the state, by a replica that lacks what others have dropped (`PROTOCOL.md`, E4, M5).
//!
//! States are never merged: the snapshot **replaces** what is here, and the entries that it lacks, whoever wrote them,
//! are **replayed** on it. They go into a table of their own in the commit that replaces the state, and leave it in the
//! commit that holds their effects: whenever the process ends, nothing that was acknowledged is lost.

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

/// Entries in a table, by their keys.
type Logged = Vec<(EntryId, Vec<u8>)>;

impl Replica {
    /// Puts a snapshot in place of the state, and replays what it lacks of the log. All of it shows after the next
    /// [`Replica::flush`], which says that everything has changed.
    ///
    /// # Errors
    /// [`ReplaceError`]; the replica is as before. After [`ReplaceError::Store`] it must be opened anew, as after a flush that fails.
    pub fn replace(&mut self, snapshot: &dyn Reader) -> Result<(), ReplaceError> {
        match self.replace_by(snapshot) {
            Err(ReplaceError::Store(error)) => self.sound(Err(error)).map_err(ReplaceError::Store),
            other => other,
        }
    }

    fn replace_by(&mut self, snapshot: &dyn Reader) -> Result<(), ReplaceError> {
        let (view, chains) = self.read_state(snapshot).map_err(ReplaceError::Snapshot)?;
        self.check_tips(snapshot, &view, &chains)?;
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
        for (id, bytes) in rest.into_iter().filter(|_| !on(Mutant::ReplayForgotten)) {
            batch.put(Table::Replay, log_key(id), bytes);
        }
        self.store.commit(&batch)?;
        self.view = view;
        self.chains = chains;
        self.pending = Pending::over(self.store.reader()?);
        self.quarantine.clear();
        self.stage = Stage::default();
        self.proofs.clear();
        self.replay()?;
        self.replaced = Some(before);
        Ok(())
    }

    /// Applies the entries that a snapshot lacked. Says whether there were any.
    pub(super) fn replay(&mut self) -> Result<bool, StoreError> {
        let mut rest = self.to_replay()?;
        let any = !rest.is_empty();
        self.replaying = true;
        loop {
            let before = rest.len();
            let (done, mut alone) = (&mut Vec::new(), Vec::new());
            rest.retain(|(id, bytes)| match self.receive(bytes) {
                // A replica that was retired meanwhile takes nothing; what it held stays on its disk.
                Received::Waiting(_) | Received::Refused(Rejection::Fenced(_) | Rejection::Store(_)) => true,
                // Of one that forked: what rests on it may come later.
                Received::Refused(Rejection::Fork { .. } | Rejection::Quarantined(_)) => {
                    alone.push(*id);
                    true
                }
                // What is refused otherwise is void by now: its author was retired meanwhile.
                Received::Applied | Received::Known | Received::Refused(_) => {
                    done.push(*id);
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

    /// Whoever gives the snapshot shows that everybody whom it names did write what it says to hold.
    fn check_tips(
        &self,
        snapshot: &dyn Reader,
        view: &View,
        chains: &imbl::OrdMap<ReplicaId, Chain>,
    ) -> Result<(), ReplaceError> {
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
                return Err(ReplaceError::Unproved(id));
            }
        }
        Ok(())
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

    /// The entries that a snapshot lacks. Where it has another branch of a log than is held here, and knows that this has forked,
    /// these are all from there on: they are in the new state where somebody rests on them.
    fn lacking(
        &self,
        snapshot: &dyn Reader,
        view: &View,
        chains: &imbl::OrdMap<ReplicaId, Chain>,
    ) -> Result<Logged, ReplaceError> {
        let mut all = Vec::new();
        for (author, tip) in &self.view.frontier.0 {
            let there = view.frontier.0.get(author).copied();
            let mut from = there.map_or(0, |tip| tip.number);
            let chain = chains.get(author).cloned().unwrap_or_default();
            let mut last = Some(chain.last);
            let both = EntryId { author: *author, number: from.min(tip.number) };
            let is_alike = |named: EntryId| {
                let known = match there.filter(|there| there.number == named.number) {
                    Some(there) => Some(there.hash),
                    None => chain.kept.short_hash(named, |table| snapshot.get(table, &log_key(named)))?,
                };
                known.map_or(Ok(true), |hash| self.is_held_as(named, hash))
            };
            if !is_alike(both)? {
                // What is built here on another branch could not be replayed where nobody has heard of that yet.
                if *author == self.me || !view.retirements.is_forked(*author, view.frontier()) {
                    return Err(ReplaceError::Fork(both));
                }
                from = both.number;
                while from > 0 && !is_alike(EntryId { author: *author, number: from })? {
                    from -= 1;
                }
                // What its first follows, the log here says.
                last = None;
            } else if *author == self.me && from > tip.number {
                return Err(ReplaceError::Fork(EntryId { author: *author, number: from }));
            }
            let is_whole = self.chains.get(author).is_some_and(|chain| chain.kept.reaches(from));
            if from < tip.number && !is_whole {
                return Err(ReplaceError::Dropped(*author));
            }
            for number in from + 1..=tip.number {
                let id = EntryId { author: *author, number };
                let bytes = read_log(&*self.pending.reader, id, 1, 1)?.pop().ok_or(ReplaceError::Dropped(*author))?;
                let follows = |entry: &Entry| last.is_none_or(|last| entry.header.previous == last);
                let entry = Entry::decode(&bytes).ok().filter(|entry| entry.id() == id && follows(entry));
                last = Some(entry.ok_or(ReplaceError::Fork(id))?.hash());
                all.push((id, bytes));
            }
        }
        Ok(all)
    }

    fn to_replay(&self) -> Result<Logged, StoreError> {
        let mut all = Vec::new();
        self.store.reader()?.scan(Table::Replay, &[], &mut |_, value| {
            all.extend(Entry::decode(value).ok().map(|entry| (entry.id(), value.to_vec())));
            true
        })?;
        Ok(all)
    }
}
