//! The Automerge document behind a record: made, changed, merged and read back.
//!
//! Documents rest in saved form, with the numbers of the entries that brought their changes, and are loaded only to be
//! changed. To load one takes far longer than to change and to save it, and grows with all changes ever made: so the ones
//! that were changed last stay loaded (`Loaded`). The actor of every change is the replica that wrote its entry, so one
//! replica cannot write in another's name.
//!
//! A change is **void** unless it rests on changes in its entry's past alone and follows them in operation numbers, so
//! that none wins by a number from the future (`PROTOCOL.md`, E3, E6). It is void, not a reason to refuse its entry: what
//! a change rests on can be looked up only while the record is there, and whether it is, is the receiver's matter.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::{ActorId, AutoCommit, Change};
use autosurgeon::{Hydrate, Reconcile, hydrate, reconcile};
use serde::{Deserialize, Serialize};

use crate::branch::{Branches, Renaming};
use crate::entry::{Frontier, encode};
use crate::id::{EntryId, ReplicaId};
use crate::record::{Kind, Record, RecordId};
use crate::view::RecordType;

/// Where Automerge's format says what a chunk is: after the magic bytes and the checksum.
const CHUNK_TYPE: usize = 8;
/// A change that is not compressed.
const PLAIN_CHANGE: u8 = 1;

/// Why a document or a change of one cannot be used. The document is as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDocument {
    /// The stored form does not load.
    #[error("the document does not load: {0}")]
    Load(String),
    /// The value cannot be written.
    #[error("the record cannot be written to its document: {0}")]
    Write(String),
    /// The change does not decode.
    #[error("the change does not decode: {0}")]
    Change(String),
    /// The change was made in another replica's name.
    #[error("the change's actor is not the entry's author")]
    Actor,
}

/// A change as it travels, and the row of the document after it.
pub(crate) struct Written {
    pub(crate) change: Vec<u8>,
    pub(crate) row: Vec<u8>,
}

/// A document after a change: its row, and the record if it makes one of its kind.
#[derive(Clone)]
pub(crate) struct Applied {
    pub(crate) row: Vec<u8>,
    pub(crate) record: Option<Record>,
}

/// A document at rest.
#[derive(Serialize, Deserialize, Default)]
struct Row {
    /// As Automerge saves it.
    #[serde(with = "serde_bytes")]
    saved: Vec<u8>,
    brought: Brought,
}

/// Of each log, the numbers of the entries that brought changes, in order.
type Brought = BTreeMap<ReplicaId, Vec<u64>>;

/// Most documents that stay loaded, and bytes in their rows.
const LOADED: usize = 64;
const LOADED_BYTES: usize = 1 << 20;

/// The documents that were changed last. Each is known by the row it was saved as, so that what a transaction changed that
/// was dropped in the end is not taken for what is stored: the row differs.
#[derive(Default)]
pub(crate) struct Loaded {
    documents: VecDeque<(RecordId, Vec<u8>, Document)>,
    bytes: usize,
}

/// A document, and the entries that brought its changes.
type Document = (AutoCommit, Brought);

impl Loaded {
    /// The document of a row, or a new one. It is not here any more until it is kept again.
    fn take(&mut self, id: RecordId, row: Option<&[u8]>) -> Result<Document, BadDocument> {
        match self.remove(id) {
            Some((as_saved, document)) if row == Some(&as_saved) => Ok(document),
            _ => load(row),
        }
    }

    /// Keeps the document that was saved as this row.
    fn keep(&mut self, id: RecordId, row: Vec<u8>, document: Document) {
        self.remove(id);
        // One that has no room would only drive out all others.
        if row.len() > LOADED_BYTES {
            return;
        }
        self.bytes += row.len();
        self.documents.push_back((id, row, document));
        while self.documents.len() > LOADED || self.bytes > LOADED_BYTES {
            let Some((_, row, _)) = self.documents.pop_front() else { break };
            self.bytes -= row.len();
        }
    }

