//! What a replica shows: typed records with their observations, names, members and ledgers, indexed.
//!
//! A view is a persistent value. A clone costs a few reference counts and never changes, so readers hold a consistent
//! state without a lock, a transaction works on a clone of its own, and one that fails is dropped. What is visible is
//! a function of the entries held and of nothing else (`PROTOCOL.md`, R1); equal frontiers have equal digests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::account::Rights;
use crate::agent::Observation;
use crate::branch::{Branch, Branches, Rename, Renaming};
use crate::entry::{Frontier, Member, Name, Tip, encode};
use crate::id::{ClaimId, CloudId, EntryId, HostId, PoolId, ReplicaId, SiteName};
use crate::ledger::{Amount, Claim, Ledger, Pool, Touched};
use crate::mutant::{Mutant, on};
use crate::record::{
    Address, AddressPool, Aggregate, Assignment, Flavor, Host, Image, Keypair, Kind, Project, Record, RecordId,
    Revocation, Server, ServerGroup, Site, User,
};
use crate::retire::{Retired, Retirements, Row};

/// A record as it is held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The typed value; none while its content is not held or does not make a record of its kind.
    pub record: Option<Record>,
    /// The entries that created it: one, but for kinds whose ids follow from names.
    pub created: Vec<EntryId>,
    /// What it refers to.
    pub references: Vec<RecordId>,
    /// Deleted, and kept only because something refers to it or still runs.
    pub deleted: bool,
    /// The entries that deleted it.
    pub deletions: Vec<EntryId>,
    /// Those of its references that keep what they refer to: not one whose author had seen that deleted.
    pub keeps: Vec<RecordId>,
    /// What its host's agent saw last (servers).
    pub observation: Option<Observation>,
}

/// A member as it is held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberState {
    /// As admitted, with its newest addresses.
    pub member: Member,
    /// The entry that admitted it.
    pub joined: EntryId,
    /// The entry that gave its present addresses, if not the admitting one.
    pub readdressed: Option<EntryId>,
    /// Its certificate is revoked.
    pub revoked: bool,
    /// Every admission, in order of the entries: more than one only if sponsors in two halves of a split admitted it.
    pub admissions: Vec<(EntryId, Member)>,
}

impl MemberState {
    /// The member, as an entry with this frontier knows it: by the lowest admission in its past. None if there is
    /// none; what else is held here does not matter (`PROTOCOL.md`, E3).
    #[must_use]
    pub fn admitted(&self, frontier: &Frontier) -> Option<&Member> {
        self.admissions.iter().find(|(entry, _)| frontier.holds(*entry)).map(|(_, member)| member)
    }

    /// The state with one more admission. The lowest is shown; newer addresses and a revocation stay.
    pub(crate) fn with_admission(known: Option<&Self>, entry: EntryId, member: &Member) -> Self {
        let mut admissions = known.map(|state| state.admissions.clone()).unwrap_or_default();
        admissions.push((entry, member.clone()));
        admissions.sort_by_key(|(entry, _)| *entry);
        let (joined, mut shown) = admissions.first().cloned().unwrap_or((entry, member.clone()));
        let readdressed = known.and_then(|state| state.readdressed);
        if let Some(state) = known.filter(|state| state.readdressed.is_some()) {
            shown.addresses.clone_from(&state.member.addresses);
        }
        let revoked = known.is_some_and(|state| state.revoked);
        Self { member: shown, joined, readdressed, revoked, admissions }
    }
}

/// The bearers of one name.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct NameState {
    /// Live bindings: entry, generation, bearer.
    pub bound: Vec<(EntryId, u64, RecordId)>,
    /// Bindings that were taken back, of bearers that live: by which entry, up to which generation, whose. A binding that comes
    /// later is void if it is of such a generation and its author had not seen that entry; so once all have, it is forgotten.
    pub unbound: Vec<(EntryId, u64, RecordId)>,
}

/// A digest of canonical live state: a sum over its items, so that it is kept up to date at the cost of a change and
/// does not depend on order. It tells honest replicas apart; it is no defence against forged collisions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, Serialize, Deserialize)]
pub struct Digest(Sum);

/// What items add to a digest.
pub(crate) type Sum = [u64; 4];

impl Digest {
    /// The first 64 bits of it.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.0[0]
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|lane| write!(f, "{lane:016x}"))
    }
}

/// A type of record, as views and transactions name it.
pub trait RecordType: Sized {
    /// Its kind.
    const KIND: Kind;
    /// The record, if it is of this type.
    fn of(record: &Record) -> Option<&Self>;
    /// Changes the record, if it is of this type.
    fn of_mut(record: &mut Record) -> Option<&mut Self>;
    /// The record.
    fn into_record(self) -> Record;
}

