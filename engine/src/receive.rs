//! Taking entries that come from elsewhere.
//!
//! An entry is applied after all that it names, once, and judged by that alone (`PROTOCOL.md`, E3, E4). Of an author who is
//! **restricted** (it forked, or it broke a rule, or this replica has sealed it), an entry is taken only where another member's
//! rests on it, and together with that one (M2, M3; `docs/reservations.md`, R5 to R8). Whoever rests on another branch than
//! is held here is not to blame: the branch is asked for, and taken with what rests on it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::apply::{self, ApplyError, Invalid, founded_by};
use crate::branch::{Branch, Branches, Rename as _, Renaming};
use crate::document;
use crate::entry::{BadEntry, Entry, Frontier, Hash, Header, LedgerOp, MemberOp, SignedHeader, Tip};
use crate::id::{EntryId, PoolId, ReplicaId};
use crate::ledger::{Amount, BadLedgerOp};
use crate::mutant::{Mutant, on};
use crate::record::RecordId;
use crate::replica::fold::{Kept, Left, Recent};
use crate::replica::{Chain, Received, Rejection, Replica, Saved};
use crate::stage::Lack;
use crate::store::{StoreError, Table};
use crate::tx::Fence;

/// Where an entry belongs in what is held of its author.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It is held.
    Held,
    /// It comes next in this log.
    Next(ReplicaId),
    /// It follows an entry of this log that another follows already: a fork.
    Fork(ReplicaId),
    /// What it follows is not held.
    Unknown,
}

impl Replica {
    pub(crate) fn accept(&mut self, bytes: &[u8]) -> Result<Received, Rejection> {
        let entry = Entry::decode_shared(bytes)?;
        let id = entry.id();
        if entry.header.cloud != self.identity().cloud {
            return Err(BadEntry::Cloud.into());
        }
        if let Some(fence) = self.fence() {
            return Err(fence.into());
        }
        let place = if id.number == 0 { return Err(Rejection::Chain(id)) } else { self.place(&entry)? };
        if place == Place::Held {
            self.stage.remove(&entry.hash());
            return Ok(Received::Known);
        }
        let log = if let Place::Next(log) | Place::Fork(log) = place { log } else { id.author };
        if let Some(cut) = self.view.retired().cut(log) {
            return Err(Rejection::Void { entry: id, cut });
        }
        let lack = self.lack(&entry, place)?;
        let restricted = self.is_restricted(id.author);
        match (place, lack) {
            (Place::Next(_), None) if !restricted => {
                let key = self.key_of(&entry.header);
                entry.verify(&key.ok_or(Rejection::Invalid { entry: id, reason: Invalid::NotMember })?)?;
                let taken = self.judge(&entry, place);
                if let Err(rejection) = &taken {
                    self.blame(&entry, rejection);
                }
                taken?;
                self.stage.remove(&entry.hash());
                self.release(self.stage.lacking(&entry))?;
                Ok(Received::Applied)
            }
            (Place::Next(_) | Place::Unknown, Some(lack))
                if !restricted && self.comes_later(&lack) && !self.guards() =>
            {
                Ok(Received::Waiting(self.first_missing(&lack)))
            }
            _ => self.set_aside(entry, place, lack),
        }
    }

    /// What cannot be taken by itself, or not yet.
    fn set_aside(&mut self, entry: Arc<Entry>, place: Place, lack: Option<Lack>) -> Result<Received, Rejection> {
        let id = entry.id();
        // A stranger may be admitted by what is staged: it is judged then. Nobody is blamed for what it did not sign.
        let mut blamed = None;
        if let Some(key) = self.key_of(&entry.header) {
            entry.verify(&key)?;
            if let Some(own) = self.own(id) {
                return own;
            }
            blamed = self.evidence(&entry, place)?;
        }
        if let Some(rejection) = &blamed {
            self.blame(&entry, rejection);
        }
        let hash = entry.hash();
        self.stage.insert(entry.clone());
        let mut todo = self.stage.lacking(&entry);
        todo.push(hash);
        self.release(todo)?;
        if self.place(&entry)? == Place::Held {
            return Ok(Received::Applied);
        }
        if let Some(rejection) = blamed {
            return Err(rejection);
        }
        if self.quarantine().contains_key(&id.author) {
            let quarantined = Rejection::Quarantined(id.author);
            self.note_refused(&entry, &quarantined);
            return Err(quarantined);
        }
        // What is at the bottom of what is staged is asked for: of a log that parts below, it is what parts.
        let Some(lack) = self.stage.lack(&hash).or(lack) else { return Ok(Received::Waiting(id)) };
        let mut from = self.first_missing(&lack);
        if !self.comes_later(&lack) {
            // Another form of what is held: where it begins to differ is not known.
            let back = self.stage.asks(from.author);
            from.number = from.number.saturating_sub(back).max(1);
        }
        Ok(Received::Waiting(from))
    }

    /// What becomes of an entry of this replica's own that it lacks: its store is an old copy.
    fn own(&mut self, id: EntryId) -> Option<Result<Received, Rejection>> {
        if id.author != self.me() || self.is_replaying() {
            return None;
        }
        if on(Mutant::OldDiskAccepted) {
            return Some(Ok(Received::Known));
        }
        self.put_up(Fence::OldStore(id));
        Some(Err(Fence::OldStore(id).into()))
    }

