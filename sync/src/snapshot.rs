//! Snapshots for newcomers: the whole state as of one moment, row by row, resumable.
//!
//! Who serves one keeps the store's read transaction that it is read from, for a bounded time, under an id. Rows come in
//! the order of tables and keys, and the newcomer notes the last one in the same commit as the rows. So one whose
//! connection broke off goes on behind that row, **in the same state**; where that state is no longer kept it starts
//! again. What it has between is of no use to anybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use luc_engine::id::ReplicaId;
use luc_engine::replica::Replica;
use luc_engine::store::{Batch, Reader, Store, StoreError, Table};
use parking_lot::Mutex;
use quinn::{Endpoint, RecvStream, SendStream};

use crate::ca::{Credentials, Role};
use crate::join::{ATTESTED, JoinError};
use crate::net::{Net, identity};
use crate::rpc::dial;
use crate::transport::client_endpoint;
use crate::wire::{self, Request, SnapshotHead, SnapshotPlace, SnapshotRow, WireError};

/// Snapshots kept at once, one a newcomer. Each holds back pages of the store that were written over since.
const KEPT: usize = 8;
/// How long one is kept while nobody reads it, and at most.
const UNREAD: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3_600);
/// Bytes read from the store at a time.
const PIECE: usize = 256 << 10;
/// How long the other end may take for a piece, or for a row.
const STALL: Duration = Duration::from_secs(15);
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
    reader: Arc<Mutex<Box<dyn Reader>>>,
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
    /// Lets go of those that nobody reads any more.
    pub(crate) fn expire(&self) {
        self.0.lock().retain(|_, kept| !kept.is_over());
    }

    /// The state that a newcomer reads. None if it is not kept any more.
    fn reader(&self, of: ReplicaId, id: u64) -> Option<Arc<Mutex<Box<dyn Reader>>>> {
        let mut all = self.0.lock();
        let kept = all.get_mut(&of).filter(|kept| kept.id == id && !kept.is_over())?;
        kept.used = Instant::now();
        Some(kept.reader.clone())
    }

    /// Keeps a state for a newcomer, in place of what it read before. False if there are too many.
    fn keep(&self, of: ReplicaId, id: u64, reader: Box<dyn Reader>) -> bool {
        self.expire();
        let mut all = self.0.lock();
        if all.len() >= KEPT && !all.contains_key(&of) {
            return false;
        }
        let now = Instant::now();
        all.insert(of, Kept { id, reader: Arc::new(Mutex::new(reader)), since: now, used: now });
        true
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
        let snapshots = &self.inner.snapshots;
        let known = place.filter(|place| snapshots.reader(to, place.snapshot).is_some());
        let resumed =
            known.and_then(|place| Some((place.snapshot, (Table::of_name(&place.table)?, behind(place.key)))));
        let is_resumed = resumed.is_some();
        let (id, mut at) = match resumed {
            Some((id, at)) => (id, Some(at)),
            None => {
                let reader = self.node().reader().await.map_err(|error| WireError::Encoding(error.to_string()))?;
                let id = rand::random();
                if !snapshots.keep(to, id, reader) {
                    let busy = "too many newcomers take snapshots here; try again later";
                    return wire::write(send, &Err::<SnapshotHead, _>(busy.to_owned())).await;
                }
                (id, Table::in_snapshot().next().map(|table| (table, Vec::new())))
            }
        };
        let head = SnapshotHead { snapshot: id, resumed: is_resumed };
        wire::write(send, &Ok::<_, String>(head)).await?;
        while let Some(from) = at {
            // Given up meanwhile, or the newcomer began another.
            let reader = snapshots.reader(to, id).ok_or(WireError::Closed)?;
            let read = tokio::task::spawn_blocking(move || piece(&**reader.lock(), from)).await;
            // The newcomer sees no last row: the snapshot is not whole.
            let (rows, next) = read.ok().and_then(Result::ok).ok_or(WireError::Closed)?;
            let sent = tokio::time::timeout(STALL, send.write_all(&rows)).await;
            sent.map_err(|_| WireError::Closed)?.map_err(std::io::Error::from)?;
            at = next;
        }
        wire::write(send, &SnapshotRow::default()).await
    }
}

/// A place in the store: the first row at or behind it comes next.
type At = (Table, Vec<u8>);

/// The first key behind one.
fn behind(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

/// Frames of the rows of one table from a place on, and where to go on.
fn piece(reader: &dyn Reader, (table, from): At) -> Result<(Vec<u8>, Option<At>), StoreError> {
    let (mut rows, mut last) = (Vec::new(), None);
    let mut row = |key: &[u8], value: &[u8]| {
        let row = SnapshotRow { table: table.name().into(), key: key.to_vec(), value: value.to_vec() };
        rows.extend(wire::frame(&row));
        let is_full = rows.len() >= PIECE;
        last = is_full.then(|| (table, behind(row.key)));
        !is_full
    };
    reader.scan(table, &from, &mut row)?;
    let next = || Table::in_snapshot().skip_while(|other| *other != table).nth(1).map(|table| (table, Vec::new()));
    let at = last.or_else(next);
    Ok((rows, at))
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
        let head = next::<Result<SnapshotHead, String>>(&mut recv).await??;
        if !head.resumed {
            self.clear()?;
        }
        let mut place = SnapshotPlace { snapshot: head.snapshot, table: String::new(), key: Vec::new() };
        loop {
            let row = match next::<SnapshotRow>(&mut recv).await {
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

async fn next<T: serde::de::DeserializeOwned>(recv: &mut RecvStream) -> Result<T, String> {
    let frame = tokio::time::timeout(STALL, wire::read(recv, wire::MAX_FRAME)).await;
    frame.map_err(|_| "nothing came".to_owned())?.map_err(|error| error.to_string())
}
