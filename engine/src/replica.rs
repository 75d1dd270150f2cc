//! One replica: a pure state machine over a store.
//!
//! Time and random bits come in as arguments; nothing is sent. Changes gather until [`Replica::flush`] makes them
//! durable in one commit, and only what `flush` returned may be shown, sent or acted on (`PROTOCOL.md`, E2). The same
//! code runs in production, in property tests and in simulation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::agent::SignedTip;
use crate::apply::{self, Documents};
pub use crate::apply::{Invalid, founded_by};
use crate::branch::Branches;
use crate::document::Loaded;
use crate::entry::{
    BadEntry, Entry, Fork, Frontier, Hash, Header, Member, MemberOp, SignedHeader, Subject, Tip, encode,
};
use crate::hosts;
use crate::id::{ClaimId, CloudId, EntryId, HostId, Millis, PoolId, ReplicaId};
use crate::ledger::{Amount, Dimension, Pool, Waiting};
use crate::mutant::{Mutant, on};
use crate::record::{Kind, RecordId};
use crate::retire::{Retiree, VOTES, is_majority};
use crate::stage::Stage;
use crate::store::{Batch, FORMAT, Reader, Store, StoreError, Table};
use crate::tx::{Fence, Refusal, Tx};
use crate::view::{Dirty, Held, Rows, View};

pub(crate) mod fold;
mod replace;
mod trust;

pub use fold::LOG_BYTES;
pub use replace::ReplaceError;
pub use trust::Word;

/// Who a replica is.
#[derive(Clone)]
pub struct Identity {
    /// The cloud.
    pub cloud: CloudId,
    /// Signs its entries.
    pub key: SigningKey,
}

impl Identity {
    /// The replica's id, which follows from its key.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        ReplicaId::of_key(&self.public_key())
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }
}

/// Why a store does not open as a replica. It is left as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Written by another version.
    #[error("the store has format {0}; this version reads format {FORMAT}")]
    Format(u64),
    /// The store has no state: neither founded nor joined.
    #[error("the store is empty: `luc init` or `luc join` first")]
    Empty,
    /// The store has state already.
    #[error("the store already belongs to a cloud")]
    NotEmpty,
    /// A row does not decode.
    #[error("a row of table {table} does not decode: {reason}")]
    Row {
        /// Which table.
        table: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// The store belongs to another replica or cloud.
    #[error("the store has no member with this key: it belongs to another replica")]
    NotMember,
    /// The state was given, and does not show the newest entry of an author, signed by it.
    #[error("the state that was given says that it holds entry {0}, and does not show it: join by another member")]
    Unproved(EntryId),
    /// The founder may not found.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What became of an entry that was received.
#[derive(Debug, Clone)]
pub enum Received {
    /// Applied; durable after the next flush.
    Applied,
    /// Held before.
    Known,
    /// Its past is not held yet: this entry must come first.
    Waiting(EntryId),
    /// Refused. If it is refused for what it is, its author is in quarantine: nothing after it can be applied.
    Refused(Rejection),
}

/// Why an entry was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Rejection {
    /// It is no entry of this cloud's.
    #[error(transparent)]
    Bad(#[from] BadEntry),
    /// Its author's previous entry is another one than it names.
    #[error("entry {0} does not follow its author's previous entry")]
    Chain(EntryId),
    /// Two entries with one number exist: its author forked (M3).
    #[error("entry {named} exists in two forms: its author has forked")]
    Fork {
        /// The entry that exists twice.
        named: EntryId,
    },
    /// It has seen another form of an entry than is held here: the author of the one or of the other has forked or lied.
    #[error("entry {entry} has seen {named} in another form than is held here")]
    Disagrees {
        /// Which.
        entry: EntryId,
        /// The entry that it names.
        named: EntryId,
    },
    /// It breaks a rule.
    #[error("entry {entry}: {reason}")]
    Invalid {
        /// Which.
        entry: EntryId,
        /// Why.
        reason: Invalid,
    },
    /// An earlier entry of the same author was refused.
    #[error("its author {0} is in quarantine")]
    Quarantined(ReplicaId),
    /// Its author is retired, and it lies beyond the cut (M2): it is void, and nobody keeps it.
    #[error("entry {entry} is void: its author was retired at {cut}")]
    Void {
        /// Which.
        entry: EntryId,
        /// The last entry of its author that counts.
        cut: u64,
    },
    /// This replica takes nothing more, whatever it is.
    #[error(transparent)]
    Fenced(#[from] Fence),
    /// The store failed; nothing is said about the entry.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Rejection {
    /// The entry that breaks a rule, as its author named it.
    pub(crate) fn entry(&self) -> Option<EntryId> {
        match self {
            Self::Chain(entry) | Self::Fork { named: entry } => Some(*entry),
            Self::Disagrees { entry, .. } | Self::Invalid { entry, .. } | Self::Void { entry, .. } => Some(*entry),
            Self::Bad(_) | Self::Quarantined(_) | Self::Fenced(_) | Self::Store(_) => None,
        }
    }
}

/// The last entry of a log, as far as held.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    pub(crate) last: Hash,
    /// The full frontier of that entry, itself included.
    pub(crate) frontier: Arc<Frontier>,
    /// What is left of it.
    pub(crate) kept: fold::Kept,
    /// The full frontier of the entry before which none can be named any more.
    pub(crate) floor: Arc<Frontier>,
    pub(crate) recent: fold::Recent,
}

/// What a flush has made durable. From now on it may be seen.
#[derive(Clone, Debug, Default)]
pub struct Flushed {
    /// The entries, in the order in which they were applied.
    pub entries: Vec<Arc<Entry>>,
    /// Records that changed.
    pub records: Vec<RecordId>,
    /// Claims that were made, released, or stated gone.
    pub claims: Vec<ClaimId>,
    /// Pools that changed, or whose accounts did.
    pub pools: Vec<PoolId>,
    /// Whether membership changed.
    pub members: bool,
}

impl Flushed {
    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let rows = self.records.len() + self.claims.len() + self.pools.len();
        self.entries.is_empty() && rows == 0 && !self.members
    }
}