    fn blame(&mut self, entry: &Entry, rejection: &Rejection) {
        if !matches!(rejection, Rejection::Store(_) | Rejection::Fenced(_)) {
            self.quarantine.entry(entry.header.author).or_insert_with(|| rejection.clone());
            self.note_refused(entry, rejection);
        }
    }

    /// What an entry says against its author. Two with one number are a proof, which is kept for [`Replica::tend`].
    fn evidence(&mut self, entry: &Entry, place: Place) -> Result<Option<Rejection>, Rejection> {
        let id = entry.id();
        let branches = &self.view.branches;
        if let Some(author) = branches.logs(id.author).find(|log| self.spans(*log, id.number)) {
            let held = self.entry_at(EntryId { author, number: id.number })?;
            if let Some(held) = held.filter(|_| !self.proofs.contains_key(&id.author)) {
                self.proofs.insert(id.author, (held.signed_header()?, entry.signed_header()?));
            }
            return Ok(Some(Rejection::Fork { named: id }));
        }
        let follows_another = place == Place::Unknown && id.number == self.view.frontier().number(id.author) + 1;
        Ok((follows_another && !branches.is_forked(id.author)).then_some(Rejection::Chain(id)))
    }

    /// The proof that a member forked, to be told to all.
    pub(crate) fn unspoken_proof(&mut self) -> Option<(ReplicaId, (SignedHeader, SignedHeader))> {
        if self.proofs.is_empty() {
            return None;
        }
        let known = self.view.retirements.named(self.view.frontier());
        self.proofs.retain(|author, _| !known.contains(author));
        self.proofs.first_key_value().map(|(author, proof)| (*author, proof.clone()))
    }

    /// A member of whom two branches are held, though no two entries with one number are at hand: of one branch they are in the log no
    /// more.
    pub(crate) fn unspoken_branches(&self) -> Option<ReplicaId> {
        let view = &self.view;
        if view.branches.is_empty() {
            return None;
        }
        let known = view.retirements.named(view.frontier());
        view.branches.forked().find(|author| !known.contains(author))
    }

    /// Whether entries of an author are taken only with others that rest on them.
    fn is_restricted(&self, author: ReplicaId) -> bool {
        let view = &self.view;
        if self.quarantine().contains_key(&author) || view.branches.is_forked(author) {
            return true;
        }
        !view.retirements.is_empty()
            && !on(Mutant::SealIgnored)
            && (view.retirements.is_forked(author, view.frontier()) || self.sealed().contains(&author))
    }

    /// Of whom this replica takes nothing by itself.
    pub(crate) fn sealed(&self) -> BTreeSet<ReplicaId> {
        self.sealed_by(self.me())
    }

    /// Whom a member has sealed, or its sponsor had when it admitted it: a newcomer is born with that promise, and its own seal,
    /// which comes when it first writes, changes nothing (`docs/reservations.md`, "A join during a retirement").
    fn sealed_by(&self, member: ReplicaId) -> BTreeSet<ReplicaId> {
        let view = &self.view;
        let mut set = view.retirements.sealed_by(member, view.frontier());
        let admissions = view.member(member).into_iter().flat_map(|state| &state.admissions);
        set.extend(admissions.flat_map(|(entry, _)| view.retirements.sealed_before(*entry)));
        set
    }

    /// Whether there is anybody whose entries are restricted: then what waits may show what may be taken.
    fn guards(&self) -> bool {
        let lives = |author: &ReplicaId| !self.view.retired().contains(*author);
        !self.stage.is_empty()
            || self.quarantine().keys().any(lives)
            || (!self.view.retirements.is_empty()
                && self.view.retirements.named(self.view.frontier()).iter().any(lives))
    }

    /// Tries those of the staged that may be complete now.
    fn release(&mut self, mut todo: Vec<Hash>) -> Result<(), Rejection> {
        while let Some(hash) = todo.pop() {
            let Some(last) = self.stage.get(&hash).cloned() else { continue };
            // Peers send it again and again: it is looked at anew only if something has changed, and what it lacked has come.
            if !self.stage.note_tried(hash, self.progress()) || self.is_still_lacking(&hash)? {
                continue;
            }
            if self.is_restricted(last.header.author) {
                // Nothing that it could be taken with rests on it: whatever is below, it is not shown by that.
                let place = self.place(&last)?;
                if let Some(lack) = self.lack(&last, place)? {
                    self.stage.note_lack(hash, lack);
                }
                continue;
            }
            let group = match self.gather(&last)? {
                Ok(group) => group,
                Err(lack) => {
                    self.stage.note_lack(hash, lack);
                    continue;
                }
            };
            self.stage.note_complete(&hash);
            if !self.is_shown(&group)? {
                continue;
            }
            match self.take_together(&group) {
                Ok(()) => {
                    for entry in &group {
                        todo.extend(self.stage.lacking(entry));
                        self.stage.remove(&entry.hash());
                    }
                }
                Err(Rejection::Store(error)) => return Err(error.into()),
                // What its author was granted may come yet; nobody is to blame for not having it.
                Err(Rejection::Invalid {
                    reason: Invalid::Ledger { source: BadLedgerOp::Overspent(_), .. }, ..
                }) => {}
                Err(rejection) => {
                    self.stage.remove(&hash);
                    // Whoever rests on what breaks a rule has not broken it.
                    let broke = group.iter().find(|entry| rejection.entry() == Some(entry.id()));
                    self.blame(broke.unwrap_or(&last), &rejection);
                }
            }
        }
        Ok(())
    }

