//! Real replicas over real QUIC on loopback: joining, replication, rights, image data.
#![allow(clippy::unwrap_used, missing_docs)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use luc_engine::entry::Member;
use luc_engine::id::{ReplicaId, SiteName};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Kind, Project, RecordId, Server};
use luc_engine::replica::{Identity, Replica, founded_by};
use luc_engine::store::RedbStore;
use luc_engine::tx::{Refusal, shortage};
use luc_sync::blob::Blobs;
use luc_sync::ca::{Authority, Credentials, Role};
use luc_sync::join::{Grant, Newcomer, TokenKind, Tokens, mint_quota};
use luc_sync::net::Net;
use luc_sync::node::{Node, now};
use luc_sync::rpc::{join, new_key, take_snapshot};
use uuid::Uuid;

fn free_address() -> SocketAddr {
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn found(dir: &Path, address: SocketAddr) -> Net {
    let key = new_key(rand::random());
    let public_key = key.verifying_key().to_bytes();
    let cloud = founded_by(&public_key);
    let authority = Authority::create(cloud).unwrap();
    let site = SiteName::new("paris").unwrap();
    let replica = ReplicaId::of_key(&public_key);
    let role = Role::Replica { replica, site: site.clone() };
    let certificate = authority.issue(cloud, &role, &public_key).unwrap();
    let credentials = Credentials { cloud, authority: authority.certificate().clone(), certificate, key: key.clone() };
    let member = Member {
        replica,
        public_key,
        site,
        addresses: vec![address.to_string()],
        identity_authority: true,
        sponsor: true,
        index: 0,
    };
    let store = RedbStore::open(&dir.join("store")).unwrap();
    let replica = Replica::found(Identity { cloud, key }, Box::new(store), member, now()).unwrap();
    run(dir, replica, credentials, Some(authority), address)
}

fn run(dir: &Path, replica: Replica, credentials: Credentials, authority: Option<Authority>, at: SocketAddr) -> Net {
    let blobs = Blobs::open(&dir.join("blobs")).unwrap();
    Net::start(Node::start(replica).unwrap(), credentials, authority, Tokens::of(dir), blobs, at).unwrap()
}

async fn joined(sponsor: &Net, sponsor_dir: &Path, dir: &Path, site: &str) -> Net {
    let kind = TokenKind::Replica { identity_authority: true, sponsor: false };
    let grant = Grant { site: SiteName::new(site).unwrap(), kind, expires: now() + 60_000 };
    let at = vec![sponsor.local_addr().unwrap().to_string()];
    let authority = Credentials::clone(sponsor.credentials()).authority;
    let token = Tokens::of(sponsor_dir).issue(&authority, at.clone(), grant, rand::random()).unwrap();
    let address = free_address();
    let newcomer = Newcomer { key: new_key(rand::random()), addresses: vec![address.to_string()], host: None };
    let admission = join(&token, newcomer.clone()).await.unwrap();
    let again = join(&token, newcomer.clone()).await.unwrap();
    assert_eq!(again.site, admission.site, "who lost the answer asks again");
    let other = join(&token, Newcomer { key: new_key(rand::random()), ..newcomer }).await;
    assert!(other.is_err(), "a token works for one");
    let mut store = RedbStore::open(&dir.join("store")).unwrap();
    Replica::prepare(&mut store).unwrap();
    take_snapshot(&admission.credentials, &at, &mut store).await.unwrap();
    let credentials = admission.credentials;
    let identity = Identity { cloud: credentials.cloud, key: credentials.key.clone() };
    let replica = Replica::open(identity, Box::new(store)).unwrap();
    run(dir, replica, credentials, None, address)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

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
    assert!(lyon.request_rights(&[short]).await.came);
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
    let stored = rennes.blobs().put(&data[..], 1 << 30, 1).await.unwrap();
    let path = lyon.fetch_blob(&stored.blob, "rennes").await.unwrap();
    assert!(std::fs::read(path).unwrap() == data);
    assert!(paris.fetch_blob(&"0".repeat(64), "rennes").await.is_err());
}
