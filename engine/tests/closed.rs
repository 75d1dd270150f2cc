//! Pools of what was deleted (`PROTOCOL.md`, A4, R2): when they are closed, and forgotten; and grants whose receivers have
//! seen them; and names that were taken back. Memory and disk follow what lives.
//!
//! Broken once each, and these tests failed: pools that are forgotten though somebody lacks the deletion; though something
//! is claimed; pools of what is gone in the digest; a grant of a closed pool that is taken by whoever remembers the pool; a
//! pool that was minted after the deletion closed for whoever remembers that; grants that are never folded; names
//! that were taken back kept for ever; such a name void for whoever remembers.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Cloud, Rogue, member};
use luc_engine::entry::{Entry, Frontier, LedgerOp, MemberOp, Subject};
use luc_engine::id::{ClaimId, PoolId, ReplicaId};
use luc_engine::ledger::{Amount, BadLedgerOp, Dimension};
use luc_engine::record::{Kind, Project, RecordId};
use luc_engine::replica::{Received, Rejection, Replica};
use luc_engine::store::{Store, Table};
use luc_engine::tx::{Refusal, Tx};
use uuid::Uuid;

const OTHER: RecordId = RecordId { kind: Kind::Server, id: Uuid::from_u128(9) };

fn servers(n: u64) -> Amount {
    [(Dimension::Instances, n)].into_iter().collect()
}

fn id(n: u8) -> ReplicaId {
    member(n).replica
}

/// A project and its pool, of which each of the first three members has some.
struct World {
    cloud: Cloud,
    project: RecordId,
    pool: PoolId,
}

impl World {
    fn new() -> Self {
        let mut cloud = Cloud::new(3);
        let made = cloud.replicas[0].transact::<_, Refusal>(2, |tx| {
            let id = tx.fresh(Kind::Project, Uuid::from_u128(7));
            let project = tx.create(id, Project::default(), &[])?;
            let pool = tx.mint(Subject::Quota { project: project.id }, servers(30))?;
            (1..3).try_for_each(|n| tx.grant(pool, self::id(n), servers(10)))?;
            Ok((project, pool))
        });
        let (project, pool) = made.unwrap().0;
        cloud.exchange_all();
        Self { cloud, project, pool }
    }

