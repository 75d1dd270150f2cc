//! The world: one queue of events in virtual time, and everything they happen to. One thread, no wall clock, no map
//! whose order depends on anything but its keys: one seed gives one run, bit for bit.

use std::collections::{BTreeMap, BTreeSet};

use luc_engine::entry::Member;
use luc_engine::id::{ClaimId, Millis, ReplicaId};
use luc_engine::mutant::{self, Mutant};
use luc_engine::replica::{Identity, Replica, founded_by};
use luc_engine::store::{Batch, Store, Table};
use luc_engine::tx::Refusal;
use luc_engine::view::View;
use luc_sync::join::admit_replica;
use luc_sync::proto::Input;
use luc_sync::wire::Msg;
use uuid::Uuid;

use super::agent::{Agent, Talk};
use super::dead::Wish;
use super::disk::Disk;
use super::liar::Liar;
use super::net::{DIAL_EVERY, IDLE, Micros, Net, Sent, Weather};
use super::node::{Job, Node, Process, member};
use super::queue::Queue;
use super::rights::Rights;
use super::rng::Rng;
use super::rules::{Broken, Checked, Rule, Rules};
use super::sessions::Look;
use super::snapshots::Given;
use super::sometimes::{Sometimes, State};
use super::trace::Trace;
use super::vouching::Vouching;
use super::workload::{Step, What};

/// When a run's clocks start, Unix milliseconds.
const EPOCH: Millis = 1_700_000_000_000;
/// Within so long after the links are mended, all must agree.
const SETTLE: Micros = 60_000_000;
/// How often a core looks at the clock.
const TICK: Micros = 250_000;
/// In one of so many a node folds what all have: it may do so at any time.
const FOLD_TICKS: u64 = 16;

/// What happens.
#[derive(Debug)]
pub(super) enum Event {
    Step(usize),
    Flushed {
        node: usize,
        life: u64,
    },
    Arrive {
        from: usize,
        to: usize,
        id: u64,
    },
    /// Entries that came twice, or were overtaken.
    Stray {
        from: usize,
        to: usize,
        id: u64,
        message: Msg,
    },
    Silent {
        me: usize,
        peer: usize,
        id: u64,
        dead: bool,
    },
    Dial {
        from: usize,
        to: usize,
    },
    Established {
        from: usize,
        to: usize,
    },
    Tick {
        node: usize,
        life: u64,
    },
    Start {
        node: usize,
    },
    Met {
        node: usize,
        life: u64,
    },
    /// The machine whose disk was copied goes on.
    Original {
        node: usize,
    },
    Rights(Rights),
    Attach {
        agent: usize,
        life: u64,
    },
    ToReplica {
        node: usize,
        agent: usize,
        session: u64,
        talk: Talk,
    },
    ToAgent {
        agent: usize,
        session: u64,
        talk: Talk,
    },
    Act {
        agent: usize,
        life: u64,
        claim: ClaimId,
    },
    /// A client waits for its answer.
    Look(Box<Look>),
    /// The holder of a claim is asked whether it stands by it, hears that, and has said so.
    Vouching(Vouching),
    /// The liar speaks.
    Heard {
        from: usize,
        to: usize,
        message: Msg,
    },
    /// A node looks whom it is to be connected with.
    Redial {
        node: usize,
    },
    PowerOn {
        agent: usize,
    },
    Operate {
        agent: usize,
        wish: Wish,
    },
    /// A snapshot is asked for, comes, or has not come in time.
    StateAsked {
        from: usize,
        to: usize,
        life: u64,
    },
    StateComes {
        node: usize,
        life: u64,
        given: Box<Given>,
    },
    StateLate {
        node: usize,
        life: u64,
    },
    StartAgent {
        agent: usize,
    },
    /// What agents know of the log of a node whose disk is an old one.
    Witnesses {
        node: usize,
        life: u64,
    },
    Join {
        newcomer: usize,
    },
    RetireTry {
        gone: usize,
    },
    Settled,
}

/// How a run is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The seed.
    pub seed: u64,
    /// Replicas at the start, one a site.
    pub sites: usize,
    /// Keep the trace as text.
    pub text: bool,
}