    /// Grows whenever a staged entry might fare otherwise than before.
    fn progress(&self) -> (u64, usize) {
        let held = self.view.frontier().0.values().map(|tip| tip.number).fold(0, u64::wrapping_add);
        (held.wrapping_add(self.stage.inserted()), self.quarantine().len())
    }

    /// Whether what a staged entry was found to lack is not here yet.
    fn is_still_lacking(&self, hash: &Hash) -> Result<bool, StoreError> {
        let Some(lack) = self.stage.lack(hash).filter(|lack| self.staged(lack).is_none()) else { return Ok(false) };
        let short = match &lack {
            Lack::Previous(_, hash) => hash.short(),
            Lack::Seen(_, short) => *short,
        };
        let EntryId { author, number } = lack.entry();
        Ok(self.resolve(author, Tip { number, hash: short })?.is_none())
    }

    /// A staged entry and everything that it rests on and that is not held, if all of it is staged.
    fn gather(&self, last: &Arc<Entry>) -> Result<Result<Vec<Arc<Entry>>, Lack>, StoreError> {
        let (mut group, mut met) = (Vec::new(), BTreeSet::from([last.hash()]));
        let mut todo = vec![last.clone()];
        while let Some(entry) = todo.pop() {
            let place = self.place(&entry)?;
            if place == Place::Held {
                continue;
            }
            for lack in self.lacks(&entry, place) {
                let lack = lack?;
                match self.staged(&lack) {
                    Some(below) if met.insert(below.hash()) => todo.push(below.clone()),
                    Some(_) => {}
                    None => return Ok(Err(lack)),
                }
            }
            group.push(entry);
        }
        Ok(Ok(group))
    }

    fn staged(&self, lack: &Lack) -> Option<&Arc<Entry>> {
        match lack {
            Lack::Previous(id, hash) => self.stage.get(hash).filter(|entry| entry.id() == *id),
            Lack::Seen(id, hash) => self.stage.seen(Tip { number: id.number, hash: *hash }),
        }
    }

