//! What breaks, and what operators do about it.

use luc_engine::retire::Retired;
use uuid::Uuid;

use super::disk::{Disk, Image};
use super::net::Micros;
use super::node::{Job, Node, Process};
use super::rng::pick;
use super::rules::Tracker;
use super::sometimes::State;
use super::witness::Old;
use super::workload::Fault;
use super::world::{Event, World};

/// How often an operator looks whether a retirement or a join has come about.
pub(super) const PATIENCE: Micros = 1_500_000;
/// Replicas that may be added to a run.
const JOINS: usize = 6;

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        self.trace.note(self.now, [11, 0, 0], || format!("fault: {fault:?}"));
        let up = self.up();
        let node = |bits: u64| pick(&up, bits);
        match fault {
            Fault::Crash { node: bits, kept, down } => {
                let Some(at) = node(bits) else { return };
                self.crash(at, kept);
                self.at(down, Event::Start { node: at });
            }
            Fault::FailCommit { node: bits, .. } => {
                if let Some(node) = node(bits).and_then(|at| self.nodes.get(at)) {
                    node.disk.fail_next();
                }
            }
            Fault::LoseDisk { node: bits, down } => {
                if let Some(at) = self.parting.take().or(node(bits)).filter(|_| self.may_lose()) {
                    self.lose_disk(at, down);
                }
            }
            Fault::Retire { node: bits, again } => {
                if let Some(at) = self.parting.take().or(node(bits)).filter(|_| self.may_lose()) {
                    self.crash(at, false);
                    if let Some(node) = self.nodes.get_mut(at) {
                        node.stopped = true;
                    }
                    let soon = self.rng.between(20_000, 500_000);
                    self.replace(at, soon);
                    self.at(again, Event::Start { node: at });
                }
            }
            Fault::CopyDisk { node } => {
                let at = self.machine(node);
                let tracker = self.rules.tracker(at);
                if let Some((node, tracker)) = self.nodes.get_mut(at).zip(tracker) {
                    node.copy = Some((node.disk.image(), tracker));
                }
            }
            Fault::OldDisk { node, down } => self.old_disk(self.machine(node), down),
            Fault::CloneDisk { node, down } => self.clone_disk(self.machine(node), down),
            Fault::OneWay { from, to } => {
                if let (Some(from), Some(to)) = (node(from), node(to)) {
                    self.cut(from, to);
                }
            }
            Fault::Isolate { node: bits, peers, together } => {
                let Some(at) = node(bits) else { return };
                self.parting = Some(at);
                if together {
                    self.part(peers & !(1 << (at % 64)), None);
                } else {
                    (0..self.nodes.len()).filter(|to| (peers >> (to % 64)) & 1 == 1).for_each(|to| self.cut(at, to));
                }
            }
            Fault::Part { bits } => self.part(bits, None),
            Fault::Bridge { bits, bridge } => self.part(bits, node(bridge)),
            Fault::Heal => {
                if !self.ending && self.now >= self.held_until {
                    self.heal();
                }
            }
            Fault::Slow { node: bits, factor } => {
                let Some(at) = node(bits) else { return };
                self.net.slow_down(at, factor);
                if let Some(node) = self.nodes.get_mut(at) {
                    node.slow = factor;
                }
            }
            Fault::KillAgent { agent, down } => {
                let agents: Vec<usize> = (0..self.agents.len()).collect();
                let Some(agent) = pick(&agents, agent) else { return };
                self.kill_agent(agent);
                self.at(down, Event::StartAgent { agent });
            }
            Fault::Roam { agent } => {
                let serving = |site: usize| self.nodes.iter().filter(|node| node.site == site && node.serves()).count();
                let may = |(_, agent): &(usize, &super::agent::Agent)| serving(agent.site) > 1;
                let agents: Vec<usize> = self.agents.iter().enumerate().filter(may).map(|(at, _)| at).collect();
                pick(&agents, agent).into_iter().for_each(|agent| self.roam(agent));
            }
            Fault::Hold { length } => self.held_until = self.held_until.max(self.now + length),
            Fault::SplitSite { site, peers, apart, length, .. } => {
                if self.now >= self.held_until && !self.ending {
                    self.split_site(site, peers, apart, length);
                }
            }
            Fault::AskThere { server, node, power } => self.ask_there(server, node, power),
            Fault::FailThere { agent } => {
                if let Some(agent) = self.of_the_split_site(agent) {
                    self.kill_host(agent, true, 1_000_000);
                }
            }
            Fault::Wander { agent, dies, down } => {
                let Some(agent) = self.of_the_split_site(agent) else { return };
                match dies {
                    true => {
                        self.kill_agent(agent);
                        self.at(down, Event::StartAgent { agent });
                    }
                    false => self.roam(agent),
                }
            }
            Fault::KillHost { agent, declared, down } => {
                let agents: Vec<usize> = (0..self.agents.len()).collect();
                pick(&agents, agent).into_iter().for_each(|agent| self.kill_host(agent, declared, down));
            }
            Fault::ShortLogs { bytes } => self.limit_logs(bytes),
            Fault::Fork { node, sides } => self.fork(node, sides),
            Fault::Lie { kind, by, to } => self.lie(kind, by, to),
            Fault::Deceive { site } => {
                if self.liar.is_some() && self.may_lose() {
                    let newcomer = self.add_replica(self.machine(site));
                    if let Some(node) = self.nodes.get_mut(newcomer) {
                        node.asks_liar = true;
                    }
                }
            }
            Fault::Join { site, .. } => {
                if self.nodes.len() < self.sites + JOINS {
                    self.add_replica(self.machine(site));
                }
            }
            Fault::Skew { node: bits, ahead } => {
                let Some(node) = node(bits).and_then(|at| self.nodes.get_mut(at)) else { return };
                node.ahead = ahead;
                if ahead > 60_000 {
                    self.sometimes.saw(State::SkewedClock);
                }
            }
        }
    }

    fn up(&self) -> Vec<usize> {
        let nodes = self.nodes.iter().enumerate();
        let fit = |(at, node): &(usize, &Node)| node.process.is_some() && node.original.is_none() && !self.is_liar(*at);
        nodes.filter(fit).map(|(at, _)| at).collect()
    }

    /// A retirement needs a majority, so only so many may be gone, or on an old disk, with which they will be told to go.
    fn may_lose(&self) -> bool {
        let gone = self.nodes.iter().filter(|node| node.gone || node.stopped || node.old.is_some()).count();
        // Who forks is retired too.
        let leaves = gone + usize::from(self.liar.is_some());
        !self.ending && leaves < self.sites / 4 && self.nodes.len() < self.sites + JOINS
    }

    fn part(&mut self, bits: u64, bridge: Option<usize>) {
        let side = |node: usize| (bits >> (node % 64)) & 1;
        let count = self.nodes.len();
        for from in 0..count {
            for to in 0..count {
                let parted = side(from) != side(to) && Some(from) != bridge && Some(to) != bridge;
                if parted && !self.is_liar(from) && !self.is_liar(to) {
                    self.cut(from, to);
                }
            }
        }
        if self.nodes.iter().any(|node| !node.joined) {
            self.sometimes.saw(State::CutDuringJoin);
        }
    }

    fn of_the_split_site(&self, bits: u64) -> Option<usize> {
        let of_site = |(_, agent): &(usize, &super::agent::Agent)| Some(agent.site) == self.split;
        let agents: Vec<usize> = self.agents.iter().enumerate().filter(of_site).map(|(at, _)| at).collect();
        pick(&agents, bits)
    }

    /// A client of a replica of the split site deletes a server that runs there, or switches it.
    fn ask_there(&mut self, server: u64, node: Option<u64>, power: Option<u64>) {
        let Some(site) = self.split else { return };
        let agents = self.agents.iter().filter(|agent| agent.site == site);
        let servers = agents.flat_map(|agent| agent.running().map(|server| (server, agent.attached_to())));
        let servers: Vec<(Uuid, Option<usize>)> = servers.collect();
        let Some((server, attached)) = pick(&servers, server) else { return };
        let serving = |at: &usize| self.nodes.get(*at).is_some_and(|node| node.site == site && node.serves());
        let nodes: Vec<usize> = (0..self.nodes.len()).filter(serving).collect();
        if let Some(at) = node.map_or(attached, |node| pick(&nodes, node)) {
            self.ask_about(at, server, power);
        }
    }

    /// One replica of a site is cut off from the others there, and from some elsewhere; or these from all others, too.
    fn split_site(&mut self, site: u64, peers: u64, apart: bool, length: Micros) {
        let serving = |at: &usize| self.nodes.get(*at).is_some_and(|node| node.serves() && !self.is_liar(*at));
        let there = |site: usize| -> Vec<usize> {
            let of_site = |at: &usize| self.nodes.get(*at).is_some_and(|node| node.site == site);
            (0..self.nodes.len()).filter(of_site).filter(serving).collect()
        };
        let sites: Vec<usize> = (0..self.sites).filter(|site| there(*site).len() > 1).collect();
        let Some(site) = pick(&sites, site) else { return };
        let there = there(site);
        let Some(at) = pick(&there, peers) else { return };
        self.split = Some(site);
        self.held_until = self.now + length;
        self.sometimes.saw(State::SiteSplit);
        let is_cut = |peer: usize| peer != at && (there.contains(&peer) || (peers >> (peer % 64)) & 1 == 1);
        let others: Vec<usize> = (0..self.nodes.len()).filter(|peer| is_cut(*peer)).collect();
        for from in 0..self.nodes.len() {
            let parted = from == at || (apart && !others.contains(&from));
            for to in others.iter().copied().filter(|_| parted) {
                if !self.is_liar(from) && !self.is_liar(to) {
                    self.cut(from, to);
                    self.cut(to, from);
                }
            }
        }
    }

    fn lose_disk(&mut self, at: usize, down: Micros) {
        self.crash(at, false);
        if let Some(node) = self.nodes.get_mut(at) {
            node.gone = true;
        }
        self.sometimes.saw(State::LostDisk);
        let lost = self.rules.lost_disk(at);
        if lost > 0 {
            self.sometimes.saw(State::LostEntry);
        }
        self.trace
            .note(self.now, [12, at as u64, lost as u64], || format!("{at} has lost its disk, and {lost} entries"));
        self.replace(at, down);
    }

    /// A new replica takes a site's place, and the old one is retired.
    pub(super) fn replace(&mut self, gone: usize, down: Micros) {
        let Some(site) = self.nodes.get(gone).map(|node| node.site) else { return };
        let newcomer = self.add_replica(site);
        let _ = newcomer;
        self.at(down, Event::RetireTry { gone });
    }

    pub(super) fn add_replica(&mut self, site: usize) -> usize {
        let newcomer = self.newcomer(site);
        if let Some(node) = self.nodes.get_mut(newcomer) {
            node.joined = false;
            node.admitted = false;
        }
        self.at(1_000, Event::Join { newcomer });
        newcomer
    }

    /// A newcomer asks a sponsor to admit it, then for its snapshot, until it has one.
    pub(super) fn join(&mut self, newcomer: usize) {
        let Some(node) = self.nodes.get_mut(newcomer).filter(|node| !node.joined) else { return };
        node.tries += 1;
        // An admission may be lost with its sponsor's disk.
        let admitted = node.admitted && node.tries % 8 != 0;
        let asks_liar = admitted && node.asks_liar && node.tries < 8;
        let replica = node.replica;
        let sponsors: Vec<usize> = self.up();
        let knows = |at: &usize| {
            let view = self.nodes.get(*at).and_then(|node| node.process.as_ref()).map(|process| &process.view);
            view.is_some_and(|view| view.member(replica).is_some())
        };
        let honest = |at: &usize| self.nodes.get(*at).is_some_and(|node| !node.stopped);
        let fit: Vec<usize> = sponsors.into_iter().filter(|at| honest(at) && (!admitted || knows(at))).collect();
        let bits = self.rng.bits();
        if asks_liar && self.deceive(newcomer) {
            return;
        }
        if !asks_liar
            && let Some(sponsor) = pick(&fit, bits)
            && self.net.is_cut(newcomer, sponsor).is_none()
        {
            let job = if admitted { Job::Snapshot { newcomer } } else { Job::Admit { newcomer } };
            self.job(sponsor, job);
        }
        self.at(PATIENCE, Event::Join { newcomer });
    }

    /// The snapshot travels; then the newcomer starts.
    pub(super) fn give_snapshot(&mut self, sponsor: usize, newcomer: usize) {
        let fits =
            self.nodes.get(newcomer).is_some_and(|node| !node.joined) && self.net.is_cut(sponsor, newcomer).is_none();
        let gives = |process: &mut Process| process.replica.on_trust().is_none();
        if !fits || !self.process(sponsor).is_some_and(gives) {
            return;
        }
        self.fill(sponsor, newcomer, false);
    }

    /// Whether the newcomer's disk was filled with what its sponsor's holds, or with lies; then it starts.
    pub(super) fn fill(&mut self, sponsor: usize, newcomer: usize, lies: bool) -> bool {
        let Some(process) = self.nodes.get_mut(sponsor).and_then(|node| node.process.take()) else { return false };
        let copied = self.copy_snapshot(&process.replica, newcomer, sponsor, lies);
        if let Some(node) = self.nodes.get_mut(sponsor) {
            node.process = Some(process);
        }
        if copied.is_err() {
            return false;
        }
        if let Some(node) = self.nodes.get_mut(newcomer) {
            node.joined = true;
        }
        self.trace
            .note(self.now, [13, newcomer as u64, sponsor as u64], || format!("{newcomer} has joined, by {sponsor}"));
        let delay = self.net.delay(sponsor, newcomer);
        self.at(delay, Event::Start { node: newcomer });
        true
    }

    /// An operator at some site says that a replica is gone, until all agree.
    pub(super) fn retire_try(&mut self, gone: usize) {
        let Some((replica, site)) = self.nodes.get(gone).map(|node| (node.replica, node.site)) else { return };
        let living: Vec<usize> = self.living().iter().map(|(at, _)| *at).collect();
        let retired = |world: &Self, at: usize| {
            let view = world.nodes.get(at).and_then(|node| node.process.as_ref()).map(|process| process.view.retired());
            view.is_some_and(|retired: &Retired| retired.contains(replica))
        };
        if !living.is_empty() && living.iter().all(|at| retired(self, *at)) {
            return;
        }
        let bits = self.rng.bits();
        if let Some(operator) = pick(&living, bits) {
            let at_site = living.iter().rev().find(|at| self.nodes.get(**at).is_some_and(|node| node.site == site));
            let heir = at_site.copied().unwrap_or(operator);
            self.job(operator, Job::Retire { gone, heir });
        }
        self.at(PATIENCE, Event::RetireTry { gone });
    }

    /// A machine, running or not: a copy of its disk and what is done with it must be of one.
    fn machine(&self, bits: u64) -> usize {
        usize::try_from(bits).unwrap_or(0) % self.sites.max(1)
    }

    /// The copy of a disk that was made earlier, if its machine runs with its own.
    fn take_copy(&mut self, at: usize) -> Option<(Image, Tracker)> {
        let may = self.may_lose();
        let node = self.nodes.get_mut(at)?;
        let runs = node.process.is_some() && node.original.is_none() && !node.stopped && may;
        node.copy.take().filter(|_| runs)
    }

    /// The disk is put back as it was a while ago.
    fn old_disk(&mut self, at: usize, down: Micros) {
        let takes_part = |(_, node): &(usize, &Node)| !node.gone && !node.stopped;
        let others: Vec<usize> = self.nodes.iter().enumerate().filter(takes_part).map(|(at, _)| at).collect();
        // Without a witness of what it wrote nobody can notice, and the numbers would be used again.
        let (others, agent) = (self.rules.is_held_by(at, &others), self.is_witnessed(at));
        if !others && !agent {
            return;
        }
        let Some((image, tracker)) = self.take_copy(at) else { return };
        self.crash(at, false);
        if let Some(node) = self.nodes.get_mut(at) {
            node.disk = Disk::from_image(&image);
            node.old = Some(Old { others, agent });
        }
        self.rules.put_in(at, tracker.of_copy());
        self.sometimes.saw(State::OldDisk);
        self.trace.note(self.now, [15, at as u64, 0], || format!("{at} has an old copy of its disk"));
        self.at(down, Event::Start { node: at });
    }

    /// A copy of the disk is started on another machine while the first is off.
    fn clone_disk(&mut self, at: usize, down: Micros) {
        let Some((image, tracker)) = self.take_copy(at) else { return };
        self.crash(at, false);
        let first = self.rules.tracker(at);
        self.rules.put_in(at, tracker.of_copy());
        if let Some((node, first)) = self.nodes.get_mut(at).zip(first) {
            node.original = Some((std::mem::replace(&mut node.disk, Disk::from_image(&image)), first));
            node.place = 1;
        }
        self.sometimes.saw(State::Cloned);
        self.trace.note(self.now, [16, at as u64, 0], || format!("a copy of {at}'s disk is started elsewhere"));
        self.at(10_000, Event::Start { node: at });
        self.at(down + 1_000_000, Event::Original { node: at });
    }

    /// The machine whose disk was copied goes on with it; the copy's is off.
    pub(super) fn original(&mut self, at: usize) {
        let Some((disk, tracker)) = self.nodes.get_mut(at).and_then(|node| node.original.take()) else { return };
        self.crash(at, false);
        self.rules.put_in(at, tracker);
        if let Some(node) = self.nodes.get_mut(at) {
            node.disk = disk;
            node.place = 0;
        }
        self.trace.note(self.now, [17, at as u64, 0], || format!("{at} goes on with its own disk"));
        self.at(10_000, Event::Start { node: at });
    }
}
