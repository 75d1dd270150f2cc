//! Every way in which a change of a ledger is void, and the arithmetic under it.
//!
//! Broken once each, to see these fail: `covers` that looks at one dimension only; a release that leaves its claim; a grant
//! that counts before the owner's frontier covers it; sums that wrap.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{host_at, member};
use luc_engine::entry::{Frontier, LedgerOp, Subject, Tip};
use luc_engine::id::{ClaimId, EntryId, PoolId, ReplicaId};
use luc_engine::interval::Intervals;
use luc_engine::ledger::{Amount, BadLedgerOp, Dimension, Judged, Ledger, Touched};
use luc_engine::record::{Kind, RecordId};
use luc_engine::retire::Retired;
use proptest::prelude::*;
use uuid::Uuid;

const SERVER: RecordId = RecordId { kind: Kind::Server, id: Uuid::from_u128(1) };

fn who(n: u8) -> ReplicaId {
    member(n).replica
}

fn vcpus(n: u64) -> Amount {
    [(Dimension::Vcpus, n)].into_iter().collect()
}

/// Members 0 to 2, a ledger, and what each of them has written and seen.
struct Table {
    ledger: Ledger,
    seen: Vec<Frontier>,
}

impl Table {
    /// A quota pool of 10 of member 0's; 1 has been granted 3, and has seen it; 2 has been granted 2, and has not.
    fn new() -> (Self, PoolId) {
        let mut table = Self { ledger: Ledger::default(), seen: vec![Frontier::default(); 3] };
        let mint =
            LedgerOp::Mint { subject: Subject::Quota { project: Uuid::nil() }, amount: vcpus(10), confirmed: false };
        let Touched::Pool(pool) = table.write(0, &mint).unwrap() else { panic!("a mint makes a pool") };
        table.write(0, &LedgerOp::Grant { pool, to: who(1), amount: vcpus(3) }).unwrap();
        table.hear(1, 0);
        table.hear(2, 0);
        table.write(0, &LedgerOp::Grant { pool, to: who(2), amount: vcpus(2) }).unwrap();
        (table, pool)
    }

    fn write(&mut self, by: u8, op: &LedgerOp) -> Result<Touched, BadLedgerOp> {
        let author = who(by);
        let number = self.seen[usize::from(by)].number(author) + 1;
        let mut frontier = self.seen[usize::from(by)].clone();
        frontier.set(author, Tip { number, hash: 0 });
        let is_member = |replica| (0..3).any(|n| who(n) == replica);
        let retired = Retired::default();
        let entry = EntryId { author, number };
        let judged = Judged {
            entry,
            author: entry.author,
            is_forked: false,
            frontier: &frontier,
            is_member: &is_member,
            retired: &retired,
        };
        let mut ledger = self.ledger.clone();
        let touched = ledger.apply(judged, 0, op)?;
        self.ledger = ledger;
        self.seen[usize::from(by)] = frontier;
        assert!(self.ledger.is_conserved(), "{op:?}");
        Ok(touched)
    }

    /// One takes all that another has written.
    fn hear(&mut self, to: u8, from: u8) {
        let number = self.seen[usize::from(from)].number(who(from));
        self.seen[usize::from(to)].set(who(from), Tip { number, hash: 0 });
    }

    fn claim(&mut self, by: u8, pool: PoolId, n: u64) -> Result<ClaimId, BadLedgerOp> {
        let op = LedgerOp::Claim { pool, amount: vcpus(n), record: SERVER, epoch: 0 };
        match self.write(by, &op)? {
            Touched::Claim(claim) => Ok(claim),
            Touched::Pool(_) => panic!("a claim makes a claim"),
        }
    }
}

