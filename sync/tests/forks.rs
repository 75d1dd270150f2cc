//! A member that forked, and two sites that rest on two branches of its log: they find it out when they meet, and agree.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use luc_engine::id::ReplicaId;
use luc_engine::record::{Kind, Project};
use luc_engine::replica::{Received, Replica};
use luc_engine::store::{MemoryStore, RedbStore};
use luc_engine::tx::{Refusal, Tx};
use luc_sync::node::{Node, now};
use support::{admitted, found, free_address, joined, opened, run, until};
use uuid::Uuid;

fn project(n: u128) -> impl FnOnce(&mut Tx<'_>) -> Result<(), Refusal> {
    let record = Project { name: format!("p{n}"), ..Project::default() };
    move |tx| tx.create(Uuid::from_u128(n), record, &[]).map(|_| ())
}

/// What a replica writes when it makes these projects, one an entry.
fn written(replica: &mut Replica, projects: &[u128]) -> Vec<std::sync::Arc<[u8]>> {
    for n in projects {
        replica.transact::<_, Refusal>(now(), project(*n)).unwrap();
    }
    replica.flush().unwrap().entries.iter().map(|entry| entry.shared_bytes()).collect()
}

/// One that lacks entries of its own, since its disk is an old copy, would fork its own log by what it writes before it hears.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_before_the_others_were_met() {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let paris = found(dirs[0].path(), free_address());
    let admission = admitted(&paris, dirs[0].path(), "lyon", free_address()).await;
    let mut lyon = opened(&paris, &admission, Box::new(MemoryStore::default())).await;
    written(&mut lyon, &[1]);
    let node = Node::start(lyon).unwrap();
    let before = node.view().frontier().clone();
    let writing = tokio::spawn({
        let node = node.clone();
        async move { node.transact::<_, Refusal, _>(project(2)).await }
    });
    let received = node.receive(Vec::new()).await.unwrap();
    assert!(received.is_empty());
    assert_eq!(*node.view().frontier(), before, "neither what is asked nor what is owed");
    node.begin().await;
    writing.await.unwrap().unwrap();
    assert_eq!(node.view().count(Kind::Project), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn sites_that_rest_on_two_branches_agree_when_they_meet() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let paris = found(dirs[0].path(), free_address());
    let rennes = joined(&paris, dirs[0].path(), dirs[2].path(), "rennes").await;
    let mallory = admitted(&paris, dirs[0].path(), "mallory", free_address()).await;
    // The same member, twice.
    let mut one = opened(&paris, &mallory, Box::new(MemoryStore::default())).await;
    let mut other = opened(&paris, &mallory, Box::new(MemoryStore::default())).await;
    let liar: ReplicaId = one.identity().replica();
    // Has all that they have.
    let address = free_address();
    let admission = admitted(&paris, dirs[0].path(), "lyon", address).await;
    let store = RedbStore::open(&dirs[1].path().join("store")).unwrap();
    let mut lyon = opened(&paris, &admission, Box::new(store)).await;

    let received = paris.node().receive(written(&mut one, &[1, 2, 3])).await.unwrap();
    assert!(received.iter().all(|one| matches!(one, Received::Applied)), "{received:?}");
    paris.node().transact::<_, Refusal, _>(project(10)).await.unwrap();
    for entry in written(&mut other, &[4, 5]) {
        assert!(matches!(lyon.receive(&entry), Received::Applied));
    }
    written(&mut lyon, &[11, 12]);
    let lyon = run(dirs[1].path(), lyon, admission.credentials, None, address);

    let all = [&paris, &lyon, &rennes];
    until("both branches and all else are everywhere", || {
        let views = all.map(|net| net.node().view());
        let equal = views.iter().all(|view| view.digest() == views[0].digest());
        equal && views[0].retired().contains(liar) && views[0].count(Kind::Project) == 8
    })
    .await;
    for net in all {
        assert!(net.node().view().branches().is_forked(liar));
        net.node().transact::<_, Refusal, _>(project(u128::from(rand::random::<u64>()))).await.unwrap();
    }
    until("they go on", || all.iter().all(|net| net.node().view().count(Kind::Project) == 11)).await;
}
