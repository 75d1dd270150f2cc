//! Applying an entry: who may write what (`PROTOCOL.md`, E7), and what each part does to a view.
//!
//! Every check here is a function of the entry and of its causal past, never of what else the receiver holds, so that
//! all replicas judge alike (E3). Where a part of an entry meets something that is already settled here (a change of
//! a record that is gone, a statement about a released claim), it is void, not wrong: whether it is settled depends
//! on what the receiver holds.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::agent::{Observation, Statement};
use crate::document::{self, BadDocument, Loaded};
use crate::entry::{ContentOp, Created, Entry, Fork, Frontier, LedgerOp, Member, MemberOp, Name, Subject, Tip};
use crate::hosts;
use crate::id::{ClaimId, CloudId, EntryId, HostId, PoolId, ReplicaId};
use crate::ledger::{Amount, BadLedgerOp, Dimension, Judged, Touched};
use crate::mutant::{Mutant, on};
use crate::record::{Kind, Record, RecordId, site_record};
use crate::retire::{Asked, Assented, Request, Retired, Retiree, Row, Sealed, VOTES};
use crate::site_mutant::{self, SiteMutant};
use crate::store::StoreError;
use crate::view::{Held, MemberState, View};

/// Why an entry is refused (rule `authority`). Nothing of it is applied; later entries of its author cannot be either.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Its author was not admitted in its past.
    #[error("its author is no member in its past")]
    NotMember,
    /// See [`BadLedgerOp`].
    #[error("ledger operation {index}: {source}")]
    Ledger {
        /// Which.
        index: usize,
        /// Why.
        source: BadLedgerOp,
    },
    /// The author may not write this (E7).
    #[error("its author, of site {site}, may not {what}")]
    Authority {
        /// The author's site.
        site: String,
        /// What it tried.
        what: String,
    },
    /// A part names something that is not in the entry's past.
    #[error("{0} is not in its past")]
    Unknown(String),
    /// Its author is retired, and knew it.
    #[error("its author is retired in its past")]
    Retired,
    /// A retirement that names nobody, somebody twice, a stranger, an heir that is going too, or who is going already.
    #[error("the retirement is malformed: {0}")]
    BadRetirement(&'static str),
    /// A member's id does not follow from its key, or the like.
    #[error("the member {0} is malformed")]
    BadMember(ReplicaId),
    /// See [`BadDocument`].
    #[error("record {record:?}: {source}")]
    Document {
        /// Which.
        record: RecordId,
        /// Why.
        source: BadDocument,
    },
}

/// Why an entry could not be applied.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ApplyError {
    /// It is refused, here and everywhere.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The store could not be read: nothing is said about the entry.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Documents at rest: read from the store, written with the entry.
pub(crate) trait Documents {
    fn load(&mut self, id: RecordId) -> Result<Option<Vec<u8>>, StoreError>;
    /// Puts a document's row, or takes it away.
    fn save(&mut self, id: RecordId, row: Option<Vec<u8>>);
    /// Those that stay loaded.
    fn loaded(&mut self) -> &mut Loaded;
}

/// The cloud that the replica with this key founded. Whoever knows the cloud's id thus knows who may admit itself.
#[must_use]
pub fn founded_by(public_key: &[u8; 32]) -> CloudId {
    let mut bytes = b"luc/cloud/1\0".to_vec();
    bytes.extend(public_key);
    let mut id = [0; 16];
    id.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
    CloudId(uuid::Uuid::from_bytes(id))
}

/// What an entry is judged by, besides the view.
#[derive(Clone, Copy)]
pub(crate) struct Author<'a> {
    /// The entry, by its log.
    pub(crate) entry: EntryId,
    pub(crate) member: &'a Member,
    /// Its full frontier, this entry included.
    pub(crate) frontier: &'a Frontier,
    /// Who was retired in its past.
    pub(crate) retired: &'a Retired,
}

impl Author<'_> {
    fn replica(&self) -> ReplicaId {
        self.member.replica
    }
}

