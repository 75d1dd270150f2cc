//! LUC's design under the load: the engine's ledger and the policy of `sync/src/demand.rs` at eight sites, on virtual
//! time. What a site does is what `sync/src/{net,rpc}.rs` and `api/src/compute/create.rs` do; entries are not signed and
//! not flushed here, which changes no decision.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use luc_engine::entry::{Frontier, LedgerOp, Subject, Tip};
use luc_engine::id::{ClaimId, EntryId, Millis, PoolId, ReplicaId};
use luc_engine::ledger::{Amount, Dimension, Judged, Ledger, Pool};
use luc_engine::record::{Kind, RecordId};
use luc_engine::retire::Retired;
use luc_engine::tx::Shortage;
use luc_sync::demand::{self, Demand};
use uuid::Uuid;

use crate::load::{CAPACITY, CUT, HEAL, Load, Micros, SECOND, SITES, STEADY, Verdict};
use jepsen::parts::Fallible;

/// One way, between any two sites.
const DELAY: Micros = 25_000;
/// How long an answer is waited for: two round trips, and what the holder does meanwhile (`wait` of `sync/src/rpc.rs`).
const LIMIT: Micros = 4 * DELAY + 500_000;
/// After so long a silence a site counts as out of reach (`SILENT` of `sync/src/reach.rs`).
const SILENT: Micros = 2_500_000;
/// How often a request is tried, with questions between (`TRIES` of `api/src/compute/create.rs`).
const TRIES: u32 = 4;

/// What came of a run.
pub(crate) struct Outcome {
    /// One for each arrival.
    pub(crate) verdicts: Vec<Verdict>,
    /// When others were asked ahead of need.
    pub(crate) asked_ahead: Vec<Micros>,
    /// What could have been: in the steady state, requests while anything was free, and of these the share that would have
    /// met a right at their site, had every free right lain where the next request was likeliest.
    pub(crate) ideal: (u64, f64),
}

/// Runs a load.
pub(crate) fn run(load: &Load) -> Fallible<Outcome> {
    let mut world = World::new(load)?;
    for index in 0..load.arrivals.len() {
        world.at(load.arrivals.get(index).map_or(0, |arrival| arrival.at), Event::Arrive(index));
    }
    while let Some(((now, _), event)) = world.queue.pop_first() {
        if now >= HEAL {
            break;
        }
        world.now = now;
        world.handle(event)?;
    }
    Ok(Outcome { verdicts: world.verdicts, asked_ahead: world.asked_ahead, ideal: world.ideal })
}

struct World<'a> {
    load: &'a Load,
    sites: Vec<Site>,
    pool: PoolId,
    now: Micros,
    queue: BTreeMap<(Micros, u64), Event>,
    next: u64,
    asks: BTreeMap<u64, Ask>,
    live: u64,
    verdicts: Vec<Verdict>,
    asked_ahead: Vec<Micros>,
    ideal: (u64, f64),
}

struct Site {
    replica: ReplicaId,
    ledger: Ledger,
    frontier: Frontier,
    demand: Demand,
}

/// An entry, as far as ledgers go.
struct Written {
    id: EntryId,
    frontier: Frontier,
    ops: Vec<LedgerOp>,
}

/// A request that waits for rights.
struct Ask {
    arrival: usize,
    left: u32,
    holders: Vec<usize>,
    missing: Amount,
    came: bool,
    silent: BTreeSet<usize>,
    turn: u64,
}

#[derive(Clone, Copy)]
enum Why {
    Ahead,
    Short { ask: u64, turn: u64 },
}

enum Event {
    Arrive(usize),
    Release { site: usize, claim: ClaimId },
    Deliver { from: usize, to: usize, entry: Rc<Written> },
    Request { from: usize, to: usize, amount: Amount, why: Why },
    Answer { from: usize, to: usize, granted: Amount, entry: Option<Rc<Written>>, why: Why },
    Limit { ask: u64, turn: u64 },
}

