//! A snapshot whose connection is cut in the middle goes on where it was, in the same state; and who serves it pays for that
//! with room on the disk for one copy, not with a store that grows.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use luc_engine::record::Project;
use luc_engine::replica::{Identity, Replica};
use luc_engine::store::{Batch, RedbStore, Store, Table};
use luc_engine::tx::Refusal;
use luc_sync::ca::Credentials;
use luc_sync::net::Net;
use luc_sync::rpc::take_snapshot;
use luc_sync::wire::{self, Request, SnapshotHead};
use quinn::{Connection, RecvStream};
use support::{MEMBER, admitted, dial, endpoint, found, free_address};
use tokio::net::UdpSocket;
use uuid::Uuid;

/// Bytes from the server after which the link is cut for a while, each time once.
const CUTS: [usize; 2] = [1 << 20, 3 << 20];
/// Longer than a connection lives without a sign of life.
const OUTAGE: Duration = Duration::from_secs(3);

/// A link on which everything is lost for a while after so many bytes.
struct Link {
    address: SocketAddr,
    carried: Arc<AtomicUsize>,
    cut: Arc<AtomicUsize>,
}

impl Link {
    async fn to(server: SocketAddr) -> Self {
        let (near, far) =
            (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = near.local_addr().unwrap();
        let (carried, cut) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, cuts) = (carried.clone(), cut.clone());
        tokio::spawn(async move {
            let (mut out, mut back) = (vec![0; 65_536], vec![0; 65_536]);
            let mut client = None;
            let mut down_until = tokio::time::Instant::now();
            loop {
                tokio::select! {
                    Ok((n, from)) = near.recv_from(&mut out) => {
                        client = Some(from);
                        if tokio::time::Instant::now() >= down_until {
                            let _ = far.send_to(&out[..n], server).await;
                        }
                    }
                    Ok((n, _)) = far.recv_from(&mut back) => {
                        if tokio::time::Instant::now() < down_until {
                            continue;
                        }
                        let so_far = count.fetch_add(n, Ordering::Relaxed) + n;
                        let cut = cuts.load(Ordering::Relaxed);
                        if CUTS.get(cut).is_some_and(|at| so_far >= *at) {
                            cuts.store(cut + 1, Ordering::Relaxed);
                            down_until = tokio::time::Instant::now() + OUTAGE;
                        } else if let Some(client) = client {
                            let _ = near.send_to(&back[..n], client).await;
                        }
                    }
                }
            }
        });
        Self { address, carried, cut }
    }
}