/// Applies a whole entry. On an error the view is half changed: the caller drops it.
pub(crate) fn apply(
    view: &mut View,
    entry: &Entry,
    frontier: &Frontier,
    documents: &mut impl Documents,
) -> Result<(), ApplyError> {
    let header = &entry.header;
    let member = author_of(view, entry, frontier)?;
    let retired = view.retired_at(frontier);
    if retired.contains(header.author) {
        return Err(Invalid::Retired.into());
    }
    let author = Author { entry: entry.held_as(), member: &member, frontier, retired: &retired };
    for op in &header.members {
        apply_member(view, author, op)?;
    }
    let mut placing = Placing::default();
    for (index, op) in header.ledger.iter().enumerate() {
        let creates = |record| header.created.iter().any(|one| one.record == record);
        placing.check(view, author, &creates, op)?;
        apply_ledger(view, author, index, op)?;
    }
    for created in &header.created {
        apply_created(view, author, created)?;
    }
    for statement in &header.statements {
        apply_statement(view, author, statement);
    }
    for op in &entry.content.ops {
        apply_content(view, author, op, documents)?;
    }
    for record in &header.deleted {
        apply_deleted(view, author, *record)?;
    }
    let buried = hosts::buried(view, header);
    let touched: Vec<RecordId> =
        touched(&header.created, &header.ledger).chain(released(header)).chain(buried).collect();
    view.settle(header.deleted.iter().copied().chain(touched));
    view.advance(entry.log, entry.tip());
    Ok(())
}

/// Records that may be kept from now on: what is referred to, or claimed for.
pub(crate) fn touched<'a>(created: &'a [Created], ledger: &'a [LedgerOp]) -> impl Iterator<Item = RecordId> + 'a {
    let claimed = ledger.iter().filter_map(|op| match op {
        LedgerOp::Claim { record, .. } => Some(*record),
        _ => None,
    });
    created.iter().flat_map(|created| created.references.iter().copied()).chain(claimed)
}

/// Servers whose fate an entry's statements may have settled.
fn released(header: &crate::entry::Header) -> impl Iterator<Item = RecordId> + '_ {
    header.statements.iter().map(|statement| RecordId { kind: Kind::Server, id: statement.server })
}

/// The author as admitted in the entry's past; the founder admits itself.
fn author_of(view: &View, entry: &Entry, frontier: &Frontier) -> Result<Member, Invalid> {
    let header = &entry.header;
    if let Some(state) = view.members.get(&header.author) {
        return state.admitted(frontier).cloned().ok_or(Invalid::NotMember);
    }
    match header.members.first() {
        Some(MemberOp::Join(member))
            if header.number == 1
                && member.replica == header.author
                && founded_by(&member.public_key) == header.cloud =>
        {
            Ok(member.clone())
        }
        _ => Err(Invalid::NotMember),
    }
}

pub(crate) fn apply_member(view: &mut View, author: Author<'_>, op: &MemberOp) -> Result<(), Invalid> {
    match op {
        MemberOp::Join(member) => {
            let founder = author.entry.number == 1 && member.replica == author.replica();
            let exceeds = (member.identity_authority && !author.member.identity_authority)
                || (member.sponsor && !author.member.sponsor);
            if !founder && (!author.member.sponsor || exceeds) {
                return Err(refused(author, "admit a member with these powers"));
            }
            if ReplicaId::of_key(&member.public_key) != member.replica {
                return Err(Invalid::BadMember(member.replica));
            }
            // Admitted already, as its author knew: void, or a sponsor could change a member's site and powers. Admitted
            // twice, in two halves of a split: both are kept, since each is the past of somebody's entries.
            let known = view.members.get(&member.replica);
            if known.is_none_or(|state| state.admitted(author.frontier).is_none()) {
                view.set_member(MemberState::with_admission(known, author.entry, member));
            }
        }
        MemberOp::Readdress { addresses } => {
            if let Some(mut state) = view.members.get(&author.replica()).cloned() {
                state.member.addresses.clone_from(addresses);
                state.readdressed = Some(author.entry);
                view.set_member(state);
            }
        }
        MemberOp::Revoke { replica } => {
            if !author.member.sponsor {
                return Err(refused(author, "revoke a certificate"));
            }
            let known = view.members.get(replica).filter(|state| state.admitted(author.frontier).is_some());
            let mut state = known.cloned().ok_or_else(|| Invalid::Unknown(format!("member {replica}")))?;
            state.revoked = true;
            view.set_member(state);
        }
        MemberOp::Retire(request) => {
            if !author.member.sponsor {
                return Err(refused(author, "retire a replica"));
            }
            let asked = check_request(view, author, request)?;
            view.set_retirement(author.entry, Row::Request(asked));
        }
        MemberOp::Fork(fork) => {
            let asked = check_fork(view, author, fork)?;
            view.set_retirement(author.entry, Row::Request(asked));
        }
        MemberOp::Branched { retiree } => {
            let asked = check_branched(view, author, *retiree)?;
            view.set_retirement(author.entry, Row::Request(asked));
        }
        MemberOp::Seal { set } => {
            check_seal(view, author, set)?;
            let mut frontier = author.frontier.clone();
            frontier.set(author.entry.author, Tip { number: author.entry.number, hash: 0 });
            let votes = view.ledger.votes_of(author.replica(), author.retired, &frontier);
            let of = view.ledger.votes_left(author.retired, &frontier);
            view.set_retirement(author.entry, Row::Seal(Sealed { set: set.clone(), frontier, votes, of }));
        }
        MemberOp::Assent { set } => {
            check_assent(view, author, set)?;
            let seals = view.retirements.seals_in(set, author.frontier);
            view.set_retirement(author.entry, Row::Assent(Assented { set: set.clone(), seals }));
        }
        MemberOp::Held => {}
    }
    Ok(())
}

