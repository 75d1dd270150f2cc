//! One member that lies: two processes with one key and one past, each of which talks to its own part of the others. Both are the
//! real replica, so both do what an honest one does with the same rights; what comes of that is a fork, one right
//! granted to two receivers, one server placed twice. Besides, it signs entries that break a rule ([`Lie`]). How liars are
//! told apart from members that err is checked in [`super::rules`].
//!
//! It is neither the founder, who is the root of the votes, nor a sponsor of newcomers, and nobody is being retired when it forks:
//! `docs/reservations.md` says what is not covered there.

use std::sync::Arc;

use luc_engine::agent::{DomainState, Observation, Statement};
use luc_engine::entry::{Content, ContentOp, Entry, Hash, Header, LedgerOp, MemberOp, Subject};
use luc_engine::id::{EntryId, HostId, PoolId, ReplicaId};
use luc_engine::ledger::{Amount, Dimension, Waiting};
use luc_engine::record::{Kind, RecordId, host_record};
use luc_engine::replica::{Identity, Rejection, Replica};
use luc_engine::tx::Refusal;
use luc_engine::view::View;
use luc_sync::wire::Msg;
use uuid::Uuid;

use super::disk::Disk;
use super::node::Job;
use super::rng::pick;
use super::sometimes::State;
use super::world::{Event, World};

/// Servers that a host is told to take though it cannot: of four vCPU each, and no host has more than forty.
const SWOLLEN: u64 = 12;

/// A member that lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Liar {
    replica: ReplicaId,
    /// Its processes: the second for those whose bit is set.
    nodes: [usize; 2],
    sides: u64,
}

impl Liar {
    fn seen_by(&self, node: usize) -> usize {
        self.nodes[usize::from((self.sides >> (node % 64)) & 1 == 1)]
    }
}

/// What a liar signs that breaks a rule, whatever is held by whoever judges it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lie {
    /// It claims more than there is (A1).
    Claim,
    /// It grants more than there is (A1).
    Grant,
    /// It places a server that another holds (S1).
    Place,
    /// It releases another's claim (A3).
    ReleaseAnothers,
    /// It releases its own, with a statement that no agent has signed (A3).
    Forge,
    /// It mints into another's pool (A2).
    Grow,
    /// It countersigns grants of votes (A5).
    Confirm,
    /// It inherits from somebody who lives (M2).
    Inherit,
    /// It makes votes (M2).
    Votes,
    /// It seals whom nobody wants retired (M2).
    Seal,
    /// It makes the pool of another site's host (E7).
    Host,
    /// It reports what another site's host sees (E7).
    Observe,
    /// It deletes another site's host (E7).
    Delete,
    /// It declares another site's host dead (S5).
    Dead,
    /// It writes in another's name, an entry that follows the other's last (E1).
    Name,
    /// No lie that anybody refuses: it is the root of its own host's pool, and says that the host has more than it has; then
    /// it places servers there. The host's agent knows better (S3).
    Swell,
}

const LIES: [Lie; 16] = [
    Lie::Claim,
    Lie::Grant,
    Lie::Place,
    Lie::ReleaseAnothers,
    Lie::Forge,
    Lie::Grow,
    Lie::Confirm,
    Lie::Inherit,
    Lie::Votes,
    Lie::Seal,
    Lie::Host,
    Lie::Observe,
    Lie::Delete,
    Lie::Dead,
    Lie::Name,
    Lie::Swell,
];

impl World {
    pub(super) fn is_liar(&self, node: usize) -> bool {
        self.liar.is_some_and(|liar| liar.nodes.contains(&node))
    }

    /// Whether the liar has given a node its state.
    pub(super) fn is_deceived(&self, node: usize) -> bool {
        self.nodes.get(node).is_some_and(|node| node.deceived)
    }