fn one() -> Amount {
    [(Dimension::Instances, 1)].into_iter().collect()
}

impl<'a> World<'a> {
    /// The first site has minted the pool and shared it, as `luc_sync::join::mint_quota` does.
    fn new(load: &'a Load) -> Fallible<Self> {
        let site = |n: usize| Site {
            replica: ReplicaId(Uuid::from_u128(n as u128 + 1)),
            ledger: Ledger::default(),
            frontier: Frontier::default(),
            demand: Demand::default(),
        };
        let sites: Vec<Site> = (0..SITES).map(site).collect();
        let root = sites.first().ok_or("no site")?.replica;
        let pool = PoolId { entry: EntryId { author: root, number: 1 }, index: 0 };
        let all = |n: u64| [(Dimension::Instances, n)].into_iter().collect::<Amount>();
        let mut ops = vec![LedgerOp::Mint {
            subject: Subject::Quota { project: Uuid::from_u128(1) },
            amount: all(CAPACITY),
            confirmed: false,
        }];
        let share = all(CAPACITY / SITES as u64);
        ops.extend(sites.iter().skip(1).map(|site| LedgerOp::Grant { pool, to: site.replica, amount: share.clone() }));
        let mut world = Self {
            load,
            sites,
            pool,
            now: 0,
            queue: BTreeMap::new(),
            next: 0,
            asks: BTreeMap::new(),
            live: 0,
            // Whoever still waits when the run ends was not refused.
            verdicts: vec![Verdict::Asked; load.arrivals.len()],
            asked_ahead: Vec::new(),
            ideal: (0, 0.0),
        };
        let entry = world.write(0, ops)?;
        for to in 1..SITES {
            world.deliver(to, &entry)?;
        }
        world.queue.clear();
        Ok(world)
    }

    fn at(&mut self, when: Micros, event: Event) {
        self.next += 1;
        self.queue.insert((when, self.next), event);
    }

    fn handle(&mut self, event: Event) -> Fallible<()> {
        match event {
            Event::Arrive(arrival) => {
                let free = usize::try_from(CAPACITY - self.live)?;
                if (STEADY..CUT).contains(&self.now) && free > 0 {
                    self.ideal.0 += 1;
                    self.ideal.1 += self.load.shares.iter().take(free).sum::<f64>();
                }
                self.attempt(arrival, TRIES)
            }
            Event::Release { site, claim } => {
                self.live -= 1;
                self.write(site, vec![LedgerOp::Release { claim }]).map(drop)
            }
            Event::Deliver { from, to, entry } if !self.load.is_cut(from, to, self.now) => self.deliver(to, &entry),
            Event::Request { from, to, amount, why } if !self.load.is_cut(from, to, self.now) => {
                self.grant(from, to, &amount, why)
            }
            Event::Answer { from, to, granted, entry, why } if !self.load.is_cut(from, to, self.now) => {
                if let Some(entry) = entry {
                    self.deliver(to, &entry)?;
                }
                self.answered(&granted, why)
            }
            Event::Limit { ask, turn } => match self.asks.get_mut(&ask).filter(|ask| ask.turn == turn) {
                Some(waiting) => {
                    waiting.silent.extend(waiting.holders.pop());
                    self.next_holder(ask)
                }
                None => Ok(()),
            },
            Event::Deliver { .. } | Event::Request { .. } | Event::Answer { .. } => Ok(()),
        }
    }

