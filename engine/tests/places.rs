//! Who may place a server, and move it (`PROTOCOL.md`, S1): whoever creates it, and then the holder of its claim on a host, by
//! the entry that gives that up. Alike everywhere, whatever a hostile member signs.
//!
//! Broken once each, to see these fail: a claim of anybody's is taken; two places in one entry are taken; an epoch that
//! does not rise is taken.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Cloud, Rogue, host_at, member, snapshot};
use luc_engine::entry::{Created, Entry, Frontier, LedgerOp, Subject};
use luc_engine::id::{ClaimId, PoolId};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Host, Kind, RecordId, Server};
use luc_engine::replica::{Invalid, Received, Rejection, Replica};
use luc_engine::store::{MemoryStore, Store};
use luc_engine::tx::Refusal;
use uuid::Uuid;

fn vcpus(n: u64) -> Amount {
    [(Dimension::Vcpus, n)].into_iter().collect()
}

fn server(n: u128) -> RecordId {
    RecordId { kind: Kind::Server, id: Uuid::from_u128(n) }
}

fn claim(pool: PoolId, record: RecordId, epoch: u64) -> LedgerOp {
    LedgerOp::Claim { pool, amount: vcpus(1), record, epoch }
}

/// Members 0 to 2, with hosts at sites 0 and 1, whose rights all have some of; and 7, who signs what it likes.
struct World {
    cloud: Cloud,
    pools: [PoolId; 2],
    rogue: Rogue,
    /// What its last entry had seen.
    seen: Frontier,
}

impl World {
    fn new() -> Self {
        let mut cloud = Cloud::new(2);
        cloud.admit(7);
        cloud.exchange_all();
        let pools = [0, 1].map(|n: u8| {
            let made = cloud.replicas[usize::from(n)].transact::<_, Refusal>(2, |tx| {
                let pool = tx.mint(Subject::Host(host_at(n)), vcpus(20))?;
                let site = format!("site-{n}");
                let record = Host { name: "h".into(), site, pool: pool.to_string(), ..Host::default() };
                tx.create(host_at(n).host.0, record, &[])?;
                let others = [0, 1, 2, 7].into_iter().filter(|other| *other != n);
                others.map(member).try_for_each(|to| tx.grant(pool, to.replica, vcpus(3)))?;
                Ok(pool)
            });
            made.unwrap().0
        });
        cloud.exchange_all();
        Self { cloud, pools, rogue: Rogue::new(7), seen: Frontier::default() }
    }

    /// What 7 signs, having seen what 0 holds.
    fn sign(&self, created: &[RecordId], ledger: Vec<LedgerOp>) -> Entry {
        let held = self.cloud.replicas[0].view().frontier();
        let mut header = self.rogue.header(held);
        header.seen.retain(|(id, tip)| self.seen.number(*id) < tip.number);
        header.created = created.iter().map(|record| Created { record: *record, references: Vec::new() }).collect();
        header.ledger = ledger;
        self.rogue.sign(header, vec![])
    }

    fn refused(&mut self, created: &[RecordId], ledger: Vec<LedgerOp>) {
        let entry = self.sign(created, ledger);
        for replica in &mut self.cloud.replicas {
            let received = replica.receive(entry.bytes());
            let refused =
                matches!(&received, Received::Refused(Rejection::Invalid { reason: Invalid::Authority { .. }, .. }));
            assert!(refused, "{received:?}");
        }
    }

    fn taken(&mut self, created: &[RecordId], ledger: Vec<LedgerOp>) -> Entry {
        let entry = self.sign(created, ledger);
        self.cloud.deliver(entry.bytes());
        (self.rogue.last, self.rogue.number) = (entry.hash(), entry.id().number);
        entry.header.seen.iter().for_each(|(id, tip)| self.seen.set(*id, *tip));
        entry
    }

    /// Another replica of what one of them holds.
    fn copy(&self, of: usize) -> Replica {
        let mut disk = MemoryStore::default();
        Replica::prepare(&mut disk).unwrap();
        disk.commit(&snapshot(&self.cloud.replicas[of])).unwrap();
        Replica::open(self.cloud.replicas[of].identity().clone(), Box::new(disk)).unwrap()
    }
}

#[test]
fn nobody_places_anothers_server_a_second_time() {
    let mut world = World::new();
    let [pool, other] = world.pools;
    let placed = world.cloud.replicas[1].transact::<_, Refusal>(3, |tx| {
        let record = tx.create(server(1).id, Server::default(), &[])?;
        tx.claim(&[pool], &vcpus(1), record, 1)
    });
    placed.unwrap();
    world.cloud.exchange_all();
    for at in [0, 2] {
        let again =
            world.cloud.replicas[at].transact::<_, Refusal>(3, |tx| tx.claim(&[other], &vcpus(1), server(1), 9));
        assert!(matches!(again, Err(Refusal::Invalid(Invalid::Authority { .. }))), "{again:?}");
    }
    // Nor its own holder, unless it gives up where it is.
    let again = world.cloud.replicas[1].transact::<_, Refusal>(3, |tx| tx.claim(&[other], &vcpus(1), server(1), 2));
    assert!(matches!(again, Err(Refusal::Invalid(Invalid::Authority { .. }))), "{again:?}");
    world.refused(&[], vec![claim(other, server(1), 9)]);
}

#[test]
fn no_entry_gives_a_server_two_places() {
    let mut world = World::new();
    let [pool, other] = world.pools;
    world.refused(&[server(2)], vec![claim(pool, server(2), 1), claim(other, server(2), 2)]);
}

#[test]
fn a_server_that_is_not_its_authors_creation_has_no_place() {
    let mut world = World::new();
    let [pool, _] = world.pools;
    world.refused(&[server(3)], vec![claim(pool, server(4), 1)]);
}

#[test]
fn who_moves_its_server_gives_up_one_place_for_one_with_a_higher_epoch() {
    let mut world = World::new();
    let [pool, other] = world.pools;
    let first = world.taken(&[server(5)], vec![claim(other, server(5), 4)]);
    let held = ClaimId { entry: first.id(), index: 0 };
    world.cloud.replicas[1].transact::<_, Refusal>(4, |tx| tx.declare_dead(other, Uuid::nil())).unwrap();
    world.cloud.exchange_all();
    let release = || LedgerOp::Release { claim: held };
    // Each of these would silence 7 for ever: a copy of a replica judges them.
    for bad in [
        vec![release(), claim(pool, server(5), 4)],
        vec![claim(pool, server(5), 5), release()],
        vec![release(), claim(pool, server(5), 5), claim(pool, server(5), 6)],
        vec![release(), claim(pool, server(6), 5)],
    ] {
        let entry = world.sign(&[], bad);
        let received = world.copy(2).receive(entry.bytes());
        assert!(matches!(received, Received::Refused(Rejection::Invalid { .. })), "{received:?}");
    }
    world.taken(&[], vec![release(), claim(pool, server(5), 5)]);
    let placement = world.cloud.replicas[2].view().placement(server(5).id).unwrap();
    assert_eq!((placement.host, placement.epoch), (host_at(0).host, 5));
}
