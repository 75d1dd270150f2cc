//! Address pools: the rules of accounts over sets, against a naive model, under random causal schedules of several
//! replicas with loss, repetition, restarts and joins; what is void; and what it costs. The same for confirmed pools.
//!
//! Broken once each, to see these fail: a grant that leaves the giver's account as it was; a release that gives nothing
//! back; sums of sets that have an address in common; a claim of the highest addresses; numbers taken for addresses.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::Cloud;
use luc_engine::entry::{LedgerOp, Subject};
use luc_engine::id::{ClaimId, EntryId, PoolId, ReplicaId};
use luc_engine::interval::{Interval, Intervals};
use luc_engine::ledger::{Amount, BadLedgerOp, Dimension, MAX_FREE_INTERVALS, MAX_INTERVALS};
use luc_engine::record::{AddressPool, Kind, RecordId};
use luc_engine::replica::Invalid;
use luc_engine::tx::{Refusal, Tx};
use proptest::prelude::*;
use uuid::Uuid;

const OF: RecordId = RecordId { kind: Kind::AddressPool, id: Uuid::from_u128(7) };
/// Where the numbers of the model lie: `10.0.0.0`.
const BASE: u128 = 0xffff_0a00_0000;
/// How many of them the pool has at first, and how many there are.
const FIRST: u128 = 32;
const SPACE: u128 = 64;

fn run(from: u128, n: u128) -> Intervals {
    Intervals::from_iter(n.checked_sub(1).and_then(|more| Interval::new(BASE + from, BASE + from + more)))
}

fn naive(set: &Intervals) -> BTreeSet<u128> {
    set.iter().flat_map(|one| one.first()..=one.last()).collect()
}

fn any_of(n: u64) -> Amount {
    [(Dimension::Addresses, n)].into_iter().collect()
}

/// Makes the record, and its pool.
fn make(tx: &mut Tx<'_>, addresses: Intervals, confirmed: bool) -> Result<PoolId, Refusal> {
    tx.create(OF.id, AddressPool { name: "p".into(), ..AddressPool::default() }, &[])?;
    let subject = Subject::Addresses { of: OF };
    if confirmed { tx.mint_confirmed(subject, addresses.into()) } else { tx.mint(subject, addresses.into()) }
}

#[derive(Clone, Debug)]
enum Step {
    Grow {
        at: usize,
        from: u128,
        n: u128,
    },
    Burn {
        at: usize,
        from: u128,
        n: u128,
    },
    Grant {
        at: usize,
        to: usize,
        from: u128,
        n: u128,
    },
    /// As holders hand over what they are asked for.
    Gift {
        at: usize,
        to: usize,
        n: u64,
    },
    Claim {
        at: usize,
        from: u128,
        n: u128,
    },
    ClaimAny {
        at: usize,
        n: u64,
    },
    Release {
        at: usize,
        pick: usize,
    },
    Deliver {
        from: usize,
        to: usize,
        skip: usize,
        count: usize,
        reverse: bool,
    },
    /// The root does what it owes.
    Confirm,
    Restart {
        at: usize,
    },
    Join,
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0_usize..4;
    let span = (0..SPACE, 0_u128..6).prop_map(|(from, n)| (from, n.min(SPACE - from)));
    prop_oneof![
        1 => (0_usize..2, span.clone()).prop_map(|(at, (from, n))| Step::Grow { at, from, n }),
        1 => (at.clone(), span.clone()).prop_map(|(at, (from, n))| Step::Burn { at, from, n }),
        3 => (at.clone(), at.clone(), span.clone()).prop_map(|(at, to, (from, n))| Step::Grant { at, to, from, n }),
        4 => (at.clone(), at.clone(), 0_u64..9).prop_map(|(at, to, n)| Step::Gift { at, to, n }),
        4 => (at.clone(), span).prop_map(|(at, (from, n))| Step::Claim { at, from, n }),
        4 => (at.clone(), 0_u64..6).prop_map(|(at, n)| Step::ClaimAny { at, n }),
        4 => (at.clone(), any::<usize>()).prop_map(|(at, pick)| Step::Release { at, pick }),
        8 => (at.clone(), at.clone(), 0_usize..20, 1_usize..20, any::<bool>())
            .prop_map(|(from, to, skip, count, reverse)| Step::Deliver { from, to, skip, count, reverse }),
        2 => Just(Step::Confirm),
        1 => at.prop_map(|at| Step::Restart { at }),
        1 => Just(Step::Join),
    ]
}

