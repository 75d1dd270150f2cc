//! Entries whose past has not come yet. Each is kept by the entry that it lacks, so that one that comes looks only at
//! those that wait for it: catching up with thousands in the wrong order costs what they are, not their square.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use luc_engine::entry::Entry;
use luc_engine::id::{EntryId, ReplicaId};
use luc_engine::replica::{Received, Rejection, Replica};
use uuid::Uuid;

/// Most entries that wait; further ones are dropped, and come again by anti-entropy.
const LIMIT: usize = 8192;
/// Bytes in them, at most: nobody has judged yet who sent them.
const BYTES: usize = 64 << 20;
/// The lowest entry: where those that lack one begin.
const LOWEST: EntryId = EntryId { author: ReplicaId(Uuid::nil()), number: 0 };

/// Entries that wait.
#[derive(Debug, Default)]
pub struct Waiting {
    entries: BTreeMap<EntryId, Arc<[u8]>>,
    /// Bytes in them.
    bytes: usize,
    /// What each lacks.
    lacking: BTreeSet<(EntryId, EntryId)>,
    /// Those that lack nothing but a reason to be taken, since their authors are being retired: whatever came may be one.
    aside: BTreeSet<EntryId>,
    /// Entries that came since those were tried. When there are as many, they are tried again: so each that comes costs one
    /// of them, however many there are.
    since: usize,
}

impl Waiting {
    /// Gives an entry to a replica, and then those that waited for it. Says what became of the first, and why others
    /// were refused.
    pub fn receive(&mut self, replica: &mut Replica, bytes: Arc<[u8]>) -> (Received, Vec<Rejection>) {
        let received = replica.receive(&bytes);
        let mut refused = Vec::new();
        match &received {
            Received::Waiting(lack) => self.keep(*lack, bytes),
            Received::Applied if !self.entries.is_empty() => {
                if let Ok(entry) = Entry::decode_shared(&bytes) {
                    self.came(replica, entry.id(), &mut refused);
                }
            }
            Received::Applied | Received::Known | Received::Refused(_) => {}
        }
        (received, refused)
    }

    fn keep(&mut self, lack: EntryId, bytes: Arc<[u8]>) {
        if self.entries.len() >= LIMIT || self.bytes + bytes.len() > BYTES {
            return;
        }
        let Ok(entry) = Entry::decode_shared(&bytes) else { return };
        self.bytes += bytes.len();
        match self.entries.insert(entry.id(), bytes) {
            Some(other) => self.bytes -= other.len(),
            None => self.note(lack, entry.id()),
        }
    }

    fn note(&mut self, lack: EntryId, own: EntryId) {
        if lack == own {
            self.aside.insert(own);
        } else {
            self.lacking.insert((lack, own));
        }
    }

    /// Those that may be taken now that an entry came.
    fn roused(&mut self, entry: EntryId) -> BTreeSet<EntryId> {
        let of = self.lacking.range((entry, LOWEST)..).take_while(|(lack, _)| *lack == entry);
        let roused: BTreeSet<EntryId> = of.map(|(_, own)| *own).collect();
        for own in &roused {
            self.lacking.remove(&(entry, *own));
        }
        self.since += 1;
        if self.since < self.aside.len() {
            return roused;
        }
        self.since = 0;
        roused.into_iter().chain(std::mem::take(&mut self.aside)).collect()
    }

    fn came(&mut self, replica: &mut Replica, entry: EntryId, refused: &mut Vec<Rejection>) {
        let mut came = vec![entry];
        while let Some(entry) = came.pop() {
            for own in self.roused(entry) {
                let Some(bytes) = self.entries.remove(&own) else { continue };
                self.bytes -= bytes.len();
                match replica.receive(&bytes) {
                    Received::Waiting(lack) => {
                        self.bytes += bytes.len();
                        self.entries.insert(own, bytes);
                        self.note(lack, own);
                    }
                    Received::Applied => came.push(own),
                    Received::Known => {}
                    Received::Refused(rejection) => refused.push(rejection),
                }
            }
        }
    }
}
