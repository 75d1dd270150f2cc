//! A host with its agent: it obeys orders, keeps its memory on a disk of its own, and promises for ever what it says is
//! gone. What `compute` does in many steps is one here; what it writes before it speaks is written before it speaks.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::SigningKey;
use luc_engine::agent::{
    DomainState, Fault, FromAgent, Heartbeat, HostFacts, Observation, Order, Orphan, Statement, Vouched, Wanted,
};
use luc_engine::entry::{HostIdentity, Tip};
use luc_engine::id::{ClaimId, CloudId, HostId, PoolId, ReplicaId};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::mutant::{self, Mutant};
use luc_engine::record::{Power, Server};
use luc_engine::schedule::fits;
use luc_engine::tx::Refusal;
use luc_sync::agents::{self, Met};
use uuid::Uuid;

use super::net::Micros;
use super::node::{After, Job, site_name};
use super::sometimes::State;
use super::vouching;
use super::world::{Event, World};

/// How long a message between an agent and a replica of its site takes.
pub(super) const NEAR: Micros = 300;
/// How long an agent waits before it looks for a replica again.
pub(super) const RETRY: Micros = 500_000;
/// When agents start: everybody has met by then, so that hosts are shared with all.
const FIRST: Micros = 1_500_000;

/// What they say to each other.
#[derive(Debug)]
pub(super) enum Talk {
    Hello,
    /// The pool that the host is to serve, and the one that it replaces.
    Pool(PoolId, Option<PoolId>),
    /// The pool that the host serves was declared dead.
    Dead(PoolId),
    Orders(Vec<Order>),
    Order(Box<Order>),
    Held(ClaimId),
    /// How far the replica's own log goes.
    Witness(ReplicaId, Tip),
    From(Box<FromAgent>),
}

/// A domain on a host.
#[derive(Debug)]
struct Domain {
    claim: ClaimId,
    epoch: u64,
    amount: Amount,
    power: Power,
}

/// A host and its agent.
pub(super) struct Agent {
    cloud: CloudId,
    key: SigningKey,
    pub(super) site: usize,
    facts: HostFacts,
    capacity: Amount,
    // On its disk, and in its hypervisor.
    domains: BTreeMap<Uuid, Domain>,
    /// What does not run since the machine was off, with its data.
    remains: BTreeMap<Uuid, Domain>,
    refusals: BTreeMap<ClaimId, Uuid>,
    unheld: BTreeSet<ClaimId>,
    /// What it saw of each server last.
    seen: BTreeMap<Uuid, Observation>,
    /// The highest placement epoch that it was ordered, of each server.
    epochs: BTreeMap<Uuid, u64>,
    /// Pools that were declared dead.
    dead: BTreeSet<PoolId>,
    /// How far replicas of its site have said that their logs go.
    pub(super) tips: BTreeMap<ReplicaId, Tip>,
    /// The machine runs.
    pub(super) on: bool,
    /// An operator has said that the host is dead, or is about to: it is switched on by an operator who takes that back.
    pub(super) condemned: bool,
    // In its memory.
    up: bool,
    life: u64,
    session: u64,
    attached: Option<usize>,
    /// The replica that it was attached to last.
    last: Option<usize>,
    orders: BTreeMap<ClaimId, Order>,
    working: BTreeSet<ClaimId>,
    /// What the replica that it is attached to knows of who stands by its orders.
    pub(super) vouched: vouching::Known,
    /// The number up to which that replica has told it of its log.
    pub(super) told: u64,
}

impl Agent {
    pub(super) fn is_attached(&self, node: usize, session: u64) -> bool {
        self.attached == Some(node) && self.session == session
    }

    /// There is no connection any more: no order stands, and nobody stands by one.
    fn forget_orders(&mut self) {
        self.session += 1;
        self.orders.clear();
        self.vouched = vouching::Known::default();
        self.told = 0;
    }

    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    pub(super) fn attached_to(&self) -> Option<usize> {
        self.attached
    }

    /// The servers that run on it.
    pub(super) fn running(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.domains.keys().copied()
    }

    pub(super) fn host(&self) -> HostId {
        self.facts.identity.host
    }

    pub(super) fn pool(&self) -> Option<PoolId> {
        self.facts.pool
    }

