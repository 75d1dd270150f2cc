//! Machines that fail, and what operators do about it (`PROTOCOL.md`, S5): the host is declared dead by a replica of its
//! site, its servers are placed anew by whoever holds their claims, and the machine comes back once that was taken back
//! and its site knows. An operator looks first: a host that runs is not declared dead, nor one whose agent alone can tell a
//! replica that it is on an old disk.

use std::collections::BTreeSet;

use luc_engine::hosts;
use luc_engine::id::PoolId;
use luc_engine::ledger::{Ledger, Pool};
use luc_engine::record::Host;
use luc_engine::schedule::Choice;
use luc_engine::tx::{Refusal, Tx};
use luc_engine::view::View;
use uuid::Uuid;

use super::agent::is_dead;
use super::faults::PATIENCE;
use super::net::Micros;
use super::node::{Job, Node};
use super::ops::Asked;
use super::rng::pick;
use super::sometimes::State;
use super::workload::Op;
use super::world::{Event, World};

/// What an operator wants of a host that is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// It is dead.
    Dead,
    /// Its servers run elsewhere: half of them at a time.
    Evacuated(u64),
    /// It comes back.
    Revived,
}

impl World {
    /// A machine goes off. If it is to be declared dead, that is done soon; else it goes on again by itself.
    pub(super) fn kill_host(&mut self, agent: usize, declared: bool, down: Micros) {
        let Some(site) = self.agents.get(agent).map(|of| of.site) else { return };
        let declared = declared && !self.awaits_agent(site);
        let Some(of) = self.agents.get_mut(agent).filter(|of| of.on && of.pool().is_some()) else { return };
        of.condemned = declared;
        self.power_off(agent);
        self.sometimes.saw(State::HostOff);
        self.trace.note(self.now, [18, agent as u64, u64::from(declared)], || format!("host {agent} is off"));
        if !declared {
            return self.at(down, Event::PowerOn { agent });
        }
        let soon = self.rng.between(50_000, 1_000_000);
        self.at(soon, Event::Operate { agent, wish: Wish::Dead });
        self.at(down + PATIENCE, Event::Operate { agent, wish: Wish::Revived });
    }

    /// An operator looks whether what is wanted has come about, and asks some replica for it if not.
    pub(super) fn operate(&mut self, agent: usize, wish: Wish) {
        let Some(of) = self.agents.get(agent).filter(|of| of.condemned && !of.on) else { return };
        let (site, Some(pool)) = (of.site, of.pool()) else { return };
        let serving = |(_, node): &(usize, &Node)| node.serves() && !node.stopped;
        let nodes: Vec<usize> = self.nodes.iter().enumerate().filter(serving).map(|(at, _)| at).collect();
        let of_site = |at: &usize| self.nodes.get(*at).is_some_and(|node| node.site == site);
        let mut there: Vec<usize> = nodes.iter().copied().filter(of_site).collect();
        // An operator asks one that others hear, mostly.
        if self.rng.chance(750) {
            let heard = |at: &usize| (0..self.nodes.len()).filter(|to| self.net.is_cut(*at, *to).is_none()).count();
            let most = there.iter().map(heard).max();
            there.retain(|at| Some(heard(at)) == most);
        }
        match wish {
            Wish::Dead => {
                if self.is_settled_on(site, pool, |view| is_dead(view, pool)) {
                    let bits = self.rng.bits();
                    return self.at(1_000, Event::Operate { agent, wish: Wish::Evacuated(bits) });
                }
                // Where every replica of the site is retired, another site may say so.
                let bits = self.rng.bits();
                let by = pick(if there.is_empty() { &nodes } else { &there }, bits);
                by.into_iter().for_each(|at| self.job(at, Job::Operate { agent, wish }));
            }
            Wish::Evacuated(_) => nodes.into_iter().for_each(|at| self.job(at, Job::Operate { agent, wish })),
            Wish::Revived => {
                // One of its site that was called stopped, and runs on, may be the one that its agent comes to.
                let unaware = |node: &Node| node.site == site && self.runs_unaware(node.replica);
                if !self.nodes.iter().any(unaware)
                    && self.is_settled_on(site, pool, |view| is_dead(view, pool) && view.is_revived(pool))
                {
                    self.sometimes.saw(State::HostRevived);
                    self.trace.note(self.now, [19, agent as u64, 0], || format!("host {agent} comes back"));
                    return self.power_on(agent);
                }
                let bits = self.rng.bits();
                pick(&there, bits).into_iter().for_each(|at| self.job(at, Job::Operate { agent, wish }));
            }
        }
        self.at(PATIENCE, Event::Operate { agent, wish });
    }

    /// Whether a site knows something of a pool of its host, and so does whoever might stand by what ran there. Another replica of
    /// the site may not have heard of anything: that its agent asks the holders of claims is for this.
    fn is_settled_on(&self, site: usize, pool: PoolId, knows: impl Fn(&View) -> bool) -> bool {
        let takes_part = |(at, node): &(usize, &Node)| node.joined && !node.gone && !node.stopped && !self.is_liar(*at);
        let holds_none = |view: &View, me| {
            let mut claims = view.ledger().claims();
            !claims.any(|(id, claim)| claim.pool == pool && hosts::holder(view, *id) == me)
        };
        let (mut there, mut told_there, mut everybody) = (false, false, true);
        for (_, node) in self.nodes.iter().enumerate().filter(takes_part) {
            let view = node.process.as_ref().map(|process| process.replica.view());
            let told = view.is_some_and(&knows);
            if node.site == site {
                (there, told_there) = (true, told_there || told);
            }
            everybody &= told || (node.site == site && view.is_some_and(|view| holds_none(view, node.replica)));
        }
        // Where nobody of the site is left, others know.
        everybody && (told_there || !there)
    }