    /// Whether of every restricted author each entry is one that another member's rests on, whose word counts, and each branch
    /// one that a member of its own can have been the first to rest on.
    fn is_shown(&self, group: &[Arc<Entry>]) -> Result<bool, StoreError> {
        let authors: BTreeSet<ReplicaId> = group.iter().map(|entry| entry.header.author).collect();
        let restricted: Vec<ReplicaId> = authors.iter().copied().filter(|id| self.is_restricted(*id)).collect();
        if restricted.is_empty() {
            return Ok(true);
        }
        let index = Index::of(group);
        for of in restricted {
            let mut set = self.sealed();
            set.insert(of);
            let ends = index.ends(of);
            let mut hidden: BTreeSet<usize> = (0..ends.len()).collect();
            let mut first = vec![Vec::new(); ends.len()];
            for (n, by) in authors.iter().enumerate().filter(|(_, by)| **by != of) {
                let rests_on = index.resting_of(*by, None);
                let counts = self.may_show(*by, &set) || self.is_vouched_for(*by, of, &authors, &index);
                let shows = if counts { index.resting_of(*by, Some(&set)) } else { BTreeSet::new() };
                for (at, end) in ends.iter().enumerate().filter(|(_, end)| rests_on.contains(&end.hash())) {
                    if !self.knows_another(*by, end, &index)? {
                        first[at].push(n);
                        if shows.contains(&end.hash()) {
                            hidden.remove(&at);
                        }
                    }
                }
            }
            if !hidden.is_empty() || !has_each_its_own(&first) {
                return Ok(false);
            }
            let open = self.open_to(of, &authors, &index)?;
            if !ends.iter().all(|end| open.contains(&end.hash())) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What of a group members rest on that had not sealed its author by then. Who has takes no more of it than one of these shows, so
    /// what lies beyond was never shown to it, whoever says so: its promise holds though another set is asked of its word by now
    /// (R5). Looked up in each log of theirs apart: who forked may have sealed in one branch only.
    fn open_to(
        &self,
        of: ReplicaId,
        authors: &BTreeSet<ReplicaId>,
        index: &Index<'_>,
    ) -> Result<BTreeSet<Hash>, StoreError> {
        let view = &self.view;
        let mut open = BTreeSet::new();
        for by in authors.iter().copied().filter(|by| *by != of) {
            // A newcomer is bound by what its sponsor had sealed, and one whom only the restricted know is a stranger (R6).
            let is_free = match view.member(by) {
                Some(state) => {
                    let mut sponsors = state.admissions.iter().map(|(entry, _)| *entry);
                    sponsors.any(|entry| view.retirements.sealed_before(entry).all(|id| id != of))
                }
                None => index.admits(by).any(|sponsor| view.member(sponsor).is_some() && !self.is_restricted(sponsor)),
            };
            if !is_free {
                continue;
            }
            for end in index.ends(by) {
                let line = index.line(end);
                let Some(first) = line.last() else { continue };
                let (Place::Next(log) | Place::Fork(log)) = self.place(first)? else { continue };
                if view.retirements.has_sealed(log, first.header.number, of, &view.branches) {
                    continue;
                }
                let seal = line.iter().rev().find(|entry| seals(entry, |set| set.contains(&of)));
                open.extend(index.resting(seal.unwrap_or(&end)));
            }
        }
        Ok(open)
    }

    /// Whether the word of one who is being retired counts for a branch of one that forked: it is restricted by that alone, and what
    /// it wrote is shown by another. That one may not show the branch itself, if it had rested on another one before (R10), and
    /// took it for this word, which counted where it had not sealed its author yet.
    fn is_vouched_for(&self, by: ReplicaId, of: ReplicaId, authors: &BTreeSet<ReplicaId>, index: &Index<'_>) -> bool {
        let view = &self.view;
        let has_forked = |id: ReplicaId| {
            let known = view.branches.is_forked(id) || view.retirements.is_forked(id, view.frontier());
            known || self.quarantine().contains_key(&id)
        };
        let set = self.sealed();
        let stands = view.member(by).is_some_and(|state| !state.revoked) && !view.retired().contains(by);
        if !stands || !set.contains(&by) || has_forked(by) || !has_forked(of) {
            return false;
        }
        let others = || authors.iter().filter(|other| ![by, of].contains(other) && self.may_show(**other, &set));
        let shown =
            |end: &&Arc<Entry>| others().any(|other| index.resting_of(*other, Some(&set)).contains(&end.hash()));
        index.ends(by).iter().all(shown)
    }

    /// Whether a member has rested on another branch of an entry's author: who knew of two takes no third by itself, and
    /// shows none. So each member shows one branch at most, however it lies. What leaves a log after what the member has rested
    /// on continues it.
    fn knows_another(&self, by: ReplicaId, of: &Arc<Entry>, group: &Index<'_>) -> Result<bool, StoreError> {
        let Some(chain) = self.chains.get(&by) else { return Ok(false) };
        let first = group.line(of).last().copied().unwrap_or(of);
        let (Place::Next(log) | Place::Fork(log)) = self.place(first)? else { return Ok(true) };
        let branches = &self.view.branches;
        let line = branches.line(log);
        let rests_on = |log: &ReplicaId| branches.first(*log) <= chain.frontier.number(*log);
        let is_below =
            |at: ReplicaId| line.contains(&at) && (at != log || chain.frontier.number(at) < first.header.number);
        Ok(!branches.logs(of.header.author).filter(rests_on).all(is_below))
    }

    /// Whether a member's word counts: one that is known here, is not restricted itself, and has not sealed all of `set`.
    fn may_show(&self, by: ReplicaId, set: &BTreeSet<ReplicaId>) -> bool {
        let view = &self.view;
        view.member(by).is_some_and(|state| !state.revoked)
            && !view.retired().contains(by)
            && !self.is_restricted(by)
            && !self.sealed_by(by).is_superset(set)
    }

    /// Applies all of a group, or none.
    fn take_together(&mut self, group: &[Arc<Entry>]) -> Result<(), Rejection> {
        let saved = self.save();
        let taken = self.take_all(group);
        if taken.is_err() {
            self.restore(saved);
        }
        taken
    }

    fn take_all(&mut self, group: &[Arc<Entry>]) -> Result<(), Rejection> {
        let mut rest: Vec<&Arc<Entry>> = group.iter().rev().collect();
        while !rest.is_empty() {
            let mut later = Vec::new();
            for entry in &rest {
                let place = self.place(entry)?;
                if place == Place::Held {
                    continue;
                }
                if self.lack(entry, place)?.is_some() {
                    later.push(*entry);
                    continue;
                }
                if self.fence().is_some() {
                    // One of them has retired this replica: what it holds beyond its cut is in nobody's past, and it takes
                    // nothing more.
                    return Ok(());
                }
                let stranger = Rejection::Invalid { entry: entry.id(), reason: Invalid::NotMember };
                entry.verify(&self.key_of(&entry.header).ok_or(stranger)?)?;
                self.judge(entry, place)?;
            }
            if later.len() == rest.len() {
                return Err(later.first().map_or(BadEntry::Signature.into(), |entry| Rejection::Chain(entry.id())));
            }
            rest = later;
        }
        Ok(())
    }

    /// Applies an entry that its author signed, and whose past is held.
    fn judge(&mut self, entry: &Arc<Entry>, place: Place) -> Result<Received, Rejection> {
        let id = entry.id();
        if let Some(own) = self.own(id) {
            return own;
        }
        let log = match place {
            Place::Next(log) => log,
            Place::Fork(log) => self.split(log, entry)?,
            Place::Held | Place::Unknown => return Err(Rejection::Chain(id)),
        };
        let before = self.chains.get(&log).cloned().unwrap_or_default().frontier;
        // Where nobody has forked, what is lacked by nothing is named as it is held: in order, in one pass.
        let plain = self.view.branches.is_empty() && !on(Mutant::PastIgnored);
        let raised = if plain { before.0.raised(&entry.header.seen, &log) } else { None };
        let mut frontier = match raised {
            Some(tips) => Frontier(tips),
            None => self.frontier_after(&before, entry)?,
        };
        self.include(&mut frontier, log, entry.tip());
        #[cfg(feature = "memo")]
        let frontier = crate::memo::frontier(&entry.hash(), frontier);
        let mut entry = entry.clone();
        if !self.view.branches.is_empty() {
            let named = Arc::make_mut(&mut entry);
            named.log = log;
            resolve_names(&mut named.header, &self.view.branches, &frontier);
        }
        self.apply(entry, frontier)
    }

    /// The full frontier of an entry, itself not included, whose author's last had this one.
    fn frontier_after(&self, before: &Frontier, entry: &Entry) -> Result<Frontier, Rejection> {
        let id = entry.id();
        let mut frontier = before.clone();
        for (replica, tip) in &entry.header.seen {
            let named = EntryId { author: *replica, number: tip.number };
            let of = match self.resolve(*replica, *tip)? {
                None if on(Mutant::PastIgnored) => continue,
                of => of.ok_or(Rejection::Disagrees { entry: id, named })?,
            };
            // A frontier never falls, and of its own author it says nothing.
            if self.view.branches.author(of) == id.author || tip.number <= before.number(of) {
                return Err(Rejection::Chain(id));
            }
            self.include(&mut frontier, of, *tip);
        }
        Ok(frontier)
    }

    fn apply(&mut self, entry: Arc<Entry>, frontier: Frontier) -> Result<Received, Rejection> {
        let mut view = self.view.clone();
        let mut documents = crate::tx::Overlay { base: &mut self.pending, changed: BTreeMap::new() };
        let mut past = Cow::Borrowed(&frontier);
        if on(Mutant::JudgedByReceiver) {
            let held = view.frontier().0.iter().filter(|(log, _)| **log != entry.log);
            held.for_each(|(log, tip)| past.to_mut().set(*log, *tip));
        }
        match apply::apply(&mut view, &entry, &past, &mut documents) {
            Ok(()) => {}
            Err(ApplyError::Invalid(reason)) => return Err(Rejection::Invalid { entry: entry.id(), reason }),
            Err(ApplyError::Store(error)) => return Err(error.into()),
        }
        let changed = documents.changed;
        debug_assert!(view.ledger().is_conserved(), "rights do not add up after {entry:?}");
        self.view = view;
        self.pending.documents.extend(changed);
        self.took(entry, frontier);
        Ok(Received::Applied)
    }

    fn key_of(&self, header: &Header) -> Option<[u8; 32]> {
        let member = self.view.member(header.author).map(|state| state.member.public_key);
        member.or_else(|| match header.members.first() {
            Some(MemberOp::Join(member)) if founded_by(&member.public_key) == header.cloud => Some(member.public_key),
            _ => None,
        })
    }

    fn place(&self, entry: &Entry) -> Result<Place, StoreError> {
        let EntryId { author, number } = entry.id();
        let before = number.saturating_sub(1);
        let branches = &self.view.branches;
        let ends = |log| (branches.first(log), self.view.frontier().number(log));
        if self.resolve(author, entry.tip())?.is_some() {
            return Ok(Place::Held);
        }
        for log in branches.logs(author) {
            let (first, last) = ends(log);
            let previous = entry.header.previous;
            let follows = match before {
                0 => log == author && previous == Hash::default(),
                _ if before == last && first <= before => self.chains.get(&log).is_some_and(|c| c.last == previous),
                _ if first <= before && before < last => {
                    self.short_hash(EntryId { author: log, number: before })? == Some(previous.short())
                }
                _ => false,
            };
            if follows {
                let is_followed = branches.is_parent(log);
                return Ok(if before == last && !is_followed { Place::Next(log) } else { Place::Fork(log) });
            }
        }
        Ok(Place::Unknown)
    }

    /// The first thing that an entry rests on and that is not held.
    fn lack(&self, entry: &Entry, place: Place) -> Result<Option<Lack>, StoreError> {
        self.lacks(entry, place).next().transpose()
    }

    /// All of them.
    fn lacks<'a>(&'a self, entry: &'a Entry, place: Place) -> impl Iterator<Item = Result<Lack, StoreError>> + 'a {
        let before = (place == Place::Unknown).then(|| Ok(previous(entry)));
        let past = if on(Mutant::PastIgnored) { &[] } else { entry.header.seen.as_slice() };
        let is_lacking = |(replica, tip): &(ReplicaId, Tip)| match self.resolve(*replica, *tip) {
            Ok(Some(_)) => None,
            Ok(None) => Some(Ok(seen(*replica, *tip))),
            Err(error) => Some(Err(error)),
        };
        before.into_iter().chain(past.iter().filter_map(is_lacking))
    }

    /// Whether what is lacking lies above what is held, as it does for whoever is just behind.
    fn comes_later(&self, lack: &Lack) -> bool {
        lack.entry().number > self.view.frontier().number(lack.entry().author)
    }

    fn first_missing(&self, lack: &Lack) -> EntryId {
        let EntryId { author, number } = lack.entry();
        EntryId { author, number: number.min(self.view.frontier().number(author) + 1) }
    }

    /// Whether a log has an entry of this number.
    fn spans(&self, log: ReplicaId, number: u64) -> bool {
        self.view.branches.first(log) <= number && number <= self.view.frontier().number(log)
    }

    /// The log that holds an entry that somebody has seen; none if it is not held.
    fn resolve(&self, replica: ReplicaId, tip: Tip) -> Result<Option<ReplicaId>, StoreError> {
        let branches = &self.view.branches;
        if branches.is_empty() {
            // One look, in nearly all clouds for ever.
            return match self.view.frontier().0.get(&replica) {
                Some(held) if held == &tip => Ok(Some(replica)),
                Some(held) if (1..=held.number).contains(&tip.number) => {
                    let named = EntryId { author: replica, number: tip.number };
                    Ok(self.is_held_as(named, tip.hash)?.then_some(replica))
                }
                _ => Ok(None),
            };
        }
        let mut folded = None;
        for author in branches.logs(branches.author(replica)).filter(|log| self.spans(*log, tip.number)) {
            let named = EntryId { author, number: tip.number };
            // Of one that nobody can name any more the hash is not kept: another branch's may be what is meant.
            match self.short_hash(named)? {
                Some(hash) if hash == tip.hash => return Ok(Some(author)),
                None if self.is_folded(named) => folded = folded.or(Some(author)),
                _ => {}
            }
        }
        Ok(folded)
    }

    /// Takes up a tip, and of a branch what it continues.
    fn include(&self, frontier: &mut Frontier, log: ReplicaId, tip: Tip) {
        frontier.set(log, tip);
        let mut at = log;
        while let Some(branch) = self.view.branches.get(at) {
            at = branch.parent;
            if let Some(end) = self.view.frontier().0.get(&at) {
                frontier.set(at, *end);
            }
        }
    }

    fn hash_at(&self, author: ReplicaId, number: u64) -> Result<Option<Hash>, StoreError> {
        if self.view.frontier().number(author) == number {
            return Ok(self.chains.get(&author).map(|chain| chain.last));
        }
        let id = EntryId { author, number };
        match self.entry_at(id)? {
            Some(entry) => Ok(Some(entry.hash())),
            None => Ok(self.left_of(id)?.map(|left| left.hash)),
        }
    }

    pub(crate) fn entry_at(&self, id: EntryId) -> Result<Option<Arc<Entry>>, StoreError> {
        if let Some(entry) = self.pending.entries.iter().find(|entry| entry.held_as() == id) {
            return Ok(Some(entry.clone()));
        }
        Ok(self.logged(id)?.and_then(|bytes| Entry::decode_shared(&bytes).ok()))
    }

    /// An entry of the log, or one that was moved there since the last flush.
    pub(crate) fn logged(&self, id: EntryId) -> Result<Option<Vec<u8>>, StoreError> {
        self.pending.row_of(Table::Log, id)
    }
}

/// A fork becomes known.
impl Replica {
    /// Ends a log before an entry that another follows; both go on as branches. Returns the new one's name.
    fn split(&mut self, log: ReplicaId, entry: &Entry) -> Result<ReplicaId, Rejection> {
        let EntryId { author, number: first } = entry.id();
        let frontier = Arc::new(self.frontier_at(log, first - 1)?);
        let kept = Kept::default().from(first, std::iter::empty());
        let chain = Chain { last: entry.header.previous, frontier, kept, ..Chain::default() };
        let branch = Branch { author, parent: log, first };
        if self.view.frontier().number(log) >= first {
            let held = self.hash_at(log, first)?.ok_or(Rejection::Chain(entry.id()))?;
            let to = Branches::name(author, &held);
            let before = chain.frontier.0.get(&log).copied();
            let mut branches = self.view.branches.clone();
            branches.insert(to, branch);
            self.rename(branches, &Renaming { log, first, to, before })?;
            let moved = self.chains.get(&to).map(|chain| chain.kept).unwrap_or_default();
            if let Some(rest) = self.chains.get_mut(&log) {
                (rest.last, rest.frontier) = (chain.last, chain.frontier.clone());
                rest.kept = rest.kept.before(first, &moved);
                rest.recent = Recent::default();
            }
        }
        let name = Branches::name(author, &entry.hash());
        self.view.add_branch(name, branch);
        self.chains.insert(name, chain);
        self.pending.rewrite = true;
        Ok(name)
    }

    /// The full frontier of an entry that is held.
    pub(crate) fn frontier_at(&self, log: ReplicaId, number: u64) -> Result<Frontier, StoreError> {
        let mut frontier = Frontier::default();
        for part in self.view.branches.line(log) {
            let end = if part == log { number } else { self.view.frontier().number(part) };
            let chain = self.chains.get(&part).cloned().unwrap_or_default();
            frontier.0.extend(&chain.floor.0);
            for number in self.view.branches.first(part).max(chain.kept.folded() + 1)..=end {
                let id = EntryId { author: part, number };
                let left = if number <= chain.kept.dropped() {
                    self.left_of(id)?
                } else {
                    self.entry_at(id)?.map(|entry| Left::of(&entry))
                };
                let Some(Left { hash, seen }) = left else { continue };
                for (replica, tip) in seen {
                    if let Some(of) = self.resolve(replica, tip)? {
                        self.include(&mut frontier, of, tip);
                    }
                }
                self.include(&mut frontier, part, Tip { number, hash: hash.short() });
            }
        }
        Ok(frontier)
    }

    fn rename(&mut self, branches: Branches, by: &Renaming) -> Result<(), Rejection> {
        let mut entries = Vec::new();
        for number in by.first..=self.view.frontier().number(by.log) {
            let (from, to) = (EntryId { author: by.log, number }, EntryId { author: by.to, number });
            let Some(entry) = self.entry_at(from)? else {
                let left = self.pending.row_of(Table::Dropped, from)?;
                self.pending.moved.insert((Table::Dropped, from), None);
                self.pending.moved.insert((Table::Dropped, to), left);
                continue;
            };
            if !self.pending.entries.iter().any(|entry| entry.held_as() == from) {
                self.pending.moved.insert((Table::Log, from), None);
                self.pending.moved.insert((Table::Log, to), Some(entry.bytes().to_vec()));
            }
            entries.push(entry);
        }
        for entry in &mut self.pending.entries {
            if entry.log == by.log && entry.header.number >= by.first {
                Arc::make_mut(entry).log = by.to;
            }
        }
        self.rename_documents(by)?;
        let chains = self.chains.iter().map(|(log, chain)| {
            let mut frontier = Frontier::clone(&chain.frontier);
            frontier.rename(by);
            (*log, Chain { frontier: Arc::new(frontier), ..chain.clone() })
        });
        self.chains = chains.collect();
        if let Some(chain) = self.chains.get(&by.log).cloned() {
            let kept = chain.kept.from(by.first, entries.iter().map(|entry| entry.bytes()));
            self.chains.insert(by.to, Chain { kept, floor: Arc::default(), ..chain });
        }
        let owner = branches.author(by.to);
        let (is_first, is_known) = (self.view.branches.is_empty(), self.view.branches.is_forked(owner));
        self.view.rename(branches, by);
        // The undivided log ends before all forks that are known: one that splits it is the earliest.
        if !is_known || by.log == owner {
            // Where others have forked too, or an heir has what it had, it cannot be told what that was.
            let is_clear = is_known || is_first && !self.view.retired().contains(owner);
            let all = self.view.frontier().number(by.to).saturating_sub(by.first - 1);
            let is_whole = u64::try_from(entries.len()).is_ok_and(|held| held == all);
            let given = (is_clear && is_whole).then(|| given_away(&entries, by));
            self.view.note_fork(owner, given.as_ref());
        }
        Ok(())
    }

    fn rename_documents(&mut self, by: &Renaming) -> Result<(), Rejection> {
        let mut rows: BTreeMap<RecordId, Option<Vec<u8>>> = BTreeMap::new();
        self.pending.reader.scan(Table::Document, &[], &mut |key, row| {
            if let Ok(id) = rmp_serde::from_slice(key) {
                rows.insert(id, Some(row.to_vec()));
            }
            true
        })?;
        rows.extend(self.pending.documents.iter().map(|(id, row)| (*id, row.clone())));
        for (id, row) in rows {
            let unreadable =
                |error: document::BadDocument| StoreError::Failed { doing: "read", reason: error.to_string() };
            if let Some(row) = row.map(|row| document::renamed(&row, by)).transpose().map_err(unreadable)?.flatten() {
                self.pending.documents.insert(id, Some(row));
            }
        }
        Ok(())
    }

    fn save(&self) -> Saved {
        Saved {
            view: self.view.clone(),
            chains: self.chains.clone(),
            entries: self.pending.entries.clone(),
            documents: self.pending.documents.clone(),
            moved: self.pending.moved.clone(),
            rewrite: self.pending.rewrite,
        }
    }

    fn restore(&mut self, saved: Saved) {
        let Saved { view, chains, entries, documents, moved, rewrite } = saved;
        (self.view, self.chains) = (view, chains);
        (self.pending.entries, self.pending.documents) = (entries, documents);
        (self.pending.moved, self.pending.rewrite) = (moved, rewrite);
    }
}

fn previous(entry: &Entry) -> Lack {
    let EntryId { author, number } = entry.id();
    Lack::Previous(EntryId { author, number: number.saturating_sub(1) }, entry.header.previous)
}

fn seen(author: ReplicaId, tip: Tip) -> Lack {
    Lack::Seen(EntryId { author, number: tip.number }, tip.hash)
}

/// Whether an entry seals such a set.
fn seals(entry: &Entry, is_such: impl Fn(&BTreeSet<ReplicaId>) -> bool) -> bool {
    entry.header.members.iter().any(|op| matches!(op, MemberOp::Seal { set } if is_such(set)))
}

/// A group's entries by what names them.
struct Index<'a> {
    hashes: BTreeMap<Hash, &'a Arc<Entry>>,
    tips: BTreeMap<(u64, u64), &'a Arc<Entry>>,
}

impl<'a> Index<'a> {
    fn of(group: &'a [Arc<Entry>]) -> Self {
        let tip = |entry: &Entry| (entry.tip().number, entry.tip().hash);
        Self {
            hashes: group.iter().map(|entry| (entry.hash(), entry)).collect(),
            tips: group.iter().map(|entry| (tip(entry), entry)).collect(),
        }
    }

