//! A cloud in one process: replicas on memory stores, and a network that loses, repeats and reorders.
#![allow(clippy::unwrap_used, missing_docs, dead_code, unreachable_pub)]

pub mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use luc_engine::entry::{
    Content, ContentOp, Entry, Frontier, Hash, Header, HostIdentity, Member, MemberOp, Scope, Tip,
};
use luc_engine::id::{CloudId, EntryId, ReplicaId, SiteName};
use luc_engine::replica::{Identity, Received, Replica, founded_by, read_log};
use luc_engine::store::{Batch, MemoryStore, Store, Table};
use luc_engine::tx::Refusal;

pub fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n + 1; 32])
}

pub fn member(n: u8) -> Member {
    let public_key = key(n).verifying_key().to_bytes();
    Member {
        replica: ReplicaId::of_key(&public_key),
        public_key,
        site: SiteName::new(&format!("site-{n}")).unwrap(),
        addresses: vec![],
        identity_authority: true,
        sponsor: true,
        index: u32::from(n),
    }
}

/// A host of member `n`'s site.
pub fn host_at(n: u8) -> HostIdentity {
    HostIdentity::sign(cloud(), &member(n).site, &key(50 + n))
}

pub fn cloud() -> CloudId {
    founded_by(&key(0).verifying_key().to_bytes())
}

pub struct Cloud {
    pub replicas: Vec<Replica>,
    pub disks: Vec<MemoryStore>,
    pub clock: u64,
    /// Every entry that was ever on a disk: replicas fold their logs, and tests hand out old entries all the same.
    pub archive: RefCell<BTreeMap<EntryId, Vec<u8>>>,
}

impl Cloud {
    /// A founder and `others` who joined it.
    pub fn new(others: u8) -> Self {
        let disk = MemoryStore::default();
        let identity = Identity { cloud: cloud(), key: key(0) };
        let founder = Replica::found(identity, Box::new(disk.clone()), member(0), 1).unwrap();
        let mut cloud = Self { replicas: vec![founder], disks: vec![disk], clock: 1, archive: RefCell::default() };
        for n in 1..=others {
            cloud.join(n);
        }
        cloud
    }

    pub fn join(&mut self, n: u8) {
        self.join_as(n, member(n));
    }

    /// Member `n` joins as somebody else would: of another's site, or with other powers.
    pub fn join_as(&mut self, n: u8, member: Member) {
        let now = self.tick();
        self.replicas[0].transact::<_, Refusal>(now, |tx| tx.membership(MemberOp::Join(member))).unwrap();
        self.replicas[0].flush().unwrap();
        let mut disk = MemoryStore::default();
        Replica::prepare(&mut disk).unwrap();
        disk.commit(&snapshot(&self.replicas[0])).unwrap();
        let identity = Identity { cloud: cloud(), key: key(n) };
        self.replicas.push(Replica::open(identity, Box::new(disk.clone())).unwrap());
        self.disks.push(disk);
    }

    /// Admits a member that has no replica here.
    pub fn admit(&mut self, n: u8) {
        self.replicas[0].transact::<_, Refusal>(2, |tx| tx.membership(MemberOp::Join(member(n)))).unwrap();
    }

    /// Everybody gets an entry that nobody here wrote, and all else.
    pub fn deliver(&mut self, bytes: &[u8]) {
        self.exchange_all();
        for replica in &mut self.replicas {
            let received = replica.receive(bytes);
            assert!(matches!(received, Received::Applied | Received::Known), "{received:?}");
            replica.flush().unwrap();
        }
    }

    /// Some entries of one reach another: from somewhere, one of them twice, maybe backwards.
    pub fn pass(&mut self, from: usize, to: usize, which: std::ops::Range<usize>, reverse: bool) {
        let mut entries: Vec<_> = self.log(from).into_values().skip(which.start).take(which.len()).collect();
        if reverse {
            entries.reverse();
        }
        for bytes in entries.iter().chain(entries.first()) {
            let received = self.replicas[to].receive(bytes);
            assert!(!matches!(received, Received::Refused(_)), "{received:?}");
        }
    }

