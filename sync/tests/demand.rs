//! When rights are asked for ahead of need, and how many: driven through a real ledger of three holders.
#![allow(clippy::unwrap_used, missing_docs)]

use ed25519_dalek::SigningKey;
use luc_engine::entry::{Member, MemberOp, Subject};
use luc_engine::id::{PoolId, ReplicaId, SiteName};
use luc_engine::ledger::{Amount, Dimension, Pool};
use luc_engine::replica::{Identity, Replica, founded_by};
use luc_engine::store::MemoryStore;
use luc_engine::tx::{Refusal, Shortage};
use luc_sync::demand::{Demand, holders, shares};
use uuid::Uuid;

fn amount(n: u64) -> Amount {
    [(Dimension::Instances, n)].into_iter().collect()
}

fn member(n: u8) -> (SigningKey, Member) {
    let key = SigningKey::from_bytes(&[n + 1; 32]);
    let public_key = key.verifying_key().to_bytes();
    let site = SiteName::new(&format!("site-{n}")).unwrap();
    let replica = ReplicaId::of_key(&public_key);
    let addresses = Vec::new();
    let index = u32::from(n);
    (key, Member { replica, public_key, site, addresses, identity_authority: true, sponsor: true, index })
}

fn id(n: u8) -> ReplicaId {
    member(n).1.replica
}

/// A pool of which the founder has 20, and two others so much.
fn pool(one: u64, other: u64) -> (PoolId, Pool) {
    let (key, founder) = member(0);
    let identity = Identity { cloud: founded_by(&founder.public_key), key };
    let mut replica = Replica::found(identity, Box::new(MemoryStore::default()), founder, 1).unwrap();
    let made = replica.transact::<_, Refusal>(2, |tx| {
        tx.membership(MemberOp::Join(member(1).1))?;
        tx.membership(MemberOp::Join(member(2).1))?;
        let pool = tx.mint(Subject::Quota { project: Uuid::nil() }, amount(20 + one + other))?;
        tx.grant(pool, id(1), amount(one))?;
        tx.grant(pool, id(2), amount(other))?;
        Ok(pool)
    });
    let pool = made.unwrap().0;
    (pool, replica.view().ledger().pool(pool).unwrap().clone())
}

#[test]
fn nothing_is_asked_for_while_there_is_enough_for_a_while() {
    let (id_of_pool, pool) = pool(44, 10);
    let mut demand = Demand::default();
    assert_eq!(demand.ask(id_of_pool, &pool, id(0), 0, |_| true), None, "nobody has claimed");
    demand.claimed(id_of_pool, &amount(20), 1_000);
    assert_eq!(demand.ask(id_of_pool, &pool, id(0), 1_000, |_| true), None, "20 were claimed, and 20 are left");
    demand.claimed(id_of_pool, &amount(1), 1_100);
    // 21 were claimed, 20 are left: up to 42.
    let asked = demand.ask(id_of_pool, &pool, id(0), 1_100, |_| true);
    assert_eq!(asked.map(|(_, amount)| amount), Some(amount(22)));
    assert_eq!(demand.ask(id_of_pool, &pool, id(0), 1_150, |_| true), None, "it was asked for just now");
    assert!(demand.ask(id_of_pool, &pool, id(0), 1_300, |_| true).is_some());
    // What is long ago is no demand.
    assert_eq!(demand.of(id_of_pool, 9_999), amount(21));
    assert_eq!(demand.of(id_of_pool, 19_999), amount(21));
    assert_eq!(demand.of(id_of_pool, 20_000), Amount::default());
    assert_eq!(demand.ask(id_of_pool, &pool, id(0), 30_000, |_| true), None);
}

#[test]
fn the_richest_that_can_be_reached_is_asked_for_at_most_half_and_not_for_small_change() {
    let (id_of_pool, pool) = pool(60, 30);
    let ask = |claimed: u64, reachable: &dyn Fn(ReplicaId) -> bool| {
        let mut demand = Demand::default();
        demand.claimed(id_of_pool, &amount(claimed), 500);
        demand.ask(id_of_pool, &pool, id(0), 500, reachable)
    };
    assert_eq!(ask(90, &|_| true), Some((id(1), amount(30))), "half of what the richest has");
    assert_eq!(ask(90, &|holder| holder == id(2)), Some((id(2), amount(15))));
    assert_eq!(ask(90, &|_| false), None);
    assert_eq!(ask(1_000, &|_| true), None, "30 would not last");
}