/// All of them, once.
fn may_mint_votes(view: &View, author: Author<'_>, op: &LedgerOp) -> bool {
    let all: Amount = [(Dimension::Votes, VOTES)].into_iter().collect();
    let is_founder = author.entry.number == 1 && founded_by(&author.member.public_key) == view.cloud;
    is_founder
        && view.ledger.votes().is_none()
        && matches!(op, LedgerOp::Mint { amount, confirmed: true, .. } if *amount == all)
}

/// Votes only move, and not while they count for a seal that is not decided: they would count again where they went.
fn check_votes(view: &View, author: Author<'_>, op: &LedgerOp) -> Result<(), Invalid> {
    let votes = view.ledger.votes().map(|(id, _)| id);
    let sealed = || sealed_last(view, author);
    match op {
        LedgerOp::Grow { pool, .. } | LedgerOp::Burn { pool, .. } | LedgerOp::Claim { pool, .. }
            if Some(*pool) == votes =>
        {
            Err(refused(author, "make or spend votes"))
        }
        LedgerOp::Grant { pool, .. }
            if Some(*pool) == votes && sealed().iter().any(|id| !author.retired.contains(*id)) =>
        {
            Err(refused(author, "hand on votes that count for a seal"))
        }
        _ => Ok(()),
    }
}

/// What an entry's author has sealed last, in the log that the entry is in: another branch of it says nothing here.
fn sealed_last(view: &View, author: Author<'_>) -> BTreeSet<ReplicaId> {
    let last = view.retirements.last_seal(author.entry.author, author.frontier, &view.branches);
    last.map(|(_, seal)| seal.set.clone()).unwrap_or_default()
}

/// To each set once, while it is what the author has sealed last: who goes on to a larger set decides no smaller one.
fn check_assent(view: &View, author: Author<'_>, set: &BTreeSet<ReplicaId>) -> Result<(), Invalid> {
    let log = author.entry.author;
    if set.is_empty() || *set != sealed_last(view, author) {
        return Err(Invalid::BadRetirement("its author has not sealed just that"));
    }
    if view.retirements.has_assented(log, set, author.frontier, &view.branches) {
        return Err(Invalid::BadRetirement("an assent is given once"));
    }
    if view.retirements.row(author.entry).is_some() {
        return Err(Invalid::BadRetirement("requests, seals and assents are entries of their own"));
    }
    Ok(())
}

fn check_seal(view: &View, author: Author<'_>, set: &BTreeSet<ReplicaId>) -> Result<(), Invalid> {
    let before = sealed_last(view, author);
    if set.contains(&author.replica()) {
        return Err(Invalid::BadRetirement("nobody seals itself"));
    }
    if !set.is_superset(&before) || *set == before {
        return Err(Invalid::BadRetirement("a seal covers more than its author's last"));
    }
    let whole = view.retirements.requests(author.frontier).map(|request| request.set.iter().map(|one| one.replica));
    let whole = whole.map(Iterator::collect::<BTreeSet<_>>).filter(|request| set.is_superset(request));
    if !whole.flatten().collect::<BTreeSet<_>>().is_superset(set) {
        return Err(Invalid::BadRetirement("a seal covers whole requests in its past"));
    }
    if view.retirements.row(author.entry).is_some() {
        return Err(Invalid::BadRetirement("requests, seals and assents are entries of their own"));
    }
    Ok(())
}

