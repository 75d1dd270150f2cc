//! Which pool of a host counts (`PROTOCOL.md`, S3), and when a host is dead (S5).
//!
//! A host's pool is minted by whichever replica of its site meets its agent first, and two that are cut off from each
//! other may both do so. Its **agent** decides: it is told one pool, keeps it on its disk, and names it from then on.
//! Rights to a host are shared and spent only once a replica has written down what the agent said
//! ([`crate::record::Host::pool`]), so a pool that the agent never took is never spent by anybody. It is **surplus**: who
//! holds free rights of it burns them. Were every pool counted that was minted, a host that two replicas met apart
//! would promise itself twice, and half of the promises would end in refusals.
//!
//! A host is **dead** when somebody who may has declared its pool dead. That is an operator's word, never a conclusion from
//! silence, nor from the retirement of a replica: a host that is cut off goes on running what it runs. What follows is in the
//! past of whoever acts on it: nothing more is claimed of the pool, and its claims are released without the agent's word. It is
//! for ever; the machine comes back with another pool, by an operator's word too ([`crate::record::Host::revived`]).
//!
//! **Who may**: whoever declares a living host dead makes its servers run twice. So a replica of the host's own site may, which
//! gives the orders there anyway, and can harm its own hosts alone. If every replica of that site is retired, nobody is left
//! who could: then an identity authority may. That needs more than half of all votes first (M2), so no single site, however hostile,
//! can declare the hosts of a living one dead.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::apply::Author;
use crate::entry::{Header, HostIdentity, LedgerOp, Subject};
use crate::id::{ClaimId, EntryId, HostId, Millis, PoolId, ReplicaId};
use crate::ledger::{Amount, Claim, Pool};
use crate::record::{Host, Kind, RecordId};
use crate::schedule::Choice;
use crate::tx::{Refusal, Tx};
use crate::view::View;

/// An operator's word that a host is dead.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Death {
    /// The entry that holds it.
    pub entry: EntryId,
    /// When, by its author's clock.
    pub at: Millis,
    /// The user who said so.
    pub by: Uuid,
}

impl View {
    /// How a host came to be dead: the first declaration, if there is one for the pool that its agent serves.
    #[must_use]
    pub fn death(&self, host: HostId) -> Option<Death> {
        self.host_pool(host).and_then(|(_, pool)| pool.dead.first().copied())
    }

    /// Whether a pool is that of a dead host whose operator has said that it may come back.
    #[must_use]
    pub fn is_revived(&self, id: PoolId) -> bool {
        let Some(Subject::Host(host)) = self.ledger().pool(id).map(|pool| &pool.subject) else { return false };
        self.get::<Host>(host.host.0).is_some_and(|host| host.revived == id.to_string())
    }

    /// The pool of a host that its agent serves: the only one whose rights are spent.
    #[must_use]
    pub fn host_pool(&self, host: HostId) -> Option<(PoolId, &Pool)> {
        let served = self.get::<Host>(host.0)?.served_pool()?;
        self.ledger().host_pools(host).find(|(id, _)| self.is_pool(*id, served))
    }

    /// Whether an entry, as an agent names it, lies beyond the cut of its retired author, so that nothing of it ever counts. An
    /// agent knows of no branches (M3): of one who forked, beyond that of each.
    #[must_use]
    pub fn is_beyond_cut(&self, entry: EntryId) -> bool {
        let beyond = |log| self.retired().cut(log).is_some_and(|cut| entry.number > cut);
        self.branches.logs(entry.author).all(beyond)
    }

    /// Whether a pool is the one that an agent has named. An agent knows of no branches (M3).
    fn is_pool(&self, id: PoolId, named: PoolId) -> bool {
        let author = |id: PoolId| self.branches.author(id.entry.author);
        (author(id), id.entry.number, id.index) == (author(named), named.entry.number, named.index)
    }

    /// Whether a pool is a host's and will never be spent any more: its agent serves another, or the host is dead. What is
    /// free of it is to be burnt. A pool that was made for a host which is to come back is not, until its agent has chosen.
    #[must_use]
    pub fn is_surplus(&self, id: PoolId) -> bool {
        let Some(pool) = self.ledger().pool(id) else { return false };
        let Subject::Host(host) = &pool.subject else { return false };
        let Some(served) = self.get::<Host>(host.host.0).and_then(Host::served_pool) else { return false };
        let is_choosing = || self.is_revived(served) && self.death(host.host).is_some();
        !pool.dead.is_empty() || (!self.is_pool(id, served) && !is_choosing())
    }

    /// What of a host's surplus pools is still to be burnt: claims that were made on them, and rights that others hold.
    #[must_use]
    pub fn surplus(&self, host: HostId) -> Amount {
        let surplus = self.ledger().host_pools(host).filter(|(id, _)| self.is_surplus(*id));
        surplus.fold(Amount::default(), |sum, (_, pool)| sum.saturating_add(&pool.capacity()))
    }