#[test]
fn of_a_quota_a_site_that_claims_wants_half_an_even_share_at_least() {
    let (id_of_pool, mut pool) = pool(100, 60);
    let ask = |pool: &Pool, reachable: &dyn Fn(ReplicaId) -> bool| {
        let mut demand = Demand::default();
        demand.claimed(id_of_pool, &amount(1), 500);
        demand.ask(id_of_pool, pool, id(0), 500, reachable)
    };
    assert_eq!(ask(&pool, &|_| true), Some((id(1), amount(40))), "an even share is 60, and 20 are here");
    assert_eq!(ask(&pool, &|holder| holder == id(2)), None, "of what can be reached an even share is 40");
    pool.subject = Subject::Votes;
    assert_eq!(ask(&pool, &|_| true), None, "only quotas are spread");
}

/// Broken once to see it fail: a holder that keeps all that it needs itself.
#[test]
fn a_holder_keeps_what_it_needs_or_the_larger_half() {
    let spare = |free: u64, wanted: u64, keep: u64| amount(free).spare(&amount(wanted), &amount(keep));
    assert_eq!(spare(10, 4, 2), amount(4), "there is enough for both");
    assert_eq!(spare(10, 9, 4), amount(6), "what it needs it keeps");
    assert_eq!(spare(3, 2, 9), amount(1));
    assert_eq!(spare(2, 1, 9), amount(1), "each has one then");
    assert_eq!(spare(1, 1, 9), Amount::default());
    // Each dimension by itself.
    let two = |n: u64, m: u64| -> Amount { [(Dimension::Instances, n), (Dimension::Vcpus, m)].into_iter().collect() };
    assert_eq!(two(2, 50).spare(&two(1, 9), &two(5, 30)), two(1, 9));
    assert_eq!(
        two(1, 50).spare(&two(1, 9), &two(5, 30)),
        amount(0).max(&[(Dimension::Vcpus, 9)].into_iter().collect())
    );
}

/// A shortage of so many, with what others have.
fn short(wanted: u64, elsewhere: &[(u8, u64)]) -> (Shortage, Vec<(ReplicaId, u64)>) {
    let (pool, _) = pool(1, 1);
    let short = Shortage {
        subject: None,
        wanted: amount(wanted),
        capacity: amount(100),
        claimed: Amount::default(),
        free_here: Amount::default(),
        elsewhere: elsewhere.iter().map(|(n, has)| (id(*n), pool, amount(*has))).collect(),
        unconfirmed: Vec::new(),
    };
    let asked = shares(&short, &short.wanted, &holders(&short, &short.wanted));
    let asked = asked.into_iter().map(|(holder, _, share)| (holder, share.get(Dimension::Instances))).collect();
    (short, asked)
}

#[test]
fn one_who_has_enough_is_asked_alone_and_several_at_once_where_nobody_has() {
    assert_eq!(short(7, &[(1, 3), (2, 9)]).1, [(id(2), 7)]);
    assert_eq!(short(10, &[(1, 3), (2, 9), (3, 2)]).1, [(id(2), 9), (id(1), 1)]);
    assert_eq!(short(20, &[(1, 3), (2, 9)]).1, [(id(2), 9), (id(1), 3)], "what there is");
    assert_eq!(short(5, &[]).1, []);
    // Who was asked is not asked again: the rest of the holders have the rest.
    let (short, _) = short(10, &[(1, 3), (2, 9), (3, 2)]);
    let rest: Vec<_> = holders(&short, &amount(4)).into_iter().filter(|(holder, _)| *holder != id(2)).collect();
    let asked: Vec<u64> =
        shares(&short, &amount(4), &rest).iter().map(|(_, _, share)| share.get(Dimension::Instances)).collect();
    assert_eq!(asked, [3, 1]);
}