macro_rules! record_type {
    ($($name:ident),*) => {$(
        impl RecordType for $name {
            const KIND: Kind = Kind::$name;
            fn of(record: &Record) -> Option<&Self> {
                if let Record::$name(value) = record { Some(value) } else { None }
            }
            fn of_mut(record: &mut Record) -> Option<&mut Self> {
                if let Record::$name(value) = record { Some(value) } else { None }
            }
            fn into_record(self) -> Record {
                Record::$name(self)
            }
        }
    )*};
}
record_type!(
    Site,
    Host,
    Project,
    User,
    Assignment,
    Flavor,
    Image,
    Keypair,
    Revocation,
    ServerGroup,
    Aggregate,
    AddressPool,
    Address
);

impl RecordType for Server {
    const KIND: Kind = Kind::Server;
    fn of(record: &Record) -> Option<&Self> {
        if let Record::Server(value) = record { Some(value) } else { None }
    }
    fn of_mut(record: &mut Record) -> Option<&mut Self> {
        if let Record::Server(value) = record { Some(Arc::make_mut(value)) } else { None }
    }
    fn into_record(self) -> Record {
        Record::Server(Arc::new(self))
    }
}

/// Rows that have changed since they were last written to the store. Persistent sets: every step of a transaction works
/// on a clone, and a batch may have changed thousands of rows before it.
#[derive(Clone, Debug, Default)]
pub struct Dirty {
    pub(crate) records: OrdSet<RecordId>,
    pub(crate) names: OrdSet<Name>,
    pub(crate) members: OrdSet<ReplicaId>,
    pub(crate) pools: OrdSet<PoolId>,
    pub(crate) claims: OrdSet<ClaimId>,
    pub(crate) retirements: OrdSet<EntryId>,
}

/// The state of the cloud, as one replica holds it.
#[derive(Clone, Debug)]
pub struct View {
    pub(crate) cloud: CloudId,
    pub(crate) frontier: Frontier,
    pub(crate) records: OrdMap<RecordId, Arc<Held>>,
    /// Records that are deleted and that nothing keeps: gone, for all who look. They stay as they were until everybody
    /// has their deletion, since an older entry that comes may refer to one, and then it shows as being deleted (R1).
    pub(crate) hidden: OrdMap<RecordId, Arc<Held>>,
    pub(crate) names: OrdMap<Name, Arc<NameState>>,
    pub(crate) members: OrdMap<ReplicaId, MemberState>,
    pub(crate) ledger: Ledger,
    pub(crate) retirements: Retirements,
    pub(crate) branches: Branches,
    pub(crate) dirty: Dirty,
    /// What has taken effect at this view's frontier.
    retired: Arc<Retired>,
    /// What had taken effect in a past that was asked for last, which lacked some of what is known here: entries that come late
    /// have such pasts, one after the other, and each retirement there ever was would be looked at for each of them.
    retired_before: Option<(Arc<[EntryId]>, Arc<Retired>)>,
    referrers: OrdMap<RecordId, OrdSet<RecordId>>,
    children: OrdMap<(Kind, Uuid), OrdSet<Uuid>>,
    digest: Digest,
}

impl View {
    /// An empty view of a cloud.
    #[must_use]
    pub fn new(cloud: CloudId) -> Self {
        Self {
            cloud,
            frontier: Frontier::default(),
            records: OrdMap::new(),
            hidden: OrdMap::new(),
            names: OrdMap::new(),
            members: OrdMap::new(),
            ledger: Ledger::default(),
            retirements: Retirements::default(),
            branches: Branches::default(),
            retired: Arc::default(),
            retired_before: None,
            dirty: Dirty::default(),
            referrers: OrdMap::new(),
            children: OrdMap::new(),
            digest: Digest::default(),
        }
    }

    /// The cloud.
    #[must_use]
    pub fn cloud(&self) -> CloudId {
        self.cloud
    }

    /// The entries that this view is a function of.
    #[must_use]
    pub fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// The digest of everything visible, and of all ledgers.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// All pools and claims.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The replicas that are retired.
    #[must_use]
    pub fn retired(&self) -> &Retired {
        &self.retired
    }

    /// What was asked, sealed and assented to about retirements.
    #[must_use]
    pub fn retirements(&self) -> &Retirements {
        &self.retirements
    }

    /// The branches of those who forked, as far as entries of them are held (M3).
    #[must_use]
    pub fn branches(&self) -> &Branches {
        &self.branches
    }

