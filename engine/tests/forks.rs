//! A member that signs two entries with one number (`PROTOCOL.md`, M3): it is retired by its own proof, both branches stay in
//! everybody's history as far as honest members rest on them, what was spent twice is a debt, and all who are honest agree. So they
//! do where it has sealed another twice (R11).
//!
//! Broken once, to see these fail: a round that takes effect by its seals, without assents.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeSet;

use common::world::{World, amount, id};
use common::{as_store, snapshot};
use luc_engine::entry::{Frontier, MemberOp, Subject, Tip};
use luc_engine::id::{ClaimId, EntryId, PoolId};
use luc_engine::interval::{Interval, Intervals};
use luc_engine::ledger::Dimension;
use luc_engine::record::{AddressPool, Kind, Project, RecordId};
use luc_engine::replica::{Received, Rejection, ReplaceError, Replica};
use luc_engine::retire::VOTES;
use luc_engine::store::{MemoryStore, Store};
use luc_engine::tx::Refusal;
use proptest::prelude::*;
use uuid::Uuid;

/// A second replica with the identity of one that is there, and what that holds now: whatever both write is a fork.
fn twin(world: &World, of: u8) -> (Replica, MemoryStore) {
    let original = &world.cloud.replicas[usize::from(of)];
    let mut disk = MemoryStore::default();
    Replica::prepare(&mut disk).unwrap();
    disk.commit(&snapshot(original)).unwrap();
    (Replica::open(original.identity().clone(), Box::new(disk.clone())).unwrap(), disk)
}

/// Puts one at the end of the list.
fn add_twin(world: &mut World, of: u8) -> u8 {
    let (replica, disk) = twin(world, of);
    world.cloud.replicas.push(replica);
    world.cloud.disks.push(disk);
    u8::try_from(world.cloud.replicas.len() - 1).unwrap()
}

/// A cloud of honest members 0 to `others - 1`, and of the member `others`, who has a twin at the end of the list.
fn with_twin(others: u8) -> (World, u8, u8) {
    let mut world = World::new(others);
    let twin = add_twin(&mut world, others);
    (world, others, twin)
}

/// The same, and all have a pool of four addresses, which are the liar's.
fn with_addresses(others: u8) -> (World, u8, u8, PoolId) {
    let mut world = World::new(others);
    let addresses = Intervals::from_iter(Interval::new(1, 4));
    let (pool, _) = world
        .replica(others)
        .transact::<_, Refusal>(3, |tx| {
            tx.create(OF.id, AddressPool { name: "p".into(), ..AddressPool::default() }, &[])?;
            tx.mint(Subject::Addresses { of: OF }, addresses.into())
        })
        .unwrap();
    world.tend(others);
    (0..others).for_each(|n| world.send(others, n));
    let twin = add_twin(&mut world, others);
    (world, others, twin, pool)
}

/// Claims an address, the lowest that is free there.
fn take(world: &mut World, by: u8, pool: PoolId) -> Result<(), Refusal> {
    let any = [(Dimension::Addresses, 1)].into_iter().collect();
    let taken = world.replica(by).transact::<_, Refusal>(3, |tx| tx.claim(&[pool], &any, OF, 0));
    world.tend(by);
    taken.map(drop)
}

/// Releases an address that it has, if any.
fn give_back(world: &mut World, by: u8, pool: PoolId) {
    let me = world.replica(by).identity().replica();
    let claims = world.cloud.replicas[usize::from(by)].view().ledger().claims();
    let its = claims.filter(|(claim, row)| claim.entry.author == me && row.pool == pool).map(|(claim, _)| *claim);
    if let Some(claim) = its.min() {
        let released = world.replica(by).transact::<_, Refusal>(3, |tx| tx.release(claim));
        assert!(matches!(released, Ok(_) | Err(Refusal::Fenced(_))), "{released:?}");
        world.tend(by);
    }
}

fn honest(liar: u8) -> Vec<u8> {
    (0..liar).collect()
}

fn acknowledged_are_live(world: &World, at: u8, by: &[u8]) {
    let view = world.cloud.replicas[usize::from(at)].view();
    for claim in world.claimed.iter().filter(|claim| by.iter().any(|n| id(*n) == claim.author)) {
        let live = view.ledger().claims().any(|(id, _)| id.entry == *claim);
        assert!(live, "{claim} was acknowledged, and is lost at {at}");
    }
}

const PROJECT: Uuid = Uuid::from_u128(77);
const OF: RecordId = RecordId { kind: Kind::AddressPool, id: Uuid::from_u128(78) };

/// Changes a record that all have.
fn describe(world: &mut World, by: u8, project: Uuid, text: &str) {
    let done = world.replica(by).transact::<_, Refusal>(3, |tx| {
        tx.update::<Project, Refusal>(project, |project| {
            project.description = text.into();
            Ok(())
        })
    });
    assert!(matches!(done, Ok(_) | Err(Refusal::Fenced(_))), "{done:?}");
    world.tend(by);
}

