//! Where a server goes: filters, then weighers, over the hosts on which rights are held (`DESIGN.md`, "Scheduling").
//!
//! Home site first, locality is the point. Among the best few the choice is random: many sites look at the same
//! picture, and must not all pick the same host. The random bits come in as an argument.

use crate::id::{HostId, PoolId, ReplicaId};
use crate::ledger::{Amount, Dimension};
use crate::record::Host;
use crate::tx::{Shortage, shortage};
use crate::view::View;

/// Among how many of the best hosts the choice is random.
const BEST: usize = 3;

/// What is looked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The site to be in; any if none, the own one first.
    pub zone: Option<String>,
    /// The host to be on, if the user named one.
    pub host: Option<HostId>,
    /// What the server needs: vCPU, memory, disk.
    pub amount: Amount,
}

/// A host that will do, and the pool whose rights are to be spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The host.
    pub host: HostId,
    /// The pool.
    pub pool: PoolId,
}

/// Why no host will do. The text is Nova's, with the numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NoValidHost {
    /// Hosts in the zone that was asked for.
    pub in_zone: usize,
    /// Of them, disabled by their operator.
    pub disabled: usize,
    /// Of them, not heard of lately.
    pub down: usize,
    /// Of them, too small or too full, whoever holds the rights.
    pub full: usize,
    /// Of them, with room whose rights others hold, the roomiest first: ask those, then try again.
    pub short: Vec<Shortage>,
}

impl std::error::Error for NoValidHost {}
impl std::fmt::Display for NoValidHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { in_zone, disabled, down, full, short } = self;
        write!(f, "No valid host was found. Of {in_zone} hosts in the zone, {disabled} are disabled, {down} are down")?;
        write!(f, " and {full} have no room")?;
        if let Some(first) = short.first() {
            write!(f, "; {} have room whose rights are held elsewhere (the first: {first})", short.len())?;
        }
        Ok(())
    }
}

/// Whether a machine fits: the one feasibility function, for schedulers and agents.
#[must_use]
pub fn fits(capacity: &Amount, used: &Amount, wanted: &Amount) -> bool {
    used.checked_add(wanted).is_some_and(|sum| capacity.covers(&sum))
}

/// Chooses a host. `is_up` says whether a host was heard of lately; hosts of sites that are out of reach count as up
/// (they are unknown, not down). `random` decides among the best few.
///
/// # Errors
/// [`NoValidHost`] says how many hosts failed which filter, and whose rights would help.
pub fn choose(
    view: &View,
    me: ReplicaId,
    home: &str,
    request: &Request,
    is_up: &dyn Fn(HostId) -> bool,
    random: u64,
) -> Result<Choice, NoValidHost> {
    let mut none = NoValidHost::default();
    let mut ready: Vec<(bool, u64, Choice)> = Vec::new();
    for (id, host) in view.all::<Host>() {
        let id = HostId(id);
        let in_zone = request.zone.as_ref().is_none_or(|zone| *zone == host.site);
        if !in_zone || request.host.is_some_and(|wanted| wanted != id) {
            continue;
        }
        none.in_zone += 1;
        if host.disabled {
            none.disabled += 1;
        } else if !is_up(id) {
            none.down += 1;
        } else {
            let pools: Vec<PoolId> = view.ledger().host_pools(id).map(|(pool, _)| pool).collect();
            let held = |pool: &PoolId| view.ledger().pool(*pool).map(|pool| pool.free(me)).unwrap_or_default();
            match pools.iter().find(|pool| held(pool).covers(&request.amount)) {
                Some(pool) => {
                    ready.push((host.site == home, weight(&held(pool)), Choice { host: id, pool: *pool }));
                }
                None => sort_out(&mut none, shortage(view, me, &pools, &request.amount)),
            }
        }
    }
    ready.sort_by_key(|(at_home, weight, choice)| (std::cmp::Reverse((*at_home, *weight)), choice.host));
    let at_home = ready.first().is_some_and(|(at_home, _, _)| *at_home);
    ready.retain(|(home, _, _)| *home == at_home);
    ready.truncate(BEST);
    none.short.sort_by_key(|short| std::cmp::Reverse(weight(&short.capacity.saturating_sub(&short.claimed))));
    let count = u64::try_from(ready.len()).unwrap_or(1).max(1);
    let index = usize::try_from(random % count).unwrap_or(0);
    ready.get(index).map(|(_, _, choice)| *choice).ok_or(none)
}

fn sort_out(none: &mut NoValidHost, short: Shortage) {
    if short.suffices_elsewhere() {
        none.short.push(short);
    } else {
        none.full += 1;
    }
}

/// Nova's default weigher spreads by free memory.
fn weight(free: &Amount) -> u64 {
    free.get(Dimension::MemoryMib)
}
