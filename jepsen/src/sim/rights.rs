//! Asking others for rights, as `sync/src/rpc.rs` does it: the richest holder that is connected, then the next, each for
//! a bounded time, until what is missing has come.

use std::sync::Arc;

use luc_engine::entry::Frontier;
use luc_engine::id::PoolId;
use luc_engine::ledger::Amount;
use luc_engine::tx::Shortage;

use super::net::Micros;
use super::node::Job;
use super::ops::{Asked, Done};
use super::sometimes::State;
use super::world::{Event, World};

/// How long a holder is waited for.
const LIMIT: Micros = 1_500_000;
/// How long after rights have come an operation is tried again.
const CONFIRMED: Micros = 100_000;

/// A request for rights that is under way.
#[derive(Debug)]
pub(super) struct Ask {
    /// Who asks.
    pub(super) node: usize,
    asked: Asked,
    holders: Vec<(usize, PoolId)>,
    missing: Amount,
    any: bool,
    /// Which holder is asked, counted: answers of earlier ones come too late.
    turn: u64,
}

/// What travels.
#[derive(Debug)]
pub(super) enum Rights {
    Request { ask: u64, turn: u64, from: usize, to: usize, pool: PoolId, amount: Amount, frontier: Frontier },
    Answer { ask: u64, turn: u64, from: usize, granted: Amount, entries: Vec<Arc<[u8]>> },
    Limit { ask: u64, turn: u64 },
    Again { node: usize, asked: Asked },
}

impl World {
    /// Asks for what an operation lacks.
    pub(super) fn ask_for_rights(&mut self, node: usize, asked: Asked, short: &Shortage) {
        // What waits for the word of its pool's root has been asked for.
        let (here, waiting) = (&short.free_here, short.waiting());
        let missing = short.wanted.saturating_sub(here).saturating_sub(&waiting);
        let waits = !waiting.is_zero();
        if waits {
            self.sometimes.saw(State::Unconfirmed);
        }
        let worth = |free: &Amount| {
            let covered = missing.iter().filter(|(dimension, n)| free.get(*dimension) >= *n).count();
            let sum = missing.iter().map(|(dimension, _)| free.get(dimension)).fold(0, u64::saturating_add);
            (covered, sum)
        };
        let mut holders = short.elsewhere.clone();
        // The last is asked first.
        holders.sort_by_key(|(replica, _, free)| (worth(free), *replica));
        let place = |(replica, pool, _): &(_, PoolId, _)| Some((self.node_of(node, *replica)?, *pool));
        let holders = holders.iter().filter_map(place).collect();
        self.next += 1;
        let id = self.next;
        self.asks.insert(id, Ask { node, asked, holders, missing, any: waits, turn: 0 });
        self.next_holder(id);
    }

    fn next_holder(&mut self, id: u64) {
        loop {
            let Some(ask) = self.asks.get_mut(&id) else { return };
            ask.turn += 1;
            let (node, turn, amount) = (ask.node, ask.turn, ask.missing.clone());
            let next = if amount.is_zero() { None } else { ask.holders.pop() };
            let Some((to, pool)) = next else { return self.asked_all(id) };
            if self.net.connection(node, to).is_none() {
                continue;
            }
            let Some(frontier) = self.process(node).map(|process| process.view.frontier().clone()) else { return };
            let delay = self.net.delay(node, to);
            self.at(delay, Event::Rights(Rights::Request { ask: id, turn, from: node, to, pool, amount, frontier }));
            return self.at(LIMIT, Event::Rights(Rights::Limit { ask: id, turn }));
        }
    }

    /// Nobody is left to be asked: the operation is tried again if anything came.
    fn asked_all(&mut self, id: u64) {
        let Some(ask) = self.asks.remove(&id) else { return };
        if ask.any && ask.asked.tries > 0 {
            let asked = Asked { tries: ask.asked.tries - 1, ..ask.asked };
            // In a confirmed pool, the root's word comes a little later than the right.
            self.at(CONFIRMED, Event::Rights(Rights::Again { node: ask.node, asked }));
        } else {
            self.answered(ask.node, ask.asked, Done::Refused);
        }
    }

    pub(super) fn rights(&mut self, rights: Rights) {
        match rights {
            Rights::Request { ask, turn, from, to, pool, amount, frontier } => {
                if self.net.is_cut(from, to).is_none() {
                    self.job(to, Job::Grant { ask, turn, to: from, pool, amount, frontier });
                }
            }
            Rights::Answer { ask, turn, from, granted, entries } => {
                let Some(waiting) = self.asks.get(&ask).filter(|waiting| waiting.turn == turn) else { return };
                let node = waiting.node;
                if self.net.is_cut(from, node).is_some() {
                    return self.sometimes.saw(State::CutDuringGrant);
                }
                self.job(node, Job::Take { ask, turn, entries, granted });
            }
            Rights::Again { node, asked } => self.job(node, Job::Op(asked)),
            Rights::Limit { ask, turn } => {
                if self.asks.get(&ask).is_some_and(|waiting| waiting.turn == turn) {
                    self.next_holder(ask);
                }
            }
        }
    }

    /// What a holder gave is on the disk.
    pub(super) fn taken(&mut self, id: u64, turn: u64, granted: &Amount) {
        let Some(ask) = self.asks.get_mut(&id).filter(|ask| ask.turn == turn) else { return };
        ask.any |= !granted.is_zero();
        ask.missing = ask.missing.saturating_sub(granted);
        if !granted.is_zero() {
            self.sometimes.saw(State::ShortHere);
        }
        self.next_holder(id);
    }
}