/// One run.
pub struct World {
    pub(super) seed: u64,
    pub(super) now: Micros,
    queue: Queue<Event>,
    sequence: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) agents: Vec<Agent>,
    pub(super) net: Net,
    pub(super) rules: Rules,
    pub(super) trace: Trace,
    pub(super) sometimes: Sometimes,
    pub(super) rng: Rng,
    pub(super) keys: Rng,
    pub(super) steps: Vec<Step>,
    pub(super) by_replica: BTreeMap<ReplicaId, usize>,
    pub(super) broken: Option<Broken>,
    dialing: BTreeSet<(usize, usize)>,
    pub(super) asks: BTreeMap<u64, super::rights::Ask>,
    pub(super) next: u64,
    pub(super) known: super::ops::KnownRecords,
    pub(super) sessions: super::sessions::Sessions,
    pub(super) sites: usize,
    pub(super) ending: bool,
    /// Who is cut off from some before it is lost.
    pub(super) parting: Option<usize>,
    /// The site whose replicas were cut off from each other last.
    pub(super) split: Option<usize>,
    /// Until then no link is mended.
    pub(super) held_until: Micros,
    /// Bytes of log that replicas keep for absent members, if it is not what they keep by themselves.
    pub(super) log_bytes: Option<u64>,
    /// Who lies.
    pub(super) liar: Option<Liar>,
    settled: bool,
}

/// What a run left.
#[derive(Debug)]
pub struct Outcome {
    /// The rule that was broken, if one was.
    pub broken: Option<Broken>,
    /// The hash of the trace.
    pub hash: String,
    /// Events in it.
    pub events: u64,
    /// Which hard states were reached.
    pub sometimes: Sometimes,
    /// The trace's text, if it was kept.
    pub lines: Vec<String>,
    /// Virtual time, microseconds.
    pub took: Micros,
    /// Entries written, by all.
    pub entries: u64,
}

/// Runs a schedule.
#[must_use]
pub fn run(config: &Config, steps: Vec<Step>) -> Outcome {
    let mut world = World::new(config, steps);
    world.run();
    if world.net.lost > 0 {
        world.sometimes.saw(State::LostOnBreak);
    }
    let frontier = world.living().first().map(|(_, view)| view.frontier().clone()).unwrap_or_default();
    Outcome {
        broken: world.broken,
        hash: world.trace.hash(),
        events: world.trace.events(),
        sometimes: world.sometimes,
        lines: world.trace.lines().to_vec(),
        took: world.now,
        entries: frontier.0.values().map(|tip| tip.number).sum(),
    }
}

impl World {
    fn new(config: &Config, steps: Vec<Step>) -> Self {
        let mut rng = Rng::new(config.seed, 2);
        let weather = Weather {
            delay: rng.between(2_000, 60_000),
            jitter: rng.between(0, 10_000),
            loss: rng.below(20),
            twice: rng.below(30),
            late: rng.below(30),
        };
        let mut world = Self {
            seed: config.seed,
            now: 0,
            queue: Queue::default(),
            sequence: 0,
            nodes: Vec::new(),
            agents: Vec::new(),
            net: Net::new(weather, Rng::new(config.seed, 3)),
            rules: Rules::default(),
            trace: Trace::new(config.text),
            sometimes: Sometimes::default(),
            rng,
            keys: Rng::new(config.seed, 4),
            steps,
            by_replica: BTreeMap::new(),
            broken: None,
            dialing: BTreeSet::new(),
            asks: BTreeMap::new(),
            next: 1,
            known: super::ops::KnownRecords::default(),
            sessions: super::sessions::Sessions::default(),
            sites: config.sites,
            ending: false,
            parting: None,
            split: None,
            held_until: 0,
            log_bytes: None,
            liar: None,
            settled: false,
        };
        if let Err(reason) = world.found(config.sites) {
            world.broken = Some(Broken::new(Rule::Panic, format!("the cloud could not be founded: {reason}")));
        }
        world
    }

