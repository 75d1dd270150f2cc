//! Retiring replicas that are gone for good (`PROTOCOL.md`, M2): by the survivors' agreement, once, alike everywhere.
//!
//! Broken once each, to see these fail: the lowest seal as the cut; a round that takes effect without all its seals;
//! no majority; entries taken beyond what was sealed; `note_named` left out (a survivor waits for ever); rights that are
//! inherited before the retirement takes effect; a newcomer's seal that widens who must seal.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeSet;

use common::world::{World, amount, id};
use common::{Rogue, as_store};
use luc_engine::entry::{Entry, Frontier, Header, MemberOp, Subject};
use luc_engine::id::{EntryId, ReplicaId};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Kind, RecordId, Server};
use luc_engine::replica::{Received, ReplaceError};
use luc_engine::retire::{Request, Retiree};
use luc_engine::store::Store;
use luc_engine::tx::{Fence, Refusal};
use proptest::prelude::*;
use uuid::Uuid;

#[test]
fn a_grant_of_the_dead_counts_once_though_its_heir_had_not_seen_it() {
    let mut world = World::new(3);
    world.grant(3, 1, 4).unwrap();
    world.claim(3).unwrap();
    world.send(3, 1);
    // 3 dies. 0 has not seen the grant, and retires it.
    world.retire(0, &[(3, 0)], false).unwrap();
    assert_eq!(world.free(0, 3), 10);
    world.settle(&[0, 2]);
    assert!(!world.is_retired(0, 3), "replica 1 has not sealed it");
    assert!(world.claim(0).is_ok(), "own rights are not touched");
    world.settle(&[0, 1, 2]);
    world.assert_equal(&[0, 1, 2]);
    assert_eq!((world.free(0, 3), world.free(2, 0), world.free(2, 1)), (0, 70 - 1 + 5, 14));
    world.assert_sound(&[0, 1, 2]);
}

#[test]
fn until_all_have_sealed_nobody_spends_the_rights_of_the_dead() {
    let mut world = World::new(2);
    world.retire(0, &[(2, 0)], false).unwrap();
    let pool = world.pool;
    let early = world.replica(0).transact::<_, Refusal>(5, |tx| tx.inherit(pool, id(2)));
    assert!(matches!(early, Err(Refusal::Invalid(_))), "{early:?}");
    world.settle(&[0, 1]);
    assert!(world.is_retired(1, 2));
    assert_eq!(world.free(1, 0), 90);
    let again = world.replica(0).transact::<_, Refusal>(5, |tx| tx.inherit(pool, id(2)));
    assert!(matches!(again, Err(Refusal::Invalid(_))), "{again:?}");
}

#[test]
fn what_the_dead_wrote_after_the_cut_is_void_and_it_is_told_so() {
    let mut world = World::new(2);
    world.claim(2).unwrap();
    world.settle(&[0, 1, 2]);
    world.claim(2).unwrap();
    world.retire(0, &[(2, 1)], false).unwrap();
    world.settle(&[0, 1]);
    assert!(world.is_retired(0, 2));
    let last = world.replica(2).view().frontier().number(id(2));
    let mut beyond = |n, number| world.replica(0).view().is_beyond_cut(EntryId { author: id(n), number });
    assert_eq!((beyond(2, last - 1), beyond(2, last)), (false, true));
    assert!(!beyond(1, 1_000), "who lives may come to it");
    let digest = world.replica(0).view().digest();
    world.send(2, 0);
    assert_eq!(world.replica(0).view().digest(), digest, "a late entry was taken");
    world.send(0, 2);
    assert!(matches!(world.replica(2).fence(), Some(Fence::Retired { .. })));
    assert!(matches!(world.claim(2), Err(Refusal::Fenced(Fence::Retired { .. }))));
    world.cloud.restart(2);
    assert!(matches!(world.replica(2).fence(), Some(Fence::Retired { .. })), "it forgot");
    assert_eq!(world.free(0, 1), 10 + 9);
    world.assert_sound(&[0, 1]);
}

#[test]
fn two_halves_of_a_split_that_retire_each_other_do_not_both_live() {
    for (others, left, right) in [(3, &[0, 1][..], &[2, 3][..]), (4, &[0, 1, 2], &[3, 4])] {
        let mut world = World::new(others);
        world.retire(0, &right.iter().map(|n| (*n, 0)).collect::<Vec<_>>(), false).unwrap();
        world.retire(3, &left.iter().map(|n| (*n, 3)).collect::<Vec<_>>(), false).unwrap();
        world.settle(left);
        world.settle(right);
        let majority = left.len() > right.len();
        assert_eq!(world.is_retired(0, 3), majority, "{left:?} {right:?}");
        assert!(!world.is_retired(3, 0), "{left:?} {right:?}");
        let all: Vec<u8> = left.iter().chain(right).copied().collect();
        world.settle(&all);
        world.assert_equal(left);
        world.assert_sound(left);
    }
}