async fn write(net: &Net, project: u128) {
    let noise: String = (0..60_000).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect();
    let project_of = Project { name: format!("p{project}"), description: noise, ..Project::default() };
    let create =
        move |tx: &mut luc_engine::tx::Tx<'_>| tx.create(Uuid::from_u128(project), project_of, &[]).map(|_| ());
    net.node().transact::<_, Refusal, _>(create).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_cut_goes_on_in_the_same_state() {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let paris = found(dirs[0].path(), free_address());
    for n in 0..30 {
        write(&paris, n).await;
    }
    let admission = admitted(&paris, dirs[0].path(), "lyon", free_address()).await;
    let link = Link::to(paris.local_addr().unwrap()).await;
    let mut store = RedbStore::open(&dirs[1].path().join("store")).unwrap();
    Replica::prepare(&mut store).unwrap();
    // What an older try left is of another state: it must not be mixed in.
    let mut stale = Batch::default();
    stale.put(Table::Record, b"nonsense".to_vec(), b"left over".to_vec());
    store.commit(&stale).unwrap();
    let before = paris.node().view();
    // While the link is cut, the state goes on: the second half must not be of the newer one.
    let writing = async {
        for n in 0..CUTS.len() {
            while link.cut.load(Ordering::Relaxed) <= n {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            for more in 0..5 {
                write(&paris, 1_000 + u128::try_from(n).unwrap() * 10 + more).await;
            }
        }
    };
    let at = [link.address.to_string()];
    let (taken, ()) = tokio::join!(take_snapshot(&admission.credentials, &at, &mut store), writing);
    taken.unwrap();
    assert!(paris.node().view().frontier() != before.frontier());
    let size: usize = Table::in_snapshot().map(|table| size(&store, table)).sum();
    let carried = link.carried.load(Ordering::Relaxed);
    assert!(carried < size * 3 / 2, "{carried} bytes were sent for a state of {size}");
    let identity = Identity { cloud: admission.credentials.cloud, key: admission.credentials.key };
    let replica = Replica::open(identity, Box::new(store)).unwrap();
    assert_eq!(replica.view().frontier(), before.frontier());
    assert_eq!(replica.view().digest(), before.digest());
}

fn size(store: &RedbStore, table: Table) -> usize {
    let mut size = 0;
    let mut row = |key: &[u8], value: &[u8]| {
        size += key.len() + value.len();
        true
    };
    store.reader().unwrap().scan(table, &[], &mut row).unwrap();
    size
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_kept_no_more_starts_again() {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let paris = found(dirs[0].path(), free_address());
    write(&paris, 1).await;
    let admission = admitted(&paris, dirs[0].path(), "lyon", free_address()).await;
    let mut store = RedbStore::open(&dirs[1].path().join("store")).unwrap();
    Replica::prepare(&mut store).unwrap();
    // Far on in a snapshot that nobody knows, with rows of it.
    let place = luc_sync::wire::SnapshotPlace { snapshot: 7, table: "pool".into(), key: vec![1] };
    let mut old = Batch::default();
    old.put(Table::Meta, b"snapshot".to_vec(), rmp_serde::to_vec(&place).unwrap());
    (0..5_000_u32).for_each(|n| old.put(Table::Tombstone, n.to_be_bytes().to_vec(), vec![1]));
    store.commit(&old).unwrap();
    let at = [paris.local_addr().unwrap().to_string()];
    take_snapshot(&admission.credentials, &at, &mut store).await.unwrap();
    assert_eq!(size(&store, Table::Tombstone), 0);
    let identity = Identity { cloud: admission.credentials.cloud, key: admission.credentials.key };
    let replica = Replica::open(identity, Box::new(store)).unwrap();
    assert_eq!(replica.view().digest(), paris.node().view().digest());
}

/// Begins to take a snapshot, and reads no further than what comes before the rows.
async fn begin(newcomer: &Credentials, from: &Net) -> (Result<SnapshotHead, String>, Connection, RecvStream) {
    let connection = dial(&endpoint(newcomer, MEMBER), from).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    wire::write(&mut send, &Request::Snapshot(None)).await.unwrap();
    let head = wire::read(&mut recv, 4096).await.unwrap();
    (head, connection, recv)
}

/// By how much the file of a store grows while a large record is written over, beside a newcomer that has begun or not.
async fn growth(dir: &Path, has_begun: bool) -> u64 {
    let paris = found(dir, free_address());
    let newcomer = admitted(&paris, dir, "lyon", free_address()).await;
    write(&paris, 1).await;
    let change = async |times| {
        for n in 0..times {
            let rename = move |tx: &mut luc_engine::tx::Tx<'_>| {
                tx.update::<Project, Refusal>(Uuid::from_u128(1), |project| {
                    project.name = format!("renamed {n}");
                    Ok(())
                })
            };
            paris.node().transact::<_, Refusal, _>(rename).await.unwrap();
        }
    };
    let length = || std::fs::metadata(dir.join("store")).unwrap().len();
    // What is free in the file after some changes, later ones use.
    change(20).await;
    let begun = if has_begun { Some(begin(&newcomer.credentials, &paris).await) } else { None };
    let before = length();
    change(300).await;
    assert!(begun.is_none_or(|(head, _, _)| head.is_ok()));
    length() - before
}

/// Broken once to see it fail: a read transaction that is kept in place of the copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_does_not_grow_for_a_newcomer_that_reads_no_further() {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let alone = growth(dirs[0].path(), false).await;
    let beside = growth(dirs[1].path(), true).await;
    eprintln!("by {alone} bytes alone, by {beside} beside a newcomer");
    assert!(beside <= alone + (4 << 20), "by {alone} bytes alone, by {beside} beside a newcomer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_whose_copy_finds_no_room_is_told_and_nothing_else_happens() {
    let dir = tempfile::tempdir().unwrap();
    let paris = found(dir.path(), free_address());
    let newcomer = admitted(&paris, dir.path(), "lyon", free_address()).await;
    let blobs = dir.path().join("blobs");
    std::fs::remove_dir(&blobs).unwrap();
    let (head, ..) = begin(&newcomer.credentials, &paris).await;
    let refused = head.unwrap_err();
    assert!(refused.contains("cannot be copied") && refused.contains("No such file"), "{refused}");
    write(&paris, 1).await;
    std::fs::create_dir(&blobs).unwrap();
    let (head, ..) = begin(&newcomer.credentials, &paris).await;
    assert!(head.is_ok_and(|head| !head.resumed));
    assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), 0, "the copy has no name");
}
