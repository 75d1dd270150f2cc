//! The Automerge document behind a record: made, changed, merged and read back.
//!
//! Documents rest in saved form and are loaded only to be changed. The actor of every change is the replica that
//! wrote its entry, so one replica cannot write in another's name; a change follows its dependencies in operation
//! numbers, so none can be made to win by a number from the future (`PROTOCOL.md`, E6).

use automerge::{ActorId, AutoCommit, Change, ChangeHash};
use autosurgeon::{Hydrate, Reconcile, hydrate, reconcile};

use crate::id::ReplicaId;
use crate::record::{Kind, Record};
use crate::view::RecordType;

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
    /// The change rests on changes that are not in the entry's past.
    #[error("the change depends on one that is not in its past")]
    Dependency,
    /// The change's operation numbers do not follow from its dependencies (E6).
    #[error("the change starts at operation {start}, not at {expected}")]
    Start {
        /// Where it starts.
        start: u64,
        /// Where it must.
        expected: u64,
    },
}

/// A change as it travels, and the document after it in saved form.
pub(crate) struct Written {
    pub(crate) change: Vec<u8>,
    pub(crate) saved: Vec<u8>,
}

/// Writes a new document.
pub(crate) fn create(author: ReplicaId, record: &Record) -> Result<Written, BadDocument> {
    let document = AutoCommit::new().with_actor(actor(author));
    write(document, record).and_then(|written| written.ok_or_else(|| BadDocument::Write("it is empty".into())))
}

/// Writes `record` over a saved document; none if that changes nothing.
pub(crate) fn edit(saved: &[u8], author: ReplicaId, record: &Record) -> Result<Option<Written>, BadDocument> {
    write(load(saved)?.with_actor(actor(author)), record)
}

/// Applies another replica's change to a saved document, or to a new one. The record is none if the document does not
/// make one of that kind.
pub(crate) fn apply(
    saved: Option<&[u8]>,
    author: ReplicaId,
    kind: Kind,
    bytes: &[u8],
) -> Result<(Vec<u8>, Option<Record>), BadDocument> {
    let change = check_author(author, bytes)?;
    let mut document = saved.map_or_else(|| Ok(AutoCommit::new()), load)?;
    let expected = next_operation(&mut document, change.deps())?;
    if change.start_op().get() != expected {
        return Err(BadDocument::Start { start: change.start_op().get(), expected });
    }
    document.apply_changes([change]).map_err(|error| BadDocument::Change(error.to_string()))?;
    let record = read(&document, kind);
    Ok((document.save_nocompress(), record))
}

/// What can be said of a change without its document: that it is one, and made by this author.
pub(crate) fn check_author(author: ReplicaId, bytes: &[u8]) -> Result<Change, BadDocument> {
    let change = Change::from_bytes(bytes.to_vec()).map_err(|error| BadDocument::Change(error.to_string()))?;
    if *change.actor_id() == actor(author) { Ok(change) } else { Err(BadDocument::Actor) }
}

fn next_operation(document: &mut AutoCommit, dependencies: &[ChangeHash]) -> Result<u64, BadDocument> {
    let mut last = 0;
    for hash in dependencies {
        let change = document.get_change_meta_by_hash(hash).ok_or(BadDocument::Dependency)?;
        last = last.max(change.max_op);
    }
    Ok(last + 1)
}

fn write(mut document: AutoCommit, record: &Record) -> Result<Option<Written>, BadDocument> {
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
    }
    .map_err(failed)?;
    if document.commit().is_none() {
        return Ok(None);
    }
    let change = document.get_last_local_change().ok_or_else(|| BadDocument::Write("no change was made".into()))?;
    Ok(Some(Written { change: change.raw_bytes().to_vec(), saved: document.save_nocompress() }))
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
    }
}

fn load(saved: &[u8]) -> Result<AutoCommit, BadDocument> {
    AutoCommit::load(saved).map_err(|error| BadDocument::Load(error.to_string()))
}

fn actor(replica: ReplicaId) -> ActorId {
    ActorId::from(replica.0.as_bytes().as_slice())
}
