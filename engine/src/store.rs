//! The store: one ordered, durable map in few tables, behind a small trait.
//!
//! An entry and its effects are committed together, and many entries share one commit and one flush. What is not
//! committed never happened: nothing may leave the replica before [`Store::commit`] has returned (`PROTOCOL.md`, E2).
//! After a failed commit the store refuses all further writes, since nobody knows what the disk holds.
//!
//! [`RedbStore`] is the real one; [`MemoryStore`] is for tests and the simulator.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::site_mutant::{SiteMutant, on};
use redb::{ReadableDatabase, TableDefinition};

/// Version of the store's format, written in [`Table::Meta`].
pub const FORMAT: u64 = 13;

/// The tables. Each has its own key and value encoding, see [`crate::replica`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Table {
    /// Format version and what belongs to this replica alone. Never part of a snapshot.
    Meta,
    /// Entries as they travel, by author and number.
    Log,
    /// Per log, which is an author or a branch: its last hash, its full frontier, and where the branch begins.
    Author,
    /// Members.
    Member,
    /// Typed records with their observations: what views are made of.
    Record,
    /// Automerge documents in saved form, with the entries that brought their changes.
    Document,
    /// Records that are deleted and gone, until everybody has their deletion.
    Tombstone,
    /// Names and their bearers.
    Name,
    /// Pools with their accounts.
    Pool,
    /// Live claims.
    Claim,
    /// Requests to retire replicas, seals, and assents.
    Retirement,
    /// Of entries that are in the log no more: their hashes and what they had seen, while an entry that comes may name them, or
    /// leave their author's log there.
    Dropped,
    /// Entries that a snapshot lacked and that are to be replayed on it. Never part of a snapshot.
    Replay,
}

impl Table {
    /// All tables.
    pub const ALL: [Self; 13] = [
        Self::Meta,
        Self::Log,
        Self::Author,
        Self::Member,
        Self::Record,
        Self::Document,
        Self::Tombstone,
        Self::Name,
        Self::Pool,
        Self::Claim,
        Self::Retirement,
        Self::Dropped,
        Self::Replay,
    ];

    /// The tables that a snapshot for a new replica carries: everything but what is this replica's own.
    pub fn in_snapshot() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|table| !matches!(table, Self::Meta | Self::Replay))
    }

    /// Its name on disk and in snapshots.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Log => "log",
            Self::Author => "author",
            Self::Member => "member",
            Self::Record => "record",
            Self::Document => "document",
            Self::Tombstone => "tombstone",
            Self::Name => "name",
            Self::Pool => "pool",
            Self::Claim => "claim",
            Self::Retirement => "retirement",
            Self::Dropped => "dropped",
            Self::Replay => "replay",
        }
    }

    /// The table of a name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }

    fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(self.name())
    }
}

/// Why the store did not do it. After a failed commit: what was acknowledged before is safe; whether this batch is on
/// the disk is unknown, and the store takes no further one until it is opened again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk or the database failed.
    #[error("the store failed to {doing}: {reason}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// What the database said.
        reason: String,
    },
    /// An earlier commit failed.
    #[error("the store takes no writes since a commit failed; restart the replica once the cause is mended")]
    Poisoned,
}

fn failed<E: fmt::Display>(doing: &'static str) -> impl Fn(E) -> StoreError {
    move |error| StoreError::Failed { doing, reason: error.to_string() }
}

/// Writes that happen together or not at all. A value of none deletes the key.
#[derive(Clone, Debug, Default)]
pub struct Batch(pub BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>);

impl Batch {
    /// Writes a row.
    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.0.insert((table, key), Some(value));
    }

    /// Deletes a row.
    pub fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.0.insert((table, key), None);
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A consistent state of the store, unaffected by later commits.
pub trait Reader: Send {
    /// One row.
    ///
    /// # Errors
    /// [`StoreError`] when the disk cannot be read.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Rows from `from` on, in order of their keys, until `row` returns false.
    ///
    /// # Errors
    /// [`StoreError`] when the disk cannot be read.
    fn scan(&self, table: Table, from: &[u8], row: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError>;
}

/// The store of one replica.
pub trait Store: Send {
    /// Makes a batch durable. When this returns, the batch survives power loss.
    ///
    /// # Errors
    /// [`StoreError`]; from then on every commit fails.
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError>;

