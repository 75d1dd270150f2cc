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

use crate::apply::{self, ApplyError, Documents};
pub use crate::apply::{Invalid, founded_by};
use crate::entry::{BadEntry, Entry, Frontier, Hash, Header, Member, MemberOp, Subject, Tip, encode};
use crate::hosts;
use crate::id::{ClaimId, CloudId, EntryId, HostId, Millis, PoolId, ReplicaId};
use crate::ledger::{Amount, Dimension, Pool, Waiting};
use crate::record::{Kind, RecordId};
use crate::retire::VOTES;
use crate::store::{Batch, FORMAT, Reader, Store, StoreError, Table};
use crate::tx::{Fence, Refusal, Tx};
use crate::view::{Dirty, Rows, View};

mod fold;
mod replace;

pub use fold::LOG_BYTES;
pub use replace::ReplaceError;

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

/// The last entry of an author, as far as held.
#[derive(Clone, Debug, Default)]
struct Chain {
    last: Hash,
    /// The full frontier of that entry, itself included.
    frontier: Arc<Frontier>,
    /// What is left of its log.
    kept: fold::Kept,
}

/// What a flush has made durable. From now on it may be seen.
#[derive(Debug, Default)]
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

/// One replica.
pub struct Replica {
    identity: Identity,
    me: ReplicaId,
    view: View,
    chains: imbl::OrdMap<ReplicaId, Chain>,
    store: Box<dyn Store>,
    pending: Pending,
    quarantine: BTreeMap<ReplicaId, Rejection>,
    /// Set once, until the replica joins anew.
    fence: Option<Fence>,
    /// Of replicas that are being retired: the highest entry that another survivor is known to hold, by an entry of its
    /// own that has come and waits for it. The survivor's seal cannot come before that.
    named: BTreeMap<ReplicaId, u64>,
    folding: fold::Folding,
    /// A snapshot has taken the place of the state since the last flush: what was there before.
    replaced: Option<Flushed>,
    /// Entries that a snapshot lacked are being applied, this replica's own among them.
    replaying: bool,
}

/// What the next flush writes, besides the view's dirty rows; and how documents are read meanwhile.
struct Pending {
    reader: Box<dyn Reader>,
    documents: BTreeMap<RecordId, Option<Vec<u8>>>,
    entries: Vec<Arc<Entry>>,
    /// Entries that had to be replayed on a snapshot, and need not any more.
    replayed: Vec<EntryId>,
}

