//! Nothing is started before the holder of its claim stands by it (`PROTOCOL.md`, S1, S5): a host that returns after it was
//! declared dead and its servers were placed elsewhere may meet a replica that has heard of neither.
//!
//! Broken once each, to see these fail: an order that says what nobody said; a replica that stands by what it has placed
//! elsewhere.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use luc_engine::agent::{FromAgent, HostFacts, Order, ToAgent, Vouched, Wanted};
use luc_engine::entry::{HostIdentity, Subject};
use luc_engine::hosts::evacuate;
use luc_engine::id::{EntryId, PoolId, SiteName};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Host, Server};
use luc_engine::replica::{Received, Replica};
use luc_engine::schedule::Choice;
use luc_engine::tx::Refusal;
use luc_sync::ca::Credentials;
use luc_sync::net::Net;
use luc_sync::node::now;
use luc_sync::rpc::{AgentConnection, new_key};
use support::{admitted, admitted_agent, found, free_address, opened, run, stored, until};
use uuid::Uuid;

fn amount() -> Amount {
    [(Dimension::Vcpus, 1), (Dimension::MemoryMib, 16), (Dimension::DiskGib, 1)].into_iter().collect()
}

fn site(name: &str) -> SiteName {
    SiteName::new(name).unwrap()
}

/// All that a replica has written since it joined, as it travels.
fn written(replica: &mut Replica) -> Vec<Arc<[u8]>> {
    let entries = replica.flush().unwrap().entries;
    entries.iter().map(|entry| entry.shared_bytes()).collect()
}

fn take(replica: &mut Replica, entries: &[Arc<[u8]>]) {
    for entry in entries {
        let received = replica.receive(entry);
        assert!(matches!(received, Received::Applied | Received::Known), "{received:?}");
    }
    replica.flush().unwrap();
}

async fn log_of(net: &Net) -> Vec<Arc<[u8]>> {
    let from = vec![EntryId { author: net.node().me(), number: 1 }];
    let entries = net.node().read_log(from, 1 << 24).await.unwrap().entries;
    entries.iter().map(|entry| entry.shared_bytes()).collect()
}

/// An agent of paris, as far as a replica hears of it.
struct Agent {
    connection: AgentConnection,
}

impl Agent {
    async fn connect(to: &Net, credentials: &Credentials, pool: Option<PoolId>) -> (Self, PoolId) {
        let at = [to.local_addr().unwrap().to_string()];
        let facts = |pool| HostFacts {
            name: "host".into(),
            identity: HostIdentity::sign(credentials.cloud, &site("paris"), &credentials.key),
            incarnation: 1,
            hypervisor_type: "test".into(),
            hypervisor_version: 2,
            cpus: 16,
            memory_mib: 4096,
            disk_gib: 64,
            cpu_overcommit: 4,
            architecture: String::new(),
            pool,
        };
        let mut connection = AgentConnection::connect(credentials, &at).await.unwrap();
        connection.to.send(FromAgent::Hello(Box::new(facts(pool)))).await.unwrap();
        let pool = match pool {
            Some(pool) => pool,
            None => loop {
                if let Some(ToAgent::Pool { pool, .. }) = connection.from.recv().await {
                    connection.to.send(FromAgent::Hello(Box::new(facts(Some(pool))))).await.unwrap();
                    break pool;
                }
            },
        };
        (Self { connection }, pool)
    }

    /// Reads until an order is of this kind; gives what came before it, too.
    async fn until(&mut self, vouched: Vouched) -> Vec<Order> {
        let mut orders = Vec::new();
        while orders.last().is_none_or(|order: &Order| order.vouched != vouched) {
            let message = tokio::time::timeout(Duration::from_secs(60), self.connection.from.recv()).await.unwrap();
            match message.expect("the replica hung up") {
                ToAgent::Orders(all) => orders.extend(all),
                ToAgent::Order(order) => orders.push(*order),
                _ => {}
            }
        }
        orders
    }
}