    /// The founder, and everybody whom it admits before time starts.
    fn found(&mut self, sites: usize) -> Result<(), String> {
        let key = ed25519_dalek::SigningKey::from_bytes(&self.keys.bytes());
        let identity = Identity { cloud: founded_by(&key.verifying_key().to_bytes()), key };
        let disk = Disk::default();
        let me = member(&identity, 0);
        let mut founder =
            Replica::found(identity.clone(), Box::new(disk.clone()), me, EPOCH).map_err(|error| error.to_string())?;
        self.add_node(identity, 0, disk, None);
        // The founding entry was flushed before anybody could see it: it is read from the disk.
        let first = luc_engine::id::EntryId { author: founder.identity().replica(), number: 1 };
        let reader = founder.reader().map_err(|error| error.to_string())?;
        let part = luc_sync::node::read_entries(&*reader, founder.view().branches(), &[first], 1 << 20);
        let part = part.map_err(|e| e.to_string())?;
        for entry in part.entries {
            let checked = self.rules.applied(0, &entry);
            self.check(checked);
        }
        for site in 1..sites {
            let node = self.newcomer(site);
            let new = self.nodes.get(node).map(|node| member(&node.identity, site)).ok_or("no newcomer")?;
            founder.transact::<_, Refusal>(EPOCH, |tx| admit_replica(tx, new)).map_err(|error| error.to_string())?;
            let flushed = founder.flush().map_err(|error| error.to_string())?;
            for entry in &flushed.entries {
                let checked = self.rules.applied(0, entry);
                self.check(checked);
            }
            self.copy_snapshot(&founder, node, 0, false)?;
        }
        for node in 0..self.nodes.len() {
            self.at(0, Event::Start { node });
            self.add_agent(node);
        }
        for (index, step) in self.steps.iter().enumerate() {
            self.queue.insert((step.at, u64::try_from(index).unwrap_or(0)), Event::Step(index));
        }
        self.sequence = u64::try_from(self.steps.len()).unwrap_or(0) + 1_000_000;
        Ok(())
    }

    /// A node that has a key and an empty disk.
    pub(super) fn newcomer(&mut self, site: usize) -> usize {
        let cloud = self.nodes.first().map_or(luc_engine::id::CloudId(Uuid::nil()), |node| node.identity.cloud);
        let key = ed25519_dalek::SigningKey::from_bytes(&self.keys.bytes());
        self.add_node(Identity { cloud, key }, site, Disk::default(), None)
    }

    pub(super) fn add_node(&mut self, identity: Identity, site: usize, disk: Disk, sponsor: Option<usize>) -> usize {
        let replica = identity.replica();
        let at = self.nodes.len();
        self.by_replica.insert(replica, at);
        self.rules.new_node(replica, sponsor);
        self.nodes.push(Node::new(identity, site, disk));
        at
    }

    /// Fills a newcomer's disk from what its sponsor's holds; without the claims if that lies.
    pub(super) fn copy_snapshot(
        &mut self,
        from: &Replica,
        newcomer: usize,
        sponsor: usize,
        lies: bool,
    ) -> Result<(), String> {
        let reader = from.reader().map_err(|error| error.to_string())?;
        let mut batch = Batch::default();
        Replica::put_on_trust(&mut batch, from.identity().replica());
        let torn = |table: &Table| *table == Table::Claim && (lies || mutant::on(Mutant::SnapshotTorn));
        for table in Table::in_snapshot().filter(|table| !torn(table)) {
            let mut put = |key: &[u8], value: &[u8]| {
                batch.put(table, key.to_vec(), value.to_vec());
                true
            };
            reader.scan(table, &[], &mut put).map_err(|error| error.to_string())?;
        }
        if let Some(node) = self.nodes.get_mut(newcomer) {
            node.disk = Disk::default();
            Replica::prepare(&mut node.disk).map_err(|error| error.to_string())?;
            node.disk.commit(&batch).map_err(|error| error.to_string())?;
        }
        self.rules.took_snapshot(newcomer, sponsor);
        Ok(())
    }

