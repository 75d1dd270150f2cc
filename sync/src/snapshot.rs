//! Snapshots for newcomers: the whole state as of one moment, row by row, resumable.
//!
//! Who serves one copies the state into a file when the newcomer begins (`spool`), and keeps that, for a bounded time, under
//! an id; the store is not held back by it. Rows come in the order of tables and keys, and the newcomer notes the last one in
//! the same commit as the rows. So one whose connection broke off goes on behind that row, **in the same state**; where that
//! state is no longer kept it starts again. What it has between is of no use to anybody. Where the copy cannot be made, since
//! the disk is full, the newcomer is told, and nothing else happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use luc_engine::id::ReplicaId;
use luc_engine::replica::Replica;
use luc_engine::store::{Batch, Store, Table};
use parking_lot::Mutex;
use quinn::{Endpoint, RecvStream, SendStream};

use crate::ca::{Credentials, Role};
use crate::join::{ATTESTED, JoinError};
use crate::net::{Net, identity};
use crate::rpc::dial;
use crate::spool::{Spool, SpoolError};
use crate::transport::client_endpoint;
use crate::wire::{self, Request, SnapshotHead, SnapshotPlace, SnapshotRow, WireError};

/// Snapshots kept at once, one a newcomer. Each takes room on the disk, as much as the state does.
const KEPT: usize = 8;
/// And bytes that are left there for others.
const ROOM: u64 = 64 << 20;
/// How long one is kept while nobody reads it, and at most.
const UNREAD: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3_600);
/// How long the other end may take for a piece, or for a row.
const STALL: Duration = Duration::from_secs(15);
/// And how long for the first frame, before which it copies its state, to a busy disk perhaps. One that is gone is noticed sooner,
/// by its connection.
const COPYING: Duration = Duration::from_secs(120);
/// Rows, and bytes, that a newcomer commits together.
const ROWS: usize = 4096;
const BYTES: usize = 4 << 20;
/// Tries without progress before another member is asked.
const TRIES: u32 = 5;
/// Where a newcomer notes its place, in [`Table::Meta`], while its snapshot is not whole.
const PLACE: &[u8] = b"snapshot";

/// A state being read by one newcomer.
struct Kept {
    id: u64,
    /// None while the state is being copied.
    copy: Option<Arc<Spool>>,
    since: Instant,
    used: Instant,
}

impl Kept {
    fn is_over(&self) -> bool {
        self.used.elapsed() > UNREAD || self.since.elapsed() > LONGEST
    }
}

/// The snapshots that a replica serves.
#[derive(Default)]
pub(crate) struct Snapshots(Mutex<BTreeMap<ReplicaId, Kept>>);

impl Snapshots {
    /// Lets go of those that nobody reads any more, and of their room on the disk.
    pub(crate) fn expire(&self) {
        let mut over = Vec::new();
        self.0.lock().retain(|_, kept| {
            let is_over = kept.is_over();
            if is_over {
                over.extend(kept.copy.take());
            }
            !is_over
        });
        // A file system takes its time to free a large file.
        if !over.is_empty() {
            tokio::task::spawn_blocking(move || drop(over));
        }
    }

    /// Notes that a newcomer begins, in place of what it read before. False if there are too many.
    fn begin(&self, of: ReplicaId, id: u64) -> bool {
        self.expire();
        let mut all = self.0.lock();
        if all.len() >= KEPT && !all.contains_key(&of) {
            return false;
        }
        let now = Instant::now();
        all.insert(of, Kept { id, copy: None, since: now, used: now });
        true
    }

    /// What the newcomer is at now, which counts as used. None if it is not kept any more, or the newcomer has begun another.
    fn using<T>(&self, of: ReplicaId, id: u64, f: impl FnOnce(&mut Kept) -> T) -> Option<T> {
        let mut all = self.0.lock();
        let kept = all.get_mut(&of).filter(|kept| kept.id == id && !kept.is_over())?;
        kept.used = Instant::now();
        Some(f(kept))
    }

    /// The state that a newcomer reads.
    fn copy(&self, of: ReplicaId, id: u64) -> Option<Arc<Spool>> {
        self.using(of, id, |kept| kept.copy.clone()).flatten()
    }

    fn give_up(&self, of: ReplicaId, id: u64) {
        self.0.lock().retain(|newcomer, kept| *newcomer != of || kept.id != id);
    }
}

