//! Two hostile members together (`PROTOCOL.md`, M3, A5): one forks its log, the other rests on a branch that nobody honest has
//! judged. What they can spend is bounded by what the one held, those who are honest agree, and go on.
//!
//! Broken once each, to see these fail: a branch is not held to what its author had; a member shows two branches; what is
//! beyond the bound is blamed on whoever rests on it.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::Rogue;
use common::world::{World, amount, id};
use luc_engine::entry::{Created, Entry, Frontier, LedgerOp, Tip};
use luc_engine::ledger::Dimension;
use luc_engine::record::{Kind, RecordId};
use luc_engine::replica::Received;
use uuid::Uuid;

/// Whoever forks, and whoever rests on it. 0 to 2 are honest.
const FORKS: u8 = 3;
const RESTS: u8 = 4;
const HONEST: [u8; 3] = [0, 1, 2];
/// What each member but the founder has of 100.
const SHARE: u64 = 10;

/// Claims so much, for a server of its own.
fn claims(world: &World, by: &mut Rogue, server: u128, n: u64) -> Entry {
    let record = RecordId { kind: Kind::Server, id: Uuid::from_u128(server) };
    let mut header = by.header(&Frontier::default());
    header.created = vec![Created { record, references: vec![] }];
    header.ledger = vec![LedgerOp::Claim { pool: world.pool, amount: amount(n), record, epoch: 0 }];
    let entry = by.sign(header, vec![]);
    (by.last, by.number) = (entry.hash(), entry.id().number);
    entry
}

/// Says that it has seen these.
fn rests(by: &mut Rogue, on: &[&Entry]) -> Entry {
    let mut header = by.header(&Frontier::default());
    header.seen =
        on.iter().map(|entry| (id(FORKS), Tip { number: entry.id().number, hash: entry.tip().hash })).collect();
    // An entry says something, or it is none: it grants itself no rights, but takes its own server.
    let record = RecordId { kind: Kind::Server, id: Uuid::from_u128(u128::from(by.number) + 5_000) };
    header.created = vec![Created { record, references: vec![] }];
    let entry = by.sign(header, vec![]);
    (by.last, by.number) = (entry.hash(), entry.id().number);
    entry
}

/// 3 has written one entry that all hold, and another with the same number.
fn forked(second: u64) -> (World, Entry, Rogue) {
    let mut world = World::new(RESTS);
    world.settle(&[0, 1, 2, 3, 4]);
    let (mut first, mut other) = (world.rogue(0, FORKS), world.rogue(0, FORKS));
    let one = claims(&world, &mut first, 1_001, SHARE);
    for n in HONEST {
        world.deliver(n, vec![one.bytes().to_vec()]);
    }
    world.settle(&HONEST);
    let two = claims(&world, &mut other, 1_002, second);
    let by = world.rogue(0, RESTS);
    (world, two, by)
}

fn claimed(world: &World, at: u8) -> u64 {
    world.cloud.replicas[usize::from(at)].view().ledger().pool(world.pool).unwrap().claimed.get(Dimension::Instances)
}

fn overdraft(world: &World, at: u8) -> u64 {
    let pool = world.cloud.replicas[usize::from(at)].view().ledger().pool(world.pool).unwrap().clone();
    pool.overdraft().get(Dimension::Instances)
}

/// Those who are honest have one state, and each of them writes.
fn go_on(world: &mut World) {
    world.settle(&HONEST);
    world.assert_equal(&HONEST);
    for n in HONEST {
        world.grant(n, (n + 1) % 3, 1).unwrap();
        assert!(world.replica(n).view().ledger().is_conserved());
    }
    world.settle(&HONEST);
    world.assert_equal(&HONEST);
    // Whom nobody hears any more, an operator retires: the one that forked is waited for no longer.
    world.retire(0, &[(RESTS, 0)], false).unwrap();
    world.settle(&HONEST);
    world.assert_equal(&HONEST);
    for n in HONEST {
        assert!(world.is_retired(n, FORKS) && world.is_retired(n, RESTS), "{n}");
    }
}

#[test]
fn a_branch_that_only_a_liar_rests_on_spends_no_more_than_its_author_had() {
    // As much as it had: twice the share, as with one liar.
    let (mut world, two, mut by) = forked(SHARE);
    let shows = rests(&mut by, &[&two]);
    for n in HONEST {
        world.deliver(n, vec![two.bytes().to_vec(), shows.bytes().to_vec()]);
    }
    go_on(&mut world);
    assert_eq!(claimed(&world, 0), 2 * SHARE);
    // One right more: it is not taken, nor is what rests on it, and nobody else is kept from anything.
    let (mut world, two, mut by) = forked(SHARE + 1);
    let shows = rests(&mut by, &[&two]);
    for n in HONEST {
        world.deliver(n, vec![two.bytes().to_vec(), shows.bytes().to_vec()]);
        let received = world.replica(n).receive(shows.bytes());
        assert!(matches!(received, Received::Waiting(_)), "{received:?}");
        assert!(!world.replica(n).quarantine().contains_key(&id(RESTS)), "it may yet be that 3 had so much");
    }
    go_on(&mut world);
    assert_eq!((claimed(&world, 0), overdraft(&world, 0)), (SHARE, 0));
}

