//! Pools whose grants count once their root has countersigned them (A5): the attack that they are made for, what an honest
//! cloud does, and what is void.
//!
//! Broken once each, to see these fail: grants that count unconfirmed; an heir that does not countersign; a holder that
//! may; a root that countersigns for whoever has forked.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Cloud, Rogue, key, member};
use luc_engine::entry::{Content, Entry, Header, LedgerOp, MemberOp, Subject};
use luc_engine::id::{EntryId, PoolId, ReplicaId};
use luc_engine::ledger::{Amount, BadLedgerOp, Dimension, Waiting};
use luc_engine::record::{Kind, RecordId};
use luc_engine::replica::{Invalid, Received, Rejection};
use luc_engine::retire::{Request, Retiree};
use luc_engine::tx::{Refusal, Tx};
use uuid::Uuid;

/// What the pool has, and what the holder that lies was given.
const ALL: u64 = 100;
const SHARE: u64 = 10;
const THING: RecordId = RecordId { kind: Kind::Server, id: Uuid::from_u128(5) };

fn id(n: u8) -> ReplicaId {
    member(n).replica
}

fn amount(n: u64) -> Amount {
    [(Dimension::Instances, n)].into_iter().collect()
}

/// A root, three others, and a pool of which each of these has a share.
fn stage(confirmed: bool) -> (Cloud, PoolId) {
    let mut cloud = Cloud::new(3);
    let make = |tx: &mut Tx<'_>| {
        let subject = Subject::Quota { project: Uuid::nil() };
        let pool = if confirmed { tx.mint_confirmed(subject, amount(ALL))? } else { tx.mint(subject, amount(ALL))? };
        (1..=3).try_for_each(|n| tx.grant(pool, id(n), amount(SHARE)))?;
        Ok::<_, Refusal>(pool)
    };
    let (pool, _) = cloud.replicas[0].transact(1, make).unwrap();
    cloud.exchange_all();
    (cloud, pool)
}

fn claim(cloud: &mut Cloud, at: usize, pool: PoolId, n: u64) -> Result<(), Refusal> {
    let claimed = cloud.replicas[at].transact::<_, Refusal>(5, |tx| tx.claim(&[pool], &amount(n), THING, 0));
    cloud.replicas[at].flush().unwrap();
    claimed.map(drop)
}

/// What one replica holds reaches another, in whatever order it can be applied.
fn send(cloud: &mut Cloud, from: usize, to: usize) {
    cloud.replicas[from].flush().unwrap();
    let mut rest: Vec<Vec<u8>> = cloud.log(from).into_values().collect();
    let mut before = usize::MAX;
    while rest.len() < before {
        before = rest.len();
        rest.retain(|bytes| matches!(cloud.replicas[to].receive(bytes), Received::Waiting(_)));
    }
    cloud.replicas[to].flush().unwrap();
}

/// Grants all that 3 holds to `to`, as the next entry of its chain.
fn grant_all(cloud: &Cloud, pool: PoolId, to: u8) -> (Entry, Entry) {
    let (view, mallory) = (cloud.replicas[3].view(), Rogue::new(3));
    let last = Entry::decode(
        cloud.log(3).iter().rfind(|(entry, _)| entry.author == id(3)).map_or(&[], |(_, bytes)| bytes.as_slice()),
    );
    let (number, previous) = last.map(|last| (last.id().number, last.hash())).unwrap_or_default();
    let header = |number, previous, ledger| Header { number, previous, ledger, ..mallory.header(view.frontier()) };
    let grant = LedgerOp::Grant { pool, to: id(to), amount: amount(SHARE) };
    let first = Entry::sign(header(number + 1, previous, vec![grant]), Content::default(), &key(3));
    // Something more behind it, so that the branches differ in length too.
    let second = Header { seen: vec![], ..header(number + 2, first.hash(), vec![]) };
    let second = Header { members: vec![MemberOp::Readdress { addresses: vec![] }], ..second };
    (first, Entry::sign(second, Content::default(), &key(3)))
}

fn take(cloud: &mut Cloud, to: usize, entry: &Entry) {
    let received = cloud.replicas[to].receive(entry.bytes());
    assert!(matches!(received, Received::Applied), "{received:?}");
    cloud.replicas[to].flush().unwrap();
}