#[test]
fn what_is_void_and_why() {
    let (mut table, pool) = Table::new();
    let claim = table.claim(1, pool, 1).unwrap();
    let nowhere = PoolId { entry: EntryId { author: who(0), number: 9 }, index: 0 };
    let unseen = PoolId { index: 7, ..pool };
    let no_claim = ClaimId { entry: EntryId { author: who(1), number: 9 }, index: 0 };
    let grant = |pool, to, n| LedgerOp::Grant { pool, to: who(to), amount: vcpus(n) };
    let spend = |pool, amount| LedgerOp::Claim { pool, amount, record: SERVER, epoch: 0 };
    let disk: Amount = [(Dimension::DiskGib, 1)].into_iter().collect();
    let short = |held, wanted| BadLedgerOp::NotHeld { pool, held: vcpus(held), wanted };
    let not_member = |to| BadLedgerOp::NotMember { pool, to: who(to) };
    let cases = [
        ("a pool that is nowhere", 1, spend(nowhere, vcpus(1)), BadLedgerOp::UnknownPool(nowhere)),
        ("a pool that its entry did not mint", 1, spend(unseen, vcpus(1)), BadLedgerOp::UnknownPool(unseen)),
        ("a holder that mints", 1, LedgerOp::Grow { pool, amount: vcpus(1) }, BadLedgerOp::NotRoot(pool)),
        ("more than can be counted", 0, LedgerOp::Grow { pool, amount: vcpus(u64::MAX) }, BadLedgerOp::Overflow(pool)),
        ("a claim of more than is left", 1, spend(pool, vcpus(3)), short(2, vcpus(3))),
        ("a claim in another dimension", 1, spend(pool, disk.clone()), short(2, disk)),
        ("a grant of more than is left", 1, grant(pool, 0, 3), short(2, vcpus(3))),
        ("burning more than is left", 0, LedgerOp::Burn { pool, amount: vcpus(6) }, short(5, vcpus(6))),
        ("a claim of a grant that it has not seen", 2, spend(pool, vcpus(1)), short(0, vcpus(1))),
        ("a claim of nothing", 1, spend(pool, Amount::default()), BadLedgerOp::Nothing(pool)),
        ("a grant of nothing", 1, grant(pool, 0, 0), BadLedgerOp::Nothing(pool)),
        ("burning nothing", 0, LedgerOp::Burn { pool, amount: vcpus(0) }, BadLedgerOp::Nothing(pool)),
        ("a grant to a stranger", 1, grant(pool, 7, 1), not_member(7)),
        ("a grant to itself", 1, grant(pool, 1, 1), not_member(1)),
        ("a release of another's claim", 0, LedgerOp::Release { claim }, BadLedgerOp::NotHolder(claim)),
        ("a release of no claim", 1, LedgerOp::Release { claim: no_claim }, BadLedgerOp::NotHolder(no_claim)),
        (
            "inheriting from the living",
            0,
            LedgerOp::Inherit { pool, from: who(1) },
            BadLedgerOp::NotHeir { pool, from: who(1) },
        ),
    ];
    for (what, by, op, expected) in cases {
        assert_eq!(table.write(by, &op), Err(expected), "{what}");
    }
    // What was refused left nothing behind.
    let held: Vec<Amount> = (0..3).map(|n| table.ledger.pool(pool).unwrap().free(who(n))).collect();
    assert_eq!(held, [vcpus(5), vcpus(2), vcpus(2)]);
}

#[test]
fn a_claim_on_a_host_is_released_with_its_agents_word_in_the_past() {
    let (mut table, _) = Table::new();
    let mint = LedgerOp::Mint { subject: Subject::Host(host_at(0)), amount: vcpus(4), confirmed: false };
    let Touched::Pool(pool) = table.write(0, &mint).unwrap() else { panic!("a mint makes a pool") };
    let claim = table.claim(0, pool, 4).unwrap();
    let release = LedgerOp::Release { claim };
    assert_eq!(table.write(0, &release), Err(BadLedgerOp::NoEvidence(claim)));
    // 1 brings the word; 0 has not seen that entry, then has.
    let word = EntryId { author: who(1), number: table.seen[1].number(who(1)) + 1 };
    table.seen[1].set(who(1), Tip { number: word.number, hash: 0 });
    table.ledger.note_gone(claim, word);
    assert_eq!(table.write(0, &release), Err(BadLedgerOp::NoEvidence(claim)), "it had not seen the word");
    table.hear(0, 1);
    assert_eq!(table.write(0, &release), Ok(Touched::Claim(claim)));
    assert_eq!(table.ledger.pool(pool).unwrap().free(who(0)), vcpus(4));
}

#[test]
fn a_release_counts_once() {
    let (mut table, pool) = Table::new();
    let claim = table.claim(1, pool, 3).unwrap();
    assert!(table.claim(1, pool, 1).is_err());
    assert_eq!(table.write(1, &LedgerOp::Release { claim }), Ok(Touched::Claim(claim)));
    for _ in 0..2 {
        assert_eq!(table.write(1, &LedgerOp::Release { claim }), Err(BadLedgerOp::NotHolder(claim)));
    }
    assert!(table.ledger.claim(claim).is_none() && table.ledger.claims_of(SERVER).next().is_none());
    assert_eq!(table.ledger.pool(pool).unwrap().free(who(1)), vcpus(3));
    // The agent's word about a claim that is settled changes nothing.
    table.ledger.note_gone(claim, claim.entry);
    assert!(table.ledger.claim(claim).is_none());
}