/// Where one address is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Right {
    /// With its owner, once that has seen the grant, and the root's word if it needs one.
    Free {
        owner: ReplicaId,
        by: Option<EntryId>,
        word: Word,
    },
    Claimed(ClaimId),
    Burnt,
}

/// Whether a grant counts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Word {
    NotNeeded,
    Awaited,
    Given(EntryId),
}

fn here(owner: ReplicaId) -> Right {
    Right::Free { owner, by: None, word: Word::NotNeeded }
}

struct World {
    cloud: Cloud,
    confirmed: bool,
    pool: PoolId,
    rights: BTreeMap<u128, Right>,
}

impl World {
    fn new(confirmed: bool) -> Self {
        let mut cloud = Cloud::new(2);
        let (pool, _) = cloud.replicas[0].transact(1, |tx| make(tx, run(0, FIRST), confirmed)).unwrap();
        cloud.exchange_all();
        let owner = cloud.replicas[0].identity().replica();
        let rights = naive(&run(0, FIRST)).into_iter().map(|n| (n, here(owner))).collect();
        Self { cloud, confirmed, pool, rights }
    }

    fn me(&self, at: usize) -> ReplicaId {
        self.cloud.replicas[at].identity().replica()
    }

    /// What a replica can spend now.
    fn spendable(&self, at: usize) -> BTreeSet<u128> {
        let (me, frontier) = (self.me(at), self.cloud.replicas[at].view().frontier());
        let mine = |right: &Right| {
            matches!(right, Right::Free { owner, by, word }
            if *owner == me && by.is_none_or(|entry| frontier.holds(entry)) && match word {
                Word::NotNeeded => true,
                Word::Awaited => false,
                Word::Given(entry) => frontier.holds(*entry),
            })
        };
        self.rights.iter().filter(|(_, right)| mine(right)).map(|(n, _)| *n).collect()
    }

