//! A whole state in one file: what a newcomer's snapshot is read from.
//!
//! A state that is read over minutes must not change meanwhile. The store could keep it, as a read transaction; but then it
//! frees no page that is written over since, and grows for as long as somebody reads. So the state is copied at once, which
//! takes a sequential read and a sequential write, and the store is let go. The file has no name: it is gone when nobody uses
//! it any more, however the process ends. It lies where images lie, since there is room; but it leaves some, since the store may
//! lie there too, and one whose commit finds none writes no more.
//!
//! It is what goes over the wire, byte by byte: the frames of the rows, in the order of tables and keys. One place every
//! [`PIECE`] bytes is noted in memory, so that a place is found by reading one piece.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use luc_engine::store::{Reader, StoreError, Table};

use crate::blob::UNFINISHED;
use crate::wire::{self, SnapshotRow, WireError};

/// Bytes that are read at a time.
const PIECE: u64 = 256 << 10;

/// Why a state could not be copied, or a copy not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    /// The disk failed or is full.
    #[error("the disk for image data: {0}")]
    Disk(#[from] std::io::Error),
    /// The disk would have less room than this left, bytes.
    #[error("less than {} MiB would be left on the disk for image data", .0 >> 20)]
    Full(u64),
    /// The state could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The copy holds something else than was written to it.
    #[error("the copy is damaged: {0}")]
    Frame(#[from] WireError),
    /// It was given up before it was whole.
    #[error("nobody waits for it any more")]
    Unwanted,
}

/// The rows of a state, as frames in a file without a name.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    length: u64,
    places: Vec<Place>,
}

/// Where the frame of a row begins.
#[derive(Debug)]
struct Place {
    table: Table,
    key: Vec<u8>,
    at: u64,
}

impl Spool {
    /// Copies what a reader sees of the tables of a snapshot, to a file in this directory, whose file system keeps so many
    /// bytes of room. It asks now and then whether that is still wanted.
    ///
    /// # Errors
    /// [`SpoolError`]; nothing is left behind.
    pub(crate) fn copy(
        dir: &Path,
        room: u64,
        reader: &dyn Reader,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Self, SpoolError> {
        let buffer = usize::try_from(PIECE).unwrap_or(usize::MAX);
        let mut file = BufWriter::with_capacity(buffer, unnamed(dir)?);
        let (mut length, mut places) = (0, Vec::<Place>::new());
        for table in Table::in_snapshot() {
            let mut add = |key: &[u8], value: &[u8]| -> Result<(), SpoolError> {
                if places.last().is_none_or(|last| length - last.at >= PIECE) {
                    if !is_wanted() {
                        return Err(SpoolError::Unwanted);
                    }
                    if free(dir)? < room {
                        return Err(SpoolError::Full(room));
                    }
                    places.push(Place { table, key: key.to_vec(), at: length });
                }
                let row = SnapshotRow { table: table.name().into(), key: key.to_vec(), value: value.to_vec() };
                let frame = wire::frame(&row);
                length += u64::try_from(frame.len()).unwrap_or(u64::MAX);
                Ok(file.write_all(&frame)?)
            };
            let mut added = Ok(());
            let mut row = |key: &[u8], value: &[u8]| {
                added = add(key, value);
                added.is_ok()
            };
            reader.scan(table, &[], &mut row)?;
            added?;
        }
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        Ok(Self { file, length, places })
    }

    /// Bytes from here on; none at the end. A piece may begin and end within a frame.
    ///
    /// # Errors
    /// [`SpoolError::Disk`].
    pub(crate) fn piece(&self, from: u64) -> Result<Vec<u8>, SpoolError> {
        self.read(from, self.length.min(from.saturating_add(PIECE)))
    }

    /// Where the first row behind this one begins, whether this one is there or not.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub(crate) fn behind(&self, table: Table, key: &[u8]) -> Result<u64, SpoolError> {
        let next = self.places.partition_point(|place| (place.table, place.key.as_slice()) <= (table, key));
        // Before the first row of all.
        let Some(first) = next.checked_sub(1).and_then(|last| self.places.get(last)) else { return Ok(0) };
        let end = self.places.get(next).map_or(self.length, |place| place.at);
        let piece = self.read(first.at, end)?;
        let mut rest = piece.as_slice();
        while !rest.is_empty() {
            let (row, more) = wire::first::<SnapshotRow>(rest)?;
            if (Table::of_name(&row.table), row.key.as_slice()) > (Some(table), key) {
                break;
            }
            rest = more;
        }
        Ok(end - u64::try_from(rest.len()).unwrap_or(0))
    }