#[test]
fn two_halves_that_rest_on_two_branches_agree_again() {
    let (mut world, liar, twin) = with_twin(4);
    // One right of ten goes to 0 and to 2, and both spend it.
    world.grant(liar, 0, 10).unwrap();
    world.send(liar, 0);
    world.grant(twin, 2, 10).unwrap();
    world.send(twin, 2);
    for n in [0, 2] {
        (0..15).for_each(|_| world.claim(n).unwrap());
    }
    world.settle(&[0, 1]);
    world.settle(&[2, 3]);
    assert!(world.cloud.replicas[1].view().branches().is_empty(), "nobody knows yet");
    let honest = honest(liar);
    world.settle(&honest);
    world.assert_equal(&honest);
    assert!(world.is_retired(1, liar));
    for n in &honest {
        acknowledged_are_live(&world, *n, &honest);
        let pool = world.cloud.replicas[usize::from(*n)].view().ledger().pool(world.pool).unwrap();
        // Ten rights were spent twice; the heir is 0 or 2, whoever spoke first, and has free ones to pay with.
        let free: u64 = pool.accounts().map(|(_, free)| free.get(Dimension::Instances)).sum();
        let claimed = pool.claimed.get(Dimension::Instances);
        assert_eq!(free + claimed, 100 + pool.overdraft().get(Dimension::Instances));
        assert_eq!(claimed, 30);
    }
    // Whatever comes to the heir pays first; the rest is its own.
    let heir = world.replica(1).view().retired().heir(id(liar));
    let heir = honest.iter().copied().find(|n| Some(id(*n)) == heir).unwrap();
    if heir != 0 {
        world.grant(0, heir, 20).unwrap();
        world.settle(&honest);
    }
    world.claim(heir).unwrap();
}

#[test]
fn what_was_claimed_in_a_branch_is_released_in_it() {
    let (mut world, liar, twin) = with_twin(4);
    for (by, to) in [(liar, 0), (twin, 2)] {
        world.claim(by).unwrap();
        world.claim(by).unwrap();
        let claim = ClaimId { entry: world.claimed.pop().unwrap(), index: 0 };
        world.replica(by).transact::<_, Refusal>(3, |tx| tx.release(claim)).unwrap();
        world.tend(by);
        world.send(by, to);
        world.claim(to).unwrap();
    }
    world.settle(&[0, 1]);
    world.settle(&[2, 3]);
    let honest = honest(liar);
    world.settle(&honest);
    world.assert_equal(&honest);
    for n in &honest {
        let quarantine = world.cloud.replicas[usize::from(*n)].quarantine();
        assert!(quarantine.keys().all(|author| *author == id(liar)), "{quarantine:?}");
        acknowledged_are_live(&world, *n, &honest);
    }
}

#[test]
fn a_branch_that_nobody_rests_on_is_void_and_its_author_is_retired() {
    let (mut world, liar, twin) = with_twin(3);
    world.grant(liar, 0, 4).unwrap();
    world.send(liar, 0);
    world.settle(&[0, 1, 2]);
    world.grant(twin, 1, 9).unwrap();
    world.send(twin, 1);
    let blamed = &world.cloud.replicas[1].quarantine()[&id(liar)];
    assert!(matches!(blamed, Rejection::Fork { .. }), "{blamed}");
    world.settle(&[0, 1, 2]);
    world.assert_equal(&[0, 1, 2]);
    assert!(world.is_retired(2, liar));
    assert!(world.cloud.replicas[0].view().branches().is_empty());
    let pool = world.cloud.replicas[0].view().ledger().pool(world.pool).unwrap();
    assert_eq!(pool.overdraft(), amount(0));
    assert!(world.cloud.replicas[usize::from(liar)].fence().is_none());
    world.send(0, liar);
    assert!(world.cloud.replicas[usize::from(liar)].fence().is_some(), "it is told so");
}

#[test]
fn what_is_renamed_is_found_again_after_a_restart() {
    let (mut world, liar, twin) = with_twin(3);
    world.claim(liar).unwrap();
    world.claim(liar).unwrap();
    world.send(liar, 0);
    world.claim(twin).unwrap();
    world.send(twin, 1);
    world.claim(0).unwrap();
    world.claim(1).unwrap();
    world.settle(&[0, 1, 2]);
    world.assert_equal(&[0, 1, 2]);
    for n in 0..3 {
        let before = (world.replica(n).view().digest(), world.replica(n).view().frontier().clone());
        let entries = world.cloud.log(usize::from(n)).len();
        world.cloud.restart(usize::from(n));
        let view = world.replica(n).view();
        assert_eq!((view.digest(), view.frontier().clone()), before);
        assert!(view.branches().is_forked(id(liar)));
        assert!(entries > 0 && world.cloud.log(usize::from(n)).len() == entries);
    }
    // And a newcomer that gets it from one of them.
    world.cloud.join(9);
    let newcomer = world.cloud.replicas.last().unwrap().view();
    assert!(newcomer.branches().is_forked(id(liar)));
}