#[test]
fn two_rounds_that_share_their_sealers_do_not_both_take_effect() {
    let mut world = World::new(5);
    world.retire(2, &[(0, 2), (1, 2)], false).unwrap();
    world.retire(0, &[(2, 0), (3, 0)], false).unwrap();
    world.send(2, 3);
    world.send(0, 1);
    // 4 and 5 hear of both at once, and seal all four.
    for n in [4, 5] {
        let both = world.cloud.log(2).into_values().chain(world.cloud.log(0).into_values()).collect();
        world.deliver(n, both);
    }
    world.settle(&[2, 3, 4, 5]);
    world.settle(&[0, 1, 4, 5]);
    assert!(!(world.is_retired(2, 0) && world.is_retired(0, 2)), "two halves live, and share nothing");
    for _ in 0..60 {
        let _unless_exhausted = (world.claim(0), world.claim(2));
    }
    world.settle(&[0, 1, 2, 3, 4, 5]);
    world.assert_sound(&[0, 1, 2, 3, 4, 5]);
    // The two in the middle have taken up the first request that they could help to succeed.
    let living: Vec<u8> = (0..6).filter(|n| !world.is_retired(4, *n)).collect();
    assert_eq!(living.len(), 4);
    world.assert_equal(&living);
}

#[test]
fn what_one_that_is_not_dead_goes_on_to_write_is_not_taken_after_the_seal() {
    let mut world = World::new(3);
    world.retire(0, &[(3, 0)], false).unwrap();
    world.claim(3).unwrap();
    world.send(3, 0);
    assert_eq!(world.replica(0).view().frontier().number(id(3)), 0, "it was taken after it was sealed");
    world.settle(&[0, 1, 2]);
    assert!(world.is_retired(0, 3));
    world.assert_equal(&[0, 1, 2]);
    world.assert_sound(&[0, 1, 2]);
}

#[test]
fn what_took_effect_stays_though_newcomers_seal() {
    let mut world = World::new(3);
    world.retire(0, &[(3, 0)], false).unwrap();
    world.send(0, 1);
    world.send(0, 2);
    let lowest = (0..4).map(id).min().unwrap();
    let newcomer = (5..200).find(|n| id(*n) < lowest).unwrap();
    // One that is admitted and never comes, and one whose seals are the first in order.
    world.cloud.admit(4);
    world.cloud.join(newcomer);
    world.replica(4).tend(5, None).unwrap();
    world.tend(4);
    world.send(1, 0);
    world.send(2, 0);
    assert!(!world.is_retired(0, 3), "nobody else has assented");
    for (from, to) in [(0, 1), (0, 2), (1, 0), (2, 0)] {
        world.send(from, to);
    }
    assert!(world.is_retired(0, 3));
    world.send(4, 0);
    let view = world.cloud.replicas[0].view();
    assert!(view.retirements().sealed_by(id(newcomer), view.frontier()).contains(&id(3)));
    assert!(world.is_retired(0, 3), "it was undone");
}

#[test]
fn seals_without_a_majority_of_the_votes_retire_nobody() {
    // Two of four, and a minority with members of its own making, seal against the rule.
    let mut world = World::new(3);
    world.retire(0, &[(2, 0), (3, 0)], false).unwrap();
    let set: BTreeSet<ReplicaId> = [id(2), id(3)].into();
    world.send(0, 1);
    world.cloud.join(4);
    world.cloud.join(5);
    for n in [0, 1, 4, 5] {
        let seal = MemberOp::Seal { set: set.clone() };
        world.replica(n).transact::<_, Refusal>(6, |tx| tx.membership(seal)).unwrap();
        world.tend(n);
    }
    world.settle(&[0, 1, 4, 5]);
    assert!([0, 1, 4, 5].iter().all(|n| !world.is_retired(*n, 2)));
}

#[test]
fn of_two_that_retire_each_other_before_a_third_one_is_retired() {
    let mut world = World::new(2);
    world.retire(0, &[(1, 0)], false).unwrap();
    world.retire(1, &[(0, 1)], false).unwrap();
    let both = world.cloud.log(1).into_values().chain(world.cloud.log(0).into_values()).collect();
    world.deliver(2, both);
    world.settle(&[0, 1, 2]);
    let gone: Vec<u8> = [0, 1].into_iter().filter(|n| world.is_retired(2, *n)).collect();
    let [gone] = gone.as_slice() else { panic!("{gone:?}: one takes the majority of the other's request") };
    let living = [1 - gone, 2];
    world.assert_equal(&living);
    // It has sealed the one, and takes its assent with what the third writes next.
    world.claim(2).unwrap();
    world.settle(&[0, 1, 2]);
    assert!(world.replica(*gone).fence().is_some() && world.replica(1 - gone).fence().is_none());
    world.claim(1 - gone).unwrap();
    world.settle(&[0, 1, 2]);
    world.assert_equal(&living);
    world.assert_sound(&[0, 1, 2]);
}