    fn remove(&mut self, id: RecordId) -> Option<(Vec<u8>, Document)> {
        let at = self.documents.iter().rposition(|(of, ..)| *of == id)?;
        let (_, row, document) = self.documents.remove(at)?;
        self.bytes -= row.len();
        Some((row, document))
    }
}

/// Writes a new document, by `entry`.
pub(crate) fn create(
    loaded: &mut Loaded,
    entry: EntryId,
    id: RecordId,
    record: &Record,
) -> Result<Written, BadDocument> {
    let written = write(loaded, (AutoCommit::new(), Brought::new()), entry, id, record)?;
    written.ok_or_else(|| BadDocument::Write("it is empty".into()))
}

/// Writes `record` over a document, by `entry`; none if that changes nothing.
pub(crate) fn edit(
    loaded: &mut Loaded,
    row: &[u8],
    entry: EntryId,
    id: RecordId,
    record: &Record,
) -> Result<Option<Written>, BadDocument> {
    let document = loaded.take(id, Some(row))?;
    write(loaded, document, entry, id, record)
}

/// Applies a change that an entry with this frontier brings, to a document or to a new one. None if the change is void.
///
/// # Errors
/// [`BadDocument::Load`], which says nothing about the change.
pub(crate) fn apply(
    loaded: &mut Loaded,
    row: Option<&[u8]>,
    past: (EntryId, &Frontier, &Branches),
    id: RecordId,
    change: Checked<'_>,
) -> Result<Option<Applied>, BadDocument> {
    #[cfg(feature = "memo")]
    return crate::memo::document(row, past, id.kind, change.bytes, || apply_afresh(loaded, row, past, id, change));
    #[cfg(not(feature = "memo"))]
    apply_afresh(loaded, row, past, id, change)
}

fn apply_afresh(
    loaded: &mut Loaded,
    row: Option<&[u8]>,
    (entry, frontier, branches): (EntryId, &Frontier, &Branches),
    id: RecordId,
    change: Checked<'_>,
) -> Result<Option<Applied>, BadDocument> {
    let change = match change.parsed {
        Some(parsed) => parsed,
        None => parse(change.bytes)?,
    };
    let (mut document, mut brought) = loaded.take(id, row)?;
    let author = branches.author(entry.author);
    if let Some(lost) = lost_branch(&brought, author, entry.author, branches) {
        if branches.continues(entry.author, lost) {
            return Ok(None);
        }
        (document, brought) = without(&mut document, &brought, lost, branches);
    }
    let held = by_author(&brought, author, branches).len();
    let in_sequence = u64::try_from(held).is_ok_and(|held| change.seq() == held + 1);
    brought.entry(entry.author).or_default().push(entry.number);
    if !in_sequence || start(&mut document, &brought, (frontier, branches), &change) != Some(change.start_op().get()) {
        return Ok(None);
    }
    // The library asserts what a hostile change may break: this must not stop those who receive it.
    let applied = catch_unwind(AssertUnwindSafe(|| {
        let taken = document.apply_changes([change]);
        taken.ok().map(|()| (document.save_nocompress(), read(&document, id.kind)))
    }));
    let Some((saved, record)) = applied.ok().flatten() else { return Ok(None) };
    let row = Row { saved, brought };
    let bytes = encode(&row);
    loaded.keep(id, bytes.clone(), (document, row.brought));
    Ok(Some(Applied { row: bytes, record }))
}

/// The entries that brought an author's changes, in order: of several branches a document has one only.
fn by_author(brought: &Brought, author: ReplicaId, branches: &Branches) -> Vec<EntryId> {
    let of = |author| brought.get(&author).into_iter().flatten().map(move |number| EntryId { author, number: *number });
    let mut entries: Vec<EntryId> = branches.logs(author).flat_map(of).collect();
    entries.sort_unstable_by_key(|entry| entry.number);
    entries
}

/// The entry that brought the change with this sequence number.
fn brought_by(brought: &Brought, author: ReplicaId, seq: u64, branches: &Branches) -> Option<EntryId> {
    let at = usize::try_from(seq).ok()?.checked_sub(1)?;
    by_author(brought, author, branches).get(at).copied()
}