    /// Of an author's entries those that no other of its follows: the ends of its branches.
    fn ends(&self, of: ReplicaId) -> Vec<&'a Arc<Entry>> {
        let all: Vec<&Arc<Entry>> = self.hashes.values().copied().filter(|entry| entry.header.author == of).collect();
        let followed: BTreeSet<Hash> = all.iter().map(|entry| entry.header.previous).collect();
        all.into_iter().filter(|entry| !followed.contains(&entry.hash())).collect()
    }

    /// An entry and those of the group that it follows in its author's log, down to the first.
    fn line(&self, end: &'a Arc<Entry>) -> Vec<&'a Arc<Entry>> {
        std::iter::successors(Some(end), |entry| self.hashes.get(&entry.header.previous).copied()).collect()
    }

    /// Who of the group admits a newcomer.
    fn admits(&self, newcomer: ReplicaId) -> impl Iterator<Item = ReplicaId> + '_ {
        let admits = move |op: &MemberOp| matches!(op, MemberOp::Join(member) if member.replica == newcomer);
        self.hashes
            .values()
            .filter(move |entry| entry.header.members.iter().any(admits))
            .map(|entry| entry.header.author)
    }

    /// What of the group an author's entries rest on: those up to its seal of such a set, if one is given (R5).
    fn resting_of(&self, by: ReplicaId, set: Option<&BTreeSet<ReplicaId>>) -> BTreeSet<Hash> {
        let mut entries: Vec<&Arc<Entry>> =
            self.hashes.values().copied().filter(|entry| entry.header.author == by).collect();
        entries.sort_unstable_by_key(|entry| entry.header.number);
        let covers = |sealed: &BTreeSet<ReplicaId>| set.is_some_and(|set| sealed.is_superset(set));
        let last = entries.iter().find(|entry| seals(entry, covers)).or(entries.last());
        last.map(|last| self.resting(last)).unwrap_or_default()
    }