    fn read(&self, from: u64, to: u64) -> Result<Vec<u8>, SpoolError> {
        let mut bytes = vec![0; usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, from)?;
        Ok(bytes)
    }
}

/// Bytes that are free on a file system.
fn free(at: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(at)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A file of this directory that has no name any more, for nobody else to read. Should the process end before the name is gone, it
/// goes as that of an upload that broke off: when the directory is opened again.
fn unnamed(dir: &Path) -> std::io::Result<File> {
    let path = dir.join(format!("{UNFINISHED}{:016x}", rand::random::<u64>()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use luc_engine::store::{Batch, MemoryStore, Store};

    use super::*;

    /// Rows of several tables, some of them larger than a piece, in order; beside them some that are in no snapshot.
    fn rows(store: &mut MemoryStore) -> Vec<(Table, Vec<u8>)> {
        let mut batch = Batch::default();
        let mut keys = Vec::new();
        for table in [Table::Log, Table::Record, Table::Claim, Table::Dropped] {
            for n in 0..200_u32 {
                let size = if n % 50 == 7 { 300_000 } else { usize::try_from(n).unwrap() * 40 };
                batch.put(table, n.to_be_bytes().to_vec(), vec![u8::try_from(n).unwrap(); size]);
                keys.push((table, n.to_be_bytes().to_vec()));
            }
        }
        batch.put(Table::Meta, b"secret".to_vec(), vec![1]);
        batch.put(Table::Replay, b"own".to_vec(), vec![1]);
        store.commit(&batch).unwrap();
        keys
    }

    /// The rows from here on, read piece by piece.
    fn rest(spool: &Spool, mut from: u64) -> Vec<(Table, Vec<u8>)> {
        let mut bytes = Vec::new();
        loop {
            let piece = spool.piece(from).unwrap();
            if piece.is_empty() {
                break;
            }
            from += u64::try_from(piece.len()).unwrap();
            bytes.extend(piece);
        }
        let (mut bytes, mut rows) = (bytes.as_slice(), Vec::new());
        while !bytes.is_empty() {
            let (row, more) = wire::first::<SnapshotRow>(bytes).unwrap();
            rows.push((Table::of_name(&row.table).unwrap(), row.key));
            bytes = more;
        }
        rows
    }

    #[test]
    fn rows_come_in_order_and_from_every_place_exactly_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = MemoryStore::default();
        let keys = rows(&mut store);
        let spool = Spool::copy(dir.path(), 0, &*store.reader().unwrap(), || true).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it has no name");
        assert!(spool.places.len() > 8, "{} places", spool.places.len());
        // What is written later is not in it.
        let mut later = Batch::default();
        later.put(Table::Log, vec![0], vec![1]);
        store.commit(&later).unwrap();
        assert_eq!(rest(&spool, 0), keys);
        for (n, (table, key)) in keys.iter().enumerate() {
            assert_eq!(rest(&spool, spool.behind(*table, key).unwrap()), keys[n + 1..], "behind {table:?} {key:?}");
        }
        // Places where no row is.
        let of = |table, key: &[u8]| rest(&spool, spool.behind(table, key).unwrap());
        assert_eq!(of(Table::Meta, b"secret"), keys);
        assert_eq!(of(Table::Log, &[]), keys);
        assert_eq!(of(Table::Log, &[0, 0, 0, 7, 0]), keys[8..]);
        assert_eq!(of(Table::Pool, &[]), keys[400..]);
        assert_eq!(of(Table::Replay, b"own"), []);
    }

    #[test]
    fn an_empty_state_is_a_copy_too() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::copy(dir.path(), 0, &*MemoryStore::default().reader().unwrap(), || true).unwrap();
        assert_eq!((rest(&spool, 0), spool.behind(Table::Record, b"x").unwrap()), (Vec::new(), 0));
    }

    #[test]
    fn what_nobody_wants_or_no_disk_takes_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = MemoryStore::default();
        rows(&mut store);
        let reader = store.reader().unwrap();
        let asked = std::cell::Cell::new(0);
        let is_wanted = || asked.replace(asked.get() + 1) < 3;
        assert!(matches!(Spool::copy(dir.path(), 0, &*reader, is_wanted), Err(SpoolError::Unwanted)));
        assert_eq!(asked.get(), 4);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let full = Spool::copy(dir.path(), 1 << 60, &*reader, || true);
        assert!(full.is_err_and(|error| error.to_string().contains("less than 1099511627776 MiB would be left")));
        let nowhere = Spool::copy(&dir.path().join("absent"), 0, &*reader, || true);
        assert!(matches!(nowhere, Err(SpoolError::Disk(_))));
    }
}
