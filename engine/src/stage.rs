//! Entries that may be taken only together with others.
//!
//! Of an author who forked, or whom this replica has sealed, an entry is taken only where another member's rests on it
//! (`docs/reservations.md`, R5 to R8), and then both are durable in one flush, with all that they rest on: else this
//! replica's own next entry could rest on what nobody else holds, and would be void with it. So those entries wait here, and with them
//! those that may show why. What is staged is judged by nobody yet and is forgotten at a restart: peers send it again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::entry::{Entry, Hash, Tip};
use crate::id::{EntryId, ReplicaId};

/// Most entries, and bytes in them: nobody has judged who sent them. The oldest go first.
const LIMIT: usize = 4_096;
const BYTES: usize = 32 << 20;

/// What is staged.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    entries: BTreeMap<Hash, Arc<Entry>>,
    by_tip: BTreeMap<(u64, u64), Hash>,
    order: VecDeque<Hash>,
    bytes: usize,
    /// What those that could show others lack, so that one that comes is tried with those that wait for it.
    lacks: BTreeMap<Hash, Lack>,
    /// Those by the number and the beginning of the hash of what they lack.
    awaited: BTreeSet<((u64, u64), Hash)>,
    /// How far everything was when each was looked at last.
    tried: BTreeMap<Hash, (u64, usize)>,
    /// How many were ever staged.
    inserted: u64,
    /// How often another form of an author's entries was asked for.
    asked: BTreeMap<ReplicaId, u32>,
}

/// What is missing below a staged entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// The entry of this author and number that has this hash.
    Previous(EntryId, Hash),
    /// The entry that somebody has seen.
    Seen(EntryId, u64),
}

impl Lack {
    pub(crate) fn entry(&self) -> EntryId {
        match self {
            Self::Previous(entry, _) | Self::Seen(entry, _) => *entry,
        }
    }

    fn key(&self) -> (u64, u64) {
        match self {
            Self::Previous(entry, hash) => (entry.number, hash.short()),
            Self::Seen(entry, short) => (entry.number, *short),
        }
    }
}

impl Stage {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn insert(&mut self, entry: Arc<Entry>) {
        let hash = entry.hash();
        if self.entries.contains_key(&hash) {
            return;
        }
        self.inserted = self.inserted.wrapping_add(1);
        self.bytes += entry.bytes().len();
        self.by_tip.insert(key(entry.tip()), hash);
        self.order.push_back(hash);
        self.entries.insert(hash, entry);
        while self.entries.len() > LIMIT || self.bytes > BYTES {
            let Some(oldest) = self.order.pop_front() else { break };
            self.remove(&oldest);
        }
        // What has gone by other ways is not kept in order for ever.
        if self.order.len() > 2 * LIMIT {
            self.order.retain(|hash| self.entries.contains_key(hash));
        }
    }

    pub(crate) fn remove(&mut self, hash: &Hash) {
        self.note_complete(hash);
        self.tried.remove(hash);
        if let Some(entry) = self.entries.remove(hash) {
            self.bytes -= entry.bytes().len();
            self.by_tip.remove(&key(entry.tip()));
        }
        if self.lacks.is_empty() {
            self.asked.clear();
        }
    }

    pub(crate) fn get(&self, hash: &Hash) -> Option<&Arc<Entry>> {
        self.entries.get(hash)
    }

    /// The entry that has this number and beginning of a hash, whoever wrote it: a branch may not be known by name yet.
    pub(crate) fn seen(&self, tip: Tip) -> Option<&Arc<Entry>> {
        self.by_tip.get(&key(tip)).and_then(|hash| self.entries.get(hash))
    }

    pub(crate) fn note_lack(&mut self, hash: Hash, lack: Lack) {
        if self.entries.contains_key(&hash) {
            self.note_complete(&hash);
            self.lacks.insert(hash, lack);
            self.awaited.insert((lack.key(), hash));
        }
    }

    pub(crate) fn note_complete(&mut self, hash: &Hash) {
        if let Some(lack) = self.lacks.remove(hash) {
            self.awaited.remove(&(lack.key(), *hash));
        }
    }

    /// How many were ever staged.
    pub(crate) fn inserted(&self) -> u64 {
        self.inserted
    }

    /// What a staged entry was found to lack.
    pub(crate) fn lack(&self, hash: &Hash) -> Option<Lack> {
        self.lacks.get(hash).copied()
    }

    /// Notes that an entry is looked at. Says whether anything has changed since it was looked at before.
    pub(crate) fn note_tried(&mut self, hash: Hash, now: (u64, usize)) -> bool {
        self.tried.insert(hash, now) != Some(now)
    }

    /// What lacks this entry.
    pub(crate) fn lacking(&self, entry: &Entry) -> Vec<Hash> {
        let key = key(entry.tip());
        let of = self.awaited.range((key, Hash::default())..).take_while(|(awaited, _)| *awaited == key);
        let is = |hash: &Hash| match self.lacks.get(hash) {
            Some(Lack::Previous(_, hash)) => *hash == entry.hash(),
            lack => lack.is_some(),
        };
        of.map(|(_, hash)| *hash).filter(is).collect()
    }

    /// How far below what is lacking the next question for an author's entries goes: twice as far each time.
    pub(crate) fn asks(&mut self, author: ReplicaId) -> u64 {
        let asked = self.asked.entry(author).or_default();
        *asked = asked.saturating_add(1);
        1_u64.checked_shl((*asked).saturating_add(3)).unwrap_or(u64::MAX)
    }
}

fn key(tip: Tip) -> (u64, u64) {
    (tip.number, tip.hash)
}