    /// Members whose seals, or else whose assents, a retirement waits for; empty if none is under way.
    #[must_use]
    pub fn awaited_seals(&self) -> BTreeSet<ReplicaId> {
        let under_way = self.retirements.named(&self.frontier).iter().any(|id| !self.retired.contains(*id));
        if under_way {
            self.retirements.awaited(&self.frontier, &self.members, &self.branches)
        } else {
            BTreeSet::new()
        }
    }

    /// The members that are not retired.
    pub fn living(&self) -> impl Iterator<Item = (&ReplicaId, &MemberState)> {
        self.members.iter().filter(|(id, _)| !self.retired.contains(**id))
    }

    /// All members ever admitted, revoked and retired ones too.
    pub fn members(&self) -> impl Iterator<Item = (&ReplicaId, &MemberState)> {
        self.members.iter()
    }

    /// A member.
    #[must_use]
    pub fn member(&self, replica: ReplicaId) -> Option<&MemberState> {
        self.members.get(&replica)
    }

    /// The sites of all members, in order; those too whose replicas are retired: their hosts may live.
    #[must_use]
    pub fn sites(&self) -> BTreeSet<SiteName> {
        self.members.values().map(|state| state.member.site.clone()).collect()
    }

    /// A record that is not deleted.
    #[must_use]
    pub fn get<T: RecordType>(&self, id: Uuid) -> Option<&T> {
        let held = self.records.get(&RecordId { kind: T::KIND, id }).filter(|held| !held.deleted)?;
        held.record.as_ref().and_then(T::of)
    }

    /// A record with all that belongs to it, deleted or not.
    #[must_use]
    pub fn held(&self, id: RecordId) -> Option<&Arc<Held>> {
        self.records.get(&id)
    }

    /// All records of a type that are not deleted, in order of their ids.
    pub fn all<'a, T: RecordType + 'a>(&'a self) -> impl Iterator<Item = (Uuid, &'a T)> {
        let held = self.held_all(T::KIND).filter(|(_, held)| !held.deleted);
        held.filter_map(|(id, held)| Some((id, held.record.as_ref().and_then(T::of)?)))
    }

    /// All records of a kind, those being deleted too.
    pub fn held_all(&self, kind: Kind) -> impl Iterator<Item = (Uuid, &Arc<Held>)> {
        let from = RecordId { kind, id: Uuid::nil() };
        self.records.range(from..).take_while(move |(id, _)| id.kind == kind).map(|(id, held)| (id.id, held))
    }

    /// Ids of the records of a kind that belong to `parent`: servers, images and server groups of a project, servers of
    /// a server group, keypairs and assignments of a user, addresses taken from a pool. Those being deleted too.
    pub fn children(&self, kind: Kind, parent: Uuid) -> impl Iterator<Item = Uuid> + '_ {
        self.children.get(&(kind, parent)).into_iter().flatten().copied()
    }

    /// How many servers there are, those being deleted too.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.held_all(kind).count()
    }

    /// The bearer of a name: of several live ones that of the highest generation, then of the lowest (author, number).
    #[must_use]
    pub fn named(&self, kind: Kind, parent: Uuid, name: &str) -> Option<Uuid> {
        self.bearers(&Name { kind, parent, name: name.into() }).first().map(|bearer| bearer.id)
    }

    /// Every live bearer of a name, the winner first: more than one is a conflict that people must settle by renaming.
    #[must_use]
    pub fn bearers(&self, name: &Name) -> Vec<RecordId> {
        let Some(state) = self.names.get(name) else { return Vec::new() };
        let live = |bearer: &RecordId| self.records.get(bearer).is_some_and(|held| !held.deleted);
        let mut bound: Vec<_> = state.bound.iter().filter(|(_, _, bearer)| live(bearer)).collect();
        bound.sort_by_key(|(entry, generation, _)| (std::cmp::Reverse(*generation), *entry));
        bound.into_iter().map(|(_, _, bearer)| *bearer).collect()
    }

    /// The names that a record bears.
    pub fn names_of(&self, bearer: RecordId) -> impl Iterator<Item = (&Name, u64)> {
        let bears = move |state: &NameState| state.bound.iter().find(|(_, _, b)| *b == bearer).map(|(_, g, _)| *g);
        let of_kind = self.names.range(Name { kind: bearer.kind, parent: Uuid::nil(), name: String::new() }..);
        let of_kind = of_kind.take_while(move |(name, _)| name.kind == bearer.kind);
        of_kind.filter_map(move |(name, state)| bears(state).map(|generation| (name, generation)))
    }

    /// The generation of a new binding of `name`.
    #[must_use]
    pub fn generation(&self, name: &Name) -> u64 {
        let taken_back = self.names.get(name).into_iter().flat_map(|state| &state.unbound);
        taken_back.map(|(_, generation, _)| generation.saturating_add(1)).max().unwrap_or(0)
    }

    /// Where a server is: its live claim on a host, the highest epoch first.
    #[must_use]
    pub fn placement(&self, server: Uuid) -> Option<Placement<'_>> {
        let on_hosts = self.ledger.claims_of(RecordId { kind: Kind::Server, id: server });
        let on_hosts = on_hosts.filter_map(|(id, claim)| {
            let host = self.ledger.host_of(claim)?;
            Some(Placement {
                claim: id,
                host,
                epoch: claim.epoch,
                amount: &claim.amount,
                gone: !claim.gone.is_empty(),
                dead: self.ledger.is_on_dead_host(claim),
            })
        });
        on_hosts.max_by_key(|placement| (placement.epoch, placement.claim))
    }

    /// The right to place members of a group with affinity: of the pools that call themselves that, the one that was made
    /// with the group.
    #[must_use]
    pub fn group_token(&self, group: Uuid) -> Option<PoolId> {
        let held = self.records.get(&RecordId { kind: Kind::ServerGroup, id: group })?;
        self.ledger.group_pools(group, None).map(|(id, _)| id).find(|id| held.created.contains(&id.entry))
    }

    /// The pool of a record's addresses: of those that call themselves that, the one that was made with the record.
    #[must_use]
    pub fn address_pool(&self, of: RecordId) -> Option<PoolId> {
        let held = self.records.get(&of)?;
        self.ledger.address_pools(of).map(|(id, _)| id).find(|id| held.created.contains(&id.entry))
    }

    /// Whether the site of `host`'s pool is `site`.
    #[must_use]
    pub fn site_of_host(&self, host: HostId) -> Option<SiteName> {
        self.ledger.host_pools(host).find_map(|(_, pool)| match &pool.subject {
            crate::entry::Subject::Host(host) => Some(host.site.clone()),
            crate::entry::Subject::Quota { .. }
            | crate::entry::Subject::Group { .. }
            | crate::entry::Subject::Addresses { .. }
            | crate::entry::Subject::Votes => None,
        })
    }
}