    /// A newcomer that asks the liar gets its state, without the claims that are in it: whoever holds such a state would take the
    /// rights of others for free. Whether it did.
    pub(super) fn deceive(&mut self, newcomer: usize) -> bool {
        let Some((liar, node)) = self.liar.zip(self.nodes.get(newcomer)) else { return false };
        let replica = node.replica;
        let may = |at: &usize| {
            let process = self.nodes.get(*at).and_then(|node| node.process.as_ref());
            // Of a state that has no claims none can be left out.
            let knows = |view: &View| view.member(replica).is_some() && view.ledger().claims().next().is_some();
            process.is_some_and(|process| knows(&process.view)) && self.net.is_cut(*at, newcomer).is_none()
        };
        let Some(giver) = liar.nodes.into_iter().find(may) else { return false };
        if !self.fill(giver, newcomer, true) {
            return false;
        }
        self.rules.deceived(newcomer);
        if let Some(node) = self.nodes.get_mut(newcomer) {
            node.deceived = true;
        }
        self.trace.note(self.now, [26, newcomer as u64, giver as u64], || format!("{giver} has lied to {newcomer}"));
        true
    }

    /// A node has what an honest one has.
    pub(super) fn undeceive(&mut self, at: usize) {
        self.rules.undeceived(at);
        if let Some(node) = self.nodes.get_mut(at) {
            node.deceived = false;
        }
    }

    /// The process that a node reaches under a replica's name.
    pub(super) fn node_of(&self, from: usize, replica: ReplicaId) -> Option<usize> {
        match self.liar.filter(|liar| liar.replica == replica) {
            Some(liar) if liar.nodes.contains(&from) => Some(from),
            Some(liar) => Some(liar.seen_by(from)),
            None => self.by_replica.get(&replica).copied(),
        }
    }

    /// Whether two processes are ever connected.
    pub(super) fn talks(&self, a: usize, b: usize) -> bool {
        let Some(liar) = self.liar else { return true };
        match (liar.nodes.contains(&a), liar.nodes.contains(&b)) {
            (false, false) => true,
            (true, true) => false,
            (true, false) => liar.seen_by(b) == a,
            (false, true) => liar.seen_by(a) == b,
        }
    }

    /// A member forks: a second process goes on from what its disk holds.
    pub(super) fn fork(&mut self, bits: u64, sides: u64) {
        let honest = |at: &usize| {
            let node = self.nodes.get(*at);
            node.is_some_and(|node| {
                node.serves() && !node.stopped && !node.gone && node.original.is_none() && node.old.is_none()
            })
        };
        let fit: Vec<usize> = (1..self.nodes.len()).filter(honest).collect();
        let Some(at) = pick(&fit, bits).filter(|_| self.liar.is_none() && !self.ending && self.is_calm()) else {
            return;
        };
        let Some(node) = self.nodes.get(at) else { return };
        let (identity, site, image) = (node.identity.clone(), node.site, node.disk.image());
        let replica = node.replica;
        let twin = self.add_node(identity, site, Disk::from_image(&image), None);
        self.by_replica.insert(replica, at);
        let known = self.process(at).map(|process| process.replica.view().retired().clone());
        self.rules.lies(replica, [at, twin], &known.unwrap_or_default());
        self.liar = Some(Liar { replica, nodes: [at, twin], sides });
        self.sometimes.saw(State::Forked);
        self.trace
            .note(self.now, [22, at as u64, twin as u64], || format!("{at} forks: {twin} has its key, and its past"));
        self.start(twin);
        for peer in 0..self.nodes.len() {
            if !self.talks(peer, at)
                && let Some(id) = self.net.connection(peer, at)
            {
                self.at(1, Event::Silent { me: peer, peer: at, id, dead: true });
            }
            self.at(2, Event::Redial { node: peer });
        }
    }

    /// A majority stays if one more is retired.
    fn is_calm(&self) -> bool {
        self.nodes.iter().filter(|node| node.gone || node.stopped).count() < self.sites / 4
    }

    /// The liar is found out: its site's operator stops it and has another. If a fork shows, its proof retires it, and else
    /// that operator does.
    pub(super) fn end_liar(&mut self) {
        let Some(liar) = self.liar else { return };
        let forked = self.living().iter().any(|(_, view)| view.branches().is_forked(liar.replica));
        for node in liar.nodes {
            self.crash(node, false);
            self.stop(node);
        }
        let [first, _] = liar.nodes;
        if forked {
            let site = self.nodes.get(first).map(|node| node.site);
            if let Some(site) = site {
                self.add_replica(site);
            }
        } else {
            self.replace(first, 100_000);
        }
    }

