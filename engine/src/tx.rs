//! A transaction: one entry in the making.
//!
//! It works on a clone of the view, so that each step sees the ones before it, and becomes exactly one entry: a
//! server, its quota claim and its host claim are one, or none of them is. Whatever fails, the replica is as before.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::agent::{Observation, Statement};
use crate::apply::{self, Author, Documents, Invalid};
use crate::document::{self, BadDocument, Loaded};
use crate::entry::{Content, ContentOp, Created, Frontier, Header, LedgerOp, Member, MemberOp, Name, Scope, Subject};
use crate::id::{ClaimId, EntryId, Millis, PoolId, ReplicaId, SiteName};
use crate::ledger::{Amount, Pool, Waiting};
use crate::record::{Kind, RecordId};
use crate::retire::Retired;
use crate::store::StoreError;
use crate::view::{RecordType, View};

/// Why a transaction was refused. Nothing of it happened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// No such record, or it is deleted.
    #[error("{0:?} does not exist")]
    NotFound(RecordId),
    /// The id is in use, or was.
    #[error("{0:?} exists already")]
    Exists(RecordId),
    /// The name has a live bearer.
    #[error("the name {name:?} is taken by {bearer}")]
    NameTaken {
        /// The name.
        name: String,
        /// Its bearer.
        bearer: Uuid,
    },
    /// Rights are short here. What exists elsewhere is in it.
    #[error(transparent)]
    Shortage(Box<Shortage>),
    /// The rules of entries forbid it: no replica would take it.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A document could not be read or written.
    #[error("{record:?}: {source}")]
    Document {
        /// Which.
        record: RecordId,
        /// Why.
        source: BadDocument,
    },
    /// This replica writes no more.
    #[error(transparent)]
    Fenced(#[from] Fence),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a replica writes no more. What it shows is the state as of then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Fence {
    /// The others have retired it (M2). What it wrote after the cut is void.
    #[error(
        "this replica was retired: what it wrote after its entry {cut} does not count; `luc join --replace` makes it another"
    )]
    Retired {
        /// Its last entry that counts.
        cut: u64,
    },
    /// Others hold an entry of this replica's that its own store has not, or its agents have been told of one: the store
    /// is an old copy (M4).
    #[error(
        "others have seen entry {0} of this replica, which its store lacks: the store is an old copy; `luc join --replace` makes it another replica"
    )]
    OldStore(EntryId),
    /// The store lies elsewhere than where it was made: it is a copy, and the first may live (M4).
    #[error(
        "the store is not where it was made: it is a copy, and the replica may live elsewhere; `luc join --replace` makes \
         it another replica, `luc replica moved` says that the first is gone"
    )]
    Copy,
    /// More than half of those who had no part in the state that was given to this replica have shown another (R14).
    #[error(
        "the state that this replica was given by {giver} is not what the others hold: that member errs or lies; \
         `luc join --replace`, by another member, makes it another replica"
    )]
    FalseState {
        /// Who gave it.
        giver: ReplicaId,
    },
}

/// Rights that are short at this replica, and what is known of the others'. The text is for users: it tells "the pool
/// is exhausted" from "the rest is out of reach".
#[derive(Debug, Clone, PartialEq)]
pub struct Shortage {
    /// Of what.
    pub subject: Option<Subject>,
    /// What was needed.
    pub wanted: Amount,
    /// Minted and not burnt, over all its pools.
    pub capacity: Amount,
    /// Sum of the live claims.
    pub claimed: Amount,
    /// Free here.
    pub free_here: Amount,
    /// Free elsewhere, as far as this replica knows: who holds how much of which pool.
    pub elsewhere: Vec<(ReplicaId, PoolId, Amount)>,
    /// Granted to this replica, and not to be spent before the pool's root has countersigned it (A5): which root, how much.
    pub unconfirmed: Vec<(ReplicaId, Amount)>,
}

impl Shortage {
    /// Whether all free rights together would suffice.
    #[must_use]
    pub fn suffices_elsewhere(&self) -> bool {
        let all = self.elsewhere.iter().fold(self.free_here.clone(), |sum, (_, _, free)| sum.saturating_add(free));
        all.saturating_add(&self.waiting()).covers(&self.wanted)
    }

    /// What waits for the word of a root.
    #[must_use]
    pub fn waiting(&self) -> Amount {
        self.unconfirmed.iter().fold(Amount::default(), |sum, (_, amount)| sum.saturating_add(amount))
    }
}

