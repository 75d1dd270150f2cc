//! A host whose agent meets two replicas of its site that are cut off from each other (`PROTOCOL.md`, S3): it is never
//! promised twice.
//!
//! Broken once each, to see these fail: a replica that mints for an agent which says that it serves a pool; rights that
//! are shared or spent before the agent has said so; a surplus pool that is not burnt; an agent that takes a second pool.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;

use common::{Cloud, cloud, key, member};
use ed25519_dalek::SigningKey;
use luc_engine::agent::{HostFacts, Orphan, Statement, Wanted};
use luc_engine::entry::{HostIdentity, Member, MemberOp, Subject};
use luc_engine::id::{ClaimId, EntryId, HostId, PoolId};
use luc_engine::ledger::{Amount, Claim, Dimension};
use luc_engine::record::{Host, Kind, RecordId, Server};
use luc_engine::replica::{Received, Replica};
use luc_engine::retire::{Request as Retirement, Retiree};
use luc_engine::schedule::{Request, choose};
use luc_engine::tx::Refusal;
use luc_engine::view::View;
use luc_sync::agents::{Met, meet, remains};
use proptest::prelude::*;
use uuid::Uuid;

/// What the machine has.
const CPUS: u64 = 8;
/// Two replicas of the host's site, and one of another.
const HERE: [usize; 2] = [0, 1];
const ALL: [usize; 3] = [0, 1, 2];

fn amount(cpus: u64) -> Amount {
    [(Dimension::Vcpus, cpus), (Dimension::MemoryMib, cpus), (Dimension::DiskGib, cpus)].into_iter().collect()
}

fn agent_key() -> SigningKey {
    key(77)
}

fn identity() -> HostIdentity {
    HostIdentity::sign(cloud(), &member(0).site, &agent_key())
}

fn host() -> HostId {
    identity().host
}

fn facts(pool: Option<PoolId>) -> HostFacts {
    HostFacts {
        name: "h".into(),
        identity: identity(),
        incarnation: 1,
        hypervisor_type: "test".into(),
        hypervisor_version: 1,
        cpus: CPUS,
        memory_mib: CPUS,
        disk_gib: CPUS,
        cpu_overcommit: 1,
        architecture: String::new(),
        pool,
    }
}

struct World {
    cloud: Cloud,
    /// What is on the agent's disk.
    served: Option<PoolId>,
    next: u128,
}

impl World {
    fn new() -> Self {
        let mut cloud = Cloud::new(0);
        cloud.join_as(1, Member { site: member(0).site, ..member(1) });
        cloud.join(2);
        let mut world = Self { cloud, served: None, next: 0 };
        world.settle();
        world
    }

    fn replica(&mut self, at: usize) -> &mut Replica {
        &mut self.cloud.replicas[at]
    }

    fn view(&self, at: usize) -> &View {
        self.cloud.replicas[at].view()
    }

    /// Flushes, and does what is owed, as the driver does.
    fn tend(&mut self, at: usize) {
        let replica = self.replica(at);
        let mut flushed = replica.flush().unwrap();
        while replica.tend(5, Some(&flushed)).unwrap() {
            flushed = replica.flush().unwrap();
        }
    }

    /// What one has on its disk reaches another.
    fn send(&mut self, from: usize, to: usize) {
        let mut rest: Vec<_> = self.cloud.log(from).into_values().collect();
        loop {
            let before = rest.len();
            let replica = self.replica(to);
            rest.retain(|bytes| match replica.receive(bytes) {
                Received::Applied | Received::Known => false,
                Received::Waiting(_) => true,
                Received::Refused(rejection) => panic!("{to} refused: {rejection}"),
            });
            if rest.len() == before {
                return self.tend(to);
            }
        }
    }

    fn settle(&mut self) {
        loop {
            let before = ALL.map(|at| self.view(at).frontier().clone());
            ALL.iter().for_each(|at| self.tend(*at));
            for (from, to) in ALL.into_iter().flat_map(|from| ALL.map(|to| (from, to))).filter(|(a, b)| a != b) {
                self.send(from, to);
            }
            if before == ALL.map(|at| self.view(at).frontier().clone()) {
                return;
            }
        }
    }