#[test]
fn a_minority_that_admits_members_stays_one() {
    let mut world = World::new(2);
    world.retire(1, &[(0, 1)], false).unwrap();
    world.settle(&[1, 2]);
    assert!(world.is_retired(1, 0));
    // Cut off, 0 admits two, and with them retires the others.
    for n in [3, 4] {
        world.cloud.join(n);
        world.replica(0).tend(6, None).unwrap();
        world.tend(0);
    }
    world.settle(&[0, 3, 4]);
    world.retire(0, &[(1, 0), (2, 0)], false).unwrap();
    for n in [3, 4] {
        world.replica(n).tend(6, None).unwrap();
    }
    world.settle(&[0, 3, 4]);
    assert!(!world.is_retired(0, 1) && !world.is_retired(4, 2), "it made itself a majority");
    world.settle(&[0, 1, 2, 3, 4]);
    world.assert_equal(&[1, 2]);
    world.assert_sound(&[1, 2]);
    assert!([0, 3, 4].iter().all(|n| world.replica(*n).fence().is_some()), "whom it admitted are told so too");
}

#[test]
fn votes_are_made_once_and_do_not_move_while_they_count() {
    let mut world = World::new(3);
    let (votes, _) = world.replica(0).view().ledger().votes().unwrap();
    let all: Amount = [(Dimension::Votes, luc_engine::retire::VOTES)].into_iter().collect();
    let one: Amount = [(Dimension::Votes, 1)].into_iter().collect();
    let refused = |result: Result<(), Refusal>| matches!(result, Err(Refusal::Invalid(_)));
    let replica = world.replica(0);
    assert!(refused(replica.transact(9, |tx| tx.mint(Subject::Votes, all).map(drop)).map(|_: ((), _)| ())));
    assert!(refused(replica.transact(9, |tx| tx.grow(votes, one.clone())).map(|_| ())));
    assert!(refused(replica.transact(9, |tx| tx.burn(votes, one.clone())).map(|_| ())));
    assert!(replica.transact::<_, Refusal>(9, |tx| tx.grant(votes, id(1), one.clone())).is_ok());
    world.retire(0, &[(3, 0)], false).unwrap();
    assert!(refused(world.replica(0).transact(9, |tx| tx.grant(votes, id(1), one.clone())).map(|_| ())));
    world.settle(&[0, 1, 2]);
    assert!(world.replica(0).transact::<_, Refusal>(9, |tx| tx.grant(votes, id(1), one)).is_ok(), "it is decided");
}

#[test]
fn the_votes_of_the_retired_wait_for_no_heir() {
    // Of six, 1 is to inherit from 4 and 5. It seals and assents, and dies before it hears that all others have.
    let mut world = World::new(5);
    world.retire(0, &[(4, 1), (5, 1)], false).unwrap();
    world.settle(&[0, 2, 3]);
    world.send(0, 1);
    world.send(1, 0);
    world.settle(&[0, 2, 3]);
    assert!(world.is_retired(0, 4) && world.is_retired(3, 5) && !world.is_retired(1, 4), "1 had to be needed");
    // Three of the six are left, and more than half of the votes of those four that were.
    world.retire(0, &[(1, 2)], false).unwrap();
    world.settle(&[0, 2, 3]);
    assert!([0, 2, 3].iter().all(|n| world.is_retired(*n, 1)), "no majority");
    assert_eq!(world.free(0, 2), 10 + 10 + 10 + 10, "what 1 was to inherit is its heir's");
    // And so on, to the last but one.
    world.retire(0, &[(3, 0)], false).unwrap();
    world.settle(&[0, 2]);
    assert!(world.is_retired(0, 3) && world.is_retired(2, 3));
    world.retire(2, &[(0, 2)], false).unwrap();
    world.settle(&[2]);
    assert!(!world.is_retired(2, 0), "one of two is no majority");
    world.settle(&[0, 2]);
    world.assert_equal(&[0, 2]);
    world.assert_sound(&[0, 2]);
}

