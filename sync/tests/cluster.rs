//! Real replicas over real QUIC on loopback: joining, replication, rights, image data.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use luc_engine::id::ReplicaId;
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Kind, Project, RecordId, Server};
use luc_engine::replica::{Identity, Replica};
use luc_engine::store::{Batch, MemoryStore, Table};
use luc_engine::tx::{Fence, Refusal, shortage};
use luc_sync::join::mint_quota;
use luc_sync::net::Net;
use luc_sync::rpc::take_snapshot;
use support::{admitted, found, free_address, joined, opened, run, stored, until};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn three_sites_agree_and_share_rights_and_images() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let paris = found(dirs[0].path(), free_address());
    let project = Uuid::from_u128(1);
    let quota: Amount = [(Dimension::Instances, 9)].into_iter().collect();
    let minted = quota.clone();
    paris
        .node()
        .transact::<_, Refusal, _>(move |tx| {
            tx.create(project, Project { name: "p".into(), ..Project::default() }, &[])?;
            mint_quota(tx, project, &minted)
        })
        .await
        .unwrap();
    let lyon = joined(&paris, dirs[0].path(), dirs[1].path(), "lyon").await;
    let rennes = joined(&paris, dirs[0].path(), dirs[2].path(), "rennes").await;
    let all = [&paris, &lyon, &rennes];
    until("all connected", || all.iter().all(|net| net.reach().iter().filter(|r| r.reachable).count() == 2)).await;

    for (n, net) in (0..20).zip(all.iter().cycle()) {
        let id = Uuid::from_u128(100 + n);
        let owner = RecordId { kind: Kind::Project, id: project };
        let server = Server { project, name: format!("s{n}"), ..Server::default() };
        net.node().transact::<_, Refusal, _>(move |tx| tx.create(id, server, &[owner])).await.unwrap();
    }
    let digests = || all.map(|net| net.node().view().digest());
    until("equal digests", || {
        let [a, b, c] = digests();
        a == b && b == c && rennes.node().view().count(Kind::Server) == 20
    })
    .await;

    // Lyon holds 4 of 9 after paris gave it an even share; it needs 7 and asks.
    let view = lyon.node().view();
    let (pool, _) = view.ledger().quota_pools(project).next().unwrap();
    let wanted: Amount = [(Dimension::Instances, 7)].into_iter().collect();
    let short = shortage(&view, lyon.node().me(), &[pool], &wanted);
    assert!(!short.free_here.covers(&wanted), "{short:?}");
    assert!(lyon.request_rights(&[short], lyon.rights_deadline()).await.came);
    let claimed = wanted.clone();
    let record = RecordId { kind: Kind::Server, id: Uuid::from_u128(100) };
    lyon.node().transact::<_, Refusal, _>(move |tx| tx.claim(&[pool], &claimed, record, 0)).await.unwrap();
    until("the claim is everywhere", || {
        let [a, b, c] = digests();
        a == b && b == c && paris.node().view().ledger().pool(pool).unwrap().claimed == wanted
    })
    .await;
    assert!(paris.node().view().ledger().is_conserved());

    let data: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (stored, _) = rennes.blobs().put(&data[..], 1 << 30, 1).await.unwrap();
    let path = lyon.fetch_blob(&stored.blob, "rennes").await.unwrap();
    assert!(std::fs::read(path).unwrap() == data);
    assert!(paris.fetch_blob(&"0".repeat(64), "rennes").await.is_err());
}

