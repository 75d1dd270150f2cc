//! A cloud with a pool of which everybody has a share, whose replicas can be retired.

use std::collections::{BTreeMap, BTreeSet};

use luc_engine::entry::{Entry, Hash, MemberOp, Subject};
use luc_engine::id::{EntryId, PoolId, ReplicaId};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::Server;
use luc_engine::replica::{Received, Rejection, Replica};
use luc_engine::retire::{Request, Retiree};
use luc_engine::tx::Refusal;
use uuid::Uuid;

use super::{Cloud, Rogue, member};

pub fn amount(n: u64) -> Amount {
    [(Dimension::Instances, n)].into_iter().collect()
}

pub fn id(n: u8) -> ReplicaId {
    member(n).replica
}

/// A cloud whose founder has minted a quota pool of 100 and shared it: ten to each other.
pub struct World {
    pub cloud: Cloud,
    pub pool: PoolId,
    pub next: u128,
    /// Claims that were answered with success, with their entries: amounts are all one.
    pub claimed: Vec<EntryId>,
}

impl World {
    pub fn new(others: u8) -> Self {
        let mut cloud = Cloud::new(others);
        let (pool, _) = cloud.replicas[0]
            .transact::<_, Refusal>(2, |tx| {
                let pool = tx.mint(Subject::Quota { project: Uuid::nil() }, amount(100))?;
                (1..=others).try_for_each(|n| tx.grant(pool, id(n), amount(10)))?;
                Ok(pool)
            })
            .unwrap();
        let mut world = Self { cloud, pool, next: 0, claimed: Vec::new() };
        // Votes are shared once it is known who is there.
        world.replica(0).tend(3, None).unwrap();
        world.tend(0);
        world.cloud.exchange_all();
        world
    }

    pub fn replica(&mut self, n: u8) -> &mut Replica {
        &mut self.cloud.replicas[usize::from(n)]
    }

    pub fn free(&self, at: u8, of: u8) -> u64 {
        self.cloud.replicas[usize::from(at)]
            .view()
            .ledger()
            .pool(self.pool)
            .unwrap()
            .free(id(of))
            .get(Dimension::Instances)
    }

    pub fn grant(&mut self, from: u8, to: u8, n: u64) -> Result<(), Refusal> {
        let pool = self.pool;
        let granted = self.replica(from).transact::<_, Refusal>(3, |tx| tx.grant(pool, id(to), amount(n))).map(|_| ());
        self.tend(from);
        granted
    }

    pub fn claim(&mut self, at: u8) -> Result<(), Refusal> {
        self.next += 1;
        let (pool, server) = (self.pool, Uuid::from_u128(self.next));
        let claimed = self.replica(at).transact::<_, Refusal>(3, |tx| {
            let record = tx.create(server, Server { name: "s".into(), ..Server::default() }, &[])?;
            tx.claim(&[pool], &amount(1), record, 0)
        });
        self.tend(at);
        claimed.map(|(claim, _)| self.claimed.push(claim.entry))
    }

    /// A member that goes on from what `at` holds of it, by its own rules.
    pub fn rogue(&self, at: u8, n: u8) -> Rogue {
        let log = self.cloud.log(at.into());
        let last =
            log.range(EntryId { author: id(n), number: 0 }..=EntryId { author: id(n), number: u64::MAX }).next_back();
        let (number, last) =
            last.map_or((0, Hash::default()), |(entry, bytes)| (entry.number, Entry::decode(bytes).unwrap().hash()));
        Rogue { n, last, number }
    }

    pub fn retire(&mut self, at: u8, set: &[(u8, u8)], force: bool) -> Result<(), Refusal> {
        let set = set.iter().map(|(replica, heir)| Retiree { replica: id(*replica), heir: id(*heir) }).collect();
        let request = MemberOp::Retire(Request { set, force });
        let asked = self.replica(at).transact::<_, Refusal>(4, |tx| tx.membership(request)).map(|_| ());
        self.tend(at);
        asked
    }

    /// Flushes, and does what is owed, as the driver does.
    pub fn tend(&mut self, n: u8) {
        let replica = self.replica(n);
        let mut flushed = replica.flush().unwrap();
        while replica.tend(5, Some(&flushed)).unwrap() {
            flushed = replica.flush().unwrap();
        }
    }

    /// What one has on its disk reaches another.
    pub fn send(&mut self, from: u8, to: u8) {
        let log = self.cloud.log(usize::from(from));
        self.deliver(to, log.into_values().collect());
    }

    pub fn deliver(&mut self, to: u8, mut entries: Vec<Vec<u8>>) {
        loop {
            let before = entries.len();
            let replica = self.replica(to);
            entries.retain(|bytes| match replica.receive(bytes) {
                Received::Applied | Received::Known => false,
                Received::Waiting(_) => true,
                // Of one who forked, what nobody rests on is not taken; what is staged may be, later.
                Received::Refused(
                    Rejection::Void { .. }
                    | Rejection::Fenced(_)
                    | Rejection::Fork { .. }
                    | Rejection::Chain(_)
                    | Rejection::Quarantined(_),
                ) => false,
                Received::Refused(rejection) => panic!("{to} refused: {rejection}"),
            });
            self.tend(to);
            if entries.is_empty() || entries.len() == before {
                return;
            }
        }
    }

    /// Everybody in `part` hears of everything that the others in it have, until nothing changes.
    pub fn settle(&mut self, part: &[u8]) {
        loop {
            let before: Vec<_> = part.iter().map(|n| self.replica(*n).view().frontier().clone()).collect();
            for from in part {
                for to in part.iter().filter(|to| *to != from) {
                    self.send(*from, *to);
                }
            }
            let after: Vec<_> = part.iter().map(|n| self.replica(*n).view().frontier().clone()).collect();
            if before == after {
                return;
            }
        }
    }

    pub fn is_retired(&self, at: u8, of: u8) -> bool {
        self.cloud.replicas[usize::from(at)].view().retired().contains(id(of))
    }

    /// Rule `no-double-booking`, over the union of what `part` holds: entries beyond a cut left out.
    pub fn assert_sound(&mut self, part: &[u8]) {
        let cuts: BTreeMap<ReplicaId, u64> = part
            .iter()
            .flat_map(|n| {
                let retired = self.cloud.replicas[usize::from(*n)].view().retired();
                retired.replicas().map(|id| (id, retired.cut(id).unwrap())).collect::<Vec<_>>()
            })
            .collect();
        let counts = |entry: &&EntryId| cuts.get(&entry.author).is_none_or(|cut| entry.number <= *cut);
        let live = self.claimed.iter().filter(counts).count();
        assert!(live <= 100, "{live} claims of 100 live");
        for n in part {
            let fenced = self.replica(*n).fence().is_some();
            let view = self.replica(*n).view();
            assert!(view.ledger().is_conserved());
            // Who knows of a retirement holds what counts of the dead, and nothing else.
            for dead in view.retired().replicas().filter(|_| !fenced) {
                assert_eq!(view.retired().cut(dead), Some(view.frontier().number(dead)), "at {n}");
            }
        }
    }

    /// `part` agrees on everything.
    pub fn assert_equal(&mut self, part: &[u8]) {
        let states: BTreeSet<String> = part
            .iter()
            .map(|n| {
                let view = self.cloud.replicas[usize::from(*n)].view();
                format!("{} {:?} {:?}", view.digest(), view.frontier(), view.retired())
            })
            .collect();
        assert_eq!(states.len(), 1, "{states:#?}");
    }
}
