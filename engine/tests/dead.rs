//! A host that was declared dead (`PROTOCOL.md`, S5): who may say so, and what follows, alike everywhere.
//!
//! Broken once each, to see these fail: anybody may declare; a claim of a dead host is taken; a declaration outside the past
//! counts as evidence; what was deleted before the declaration waits for ever.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Cloud, Rogue, cloud, host_at, key, member};
use luc_engine::agent::Statement;
use luc_engine::entry::{Created, LedgerOp, Member, MemberOp, Subject};
use luc_engine::hosts::{NotEvacuated, evacuate, may_evacuate};
use luc_engine::id::{ClaimId, HostId, PoolId, ReplicaId};
use luc_engine::ledger::{Amount, BadLedgerOp, Dimension};
use luc_engine::record::{Host, Kind, RecordId, Server};
use luc_engine::replica::{Invalid, Received, Rejection, Replica};
use luc_engine::retire::{Request, Retiree};
use luc_engine::schedule::Choice;
use luc_engine::tx::Refusal;
use luc_engine::view::View;
use uuid::Uuid;

const USER: Uuid = Uuid::from_u128(9);

fn vcpus(n: u64) -> Amount {
    [(Dimension::Vcpus, n)].into_iter().collect()
}

fn id(n: u8) -> ReplicaId {
    member(n).replica
}

/// The host of site 1, whose rights replica 2 holds some of; 3 is of site 1 as well.
struct World {
    cloud: Cloud,
    pool: PoolId,
    next: u128,
}

impl World {
    fn new() -> Self {
        let mut cloud = Cloud::new(2);
        cloud.join_as(3, Member { site: member(1).site, identity_authority: false, ..member(3) });
        cloud.join_as(4, Member { identity_authority: false, ..member(4) });
        cloud.exchange_all();
        let (pool, _) = cloud.replicas[1]
            .transact::<_, Refusal>(2, |tx| {
                let pool = tx.mint(Subject::Host(host_at(1)), vcpus(10))?;
                let record =
                    Host { name: "h".into(), site: "site-1".into(), pool: pool.to_string(), ..Host::default() };
                tx.create(host().0, record, &[])?;
                tx.grant(pool, id(2), vcpus(4))?;
                Ok(pool)
            })
            .unwrap();
        cloud.exchange_all();
        let mut world = Self { cloud, pool, next: 0 };
        world.settle(&[0, 1, 2, 3, 4]);
        world
    }

    fn replica(&mut self, at: usize) -> &mut Replica {
        &mut self.cloud.replicas[at]
    }

    fn view(&self, at: usize) -> &View {
        self.cloud.replicas[at].view()
    }

    fn tend(&mut self, at: usize) {
        let replica = self.replica(at);
        let mut flushed = replica.flush().unwrap();
        while replica.tend(5, Some(&flushed)).unwrap() {
            flushed = replica.flush().unwrap();
        }
    }

    fn settle(&mut self, part: &[usize]) {
        loop {
            let before: Vec<_> = part.iter().map(|at| self.view(*at).frontier().clone()).collect();
            for (from, to) in part.iter().flat_map(|from| part.iter().map(move |to| (*from, *to))) {
                self.tend(from);
                let mut rest: Vec<_> = self.cloud.log(from).into_values().collect();
                let mut left = usize::MAX;
                while rest.len() < left {
                    left = rest.len();
                    let replica = self.replica(to);
                    rest.retain(|bytes| matches!(replica.receive(bytes), Received::Waiting(_)));
                    self.tend(to);
                }
            }
            if before == part.iter().map(|at| self.view(*at).frontier().clone()).collect::<Vec<_>>() {
                return;
            }
        }
    }

    fn server(&mut self, at: usize) -> Result<(RecordId, ClaimId), Refusal> {
        self.next += 1;
        let (pool, server) = (self.pool, Uuid::from_u128(self.next));
        let (made, _) = self.replica(at).transact::<_, Refusal>(3, |tx| {
            let record = tx.create(server, Server { name: "s".into(), ..Server::default() }, &[])?;
            Ok((record, tx.claim(&[pool], &vcpus(1), record, 1)?))
        })?;
        self.tend(at);
        Ok(made)
    }