/// Where a server is.
#[derive(Clone, Debug)]
pub struct Placement<'a> {
    /// Its claim there.
    pub claim: ClaimId,
    /// The host.
    pub host: HostId,
    /// The server's placement epoch.
    pub epoch: u64,
    /// What it holds of the host.
    pub amount: &'a crate::ledger::Amount,
    /// The agent has stated that its domain is gone for good.
    pub gone: bool,
    /// The host was declared dead.
    pub dead: bool,
}

/// Changing a view. Every change goes through these, so that digest, indexes and dirty rows follow.
impl View {
    /// Puts a record, or takes it away.
    pub(crate) fn set_record(&mut self, id: RecordId, held: Option<Held>) {
        if let Some(old) = self.records.get(&id).cloned() {
            self.digest_record(id, &old, false);
            self.index(id, &old, false);
        }
        match held.map(Arc::new) {
            Some(held) => {
                #[cfg(feature = "memo")]
                let held = crate::memo::record(id, held);
                self.digest_record(id, &held, true);
                self.index(id, &held, true);
                self.records.insert(id, held);
            }
            None => {
                self.records.remove(&id);
            }
        }
        self.dirty.records.insert(id);
    }

    /// Changes a record in place, be it gone.
    pub(crate) fn edit_record(&mut self, id: RecordId, edit: impl FnOnce(&mut Held)) {
        if let Some(old) = self.records.get(&id) {
            let mut held = Held::clone(old);
            edit(&mut held);
            self.set_record(id, Some(held));
        } else if let Some(held) = self.hidden.get_mut(&id) {
            edit(Arc::make_mut(held));
            self.dirty.records.insert(id);
        }
    }

    /// A record that shows or is gone, unless that is so long ago that nobody will name it any more.
    pub(crate) fn present(&self, id: RecordId) -> Option<&Arc<Held>> {
        self.records.get(&id).or_else(|| self.hidden.get(&id))
    }

    /// Takes away what is deleted and not kept, and what was only kept by that; and brings back what is gone and kept
    /// (R1). What shows thus follows from the entries held, in whatever order they came.
    pub(crate) fn settle(&mut self, from: impl IntoIterator<Item = RecordId>) {
        let mut check: Vec<RecordId> = from.into_iter().collect();
        while let Some(id) = check.pop() {
            let Some(held) = self.present(id).filter(|held| held.deleted).cloned() else { continue };
            let (shows, is_kept) = (self.records.contains_key(&id), self.is_kept(id));
            if shows == is_kept || (is_kept && on(Mutant::KeptIgnored)) {
                continue;
            }
            let pools: Vec<PoolId> = self.ledger.pools_for(id).map(|(pool, _)| pool).collect();
            pools.iter().for_each(|pool| self.digest_whole_pool(*pool, false));
            if shows {
                self.set_record(id, None);
                if !on(Mutant::TombstoneDropped) {
                    self.hidden.insert(id, held.clone());
                }
            } else {
                self.hidden.remove(&id);
                self.set_record(id, Some(Held::clone(&held)));
            }
            pools.iter().for_each(|pool| self.digest_whole_pool(*pool, true));
            check.extend(held.references.iter().copied());
        }
    }