#[test]
fn the_votes_of_the_retired_fall_to_all_who_stayed_in_equal_parts() {
    let mut world = World::new(4);
    world.retire(0, &[(4, 0)], false).unwrap();
    world.settle(&[0, 1, 2, 3]);
    let (votes, pool) = world.replica(0).view().ledger().votes().unwrap();
    let held: Vec<u64> = (0..5).map(|n| pool.free(id(n)).get(Dimension::Votes)).collect();
    let fifth = luc_engine::retire::VOTES / 5;
    let quarter = fifth + fifth / 4;
    assert_eq!(held[1..], [quarter, quarter, quarter, fifth % 4], "what cannot be divided is left");
    // Each once, and nobody who came later.
    world.cloud.join(5);
    for n in [0, 5] {
        let taken = world.replica(n).transact::<_, Refusal>(9, |tx| tx.inherit(votes, id(4)));
        assert!(matches!(taken.map(|_| ()), Err(Refusal::Invalid(_))), "{n} took more");
    }
    world.assert_sound(&[0, 1, 2, 3]);
}

#[test]
fn votes_do_not_run_out() {
    // Again and again one of five is retired, and another dies that had to agree, before it takes its part of the votes.
    let mut world = World::new(4);
    for round in 1..=6 {
        let (first, then) = (2 * round + 1, 2 * round + 2);
        world.retire(0, &[(first, then)], false).unwrap();
        world.settle(&[0, 1, 2]);
        world.send(0, then);
        world.send(then, 0);
        world.settle(&[0, 1, 2]);
        world.retire(0, &[(then, 0)], false).unwrap();
        world.settle(&[0, 1, 2]);
        assert!(world.is_retired(2, first) && world.is_retired(2, then), "after {round} rounds");
        let newcomers = [first + 2, then + 2];
        newcomers.iter().for_each(|n| world.cloud.join(*n));
        world.settle(&[0, 1, 2, newcomers[0], newcomers[1]]);
        world.replica(0).tend(5, None).unwrap();
        world.tend(0);
        world.settle(&[0, 1, 2, newcomers[0], newcomers[1]]);
    }
    let (_, pool) = world.replica(1).view().ledger().votes().unwrap();
    let votes = |n| pool.free(id(n)).get(Dimension::Votes);
    assert!(votes(16) > 0 && votes(16).abs_diff(votes(0)) < votes(0) / 8, "newcomers have as many as others");
    world.assert_equal(&[0, 1, 2]);
    world.assert_sound(&[0, 1, 2]);
}

#[test]
fn force_may_follow_a_request_without_it() {
    let mut world = World::new(3);
    world.retire(0, &[(2, 0)], false).unwrap();
    world.retire(0, &[(3, 0)], false).unwrap();
    world.settle(&[0, 1]);
    assert!(!world.is_retired(0, 3), "half of the members are no majority");
    world.retire(0, &[(2, 1), (3, 1)], true).unwrap();
    world.settle(&[0, 1]);
    assert!(world.is_retired(0, 3) && world.is_retired(1, 2));
    assert_eq!(world.free(1, 0), 70 + 20, "the heir that was named first stands");
}

#[test]
fn what_a_survivor_named_is_not_taken_once_it_is_sealed_itself() {
    let mut world = World::new(4);
    world.claim(4).unwrap();
    world.retire(2, &[(1, 0)], false).unwrap();
    world.send(4, 1);
    world.send(2, 0);
    world.grant(1, 0, 1).unwrap();
    world.send(1, 4);
    world.retire(0, &[(4, 2)], false).unwrap();
    world.send(0, 4);
    // 2 hears of 4's retirement together with an entry of 4 that rests on more of 1 than 2 has sealed.
    world.send(4, 2);
    world.settle(&[0, 1, 2, 3, 4]);
    world.assert_sound(&[0, 1, 2, 3, 4]);
}

#[test]
fn force_takes_effect_without_a_majority() {
    let mut world = World::new(3);
    world.retire(0, &[(2, 0), (3, 1)], true).unwrap();
    world.settle(&[0, 1]);
    assert!(world.is_retired(0, 2) && world.is_retired(1, 3));
    world.assert_equal(&[0, 1]);
}

#[test]
fn a_survivor_whose_seal_is_awaited_is_retired_in_its_turn() {
    // 3 wrote something that only 2 holds; 2 seals that, and dies with its seal known to nobody, or to 1 alone.
    for known in [false, true] {
        let mut world = World::new(4);
        world.claim(3).unwrap();
        world.send(3, 2);
        world.retire(0, &[(3, 0)], false).unwrap();
        world.settle(&[0, 1, 4]);
        assert!(!world.is_retired(0, 3), "2 has not sealed");
        world.send(0, 2);
        if known {
            world.send(2, 1);
        }
        world.retire(0, &[(2, 1)], false).unwrap();
        world.settle(&[0, 1, 4]);
        world.assert_equal(&[0, 1, 4]);
        assert!(world.is_retired(0, 3) && world.is_retired(0, 2));
        // What 2 knew alone died with it; what 1 knew of it did not.
        assert_eq!(world.free(0, 0), 60 + if known { 9 } else { 10 });
        assert_eq!(world.free(0, 1), 20);
        world.assert_sound(&[0, 1, 4]);
    }
}