    /// Pools of dead hosts that a node has not heard of. It claims nothing of them: it might stand by that while the host comes
    /// back to it, and place it anew once it has heard (`ARCHITECTURE.md`, "Known gaps").
    pub(super) fn unheard(&self, at: usize) -> BTreeSet<PoolId> {
        if self.sometimes.count(State::HostDead) == 0 {
            return BTreeSet::new();
        }
        let Some(own) = self.nodes.get(at).and_then(|node| node.process.as_ref()) else { return BTreeSet::new() };
        let dead = |(pool, _): &(PoolId, &Pool)| !is_dead(own.replica.view(), *pool);
        let living = self.living();
        let known = living.iter().flat_map(|(_, view)| view.ledger().pools().map(|(id, pool)| (*id, pool)));
        known.filter(|(_, pool)| !pool.dead.is_empty()).filter(dead).map(|(id, _)| id).collect()
    }

    /// A replica does what an operator asked it for.
    pub(super) fn obey(&mut self, at: usize, agent: usize, wish: Wish) {
        let clock = self.clock(at);
        let Some((host, pool)) = self.agents.get(agent).and_then(|of| Some((of.host(), of.pool()?))) else { return };
        let random = self.rng.bits();
        let Some(process) = self.process(at).filter(|process| process.met) else { return };
        let done = process.replica.transact::<_, Refusal>(clock, |tx| {
            let (known, dead) = (tx.view().ledger().pool(pool).is_some(), is_dead(tx.view(), pool));
            match wish {
                Wish::Dead if known && !dead => tx.declare_dead(pool, Uuid::nil()).map(|()| 0),
                Wish::Revived if dead => {
                    let revive = |host: &mut Host| {
                        host.revived = pool.to_string();
                        Ok::<_, Refusal>(())
                    };
                    tx.update::<Host, Refusal>(host.0, revive).map(|()| 0)
                }
                Wish::Evacuated(bits) if dead => evacuate(tx, pool, bits, random),
                Wish::Dead | Wish::Revived | Wish::Evacuated(_) => Ok(0),
            }
        });
        process.wrote |= done.is_ok();
        match (wish, done) {
            (Wish::Dead, Ok((_, Some(_)))) => {
                self.sometimes.saw(State::HostDead);
                self.place_on(at, host, random);
            }
            (Wish::Evacuated(_), Ok((moved, Some(_)))) if moved > 0 => self.sometimes.saw(State::Evacuated),
            _ => {}
        }
    }
}

impl World {
    /// A request is in the queue already that wants a server on this host.
    fn place_on(&mut self, at: usize, host: luc_engine::id::HostId, random: u64) {
        let Some(process) = self.process(at) else { return };
        let place = process.replica.view().ledger().hosts().position(|other| other == host);
        let Some(place) = place.and_then(|place| u64::try_from(place).ok()) else { return };
        let op = Op::Create { project: random, host: place, home: false, size: 1 };
        let id = self.fresh();
        if let Some(process) = self.process(at) {
            process.jobs.push_front(Job::Op(Asked { op, id, tries: 0 }));
        }
    }
}

/// Places some servers of a dead host anew: those whose claims this replica holds. Says how many.
fn evacuate(tx: &mut Tx<'_>, pool: PoolId, bits: u64, random: u64) -> Result<usize, Refusal> {
    let ledger: &Ledger = tx.view().ledger();
    let on_it = ledger.claims().filter(|(_, claim)| claim.pool == pool).map(|(_, claim)| claim.record.id);
    let mine = |id: &Uuid| {
        let (low, _) = id.as_u64_pair();
        (low ^ bits) & 1 == 0 && hosts::may_evacuate(tx.view(), tx.me(), *id).is_ok()
    };
    let is_live = |id: &Uuid| tx.view().get::<luc_engine::record::Server>(*id).is_some();
    let servers: Vec<Uuid> = on_it.filter(mine).filter(is_live).collect();
    let mut moved = 0;
    for server in servers {
        let Some(amount) = tx.view().placement(server).map(|placement| placement.amount.clone()) else { continue };
        let room = |host: &luc_engine::id::HostId| {
            let (id, of) = tx.view().host_pool(*host)?;
            (of.dead.is_empty() && of.free(tx.me()).covers(&amount)).then_some(Choice {
                host: *host,
                pool: id,
                member: None,
            })
        };
        let hosts: Vec<_> = tx.view().ledger().hosts().collect();
        let choices: Vec<Choice> = hosts.iter().filter_map(room).collect();
        let Some(choice) = pick(&choices, random) else { continue };
        hosts::evacuate(tx, server, &choice, &amount)?;
        moved += 1;
    }
    Ok(moved)
}
