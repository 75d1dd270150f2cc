//! A state that a member gave is **on trust** until others have shown the same (`docs/reservations.md`, R14).
//!
//! A replica judges every entry that comes to it, and cannot judge a state: who gives one may leave out a claim, or write in
//! one that nobody made. But a state is a function of its frontier, so whoever has the same frontier shows the same digest.
//! Of the members who had no part in it (neither gave it, nor hold theirs on trust themselves) more than half must show that, or
//! [`ENOUGH`] where there are more; then it is as good as the replica's own. Where as many show another, or hold entries that
//! break a rule by this state, it is **refuted**, and the replica writes nothing more. One liar alone can do neither, among three
//! or more.
//!
//! Nothing else is promised before that: a replica on trust writes, since what it writes is judged by everybody as usual, but gives
//! its state to nobody and admits nobody.

use std::collections::BTreeMap;

use super::{OpenError, Rejection, Replica, meta};
use crate::entry::{Entry, Tip, encode};
use crate::id::ReplicaId;
use crate::mutant::{Mutant, on};
use crate::store::{Batch, Reader, StoreError, Table};
use crate::tx::Fence;

/// Where it is noted in [`Table::Meta`] who gave the state that is on trust, and whether it was refuted.
const ON_TRUST: &[u8] = b"on-trust";
/// So many decide, though they are no half: in a cloud of hundreds it takes half a minute to hear half of them, and they hardly
/// ever have the same entries. It takes as many liars to deceive somebody.
const ENOUGH: usize = 8;
/// Entries of one log that are remembered after one that breaks a rule: those who hold them name the last.
const REFUSED: usize = 256;

/// What a member has shown of the state that is held here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// At the same frontier it has the same digest.
    Same,
    /// At the same frontier it has another, or it holds an entry that breaks a rule here.
    Other,
    /// It holds its own on trust: whatever it shows says nothing.
    OnTrust,
}

/// A state on trust. What others have shown of it is not kept: they show it again.
#[derive(Debug)]
pub(super) struct Trust {
    giver: ReplicaId,
    refuted: bool,
    words: BTreeMap<ReplicaId, Word>,
    /// By author: an entry that breaks a rule here, and what follows it in the same log.
    refused: BTreeMap<ReplicaId, Vec<Tip>>,
}

impl Trust {
    pub(super) fn of(giver: ReplicaId) -> Self {
        Self { giver, refuted: false, words: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// What is noted in a store, if anything.
    pub(super) fn noted(reader: &dyn Reader) -> Result<Option<Self>, OpenError> {
        let noted = meta(reader, ON_TRUST)?;
        Ok(noted.map(|(giver, refuted)| Self { refuted, ..Self::of(giver) }))
    }

    pub(super) fn note(&self, batch: &mut Batch) {
        batch.put(Table::Meta, ON_TRUST.to_vec(), encode(&(self.giver, self.refuted)));
    }

    /// What is on trust once another state takes the place of the one that is. One that was refuted stays so: what was written upon it
    /// is out.
    pub(super) fn replaced(before: Option<&Self>, giver: ReplicaId) -> Self {
        let refuted = before.filter(|before| before.refuted);
        refuted.map_or_else(|| Self::of(giver), |before| Self { refuted: true, ..Self::of(before.giver) })
    }

    pub(super) fn fence(&self) -> Option<Fence> {
        self.refuted.then_some(Fence::FalseState { giver: self.giver })
    }
}

impl Replica {
    /// Notes that the rows beside it are a state that `giver` gave. Whoever fills an empty store does so in the commit that makes
    /// it whole.
    pub fn put_on_trust(batch: &mut Batch, giver: ReplicaId) {
        Trust::of(giver).note(batch);
    }

    /// Who gave the state that is held here, as long as that is on trust: for ever if it was refuted.
    #[must_use]
    pub fn on_trust(&self) -> Option<ReplicaId> {
        self.trust.as_ref().map(|trust| trust.giver)
    }

    /// The last entries of logs that cannot be those of who has this state, if it is on trust: what breaks a rule by it, or follows
    /// such an entry. Which form of it others hold tells the hash: its author may have forked, and signed one that nobody takes.
    pub fn refused(&self) -> impl Iterator<Item = (ReplicaId, Tip)> + '_ {
        let logs = self.trust.iter().flat_map(|trust| &trust.refused);
        logs.flat_map(|(log, tips)| tips.iter().map(|tip| (*log, *tip)))
    }

    pub(crate) fn note_refused(&mut self, entry: &Entry, rejection: &Rejection) {
        let Some(trust) = &mut self.trust else { return };
        let (log, tip) = (entry.header.author, entry.tip());
        let previous = Tip { number: tip.number.saturating_sub(1), hash: entry.header.previous.short() };
        match (rejection, trust.refused.get_mut(&log)) {
            (Rejection::Invalid { entry: broken, .. }, None) if *broken == entry.id() => {
                trust.refused.insert(log, vec![tip]);
            }
            (Rejection::Quarantined(_), Some(refused)) if refused.last() == Some(&previous) => {
                if refused.len() >= REFUSED {
                    refused.remove(0);
                }
                refused.push(tip);
            }
            _ => {}
        }
    }

    /// Takes up what a member has shown of the state that is on trust here. If that decides, the replica is fenced when this
    /// returns, or the state its own.
    ///
    /// # Errors
    /// [`StoreError`]: it is on trust still; after that the replica must be opened anew, as after a flush that fails.
    pub fn compared(&mut self, with: ReplicaId, word: Word) -> Result<(), StoreError> {
        let Some(trust) = &mut self.trust else { return Ok(()) };
        trust.words.insert(with, word);
        self.weigh_trust()
    }

    /// Decides whether a state is what the others have, if they have said enough.
    pub(super) fn weigh_trust(&mut self) -> Result<(), StoreError> {
        let Some(trust) = self.trust.as_ref().filter(|trust| !trust.refuted) else { return Ok(()) };
        let giver = trust.giver;
        let going = self.view.retirements.named(&self.view.frontier);
        let members = self
            .view
            .living()
            .filter(|(id, state)| !state.revoked && **id != self.me && **id != giver && !going.contains(id));
        let words: Vec<Option<Word>> = members.map(|(id, _)| trust.words.get(id).copied()).collect();
        let voters = words.iter().filter(|word| **word != Some(Word::OnTrust)).count();
        let most = |said: Word| {
            let count = words.iter().filter(|word| **word == Some(said)).count();
            count * 2 > voters || count >= ENOUGH
        };
        let mut batch = Batch::default();
        let refuted = match (most(Word::Same) || voters == 0, most(Word::Other)) {
            (true, _) => {
                batch.delete(Table::Meta, ON_TRUST.to_vec());
                None
            }
            (_, true) if !on(Mutant::TrustKept) => {
                let refuted = Trust { refuted: true, ..Trust::of(giver) };
                refuted.note(&mut batch);
                Some(refuted)
            }
            _ => return Ok(()),
        };
        let noted = self.store.commit(&batch).and_then(|()| self.store.reader());
        self.pending.reader = self.sound(noted)?;
        self.trust = refuted;
        Ok(())
    }
}