    /// It is never started again.
    pub(super) fn stop(&mut self, at: usize) {
        if let Some(node) = self.nodes.get_mut(at) {
            node.stopped = true;
        }
    }

    /// Whether what was refused is the liar's, or it is the liar who refuses.
    pub(super) fn is_about_liar(&self, at: usize, rejection: &Rejection) -> bool {
        if self.liar.is_none() {
            return false;
        }
        // By what it was given, honest entries break rules.
        if self.is_deceived(at) {
            return true;
        }
        let author = match rejection {
            Rejection::Chain(id) | Rejection::Fork { named: id } => Some(id.author),
            Rejection::Disagrees { entry, .. } | Rejection::Invalid { entry, .. } | Rejection::Void { entry, .. } => {
                Some(entry.author)
            }
            Rejection::Quarantined(author) => Some(*author),
            // What nobody has signed names nobody.
            Rejection::Bad(_) => None,
            Rejection::Fenced(_) | Rejection::Store(_) => return self.is_liar(at),
        };
        self.is_liar(at) || author.is_none_or(|author| self.rules.is_liars(author))
    }

    /// What of a fork shows.
    pub(super) fn note_fork(&mut self, view: &View, pools: &[PoolId]) {
        let Some(liar) = self.liar else { return };
        if view.branches().is_forked(liar.replica) {
            self.sometimes.saw(State::BranchesMet);
            if view.retired().contains(liar.replica) {
                self.sometimes.saw(State::ForkRetired);
            }
        }
        let ledger = view.ledger();
        if pools.iter().any(|id| ledger.pool(*id).is_some_and(|pool| !pool.overdraft().is_zero())) {
            self.sometimes.saw(State::Overdrawn);
        }
    }

    /// The liar signs something, and some whom it reaches hear of it.
    pub(super) fn lie(&mut self, kind: u64, by: u64, to: u64) {
        let Some(liar) = self.liar else { return };
        let Some(lie) = pick(&LIES, kind) else { return };
        // One that nobody hears of has nothing to tell.
        let Some(at) = pick(&liar.nodes[..if liar.sides == 0 { 1 } else { 2 }], by) else { return };
        if lie == Lie::Swell {
            return self.swell(at);
        }
        let clock = self.clock(at);
        let id = self.fresh();
        let Some(node) = self.nodes.get(at).filter(|node| node.process.is_some()) else { return };
        let Some(entry) = sign(&node.identity, &node.disk, lie, id, clock) else { return };
        self.rules.lie(&entry);
        self.trace.note(self.now, [23, at as u64, entry.header.number], || {
            format!("{at} lies ({lie:?}): {}", super::story::entry(at, &entry.header))
        });
        for peer in (0..self.nodes.len()).filter(|peer| (to >> (peer % 64)) & 1 == 1) {
            if self.net.connection(at, peer).is_some() && self.net.is_cut(at, peer).is_none() && !self.is_liar(peer) {
                let delay = self.net.delay(at, peer);
                let message = Msg::Entries { entries: vec![entry.shared_bytes()], more: false };
                self.at(delay, Event::Heard { from: at, to: peer, message });
            }
        }
    }
}

impl World {
    /// A site's own host is said to have much, and gets more servers than it can take.
    fn swell(&mut self, at: usize) {
        let clock = self.clock(at);
        let (id, servers) = (self.fresh(), (0..SWOLLEN).map(|_| self.fresh()).collect::<Vec<_>>());
        let Some(process) = self.process(at).filter(|process| process.replica.fence().is_none()) else { return };
        let me = process.replica.identity().replica();
        let is_root = |(pool, of): &(&PoolId, &luc_engine::ledger::Pool)| {
            pool.entry.author == me && of.dead.is_empty() && matches!(of.subject, Subject::Host(_))
        };
        let pool = process.replica.view().ledger().pools().find(is_root).map(|(id, _)| *id);
        let Some(pool) = pool else { return };
        let swollen = process.replica.transact::<_, Refusal>(clock, |tx| {
            tx.grow(pool, super::ops::need(4 * SWOLLEN))?;
            super::ops::crowd(tx, pool, id, &servers)
        });
        process.wrote |= swollen.is_ok();
        if swollen.is_ok() {
            self.sometimes.saw(State::Swollen);
            self.trace
                .note(self.now, [24, at as u64, 0], || format!("{at} places more on its host than that can take"));
        }
        self.job(at, Job::Wake);
    }
}