fn check_request(view: &View, author: Author<'_>, request: &Request) -> Result<Asked, Invalid> {
    let going = view.retirements.named(author.frontier);
    let set: BTreeSet<ReplicaId> = request.set.iter().map(|retiree| retiree.replica).collect();
    let is_member = |id: &ReplicaId| view.members.get(id).is_some_and(|m| m.admitted(author.frontier).is_some());
    let heirs: BTreeSet<ReplicaId> = request.set.iter().map(|retiree| retiree.heir).collect();
    if set.is_empty() || set.len() < request.set.len() {
        return Err(Invalid::BadRetirement("it names nobody, or somebody twice"));
    }
    if set.contains(&author.replica()) {
        return Err(Invalid::BadRetirement("nobody retires itself"));
    }
    if view.retirements.row(author.entry).is_some() {
        return Err(Invalid::BadRetirement("requests, seals and assents are entries of their own"));
    }
    if !set.iter().chain(&heirs).all(is_member) {
        return Err(Invalid::BadRetirement("it names somebody who is no member in its past"));
    }
    if set.iter().any(|id| author.retired.contains(*id)) {
        return Err(Invalid::BadRetirement("it names somebody who is retired already"));
    }
    if heirs.iter().any(|heir| set.contains(heir) || going.contains(heir)) {
        return Err(Invalid::BadRetirement("an heir is being retired itself"));
    }
    let member = |(id, state): (&ReplicaId, &MemberState)| {
        (state.admitted(author.frontier).is_some() && !author.retired.contains(*id)).then_some(*id)
    };
    let base: BTreeSet<ReplicaId> = view.members.iter().filter_map(member).collect();
    let again = set.intersection(&going).copied().collect();
    Ok(Asked { request: request.clone(), base, again, is_fork: false })
}

/// The proof of a fork is a request that nobody had to make.
fn check_fork(view: &View, author: Author<'_>, fork: &Fork) -> Result<Asked, Invalid> {
    let replica = fork.author().ok_or(Invalid::BadRetirement("it proves no fork"))?;
    let member = view.members.get(&replica).and_then(|state| state.admitted(author.frontier));
    let signed = |member: &Member| fork.one.verify(&member.public_key) && fork.other.verify(&member.public_key);
    if !member.is_some_and(signed) {
        return Err(Invalid::BadRetirement("it proves no fork of a member"));
    }
    let request = Request { set: vec![Retiree { replica, heir: fork.heir }], force: false };
    Ok(Asked { is_fork: true, ..check_request(view, author, &request)? })
}

/// Whoever holds two branches of a log has seen that it forked, and so has everybody who holds what that one holds.
fn check_branched(view: &View, author: Author<'_>, retiree: Retiree) -> Result<Asked, Invalid> {
    let branches = &view.branches;
    let held = |log: &ReplicaId| branches.first(*log) <= author.frontier.number(*log);
    let held: Vec<ReplicaId> = branches.logs(retiree.replica).filter(held).collect();
    let parts = |one: &ReplicaId| held.iter().any(|other| branches.part(*one, *other).is_some());
    if !held.iter().any(parts) {
        return Err(Invalid::BadRetirement("its author holds no two branches"));
    }
    let request = Request { set: vec![retiree], force: false };
    Ok(Asked { is_fork: true, ..check_request(view, author, &request)? })
}