    /// What of the group one of its entries rests on.
    fn resting(&self, entry: &'a Arc<Entry>) -> BTreeSet<Hash> {
        let (mut below, mut todo) = (BTreeSet::new(), vec![entry]);
        while let Some(entry) = todo.pop() {
            let seen = entry.header.seen.iter().filter_map(|(_, tip)| self.tips.get(&(tip.number, tip.hash)));
            let under = self.hashes.get(&entry.header.previous).into_iter().chain(seen);
            todo.extend(under.copied().filter(|other| below.insert(other.hash())));
        }
        below
    }
}

/// Whether everything can have one of those that it may have, and none is had twice: a matching, by augmenting paths.
fn has_each_its_own(may_have: &[Vec<usize>]) -> bool {
    fn find(of: usize, may_have: &[Vec<usize>], had: &mut BTreeMap<usize, usize>, tried: &mut BTreeSet<usize>) -> bool {
        for one in &may_have[of] {
            let is_new = tried.insert(*one);
            if is_new && had.get(one).copied().is_none_or(|other| find(other, may_have, had, tried)) {
                had.insert(*one, of);
                return true;
            }
        }
        false
    }
    let mut had = BTreeMap::new();
    (0..may_have.len()).all(|of| find(of, may_have, &mut had, &mut BTreeSet::new()))
}