#[test]
fn a_record_that_both_branches_changed_is_the_same_everywhere() {
    let (mut world, liar, twin) = with_twin(3);
    world.replica(0).transact::<_, Refusal>(3, |tx| tx.create(PROJECT, Project::default(), &[])).unwrap();
    world.tend(0);
    for n in 1..5 {
        world.send(0, n);
    }
    describe(&mut world, liar, PROJECT, "one");
    describe(&mut world, twin, PROJECT, "other");
    describe(&mut world, twin, PROJECT, "another");
    world.send(liar, 0);
    world.send(twin, 1);
    // Honest members build on what they see.
    describe(&mut world, 0, PROJECT, "by 0");
    describe(&mut world, 1, PROJECT, "by 1");
    world.settle(&[0, 1, 2]);
    world.assert_equal(&[0, 1, 2]);
    // And can go on.
    describe(&mut world, 2, PROJECT, "in the end");
    world.settle(&[0, 1, 2]);
    world.assert_equal(&[0, 1, 2]);
    let held = world.replica(1).view().held(RecordId { kind: Kind::Project, id: PROJECT }).cloned();
    let text = format!("{held:?}");
    assert!(text.contains("in the end"), "{text}");
}

#[test]
fn votes_that_a_fork_hands_out_twice_make_two_majorities_of_nobody() {
    let (mut world, liar, twin) = with_twin(4);
    let (votes, share) = {
        let (votes, pool) = world.cloud.replicas[0].view().ledger().votes().unwrap();
        (votes, pool.free(id(liar)))
    };
    // Two halves of a split, two of five members each, are about to retire each other, and the fifth votes in both.
    world.retire(1, &[(2, 1), (3, 1), (liar, 1)], false).unwrap();
    world.retire(3, &[(0, 3), (1, 3), (liar, 3)], false).unwrap();
    for (from, to) in [(liar, 1), (twin, 3)] {
        let all = share.clone();
        world.replica(from).transact::<_, Refusal>(3, |tx| tx.grant(votes, id(to), all)).unwrap();
        world.tend(from);
        world.send(from, to);
    }
    world.settle(&[0, 1]);
    world.settle(&[2, 3]);
    let unconfirmed = |at: u8, of: u8| {
        let (_, pool) = world.cloud.replicas[usize::from(at)].view().ledger().votes().unwrap();
        pool.unconfirmed(id(of))
    };
    assert_eq!((unconfirmed(0, 1), unconfirmed(2, 3)), (share.clone(), share));
    assert!(!world.is_retired(0, 2) && !world.is_retired(1, 3));
    assert!(!world.is_retired(2, 0) && !world.is_retired(3, 1));
}

#[test]
fn who_says_that_it_has_seen_what_nobody_wrote_waits_for_ever_and_harms_nobody() {
    let mut world = World::new(3);
    world.settle(&[0, 1, 2, 3]);
    // A rogue that knows the chain of 3 names entries of 0 in forms that do not exist.
    let rogue = world.rogue(0, 3);
    let mut seen = Frontier::default();
    seen.set(id(0), Tip { number: world.replica(1).view().frontier().number(id(0)), hash: 1 });
    let attack = rogue.sign(rogue.header(&seen), vec![]);
    for n in 0..3 {
        let received = world.replica(n).receive(attack.bytes());
        assert!(matches!(received, Received::Waiting(EntryId { author, .. }) if author == id(0)), "{received:?}");
        assert!(world.replica(n).quarantine().is_empty(), "nobody is blamed for what another says of it");
        world.claim(n).unwrap();
    }
    world.settle(&[0, 1, 2]);
    world.assert_equal(&[0, 1, 2]);
}

#[test]
fn a_member_that_forks_twice_leaves_all_agreed() {
    let liar = 4;
    let (mut world, _, twin_of_it) = with_twin(liar);
    world.grant(liar, 0, 5).unwrap();
    world.grant(twin_of_it, 0, 6).unwrap();
    let second = add_twin(&mut world, twin_of_it);
    world.claim(twin_of_it).unwrap();
    world.claim(second).unwrap();
    world.grant(liar, 0, 1).unwrap();
    world.send(twin_of_it, 1);
    world.send(second, 2);
    world.send(liar, 0);
    let honest = honest(liar);
    world.settle(&honest);
    world.assert_equal(&honest);
}

#[test]
fn an_address_that_branches_claim_and_release_counts_alike_in_whatever_order_they_come() {
    let (mut world, liar, twin, pool) = with_addresses(4);
    let second = add_twin(&mut world, twin);
    let branches = [(liar, 0), (twin, 1), (second, 2)];
    for (by, to) in branches {
        // What each writes first is another entry.
        world.grant(by, to, 1).unwrap();
        take(&mut world, by, pool).unwrap();
        if by != second {
            give_back(&mut world, by, pool);
        }
        world.send(by, to);
        world.claim(to).unwrap();
    }
    let honest = honest(liar);
    world.settle(&honest);
    world.assert_equal(&honest);
    let claimed = world.replica(0).view().ledger().pool(pool).unwrap().claimed.clone();
    assert_eq!(claimed.addresses(), &Intervals::single(1), "the third has not released it");
}

#[test]
fn what_leaves_a_log_after_what_a_member_rests_on_is_no_other_branch() {
    let (mut world, liar, twin_of_it) = with_twin(4);
    world.grant(liar, 0, 1).unwrap();
    world.grant(twin_of_it, 0, 2).unwrap();
    world.send(liar, 1);
    world.send(twin_of_it, 0);
    let second = add_twin(&mut world, twin_of_it);
    world.claim(twin_of_it).unwrap();
    world.send(liar, 3);
    world.claim(second).unwrap();
    world.send(twin_of_it, 2);
    // 0 has rested on what both have in common, and then shows the one; 2 shows the other.
    world.claim(0).unwrap();
    world.send(second, 0);
    let honest = honest(liar);
    world.settle(&honest);
    world.assert_equal(&honest);
}

