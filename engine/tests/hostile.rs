//! Rule `authority`: what a member with its own key may sign, and what all others make of it.
//!
//! Each attack is an entry that its author really signed, in sequence. It must be refused, by replicas that hold
//! different other things alike (`PROTOCOL.md`, E3), and what an honest replica wrote meanwhile must still be taken.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Cloud, Rogue, host_at, key, member};
use luc_engine::agent::{DomainState, Observation};
use luc_engine::entry::{
    BadEntry, Content, ContentOp, Created, Entry, Frontier, Header, HostIdentity, LedgerOp, MemberOp, Subject,
};
use luc_engine::id::{ClaimId, EntryId, HostId, PoolId, ReplicaId};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Kind, Project, RecordId, Server};
use luc_engine::replica::{Received, Rejection, Replica};
use luc_engine::tx::{Fence, Refusal};
use proptest::prelude::*;
use uuid::Uuid;

fn vcpus(n: u64) -> Amount {
    [(Dimension::Vcpus, n)].into_iter().collect()
}

/// Founder 0, honest 1 and 2; 3 is a member that its site's operator has turned against us, and no authority.
struct Stage {
    cloud: Cloud,
    pool: PoolId,
    claim: ClaimId,
    quota_claim: ClaimId,
    server: Uuid,
    host: HostId,
    /// What the rogue says it has seen: everything but the grant that replica 1 made to it.
    but_the_grant: Frontier,
}

fn stage() -> Stage {
    let mut cloud = Cloud::new(2);
    let rogue = luc_engine::entry::Member { identity_authority: false, sponsor: false, ..member(3) };
    let server = Uuid::from_u128(8);
    let identity = host_at(0);
    let host = identity.host;
    let ((pool, claim, quota_claim), _) = cloud.replicas[0]
        .transact::<_, Refusal>(2, |tx| {
            tx.membership(MemberOp::Join(rogue))?;
            let pool = tx.mint(Subject::Host(identity), vcpus(10))?;
            let id = tx.create(server, Server { name: "s".into(), ..Server::default() }, &[])?;
            let claim = tx.claim(&[pool], &vcpus(2), id, 1)?;
            tx.grant(pool, member(1).replica, vcpus(3))?;
            let quota = tx.mint(Subject::Quota { project: Uuid::nil() }, vcpus(10))?;
            let quota_claim = tx.claim(&[quota], &vcpus(2), id, 0)?;
            Ok((pool, claim, quota_claim))
        })
        .unwrap();
    cloud.exchange_all();
    let but_the_grant = cloud.replicas[0].view().frontier().clone();
    cloud.replicas[1].transact::<_, Refusal>(3, |tx| tx.grant(pool, member(3).replica, vcpus(3))).unwrap();
    cloud.exchange_all();
    Stage { cloud, pool, claim, quota_claim, server, host, but_the_grant }
}

fn refused(received: &Received) -> bool {
    matches!(received, Received::Refused(_))
}

/// The attack is refused by all, whatever else they hold, and the cloud goes on.
fn assert_refused(stage: &mut Stage, what: &str, attack: &Entry) {
    // Replica 1 knows more than replica 2: something that the attack does not name.
    let more = Project { name: "more".into(), ..Project::default() };
    let id = Uuid::new_v5(&Uuid::nil(), what.as_bytes());
    stage.cloud.replicas[1].transact::<_, Refusal>(5, |tx| tx.create(id, more, &[])).unwrap();
    let before: Vec<_> = stage.cloud.replicas.iter().map(|replica| replica.view().digest()).collect();
    for (replica, before) in stage.cloud.replicas.iter_mut().zip(before) {
        let received = replica.receive(attack.bytes());
        assert!(refused(&received), "{what}: {received:?}");
        let blamed: Vec<_> = replica.quarantine().keys().collect();
        assert_eq!(blamed, [&member(3).replica], "{what}: who signed it is blamed, and nobody else");
        assert_eq!(replica.view().digest(), before, "{what}: it left something behind");
    }
    stage.cloud.exchange_all();
    assert_eq!(stage.cloud.replicas[1].view().digest(), stage.cloud.replicas[2].view().digest(), "{what}");
}