    /// Whether an order is one to obey: for the pool that the host serves (S3), and of no lower epoch than was seen (S1).
    fn obeys(&self, order: &Order) -> bool {
        let stale = self.epochs.get(&order.server).is_some_and(|epoch| order.epoch < *epoch);
        let served = self.facts.pool == Some(order.pool) && !self.dead.contains(&order.pool);
        (served && !stale) || mutant::on(Mutant::StalePlacement)
    }
}

impl World {
    pub(super) fn add_agent(&mut self, site: usize) {
        let key = SigningKey::from_bytes(&self.keys.bytes());
        let Some(cloud) = self.nodes.first().map(|node| node.identity.cloud) else { return };
        let identity = HostIdentity::sign(cloud, &site_name(site), &key);
        let cpus = self.rng.between(8, 40);
        let facts = HostFacts {
            identity: identity.clone(),
            name: format!("host-{site}"),
            architecture: "x86_64".into(),
            incarnation: 1,
            hypervisor_type: "test".into(),
            hypervisor_version: 1,
            cpus,
            memory_mib: cpus * 600,
            disk_gib: cpus * 6,
            cpu_overcommit: 1,
            pool: None,
        };
        let capacity: Amount =
            [(Dimension::Vcpus, cpus), (Dimension::MemoryMib, cpus * 600), (Dimension::DiskGib, cpus * 6)]
                .into_iter()
                .collect();
        self.rules.host(identity.host, &capacity);
        let agent = self.agents.len();
        self.agents.push(Agent {
            cloud,
            key,
            site,
            facts,
            capacity,
            domains: BTreeMap::new(),
            remains: BTreeMap::new(),
            refusals: BTreeMap::new(),
            unheld: BTreeSet::new(),
            seen: BTreeMap::new(),
            epochs: BTreeMap::new(),
            dead: BTreeSet::new(),
            tips: BTreeMap::new(),
            on: true,
            condemned: false,
            up: false,
            life: 0,
            session: 0,
            attached: None,
            last: None,
            orders: BTreeMap::new(),
            working: BTreeSet::new(),
            vouched: vouching::Known::default(),
            told: 0,
        });
        let first = FIRST + self.rng.below(300_000);
        self.at(first, Event::StartAgent { agent });
    }

    pub(super) fn start_agent(&mut self, at: usize) {
        let Some(agent) = self.agents.get_mut(at).filter(|agent| agent.on && !agent.up) else { return };
        agent.up = true;
        agent.life += 1;
        let life = agent.life;
        self.at(NEAR, Event::Attach { agent: at, life });
    }

    /// The agent's process dies; its domains live on.
    pub(super) fn kill_agent(&mut self, at: usize) {
        let Some(agent) = self.agents.get_mut(at).filter(|agent| agent.up) else { return };
        if !agent.working.is_empty() {
            self.sometimes.saw(State::AgentDied);
        }
        agent.up = false;
        agent.life += 1;
        agent.forget_orders();
        agent.working.clear();
        if mutant::on(Mutant::WordForgotten) {
            agent.refusals.clear();
            agent.unheld.clear();
        }
        let (host, node) = (agent.facts.identity.host, agent.attached.take());
        if let Some(process) = node.and_then(|node| self.process(node)) {
            process.attached.remove(&host);
        }
    }

    /// The machine goes off: nothing runs on it, and its disk stays.
    pub(super) fn power_off(&mut self, at: usize) {
        self.kill_agent(at);
        let Some(agent) = self.agents.get_mut(at) else { return };
        agent.on = false;
        let (host, domains) = (agent.host(), std::mem::take(&mut agent.domains));
        domains.keys().for_each(|server| self.rules.stopped(host, *server));
        if let Some(agent) = self.agents.get_mut(at) {
            agent.remains.extend(domains);
        }
    }

    /// The machine goes on. It starts nothing before it has an order.
    pub(super) fn power_on(&mut self, at: usize) {
        let Some(agent) = self.agents.get_mut(at).filter(|agent| !agent.on) else { return };
        agent.on = true;
        self.start_agent(at);
    }

    /// The agent's connection ends, and it looks for another replica.
    pub(super) fn roam(&mut self, at: usize) {
        let Some(agent) = self.agents.get_mut(at).filter(|agent| agent.up) else { return };
        let (host, session, node) = (agent.host(), agent.session, agent.attached);
        if let Some(process) = node.and_then(|node| self.process(node)) {
            process.attached.remove(&host);
            self.detached(at, session);
            self.sometimes.saw(State::Roamed);
        }
    }