/// Whoever admitted it is gone, with the word that it did, and all others have lower ids, whose it is to dial.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_nobody_has_heard_of_comes_by_itself() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let there = tokio::runtime::Runtime::new().unwrap();
    let directory = dirs[0].path().to_owned();
    let paris = there.spawn(async move { found(&directory, free_address()) }).await.unwrap();
    let (at, dir) = (free_address(), dirs[1].path());
    let admission = admitted(&paris, dirs[0].path(), "lyon", at).await;
    let lyon = opened(&paris, &admission, stored(dir)).await;
    let (rennes, credentials, elsewhere) = loop {
        let elsewhere = free_address();
        let admission = admitted(&paris, dirs[0].path(), "rennes", elsewhere).await;
        if ReplicaId::of_key(&admission.credentials.key.verifying_key().to_bytes()) > lyon.identity().replica() {
            let rennes = opened(&paris, &admission, stored(dirs[2].path())).await;
            break (rennes, admission.credentials, elsewhere);
        }
    };
    there.shutdown_background();
    let lyon = run(dir, lyon, admission.credentials, None, at);
    let rennes = run(dirs[2].path(), rennes, credentials, None, elsewhere);
    let newcomer = rennes.node().me();
    assert!(lyon.node().view().member(newcomer).is_none());
    until("lyon has heard of it", || lyon.node().view().member(newcomer).is_some()).await;
}

/// Whoever gave the state has no say, so the third site does: it has the same, or not.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_newcomer_was_given_is_on_trust_until_the_others_show_it() {
    let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let paris = found(dirs[0].path(), free_address());
    for n in 0..5 {
        let project = Project { name: format!("p{n}"), ..Project::default() };
        paris.node().transact::<_, Refusal, _>(move |tx| tx.create(Uuid::from_u128(n), project, &[])).await.unwrap();
    }
    let lyon = joined(&paris, dirs[0].path(), dirs[1].path(), "lyon").await;
    assert_eq!(lyon.node().on_trust(), None, "there is nobody but who gave it");

    let (at, dir) = (free_address(), dirs[2].path());
    let admission = admitted(&paris, dirs[0].path(), "rennes", at).await;
    let mut store = stored(dir);
    // As if paris had left a project out.
    let replica = {
        Replica::prepare(store.as_mut()).unwrap();
        let paris = [paris.local_addr().unwrap().to_string()];
        take_snapshot(&admission.credentials, &paris, store.as_mut()).await.unwrap();
        let mut one = None;
        let mut row = |key: &[u8], _: &[u8]| {
            one = Some(key.to_vec());
            false
        };
        store.reader().unwrap().scan(Table::Record, &[], &mut row).unwrap();
        let mut batch = Batch::default();
        batch.delete(Table::Record, one.unwrap());
        store.commit(&batch).unwrap();
        let identity = Identity { cloud: admission.credentials.cloud, key: admission.credentials.key.clone() };
        Replica::open(identity, store).unwrap()
    };
    assert_eq!(replica.on_trust(), Some(paris.node().me()));
    let rennes = run(dir, replica, admission.credentials.clone(), None, at);
    let fence = Some(Fence::FalseState { giver: paris.node().me() });
    until("rennes is told", || rennes.node().fence() == fence).await;
    // Nobody gets it from there.
    let mut other = MemoryStore::default();
    Replica::prepare(&mut other).unwrap();
    let there = [rennes.local_addr().unwrap().to_string()];
    let taken = take_snapshot(lyon.credentials(), &there, &mut other).await;
    let error = taken.unwrap_err().to_string();
    assert!(error.contains("was given to it"), "{error}");
    let project = Project { name: "late".into(), ..Project::default() };
    let written = rennes.node().transact::<_, Refusal, _>(|tx| tx.create(Uuid::from_u128(99), project, &[])).await;
    assert!(matches!(written, Err(Refusal::Fenced(Fence::FalseState { .. }))), "{written:?}");
    let seen = |net: &Net, of: &Net| {
        let reach = net.reach().into_iter().find(|reach| reach.replica == of.node().me());
        reach.and_then(|reach| reach.same_state)
    };
    until("lyon and paris see it too", || [&lyon, &paris].iter().all(|net| seen(net, &rennes) == Some(false))).await;
    until("lyon has what paris has", || seen(&lyon, &paris) == Some(true)).await;

    // An honest one is told so, though one that was deceived is among the others: what that shows says nothing.
    let brest = joined(&paris, dirs[0].path(), dirs[3].path(), "brest").await;
    until("brest has what lyon has", || brest.node().on_trust().is_none()).await;
    assert_eq!(brest.node().fence(), None);
}