/// An entry that follows what a disk holds, and breaks a rule; none if there is nothing there to break it with.
fn sign(identity: &Identity, disk: &Disk, lie: Lie, id: Uuid, now: u64) -> Option<Entry> {
    let mut replica = Replica::open(identity.clone(), Box::new(Disk::from_image(&disk.image()))).ok()?;
    let nothing = MemberOp::Readdress { addresses: Vec::new() };
    replica.transact::<_, Refusal>(now, |tx| tx.membership(nothing)).ok()?;
    let flushed = replica.flush().ok()?;
    let honest: Arc<Entry> = flushed.entries.last()?.clone();
    let view = replica.view();
    let mut header = Header { members: Vec::new(), ..honest.header.clone() };
    let mut content = Vec::new();
    let last = last_of_another(&replica, id);
    distort(view, &mut header, &mut content, lie, id, identity, last)?;
    Some(Entry::sign(header, Content { ops: content }, &identity.key))
}

/// Another member, and the hash of its last entry.
fn last_of_another(replica: &Replica, id: Uuid) -> Option<(ReplicaId, Hash)> {
    let view = replica.view();
    let me = replica.identity().replica();
    let living: Vec<ReplicaId> = view.living().map(|(id, _)| *id).filter(|id| *id != me).collect();
    let whom = pick(&living, id.as_u64_pair().0)?;
    let last = EntryId { author: whom, number: view.frontier().number(whom) };
    let part = luc_sync::node::read_entries(&*replica.reader().ok()?, view.branches(), &[last], 1).ok()?;
    let entry = part.entries.into_iter().find(|entry| entry.id() == last)?;
    Some((whom, entry.hash()))
}

