//! Operations on pools of addresses: what a pool hands out is not a number, but these addresses and no others.

use luc_engine::entry::Subject;
use luc_engine::id::PoolId;
use luc_engine::interval::{Interval, Intervals};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Address, AddressPool, Kind, RecordId};
use luc_engine::replica::WHOLE_CLOUD;
use luc_engine::tx::{Refusal, Tx};
use luc_sync::agents::others;
use uuid::Uuid;

/// Where the addresses of every pool lie: `10.0.0.0`.
const BASE: u128 = 0xffff_0a00_0000;
/// How many of them there are; a pool has some from the first on, and grows.
pub(super) const SPACE: u64 = 96;

/// So many of any addresses.
pub(super) fn any_of(n: u64) -> Amount {
    std::iter::once((Dimension::Addresses, n)).collect()
}

fn run(from: u64, n: u64) -> Intervals {
    let first = BASE + u128::from(from.min(SPACE));
    let last = (first + u128::from(n)).min(BASE + u128::from(SPACE));
    Intervals::from_iter(last.checked_sub(1).and_then(|last| Interval::new(first, last)))
}

/// A pool with its first addresses, some of which every member gets.
pub(super) fn make(tx: &mut Tx<'_>, id: Uuid, size: u64, confirmed: bool) -> Result<Uuid, Refusal> {
    let id = tx.fresh(Kind::AddressPool, id);
    let name = format!("a-{id}");
    let record = tx.create(id, AddressPool { name: name.clone(), ..AddressPool::default() }, &[])?;
    tx.bind(WHOLE_CLOUD, &name, record)?;
    let (subject, all) = (Subject::Addresses { of: record }, Amount::from(run(0, size)));
    let pool = if confirmed { tx.mint_confirmed(subject, all)? } else { tx.mint(subject, all)? };
    let to = others(tx.view(), tx.me());
    let share = size / (u64::try_from(to.len()).unwrap_or(u64::MAX).saturating_add(1));
    for (to, place) in to.into_iter().zip(1..).filter(|_| share > 0) {
        // Not a gift as who asks gets it: that is half of what is free at least, and nothing would be left for the last.
        tx.grant(pool, to, run(place * share, share).into())?;
    }
    Ok(id)
}

/// The pool of a record.
pub(super) fn pool_of(tx: &Tx<'_>, pool: Option<Uuid>) -> Option<(RecordId, PoolId)> {
    let record = RecordId { kind: Kind::AddressPool, id: pool? };
    tx.view().get::<AddressPool>(record.id)?;
    Some((record, tx.view().address_pool(record)?))
}

fn free(tx: &Tx<'_>, pool: PoolId) -> Amount {
    tx.view().ledger().pool(pool).map(|pool| pool.free(tx.me())).unwrap_or_default()
}

/// The record of some addresses that are taken; the claim is the caller's.
pub(super) fn record(tx: &mut Tx<'_>, id: Uuid, of: RecordId) -> Result<RecordId, Refusal> {
    let id = tx.fresh(Kind::Address, id);
    tx.create(id, Address { pool: of.id, ..Address::default() }, &[of])
}

/// Mints more into a pool that is rooted here, if there is one: behind all that it has, or wherever the caller likes, and the
/// engine refuses what the pool has or had.
pub(super) fn grow(tx: &mut Tx<'_>, pool: Option<Uuid>, from: u64, n: u64) -> Result<(), Refusal> {
    let is_mine = |id: PoolId| tx.view().retired().acts_for(tx.me(), id.entry.author);
    let rooted = || {
        let pools = tx.view().ledger().pools().filter(|(_, pool)| matches!(pool.subject, Subject::Addresses { .. }));
        let mine = pools.map(|(id, _)| *id).filter(|id| is_mine(*id)).collect::<Vec<_>>();
        super::rng::pick(&mine, from)
    };
    let asked = pool_of(tx, pool).map(|(_, pool)| pool).filter(|pool| is_mine(*pool));
    let Some(pool) = asked.or_else(rooted) else { return Ok(()) };
    let minted = tx.view().ledger().pool(pool).map(|pool| pool.minted.clone()).unwrap_or_default();
    let behind = minted.addresses().iter().map(|run| run.last() + 1).max().unwrap_or(BASE);
    let behind = u64::try_from(behind.saturating_sub(BASE)).unwrap_or(SPACE);
    tx.grow(pool, run(if from.is_multiple_of(3) { from } else { behind }, n).into())
}

/// Burns some that are free here.
pub(super) fn burn(tx: &mut Tx<'_>, pool: Option<Uuid>, n: u64) -> Result<(), Refusal> {
    let Some((_, pool)) = pool_of(tx, pool) else { return Ok(()) };
    let gone = free(tx, pool).gift(&any_of(n));
    if gone.is_zero() { Ok(()) } else { tx.burn(pool, gone) }
}