    fn delete(&mut self, at: usize, server: RecordId) {
        self.replica(at).transact::<_, Refusal>(3, |tx| tx.delete(server)).unwrap();
        self.tend(at);
    }

    fn declare(&mut self, at: usize) -> Result<(), Refusal> {
        let pool = self.pool;
        let declared = self.replica(at).transact::<_, Refusal>(4, |tx| tx.declare_dead(pool, USER)).map(|_| ());
        self.tend(at);
        declared
    }

    /// Another host, at site 0, whose rights everybody has some of.
    fn other_host(&mut self) -> Choice {
        let made = self.replica(0).transact::<_, Refusal>(2, |tx| {
            let pool = tx.mint(Subject::Host(host_at(0)), vcpus(20))?;
            let record = Host { name: "o".into(), site: "site-0".into(), pool: pool.to_string(), ..Host::default() };
            tx.create(host_at(0).host.0, record, &[])?;
            (1..5).try_for_each(|n| tx.grant(pool, id(n), vcpus(3)))?;
            Ok(pool)
        });
        let (pool, _) = made.unwrap();
        Choice { host: host_at(0).host, pool, member: None }
    }

    fn agree(&self, part: &[usize]) {
        for at in part {
            assert_eq!(self.view(*at).digest(), self.view(part[0]).digest());
            assert!(self.view(*at).ledger().is_conserved());
        }
    }
}

fn host() -> HostId {
    host_at(1).host
}

fn is_authority(error: &Refusal) -> bool {
    matches!(error, Refusal::Invalid(Invalid::Authority { .. }))
}

#[test]
fn a_replica_of_the_hosts_own_site_may_and_no_other_while_one_lives() {
    let mut world = World::new();
    for at in [0, 2, 4] {
        assert!(is_authority(&world.declare(at).unwrap_err()), "{at}");
        assert!(world.view(at).death(host()).is_none());
    }
    // One that ignores its own rules convinces nobody else.
    world.cloud.admit(7);
    world.cloud.exchange_all();
    let rogue = Rogue::new(7);
    let mut header = rogue.header(world.view(0).frontier());
    header.ledger = vec![LedgerOp::DeclareDead { pool: world.pool, at: 1, by: USER }];
    let entry = rogue.sign(header, vec![]);
    for at in 0..5 {
        let received = world.replica(at).receive(entry.bytes());
        let refused =
            matches!(&received, Received::Refused(Rejection::Invalid { reason: Invalid::Authority { .. }, .. }));
        assert!(refused, "{at}: {received:?}");
    }
    // The site's other replica, though it is no identity authority, and the pool is not its own.
    world.declare(3).unwrap();
    let death = world.view(3).death(host()).unwrap();
    assert_eq!((death.entry.author, death.by, death.at), (id(3), USER, 4));
}

#[test]
fn an_identity_authority_may_once_every_replica_of_the_site_is_retired() {
    let mut world = World::new();
    let (server, _) = world.server(2).unwrap();
    world.settle(&[0, 1, 2, 3, 4]);
    world.delete(2, server);
    let rest = [0, 2, 4];
    let retire = |world: &mut World, gone: u8| {
        let request = Request { set: vec![Retiree { replica: id(gone), heir: id(0) }], force: false };
        world.replica(0).transact::<_, Refusal>(4, |tx| tx.membership(MemberOp::Retire(request))).unwrap();
        world.tend(0);
    };
    retire(&mut world, 1);
    world.settle(&[0, 2, 3, 4]);
    assert!(world.view(0).retired().contains(id(1)));
    assert!(is_authority(&world.declare(0).unwrap_err()), "another replica of the site lives");
    retire(&mut world, 3);
    world.settle(&rest);
    assert!(world.view(0).retired().contains(id(3)));
    assert!(world.view(0).death(host()).is_none(), "retiring replicas declares no host dead");
    assert!(world.view(2).held(server).is_some(), "and releases nothing");
    assert!(is_authority(&world.declare(4).unwrap_err()), "it is no identity authority");
    world.declare(2).unwrap();
    world.settle(&rest);
    world.agree(&rest);
    assert_eq!(world.view(0).ledger().claims_on(host()).count(), 0);
    assert!(world.view(0).held(server).is_none());
}