    pub(super) fn at(&mut self, delay: Micros, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), event);
    }

    /// Notes what a check said. The first broken rule ends the run.
    pub(super) fn check(&mut self, checked: Checked) {
        if let Err(broken) = checked
            && self.broken.is_none()
        {
            let now = self.now;
            self.trace.note(now, [99, 0, 0], || format!("BROKEN {}: {}", broken.rule, broken.how));
            self.broken = Some(broken);
        }
    }

    /// A node's clock, Unix milliseconds.
    pub(super) fn clock(&self, node: usize) -> Millis {
        let ahead = self.nodes.get(node).map_or(0, |node| node.ahead);
        EPOCH + 1_000 + self.now / 1_000 + ahead
    }

    pub(super) fn process(&mut self, node: usize) -> Option<&mut Process> {
        self.nodes.get_mut(node).and_then(|node| node.process.as_mut())
    }

    fn run(&mut self) {
        let last = self.steps.last().map_or(3_000_000, |step| step.at);
        self.queue.insert((last + 1_000_000, 999_999), Event::Settled);
        let mut deadline = u64::MAX;
        while let Some((at, event)) = self.queue.pop_first() {
            self.now = at;
            if at > deadline {
                let how = self.disagreement();
                self.check(Err(Broken::new(Rule::Convergence, how)));
            }
            let settling = matches!(event, Event::Settled);
            self.happen(event);
            if settling && !std::mem::replace(&mut self.ending, true) {
                self.mend_all();
                deadline = self.now + SETTLE;
            }
            if self.broken.is_some() || self.settled {
                break;
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Step(index) => {
                let Some(step) = self.steps.get(index).cloned() else { return };
                match step.what {
                    What::Op { node, op } => self.ask_for(node, op),
                    What::Fault(fault) => self.fault(fault),
                }
            }
            Event::Flushed { node, life } => self.flushed(node, life),
            Event::Arrive { from, to, id } => {
                if let Some(message) = self.net.arrive(from, to, id, self.now) {
                    self.arrived(from, to, message);
                }
            }
            Event::Stray { from, to, id, message } => {
                if self.net.connection(to, from) == Some(id) && self.net.is_cut(from, to).is_none() {
                    self.arrived(from, to, message);
                }
            }
            Event::Silent { me, peer, id, dead } => self.silent(me, peer, id, dead),
            Event::Dial { from, to } => self.dial(from, to),
            Event::Established { from, to } => self.established(from, to),
            Event::Tick { node, life } => self.tick(node, life),
            Event::Start { node } => self.start(node),
            Event::Met { node, life } => {
                if self.nodes.get(node).is_some_and(|node| node.life == life) {
                    self.meet(node, true);
                }
            }
            Event::Original { node } => self.original(node),
            Event::Rights(rights) => self.rights(rights),
            Event::Attach { agent, life } => self.attach(agent, life),
            Event::ToReplica { node, agent, session, talk } => self.replica_hears(node, agent, session, talk),
            Event::ToAgent { agent, session, talk } => self.agent_hears(agent, session, talk),
            Event::Look(look) => self.look(*look),
            Event::Vouching(vouching) => self.vouching(vouching),
            Event::Act { agent, life, claim } => self.act_on(agent, life, claim),
            Event::Heard { from, to, message } => self.arrived(from, to, message),
            Event::Redial { node } => self.dial_members(node),
            Event::PowerOn { agent } => self.power_on(agent),
            Event::Operate { agent, wish } => self.operate(agent, wish),
            Event::StateAsked { from, to, life } => self.give_state(from, to, life),
            Event::StateComes { node, life, given } => self.state_comes(node, life, given),
            Event::StateLate { node, life } => self.state_late(node, life),
            Event::Witnesses { node, life } => self.witnesses(node, life),
            Event::StartAgent { agent } => self.start_agent(agent),
            Event::Join { newcomer } => self.join(newcomer),
            Event::RetireTry { gone } => self.retire_try(gone),
            Event::Settled => {
                if self.ending {
                    self.look_whether_settled();
                    self.at(500_000, Event::Settled);
                } else {
                    self.at(500_000, Event::Settled);
                }
            }
        }
    }

    fn arrived(&mut self, from: usize, to: usize, message: Msg) {
        let Some(peer) = self.nodes.get(from).map(|node| node.replica) else { return };
        let kind = match &message {
            Msg::Frontier { .. } | Msg::Dropped(_) | Msg::Lost | Msg::Unchanged | Msg::Yours(_) => 0,
            Msg::Entries { entries, .. } => u64::try_from(entries.len()).unwrap_or(0),
            Msg::Heartbeat(_) => u64::MAX,
        };
        if kind != 0 && kind != u64::MAX {
            let (from, to) = (from as u64, to as u64);
            self.trace.note(self.now, [1, from << 32 | to, kind], || format!("{to} gets {kind} entries from {from}"));
        }
        let told = matches!(message, Msg::Frontier { .. } | Msg::Yours(_));
        self.core(to, Input::Message(peer, message));
        if told && self.process(to).is_some_and(|process| !process.met) {
            self.meet(to, false);
        }
    }

    /// Sends over a connection, if there is one.
    pub(super) fn send(&mut self, from: usize, to: usize, message: Msg) -> bool {
        let entries = matches!(message, Msg::Entries { .. });
        let (twice, late) = if entries { self.net.disturbs() } else { (false, false) };
        if late && let Some(id) = self.net.connection(from, to) {
            let delay = self.net.delay(from, to) + self.net.delay(from, to);
            self.at(delay, Event::Stray { from, to, id, message });
            return true;
        }
        let again = twice.then(|| message.clone());
        match self.net.send(from, to, message, self.now) {
            Sent::At(due, id) => {
                self.at(due - self.now, Event::Arrive { from, to, id });
                if let Some(message) = again {
                    let delay = due - self.now + self.net.delay(from, to);
                    self.at(delay, Event::Stray { from, to, id, message });
                }
                true
            }
            Sent::Dropped => {
                self.sometimes.saw(State::Dropped);
                false
            }
        }
    }

    /// One side has not heard the other for too long.
    fn silent(&mut self, me: usize, peer: usize, id: u64, dead: bool) {
        let silent = self.net.is_cut(peer, me).is_some_and(|since| since + IDLE <= self.now);
        if !(dead || silent) || !self.net.close(me, peer, id) {
            return;
        }
        if let Some(replica) = self.nodes.get(peer).map(|node| node.replica) {
            self.core(me, Input::Disconnected(replica));
        }
        self.keep_dialing(me, peer);
        self.at(IDLE, Event::Silent { me: peer, peer: me, id, dead: true });
    }

    /// Cuts one direction; who hears nothing any more notices after a while.
    pub(super) fn cut(&mut self, from: usize, to: usize) {
        if self.net.cut(from, to, self.now)
            && let Some(id) = self.net.connection(to, from)
        {
            self.at(IDLE, Event::Silent { me: to, peer: from, id, dead: false });
        }
    }

    pub(super) fn heal(&mut self) {
        if self.net.is_parted() {
            self.trace.note(self.now, [2, 0, 0], || "all links are mended".into());
        }
        for (from, to, id, due) in self.net.heal(self.now) {
            self.at(due.saturating_sub(self.now), Event::Arrive { from, to, id });
        }
    }

    /// Of a pair the one with the lower id dials; the other one only if that does not come, since it has not heard of it.
    pub(super) fn keep_dialing(&mut self, me: usize, peer: usize) {
        let id = |node: usize| self.nodes.get(node).map(|node| node.replica);
        let is_heard_of = || {
            let process = self.nodes.get(peer).and_then(|node| node.process.as_ref());
            process.zip(id(me)).is_none_or(|(process, me)| process.view.member(me).is_some())
        };
        if me != peer && (id(me) < id(peer) || !is_heard_of()) && self.dialing.insert((me, peer)) {
            let delay = self.rng.below(DIAL_EVERY);
            self.at(delay, Event::Dial { from: me, to: peer });
        }
    }

    fn dial(&mut self, from: usize, to: usize) {
        let up = |node: usize| self.nodes.get(node).is_some_and(|node| node.process.is_some());
        if !up(from) || self.net.connection(from, to).is_some() || !self.talks(from, to) {
            self.dialing.remove(&(from, to));
            return;
        }
        if up(to) && self.net.is_cut(from, to).is_none() && self.net.is_cut(to, from).is_none() {
            let delay = 2 * self.net.delay(from, to) + self.net.delay(to, from);
            self.at(delay, Event::Established { from, to });
        }
        self.at(DIAL_EVERY, Event::Dial { from, to });
    }

    fn established(&mut self, from: usize, to: usize) {
        let up = |node: usize| self.nodes.get(node).is_some_and(|node| node.process.is_some());
        let cut = self.net.is_cut(from, to).or(self.net.is_cut(to, from));
        let talks = self.talks(from, to);
        if !talks || !up(from) || !up(to) || cut.is_some() || self.net.connection(from, to).is_some() {
            return;
        }
        self.net.connect(from, to);
        let id = |node: usize| self.nodes.get(node).map(|node| node.replica);
        if let (Some(a), Some(b)) = (id(from), id(to)) {
            self.core(from, Input::Connected(b));
            self.core(to, Input::Connected(a));
        }
    }

    fn tick(&mut self, node: usize, life: u64) {
        let Some(process) =
            self.nodes.get(node).filter(|node| node.life == life).and_then(|node| node.process.as_ref())
        else {
            return;
        };
        let digest = process.view.digest().to_string();
        let at = self.clock(node);
        if (self.now / TICK).is_multiple_of(FOLD_TICKS) && !self.fold(node) {
            return;
        }
        let status = luc_sync::wire::Status { at, digest, ..luc_sync::wire::Status::default() };
        self.core(node, Input::Tick(status));
        self.at(TICK, Event::Tick { node, life });
    }

    pub(super) fn begin_ticking(&mut self, node: usize, life: u64) {
        let first = self.rng.below(TICK);
        self.at(first, Event::Tick { node, life });
    }

    /// The views of all replicas that take part.
    pub(super) fn living(&self) -> Vec<(usize, &View)> {
        let takes_part = |node: &&(usize, &Node)| !node.1.gone && !node.1.stopped && !self.is_liar(node.0);
        let nodes: Vec<(usize, &Node)> = self.nodes.iter().enumerate().collect();
        let views = nodes.iter().filter(takes_part).filter_map(|(at, node)| Some((*at, &node.process.as_ref()?.view)));
        views.collect()
    }

    /// Whether all replicas have everything and nothing is under way.
    fn look_whether_settled(&mut self) {
        if self.why_unsettled().is_some() {
            return;
        }
        let checked = self.rules.settled(&self.living());
        // What is left over may still be under way: only the deadline says that it is not.
        self.settled = checked.is_ok();
    }

    fn disagreement(&self) -> String {
        let left = self.rules.settled(&self.living()).err().map(|broken| broken.how);
        let why = self.why_unsettled().or(left).unwrap_or_default();
        format!("{} s after the links were mended: {why}", SETTLE / 1_000_000)
    }

    fn why_unsettled(&self) -> Option<String> {
        let takes_part = |(at, node): &(usize, &Node)| !node.gone && !node.stopped && !self.is_liar(*at);
        let expected = self.nodes.iter().enumerate().filter(takes_part).count();
        let living = self.living();
        if living.len() < expected {
            return Some(format!("{} of {expected} replicas run", living.len()));
        }
        let (first, view) = living.first()?;
        let other = living.iter().find(|(_, other)| other.frontier() != view.frontier());
        other.map(|(node, other)| {
            let (behind, ahead) =
                (other.frontier().missing(view.frontier()), view.frontier().missing(other.frontier()));
            format!("node {node} lacks {behind} entries of node {first}, which lacks {ahead} of its")
        })
    }

    /// The end: everything is mended and started.
    fn mend_all(&mut self) {
        self.heal();
        self.end_liar();
        for agent in 0..self.agents.len() {
            if self.agents.get(agent).is_some_and(|agent| !agent.condemned) {
                self.power_on(agent);
            }
            self.start_agent(agent);
        }
        for node in 0..self.nodes.len() {
            self.original(node);
            let starts = self.nodes.get(node).is_some_and(|node| !node.gone && node.process.is_none() && node.joined);
            if starts && !self.nodes.get(node).is_some_and(|node| node.stopped) {
                self.start(node);
            }
        }
    }

    /// A job for a node; it is run at once if no flush is under way.
    pub(super) fn job(&mut self, node: usize, job: Job) {
        if let Some(process) = self.process(node) {
            process.jobs.push_back(job);
            self.run_jobs(node);
        }
    }

    /// Takes in what members a node knows: it dials those that are its to dial.
    pub(super) fn dial_members(&mut self, node: usize) {
        let members: Vec<ReplicaId> =
            self.process(node).map(|p| p.view.members().map(|(id, _)| *id).collect()).unwrap_or_default();
        for replica in members {
            if let Some(peer) = self.node_of(node, replica)
                && self.net.connection(node, peer).is_none()
            {
                self.keep_dialing(node, peer);
            }
        }
    }

    /// An id that nobody has used.
    pub(super) fn fresh(&mut self) -> Uuid {
        self.next += 1;
        // Half of a certified id comes of the lower half: several that one entry creates must differ there.
        Uuid::from_u64_pair(self.seed << 16, self.next)
    }

    pub(super) fn admit(&self, newcomer: usize) -> Option<Member> {
        let node = self.nodes.get(newcomer)?;
        Some(member(&node.identity, node.site))
    }
}