/// Of two branches that both changed a document, the one whose changes are void in it: the library knows one history an
/// author. None if this log goes on where the last change was made. What others have built on such a change goes with it.
fn lost_branch(brought: &Brought, author: ReplicaId, log: ReplicaId, branches: &Branches) -> Option<ReplicaId> {
    let logs = branches.logs(author).filter(|other| brought.contains_key(other));
    logs.filter_map(|other| branches.part(other, log)).map(|(held, new)| held.max(new)).next()
}

/// The document without the changes of a branch, and without what rests on them.
fn without(
    document: &mut AutoCommit,
    brought: &Brought,
    lost: ReplicaId,
    branches: &Branches,
) -> (AutoCommit, Brought) {
    let (mut rest, mut kept) = (AutoCommit::new(), Brought::new());
    let mut dropped = BTreeSet::new();
    for change in document.get_changes(&[]) {
        let author = replica(change.actor_id());
        let entry = author.and_then(|author| brought_by(brought, author, change.seq(), branches));
        let stays = |entry: &EntryId| {
            let before = by_author(&kept, branches.author(entry.author), branches).len();
            !branches.continues(entry.author, lost)
                && !change.deps().iter().any(|dep| dropped.contains(dep))
                && u64::try_from(before).is_ok_and(|before| change.seq() == before + 1)
        };
        match entry.filter(stays) {
            Some(entry) if rest.apply_changes([change.clone()]).is_ok() => {
                kept.entry(entry.author).or_default().push(entry.number);
            }
            _ => drop(dropped.insert(change.hash())),
        }
    }
    (rest, kept)
}

/// A document's row, with what was one log's named as another's; none if that changes nothing.
pub(crate) fn renamed(row: &[u8], by: &Renaming) -> Result<Option<Vec<u8>>, BadDocument> {
    let mut row: Row = rmp_serde::from_slice(row).map_err(|error| BadDocument::Load(error.to_string()))?;
    let Some(numbers) = row.brought.get_mut(&by.log) else { return Ok(None) };
    let moved = numbers.split_off(numbers.partition_point(|number| *number < by.first));
    if moved.is_empty() {
        return Ok(None);
    }
    row.brought.insert(by.to, moved);
    row.brought.retain(|_, numbers| !numbers.is_empty());
    Ok(Some(encode(&row)))
}

/// A change that is one, and made by its entry's author.
pub(crate) struct Checked<'a> {
    bytes: &'a [u8],
    /// None if these bytes were parsed before.
    parsed: Option<Change>,
}

/// What can be said of a change without its document: that it is one, and made by this author.
pub(crate) fn check_author(author: ReplicaId, bytes: &[u8]) -> Result<Checked<'_>, BadDocument> {
    #[cfg(feature = "memo")]
    if crate::memo::is_known_change(author.0.as_bytes(), bytes) {
        return Ok(Checked { bytes, parsed: None });
    }
    let change = parse(bytes)?;
    if *change.actor_id() != actor(author) {
        return Err(BadDocument::Actor);
    }
    #[cfg(feature = "memo")]
    crate::memo::know_change(author.0.as_bytes(), bytes);
    Ok(Checked { bytes, parsed: Some(change) })
}

fn parse(bytes: &[u8]) -> Result<Change, BadDocument> {
    // A compressed one could be a thousand times its size once it is decoded: nobody writes those here.
    if bytes.get(CHUNK_TYPE) != Some(&PLAIN_CHANGE) {
        return Err(BadDocument::Change("it is no uncompressed change".into()));
    }
    let parsed = catch_unwind(|| Change::from_bytes(bytes.to_vec()).map_err(|error| error.to_string()));
    let parsed = parsed.unwrap_or_else(|_| Err("it breaks the decoder".into()));
    parsed.map_err(BadDocument::Change)
}

