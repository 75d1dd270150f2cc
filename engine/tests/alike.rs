//! E3: what became of an entry does not depend on what else its receiver held, nor on the order in which it came.
//!
//! Each test is one schedule of concurrent work in which an earlier rule made replicas differ, or made one of them
//! refuse an honest entry and so cut its author off.
//!
//! Broken once each, and the test of that schedule failed: a tombstone without the creations that come late; references
//! of the first creation only; a binding by the entry that came first; a change not looked at once its record is gone;
//! the lowest admission held instead of the lowest in the past; an admission of who is a member already.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Cloud, Rogue, member};
use luc_engine::entry::{ContentOp, MemberOp};
use luc_engine::id::EntryId;
use luc_engine::record::{Flavor, Kind, RecordId, Site, User, site_record};
use luc_engine::replica::{Received, Rejection, WHOLE_CLOUD};
use luc_engine::tx::Refusal;
use uuid::Uuid;

fn agree(cloud: &mut Cloud) {
    cloud.exchange_all();
    let first = cloud.replicas[0].view().digest();
    for at in 0..cloud.replicas.len() {
        assert_eq!(cloud.replicas[at].view().digest(), first);
        cloud.restart(at);
        assert_eq!(cloud.replicas[at].view().digest(), first);
    }
}

/// Hands one what the other has on its disk.
fn deliver(cloud: &mut Cloud, from: usize, to: usize) {
    cloud.replicas[from].flush().unwrap();
    let log: Vec<_> = cloud.log(from).into_values().collect();
    for _ in 0..log.len() {
        for bytes in &log {
            let received = cloud.replicas[to].receive(bytes);
            assert!(!matches!(received, Received::Refused(_)), "{received:?}");
        }
    }
    cloud.replicas[to].flush().unwrap();
}

/// With one admission for each member, the lowest, the founder took the newcomer's entries and others refused them.
#[test]
fn a_member_that_two_sponsors_admitted_is_one_for_all() {
    let mut cloud = Cloud::new(2);
    cloud.exchange_all();
    let later = luc_engine::entry::Member { addresses: vec!["b:1".into()], ..member(3) };
    for sponsor in [1, 2] {
        cloud.replicas[sponsor].transact::<_, Refusal>(5, |tx| tx.membership(MemberOp::Join(later.clone()))).unwrap();
    }
    // The newcomer has the snapshot of its own sponsor only, the founder's, who knows of no other admission.
    cloud.join(3);
    let at = cloud.replicas.len() - 1;
    cloud.replicas[at]
        .transact::<_, Refusal>(6, |tx| tx.membership(MemberOp::Readdress { addresses: vec!["new:1".into()] }))
        .unwrap();
    agree(&mut cloud);
    for replica in &cloud.replicas {
        let state = replica.view().member(member(3).replica).unwrap();
        assert_eq!(state.admissions.len(), 3);
        assert_eq!(state.member.addresses, ["new:1"], "an admission that comes late takes no newer address back");
    }
}

/// A sponsor whose entries sort low could have changed the powers of any member.
#[test]
fn who_is_a_member_already_is_not_admitted_anew() {
    let mut cloud = Cloud::new(2);
    cloud.exchange_all();
    let weaker = luc_engine::entry::Member { identity_authority: false, ..member(1) };
    cloud.replicas[2].transact::<_, Refusal>(5, |tx| tx.membership(MemberOp::Join(weaker))).unwrap();
    agree(&mut cloud);
    let state = cloud.replicas[0].view().member(member(1).replica).unwrap();
    assert!(state.member.identity_authority);
    assert_eq!(state.admissions.len(), 1);
}