/// One replica.
pub struct Replica {
    identity: Identity,
    me: ReplicaId,
    pub(crate) view: View,
    pub(crate) chains: imbl::OrdMap<ReplicaId, Chain>,
    store: Box<dyn Store>,
    pub(crate) pending: Pending,
    pub(crate) quarantine: BTreeMap<ReplicaId, Rejection>,
    /// Set once, until the replica joins anew.
    fence: Option<Fence>,
    /// The state was given, and nobody else has shown the same yet.
    trust: Option<trust::Trust>,
    /// The store has failed: what it holds is not known any more, and may be more or less than what is here.
    failed: bool,
    /// What may be taken only together.
    pub(crate) stage: Stage,
    /// Two entries with one number, of authors who are not being retired yet.
    pub(crate) proofs: BTreeMap<ReplicaId, (SignedHeader, SignedHeader)>,
    folding: fold::Folding,
    /// A snapshot has taken the place of the state since the last flush: what was there before.
    replaced: Option<Flushed>,
    /// Entries that a snapshot lacked are being applied, this replica's own among them.
    replaying: bool,
}

/// See [`Pending::moved`].
pub(crate) type Moved = BTreeMap<(Table, EntryId), Option<Vec<u8>>>;

/// What the next flush writes, besides the view's dirty rows; and how documents are read meanwhile.
pub(crate) struct Pending {
    pub(crate) reader: Box<dyn Reader>,
    pub(crate) documents: BTreeMap<RecordId, Option<Vec<u8>>>,
    loaded: Loaded,
    pub(crate) entries: Vec<Arc<Entry>>,
    /// The keys of entries that had to be replayed on a snapshot, and need not any more.
    replayed: Vec<Vec<u8>>,
    /// Rows of logs that forked, of [`Table::Log`] and [`Table::Dropped`]: gone from where they were, or put where they belong.
    pub(crate) moved: Moved,
    /// A fork has become known: every row is written anew, since what is named by entries has other names.
    pub(crate) rewrite: bool,
}

impl Pending {
    /// A row of a log, as it will be.
    pub(crate) fn row_of(&self, table: Table, id: EntryId) -> Result<Option<Vec<u8>>, StoreError> {
        match self.moved.get(&(table, id)) {
            Some(moved) => Ok(moved.clone()),
            None => self.reader.get(table, &log_key(id)),
        }
    }

    fn over(reader: Box<dyn Reader>) -> Self {
        Self {
            reader,
            documents: BTreeMap::new(),
            loaded: Loaded::default(),
            entries: Vec::new(),
            replayed: Vec::new(),
            moved: BTreeMap::new(),
            rewrite: false,
        }
    }
}

/// What a group of entries that are taken together may change, as it was before.
pub(crate) struct Saved {
    pub(crate) view: View,
    pub(crate) chains: imbl::OrdMap<ReplicaId, Chain>,
    pub(crate) entries: Vec<Arc<Entry>>,
    pub(crate) documents: BTreeMap<RecordId, Option<Vec<u8>>>,
    pub(crate) moved: Moved,
    pub(crate) rewrite: bool,
}

impl Documents for Pending {
    fn load(&mut self, id: RecordId) -> Result<Option<Vec<u8>>, StoreError> {
        match self.documents.get(&id) {
            Some(saved) => Ok(saved.clone()),
            None => self.reader.get(Table::Document, &encode(&id)),
        }
    }
    fn save(&mut self, id: RecordId, saved: Option<Vec<u8>>) {
        self.documents.insert(id, saved);
    }
    fn loaded(&mut self) -> &mut Loaded {
        &mut self.loaded
    }
}

impl Replica {
    /// Founds a cloud in an empty store: entry 1 admits `member`, which is this replica.
    ///
    /// # Errors
    /// [`OpenError`]; the store is left empty.
    pub fn found(
        identity: Identity,
        mut store: Box<dyn Store>,
        member: Member,
        now: Millis,
    ) -> Result<Self, OpenError> {
        if founded_by(&identity.public_key()) != identity.cloud {
            return Err(OpenError::NotMember);
        }
        if store.reader()?.get(Table::Meta, b"format")?.is_some() {
            return Err(OpenError::NotEmpty);
        }
        Self::prepare(store.as_mut())?;
        let view = View::new(identity.cloud);
        let mut replica = Self::over(identity, view, imbl::OrdMap::new(), store)?;
        let votes = [(Dimension::Votes, VOTES)].into_iter().collect();
        replica.write(now, Some(member.clone()), |tx| {
            tx.membership(MemberOp::Join(member))?;
            tx.mint_confirmed(Subject::Votes, votes)
        })?;
        replica.flush()?;
        Ok(replica)
    }