    /// The agent looks for a replica of its site.
    pub(super) fn attach(&mut self, at: usize, life: u64) {
        let Some(agent) = self.agents.get_mut(at).filter(|a| a.up && a.life == life && a.attached.is_none()) else {
            return;
        };
        let serves = |(_, node): &(usize, &super::node::Node)| node.site == agent.site && node.serves();
        let serving: Vec<usize> = self.nodes.iter().enumerate().filter(serves).map(|(at, _)| at).collect();
        // A machine that was declared dead comes back to a replica that has not heard of it, mostly.
        let pool = agent.pool().filter(|_| agent.condemned);
        let misses = |at: &usize| {
            let process = self.nodes.get(*at).and_then(|node| node.process.as_ref());
            process.zip(pool).is_some_and(|(process, pool)| !is_dead(&process.view, pool))
        };
        let missing: Vec<usize> = serving.iter().copied().filter(misses).collect();
        // Another one than the last, mostly, where that was left.
        let other: Vec<usize> = serving.iter().copied().filter(|at| Some(*at) != agent.last).collect();
        let mostly = if missing.is_empty() { other } else { missing };
        let among = if !mostly.is_empty() && self.rng.chance(750) { &mostly } else { &serving };
        let node = super::rng::pick(among, self.rng.bits());
        let Some(node) = node else { return self.at(RETRY, Event::Attach { agent: at, life }) };
        agent.forget_orders();
        (agent.attached, agent.last) = (Some(node), Some(node));
        let session = agent.session;
        self.say_words(at, node, session);
        self.at(NEAR, Event::ToReplica { node, agent: at, session, talk: Talk::Hello });
    }

    /// The replica's process ended: the agent looks again.
    pub(super) fn detached(&mut self, at: usize, session: u64) {
        let Some(agent) = self.agents.get_mut(at).filter(|agent| agent.session == session) else { return };
        agent.attached = None;
        agent.forget_orders();
        let life = agent.life;
        self.at(RETRY, Event::Attach { agent: at, life });
    }

    /// A replica has heard that the pool of a host is dead, whose agent is attached to it: that is to introduce itself again.
    pub(super) fn introduce_again(&mut self, at: usize, pools: &[PoolId]) {
        let Some(process) = self.process(at) else { return };
        let (view, attached) = (process.view.clone(), process.attached.clone());
        for (host, (agent, session)) in attached {
            let pool = self.agents.get(agent).and_then(Agent::pool);
            let is_news = |pool: &PoolId| {
                let told = self.agents.get(agent).is_some_and(|agent| agent.dead.contains(pool));
                pools.contains(pool) && is_dead(&view, *pool) && !told
            };
            if pool.filter(is_news).is_some() {
                self.sometimes.saw(State::DeathMissed);
                if let Some(process) = self.process(at) {
                    process.attached.remove(&host);
                }
                self.detached(agent, session);
            }
        }
    }

    /// The agents that have a connection to a node, each with its session.
    pub(super) fn attached_to(&self, node: usize) -> Vec<(usize, u64)> {
        let agents = self.agents.iter().enumerate().filter(|(_, agent)| agent.attached == Some(node));
        agents.map(|(at, agent)| (at, agent.session)).collect()
    }

    /// Whether a replica that an operator has called stopped, or whose retirement has taken effect, runs and has not heard of that.
    pub(super) fn runs_unaware(&self, replica: ReplicaId) -> bool {
        let Some(node) = self.by_replica.get(&replica).and_then(|at| self.nodes.get(*at)) else { return false };
        let heard = |process: &super::node::Process| process.view.retired().contains(replica);
        (node.stopped || self.rules.is_cut(replica)) && node.process.as_ref().is_some_and(|process| !heard(process))
    }

    pub(super) fn tell_agent(&mut self, agent: usize, session: u64, talk: Talk) {
        self.at(NEAR, Event::ToAgent { agent, session, talk });
    }