#[test]
fn a_survivor_takes_what_another_one_names_though_it_has_sealed_less() {
    let mut world = World::new(3);
    world.claim(3).unwrap();
    world.send(3, 1);
    // 1 writes on top of it, before it hears of the retirement; 0 has sealed less by then.
    world.claim(1).unwrap();
    world.retire(0, &[(3, 0)], false).unwrap();
    world.settle(&[0, 2]);
    world.settle(&[0, 1, 2]);
    assert!(world.is_retired(2, 3));
    world.assert_equal(&[0, 1, 2]);
    assert_eq!(world.free(0, 0), 70 + 9);
}

#[test]
fn whoever_learns_of_its_own_retirement_takes_nothing_that_comes_with_it() {
    let mut world = World::new(4);
    world.retire(0, &[(2, 0)], false).unwrap();
    world.send(0, 2);
    world.send(2, 1);
    world.retire(2, &[(4, 0)], false).unwrap();
    world.send(2, 4);
    world.send(0, 3);
    world.retire(3, &[(0, 1)], false).unwrap();
    world.send(4, 0);
    world.retire(1, &[(0, 1)], false).unwrap();
    world.settle(&[0, 1, 2, 3, 4]);
    // The heir of the heir takes over what 0 has, beyond its own cut, taken over already.
    for n in 0..5 {
        assert!(world.replica(n).quarantine().is_empty(), "{n}: {:?}", world.replica(n).quarantine());
    }
    assert!(world.replica(0).fence().is_some());
}

#[test]
fn whoever_breaks_its_word_leads_nobody_beyond_the_cut() {
    let mut world = World::new(3);
    world.retire(0, &[(3, 0)], false).unwrap();
    // 0 and 1 have sealed; 2 has not heard of it. Then 3, which is not dead, writes, and 1 rests on it all the same.
    world.settle(&[0, 1]);
    let held = world.replica(0).view().frontier().number(id(3));
    world.claim(3).unwrap();
    let more = world.cloud.log(3)[&EntryId { author: id(3), number: held + 1 }].clone();
    let liar = world.rogue(1, 1);
    let mut seen = Frontier::default();
    seen.set(id(3), Entry::decode(&more).unwrap().tip());
    let shows = liar.sign(liar.header(&seen), vec![]);
    for bytes in [&more[..], shows.bytes(), &more[..], shows.bytes()] {
        let received = world.replica(0).receive(bytes);
        assert!(matches!(received, Received::Waiting(_)), "{received:?}");
    }
    assert_eq!(world.replica(0).view().frontier().number(id(3)), held);
    // One that has not sealed yet shows the same, and will seal it.
    world.send(3, 2);
    world.claim(2).unwrap();
    world.settle(&[0, 2]);
    assert_eq!(world.replica(0).view().frontier().number(id(3)), held + 1);
}

/// *Breaks otherwise* (R5): a retirement has taken effect at 1, and nobody but 1 knows, since who gave the last assent is gone. 0 has sealed that
/// one too by now, and 3, which has not, breaks its promise of the first retirement: 0 takes its word, and holds what is void.
#[test]
fn nor_does_one_that_breaks_it_between_two_requests() {
    let (lies, gone, goes) = (3, 4, 5);
    let mut world = World::new(goes);
    world.retire(0, &[(goes, 0)], false).unwrap();
    let honest = [0, 1, 2];
    world.send(0, gone);
    world.send(gone, 0);
    world.settle(&[0, 1, 2, lies]);
    world.send(1, gone);
    world.send(gone, 1);
    assert!(world.is_retired(1, goes) && !world.is_retired(0, goes));
    let held = world.replica(0).view().frontier().number(id(goes));
    world.claim(goes).unwrap();
    let more = world.cloud.log(goes.into())[&EntryId { author: id(goes), number: held + 1 }].clone();
    world.retire(0, &[(gone, 0)], false).unwrap();
    let liar = world.rogue(lies, lies);
    let mut seen = Frontier::default();
    seen.set(id(goes), Entry::decode(&more).unwrap().tip());
    let shows = liar.sign(liar.header(&seen), vec![]);
    for bytes in [&more[..], shows.bytes(), &more[..], shows.bytes()] {
        let received = world.replica(0).receive(bytes);
        assert!(matches!(received, Received::Waiting(_)), "{received:?}");
    }
    assert_eq!(world.replica(0).view().frontier().number(id(goes)), held);
    world.settle(&honest);
    world.settle(&[0, 1, 2, lies]);
    assert!(world.is_retired(0, goes) && world.is_retired(0, gone));
    world.assert_equal(&honest);
    world.assert_sound(&honest);
}