/// 3 grants one share twice: to 1 in the half of the root, and to 2 in the other. Says how much of it was claimed in both.
fn attack(confirmed: bool) -> (u64, Cloud) {
    let (mut cloud, pool) = stage(confirmed);
    let (to_one, more) = grant_all(&cloud, pool, 1);
    let (to_two, _) = grant_all(&cloud, pool, 2);
    // The half of the root.
    take(&mut cloud, 0, &to_one);
    take(&mut cloud, 1, &to_one);
    take(&mut cloud, 1, &more);
    cloud.replicas[0].confirm(6).unwrap();
    send(&mut cloud, 0, 1);
    // The other half: nobody there can speak for the root.
    take(&mut cloud, 2, &to_two);
    assert!(!cloud.replicas[2].confirm(6).unwrap());
    // Both have a share of their own; what one of them can spend beyond it comes from the grant.
    let mut spent = 0;
    for at in [1, 2] {
        claim(&mut cloud, at, pool, SHARE).unwrap();
        if claim(&mut cloud, at, pool, SHARE).is_ok() {
            spent += SHARE;
        }
    }
    // When the halves meet, the fork shows.
    let other = cloud.log(2).into_iter().find(|(entry, _)| *entry == to_two.id()).unwrap().1;
    let refused = cloud.replicas[0].receive(&other);
    assert!(matches!(refused, Received::Refused(_)), "{refused:?}");
    (spent, cloud)
}

#[test]
fn one_right_granted_twice_counts_twice_in_a_plain_pool_and_once_in_a_confirmed_one() {
    assert_eq!(attack(false).0, 2 * SHARE, "bounded by the share of the one that lies");
    let (spent, cloud) = attack(true);
    assert_eq!(spent, SHARE);
    // The other receiver holds what it was granted, and cannot spend it.
    let ledger = cloud.replicas[2].view().ledger();
    let (_, pool) = ledger.quota_pools(Uuid::nil()).next().unwrap();
    assert_eq!((pool.free(id(2)), pool.unconfirmed(id(2))), (Amount::default(), amount(SHARE)));
    assert!(ledger.is_conserved());
}

#[test]
fn whoever_has_forked_gets_no_countersignature() {
    let (mut cloud, pool) = stage(true);
    let (to_one, more) = grant_all(&cloud, pool, 1);
    let (to_two, _) = grant_all(&cloud, pool, 2);
    take(&mut cloud, 0, &to_one);
    let refused = cloud.replicas[0].receive(to_two.bytes());
    assert!(matches!(refused, Received::Refused(Rejection::Fork { .. })), "{refused:?}");
    assert!(!cloud.replicas[0].confirm(6).unwrap(), "which of the branches counts is not settled");
    drop(more);
}

#[test]
fn honest_grants_are_spent_once_the_root_has_spoken_and_the_refusal_says_so() {
    let (mut cloud, pool) = stage(true);
    // What the root granted needs no second word.
    claim(&mut cloud, 1, pool, SHARE).unwrap();
    cloud.replicas[2].transact::<_, Refusal>(3, |tx| tx.grant(pool, id(1), amount(4))).unwrap();
    send(&mut cloud, 2, 1);
    let Err(Refusal::Shortage(short)) = claim(&mut cloud, 1, pool, 4) else { panic!("it has no word of the root") };
    assert_eq!(short.unconfirmed, [(id(0), amount(4))]);
    assert!(short.suffices_elsewhere(), "it is not exhausted");
    assert!(short.to_string().contains("4 instances were granted to this replica and wait"), "{short}");
    // Nor can it be granted on, burnt, or taken back by the giver.
    for at in [1, 2] {
        let all = amount(if at == 1 { 4 } else { SHARE });
        assert!(cloud.replicas[at].transact::<_, Refusal>(3, |tx| tx.grant(pool, id(3), all.clone())).is_err());
    }
    send(&mut cloud, 2, 0);
    assert!(cloud.replicas[0].tend(4, None).unwrap());
    assert!(!cloud.replicas[0].confirm(4).unwrap(), "once is enough");
    send(&mut cloud, 0, 1);
    claim(&mut cloud, 1, pool, 4).unwrap();
    cloud.exchange_all();
    let digests: Vec<_> = cloud.replicas.iter().map(|replica| replica.view().digest()).collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    // After a restart, too, nothing waits.
    cloud.restart(0);
    assert_eq!(cloud.replicas[0].view().ledger().waiting().count(), 0);
}