#[test]
fn deletion_releases_the_claims_of_a_dead_host_without_its_agents_word() {
    let mut world = World::new();
    let all = [0, 1, 2, 3, 4];
    let (before, _) = world.server(2).unwrap();
    let (after, _) = world.server(1).unwrap();
    let (kept, _) = world.server(1).unwrap();
    world.settle(&all);
    world.delete(4, before);
    world.settle(&all);
    assert!(world.view(1).held(before).is_some(), "it may still run");
    world.declare(1).unwrap();
    world.settle(&all);
    assert!(world.view(1).held(before).is_none(), "what waited for the agent's word is gone");
    world.delete(0, after);
    assert!(world.view(0).held(after).is_none());
    world.settle(&all);
    world.agree(&all);
    let ledger = world.view(2).ledger();
    assert_eq!(ledger.claims_on(host()).map(|(_, claim)| claim.record).collect::<Vec<_>>(), [kept]);
    assert!(world.view(2).placement(kept.id).unwrap().dead);
    // Nobody will ever spend what is free of it.
    assert_eq!(ledger.pool(world.pool).unwrap().capacity(), vcpus(1));
    // The agent's word on the last one changes nothing any more, and harms nothing.
    let (claim, _) = ledger.claims_of(kept).next().unwrap();
    let gone = Statement::sign(cloud(), host(), kept.id, claim, 1, &key(51));
    world.replica(3).transact::<_, Refusal>(6, |tx| Ok(tx.state(gone))).unwrap();
    world.delete(3, kept);
    world.settle(&all);
    world.agree(&all);
    assert_eq!(world.view(0).ledger().claims_on(host()).count(), 0);
}

#[test]
fn nothing_is_claimed_of_a_dead_host_and_what_was_claimed_apart_is_released_by_deletion() {
    let mut world = World::new();
    let all = [0, 1, 2, 3, 4];
    world.declare(1).unwrap();
    // Replica 2 has not heard of it.
    let (apart, claim) = world.server(2).unwrap();
    world.settle(&all);
    assert_eq!(world.view(1).ledger().claim(claim).map(|claim| claim.record), Some(apart));
    world.delete(1, apart);
    world.settle(&all);
    world.agree(&all);
    assert!(world.view(1).ledger().claim(claim).is_none());
    // Who has heard of it claims nothing, though it held rights; and nobody takes such a claim.
    let mut world = World::new();
    let pool = world.pool;
    world.cloud.admit(7);
    world.settle(&all);
    let granted = world.replica(1).transact::<_, Refusal>(3, |tx| tx.grant(pool, id(7), vcpus(2)));
    granted.unwrap();
    world.declare(1).unwrap();
    world.settle(&all);
    let rogue = Rogue::new(7);
    let mut header = rogue.header(world.view(0).frontier());
    let record = RecordId { kind: Kind::Server, id: Uuid::from_u128(99) };
    header.created = vec![Created { record, references: vec![] }];
    header.ledger = vec![LedgerOp::Claim { pool, amount: vcpus(1), record, epoch: 1 }];
    let entry = rogue.sign(header, vec![]);
    for at in all {
        let received = world.replica(at).receive(entry.bytes());
        let dead = |reason: &Invalid| matches!(reason, Invalid::Ledger { source: BadLedgerOp::Dead(_), .. });
        let refused = matches!(&received, Received::Refused(Rejection::Invalid { reason, .. }) if dead(reason));
        assert!(refused, "{at}: {received:?}");
    }
}