impl std::error::Error for Shortage {}
impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { wanted, capacity, claimed, free_here, .. } = self;
        write!(f, "needs {wanted}; of {capacity}, {claimed} are in use and {free_here} are free here")?;
        if !self.unconfirmed.is_empty() {
            write!(f, "; {} were granted to this replica and wait to be countersigned", self.waiting())?;
        }
        if self.suffices_elsewhere() {
            let elsewhere = self.elsewhere.iter().fold(Amount::default(), |sum, (_, _, a)| sum.saturating_add(a));
            write!(f, "; {elsewhere} are held free by other replicas")
        } else {
            f.write_str("; the rest is exhausted everywhere")
        }
    }
}

/// One entry in the making.
pub struct Tx<'a> {
    view: View,
    entry: EntryId,
    frontier: Frontier,
    member: Member,
    now: Millis,
    retired: Arc<Retired>,
    documents: Overlay<'a>,
    pub(crate) parts: Parts,
    placing: apply::Placing,
}

/// What becomes the entry.
#[derive(Default)]
pub(crate) struct Parts {
    created: Vec<Created>,
    deleted: Vec<RecordId>,
    ledger: Vec<LedgerOp>,
    members: Vec<MemberOp>,
    statements: Vec<Statement>,
    content: Vec<ContentOp>,
}

impl Parts {
    pub(crate) fn is_empty(&self) -> bool {
        self.created.is_empty()
            && self.deleted.is_empty()
            && self.ledger.is_empty()
            && self.members.is_empty()
            && self.statements.is_empty()
            && self.content.is_empty()
    }

    /// The entry's header, but for its content's hash, and its content.
    pub(crate) fn into_entry(self, base: Header) -> (Header, Content) {
        let Self { created, deleted, ledger, members, statements, content } = self;
        let header = Header { created, deleted, ledger, members, statements, scope: Scope::Everywhere, ..base };
        (header, Content { ops: content })
    }
}

/// Documents changed by this transaction, over those before it.
pub(crate) struct Overlay<'a> {
    pub(crate) base: &'a mut dyn Documents,
    pub(crate) changed: BTreeMap<RecordId, Option<Vec<u8>>>,
}

impl Documents for Overlay<'_> {
    fn load(&mut self, id: RecordId) -> Result<Option<Vec<u8>>, StoreError> {
        match self.changed.get(&id) {
            Some(saved) => Ok(saved.clone()),
            None => self.base.load(id),
        }
    }
    fn save(&mut self, id: RecordId, saved: Option<Vec<u8>>) {
        self.changed.insert(id, saved);
    }
    fn loaded(&mut self) -> &mut Loaded {
        self.base.loaded()
    }
}

/// What a finished transaction leaves.
pub(crate) struct Finished {
    pub(crate) view: View,
    pub(crate) parts: Parts,
    pub(crate) documents: BTreeMap<RecordId, Option<Vec<u8>>>,
}

impl<'a> Tx<'a> {
    pub(crate) fn new(
        mut view: View,
        entry: EntryId,
        frontier: Frontier,
        member: Member,
        now: Millis,
        base: &'a mut dyn Documents,
    ) -> Self {
        let documents = Overlay { base, changed: BTreeMap::new() };
        let retired = view.retired_at(&frontier);
        let (parts, placing) = Default::default();
        Self { view, entry, frontier, member, now, retired, documents, parts, placing }
    }

    /// The state, with this transaction's own changes.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// This replica.
    #[must_use]
    pub fn me(&self) -> ReplicaId {
        self.entry.author
    }

    /// Its site.
    #[must_use]
    pub fn site(&self) -> &SiteName {
        &self.member.site
    }