    fn run<T>(&mut self, at: usize, f: impl FnOnce(&mut Tx<'_>) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let now = self.cloud.tick();
        let done = self.cloud.replicas[at].transact(now, f).map(|(value, _)| value);
        self.cloud.replicas[at].flush().unwrap();
        done
    }

    fn delete(&mut self, at: usize) {
        let project = self.project;
        self.run(at, |tx| tx.delete(project)).unwrap();
    }

    fn claim(&mut self, at: usize) -> ClaimId {
        let pool = self.pool;
        self.run(at, |tx| tx.claim(&[pool], &servers(1), OTHER, 0)).unwrap()
    }

    fn say_held(&mut self, members: &[usize]) {
        for at in members {
            self.run(*at, |tx| tx.membership(MemberOp::Held)).unwrap();
        }
        self.cloud.exchange_all();
    }

    fn fold(&mut self, at: usize) {
        let replica = &mut self.cloud.replicas[at];
        replica.flush().unwrap();
        while replica.fold().unwrap() > 0 {}
    }

    fn has_pool(&self, at: usize) -> bool {
        let in_view = self.cloud.replicas[at].view().ledger().pool(self.pool).is_some();
        let key = rmp_serde::to_vec(&self.pool).unwrap();
        let row = self.cloud.disks[at].reader().unwrap().get(Table::Pool, &key).unwrap();
        assert_eq!(row.is_some(), in_view, "the store has what the view has");
        in_view
    }

    fn assert_alike(&self) {
        let digests: Vec<_> = self.cloud.replicas.iter().map(|replica| replica.view().digest()).collect();
        assert!(digests.iter().all(|one| *one == digests[0]), "{digests:?}");
    }
}

fn refused(received: &Received) -> Option<&BadLedgerOp> {
    match received {
        Received::Refused(Rejection::Invalid {
            reason: luc_engine::replica::Invalid::Ledger { source, .. }, ..
        }) => Some(source),
        _ => None,
    }
}

#[test]
fn the_pool_of_what_is_gone_is_forgotten_once_all_have_heard_and_nothing_shows_of_it() {
    let mut world = World::new();
    world.delete(1);
    world.cloud.exchange_all();
    world.assert_alike();
    world.fold(0);
    assert!(world.has_pool(0), "nobody has said that it has the deletion");
    world.say_held(&[0, 2]);
    world.fold(0);
    assert!(world.has_pool(0), "the fourth has not said so");
    world.say_held(&[3]);
    world.fold(0);
    assert!(!world.has_pool(0));
    world.assert_alike();
    world.cloud.restart(0);
    assert!(!world.has_pool(0));
    world.assert_alike();
    assert!(world.has_pool(1));
    // A newcomer, by a snapshot of either.
    world.cloud.join(4);
    world.cloud.exchange_all();
    world.assert_alike();
}

#[test]
fn what_is_claimed_comes_back_to_a_closed_pool_and_keeps_it() {
    let mut world = World::new();
    let claim = world.claim(2);
    world.cloud.exchange_all();
    world.delete(1);
    world.cloud.exchange_all();
    world.say_held(&[0, 1, 2, 3]);
    world.fold(0);
    assert!(world.has_pool(0), "one is claimed");
    world.assert_alike();
    world.run(2, |tx| tx.release(claim)).unwrap();
    world.cloud.exchange_all();
    world.fold(0);
    assert!(!world.has_pool(0));
    world.assert_alike();
}

#[test]
fn whoever_has_seen_the_deletion_spends_nothing_and_whoever_has_not_does() {
    let mut world = World::new();
    let pool = world.pool;
    world.delete(1);
    let refused = world.run(1, |tx| tx.grant(pool, id(0), servers(1))).unwrap_err();
    assert!(refused.to_string().contains("deleted"), "{refused}");
    world.run(1, |tx| tx.claim(&[pool], &servers(1), OTHER, 0)).unwrap_err();
    // Meanwhile, and in time: it waits in no account for ever.
    world.run(2, |tx| tx.grant(pool, id(0), servers(1))).unwrap();
    let claim = world.claim(2);
    world.cloud.exchange_all();
    world.assert_alike();
    world.run(2, |tx| tx.release(claim)).unwrap();
    world.say_held(&[0, 1, 2, 3]);
    (0..4).for_each(|at| world.fold(at));
    assert!((0..4).all(|at| !world.has_pool(at)));
    world.assert_alike();
}

/// The fourth member, who is hostile, and has seen all.
struct Hostile {
    rogue: Rogue,
    seen: Frontier,
}

impl Hostile {
    fn write(&mut self, world: &World, ledger: Vec<LedgerOp>, members: Vec<MemberOp>) -> Entry {
        let now = world.cloud.replicas[0].view().frontier();
        let mut header = self.rogue.header(now);
        header.seen.retain(|(id, tip)| tip.number > self.seen.number(*id));
        (header.ledger, header.members) = (ledger, members);
        let entry = self.rogue.sign(header, vec![]);
        self.seen = now.clone();
        (self.rogue.last, self.rogue.number) = (entry.hash(), self.rogue.number + 1);
        entry
    }