#[test]
fn what_changed_before_a_fork_shows_is_told_all_the_same() {
    let (mut world, liar, twin) = with_twin(4);
    world.replica(0).transact::<_, Refusal>(3, |tx| tx.create(PROJECT, Project::default(), &[])).unwrap();
    world.tend(0);
    (1..=twin).for_each(|n| world.send(0, n));
    for (by, to) in [(liar, 0), (twin, 2)] {
        world.grant(by, to, 10).unwrap();
        world.send(by, to);
        world.claim(to).unwrap();
    }
    describe(&mut world, 1, PROJECT, "changed");
    // In one flush: the change, and what shows the fork.
    let logs = [1, 2].map(|n| world.cloud.log(n));
    for bytes in logs.iter().flat_map(|log| log.values().chain(log.values())) {
        drop(world.replica(0).receive(bytes));
    }
    let flushed = world.replica(0).flush().unwrap();
    assert!(world.replica(0).view().branches().is_forked(id(liar)));
    assert!(flushed.records.contains(&RecordId { kind: Kind::Project, id: PROJECT }), "{:?}", flushed.records);
}

/// The larger part has heard one branch of 4's log and dropped it for want of room, while 3, away, rests on the other one.
fn dropped_branch() -> (World, u8) {
    dropped_branch_of(3, 4)
}

/// The same, where the other branch has so many entries, and so many of 3 rest on it.
fn dropped_branch_of(entries: usize, rests: usize) -> (World, u8) {
    let (mut world, liar, twin) = with_twin(4);
    let all = [0, 1, 2, 3];
    for n in all {
        world.replica(n).transact::<_, Refusal>(3, |tx| tx.membership(MemberOp::Held)).unwrap();
        world.tend(n);
    }
    world.settle(&all);
    for _ in 0..4 {
        world.claim(liar).unwrap();
    }
    for _ in 0..entries {
        world.claim(twin).unwrap();
    }
    world.send(liar, 0);
    world.send(twin, 3);
    (0..rests).for_each(|_| world.claim(3).unwrap());
    for n in 0..3 {
        world.settle(&all[..3]);
        world.claim(n).unwrap();
    }
    world.settle(&all[..3]);
    for n in 0..3 {
        world.replica(n).limit_log(500);
        while world.replica(n).fold().unwrap() > 0 {}
        let log = world.cloud.in_log(n.into());
        assert_eq!(log.keys().filter(|entry| entry.author == id(liar)).count(), 1, "the newest alone is in the log");
    }
    (world, liar)
}

/// What is in one's log reaches another.
fn send_log(world: &mut World, from: u8, to: u8) {
    let log = world.cloud.in_log(from.into());
    world.deliver(to, log.into_values().collect());
}

/// Another gets nothing but the last entry of a branch, which shows that there is one.
fn show_last(world: &mut World, liar: u8, from: u8, to: u8) {
    let log = world.cloud.in_log(from.into());
    let last = log.iter().rfind(|(entry, _)| entry.author == id(liar)).map(|(_, bytes)| bytes.clone());
    world.deliver(to, last.into_iter().collect());
    world.tend(to);
}

/// All exchange what they have, agree, and have lost nothing that was acknowledged.
fn agree(world: &mut World, honest: &[u8]) {
    world.settle(honest);
    world.assert_equal(honest);
    honest.iter().for_each(|n| acknowledged_are_live(world, *n, honest));
}

/// Puts what one holds in place of another's state.
fn replace(world: &mut World, at: u8, from: u8) -> Result<(), ReplaceError> {
    let state = as_store(world.replica(from));
    let replaced = world.replica(at).replace(&*state.reader().unwrap(), id(from));
    world.tend(at);
    replaced
}

/// *Breaks otherwise:* nobody in the larger part can tell where the other branch leaves the log, nor anybody in the smaller one
/// get the first: they never take each other's entries again, and what 3 has acknowledged is lost.
#[test]
fn a_log_is_split_where_it_was_dropped_for_want_of_room() {
    let (mut world, liar) = dropped_branch();
    let before = world.replica(3).view().frontier().clone();
    // A state that does not know of the fork is no place for what 3 has on the other branch.
    let refused = replace(&mut world, 3, 0);
    assert!(matches!(&refused, Err(ReplaceError::Fork(entry)) if entry.author == id(liar)), "{refused:?}");
    assert_eq!(world.replica(3).view().frontier(), &before);
    (0..3).for_each(|n| send_log(&mut world, 3, n));
    for n in 0..3 {
        assert!(world.replica(n).view().branches().is_forked(id(liar)), "{n}");
        assert!(
            world.replica(n).view().frontier().holds(EntryId { author: id(3), number: before.number(id(3)) }),
            "{n}"
        );
    }
    send_log(&mut world, 0, 3);
    assert!(!world.replica(3).view().branches().is_forked(id(liar)), "the branch is in nobody's log");
    replace(&mut world, 3, 0).unwrap();
    let honest = [0, 1, 2, 3];
    agree(&mut world, &honest);
    for n in honest {
        assert!(world.is_retired(n, liar), "{n}");
        assert!(world.replica(n).view().ledger().is_conserved());
        world.cloud.restart(usize::from(n));
    }
    world.assert_equal(&honest);
}