/// A newcomer is born with its sponsor's promise. It writes nothing, its own seal neither, before it has met the others (M4), and
/// is connected to the one that is being retired meanwhile.
#[test]
fn nor_does_a_newcomer_that_has_not_sealed_yet() {
    let mut world = World::new(3);
    world.retire(0, &[(3, 0)], false).unwrap();
    world.cloud.join(4);
    let held = world.replica(0).view().frontier().number(id(3));
    world.claim(3).unwrap();
    let more = world.cloud.log(3)[&EntryId { author: id(3), number: held + 1 }].clone();
    let received = world.replica(4).receive(&more);
    assert!(matches!(received, Received::Waiting(_)), "{received:?}");
    // Nor does anybody follow one that took it.
    let liar = Rogue::new(4);
    let mut seen = world.replica(4).view().frontier().clone();
    seen.set(id(3), Entry::decode(&more).unwrap().tip());
    let shows = liar.sign(liar.header(&seen), vec![]);
    for bytes in [&more[..], shows.bytes(), &more[..], shows.bytes()] {
        let received = world.replica(0).receive(bytes);
        assert!(matches!(received, Received::Waiting(_)), "{received:?}");
    }
    world.settle(&[0, 1, 2, 4]);
    assert!(world.is_retired(4, 3));
    world.assert_equal(&[0, 1, 2, 4]);
    world.assert_sound(&[0, 1, 2, 4]);
}

/// Logs are short, and whoever is being retired runs on and gives away its state. Another's may hold more than is held here: up to
/// what that one has sealed.
#[test]
fn nor_does_a_snapshot_lead_beyond_a_promise() {
    let mut world = World::new(3);
    world.claim(3).unwrap();
    world.send(3, 1);
    world.retire(0, &[(3, 0)], false).unwrap();
    let held = world.replica(0).view().frontier().number(id(3));
    world.send(0, 1);
    world.claim(3).unwrap();
    world.send(0, 3);
    let give = |world: &mut World, from: u8| {
        let state = as_store(world.replica(from));
        let taken = world.replica(0).replace(&*state.reader().unwrap(), id(from));
        (taken, world.replica(0).view().frontier().number(id(3)))
    };
    let (taken, now) = give(&mut world, 3);
    assert!(matches!(&taken, Err(ReplaceError::Sealed(entry)) if entry.author == id(3)), "{taken:?}");
    assert_eq!(now, held);
    let (taken, now) = give(&mut world, 1);
    assert!(taken.is_ok() && now == held + 1, "{taken:?} {now}");
    world.tend(0);
    world.settle(&[0, 1, 2]);
    assert!(world.is_retired(2, 3));
    world.assert_equal(&[0, 1, 2]);
    world.assert_sound(&[0, 1, 2]);
}

#[test]
fn nor_by_sending_what_breaks_it_before_its_word() {
    // What waits for one and the same entry is tried in the order of its hash: every other time the wrong way round.
    for server in 0..16 {
        let mut world = World::new(3);
        world.next = server;
        world.retire(0, &[(3, 0)], false).unwrap();
        let held = world.replica(0).view().frontier().number(id(3));
        let known = world.replica(0).view().frontier().number(id(1));
        world.claim(3).unwrap();
        let more = world.cloud.log(3)[&EntryId { author: id(3), number: held + 1 }].clone();
        world.claim(1).unwrap();
        world.send(0, 1);
        let sealed = world.cloud.log(1).split_off(&EntryId { author: id(1), number: known + 1 });
        let mut sent: Vec<Vec<u8>> =
            sealed.range(..=EntryId { author: id(1), number: u64::MAX }).map(|(_, entry)| entry.clone()).collect();
        assert!(sent.len() > 1, "a claim, and a seal");
        let last = Entry::decode(sent.last().unwrap()).unwrap();
        let liar = Rogue { n: 1, last: last.hash(), number: last.id().number };
        let mut seen = Frontier::default();
        seen.set(id(3), Entry::decode(&more).unwrap().tip());
        sent.push(liar.sign(liar.header(&seen), vec![]).bytes().to_vec());
        sent.push(more);
        sent.reverse();
        world.deliver(0, sent);
        assert_eq!(world.replica(0).view().frontier().number(id(1)), last.id().number);
        assert_eq!(world.replica(0).view().frontier().number(id(3)), held, "{server}");
    }
}

