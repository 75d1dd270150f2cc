//! Agents as witnesses (`PROTOCOL.md`, M4): a replica whose disk was rolled back, and that reaches no peer, hears of it by
//! its host's agent before it writes the same numbers again.
//!
//! Broken once each, to see these fail: a word of another key that is believed; an order that comes before the word that it
//! rests on; a fence that is forgotten by a restart.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;

use common::{cloud, key, member};
use luc_engine::agent::{FromAgent, HostFacts, Order, SignedTip, ToAgent};
use luc_engine::entry::{HostIdentity, Tip};
use luc_engine::id::{ClaimId, PoolId, ReplicaId};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::Server;
use luc_engine::replica::{Identity, Replica};
use luc_engine::schedule::{Request, choose};
use luc_engine::store::{Batch, MemoryStore, Store, Table};
use luc_engine::tx::{Fence, Refusal};
use luc_sync::agents::{self, AgentError};
use luc_sync::node::Node;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

fn amount(cpus: u64) -> Amount {
    [(Dimension::Vcpus, cpus), (Dimension::MemoryMib, cpus), (Dimension::DiskGib, cpus)].into_iter().collect()
}

fn facts(pool: Option<PoolId>) -> HostFacts {
    HostFacts {
        name: "h".into(),
        identity: HostIdentity::sign(cloud(), &member(0).site, &key(77)),
        incarnation: 1,
        hypervisor_type: "test".into(),
        hypervisor_version: 1,
        cpus: 8,
        memory_mib: 8,
        disk_gib: 8,
        cpu_overcommit: 1,
        architecture: String::new(),
        pool,
    }
}

/// What an agent has on its disk.
#[derive(Clone, Default)]
struct Disk {
    pool: Option<PoolId>,
    told: BTreeMap<ReplicaId, SignedTip>,
}

/// An agent on a machine of its own, as far as a replica hears of it.
struct Agent {
    disk: Disk,
    from: mpsc::Receiver<ToAgent>,
    to: mpsc::Sender<FromAgent>,
    served: JoinHandle<Result<(), AgentError>>,
}

impl Agent {
    async fn attach(node: &Node, disk: Disk) -> Self {
        let (to_agent, from) = mpsc::channel(64);
        let (to, from_agent) = mpsc::channel(64);
        let identity = facts(None).identity;
        let certified = Some((identity.agent_key, identity.host));
        let served = tokio::spawn(agents::serve(node.clone(), from_agent, to_agent, certified));
        if !disk.told.is_empty() {
            to.send(FromAgent::Witnessed(disk.told.values().cloned().collect())).await.unwrap();
        }
        // A replica that was fenced by what it was shown may have hung up.
        let _ = to.send(FromAgent::Hello(Box::new(facts(disk.pool)))).await;
        Self { disk, from, to, served }
    }

    /// The next order; what else comes is dealt with. None if the replica hung up.
    async fn order(&mut self) -> Option<Order> {
        loop {
            match self.from.recv().await? {
                ToAgent::Pool { pool, .. } => {
                    self.disk.pool = Some(pool);
                    self.to.send(FromAgent::Hello(Box::new(facts(Some(pool))))).await.unwrap();
                }
                ToAgent::Witness(word) => {
                    assert!(word.verify(cloud()));
                    self.disk.told.insert(word.replica, *word);
                }
                ToAgent::Order(order) => return Some(*order),
                ToAgent::Orders(orders) => {
                    if let Some(order) = orders.into_iter().next() {
                        return Some(order);
                    }
                }
                _ => {}
            }
        }
    }
}

fn copy(store: &MemoryStore) -> MemoryStore {
    let mut copy = MemoryStore::default();
    let mut batch = Batch::default();
    let reader = store.reader().unwrap();
    for table in Table::ALL {
        let mut put = |key: &[u8], value: &[u8]| {
            batch.put(table, key.to_vec(), value.to_vec());
            true
        };
        reader.scan(table, &[], &mut put).unwrap();
    }
    copy.commit(&batch).unwrap();
    copy
}