/// *Breaks otherwise:* the larger part has the proof of the fork before anything that rests on the other branch, and has that branch
/// from nobody; 3 lacks what was dropped, and takes no state that has another form of what it holds: for ever.
#[test]
fn a_state_that_knows_of_a_fork_takes_the_place_of_another_branch() {
    for rests in [true, false] {
        let (mut world, liar) = dropped_branch_of(4, if rests { 4 } else { 0 });
        let before = world.replica(3).view().frontier().number(id(3));
        show_last(&mut world, liar, 3, 0);
        world.settle(&[0, 1, 2]);
        assert!(!world.replica(0).view().branches().is_forked(id(liar)), "its branch is known to 3 alone");
        replace(&mut world, 3, 0).unwrap();
        world.cloud.restart(3);
        let honest = [0, 1, 2, 3];
        agree(&mut world, &honest);
        for n in honest {
            assert!(world.replica(n).view().frontier().number(id(3)) >= before, "what 3 has written is held by {n}");
            assert_eq!(world.replica(n).view().branches().is_forked(id(liar)), rests, "{n}");
            assert!(world.is_retired(n, liar), "{n}");
            assert!(world.replica(n).view().ledger().is_conserved());
        }
    }
}

/// *Breaks otherwise:* nobody rests on the branch that 3 holds, so that nobody else ever hears of it, and 3 waits for ever for a state
/// that knows of a fork.
#[test]
fn a_branch_that_nobody_rests_on_gives_way_though_nobody_knows_of_the_fork() {
    for entries in [2, 4, 6] {
        let (mut world, liar) = dropped_branch_of(entries, 0);
        replace(&mut world, 3, 0).unwrap();
        world.cloud.restart(3);
        let honest = [0, 1, 2, 3];
        agree(&mut world, &honest);
        for n in honest {
            assert!(!world.replica(n).view().branches().is_forked(id(liar)), "{n}");
        }
    }
}

/// *Breaks otherwise:* 1 has dropped what it holds of the log that is divided there, and takes that for lost by the state of who
/// holds it as a branch: where the other branch is dropped too, 1 never gets that.
#[test]
fn a_state_with_both_branches_has_what_was_dropped_of_one() {
    let (mut world, liar) = dropped_branch();
    send_log(&mut world, 3, 0);
    let both = world.replica(0).view().frontier().clone();
    let less = replace(&mut world, 0, 1);
    assert!(less.is_err(), "what 0 holds besides is dropped");
    assert_eq!(world.replica(0).view().frontier(), &both);
    replace(&mut world, 1, 0).unwrap();
    assert!(world.replica(1).view().branches().is_forked(id(liar)));
    let honest = [0, 1, 2, 3];
    for to in [2, 3] {
        send_log(&mut world, 1, to);
    }
    replace(&mut world, 3, 1).unwrap();
    agree(&mut world, &honest);
}

/// *Breaks otherwise:* what is in a branch's log is taken for another's than it is, and the state that lacks it is refused.
#[test]
fn a_branch_that_a_state_lacks_is_replayed_on_it() {
    let (mut world, liar, twin) = with_twin(3);
    for (by, to) in [(liar, 0), (twin, 1)] {
        (0..3).for_each(|_| world.claim(by).unwrap());
        world.send(by, to);
        world.claim(to).unwrap();
    }
    show_last(&mut world, liar, 0, 1);
    send_log(&mut world, 1, 0);
    world.claim(0).unwrap();
    assert!(world.replica(0).view().branches().is_forked(id(liar)), "0 holds both");
    assert!(!world.replica(1).view().branches().is_forked(id(liar)), "1 knows of the other");
    let (before, digest) = (world.replica(0).view().frontier().clone(), world.replica(0).view().digest());
    replace(&mut world, 0, 1).unwrap();
    world.cloud.restart(0);
    assert_eq!(world.replica(0).view().frontier(), &before);
    assert_eq!(world.replica(0).view().digest(), digest);
}

/// *Breaks otherwise:* in each branch the liar has given votes to a newcomer, and then it seals 4 in one of them. Who held the other branch
/// by then counts for that seal what it had less both gifts, and who did not less one; so a retirement could take effect at some only.
#[test]
fn a_seal_counts_the_votes_of_its_own_branch_whichever_came_first() {
    let (mut world, liar, twin) = with_twin(5);
    world.claim(liar).unwrap();
    world.cloud.admit(9);
    world.tend(0);
    for branch in [liar, twin] {
        let before = votes_given(&world, branch, liar);
        world.send(0, branch);
        assert!(votes_given(&world, branch, liar) > before, "it hands votes to the newcomer");
    }
    world.retire(0, &[(4, 0)], false).unwrap();
    world.send(0, liar);
    for (branch, to) in [(liar, 0), (twin, 1)] {
        world.send(branch, to);
        world.claim(to).unwrap();
    }
    for (from, to) in [(0, 2), (1, 2), (1, 3), (0, 3)] {
        world.send(from, to);
    }
    let honest = [0, 1, 2, 3];
    honest[2..].iter().for_each(|n| assert!(world.replica(*n).view().branches().is_forked(id(liar)), "{n}"));
    world.settle(&honest);
    world.assert_equal(&honest);
    for n in honest {
        world.replica(n).transact::<_, Refusal>(3, |tx| tx.membership(MemberOp::Held)).unwrap();
        world.tend(n);
    }
    world.settle(&honest);
    for n in honest {
        while world.replica(n).fold().unwrap() > 0 {}
        world.cloud.restart(usize::from(n));
    }
    world.assert_equal(&honest);
}