    /// Tries to claim one, and asks others if it is short, `left` times in all.
    fn attempt(&mut self, arrival: usize, left: u32) -> Fallible<()> {
        let request = *self.load.arrivals.get(arrival).ok_or("no such arrival")?;
        let (site, wanted) = (request.site, one());
        let Site { ledger, replica, .. } = self.site(site)?;
        let pool = ledger.pool(self.pool).ok_or("no pool")?;
        if pool.free(*replica).covers(&wanted) {
            let record = RecordId { kind: Kind::Server, id: Uuid::from_u128(arrival as u128) };
            let entry =
                self.write(site, vec![LedgerOp::Claim { pool: self.pool, amount: wanted, record, epoch: 0 }])?;
            self.live += 1;
            self.at(self.now + request.lifetime, Event::Release { site, claim: ClaimId { entry: entry.id, index: 0 } });
            self.set(arrival, if left == TRIES { Verdict::Here } else { Verdict::Asked });
            return self.ask_ahead(site);
        }
        let short = shortage(self.pool, pool, *replica, wanted);
        if left <= 1 || !short.suffices_elsewhere() {
            self.set(arrival, if self.live < CAPACITY { Verdict::False } else { Verdict::Full });
            return Ok(());
        }
        let missing = short.wanted.saturating_sub(&short.free_here);
        let mut holders: Vec<usize> =
            demand::holders(&short, &missing).into_iter().filter_map(|(replica, _)| self.index(replica)).collect();
        holders.reverse();
        let ask = Ask { arrival, left, holders, missing, came: false, silent: BTreeSet::new(), turn: 0 };
        self.next += 1;
        let id = self.next;
        self.asks.insert(id, ask);
        self.next_holder(id)
    }

    /// Asks the next holder of those that can be reached; the last of the list is asked first.
    fn next_holder(&mut self, id: u64) -> Fallible<()> {
        let ask = self.asks.get_mut(&id).ok_or("no such question")?;
        ask.turn += 1;
        let (turn, arrival) = (ask.turn, ask.arrival);
        let from = self.load.arrivals.get(arrival).ok_or("no such arrival")?.site;
        let out_of_reach = |to: &usize, now| now >= CUT + SILENT && self.load.is_cut(from, *to, now);
        while ask.holders.last().is_some_and(|to| out_of_reach(to, self.now) || ask.silent.contains(to)) {
            ask.holders.pop();
        }
        match ask.holders.last().copied().filter(|_| !ask.missing.is_zero()) {
            Some(to) => {
                let (amount, why) = (ask.missing.clone(), Why::Short { ask: id, turn });
                self.at(self.now + DELAY, Event::Request { from, to, amount, why });
                self.at(self.now + LIMIT, Event::Limit { ask: id, turn });
                Ok(())
            }
            None => {
                let Ask { arrival, left, came, .. } = self.asks.remove(&id).ok_or("no such question")?;
                // If nothing came, the shortage stands.
                self.attempt(arrival, if came { left - 1 } else { 1 })
            }
        }
    }

    /// A holder gives what it can.
    fn grant(&mut self, asker: usize, holder: usize, amount: &Amount, why: Why) -> Fallible<()> {
        let (pool, now) = (self.pool, self.millis());
        let to = self.site(asker)?.replica;
        let Site { ledger, replica, demand, .. } = self.site(holder)?;
        let free = ledger.pool(pool).map(|pool| pool.free(*replica)).unwrap_or_default();
        let gift = match why {
            Why::Ahead => free.spare(amount, &demand.of(pool, now)),
            Why::Short { .. } => free.gift(amount),
        };
        let entry = match gift.is_zero() {
            true => None,
            false => Some(self.write(holder, vec![LedgerOp::Grant { pool, to, amount: gift.clone() }])?),
        };
        self.at(self.now + DELAY, Event::Answer { from: holder, to: asker, granted: gift, entry, why });
        Ok(())
    }

    fn answered(&mut self, granted: &Amount, why: Why) -> Fallible<()> {
        let Why::Short { ask: id, turn } = why else { return Ok(()) };
        let Some(ask) = self.asks.get_mut(&id).filter(|ask| ask.turn == turn) else { return Ok(()) };
        ask.holders.pop();
        ask.came |= !granted.is_zero();
        ask.missing = ask.missing.saturating_sub(granted);
        self.next_holder(id)
    }