/// The operation number at which a change must start; none if it rests on one that is not in its entry's past.
fn start(
    document: &mut AutoCommit,
    brought: &Brought,
    (frontier, branches): (&Frontier, &Branches),
    change: &Change,
) -> Option<u64> {
    let mut last = 0;
    for hash in change.deps() {
        let meta = document.get_change_meta_by_hash(hash)?;
        let author = replica(&meta.actor)?;
        if !frontier.holds(brought_by(brought, author, meta.seq, branches)?) {
            return None;
        }
        last = last.max(meta.max_op);
    }
    last.checked_add(1)
}

fn write(
    loaded: &mut Loaded,
    (document, mut brought): Document,
    entry: EntryId,
    id: RecordId,
    record: &Record,
) -> Result<Option<Written>, BadDocument> {
    let mut document = document.with_actor(actor(entry.author));
    let failed = |error: autosurgeon::ReconcileError| BadDocument::Write(error.to_string());
    match record {
        Record::Site(value) => reconcile(&mut document, value),
        Record::Host(value) => reconcile(&mut document, value),
        Record::Project(value) => reconcile(&mut document, value),
        Record::User(value) => reconcile(&mut document, value),
        Record::Assignment(value) => reconcile(&mut document, value),
        Record::Flavor(value) => reconcile(&mut document, value),
        Record::Image(value) => reconcile(&mut document, value),
        Record::Keypair(value) => reconcile(&mut document, value),
        Record::Server(value) => reconcile(&mut document, &**value),
        Record::Revocation(value) => reconcile(&mut document, value),
        Record::ServerGroup(value) => reconcile(&mut document, value),
        Record::Aggregate(value) => reconcile(&mut document, value),
        Record::AddressPool(value) => reconcile(&mut document, value),
        Record::Address(value) => reconcile(&mut document, value),
    }
    .map_err(failed)?;
    if document.commit().is_none() {
        return Ok(None);
    }
    let change = document.get_last_local_change().ok_or_else(|| BadDocument::Write("no change was made".into()))?;
    let change = change.raw_bytes().to_vec();
    brought.entry(entry.author).or_default().push(entry.number);
    let row = Row { saved: document.save_nocompress(), brought };
    let bytes = encode(&row);
    loaded.keep(id, bytes.clone(), (document, row.brought));
    Ok(Some(Written { change, row: bytes }))
}

fn read(document: &AutoCommit, kind: Kind) -> Option<Record> {
    fn typed<T: Hydrate + Reconcile + RecordType>(document: &AutoCommit) -> Option<Record> {
        hydrate::<_, T>(document).ok().map(T::into_record)
    }
    match kind {
        Kind::Site => typed::<crate::record::Site>(document),
        Kind::Host => typed::<crate::record::Host>(document),
        Kind::Project => typed::<crate::record::Project>(document),
        Kind::User => typed::<crate::record::User>(document),
        Kind::Assignment => typed::<crate::record::Assignment>(document),
        Kind::Flavor => typed::<crate::record::Flavor>(document),
        Kind::Image => typed::<crate::record::Image>(document),
        Kind::Keypair => typed::<crate::record::Keypair>(document),
        Kind::Server => typed::<crate::record::Server>(document),
        Kind::Revocation => typed::<crate::record::Revocation>(document),
        Kind::ServerGroup => typed::<crate::record::ServerGroup>(document),
        Kind::Aggregate => typed::<crate::record::Aggregate>(document),
        Kind::AddressPool => typed::<crate::record::AddressPool>(document),
        Kind::Address => typed::<crate::record::Address>(document),
    }
}

fn load(row: Option<&[u8]>) -> Result<Document, BadDocument> {
    let Some(row) = row else { return Ok((AutoCommit::new(), Brought::new())) };
    let Row { saved, brought } = rmp_serde::from_slice(row).map_err(|error| BadDocument::Load(error.to_string()))?;
    let document = AutoCommit::load(&saved).map_err(|error| BadDocument::Load(error.to_string()))?;
    Ok((document, brought))
}

fn actor(replica: ReplicaId) -> ActorId {
    ActorId::from(replica.0.as_bytes().as_slice())
}

fn replica(actor: &ActorId) -> Option<ReplicaId> {
    uuid::Uuid::from_slice(actor.to_bytes()).ok().map(ReplicaId)
}