fn record(kind: Kind, n: u128) -> RecordId {
    RecordId { kind, id: Uuid::from_u128(n) }
}

#[test]
fn every_attack_of_a_member_is_refused_by_all_alike() {
    let seen = stage().cloud.replicas[0].view().frontier().clone();
    let mallory = Rogue::new(3);
    let Stage { pool, claim, quota_claim, server, host, but_the_grant, .. } = stage();
    let ledger = |op: LedgerOp| (Header { ledger: vec![op], ..mallory.header(&seen) }, vec![]);
    let content = |op: ContentOp| (mallory.header(&seen), vec![op]);
    let spent = |amount| LedgerOp::Claim { pool, amount, record: record(Kind::Server, 8), epoch: 1 };
    let observation = Observation {
        host,
        server,
        claim,
        epoch: 9,
        incarnation: 9,
        counter: 9,
        at: 0,
        state: DomainState::Crashed,
        task: None,
        soft_reboots: 0,
        hard_reboots: 0,
        power_changes: 0,
        launched_at: None,
        fault: None,
    };
    let stranger = member(7);
    let others = EntryId { author: member(0).replica, number: 1 };
    let others_id = RecordId::certified(Kind::Server, others, Uuid::from_u128(5));
    let own = |op: MemberOp| (Header { members: vec![op], ..mallory.header(&seen) }, vec![]);
    let attacks = [
        ("spends more than it holds", ledger(spent(vcpus(4)))),
        ("spends in a dimension it has none of", ledger(spent([(Dimension::DiskGib, 1)].into_iter().collect()))),
        ("claims nothing", ledger(spent(Amount::default()))),
        ("mints into another's pool", ledger(LedgerOp::Grow { pool, amount: vcpus(1) })),
        ("burns what it does not hold", ledger(LedgerOp::Burn { pool, amount: vcpus(9) })),
        ("grants to a stranger", ledger(LedgerOp::Grant { pool, to: stranger.replica, amount: vcpus(1) })),
        ("grants to itself", ledger(LedgerOp::Grant { pool, to: member(3).replica, amount: vcpus(1) })),
        ("releases another's claim on a host", ledger(LedgerOp::Release { claim })),
        ("releases another's claim on a quota", ledger(LedgerOp::Release { claim: quota_claim })),
        (
            "makes the pool of another site's host",
            ledger(LedgerOp::Mint { subject: Subject::Host(host_at(0)), amount: vcpus(1), confirmed: false }),
        ),
        (
            "makes a pool of its own for another site's host",
            ledger(LedgerOp::Mint {
                subject: Subject::Host(HostIdentity { site: member(3).site, ..host_at(0) }),
                amount: vcpus(1),
                confirmed: false,
            }),
        ),
        (
            "takes another site's host over with an agent of its own",
            ledger(LedgerOp::Mint {
                subject: Subject::Host(HostIdentity { host, ..host_at(3) }),
                amount: vcpus(1),
                confirmed: false,
            }),
        ),
        (
            "makes a quota without being an authority",
            ledger(LedgerOp::Mint {
                subject: Subject::Quota { project: Uuid::nil() },
                amount: vcpus(1),
                confirmed: false,
            }),
        ),
        ("reports what another site's host sees", content(ContentOp::Observe(observation))),
        ("admits a member without being a sponsor", own(MemberOp::Join(stranger.clone()))),
        ("revokes the founder", own(MemberOp::Revoke { replica: member(0).replica })),
        (
            "creates a user without being an authority",
            (
                Header {
                    created: vec![Created { record: record(Kind::User, 66), references: vec![] }],
                    ..mallory.header(&seen)
                },
                vec![],
            ),
        ),
        (
            "creates a record under an id that another entry alone can give",
            (
                Header { created: vec![Created { record: others_id, references: vec![] }], ..mallory.header(&seen) },
                vec![],
            ),
        ),
        (
            "changes a document with bytes that are none",
            content(ContentOp::Change { record: record(Kind::Server, 8), bytes: vec![1, 2, 3] }),
        ),
        // The grant exists, and some hold it, but the spender does not name it: all refuse (E3).
        (
            "spends a right that it does not name",
            (Header { ledger: vec![spent(vcpus(1))], ..mallory.header(&but_the_grant) }, vec![]),
        ),
    ];
    for (what, (header, content)) in attacks {
        let attack = mallory.sign(header, content);
        assert_refused(&mut stage(), what, &attack);
    }
}