    /// The agent connects to a replica of its site. The answer may be lost, and so may what it says then.
    fn hello(&mut self, at: usize, told: bool, said: bool) {
        let facts = facts(self.served);
        let (met, _) = self.replica(at).transact::<_, Refusal>(3, |tx| meet(tx, facts)).unwrap();
        self.tend(at);
        if let Met::Told { pool, instead_of } = met
            && told
        {
            if self.served == instead_of {
                self.served = Some(pool);
            }
            if said {
                self.hello(at, false, false);
            }
        }
    }

    /// A server is placed as a scheduler does it. Says whether there was room.
    fn place(&mut self, at: usize, cpus: u64) -> bool {
        self.next += 1;
        let server = Uuid::from_u128(self.next);
        let request = Request { amount: amount(cpus), ..Request::default() };
        let placed = self.replica(at).transact::<_, Refusal>(4, |tx| {
            let Ok(choice) = choose(tx.view(), tx.me(), "site-0", &request, &|_| true, 0) else { return Ok(false) };
            let record = tx.create(server, Server { name: "s".into(), ..Server::default() }, &[])?;
            choice.claim(tx, &amount(cpus), record, 1).map(|_| true)
        });
        self.tend(at);
        placed.unwrap().0
    }

    /// All live claims on the host, over the union of what everybody holds.
    fn claims(&self) -> BTreeMap<ClaimId, Claim> {
        let of = |at: usize| self.view(at).ledger().claims_on(host()).map(|(id, claim)| (id, claim.clone()));
        ALL.into_iter().flat_map(of).collect()
    }

    fn promised(&self) -> u64 {
        self.claims().values().map(|claim| claim.amount.get(Dimension::Vcpus)).sum()
    }

    /// Capacity of all pools of the host.
    fn capacity(&self, at: usize) -> u64 {
        self.view(at).ledger().host_pools(host()).map(|(_, pool)| pool.capacity().get(Dimension::Vcpus)).sum()
    }
}

#[test]
fn two_replicas_that_each_believe_their_own_pool_promise_the_host_twice() {
    // What replicas did before agents knew their pool: each mints one, and spends it.
    let mut world = World::new();
    for at in HERE {
        world
            .replica(at)
            .transact::<_, Refusal>(3, |tx| {
                let pool = tx.mint(Subject::Host(identity()), amount(CPUS))?;
                let host_record = Host { site: "site-0".into(), pool: pool.to_string(), ..Host::default() };
                tx.create(host().0, host_record, &[])
            })
            .unwrap();
        for _ in 0..CPUS {
            assert!(world.place(at, 1));
        }
    }
    assert_eq!(world.promised(), 2 * CPUS, "twice the machine");
    // The agent's word ends it. What was claimed of the other pool it refuses; that is burnt once the servers are deleted.
    let served = world.view(1).ledger().host_pools(host()).map(|(id, _)| id).next().unwrap();
    world.served = Some(served);
    world.settle();
    world.hello(1, true, true);
    world.settle();
    assert_eq!(world.view(0).surplus(host()), amount(CPUS), "shown as pending");
    for (id, claim) in world.claims().into_iter().filter(|(_, claim)| claim.pool != served) {
        let refused = Statement::sign(cloud(), host(), claim.record.id, id, 1, &agent_key());
        let stated = world.replica(1).transact::<_, Refusal>(5, |tx| {
            assert!(tx.state(refused));
            tx.delete(claim.record)
        });
        stated.unwrap();
    }
    world.settle();
    for at in ALL {
        assert_eq!((world.capacity(at), world.view(at).surplus(host())), (CPUS, Amount::default()), "at {at}");
        assert_eq!(world.view(at).host_pool(host()).unwrap().0, served);
    }
    assert_eq!(world.promised(), CPUS);
}

#[test]
fn a_replica_that_lacks_the_pool_waits_for_it_and_mints_no_other() {
    let mut world = World::new();
    world.hello(0, true, true);
    let pool = world.served.unwrap();
    let said = facts(Some(pool));
    let met = world.replica(1).transact::<_, Refusal>(3, |tx| meet(tx, said.clone())).unwrap();
    assert_eq!(met, (Met::Awaited(pool), None), "and nothing is written");
    assert!(!world.place(1, 1));
    world.send(0, 1);
    let (met, _) = world.replica(1).transact::<_, Refusal>(3, |tx| meet(tx, said)).unwrap();
    assert_eq!(met, Met::Served);
    assert_eq!(world.view(1).ledger().host_pools(host()).count(), 1);
}