    /// After a claim: more is asked for before it is needed.
    fn ask_ahead(&mut self, from: usize) -> Fallible<()> {
        let (pool, now, millis) = (self.pool, self.now, self.millis());
        let load = self.load;
        let ids: Vec<ReplicaId> = self.sites.iter().map(|site| site.replica).collect();
        let site = self.sites.get_mut(from).ok_or("no such site")?;
        let reachable = |id: ReplicaId| {
            let to = ids.iter().position(|other| *other == id);
            to.is_some_and(|to| now < CUT + SILENT || !load.is_cut(from, to, now))
        };
        let Some(held) = site.ledger.pool(pool) else { return Ok(()) };
        let wish = site.demand.ask(pool, held, site.replica, millis, reachable);
        if let Some((holder, amount)) = wish
            && let Some(to) = self.index(holder)
        {
            self.asked_ahead.push(now);
            self.at(now + DELAY, Event::Request { from, to, amount, why: Why::Ahead });
        }
        Ok(())
    }

    /// Writes an entry, and pushes it to everybody.
    fn write(&mut self, at: usize, ops: Vec<LedgerOp>) -> Fallible<Rc<Written>> {
        let site = self.site(at)?;
        let number = site.frontier.number(site.replica) + 1;
        let id = EntryId { author: site.replica, number };
        let mut frontier = site.frontier.clone();
        frontier.set(site.replica, Tip { number, hash: 0 });
        let entry = Rc::new(Written { id, frontier, ops });
        self.deliver(at, &entry)?;
        for to in (0..SITES).filter(|to| *to != at && !self.load.is_cut(at, *to, self.now)).collect::<Vec<_>>() {
            self.at(self.now + DELAY, Event::Deliver { from: at, to, entry: entry.clone() });
        }
        Ok(entry)
    }

    /// A site applies an entry. All links are equally long, so its past is always there.
    fn deliver(&mut self, to: usize, entry: &Written) -> Fallible<()> {
        let (pool, now) = (self.pool, self.millis());
        let site = self.sites.get_mut(to).ok_or("no such site")?;
        let EntryId { author, number } = entry.id;
        if site.frontier.number(author) >= number {
            return Ok(());
        }
        let missing = site.frontier.missing(&entry.frontier);
        if missing > 1 {
            return Err(format!("entry {} comes before its past: {missing} are missing", entry.id).into());
        }
        let retired = Retired::default();
        let judged = Judged {
            entry: entry.id,
            author,
            is_forked: false,
            frontier: &entry.frontier,
            is_member: &|_| true,
            retired: &retired,
        };
        for (index, op) in entry.ops.iter().enumerate() {
            site.ledger.apply(judged, u32::try_from(index)?, op)?;
            if let LedgerOp::Claim { amount, .. } = op
                && author == site.replica
            {
                site.demand.claimed(pool, amount, now);
            }
        }
        site.frontier.set(author, Tip { number, hash: 0 });
        Ok(())
    }

    fn set(&mut self, arrival: usize, verdict: Verdict) {
        if let Some(slot) = self.verdicts.get_mut(arrival) {
            *slot = verdict;
        }
    }

    fn site(&self, at: usize) -> Fallible<&Site> {
        Ok(self.sites.get(at).ok_or("no such site")?)
    }

    fn index(&self, replica: ReplicaId) -> Option<usize> {
        self.sites.iter().position(|site| site.replica == replica)
    }

    fn millis(&self) -> Millis {
        self.now * 1_000 / SECOND
    }
}

/// What is known of the rights to a pool (`luc_engine::tx::shortage`, which needs a whole view).
fn shortage(id: PoolId, pool: &Pool, me: ReplicaId, wanted: Amount) -> Shortage {
    let others = pool.spendable().filter(|(replica, free)| *replica != me && !free.is_zero());
    Shortage {
        subject: Some(pool.subject.clone()),
        wanted,
        capacity: pool.capacity(),
        claimed: pool.claimed.clone(),
        free_here: pool.free(me),
        elsewhere: others.map(|(replica, free)| (replica, id, free)).collect(),
        unconfirmed: Vec::new(),
    }
}