    pub(super) fn replica_hears(&mut self, node: usize, agent: usize, session: u64, talk: Talk) {
        let Some(of) = self.agents.get(agent).filter(|of| of.session == session) else { return };
        let fenced = self.nodes.get(node).and_then(|node| node.process.as_ref()).map(|p| p.replica.fence().is_some());
        if fenced != Some(false) {
            // What writes no more has no say over machines either.
            if let Some(process) = self.process(node) {
                process.attached.retain(|_, (at, _)| *at != agent);
            }
            return self.detached(agent, session);
        }
        match talk {
            Talk::Hello => {
                let facts = Box::new(of.facts.clone());
                self.job(node, Job::Hello { agent, session, facts });
            }
            Talk::From(message) => self.job(node, Job::Heard { agent, session, message: *message }),
            Talk::Orders(_) | Talk::Order(_) | Talk::Held(_) | Talk::Pool(..) | Talk::Dead(_) => {}
            Talk::Witness(..) => {}
        }
    }

    /// The host has a pool, and its agent is to say that it serves it; or that is not known here yet.
    pub(super) fn met(&mut self, at: usize, agent: usize, session: u64, met: Met, host: HostId) {
        match met {
            Met::Served => self.hello(at, agent, session, host),
            // It is told anew until an operator has taken that back.
            Met::Dead(pool) => {
                self.tell_agent(agent, session, Talk::Dead(pool));
                self.at(RETRY, Event::ToReplica { node: at, agent, session, talk: Talk::Hello });
            }
            Met::Told { pool, instead_of } => {
                let view = self.process(at).map(|process| process.view.clone());
                if let Some(dead) = instead_of.filter(|dead| view.is_some_and(|view| is_dead(&view, *dead))) {
                    self.tell_agent(agent, session, Talk::Dead(dead));
                }
                self.tell_agent(agent, session, Talk::Pool(pool, instead_of));
            }
            Met::Awaited(_) => self.at(RETRY, Event::ToReplica { node: at, agent, session, talk: Talk::Hello }),
        }
    }

    /// The host is written down: its agent gets every order that stands.
    pub(super) fn hello(&mut self, at: usize, agent: usize, session: u64, host: HostId) {
        let Some(process) = self.process(at) else { return };
        process.attached.insert(host, (agent, session));
        self.tell_tip(at);
        let Some(process) = self.process(at) else { return };
        let view = process.view.clone();
        let claims = view.ledger().claims_on(host);
        let orders: Vec<Order> = claims.filter_map(|(id, claim)| agents::order(&view, id, claim)).collect();
        let orders = orders.into_iter().map(|order| self.marked(at, agent, session, order)).collect();
        self.tell_agent(agent, session, Talk::Orders(orders));
    }

    /// What an agent saw or promised becomes an entry.
    pub(super) fn heard(&mut self, at: usize, agent: usize, session: u64, message: FromAgent) -> After {
        let clock = self.clock(at);
        let host = self.agents.get(agent).map(Agent::host);
        let Some(process) = self.process(at) else { return After::Nothing };
        process.wrote = true;
        match message {
            FromAgent::Observed(seen) => {
                let noted = process.replica.transact::<_, Refusal>(clock, |tx| agents::observe(tx, *seen));
                let _ = noted;
                After::Nothing
            }
            FromAgent::Stated(statement) => {
                let claim = statement.claim;
                let noted = process.replica.transact::<_, Refusal>(clock, |tx| {
                    tx.state(statement);
                    Ok(())
                });
                if noted.is_ok() { After::Held { agent, session, claim } } else { After::Nothing }
            }
            FromAgent::Heartbeat(heartbeat) => {
                let orders = host.map(|host| agents::remains(&process.view, host, &heartbeat.orphans));
                let tell = |order: Order| self.tell_agent(agent, session, Talk::Order(Box::new(order)));
                orders.unwrap_or_default().into_iter().for_each(tell);
                After::Nothing
            }
            FromAgent::Witnessed(words) => {
                process.witnessed(&words);
                After::Nothing
            }
            FromAgent::Hello(_) | FromAgent::ConsoleOutput { .. } => After::Nothing,
        }
    }