    pub fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Opens a replica anew from its disk: what was not flushed is lost.
    pub fn restart(&mut self, at: usize) {
        let identity = self.replicas[at].identity().clone();
        self.replicas[at] = Replica::open(identity, Box::new(self.disks[at].clone())).unwrap();
    }

    /// Every entry that one replica holds on its disk, by author and number, whether it is in its log or folded.
    pub fn log(&self, at: usize) -> BTreeMap<EntryId, Vec<u8>> {
        let mut archive = self.archive.borrow_mut();
        archive.extend(self.in_log(at));
        let view = self.replicas[at].view();
        let held = |(log, tip): (&ReplicaId, &Tip)| {
            let entry = |number| EntryId { author: *log, number };
            archive.range(entry(view.branches().first(*log))..=entry(tip.number))
        };
        view.frontier().0.iter().flat_map(held).map(|(id, bytes)| (*id, bytes.clone())).collect()
    }

    /// Those that are in its log.
    pub fn in_log(&self, at: usize) -> BTreeMap<EntryId, Vec<u8>> {
        let reader = self.disks[at].reader().unwrap();
        let mut entries = BTreeMap::new();
        for log in self.replicas[at].view().frontier().0.keys() {
            let mut next = EntryId { author: *log, number: self.replicas[at].view().branches().first(*log) };
            while let Some(bytes) = read_log(&*reader, next, 1, 1).unwrap().pop() {
                next.number = Entry::decode(&bytes).unwrap().header.number;
                entries.insert(next, bytes);
                next.number += 1;
            }
        }
        entries
    }

    /// Everybody gets everything, in whatever order it can be applied.
    pub fn exchange_all(&mut self) {
        for replica in &mut self.replicas {
            replica.flush().unwrap();
        }
        let all: BTreeMap<EntryId, Vec<u8>> = (0..self.replicas.len()).flat_map(|at| self.log(at)).collect();
        for replica in &mut self.replicas {
            let mut rest: Vec<&Vec<u8>> = all.values().collect();
            while !rest.is_empty() {
                let before = rest.len();
                rest.retain(|bytes| match replica.receive(bytes) {
                    Received::Applied | Received::Known => false,
                    Received::Waiting(_) => true,
                    Received::Refused(rejection) => panic!("refused: {rejection}"),
                });
                assert!(rest.len() < before, "entries wait for ever");
            }
            replica.flush().unwrap();
        }
    }
}

/// A member that signs what it likes: it knows its chain's last entry, and what it says it has seen.
pub struct Rogue {
    pub n: u8,
    pub last: Hash,
    pub number: u64,
}

impl Rogue {
    pub fn new(n: u8) -> Self {
        Self { n, last: Hash::default(), number: 0 }
    }

    pub fn header(&self, seen: &Frontier) -> Header {
        let me = member(self.n).replica;
        let others = seen.0.iter().filter(|(id, _)| **id != me);
        Header {
            cloud: cloud(),
            author: me,
            number: self.number + 1,
            previous: self.last,
            seen: others.map(|(id, tip)| (*id, *tip)).collect(),
            time: 0,
            scope: Scope::Everywhere,
            created: vec![],
            deleted: vec![],
            ledger: vec![],
            members: vec![],
            statements: vec![],
            content: Hash::default(),
        }
    }

    pub fn sign(&self, header: Header, content: Vec<ContentOp>) -> Entry {
        Entry::sign(header, Content { ops: content }, &key(self.n))
    }
}

/// A store that holds a snapshot.
pub fn as_store(replica: &Replica) -> MemoryStore {
    let mut store = MemoryStore::default();
    store.commit(&snapshot(replica)).unwrap();
    store
}

/// The rows of a snapshot.
pub fn snapshot(replica: &Replica) -> Batch {
    let reader = replica.reader().unwrap();
    let mut batch = Batch::default();
    for table in Table::in_snapshot() {
        let mut put = |key: &[u8], value: &[u8]| {
            batch.put(table, key.to_vec(), value.to_vec());
            true
        };
        reader.scan(table, &[], &mut put).unwrap();
    }
    batch
}