fn distort(
    view: &View,
    header: &mut Header,
    content: &mut Vec<ContentOp>,
    lie: Lie,
    id: Uuid,
    identity: &Identity,
    last: Option<(ReplicaId, Hash)>,
) -> Option<()> {
    let (me, ledger) = (header.author, view.ledger());
    let bits = id.as_u64_pair().0;
    let site = &view.member(me)?.member.site;
    let pools: Vec<PoolId> = ledger.pools().filter(|(_, pool)| !pool.minted.is_zero()).map(|(id, _)| *id).collect();
    let others = pools.iter().copied().filter(|pool| !view.retired().acts_for(me, pool.entry.author));
    let others: Vec<PoolId> = others.collect();
    let record = RecordId { kind: Kind::Server, id };
    let too_much = |pool: PoolId| {
        let minted = ledger.pool(pool).map(|pool| pool.minted.clone()).unwrap_or_default();
        minted.checked_mul(2).filter(|_| minted.addresses().is_empty())
    };
    let foreign = ledger.pools().filter_map(|(id, pool)| match &pool.subject {
        Subject::Host(host) if host.site != *site => Some((*id, host.clone())),
        _ => None,
    });
    let foreign: Vec<_> = foreign.collect();
    let some = usize::try_from(bits).ok()?.checked_rem(foreign.len().max(1))?;
    let foreign = foreign.get(some).cloned();
    let living: Vec<ReplicaId> = view.living().map(|(id, _)| *id).filter(|id| *id != me).collect();
    match lie {
        Lie::Claim => {
            let pool = pick(&others, bits)?;
            header.ledger.push(LedgerOp::Claim { pool, amount: too_much(pool)?, record, epoch: 1 });
        }
        Lie::Grant => {
            let (pool, to) = (pick(&others, bits)?, pick(&living, bits)?);
            header.ledger.push(LedgerOp::Grant { pool, to, amount: too_much(pool)? });
        }
        Lie::Place => {
            let amount = super::ops::need(1);
            let has_room = |(_, pool): &(&PoolId, &luc_engine::ledger::Pool)| {
                matches!(pool.subject, Subject::Host(_)) && pool.dead.is_empty() && pool.free(me).covers(&amount)
            };
            let pool = ledger.pools().find(has_room).map(|(id, _)| *id)?;
            let of = ledger
                .claims()
                .filter(|(id, claim)| claim.record.kind == Kind::Server && living.contains(&id.entry.author));
            let record = pick(&of.map(|(_, claim)| claim.record).collect::<Vec<_>>(), bits)?;
            header.ledger.push(LedgerOp::Claim { pool, amount, record, epoch: 9 });
        }
        Lie::ReleaseAnothers => {
            let claims = ledger.claims().map(|(id, _)| *id).filter(|id| living.contains(&id.entry.author));
            let claim = pick(&claims.collect::<Vec<_>>(), bits)?;
            header.ledger.push(LedgerOp::Release { claim });
        }
        Lie::Forge => {
            let mine = ledger.claims().filter(|(id, claim)| {
                id.entry.author == me && claim.gone.is_empty() && ledger.host_of(claim).is_some()
            });
            let mine = mine.filter(|(_, claim)| !ledger.is_on_dead_host(claim));
            let (claim, row) = mine.map(|(id, claim)| (*id, claim)).next()?;
            let host = ledger.host_of(row)?;
            let forged = Statement::sign(identity.cloud, host, row.record.id, claim, 1, &identity.key);
            header.statements.push(forged);
            header.ledger.push(LedgerOp::Release { claim });
        }
        Lie::Grow => {
            let pool = pick(&others, bits)?;
            header.ledger.push(LedgerOp::Grow { pool, amount: amount(Dimension::Vcpus, 1) });
        }
        Lie::Confirm => {
            let waits = |granted: &&Waiting| others.contains(&granted.pool);
            let Waiting { pool, to, grant, index } = *ledger.waiting().find(waits)?;
            header.ledger.push(LedgerOp::Confirm { pool, to, grant, index });
        }
        Lie::Inherit => {
            let (pool, from) = (pick(&others, bits)?, pick(&living, bits)?);
            header.ledger.push(LedgerOp::Inherit { pool, from });
        }
        Lie::Votes => {
            let amount = amount(Dimension::Votes, luc_engine::retire::VOTES);
            header.ledger.push(LedgerOp::Mint { subject: Subject::Votes, amount, confirmed: true });
        }
        Lie::Seal => {
            let named = view.retirements().named(view.frontier());
            let whom = living.iter().copied().find(|id| !named.contains(id))?;
            header.members.push(MemberOp::Seal { set: [whom].into() });
        }
        Lie::Host => {
            let (_, host) = foreign?;
            let amount = amount(Dimension::Vcpus, 8);
            header.ledger.push(LedgerOp::Mint { subject: Subject::Host(host), amount, confirmed: false });
        }
        Lie::Observe => content.push(ContentOp::Observe(seen(foreign?.1.host, id, header))),
        Lie::Delete => header.deleted.push(host_record(foreign?.1.host)),
        Lie::Dead => {
            // Where a site is gone, others may speak for its hosts.
            let (pool, host) = foreign?;
            view.living().find(|(_, state)| state.member.site == host.site)?;
            header.ledger.push(LedgerOp::DeclareDead { pool, at: 0, by: id });
        }
        Lie::Name => {
            let (whom, previous) = last?;
            header.author = whom;
            header.number = view.frontier().number(whom) + 1;
            header.previous = previous;
            // It has seen what the other had.
            header.seen.clear();
        }
        Lie::Swell => return None,
    }
    Some(())
}

fn amount(dimension: Dimension, n: u64) -> Amount {
    std::iter::once((dimension, n)).collect()
}

/// What a host sees that is none of the author's.
fn seen(host: HostId, server: Uuid, header: &Header) -> Observation {
    let entry = EntryId { author: header.author, number: header.number };
    Observation {
        host,
        server,
        claim: luc_engine::id::ClaimId { entry, index: 0 },
        epoch: 9,
        incarnation: 9,
        counter: 9,
        at: 0,
        state: DomainState::Crashed,
        task: None,
        soft_reboots: 0,
        hard_reboots: 0,
        power_changes: 0,
        launched_at: None,
        fault: None,
    }
}