    pub(super) fn agent_hears(&mut self, at: usize, session: u64, talk: Talk) {
        let Some(agent) = self.agents.get_mut(at).filter(|agent| agent.up && agent.session == session) else { return };
        match talk {
            Talk::Orders(orders) => {
                agent.orders = orders.into_iter().map(|order| (order.claim, order)).collect();
                let claims: Vec<ClaimId> = agent.orders.keys().copied().collect();
                for claim in agent.unheld.clone() {
                    self.state(at, claim);
                }
                claims.into_iter().for_each(|claim| self.consider(at, claim));
                self.say_again(at);
            }
            Talk::Order(order) => {
                let claim = order.claim;
                agent.orders.insert(claim, *order);
                self.consider(at, claim);
            }
            // On its disk before it does anything that rests on it.
            Talk::Witness(replica, tip) => drop(agent.tips.insert(replica, tip)),
            Talk::Held(claim) => {
                agent.unheld.remove(&claim);
            }
            // On its disk from here on, and said again.
            Talk::Pool(pool, instead_of) => {
                if agent.facts.pool.is_none() || (agent.facts.pool == instead_of && instead_of.is_some()) {
                    agent.facts.pool = Some(pool);
                    agent.condemned = false;
                }
                if let Some(node) = agent.attached {
                    self.at(NEAR, Event::ToReplica { node, agent: at, session, talk: Talk::Hello });
                }
            }
            // What ran for it does so no more, since the machine was off.
            Talk::Dead(pool) => {
                agent.dead.insert(pool);
            }
            Talk::Hello | Talk::From(_) => {}
        }
    }

    /// After an introduction: what it saw last of each server, and what it has of servers that no order names.
    fn say_again(&mut self, at: usize) {
        let Some(agent) = self.agents.get(at) else { return };
        let all = agent.domains.iter().chain(&agent.remains);
        let orphans = all.filter(|(_, domain)| !agent.orders.contains_key(&domain.claim));
        let orphan =
            |(server, domain): (&Uuid, &Domain)| Orphan { server: *server, claim: domain.claim, epoch: domain.epoch };
        let orphans: Vec<Orphan> = orphans.map(orphan).collect();
        let seen: Vec<Observation> =
            agent.domains.keys().filter_map(|server| agent.seen.get(server)).cloned().collect();
        seen.into_iter().for_each(|seen| self.say(at, FromAgent::Observed(Box::new(seen))));
        if !orphans.is_empty() {
            self.say(at, FromAgent::Heartbeat(Heartbeat { orphans, ..Heartbeat::default() }));
        }
    }

    /// An order has come: it is worked on in a while.
    fn consider(&mut self, at: usize, claim: ClaimId) {
        let Some(agent) = self.agents.get_mut(at) else { return };
        if agent.working.insert(claim) {
            let life = agent.life;
            let delay = self.rng.between(5_000, 300_000);
            self.at(delay, Event::Act { agent: at, life, claim });
        }
    }

    pub(super) fn act_on(&mut self, at: usize, life: u64, claim: ClaimId) {
        let Some(agent) = self.agents.get_mut(at).filter(|agent| agent.up && agent.life == life) else { return };
        agent.working.remove(&claim);
        let Some(order) = agent.orders.get(&claim).cloned() else { return };
        let server = order.server;
        if matches!(order.wanted, Wanted::Absent) {
            return self.end(at, server, claim);
        }
        if agent.refusals.contains_key(&claim) {
            return self.state(at, claim);
        }
        if !agent.obeys(&order) {
            return self.sometimes.saw(State::StaleOrder);
        }
        let epoch = agent.epochs.entry(server).or_default();
        *epoch = order.epoch.max(*epoch);
        let unvouched = mutant::on(Mutant::StalePlacement) || mutant::on(Mutant::VouchIgnored);
        match &order.wanted {
            Wanted::Present { server: record, .. } if agent.domains.contains_key(&server) => {
                self.power(at, server, claim, record);
            }
            // The holder is being asked; the order comes once more when it has said that it stands by it.
            Wanted::Present { .. } if order.vouched != Vouched::Yes && !unvouched => {}
            Wanted::Present { server: record, .. } => self.begin(at, &order, record),
            Wanted::Absent => {}
        }
    }

    /// The refusal is on the disk before it is said.
    fn end(&mut self, at: usize, server: Uuid, claim: ClaimId) {
        let Some(agent) = self.agents.get_mut(at) else { return };
        let is_it = |domain: &Domain| domain.claim == claim;
        let ran = agent.domains.get(&server).is_some_and(is_it);
        let was = agent.remains.get(&server).is_some_and(is_it);
        if ran {
            agent.domains.remove(&server);
        } else if was {
            agent.remains.remove(&server);
        } else if !agent.refusals.contains_key(&claim) {
            self.sometimes.saw(State::ReleaseBeforeOrder);
        }
        let Some(agent) = self.agents.get_mut(at) else { return };
        agent.refusals.insert(claim, server);
        agent.unheld.insert(claim);
        let host = agent.host();
        self.rules.gone(host, server, claim);
        self.trace
            .note(self.now, [9, at as u64, claim.entry.number], || format!("agent {at}: {server} is gone for good"));
        self.state(at, claim);
    }

