//! What this thread has worked out before: a simulator's many replicas all decode the same entries, check the same
//! signatures and apply the same changes to the same documents, and that would be most of its time. Each answer is a pure
//! function of what names it, so nothing else changes by it: two replicas that hold different documents get different
//! answers.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::account::Pool;
use crate::branch::Branches;
use crate::document::{Applied, BadDocument};
use crate::entry::{BadEntry, Entry, Frontier, Hash, encode};
use crate::id::{EntryId, PoolId};
use crate::record::{Kind, RecordId};
use crate::view::{Held, Sum};

/// Answers kept of a kind: about as many as a seed needs; then it starts anew.
const KEPT: usize = 1 << 14;

type Name = [u8; 32];
type Known<T> = RefCell<HashMap<Name, T, BuildHasherDefault<Truncated>>>;

thread_local! {
    static SIGNED: Known<bool> = RefCell::default();
    static ENTRIES: RefCell<HashMap<[u8; 8], Vec<Arc<Entry>>, BuildHasherDefault<Truncated>>> = RefCell::default();
    static FRONTIERS: Known<Frontier> = RefCell::default();
    static CHANGES: Known<()> = RefCell::default();
    static DOCUMENTS: Known<Option<Applied>> = RefCell::default();
    static RECORDS: RefCell<Alike<RecordId, Held>> = RefCell::default();
    static POOLS: RefCell<Alike<PoolId, Pool>> = RefCell::default();
    static POOL_CHANGES: RefCell<HashMap<[usize; 2], PoolChange, BuildHasherDefault<Truncated>>> = RefCell::default();
}

/// Forgets everything: what comes next is about something else, and small tables are quicker than large ones.
pub fn forget() {
    SIGNED.with_borrow_mut(HashMap::clear);
    ENTRIES.with_borrow_mut(HashMap::clear);
    FRONTIERS.with_borrow_mut(HashMap::clear);
    CHANGES.with_borrow_mut(HashMap::clear);
    DOCUMENTS.with_borrow_mut(HashMap::clear);
    RECORDS.take();
    POOLS.take();
    POOL_CHANGES.with_borrow_mut(HashMap::clear);
}

/// Rows that are equal are one, whichever replica holds them: found by what they are of, and compared. Each is kept, so that
/// its place names it, with what has been worked out of it.
struct Alike<K, T> {
    of: HashMap<K, VecDeque<Arc<T>>>,
    known: HashMap<usize, Row<T>, BuildHasherDefault<Truncated>>,
}

struct Row<T> {
    /// Keeps its place from being another's.
    _row: Arc<T>,
    sum: Option<Sum>,
    encoded: Option<Arc<[u8]>>,
}

/// The pools before and after, and what their change does to a digest.
type PoolChange = ([Option<Arc<Pool>>; 2], Sum);

impl<K, T> Default for Alike<K, T> {
    fn default() -> Self {
        Self { of: HashMap::new(), known: HashMap::default() }
    }
}

/// Rows that are kept of a kind: a large cloud has many.
const ROWS: usize = 1 << 17;
/// Rows of one thing that are remembered: replicas that are behind have older ones.
const VERSIONS: usize = 6;

impl<K: Eq + std::hash::Hash, T: PartialEq> Alike<K, T> {
    fn one(&mut self, id: K, row: Arc<T>) -> Arc<T> {
        if self.known.len() >= ROWS {
            *self = Self::default();
        }
        let versions = self.of.entry(id).or_default();
        if let Some(known) = versions.iter().find(|known| ***known == *row) {
            return known.clone();
        }
        if versions.len() >= VERSIONS
            && let Some(oldest) = versions.pop_back()
        {
            self.known.remove(&place(&oldest));
        }
        versions.push_front(row.clone());
        self.known.insert(place(&row), Row { _row: row.clone(), sum: None, encoded: None });
        row
    }

    fn sum(&mut self, row: &Arc<T>, sum: impl FnOnce() -> Sum) -> Sum {
        match self.known.get_mut(&place(row)) {
            Some(known) => *known.sum.get_or_insert_with(sum),
            None => sum(),
        }
    }

    fn encoded(&mut self, row: &Arc<T>) -> Vec<u8>
    where
        T: serde::Serialize,
    {
        match self.known.get_mut(&place(row)) {
            Some(known) => known.encoded.get_or_insert_with(|| encode(&**row).into()).to_vec(),
            None => encode(&**row),
        }
    }
}

fn place<T>(row: &Arc<T>) -> usize {
    Arc::as_ptr(row).addr()
}

/// The one record that equals this.
pub(crate) fn record(id: RecordId, held: Arc<Held>) -> Arc<Held> {
    RECORDS.with_borrow_mut(|rows| rows.one(id, held))
}

/// What a record adds to a digest.
pub(crate) fn record_sum(held: &Arc<Held>, sum: impl FnOnce() -> Sum) -> Sum {
    RECORDS.with_borrow_mut(|rows| rows.sum(held, sum))
}

/// A record's row.
pub(crate) fn record_row(held: &Arc<Held>) -> Vec<u8> {
    RECORDS.with_borrow_mut(|rows| rows.encoded(held))
}

/// The one pool that equals this.
pub(crate) fn pool(id: PoolId, pool: Arc<Pool>) -> Arc<Pool> {
    POOLS.with_borrow_mut(|rows| rows.one(id, pool))
}