/// How many votes a member has given to others, or has not.
fn votes_given(world: &World, at: u8, of: u8) -> u64 {
    let (_, pool) = world.cloud.replicas[usize::from(at)].view().ledger().votes().unwrap();
    VOTES - pool.free(id(of)).get(Dimension::Votes)
}

/// *Breaks otherwise:* the hash of the longer branch's first entry is forgotten, since nobody can name that any more, and any entry
/// with its number is taken for it: so the newcomer, which names the other branch too, has another past here than there.
#[test]
fn what_names_a_short_branch_is_not_taken_for_a_folded_entry_of_a_long_one() {
    // Branches are looked through in the order of their names, which are hashes.
    (0..8).for_each(|n| name_both_branches(100 * n));
}

fn name_both_branches(first: u128) {
    let (mut world, liar, twin) = with_twin(3);
    world.next = first;
    for _ in 0..4 {
        world.claim(liar).unwrap();
    }
    world.claim(twin).unwrap();
    world.send(liar, 0);
    world.send(twin, 1);
    let honest = [0, 1, 2];
    (0..2).for_each(|n| world.claim(n).unwrap());
    world.settle(&honest);
    for n in honest {
        assert!(world.is_retired(n, liar));
        world.replica(n).transact::<_, Refusal>(3, |tx| tx.membership(MemberOp::Held)).unwrap();
        world.tend(n);
    }
    world.settle(&honest);
    while world.replica(0).fold().unwrap() > 0 {}
    // The last hashes are remembered, though, while a replica runs.
    world.cloud.restart(0);
    world.cloud.join(5);
    world.replica(5).transact::<_, Refusal>(3, |tx| tx.membership(MemberOp::Held)).unwrap();
    world.tend(5);
    world.send(5, 0);
    let view = world.replica(0).view().clone();
    let stable = world.replica(0).stable();
    for branch in view.branches().logs(id(liar)) {
        assert_eq!(stable[&branch], view.frontier().number(branch), "all have named the last of {branch}");
    }
}

/// Members of [`sealed_twice`]: 0 to 2 are honest, one lies, and one is to be retired, though it is not dead.
const LIES: u8 = 3;
const GOES: u8 = 4;

/// GOES is being retired, and LIES seals it low for 0 and 2, and high for 1, who all have each other's seals and are cut off then.
/// Says what each of the two halves holds of it.
fn sealed_twice() -> (World, u64, u64) {
    let mut world = World::new(GOES);
    let twin = add_twin(&mut world, LIES);
    world.retire(0, &[(GOES, 0)], false).unwrap();
    world.settle(&[0, 1, 2]);
    assert!(!world.is_retired(0, GOES), "LIES has not sealed");
    (0..10).for_each(|_| world.claim(GOES).unwrap());
    world.send(0, LIES);
    world.settle(&[0, 2, LIES]);
    // The other branch rests on all that GOES has written, and then seals it.
    world.send(GOES, twin);
    world.claim(twin).unwrap();
    world.send(0, twin);
    world.send(twin, 1);
    world.settle(&[1, twin]);
    let held = |at: usize| world.cloud.replicas[at].view().frontier().number(id(GOES));
    let (low, high) = (held(0), held(1));
    assert_eq!(high, low + 10);
    (world, low, high)
}

/// *Breaks otherwise* (R11): what takes effect by seals alone takes effect in both halves, with two cuts; in the one the heir has what
/// in the other is spent, and no later entry makes them agree.
#[test]
fn a_sealer_that_forks_its_own_seal_makes_no_two_cuts() {
    let (mut world, _, high) = sealed_twice();
    assert!(!world.is_retired(0, GOES) && !world.is_retired(1, GOES), "two cuts");
    // The heir spends what it can.
    while world.claim(0).is_ok() {}
    while world.claim(1).is_ok() {}
    let honest = [0, 1, 2];
    world.settle(&honest);
    world.assert_equal(&honest);
    for n in honest {
        assert!(world.is_retired(n, GOES) && world.is_retired(n, LIES), "{n}");
        assert_eq!(world.replica(n).view().retired().cut(id(GOES)), Some(high), "{n}");
        acknowledged_are_live(&world, n, &honest);
        let pool = world.cloud.replicas[usize::from(n)].view().ledger().pool(world.pool).unwrap().clone();
        assert!(pool.claimed.get(Dimension::Instances) <= 100, "{:?}", pool.claimed);
        assert!(world.replica(n).view().ledger().is_conserved());
    }
    for n in honest {
        world.cloud.restart(usize::from(n));
    }
    world.assert_equal(&honest);
}