#[test]
fn a_declaration_that_is_not_in_its_past_is_no_evidence_for_a_release() {
    let mut world = World::new();
    let all = [0, 1, 2, 3, 4];
    world.cloud.admit(7);
    world.settle(&all);
    let pool = world.pool;
    world.replica(1).transact::<_, Refusal>(3, |tx| tx.grant(pool, id(7), vcpus(2))).unwrap();
    world.settle(&all);
    let mut rogue = Rogue::new(7);
    let record = RecordId { kind: Kind::Server, id: Uuid::from_u128(99) };
    let seen = world.view(0).frontier().clone();
    let mut header = rogue.header(&seen);
    header.created = vec![Created { record, references: vec![] }];
    header.ledger = vec![LedgerOp::Claim { pool, amount: vcpus(1), record, epoch: 1 }];
    let entry = rogue.sign(header, vec![]);
    let claim = ClaimId { entry: entry.id(), index: 0 };
    (rogue.last, rogue.number) = (entry.hash(), 1);
    world.declare(1).unwrap();
    world.settle(&all);
    for at in all {
        assert!(matches!(world.replica(at).receive(entry.bytes()), Received::Applied));
    }
    // It releases upon the same past as before: whoever has heard of the death, and who has not, refuse alike.
    let mut header = rogue.header(&seen);
    header.seen = vec![];
    header.ledger = vec![LedgerOp::Release { claim }];
    let release = rogue.sign(header, vec![]);
    for at in all {
        let received = world.replica(at).receive(release.bytes());
        let lacks = |reason: &Invalid| matches!(reason, Invalid::Ledger { source: BadLedgerOp::NoEvidence(_), .. });
        let refused = matches!(&received, Received::Refused(Rejection::Invalid { reason, .. }) if lacks(reason));
        assert!(refused, "{at}: {received:?}");
    }
}

#[test]
fn only_the_holder_of_its_claim_places_a_server_anew_and_only_once() {
    let mut world = World::new();
    let all = [0, 1, 2, 3, 4];
    let choice = world.other_host();
    let (server, old) = world.server(2).unwrap();
    world.settle(&all);
    let lives = NotEvacuated::Lives(host());
    assert_eq!(may_evacuate(world.view(2), id(2), server.id), Err(lives));
    world.declare(3).unwrap();
    world.settle(&all);
    for at in [0, 1, 3, 4] {
        let held = NotEvacuated::Held(id(2));
        assert_eq!(may_evacuate(world.view(at), id(u8::try_from(at).unwrap()), server.id), Err(held));
        let tried = world.replica(at).transact::<_, Refusal>(5, |tx| evacuate(tx, server.id, &choice, &vcpus(1)));
        let reason = tried.unwrap_err();
        let not_holder = |reason: &Refusal| {
            matches!(reason, Refusal::Invalid(Invalid::Ledger { source: BadLedgerOp::NotHolder(_), .. }))
        };
        assert!(not_holder(&reason), "{at}: {reason}");
    }
    may_evacuate(world.view(2), id(2), server.id).unwrap();
    world.replica(2).transact::<_, Refusal>(5, |tx| evacuate(tx, server.id, &choice, &vcpus(1))).unwrap();
    let again = NotEvacuated::Lives(host_at(0).host);
    assert_eq!(may_evacuate(world.view(2), id(2), server.id), Err(again));
    world.settle(&all);
    world.agree(&all);
    let placement = world.view(4).placement(server.id).unwrap();
    assert_eq!((placement.host, placement.epoch, placement.dead), (host_at(0).host, 2, false));
    assert!(world.view(4).ledger().claim(old).is_none());
    assert_eq!(world.view(4).ledger().claims_on(host()).count(), 0);
}

#[test]
fn a_server_that_is_deleted_and_evacuated_apart_looks_the_same_in_either_order() {
    let mut world = World::new();
    let all = [0, 1, 2, 3, 4];
    let choice = world.other_host();
    let (server, _) = world.server(2).unwrap();
    world.settle(&all);
    world.declare(1).unwrap();
    world.settle(&all);
    // 1 hears of the deletion before the evacuation, 2 the other way round.
    world.delete(1, server);
    world.replica(2).transact::<_, Refusal>(5, |tx| evacuate(tx, server.id, &choice, &vcpus(1))).unwrap();
    world.settle(&all);
    world.agree(&all);
    for at in all {
        assert!(world.view(at).held(server).is_none(), "{at}");
        assert_eq!(
            world.view(at).ledger().claims_of(server).count(),
            1,
            "its new host has still to say that it is gone"
        );
    }
    // That host dies too: nothing of the record is left that could tell.
    let pool = choice.pool;
    world.replica(0).transact::<_, Refusal>(6, |tx| tx.declare_dead(pool, USER)).unwrap();
    world.settle(&all);
    world.agree(&all);
    assert_eq!(world.view(3).ledger().claims_of(server).count(), 0);
}