    /// The state as of the last commit.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot start a read.
    fn reader(&self) -> Result<Box<dyn Reader>, StoreError>;
}

/// The store on disk: redb, an embedded copy-on-write B-tree with checksummed commits.
#[derive(Clone)]
pub struct RedbStore {
    db: Arc<redb::Database>,
    poisoned: bool,
}

impl RedbStore {
    /// How much of the file is cached in memory, bytes: views are served from memory, so the cache serves only updates.
    const CACHE: usize = 8 << 20;

    /// Opens the file, or makes it. An unclean end is repaired to the last commit.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be opened, is locked by another process, or is not a store.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let db = redb::Database::builder().set_cache_size(Self::CACHE).create(path).map_err(failed("open"))?;
        Self::over(db)
    }

    /// Opens over another backend: tests put a recording one here.
    ///
    /// # Errors
    /// See [`RedbStore::open`].
    pub fn open_backend(backend: impl redb::StorageBackend) -> Result<Self, StoreError> {
        let builder = redb::Database::builder();
        Self::over(builder.create_with_backend(backend).map_err(failed("open"))?)
    }

    fn over(db: redb::Database) -> Result<Self, StoreError> {
        let store = Self { db: Arc::new(db), poisoned: false };
        let write = store.db.begin_write().map_err(failed("open"))?;
        for table in Table::ALL {
            write.open_table(table.definition()).map_err(failed("open"))?;
        }
        write.commit().map_err(failed("open"))?;
        Ok(store)
    }

    fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut write = self.db.begin_write().map_err(failed("write"))?;
        if on(SiteMutant::FlushSkipped) {
            write.set_durability(redb::Durability::None).map_err(failed("write"))?;
        }
        let mut rows = batch.0.iter().peekable();
        while let Some(((table, _), _)) = rows.peek() {
            let current = *table;
            let mut open = write.open_table(current.definition()).map_err(failed("write"))?;
            while let Some(((_, key), value)) = rows.next_if(|((table, _), _)| *table == current) {
                match value {
                    Some(value) => open.insert(key.as_slice(), value.as_slice()).map_err(failed("write"))?,
                    None => open.remove(key.as_slice()).map_err(failed("write"))?,
                };
            }
        }
        write.commit().map_err(failed("commit"))
    }
}

impl Store for RedbStore {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.poisoned {
            return Err(StoreError::Poisoned);
        }
        self.write(batch).inspect_err(|_| self.poisoned = true)
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        Ok(Box::new(RedbReader(self.db.begin_read().map_err(failed("read"))?)))
    }
}

struct RedbReader(redb::ReadTransaction);

impl Reader for RedbReader {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let open = self.0.open_table(table.definition()).map_err(failed("read"))?;
        let value = open.get(key).map_err(failed("read"))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn scan(&self, table: Table, from: &[u8], row: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        let open = self.0.open_table(table.definition()).map_err(failed("read"))?;
        for item in open.range(from..).map_err(failed("read"))? {
            let (key, value) = item.map_err(failed("read"))?;
            if !row(key.value(), value.value()) {
                break;
            }
        }
        Ok(())
    }
}

type Rows = imbl::OrdMap<(Table, Vec<u8>), Vec<u8>>;

/// A store in memory, for tests and the simulator. Clones share the rows, like a disk that outlives its process.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Mutex<Rows>>);

impl Store for MemoryStore {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in &batch.0 {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        Ok(Box::new(MemoryReader(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())))
    }
}

struct MemoryReader(Rows);

impl Reader for MemoryReader {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn scan(&self, table: Table, from: &[u8], row: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        for ((at, key), value) in self.0.range((table, from.to_vec())..) {
            if *at != table || !row(key, value) {
                break;
            }
        }
        Ok(())
    }
}