#[test]
fn heirs_in_a_circle_and_heirs_of_heirs() {
    let mut world = World::new(4);
    // Apart, 1 is retired with 2 as its heir and 2 with 1: then the first of the sealers inherits.
    world.retire(0, &[(1, 2)], false).unwrap();
    world.retire(3, &[(2, 1)], false).unwrap();
    world.settle(&[0, 3, 4]);
    world.assert_equal(&[0, 3, 4]);
    let heir = [0, 3, 4].into_iter().map(id).min().unwrap();
    let retired = world.replica(0).view().retired().clone();
    assert_eq!((retired.heir(id(1)), retired.heir(id(2))), (Some(heir), Some(heir)));
    let shares: u64 = [0, 3, 4].into_iter().map(|n| world.free(0, n)).sum();
    assert_eq!(shares, 100);
    world.assert_sound(&[0, 3, 4]);
}

#[test]
fn a_newcomer_seals_what_its_sponsor_asked_before_and_after() {
    let mut world = World::new(3);
    world.retire(0, &[(3, 0)], false).unwrap();
    world.cloud.join(4);
    world.tend(4);
    world.settle(&[0, 1, 2]);
    assert!(!world.is_retired(0, 3), "the newcomer may hold what nobody else does");
    world.settle(&[0, 1, 2, 4]);
    assert!(world.is_retired(4, 3));
    world.assert_equal(&[0, 1, 2, 4]);
}

#[test]
fn the_heir_of_a_root_grows_its_pool_and_releases_its_claims() {
    let mut world = World::new(2);
    let record = RecordId { kind: Kind::Server, id: Uuid::from_u128(77) };
    let (claim, _) = world
        .replica(0)
        .transact::<_, Refusal>(3, |tx| {
            let pool = tx.mint(Subject::Quota { project: Uuid::from_u128(3) }, amount(5))?;
            tx.create(record.id, Server { name: "s".into(), ..Server::default() }, &[])?;
            tx.claim(&[pool], &amount(2), record, 0)
        })
        .unwrap();
    world.tend(0);
    world.send(0, 1);
    world.retire(1, &[(0, 1)], false).unwrap();
    world.settle(&[1, 2]);
    let pool = world.pool;
    world.replica(1).transact::<_, Refusal>(5, |tx| tx.grow(pool, amount(7))).unwrap();
    world.tend(1);
    world.settle(&[1, 2]);
    assert_eq!(world.free(2, 1), 80 + 10 + 7);
    let stranger = world.replica(2).transact::<_, Refusal>(5, |tx| tx.release(claim));
    assert!(matches!(stranger, Err(Refusal::Invalid(_))), "{stranger:?}");
    world.replica(2).transact::<_, Refusal>(5, |tx| tx.delete(record)).unwrap();
    world.tend(2);
    world.settle(&[1, 2]);
    assert!(world.replica(2).view().ledger().claim(claim).is_none(), "its heir releases what the dead held");
    world.assert_equal(&[1, 2]);
}

#[test]
fn malformed_requests_are_refused() {
    let mut world = World::new(3);
    for set in [&[][..], &[(0, 1)], &[(1, 1)], &[(1, 2), (1, 0)], &[(1, 2), (2, 0)], &[(9, 0)], &[(1, 9)]] {
        let asked = world.retire(0, set, false);
        assert!(matches!(asked, Err(Refusal::Invalid(_))), "{set:?}: {asked:?}");
    }
    world.retire(0, &[(1, 0)], false).unwrap();
    assert!(world.retire(0, &[(2, 1)], false).is_err(), "an heir that is going itself");
}

#[test]
fn nobody_is_retired_for_branches_that_there_are_not() {
    let mut world = World::new(3);
    let liar = world.rogue(0, 3);
    let header = |replica| {
        let retiree = Retiree { replica, heir: id(0) };
        Header { members: vec![MemberOp::Branched { retiree }], ..liar.header(&Frontier::default()) }
    };
    for of in [id(1), id(3), id(9)] {
        let received = world.replica(0).receive(liar.sign(header(of), vec![]).bytes());
        assert!(matches!(received, Received::Refused(_)), "{received:?}");
        assert!(world.replica(0).view().retirements().is_empty());
    }
}