    /// A write, durable at once: what is lost in a restart is only what others wrote.
    fn write<T>(
        &mut self,
        at: usize,
        f: impl FnOnce(&mut Tx<'_>) -> Result<T, Refusal>,
    ) -> Result<(T, Option<EntryId>), Refusal> {
        let now = self.cloud.tick();
        let replica = &mut self.cloud.replicas[at];
        let written = replica.transact(now, f);
        assert!(written.is_ok() || !matches!(written, Err(Refusal::Store(_) | Refusal::Fenced(_))));
        replica.flush().unwrap();
        written
    }

    fn set(&mut self, addresses: &BTreeSet<u128>, right: Right) {
        self.rights.extend(addresses.iter().map(|n| (*n, right)));
    }

    fn run(&mut self, step: Step) {
        let count = self.cloud.replicas.len();
        let pool = self.pool;
        match step {
            Step::Grow { at, from, n } => {
                let set = naive(&run(from, n));
                let is_new = set.iter().all(|n| !self.rights.contains_key(n));
                let grown = self.write(at % count, |tx| tx.grow(pool, run(from, n).into()));
                assert_eq!(grown.is_ok(), at % count == 0 && is_new, "{grown:?}");
                if grown.is_ok() {
                    self.set(&set, here(self.me(0)));
                }
            }
            Step::Burn { at, from, n } => {
                let set = naive(&run(from, n));
                let may = n > 0 && set.is_subset(&self.spendable(at % count));
                let burnt = self.write(at % count, |tx| tx.burn(pool, run(from, n).into()));
                assert_eq!(burnt.is_ok(), may, "{burnt:?}");
                if may {
                    self.set(&set, Right::Burnt);
                }
            }
            Step::Grant { at, to, from, n } => self.grant(at % count, to % count, run(from, n), true),
            Step::Gift { at, to, n } => {
                let free =
                    self.cloud.replicas[at % count].view().ledger().pool(pool).unwrap().free(self.me(at % count));
                let gift = free.gift(&any_of(n));
                let len = gift.addresses().count();
                assert!(len >= n.min(free.addresses().count()), "{gift} of {free} for {n}");
                self.grant(at % count, to % count, gift.addresses().clone(), false);
            }
            Step::Claim { at, from, n } => {
                let set = naive(&run(from, n));
                let may = n > 0 && set.is_subset(&self.spendable(at % count));
                let claimed = self.write(at % count, |tx| tx.claim(&[pool], &run(from, n).into(), OF, 0));
                assert_eq!(claimed.is_ok(), may, "{claimed:?}");
                if let Ok((claim, _)) = claimed {
                    self.set(&set, Right::Claimed(claim));
                }
            }
            Step::ClaimAny { at, n } => self.claim_any(at % count, n),
            Step::Release { at, pick } => self.release(at % count, pick),
            Step::Deliver { from, to, skip, count: some, reverse } => {
                self.cloud.pass(from % count, to % count, skip..skip + some, reverse);
            }
            Step::Confirm => self.confirm(),
            Step::Restart { at } => self.cloud.restart(at % count),
            Step::Join => {
                if count < 4 {
                    self.cloud.join(u8::try_from(count).unwrap());
                }
            }
        }
        self.check();
    }

    fn grant(&mut self, at: usize, to: usize, addresses: Intervals, named: bool) {
        let (pool, set, receiver) = (self.pool, naive(&addresses), self.me(to));
        let known = at != to && self.cloud.replicas[at].view().member(receiver).is_some();
        let may = known && !set.is_empty() && set.is_subset(&self.spendable(at));
        let granted = self.write(at, |tx| tx.grant(pool, receiver, addresses.into()));
        assert_eq!(granted.is_ok(), may, "{granted:?}");
        assert!(named || !known || set.is_empty() || may, "a gift is of what is free");
        if let Ok((_, by)) = granted {
            let word = if self.confirmed && at > 0 { Word::Awaited } else { Word::NotNeeded };
            self.set(&set, Right::Free { owner: receiver, by, word });
        }
    }

    fn claim_any(&mut self, at: usize, n: u64) {
        let (pool, free) = (self.pool, self.spendable(at));
        let claimed = self.write(at, |tx| tx.claim(&[pool], &any_of(n), OF, 0));
        let may = n > 0 && u64::try_from(free.len()).unwrap() >= n;
        assert_eq!(claimed.is_ok(), may, "{claimed:?}");
        match claimed {
            Ok((claim, _)) => {
                let lowest: BTreeSet<u128> = free.into_iter().take(usize::try_from(n).unwrap()).collect();
                let row = self.cloud.replicas[at].view().ledger().claim(claim).unwrap().clone();
                assert_eq!(naive(row.amount.addresses()), lowest);
                self.set(&lowest, Right::Claimed(claim));
            }
            // What it says is in the terms of what was asked for.
            Err(Refusal::Shortage(short)) => {
                assert_eq!(short.free_here.get(Dimension::Addresses), u64::try_from(free.len()).unwrap());
                assert!(short.free_here.addresses().is_empty() && short.wanted == any_of(n));
            }
            Err(other) => assert!(n == 0, "{other}"),
        }
    }

    fn release(&mut self, at: usize, pick: usize) {
        let claims: BTreeSet<ClaimId> =
            self.rights.values().filter_map(|r| if let Right::Claimed(id) = r { Some(*id) } else { None }).collect();
        let Some(at_pick) = pick.checked_rem(claims.len()) else { return };
        let claim = *claims.iter().nth(at_pick).unwrap();
        let released = self.write(at, |tx| tx.release(claim));
        assert_eq!(released.is_ok(), claim.entry.author == self.me(at), "{released:?}");
        if released.is_ok() {
            let back = here(self.me(at));
            self.rights.values_mut().filter(|right| **right == Right::Claimed(claim)).for_each(|right| *right = back);
            assert!(self.write(at, |tx| tx.release(claim)).is_err(), "a release counts once");
        }
    }

    fn confirm(&mut self) {
        let (me, now) = (self.me(0), self.cloud.tick());
        let root = &mut self.cloud.replicas[0];
        let wrote = root.confirm(now).unwrap();
        root.flush().unwrap();
        let view = self.cloud.replicas[0].view();
        let entry = EntryId { author: me, number: view.frontier().number(me) };
        let mut any = false;
        for right in self.rights.values_mut() {
            if let Right::Free { by: Some(by), word, .. } = right
                && *word == Word::Awaited
                && view.frontier().holds(*by)
            {
                (*word, any) = (Word::Given(entry), true);
            }
        }
        assert_eq!(wrote, any);
    }

    fn check(&self) {
        for (at, replica) in self.cloud.replicas.iter().enumerate() {
            let ledger = replica.view().ledger();
            assert!(ledger.is_conserved());
            let pool = ledger.pool(self.pool).unwrap();
            assert_eq!(naive(pool.free(self.me(at)).addresses()), self.spendable(at));
        }
    }

    fn of(&self, is: impl Fn(&Right) -> bool) -> BTreeSet<u128> {
        self.rights.iter().filter(|(_, right)| is(right)).map(|(n, _)| *n).collect()
    }

    /// Everybody has everything: all views are the model.
    fn finish(mut self) {
        self.cloud.exchange_all();
        self.confirm();
        self.cloud.exchange_all();
        self.check();
        let first = self.cloud.replicas[0].view().clone();
        for at in 0..self.cloud.replicas.len() {
            assert_eq!(self.cloud.replicas[at].view().digest(), first.digest());
            self.cloud.restart(at);
            assert_eq!(self.cloud.replicas[at].view().digest(), first.digest());
        }
        let pool = first.ledger().pool(self.pool).unwrap();
        for at in 0..self.cloud.replicas.len() {
            let me = self.me(at);
            let mine = self.of(|right| matches!(right, Right::Free { owner, .. } if *owner == me));
            assert_eq!(naive(pool.free(me).addresses()), mine);
        }
        assert_eq!(naive(pool.burnt.addresses()), self.of(|right| *right == Right::Burnt));
        assert_eq!(naive(pool.claimed.addresses()), self.of(|right| matches!(right, Right::Claimed(_))));
        assert_eq!(naive(pool.capacity().addresses()), self.of(|right| *right != Right::Burnt));
        for (id, claim) in first.ledger().claims() {
            assert_eq!(naive(claim.amount.addresses()), self.of(|right| *right == Right::Claimed(*id)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_address_is_in_one_place(confirmed in proptest::bool::ANY, steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new(confirmed);
        steps.into_iter().for_each(|step| world.run(step));
        world.finish();
    }
}

fn bad<T>(refused: Result<T, Refusal>) -> BadLedgerOp {
    match refused {
        Err(Refusal::Invalid(Invalid::Ledger { source, .. })) => source,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was taken"),
    }
}

#[test]
fn what_is_void_and_why() {
    let mut cloud = Cloud::new(0);
    let replica = &mut cloud.replicas[0];
    let (pool, _) = replica.transact(1, |tx| make(tx, run(0, 8), false)).unwrap();
    let count: Amount = [(Dimension::Vcpus, 1)].into_iter().collect();
    let both = count.checked_add(&run(0, 1).into()).unwrap();
    let (quota, _) = replica
        .transact::<_, Refusal>(1, |tx| {
            tx.mint(Subject::Quota { project: OF.id }, [(Dimension::Vcpus, 5)].into_iter().collect())
        })
        .unwrap();
    let crumbs = |n: u128| Amount::from((0..n).map(|i| Interval::new(2 * i, 2 * i).unwrap()).collect::<Intervals>());
    let pieces = MAX_INTERVALS as u128;
    let wrong = |id| BadLedgerOp::WrongKind(id);
    let mut write = |f: &dyn Fn(&mut Tx<'_>) -> Result<(), Refusal>| bad(replica.transact(2, |tx| f(tx)));
    for amount in [count, both.clone(), any_of(1)] {
        assert_eq!(write(&|tx| tx.burn(pool, amount.clone())), wrong(pool), "numbers for addresses: {amount}");
        assert_eq!(write(&|tx| tx.grow(pool, amount.clone())), wrong(pool));
    }
    for amount in [run(0, 1).into(), both, any_of(1)] {
        assert_eq!(write(&|tx| tx.burn(quota, amount.clone())), wrong(quota), "addresses for numbers: {amount}");
        assert_eq!(write(&|tx| tx.grow(quota, amount.clone())), wrong(quota));
    }
    assert_eq!(write(&|tx| tx.grow(pool, run(7, 2).into())), BadLedgerOp::Overflow(pool), "it has that address");
    assert_eq!(write(&|tx| tx.grow(pool, crumbs(pieces + 1))), BadLedgerOp::Fragmented(pool));
    assert!(matches!(write(&|tx| tx.burn(pool, run(7, 2).into())), BadLedgerOp::NotHeld { .. }), "not all of it");
    let minted = |amount: Amount| bad_mint(&mut cloud, amount);
    [any_of(3), [(Dimension::Votes, 1)].into_iter().collect()].into_iter().for_each(minted);
    let replica = &mut cloud.replicas[0];
    replica.transact::<_, Refusal>(3, |tx| tx.grow(pool, crumbs(pieces))).unwrap();
    // What was burnt never comes back to this pool.
    replica.transact::<_, Refusal>(3, |tx| tx.burn(pool, run(4, 4).into())).unwrap();
    assert_eq!(bad(replica.transact(4, |tx| tx.grow(pool, run(4, 1).into()))), BadLedgerOp::Overflow(pool));
}

fn bad_mint(cloud: &mut Cloud, amount: Amount) {
    let subject = Subject::Addresses { of: RecordId { id: Uuid::from_u128(9), ..OF } };
    let refused = bad(cloud.replicas[0].transact::<_, Refusal>(2, |tx| tx.mint(subject, amount)));
    assert!(matches!(refused, BadLedgerOp::WrongKind(_)), "{refused}");
}

/// Whoever mints another pool in a record's name adds nothing to what the record has.
#[test]
fn a_records_pool_is_the_one_that_was_made_with_it() {
    let mut cloud = Cloud::new(1);
    let (before, _) = cloud.replicas[1]
        .transact::<_, Refusal>(1, |tx| tx.mint(Subject::Addresses { of: OF }, run(0, 8).into()))
        .unwrap();
    let (pool, _) = cloud.replicas[0].transact(1, |tx| make(tx, run(0, 8), false)).unwrap();
    cloud.exchange_all();
    let (after, _) = cloud.replicas[1]
        .transact::<_, Refusal>(2, |tx| tx.mint(Subject::Addresses { of: OF }, run(0, 8).into()))
        .unwrap();
    cloud.exchange_all();
    for replica in &cloud.replicas {
        assert_eq!(replica.view().ledger().address_pools(OF).count(), 3);
        assert!(replica.view().address_pool(OF) == Some(pool) && pool != before && pool != after);
    }
}

/// What one entry after the other costs to send and to hold, for the same work.
fn cost(pool: &Intervals) -> Vec<usize> {
    let mut cloud = Cloud::new(1);
    let to = cloud.replicas[1].identity().replica();
    let (id, _) = cloud.replicas[0].transact(1, |tx| make(tx, pool.clone(), false)).unwrap();
    for n in 2..6 {
        cloud.replicas[0]
            .transact::<_, Refusal>(n, |tx| {
                let free = tx.view().ledger().pool(id).unwrap().free(tx.me());
                tx.grant(id, to, free.gift(&any_of(1)))?;
                tx.claim(&[id], &any_of(1), OF, 0).map(drop)
            })
            .unwrap_or_default();
    }
    cloud.exchange_all();
    let sent = cloud.log(0).into_values().map(|bytes| bytes.len());
    let ledger = cloud.replicas[1].view().ledger();
    let held = ledger.pool(id).unwrap();
    let pieces = held.accounts().map(|(_, free)| free.addresses().pieces());
    sent.chain(pieces).chain([held.minted.addresses().pieces(), held.claimed.addresses().pieces()]).collect()
}

/// Work counts intervals, never addresses: the same steps on the largest pools need as many intervals as on a small one, and
/// entries of the same size but for the length of the numbers.
#[test]
fn the_largest_pools_cost_what_a_small_one_costs() {
    let of = |text: &str| Intervals::from_iter([text.parse::<Interval>().unwrap()]);
    let small = cost(&of("192.0.2.0/26"));
    for large in ["10.0.0.0/8", "2001:db8::/64", "::/1"] {
        let large = cost(&of(large));
        assert_eq!(small.len(), large.len());
        for (small, large) in small.iter().zip(&large) {
            assert!(large.abs_diff(*small) <= 96, "{small} and {large}");
        }
        let intervals = |cost: &[usize]| cost[cost.len() - 4..].to_vec();
        assert_eq!(intervals(&small), intervals(&large));
    }
}

/// An operation names its pool and its intervals: nothing else of a pool travels.
#[test]
fn an_operation_is_small() {
    let pool = PoolId { entry: EntryId { author: ReplicaId(OF.id), number: 1 }, index: 0 };
    let op = |amount: Amount| rmp_serde::to_vec(&LedgerOp::Burn { pool, amount }).unwrap().len();
    assert!(op(run(3, 1).into()) <= op(Amount::default()) + 12);
    assert!(
        op(Intervals::from_iter(["2001:db8::/64".parse::<Interval>().unwrap()]).into()) <= op(Amount::default()) + 32
    );
}

/// What comes back is taken back, in however many pieces: a limit must not keep rights from their holder, nor a holder that
/// is over it from spending.
#[test]
fn too_many_pieces_stop_new_ones_and_nothing_else() {
    let mut cloud = Cloud::new(0);
    let replica = &mut cloud.replicas[0];
    let (pool, _) = replica.transact(1, |tx| make(tx, run(0, 1 << 20), false)).unwrap();
    let every_second = |from: u128, n: u128| {
        Amount::from(
            (0..n).map(|i| Interval::new(BASE + from + 2 * i, BASE + from + 2 * i).unwrap()).collect::<Intervals>(),
        )
    };
    let (step, limit) = (1_000_u128, MAX_FREE_INTERVALS as u128);
    let mut claims = Vec::new();
    let refused = (0..).find_map(|i| {
        let amount = every_second(2 * step * i, step);
        match replica.transact::<_, Refusal>(2, |tx| tx.claim(&[pool], &amount, OF, 0)) {
            Ok((claim, _)) => {
                claims.push(claim);
                None
            }
            refused => Some(bad(refused)),
        }
    });
    assert_eq!(refused, Some(BadLedgerOp::Fragmented(pool)));
    assert_eq!(claims.len() as u128, limit / step);
    // Spending that makes no new pieces goes on; and all come back.
    let end = 1 << 19;
    replica.transact::<_, Refusal>(3, |tx| tx.burn(pool, run(end, end).into())).unwrap();
    for claim in claims {
        replica.transact::<_, Refusal>(4, |tx| tx.release(claim)).unwrap();
    }
    let free = replica.view().ledger().pool(pool).unwrap().free(replica.identity().replica());
    assert_eq!(free, run(0, end).into());
}
