//! What is deleted and referred to is being deleted, whether the reference or the deletion came first (`PROTOCOL.md`, R1).
//!
//! Broken once, to see this fail: `View::settle` without bringing back what is kept (the digests differ).
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::Cloud;
use luc_engine::record::{Image, Kind, Project, RecordId};
use luc_engine::tx::Refusal;
use uuid::Uuid;

const PROJECT: RecordId = RecordId { kind: Kind::Project, id: Uuid::from_u128(5) };
const IMAGE: RecordId = RecordId { kind: Kind::Image, id: Uuid::from_u128(6) };

/// Replica 0 deletes a project, 1 makes an image of it, 2 has both.
fn stage() -> Cloud {
    let mut cloud = Cloud::new(2);
    cloud.replicas[0].transact::<_, Refusal>(2, |tx| tx.create(PROJECT.id, Project::default(), &[])).unwrap();
    cloud.exchange_all();
    cloud.replicas[0].transact::<_, Refusal>(3, |tx| tx.delete(PROJECT)).unwrap();
    let image = Image { project: PROJECT.id, ..Image::default() };
    cloud.replicas[1].transact::<_, Refusal>(3, |tx| tx.create(IMAGE.id, image, &[PROJECT])).unwrap();
    for at in [0, 1] {
        let entries = cloud.replicas[at].flush().unwrap().entries;
        entries.iter().for_each(|entry| drop(cloud.replicas[2].receive(entry.bytes())));
    }
    cloud.exchange_all();
    cloud
}

fn assert_alike(cloud: &Cloud) {
    let first = cloud.replicas[0].view();
    for replica in &cloud.replicas {
        assert_eq!(replica.view().frontier(), first.frontier());
        assert_eq!(replica.view().digest(), first.digest());
        assert_eq!(replica.view().held(PROJECT).is_some(), first.held(PROJECT).is_some());
    }
}

#[test]
fn a_project_is_being_deleted_while_an_image_refers_to_it_and_then_gone() {
    let mut cloud = stage();
    assert_alike(&cloud);
    let view = cloud.replicas[0].view();
    assert!(view.held(PROJECT).is_some_and(|held| held.deleted), "kept by what refers to it");
    assert!(view.get::<Project>(PROJECT.id).is_none());
    cloud.restart(0);
    assert_alike(&cloud);
    cloud.replicas[2].transact::<_, Refusal>(4, |tx| tx.delete(IMAGE)).unwrap();
    cloud.exchange_all();
    assert_alike(&cloud);
    assert!(cloud.replicas[0].view().held(PROJECT).is_none());
}