    /// Whether nobody will name a record that is gone any more: all have its deletion, nothing is claimed for it, and
    /// nobody can create it again (R2).
    fn is_over(&self, id: RecordId, held: &Held, all_have: &dyn Fn(EntryId) -> bool) -> bool {
        let is_stable = held.deletions.iter().any(|entry| all_have(*entry)) || on(Mutant::PurgedUnstable);
        let is_used = || self.ledger.pools_for(id).any(|(_, pool)| !pool.late && !pool.claimed.is_zero());
        id.is_certified() && is_stable && self.ledger.claims_of(id).next().is_none() && !is_used()
    }

    /// The pools that nobody will name any more: what they are for is gone, all have its deletion, and nothing of them is
    /// claimed.
    pub(crate) fn closed_pools(&self, all_have: &dyn Fn(EntryId) -> bool) -> Vec<PoolId> {
        let stable = self.hidden.iter().filter(|(_, held)| held.deletions.iter().any(|entry| all_have(*entry)));
        let pools = stable.flat_map(|(id, _)| self.ledger.pools_for(*id));
        pools.filter(|(_, pool)| !pool.late && pool.claimed.is_zero()).map(|(id, _)| id).collect()
    }

    /// Whether what a pool is for was deleted, as far as is known here: this replica may only release claims of it.
    #[must_use]
    pub fn is_closed(&self, pool: &Pool) -> bool {
        let record = pool.subject.record().filter(|_| !pool.late);
        record.and_then(|id| self.present(id)).is_some_and(|held| held.deleted)
    }

    /// The records that are gone and that nobody will name any more.
    pub(crate) fn over(&self, all_have: &dyn Fn(EntryId) -> bool) -> Vec<RecordId> {
        let over = self.hidden.iter().filter(|(id, held)| self.is_over(**id, held, all_have));
        over.map(|(id, _)| *id).collect()
    }

    /// The names of which something was taken back that nobody will bind any more without having seen it, with what is left
    /// of them: nothing shows of it.
    pub(crate) fn without_unbound(&self, all_have: &dyn Fn(EntryId) -> bool) -> Vec<(Name, NameState)> {
        let is_stable = |(entry, ..): &(EntryId, u64, RecordId)| all_have(*entry);
        let stable = self.names.iter().filter(|(_, state)| state.unbound.iter().any(is_stable));
        let rest = stable.map(|(name, state)| {
            let mut state = NameState::clone(state);
            state.unbound.retain(|one| !is_stable(one));
            (name.clone(), state)
        });
        rest.collect()
    }

    /// Puts what is left of a name; nothing shows of what has gone.
    pub(crate) fn fold_name(&mut self, name: Name, state: NameState) {
        if state == NameState::default() {
            self.names.remove(&name);
        } else {
            self.names.insert(name, Arc::new(state));
        }
    }

    pub(crate) fn edit_name(&mut self, name: &Name, edit: impl FnOnce(&mut NameState)) {
        let mut state = self.names.get(name).map(|state| NameState::clone(state)).unwrap_or_default();
        self.digest_name(name, &state, false);
        edit(&mut state);
        if !on(Mutant::NameByArrival) {
            state.bound.sort_unstable();
        }
        state.unbound.sort_unstable();
        self.digest_name(name, &state, true);
        if state == NameState::default() {
            self.names.remove(name);
        } else {
            self.names.insert(name.clone(), Arc::new(state));
        }
        self.dirty.names.insert(name.clone());
    }