    /// Marks a store as one of this format. A newcomer does this, then puts the rows of a snapshot, then opens.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn prepare(store: &mut dyn Store) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        batch.put(Table::Meta, b"format".to_vec(), FORMAT.to_be_bytes().to_vec());
        store.commit(&batch)
    }

    /// Notes where a store lies, if that was not noted before. Says whether it still lies there: a store that does not is
    /// a copy, and must not write as the replica that it was copied from (`PROTOCOL.md`, M4).
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn settle(store: &mut dyn Store, place: &[u8]) -> Result<bool, StoreError> {
        if let Some(noted) = store.reader()?.get(Table::Meta, b"place")? {
            return Ok(noted == place);
        }
        Self::resettle(store, place).map(|()| true)
    }

    /// Notes where a store lies, wherever it lay before: an operator's word that it was moved, not copied, and that
    /// nothing was written where it lay since.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn resettle(store: &mut dyn Store, place: &[u8]) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        batch.put(Table::Meta, b"place".to_vec(), place.to_vec());
        store.commit(&batch)
    }

    /// Opens a store that was founded or joined.
    ///
    /// # Errors
    /// [`OpenError`]; the store is left as it was.
    pub fn open(identity: Identity, store: Box<dyn Store>) -> Result<Self, OpenError> {
        let reader = store.reader()?;
        let format = reader.get(Table::Meta, b"format")?.ok_or(OpenError::Empty)?;
        let format = format.try_into().map(u64::from_be_bytes).unwrap_or_default();
        if format != FORMAT {
            return Err(OpenError::Format(format));
        }
        let (chains, branches) = load_chains(&*reader)?;
        let mut view = View::new(identity.cloud);
        view.restore(load_rows(&*reader, &chains, branches)?);
        if view.member(identity.replica()).is_none_or(|state| state.member.public_key != identity.public_key()) {
            return Err(OpenError::NotMember);
        }
        let old: Option<EntryId> = meta(&*reader, OLD_STORE)?;
        let trust = trust::Trust::noted(&*reader)?;
        drop(reader);
        let mut replica = Self::over(identity, view, chains, store)?;
        // The process may have ended while a snapshot took the place of its state.
        if replica.replay()? {
            replica.flush()?;
        }
        replica.fence = old.map(Fence::OldStore);
        replica.trust = trust;
        if replica.trust.is_some()
            && let Some(entry) = replica.unproved(&*replica.store.reader()?, &replica.view, &replica.chains)?
        {
            return Err(OpenError::Unproved(entry));
        }
        replica.weigh_trust()?;
        Ok(replica)
    }

    fn over(
        identity: Identity,
        view: View,
        chains: imbl::OrdMap<ReplicaId, Chain>,
        store: Box<dyn Store>,
    ) -> Result<Self, StoreError> {
        let me = identity.replica();
        let pending = Pending::over(store.reader()?);
        Ok(Self {
            identity,
            me,
            view,
            chains,
            store,
            pending,
            quarantine: BTreeMap::new(),
            fence: None,
            trust: None,
            failed: false,
            stage: Stage::default(),
            proofs: BTreeMap::new(),
            folding: fold::Folding::default(),
            replaced: None,
            replaying: false,
        })
    }

    pub(crate) fn me(&self) -> ReplicaId {
        self.me
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The state, including what is not flushed yet: to be published only after [`Replica::flush`].
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Authors whose entries are refused, and why.
    #[must_use]
    pub fn quarantine(&self) -> &BTreeMap<ReplicaId, Rejection> {
        &self.quarantine
    }

    /// Runs a transaction. If it changed anything, it is one entry, durable after the next flush.
    ///
    /// # Errors
    /// What `f` says, or a [`Refusal`]; the replica is as before.
    pub fn transact<T, E: From<Refusal>>(
        &mut self,
        now: Millis,
        f: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<(T, Option<EntryId>), E> {
        self.write(now, None, f)
    }

    /// Takes an entry that came from elsewhere.
    #[must_use]
    pub fn receive(&mut self, bytes: &[u8]) -> Received {
        match self.accept(bytes) {
            Ok(received) => received,
            Err(rejection) => Received::Refused(rejection),
        }
    }

    /// Why this replica writes no more, if it does not.
    #[must_use]
    pub fn fence(&self) -> Option<Fence> {
        let retired = self.view.retired();
        let cut = retired.cut(self.me).map(|cut| Fence::Retired { cut });
        // Whoever was admitted by entries that do not count was never a member.
        let counts = |entry: &EntryId| retired.cut(entry.author).is_none_or(|cut| entry.number <= cut);
        let is_void = || self.view.member(self.me).is_some_and(|me| !me.admissions.iter().any(|(by, _)| counts(by)));
        let refuted = || self.trust.as_ref().and_then(trust::Trust::fence);
        cut.or_else(|| (!retired.is_empty() && is_void()).then_some(Fence::Retired { cut: 0 }))
            .or(self.fence)
            .or_else(refuted)
    }

    /// Fences this replica: from now on it writes nothing and takes nothing. That its store is an old copy is written
    /// down: whoever has shown it may be out of reach when it starts again.
    pub fn put_up(&mut self, fence: Fence) {
        if let Fence::OldStore(entry) = fence {
            let mut batch = Batch::default();
            batch.put(Table::Meta, OLD_STORE.to_vec(), encode(&entry));
            // A store that takes no more writes keeps the replica from writing, too.
            let _ = self.store.commit(&batch);
        }
        self.fence.get_or_insert(fence);
    }

    /// A witness shows how far this replica has said that its log goes. If its store has less, or something else, the store
    /// is an old copy, and the replica is fenced (`PROTOCOL.md`, M4). What this replica has not signed says nothing.
    ///
    /// # Errors
    /// [`StoreError`] if the log cannot be read.
    pub fn witnessed(&mut self, word: &SignedTip) -> Result<(), StoreError> {
        let is_told = word.replica == self.me && word.verify(self.identity.cloud) && !on(Mutant::WitnessIgnored);
        if is_told && !self.has_written(word.tip)? {
            self.put_up(Fence::OldStore(EntryId { author: self.me, number: word.tip.number }));
        }
        Ok(())
    }

    /// Whether this replica's log has that entry of its own, as far as it still tells: what is folded may be any.
    fn has_written(&self, tip: Tip) -> Result<bool, StoreError> {
        let own = self.view.frontier.0.get(&self.me).copied().unwrap_or(Tip { number: 0, hash: 0 });
        if own.number <= tip.number {
            return Ok(own == tip);
        }
        let id = EntryId { author: self.me, number: tip.number };
        let Some(bytes) = read_log(&*self.pending.reader, id, 1, 1)?.pop() else { return Ok(true) };
        let entry = Entry::decode(&bytes).ok().filter(|entry| entry.header.number == tip.number);
        Ok(entry.is_none_or(|entry| entry.tip() == tip))
    }

    /// Does what this replica owes the others after a flush, or after a start if none is given: seals what it is asked
    /// to, assents where all have, takes over what it inherits, and releases what is settled. Says whether anything was written.
    ///
    /// # Errors
    /// [`Refusal`]; what is owed is done at the next call.
    pub fn tend(&mut self, now: Millis, flushed: Option<&Flushed>) -> Result<bool, Refusal> {
        if self.fence().is_some() {
            return Ok(false);
        }
        // Nothing is owed that was not owed before; but a proof may have come that is no entry yet, and a newcomer has said nothing.
        let is_news = !self.proofs.is_empty() || flushed.is_none_or(|flushed| !flushed.is_empty());
        if !is_news {
            return self.say_held(now);
        }
        self.fold_now_and_then(flushed)?;
        let members = flushed.is_none_or(|flushed| flushed.members);
        // What a retired replica held and was owed: all of it once it is retired, then what changes.
        let inherited = !self.view.retired().is_empty()
            && self.inherit(now, flushed.filter(|flushed| !flushed.members).map(|flushed| flushed.pools.as_slice()))?;
        let votes = self.view.ledger().votes().map(|(id, _)| id);
        let votes = flushed.is_none_or(|flushed| votes.is_some_and(|id| flushed.pools.contains(&id)));
        let told = self.tell_of_fork(now)?;
        let sealed = ((members || told) && (self.seal(now)? || self.assent(now)?))
            || ((members || votes) && self.share_votes(now)?);
        let claims = flushed.filter(|flushed| !flushed.members).map(|flushed| self.concerned(flushed));
        let released = self.release_settled(now, claims.as_deref())?;
        let burnt = self.burn_surplus(now, flushed.filter(|flushed| !flushed.members))?;
        let confirmed = self.confirm(now)?;
        let wrote = told || sealed || inherited || released > 0 || burnt || confirmed;
        Ok(wrote || self.say_held(now)?)
    }

    /// Writes down the proof that a member forked, which asks all to retire it (M3). Its heir is a replica of its site, since its
    /// hosts are there, or else this one; where this one is being retired itself, the first that stays.
    fn tell_of_fork(&mut self, now: Millis) -> Result<bool, Refusal> {
        if on(Mutant::ForkUntold) {
            return Ok(false);
        }
        let proof = self.unspoken_proof();
        let Some(author) = proof.as_ref().map(|(author, _)| *author).or_else(|| self.unspoken_branches()) else {
            return Ok(false);
        };
        let Some(heir) = self.heir_of_fork(author) else { return Ok(false) };
        self.proofs.remove(&author);
        let said = match proof {
            Some((_, (one, other))) => MemberOp::Fork(Fork { one, other, heir }),
            None => MemberOp::Branched { retiree: Retiree { replica: author, heir } },
        };
        self.transact::<_, Refusal>(now, |tx| tx.membership(said))?;
        Ok(true)
    }

    /// None if everybody else is being retired.
    fn heir_of_fork(&self, author: ReplicaId) -> Option<ReplicaId> {
        let view = &self.view;
        let going = view.retirements.named(&view.frontier);
        let stays = || view.living().filter(|(id, _)| **id != author && !going.contains(id));
        let site = &view.member(author)?.member.site;
        let neighbour = stays().find(|(_, state)| state.member.site == *site);
        let me = || stays().find(|(id, _)| **id == self.me);
        neighbour.or_else(me).or_else(|| stays().next()).map(|(id, _)| *id)
    }

    /// Countersigns the grants of confirmed pools whose root this replica is, or acts for (A5). Not those of an author
    /// who is in quarantine or being retired: what of it counts is not settled; and of one who forked only once all that it
    /// spent twice is paid.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is countersigned.
    pub fn confirm(&mut self, now: Millis) -> Result<bool, Refusal> {
        let view = &self.view;
        let is_open = |id| view.ledger().pool(id).is_some_and(|pool| !view.is_closed(pool));
        let mine =
            |granted: &&Waiting| view.retired().acts_for(self.me, granted.pool.entry.author) && is_open(granted.pool);
        let named = view.retirements().named(view.frontier());
        let doubtful = |author: ReplicaId| {
            self.quarantine.contains_key(&author) || (named.contains(&author) && !view.retired().contains(author))
        };
        let is_paid = |pool| view.ledger().pool(pool).is_some_and(|pool| pool.overdraft().is_zero());
        let is_sure = |granted: &&Waiting| {
            let author = view.branches().author(granted.grant.author);
            if view.branches().is_forked(author) {
                return view.retired().contains(author) && is_paid(granted.pool);
            }
            !doubtful(author)
        };
        let waiting = view.ledger().waiting().filter(mine).filter(is_sure);
        let waiting: Vec<Waiting> = waiting.take(CONFIRMED).copied().collect();
        let any = !waiting.is_empty();
        if any {
            self.transact::<_, Refusal>(now, |tx| waiting.into_iter().try_for_each(|granted| tx.confirm(granted)))?;
        }
        Ok(any)
    }

    /// Burns what this replica holds free of pools that no host's agent serves (S3): of the hosts that a flush has
    /// changed, or of all if none is given.
    fn burn_surplus(&mut self, now: Millis, flushed: Option<&Flushed>) -> Result<bool, Refusal> {
        let ledger = self.view.ledger();
        let hosts: BTreeSet<HostId> = match flushed {
            None => ledger.hosts().collect(),
            Some(flushed) => {
                let records = flushed.records.iter().filter(|id| id.kind == Kind::Host).map(|id| HostId(id.id));
                let pools = flushed.pools.iter().filter_map(|id| match &ledger.pool(*id)?.subject {
                    Subject::Host(host) => Some(host.host),
                    _ => None,
                });
                records.chain(pools).collect()
            }
        };
        let surplus = hosts::to_burn(&self.view, self.me, hosts.into_iter());
        let any = !surplus.is_empty();
        if any {
            self.transact::<_, Refusal>(now, |tx| {
                surplus.into_iter().try_for_each(|(pool, amount)| tx.burn(pool, amount))
            })?;
        }
        Ok(any)
    }

    /// The claims that a flush may have settled: those that changed, and those of records that were deleted.
    fn concerned(&self, flushed: &Flushed) -> Vec<ClaimId> {
        let is_gone = |id: &&RecordId| self.view.held(**id).is_none_or(|held| held.deleted);
        let gone = flushed
            .records
            .iter()
            .filter(|id| matches!(id.kind, Kind::Server | Kind::Address | Kind::ServerGroup))
            .filter(is_gone);
        let of_gone = gone.flat_map(|id| self.view.ledger().claims_of(*id).map(|(claim, _)| claim));
        // Of a host that was declared dead, all that were still waiting for its agent's word.
        let ledger = self.view.ledger();
        let dead = flushed.pools.iter().filter(|id| ledger.pool(**id).is_some_and(|pool| !pool.dead.is_empty()));
        let buried = dead.flat_map(|id| hosts::claimants(&self.view, *id));
        let buried = buried.flat_map(|record| ledger.claims_of(record).map(|(claim, _)| claim));
        flushed.claims.iter().copied().chain(of_gone).chain(buried).collect()
    }

    /// Takes up the requests that are held, and seals whom they name: those that can succeed. One that cannot, since those
    /// who would stay have no majority of the votes, would only keep this replica from taking anything of anybody.
    fn seal(&mut self, now: Millis) -> Result<bool, Refusal> {
        let view = &self.view;
        if view.retirements.is_empty() {
            return Ok(false);
        }
        let before = view.retirements.sealed_by(self.me, &view.frontier);
        let mut set: BTreeSet<ReplicaId> = before.iter().copied().chain(view.retired().replicas()).collect();
        for request in view.retirements.requests(&view.frontier) {
            let with: BTreeSet<_> = set.iter().copied().chain(request.set.iter().map(|one| one.replica)).collect();
            let stay = view.living().map(|(id, _)| *id).filter(|id| !with.contains(id));
            let votes: u64 = stay.map(|id| self.votes(id)).sum();
            if !with.contains(&self.me) && (request.force || is_majority(votes, self.votes_left())) {
                set = with;
            }
        }
        if set == before || set.iter().all(|id| view.retired().contains(*id)) {
            return Ok(false);
        }
        self.transact::<_, Refusal>(now, |tx| tx.membership(MemberOp::Seal { set }))?;
        Ok(true)
    }

    /// Assents to what it has sealed last, once it holds the seals of all who must seal that (R11).
    fn assent(&mut self, now: Millis) -> Result<bool, Refusal> {
        let view = &self.view;
        if view.retirements.is_empty() {
            return Ok(false);
        }
        let owed = view.retirements.owes_assent(self.me, &view.frontier, &view.members, view.retired());
        let Some(set) = owed else { return Ok(false) };
        self.transact::<_, Refusal>(now, |tx| tx.membership(MemberOp::Assent { set }))?;
        Ok(true)
    }

    fn votes(&self, replica: ReplicaId) -> u64 {
        self.view.ledger().votes_of(replica, self.view.retired(), &self.view.frontier)
    }

    fn votes_left(&self) -> u64 {
        self.view.ledger().votes_left(self.view.retired(), &self.view.frontier)
    }

    /// Hands votes to members that have less than an equal share, from what is held here above one. A minority that
    /// admits members stays one: what it shares is its own. And not before the pool's root knows of the member, since
    /// votes that wait for its word count for nobody (A5): where the root is dead, those who stay keep theirs.
    fn share_votes(&mut self, now: Millis) -> Result<bool, Refusal> {
        let view = &self.view;
        let sealed = view.retirements.sealed_by(self.me, &view.frontier);
        let Some((pool, _)) = view.ledger().votes() else { return Ok(false) };
        if sealed.iter().any(|id| !view.retired().contains(*id)) {
            return Ok(false);
        }
        let living: Vec<ReplicaId> = view.living().map(|(id, _)| *id).collect();
        let equal = self.votes_left() / u64::try_from(living.len()).unwrap_or(u64::MAX).max(1);
        // Of what it has taken: a part that is not taken yet moves no further.
        let held = view.ledger().pool(pool).map_or(0, |votes| votes.free(self.me).get(Dimension::Votes));
        let mut spare = self.votes(self.me).saturating_sub(equal).min(held);
        let mut shares = Vec::new();
        let root = view.retired().heir(pool.entry.author).unwrap_or(pool.entry.author);
        let is_known = |id: &ReplicaId| {
            let frontier = self.chains.get(&root).map(|chain| &chain.frontier);
            let joined = view.member(*id).map(|state| state.joined);
            root == self.me || frontier.zip(joined).is_some_and(|(frontier, joined)| frontier.holds(joined))
        };
        let going = view.retirements.named(&view.frontier);
        for to in living.into_iter().filter(|id| *id != self.me && !going.contains(id) && is_known(id)) {
            let share = equal.saturating_sub(self.votes(to)).min(spare);
            // Not worth an entry below that.
            if share > equal / 16 {
                spare -= share;
                shares.push((to, [(Dimension::Votes, share)].into_iter().collect::<Amount>()));
            }
        }
        if shares.is_empty() {
            return Ok(false);
        }
        self.transact::<_, Refusal>(now, |tx| {
            shares.into_iter().try_for_each(|(to, share)| tx.grant(pool, to, share))
        })?;
        Ok(true)
    }

    fn inherit(&mut self, now: Millis, pools: Option<&[PoolId]>) -> Result<bool, Refusal> {
        let retired = self.view.retired();
        let from: Vec<ReplicaId> = retired.replicas().filter(|id| retired.heir(*id) == Some(self.me)).collect();
        let ledger = self.view.ledger();
        let mut left = Vec::new();
        let mut look = |id: PoolId, pool: &Pool| {
            if pool.subject == Subject::Votes {
                let part = |from: &ReplicaId| pool.part(self.me, *from, retired, &self.view.frontier);
                left.extend(retired.replicas().filter(|from| !part(from).is_zero()).map(|from| (id, from)));
            } else if !self.view.is_closed(pool) {
                left.extend(from.iter().filter(|id| pool.is_left(**id)).map(|from| (id, *from)));
            }
        };
        match pools {
            Some(pools) => pools.iter().filter_map(|id| Some((*id, ledger.pool(*id)?))).for_each(|(id, p)| look(id, p)),
            None => ledger.pools().for_each(|(id, pool)| look(*id, pool)),
        }
        for some in left.chunks(INHERITED) {
            self.transact::<_, Refusal>(now, |tx| some.iter().try_for_each(|(pool, from)| tx.inherit(*pool, *from)))?;
        }
        Ok(!left.is_empty())
    }

    /// Releases the claims of this replica's, and of those whose heir it is, whose servers are deleted and stated gone: of the records that hold
    /// `claims`, or of all if none is given. Says how many claims were released.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is released.
    pub fn release_settled(&mut self, now: Millis, claims: Option<&[ClaimId]>) -> Result<usize, Refusal> {
        let me = self.me;
        let ledger = self.view.ledger();
        let mine = |id: &ClaimId| self.view.retired().acts_for(me, id.entry.author) || on(Mutant::ReleaseByAnybody);
        let mut records: Vec<RecordId> = match claims {
            Some(ids) => ids.iter().filter(|id| mine(id)).filter_map(|id| Some(ledger.claim(*id)?.record)).collect(),
            None => ledger.claims().filter(|(id, _)| mine(id)).map(|(_, claim)| claim.record).collect(),
        };
        records.sort_unstable();
        records.dedup();
        let settled: Vec<ClaimId> =
            records.into_iter().flat_map(|record| apply::releasable(&self.view, me, record)).collect();
        if settled.is_empty() {
            return Ok(0);
        }
        let count = settled.len();
        self.transact(now, |tx| settled.into_iter().try_for_each(|claim| tx.release(claim)))?;
        Ok(count)
    }

    /// Makes everything since the last flush durable, in one commit.
    ///
    /// # Errors
    /// [`StoreError`]; then the replica must be opened anew from its store, and nothing of this batch may be shown. So too
    /// after anything else that the store has failed in: whoever flushes after each step learns it, whatever the step was.
    pub fn flush(&mut self) -> Result<Flushed, StoreError> {
        if self.failed {
            return Err(StoreError::Poisoned);
        }
        let flushed = self.flush_pending();
        self.sound(flushed)
    }

    /// Notes that the store has failed: from then on nothing more is written.
    fn sound<T>(&mut self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        self.failed |= done.is_err();
        done
    }

    fn flush_pending(&mut self) -> Result<Flushed, StoreError> {
        if self.pending.entries.is_empty() && self.replaced.is_none() {
            return Ok(Flushed::default());
        }
        let dirty = std::mem::take(&mut self.view.dirty);
        let batch = self.batch(&dirty)?;
        self.store.commit(&batch)?;
        self.pending.reader = self.store.reader()?;
        self.pending.documents.clear();
        self.pending.replayed.clear();
        self.pending.moved.clear();
        let is_rewritten = std::mem::take(&mut self.pending.rewrite);
        let entries = std::mem::take(&mut self.pending.entries);
        let members = !dirty.members.is_empty() || !dirty.retirements.is_empty();
        let records = dirty.records.into_iter().collect();
        let (claims, pools) = (dirty.claims.into_iter().collect(), dirty.pools.into_iter().collect());
        let flushed = Flushed { entries, records, claims, pools, members };
        Ok(match self.replaced.take() {
            Some(before) => self.all_changed(before, flushed),
            // A fork has shown, and all that is named by entries has other names: what had changed before that is not known
            // any more. Whoever acts on what changes looks at everything.
            None if is_rewritten => self.all_changed(Flushed { entries: Vec::new(), ..flushed.clone() }, flushed),
            None => flushed,
        })
    }

    /// A reader of what is durable: logs for others, snapshots.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        self.store.reader()
    }

    fn write<T, E: From<Refusal>>(
        &mut self,
        now: Millis,
        founder: Option<Member>,
        f: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<(T, Option<EntryId>), E> {
        let chain = self.chains.get(&self.me).cloned().unwrap_or_default();
        let number = chain.frontier.number(self.me) + 1;
        let id = EntryId { author: self.me, number };
        if let Some(fence) = self.fence() {
            return Err(Refusal::Fenced(fence).into());
        }
        let member = founder.or_else(|| self.view.member(self.me).map(|state| state.member.clone()));
        let member = member.ok_or(Refusal::Invalid(Invalid::NotMember))?;
        let mut frontier = self.view.frontier.clone();
        frontier.set(self.me, Tip { number, hash: 0 });
        let mut tx = Tx::new(self.view.clone(), id, frontier.clone(), member, now, &mut self.pending);
        let value = f(&mut tx)?;
        let finished = tx.finish();
        if finished.parts.is_empty() {
            return Ok((value, None));
        }
        let others = self.view.frontier.0.beside(&chain.frontier.0).filter(|(replica, _, _)| **replica != self.me);
        let differing = others.filter(|(_, tip, before)| Some(*tip) != *before);
        let base = Header {
            cloud: self.identity.cloud,
            author: self.me,
            number,
            previous: chain.last,
            // Whoever has not heard of a fork knows no branch: number and hash tell which entry is meant.
            seen: differing.map(|(log, tip, _)| (self.view.branches.author(*log), *tip)).collect(),
            time: now,
            scope: crate::entry::Scope::Everywhere,
            created: Vec::new(),
            deleted: Vec::new(),
            ledger: Vec::new(),
            members: Vec::new(),
            statements: Vec::new(),
            content: Hash::default(),
        };
        let (header, content) = finished.parts.into_entry(base);
        let entry = Entry::sign(header, content, &self.identity.key);
        let mut view = finished.view;
        view.advance(self.me, entry.tip());
        #[cfg(debug_assertions)]
        self.check_like_a_receiver(&entry, &frontier, &view);
        frontier.set(self.me, entry.tip());
        self.view = view;
        self.pending.documents.extend(finished.documents);
        self.took(Arc::new(entry), frontier);
        Ok((value, Some(id)))
    }

    /// In debug builds, every own entry is applied once more as a receiver would, and every ledger is added up.
    #[cfg(debug_assertions)]
    fn check_like_a_receiver(&mut self, entry: &Entry, frontier: &Frontier, expected: &View) {
        let mut view = self.view.clone();
        let mut documents = crate::tx::Overlay { base: &mut self.pending, changed: BTreeMap::new() };
        let applied = apply::apply(&mut view, entry, frontier, &mut documents);
        assert!(applied.is_ok(), "others would refuse own entry {entry:?}: {applied:?}");
        assert_eq!(view.digest(), expected.digest(), "others would see another state after {entry:?}");
        assert!(view.ledger().is_conserved(), "rights do not add up after {entry:?}");
    }

    pub(crate) fn took(&mut self, entry: Arc<Entry>, frontier: Frontier) {
        let chain = self.chains.entry(entry.log).or_default();
        chain.kept.took(&entry);
        chain.recent.took(entry.tip());
        (chain.last, chain.frontier) = (entry.hash(), Arc::new(frontier));
        self.folding.took(entry.log == self.me, entry.bytes().len());
        self.pending.entries.push(entry);
    }

    fn batch(&self, dirty: &Dirty) -> Result<Batch, StoreError> {
        let mut batch = Batch::default();
        for entry in &self.pending.entries {
            batch.put(Table::Log, log_key(entry.held_as()), entry.bytes().to_vec());
        }
        // Once for each log, however many entries of it there are: each row names all logs.
        let logs: BTreeSet<ReplicaId> = self.pending.entries.iter().map(|entry| entry.log).collect();
        logs.into_iter().for_each(|log| self.put_chain(&mut batch, log));
        for ((table, id), moved) in &self.pending.moved {
            put_or_delete(&mut batch, *table, log_key(*id), moved.clone());
        }
        for key in &self.pending.replayed {
            batch.delete(Table::Replay, key.clone());
        }
        for (id, saved) in &self.pending.documents {
            put_or_delete(&mut batch, Table::Document, encode(id), saved.clone());
        }
        if self.pending.rewrite {
            self.rewrite(&mut batch)?;
            return Ok(batch);
        }
        let view = &self.view;
        for id in &dirty.records {
            put_or_delete(&mut batch, Table::Record, encode(id), view.records.get(id).map(record_row));
            put_or_delete(&mut batch, Table::Tombstone, encode(id), view.hidden.get(id).map(record_row));
        }
        for name in &dirty.names {
            put_or_delete(&mut batch, Table::Name, encode(name), view.names.get(name).map(encode));
        }
        for id in &dirty.members {
            put_or_delete(&mut batch, Table::Member, encode(id), view.members.get(id).map(encode));
        }
        for id in &dirty.pools {
            put_or_delete(&mut batch, Table::Pool, encode(id), view.ledger.pool_now(*id).as_ref().map(pool_row));
        }
        for entry in &dirty.retirements {
            put_or_delete(
                &mut batch,
                Table::Retirement,
                encode(entry),
                view.retirements.row(*entry).map(|r| encode(&r)),
            );
        }
        for id in &dirty.claims {
            if on(Mutant::ReleaseNotStored) && view.ledger.claim(*id).is_none() {
                continue;
            }
            put_or_delete(&mut batch, Table::Claim, encode(id), view.ledger.claim(*id).map(encode));
        }
        Ok(batch)
    }

    fn put_chain(&self, batch: &mut Batch, log: ReplicaId) {
        if let Some(chain) = self.chains.get(&log) {
            batch.put(Table::Author, encode(&log), chain.row(self.view.branches.get(log)));
        }
    }

    /// Every row that is named by entries, or names them.
    fn rewrite(&self, batch: &mut Batch) -> Result<(), StoreError> {
        for table in REWRITTEN {
            self.pending.reader.scan(table, &[], &mut |key, _| {
                batch.delete(table, key.to_vec());
                true
            })?;
        }
        let view = &self.view;
        self.chains.keys().for_each(|log| self.put_chain(batch, *log));
        view.records.iter().for_each(|(id, held)| batch.put(Table::Record, encode(id), encode(&**held)));
        view.hidden.iter().for_each(|(id, held)| batch.put(Table::Tombstone, encode(id), encode(&**held)));
        view.names.iter().for_each(|(name, state)| batch.put(Table::Name, encode(name), encode(state)));
        view.members.iter().for_each(|(id, state)| batch.put(Table::Member, encode(id), encode(state)));
        view.ledger.pools().for_each(|(id, pool)| batch.put(Table::Pool, encode(id), encode(pool)));
        view.ledger.claims().for_each(|(id, claim)| batch.put(Table::Claim, encode(id), encode(claim)));
        view.retirements.rows().iter().for_each(|(id, row)| batch.put(Table::Retirement, encode(id), encode(row)));
        Ok(())
    }
}

/// What [`Replica::rewrite`] writes anew; documents are renamed one by one.
const REWRITTEN: [Table; 8] = [
    Table::Author,
    Table::Member,
    Table::Record,
    Table::Tombstone,
    Table::Name,
    Table::Pool,
    Table::Claim,
    Table::Retirement,
];

/// The key of an entry in [`Table::Log`]: an author's entries are neighbours, in order.
#[must_use]
pub fn log_key(id: EntryId) -> Vec<u8> {
    let mut key = id.author.0.as_bytes().to_vec();
    key.extend(id.number.to_be_bytes());
    key
}

/// Up to `limit` entries of the author of `from`, from there on or from where its log begins, as they travel, at most about `bytes` in all (but at least one).
///
/// # Errors
/// [`StoreError`].
pub fn read_log(reader: &dyn Reader, from: EntryId, limit: usize, bytes: usize) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut entries = Vec::new();
    let mut size = 0;
    reader.scan(Table::Log, &log_key(from), &mut |key, value| {
        let full = entries.len() >= limit || (size > 0 && size + value.len() > bytes);
        if full || !key.starts_with(from.author.0.as_bytes()) {
            return false;
        }
        size += value.len();
        entries.push(value.to_vec());
        true
    })?;
    Ok(entries)
}