    fn state(&mut self, at: usize, claim: ClaimId) {
        let Some(agent) = self.agents.get(at) else { return };
        let Some(server) = agent.refusals.get(&claim).copied() else { return };
        let host = agent.facts.identity.host;
        let statement = Statement::sign(agent.cloud, host, server, claim, agent.facts.incarnation, &agent.key);
        self.say(at, FromAgent::Stated(statement));
    }

    fn begin(&mut self, at: usize, order: &Order, record: &Server) {
        let Order { server, claim, epoch, .. } = *order;
        let Some(agent) = self.agents.get_mut(at) else { return };
        let amount = super::ops::need(record.flavor.vcpus);
        let domains = agent.domains.values();
        let used = domains.fold(Amount::default(), |sum, domain| sum.saturating_add(&domain.amount));
        if !fits(&agent.capacity, &used, &amount) && !mutant::on(Mutant::CapacityIgnored) {
            self.sometimes.saw(State::Refused);
            // It tries again whenever the order comes again, and says once that there is no room.
            let is_said = |seen: &Observation| seen.claim == claim && seen.fault.is_some();
            if self.agents.get(at).and_then(|agent| agent.seen.get(&server)).is_some_and(is_said) {
                return;
            }
            let fault = Fault { message: "the host is full".into(), retrying: true };
            return self.see(at, server, claim, DomainState::Missing, Some(fault), 0);
        }
        // Of an earlier claim that was the server's here, the data is of no use any more.
        agent.remains.remove(&server);
        agent.domains.insert(server, Domain { claim, epoch, amount: amount.clone(), power: record.power });
        let host = agent.facts.identity.host;
        self.trace.note(self.now, [10, at as u64, claim.entry.number], || format!("agent {at}: {server} is started"));
        let unaware = self.runs_unaware(claim.entry.author);
        let checked = self.rules.started(host, server, claim, &amount, unaware);
        self.check(checked);
        self.see(at, server, claim, DomainState::Running, None, record.power_changes);
    }

    fn power(&mut self, at: usize, server: Uuid, claim: ClaimId, record: &Server) {
        let Some(domain) = self.agents.get_mut(at).and_then(|agent| agent.domains.get_mut(&server)) else { return };
        if domain.power == record.power {
            return;
        }
        domain.power = record.power;
        let state = match record.power {
            Power::Running => DomainState::Running,
            Power::Stopped => DomainState::Shutoff,
            Power::Paused => DomainState::Paused,
            Power::Suspended => DomainState::Saved,
        };
        self.see(at, server, claim, state, None, record.power_changes);
    }

    fn see(&mut self, at: usize, server: Uuid, claim: ClaimId, state: DomainState, fault: Option<Fault>, wish: u64) {
        let clock = self.clock(0);
        let Some(agent) = self.agents.get_mut(at) else { return };
        let counter = agent.seen.get(&server).map_or(1, |seen| seen.counter + 1);
        let epoch = agent.epochs.get(&server).copied().unwrap_or(1);
        let observation = Observation {
            host: agent.facts.identity.host,
            server,
            claim,
            epoch,
            incarnation: agent.facts.incarnation,
            counter,
            at: clock,
            state,
            task: None,
            soft_reboots: 0,
            hard_reboots: 0,
            power_changes: wish,
            launched_at: None,
            fault,
        };
        agent.seen.insert(server, observation.clone());
        self.say(at, FromAgent::Observed(Box::new(observation)));
    }

    fn say(&mut self, at: usize, message: FromAgent) {
        let Some(agent) = self.agents.get(at) else { return };
        if let Some(node) = agent.attached {
            let session = agent.session;
            self.at(NEAR, Event::ToReplica { node, agent: at, session, talk: Talk::From(Box::new(message)) });
        }
    }
}

/// Whether a pool was declared dead, as far as is known in a view.
pub(super) fn is_dead(view: &luc_engine::view::View, pool: PoolId) -> bool {
    view.ledger().pool(pool).is_some_and(|pool| !pool.dead.is_empty())
}