pub(crate) fn apply_ledger(view: &mut View, author: Author<'_>, index: usize, op: &LedgerOp) -> Result<(), Invalid> {
    if let LedgerOp::Mint { subject, .. } = op {
        match subject {
            Subject::Host(host) if host.site != author.member.site => {
                return Err(refused(author, "make the pool of another site's host"));
            }
            Subject::Host(host) if !host.is_genuine(view.cloud) => {
                return Err(refused(author, "make the pool of a host whose agent has not signed it"));
            }
            Subject::Quota { .. } if !author.member.identity_authority => {
                return Err(refused(author, "make a quota"));
            }
            Subject::Group { group, host } if !may_mint_group(view, author, *group, *host) => {
                return Err(refused(author, "make the right to place members of a server group"));
            }
            Subject::Votes if !may_mint_votes(view, author, op) => return Err(refused(author, "make votes")),
            // An address pool is worth what refers to it, and that names it by its minting entry: whoever makes one more
            // makes nobody's larger. So any member may, as any may create what needs one.
            Subject::Host(_) | Subject::Quota { .. } | Subject::Group { .. } => {}
            Subject::Addresses { .. } | Subject::Votes => {}
        }
    }
    if let LedgerOp::DeclareDead { pool, .. } = op
        && let Some(Subject::Host(host)) = view.ledger.pool(*pool).map(|pool| &pool.subject)
        && !hosts::may_declare_dead(view, author, host)
    {
        return Err(refused(author, "declare another site's host dead"));
    }
    check_votes(view, author, op)?;
    check_open(view, author, op).map_err(|source| Invalid::Ledger { index, source })?;
    let late = matches!(op, LedgerOp::Mint { subject, .. } if is_closed(view, author, subject));
    let number = u32::try_from(index).unwrap_or(u32::MAX);
    let touches = match op {
        LedgerOp::Mint { .. } => None,
        LedgerOp::Grow { pool, .. } | LedgerOp::Burn { pool, .. } => Some(Touched::Pool(*pool)),
        LedgerOp::Grant { pool, .. }
        | LedgerOp::Confirm { pool, .. }
        | LedgerOp::Claim { pool, .. }
        | LedgerOp::Inherit { pool, .. }
        | LedgerOp::DeclareDead { pool, .. } => Some(Touched::Pool(*pool)),
        LedgerOp::Release { claim } => Some(Touched::Claim(*claim)),
    };
    let members = view.members.clone();
    let admitted = |replica| members.get(&replica).is_some_and(|state| state.admitted(author.frontier).is_some());
    let is_member = |replica| admitted(replica) && !author.retired.contains(replica);
    let Author { entry, frontier, retired, .. } = author;
    let is_forked = view.branches.is_forked(author.replica());
    let judged = Judged { entry, author: author.replica(), is_forked, frontier, is_member: &is_member, retired };
    view.edit_ledger(touches, |ledger| {
        let touched = ledger.apply(judged, number, op)?;
        if let (true, Touched::Pool(id)) = (late, touched) {
            ledger.note_late(id);
        }
        Ok(touched)
    })
    .map_err(|source| Invalid::Ledger { index, source })
}

/// Whether what a pool is for was deleted in the entry's past.
fn is_closed(view: &View, author: Author<'_>, subject: &Subject) -> bool {
    let deletions = subject.record().and_then(|id| view.present(id)).map(|held| held.deletions.as_slice());
    deletions.unwrap_or_default().iter().any(|entry| author.frontier.holds(*entry))
}

/// Nothing of a pool moves any more, in the eyes of whoever has seen the deletion of what it is for; but what is claimed
/// comes back. So once all have seen it, and nothing is claimed, nobody names the pool, and it is forgotten: an entry that
/// does is refused by whoever remembers it, and by whoever does not.
fn check_open(view: &View, author: Author<'_>, op: &LedgerOp) -> Result<(), BadLedgerOp> {
    let id = match op {
        LedgerOp::Mint { .. } | LedgerOp::Release { .. } => return Ok(()),
        LedgerOp::Grow { pool, .. }
        | LedgerOp::Burn { pool, .. }
        | LedgerOp::Grant { pool, .. }
        | LedgerOp::Confirm { pool, .. }
        | LedgerOp::Claim { pool, .. }
        | LedgerOp::Inherit { pool, .. }
        | LedgerOp::DeclareDead { pool, .. } => *pool,
    };
    let pool = view.ledger.pool(id).filter(|pool| !pool.late);
    let closed = pool.is_some_and(|pool| is_closed(view, author, &pool.subject));
    if closed { Err(BadLedgerOp::Closed(id)) } else { Ok(()) }
}

pub(crate) fn apply_created(view: &mut View, author: Author<'_>, created: &Created) -> Result<(), Invalid> {
    check_writer(view, author, created.record)?;
    let (id, by) = (created.record, author.entry);
    let signed = EntryId { author: author.replica(), ..by };
    if id.is_certified() && !id.is_certified_by(signed) {
        return Err(refused(author, "create a record under an id that another entry alone can give"));
    }
    // What its author had seen deleted is not kept by it: whoever has forgotten that record judges alike.
    let is_gone = |to: &RecordId| {
        let deletions = view.present(*to).into_iter().flat_map(|held| &held.deletions);
        deletions.into_iter().any(|entry| author.frontier.holds(*entry))
    };
    let keeps: Vec<RecordId> = created.references.iter().copied().filter(|to| !is_gone(to)).collect();
    let references = created.references.clone();
    if view.present(id).is_some() {
        // Whichever came first here: all creations, and all that any of them refers to.
        view.edit_record(id, |held| {
            held.created.push(by);
            held.created.sort_unstable();
            held.references = union(&held.references, references);
            held.keeps = union(&held.keeps, keeps);
        });
    } else {
        let (created, deletions) = (vec![by], vec![]);
        let held = Held { record: None, created, references, deleted: false, observation: None, deletions, keeps };
        view.set_record(id, Some(held));
    }
    Ok(())
}