#[test]
fn a_grant_counts_from_where_its_receiver_has_seen_it() {
    let (mut table, pool) = Table::new();
    assert!(table.claim(2, pool, 1).is_err());
    table.hear(2, 0);
    let claim = table.claim(2, pool, 2).unwrap();
    // What comes back and what is granted on add up.
    table.write(2, &LedgerOp::Release { claim }).unwrap();
    table.write(2, &LedgerOp::Grant { pool, to: who(1), amount: vcpus(2) }).unwrap();
    assert!(table.claim(1, pool, 4).is_err());
    table.hear(1, 2);
    table.claim(1, pool, 5).unwrap();
}

const DIMENSIONS: [Dimension; 4] = [Dimension::Vcpus, Dimension::MemoryMib, Dimension::DiskGib, Dimension::Instances];

/// Small numbers, and those where sums overflow.
fn amount() -> impl Strategy<Value = Amount> {
    let n = prop_oneof![4 => 0_u64..5, 1 => u64::MAX - 3..=u64::MAX, 1 => any::<u64>()];
    proptest::collection::vec((proptest::sample::select(DIMENSIONS.to_vec()), n), 0..5)
        .prop_map(|parts| parts.into_iter().collect())
}

/// The same, one dimension at a time.
fn one_by_one(a: &Amount, b: &Amount, f: impl Fn(u64, u64) -> Option<u64>) -> Option<Vec<u64>> {
    DIMENSIONS.iter().map(|d| f(a.get(*d), b.get(*d))).collect()
}

fn plain(a: &Amount) -> Vec<u64> {
    DIMENSIONS.iter().map(|d| a.get(*d)).collect()
}

proptest! {
    #[test]
    fn amounts_are_vectors(a in amount(), b in amount(), n in 0_u64..4) {
        prop_assert_eq!(a.checked_add(&b).map(|c| plain(&c)), one_by_one(&a, &b, u64::checked_add));
        prop_assert_eq!(a.checked_sub(&b).map(|c| plain(&c)), one_by_one(&a, &b, u64::checked_sub));
        let total = |f: fn(u64, u64) -> u64| one_by_one(&a, &b, |x, y| Some(f(x, y))).unwrap();
        prop_assert_eq!(plain(&a.saturating_add(&b)), total(u64::saturating_add));
        prop_assert_eq!(plain(&a.saturating_sub(&b)), total(u64::saturating_sub));
        prop_assert_eq!(plain(&a.min(&b)), total(u64::min));
        prop_assert_eq!(plain(&a.max(&b)), total(u64::max));
        prop_assert_eq!(a.checked_mul(n).map(|c| plain(&c)), one_by_one(&a, &a, |x, _| x.checked_mul(n)));
        prop_assert_eq!(plain(&a.divided_by(n)), plain(&a).iter().map(|x| x.checked_div(n).unwrap_or(0)).collect::<Vec<_>>());
        prop_assert_eq!(a.covers(&b), a.checked_sub(&b).is_some());
        prop_assert_eq!(a.is_zero(), plain(&a).iter().all(|n| *n == 0));
    }

    #[test]
    fn what_is_taken_and_given_back_is_what_there_was(a in amount(), b in amount()) {
        if let Some(sum) = a.checked_add(&b) {
            prop_assert_eq!(sum.checked_sub(&b), Some(a.clone()));
            prop_assert_eq!(b.checked_add(&a), Some(sum));
        }
        if let Some(rest) = a.checked_sub(&b) {
            prop_assert_eq!(rest.checked_add(&b), Some(a.clone()));
        }
        prop_assert_eq!(a.min(&b).checked_add(&a.saturating_sub(&b)), Some(a));
    }

    /// However it was made, an amount has one form: equal amounts are equal bytes, and zeros are not named.
    #[test]
    fn equal_amounts_are_equal_bytes(a in amount(), b in amount()) {
        for made in [a.saturating_add(&b), a.saturating_sub(&b), a.min(&b), a.max(&b), a.divided_by(3)] {
            prop_assert!(made.iter().all(|(_, n)| n > 0));
            let again: Amount = DIMENSIONS.iter().rev().map(|d| (*d, made.get(*d))).collect();
            let bytes = rmp_serde::to_vec(&made).unwrap();
            prop_assert_eq!(&bytes, &rmp_serde::to_vec(&again).unwrap());
            prop_assert_eq!(rmp_serde::from_slice::<Amount>(&bytes).unwrap(), made);
        }
    }
}

#[test]
fn an_amount_that_is_not_canonical_does_not_decode() {
    use Dimension::{MemoryMib, Vcpus};
    for parts in [vec![(Vcpus, 0)], vec![(Vcpus, 1), (Vcpus, 1)], vec![(MemoryMib, 1), (Vcpus, 1)]] {
        let bytes = rmp_serde::to_vec(&(&parts, Intervals::none())).unwrap();
        assert!(rmp_serde::from_slice::<Amount>(&bytes).is_err(), "{parts:?}");
    }
}