impl Net {
    pub(crate) async fn send_snapshot(
        &self,
        send: &mut SendStream,
        to: ReplicaId,
        place: Option<SnapshotPlace>,
    ) -> Result<(), WireError> {
        if !self.node().attested(ATTESTED).await {
            return wire::write(send, &Err::<SnapshotHead, _>(JoinError::OnTrust.to_string())).await;
        }
        let resumed = match place {
            Some(place) => self.resumed(to, place).await,
            None => None,
        };
        let (head, mut at) = match resumed {
            Some((snapshot, at)) => (SnapshotHead { snapshot, resumed: true }, at),
            None => match self.begin_snapshot(to).await {
                Ok(snapshot) => (SnapshotHead { snapshot, resumed: false }, 0),
                Err(why) => return wire::write(send, &Err::<SnapshotHead, _>(why)).await,
            },
        };
        let id = head.snapshot;
        wire::write(send, &Ok::<_, String>(head)).await?;
        loop {
            // Given up meanwhile, or the newcomer began another.
            let copy = self.inner.snapshots.copy(to, id).ok_or(WireError::Closed)?;
            let read = tokio::task::spawn_blocking(move || copy.piece(at)).await;
            // The newcomer sees no last row: the snapshot is not whole.
            let rows = read.ok().and_then(Result::ok).ok_or(WireError::Closed)?;
            if rows.is_empty() {
                return wire::write(send, &SnapshotRow::default()).await;
            }
            let sent = tokio::time::timeout(STALL, send.write_all(&rows)).await;
            sent.map_err(|_| WireError::Closed)?.map_err(std::io::Error::from)?;
            at += u64::try_from(rows.len()).unwrap_or(0);
        }
    }

    /// Where a newcomer goes on, if the state that it has a part of is still kept.
    async fn resumed(&self, to: ReplicaId, place: SnapshotPlace) -> Option<(u64, u64)> {
        let copy = self.inner.snapshots.copy(to, place.snapshot)?;
        let table = Table::of_name(&place.table)?;
        let found = tokio::task::spawn_blocking(move || copy.behind(table, &place.key)).await;
        Some((place.snapshot, found.ok()?.ok()?))
    }

    /// Copies the state for a newcomer. The store is let go before anything is sent.
    async fn begin_snapshot(&self, to: ReplicaId) -> Result<u64, String> {
        let id = rand::random();
        if !self.inner.snapshots.begin(to, id) {
            return Err("too many newcomers take snapshots here; try again later".into());
        }
        let made = match self.node().reader().await {
            Ok(reader) => {
                let net = self.clone();
                let is_wanted = move || net.inner.snapshots.using(to, id, |_| ()).is_some();
                let dir = self.blobs().dir().to_owned();
                let copied = tokio::task::spawn_blocking(move || Spool::copy(&dir, ROOM, &*reader, is_wanted)).await;
                copied.unwrap_or(Err(SpoolError::Unwanted))
            }
            Err(error) => Err(error.into()),
        };
        let kept = made.and_then(|copy| {
            let keep = |kept: &mut Kept| kept.copy = Some(Arc::new(copy));
            self.inner.snapshots.using(to, id, keep).ok_or(SpoolError::Unwanted)
        });
        kept.map(|()| id).map_err(|error| {
            self.inner.snapshots.give_up(to, id);
            tracing::warn!(%to, %error, "the state could not be copied for a newcomer");
            format!("the state cannot be copied for a newcomer: {error}")
        })
    }
}

/// The first key behind one.
fn behind(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

/// Fills an empty store with a snapshot from a member, the first of `addresses` that serves one whole. A connection that
/// breaks off is made again, and the snapshot goes on where it was. Says who gave it; the state is on trust then (R14).
///
/// # Errors
/// [`JoinError::Sponsor`] if nobody could be reached or gave a whole one. The store is of no use, but for another call.
pub async fn take_snapshot(
    credentials: &Credentials,
    addresses: &[String],
    store: &mut dyn Store,
) -> Result<ReplicaId, JoinError> {
    let failed = |error: String| JoinError::Sponsor(format!("the snapshot could not be taken: {error}"));
    let endpoint = client_endpoint(credentials).map_err(|error| failed(error.to_string()))?;
    let mut last = failed("no address".into());
    for address in addresses {
        let mut tries = 0;
        while tries < TRIES {
            let mut taking = Taking { store: &mut *store, batch: Batch::default(), bytes: 0, progress: false };
            match taking.take(&endpoint, address, credentials).await {
                Ok(giver) => return Ok(giver),
                Err(error) => last = failed(error),
            }
            tries = if taking.progress { 0 } else { tries + 1 };
            tokio::time::sleep(Duration::from_millis(100 << tries)).await;
        }
    }
    Err(last)
}

/// One connection's part of a snapshot.
struct Taking<'a> {
    store: &'a mut dyn Store,
    batch: Batch,
    bytes: usize,
    /// Rows of a snapshot that was gone on with are in the store.
    progress: bool,
}

