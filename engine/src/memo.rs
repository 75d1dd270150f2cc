//! What this thread has worked out before: a simulator's many replicas all decode the same entries, check the same
//! signatures and apply the same changes to the same documents, and that would be most of its time. Each answer is a pure
//! function of what names it, so nothing else changes by it: two replicas that hold different documents get different
//! answers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::branch::Branches;
use crate::document::{Applied, BadDocument};
use crate::entry::{BadEntry, Entry, Frontier, Hash};
use crate::id::EntryId;
use crate::record::Kind;

/// Answers kept of a kind: about as many as a seed needs; then it starts anew.
const KEPT: usize = 1 << 14;

type Name = [u8; 32];
type Known<T> = RefCell<HashMap<Name, T, BuildHasherDefault<Truncated>>>;

thread_local! {
    static SIGNED: Known<bool> = RefCell::default();
    static ENTRIES: Known<Arc<Entry>> = RefCell::default();
    static FRONTIERS: Known<Frontier> = RefCell::default();
    static CHANGES: Known<()> = RefCell::default();
    static DOCUMENTS: Known<Option<Applied>> = RefCell::default();
}

/// Names are hashes already: their first bytes serve as they are.
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

pub(crate) fn entry(bytes: &[u8]) -> Result<Arc<Entry>, BadEntry> {
    let name = *blake3::hash(bytes).as_bytes();
    if let Some(known) = ENTRIES.with_borrow(|known| known.get(&name).cloned()) {
        return Ok(known);
    }
    let entry = Arc::new(Entry::decode(bytes)?);
    ENTRIES.with_borrow_mut(|known| keep(known, name, entry.clone()));
    Ok(entry)
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