/// A server of `replica`'s on a host.
fn place(replica: &mut Replica, pool: PoolId, server: u128) -> Vec<Arc<[u8]>> {
    let placed = replica.transact::<_, Refusal>(now(), |tx| {
        let record = tx.create(Uuid::from_u128(server), Server::default(), &[])?;
        tx.claim(&[pool], &amount(), record, 1)
    });
    placed.unwrap();
    written(replica)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lags_starts_no_old_copy() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let paris = found(dirs[0].path(), free_address());
    let lyon_at = free_address();
    let beside = admitted(&paris, dirs[0].path(), "paris", free_address()).await;
    let away = admitted(&paris, dirs[0].path(), "lyon", lyon_at).await;
    let credentials = admitted_agent(&paris, dirs[0].path(), "paris").await.credentials;
    let mut beside = opened(&paris, &beside, stored(dirs[1].path())).await;
    let mut lyon = opened(&paris, &away, stored(dirs[2].path())).await;
    let (mut agent, pool) = Agent::connect(&paris, &credentials, None).await;
    until("its rights are shared", || {
        let view = paris.node().view();
        view.ledger().pool(pool).is_some_and(|pool| !pool.free(lyon.identity().replica()).is_zero())
    })
    .await;
    for replica in [&mut beside, &mut lyon] {
        take(replica, &log_of(&paris).await);
    }
    let entries = place(&mut lyon, pool, 1);
    take(&mut beside, &entries);
    paris.node().receive(entries).await.unwrap();
    let orders = agent.until(Vouched::No).await;
    assert!(orders.iter().all(|order| order.vouched != Vouched::Yes), "{orders:?}");
    drop(agent);

    // The machine is off. Its other replica says so, and lyon places the server anew; paris hears of neither.
    beside.transact::<_, Refusal>(now(), |tx| tx.declare_dead(pool, Uuid::nil())).unwrap();
    take(&mut lyon, &written(&mut beside));
    let identity = HostIdentity::sign(credentials.cloud, &site("lyon"), &new_key([5; 32]));
    let moved = lyon.transact::<_, Refusal>(now(), |tx| {
        let host = identity.host;
        let pool = tx.mint(Subject::Host(identity), amount())?;
        tx.create(host.0, Host { site: "lyon".into(), pool: pool.to_string(), ..Host::default() }, &[])?;
        evacuate(tx, Uuid::from_u128(1), &Choice { host, pool, member: None }, &amount())
    });
    moved.unwrap();
    lyon.flush().unwrap();
    let (mut agent, _) = Agent::connect(&paris, &credentials, Some(pool)).await;
    let orders = agent.until(Vouched::No).await;
    let present = |order: &Order| matches!(order.wanted, Wanted::Present { .. });
    assert!(orders.iter().any(present), "paris still wishes it there: the schedule");
    assert!(orders.iter().all(|order| order.vouched != Vouched::Yes), "{orders:?}");

    // Asked, lyon does not stand by it; and then all hear of everything.
    let lyon = run(dirs[2].path(), lyon, away.credentials, None, lyon_at);
    loop {
        let message = tokio::time::timeout(Duration::from_secs(60), agent.connection.from.recv()).await.unwrap();
        match message {
            Some(ToAgent::Orders(orders)) => assert!(orders.iter().all(|order| order.vouched != Vouched::Yes)),
            Some(ToAgent::Order(order)) => assert!(order.vouched != Vouched::Yes, "{order:?}"),
            // It is to introduce itself again, and is told that it is dead.
            None => break,
            Some(_) => {}
        }
    }
    until("paris knows", || paris.node().view().death(credentials_host(&credentials)).is_some()).await;
    assert!(lyon.node().fence().is_none());
}

fn credentials_host(credentials: &Credentials) -> luc_engine::id::HostId {
    luc_engine::id::HostId::of_key(&credentials.key.verifying_key().to_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_holder_of_a_claim_is_asked_until_it_can_be() {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let paris = found(dirs[0].path(), free_address());
    let lyon_at = free_address();
    let away = admitted(&paris, dirs[0].path(), "lyon", lyon_at).await;
    let credentials = admitted_agent(&paris, dirs[0].path(), "paris").await.credentials;
    let mut lyon = opened(&paris, &away, stored(dirs[1].path())).await;
    let (mut agent, pool) = Agent::connect(&paris, &credentials, None).await;
    until("its rights are shared", || {
        let view = paris.node().view();
        view.ledger().pool(pool).is_some_and(|pool| !pool.free(lyon.identity().replica()).is_zero())
    })
    .await;
    // What paris places itself, it stands by at once.
    let placed = paris.node().transact::<_, Refusal, _>(move |tx| {
        let record = tx.create(Uuid::from_u128(2), Server::default(), &[])?;
        tx.claim(&[pool], &amount(), record, 1)
    });
    placed.await.unwrap();
    let orders = agent.until(Vouched::Yes).await;
    assert!(orders.iter().all(|order| order.server == Uuid::from_u128(2) && order.vouched == Vouched::Yes));
    take(&mut lyon, &log_of(&paris).await);
    let entries = place(&mut lyon, pool, 1);
    paris.node().receive(entries).await.unwrap();
    agent.until(Vouched::No).await;
    let _lyon = run(dirs[1].path(), lyon, away.credentials, None, lyon_at);
    let orders = agent.until(Vouched::Yes).await;
    assert_eq!(orders.last().map(|order| order.server), Some(Uuid::from_u128(1)));
}
