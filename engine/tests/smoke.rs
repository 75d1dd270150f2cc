//! Two replicas, one server: founded, joined, created, seen, stated gone, released.
#![allow(clippy::unwrap_used, missing_docs)]

use ed25519_dalek::SigningKey;
use luc_engine::agent::Statement;
use luc_engine::entry::{HostIdentity, Member, MemberOp, Subject};
use luc_engine::id::{ReplicaId, SiteName};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Kind, Project, RecordId, Server};
use luc_engine::replica::{Identity, Received, Replica, founded_by};
use luc_engine::store::{Batch, MemoryStore, Store, Table};
use luc_engine::tx::Refusal;
use uuid::Uuid;

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn member(n: u8, site: &str) -> Member {
    let public_key = key(n).verifying_key().to_bytes();
    Member {
        replica: ReplicaId::of_key(&public_key),
        public_key,
        site: SiteName::new(site).unwrap(),
        addresses: vec![],
        identity_authority: true,
        sponsor: true,
        index: u32::from(n),
    }
}

#[test]
fn a_server_lives_and_dies_in_two_replicas() {
    let paris = member(1, "paris");
    let lyon = member(2, "lyon");
    let cloud = founded_by(&paris.public_key);
    let store = MemoryStore::default();
    let identity = Identity { cloud, key: key(1) };
    let mut a = Replica::found(identity.clone(), Box::new(store.clone()), paris.clone(), 1).unwrap();
    a.transact::<_, Refusal>(2, |tx| tx.membership(MemberOp::Join(lyon.clone()))).unwrap();
    let first = a.flush().unwrap();
    assert_eq!(first.entries.len(), 1);

    let mut copy = MemoryStore::default();
    Replica::prepare(&mut copy).unwrap();
    let mut batch = Batch::default();
    let reader = a.reader().unwrap();
    for table in Table::in_snapshot() {
        reader
            .scan(table, &[], &mut |key, value| {
                batch.put(table, key.to_vec(), value.to_vec());
                true
            })
            .unwrap();
    }
    copy.commit(&batch).unwrap();
    let mut b = Replica::open(Identity { cloud, key: key(2) }, Box::new(copy)).unwrap();
    assert_eq!(a.view().digest(), b.view().digest());

    let agent = key(9);
    let paris_1 = HostIdentity::sign(cloud, &paris.site, &agent);
    let host = paris_1.host;
    let (project, server) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let amount: Amount = [(Dimension::Vcpus, 4), (Dimension::MemoryMib, 100)].into_iter().collect();
    let (pool, _) = a
        .transact::<_, Refusal>(3, |tx| {
            tx.create(project, Project { name: "p".into(), ..Project::default() }, &[])?;
            tx.mint(Subject::Host(paris_1), amount.clone())
        })
        .unwrap();
    let (claim, _) = a
        .transact::<_, Refusal>(4, |tx| {
            let owner = RecordId { kind: Kind::Project, id: project };
            let id = tx.create(server, Server { project, name: "s".into(), ..Server::default() }, &[owner])?;
            tx.claim(&[pool], &amount, id, 1)
        })
        .unwrap();
    let again =
        a.transact::<_, Refusal>(5, |tx| tx.claim(&[pool], &amount, RecordId { kind: Kind::Server, id: server }, 1));
    assert!(matches!(again, Err(Refusal::Shortage(_))), "{again:?}");
    for entry in a.flush().unwrap().entries {
        assert!(matches!(b.receive(entry.bytes()), Received::Applied));
        assert!(matches!(b.receive(entry.bytes()), Received::Known));
    }
    b.flush().unwrap();
    assert_eq!(a.view().digest(), b.view().digest());

    b.transact::<_, Refusal>(6, |tx| {
        tx.update::<Server, Refusal>(server, |s| {
            s.name = "renamed".into();
            Ok(())
        })?;
        tx.delete(RecordId { kind: Kind::Server, id: server })
    })
    .unwrap();
    assert!(b.view().held(RecordId { kind: Kind::Server, id: server }).is_some(), "its domain may still run");
    for entry in b.flush().unwrap().entries {
        assert!(matches!(a.receive(entry.bytes()), Received::Applied));
    }
    assert_eq!(a.release_settled(7, None).unwrap(), 0, "no statement yet");
    let statement = Statement::sign(cloud, host, server, claim, 1, &agent);
    a.transact::<_, Refusal>(7, |tx| {
        let _: () = assert!(tx.state(statement));
        Ok(())
    })
    .unwrap();
    assert_eq!(a.release_settled(8, None).unwrap(), 1);
    for entry in a.flush().unwrap().entries {
        assert!(matches!(b.receive(entry.bytes()), Received::Known | Received::Applied));
    }
    b.flush().unwrap();
    assert_eq!(a.view().digest(), b.view().digest());
    assert!(b.view().held(RecordId { kind: Kind::Server, id: server }).is_none());
    assert_eq!(b.view().ledger().pool(pool).unwrap().free(paris.replica), amount);

    let reopened = Replica::open(identity, Box::new(store)).unwrap();
    assert_eq!(reopened.view().digest(), b.view().digest());
}