impl Taking<'_> {
    async fn take(
        &mut self,
        endpoint: &Endpoint,
        address: &str,
        credentials: &Credentials,
    ) -> Result<ReplicaId, String> {
        let place = self.place()?;
        let connection = dial(endpoint, address).await.map_err(|error| error.to_string())?;
        let Some(Role::Replica { replica: giver, .. }) = identity(&connection, credentials).map(|giver| giver.role)
        else {
            return Err(format!("{address} is no replica of this cloud"));
        };
        let (mut send, mut recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
        wire::write(&mut send, &Request::Snapshot(place)).await.map_err(|error| error.to_string())?;
        let _ = send.finish();
        let head = next::<Result<SnapshotHead, String>>(&mut recv, COPYING).await??;
        if !head.resumed {
            self.clear()?;
        }
        let mut place = SnapshotPlace { snapshot: head.snapshot, table: String::new(), key: Vec::new() };
        loop {
            let row = match next::<SnapshotRow>(&mut recv, STALL).await {
                Ok(row) => row,
                Err(error) => {
                    self.commit(&place, head.resumed)?;
                    return Err(error);
                }
            };
            if row.table.is_empty() {
                self.batch.delete(Table::Meta, PLACE.to_vec());
                Replica::put_on_trust(&mut self.batch, giver);
                return self.store.commit(&self.batch).map(|()| giver).map_err(|error| error.to_string());
            }
            let table = Table::in_snapshot().find(|table| table.name() == row.table);
            let table = table.ok_or_else(|| format!("table {:?} is none of a snapshot", row.table))?;
            self.bytes += row.key.len() + row.value.len();
            self.batch.put(table, row.key.clone(), row.value);
            (place.table, place.key) = (row.table, row.key);
            if self.batch.0.len() >= ROWS || self.bytes >= BYTES {
                self.commit(&place, head.resumed)?;
            }
        }
    }

    fn place(&self) -> Result<Option<SnapshotPlace>, String> {
        let reader = self.store.reader().map_err(|error| error.to_string())?;
        let place = reader.get(Table::Meta, PLACE).map_err(|error| error.to_string())?;
        Ok(place.and_then(|place| rmp_serde::from_slice(&place).ok()))
    }

    fn commit(&mut self, place: &SnapshotPlace, resumed: bool) -> Result<(), String> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.batch.put(Table::Meta, PLACE.to_vec(), rmp_serde::to_vec(place).unwrap_or_default());
        self.bytes = 0;
        self.progress |= resumed;
        self.store.commit(&std::mem::take(&mut self.batch)).map_err(|error| error.to_string())
    }

    /// Removes what is there of another snapshot, its place first: what is left then is gone on with by nobody.
    fn clear(&mut self) -> Result<(), String> {
        let mut batch = Batch::default();
        batch.delete(Table::Meta, PLACE.to_vec());
        let reader = self.store.reader().map_err(|error| error.to_string())?;
        self.store.commit(&batch).map_err(|error| error.to_string())?;
        for table in Table::in_snapshot() {
            let mut from = Some(Vec::new());
            while let Some(start) = from.take() {
                let mut batch = Batch::default();
                let mut key = |key: &[u8], _: &[u8]| {
                    batch.delete(table, key.to_vec());
                    from = (batch.0.len() >= ROWS).then(|| behind(key.to_vec()));
                    from.is_none()
                };
                reader.scan(table, &start, &mut key).map_err(|error| error.to_string())?;
                if !batch.is_empty() {
                    self.store.commit(&batch).map_err(|error| error.to_string())?;
                }
            }
        }
        Ok(())
    }
}

async fn next<T: serde::de::DeserializeOwned>(recv: &mut RecvStream, limit: Duration) -> Result<T, String> {
    let frame = tokio::time::timeout(limit, wire::read(recv, wire::MAX_FRAME)).await;
    frame.map_err(|_| "nothing came".to_owned())?.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use luc_engine::store::MemoryStore;
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn what_nobody_reads_any_more_is_let_go_and_what_is_begun_anew_takes_the_place_of_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let copied =
            || Arc::new(Spool::copy(dir.path(), 0, &*MemoryStore::default().reader().unwrap(), || true).unwrap());
        let newcomer = |n| ReplicaId(Uuid::from_u128(n));
        let snapshots = Snapshots::default();
        let long = Instant::now().checked_sub(UNREAD + Duration::from_secs(1)).unwrap();
        for n in 0..8 {
            assert!(snapshots.begin(newcomer(n), 1));
            assert!(snapshots.copy(newcomer(n), 1).is_none(), "it is not whole yet");
            snapshots.using(newcomer(n), 1, |kept| kept.copy = Some(copied())).unwrap();
        }
        assert!(!snapshots.begin(newcomer(8), 1), "too many");
        assert!(snapshots.begin(newcomer(7), 2) && snapshots.copy(newcomer(7), 1).is_none());
        let old = Arc::downgrade(&snapshots.copy(newcomer(0), 1).unwrap());
        let read = Arc::downgrade(&snapshots.copy(newcomer(1), 1).unwrap());
        snapshots.using(newcomer(0), 1, |kept| kept.used = long).unwrap();
        snapshots.expire();
        assert!(snapshots.copy(newcomer(0), 1).is_none());
        while old.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(read.strong_count() > 0 && snapshots.begin(newcomer(8), 1));
    }
}