    /// Takes every name from a record that was deleted. It never bears one again.
    pub(crate) fn drop_names(&mut self, bearer: RecordId) {
        let of_kind = self.names.range(Name { kind: bearer.kind, parent: Uuid::nil(), name: String::new() }..);
        let of_kind = of_kind.take_while(|(name, _)| name.kind == bearer.kind);
        let is_of = |state: &NameState| state.bound.iter().chain(&state.unbound).any(|(_, _, b)| *b == bearer);
        let names: Vec<Name> = of_kind.filter(|(_, state)| is_of(state)).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.edit_name(&name, |state| {
                state.bound.retain(|(_, _, b)| *b != bearer);
                state.unbound.retain(|(_, _, b)| *b != bearer);
            });
        }
    }

    pub(crate) fn set_member(&mut self, state: MemberState) {
        let id = state.member.replica;
        if let Some(old) = self.members.get(&id).cloned() {
            self.digest_item(&("member", &old), false);
        }
        self.digest_item(&("member", &state), true);
        self.members.insert(id, state);
        self.dirty.members.insert(id);
    }

    pub(crate) fn set_retirement(&mut self, entry: EntryId, row: Row) {
        self.digest_item(&("retirement", entry, &row), true);
        self.retirements.insert(entry, row);
        self.dirty.retirements.insert(entry);
    }

    /// Takes up an entry that has been applied.
    pub(crate) fn advance(&mut self, author: ReplicaId, tip: Tip) {
        self.frontier.set(author, tip);
        let entry = EntryId { author, number: tip.number };
        if self.dirty.retirements.contains(&entry) {
            self.retired = Arc::new(self.retirements.effective(&self.frontier, &self.members, &self.branches));
        }
    }

    /// Takes up a branch: from now on its author acts for it.
    pub(crate) fn add_branch(&mut self, log: ReplicaId, branch: Branch) {
        self.branches.insert(log, branch);
        self.retired_before = None;
        self.retired = Arc::new(self.retirements.effective(&self.frontier, &self.members, &self.branches));
    }

    /// What has taken effect in an entry's past.
    pub(crate) fn retired_at(&mut self, past: &Frontier) -> Arc<Retired> {
        if self.retirements.all_in(past) {
            return self.retired.clone();
        }
        let known = self.retirements.known_in(past);
        if let Some((_, retired)) = self.retired_before.as_ref().filter(|(before, _)| *before == known) {
            return retired.clone();
        }
        let retired = Arc::new(self.retirements.effective(past, &self.members, &self.branches));
        self.retired_before = Some((known, retired.clone()));
        retired
    }

    /// Changes the ledger. `touches` names the existing row that `edit` will change, `edit` the one that it did.
    pub(crate) fn edit_ledger<E>(
        &mut self,
        touches: Option<Touched>,
        edit: impl FnOnce(&mut Ledger) -> Result<Touched, E>,
    ) -> Result<(), E> {
        let before = self.rows_of(touches);
        let pool = before.0.and_then(|id| self.ledger.pool_now(id));
        let claim = before.1.and_then(|id| self.ledger.claim_now(id));
        let after = edit(&mut self.ledger)?;
        let after = self.rows_of(Some(after));
        #[cfg(feature = "memo")]
        before.0.or(after.0).into_iter().for_each(|id| self.ledger.share_pool(id));
        if let Some(id) = before.0.or(after.0) {
            self.digest_pool(id, pool.as_ref());
            self.dirty.pools.insert(id);
        }
        if let Some(id) = before.1.or(after.1) {
            self.digest_claim(id, claim.as_deref());
            self.dirty.claims.insert(id);
        }
        Ok(())
    }

    /// The rows of what is touched: a claim's change changes its pool too.
    fn rows_of(&self, touched: Option<Touched>) -> (Option<PoolId>, Option<ClaimId>) {
        match touched {
            Some(Touched::Pool(id)) => (Some(id), None),
            Some(Touched::Claim(id)) => (self.ledger.claim(id).map(|claim| claim.pool), Some(id)),
            None => (None, None),
        }
    }

    /// Takes a pool into the digest, or out of it, before and after what it is for has gone or come back.
    fn digest_whole_pool(&mut self, id: PoolId, add: bool) {
        let Some(pool) = self.ledger.pool_now(id).filter(|pool| self.shows(pool)) else { return };
        self.digest_pool_change(id, (!add).then_some(&pool), add.then_some(&pool));
    }

    /// Whether a pool is part of the visible state: not if what it is for is gone, since it is forgotten with that (R1, R2).
    fn shows(&self, pool: &Pool) -> bool {
        pool.late || pool.subject.record().is_none_or(|id| !self.hidden.contains_key(&id))
    }

    /// Takes a pool's change into the digest. Each account is an item of its own, so that a claim costs the same however
    /// many replicas hold rights.
    fn digest_pool(&mut self, id: PoolId, before: Option<&Arc<Pool>>) {
        let now = self.ledger.pool_now(id).filter(|pool| self.shows(pool));
        let before = before.filter(|pool| self.shows(pool));
        self.digest_pool_change(id, before, now.as_ref());
    }

    fn digest_pool_change(&mut self, id: PoolId, before: Option<&Arc<Pool>>, now: Option<&Arc<Pool>>) {
        let sum = || pool_change(id, before.map(|pool| &**pool), now.map(|pool| &**pool));
        #[cfg(feature = "memo")]
        let sum = || crate::memo::pool_change(before, now, sum);
        self.digest.add(sum(), true);
    }

    fn digest_claim(&mut self, id: ClaimId, before: Option<&Claim>) {
        let now = self.ledger.claim_now(id);
        for (claim, add) in [(before, false), (now.as_deref(), true)] {
            if let Some(claim) = claim {
                self.digest_item(&("claim", id, claim), add);
            }
        }
    }

    fn digest_name(&mut self, name: &Name, state: &NameState, add: bool) {
        if !state.bound.is_empty() {
            self.digest_item(&("name", name, &state.bound), add);
        }
    }

    /// What folding leaves alone: not when and how it was deleted.
    fn digest_record(&mut self, id: RecordId, held: &Arc<Held>, add: bool) {
        let sum = || {
            let Held { record, created, references, deleted, observation, .. } = &**held;
            sum_of(&("record", id, record, created, references, deleted, observation))
        };
        #[cfg(feature = "memo")]
        let sum = || crate::memo::record_sum(held, sum);
        self.digest.add(sum(), add);
    }

    fn digest_item(&mut self, item: &impl Serialize, add: bool) {
        self.digest.item(item, add);
    }

    fn index(&mut self, id: RecordId, held: &Held, add: bool) {
        for to in &held.keeps {
            change_set(&mut self.referrers, *to, id, add);
        }
        for parent in held.record.as_ref().into_iter().flat_map(parents) {
            change_set(&mut self.children, (id.kind, parent), id.id, add);
        }
    }

    /// Whether something keeps a deleted record: a record that refers to it, or a claim whose host's agent has not
    /// said that the domain is gone. A claim that was made after the record, by an evacuation, keeps nothing: it may come
    /// when the record is gone, and what is visible must not depend on that.
    pub(crate) fn is_kept(&self, id: RecordId) -> bool {
        let created = self.present(id).map(|held| held.created.as_slice()).unwrap_or_default();
        let runs = |(by, claim): (ClaimId, &Claim)| {
            let may_run = claim.gone.is_empty() && !self.ledger.is_on_dead_host(claim);
            may_run && self.ledger.host_of(claim).is_some() && created.contains(&by.entry)
        };
        self.referrers.contains_key(&id) || self.ledger.claims_of(id).any(runs)
    }

    /// Puts back rows from the store: digest and indexes are made anew, and nothing is dirty.
    pub(crate) fn restore(&mut self, rows: Rows) {
        self.frontier = rows.frontier;
        self.branches = rows.branches;
        self.hidden = rows.hidden.into_iter().map(|(id, held)| (id, Arc::new(held))).collect();
        rows.members.into_iter().for_each(|state| self.set_member(state));
        rows.records.into_iter().for_each(|(id, held)| self.set_record(id, Some(held)));
        for (name, state) in rows.names {
            self.edit_name(&name, |empty| *empty = state);
        }
        for (id, pool) in rows.pools {
            self.ledger.insert_pool(id, pool);
            self.digest_pool(id, None);
        }
        for (id, claim) in rows.claims {
            self.ledger.insert_claim(id, claim);
            self.digest_claim(id, None);
        }
        rows.retirements.into_iter().for_each(|(entry, row)| self.set_retirement(entry, row));
        self.retired = Arc::new(self.retirements.effective(&self.frontier, &self.members, &self.branches));
        self.dirty = Dirty::default();
    }
}