fn record_row(held: &Arc<Held>) -> Vec<u8> {
    #[cfg(feature = "memo")]
    return crate::memo::record_row(held);
    #[cfg(not(feature = "memo"))]
    encode(&**held)
}

fn pool_row(pool: &Arc<Pool>) -> Vec<u8> {
    #[cfg(feature = "memo")]
    return crate::memo::pool_row(pool);
    #[cfg(not(feature = "memo"))]
    encode(&**pool)
}

fn put_or_delete(batch: &mut Batch, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
    match value {
        Some(value) => batch.put(table, key, value),
        None => batch.delete(table, key),
    }
}

fn load_chains(reader: &dyn Reader) -> Result<(imbl::OrdMap<ReplicaId, Chain>, Branches), OpenError> {
    let rows: Vec<(ReplicaId, fold::ChainRow)> = load(reader, Table::Author)?;
    let (mut chains, mut branches) = (imbl::OrdMap::new(), Branches::default());
    for (log, (last, frontier, kept, floor, branch)) in rows {
        let (frontier, floor) = (Arc::new(frontier), Arc::new(floor));
        chains.insert(log, Chain { last, frontier, kept, floor, ..Chain::default() });
        if let Some(branch) = branch {
            branches.put_back(log, branch);
        }
    }
    Ok((chains, branches))
}