/// *Breaks otherwise* (R11): one branch shows 1 what GOES has written, and does not seal; in the other it is sealed low. Whoever
/// assents to that, though it holds more, rests on what is void.
#[test]
fn nobody_assents_to_a_cut_below_what_it_holds() {
    let mut world = World::new(GOES);
    let twin = add_twin(&mut world, LIES);
    world.retire(0, &[(GOES, 0)], false).unwrap();
    world.settle(&[0, 1, 2]);
    (0..10).for_each(|_| world.claim(GOES).unwrap());
    world.send(GOES, twin);
    world.claim(twin).unwrap();
    world.send(twin, 1);
    let high = world.replica(1).view().frontier().number(id(GOES));
    world.send(0, LIES);
    world.settle(&[0, 2, LIES]);
    assert_eq!(world.replica(0).view().frontier().number(id(GOES)) + 10, high);
    let honest = [0, 1, 2];
    world.settle(&honest);
    world.assert_equal(&honest);
    for n in honest {
        assert!(world.is_retired(n, GOES) && world.is_retired(n, LIES), "{n}");
        assert_eq!(world.replica(n).view().retired().cut(id(GOES)), Some(high), "{n}");
    }
}

/// Of four, one is gone and one forks when it is to seal it: two are no majority, so nothing takes effect until an operator vouches.
#[test]
fn where_its_fork_leaves_no_majority_an_operator_decides() {
    let (lies, goes) = (2, 3);
    let mut world = World::new(3);
    let twin = add_twin(&mut world, lies);
    world.retire(0, &[(goes, 0)], false).unwrap();
    world.settle(&[0, 1]);
    (0..10).for_each(|_| world.claim(goes).unwrap());
    world.send(0, lies);
    world.settle(&[0, lies]);
    world.send(goes, twin);
    world.claim(twin).unwrap();
    world.send(0, twin);
    world.send(twin, 1);
    world.settle(&[1, twin]);
    world.settle(&[0, 1]);
    assert!([0, 1].iter().all(|n| !world.is_retired(*n, goes) && !world.is_retired(*n, lies)));
    world.retire(0, &[(goes, 1), (lies, 1)], true).unwrap();
    world.settle(&[0, 1]);
    world.assert_equal(&[0, 1]);
    assert!(world.is_retired(1, goes) && world.is_retired(1, lies));
    assert!(world.replica(1).view().ledger().is_conserved());
}

/// Where both hear it from one of the two, nothing is in the way, whatever the other branch says later.
#[test]
fn a_seal_that_all_have_assented_to_stands_though_its_author_forks_afterwards() {
    let mut world = World::new(GOES);
    let twin = add_twin(&mut world, LIES);
    world.retire(0, &[(GOES, 0)], false).unwrap();
    world.settle(&[0, 1, 2, LIES]);
    assert!(world.is_retired(1, GOES));
    let cut = world.replica(1).view().retired().cut(id(GOES));
    world.claim(GOES).unwrap();
    world.send(GOES, twin);
    world.claim(twin).unwrap();
    world.send(0, twin);
    world.send(twin, 1);
    world.claim(1).unwrap();
    world.settle(&[0, 1, 2]);
    world.assert_equal(&[0, 1, 2]);
    for n in [0, 1, 2] {
        assert!(world.is_retired(n, LIES));
        assert_eq!(world.replica(n).view().retired().cut(id(GOES)), cut);
    }
}

/// One step of a member that has several twins, or of an honest one.
#[derive(Clone, Debug)]
enum Step {
    Grant(u8, u8, u64),
    Claim(u8),
    Write(u8),
    Take(u8),
    GiveBack(u8),
    Send(u8, u8),
    Twin(u8),
}

fn liar_or_any(honest: u8) -> impl Strategy<Value = u8> {
    prop_oneof![honest..honest + 2, 0..9_u8]
}

fn step(honest: u8) -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (liar_or_any(honest), 0..honest, 1..11_u64).prop_map(|(from, to, n)| Step::Grant(from, to, n)),
        4 => liar_or_any(honest).prop_map(Step::Claim),
        2 => liar_or_any(honest).prop_map(Step::Write),
        2 => liar_or_any(honest).prop_map(Step::Take),
        2 => liar_or_any(honest).prop_map(Step::GiveBack),
        8 => (liar_or_any(honest), 0..honest).prop_map(|(from, to)| Step::Send(from, to)),
        1 => (0..9_u8).prop_map(Step::Twin),
    ]
}

/// One step while GOES is being retired, and LIES has twins.
#[derive(Clone, Debug)]
enum Sealing {
    Claim(u8),
    Send(u8, u8),
    Retire(u8),
    Twin,
}