#[test]
fn a_pool_that_the_agent_never_took_is_neither_shared_nor_spent_and_is_burnt() {
    let mut world = World::new();
    // The first replica's word never reaches the agent; the second, cut off from it, mints another.
    world.hello(0, false, false);
    world.hello(1, true, true);
    assert!(!world.place(0, 1), "nobody has said that this pool is served");
    assert!(world.place(1, 1));
    world.settle();
    for at in ALL {
        assert_eq!(world.view(at).ledger().host_pools(host()).count(), 2);
        assert_eq!((world.capacity(at), world.view(at).surplus(host())), (CPUS, Amount::default()), "at {at}");
    }
    let record = RecordId { kind: Kind::Host, id: host().0 };
    let held = world.view(2).held(record).and_then(|held| held.record.clone()).unwrap();
    assert!(matches!(held, luc_engine::record::Record::Host(host) if host.served_pool() == world.served));
}

#[derive(Clone, Debug)]
enum Event {
    Hello { at: usize, told: bool, said: bool },
    Place { at: usize, cpus: u64 },
    Send { from: usize, to: usize },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..2_usize, any::<bool>(), any::<bool>()).prop_map(|(at, told, said)| Event::Hello { at, told, said }),
        (0..3_usize, 1..5_u64).prop_map(|(at, cpus)| Event::Place { at, cpus }),
        (0..3_usize, 0..3_usize).prop_map(|(from, to)| Event::Send { from, to }),
    ]
}

/// What only a lost disk knew runs on: nobody can delete it, and its room has been promised to others.
#[test]
fn a_server_whose_claim_only_a_lost_disk_held_is_removed_from_the_host() {
    let mut world = World::new();
    let made = world.replica(0).transact::<_, Refusal>(3, |tx| {
        let pool = tx.mint(Subject::Host(identity()), amount(CPUS))?;
        tx.create(host().0, Host { site: "site-0".into(), pool: pool.to_string(), ..Host::default() }, &[])
    });
    made.unwrap();
    world.settle();
    let (lost, heir) = (member(1).replica, member(0).replica);
    let last = world.view(1).frontier().number(lost);
    let orphan = |author, number| {
        let claim = ClaimId { entry: EntryId { author, number }, index: 0 };
        Orphan { server: Uuid::from_u128(9), claim, epoch: 0 }
    };
    let orphans = [orphan(lost, last), orphan(lost, last + 1), orphan(heir, 1_000)];
    assert_eq!(remains(world.view(0), host(), &orphans), [], "what is not known here may live");
    let set = [Retiree { replica: lost, heir }].into_iter().collect();
    let retirement = MemberOp::Retire(Retirement { set, force: false });
    world.replica(0).transact::<_, Refusal>(4, |tx| tx.membership(retirement)).unwrap();
    while !world.view(0).retired().contains(lost) {
        for (from, to) in [(0, 2), (2, 0)] {
            world.tend(from);
            world.send(from, to);
            world.tend(to);
        }
    }
    let gone: Vec<_> = remains(world.view(0), host(), &orphans).into_iter().map(|o| (o.claim, o.wanted)).collect();
    assert_eq!(gone, [(orphans[1].claim, Wanted::Absent)], "the void one, and no other");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn a_host_is_never_promised_twice_whoever_its_agent_meets(events in prop::collection::vec(event(), 1..40)) {
        let mut world = World::new();
        for event in events {
            match event {
                Event::Hello { at, told, said } => world.hello(at, told, said),
                Event::Place { at, cpus } => drop(world.place(at, cpus)),
                Event::Send { from, to } if from != to => world.send(from, to),
                Event::Send { .. } => {}
            }
            prop_assert!(world.promised() <= CPUS, "{} of {CPUS} promised", world.promised());
            let served = world.served;
            prop_assert!(world.claims().values().all(|claim| Some(claim.pool) == served), "a claim that will be refused");
        }
        // In the end its agent is heard, everybody knows, and the host counts once.
        world.settle();
        world.hello(0, true, true);
        world.settle();
        for at in ALL {
            prop_assert_eq!(world.capacity(at), CPUS);
            prop_assert_eq!(world.view(at).digest(), world.view(0).digest());
        }
        while world.place(0, 1) {}
        prop_assert!(world.promised() <= CPUS);
    }
}