/// After a fork has become known.
impl View {
    /// What was one log's is another's from an entry on, in everything that is named by entries. `branches` has it.
    /// An author turns out to have forked: see [`Ledger::fork`].
    pub(crate) fn note_fork(&mut self, author: ReplicaId, given: Option<&BTreeMap<PoolId, Amount>>) {
        let (branches, retired) = (self.branches.clone(), self.retired().clone());
        let is_its = |log| branches.author(log) == author || retired.heir(log) == Some(author);
        self.ledger.fork(author, given, &is_its);
    }

    pub(crate) fn rename(&mut self, branches: Branches, by: &Renaming) {
        let mut rows = Rows {
            frontier: std::mem::take(&mut self.frontier),
            branches,
            hidden: self.hidden.iter().map(|(id, held)| (*id, Held::clone(held))).collect(),
            members: self.members.values().cloned().collect(),
            records: self.records.iter().map(|(id, held)| (*id, Held::clone(held))).collect(),
            names: self.names.iter().map(|(name, state)| (name.clone(), NameState::clone(state))).collect(),
            pools: self.ledger.pools().map(|(id, pool)| (*id, pool.clone())).collect(),
            claims: self.ledger.claims().map(|(id, claim)| (*id, claim.clone())).collect(),
            retirements: self.retirements.rows(),
        };
        rows.rename(by);
        *self = Self::new(self.cloud);
        self.restore(rows);
    }
}