#[test]
fn a_change_in_another_replicas_name_or_from_the_future_is_refused() {
    let mut stage = stage();
    let seen = stage.cloud.replicas[0].view().frontier().clone();
    // What replica 1 wrote, signed again by the rogue: the actor is not the author.
    let id = stage.server;
    stage.cloud.replicas[1]
        .transact::<_, Refusal>(3, |tx| {
            tx.update::<Server, Refusal>(id, |server| {
                server.name = "mine".into();
                Ok(())
            })
        })
        .unwrap();
    let stolen = stage.cloud.replicas[1].flush().unwrap().entries[0].content.ops[0].clone();
    let mallory = Rogue::new(3);
    let attack = mallory.sign(mallory.header(&seen), vec![stolen]);
    assert_refused(&mut stage, "actor", &attack);
}

#[test]
fn a_fork_is_seen_and_its_author_goes_into_quarantine() {
    let mut stage = stage();
    let seen = stage.cloud.replicas[0].view().frontier().clone();
    let mallory = Rogue::new(3);
    let entry = |n| {
        let record = record(Kind::Server, 8);
        let created = vec![Created { record, references: vec![] }];
        let claim = LedgerOp::Claim { pool: stage.pool, amount: vcpus(n), record, epoch: 1 };
        mallory.sign(Header { created, ledger: vec![claim], ..mallory.header(&seen) }, vec![])
    };
    let (one, other) = (entry(1), entry(2));
    let [_, a, b] = stage.cloud.replicas.as_mut_slice() else { panic!("three replicas") };
    assert!(matches!(a.receive(one.bytes()), Received::Applied));
    assert!(matches!(b.receive(other.bytes()), Received::Applied));
    for (replica, entry) in [(a, &other), (b, &one)] {
        let received = replica.receive(entry.bytes());
        assert!(matches!(received, Received::Refused(Rejection::Fork { .. })), "{received:?}");
        assert!(replica.quarantine().contains_key(&member(3).replica));
        assert!(replica.view().ledger().is_conserved());
    }
}

#[test]
fn forged_entries_are_refused_and_their_alleged_author_is_not_blamed() {
    let mut stage = stage();
    let seen = stage.cloud.replicas[0].view().frontier().clone();
    let forger = Rogue::new(7);
    let mut header = forger.header(&seen);
    header.author = member(3).replica;
    let forged = Entry::sign(header, Content::default(), &key(7));
    // The same in the place of an entry that is held, and in the name of one who is not known yet.
    let mut header = forger.header(&Frontier::default());
    header.author = member(0).replica;
    let second = Entry::sign(header, Content::default(), &key(7));
    let mut header = forger.header(&Frontier::default());
    header.author = member(9).replica;
    let unknown = Entry::sign(header, Content::default(), &key(7));
    for replica in &mut stage.cloud.replicas {
        let received = replica.receive(forged.bytes());
        assert!(matches!(received, Received::Refused(Rejection::Bad(BadEntry::Signature))), "{received:?}");
        assert!(refused(&replica.receive(second.bytes())) && refused(&replica.receive(unknown.bytes())));
        assert!(replica.quarantine().is_empty(), "bytes that nobody signed put somebody in quarantine");
    }
}