/// As it is if both are the same; else all of both, in order.
fn union(held: &[RecordId], more: Vec<RecordId>) -> Vec<RecordId> {
    if held == more {
        return more;
    }
    let mut all: Vec<RecordId> = held.iter().copied().chain(more).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// A statement counts where its claim is live, on that host and in the entry's past, and the host's key signed it.
pub(crate) fn apply_statement(view: &mut View, author: Author<'_>, statement: &Statement) {
    if let Some(claim) = stated(view, author.frontier, statement) {
        let noted = view.edit_ledger(Some(Touched::Claim(claim)), |ledger| {
            ledger.note_gone(claim, author.entry);
            Ok::<_, std::convert::Infallible>(Touched::Claim(claim))
        });
        match noted {
            Ok(()) => {}
        }
    }
}

/// Whether a statement settles its claim.
pub(crate) fn is_evidence(view: &View, frontier: &Frontier, statement: &Statement) -> bool {
    stated(view, frontier, statement).is_some()
}

/// The claim that a statement settles. An agent knows of no branches: of claims with one name, that of its server is meant.
fn stated(view: &View, frontier: &Frontier, statement: &Statement) -> Option<ClaimId> {
    let ClaimId { entry: EntryId { author, number }, index } = statement.claim;
    let named = |author| ClaimId { entry: EntryId { author, number }, index };
    view.branches.logs(author).map(named).find(|claim| is_stated(view, frontier, statement, *claim))
}

fn is_stated(view: &View, frontier: &Frontier, statement: &Statement, claim: ClaimId) -> bool {
    let claim = view.ledger.claim(claim).filter(|_| frontier.holds(claim.entry));
    let Some(claim) = claim else { return false };
    let Some(pool) = view.ledger.pool(claim.pool) else { return false };
    match &pool.subject {
        Subject::Host(host) => {
            let of_claim = host.host == statement.host && claim.record.id == statement.server;
            of_claim && statement.verify(view.cloud, &host.agent_key)
        }
        Subject::Quota { .. } | Subject::Group { .. } | Subject::Addresses { .. } | Subject::Votes => false,
    }
}

fn apply_content(
    view: &mut View,
    author: Author<'_>,
    op: &ContentOp,
    documents: &mut impl Documents,
) -> Result<(), ApplyError> {
    match op {
        ContentOp::Change { record, bytes } => {
            check_writer(view, author, *record)?;
            // Judged before it is asked whether the record is gone here, so that all judge alike (E3).
            let invalid = |source| Invalid::Document { record: *record, source };
            let change = document::check_author(author.replica(), bytes).map_err(invalid)?;
            if !is_present(view, author, *record) {
                return Ok(());
            }
            let row = documents.load(*record)?;
            if site_mutant::on(SiteMutant::ChangeSkipped) && record.kind == Kind::Server && row.is_some() {
                return Ok(());
            }
            let unreadable = |error: BadDocument| StoreError::Failed { doing: "read", reason: error.to_string() };
            let past = (author.entry, author.frontier, &view.branches);
            let applied =
                document::apply(documents.loaded(), row.as_deref(), past, *record, change).map_err(unreadable)?;
            if let Some(document::Applied { row, record: value }) = applied {
                set_value(view, *record, value);
                documents.save(*record, Some(row));
            }
        }
        ContentOp::Observe(observation) => apply_observation(view, author, observation)?,
        ContentOp::Bind { .. } | ContentOp::Unbind { .. } => apply_name_op(view, author, op)?,
    }
    Ok(())
}

/// Whether the author may change this record's content.
pub(crate) fn apply_writable(view: &mut View, author: Author<'_>, id: RecordId) -> Result<(), Invalid> {
    check_writer(view, author, id)
}

pub(crate) fn apply_name_op(view: &mut View, author: Author<'_>, op: &ContentOp) -> Result<(), Invalid> {
    match op {
        ContentOp::Change { .. } | ContentOp::Observe(_) => {}
        ContentOp::Bind { name, generation, bearer } => {
            apply_name(view, author, name, *bearer, |state| {
                let seen = |entry: &EntryId| author.frontier.holds(*entry);
                let taken_back =
                    state.unbound.iter().any(|(entry, g, b)| b == bearer && g >= generation && !seen(entry));
                let same = state.bound.iter_mut().find(|(_, g, b)| (*g, *b) == (*generation, *bearer));
                match same {
                    // Given by two at once: the lower entry is told, whichever came first here.
                    Some((entry, _, _)) => *entry = author.entry.min(*entry),
                    None if !taken_back => state.bound.push((author.entry, *generation, *bearer)),
                    None => {}
                }
            })?;
        }
        ContentOp::Unbind { name, generation, bearer } => {
            apply_name(view, author, name, *bearer, |state| {
                state.bound.retain(|(_, g, b)| b != bearer || g > generation);
                state.unbound.push((author.entry, *generation, *bearer));
            })?;
        }
    }
    Ok(())
}

pub(crate) fn set_value(view: &mut View, id: RecordId, value: Option<Record>) {
    view.edit_record(id, |held| held.record = value);
}

/// The newest by placement epoch, incarnation and counter wins, whichever replica wrote it down (S4).
pub(crate) fn apply_observation(view: &mut View, author: Author<'_>, seen: &Observation) -> Result<(), Invalid> {
    if !is_host_of(view, author, seen.host) && !on(Mutant::WriterUnchecked) {
        return Err(refused(author, "report what a host of another site sees"));
    }
    let id = RecordId { kind: Kind::Server, id: seen.server };
    if is_present(view, author, id) {
        let newest = view.present(id).and_then(|held| held.observation.as_ref());
        // Of two that claim the same place, which only a broken agent makes, the one with the higher bytes stands.
        let rank = |o: &Observation| (o.order(), crate::entry::encode(o));
        if newest.is_none_or(|newest| rank(newest) < rank(seen)) || on(Mutant::ObservationByArrival) {
            view.edit_record(id, |held| held.observation = Some(seen.clone()));
        }
    }
    Ok(())
}

fn apply_name(
    view: &mut View,
    author: Author<'_>,
    name: &Name,
    bearer: RecordId,
    edit: impl FnOnce(&mut crate::view::NameState),
) -> Result<(), Invalid> {
    check_writer(view, author, bearer)?;
    if bearer.kind != name.kind {
        return Err(refused(author, "give a name to a record of another kind"));
    }
    // A record that is deleted bears no name: neither before nor after that is known here.
    if is_present(view, author, bearer) && view.present(bearer).is_some_and(|held| !held.deleted) {
        view.edit_name(name, edit);
    }
    Ok(())
}

pub(crate) fn apply_deleted(view: &mut View, author: Author<'_>, id: RecordId) -> Result<(), Invalid> {
    check_writer(view, author, id)?;
    if is_present(view, author, id) {
        view.edit_record(id, |held| {
            held.deleted = true;
            held.deletions.push(author.entry);
            held.deletions.sort_unstable();
        });
        view.drop_names(id);
    }
    Ok(())
}

/// Whether a record was created in the entry's past, and is not long gone. Changes of others are void: whether one is
/// known here that the author cannot have seen, or was forgotten since all had seen its end, is the receiver's matter (E3).
fn is_present(view: &View, author: Author<'_>, id: RecordId) -> bool {
    view.present(id).is_some_and(|held| held.created.iter().any(|entry| author.frontier.holds(*entry)))
}

/// Who may write a record of this kind (E7). `ARCHITECTURE.md` lists what this leaves a hostile site to do.
fn check_writer(view: &View, author: Author<'_>, id: RecordId) -> Result<(), Invalid> {
    let allowed = match id.kind {
        Kind::Project | Kind::User | Kind::Assignment => author.member.identity_authority,
        Kind::Site => id == site_record(author.member.site.as_str()),
        Kind::Host => is_host_of(view, author, HostId(id.id)),
        Kind::Flavor | Kind::Image | Kind::Keypair | Kind::Server | Kind::Revocation => true,
        Kind::ServerGroup | Kind::Aggregate | Kind::AddressPool | Kind::Address => true,
    };
    if allowed || on(Mutant::WriterUnchecked) {
        Ok(())
    } else {
        Err(refused(author, &format!("write records of kind {:?} ({})", id.kind, id.id)))
    }
}

/// Whether a host's pool was minted by the author's site, in the entry's past.
fn is_host_of(view: &View, author: Author<'_>, host: HostId) -> bool {
    let minted_here = |id: PoolId, subject: &Subject| {
        author.frontier.holds(id.entry) && matches!(subject, Subject::Host(host) if host.site == author.member.site)
    };
    view.ledger.host_pools(host).any(|(id, pool)| minted_here(id, &pool.subject))
}

/// Who places a server: whoever creates it, with that entry, and from then on whoever holds its claim on a host, by the
/// entry that gives this up (S1). So a server has one place, and one replica that may move it, whatever is cut off from
/// whatever; a claim is given up only when nothing runs for it any more (A3). What an entry has done of that so far.
#[derive(Clone, Default)]
pub(crate) struct Placing {
    /// Servers whose places it has given up, and the epochs of those.
    given_up: Vec<(RecordId, u64)>,
    placed: Vec<RecordId>,
    /// It has given up what another branch of a forked author had given up before: which server's is not known any more.
    twice: bool,
}

impl Placing {
    /// Judges an operation before it is applied: a function of the entry and of its author's own log (E3).
    pub(crate) fn check(
        &mut self,
        view: &View,
        author: Author<'_>,
        creates: &dyn Fn(RecordId) -> bool,
        op: &LedgerOp,
    ) -> Result<(), Invalid> {
        match op {
            LedgerOp::Release { claim } => match view.ledger.claim(*claim) {
                Some(row) if view.ledger.host_of(row).is_some() => self.given_up.push((row.record, row.epoch)),
                Some(_) => {}
                None => self.twice |= view.branches.is_forked(author.replica()),
            },
            LedgerOp::Claim { pool, record, epoch, .. } if is_of_host(view, *pool) => {
                let moved = self.given_up.iter().position(|(of, before)| of == record && before < epoch);
                let is_new = || creates(*record) && !self.placed.contains(record);
                match moved {
                    Some(at) => drop(self.given_up.swap_remove(at)),
                    None if is_new() || self.twice || on(Mutant::PlacedByAnybody) => {}
                    None => {
                        return Err(refused(author, "place a server that it neither creates nor takes from its place"));
                    }
                }
                self.placed.push(*record);
            }
            _ => {}
        }
        Ok(())
    }
}

fn is_of_host(view: &View, pool: PoolId) -> bool {
    view.ledger.pool(pool).is_some_and(|pool| matches!(pool.subject, Subject::Host(_)))
}

/// The right to place members of a group on a host is made once: by the root of the host's pool, or its heir, whose
/// past holds every earlier one. That of a whole group counts only if the entry that created the group made it
/// ([`View::group_token`]).
fn may_mint_group(view: &View, author: Author<'_>, group: Uuid, host: Option<HostId>) -> bool {
    let in_past = |id: PoolId| author.frontier.holds(id.entry);
    let acts = |id: PoolId| author.retired.acts_for(author.replica(), id.entry.author);
    let is_root = host.is_none_or(|host| view.ledger.host_pools(host).any(|(id, _)| in_past(id) && acts(id)));
    // Of a group that was deleted in the entry's past, others may have forgotten those that were made before.
    let closed = is_closed(view, author, &Subject::Group { group, host });
    is_root && !view.ledger.group_pools(group, host).any(|(id, pool)| in_past(id) && (pool.late || !closed))
}

fn refused(author: Author<'_>, what: &str) -> Invalid {
    Invalid::Authority { site: author.member.site.to_string(), what: what.into() }
}

/// The claims that `holder` can release: of records that are deleted, and stated gone if they are on hosts that live; with the claims of
/// the same record on quotas and addresses (A3).
pub(crate) fn releasable(view: &View, holder: ReplicaId, server: RecordId) -> Vec<ClaimId> {
    let mine = |id: &ClaimId| view.retired().acts_for(holder, id.entry.author) || on(Mutant::ReleaseByAnybody);
    let mine: Vec<_> = view.ledger.claims_of(server).filter(|(id, _)| mine(id)).collect();
    let on_host = |claim| view.ledger.host_of(claim).is_some();
    let deleted = view.records.get(&server).is_none_or(|held| held.deleted);
    let word = |claim: &crate::ledger::Claim| {
        !claim.gone.is_empty()
            || view.ledger.is_on_dead_host(claim)
            || on(Mutant::ReleaseWithoutWord)
            || (on(Mutant::RetiredHostDead) && view.retired().contains(claim.pool.entry.author))
    };
    let settled = mine.iter().all(|(_, claim)| !on_host(claim) || word(claim));
    if deleted && settled { mine.into_iter().map(|(id, _)| id).collect() } else { Vec::new() }
}
