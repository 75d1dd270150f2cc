//! A store that is cut off at any byte opens to a prefix of its acknowledged entries, and holds all that was
//! acknowledged before the last flush that reached the disk (rule `acknowledged-is-durable`).
//!
//! A backend records every write; a crash keeps all that was synchronised, an arbitrary part of what was not, and may
//! tear the last write at any byte.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::{Arc, Mutex};

use common::{cloud, key, member};
use luc_engine::record::Project;
use luc_engine::replica::{Identity, OpenError, Replica};
use luc_engine::store::{Batch, RedbStore, Store, StoreError, Table};
use luc_engine::tx::Refusal;
use proptest::prelude::*;
use redb::StorageBackend;
use uuid::Uuid;

#[derive(Clone, Debug)]
enum Written {
    Length(u64),
    Bytes(u64, Vec<u8>),
    Sync,
}

#[derive(Debug, Default)]
struct Disk {
    image: Vec<u8>,
    history: Vec<Written>,
    /// Bytes that still fit; none if the disk is large.
    room: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Recording(Arc<Mutex<Disk>>);

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

impl StorageBackend for Recording {
    fn len(&self) -> Result<u64, std::io::Error> {
        Ok(self.0.lock().unwrap().image.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        let disk = self.0.lock().unwrap();
        let from = index(offset);
        out.copy_from_slice(&disk.image[from..from + out.len()]);
        Ok(())
    }
    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        let mut disk = self.0.lock().unwrap();
        if disk.room.is_some_and(|room| len > room) {
            return Err(std::io::Error::other("no space left on device"));
        }
        disk.image.resize(index(len), 0);
        disk.history.push(Written::Length(len));
        Ok(())
    }
    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.0.lock().unwrap().history.push(Written::Sync);
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        let mut disk = self.0.lock().unwrap();
        let from = index(offset);
        disk.image[from..from + data.len()].copy_from_slice(data);
        disk.history.push(Written::Bytes(offset, data.to_vec()));
        Ok(())
    }
}

impl Recording {
    fn length(&self) -> usize {
        self.0.lock().unwrap().history.len()
    }

    /// The image that a crash leaves after `kept` operations: all up to the last synchronisation, those after it as
    /// `lost` says, and the last one torn after `torn` bytes.
    fn crashed(&self, kept: usize, lost: u64, torn: usize) -> Self {
        let disk = self.0.lock().unwrap();
        let history = &disk.history[..kept];
        let synced = history.iter().rposition(|op| matches!(op, Written::Sync)).unwrap_or(0);
        let mut image: Vec<u8> = Vec::new();
        for (at, op) in history.iter().enumerate() {
            let dropped = at > synced && (lost >> (at % 64)) & 1 == 1;
            match op {
                // A length is metadata that the file system keeps in order.
                Written::Length(len) => image.resize(index(*len), 0),
                Written::Bytes(offset, bytes) if !dropped => {
                    let whole = if at + 1 == kept { torn.min(bytes.len()) } else { bytes.len() };
                    let from = index(*offset);
                    image[from..from + whole].copy_from_slice(&bytes[..whole]);
                }
                Written::Bytes(..) | Written::Sync => {}
            }
        }
        Self(Arc::new(Mutex::new(Disk { image, ..Disk::default() })))
    }
}

fn create(replica: &mut Replica, n: u64) {
    let project = Project { name: format!("p{n}"), ..Project::default() };
    replica.transact::<_, Refusal>(n, |tx| tx.create(Uuid::from_u128(u128::from(n)), project, &[])).unwrap();
}

fn identity() -> Identity {
    Identity { cloud: cloud(), key: key(0) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_store_cut_off_anywhere_opens_to_a_prefix_of_what_was_acknowledged(
        batches in proptest::collection::vec(1_u64..6, 1..12),
        cuts in proptest::collection::vec((0.0_f64..1.0, any::<u64>(), 0_usize..5000), 12),
    ) {
        let disk = Recording::default();
        let store = RedbStore::open_backend(disk.clone()).unwrap();
        let mut replica = Replica::found(identity(), Box::new(store), member(0), 1).unwrap();
        // What had been acknowledged when the history was so long.
        let mut acknowledged = vec![(disk.length(), 1)];
        let mut entries = 1;
        for count in batches {
            for _ in 0..count {
                entries += 1;
                create(&mut replica, entries);
            }
            replica.flush().unwrap();
            acknowledged.push((disk.length(), entries));
        }
        let me = replica.identity().replica();
        for (place, lost, torn) in cuts {
            #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let kept = (place * disk.length() as f64) as usize;
            let safe = acknowledged.iter().rev().find(|(length, _)| *length <= kept).map(|(_, entries)| *entries);
            let crashed = disk.crashed(kept, lost, torn);
            let Some(safe) = safe else { continue };
            let store = RedbStore::open_backend(crashed).unwrap();
            let opened = Replica::open(identity(), Box::new(store)).unwrap();
            let held = opened.view().frontier().number(me);
            prop_assert!(held >= safe, "{safe} were acknowledged, {held} are there");
            prop_assert!(held <= entries);
            let projects = opened.view().all::<Project>().count() as u64;
            prop_assert_eq!(projects, held - 1, "an entry is there without its effect, or in part");
        }
    }
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let disk = Recording::default();
    let store = RedbStore::open_backend(disk.clone()).unwrap();
    let mut replica = Replica::found(identity(), Box::new(store), member(0), 1).unwrap();
    let full = disk.0.lock().unwrap().image.len() as u64;
    disk.0.lock().unwrap().room = Some(full);
    let mut acknowledged = 1;
    let failed = (2..100_000).find_map(|n| {
        create(&mut replica, n);
        match replica.flush() {
            Ok(_) => {
                acknowledged = n;
                None
            }
            Err(error) => Some(error),
        }
    });
    assert!(matches!(failed, Some(StoreError::Failed { .. })), "{failed:?}");
    create(&mut replica, 999_999);
    assert!(matches!(replica.flush(), Err(StoreError::Poisoned)), "nobody knows what the disk holds");
    let me = replica.identity().replica();
    drop(replica);
    let image = disk.crashed(disk.length(), 0, usize::MAX);
    let opened = Replica::open(identity(), Box::new(RedbStore::open_backend(image).unwrap())).unwrap();
    assert!(opened.view().frontier().number(me) >= acknowledged);
}

#[test]
fn another_format_and_an_empty_store_are_refused_with_the_reason() {
    let open = |store: RedbStore| Replica::open(identity(), Box::new(store));
    let empty = RedbStore::open_backend(Recording::default()).unwrap();
    assert!(matches!(open(empty.clone()), Err(OpenError::Empty)));
    let mut other = empty;
    let mut batch = Batch::default();
    batch.put(Table::Meta, b"format".to_vec(), 99_u64.to_be_bytes().to_vec());
    other.commit(&batch).unwrap();
    assert!(matches!(open(other), Err(OpenError::Format(99))));
}