#[test]
fn nobody_but_the_founder_admits_itself() {
    let mut stage = stage();
    let stranger = Rogue::new(7);
    let header = Header { members: vec![MemberOp::Join(member(7))], ..stranger.header(&Frontier::default()) };
    let entry = stranger.sign(header, vec![]);
    for replica in &mut stage.cloud.replicas {
        assert!(refused(&replica.receive(entry.bytes())));
        assert!(replica.view().member(member(7).replica).is_none());
    }
}

#[test]
fn an_old_copy_of_a_store_that_meets_its_later_entry_writes_no_more() {
    let mut cloud = Cloud::new(1);
    let copy = common::snapshot(&cloud.replicas[0]);
    let project = Project { name: "p".into(), ..Project::default() };
    let create = |replica: &mut Replica, n| {
        let project = project.clone();
        replica.transact::<_, Refusal>(9, |tx| tx.create(Uuid::from_u128(n), project, &[])).map(|_| ())
    };
    create(&mut cloud.replicas[0], 1).unwrap();
    cloud.exchange_all();
    let mut disk = luc_engine::store::MemoryStore::default();
    Replica::prepare(&mut disk).unwrap();
    luc_engine::store::Store::commit(&mut disk, &copy).unwrap();
    let mut old = Replica::open(cloud.replicas[0].identity().clone(), Box::new(disk)).unwrap();
    let later = cloud.log(1).into_iter().rfind(|(id, _)| id.author == member(0).replica).unwrap();
    assert!(
        matches!(old.receive(&later.1), Received::Refused(Rejection::Fenced(Fence::OldStore(id))) if id == later.0)
    );
    assert!(create(&mut old, 2).is_err(), "it would fork its own chain");
}

/// The format of entries, pinned: a change that reads or writes them otherwise fails here first.
#[test]
fn the_format_of_entries_does_not_change_unnoticed() {
    let mallory = Rogue::new(3);
    let entry = mallory.sign(
        Header {
            deleted: vec![record(Kind::Server, 5)],
            ledger: vec![LedgerOp::Burn {
                pool: PoolId { entry: EntryId { author: member(0).replica, number: 1 }, index: 2 },
                amount: vcpus(300),
            }],
            ..mallory.header(&Frontier::default())
        },
        vec![ContentOp::Change { record: record(Kind::Server, 5), bytes: vec![1, 2, 3] }],
    );
    assert_eq!(blake3::hash(entry.bytes()).to_hex().as_str(), PINNED);
    let again = Entry::decode(entry.bytes()).unwrap();
    assert_eq!((again.header, again.content), (entry.header, entry.content));
}
const PINNED: &str = "3292bf605c8bef71b8f544ac34f04994441d4c08ca669527d57e04e915598edc";

proptest! {
    #[test]
    fn bytes_from_anybody_never_do_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), known in any::<bool>()) {
        if known && !bytes.is_empty() {
            bytes[0] = luc_engine::entry::FORMAT;
        }
        let _ = Entry::decode(&bytes);
    }

    #[test]
    fn a_flipped_bit_is_noticed(at in any::<usize>(), bit in 0_u8..8) {
        let mut stage = stage();
        let seen = stage.cloud.replicas[0].view().frontier().clone();
        let mallory = Rogue::new(3);
        let claim = LedgerOp::Claim { pool: stage.pool, amount: vcpus(1), record: record(Kind::Server, 8), epoch: 1 };
        let entry = mallory.sign(Header { ledger: vec![claim], ..mallory.header(&seen) }, vec![]);
        let mut bytes = entry.bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let received = stage.cloud.replicas[1].receive(&bytes);
        prop_assert!(!matches!(received, Received::Applied), "{received:?}");
    }
}

#[test]
fn a_replica_id_follows_from_its_key() {
    let public_key = key(4).verifying_key().to_bytes();
    assert_eq!(ReplicaId::of_key(&public_key), member(4).replica);
}