/// One row is kept of each entry: what shared it would be forgotten at the next start.
#[test]
fn requests_seals_and_assents_are_entries_of_their_own_and_an_assent_is_given_once() {
    let mut world = World::new(3);
    world.retire(0, &[(3, 0)], false).unwrap();
    world.cloud.replicas[1].flush().unwrap();
    let request = world.cloud.log(0);
    for bytes in request.values() {
        drop(world.replica(1).receive(bytes));
    }
    let set: BTreeSet<ReplicaId> = [id(3)].into();
    let seal = || MemberOp::Seal { set: set.clone() };
    let assent = || MemberOp::Assent { set: set.clone() };
    let retire = || MemberOp::Retire(Request { set: vec![Retiree { replica: id(2), heir: id(1) }], force: false });
    let mut writes = |ops: Vec<MemberOp>| {
        let done =
            world.replica(1).transact::<_, Refusal>(6, |tx| ops.into_iter().try_for_each(|op| tx.membership(op)));
        done.map(drop)
    };
    let refused = |done: Result<(), Refusal>| assert!(matches!(done, Err(Refusal::Invalid(_))), "{done:?}");
    refused(writes(vec![seal(), retire()]));
    refused(writes(vec![retire(), seal()]));
    refused(writes(vec![seal(), assent()]));
    refused(writes(vec![retire(), retire()]));
    refused(writes(vec![assent()]));
    writes(vec![seal()]).unwrap();
    refused(writes(vec![assent(), retire()]));
    writes(vec![assent()]).unwrap();
    refused(writes(vec![assent()]));
    refused(writes(vec![seal()]));
}

#[test]
fn whom_the_dead_admitted_behind_the_cut_is_told_that_it_is_no_member() {
    let mut world = World::new(2);
    world.retire(1, &[(0, 1)], false).unwrap();
    // 0, not dead, admits 3, which hears of the request, and seals 0 higher than anybody else can.
    world.cloud.join(3);
    world.send(1, 3);
    world.settle(&[1, 2]);
    let cut = world.replica(1).view().retired().cut(id(0));
    assert!(cut.is_some());
    world.send(1, 3);
    assert_eq!(world.replica(3).view().retired().cut(id(0)), cut, "it sees another cut than all others");
    assert!(world.replica(3).fence().is_some(), "it goes on as a member that nobody knows");
}

#[derive(Clone, Debug)]
enum Step {
    Claim(u8),
    Grant(u8, u8),
    Send(u8, u8),
    Restart(u8),
    Retire { at: u8, whom: u8, heir: u8 },
}

const MEMBERS: u8 = 5;

fn step() -> impl Strategy<Value = Step> {
    let who = 0..MEMBERS;
    prop_oneof![
        3 => who.clone().prop_map(Step::Claim),
        3 => (who.clone(), who.clone()).prop_map(|(from, to)| Step::Grant(from, to)),
        8 => (who.clone(), who.clone()).prop_map(|(from, to)| Step::Send(from, to)),
        1 => who.clone().prop_map(Step::Restart),
        1 => (who.clone(), who.clone(), who).prop_map(|(at, whom, heir)| Step::Retire { at, whom, heir }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever operators say, true or not, and in whatever order: nothing is promised twice at any time. If what they
    /// say is true, and a majority lives, the survivors agree on everything in the end.
    #[test]
    fn whatever_is_retired_by_whom_the_survivors_agree(
        steps in proptest::collection::vec(step(), 1..80),
        truthful in any::<bool>(),
    ) {
        let mut world = World::new(MEMBERS - 1);
        let all: Vec<u8> = (0..MEMBERS).collect();
        let mut stopped = BTreeSet::new();
        for step in steps {
            let acts = match step {
                Step::Claim(at) | Step::Restart(at) => [at, at],
                Step::Grant(from, _) => [from, from],
                Step::Send(from, to) => [from, to],
                Step::Retire { at, .. } => [at, at],
            };
            if truthful && acts.iter().any(|n| stopped.contains(n)) {
                continue;
            }
            match step {
                Step::Claim(at) => drop(world.claim(at)),
                Step::Grant(from, to) => drop(world.grant(from, to, 1)),
                Step::Send(from, to) => world.send(from, to),
                Step::Restart(at) => world.cloud.restart(usize::from(at)),
                Step::Retire { at, whom, heir } if !truthful || at == whom || stopped.len() == 2 => {
                    let allowed = !truthful && world.retire(at, &[(whom, heir)], false).is_ok();
                    stopped.extend(allowed.then_some(whom));
                }
                Step::Retire { at, whom, heir } => {
                    if world.retire(at, &[(whom, heir)], false).is_ok() {
                        stopped.insert(whom);
                    }
                }
            }
            world.assert_sound(&all);
        }
        let living: Vec<u8> = all.iter().copied().filter(|n| !stopped.contains(n)).collect();
        world.settle(if truthful { &living } else { &all });
        world.assert_sound(&all);
        for n in &all {
            prop_assert!(world.replica(*n).quarantine().is_empty());
        }
        if truthful {
            // A request that died with its author must be said again.
            for whom in &stopped {
                let _known_already = world.retire(living[0], &[(*whom, living[1])], false);
            }
            world.settle(&living);
            world.assert_equal(&living);
            prop_assert!(living.iter().all(|at| stopped.iter().all(|of| world.is_retired(*at, *of))));
        }
    }
}