/// A pool's row.
pub(crate) fn pool_row(pool: &Arc<Pool>) -> Vec<u8> {
    POOLS.with_borrow_mut(|rows| rows.encoded(pool))
}

/// What a pool's change does to a digest.
pub(crate) fn pool_change(before: Option<&Arc<Pool>>, now: Option<&Arc<Pool>>, sum: impl FnOnce() -> Sum) -> Sum {
    let places = [before, now].map(|pool| pool.map_or(0, place));
    if let Some(known) = POOL_CHANGES.with_borrow(|known| known.get(&places).map(|(_, sum)| *sum)) {
        return known;
    }
    let sum = sum();
    POOL_CHANGES.with_borrow_mut(|known| {
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(places, ([before.cloned(), now.cloned()], sum));
    });
    sum
}

/// Names are hashes already: their first bytes serve as they are. Places are spread.
#[derive(Default)]
struct Truncated(u64);

impl Hasher for Truncated {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        if let Some(head) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*head);
        }
    }
    fn write_usize(&mut self, n: usize) {
        self.0 = (self.0.rotate_left(29) ^ n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

fn name(parts: &[&[u8]]) -> Name {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&part.len().to_le_bytes()).update(part);
    }
    *hasher.finalize().as_bytes()
}

fn keep<T>(known: &mut HashMap<Name, T, BuildHasherDefault<Truncated>>, name: Name, value: T) {
    if known.len() >= KEPT {
        known.clear();
    }
    known.insert(name, value);
}

pub(crate) fn signed(key: &[u8; 32], bytes: &[u8], signature: &[u8], check: impl FnOnce() -> bool) -> bool {
    let name = name(&[key, signature, bytes]);
    if let Some(known) = SIGNED.with_borrow(|known| known.get(&name).copied()) {
        return known;
    }
    let signed = check();
    SIGNED.with_borrow_mut(|known| keep(known, name, signed));
    signed
}

/// What was signed in this thread is signed.
pub(crate) fn know_signed(key: &[u8; 32], bytes: &[u8], signature: &[u8]) {
    let name = name(&[key, signature, bytes]);
    SIGNED.with_borrow_mut(|known| keep(known, name, true));
}

/// Found by a mark that hardly two entries have in common, and then compared: cheaper than a hash that cannot be forged.
pub(crate) fn entry(bytes: &[u8]) -> Result<Arc<Entry>, BadEntry> {
    let part = mark(bytes);
    let is_same = |known: &&Arc<Entry>| known.bytes() == bytes;
    if let Some(known) = ENTRIES.with_borrow(|known| known.get(&part)?.iter().find(is_same).cloned()) {
        return Ok(known);
    }
    let entry = Arc::new(Entry::decode(bytes)?);
    ENTRIES.with_borrow_mut(|known| {
        if known.len() >= KEPT {
            known.clear();
        }
        known.entry(part).or_default().push(entry.clone());
    });
    Ok(entry)
}

/// Tells most bytes from others, at little cost; nobody forges anything here.
fn mark(bytes: &[u8]) -> [u8; 8] {
    let (words, rest) = bytes.as_chunks();
    let mix = |sum: u64, word: u64| (sum.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    let sum = words.iter().fold(bytes.len() as u64, |sum, word| mix(sum, u64::from_le_bytes(*word)));
    rest.iter().fold(sum, |sum, byte| mix(sum, u64::from(*byte))).to_le_bytes()
}

/// An entry's full frontier, shared by all who hold the entry: in a large cloud each is large, and there is one for every author.
pub(crate) fn frontier(entry: &Hash, full: Frontier) -> Frontier {
    let known = FRONTIERS.with_borrow(|known| known.get(&entry.0).filter(|known| **known == full).cloned());
    known.unwrap_or_else(|| {
        FRONTIERS.with_borrow_mut(|known| keep(known, entry.0, full.clone()));
        full
    })
}

/// Whether a change was found to be its author's before.
pub(crate) fn is_known_change(author: &[u8; 16], bytes: &[u8]) -> bool {
    let name = name(&[author, bytes]);
    CHANGES.with_borrow(|known| known.contains_key(&name))
}

pub(crate) fn know_change(author: &[u8; 16], bytes: &[u8]) {
    let name = name(&[author, bytes]);
    CHANGES.with_borrow_mut(|known| keep(known, name, ()));
}

pub(crate) fn document(
    row: Option<&[u8]>,
    (entry, frontier, _): (EntryId, &Frontier, &Branches),
    kind: Kind,
    bytes: &[u8],
    apply: impl FnOnce() -> Result<Option<Applied>, BadDocument>,
) -> Result<Option<Applied>, BadDocument> {
    let mut past = Vec::with_capacity(24 + 32 * frontier.0.len());
    past.extend(entry.author.0.as_bytes());
    past.extend(entry.number.to_le_bytes());
    for (replica, tip) in &frontier.0 {
        past.extend(replica.0.as_bytes());
        past.extend(tip.number.to_le_bytes());
    }
    past.extend([kind as u8, u8::from(row.is_some())]);
    let name = name(&[row.unwrap_or_default(), &past, bytes]);
    if let Some(known) = DOCUMENTS.with_borrow(|known| known.get(&name).cloned()) {
        return Ok(known);
    }
    let applied = apply()?;
    DOCUMENTS.with_borrow_mut(|known| keep(known, name, applied.clone()));
    Ok(applied)
}