#[test]
fn in_many_small_pieces_it_is_no_more_either() {
    let (mut world, two, mut by) = forked(1);
    let mut other = Rogue { n: FORKS, last: two.hash(), number: two.id().number };
    let mut entries = vec![two];
    entries.extend((0..3 * SHARE).map(|n| claims(&world, &mut other, 2_000 + u128::from(n), 1)));
    let mut sent: Vec<Vec<u8>> = entries.iter().map(|entry| entry.bytes().to_vec()).collect();
    for on in &entries {
        sent.push(rests(&mut by, &[on]).bytes().to_vec());
    }
    for n in HONEST {
        world.deliver(n, sent.clone());
    }
    go_on(&mut world);
    assert_eq!(claimed(&world, 0), 2 * SHARE);
}

#[test]
fn a_liar_shows_one_branch_and_no_second() {
    let (mut world, two, mut by) = forked(SHARE);
    let three = beside(&world, &two, 1_003);
    let (first, second) = (rests(&mut by, &[&two]), rests(&mut by, &[&three]));
    for (n, turned) in HONEST.into_iter().zip([false, true, false]) {
        let mut sent: Vec<Vec<u8>> = [&two, &three, &first, &second].iter().map(|e| e.bytes().to_vec()).collect();
        if turned {
            sent.reverse();
        }
        world.deliver(n, sent);
    }
    go_on(&mut world);
    assert_eq!(claimed(&world, 0), 2 * SHARE);
}

/// Another entry of 3 beside `two`.
fn beside(world: &World, two: &Entry, server: u128) -> Entry {
    let mut other = Rogue { n: FORKS, last: two.header.previous, number: two.id().number - 1 };
    claims(world, &mut other, server, SHARE)
}

#[test]
fn nor_does_it_with_one_entry_that_rests_on_both() {
    let (mut world, two, mut by) = forked(SHARE);
    let three = beside(&world, &two, 1_003);
    let both = rests(&mut by, &[&two, &three]);
    for n in HONEST {
        world.deliver(n, [&two, &three, &both].iter().map(|entry| entry.bytes().to_vec()).collect());
    }
    go_on(&mut world);
    assert_eq!(claimed(&world, 0), SHARE, "nobody can say which of the two it was shown first");
}

#[test]
fn nor_by_sending_the_second_before_the_first() {
    // What waits for one and the same entry is tried in the order of its hash: every other time the wrong way round.
    for server in 1_003..1_019 {
        let (mut world, two, mut by) = forked(SHARE);
        let three = beside(&world, &two, server);
        let (first, second) = (rests(&mut by, &[&two]), rests(&mut by, &[&three]));
        for n in HONEST {
            world.deliver(n, [&three, &second, &first, &two].iter().map(|entry| entry.bytes().to_vec()).collect());
        }
        go_on(&mut world);
        assert_eq!(claimed(&world, 0), 2 * SHARE, "{server}");
    }
}

#[test]
fn what_one_granted_to_the_other_is_counted_once() {
    // 3 gives all it has to 4 in the branch that all hold, and claims it in the other: 4 holds what is granted.
    let mut world = World::new(RESTS);
    world.settle(&[0, 1, 2, 3, 4]);
    let (first, mut other) = (world.rogue(0, FORKS), world.rogue(0, FORKS));
    let mut header = first.header(&Frontier::default());
    header.ledger = vec![LedgerOp::Grant { pool: world.pool, to: id(RESTS), amount: amount(SHARE) }];
    let grant = first.sign(header, vec![]);
    for n in HONEST {
        world.deliver(n, vec![grant.bytes().to_vec()]);
    }
    let two = claims(&world, &mut other, 1_002, SHARE);
    let more = claims(&world, &mut other, 1_003, 1);
    let mut by = world.rogue(0, RESTS);
    let (shows, beyond) = (rests(&mut by, &[&two]), rests(&mut by, &[&more]));
    for n in HONEST {
        let sent = [&two, &more, &shows, &beyond].iter().map(|entry| entry.bytes().to_vec()).collect();
        world.deliver(n, sent);
    }
    go_on(&mut world);
    assert_eq!(claimed(&world, 0), SHARE);
}