/// The tombstone kept only the creations that the deleter knew; who created it apart was refused ever after.
#[test]
fn a_record_created_twice_and_deleted_once_cuts_nobody_off() {
    let mut cloud = Cloud::new(2);
    cloud.exchange_all();
    let id = Uuid::from_u128(77);
    for at in [0, 1] {
        let flavor = Flavor { name: format!("f{at}"), ..Flavor::default() };
        cloud.replicas[at].transact::<_, Refusal>(5, |tx| tx.create(id, flavor, &[])).unwrap();
    }
    let rename = |flavor: &mut Flavor| {
        flavor.name = "changed".into();
        Ok::<_, Refusal>(())
    };
    cloud.replicas[1].transact::<_, Refusal>(6, |tx| tx.update(id, rename)).unwrap();
    deliver(&mut cloud, 0, 2);
    cloud.replicas[2].transact::<_, Refusal>(7, |tx| tx.delete(RecordId { kind: Kind::Flavor, id })).unwrap();
    deliver(&mut cloud, 1, 2);
    cloud.restart(2);
    agree(&mut cloud);
}

/// Of two creations that refer to different records, the one that came first decided what is kept.
#[test]
fn a_record_created_twice_keeps_what_either_refers_to() {
    let mut cloud = Cloud::new(2);
    let users = [Uuid::from_u128(1), Uuid::from_u128(2)].map(|id| RecordId { kind: Kind::User, id });
    cloud.replicas[0]
        .transact::<_, Refusal>(4, |tx| {
            users.iter().try_for_each(|id| tx.create(id.id, User::default(), &[]).map(|_| ()))
        })
        .unwrap();
    cloud.exchange_all();
    for at in [0, 1] {
        let flavor = Flavor::default();
        cloud.replicas[at].transact::<_, Refusal>(5, |tx| tx.create(Uuid::from_u128(3), flavor, &[users[at]])).unwrap();
    }
    agree(&mut cloud);
}

/// The binding carried the entry that came first.
#[test]
fn a_name_given_twice_at_once_is_one_binding() {
    let mut cloud = Cloud::new(2);
    let user = RecordId { kind: Kind::User, id: Uuid::from_u128(1) };
    cloud.replicas[0].transact::<_, Refusal>(4, |tx| tx.create(user.id, User::default(), &[])).unwrap();
    cloud.exchange_all();
    for at in [1, 2] {
        cloud.replicas[at].transact::<_, Refusal>(5, |tx| tx.bind(WHOLE_CLOUD, "u", user)).unwrap();
    }
    agree(&mut cloud);
}

/// Who held the deletion took the bad change as void, and the others cut off whoever had built on it.
#[test]
fn a_bad_change_of_a_record_that_is_gone_is_refused_all_the_same() {
    let mut cloud = Cloud::new(2);
    let flavor = RecordId { kind: Kind::Flavor, id: Uuid::from_u128(1) };
    cloud.replicas[0].transact::<_, Refusal>(4, |tx| tx.create(flavor.id, Flavor::default(), &[])).unwrap();
    cloud.exchange_all();
    let seen = cloud.replicas[0].view().frontier().clone();
    let me = member(2).replica;
    let author = Rogue::new(2);
    let change = ContentOp::Change { record: flavor, bytes: vec![1, 2, 3] };
    let bad = author.sign(author.header(&seen), vec![change]);
    cloud.replicas[1].transact::<_, Refusal>(5, |tx| tx.delete(flavor)).unwrap();
    for at in [0, 1] {
        let received = cloud.replicas[at].receive(bad.bytes());
        let id = EntryId { author: me, number: 1 };
        assert!(matches!(received, Received::Refused(Rejection::Invalid { entry, .. }) if entry == id), "{received:?}");
    }
}

/// A site's record has an id that follows from its name: two replicas of a site may create it apart.
#[test]
fn records_of_other_sites_are_not_ones_own() {
    let mut cloud = Cloud::new(1);
    let other = site_record("site-1");
    let created = cloud.replicas[0].transact::<_, Refusal>(5, |tx| tx.create(other.id, Site::default(), &[]));
    assert!(matches!(created, Err(Refusal::Invalid(_))), "{created:?}");
}