#[test]
fn what_waits_waits_on_the_disk_too() {
    let (mut cloud, pool) = stage(true);
    cloud.replicas[2].transact::<_, Refusal>(3, |tx| tx.grant(pool, id(1), amount(4))).unwrap();
    cloud.exchange_all();
    cloud.restart(0);
    assert_eq!(cloud.replicas[0].view().ledger().waiting().count(), 1);
    assert!(cloud.replicas[0].confirm(4).unwrap());
    cloud.exchange_all();
    claim(&mut cloud, 1, pool, SHARE + 4).unwrap();
}

#[test]
fn the_heir_of_a_root_countersigns_for_it() {
    let (mut cloud, pool) = stage(true);
    for _ in 0..3 {
        for replica in &mut cloud.replicas {
            replica.tend(2, None).unwrap();
        }
        cloud.exchange_all();
    }
    cloud.replicas[2].transact::<_, Refusal>(3, |tx| tx.grant(pool, id(1), amount(4))).unwrap();
    // The root never hears of it. The others retire it.
    let set = vec![Retiree { replica: id(0), heir: id(3) }];
    let request = MemberOp::Retire(Request { set, force: false });
    cloud.replicas[3].transact::<_, Refusal>(4, |tx| tx.membership(request)).unwrap();
    for _ in 0..4 {
        for (from, to) in [(1, 2), (2, 3), (3, 1), (1, 3), (3, 2), (2, 1)] {
            send(&mut cloud, from, to);
            cloud.replicas[to].tend(5, None).unwrap();
        }
    }
    assert!(cloud.replicas[1].view().retired().contains(id(0)));
    claim(&mut cloud, 1, pool, SHARE + 4).unwrap();
}

#[test]
fn what_is_void_and_why() {
    let (mut cloud, pool) = stage(true);
    let subject = Subject::Quota { project: Uuid::from_u128(9) };
    let (plain, _) = cloud.replicas[0].transact::<_, Refusal>(2, |tx| tx.mint(subject, amount(1))).unwrap();
    let (_, grant) = cloud.replicas[2].transact::<_, Refusal>(3, |tx| tx.grant(pool, id(1), amount(4))).unwrap();
    let granted = Waiting { pool, to: id(1), grant: grant.unwrap(), index: 0 };
    let confirm = |cloud: &mut Cloud, at: usize, granted| match cloud.replicas[at]
        .transact::<_, Refusal>(4, |tx| tx.confirm(granted))
    {
        Err(Refusal::Invalid(Invalid::Ledger { source, .. })) => Err(source),
        other => other.map(drop).map_err(|error| panic!("{error}")),
    };
    assert_eq!(confirm(&mut cloud, 0, granted), Err(BadLedgerOp::UnknownGrant(granted.grant)), "not yet seen");
    cloud.exchange_all();
    for at in [1, 2, 3] {
        assert_eq!(confirm(&mut cloud, at, granted), Err(BadLedgerOp::NotRoot(pool)), "only the root may");
    }
    let nowhere = PoolId { entry: EntryId { author: id(0), number: 999 }, index: 0 };
    assert_eq!(confirm(&mut cloud, 0, Waiting { pool: nowhere, ..granted }), Err(BadLedgerOp::UnknownPool(nowhere)));
    assert_eq!(confirm(&mut cloud, 0, Waiting { pool: plain, ..granted }), Err(BadLedgerOp::NotRoot(plain)));
    // What names no grant, or one that is countersigned, is void, and changes nothing.
    let digest = |cloud: &Cloud| cloud.replicas[0].view().digest();
    for other in [Waiting { index: 7, ..granted }, Waiting { to: id(2), ..granted }] {
        let before = digest(&cloud);
        assert_eq!(confirm(&mut cloud, 0, other), Ok(()));
        assert_eq!(digest(&cloud), before);
    }
    assert_eq!(confirm(&mut cloud, 0, granted), Ok(()));
    let before = digest(&cloud);
    assert_eq!(confirm(&mut cloud, 0, granted), Ok(()));
    assert_eq!(digest(&cloud), before);
    cloud.exchange_all();
    claim(&mut cloud, 1, pool, SHARE + 4).unwrap();
}
