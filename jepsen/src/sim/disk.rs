//! A simulated disk: what a commit has made durable, and nothing else. It outlives the process that writes to it.
//!
//! redb's commits are atomic (`engine/tests/store.rs` cuts it off anywhere), so a commit is here whole or not at all:
//! the world decides whether a crash during one keeps it, and can make one fail.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use luc_engine::store::{Batch, Reader, Store, StoreError, Table};

/// A row, which the disks of other nodes may have too.
type Value = Arc<[u8]>;
type Rows = BTreeMap<Table, BTreeMap<Vec<u8>, Value>>;

/// Rows of this length are looked up: a large cloud's nodes have the same ones, each as long as there are nodes.
const LONG: usize = 1 << 10;
/// So many are remembered.
const REMEMBERED: usize = 1 << 16;

thread_local! {
    static LONG_ROWS: RefCell<HashMap<[u8; 32], Weak<[u8]>>> = RefCell::default();
}

fn shared(value: &[u8]) -> Value {
    if value.len() < LONG {
        return value.into();
    }
    let name = *blake3::hash(value).as_bytes();
    LONG_ROWS.with_borrow_mut(|rows| {
        if let Some(row) = rows.get(&name).and_then(Weak::upgrade) {
            return row;
        }
        if rows.len() >= REMEMBERED {
            rows.retain(|_, row| row.strong_count() > 0);
        }
        let row: Value = value.into();
        rows.insert(name, Arc::downgrade(&row));
        row
    })
}

#[derive(Debug, Default)]
struct State {
    rows: Rows,
    commits: u64,
    fail_next: bool,
    poisoned: bool,
}

/// A disk. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

/// Everything that a disk holds, at one moment.
#[derive(Clone, Debug)]
pub struct Image(Rows);

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next commit fails, after it has reached the disk or before it has.
    pub fn fail_next(&self) {
        self.state().fail_next = true;
    }

    /// A new process opens the disk: what failed for the last one is over.
    pub fn reopen(&self) {
        let mut state = self.state();
        state.fail_next = false;
        state.poisoned = false;
    }

    /// A copy of everything.
    #[must_use]
    pub fn image(&self) -> Image {
        Image(self.state().rows.clone())
    }

    /// A disk with what a copy holds.
    #[must_use]
    pub fn from_image(image: &Image) -> Self {
        let state = State { rows: image.0.clone(), ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }
}

impl Store for Disk {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.poisoned {
            return Err(StoreError::Poisoned);
        }
        if state.fail_next {
            state.poisoned = true;
            return Err(StoreError::Failed { doing: "commit", reason: "simulated".into() });
        }
        state.commits += 1;
        for ((table, key), value) in &batch.0 {
            let rows = state.rows.entry(*table).or_default();
            match value {
                Some(value) => rows.insert(key.clone(), shared(value)),
                None => rows.remove(key),
            };
        }
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        Ok(Box::new(Snapshot { disk: self.clone(), commits: self.state().commits }))
    }
}

/// The state as of a commit. Everything runs in one thread, so nothing is copied: a reader that is used after a later
/// commit says so instead of showing what came later.
struct Snapshot {
    disk: Disk,
    commits: u64,
}

impl Snapshot {
    fn state(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.disk.state();
        let stale = || StoreError::Failed { doing: "read", reason: "the simulated reader is stale".into() };
        if state.commits == self.commits { Ok(state) } else { Err(stale()) }
    }
}

impl Reader for Snapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.state()?.rows.get(&table).and_then(|rows| rows.get(key)).map(|row| row.to_vec()))
    }

    fn scan(&self, table: Table, from: &[u8], row: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        let state = self.state()?;
        let Some(rows) = state.rows.get(&table) else { return Ok(()) };
        for (key, value) in rows.range::<[u8], _>((std::ops::Bound::Included(from), std::ops::Bound::Unbounded)) {
            if !row(key, value) {
                break;
            }
        }
        Ok(())
    }
}