fn identity() -> Identity {
    Identity { cloud: cloud(), key: key(0) }
}

fn opened(store: &MemoryStore) -> Node {
    Node::start(Replica::open(identity(), Box::new(store.clone())).unwrap()).unwrap()
}

/// Places a server, and gives its claim on the host.
async fn place(node: &Node, server: u128) -> Result<ClaimId, Refusal> {
    node.transact::<_, Refusal, _>(move |tx| {
        let request = Request { amount: amount(1), ..Request::default() };
        let choice = choose(tx.view(), tx.me(), "site-0", &request, &|_| true, 0).unwrap();
        let server = tx.create(Uuid::from_u128(server), Server { name: "s".into(), ..Server::default() }, &[])?;
        choice.claim(tx, &amount(1), server, 1)
    })
    .await
}

/// A replica with a host and one server, a copy of its disk from before the server, and the agent's disk.
async fn rolled_back() -> (Node, MemoryStore, ClaimId, Disk) {
    let store = MemoryStore::default();
    let node = Node::start(Replica::found(identity(), Box::new(store.clone()), member(0), 1).unwrap()).unwrap();
    node.begin().await;
    let mut agent = Agent::attach(&node, Disk::default()).await;
    let (served, mut before) = (async { while agent.order().await.is_none() {} }, None);
    let placed = async {
        while node.view().host_pool(facts(None).identity.host).is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        before = Some(copy(&store));
        place(&node, 1).await.unwrap()
    };
    let ((), claim) = tokio::join!(served, placed);
    assert!(agent.disk.told[&node.me()].tip.number >= claim.entry.number, "an order before what it rests on");
    (node, before.unwrap(), claim, agent.disk)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_disk_without_peers_uses_no_claim_twice() {
    let (_, before, claim, disk) = rolled_back().await;
    // Without anybody's word the number is used again, and the agent would take the new claim for the one that it knows.
    let alone = opened(&copy(&before));
    alone.begin().await;
    assert_eq!(place(&alone, 2).await.unwrap(), claim, "the schedule");

    let node = opened(&before);
    let agent = Agent::attach(&node, disk).await;
    assert!(matches!(agent.served.await.unwrap(), Err(AgentError::Refused(Refusal::Fenced(Fence::OldStore(_))))));
    node.begin().await;
    assert!(matches!(place(&node, 2).await, Err(Refusal::Fenced(Fence::OldStore(lost))) if lost >= claim.entry));
    // It stays so when it starts again and the agent is away.
    let again = opened(&before);
    again.begin().await;
    assert!(matches!(place(&again, 2).await, Err(Refusal::Fenced(Fence::OldStore(_)))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_on_an_old_disk_is_seen_by_its_hash() {
    let (_, before, _, disk) = rolled_back().await;
    let alone = opened(&before);
    alone.begin().await;
    for server in 2..4 {
        place(&alone, server).await.unwrap();
    }
    assert!(alone.view().frontier().number(alone.me()) >= disk.told[&alone.me()].tip.number);
    let agent = Agent::attach(&alone, disk).await;
    assert!(agent.served.await.unwrap().is_err());
    assert!(matches!(alone.fence(), Some(Fence::OldStore(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_witness_that_agrees_or_lies_keeps_nobody_from_writing() {
    let (node, _, _, disk) = rolled_back().await;
    let tip = Tip { number: 1_000, hash: 1 };
    let mut forged = disk.told[&node.me()].clone();
    forged.tip = tip;
    let mut of_another = SignedTip::sign(cloud(), tip, &key(9));
    of_another.replica = node.me();
    let elsewhere = SignedTip::sign(luc_engine::id::CloudId(Uuid::nil()), tip, &key(0));
    let theirs = SignedTip::sign(cloud(), tip, &key(9));
    let own = disk.told[&node.me()].clone();
    node.witnessed(vec![forged, of_another, elsewhere, theirs, own]).await.unwrap();
    assert_eq!(node.fence(), None);
    place(&node, 2).await.unwrap();
}