    fn spend(&mut self, world: &World, op: LedgerOp) -> Entry {
        self.write(world, vec![op], vec![])
    }
}

#[test]
fn who_remembers_a_closed_pool_and_who_has_forgotten_it_judge_alike() {
    let mut world = World::new();
    world.delete(1);
    world.cloud.exchange_all();
    let mut hostile = Hostile { rogue: Rogue::new(3), seen: Frontier::default() };
    let held = hostile.write(&world, vec![], vec![MemberOp::Held]);
    world.cloud.replicas.truncate(3);
    world.cloud.disks.truncate(3);
    world.cloud.deliver(held.bytes());
    world.say_held(&[0, 1, 2]);
    world.fold(0);
    assert!(!world.has_pool(0) && world.has_pool(1));
    // It mints a pool for what is gone, which all take, and hands some of it out, which all take, too.
    let late = PoolId { entry: luc_engine::id::EntryId { author: id(3), number: 2 }, index: 0 };
    let subject = Subject::Quota { project: world.project.id };
    let minted = hostile.spend(&world, LedgerOp::Mint { subject, amount: servers(5), confirmed: false });
    world.cloud.deliver(minted.bytes());
    world.assert_alike();
    let granted = hostile.spend(&world, LedgerOp::Grant { pool: late, to: id(0), amount: servers(1) });
    world.cloud.deliver(granted.bytes());
    world.assert_alike();
    world.fold(1);
    world.cloud.restart(1);
    world.assert_alike();
    assert!(world.cloud.replicas.iter().all(|replica| replica.view().ledger().pool(late).is_some()));
    // What it spends of the old one, nobody takes: two have forgotten that, one has not.
    assert!(!world.has_pool(1) && world.has_pool(2));
    let old = hostile.spend(&world, LedgerOp::Grant { pool: world.pool, to: id(0), amount: servers(1) });
    let judged: Vec<Received> = world.cloud.replicas.iter_mut().map(|one| one.receive(old.bytes())).collect();
    assert!(judged.iter().all(|received| refused(received).is_some()), "{judged:?}");
    assert_eq!(refused(&judged[2]), Some(&BadLedgerOp::Closed(world.pool)));
}

fn row(replica: &Replica, pool: PoolId) -> usize {
    let key = rmp_serde::to_vec(&pool).unwrap();
    replica.reader().unwrap().get(Table::Pool, &key).unwrap().unwrap().len()
}

#[test]
fn grants_that_are_never_used_are_one_once_their_receiver_has_said_to_have_them() {
    let mut world = World::new();
    let pool = world.pool;
    world.run(0, |tx| tx.grant(pool, id(3), servers(1))).unwrap();
    world.cloud.exchange_all();
    world.say_held(&[0, 1, 2, 3]);
    (0..4).for_each(|at| world.fold(at));
    let before = row(&world.cloud.replicas[0], pool);
    for _ in 1..9 {
        world.run(0, |tx| tx.grant(pool, id(3), servers(1))).unwrap();
    }
    world.cloud.exchange_all();
    (0..4).for_each(|at| world.fold(at));
    assert!(row(&world.cloud.replicas[0], pool) > before + 8 * 20, "it may write an entry that has seen only some");
    assert!(row(&world.cloud.replicas[3], pool) < before + 20, "it knows what it has seen");
    world.assert_alike();
    world.say_held(&[3]);
    (0..3).for_each(|at| world.fold(at));
    for replica in &world.cloud.replicas {
        assert!(row(replica, pool) < before + 20);
        assert_eq!(replica.view().ledger().pool(pool).unwrap().free(id(3)), servers(9));
    }
    world.assert_alike();
    world.cloud.restart(0);
    world.assert_alike();
    // They can be spent, and no more of them.
    world.run(3, |tx| tx.claim(&[pool], &servers(9), OTHER, 0)).unwrap();
    world.run(3, |tx| tx.claim(&[pool], &servers(1), OTHER, 0)).unwrap_err();
    world.cloud.exchange_all();
    world.assert_alike();
}

fn names(replica: &Replica) -> usize {
    let mut count = 0;
    let mut row = |_: &[u8], _: &[u8]| {
        count += 1;
        true
    };
    replica.reader().unwrap().scan(Table::Name, &[], &mut row).unwrap();
    count
}

#[test]
fn a_name_that_was_taken_back_is_forgotten_once_all_know_and_can_be_given_again() {
    let mut world = World::new();
    let project = world.project;
    let rename = move |tx: &mut Tx<'_>, from: &str, to: &str| tx.rename(Uuid::nil(), from, to, project);
    world.run(0, |tx| tx.bind(Uuid::nil(), "n0", project)).unwrap();
    for n in 0..10 {
        world.run(0, |tx| rename(tx, &format!("n{n}"), &format!("n{}", n + 1))).unwrap();
    }
    world.cloud.exchange_all();
    world.fold(0);
    assert_eq!(names(&world.cloud.replicas[0]), 11, "somebody may still bind one that knows none of them taken back");
    world.say_held(&[0, 1, 2, 3]);
    world.fold(0);
    assert_eq!(names(&world.cloud.replicas[0]), 1);
    world.assert_alike();
    // By one that has forgotten, with the generation of one who never had it, to those that remember.
    world.run(0, |tx| rename(tx, "n10", "n3")).unwrap();
    world.cloud.exchange_all();
    world.assert_alike();
    for replica in &world.cloud.replicas {
        assert_eq!(replica.view().named(Kind::Project, Uuid::nil(), "n3"), Some(project.id));
        assert_eq!(replica.view().named(Kind::Project, Uuid::nil(), "n10"), None);
    }
    world.cloud.restart(0);
    world.assert_alike();
}