/// What the store holds of a view.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) frontier: Frontier,
    pub(crate) branches: Branches,
    pub(crate) hidden: Vec<(RecordId, Held)>,
    pub(crate) members: Vec<MemberState>,
    pub(crate) records: Vec<(RecordId, Held)>,
    pub(crate) names: Vec<(Name, NameState)>,
    pub(crate) pools: Vec<(PoolId, Pool)>,
    pub(crate) claims: Vec<(ClaimId, Claim)>,
    pub(crate) retirements: Vec<(EntryId, Row)>,
}

impl Rename for MemberState {
    fn rename(&mut self, by: &Renaming) {
        self.admissions.iter_mut().for_each(|(entry, _)| entry.rename(by));
        self.admissions.sort_by_key(|(entry, _)| *entry);
        self.readdressed.iter_mut().for_each(|entry| entry.rename(by));
        // The lowest is shown, and which that is follows from the names.
        if let Some((joined, shown)) = self.admissions.first().cloned() {
            let addresses = std::mem::take(&mut self.member.addresses);
            (self.joined, self.member) = (joined, shown);
            if self.readdressed.is_some() {
                self.member.addresses = addresses;
            }
        }
    }
}

impl Rename for Rows {
    fn rename(&mut self, by: &Renaming) {
        self.frontier.rename(by);
        for member in &mut self.members {
            member.rename(by);
        }
        for (_, held) in self.records.iter_mut().chain(&mut self.hidden) {
            for entries in [&mut held.created, &mut held.deletions] {
                entries.rename(by);
                entries.sort_unstable();
            }
        }
        for (_, state) in &mut self.names {
            state.bound.iter_mut().chain(&mut state.unbound).for_each(|(entry, _, _)| entry.rename(by));
        }
        for (id, pool) in &mut self.pools {
            id.rename(by);
            pool.rename(by);
        }
        for (id, claim) in &mut self.claims {
            id.rename(by);
            claim.rename(by);
        }
        self.retirements.rename(by);
    }
}

impl Digest {
    fn add(&mut self, sum: Sum, add: bool) {
        for (lane, word) in self.0.iter_mut().zip(sum) {
            *lane = if add { lane.wrapping_add(word) } else { lane.wrapping_sub(word) };
        }
    }

    fn item(&mut self, item: &impl Serialize, add: bool) {
        self.add(sum_of(item), add);
    }
}

/// What an item adds.
fn sum_of(item: &impl Serialize) -> Sum {
    let mut sum = Sum::default();
    for (lane, part) in sum.iter_mut().zip(blake3::hash(&encode(item)).as_bytes().chunks_exact(8)) {
        let mut word = [0; 8];
        word.copy_from_slice(part);
        *lane = u64::from_le_bytes(word);
    }
    sum
}

/// What a pool's change adds to a digest.
fn pool_change(id: PoolId, before: Option<&Pool>, now: Option<&Pool>) -> Sum {
    let mut change = Digest::default();
    for (pool, add) in [(before, false), (now, true)] {
        if let Some(Pool { subject, minted, burnt, claimed, dead, confirmed, .. }) = pool {
            change.item(&("pool", id, subject, minted, burnt, claimed, dead, confirmed), add);
        }
    }
    for (replica, before, now) in Pool::changed_accounts(before, now) {
        for (Rights { total, waiting, owed }, add) in [(before, false), (now, true)] {
            if !total.is_zero() {
                change.item(&("account", id, replica, total), add);
            }
            if !owed.is_zero() {
                change.item(&("owed", id, replica, owed), add);
            }
            if !waiting.is_zero() {
                change.item(&("waiting", id, replica, waiting), add);
            }
        }
    }
    change.0
}

fn parents(record: &Record) -> impl Iterator<Item = Uuid> {
    let (owner, group) = match record {
        Record::Server(server) => (Some(server.project), server.group),
        Record::Image(image) => (Some(image.project), None),
        Record::ServerGroup(group) => (Some(group.project), None),
        Record::Keypair(keypair) => (Some(keypair.user), None),
        Record::Assignment(assignment) => (Some(assignment.user), None),
        Record::Address(address) => (Some(address.pool), None),
        _ => (None, None),
    };
    owner.into_iter().chain(group)
}

fn change_set<K: Ord + Clone, V: Ord + Clone>(map: &mut OrdMap<K, OrdSet<V>>, key: K, value: V, add: bool) {
    let mut set = map.get(&key).cloned().unwrap_or_default();
    if add {
        set.insert(value);
    } else {
        set.remove(&value);
    }
    if set.is_empty() {
        map.remove(&key)
    } else {
        map.insert(key, set)
    };
}