    /// Whether a pool can never come to be: its author was retired before the entry that would have minted it.
    #[must_use]
    pub fn is_void(&self, id: PoolId) -> bool {
        self.retired().cut(id.entry.author).is_some_and(|cut| id.entry.number > cut)
    }
}

/// Why a server is not placed anew. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotEvacuated {
    /// It holds no claim on a host.
    #[error("the server has no host")]
    NoHost,
    /// Its host was not declared dead.
    #[error("host {0} was not declared dead")]
    Lives(HostId),
    /// Another replica holds its claim: two that both placed it would run it twice.
    #[error("the server was placed by replica {0}, which alone may place it anew")]
    Held(ReplicaId),
}

/// The replica that holds a claim: whoever made it, or its heir.
#[must_use]
pub fn holder(view: &View, claim: ClaimId) -> ReplicaId {
    view.retired().heir(claim.entry.author).unwrap_or(claim.entry.author)
}

/// Whether `replica` stands by a claim on a host: it holds it, has not placed its server elsewhere, and knows of no word that
/// the host is dead. Ask it of its own view (S1).
#[must_use]
pub fn stands_by(view: &View, replica: ReplicaId, claim: ClaimId) -> bool {
    let lives = |row: &Claim| view.ledger().host_of(row).is_some() && !view.ledger().is_on_dead_host(row);
    holder(view, claim) == replica && view.ledger().claim(claim).is_some_and(lives)
}

/// Whether `replica` may place a server of a dead host anew: it holds the server's claim there, or is the heir of who did. A
/// claim has one holder, who releases it once; so a server is evacuated once, whatever is cut off from whatever.
///
/// # Errors
/// [`NotEvacuated`].
pub fn may_evacuate(view: &View, replica: ReplicaId, server: Uuid) -> Result<(), NotEvacuated> {
    let placement = view.placement(server).ok_or(NotEvacuated::NoHost)?;
    if !placement.dead {
        return Err(NotEvacuated::Lives(placement.host));
    }
    let holder = holder(view, placement.claim);
    if holder == replica { Ok(()) } else { Err(NotEvacuated::Held(holder)) }
}

/// Gives up the place of a server on a dead host, and takes another with the placement epoch raised (S1). Ask
/// [`may_evacuate`] first.
///
/// # Errors
/// [`Refusal::Invalid`] if this replica may not, or the rights are not here.
pub fn evacuate(tx: &mut Tx<'_>, server: Uuid, choice: &Choice, need: &Amount) -> Result<ClaimId, Refusal> {
    let record = RecordId { kind: Kind::Server, id: server };
    let (old, epoch) = match tx.view().placement(server) {
        Some(placement) => (placement.claim, placement.epoch),
        None => return Err(Refusal::NotFound(record)),
    };
    let ledger = tx.view().ledger();
    let in_group = |pool| ledger.pool(pool).is_some_and(|pool| matches!(pool.subject, Subject::Group { .. }));
    let with = ledger.claims_of(record).filter(|(id, claim)| id.entry == old.entry && in_group(claim.pool));
    let with: Vec<ClaimId> = with.map(|(id, _)| id).collect();
    with.into_iter().chain([old]).try_for_each(|claim| tx.release(claim))?;
    choice.claim(tx, need, record, epoch.saturating_add(1))
}

/// Whether an entry's author may declare a host dead: see the module. A function of the entry's past alone (E3).
pub(crate) fn may_declare_dead(view: &View, author: Author<'_>, host: &HostIdentity) -> bool {
    if host.site == author.member.site {
        return true;
    }
    let of_site = |admitted: &crate::entry::Member| admitted.site == host.site;
    let mut there = view.members.iter().filter(|(_, state)| state.admitted(author.frontier).is_some_and(of_site));
    author.member.identity_authority && there.all(|(id, _)| author.retired.contains(*id))
}

/// What holds a claim on a host that an entry declares dead: some of it may be kept by nothing else any more.
pub(crate) fn buried(view: &View, header: &Header) -> Vec<RecordId> {
    let dead = header.ledger.iter().filter_map(|op| match op {
        LedgerOp::DeclareDead { pool, .. } => Some(*pool),
        _ => None,
    });
    dead.flat_map(|pool| claimants(view, pool)).collect()
}

/// The records with claims on the host of a pool.
pub(crate) fn claimants(view: &View, pool: PoolId) -> Vec<RecordId> {
    match view.ledger().pool(pool).map(|pool| &pool.subject) {
        Some(Subject::Host(host)) => view.ledger().claims_on(host.host).map(|(_, claim)| claim.record).collect(),
        _ => Vec::new(),
    }
}

/// The free rights of surplus pools that `replica` holds, of the hosts named.
pub(crate) fn to_burn(view: &View, replica: ReplicaId, hosts: impl Iterator<Item = HostId>) -> Vec<(PoolId, Amount)> {
    let pools = hosts.flat_map(|host| view.ledger().host_pools(host));
    let surplus = pools.filter(|(id, _)| view.is_surplus(*id));
    let free = surplus.map(|(id, pool)| (id, pool.free(replica)));
    free.filter(|(_, free)| !free.is_zero()).collect()
}