fn sealing() -> impl Strategy<Value = Sealing> {
    let (any, honest) = (0..8_u8, 0..3_u8);
    // Who lies is LIES and whoever comes after GOES.
    let lies = prop_oneof![Just(LIES), Just(GOES + 1), Just(GOES + 2)];
    prop_oneof![
        2 => any.clone().prop_map(Sealing::Claim),
        3 => Just(Sealing::Claim(GOES)),
        4 => lies.clone().prop_map(|to| Sealing::Send(GOES, to)),
        6 => (honest.clone(), lies.clone()).prop_map(|(from, to)| Sealing::Send(from, to)),
        6 => (lies, honest.clone()).prop_map(|(from, to)| Sealing::Send(from, to)),
        4 => (any.clone(), any).prop_map(|(from, to)| Sealing::Send(from, to)),
        1 => honest.prop_map(Sealing::Retire),
        1 => Just(Sealing::Twin),
    ]
}

/// Plays this while GOES is being retired, or is about to be. Those who are honest agree in the end, and what took effect anywhere
/// has the same cut everywhere.
fn play(steps: Vec<Sealing>, all_have_sealed: bool) {
    let mut world = World::new(GOES);
    add_twin(&mut world, LIES);
    let honest = [0, 1, 2];
    if all_have_sealed {
        world.retire(0, &[(GOES, 1)], false).unwrap();
        world.settle(&honest);
    }
    let mut cuts = BTreeSet::new();
    for step in steps {
        let count = u8::try_from(world.cloud.replicas.len()).unwrap();
        match step {
            Sealing::Claim(at) => drop(world.claim(at % count)),
            Sealing::Send(from, to) => world.send(from % count, to % count),
            Sealing::Retire(at) => drop(world.retire(at, &[(GOES, (at + 1) % 3)], false)),
            Sealing::Twin if count < 8 => drop(add_twin(&mut world, LIES)),
            Sealing::Twin => {}
        }
        cuts.extend(honest.iter().filter_map(|n| world.cloud.replicas[usize::from(*n)].view().retired().cut(id(GOES))));
        assert!(cuts.len() < 2, "{cuts:?}");
    }
    // A request that was never made is made now, and of the one that lies too if it holds up the other.
    let _known_already = world.retire(0, &[(GOES, 0)], false);
    world.settle(&honest);
    if !world.is_retired(0, GOES) {
        let _known_already = world.retire(1, &[(LIES, 1)], false);
        world.settle(&honest);
    }
    world.assert_equal(&honest);
    for n in honest {
        assert!(world.is_retired(n, GOES), "{n}");
        let view = world.replica(n).view();
        cuts.extend(view.retired().cut(id(GOES)));
        assert!(view.ledger().is_conserved());
        acknowledged_are_live(&world, n, &honest);
    }
    assert!(cuts.len() == 1, "{cuts:?}");
}

/// 0, which has not sealed GOES, takes a branch for its word, and had taken the other one before. 1 has sealed GOES, and
/// gets the branch with what 0 rests on it.
#[test]
fn a_branch_that_one_took_for_the_word_of_who_goes_reaches_those_who_had_sealed_that() {
    use Sealing::{Claim, Retire, Send};
    let start = [Claim(4), Send(4, 3), Send(0, 5), Retire(1), Send(3, 0), Send(5, 4)];
    let rest = [Claim(0), Send(3, 2), Claim(4), Send(3, 1), Send(5, 2), Send(4, 0)];
    play(start.into_iter().chain(rest).collect(), false);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever a member does with whatever copies of itself: those who are honest agree in the end, lose nothing that they
    /// acknowledged, and what was promised twice is what the liar had.
    #[test]
    fn whatever_is_forked_the_honest_agree(steps in proptest::collection::vec(step(4), 1..60)) {
        let liar = 4;
        let (mut world, _, _, pool) = with_addresses(liar);
        world.replica(0).transact::<_, Refusal>(3, |tx| tx.create(PROJECT, Project::default(), &[])).unwrap();
        world.tend(0);
        (1..=liar + 1).for_each(|n| world.send(0, n));
        for step in steps {
            let count = u8::try_from(world.cloud.replicas.len()).unwrap();
            match step {
                Step::Grant(from, to, n) => drop(world.grant(from % count, to, n)),
                Step::Claim(at) => drop(world.claim(at % count)),
                Step::Write(at) => describe(&mut world, at % count, PROJECT, &format!("{step:?}")),
                Step::Take(at) => drop(take(&mut world, at % count, pool)),
                Step::GiveBack(at) => give_back(&mut world, at % count, pool),
                Step::Send(from, to) => world.send(from % count, to),
                Step::Twin(of) if count < 9 => {
                    let copies: BTreeSet<u8> = (liar..count).collect();
                    let of = copies.iter().nth(usize::from(of) % copies.len()).copied().unwrap();
                    add_twin(&mut world, of);
                }
                Step::Twin(_) => {}
            }
        }
        let honest = honest(liar);
        world.settle(&honest);
        world.assert_equal(&honest);
        for n in &honest {
            acknowledged_are_live(&world, *n, &honest);
            let view = world.replica(*n).view();
            prop_assert!(view.ledger().is_conserved());
            prop_assert!(!view.branches().is_forked(id(liar)) || view.retired().contains(id(liar)));
        }
    }

    /// Whatever somebody lies about whose retirement, and to whom.
    #[test]
    fn whatever_a_sealer_forks_the_honest_agree(
        steps in proptest::collection::vec(sealing(), 10..60),
        all_have_sealed in any::<bool>(),
    ) {
        play(steps, all_have_sealed);
    }
}