    /// This replica, as admitted.
    #[must_use]
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// The time, by this replica's clock, Unix milliseconds.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.now
    }

    /// A record that is not deleted.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub fn get<T: RecordType>(&self, id: Uuid) -> Result<&T, Refusal> {
        self.view.get(id).ok_or(Refusal::NotFound(RecordId { kind: T::KIND, id }))
    }

    /// An id for a record that this transaction creates, and that none but it can: prefer it to one that is merely
    /// random, since nobody need remember such a record once it is gone (R2).
    #[must_use]
    pub fn fresh(&self, kind: Kind, random: Uuid) -> Uuid {
        RecordId::certified(kind, self.entry, random).id
    }

    /// Creates a record. What it refers to is not gone while it lives (R1).
    ///
    /// # Errors
    /// [`Refusal::Exists`], also for an id that another entry alone can give; [`Refusal::NotFound`] for a reference that is gone, or [`Refusal::Invalid`].
    pub fn create<T: RecordType>(&mut self, id: Uuid, value: T, references: &[RecordId]) -> Result<RecordId, Refusal> {
        let id = RecordId { kind: T::KIND, id };
        if self.view.present(id).is_some() || (id.is_certified() && !id.is_certified_by(self.entry)) {
            return Err(Refusal::Exists(id));
        }
        let live = |id: &RecordId| self.view.records.get(id).is_some_and(|held| !held.deleted);
        if let Some(gone) = references.iter().find(|id| !live(id)) {
            return Err(Refusal::NotFound(*gone));
        }
        let created = Created { record: id, references: references.to_vec() };
        self.with_author(|view, author| apply::apply_created(view, author, &created))?;
        self.parts.created.push(created);
        let value = value.into_record();
        let written = document::create(self.documents.loaded(), self.entry, id, &value)
            .map_err(|source| Refusal::Document { record: id, source })?;
        self.wrote(id, value, written);
        Ok(id)
    }

    /// Changes a record. Nothing is written if `edit` leaves it as it was.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::Document`], or what `edit` says; then nothing is changed.
    pub fn update<T: RecordType, E: From<Refusal>>(
        &mut self,
        id: Uuid,
        edit: impl FnOnce(&mut T) -> Result<(), E>,
    ) -> Result<(), E> {
        let id = RecordId { kind: T::KIND, id };
        let held = self.view.records.get(&id).filter(|held| !held.deleted);
        let mut value = held.and_then(|held| held.record.clone()).ok_or(Refusal::NotFound(id))?;
        if let Some(value) = T::of_mut(&mut value) {
            edit(value)?;
        }
        let row = self.documents.load(id).map_err(Refusal::from)?.unwrap_or_default();
        let written = document::edit(self.documents.loaded(), &row, self.entry, id, &value)
            .map_err(|source| Refusal::Document { record: id, source })?;
        if let Some(written) = written {
            self.with_author(|view, author| apply::apply_writable(view, author, id)).map_err(Refusal::from)?;
            self.wrote(id, value, written);
        }
        Ok(())
    }

    /// Deletes a record, and takes back its names. What is still referred to, or still runs, is "deleting" until then.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] or [`Refusal::Invalid`].
    pub fn delete(&mut self, id: RecordId) -> Result<(), Refusal> {
        self.view.records.get(&id).filter(|held| !held.deleted).ok_or(Refusal::NotFound(id))?;
        let names: Vec<_> = self.view.names_of(id).map(|(name, generation)| (name.clone(), generation)).collect();
        for (name, generation) in names {
            self.name_op(ContentOp::Unbind { name, generation, bearer: id })?;
        }
        self.with_author(|view, author| apply::apply_deleted(view, author, id))?;
        self.view.settle([id]);
        self.parts.deleted.push(id);
        Ok(())
    }

    /// Gives a record a name that nobody has within its kind and `parent` (R3).
    ///
    /// # Errors
    /// [`Refusal::NameTaken`] or [`Refusal::Invalid`].
    pub fn bind(&mut self, parent: Uuid, name: &str, bearer: RecordId) -> Result<(), Refusal> {
        let name = Name { kind: bearer.kind, parent, name: name.into() };
        if let Some(other) = self.view.bearers(&name).first().filter(|other| **other != bearer) {
            return Err(Refusal::NameTaken { name: name.name, bearer: other.id });
        }
        let generation = self.view.generation(&name);
        self.name_op(ContentOp::Bind { name, generation, bearer })
    }

    /// Takes a name back.
    ///
    /// # Errors
    /// [`Refusal::Invalid`].
    pub fn unbind(&mut self, parent: Uuid, name: &str, bearer: RecordId) -> Result<(), Refusal> {
        let key = Name { kind: bearer.kind, parent, name: name.into() };
        let bound = self.view.names_of(bearer).find(|(name, _)| **name == key).map(|(_, generation)| generation);
        match bound {
            Some(generation) => self.name_op(ContentOp::Unbind { name: key, generation, bearer }),
            None => Ok(()),
        }
    }

    /// Moves a record from one name to another; nothing if they are equal.
    ///
    /// # Errors
    /// [`Refusal::NameTaken`] or [`Refusal::Invalid`].
    pub fn rename(&mut self, parent: Uuid, from: &str, to: &str, bearer: RecordId) -> Result<(), Refusal> {
        if from == to {
            return Ok(());
        }
        self.bind(parent, to, bearer)?;
        self.unbind(parent, from, bearer)
    }

    /// Makes a pool, all of it held here.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if this site may not.
    pub fn mint(&mut self, subject: Subject, amount: Amount) -> Result<PoolId, Refusal> {
        let index = self.ledger_op(LedgerOp::Mint { subject, amount, confirmed: false })?;
        Ok(PoolId { entry: self.entry, index })
    }

    /// Makes a pool whose grants count only once its root has countersigned them (A5), all of it held here.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if this site may not.
    pub fn mint_confirmed(&mut self, subject: Subject, amount: Amount) -> Result<PoolId, Refusal> {
        let index = self.ledger_op(LedgerOp::Mint { subject, amount, confirmed: true })?;
        Ok(PoolId { entry: self.entry, index })
    }

    /// Countersigns a grant of a confirmed pool that is rooted here.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if this replica is not its root.
    pub fn confirm(&mut self, granted: Waiting) -> Result<(), Refusal> {
        let Waiting { pool, to, grant, index } = granted;
        self.ledger_op(LedgerOp::Confirm { pool, to, grant, index }).map(|_| ())
    }

    /// Adds to a pool rooted here.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if this replica is not its root.
    pub fn grow(&mut self, pool: PoolId, amount: Amount) -> Result<(), Refusal> {
        self.ledger_op(LedgerOp::Grow { pool, amount }).map(|_| ())
    }

    /// Destroys free rights held here.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if fewer are held.
    pub fn burn(&mut self, pool: PoolId, amount: Amount) -> Result<(), Refusal> {
        self.ledger_op(LedgerOp::Burn { pool, amount }).map(|_| ())
    }

    /// Hands free rights to another member.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if fewer are held, or `to` is no member.
    pub fn grant(&mut self, pool: PoolId, to: ReplicaId, amount: Amount) -> Result<(), Refusal> {
        self.ledger_op(LedgerOp::Grant { pool, to, amount }).map(|_| ())
    }

    /// Spends rights held here on a record, all or nothing, from the pools of one subject: the first that has enough. Of
    /// any addresses ([`crate::ledger::Dimension::Addresses`]), the lowest that are free here.
    /// `epoch` is the server's placement epoch for hosts, 0 for quotas.
    ///
    /// # Errors
    /// [`Refusal::Shortage`] says what exists and who holds it.
    pub fn claim(
        &mut self,
        pools: &[PoolId],
        wanted: &Amount,
        record: RecordId,
        epoch: u64,
    ) -> Result<ClaimId, Refusal> {
        let me = self.me();
        let unchecked = crate::mutant::on(crate::mutant::Mutant::RightsUnchecked).then(|| wanted.clone());
        let chosen = |id: &PoolId| {
            let pool = self.view.ledger.pool(*id)?;
            Some((*id, pool.free(me).choose(wanted).or_else(|| unchecked.clone())?))
        };
        let Some((pool, amount)) = pools.iter().find_map(chosen) else {
            return Err(Refusal::Shortage(Box::new(shortage(&self.view, me, pools, wanted))));
        };
        let index = self.ledger_op(LedgerOp::Claim { pool, amount, record, epoch })?;
        Ok(ClaimId { entry: self.entry, index })
    }

    /// Gives a claim of this replica's back.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if it is not this replica's, or its host's agent has not said that its domain is gone.
    pub fn release(&mut self, claim: ClaimId) -> Result<(), Refusal> {
        self.ledger_op(LedgerOp::Release { claim }).map(|_| ())
    }

    /// Declares a host dead, whose pool this is, by the word of a user (S5). What waited only for its agent's word is gone.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if this replica may not: see [`crate::hosts`].
    pub fn declare_dead(&mut self, pool: PoolId, by: Uuid) -> Result<(), Refusal> {
        self.ledger_op(LedgerOp::DeclareDead { pool, at: self.now, by })?;
        let records = crate::hosts::claimants(&self.view, pool);
        self.view.settle(records);
        Ok(())
    }

    /// Takes over the free rights of a retired replica whose heir this one is.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if it is not, or nothing is left.
    pub fn inherit(&mut self, pool: PoolId, from: ReplicaId) -> Result<(), Refusal> {
        self.ledger_op(LedgerOp::Inherit { pool, from }).map(|_| ())
    }

    /// Notes what an agent saw, if it is newer than what is known. Says whether it was.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if the host is not of this site, or the server is unknown.
    pub fn observe(&mut self, observation: Observation) -> Result<bool, Refusal> {
        let id = RecordId { kind: crate::record::Kind::Server, id: observation.server };
        let before = self.view.records.get(&id).and_then(|held| held.observation.as_ref()).map(Observation::order);
        if before.is_some_and(|before| before >= observation.order()) {
            return Ok(false);
        }
        self.with_author(|view, author| apply::apply_observation(view, author, &observation))?;
        self.parts.content.push(ContentOp::Observe(observation));
        Ok(true)
    }

    /// Notes an agent's statement, if it settles a live claim. Says whether it does.
    pub fn state(&mut self, statement: Statement) -> bool {
        let evidence = apply::is_evidence(&self.view, &self.frontier, &statement);
        if evidence {
            let Self { view, entry, member, frontier, retired, .. } = self;
            apply::apply_statement(view, Author { entry: *entry, member, frontier, retired }, &statement);
            let server = RecordId { kind: crate::record::Kind::Server, id: statement.server };
            self.view.settle([server]);
            self.parts.statements.push(statement);
        }
        evidence
    }

    /// Changes membership.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if this replica may not.
    pub fn membership(&mut self, op: MemberOp) -> Result<(), Refusal> {
        self.with_author(|view, author| apply::apply_member(view, author, &op))?;
        if let MemberOp::Join(member) = &op
            && member.replica == self.member.replica
        {
            self.member = member.clone();
        }
        self.parts.members.push(op);
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Finished {
        let touched: Vec<RecordId> = apply::touched(&self.parts.created, &self.parts.ledger).collect();
        self.view.settle(touched);
        Finished { view: self.view, parts: self.parts, documents: self.documents.changed }
    }

    fn ledger_op(&mut self, op: LedgerOp) -> Result<u32, Refusal> {
        let index = self.parts.ledger.len();
        let (mut placing, created) = (self.placing.clone(), std::mem::take(&mut self.parts.created));
        let applied = self.with_author(|view, author| {
            // What is nowhere yet may be created after its claims are made.
            let absent = |record| view.present(record).is_none();
            let creates = |record| created.iter().any(|one| one.record == record) || absent(record);
            placing.check(view, author, &creates, &op)?;
            apply::apply_ledger(view, author, index, &op)
        });
        self.parts.created = created;
        applied?;
        self.placing = placing;
        self.parts.ledger.push(op);
        Ok(u32::try_from(index).unwrap_or(u32::MAX))
    }

    fn name_op(&mut self, op: ContentOp) -> Result<(), Refusal> {
        self.with_author(|view, author| apply::apply_name_op(view, author, &op))?;
        self.parts.content.push(op);
        Ok(())
    }

    fn wrote(&mut self, id: RecordId, value: crate::record::Record, written: document::Written) {
        apply::set_value(&mut self.view, id, Some(value));
        self.documents.save(id, Some(written.row));
        self.parts.content.push(ContentOp::Change { record: id, bytes: written.change });
    }

    /// Runs one step on a clone, so that a step that fails changes nothing: callers may try another.
    fn with_author(&mut self, step: impl FnOnce(&mut View, Author<'_>) -> Result<(), Invalid>) -> Result<(), Invalid> {
        let mut view = self.view.clone();
        let Self { entry, member, frontier, retired, .. } = &*self;
        step(&mut view, Author { entry: *entry, member, frontier, retired })?;
        self.view = view;
        Ok(())
    }
}

/// What is known of the rights to `pools`, which all have one subject.
#[must_use]
pub fn shortage(view: &View, me: ReplicaId, pools: &[PoolId], wanted: &Amount) -> Shortage {
    let mut sum = Shortage {
        subject: None,
        wanted: wanted.clone(),
        capacity: Amount::default(),
        claimed: Amount::default(),
        free_here: Amount::default(),
        elsewhere: Vec::new(),
        unconfirmed: Vec::new(),
    };
    for (id, pool) in pools.iter().filter_map(|id| view.ledger.pool(*id).map(|pool| (*id, pool))) {
        sum.subject.get_or_insert_with(|| pool.subject.clone());
        sum.capacity = sum.capacity.saturating_add(&pool.capacity().in_terms_of(wanted));
        sum.claimed = sum.claimed.saturating_add(&pool.claimed.in_terms_of(wanted));
        sum.free_here = sum.free_here.saturating_add(&pool.free(me).in_terms_of(wanted));
        let waiting = pool.unconfirmed(me).in_terms_of(wanted);
        if !waiting.is_zero() {
            let root = id.entry.author;
            sum.unconfirmed.push((view.retired().heir(root).unwrap_or(root), waiting));
        }
        let elsewhere = held_by_others(id, pool, me);
        sum.elsewhere.extend(elsewhere.map(|(replica, id, free)| (replica, id, free.in_terms_of(wanted))));
    }
    sum
}

fn held_by_others(id: PoolId, pool: &Pool, me: ReplicaId) -> impl Iterator<Item = (ReplicaId, PoolId, Amount)> + '_ {
    let others = pool.spendable().filter(move |(replica, free)| *replica != me && !free.is_zero());
    others.map(move |(replica, free)| (replica, id, free))
}