/// What the entries of a branch have given away and burnt, of each pool as it is named now.
fn given_away(entries: &[Arc<Entry>], by: &Renaming) -> BTreeMap<PoolId, Amount> {
    let mut given: BTreeMap<PoolId, Amount> = BTreeMap::new();
    for op in entries.iter().flat_map(|entry| &entry.header.ledger) {
        if let LedgerOp::Grant { pool, amount, .. } | LedgerOp::Burn { pool, amount } = op {
            let mut pool = *pool;
            pool.rename(by);
            let sum = given.entry(pool).or_default();
            *sum = sum.saturating_add(amount);
        }
    }
    given
}

/// What an author names who did not know of a fork: its past says which branch it means.
fn resolve_names(header: &mut Header, branches: &Branches, past: &Frontier) {
    for op in &mut header.ledger {
        match op {
            LedgerOp::Mint { .. } => {}
            LedgerOp::Grow { pool, .. }
            | LedgerOp::Burn { pool, .. }
            | LedgerOp::Grant { pool, .. }
            | LedgerOp::Claim { pool, .. }
            | LedgerOp::DeclareDead { pool, .. }
            | LedgerOp::Inherit { pool, .. } => pool.entry = branches.resolve(pool.entry, past),
            LedgerOp::Confirm { pool, grant, .. } => {
                pool.entry = branches.resolve(pool.entry, past);
                *grant = branches.resolve(*grant, past);
            }
            LedgerOp::Release { claim } => claim.entry = branches.resolve(claim.entry, past),
        }
    }
}