impl Pending {
    fn over(reader: Box<dyn Reader>) -> Self {
        Self { reader, documents: BTreeMap::new(), entries: Vec::new(), replayed: Vec::new() }
    }
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
            tx.mint(Subject::Votes, votes)
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
        let chains = load_chains(&*reader)?;
        let mut view = View::new(identity.cloud);
        view.restore(load_rows(&*reader, &chains)?);
        if view.member(identity.replica()).is_none_or(|state| state.member.public_key != identity.public_key()) {
            return Err(OpenError::NotMember);
        }
        let mut replica = Self::over(identity, view, chains, store)?;
        // The process may have ended while a snapshot took the place of its state.
        if replica.replay()? {
            replica.flush()?;
        }
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
            named: BTreeMap::new(),
            folding: fold::Folding::default(),
            replaced: None,
            replaying: false,
        })
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
        cut.or_else(|| (!retired.is_empty() && is_void()).then_some(Fence::Retired { cut: 0 })).or(self.fence)
    }

    /// Fences this replica: from now on it writes nothing and takes nothing.
    pub fn put_up(&mut self, fence: Fence) {
        self.fence.get_or_insert(fence);
    }

    /// Does what this replica owes the others after a flush, or after a start if none is given: seals what it is asked
    /// to, takes over what it inherits, and releases what is settled. Says whether anything was written.
    ///
    /// # Errors
    /// [`Refusal`]; what is owed is done at the next call.
    pub fn tend(&mut self, now: Millis, flushed: Option<&Flushed>) -> Result<bool, Refusal> {
        if self.fence().is_some() {
            return Ok(false);
        }
        self.fold_now_and_then(flushed)?;
        let members = flushed.is_none_or(|flushed| flushed.members);
        // What a retired replica held and was owed: all of it once it is retired, then what changes. Before anything else
        // is sealed, since what is inherited counts.
        let inherited = !self.view.retired().is_empty()
            && self.inherit(now, flushed.filter(|flushed| !flushed.members).map(|flushed| flushed.pools.as_slice()))?;
        let votes = self.view.ledger().votes().map(|(id, _)| id);
        let votes = flushed.is_none_or(|flushed| votes.is_some_and(|id| flushed.pools.contains(&id)));
        let sealed = (members && self.seal(now)?) || ((members || votes) && self.share_votes(now)?);
        let claims = flushed.filter(|flushed| !flushed.members).map(|flushed| self.concerned(flushed));
        let released = self.release_settled(now, claims.as_deref())?;
        let burnt = self.burn_surplus(now, flushed.filter(|flushed| !flushed.members))?;
        let confirmed = self.confirm(now)?;
        let wrote = sealed || inherited || released > 0 || burnt || confirmed;
        Ok(wrote || self.say_held(now)?)
    }

    /// Countersigns the grants of confirmed pools whose root this replica is, or acts for (A5). Not those of an author
    /// whose chain has forked, or who is being retired: what of it counts is not settled.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is countersigned.
    pub fn confirm(&mut self, now: Millis) -> Result<bool, Refusal> {
        let view = &self.view;
        let mine = |granted: &&Waiting| view.retired().acts_for(self.me, granted.pool.entry.author);
        let named = view.retirements().named(view.frontier());
        let doubtful = |author: ReplicaId| {
            self.quarantine.contains_key(&author) || (named.contains(&author) && !view.retired().contains(author))
        };
        let waiting = view.ledger().waiting().filter(mine).filter(|granted| !doubtful(granted.grant.author));
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
        let gone = flushed.records.iter().filter(|id| matches!(id.kind, Kind::Server | Kind::Address | Kind::ServerGroup)).filter(is_gone);
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
            if !with.contains(&self.me) && (request.force || votes > VOTES / 2) {
                set = with;
            }
        }
        if set == before || set.iter().all(|id| view.retired().contains(*id)) {
            return Ok(false);
        }
        self.transact::<_, Refusal>(now, |tx| tx.membership(MemberOp::Seal { set }))?;
        // Whoever has named something may be among the sealed now, and no survivor any more.
        self.named.clear();
        Ok(true)
    }

    fn votes(&self, replica: ReplicaId) -> u64 {
        let pool = self.view.ledger().votes();
        pool.map_or(0, |(_, pool)| pool.free(replica).get(Dimension::Votes))
    }

    /// Hands votes to members that have less than an equal share, from what is held here above one. A minority that
    /// admits members stays one: what it shares is its own.
    fn share_votes(&mut self, now: Millis) -> Result<bool, Refusal> {
        let view = &self.view;
        let sealed = view.retirements.sealed_by(self.me, &view.frontier);
        let Some((pool, _)) = view.ledger().votes() else { return Ok(false) };
        if sealed.iter().any(|id| !view.retired().contains(*id)) {
            return Ok(false);
        }
        let living: Vec<ReplicaId> = view.living().map(|(id, _)| *id).collect();
        let equal = VOTES / u64::try_from(living.len()).unwrap_or(u64::MAX).max(1);
        let mut spare = self.votes(self.me).saturating_sub(equal);
        let mut shares = Vec::new();
        for to in living.into_iter().filter(|id| *id != self.me) {
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
            left.extend(from.iter().filter(|id| !pool.free(**id).is_zero()).map(|from| (id, *from)));
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
        let mine = |id: &ClaimId| self.view.retired().acts_for(me, id.entry.author);
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
    /// [`StoreError`]; then the replica must be opened anew from its store, and nothing of this batch may be shown.
    pub fn flush(&mut self) -> Result<Flushed, StoreError> {
        if self.pending.entries.is_empty() && self.replaced.is_none() {
            return Ok(Flushed::default());
        }
        let dirty = std::mem::take(&mut self.view.dirty);
        let batch = self.batch(&dirty);
        self.store.commit(&batch)?;
        self.pending.reader = self.store.reader()?;
        self.pending.documents.clear();
        self.pending.replayed.clear();
        let entries = std::mem::take(&mut self.pending.entries);
        let members = !dirty.members.is_empty() || !dirty.retirements.is_empty();
        let records = dirty.records.into_iter().collect();
        let (claims, pools) = (dirty.claims.into_iter().collect(), dirty.pools.into_iter().collect());
        let flushed = Flushed { entries, records, claims, pools, members };
        Ok(match self.replaced.take() {
            Some(before) => self.all_changed(before, flushed),
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
        let differs = |(replica, tip): &(&ReplicaId, &Tip)| chain.frontier.0.get(replica) != Some(*tip);
        let others = self.view.frontier.0.iter().filter(|(replica, _)| **replica != self.me);
        let base = Header {
            cloud: self.identity.cloud,
            author: self.me,
            number,
            previous: chain.last,
            seen: others.filter(differs).map(|(replica, tip)| (*replica, *tip)).collect(),
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

    fn accept(&mut self, bytes: &[u8]) -> Result<Received, Rejection> {
        let entry = Entry::decode_shared(bytes)?;
        let header = &entry.header;
        let id = entry.id();
        if header.cloud != self.identity.cloud {
            return Err(BadEntry::Cloud.into());
        }
        if let Some(fence) = self.fence() {
            return Err(fence.into());
        }
        if let Some(cut) = self.view.retired().cut(id.author).filter(|cut| id.number > *cut) {
            return Err(Rejection::Void { entry: id, cut });
        }
        let chain = self.chains.get(&id.author).cloned().unwrap_or_default();
        let held = chain.frontier.number(id.author);
        if id.number > held {
            if let Some(before) = self.missing(&entry, held) {
                self.note_named(&entry);
                return Ok(Received::Waiting(before));
            }
            if self.is_sealed(id) {
                return Ok(Received::Waiting(id));
            }
            if self.quarantine.contains_key(&id.author) {
                return Err(Rejection::Quarantined(id.author));
            }
        } else if self.is_held_as(id, entry.hash().short())? {
            return Ok(Received::Known);
        }
        let key = match self.view.member(id.author) {
            Some(state) => state.member.public_key,
            None => founder_key(header).ok_or(Rejection::Invalid { entry: id, reason: Invalid::NotMember })?,
        };
        // Up to here anybody may have sent it: nobody is blamed for what it did not sign.
        entry.verify(&key)?;
        let judged = if id.number <= held { Err(Rejection::Fork { named: id }) } else { self.judge(entry, &chain) };
        if let Err(rejection) = &judged
            && !matches!(rejection, Rejection::Store(_) | Rejection::Fenced(_))
        {
            self.quarantine.insert(id.author, rejection.clone());
        }
        judged
    }

    /// Applies an entry that its author signed, and that comes next.
    fn judge(&mut self, entry: Arc<Entry>, chain: &Chain) -> Result<Received, Rejection> {
        let (header, id) = (&entry.header, entry.id());
        if id.author == self.me && !self.is_replaying() {
            self.put_up(Fence::OldStore(id));
            return Err(Fence::OldStore(id).into());
        }
        if header.previous != chain.last {
            return Err(Rejection::Chain(id));
        }
        let mut frontier = Frontier::clone(&chain.frontier);
        for (replica, tip) in &header.seen {
            // A frontier never falls.
            if *replica == id.author || tip.number <= frontier.number(*replica) {
                return Err(Rejection::Chain(id));
            }
            let named = EntryId { author: *replica, number: tip.number };
            if !self.is_held_as(named, tip.hash)? {
                return Err(Rejection::Disagrees { entry: id, named });
            }
            frontier.set(*replica, *tip);
        }
        frontier.set(id.author, entry.tip());
        let mut view = self.view.clone();
        let mut documents = crate::tx::Overlay { base: &mut self.pending, changed: BTreeMap::new() };
        match apply::apply(&mut view, &entry, &frontier, &mut documents) {
            Ok(()) => {}
            Err(ApplyError::Invalid(reason)) => return Err(Rejection::Invalid { entry: id, reason }),
            Err(ApplyError::Store(error)) => return Err(error.into()),
        }
        let changed = documents.changed;
        debug_assert!(view.ledger().is_conserved(), "rights do not add up after {entry:?}");
        self.view = view;
        self.pending.documents.extend(changed);
        self.took(entry, frontier);
        Ok(Received::Applied)
    }

    /// Whether this replica has sealed an author that is being retired, below this entry: it takes it once it knows that
    /// another survivor holds it.
    fn is_sealed(&self, id: EntryId) -> bool {
        let retirements = &self.view.retirements;
        if retirements.is_empty() {
            return false;
        }
        let limit = retirements.limit(self.me, id.author, &self.view.frontier);
        let named = self.named.get(&id.author).copied().unwrap_or(0);
        limit.is_some_and(|limit| id.number > limit.max(named))
    }

    /// A survivor's entry that waits for entries of an author that is being retired: the survivor holds those, and will
    /// seal no less.
    fn note_named(&mut self, entry: &Entry) {
        if self.view.retirements.is_empty() {
            return;
        }
        let named = self.view.retirements.sealed_by(self.me, &self.view.frontier);
        let author = self.view.member(entry.header.author).filter(|_| !named.contains(&entry.header.author));
        if author.is_some_and(|state| entry.verify(&state.member.public_key).is_ok()) {
            for (replica, tip) in entry.header.seen.iter().filter(|(replica, _)| named.contains(replica)) {
                let slot = self.named.entry(*replica).or_default();
                *slot = tip.number.max(*slot);
            }
        }
    }

    /// The first entry of this one's past that is not held.
    fn missing(&self, entry: &Entry, held: u64) -> Option<EntryId> {
        let EntryId { author, number } = entry.id();
        if number > held + 1 {
            return Some(EntryId { author, number: held + 1 });
        }
        let mine = |replica| self.view.frontier.number(replica);
        let lacking = entry.header.seen.iter().find(|(replica, tip)| tip.number > mine(*replica));
        lacking.map(|(replica, _)| EntryId { author: *replica, number: mine(*replica) + 1 })
    }

    fn took(&mut self, entry: Arc<Entry>, frontier: Frontier) {
        let author = entry.header.author;
        let mut kept = self.chains.get(&author).map(|chain| chain.kept).unwrap_or_default();
        kept.took(&entry);
        self.folding.took(author == self.me, entry.bytes().len());
        self.chains.insert(author, Chain { last: entry.hash(), frontier: Arc::new(frontier), kept });
        self.pending.entries.push(entry);
    }

    fn batch(&self, dirty: &Dirty) -> Batch {
        let mut batch = Batch::default();
        for entry in &self.pending.entries {
            let author = entry.header.author;
            batch.put(Table::Log, log_key(entry.id()), entry.bytes().to_vec());
            if let Some(chain) = self.chains.get(&author) {
                batch.put(Table::Author, encode(&author), chain.row());
            }
        }
        for entry in &self.pending.replayed {
            batch.delete(Table::Replay, log_key(*entry));
        }
        for (id, saved) in &self.pending.documents {
            put_or_delete(&mut batch, Table::Document, encode(id), saved.clone());
        }
        let view = &self.view;
        for id in &dirty.records {
            put_or_delete(&mut batch, Table::Record, encode(id), view.records.get(id).map(|held| encode(&**held)));
            if let Some(created) = view.tombstones.get(id) {
                batch.put(Table::Tombstone, encode(id), encode(created));
            }
        }
        for name in &dirty.names {
            put_or_delete(&mut batch, Table::Name, encode(name), view.names.get(name).map(encode));
        }
        for id in &dirty.members {
            put_or_delete(&mut batch, Table::Member, encode(id), view.members.get(id).map(encode));
        }
        for id in &dirty.pools {
            put_or_delete(&mut batch, Table::Pool, encode(id), view.ledger.pool(*id).map(encode));
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
            put_or_delete(&mut batch, Table::Claim, encode(id), view.ledger.claim(*id).map(encode));
        }
        batch
    }
}

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

fn founder_key(header: &Header) -> Option<[u8; 32]> {
    match header.members.first() {
        Some(MemberOp::Join(member)) if founded_by(&member.public_key) == header.cloud => Some(member.public_key),
        _ => None,
    }
}

fn put_or_delete(batch: &mut Batch, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
    match value {
        Some(value) => batch.put(table, key, value),
        None => batch.delete(table, key),
    }
}

fn load_chains(reader: &dyn Reader) -> Result<imbl::OrdMap<ReplicaId, Chain>, OpenError> {
    let rows: Vec<(ReplicaId, (Hash, Frontier, fold::Kept))> = load(reader, Table::Author)?;
    let chain = |(last, frontier, kept)| Chain { last, frontier: Arc::new(frontier), kept };
    Ok(rows.into_iter().map(|(author, row)| (author, chain(row))).collect())
}

fn load_rows(reader: &dyn Reader, chains: &imbl::OrdMap<ReplicaId, Chain>) -> Result<Rows, OpenError> {
    let mut frontier = Frontier::default();
    for (author, chain) in chains {
        if let Some(tip) = chain.frontier.0.get(author) {
            frontier.set(*author, *tip);
        }
    }
    Ok(Rows {
        frontier,
        tombstones: load(reader, Table::Tombstone)?,
        members: load::<ReplicaId, _>(reader, Table::Member)?.into_iter().map(|(_, state)| state).collect(),
        records: load(reader, Table::Record)?,
        names: load(reader, Table::Name)?,
        pools: load(reader, Table::Pool)?,
        claims: load(reader, Table::Claim)?,
        retirements: load(reader, Table::Retirement)?,
    })
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

/// Most accounts that one entry takes over: an entry has a limit.
const INHERITED: usize = 5_000;
/// Most grants that one entry countersigns: the rest come with the next.
const CONFIRMED: usize = 1_000;

/// The nil UUID: the parent of names that are unique in the whole cloud.
pub const WHOLE_CLOUD: Uuid = Uuid::nil();