fn load_rows(
    reader: &dyn Reader,
    chains: &imbl::OrdMap<ReplicaId, Chain>,
    branches: Branches,
) -> Result<Rows, OpenError> {
    let mut frontier = Frontier::default();
    for (author, chain) in chains {
        if let Some(tip) = chain.frontier.0.get(author) {
            frontier.set(*author, *tip);
        }
    }
    Ok(Rows {
        frontier,
        branches,
        hidden: load(reader, Table::Tombstone)?,
        members: load::<ReplicaId, _>(reader, Table::Member)?.into_iter().map(|(_, state)| state).collect(),
        records: load(reader, Table::Record)?,
        names: load(reader, Table::Name)?,
        pools: load(reader, Table::Pool)?,
        claims: load(reader, Table::Claim)?,
        retirements: load(reader, Table::Retirement)?,
    })
}

/// A row of [`Table::Meta`].
fn meta<T: DeserializeOwned>(reader: &dyn Reader, key: &[u8]) -> Result<Option<T>, OpenError> {
    let row = reader.get(Table::Meta, key)?.map(|row| rmp_serde::from_slice(&row));
    row.transpose().map_err(|error| OpenError::Row { table: Table::Meta.name(), reason: error.to_string() })
}

fn load<K: DeserializeOwned, V: DeserializeOwned>(reader: &dyn Reader, table: Table) -> Result<Vec<(K, V)>, OpenError> {
    let mut rows = Vec::new();
    let mut bad = None;
    reader.scan(table, &[], &mut |key, value| {
        match (rmp_serde::from_slice(key), rmp_serde::from_slice(value)) {
            (Ok(key), Ok(value)) => rows.push((key, value)),
            (Err(error), _) | (_, Err(error)) => bad = Some(error.to_string()),
        }
        bad.is_none()
    })?;
    match bad {
        Some(reason) => Err(OpenError::Row { table: table.name(), reason }),
        None => Ok(rows),
    }
}

/// Where it is noted in [`Table::Meta`] that the store is an old copy: the entry that it lacks.
const OLD_STORE: &[u8] = b"old-store";
/// Most accounts that one entry takes over: an entry has a limit.
const INHERITED: usize = 5_000;
/// Most grants that one entry countersigns: the rest come with the next.
const CONFIRMED: usize = 1_000;

/// The nil UUID: the parent of names that are unique in the whole cloud.
pub const WHOLE_CLOUD: Uuid = Uuid::nil();
